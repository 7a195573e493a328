"""From a backbone's name to open_clip's model with its weights and its tokenizer, on the CPU."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import open_clip
import torch
from torch import nn

from dassl_lite.models import openai_format, weights
from dassl_lite.models.names import BackboneName
from dassl_lite.models.tokenizer import Tokenizer
from dassl_lite.utils.errors import UserError

logger = logging.getLogger(__name__)

_PRECISION = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
# What open_clip, and the loaders that it calls, raise for a file or a repository that they cannot use.
_OPEN_CLIP_ERRORS = (OSError, RuntimeError, ValueError, LookupError, TypeError, EOFError, ImportError)


def assemble(backbone: BackboneName, dtype: torch.dtype) -> tuple[nn.Module, Tokenizer]:
    """The model, its matrices in `dtype`, and its tokenizer. No number is drawn from the global streams."""
    if backbone.kind == "file":
        return _openai(backbone, dtype)
    with torch.random.fork_rng(devices=[]), _quiet_root_logger():
        if backbone.kind == "hub":
            weights.hub_config(backbone.architecture)  # a repository out of reach is told here, in one line
        tokenizer = _tokenizer(backbone)
        if backbone.kind == "random":
            logger.warning("Backbone %s: weights drawn with seed %d, it knows nothing", backbone.text, backbone.seed)
            torch.manual_seed(backbone.seed)
            return _create(backbone, dtype, None, {}), tokenizer
        if backbone.kind == "hub":
            return _create(backbone, dtype, None, {}), tokenizer
        if backbone.kind == "checkpoint":
            return _create(backbone, dtype, str(backbone.file), {}), tokenizer
        path = weights.locate(backbone.architecture, backbone.tag)
        if backbone.tag == "openai":
            return _openai(backbone.at(path), dtype)
        published = open_clip.get_pretrained_cfg(backbone.architecture, backbone.tag)
        return _create(backbone, dtype, str(path), published), tokenizer


def _openai(backbone: BackboneName, dtype: torch.dtype) -> tuple[nn.Module, Tokenizer]:
    tensors, metadata = openai_format.read(backbone.file)
    architecture = openai_format.architecture_of(tensors, metadata)
    model = openai_format.build(tensors, architecture, dtype, str(backbone.file))
    return model, Tokenizer(architecture["text_cfg"]["context_length"])


def _create(backbone: BackboneName, dtype: torch.dtype, path: str | None, published: dict[str, Any]) -> nn.Module:
    """Through open_clip's own factory, which knows every layout of its files."""
    try:
        return open_clip.create_model(
            backbone.architecture,
            pretrained=path,
            precision=_PRECISION[dtype],
            force_quick_gelu=bool(published.get("quick_gelu")),
            pretrained_text=False,
            require_pretrained=backbone.kind != "random",
        )
    except _OPEN_CLIP_ERRORS as error:
        raise UserError(f"cannot load backbone '{backbone.text}': {_one_line(error)}") from error


def _tokenizer(backbone: BackboneName) -> Tokenizer:
    try:
        tokenizer = open_clip.get_tokenizer(backbone.architecture)
    except _OPEN_CLIP_ERRORS as error:
        raise UserError(f"no tokenizer for backbone '{backbone.text}': {_one_line(error)}") from error
    return Tokenizer(tokenizer.context_length, tokenizer)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


@contextlib.contextmanager
def _quiet_root_logger() -> Iterator[None]:
    """open_clip logs on the root logger, and the first such call would give it a handler for good, after which
    every line of ours stood twice on the console."""
    root, handler = logging.getLogger(), logging.NullHandler()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
