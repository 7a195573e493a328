"""Class weights out of prompts: every class name in every template, encoded in batches, averaged per class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor

from dassl_lite.utils.errors import UserError
from dassl_lite.utils.safe_load import load_file

if TYPE_CHECKING:
    from dassl_lite.models.clip import CLIPBackbone


def fill_templates(classnames: Sequence[str], templates: Sequence[str], replace_underscore: bool = True) -> list[str]:
    """K * T prompts, class by class: each class name in each template."""
    names = [name.replace("_", " ") for name in classnames] if replace_underscore else classnames
    return [template.format(name) for name in names for template in templates]


def class_weights(clip: CLIPBackbone, classnames: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Zero-shot class weights (K, D), of length 1.

    Every prompt's feature is L2-normalised, averaged over the T templates and normalised again; ``_`` in class
    names becomes a space. (Zero-shot CLIP, Tip-Adapter and CLIP-LoRA; CoOp's fixed prompts have one template.)
    """
    texts = fill_templates(classnames, templates)
    features = F.normalize(clip.encode_text(clip.tokenize(texts)), dim=-1)
    return F.normalize(features.view(len(classnames), len(templates), -1).mean(dim=1), dim=-1)


def template_means(
    clip: CLIPBackbone, classnames: Sequence[str], templates: Sequence[str], projection: Tensor | None = None
) -> Tensor:
    """TaskRes' base (K, D): the plain mean over templates of un-normalised features, class names verbatim.

    Args:
        projection: (W, D) text projection in the place of CLIP's.
    """
    hidden = hidden_means(clip, classnames, templates)
    return hidden @ (clip.text.projection if projection is None else projection.to(hidden))


def hidden_means(clip: CLIPBackbone, classnames: Sequence[str], templates: Sequence[str]) -> Tensor:
    """The same before the text projection (which is linear, so it may follow the mean): (K, W)."""
    texts = fill_templates(classnames, templates, replace_underscore=False)
    hidden = clip.text.encode_tokens(clip.tokenize(texts), project=False)
    return hidden.view(len(classnames), len(templates), -1).mean(dim=1)


def load_text_projection(path: str | Path, clip: CLIPBackbone) -> Tensor:
    """A tuned text projection (W, D) from an enhanced base's checkpoint, which holds it transposed.

    Raises:
        UserError: no such file, no ``state_dict.weight`` in it, or one of another backbone's shape.
    """
    state = load_file(path)
    weight = state.get("state_dict", {}).get("weight") if isinstance(state, dict) else None
    if not isinstance(weight, Tensor):
        raise UserError(f"enhanced base {path} holds no state_dict.weight; is it a checkpoint of TaskResEnhance?")
    expected = tuple(clip.text.projection.t().shape)
    if tuple(weight.shape) != expected:
        raise UserError(
            f"enhanced base {path} has a projection of shape {tuple(weight.shape)}, but backbone {clip.name} needs "
            f"{expected}: it was tuned for another backbone"
        )
    return weight.t().float()
