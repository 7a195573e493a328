"""What a trainer does with its validation and test sets (Dassl's contract)."""

from __future__ import annotations

import sys
import time
from operator import length_hint
from typing import Any

import torch
from tqdm import tqdm
from yacs.config import CfgNode

from dassl_lite.engine.contract.base import TrainerBase
from dassl_lite.engine.parallel import distributed
from dassl_lite.engine.parallel.shared_inference import outputs
from dassl_lite.utils.errors import UserError
from dassl_lite.utils.logger import get_logger

logger = get_logger(__name__)


class EvaluatingTrainer(TrainerBase):
    """Evaluation of the models as they are; several processes share its batches."""

    cfg: CfgNode
    device: torch.device
    evaluator: Any
    model: Any
    val_loader: Any
    test_loader: Any

    def evaluate_split(self, split: str | None = None) -> None:
        """``test``, and keep what one that was overridden returns."""
        value = self.test(split)
        if isinstance(value, float | int):
            self.results.setdefault(split or self.cfg.TEST.SPLIT, {"accuracy": float(value)})

    @torch.no_grad()
    def test(self, split: str | None = None) -> float:
        """Evaluate on "val" or "test" (``cfg.TEST.SPLIT`` if not given); returns the evaluator's first metric."""
        self.set_model_mode("eval")
        self.evaluator.reset()
        split = split or self.cfg.TEST.SPLIT
        loader = self.val_loader if split == "val" else self.test_loader
        if loader is None:
            raise UserError(f"{self.cfg.DATASET.NAME} has no {split} set to evaluate on")
        logger.info(f"Evaluate on the *{split}* set")
        start = time.perf_counter()
        shown: Any = {"desc": f"Evaluating {split}", "unit": "batch", "file": sys.stderr, "leave": False}
        shown |= {"total": length_hint(loader) or None, "disable": not self.shows_progress}
        for output, label in tqdm(outputs(loader, self._infer), **shown):
            self.evaluator.process(output, label)
        results = distributed.on_first(self._metrics)  # an evaluator may write files
        self.seconds[f"evaluate {split}"] = time.perf_counter() - start
        self.results[split] = results
        self.history.append({"epoch": self.epoch + 1, "split": split, **results})
        for name, value in results.items():
            self.write_scalar(f"{split}/{name}", value, self.epoch)
        return next(iter(results.values()))

    def _infer(self, batch: dict[str, Any]) -> tuple[Any, Any]:
        input, label = self.parse_batch_test(batch)
        return self.model_inference(input), label

    def _metrics(self) -> dict[str, Any]:
        """What the evaluator finds. A plug-in's may give tensors or NumPy's numbers; files take plain ones."""
        found = self.evaluator.evaluate()
        return {name: value.item() if hasattr(value, "item") else value for name, value in found.items()}

    def model_inference(self, input: Any) -> torch.Tensor:
        return self.model(input)

    def parse_batch_test(self, batch: dict[str, Any]) -> Any:
        return batch["img"].to(self.device), batch["label"].to(self.device)

    @property
    def shows_progress(self) -> bool:
        """Whether this process has progress bars."""
        return self.cfg.VERBOSE and distributed.rank() == 0
