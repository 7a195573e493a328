"""Adapters beside the blocks of both encoders, with a shared layer between the two, as in MMA.

Paper: MMA: Multi-Modal Adapter for Vision-Language Models, CVPR 2024

    block_i(x)  ->  block_i(x) + s * up_i(relu(shared_i(relu(down_i(ln_1(x))))))        i from 1
    Adapter 0 changes the input of the first block; x is what comes before it:
       x = ln_pre(patches), x + s * up_0(...)   and   x = token embeddings, before positions are added

Each encoder has its own down and up; shared_i (r x r) is one layer for both, where both have an adapter i. Behind an
adapter gradients are divided by s, and in front of it multiplied again: what it learns from has the size that it would
have with s = 1, and what passes on is the true gradient. Adapter 0 is an exception: its gradients are the true ones.

Shapes: W width of an encoder, r width of the layer between.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, relu

from dassl_lite.models.encoders import text_encoder, transformer_blocks


class _ScaledGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.factor, None


class MultiModalAdapters(nn.Module):
    """Adapters for both encoders of a model; `attach` puts them there.

    They are stored in float32 whatever the model's precision, and compute in the precision of their input.

    Args:
        widths: encoder ("text", "vision") -> adapter's number -> W.
        dim: r.
        scale: s.
    """

    def __init__(self, widths: Mapping[str, Mapping[int, int]], dim: int, scale: float) -> None:
        super().__init__()
        self.scale, self.active = scale, True
        self.text, self.vision = (
            nn.ModuleDict(
                {
                    str(i): nn.ModuleDict({"down": nn.Linear(width, dim), "up": nn.Linear(dim, width)})
                    for i, width in widths.get(encoder, {}).items()
                }
            )
            for encoder in ("text", "vision")
        )
        numbers = sorted({i for own in widths.values() for i in own})
        self.shared = nn.ModuleDict({str(i): nn.Linear(dim, dim) for i in numbers})
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
                nn.init.zeros_(module.bias)

    def added(self, encoder: str, number: int, x: Tensor) -> Tensor | float:
        """What an adapter adds (..., W) for its normalised input ``x`` (..., W)."""
        if not self.active:
            return 0.0
        own: Any = getattr(self, encoder)[str(number)]
        if number:
            x = _ScaledGradient.apply(x, self.scale)
        hidden = relu(_apply(self.shared[str(number)], relu(_apply(own.down, x))))
        y = self.scale * _apply(own.up, hidden)
        return _ScaledGradient.apply(y, 1 / self.scale) if number else y

    def attach(self, model: Any) -> None:
        """Have the model's encoders add the adapters' outputs. Its own weights stay unchanged."""
        for encoder, blocks in transformer_blocks(model).items():
            for number in map(int, getattr(self, encoder)):
                if number:
                    blocks[number - 1].register_forward_hook(_BesideBlock(self, encoder, number))
                else:
                    start = text_encoder(model).token_embedding if encoder == "text" else model.visual.ln_pre
                    start.register_forward_hook(_BehindEmbedding(self, encoder))

    @contextmanager
    def off(self) -> Iterator[None]:
        """A context in which the model runs without the adapters."""
        self.active = False
        try:
            yield
        finally:
            self.active = True


class _BesideBlock:
    """Adds to a block's output; `text_layers` does so itself where it computes the block."""

    def __init__(self, adapters: MultiModalAdapters, encoder: str, number: int) -> None:
        self.adapters, self.encoder, self.number = adapters, encoder, number

    def beside(self, block: Any, x: Tensor) -> Tensor | float:
        return self.adapters.added(self.encoder, self.number, block.ln_1(x))

    def __call__(self, block: Any, inputs: Sequence[Any], output: Tensor) -> Tensor:
        return output + self.beside(block, inputs[0])


class _BehindEmbedding:
    def __init__(self, adapters: MultiModalAdapters, encoder: str) -> None:
        self.adapters, self.encoder = adapters, encoder

    def __call__(self, module: nn.Module, inputs: Sequence[Any], output: Tensor) -> Tensor:
        return output + self.adapters.added(self.encoder, 0, output)


def _apply(layer: Any, x: Tensor) -> Tensor:
    return linear(x, layer.weight.to(x.dtype), layer.bias.to(x.dtype))


def adapter_widths(blocks: Mapping[str, Sequence[Any]], first: int, last: int) -> dict[str, dict[int, int]]:
    """Encoder -> number -> W of adapters ``first`` to ``last``, as far as each encoder has blocks.

    Args:
        blocks: blocks of the encoders to adapt.
    """
    return {
        encoder: {i: own[max(i, 1) - 1].ln_1.normalized_shape[-1] for i in range(first, min(last, len(own)) + 1)}
        for encoder, own in blocks.items()
    }
