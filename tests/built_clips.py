"""CLIPs of weights files, built and digested once a process, then copied: a fifth of the time, in hundreds of tests."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import cuda_standin
import torch

from dassl_lite.models import clip

_BUILT: dict[Any, Any] = {}
_build, _digest = clip._load_openai, clip.digest_of_weights


def _load(backbone: Any, dtype: torch.dtype) -> Any:
    status = backbone.file.stat() if backbone.file.is_file() else None
    key = status and (backbone.file, backbone.tag, status.st_size, status.st_mtime_ns, dtype)
    if key is None or key not in _BUILT:
        model, tokenizer = _build(backbone, dtype)
        model.digest_as_built = _digest(model)
        _BUILT[key] = model, tokenizer
    model, tokenizer = _BUILT[key]
    return copy.deepcopy(model), tokenizer


def _known_digest(model: torch.nn.Module) -> str:
    return model.__dict__.pop("digest_as_built", None) or _digest(model)


def patch(setattr: Callable[[Any, str, Any], None] = setattr) -> None:
    """Let this process copy what it has built; with a monkeypatch's ``setattr``, until that undoes it."""
    setattr(clip, "_load_openai", _load)
    setattr(clip, "digest_of_weights", _known_digest)


def patch_on_the_standin() -> None:
    """The same in a process that then has the stand-in for a GPU; see cuda_standin.py."""
    cuda_standin.enter()
    patch()
