"""From image files to features: decoding images into augmented views and encoding them, both at the same time.

Worker processes give images as bytes in small chunks, so that all that is under way fits into the shared memory that a
container has (Docker: 64 MB). Chunks are joined into batches and normalised where the encoder runs. On a GPU nothing
waits: chunks are copied there from pinned memory, and a batch's features come back while the next one is encoded.

Each view has its own random stream. View v of an image depends on the seed, the image's name (its folder and file name)
and v, but not on the order of the images, the batch, the number of workers or the location of the dataset. The run's
random streams are restored afterwards, so a run gives the same result whether or not its features were in the cache.

Shapes: b images of a batch, V views, B = b * V encoder inputs, H x W pixels, D feature width.
"""

from __future__ import annotations

import functools
import hashlib
import multiprocessing
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
from dassl_lite.data.transforms.pixels import Finish, split
from dassl_lite.utils.devices import Halving
from dassl_lite.utils.env import SHARED_MEMORY, free_shared_memory, usable_cores
from dassl_lite.utils.errors import UserError
from dassl_lite.utils.logger import get_logger
from dassl_lite.utils.seeding import random_streams_kept

logger = get_logger(__name__)

Transform = Callable[[Image.Image], Tensor]
Encoder = Callable[[Tensor], Tensor]

_PROBED = 4  # images decoded to measure the time that it takes
_FORK_PAYS_SECONDS = 3.0  # decoding time from which worker processes are worth starting
_SPAWN_PAYS_SECONDS = 30.0  # the same if each has to import torch
_CHUNK = 32  # encoder inputs that a worker decodes at a time, at most
_AHEAD = 2  # chunks that a worker decodes ahead
_MODEST = 48 << 20  # bytes of it to take if smaller chunks make that possible; Docker gives 64 MB
CPU_BATCH = 32  # inputs at a time on a CPU: the memory of larger batches is given back and asked for at every step


