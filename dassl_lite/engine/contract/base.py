"""TrainerBase: registered models, their checkpoints and the training loop (Dassl's contract).

The loop, with the hooks that a trainer may override::

    before_train()
    for epoch in range(start_epoch, max_epoch):
        before_epoch()
        run_epoch()         # forward_backward(batch) for every batch
        after_epoch()       # validation, checkpoint
    after_train()           # test

Shapes: B images, K classes.
"""

from __future__ import annotations

import inspect
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dassl_lite.data.classes import ClassList, ClassMatch
from dassl_lite.engine.contract.run_log import MAX_PENDING, RunLog
from dassl_lite.engine.contract.threads import threads_for
from dassl_lite.engine.contract.tracker_kinds import Trackers
from dassl_lite.engine.files import checkpoint
from dassl_lite.engine.files.checkpoint import CheckpointStore
from dassl_lite.engine.files.class_rows import ClassRows
from dassl_lite.engine.parallel import distributed
from dassl_lite.utils import torchtools
from dassl_lite.utils.errors import NotFiniteError, UserError, refusing_misfits, unknown
from dassl_lite.utils.logger import get_logger
from dassl_lite.utils.meters import is_costly_to_read, read_together

logger = get_logger(__name__)

Names = str | Iterable[str] | None  # names of registered models; None: all


