"""TrainerBase: a trainer's named models with their optimisers, schedules, files and training loop (Dassl's contract).

The loop, with the hooks that a trainer may override::

    before_train()
    for epoch in range(start_epoch, max_epoch):
        before_epoch()
        run_epoch()         # forward_backward(batch) for every batch
        after_epoch()       # validation, checkpoint
    after_train()           # test
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from dassl_lite.engine.contract.registered_models import RegisteredModels
from dassl_lite.engine.files import checkpoint
from dassl_lite.engine.files.class_rows import ClassRows
from dassl_lite.engine.parallel import distributed
from dassl_lite.utils import torchtools
from dassl_lite.utils.errors import UserError
from dassl_lite.utils.logger import get_logger

logger = get_logger(__name__)


class TrainerBase(RegisteredModels):
    """Registered models, their files and the loop that trains them."""

    scaler: Any = None  # torch.amp.GradScaler of a trainer in mixed precision: a checkpoint keeps its state

    def __init__(self) -> None:
        super().__init__()
        self._writer: Any = None
        self.start_epoch = self.max_epoch = 0
        self.best_result = float("-inf")
        self.history: list[dict[str, Any]] = []  # one row per evaluation: epoch, split and metrics
        self.results: dict[str, dict[str, Any]] = {}  # split -> metrics of its last evaluation
        self.seconds: dict[str, float] = {}  # phase -> wall time

    # ---- files --------------------------------------------------------------------------------------------------

    def save_model(
        self,
        epoch: int,
        directory: str | Path,
        is_best: bool = False,
        val_result: float | None = None,
        model_name: str = "",
    ) -> None:
        """Write ``<directory>/<name>/<model_name or model.pth.tar-epoch+1>`` for every registered model (rank 0)."""
        if distributed.rank():
            return
        run_state = checkpoint.run_state(self.best_result, self.history, self.scaler)
        for name in self.get_model_names():
            optim, sched = self._optims[name], self._scheds[name]
            state = {
                "state_dict": self._models[name].state_dict(),
                "epoch": epoch + 1,
                "optimizer": None if optim is None else optim.state_dict(),
                "scheduler": None if sched is None else sched.state_dict(),
                "val_result": val_result,
                "run_state": run_state,
                "meta": self.checkpoint_meta(),
            }
            folder = Path(directory) / name
            try:
                torchtools.save_checkpoint(state, str(folder), is_best=is_best, model_name=model_name)
            except (OSError, RuntimeError) as error:
                reason = checkpoint.why_not_written(error)
                raise UserError(
                    f"no checkpoint can be written to {folder} ({reason}); those written before stay. Make room "
                    "there and go on with --resume"
                ) from error

    def checkpoint_meta(self) -> dict[str, Any]:
        """What a checkpoint says of itself, as plain values: method, classes, backbone, config ..."""
        return {"trainer": type(self).__name__}

    def resume_model_if_exist(self, directory: str | Path) -> int:
        """Go on from the newest checkpoint that every registered model has; returns the epoch to start with."""
        names = self.get_model_names()
        newest = checkpoint.newest_common_epoch(directory, names)
        if newest is None:
            logger.info("No checkpoint found, train from scratch")
            return 0
        logger.info(f"Found checkpoint at {directory} (will resume training)")
        for name in names:
            path = checkpoint.find_file(directory, name, newest)
            state = torchtools.load_checkpoint(str(path))
            self._check_meta(state, path)
            stored, now = (state.get("meta") or {}).get("config", {}), self.checkpoint_meta().get("config", {})
            checkpoint.check_same_run(stored, now, path)
            checkpoint.restore(path, state, self._models[name], self._optims[name], self._scheds[name])
        self.best_result, self.history = checkpoint.restore_run_state(state, self.scaler)
        return int(state["epoch"])

    def load_model(self, directory: str | Path, epoch: int | None = None) -> None:
        """Load weights from a run's folder.

        Args:
            directory: holds one folder per registered model.
            epoch: which file; None means the best one, and where a run kept none, the last one.

        Raises:
            UserError: no such file, or one of another method, backbone or class count.
        """
        if not directory:
            logger.info("Note that load_model() is skipped as no pretrained model is given")
            return
        for name in self.get_model_names():
            path = checkpoint.find_file(directory, name, epoch)
            state = torchtools.load_checkpoint(str(path))
            self._check_meta(state, path)
            logger.info(f'Loading weights to {name} from "{path}" (epoch = {state.get("epoch")})')
            weights = self.adapt_state_dict(
                self._models[name], torchtools.strip_module_prefix(state["state_dict"]), state.get("meta") or {}, path
            )
            checkpoint.load_weights(self._models[name], weights, path)

    def adapt_state_dict(
        self, model: nn.Module, weights: dict[str, torch.Tensor], meta: dict[str, Any], path: Path
    ) -> dict[str, torch.Tensor]:
        """Fit loaded weights to this run: drop what is computed anew, pick the rows of this dataset's classes."""
        weights = {key: value for key, value in weights.items() if not checkpoint.is_recomputed(key)}
        rows = ClassRows.of(model)
        picked, match = rows.pick(weights, meta, self.target_classes(), path, strict=self.strict_classes)
        self.class_match = match or self.class_match
        return picked

    class_match: Any = None  # how the loaded checkpoint's classes matched this dataset's, where it has class rows
    strict_classes = False  # whether a class that the checkpoint lacks is an error

    def target_classes(self) -> Any:
        """The ClassList of the dataset at hand, or None where there is none."""
        return None

    def _check_meta(self, state: dict[str, Any], path: Path) -> None:
        """A checkpoint of another method or backbone is refused; one that does not say (the reference's) is taken."""
        meta, mine = state.get("meta") or {}, self.checkpoint_meta()["trainer"]
        if meta.get("trainer") not in (None, mine):
            raise UserError(f"{path} was saved with trainer '{meta['trainer']}', but this run has trainer '{mine}'")
        self.check_backbone(meta, path)

    def check_backbone(self, meta: dict[str, Any], path: Path) -> None:
        """Refuse a checkpoint of another backbone than this run's, where both say which."""
        mine = self.checkpoint_meta()
        if meta.get("backbone") is None or mine.get("backbone") is None:
            return
        # The digest is of the weights as they are held, so it tells a backbone only within one precision.
        key = "backbone_digest" if meta.get("precision") == mine.get("precision") else "backbone"
        if meta[key] != mine[key]:
            weights = "" if meta["backbone"] != mine["backbone"] else " with other weights"
            raise UserError(
                f"{path} was saved with backbone '{meta['backbone']}', but this run has backbone "
                f"'{mine['backbone']}'{weights}"
            )

    # ---- TensorBoard --------------------------------------------------------------------------------------------

    def init_writer(self, log_dir: str | Path) -> None:
        """Open a TensorBoard event file (once)."""
        if self._writer is None and distributed.rank() == 0:
            from dassl_lite.engine.contract.scalar_writer import (
                ScalarWriter,  # slow to import, so only where it is used
            )

            logger.info(f"Initialize tensorboard (log_dir={log_dir})")
            self._writer = ScalarWriter(str(log_dir))

    def close_writer(self) -> None:
        """Close the event file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def write_scalar(self, tag: str, scalar_value: float, global_step: int | None = None) -> None:
        """Write one value, if there is a writer."""
        if self._writer is not None:
            self._writer.add_scalar(tag, scalar_value, global_step)

    # ---- the loop -----------------------------------------------------------------------------------------------

    def train(self, start_epoch: int, max_epoch: int) -> None:
        """Run epochs ``start_epoch`` to ``max_epoch`` - 1; ``before_train`` may move ``self.start_epoch``."""
        self.start_epoch, self.max_epoch = start_epoch, max_epoch
        self.before_train()
        for self.epoch in range(self.start_epoch, self.max_epoch):  # noqa: B020
            self.before_epoch()
            self.run_epoch()
            self.after_epoch()
        self.after_train()

    def before_train(self) -> None:
        """Before the first epoch."""

    def after_train(self) -> None:
        """After the last epoch."""

    def before_epoch(self) -> None:
        """Before each epoch."""

    def after_epoch(self) -> None:
        """After each epoch."""

    def run_epoch(self) -> None:
        """One pass over the training data."""
        raise NotImplementedError

    def test(self, split: str | None = None) -> float:
        """Evaluate; returns the main metric."""
        raise NotImplementedError

    def parse_batch_train(self, batch: dict[str, Any]) -> Any:
        """What ``forward_backward`` needs of a training batch, on the device."""
        raise NotImplementedError

    def parse_batch_test(self, batch: dict[str, Any]) -> Any:
        """(input, label) of a test batch, on the device."""
        raise NotImplementedError

    def forward_backward(self, batch: dict[str, Any]) -> dict[str, float]:
        """One training step; returns the values to log, by name."""
        raise NotImplementedError

    def model_inference(self, input: Any) -> torch.Tensor:
        """Logits (B, K) for an input as ``parse_batch_test`` gives it."""
        raise NotImplementedError
