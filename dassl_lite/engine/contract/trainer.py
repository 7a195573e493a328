"""TrainerX and TrainerXU: one pass over labelled, or labelled and unlabelled, data (Dassl's contract).

The other trainers of the contract can be had from here too, as in Dassl.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

from dassl_lite.engine.contract.base import TrainerBase
from dassl_lite.engine.contract.simple_net import SimpleNet
from dassl_lite.engine.contract.simple_trainer import SimpleTrainer
from dassl_lite.utils.errors import UserError

__all__ = ["SimpleNet", "SimpleTrainer", "TrainerBase", "TrainerX", "TrainerXU"]


class TrainerX(SimpleTrainer):
    """A trainer on labelled data."""

    def run_epoch(self) -> None:
        self.num_batches = len(self.train_loader_x)
        self._run_batches(self.train_loader_x)

    def parse_batch_train(self, batch: dict[str, Any]) -> Any:
        """(image, label, domain) on the device."""
        return batch["img"].to(self.device), batch["label"].to(self.device), batch["domain"].to(self.device)


class TrainerXU(SimpleTrainer):
    """A trainer on labelled and unlabelled data: ``forward_backward(batch_x, batch_u)``."""

    def run_epoch(self) -> None:
        if self.train_loader_u is None:
            raise UserError(f"{self.cfg.TRAINER.NAME} needs unlabelled images, but {self.cfg.DATASET.NAME} has none")
        len_x, len_u = len(self.train_loader_x), len(self.train_loader_u)
        counted = self.cfg.TRAIN.COUNT_ITER
        lengths = {"train_x": len_x, "train_u": len_u, "smaller_one": min(len_x, len_u)}
        self.num_batches = lengths[counted]
        pairs = zip(_endless(self.train_loader_x), _endless(self.train_loader_u), strict=False)
        self._run_batches(itertools.islice(pairs, self.num_batches))

    def _step(self, batch: Any) -> dict[str, float]:
        return self.forward_backward(*batch)

    def parse_batch_train(self, batch_x: dict[str, Any], batch_u: dict[str, Any]) -> Any:  # type: ignore[override]
        """(labelled image, its label, unlabelled image) on the device."""
        return batch_x["img"].to(self.device), batch_x["label"].to(self.device), batch_u["img"].to(self.device)


def _endless(loader: Iterable[Any]) -> Iterator[Any]:
    """Batches of ``loader``, which starts over when it ends."""
    # Its first round starts here, not with the first batch: two loaders draw random numbers in the reference's order.
    return itertools.chain(iter(loader), itertools.chain.from_iterable(itertools.repeat(loader)))
