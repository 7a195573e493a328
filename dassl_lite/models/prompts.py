"""Class weights from prompts: every class name in every template, encoded in batches, averaged per class.

Text states of a frozen CLIP depend only on its weights and the texts, so the functions can keep them in a folder
(``cache``), and runs that share a backbone and prompts encode them once. Pass None where the text encoder is tuned.

Shapes: N texts, K classes, T templates, W width of the text encoder, D width of the features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file as load_safetensors
from safetensors.torch import save_file as save_safetensors
from torch import Tensor

from dassl_lite.utils.devices import Halving
from dassl_lite.utils.errors import UserError, shown
from dassl_lite.utils.files import atomic_path, digest_of
from dassl_lite.utils.logger import get_logger
from dassl_lite.utils.safe_load import load_file

if TYPE_CHECKING:
    from dassl_lite.models.clip import CLIPBackbone

logger = get_logger(__name__)


def fill_templates(classnames: Sequence[str], templates: Sequence[str], replace_underscore: bool = True) -> list[str]:
    """K * T prompts, class by class: every class name in every template."""
    names = [name.replace("_", " ") for name in classnames] if replace_underscore else classnames
    return [fill_template(template, name) for name in names for template in templates]


def fill_template(template: str, name: str) -> str:
    """The template with the name in place of ``{}``; not ``str.format``, whose fields can read attributes."""
    return template.replace("{}", name)


@dataclass(frozen=True)
class TextRows:
    """Features of the texts of all classes, class by class.

    Attributes:
        values: (N, D), or states (N, W); not normalised.
        counts: K numbers of texts, one or more each, whose sum is N.
    """

    values: Tensor
    counts: tuple[int, ...]

    @property
    def labels(self) -> Tensor:
        """The class of each text (N,), int64."""
        counts = torch.tensor(self.counts, device=self.values.device)
        return torch.arange(len(counts), device=counts.device).repeat_interleave(counts)

    def float(self) -> TextRows:
        """The same rows in float32."""
        return replace(self, values=self.values.float())

    def means(self) -> Tensor:
        """The mean of each class's rows (K, D)."""
        if len(set(self.counts)) == 1:
            return self.values.view(len(self.counts), self.counts[0], -1).mean(dim=1)
        return torch.stack([rows.mean(dim=0) for rows in self.values.split(self.counts)])

    def weights(self) -> Tensor:
        """The mean of each class's rows at length 1, itself at length 1 (K, D)."""
        return F.normalize(replace(self, values=F.normalize(self.values, dim=-1)).means(), dim=-1)


def class_texts(
    clip: CLIPBackbone,
    classnames: Sequence[str],
    templates: Sequence[str],
    descriptions: Sequence[Sequence[str]] = (),
    *,
    source: str = "",
    cache: Path | None = None,
    verbatim: bool = False,
    projected: bool = True,
) -> TextRows:
    """Features of the classes' texts: their descriptions if there are any, else the filled templates.

    Args:
        descriptions: K lists of sentences, one or more each.
        source: where the descriptions come from, for errors.
        cache: folder to keep features in.
        verbatim: keep the ``_`` of class names in templates.
        projected: False gives states (N, W) before the text projection.

    Raises:
        UserError: a sentence is too long for the text encoder; it names the class.
    """
    encode = text_features if projected else text_states
    if not descriptions:
        texts = fill_templates(classnames, templates, replace_underscore=not verbatim)
        return TextRows(encode(clip, texts, cache), (len(templates),) * len(classnames))
    try:
        rows = encode(clip, [sentence for sentences in descriptions for sentence in sentences], cache)
    except UserError:
        for name, sentences in zip(classnames, descriptions, strict=True):
            try:
                clip.tokenize(sentences)
            except UserError as error:
                raise UserError(f"{source}: class {shown(name)}: {error}") from None
        raise
    return TextRows(rows, tuple(map(len, descriptions)))


