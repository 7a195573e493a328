"""How a row looks in memory and on disk.

NumPy knows no bfloat16, so features of every type travel as integers of their size: bit for bit.

Letters: N images, V views, D feature width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
}


class Layout(NamedTuple):
    """The layout of one image's row: V x D numbers of ``dtype`` (such as ``float32``)."""

    views: int
    width: int
    dtype: str

    @classmethod
    def of(cls, features: Tensor) -> Layout:
        """The layout of features (N, V, D). Raises TypeError if they are no real floating-point numbers."""
        dtype = str(features.dtype).removeprefix("torch.")
        if dtype not in _DTYPES:
            raise TypeError(f"features must be one of {', '.join(_DTYPES)}, not {dtype}")
        return cls(features.shape[1], features.shape[2], dtype)

    @classmethod
    def read(cls, told: Mapping[str, Any]) -> Layout:
        """The layout that a file tells. Raises ValueError or TypeError if it makes no sense."""
        layout = cls(**told)
        numbers = (layout.views, layout.width)
        if layout.dtype not in _DTYPES or not all(isinstance(n, int) and n > 0 for n in numbers):
            raise ValueError(f"rows of {layout}")
        return layout

    @property
    def carrier(self) -> np.dtype:
        """The integers that stand for the numbers, little-endian as on disk."""
        return np.dtype(f"<i{_DTYPES[self.dtype].itemsize}")

    @property
    def row_bytes(self) -> int:
        return self.views * self.width * self.carrier.itemsize

    def bits(self, features: Tensor) -> np.ndarray:
        """Features (N, V, D) on the CPU as their integers."""
        return features.contiguous().view(_INTEGERS[features.dtype.itemsize]).numpy().astype(self.carrier, copy=False)

    def tensor(self, bits: np.ndarray) -> Tensor:
        """The features that the integers stand for."""
        native = bits.astype(bits.dtype.newbyteorder("="), copy=False)
        return torch.from_numpy(native).view(_DTYPES[self.dtype])
