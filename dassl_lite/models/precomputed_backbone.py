"""What stands for CLIP where its features were computed elsewhere: class features out of a table, and no encoder.

Letters: K classes, T templates, D feature width, N prompts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NoReturn

import torch
from torch import Tensor, nn

from dassl_lite.utils.errors import UserError


class PrecomputedBackbone(nn.Module):
    """Has what heads and class weights ask of a :class:`~dassl_lite.models.clip.CLIPBackbone`.

    It encodes the prompts that its table has, all classes of a template at once, and nothing else.

    Args:
        text_features: (T, K, D), of any length.
        prompts: T lists of K prompts; ``_`` and a space are the same.
        scale: exp(logit_scale), a scalar.
        name: of the CLIP that gave the features; None where nobody knows.
        digest, precision: of its weights, in which they were held; "" where nobody knows.
        method: who asks, for messages.
        source: where the features are from, for messages.
    """

    text_features: Tensor

    def __init__(
        self,
        text_features: Tensor,
        prompts: Sequence[Sequence[str]],
        scale: float,
        *,
        name: str | None = None,
        digest: str = "",
        precision: str = "",
        method: str = "this method",
        source: str = "the dataset",
    ) -> None:
        super().__init__()
        self.register_buffer("text_features", text_features.float())
        self.logit_scale = nn.Parameter(torch.tensor(math.log(scale)), requires_grad=False)
        self.prompts = [_spaced(of_template) for of_template in prompts]
        self.name, self.precision = name, precision
        self.digest = digest or name or ""
        self._method, self._source = method, source

    @property
    def embed_dim(self) -> int:
        """D."""
        return self.text_features.shape[-1]

    @property
    def device(self) -> torch.device:
        return self.text_features.device

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Places (N, 2) in the table, template and class, of N prompts: for each class in turn, in each template.

        Raises:
            UserError: the table has no such prompts.
        """
        classes = self.text_features.shape[1]
        templates = len(texts) // classes
        wanted = [_spaced(texts[number::templates]) for number in range(templates)]
        lacking = [prompts[0] for prompts in wanted if prompts not in self.prompts]
        if lacking or len(texts) != classes * templates:
            unknown = (lacking or texts)[0]
            known = ", ".join(f"'{prompts[0]}'" for prompts in self.prompts)
            raise UserError(
                f"{self._method} needs the text encoder, for prompts like '{unknown}', but {self._source} holds "
                f"features only, those of the prompts {known} among them"
            )
        columns = [self.prompts.index(prompts) for prompts in wanted]
        return torch.tensor([(column, row) for row in range(classes) for column in columns])

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Features (N, D) of prompts at the places (N, 2)."""
        return self.text_features[tokens[:, 0], tokens[:, 1]]

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
