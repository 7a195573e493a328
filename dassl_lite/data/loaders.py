"""From a list of Datums to batches: DatasetWrapper reads and transforms one item, ImageLoader batches them."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, default_collate
from torchvision import transforms as T

from dassl_lite.data.datum import Datum
from dassl_lite.data.images import UnreadableImageError, read_image
from dassl_lite.data.samplers import SeededIndex, SeededSampler, build_sampler
from dassl_lite.data.transforms.build import interpolation
from dassl_lite.utils.errors import UserError, unknown

logger = logging.getLogger(__name__)

Transform = Callable[[Image.Image], Any]
_UNREADABLE = "unreadable"  # key in a batch on its way from the worker to the loader


class DatasetWrapper(Dataset[dict[str, Any]]):
    """Items of a list of Datums as dicts: ``img, label, domain, impath, index`` (Dassl's contract).

    ``img`` is a tensor (3, H, W), under ``DATALOADER.K_TRANSFORMS`` > 1 a list of that many (training only);
    a list of transforms gives ``img``, ``img2``, ...; ``DATALOADER.RETURN_IMG0`` adds ``img0``, resized only.

    Args:
        transform: one transform or a list of them; None: the image as a tensor, whatever its size.

    Raises:
        UnreadableImageError: (a UserError) from reading an item.
    """

    # Set by a loader that hands broken images to its own process, where one line is raised or a count kept.
    defer_errors = False

    def __init__(
        self,
        cfg: Any,
        data_source: Sequence[Datum],
        transform: Transform | Sequence[Transform] | None = None,
        is_train: bool = False,
    ) -> None:
        self.cfg = cfg
        self.data_source = data_source
        self.transform = transform
        self.is_train = is_train
        self.k_tfm = cfg.DATALOADER.K_TRANSFORMS if is_train else 1
        self.return_img0 = cfg.DATALOADER.RETURN_IMG0
        if self.k_tfm > 1 and transform is None:
            raise UserError(f"DATALOADER.K_TRANSFORMS {self.k_tfm} needs a transform, but INPUT.NO_TRANSFORM is set")

    @functools.cached_property
    def to_tensor(self) -> Transform:
        """The transform of ``img0``: to the input size, without augmentation."""
        node = self.cfg.INPUT
        steps = [T.Resize(tuple(node.SIZE), interpolation=interpolation(self.cfg)), T.ToTensor()]
        if not node.TRANSFORMS or "normalize" in node.TRANSFORMS:
            steps.append(T.Normalize(node.PIXEL_MEAN, node.PIXEL_STD))
        return T.Compose(steps)

    def __len__(self) -> int:
        return len(self.data_source)

    def __getitem__(self, idx: int) -> dict[str, Any]:
        if isinstance(idx, SeededIndex):
            idx.seed_all()
        item = self.data_source[idx]
        output = {"label": item.label, "domain": item.domain, "impath": item.impath, "index": int(idx)}
        img0 = read_image(item.impath)
        if self.transform is None:
            output["img"] = T.functional.to_tensor(img0)
        elif isinstance(self.transform, Sequence):
            for i, transform in enumerate(self.transform):
                output["img" if i == 0 else f"img{i + 1}"] = self._transform_image(transform, img0)
        else:
            output["img"] = self._transform_image(self.transform, img0)
        if self.return_img0:
            output["img0"] = self.to_tensor(img0)
        return output

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any] | UnreadableImageError]:
        """Items of one batch; with ``defer_errors`` an unreadable image is its error instead."""
        if not self.defer_errors:
            return [self[index] for index in indices]
        items: list[dict[str, Any] | UnreadableImageError] = []
        for index in indices:
            try:
                items.append(self[index])
            except UnreadableImageError as error:
                items.append(error)
        return items

    def _transform_image(self, tfm: Transform, img0: Image.Image) -> Any:
        """``img0`` transformed, or a list of ``k_tfm`` versions of it."""
        images = [tfm(img0) for _ in range(self.k_tfm)]
        return images[0] if len(images) == 1 else images


def _collate(items: list[Any]) -> dict[str, Any]:
    """A batch of the readable items; the others as (path, reason) under a key of their own."""
    readable = [item for item in items if not isinstance(item, UnreadableImageError)]
    batch = default_collate(readable) if readable else {}
    if len(readable) < len(items):
        batch[_UNREADABLE] = [(item.path, item.reason) for item in items if isinstance(item, UnreadableImageError)]
    return batch


class ImageLoader(DataLoader[dict[str, Any]]):
    """torch's DataLoader over a DatasetWrapper, exact about random numbers and broken images.

    - With no workers every random number comes from where the reference takes it. With any number of them
      (1 or 8) the batches are the same: each item brings its own seed.
    - Workers that stay alive between epochs consume as many of the main process's random numbers as fresh
      ones, so a resumed run goes on exactly as one never stopped.
    - An unreadable image raises one UserError here, not a traceback out of a worker; with ``on_error="skip"``
      it is left out, logged once, and counted in ``skipped``.

    It starts nothing until it is iterated over.
    """

    keeps_places = False  # whether a batch without one readable image is an empty dict, or left out

    def __init__(self, dataset: Dataset[dict[str, Any]], *, on_error: str = "stop", **options: Any) -> None:
        if isinstance(dataset, DatasetWrapper):
            dataset.defer_errors = True
        self.on_error = on_error
        self.skipped: dict[str, str] = {}  # path -> reason
        super().__init__(dataset, collate_fn=_collate, **options)

    def with_batches(self, batch_sampler: Any) -> ImageLoader:
        """The same images in other batches: ``batch_sampler`` gives lists of indices."""
        return ImageLoader(
            self.dataset,
            on_error=self.on_error,
            batch_sampler=batch_sampler,
            num_workers=self.num_workers,
            persistent_workers=self.persistent_workers,
            pin_memory=self.pin_memory,
        )

    def __iter__(self) -> Any:
        if self.persistent_workers and self._iterator is not None:
            torch.empty((), dtype=torch.int64).random_()  # what a fresh iterator draws as its workers' seed
        # Made here, not on the first `next`: two loaders read in turn then draw in the reference's order.
        return self._without_unreadable(super().__iter__())

    def _without_unreadable(self, batches: Iterator[Any]) -> Iterator[dict[str, Any]]:
        known = len(self.skipped)
        for batch in batches:
            unreadable = batch.pop(_UNREADABLE, ()) if isinstance(batch, dict) else ()
            for path, reason in unreadable:
                if self.on_error == "stop":
                    del batches  # or the error's traceback keeps the workers until garbage is collected: 5 s
                    raise UnreadableImageError(path, f"{reason} (DATASET.ON_ERROR skip passes it over)")
                if path not in self.skipped:
                    self.skipped[path] = reason
                    if len(self.skipped) <= 3:
                        logger.warning("Skipped '%s': %s", path, reason)
            if batch or self.keeps_places:
                yield batch
        if len(self.skipped) > known:
            logger.warning("Skipped %d unreadable images in all", len(self.skipped))


def build_data_loader(
    cfg: Any,
    sampler_type: str = "SequentialSampler",
    data_source: Sequence[Datum] = (),
    batch_size: int = 64,
    n_domain: int = 0,
    n_ins: int = 2,
    tfm: Transform | Sequence[Transform] | None = None,
    is_train: bool = True,
    dataset_wrapper: Callable[..., Dataset[dict[str, Any]]] | None = None,
) -> ImageLoader:
    """A loader over ``data_source`` (Dassl's signature).

    Training drops the last batch if it is incomplete, but never the only one.

    Raises:
        UserError: no items, a number out of range, an unknown sampler or ``DATASET.ON_ERROR``.
    """
    if not data_source:
        raise UserError(f"dataset {cfg.DATASET.NAME} has no {'training' if is_train else 'test'} images to load")
    if batch_size < 1:
        raise UserError(f"DATALOADER batch size {batch_size} is out of range: 1 or more")
    if cfg.DATALOADER.NUM_WORKERS < 0:
        raise UserError(f"DATALOADER.NUM_WORKERS {cfg.DATALOADER.NUM_WORKERS} is out of range: 0 or more")
    if cfg.DATASET.ON_ERROR not in ("stop", "skip"):
        raise unknown("DATASET.ON_ERROR", cfg.DATASET.ON_ERROR, ("stop", "skip"))
    sampler = build_sampler(sampler_type, cfg, data_source, batch_size, n_domain, n_ins)
    drop_last = is_train and len(data_source) >= batch_size
    n_batches = -(-len(data_source) // batch_size)
    # Never more processes than can do something at once; the batches do not depend on their number.
    num_workers = min(cfg.DATALOADER.NUM_WORKERS, n_batches, _num_cpus())
    return ImageLoader(
        (dataset_wrapper or DatasetWrapper)(cfg, data_source, transform=tfm, is_train=is_train),
        on_error=cfg.DATASET.ON_ERROR,
        batch_size=batch_size,
        sampler=SeededSampler(sampler) if num_workers else sampler,
        num_workers=num_workers,
        persistent_workers=is_train and num_workers > 0,
        drop_last=drop_last,
        pin_memory=cfg.USE_CUDA and torch.cuda.is_available(),
    )


def _num_cpus() -> int:
    """CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
