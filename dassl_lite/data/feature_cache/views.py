"""Decodes images into their augmented views, each view drawn from a random stream of its own.

View v of an image depends on the seed, the image's name (its folder and file name) and v: not on the order of the
images, the batch, the number of workers, or where the dataset lies. And the run's own random streams are left as
they were, so a run goes the same way whether its features were in the cache or not.

Letters: V views, H x W pixels.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import PurePath
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from dassl_lite.data.images import read_image
from dassl_lite.utils.errors import UserError

Transform = Callable[[Image.Image], Tensor]


class ImageFile(NamedTuple):
    """One state of one file: what a row of the cache belongs to.

    The path is the absolute one, links not followed. A dataset that was moved is extracted again: name, size and time
    are not enough to tell that a file elsewhere is the same picture, and a wrong feature would go unnoticed.
    """

    path: str
    size: int  # bytes
    mtime_ns: int  # nanoseconds

    @classmethod
    def of(cls, path: str | os.PathLike[str]) -> ImageFile:
        """The file as it is now. Raises OSError if there is none."""
        absolute = os.path.abspath(path)
        status = os.stat(absolute)
        return cls(absolute, status.st_size, status.st_mtime_ns)

    @property
    def name(self) -> str:
        """Folder and file name with ``/``: the same on every machine, so views are too."""
        return "/".join(PurePath(self.path).parts[-2:])


class Decoded(NamedTuple):
    """An image's views, V tensors (3, H, W); or, where it could not be read, none and the reason."""

    number: int
    views: list[Tensor]
    error: str = ""


def view_seed(seed: int, name: str, view: int) -> int:
    """The seed (64 bits) of one view of one image."""
    text = f"{seed}\0{name}\0{view}".encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


@contextlib.contextmanager
def random_streams_kept() -> Iterator[None]:
    """Put Python's, NumPy's and torch's (CPU) random streams back at the end; only these are seeded here."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


class ViewDataset(Dataset[Decoded]):
    """Images by number, each decoded once for all of its views.

    Args:
        images: the files.
        transform: PIL image -> float tensor (3, H, W); may be random.
        views: V, how often the transform is applied to each image.
        seed: chooses the views.
    """

    def __init__(self, images: Sequence[ImageFile], transform: Transform, views: int, seed: int) -> None:
        self.images = images
        self.transform = transform
        self.views = views
        self.seed = seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, number: int) -> Decoded:
        return self.__getitems__([number])[0]

    def __getitems__(self, numbers: Sequence[int]) -> list[Decoded]:
        """A batch at once (DataLoader asks so), because keeping the random streams costs as much as a small image."""
        with random_streams_kept():
            return [self._decode(number) for number in numbers]

    def _decode(self, number: int) -> Decoded:
        file = self.images[number]
        try:
            image = read_image(file.path)
        except UserError as error:
            return Decoded(number, [], str(error))
        if _changed(file):
            return Decoded(number, [], f"the image {file.path} was changed while it was read")
        return Decoded(number, [self._view(image, file.name, view) for view in range(self.views)])

    def _view(self, image: Image.Image, name: str, view: int) -> Tensor:
        seed = view_seed(self.seed, name, view)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.default_generator.manual_seed(seed)
        tensor = self.transform(image)
        if not isinstance(tensor, Tensor):
            raise TypeError(f"the transform must give a tensor, not {type(tensor).__name__}: is ToTensor missing?")
        return tensor


def _changed(file: ImageFile) -> bool:
    try:
        return ImageFile.of(file.path) != file
    except OSError:
        return True
