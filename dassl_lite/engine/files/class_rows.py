"""Loads a checkpoint for a dataset with other classes by picking rows by class identity.

A module with one row per class in some parameters or buffers lists their names in an attribute ``class_rows`` (or, if
the classes are not along the first dimension, a dict of name -> dimension). A class missing from the checkpoint keeps
the module's own row, which for a residual method means zero-shot CLIP. A module whose untrained rows are meaningless
sets ``class_rows_required = True``, which makes a missing class an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dassl_lite.data.classes import ClassList, ClassMatch, match_classes
from dassl_lite.data.imagenet import imagenet_classes
from dassl_lite.utils.errors import LackingClassesError, UserError
from dassl_lite.utils.logger import get_logger

logger = get_logger(__name__)

IMAGENET_CLASSES = 1000


class ClassRows:
    """The entries of a model's state dict that have one row per class.

    Args:
        dims: state-dict key -> dimension along which the classes lie.
        current: state-dict key -> the model's own value, whose rows are kept for classes missing from the source.
        required: whether a class missing from the source is an error.
    """

    def __init__(self, dims: Mapping[str, int], current: Mapping[str, torch.Tensor], required: bool = False) -> None:
        self.dims, self.current, self.required = dict(dims), dict(current), required

    @classmethod
    def of(cls, model: nn.Module) -> ClassRows:
        """Collect the ``class_rows`` declarations of ``model`` and its submodules."""
        dims: dict[str, int] = {}
        for prefix, module in model.named_modules():
            declared = getattr(module, "class_rows", ())
            named = declared if isinstance(declared, Mapping) else dict.fromkeys(declared, 0)
            dims.update({f"{prefix}.{name}" if prefix else name: dim for name, dim in named.items()})
        state = model.state_dict()
        required = any(getattr(module, "class_rows_required", False) for module in model.modules())
        return cls(dims, {key: state[key] for key in dims}, required)

    def pick(
        self,
        weights: dict[str, torch.Tensor],
        meta: Mapping[str, Any],
        target: ClassList | None,
        path: Path,
        *,
        strict: bool = False,
    ) -> tuple[dict[str, torch.Tensor], ClassMatch | None]:
        """Pick the rows of the target's classes, in its order; returns the weights and how the classes matched.

        A class missing from the source keeps the model's own row (for a residual method, its zero-shot row and a zero
        residual), so base -> new is zero-shot. With ``strict`` it is a UserError.
        """
        keys = [key for key in self.dims if key in weights]
        if not keys or target is None:
            return weights, None
        source = _source_classes(meta, weights[keys[0]].shape[self.dims[keys[0]]], target, path)
        match = match_classes(source, target) if source != target else _identity(target)
        _report(match, source, target, path, strict or self.required)
        picked = dict(weights)
        for key in keys:
            picked[key] = _pick_rows(weights[key], self.current[key], match.rows, self.dims[key])
        return picked, match


def _report(match: ClassMatch, source: ClassList, target: ClassList, path: Path, strict: bool) -> None:
    """Log how many classes matched; raise a UserError if ``strict`` and any is missing."""
    logger.info(match.describe())
    missing = [name for name, row in zip(target.names, match.rows, strict=True) if row < 0]
    named = f"{', '.join(missing[:3])}{' ...' if len(missing) > 3 else ''}"
    if missing and strict:
        raise LackingClassesError(
            f"{path} knows {match.matched} of this dataset's {len(target)} classes; it lacks {named} (its "
            f"{len(source)} classes: {', '.join(source.names[:3])} ...)"
        )
    if missing:
        count = f"{len(missing)} class{'es' if len(missing) > 1 else ''}"
        count = count if match.matched else f"all {count}"
        verb = "are not in the checkpoint and stay" if len(missing) > 1 else "is not in the checkpoint and stays"
        logger.warning(f"{count} {verb} zero-shot: {named}")


def _source_classes(meta: Mapping[str, Any], rows: int, target: ClassList, path: Path) -> ClassList:
    """The classes of a checkpoint's rows, inferred if it does not name them, as in the reference's files."""
    if meta.get("classnames"):
        return ClassList(tuple(meta["classnames"]), tuple(meta.get("classids") or ()))
    if rows == IMAGENET_CLASSES and (any(target.ids) or len(target) != rows):
        return imagenet_classes()
    if rows == len(target):
        logger.warning(f"{path} does not name its {rows} classes; assuming this dataset's classes, in order")
        return target
    raise UserError(f"{path} holds {rows} classes without their names, but this dataset has {len(target)}")


def _identity(target: ClassList) -> ClassMatch:
    by_id = sum(bool(identity) for identity in target.ids)
    return ClassMatch(tuple(range(len(target))), by_id, len(target) - by_id)


def _pick_rows(source: torch.Tensor, own: torch.Tensor, rows: tuple[int, ...], dim: int) -> torch.Tensor:
    wanted = torch.tensor(rows, dtype=torch.long)
    if not len(own.shape) or own.shape[dim] != len(rows):
        raise AssertionError("a class-row entry must have one row per class of the dataset")
    result = own.detach().cpu().clone()
    if source.shape[:dim] + source.shape[dim + 1 :] != own.shape[:dim] + own.shape[dim + 1 :]:
        return source  # different feature width, which load_weights reports
    known = (wanted >= 0).nonzero().flatten()
    return result.index_copy(dim, known, source.detach().cpu().to(result.dtype).index_select(dim, wanted[known]))
