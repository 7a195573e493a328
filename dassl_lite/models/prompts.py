"""Class weights from prompts: every class name in every template, encoded in batches, averaged per class.

Text states of a frozen CLIP depend only on its weights and the texts, so the functions take a folder (``cache``) to
keep them in, and runs that share a backbone and prompts encode them once. Pass None where the text encoder is tuned.

Shapes: N texts, K classes, T templates, W width of the text encoder, D width of the features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file as load_safetensors
from safetensors.torch import save_file as save_safetensors
from torch import Tensor

from dassl_lite.utils.devices import Halving
from dassl_lite.utils.errors import UserError
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


def class_weights(
    clip: CLIPBackbone, classnames: Sequence[str], templates: Sequence[str], cache: Path | None = None
) -> Tensor:
    """Zero-shot class weights (K, D), L2-normalised.

    Every prompt's feature is L2-normalised, averaged over the T templates and normalised again; ``_`` in class
    names becomes a space. Used by zero-shot CLIP, Tip-Adapter and CLIP-LoRA; CoOp's fixed prompts have one template.
    """
    features = F.normalize(text_features(clip, fill_templates(classnames, templates), cache), dim=-1)
    return F.normalize(features.view(len(classnames), len(templates), -1).mean(dim=1), dim=-1)


def template_means(
    clip: CLIPBackbone,
    classnames: Sequence[str],
    templates: Sequence[str],
    projection: Tensor | None = None,
    cache: Path | None = None,
) -> Tensor:
    """The base of TaskRes (K, D): the mean over templates of features that are not normalised, class names verbatim.

    Args:
        projection: (W, D) text projection, used instead of CLIP's.
        cache: folder to keep text states in.
    """
    if projection is not None:
        return clip.text.project(hidden_means(clip, classnames, templates, cache), projection)
    features = text_features(clip, fill_templates(classnames, templates, replace_underscore=False), cache)
    return features.view(len(classnames), len(templates), -1).mean(dim=1)


def hidden_means(
    clip: CLIPBackbone, classnames: Sequence[str], templates: Sequence[str], cache: Path | None = None
) -> Tensor:
    """The base of TaskRes before the text projection, which is linear and so may follow the mean: (K, W)."""
    states = text_states(clip, fill_templates(classnames, templates, replace_underscore=False), cache)
    return states.view(len(classnames), len(templates), -1).mean(dim=1)


def text_features(clip: CLIPBackbone, texts: Sequence[str], cache: Path | None = None) -> Tensor:
    """Features (N, D), not normalised, of N texts; kept in ``cache`` if given."""
    return _cached(cache, clip, texts, lambda: _in_parts(clip.encode_text, clip.tokenize(texts)), "features")


def text_states(clip: CLIPBackbone, texts: Sequence[str], cache: Path | None = None) -> Tensor:
    """States (N, W) of N texts at their end tokens, before the text projection; kept in ``cache`` if given."""

    def encode(tokens: Tensor) -> Tensor:
        return clip.text.encode_tokens(tokens, project=False)

    return _cached(cache, clip, texts, lambda: _in_parts(encode, clip.tokenize(texts)), "states")


def _in_parts(encode: Callable[[Tensor], Tensor], tokens: Tensor) -> Tensor:
    """What ``encode`` gives for tokens (N, L), as many at a time as there is memory for."""
    found = Halving("encoding texts")(encode, tokens)
    return found[0] if len(found) == 1 else torch.cat(found)


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
