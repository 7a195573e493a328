"""Stores of the feature cache: image features extracted once, kept on disk, read back as one tensor.

A store is a folder for one way of computing features (backbone and its weights, transform, views, seed). It has a row
per image, so all shot counts, splits, random seeds and methods share it. A row belongs to a path with a size and a time
of last modification, so a modified file has a new row.

A row's second field is the state before the encoder's last projection, for methods that train that projection. It lies
in files of its own, in the store's folder `states`, so those who need features alone read what they always did, and it
takes disk space only once a method has asked for it. Both fields come from one pass of the encoder; of images that have
features only, the state is added and the features stay as they are.

Shapes: N images, V views, B encoder inputs, H x W pixels, D feature width, W width of the states.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
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

from dassl_lite.data.feature_cache.extract import Extracted, Transform, ViewDataset, extract
from dassl_lite.data.feature_cache.rows import COMMIT_SECONDS, Rows
from dassl_lite.data.feature_cache.shards import DAMAGED, META, ImageFile, ShardStore
from dassl_lite.data.images import UnreadableImageError, count_images
from dassl_lite.utils.errors import UserError, unknown
from dassl_lite.utils.files import PathLike, digest_of, read_json
from dassl_lite.utils.logger import get_logger
from dassl_lite.utils.sharing import is_unwritten, shared

logger = get_logger(__name__)

FORMAT = 1
STATES = "states"  # folder of the second field
_ATTEMPTS = 2
_EXAMPLES = 10  # unreadable images named in a message

T = TypeVar("T")


class ProcessGroup:
    """The processes of a run that work together; here a single one. The engine derives from it for torchrun.

    Attributes:
        rank: number of this process, from 0.
        size: number of processes.
    """

    rank: int = 0
    size: int = 1

    def gather(self, item: T) -> list[T]:
        """The items of all processes, by rank; every process has to call it."""
        return [item]

    @property
    def holder(self) -> int:
        """The process of this machine that makes what the processes of the machine share."""
        return self.rank

    def shared(self, make: Callable[[], Tensor]) -> Tensor:
        """A tensor on the CPU that `holder` makes, in memory that the processes of a machine share.

        Every process has to call it. What one writes into it, others do not see.
        """
        return make()

    @property
    def share(self) -> slice:
        """The items of a list that this process works on: every ``size``-th one."""
        return slice(self.rank, None, self.size)

    def in_turn(self, own: Iterable[T]) -> Iterator[T]:
        """Merge the results for the ``share`` of every process into the order of the whole list.

        At most one item of each process is in memory at a time.
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
    """How features are computed: everything that they depend on except the image.

    Attributes:
        backbone: name of the backbone, for people.
        digest: digest of its weights and precision.
        transform: from a PIL image to a tensor (3, H, W).
        transform_text: identifies the transform.
        views: V.
        seed: seed of the views.
    """

    backbone: str
    digest: str
    transform: Transform
    transform_text: str
    views: int = 1
    seed: int = 0

    def describe(self) -> dict[str, Any]:
        """The key of the store as plain JSON; its digest is the folder's name."""
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
    """Features of N images, in the order of the request.

    Attributes:
        tensor: (V, N, D), of the encoder's dtype; zero where ``kept`` is False.
        kept: bool (N,), False for unreadable images that were skipped.
        errors: why an image was skipped, by its absolute path.
    """

    tensor: Tensor
    kept: Tensor
    errors: Mapping[str, str] = dataclasses.field(default_factory=dict)