def class_weights(
    clip: CLIPBackbone, classnames: Sequence[str], templates: Sequence[str], cache: Path | None = None
) -> Tensor:
    """Zero-shot class weights (K, D), L2-normalised.

    Every prompt's feature is L2-normalised, averaged over the T templates and normalised again; ``_`` in class
    names becomes a space. Used by zero-shot CLIP, Tip-Adapter and CLIP-LoRA; CoOp's fixed prompts have one template.
    """
    features = text_features(clip, fill_templates(classnames, templates), cache)
    return TextRows(features, (len(templates),) * len(classnames)).weights()


def template_means(
    clip: CLIPBackbone,
    classnames: Sequence[str],
    templates: Sequence[str],
    projection: Tensor | None = None,
    cache: Path | None = None,
) -> Tensor:
    """The base of TaskRes (K, D): the mean over templates of features that are not normalised, class names verbatim.

    Args:
        projection: (W, D) text projection, used instead of CLIP's. It is linear, so it may follow the mean.
        cache: folder to keep text states in.
    """
    texts, counts = fill_templates(classnames, templates, replace_underscore=False), (len(templates),) * len(classnames)
    if projection is not None:
        return clip.text.project(TextRows(text_states(clip, texts, cache), counts).means(), projection)
    return TextRows(text_features(clip, texts, cache), counts).means()


def text_features(clip: CLIPBackbone, texts: Sequence[str], cache: Path | None = None) -> Tensor:
    """Features (N, D), not normalised, of N texts; kept in ``cache`` if given."""
    return _cached(cache, clip, texts, lambda: _in_parts(clip.encode_text, clip.tokenize(texts)), "features")


def text_states(clip: CLIPBackbone, texts: Sequence[str], cache: Path | None = None) -> Tensor:
    """States (N, W) of N texts at their end tokens, before the text projection; kept in ``cache`` if given."""

    def encode(tokens: Tensor) -> Tensor:
        return clip.text.encode_tokens(tokens, project=False)

    return _cached(cache, clip, texts, lambda: _in_parts(encode, clip.tokenize(texts)), "states")


def _in_parts(encode: Callable[[Tensor], Tensor], tokens: Tensor) -> Tensor:
    """The output of ``encode`` for tokens (N, L), as many at a time as fit in memory."""
    parts = Halving("encoding texts")(encode, tokens)
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _cached(
    cache: Path | None, clip: CLIPBackbone, texts: Sequence[str], compute: Callable[[], Tensor], what: str
) -> Tensor:
    """The result of ``compute``, read from ``cache`` if an earlier call computed it."""
    if cache is None:
        return compute()
    path = cache / f"{digest_of([clip.digest, clip.precision, what, list(texts)])}.safetensors"
    try:
        return load_safetensors(path)[what].to(clip.device)
    except (OSError, SafetensorError, KeyError):  # not cached yet, or unreadable
        result = compute()
    try:
        with atomic_path(path) as temporary:
            save_safetensors({what: result.detach().cpu().contiguous()}, temporary)
    except OSError as error:
        logger.warning(f"text features are not cached: {path.parent} cannot be written ({error.strerror})")
    return result


def load_text_projection(path: str | Path, clip: CLIPBackbone) -> Tensor:
    """A tuned text projection (W, D), float32, from the checkpoint of an enhanced base, which stores it transposed.

    Raises:
        UserError: the file is missing, lacks ``state_dict.weight``, or is for another backbone.
    """
    state = load_file(path)
    weights = state.get("state_dict") if isinstance(state, dict) else None
    weight = weights.get("weight") if isinstance(weights, dict) else None
    if not isinstance(weight, Tensor):
        raise UserError(f"enhanced base {path} contains no state_dict.weight; is it a checkpoint of TaskResEnhance?")
    expected = tuple(clip.text.projection.t().shape)
    if tuple(weight.shape) != expected:
        raise UserError(
            f"enhanced base {path} has a projection of shape {tuple(weight.shape)}, but backbone {clip.name} needs "
            f"{expected}: it was tuned for another backbone"
        )
    return weight.t().float()