class TrainerBase:
    """Registered models with their optimisers and schedules, their checkpoints, and the loop that trains them."""

    # Provided by subclasses.
    epoch_batches: Callable[[], Iterator[tuple[Any, ...]]]  # sets num_batches; yields forward_backward's arguments
    # One training step. Returns the values to log by name: numbers, or tensors, which are read only when logged.
    forward_backward: Callable[..., dict[str, Any]]
    parse_batch_train: Callable[..., Any]  # the parts of a batch that forward_backward needs, on the device
    parse_batch_test: Callable[[Any], Any]  # (input, label) of a test batch, on the device
    model_inference: Callable[[Any], Tensor]  # logits (B, K) for an input from parse_batch_test
    test: Callable[..., float]  # evaluate; returns the main metric
    run_log: RunLog  # logs the steps

    trains = True  # False: no epochs, fit() does all the learning
    fits_first = False  # True: fit() runs before the epochs
    epoch = 0
    batch_idx = 0
    num_batches = 0
    _pending_losses: list[tuple[int, int, Tensor]]  # epoch, batch, finiteness of losses still on the device
    scaler: Any = None  # torch.amp.GradScaler in mixed precision; its state is part of a checkpoint
    loaded_loss = ""  # "sigmoid" if the loaded checkpoint was trained with that loss
    class_match: ClassMatch | None = None  # how the loaded checkpoint's classes matched this dataset's
    strict_classes = False  # whether a class missing from the checkpoint is an error

    def __init__(self) -> None:
        self._models: OrderedDict[str, nn.Module] = OrderedDict()
        self._optims: OrderedDict[str, torch.optim.Optimizer | None] = OrderedDict()
        self._scheds: OrderedDict[str, Any] = OrderedDict()
        self._writer: Any = None
        self.trackers = Trackers(("tensorboard",))  # replaced by the run's own trackers
        self.start_epoch = self.max_epoch = 0
        self.best_result = float("-inf")
        self.history: list[dict[str, Any]] = []  # one row per evaluation: epoch, split and metrics
        self.results: dict[str, dict[str, Any]] = {}  # split -> metrics of its last evaluation
        self.seconds: dict[str, float] = {}  # phase -> wall time

    # ---- models -------------------------------------------------------------------------------------------------

    def register_model(
        self,
        name: str = "model",
        model: nn.Module | None = None,
        optim: torch.optim.Optimizer | None = None,
        sched: Any = None,
    ) -> None:
        """Register a model; ``name`` is also its checkpoint folder. A frozen one has no ``optim`` and ``sched``."""
        if "_models" not in self.__dict__:
            raise AttributeError("call super().__init__() before register_model()")
        if name in self._models:
            raise ValueError(f"a model named '{name}' is already registered; names must be unique")
        if model is None:
            raise ValueError(f"register_model('{name}') got no model")
        self._models[name], self._optims[name], self._scheds[name] = model, optim, sched

    def get_model_names(self, names: Names = None) -> list[str]:
        """All registered names, or ``names`` as a list after checking that each is registered."""
        if names is None:
            return list(self._models)
        wanted = [names] if isinstance(names, str) else list(names)
        for name in wanted:
            if name not in self._models:
                raise unknown("registered model", name, self._models)
        return wanted

    def set_model_mode(self, mode: str = "train", names: Names = None) -> None:
        """Set models to "train" or "eval" (also called "test") mode."""
        if mode not in ("train", "eval", "test"):
            raise unknown("model mode", mode, ("train", "eval", "test"))
        for name in self.get_model_names(names):
            self._models[name].train(mode == "train")

    def update_lr(self, names: Names = None) -> None:
        """Step the schedules; call this after the last batch of an epoch."""
        for name in self.get_model_names(names):
            if self._scheds[name] is not None:
                self._scheds[name].step()

    def get_current_lr(self, names: Names = None) -> float:
        """Learning rate of the first parameter group of the first model that has an optimiser."""
        optims = [self._optims[name] for name in self.get_model_names(names)]
        return next((optim.param_groups[0]["lr"] for optim in optims if optim is not None), 0.0)

    def model_zero_grad(self, names: Names = None) -> None:
        """Clear the gradients."""
        for optim in self._optimisers(names):
            optim.zero_grad()

    def model_backward(self, loss: Tensor) -> None:
        """Back-propagate a finite loss."""
        self.detect_anomaly(loss)
        self.compute_gradients(loss)

    def compute_gradients(self, loss: Tensor, keep_graph: bool = False) -> None:
        """Back-propagate a loss and average the gradients over the processes; float16 gradients are scaled.

        A method whose step uses several losses overrides this.

        Args:
            keep_graph: retain the graph, so that the loss can be back-propagated again.
        """
        loss.backward(retain_graph=keep_graph)
        distributed.average_gradients(self._models.values())

    def model_update(self, names: Names = None) -> None:
        """Step the optimisers."""
        for optim in self._optimisers(names):
            optim.step()

    def model_backward_and_update(self, loss: Tensor, names: Names = None) -> None:
        """Clear gradients, back-propagate, step."""
        self.model_zero_grad(names)
        self.model_backward(loss)
        self.model_update(names)

    def detect_anomaly(self, loss: Tensor) -> None:
        """Stop if the loss is infinite or NaN; earlier checkpoints are kept.

        Reading a loss on an accelerator waits for the device, so such a loss is only checked at the next log line, at
        the end of the epoch or before a checkpoint is saved.
        """
        if not is_costly_to_read(loss):
            if not (math.isfinite(loss.item()) if loss.numel() == 1 else torch.isfinite(loss).all()):
                raise self._loss_not_finite(self.epoch, self.batch_idx)
            return
        losses = self.__dict__.setdefault("_pending_losses", [])
        losses.append((self.epoch, self.batch_idx, torch.isfinite(loss.detach()).all()))
        if len(losses) >= MAX_PENDING:
            self.check_losses()

    def check_losses(self) -> None:
        """Stop if any loss since the last check is infinite or NaN; the first one is reported."""
        losses = self.__dict__.pop("_pending_losses", [])
        for (epoch, batch, _), finite in zip(losses, read_together([finite for *_, finite in losses]), strict=True):
            if not finite:
                raise self._loss_not_finite(epoch, batch)

    def require_finite_weights(self) -> None:
        """Stop if the epoch made a parameter infinite or NaN, before it is saved; the loss would only show it at the
        next step."""
        self.check_losses()
        parameters = [named for model in self._models.values() for named in model.named_parameters()]
        trained = [(name, parameter.detach()) for name, parameter in parameters if parameter.requires_grad]
        sums = read_together([parameter.sum() for _, parameter in trained])
        for (name, parameter), total in zip(trained, sums, strict=True):
            # A sum of finite numbers may overflow, but a sum with an infinity or a NaN is never finite.
            if not math.isfinite(total) and not torch.isfinite(parameter).all():
                raise self._not_finite(f"{name} is infinite or NaN after epoch {self.epoch + 1}")

    def _loss_not_finite(self, epoch: int, batch: int) -> NotFiniteError:
        return self._not_finite(f"the loss is infinite or NaN at epoch {epoch + 1}, batch {batch + 1}")

    def _not_finite(self, what: str) -> NotFiniteError:
        return NotFiniteError(
            f"{what}; lower OPTIM.LR (now {self.get_current_lr():g}) or use a wider precision. "
            "Earlier checkpoints are intact."
        )

    def _optimisers(self, names: Names) -> list[torch.optim.Optimizer]:
        return [optim for name in self.get_model_names(names) if (optim := self._optims[name]) is not None]

    # ---- checkpoints --------------------------------------------------------------------------------------------

    def save_model(
        self,
        epoch: int,
        directory: str | Path,
        is_best: bool = False,
        val_result: float | None = None,
        model_name: str = "",
    ) -> None:
        """Write ``<directory>/<name>/<model_name or model.pth.tar-epoch+1>`` for every registered model (rank 0)."""
        self.check_losses()
        run_state = checkpoint.run_state(self.best_result, self.history, self.results, self.scaler)
        if distributed.rank():
            return
        store = CheckpointStore(directory)
        for name in self.get_model_names():
            optim, sched = self._optims[name], self._scheds[name]
            state = {
                "state_dict": self._models[name].state_dict(),
                "epoch": epoch + 1,
                "optimizer": None if optim is None else optim.state_dict(),
                "scheduler": None if sched is None else sched.state_dict(),
                "val_result": val_result,
                "run_state": run_state,
                "seconds": self.seconds_so_far(),
                "meta": self.checkpoint_meta(),
            }
            if method_state := self.method_state():
                state["method_state"] = method_state
            store.save(name, state, is_best=is_best, model_name=model_name)

    def checkpoint_meta(self) -> dict[str, Any]:
        """A checkpoint's metadata as plain values: method, classes, backbone, config, ..."""
        return {"trainer": type(self).__name__, **self.describe_run()}

    def describe_run(self) -> dict[str, Any]:
        """A checkpoint's metadata about its data and config, as plain values."""
        return {}

    def seconds_so_far(self) -> dict[str, float]:
        """Wall time by phase, including the current one. Phases do not overlap; a resumed run adds to them."""
        return dict(self.seconds)

    def _seconds_elsewhere(self) -> float:
        """Wall time of all phases except training."""
        return sum(seconds for phase, seconds in self.seconds.items() if phase != "train")

    def _add_seconds(self, phase: str, seconds: float) -> None:
        """Add to the wall time of a phase."""
        self.seconds[phase] = self.seconds.get(phase, 0.0) + seconds

    def resume_model_if_exist(self, directory: str | Path) -> int:
        """Resume from the newest checkpoint that every registered model has; returns the epoch to start with."""
        names, store = self.get_model_names(), CheckpointStore(directory)
        newest = store.newest_common_epoch(names)
        if newest is None:
            logger.info("No checkpoint found, train from scratch")
            return 0
        logger.info(f"Found checkpoint at {directory} (will resume training)")
        current = self.checkpoint_meta()
        for name in names:
            path = store.find(name, newest)
            state = torchtools.load_run_checkpoint(str(path))
            with refusing_misfits(f"{path} cannot be resumed"):
                meta = state["meta"]
                checkpoint.check_origin(meta, current, path)
                checkpoint.check_precision(meta, current, path)
                checkpoint.check_same_run(meta.get("config", {}), current.get("config", {}), path)
            checkpoint.restore(path, state, self._models[name], self._optims[name], self._scheds[name])
        with refusing_misfits(f"{path} cannot be resumed"):
            self.best_result, self.history, self.results = checkpoint.restore_run_state(state, self.scaler)
            epoch, seconds_by_phase = checkpoint.progress(state, path)
            for phase, seconds in seconds_by_phase.items():
                self._add_seconds(phase, seconds)
            if self.method_state():
                self.restore_method_state(state["method_state"])
            return epoch

    def method_state(self) -> dict[str, Any]:
        """State needed to resume besides models, optimisers and schedules, as tensors and plain values."""
        return {}

    def restore_method_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `method_state` returned when the checkpoint was written."""

    def load_model(self, directory: str | Path, epoch: int | None = None) -> None:
        """Load weights from a run's folder.

        Args:
            directory: contains one folder per registered model.
            epoch: checkpoint epoch to load; None loads the best or, if the run kept none, the last.

        Raises:
            UserError: the file does not exist, or belongs to another method, backbone or number of classes.
        """
        if not directory:
            logger.info("Note that load_model() is skipped as no pretrained model is given")
            return
        for name in self.get_model_names():
            path = CheckpointStore(directory).find(name, epoch)
            state = torchtools.load_run_checkpoint(str(path))
            meta = state["meta"]
            with refusing_misfits(f"{path} does not say what it was trained on"):
                checkpoint.check_origin(meta, self.checkpoint_meta(), path)
            logger.info(f'Loading weights to {name} from "{path}" (epoch = {state.get("epoch")})')
            weights = torchtools.strip_module_prefix(state["state_dict"])
            weights = self.adapt_state_dict(self._models[name], weights, meta, path)
            checkpoint.load_weights(self._models[name], weights, path)

    def adapt_state_dict(
        self, model: nn.Module, weights: dict[str, Tensor], meta: dict[str, Any], path: Path
    ) -> dict[str, Tensor]:
        """Adapt loaded weights to this run: drop recomputed entries and pick the rows of this dataset's classes.

        A model that has to check or prepare something first defines ``prepare_to_load(weights, meta, path)``. Its
        ``optional_state`` names entries that only some runs of the method have, so either side may lack them.
        """
        if (prepare := getattr(model, "prepare_to_load", None)) is not None:
            with refusing_misfits(f'the weights in "{path}" do not fit the model'):
                prepare(weights, meta, path)
        weights = {key: value for key, value in weights.items() if not checkpoint.is_recomputed(key)}
        if optional := getattr(model, "optional_state", ()):
            optional_values = {key: value for key, value in model.state_dict().items() if key in optional}
            weights = optional_values | {
                key: value for key, value in weights.items() if key in optional_values or key not in optional
            }
        self.loaded_loss = meta.get("loss", "")
        rows = ClassRows.of(model)
        with refusing_misfits(f"{path} holds no class rows that can be picked"):
            picked, match = rows.pick(weights, meta, self.target_classes(), path, strict=self.strict_classes)
        self.class_match = match or self.class_match
        return picked

    def target_classes(self) -> ClassList | None:
        """The classes of the current dataset, if it has any."""
        return None

    # ---- TensorBoard and other trackers -------------------------------------------------------------------------

    def init_writer(self, log_dir: str | Path) -> None:
        """Open a TensorBoard event file (once), if the run is tracked there."""
        if self._writer is None and distributed.rank() == 0:
            self._writer = self.trackers.open_writer(log_dir)

    def close_writer(self) -> None:
        """Close the event file."""
        writer, self._writer = self._writer, None
        if writer is not None:
            try:
                writer.close()
            except OSError as error:
                self._disable_writer(error)

    def write_scalar(self, tag: str, scalar_value: float, global_step: int | None = None) -> None:
        """Write one value to the event file, if there is one, and to the run's trackers."""
        if self._writer is not None:
            try:
                self._writer.add_scalar(tag, scalar_value, global_step)
            except OSError as error:
                self._disable_writer(error)
        self.trackers.scalar(tag, scalar_value, global_step)

    def _disable_writer(self, error: OSError) -> None:
        """Warn that events can no longer be written; the run continues."""
        self._writer = None
        logger.warning(f"tensorboard no longer tracks this run ({error.strerror or error}); the run continues")

    # ---- the loop -----------------------------------------------------------------------------------------------

    def train(self, start_epoch: int | None = None, max_epoch: int | None = None) -> None:
        """Train epochs ``start_epoch`` to ``max_epoch`` - 1 (by default those set at construction), then test.

        ``before_train`` may move ``self.start_epoch`` to where a resumed run stopped.
        """
        self.start_epoch = self.start_epoch if start_epoch is None else start_epoch
        self.max_epoch = self.max_epoch if max_epoch is None else max_epoch
        self.check_training_data()
        if self.has_epochs() and not self._can_train():
            raise UserError(
                f"{type(self).__name__} has nothing to train: it defines no forward_backward; add --eval-only"
            )
        if self.fits_first or not self.has_epochs():
            start, before = time.perf_counter(), self._seconds_elsewhere()
            self.fit()
            seconds = time.perf_counter() - start - (self._seconds_elsewhere() - before)
            if not self.has_epochs():
                self.after_fit(seconds)
                return
            self._add_seconds("train", seconds)
        with self.epochs_context():
            self.before_train()
            self.epoch = max(self.start_epoch - 1, 0)  # the last epoch, in case none is left to train
            for self.epoch in range(self.start_epoch, self.max_epoch):  # noqa: B020
                self.before_epoch()
                self.run_epoch()
                self.after_epoch()
            self.after_train()

    def _can_train(self) -> bool:
        own_loop = any(
            getattr(type(self), name) is not getattr(TrainerBase, name) for name in ("run_epoch", "train", "fit")
        )
        return own_loop or hasattr(self, "forward_backward")

    def run_epoch(self) -> None:
        """One pass over the training data: a step per batch, with log lines and scalars."""
        self.set_model_mode("train")
        batches, log = self.epoch_batches(), self.run_log
        log.start_epoch(self.epoch, self.num_batches)
        with threads_for(self.step_cost()):
            for self.batch_idx, batch in enumerate(batches):
                log.data_ready()
                summary = self.forward_backward(*batch)
                if log.is_due(self.batch_idx):
                    self.check_losses()
                log.batch_done(self.batch_idx, summary, self.get_current_lr())
        self.check_losses()
        log.read()

    def has_epochs(self) -> bool:
        """Whether this run trains in epochs; overridden by methods for which that depends on the config."""
        return self.trains

    def step_cost(self) -> int | None:
        """Approximate multiplications in a step's forward pass, to choose the number of threads; None: unknown."""
        return None

    def epochs_context(self) -> AbstractContextManager[None]:
        """The context in which epochs run."""
        return nullcontext()

    def check_training_data(self) -> None:
        """Raise a UserError if there is nothing to train on."""

    def fit(self) -> None:
        """Learn from the whole training set; called if there are no epochs, or before them with ``fits_first``."""

    def after_fit(self, seconds: float) -> None:
        """Called after ``fit`` if there are no epochs; ``seconds`` is how long it took."""

    def before_train(self) -> None:
        """Called before the first epoch."""

    def after_train(self) -> None:
        """Called after the last epoch."""

    def before_epoch(self) -> None:
        """Called before each epoch."""

    def after_epoch(self) -> None:
        """Called after each epoch."""


def load_model_of(trainer: TrainerBase, directory: str | Path, epoch: int | None = None) -> None:
    """Call ``trainer.load_model``, whatever signature and default a paper gave it.

    Without an epoch, papers' overrides look for the best checkpoint even if the run kept none, so they are given the
    newest one then. An override with a parameter ``cfg`` gets the config.
    """
    if epoch is None and directory and type(trainer).load_model is not TrainerBase.load_model:
        store, names = CheckpointStore(directory), trainer.get_model_names()
        if not any((store.directory / name / checkpoint.BEST).is_file() for name in names):
            epoch = store.newest_common_epoch(names)
    parameters = inspect.signature(trainer.load_model).parameters
    arguments = {"epoch": epoch}
    if "cfg" in parameters:
        arguments["cfg"] = getattr(trainer, "cfg", None)
    if "epoch" not in parameters and not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        del arguments["epoch"]
    trainer.load_model(directory, **arguments)
