"""Heads: layers between the backbone and the classifier."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from dassl_lite.networks.build import HEAD_REGISTRY
from dassl_lite.utils.errors import UserError, unknown

_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": partial(nn.ReLU, inplace=True),
    "leaky_relu": partial(nn.LeakyReLU, inplace=True),
}


class MLP(nn.Module):
    """Linear layer, batch norm, activation and dropout, repeated for each hidden layer.

    Args:
        in_features: width of the input.
        hidden_layers: width of each layer; the last one is ``out_features``.
        activation: ``relu`` or ``leaky_relu``.
        bn: use batch norm.
        dropout: dropout probability; 0 for none.
    """

    def __init__(
        self,
        in_features: int = 2048,
        hidden_layers: int | Sequence[int] = (),
        activation: str = "relu",
        bn: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        widths = [hidden_layers] if isinstance(hidden_layers, int) else list(hidden_layers)
        if not widths:
            raise UserError("MODEL.HEAD.HIDDEN_LAYERS is empty; the mlp head needs at least one width, such as (512,)")
        if activation not in _ACTIVATIONS:
            raise unknown("activation", activation, _ACTIVATIONS)
        layers: list[nn.Module] = []
        for before, width in pairwise([in_features, *widths]):
            layers.append(nn.Linear(before, width))
            if bn:
                layers.append(nn.BatchNorm1d(width))
            layers.append(_ACTIVATIONS[activation]())
            if dropout > 0:
                layers.append(nn.Dropout(dropout))
        self.mlp = nn.Sequential(*layers)
        self.out_features = widths[-1]

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x)


@HEAD_REGISTRY.register()
def mlp(**kwargs: Any) -> MLP:
    """Linear layer, batch norm, activation and dropout, repeated for each hidden layer."""
    return MLP(**kwargs)
