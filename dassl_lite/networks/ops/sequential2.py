"""A sequence of modules with several inputs and outputs."""

from __future__ import annotations

from typing import Any

from torch import nn


class Sequential2(nn.Sequential):
    """Like ``nn.Sequential``, but a module that returns a tuple gives the next one several arguments."""

    def forward(self, *inputs: Any) -> Any:
        values: Any = inputs
        for module in self:
            values = module(*values) if isinstance(values, tuple) else module(values)
        return values
