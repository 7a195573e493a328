"""What a trainer knows of its data when it has built its loaders itself, as Dassl's semi-supervised ones do."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from dassl_lite.data import DatasetBase

_LOADERS = {"train_x": "train_loader_x", "train_u": "train_loader_u", "val": "val_loader", "test": "test_loader"}


def complete_data(trainer: Any) -> None:
    """Give a trainer what its ``build_data_loader`` has left out: loaders that it has not, the manager, classes."""
    for name in _LOADERS.values():
        if not hasattr(trainer, name):
            setattr(trainer, name, None)
    if not hasattr(trainer, "dm"):
        trainer.dm = _manager_of(trainer)
    for name in ("num_classes", "lab2cname", "num_source_domains"):
        if not hasattr(trainer, name):
            setattr(trainer, name, getattr(trainer.dm, name))


def _manager_of(trainer: Any) -> Any:
    """What stands for a DataManager: a dataset of the items in the loaders, if they tell them."""
    datasets = {part: getattr(getattr(trainer, name), "dataset", None) for part, name in _LOADERS.items()}
    items = {part: getattr(dataset, "data_source", None) for part, dataset in datasets.items()}
    dataset: Any = DatasetBase(**items) if items["train_x"] else SimpleNamespace(**items)
    return SimpleNamespace(
        dataset=dataset,
        num_classes=getattr(dataset, "num_classes", 0),
        lab2cname=getattr(dataset, "lab2cname", {}),
        num_source_domains=len(trainer.cfg.DATASET.SOURCE_DOMAINS),
        tfm_train=None,
        tfm_test=None,
    )
