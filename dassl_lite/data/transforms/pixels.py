"""Images as bytes until they are where they are encoded: `split` takes normalisation out of a transform.

A float image is four times as large as its bytes, and most transforms end with the same two steps, ``ToTensor`` and
``Normalize``. A worker process then does the steps before them, and the rest is done for a whole batch where the
encoder runs. The result has the same bits as the transform's own.

Shapes: B images of H x W pixels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dassl_lite.utils.lazy import is_loaded, lazy_module

if TYPE_CHECKING:
    from torchvision import transforms as T
else:
    T = lazy_module("torchvision.transforms")

Transform = Callable[[Image.Image], Tensor]


@dataclass(frozen=True)
class Pixels:
    """The first steps of a transform: from an image to bytes (H, W, 3).

    Attributes:
        steps: of images.
        rest: the last steps, `Finish`: they are done here for what is not an RGB image.
    """

    steps: tuple[Callable[[Image.Image], Image.Image], ...]
    rest: Finish

    def __call__(self, image: Image.Image) -> Tensor:
        """uint8 (H, W, 3), or what the whole transform gives if its steps do not lead to an RGB image."""
        for step in self.steps:
            image = step(image)
        if isinstance(image, Image.Image) and image.mode == "RGB":
            return torch.from_numpy(np.array(image))
        whole: Any = image
        for last in self.rest.steps:
            whole = last(whole)
        return whole


@dataclass(frozen=True)
class Finish:
    """The last steps of a transform, for many images at once: ``ToTensor``, and ``Normalize`` or nothing.

    Attributes:
        steps: these transforms.
    """

    steps: tuple[Callable[..., Tensor], ...]

    def __call__(self, pixels: Tensor) -> Tensor:
        """Images (..., 3, H, W) of the default dtype from bytes (..., H, W, 3), on the same device."""
        if pixels.device.type != "cpu":
            return self._looked_up(pixels)
        # torchvision's arithmetic, in its order.
        images = pixels.movedim(-1, -3).to(torch.get_default_dtype(), memory_format=torch.contiguous_format).div_(255)
        for step in self.steps[1:]:
            assert isinstance(step, T.Normalize)
            mean, std = (torch.as_tensor(values, dtype=images.dtype).view(-1, 1, 1) for values in (step.mean, step.std))
            images.sub_(mean).div_(std)
        return images

    def _looked_up(self, pixels: Tensor) -> Tensor:
        """The same from a table of the 3 x 256 results: a GPU divides with other rounding than the CPU."""
        values = self._table(pixels.device, torch.get_default_dtype())
        rows = torch.arange(3, dtype=torch.int32, device=pixels.device) * 256
        places = (pixels.to(torch.int32) + rows).movedim(-1, -3)
        return values.index_select(0, places.flatten()).view(places.shape)

    @functools.lru_cache(maxsize=16)  # noqa: B019  # it is hashed by its steps, of which a process has few
    def _table(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        every = torch.arange(256, dtype=torch.uint8).view(1, 256, 1).expand(1, 256, 3)
        return self(every).flatten().to(device, dtype)


def split(transform: Any) -> tuple[Pixels, Finish] | None:
    """Take the last steps out of a transform; None if it does not end in ``ToTensor``, or that and ``Normalize``.

    Transforms that draw random numbers for tensors, and those of other people, stay whole.
    """
    if not is_loaded("torchvision") or type(transform) is not T.Compose:
        return None
    steps = list(transform.transforms)
    last = steps[-1:] if steps and type(steps[-1]) is T.ToTensor else steps[-2:]
    kinds = [type(step) for step in last]
    if kinds not in ([T.ToTensor], [T.ToTensor, T.Normalize]):
        return None
    if len(kinds) == 2 and not (_triple(last[1].mean) and _triple(last[1].std) and all(map(float, last[1].std))):
        return None
    finish = Finish(tuple(last))
    return Pixels(tuple(steps[: -len(last)]), finish), finish


def _triple(values: object) -> bool:
    return isinstance(values, (list, tuple)) and len(values) == 3
