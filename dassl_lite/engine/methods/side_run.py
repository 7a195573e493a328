"""Side runs: another method, fitted in memory to features that a trainer already has.

    fitted = side_run_class(TaskRes)(owner, cfg, data).fitted()      # a TaskRes; fitted.head maps features to logits

A side run shares the owner's CLIP, dataset and text features. It has no validation or test images and saves no
checkpoint, but a method's ``fit`` may still write into ``cfg.OUTPUT_DIR``.

Shapes: V views, N images, D feature width, K classes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from yacs.config import CfgNode

from dassl_lite.data import Datum
from dassl_lite.data.feature_cache import Features
from dassl_lite.data.feature_cache.loader import FeatureLoader
from dassl_lite.data.loaders import build_data_loader
from dassl_lite.engine.methods.feature_source import FeatureSet, FeatureSource
from dassl_lite.engine.methods.feature_trainer import FeatureTrainer
from dassl_lite.models.prompts import TextRows
from dassl_lite.utils.seeding import random_streams_kept, set_random_seed


class _NoLog:
    """Replaces a `RunLog`: nothing is logged, so no value has to be read from an accelerator."""

    def is_due(self, batch_idx: int) -> bool:
        return False

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args: None


class _SideRun(FeatureTrainer):
    """A mixin that overrides what a method's trainer does differently in a side run.

    Args:
        owner: the trainer whose features and CLIP are used.
        cfg: config of this method.
        data: training features (V, N, D) and labels (N,); None to only build the head, for loading weights into it.
    """

    def __init__(self, owner: FeatureTrainer, cfg: CfgNode, data: FeatureSet | None = None) -> None:
        empty = FeatureSet(torch.zeros(1, 1, owner.clip.embed_dim), torch.zeros(1, dtype=torch.int64))
        self.owner, self.data = owner, data or empty
        self.run_log: Any = _NoLog()
        self.descriptions = owner.descriptions
        with self.own_streams():
            super().__init__(cfg)

    @contextmanager
    def own_streams(self) -> Iterator[None]:
        """A context with random streams seeded by the run's seed; the owner's streams are not affected."""
        with random_streams_kept():
            set_random_seed(max(self.owner.cfg.SEED, 0))
            yield

    def build_data_loader(self) -> None:
        self.dm = copy.copy(self.owner.dm)
        self.num_classes, self.num_source_domains = self.dm.num_classes, self.dm.num_source_domains
        self.lab2cname = self.dm.lab2cname
        self.dm.val_loader = self.dm.test_loader = self.dm.train_loader_u = None
        names, node = self.lab2cname, self.cfg.DATALOADER.TRAIN_X
        items = [
            Datum(str(row), label=label, classname=names[label]) for row, label in enumerate(self.data.labels.tolist())
        ]
        images = build_data_loader(self.cfg, node.SAMPLER, items, node.BATCH_SIZE, node.N_DOMAIN, node.N_INS)
        features = Features(self.data.views, torch.ones(len(items), dtype=torch.bool))
        self.train_loader_x = FeatureLoader(images, items, lambda: features, self.device, lambda: self.epoch)

    def load_clip(self) -> Any:
        self.precision = self.owner.precision
        return self.owner.clip

    def _feature_source(self) -> FeatureSource:
        return self.owner.features

    def _use_features(self) -> None:
        """Features are already in use."""

    def text_rows(self, *, verbatim: bool = False, projected: bool = True) -> TextRows:
        cache = vars(self.owner).setdefault("side_run_texts", {})
        key = (*self.templates(), verbatim, projected)
        if key not in cache:
            cache[key] = super().text_rows(verbatim=verbatim, projected=projected)
        return TextRows(cache[key].values.clone(), cache[key].counts)

    @contextmanager
    def epochs_context(self) -> Iterator[None]:
        yield

    def before_train(self) -> None:
        """Nothing to resume."""

    def after_epoch(self) -> None:
        """Nothing to save."""

    def after_train(self) -> None:
        self.require_finite_weights()

    def after_fit(self, seconds: float) -> None:
        """Nothing to save."""

    def fitted(self) -> Any:
        """Train, and return this run."""
        with self.own_streams():
            self.train()
        self.set_model_mode("eval")
        return self


_kinds: dict[type[FeatureTrainer], type[_SideRun]] = {}


def side_run_class(method: type[FeatureTrainer]) -> type[_SideRun]:
    """The class of a method's side runs; see `_SideRun` for its arguments."""
    if method not in _kinds:
        _kinds[method] = type(method.__name__, (_SideRun, method), {"config_node": method.node_name()})
    return _kinds[method]