class FeatureStore:
    """Features by image, extracted on first request.

    Args:
        spec: how they are computed.
        root: the cache folder, which contains the store's folder. None keeps features in memory only.
        commit_seconds: how much work a killed process may lose, in seconds.
        processes: processes that all fetch the same images and extract missing ones together; the first one writes.
        shows_progress: show a bar, if there is a terminal.
    """

    def __init__(
        self,
        spec: FeatureSpec,
        root: str | Path | None,
        *,
        commit_seconds: float = COMMIT_SECONDS,
        processes: ProcessGroup | None = None,
        shows_progress: bool = True,
    ) -> None:
        if spec.views < 1:
            raise UserError(f"the number of views must be at least 1, not {spec.views}")
        self.spec = spec
        self.folder = None if root is None else Path(root) / digest_of(spec.describe())[:16]
        disk = None if self.folder is None else ShardStore(self.folder, spec.describe())
        self._processes = processes or ProcessGroup()
        self._shows_progress = shows_progress
        role = {"writes": self._processes.rank == 0, "holds": self._processes.rank == self._processes.holder}
        self._rows = Rows(disk, commit_seconds, **role)
        under = None
        if self.folder is not None:
            under = ShardStore(self.folder / STATES, {**spec.describe(), "field": STATES})
        self._states = Rows(under, commit_seconds, **role)

    def fetch(
        self,
        paths: Sequence[PathLike],
        encode: Callable[[Tensor], Any],
        *,
        device: torch.device | str = "cpu",
        batch_size: int = 256,
        num_workers: int = 0,
        on_error: str = "stop",
        states: bool = False,
        kept_as: str = "",
    ) -> Features:
        """Features of the images at ``paths``, which may have duplicates.

        Args:
            encode: from inputs (B, 3, H, W) on ``device`` to features (B, D); called only for images without a row.
                With ``states`` it gives a pair, features and states (B, W).
            batch_size: encoder inputs at a time; an image counts V times.
            num_workers: maximum number of decoding processes.
            on_error: for an image that cannot be read: "stop"; "skip", with a warning; or "leave" it to the caller to
                tell, even if all are.
            states: return the states; rows that lack them are extracted.
            kept_as: kind under which runs of this process share them, see `sharing.shared`.

        Raises:
            UserError: an image cannot be read and ``on_error`` is "stop", or no image can be read.
        """
        if on_error not in ("stop", "skip", "leave"):
            raise unknown("on_error", on_error, ("stop", "skip"))
        if batch_size < 1:
            raise UserError(f"the batch size must be at least 1, not {batch_size}")
        errors: dict[str, str] = {}  # by path
        files = [look_up(path, errors) for path in paths]
        if errors and on_error == "stop":
            raise unreadable(errors)

        options: dict[str, Any] = {"device": device, "batch_size": batch_size, "num_workers": num_workers}
        run = functools.partial(extract_fields, encode=encode, share=self._processes.share, **options)

        def fetched() -> Features:
            return self._fetch(files, errors, run, on_error, states)

        if errors or not kept_as or self.folder is None or self._processes.size > 1:
            return fetched()
        return shared(kept_as, (self.folder, states, tuple(files)), fetched, _is_intact)

    def _fetch(
        self,
        files: Sequence[ImageFile | None],
        errors: dict[str, str],
        run: Callable[[ViewDataset], Iterator[tuple[Extracted, tuple[Tensor, ...]]]],
        on_error: str,
        states: bool,
    ) -> Features:
        """`fetch`; errors are those of the files that are None."""
        stop = on_error == "stop"
        fields = [self._rows, self._states] if states else [self._rows]
        wanted = list(dict.fromkeys(file for file in files if file is not None))
        for rows in fields:
            rows.load()
        for _ in range(_ATTEMPTS):
            if any(self._processes.gather(bool(self._missing(fields, wanted, errors)))):
                self._extract(fields, wanted, run, errors, stop)
            if on_error != "leave" and errors and all(file is None or file.path in errors for file in files):
                raise unreadable(errors)
            features, damaged = self._gather(fields[-1], files)
            if damaged:
                logger.warning(f"Damaged rows in the feature cache {self.folder}, extracted again: {len(damaged)}")
            found = self._processes.gather(damaged)
            fields[-1].forget(found[self._processes.holder])
            if not any(found):
                if on_error == "skip":
                    warn_of_skipped(errors)
                return dataclasses.replace(features, errors=errors)
        raise UserError(
            f"the disk of {self.folder} returns other bytes than were written; set DATASET.FEATURES.DIR to another disk"
        )

    def _missing(self, fields: Sequence[Rows], wanted: Sequence[ImageFile], errors: Mapping[str, str]) -> list[int]:
        """Numbers of the files in ``wanted`` that have no error and lack a field."""
        lacking = (n for n, file in enumerate(wanted) if not all(file in rows for rows in fields))
        return [n for n in lacking if wanted[n].path not in errors]

    def _missing_anywhere(
        self, fields: Sequence[Rows], wanted: Sequence[ImageFile], errors: Mapping[str, str]
    ) -> list[ImageFile]:
        """The files that any process lacks, the same list in each: otherwise their batches would not fit together."""
        if self._processes.size > 1:
            self._processes.gather(None)  # after this the first process holds the lock and has loaded all rows
            for rows in fields if self._processes.rank else []:
                rows.load()
        numbers = set().union(*self._processes.gather(self._missing(fields, wanted, errors)))
        return [wanted[number] for number in sorted(numbers)]

    def _extract(
        self,
        fields: Sequence[Rows],
        wanted: Sequence[ImageFile],
        run: Callable[[ViewDataset], Iterator[tuple[Extracted, tuple[Tensor, ...]]]],
        errors: dict[str, str],
        stop: bool,
    ) -> None:
        """Add the missing rows. Unreadable images are added to ``errors``, or raise if ``stop``."""
        # None: no bar if there is no terminal.
        no_bar = None if self._shows_progress and not self._processes.rank else True
        with contextlib.ExitStack() as stack:
            for rows in fields:
                stack.enter_context(rows.writing())
            missing = self._missing_anywhere(fields, wanted, errors)  # another process may have added some
            had_features = sum(file in self._rows for file in missing)
            dataset = ViewDataset(missing, self.spec.transform, self.spec.views, self.spec.seed)
            start = time.perf_counter()
            extracted = 0
            with tqdm(total=len(missing), desc="features", unit="image", disable=no_bar, leave=False) as bar:
                for part, values in self._processes.in_turn(run(dataset)):
                    for rows, tensor in zip(fields, values, strict=False):  # no values if no image could be read
                        _add(rows, [missing[number] for number in part.numbers], tensor)
                    errors.update({missing[number].path: error for number, error in part.errors})
                    if part.errors and stop:
                        raise unreadable(errors)
                    extracted += len(part.numbers)
                    bar.update(len(part.numbers) + len(part.errors))
            seconds = time.perf_counter() - start
        assert not self._missing(fields, wanted, errors), "every image now has a row or an error"
        if had_features:
            logger.info(
                f"{count_images(had_features)} had features only in the cache: their states before the projection are "
                "extracted and added"
            )
        logger.info(
            f"Features of {count_images(len(wanted))} ({self.spec.backbone}, views: {self.spec.views}): "
            f"{len(wanted) - len(missing)} from the cache, {extracted} extracted in {seconds:.1f} s "
            f"({extracted / max(seconds, 1e-9):.0f} images/s)"
        )

    def _gather(self, rows: Rows, files: Sequence[ImageFile | None]) -> tuple[Features, list[ImageFile]]:
        """The features of the files that have a row; and the files whose row is damaged, if this process reads them."""
        kept = np.array([file is not None and file in rows for file in files], dtype=bool)
        chosen = [file for file in files if file is not None and file in rows]
        damaged: list[ImageFile] = []

        def read() -> Tensor:
            tensor, damaged[:] = rows.gather(chosen, np.flatnonzero(kept), self.spec.views, len(files))
            return tensor

        return Features(self._processes.shared(read), torch.from_numpy(kept)), damaged


