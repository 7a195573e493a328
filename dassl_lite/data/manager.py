"""DataManager: the dataset named in the config, with its transforms and loaders (Dassl's contract)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tabulate import tabulate
from torch.utils.data import Dataset
from yacs.config import CfgNode

from dassl_lite.config import completed
from dassl_lite.data.dataset import DatasetBase, build_dataset
from dassl_lite.data.datum import Datum, Rows
from dassl_lite.data.feature_files import FeatureDataset
from dassl_lite.data.loaders import DatasetWrapper, ImageLoader, Item, build_data_loader
from dassl_lite.data.transforms import Transform, build_transform
from dassl_lite.utils.logger import get_logger

logger = get_logger(__name__)


class DataManager:
    """Builds the dataset, transforms and loaders of a run. No worker starts before a loader is read.

    Args:
        custom_tfm_train: training transform to use instead of the config's.
        custom_tfm_test: the same for validation and test.
        dataset_wrapper: class to use instead of DatasetWrapper.

    Attributes:
        dataset: the dataset.
        train_loader_x, train_loader_u, val_loader, test_loader: loaders; all but the first may be None, if the dataset
            has no such images.
        tfm_train, tfm_test: transforms from a PIL image to a tensor (3, H, W); None for INPUT.NO_TRANSFORM.
    """

    def __init__(
        self,
        cfg: CfgNode,
        custom_tfm_train: Transform | None = None,
        custom_tfm_test: Transform | None = None,
        dataset_wrapper: Callable[..., Dataset[Item]] | None = None,
    ) -> None:
        cfg = completed(cfg)
        self.dataset = build_dataset(cfg)
        self.tfm_train = _transform(cfg, self.dataset, True, custom_tfm_train)
        self.tfm_test = _transform(cfg, self.dataset, False, custom_tfm_test)
        self._dataset_wrapper = dataset_wrapper
        self._num_source_domains = len(cfg.DATASET.SOURCE_DOMAINS)
        node_x, node_u = cfg.DATALOADER.TRAIN_X, cfg.DATALOADER.TRAIN_U
        self.train_loader_x = self._loader(cfg, self.dataset.train_x, node_x)
        self.train_loader_u = self._optional_loader(cfg, self.dataset.train_u, node_x if node_u.SAME_AS_X else node_u)
        self.val_loader = self._optional_loader(cfg, self.dataset.val)
        self.test_loader = self._optional_loader(cfg, self.dataset.test)
        if cfg.VERBOSE:
            self.show_dataset_summary(cfg)

    def _optional_loader(
        self, cfg: CfgNode, items: Sequence[Datum] | None, node: CfgNode | None = None
    ) -> ImageLoader | None:
        return self._loader(cfg, items, node) if items else None

    def _loader(self, cfg: CfgNode, items: Sequence[Datum], node: CfgNode | None = None) -> ImageLoader:
        """A training loader with the settings in ``node`` (of cfg.DATALOADER), or a test loader if it is None."""
        if node is None:
            test = cfg.DATALOADER.TEST
            options = {"sampler_type": test.SAMPLER, "batch_size": test.BATCH_SIZE, "tfm": self.tfm_test}
        else:
            options = {"sampler_type": node.SAMPLER, "batch_size": node.BATCH_SIZE, "tfm": self.tfm_train}
            options |= {"n_domain": node.N_DOMAIN, "n_ins": node.N_INS}
        options |= {"is_train": node is not None, "dataset_wrapper": self._dataset_wrapper}
        loader = build_data_loader(cfg, data_source=items, **options)
        if getattr(self.dataset, "multi_label", False) and isinstance(loader.dataset, DatasetWrapper):
            loader.dataset.multi_hot = self.num_classes
        return loader

    @property
    def num_classes(self) -> int:
        return self.dataset.num_classes

    @property
    def num_source_domains(self) -> int:
        return self._num_source_domains

    @property
    def lab2cname(self) -> dict[int, str]:
        return self.dataset.lab2cname

    def show_dataset_summary(self, cfg: CfgNode) -> None:
        """Log a table of the dataset's classes and images."""
        rows: list[list[Any]] = [["Dataset", cfg.DATASET.NAME]]
        if cfg.DATASET.SOURCE_DOMAINS:
            rows.append(["Source", cfg.DATASET.SOURCE_DOMAINS])
        if cfg.DATASET.TARGET_DOMAINS:
            rows.append(["Target", cfg.DATASET.TARGET_DOMAINS])
        rows.append(["# classes", f"{self.num_classes:,}"])
        if getattr(self.dataset, "multi_label", False):
            images = [item for part in (self.dataset.train_x, self.dataset.test) for item in part or ()]
            rows.append(["# classes per image", f"{sum(len(item.labels) for item in images) / len(images):.1f}"])
        for name in ("train_x", "train_u", "val", "test"):
            if items := getattr(self.dataset, name):
                rows.append([f"# {name}", f"{len(items):,}"])
        logger.info(tabulate(rows))


def validates_on_test(dataset: DatasetBase) -> bool:
    """Whether some validation images are also test images, as in ImageNet: selection then sees the test set."""
    if isinstance(dataset.val, Rows) and isinstance(dataset.test, Rows):
        return dataset.val.folder == dataset.test.folder
    return bool({item.impath for item in dataset.val or ()} & {item.impath for item in dataset.test or ()})


def _transform(cfg: CfgNode, dataset: DatasetBase, is_train: bool, custom: Transform | None) -> Transform | None:
    if isinstance(dataset, FeatureDataset):
        return dataset.transform(is_train)
    if custom is None:
        return build_transform(cfg, is_train=is_train)
    logger.info(f"* Using custom transform for {'training' if is_train else 'testing'}")
    return custom
