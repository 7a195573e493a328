"""The rows of a store, on disk or, if the disk cannot be written to, in memory.

A cache that cannot be written to costs time but never a run: the first failed write logs one warning, and from then on
this run keeps its new rows in memory. Rows committed before stay readable.

Shapes: N images, V views, D feature width.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from dassl_lite.data.feature_cache.shards import ImageFile, Layout, ShardStore
from dassl_lite.utils.errors import NO_ROOM
from dassl_lite.utils.logger import get_logger

logger = get_logger(__name__)

COMMIT_BYTES = 64 << 20
COMMIT_SECONDS = 5.0
_ELSEWHERE = -1, -1  # a row that another process holds


class Rows:
    """Rows by image, added within ``writing()`` and committed every few seconds.

    Args:
        disk: where rows are kept; None keeps them in memory only.
        commit_seconds: how much work a killed process may lose, in seconds.
        writes: False leaves writing to another process and keeps new rows in memory.
        holds: False leaves that too to another process; of new rows it is known that they are there.
    """

    def __init__(
        self, disk: ShardStore | None, commit_seconds: float = COMMIT_SECONDS, *, writes: bool, holds: bool = True
    ) -> None:
        self._disk = disk
        self._writable = writes and disk is not None
        self._holds = holds
        self._commit_seconds = commit_seconds
        self._memory: dict[ImageFile, tuple[int, int]] = {}  # block, row
        self._blocks: list[np.ndarray] = []
        self._layout: Layout | None = None
        self._pending: list[tuple[Sequence[ImageFile], np.ndarray]] = []
        self._committed = 0.0  # time of the last commit, on the monotonic clock

    @property
    def layout(self) -> Layout | None:
        """The layout of the rows; None until there is one."""
        return self._layout or (self._disk.layout if self._disk else None)

    def __contains__(self, image: object) -> bool:
        return image in self._memory or (self._disk is not None and image in self._disk)

    def load(self) -> None:
        """Load the rows that are on disk now."""
        if self._disk is None:
            return
        try:
            self._disk.load()
        except OSError as error:
            self._stop_using_disk(error)
            self._disk = None

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Add rows within this block, as the only writer to the disk. Added rows are kept however the block ends."""
        with contextlib.ExitStack() as stack:
            if self._disk is not None and self._writable:
                try:
                    stack.enter_context(self._disk.exclusively())
                except OSError as error:
                    self._stop_using_disk(error)
            self._committed = time.monotonic()
            try:
                yield
            finally:
                self._commit()

    def add(self, images: Sequence[ImageFile], features: Tensor) -> None:
        """Add the features (N, V, D) of ``images``; they are written to disk at the next commit."""
        layout = Layout.of(features)
        if self.layout not in (None, layout):
            raise ValueError(f"the encoder returned {layout}, but the other rows are {self.layout}")
        self._layout = layout
        if not self._holds:
            self._memory.update(dict.fromkeys(images, _ELSEWHERE))
            return
        self._pending.append((images, layout.bits(features)))
        due = time.monotonic() - self._committed >= self._commit_seconds
        if due or sum(bits.nbytes for _, bits in self._pending) >= COMMIT_BYTES:
            self._commit()

    def gather(
        self, images: Sequence[ImageFile], columns: np.ndarray, views: int, total: int
    ) -> tuple[Tensor, list[ImageFile]]:
        """Copy the rows of ``images`` to ``columns`` of a tensor.

        Returns:
            The tensor (V, total, D), zero in other columns; and the images whose rows are damaged.
        """
        if self.layout is None:  # no image has a row, so D is unknown
            return torch.zeros(views, total, 0), []
        out = np.zeros((self.layout.views, total, self.layout.width), self.layout.carrier)
        in_memory = np.array([image in self._memory for image in images], dtype=bool)
        damaged: list[ImageFile] = []
        if self._disk is not None and not in_memory.all():
            on_disk = [image for image in images if image not in self._memory]
            damaged = self._copy_from_disk(out, on_disk, columns[~in_memory])
        where = np.array([self._memory[image] for image in images if image in self._memory], dtype=np.int64)
        where = where.reshape(-1, 2)  # also if it is empty
        for block in np.unique(where[:, 0]):
            part = where[:, 0] == block
            out[:, columns[in_memory][part]] = self._blocks[block][where[part, 1]].transpose(1, 0, 2)
        return self.layout.tensor(out), damaged

    def _copy_from_disk(self, out: np.ndarray, images: list[ImageFile], columns: np.ndarray) -> list[ImageFile]:
        assert self._disk is not None
        try:
            return self._disk.copy_into(out, images, columns)
        except OSError as error:  # a row that was found a moment ago cannot be read
            self._stop_using_disk(error)
            self._layout, self._disk = self.layout, None
            return images

    def forget(self, images: Sequence[ImageFile]) -> None:
        """Drop rows that are damaged on disk."""
        for image in images:
            self._memory.pop(image, None)
        if self._disk is not None:
            self._disk.forget([image for image in images if image in self._disk])

    def _commit(self) -> None:
        if not self._pending:
            return
        images = [image for batch, _ in self._pending for image in batch]
        bits = np.concatenate([bits for _, bits in self._pending])
        self._pending = []
        self._committed = time.monotonic()
        assert self._layout is not None, "set when the first row is added"
        if self._disk is not None and self._writable:
            try:
                self._disk.commit(images, bits, self._layout)
                return
            except OSError as error:
                self._stop_using_disk(error)
        self._memory.update({image: (len(self._blocks), row) for row, image in enumerate(images)})
        self._blocks.append(bits)

    def _stop_using_disk(self, error: OSError) -> None:
        assert self._disk is not None
        self._writable = False
        remedy = "free disk space" if error.errno in NO_ROOM else "make the folder writable"
        logger.warning(
            f"The feature cache in {self._disk.folder} cannot be used ({error.strerror or error}): this run keeps its "
            f"features in memory and the next one will extract them again. To keep them, {remedy} or set "
            "DATASET.FEATURES.DIR to another folder."
        )
