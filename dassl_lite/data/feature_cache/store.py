"""The feature cache: image features extracted once, kept on disk, read back as one tensor.

A store is one folder per way of making features (backbone and its weights, transform, views, seed) and holds a row per
image, so every shot count, split, random seed and method shares it. A row belongs to a path with a size and a time of
last change; a file that was changed is another row.

Shapes: N images, V views, B encoder inputs, H x W pixels, D feature width.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from dassl_lite.data.feature_cache.extract import Encoder, Extracted, Transform, ViewDataset, extract
from dassl_lite.data.feature_cache.rows import COMMIT_SECONDS, Rows
from dassl_lite.data.feature_cache.shards import DAMAGED, META, ImageFile, ShardStore
from dassl_lite.utils.errors import UserError, unknown
from dassl_lite.utils.files import digest_of, read_json

logger = logging.getLogger(__name__)

FORMAT = 1
_ATTEMPTS = 2
_NAMED = 10  # unreadable images in a message

T = TypeVar("T")


class ProcessGroup:
    """A process among those of its run. The engine derives from it for torchrun.

    Attributes:
        rank: its number, from 0.
        size: how many there are.
    """

    rank = 0
    size = 1

    def gather(self, item: T) -> list[T]:
        """What every process gives, in the order of their ranks; all have to come here."""
        return [item]

    @property
    def share(self) -> slice:
        """This process's part of a list whose items are dealt out in turn."""
        return slice(self.rank, None, self.size)

    def in_turn(self, own: Iterable[T]) -> Iterator[T]:
        """The items of every process, as each has those of its ``share``: in the order that the whole had.

        One item of each process is underway at a time.
        """
        if self.size == 1:
            yield from own
            return
        items = iter(own)
        while any(found := self.gather(list(islice(items, 1)))):
            for one in found:
                yield from one


@dataclasses.dataclass(frozen=True)
class FeatureSpec:
    """How features are made: everything that they depend on but the image."""

    backbone: str  # name, for people
    digest: str  # of weights and precision
    transform: Transform
    transform_text: str  # stands for the transform in the key
    views: int = 1
    seed: int = 0

    def describe(self) -> dict[str, Any]:
        """The key as plain JSON; its digest names the folder."""
        return {
            "format": FORMAT,
            "backbone": self.backbone,
            "weights": self.digest,
            "transform": self.transform_text,
            "views": self.views,
            "seed": self.seed,
        }


@dataclasses.dataclass(frozen=True)
class Features:
    """Features of N images, in the order asked for.

    Attributes:
        tensor: (V, N, D), of the type that the encoder gave; zero where ``kept`` is False.
        kept: bool (N,), False for an image that could not be read and was passed over.
    """

    tensor: Tensor
    kept: Tensor