class Decoded(NamedTuple):
    """The views of an image, V tensors: bytes (H, W, 3) or what the transform gives; or none and the reason, if it
    could not be read."""

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

    Attributes:
        finish: from bytes (B, H, W, 3) to inputs (B, 3, H, W), on any device; None if views are inputs as they are.
    """

    def __init__(self, images: Sequence[ImageFile], transform: Transform, views: int, seed: int) -> None:
        self.images = images
        self.transform: Transform = transform
        self.finish: Finish | None = None
        if (parts := split(transform)) is not None:
            self.transform, self.finish = parts
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


class Chunk(NamedTuple):
    """The views (B, ...) of the images with these numbers, and the errors of those that could not be read."""

    numbers: list[int]
    views: Tensor | None  # None if no image could be read
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
    done: int = 0,
) -> Iterator[Extracted]:
    """Encode every image of ``dataset``, in order.

    An image is always encoded with the same others, whatever the number of processes, of this or of decoding: the last
    bits of its features depend on them.

    Args:
        encode: from inputs (B, 3, H, W) on ``device`` to features (B, D), without gradients.
        batch_size: encoder inputs at a time; an image counts V times.
        num_workers: maximum number of decoding processes, -1 for one for each core; none are started if that would take
            longer than decoding.
        share: the batches to encode, if other processes encode the rest.
        done: number of images at the beginning that are left out, as many as some of the results had.
    """
    device = torch.device(device)
    on_cpu = device.type == "cpu"
    per_batch = images_at_a_time(batch_size, dataset.views)
    numbers = list(range(len(dataset)))
    batches = _cut(numbers, per_batch)[share]
    if on_cpu:  # a batch would fill the shared memory that its parts lie in
        batches = [part for batch in batches for part in _cut(batch, max(1, _CHUNK // dataset.views))]
    batches = [batch for batch in batches if batch[0] >= done]
    chunks = load(dataset, batches, num_workers, pin_memory=device.type == "cuda")
    halving = Halving("encoding images")
    groups = _batched(chunks, [len(batch) for batch in batches], device)
    waiting: tuple[list[Chunk], Callable[[], Tensor | None]] | None = None
    for parts in groups:
        inputs = [part.views for part in parts if part.views is not None]
        features = _encode(
            inputs, dataset.finish, encode, min(batch_size, CPU_BATCH) if on_cpu else batch_size, halving
        )
        current = [part._replace(views=None) for part in parts], _on_its_way_to_cpu(features)
        if waiting is not None:
            yield _extracted(dataset.views, *waiting)
        waiting = current
    if waiting is not None:
        yield _extracted(dataset.views, *waiting)


def images_at_a_time(batch_size: int, views: int) -> int:
    """Images of a batch of ``batch_size`` encoder inputs."""
    return max(1, batch_size // views)


def _cut(numbers: list[int], size: int) -> list[list[int]]:
    return [numbers[start : start + size] for start in range(0, len(numbers), size)]


def _batched(chunks: Iterator[Chunk], sizes: Sequence[int], device: torch.device) -> Iterator[list[Chunk]]:
    """The chunks of each batch of so many images, each on its way to the device as soon as it is there."""
    for size in sizes:
        parts: list[Chunk] = []
        while size > 0:
            chunk = next(chunks)
            size -= len(chunk.numbers) + len(chunk.errors)
            views = None if chunk.views is None else chunk.views.to(device, non_blocking=True)
            parts.append(chunk._replace(views=views))
        yield parts


@torch.no_grad()
def _encode(
    parts: Sequence[Tensor], finish: Finish | None, encode: Encoder, batch_size: int, halving: Halving
) -> Tensor | None:
    """Features (B, D) of the views in these parts, or None if there is nothing to encode."""
    if not parts:
        return None
    if finish is not None and len({part.dtype for part in parts}) > 1:  # some were no RGB images
        parts = [finish(part) if part.dtype == torch.uint8 else part for part in parts]

    def encoded(part: Tensor) -> Tensor:
        features = encode(finish(part) if finish is not None and part.dtype == torch.uint8 else part)
        if features.ndim != 2 or len(features) != len(part):
            raise ValueError(f"the encoder must return (B, D), not {tuple(features.shape)} for {len(part)} inputs")
        return features

    found = halving(encoded, torch.cat(list(parts)) if len(parts) > 1 else parts[0], batch_size)
    return found[0] if len(found) == 1 else torch.cat(found)


def _on_its_way_to_cpu(features: Tensor | None) -> Callable[[], Tensor | None]:
    """Start copying; the result waits for this copy, and not for what the GPU was given after it."""
    if features is None or not features.is_cuda:
        return lambda: features
    host = torch.empty(features.shape, dtype=features.dtype).pin_memory()
    host.copy_(features, non_blocking=True)
    done = torch.cuda.Event()
    done.record()

    def wait() -> Tensor:
        done.synchronize()
        return host

    return wait


def _extracted(views: int, parts: Sequence[Chunk], arrived: Callable[[], Tensor | None]) -> Extracted:
    features = arrived()
    rows = None if features is None else features.cpu().unflatten(0, (-1, views))
    numbers = [number for part in parts for number in part.numbers]
    return Extracted(numbers, rows, [error for part in parts for error in part.errors])


# ---- decoding -------------------------------------------------------------------------------------------------------


def load(
    dataset: ViewDataset, batches: Sequence[Sequence[int]], num_workers: int, *, pin_memory: bool = False
) -> Iterator[Chunk]:
    """The decoded images of each batch, in order, in one or more chunks per batch.

    Args:
        batches: numbers of images.
        num_workers: maximum number of decoding processes.
        pin_memory: put chunks into memory from which a GPU can copy by itself.

    A worker that the system kills, as it does if shared memory or memory is short, is told in one line, and the rest is
    decoded in this process.
    """
    workers, size = _plan(dataset, num_workers, sum(map(len, batches)))
    chunks = [list(batch[start : start + size]) for batch in batches for start in range(0, len(batch), size)]
    workers = min(workers, len(chunks))
    done = 0
    try:
        for chunk in _loader(dataset, chunks, workers, pin_memory):
            yield chunk
            done += 1
        return
    except RuntimeError as error:
        if not workers or "DataLoader worker" not in str(error):
            raise
        logger.warning(
            f"A process that decodes images was killed ({' '.join(str(error).split())[:150]}): the rest is decoded in "
            f"this one. More shared memory ({SHARED_MEMORY}; docker run --shm-size) or fewer DATALOADER.NUM_WORKERS "
            "may help"
        )
    yield from _loader(dataset, chunks[done:], 0, pin_memory)


def _loader(dataset: ViewDataset, chunks: Sequence[Sequence[int]], workers: int, pin_memory: bool) -> DataLoader[Chunk]:
    return DataLoader(
        dataset,  # type: ignore[arg-type]  # of images, which are collated to chunks
        batch_sampler=chunks,  # type: ignore[arg-type]
        collate_fn=functools.partial(_collate, dataset.finish),
        num_workers=workers,
        prefetch_factor=_AHEAD if workers else None,
        pin_memory=pin_memory,
        worker_init_fn=drop_inherited_locks,
        generator=torch.Generator(),  # by default it would draw from the run's random stream
    )


def _collate(finish: Finish | None, decoded: Sequence[Decoded]) -> Chunk:
    views = [view for one in decoded for view in one.views]
    if finish is not None and len({view.dtype for view in views}) > 1:  # some were no RGB images
        views = [finish(view) if view.dtype == torch.uint8 else view for view in views]
    return Chunk(
        [one.number for one in decoded if not one.error],
        torch.stack(views) if views else None,
        [(one.number, one.error) for one in decoded if one.error],
    )


def _plan(dataset: ViewDataset, wanted: int, images: int) -> tuple[int, int]:
    """Number of processes to start, and of images in a chunk.

    No process is started if decoding everything here takes less time than starting them.
    """
    chunk = max(1, _CHUNK // dataset.views)
    count = min(usable_cores() if wanted == -1 else wanted, images, usable_cores())
    if count <= 0 or multiprocessing.current_process().daemon:  # a daemon may not have children
        return 0, chunk
    forks = multiprocessing.get_start_method() == "fork"
    if not forks and not _can_pickle(dataset.transform):
        return 0, chunk
    probes = [_probe(dataset, number) for number in range(min(_PROBED, len(dataset)))]
    seconds, size = min(seconds for seconds, _ in probes), max(size for _, size in probes)
    if seconds * len(dataset) <= (_FORK_PAYS_SECONDS if forks else _SPAWN_PAYS_SECONDS):
        return 0, chunk
    under_way = (_AHEAD + 1) * max(size, 1)  # bytes of each worker if chunks have one image
    free = free_shared_memory()
    room = count if free is None else free * 3 // 4 // under_way
    if room < count:
        logger.warning(
            f"Shared memory ({SHARED_MEMORY}) has room for {room} of {count} decoding processes; docker run --shm-size "
            "gives more"
        )
        count = room
    modest = _MODEST if free is None else min(_MODEST, free * 3 // 4)
    return count, min(chunk, max(1, modest // (under_way * max(count, 1))))


def _probe(dataset: ViewDataset, number: int) -> tuple[float, int]:
    """Seconds that decoding an image takes, and bytes of its views."""
    start = time.perf_counter()
    decoded = dataset[number]
    return time.perf_counter() - start, sum(view.nbytes for view in decoded.views)


def _can_pickle(transform: object) -> bool:
    """Whether the transform can be passed to a spawned process; local functions and lambdas cannot."""
    try:
        pickle.dumps(transform)
    except (pickle.PicklingError, AttributeError, TypeError):
        return False
    return True
