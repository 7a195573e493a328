"""A data manager for trainers that build their own loaders, as Dassl's semi-supervised trainers do."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from dassl_lite.data import DatasetBase

# Part of a dataset -> the trainer attribute that holds its loader.
LOADERS = {"train_x": "train_loader_x", "train_u": "train_loader_u", "val": "val_loader", "test": "test_loader"}


def manager_of(loaders: Mapping[str, Any], num_source_domains: int) -> SimpleNamespace:
    """Build an object with the attributes of a `DataManager` for the items that these loaders read.

    Args:
        loaders: part of the dataset ("train_x", "train_u", "val", "test") -> loader, or None.
        num_source_domains: number of source domains in the config.
    """
    items = {part: getattr(getattr(loader, "dataset", None), "data_source", None) for part, loader in loaders.items()}
    dataset: Any = DatasetBase(**items) if items["train_x"] else SimpleNamespace(**items)
    return SimpleNamespace(
        dataset=dataset,
        num_classes=getattr(dataset, "num_classes", 0),
        lab2cname=getattr(dataset, "lab2cname", {}),
        num_source_domains=num_source_domains,
        tfm_train=None,
        tfm_test=None,
    )
