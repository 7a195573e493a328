"""The feature cache: image features extracted once, kept on disk, read back as one tensor.

A store is one folder per way of making features (backbone and its weights, transform, views, seed) and holds a row per
image, so every shot count, split, random seed and method shares it. A row belongs to a path with a size and a time of
last change; a file that was changed is another row.

Letters: N images, V views, B encoder inputs, H x W pixels, D feature width.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from dassl_lite.data.features.extract import Encoder, Extracted, extract
from dassl_lite.data.features.rows import COMMIT_SECONDS, Rows
from dassl_lite.data.features.shards import ShardStore
from dassl_lite.data.features.views import ImageFile, Transform, ViewDataset
from dassl_lite.utils.errors import UserError, unknown
from dassl_lite.utils.files import digest_of, read_json

logger = logging.getLogger(__name__)

FORMAT = 1
_ATTEMPTS = 2
_NAMED = 10  # unreadable images in a message


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
    """

    def __init__(self, spec: FeatureSpec, root: str | Path | None, *, commit_seconds: float = COMMIT_SECONDS) -> None:
        if spec.views < 1:
            raise UserError(f"the number of views must be at least 1, not {spec.views}")
        self.spec = spec
        self.folder = None if root is None else Path(root) / digest_of(spec.describe())[:16]
        disk = None if self.folder is None else ShardStore(self.folder, spec.describe())
        self._rows = Rows(disk, commit_seconds)

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
        run = functools.partial(extract, encode=encode, device=device, batch_size=batch_size, num_workers=num_workers)
        wanted = dict.fromkeys(file for file in files if file is not None)
        self._rows.load()
        for _ in range(_ATTEMPTS):
            missing = [file for file in wanted if file not in self._rows and file.path not in errors]
            if missing:
                self._extract(missing, len(wanted), run, errors, stop)
            if files and len(errors) == len(set(map(os.path.abspath, paths))):
                raise _unreadable(errors)
            features, damaged = self._gather(files)
            if not damaged:
                _warn_of_skipped(errors)
                return features
            logger.warning(f"{len(damaged)} rows of the feature cache in {self.folder} are damaged: extracting again")
            self._rows.forget(damaged)
        raise UserError(f"{self.folder} gives back other bytes than were written: set DATASET.FEATURES.DIR elsewhere")

    def _extract(
        self,
        missing: Sequence[ImageFile],
        wanted: int,
        run: Callable[[ViewDataset], Iterator[Extracted]],
        errors: dict[str, str],
        stop: bool,
    ) -> None:
        """Add the rows of what is missing; images that cannot be read go to ``errors``, or end it if ``stop``."""
        with self._rows.writing():
            missing = [file for file in missing if file not in self._rows]  # another process may have been at it
            dataset = ViewDataset(missing, self.spec.transform, self.spec.views, self.spec.seed)
            start = time.perf_counter()
            extracted = 0
            with tqdm(total=len(missing), desc="features", unit="image", disable=None, leave=False) as bar:
                for part in run(dataset):
                    if part.features is not None:
                        self._rows.add(part.images, part.features)
                    errors.update({file.path: error for file, error in part.errors.items()})
                    if part.errors and stop:
                        raise _unreadable(errors)
                    extracted += len(part.images)
                    bar.update(len(part.images) + len(part.errors))
            seconds = time.perf_counter() - start
        logger.info(
            f"Features of {wanted} images ({self.spec.backbone}, views: {self.spec.views}): "
            f"{wanted - len(missing)} from the cache, {extracted} extracted in {seconds:.1f} s "
            f"({extracted / max(seconds, 1e-9):.0f} images/s)"
        )

    def _gather(self, files: Sequence[ImageFile | None]) -> tuple[Features, list[ImageFile]]:
        """The features of all files that have a row, and those whose row turned out damaged."""
        kept = np.array([file is not None and file in self._rows for file in files], dtype=bool)
        chosen = [file for file in files if file is not None and file in self._rows]
        tensor, damaged = self._rows.gather(chosen, np.flatnonzero(kept), self.spec.views, len(files))
        return Features(tensor, torch.from_numpy(kept)), damaged


@dataclasses.dataclass(frozen=True)
class StoreSummary:
    """One store, for a listing: its folder, how much it holds, and what that was made with."""

    folder: Path
    images: int
    bytes: int
    made_with: dict[str, Any]


def describe_stores(root: Path) -> list[StoreSummary]:
    """The stores below ``root``, largest first. A folder with nothing committed is none."""
    found = []
    for meta_path in sorted(Path(root).glob("*/meta.json")):
        folder = meta_path.parent
        disk = ShardStore(folder, read_json(meta_path)["made_with"])
        disk.load()
        size = sum(path.stat().st_size for path in folder.iterdir())
        found.append(StoreSummary(folder, len(disk), size, disk.description))
    return sorted(found, key=lambda summary: -summary.bytes)


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
