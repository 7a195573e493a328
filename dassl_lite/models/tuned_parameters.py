"""Backbone parameters that are trained in place: its layer norms, or its biases (BitFit).

Papers: BitFit, https://arxiv.org/abs/2106.10199; layer norms, https://arxiv.org/abs/2312.11420

open_clip's blocks, timm's and Hugging Face's are found by the number in a module's name. Outside blocks are the norms
before the first block (``ln_pre``) and after the last one (``ln_post``, ``ln_final``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from dassl_lite.models.encoders import text_encoder

KINDS: dict[str, tuple[tuple[type[nn.Module], ...], tuple[str, ...]]] = {
    "ln": ((nn.LayerNorm,), ("weight", "bias")),
    "bitfit": ((nn.LayerNorm, nn.Linear), ("bias",)),
}
_BLOCK = re.compile(r"(.*\.\d+)\.")


@dataclass(frozen=True)
class Place:
    """Where a parameter is.

    Attributes:
        name: in the model, as in its state dict.
        block: number of its block in the encoder, from 0, or of the block that it comes before.
        inside: whether it is in a block.
        module, leaf: the module that has it, and its name there.
    """

    name: str
    block: int
    inside: bool
    module: nn.Module
    leaf: str


def places(model: Any, kind: str) -> dict[str, list[Place]]:
    """The parameters of a kind ("ln", "bitfit") of each encoder, "text" and "vision".

    A linear layer's own bias counts, also in a block's attention. The bias of `nn.MultiheadAttention`'s joint
    input projection (``in_proj_bias``) does not, nor do linear layers outside blocks.
    """
    text = text_encoder(model)
    roots = {"text": (text, "" if text is model else "text."), "vision": (model.visual, "visual.")}
    return {encoder: list(_places(root, prefix, *KINDS[kind])) for encoder, (root, prefix) in roots.items()}


def _places(
    root: nn.Module, prefix: str, types: tuple[type[nn.Module], ...], leaves: tuple[str, ...]
) -> Iterator[Place]:
    blocks: dict[str, int] = {}
    for name, module in root.named_modules():
        if not prefix and name.startswith("visual."):  # open_clip's older class holds both encoders
            continue
        inside = _BLOCK.match(name)
        block = blocks.setdefault(inside[1], len(blocks)) if inside else len(blocks)
        if isinstance(module, types) and (inside or isinstance(module, nn.LayerNorm)):
            for leaf in leaves:
                if getattr(module, leaf) is not None:
                    yield Place(f"{prefix}{name}.{leaf}", block, bool(inside), module, leaf)


def count_blocks(found: Iterable[Place]) -> int:
    """Number of blocks of an encoder, of its parameters."""
    return max((place.block + 1 for place in found if place.inside), default=0)


class TunedParameters(nn.Module):
    """Some of a model's parameters, under their names in the model.

    They are trained in float32 whatever the model's precision, which sees them rounded to its own.

    Args:
        found: where they are; they may be frozen.
    """

    def __init__(self, found: Iterable[Place]) -> None:
        super().__init__()
        for place in found:
            module: nn.Module = self
            *path, leaf = place.name.split(".")
            for part in path:
                if part not in module._modules:
                    module.add_module(part, nn.Module())
                module = module.get_submodule(part)
            module.register_parameter(leaf, _in_float32(place.module, place.leaf))
        self._start = {name: parameter.detach().clone() for name, parameter in self.named_parameters()}

    def fits(self, values: Mapping[str, Any]) -> bool:
        """Whether there is a tensor of the same shape for each of them, and no other."""
        shapes = {name: parameter.shape for name, parameter in self.named_parameters()}
        return shapes == {name: getattr(value, "shape", None) for name, value in values.items()}

    @contextmanager
    def holding(self, values: Mapping[str, Tensor] | None = None) -> Iterator[None]:
        """A context in which they have other values, by name; None: the model's original values."""
        wanted, before = self._start if values is None else values, {}
        for name, parameter in self.named_parameters():
            before[name] = parameter.data
            parameter.data = wanted[name].to(parameter)
        try:
            yield
        finally:
            for name, parameter in self.named_parameters():
                parameter.data = before[name]


class _Rounded(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, value: Tensor) -> Tensor:
        return value.to(self.dtype)


def _in_float32(module: nn.Module, leaf: str) -> nn.Parameter:
    """The module's parameter; if its type is narrower, a float32 replacement."""
    parameter = getattr(module, leaf)
    if parameter.dtype == torch.float32:
        return parameter
    parametrize.register_parametrization(module, leaf, _Rounded(parameter.dtype), unsafe=True)
    original = nn.Parameter(parameter.detach().float())
    module.parametrizations[leaf].original = original  # type: ignore[union-attr, index]
    return original
