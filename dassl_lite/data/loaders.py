"""From a list of Datums to batches: ``DatasetWrapper`` reads and transforms images, ``ImageLoader`` batches them."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate
from yacs.config import CfgNode

from dassl_lite.config import completed
from dassl_lite.data.datum import Datum, Rows, labels_of
from dassl_lite.data.images import UnreadableImageError, read_image
from dassl_lite.data.samplers import SeededIndex, SeededSampler, build_sampler
from dassl_lite.data.transforms import Transform
from dassl_lite.data.transforms.build import interpolation
from dassl_lite.data.transforms.pixels import Finish, Pixels, split
from dassl_lite.utils.env import SHARED_MEMORY, free_shared_memory, usable_cores
from dassl_lite.utils.errors import UserError, unknown
from dassl_lite.utils.lazy import lazy_module
from dassl_lite.utils.logger import get_logger

if TYPE_CHECKING:
    from torchvision import transforms as T
else:
    T = lazy_module("torchvision.transforms")

logger = get_logger(__name__)

Item = dict[str, Any]
Batch = dict[str, Any]

_UNREADABLE = "unreadable"  # key of a batch's unreadable images, between worker and loader


class DatasetWrapper(Dataset[Item]):
    """The images of a list of Datums as dicts with ``img, label, domain, impath, index`` (Dassl's contract).

    In a multi-label dataset ``label`` is a bool tensor (K,), true for the image's classes.

    ``img`` is a tensor (3, H, W); with ``DATALOADER.K_TRANSFORMS`` > 1, in training, a list of that many. With a list
    of transforms there are ``img``, ``img2``, ...; ``DATALOADER.RETURN_IMG0`` adds ``img0``, which is only resized.

    Args:
        transform: a transform or a list of them; None returns the image as a tensor in its original size.
        is_train: whether ``K_TRANSFORMS`` applies.

    Attributes:
        multi_hot: K in a multi-label dataset, otherwise 0.
        defer_errors: return the error in place of an unreadable image, for a loader that handles it in its own process.
        finish: set if batches have ``img`` as bytes (H, W, 3), for a loader that normalises them with it.

    Raises:
        UnreadableImageError: a requested image cannot be read.
    """

    multi_hot: int = 0
    defer_errors: bool = False
    finish: Finish | None = None
    _pixels: Pixels | None = None

    def __init__(
        self,
        cfg: CfgNode,
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
            raise UserError(f"DATALOADER.K_TRANSFORMS {self.k_tfm} needs a transform, but INPUT.NO_TRANSFORM is True")

    @functools.cached_property
    def to_tensor(self) -> Transform:
        """The transform of ``img0``: resizes to the input size, without augmentation."""
        node = self.cfg.INPUT
        steps = [T.Resize(tuple(node.SIZE), interpolation=interpolation(self.cfg)), T.ToTensor()]
        if not node.TRANSFORMS or "normalize" in node.TRANSFORMS:
            steps.append(T.Normalize(node.PIXEL_MEAN, node.PIXEL_STD))
        return T.Compose(steps)

    def __len__(self) -> int:
        return len(self.data_source)

    def __getitem__(self, idx: int) -> Item:
        return self._item(idx, self.transform)

    def _item(self, idx: int, tfm: Transform | Sequence[Transform] | None) -> Item:
        if isinstance(idx, SeededIndex):
            idx.seed_all()
        item = self.data_source[idx]
        label = label_tensor([item], self.multi_hot)[0] if self.multi_hot else item.label
        output: Item = {"label": label, "domain": item.domain, "impath": item.impath, "index": int(idx)}
        img0 = read_image(item.impath)
        if tfm is None:
            output["img"] = T.functional.to_tensor(img0)
        elif isinstance(tfm, Sequence):
            for i, transform in enumerate(tfm):
                output["img" if i == 0 else f"img{i + 1}"] = self._transform_image(transform, img0, item.impath)
        else:
            output["img"] = self._transform_image(tfm, img0, item.impath)
        if self.return_img0:
            output["img0"] = self.to_tensor(img0)
        return output

    def defer_normalisation(self) -> None:
        """Give batches with ``img`` as bytes, if the transform allows it; `finish` then makes a batch's images."""
        own = type(self).__getitem__ is not DatasetWrapper.__getitem__  # a subclass may inspect the image
        own = own or type(self)._transform_image is not DatasetWrapper._transform_image
        if not own and self.k_tfm == 1 and (parts := split(self.transform)) is not None:
            self._pixels, self.finish = parts

    def _batch_item(self, idx: int) -> Item:
        return self[idx] if self._pixels is None else self._item(idx, self._pixels)

    def __getitems__(self, indices: Sequence[int]) -> list[Item | UnreadableImageError]:
        """The items of one batch; with ``defer_errors``, an unreadable image gives its error."""
        if not self.defer_errors:
            return [self._batch_item(index) for index in indices]
        items: list[Item | UnreadableImageError] = []
        for index in indices:
            try:
                items.append(self._batch_item(index))
            except UnreadableImageError as error:
                items.append(error)
        return items

    def _transform_image(self, tfm: Transform, img0: Image.Image, path: str = "") -> Tensor | list[Tensor]:
        """The transformed image, or a list of ``k_tfm`` versions of it."""
        try:
            images = [tfm(img0) for _ in range(self.k_tfm)]
        except ValueError as error:  # such as an image that is smaller than a crop
            raise UnreadableImageError(path, f"it cannot be transformed: {error}") from error
        return images[0] if len(images) == 1 else images


def label_tensor(items: Sequence[Datum], multi_hot: int = 0) -> Tensor:
    """Labels (N,) int64 of N items; with ``multi_hot``, K, bool (N, K) that is true for the classes of each item."""
    if not multi_hot:
        return torch.tensor(items.row_labels if isinstance(items, Rows) else [item.label for item in items])
    hot = torch.zeros(len(items), multi_hot, dtype=torch.bool)
    for row, item in zip(hot, items, strict=True):
        row[list(labels_of(item))] = True
    return hot


def domain_tensor(items: Sequence[Datum]) -> Tensor:
    """Domains (N,) int64 of N items."""
    if isinstance(items, Rows):
        return torch.zeros(len(items), dtype=torch.int64)
    return torch.tensor([item.domain for item in items])


def _collate(finish: Finish | None, items: Sequence[Item | UnreadableImageError]) -> Batch:
    """A batch of the readable items; the others as (path, reason) under the key ``_UNREADABLE``."""
    readable = [item for item in items if not isinstance(item, UnreadableImageError)]
    if finish is not None and len({item["img"].dtype for item in readable}) > 1:  # some images were not RGB
        for item in readable:
            item["img"] = finish(item["img"]) if item["img"].dtype == torch.uint8 else item["img"]
    batch: Batch = default_collate(readable) if readable else {}
    if len(readable) < len(items):
        batch[_UNREADABLE] = [(item.path, item.reason) for item in items if isinstance(item, UnreadableImageError)]
    return batch


class ImageLoader(DataLoader[Item]):
    """A DataLoader over a DatasetWrapper with reproducible random numbers and clean errors.

    - Without workers, every random number comes from the same generator as in Dassl. With workers, the batches do not
      depend on their number: each index carries a seed.
    - Persistent workers consume as many random numbers of the main process as new ones would, so a resumed run
      continues exactly as if it had not been interrupted.
    - Images travel as bytes, a quarter of their size, and are normalised here, to the same bits.
    - An unreadable image raises one UserError in the main process, not a traceback from a worker; with
      ``on_error="skip"`` it is left out, logged once, and recorded in ``skipped``.

    No worker starts before the first iteration.

    Args:
        on_error: "stop" or "skip", for an image that cannot be read.
        options: further arguments of DataLoader.

    Attributes:
        device: device for images and labels; None leaves them on the CPU, as Dassl does. On a GPU, images are
            copied without waiting and normalised there.
        keep_empty_batches: return an empty dict for a batch without any readable image, instead of skipping the batch.
        instead: called for each batch with whether images are missing; may return other indices to read instead.
        skipped: the reason for each unreadable image, by path.
    """

    device: torch.device | None = None
    keep_empty_batches: bool = False
    instead: Callable[[bool], Sequence[int] | None] | None = None
    skipped: dict[str, str]

    def __init__(self, dataset: Dataset[Item], *, on_error: str = "stop", **options: Any) -> None:
        if isinstance(dataset, DatasetWrapper):
            dataset.defer_errors = True
            dataset.defer_normalisation()
        self.on_error = on_error
        self.skipped = {}
        self._finish: Finish | None = getattr(dataset, "finish", None)
        super().__init__(dataset, collate_fn=functools.partial(_collate, self._finish), **options)

    def with_batches(self, batch_sampler: Sampler[list[int]] | Iterable[list[int]]) -> ImageLoader:
        """A loader of the same images in the batches of ``batch_sampler``, which gives lists of indices."""
        loader = ImageLoader(
            self.dataset,
            on_error=self.on_error,
            batch_sampler=batch_sampler,
            num_workers=self.num_workers,
            prefetch_factor=self.prefetch_factor,
            persistent_workers=self.persistent_workers,
            pin_memory=self.pin_memory,
        )
        loader.device = self.device
        return loader

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]  # DataLoader's own iterator type is private
        if self.persistent_workers and self._iterator is not None:
            torch.empty((), dtype=torch.int64).random_()  # new workers would draw their base seed here
        # Created here, not on the first `next`, so that two loaders read in turn draw in Dassl's order.
        return self._without_unreadable(super().__iter__())

    def _without_unreadable(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        before = len(self.skipped)
        for batch in batches:
            unreadable = batch.pop(_UNREADABLE, ()) if isinstance(batch, dict) else ()
            if self.instead is not None and (indices := self.instead(bool(unreadable))) is not None:
                batch = _collate(self._finish, self.dataset.__getitems__(indices))  # type: ignore[attr-defined]
                unreadable = batch.pop(_UNREADABLE, ())
            for path, reason in unreadable:
                if self.on_error == "stop":
                    del batches  # otherwise the traceback keeps the workers alive for 5 s
                    raise UnreadableImageError(path, f"{reason} (set DATASET.ON_ERROR to skip such images)")
                if path not in self.skipped:
                    self.skipped[path] = reason
                    if len(self.skipped) <= 3:
                        logger.warning(f"Skipped '{path}': {reason}")
            if batch or self.keep_empty_batches:
                yield self._finished(batch)
        if len(self.skipped) > before:
            logger.warning(f"Unreadable images skipped in total: {len(self.skipped)}")

    def _finished(self, batch: Batch) -> Batch:
        """The batch with its images normalised, on the device."""
        if self.device is not None:
            for key in ("img", "label"):
                if isinstance(batch.get(key), Tensor):
                    batch[key] = batch[key].to(self.device, non_blocking=True)
        if self._finish is not None and batch and batch["img"].dtype == torch.uint8:
            batch["img"] = self._finish(batch["img"])
        return batch


def build_data_loader(
    cfg: CfgNode,
    sampler_type: str = "SequentialSampler",
    data_source: Sequence[Datum] = (),
    batch_size: int = 64,
    n_domain: int = 0,
    n_ins: int = 2,
    tfm: Transform | Sequence[Transform] | None = None,
    is_train: bool = True,
    dataset_wrapper: Callable[..., Dataset[dict[str, Any]]] | None = None,
) -> ImageLoader:
    """Build a loader over ``data_source`` (Dassl's signature).

    In training an incomplete last batch is dropped, unless it is the only one.

    Args:
        sampler_type: name of the sampler; see :func:`dassl_lite.data.samplers.build_sampler` for ``n_domain, n_ins``.
        tfm: transform, or list of transforms, from a PIL image to a tensor.
        dataset_wrapper: class to use instead of DatasetWrapper.

    Raises:
        UserError: there are no images, a number is out of range, or the sampler or ``DATASET.ON_ERROR`` is unknown.
    """
    cfg = completed(cfg)
    if not data_source:
        raise UserError(f"dataset {cfg.DATASET.NAME} has no {'training' if is_train else 'test'} images to load")
    if batch_size < 1:
        raise UserError(f"DATALOADER batch size {batch_size} is out of range: 1 or more")
    wanted = cfg.DATALOADER.NUM_WORKERS
    if wanted < -1:
        raise UserError(f"DATALOADER.NUM_WORKERS {wanted} is out of range: 0 or more, or -1 for one for each core")
    if cfg.DATASET.ON_ERROR not in ("stop", "skip"):
        raise unknown("DATASET.ON_ERROR", cfg.DATASET.ON_ERROR, ("stop", "skip"))
    sampler = build_sampler(sampler_type, cfg, data_source, batch_size, n_domain, n_ins)
    drop_last = is_train and len(data_source) >= batch_size
    n_batches = -(-len(data_source) // batch_size)
    # No more workers than can run at once; the batches do not depend on their number.
    num_workers = min(usable_cores() if wanted == -1 else wanted, n_batches, usable_cores())
    num_workers, ahead = _within_shared_memory(num_workers, batch_size * _image_bytes(cfg, tfm, is_train))
    return ImageLoader(
        (dataset_wrapper or DatasetWrapper)(cfg, data_source, transform=tfm, is_train=is_train),
        on_error=cfg.DATASET.ON_ERROR,
        batch_size=batch_size,
        sampler=SeededSampler(sampler) if num_workers else sampler,
        num_workers=num_workers,
        prefetch_factor=ahead if num_workers else None,
        persistent_workers=is_train and num_workers > 0,
        drop_last=drop_last,
        pin_memory=cfg.USE_CUDA and torch.cuda.is_available(),
    )


def _image_bytes(cfg: CfgNode, tfm: Any, is_train: bool) -> int:
    """Bytes of an image on its way from a worker, if its transform makes it as large as INPUT.SIZE says."""
    versions = len(tfm) if isinstance(tfm, Sequence) else cfg.DATALOADER.K_TRANSFORMS if is_train else 1
    is_split = versions == 1 and split(tfm) is not None
    floats = versions * (not is_split) + cfg.DATALOADER.RETURN_IMG0
    return (4 * floats + is_split) * 3 * math.prod(cfg.INPUT.SIZE)


def _within_shared_memory(workers: int, batch_bytes: int) -> tuple[int, int]:
    """As many of the workers as shared memory has room for, and the number of batches that each loads ahead."""
    free = free_shared_memory()
    if free is None or not workers:
        return workers, 2
    batches = int(free * 0.75 / max(batch_bytes, 1))  # one of them is in use
    if batches > 2 * workers:
        return workers, 2
    fitting = min(workers, max(0, batches - 1))
    if fitting < workers:
        logger.warning(
            f"Shared memory ({SHARED_MEMORY}) has room for {fitting} of {workers} processes that load images; "
            "docker run --shm-size gives more"
        )
    return fitting, 1
