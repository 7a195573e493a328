"""From image files to features: decoding images into augmented views and encoding them, both at the same time.

Each view has its own random stream. View v of an image depends on the seed, the image's name (its folder and file name)
and v, but not on the order of the images, the batch, the number of workers or the location of the dataset. The run's
random streams are restored afterwards, so a run gives the same result whether or not its features were in the cache.

Shapes: b images of a batch, V views, B = b * V encoder inputs, H x W pixels, D feature width.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import pickle
import random
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dassl_lite.data.feature_cache.lock import drop_inherited_locks
from dassl_lite.data.feature_cache.shards import ImageFile
from dassl_lite.data.images import read_image
from dassl_lite.utils.errors import UserError
from dassl_lite.utils.seeding import random_streams_kept

Transform = Callable[[Image.Image], Tensor]
Encoder = Callable[[Tensor], Tensor]

_PROBED = 4  # images decoded to measure the time that it takes
_FORK_PAYS_SECONDS = 3.0  # decoding time from which worker processes are worth starting
_SPAWN_PAYS_SECONDS = 30.0  # the same if each has to import torch


class Decoded(NamedTuple):
    """The views of an image, V tensors (3, H, W); or none and the reason, if it could not be read."""

    number: int
    views: list[Tensor]
    error: str = ""


def view_seed(seed: int, name: str, view: int) -> int:
    """The seed (64 bits) of a view of an image."""
    text = f"{seed}\0{name}\0{view}".encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


class ViewDataset(Dataset[Decoded]):
    """Images by number, each decoded once for all of its views.

    Args:
        images: the files.
        transform: from a PIL image to a float tensor (3, H, W); may be random.
        views: V, the number of times that the transform is applied to each image.
        seed: seed of the views.
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
        """A batch (DataLoader calls this): restoring the random streams takes as long as decoding a small image."""
        with random_streams_kept():
            return [self._decode(number) for number in numbers]

    def _decode(self, number: int) -> Decoded:
        file = self.images[number]
        try:
            image = read_image(file.path)
        except UserError as error:
            return Decoded(number, [], str(error))
        if _changed(file):
            return Decoded(number, [], f"the image {file.path} changed while it was being read")
        try:
            return Decoded(number, [self._view(image, file.name, view) for view in range(self.views)])
        except ValueError as error:  # such as an image that is smaller than a crop
            return Decoded(number, [], f"the image {file.path} cannot be transformed: {error}")

    def _view(self, image: Image.Image, name: str, view: int) -> Tensor:
        seed = view_seed(self.seed, name, view)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.default_generator.manual_seed(seed)
        tensor = self.transform(image)
        if not isinstance(tensor, Tensor):
            raise TypeError(f"the transform must return a tensor, not {type(tensor).__name__}; is ToTensor missing?")
        return tensor


def _changed(file: ImageFile) -> bool:
    try:
        return ImageFile.of(file.path) != file
    except OSError:
        return True


class DecodedBatch(NamedTuple):
    """Encoder inputs (B, 3, H, W) of the images with these numbers, and the errors of those that could not be read."""

    numbers: list[int]
    inputs: Tensor | None  # None if no image could be read
    errors: list[tuple[int, str]]


class Extracted(NamedTuple):
    """Features (b, V, D) on the CPU of the images with these numbers, and the errors of the others in the batch."""

    numbers: list[int]
    features: Tensor | None
    errors: list[tuple[int, str]]


def extract(
    dataset: ViewDataset,
    encode: Encoder,
    device: torch.device | str,
    batch_size: int,
    num_workers: int,
    share: slice = slice(None),
) -> Iterator[Extracted]:
    """Encode every image of ``dataset``, in order.

    Args:
        encode: from inputs (B, 3, H, W) on ``device`` to features (B, D), without gradients.
        batch_size: encoder inputs at a time; an image counts V times.
        num_workers: maximum number of decoding processes; none are started if that would take longer than decoding.
        share: the batches to encode, if other processes encode the rest.
    """
    per_batch = max(1, batch_size // dataset.views)
    numbers = list(range(len(dataset)))
    batches = [numbers[start : start + per_batch] for start in range(0, len(numbers), per_batch)][share]
    on_gpu = torch.device(device).type == "cuda"
    loader = DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=_collate,
        num_workers=_workers(dataset, num_workers, len(batches)),
        pin_memory=on_gpu,
        worker_init_fn=drop_inherited_locks,
        generator=torch.Generator(),  # by default it would draw from the run's random stream
    )
    previous: tuple[DecodedBatch, Tensor | None] | None = None
    for batch in loader:
        # Calls on a GPU are asynchronous: it encodes this batch while the previous one is stored and the next decoded.
        current = batch._replace(inputs=None), _encode(batch.inputs, encode, device, batch_size)
        if previous is not None:
            yield _to_cpu(dataset.views, *previous)
        previous = current
    if previous is not None:
        yield _to_cpu(dataset.views, *previous)


def _collate(decoded: Sequence[Decoded]) -> DecodedBatch:
    views = [view for one in decoded for view in one.views]
    return DecodedBatch(
        [one.number for one in decoded if not one.error],
        torch.stack(views) if views else None,
        [(one.number, one.error) for one in decoded if one.error],
    )


@torch.no_grad()
def _encode(inputs: Tensor | None, encode: Encoder, device: torch.device | str, batch_size: int) -> Tensor | None:
    """Features (B, D), or None if there is nothing to encode."""
    if inputs is None:
        return None
    parts = [encode(part.to(device, non_blocking=True)) for part in inputs.split(batch_size)]
    features = parts[0] if len(parts) == 1 else torch.cat(parts)
    if features.ndim != 2 or len(features) != len(inputs):
        raise ValueError(f"the encoder must return (B, D), not {tuple(features.shape)} for {len(inputs)} inputs")
    return features


def _to_cpu(views: int, batch: DecodedBatch, features: Tensor | None) -> Extracted:
    rows = None if features is None else features.cpu().unflatten(0, (-1, views))
    return Extracted(batch.numbers, rows, batch.errors)


def _workers(dataset: ViewDataset, wanted: int, batches: int) -> int:
    """Number of processes to start: none if decoding everything here takes less time than starting them."""
    count = min(wanted, batches, _usable_cores())
    if count <= 0 or multiprocessing.current_process().daemon:  # a daemon may not have children
        return 0
    forks = multiprocessing.get_start_method() == "fork"
    if not forks and not _can_pickle(dataset.transform):
        return 0
    seconds = min(_decoding_seconds(dataset, number) for number in range(min(_PROBED, len(dataset))))
    return count if seconds * len(dataset) > (_FORK_PAYS_SECONDS if forks else _SPAWN_PAYS_SECONDS) else 0


def _decoding_seconds(dataset: ViewDataset, number: int) -> float:
    start = time.perf_counter()
    dataset[number]
    return time.perf_counter() - start


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _can_pickle(transform: object) -> bool:
    """Whether the transform can be passed to a spawned process; local functions and lambdas cannot."""
    try:
        pickle.dumps(transform)
    except (pickle.PicklingError, AttributeError, TypeError):
        return False
    return True
