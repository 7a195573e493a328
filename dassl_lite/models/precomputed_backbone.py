"""A stand-in for CLIP on a dataset of precomputed features: text features from a table, and no encoders.

Shapes: K classes, T templates, D width of the features, N prompts, B images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NoReturn

import torch
from torch import Tensor, nn

from dassl_lite.models.image_tower import Projection
from dassl_lite.utils.errors import UserError


class PrecomputedBackbone(nn.Module):
    """The text features that come with a dataset of features, behind the interface of a `CLIPBackbone`.

    Unlike a `CLIPBackbone` it computes nothing: it "encodes" exactly the prompts of its table, by lookup, all classes
    of a template at once. A method that needs an encoder gets an error that names the method and the dataset.

    Args:
        text_features: (T, K, D), of any length; T is 0 if there are none.
        prompts: T lists of K prompts; ``_`` counts as a space.
        scale: exp(logit_scale), a scalar.
        bias: logit_bias; None if the CLIP has none.
        name: name of the CLIP that computed the features; None if unknown.
        digest, precision: digest and precision of its weights; "" if unknown.
        method: the method that uses it, for messages.
        source: where the features come from, for messages.
        projection, projection_bias: the image encoder's last linear step, (W, D) and (D,), where it is known.

    Attributes:
        text_features: (T, K, D), float32.
        logit_scale: logarithm of the scale, frozen.
        logit_bias: added to logits under a sigmoid, a scalar; None if the CLIP has none.
        prompts: the T lists, with spaces for ``_``.
        name, digest, precision: as given; an unknown digest is the name.
    """

    text_features: Tensor
    _projection: Tensor | None
    _projection_bias: Tensor | None
    logit_bias: Tensor | None

    def __init__(
        self,
        text_features: Tensor,
        prompts: Sequence[Sequence[str]],
        scale: float,
        *,
        bias: float | None = None,
        name: str | None = None,
        digest: str = "",
        precision: str = "",
        method: str = "this method",
        source: str = "the dataset",
        projection: Tensor | None = None,
        projection_bias: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.register_buffer("text_features", text_features.float())
        self.logit_scale = nn.Parameter(torch.tensor(math.log(scale)), requires_grad=False)
        self.register_buffer("logit_bias", None if bias is None else torch.tensor(bias))
        self.prompts = [_spaced(of_template) for of_template in prompts]
        self.name, self.precision = name, precision
        self.digest = digest or name or ""
        self._method, self._source = method, source
        self.register_buffer("_projection", None if projection is None else projection.float())
        self.register_buffer("_projection_bias", None if projection_bias is None else projection_bias.float())

    @property
    def embed_dim(self) -> int:
        """D, the width of image and text features."""
        return self.text_features.shape[-1]

    @property
    def device(self) -> torch.device:
        return self.text_features.device

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Indices (N, 2) into the table, template and class, of N prompts: for each class in turn, every template.

        Raises:
            UserError: the table lacks these prompts.
        """
        classes = self.text_features.shape[1]
        templates = len(texts) // classes
        wanted = [_spaced(texts[number::templates]) for number in range(templates)]
        missing = [prompts[0] for prompts in wanted if prompts not in self.prompts]
        if missing or len(texts) != classes * templates:
            example = (missing or texts)[0]
            known = ", ".join(f"'{prompts[0]}'" for prompts in self.prompts)
            if not self.prompts:
                raise UserError(f"{self._method} needs text features, but {self._source} holds none (text_weights)")
            raise UserError(
                f"{self._method} needs the text encoder, for prompts like '{example}', but {self._source} holds "
                f"features only: text features of prompts like {known}"
            )
        columns = [self.prompts.index(prompts) for prompts in wanted]
        return torch.tensor([(column, row) for row in range(classes) for column in columns])

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Features (N, D) of the prompts at the indices (N, 2)."""
        return self.text_features[tokens[:, 0], tokens[:, 1]]

    @property
    def image_projection(self) -> Projection:
        """The image encoder's last linear step. Raises UserError if it is not known."""
        if self._projection is None:
            raise UserError(
                f"{self._method} needs the states before the image encoder's projection, but {self._source} holds none "
                "(test_states, projection); tools/extract.py --states writes them"
            )
        return Projection(self._projection, self._projection_bias)

    def encode_image_states(self, images: Tensor) -> NoReturn:
        self._refuse("image encoder")

    def encode_image(self, images: Tensor) -> NoReturn:
        self._refuse("image encoder")

    @property
    def text(self) -> NoReturn:
        self._refuse("text encoder")

    @property
    def visual(self) -> NoReturn:
        self._refuse("image encoder")

    @property
    def model(self) -> NoReturn:
        self._refuse("image and the text encoder")

    @property
    def tokenizer(self) -> NoReturn:
        self._refuse("text encoder")

    def _refuse(self, encoder: str) -> NoReturn:
        raise UserError(
            f"{self._method} needs the {encoder}, but {self._source} holds features only; use it on a dataset of images"
        )


def _spaced(prompts: Sequence[str]) -> list[str]:
    return [prompt.replace("_", " ") for prompt in prompts]