class FeatureStore:
    """Features by image, extracted when they are first asked for.

    Args:
        spec: how they are made.
        root: the cache folder; the store is a folder within. None keeps features in memory only.
        commit_seconds: how much work a killed process may lose.
        processes: processes that all fetch the same images and extract what is missing together; the first one writes.
    """

    def __init__(
        self,
        spec: FeatureSpec,
        root: str | Path | None,
        *,
        commit_seconds: float = COMMIT_SECONDS,
        processes: ProcessGroup | None = None,
    ) -> None:
        if spec.views < 1:
            raise UserError(f"the number of views must be at least 1, not {spec.views}")
        self.spec = spec
        self.folder = None if root is None else Path(root) / digest_of(spec.describe())[:16]
        disk = None if self.folder is None else ShardStore(self.folder, spec.describe())
        self._processes = processes or ProcessGroup()
        self._rows = Rows(disk, commit_seconds, writes=self._processes.rank == 0)

    def fetch(
        self,
        paths: Sequence[str | os.PathLike[str]],
        encode: Encoder,
        *,
        device: torch.device | str = "cpu",
        batch_size: int = 256,
        num_workers: int = 0,
        on_error: str = "stop",
    ) -> Features:
        """Features of the images at ``paths``, of which each may occur more than once.

        Args:
            encode: inputs (B, 3, H, W) on ``device`` -> features (B, D); called only for images that are not cached.
            batch_size: encoder inputs at a time; an image counts V times.
            num_workers: at most so many processes decode images.
            on_error: an image that cannot be read ends the run (``stop``) or is left out (``skip``).

        Raises:
            UserError: an image cannot be read and ``on_error`` is ``stop``, or none can.
        """
        if on_error not in ("stop", "skip"):
            raise unknown("on_error", on_error, ("stop", "skip"))
        if batch_size < 1:
            raise UserError(f"the batch size must be at least 1, not {batch_size}")
        stop = on_error == "stop"
        errors: dict[str, str] = {}  # by path
        files = [_look_up(path, errors) for path in paths]
        if errors and stop:
            raise _unreadable(errors)
        options: dict[str, Any] = {"device": device, "batch_size": batch_size, "num_workers": num_workers}
        run = functools.partial(extract, encode=encode, share=self._processes.share, **options)
        wanted = list(dict.fromkeys(file for file in files if file is not None))
        self._rows.load()
        for _ in range(_ATTEMPTS):
            if any(self._processes.gather(bool(self._missing(wanted, errors)))):
                self._extract(wanted, run, errors, stop)
            if files and len(errors) == len(set(map(os.path.abspath, paths))):
                raise _unreadable(errors)
            features, damaged = self._gather(files)
            if damaged:
                logger.warning(
                    f"{len(damaged)} rows of the feature cache in {self.folder} are damaged: extracting again"
                )
                self._rows.forget(damaged)
            if not any(self._processes.gather(bool(damaged))):
                _warn_of_skipped(errors)
                return features
        raise UserError(f"{self.folder} gives back other bytes than were written: set DATASET.FEATURES.DIR elsewhere")

    def _missing(self, wanted: Sequence[ImageFile], errors: Mapping[str, str]) -> list[int]:
        """Numbers of the files in ``wanted`` that are still to be extracted."""
        return [n for n, file in enumerate(wanted) if file not in self._rows and file.path not in errors]

    def _missing_anywhere(self, wanted: Sequence[ImageFile], errors: Mapping[str, str]) -> list[ImageFile]:
        """What one of the processes lacks: the same list in each, or their batches would not be those of one."""
        if self._processes.size > 1:
            self._processes.gather(
                None
            )  # by now the first one is alone with the disk, and knows what others have written
            if self._processes.rank:
                self._rows.load()
        numbers = set().union(*self._processes.gather(self._missing(wanted, errors)))
        return [wanted[number] for number in sorted(numbers)]

    def _extract(
        self,
        wanted: Sequence[ImageFile],
        run: Callable[[ViewDataset], Iterator[Extracted]],
        errors: dict[str, str],
        stop: bool,
    ) -> None:
        """Add the rows of what is missing; images that cannot be read go to ``errors``, or end it if ``stop``."""
        quiet = True if self._processes.rank else None  # None: where there is no terminal
        with self._rows.writing():
            missing = self._missing_anywhere(wanted, errors)  # another process may have been at it
            dataset = ViewDataset(missing, self.spec.transform, self.spec.views, self.spec.seed)
            start = time.perf_counter()
            extracted = 0
            with tqdm(total=len(missing), desc="features", unit="image", disable=quiet, leave=False) as bar:
                for part in self._processes.in_turn(run(dataset)):
                    self._add([missing[number] for number in part.numbers], part.features)
                    errors.update({missing[number].path: error for number, error in part.errors})
                    if part.errors and stop:
                        raise _unreadable(errors)
                    extracted += len(part.numbers)
                    bar.update(len(part.numbers) + len(part.errors))
            seconds = time.perf_counter() - start
        assert not self._missing(wanted, errors), "an image has a row or an error now"
        logger.info(
            f"Features of {len(wanted)} images ({self.spec.backbone}, views: {self.spec.views}): "
            f"{len(wanted) - len(missing)} from the cache, {extracted} extracted in {seconds:.1f} s "
            f"({extracted / max(seconds, 1e-9):.0f} images/s)"
        )

    def _add(self, images: Sequence[ImageFile], features: Tensor | None) -> None:
        """Keep features (b, V, D) of ``images``, but for those that this process has and only another one lacked."""
        new = [row for row, image in enumerate(images) if image not in self._rows]
        if features is not None and new:
            self._rows.add([images[row] for row in new], features[new] if len(new) < len(images) else features)

    def _gather(self, files: Sequence[ImageFile | None]) -> tuple[Features, list[ImageFile]]:
        """The features of all files that have a row, and those whose row turned out damaged."""
        kept = np.array([file is not None and file in self._rows for file in files], dtype=bool)
        chosen = [file for file in files if file is not None and file in self._rows]
        tensor, damaged = self._rows.gather(chosen, np.flatnonzero(kept), self.spec.views, len(files))
        return Features(tensor, torch.from_numpy(kept)), damaged


def _look_up(path: str | os.PathLike[str], errors: dict[str, str]) -> ImageFile | None:
    try:
        return ImageFile.of(path)
    except OSError as error:
        absolute = os.path.abspath(path)
        errors[absolute] = f"cannot read the image {absolute}: {error.strerror or error}"
        return None


def _unreadable(errors: dict[str, str]) -> UserError:
    """The first error, saying so if there are more."""
    first = next(iter(errors.values()))
    return UserError(first if len(errors) == 1 else f"{first} (and {len(errors) - 1} more)")


def _warn_of_skipped(errors: dict[str, str]) -> None:
    if errors:
        named = "; ".join(list(errors.values())[:_NAMED])
        more = f"; and {len(errors) - _NAMED} more" if len(errors) > _NAMED else ""
        logger.warning(f"{len(errors)} images could not be read and are left out: {named}{more}")


@dataclasses.dataclass(frozen=True)
class StoreSummary:
    """One store, for a listing: its folder, how much it holds, and what that was made with."""

    folder: Path
    images: int
    bytes: int
    made_with: dict[str, Any]


def describe_stores(root: Path) -> list[StoreSummary]:
    """The stores below ``root``, largest first. A folder with nothing committed is none, nor one that was set aside."""
    found = []
    for meta_path in sorted(Path(root).glob(f"*/{META}")):
        folder = meta_path.parent
        if DAMAGED in folder.name:
            continue
        disk = ShardStore(folder, read_json(meta_path)["made_with"])
        disk.load()
        size = sum(path.stat().st_size for path in folder.iterdir())
        found.append(StoreSummary(folder, len(disk), size, disk.description))
    return sorted(found, key=lambda summary: -summary.bytes)