def _is_intact(kept: Features) -> bool:
    return not kept.errors and is_unwritten(kept.tensor)  # those that could not be read may be readable now


def _add(rows: Rows, images: Sequence[ImageFile], values: Tensor) -> None:
    """Add a field (b, V, D) of ``images``, except of those that have it."""
    new = [row for row, image in enumerate(images) if image not in rows]
    if new:
        rows.add([images[row] for row in new], values[new] if len(new) < len(images) else values)


def extract_fields(
    dataset: ViewDataset, encode: Callable[[Tensor], Any], **options: Any
) -> Iterator[tuple[Extracted, tuple[Tensor, ...]]]:
    """What `extract` gives, without its features, and all fields (b, V, D), (b, V, W) that the encoder gives.

    They travel as one tensor of the wider type, and have their own one again with the same bits.
    """
    given: list[Tensor] = []  # empty ones, of the fields' widths and types

    def joined(inputs: Tensor) -> Tensor:
        found = encode(inputs)
        fields = found if isinstance(found, tuple) else (found,)
        given[:] = [field[:0] for field in fields]
        return torch.cat(fields, dim=-1) if len(fields) > 1 else fields[0]

    for part in extract(dataset, joined, **options):
        values: tuple[Tensor, ...] = ()
        if part.features is not None:
            split = part.features.split([field.shape[-1] for field in given], dim=-1)
            values = tuple(one.to(field.dtype) for one, field in zip(split, given, strict=True))
        yield part._replace(features=None), values


def look_up(path: PathLike, errors: dict[str, str]) -> ImageFile | None:
    try:
        return ImageFile.of(path)
    except (OSError, ValueError) as error:  # a path with a NUL is a ValueError
        absolute = os.path.abspath(path)
        errors[absolute] = str(UnreadableImageError(absolute, getattr(error, "strerror", None) or str(error)))
        return None


def unreadable(errors: dict[str, str]) -> UserError:
    """The first error, with the number of others."""
    first = next(iter(errors.values()))
    return UserError(first if len(errors) == 1 else f"{first} (and {len(errors) - 1} more)")


def warn_of_skipped(errors: dict[str, str]) -> None:
    if errors:
        examples = "; ".join(list(errors.values())[:_EXAMPLES])
        more = f"; and {len(errors) - _EXAMPLES} more" if len(errors) > _EXAMPLES else ""
        logger.warning(f"Skipped {count_images(len(errors))} that could not be read: {examples}{more}")


@dataclasses.dataclass(frozen=True)
class StoreSummary:
    """A store in a listing.

    Attributes:
        folder: its folder.
        images: number of images that it has features of.
        bytes: size on disk.
        made_with: what the features were computed with, as plain JSON.
    """

    folder: Path
    images: int
    bytes: int
    made_with: dict[str, Any]


def describe_stores(root: Path) -> list[StoreSummary]:
    """The stores in ``root``, largest first. Folders without a commit and stores that were set aside do not count."""
    found = []
    for meta_path in sorted(Path(root).glob(f"*/{META}")):
        folder = meta_path.parent
        if DAMAGED in folder.name:
            continue
        disk = ShardStore(folder, read_json(meta_path)["made_with"])
        disk.load()
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        found.append(StoreSummary(folder, len(disk), size, disk.description))
    return sorted(found, key=lambda summary: -summary.bytes)
