"""SimpleTrainer, TrainerX and TrainerXU: config-built trainers that third parties subclass (Dassl's contract).

    SimpleTrainer    data, model, evaluator, checkpoints, test
    TrainerX         labelled data: forward_backward(batch)
    TrainerXU        labelled and unlabelled data: forward_backward(batch_x, batch_u)

As in Dassl, the other classes of the contract can be imported from here too.

Shapes: B images, K classes.
"""

from __future__ import annotations

import datetime
import itertools
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import cached_property
from operator import length_hint
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from tqdm import tqdm
from yacs.config import CfgNode

import dassl_lite
from dassl_lite.config import completed, to_dict
from dassl_lite.data import DataManager, published_name
from dassl_lite.data.classes import ClassList
from dassl_lite.data.feature_files import FeatureDataset
from dassl_lite.data.manager import validates_on_test
from dassl_lite.engine.contract.base import TrainerBase, load_model_of
from dassl_lite.engine.contract.graceful_stop import GracefulStop, stops_at_once
from dassl_lite.engine.contract.keys import Key, check_keys, declare_keys, idle_keys
from dassl_lite.engine.contract.loaders import LOADERS, manager_of
from dassl_lite.engine.contract.run_log import RunLog
from dassl_lite.engine.contract.simple_net import SimpleNet
from dassl_lite.engine.contract.trackers import Trackers, tracked_run
from dassl_lite.engine.files import checkpoint
from dassl_lite.engine.files.checkpoint import CheckpointStore
from dassl_lite.engine.files.results import peak_memory
from dassl_lite.engine.parallel import distributed
from dassl_lite.engine.parallel.shared_inference import outputs
from dassl_lite.evaluation import build_evaluator
from dassl_lite.optim import build_lr_scheduler, build_optimizer
from dassl_lite.utils import count_num_param, devices, load_pretrained_weights
from dassl_lite.utils.env import environment
from dassl_lite.utils.errors import MultiLabelError, UserError
from dassl_lite.utils.logger import get_logger

__all__ = ["SimpleNet", "SimpleTrainer", "TrainerBase", "TrainerX", "TrainerXU"]

logger = get_logger(__name__)


class SimpleTrainer(TrainerBase):
    """A trainer built from a frozen config: data, model, evaluator, checkpoints, test.

    A subclass provides ``forward_backward`` and usually ``build_model``, which registers its models.
    """

    keys: ClassVar[Sequence[Key]] = ()  # the trainer's own config keys, under its node of cfg.TRAINER; see `keys.key`
    config_node = ""  # name of that node; defaults to the class name
    takes_features = False  # whether it can train on a feature file without images
    takes_multi_label = False  # whether it can train on images with several classes
    is_transductive = False  # whether a prediction depends on the other (unlabelled) test images
    needs_vit = False  # whether it modifies the image encoder in a way that only open_clip's ViTs support
    uses_shots = True  # whether the result depends on the training images
    standalone = True  # False: it only prepares a file for another method; sweeps over all methods skip it

    # Set by build_data_loader, which a subclass may override; attributes that it does not set keep these defaults.
    dm: Any  # a DataManager, or an object with its attributes
    train_loader_x: Any = None
    train_loader_u: Any = None
    val_loader: Any = None
    test_loader: Any = None
    # Defaults live here, not in __init__, because some trainers replace it and call only TrainerBase's.
    model: Any = None
    tuned_on = "nothing"  # what hyper-parameters were chosen on: "val", "leave_one_out", "cross_validation"
    _saved_at = float("inf")  # time of the last checkpoint
    _elsewhere_before = 0.0  # seconds of other phases before training
    _stop = GracefulStop()  # replaced during training

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__()
        cfg = completed(cfg)
        self.check_own_keys(cfg)
        self.check_cfg(cfg)
        self.cfg = cfg
        self.device = devices.pick(cfg.USE_CUDA)
        self.max_epoch = cfg.OPTIM.MAX_EPOCH
        self.output_dir = cfg.OUTPUT_DIR
        self.build_data_loader()
        if not hasattr(self, "dm"):
            loaders = {part: getattr(self, attribute) for part, attribute in LOADERS.items()}
            self.dm = manager_of(loaders, len(cfg.DATASET.SOURCE_DOMAINS))
        self.num_classes: int = getattr(self, "num_classes", self.dm.num_classes)
        self.num_source_domains: int = getattr(self, "num_source_domains", self.dm.num_source_domains)
        self.lab2cname: dict[int, str] = getattr(self, "lab2cname", self.dm.lab2cname)
        self.check_dataset()
        if cfg.TEST.FINAL_MODEL == "best_val" and self.val_loader is None:
            raise UserError(
                f"TEST.FINAL_MODEL is best_val, but {cfg.DATASET.NAME} has no validation set; use last_step"
            )
        self.build_model()
        self.evaluator = build_evaluator(cfg, lab2cname=self.lab2cname, multi_label=self.is_multi_label)

    # ---- config -------------------------------------------------------------------------------------------------

    @classmethod
    def node_name(cls) -> str:
        """Name of the node of ``cfg.TRAINER`` that holds the trainer's own keys."""
        return cls.config_node or cls.__name__

    @classmethod
    def extend_cfg(cls, cfg: CfgNode) -> None:
        """Add the trainer's own keys to a config; Dassl's trainers override this to declare them."""
        declare_keys(cls, cfg, cls.node_name())

    @classmethod
    def check_own_keys(cls, cfg: CfgNode) -> None:
        """Raise a UserError if a value breaks its key's rule."""
        check_keys(cls, cfg, cls.node_name())

    def idle_keys(self) -> dict[str, str]:
        """Config keys, or groups of them, that have no effect in this run, each with the reason; call it once built.

        A user who has set one gets a warning when the run starts.
        """
        idle = idle_keys(self, self.node_name())
        if self.has_epochs() and not self.compiles_steps:
            idle["TRAIN.COMPILE"] = f"steps of {self.cfg.TRAINER.NAME} cannot be compiled"
        return idle

    @property
    def compiles_steps(self) -> bool:
        """Whether TRAIN.COMPILE has an effect."""
        return False

    @property
    def method_cfg(self) -> CfgNode:
        """The trainer's own config keys."""
        return self.cfg.TRAINER[self.node_name()]

    def check_cfg(self, cfg: CfgNode) -> None:
        """Raise a UserError for values that this method does not support; called before anything is built."""

    # ---- building -----------------------------------------------------------------------------------------------

    def build_data_loader(self) -> None:
        """Build the dataset and its loaders."""
        dm = DataManager(self.cfg)
        if isinstance(dm.dataset, FeatureDataset) and not self.takes_features:
            name = self.cfg.TRAINER.NAME
            raise UserError(f"{name} needs images, but dataset {self.cfg.DATASET.NAME} holds features only")
        self.dm = dm
        self.train_loader_x = dm.train_loader_x
        self.train_loader_u = dm.train_loader_u
        if distributed.world_size() > 1:
            self.train_loader_x = distributed.shared_loader(dm.train_loader_x)
        self.val_loader, self.test_loader = dm.val_loader, dm.test_loader
        self.num_classes, self.num_source_domains = dm.num_classes, dm.num_source_domains
        self.lab2cname = dm.lab2cname

    @property
    def is_multi_label(self) -> bool:
        """Whether images of the current dataset can have several classes."""
        return getattr(self.dm.dataset, "multi_label", False)

    @property
    def main_metric(self) -> str:
        """The metric that is reported first and selects the epoch, in percent."""
        return "mAP" if self.is_multi_label else "accuracy"

    @property
    def method_label(self) -> str:
        """The method's label in tables: its name and anything else that a reader has to know."""
        return f"{self.cfg.TRAINER.NAME} (transductive)" if self.is_transductive else str(self.cfg.TRAINER.NAME)

    def check_dataset(self) -> None:
        """Raise a UserError for a dataset that the method does not support; called before a model is built."""
        if self.is_multi_label and not self.takes_multi_label:
            name, dataset = self.cfg.TRAINER.NAME, self.cfg.DATASET.NAME
            raise MultiLabelError(f"{name} needs one class per image, but dataset {dataset} is multi-label")
        if self.cfg.TEST.TRANSDUCTIVE and not self.is_transductive:
            name = self.cfg.TRAINER.NAME
            raise UserError(
                f"TEST.TRANSDUCTIVE needs a method on CLIP's image features, which {name} is not; leave it out"
            )

    def build_model(self) -> None:
        """Build and register the models with their optimisers and schedules; by default, a SimpleNet."""
        cfg = self.cfg
        logger.info("Building model")
        self.model = SimpleNet(cfg, cfg.MODEL, self.num_classes)
        if cfg.MODEL.INIT_WEIGHTS:
            load_pretrained_weights(self.model, cfg.MODEL.INIT_WEIGHTS)
        self.model.to(self.device)
        logger.info(f"# params: {count_num_param(self.model):,}")
        self.optim: Any = build_optimizer(self.model, cfg.OPTIM)
        self.sched: Any = build_lr_scheduler(self.optim, cfg.OPTIM)
        self.register_model("model", self.model, self.optim, self.sched)

    def target_classes(self) -> ClassList | None:
        return getattr(self.dm.dataset, "classes", None)

    def describe_run(self) -> dict[str, Any]:
        classes = self.target_classes()
        return {
            "version": dassl_lite.__version__,
            "dataset": self.cfg.DATASET.NAME,
            "classnames": list(classes.names) if classes else [],
            "classids": list(classes.ids) if classes else [],
            "config": to_dict(self.cfg),
        }

    def has_state(self) -> bool:
        """Whether there is anything to save and load."""
        return any(model.state_dict() for model in self._models.values())

    # ---- training -----------------------------------------------------------------------------------------------

    def needs_training_images(self) -> bool:
        """Whether this run learns from training images."""
        return self.uses_shots

    def check_training_data(self) -> None:
        # In a test-only dataset, the training set consists of test images.
        if self.needs_training_images() and getattr(self.dm.dataset, "test_only", False):
            raise UserError(
                f"{self.cfg.DATASET.NAME} has no training images; train on another dataset, then evaluate that run on "
                "this one with tools/eval.py"
            )

    def after_fit(self, seconds: float) -> None:
        if self.has_state():
            self.save_model(0, self.output_dir)
            self.seconds["train"] = seconds
            logger.info("Finish training")
        if not self.cfg.TEST.NO_TEST:
            self.evaluate_split()

    @contextmanager
    def epochs_context(self) -> Iterator[None]:
        if self.selects_on_test:
            logger.warning(
                f"TEST.FINAL_MODEL best_val selects the epoch on validation images that are also test images of "
                f"{self.cfg.DATASET.NAME}, as the reference does: the accuracy is not on unseen images (results.json "
                "says selected_on_test). Use last_step to avoid that"
            )
        try:
            with GracefulStop() as self._stop:
                yield
        finally:  # keep what was logged even if the run is stopped
            if "run_log" in self.__dict__:
                self.run_log.close()
            self.close_writer()

    def before_train(self) -> None:
        self.start_epoch = self.resume_model_if_exist(self.cfg.RESUME or self.output_dir)
        distributed.same_random_states()  # also a barrier: no process writes files that another still has to read
        self.init_writer(Path(self.output_dir) / "tensorboard")
        self.time_start = time.time() - self.seconds.get("train", 0.0)  # a resumed run adds to its training time
        self._elsewhere_before = self._seconds_elsewhere()
        self._saved_at = time.monotonic()
        self.__dict__.pop("run_log", None)

    def init_writer(self, log_dir: str | Path) -> None:
        if (
            not self.trackers.started and distributed.rank() == 0
        ):  # when started by a user's script rather than by our tools
            self.trackers = Trackers(self.cfg.LOG.TRACKERS)
            self.trackers.start(tracked_run(self.cfg), self.cfg.RESUME or self.output_dir)
        super().init_writer(log_dir)

    def after_epoch(self) -> None:
        self.require_finite_weights()
        self.run_log.end_epoch(self.get_current_lr())
        last = self.epoch + 1 == self.max_epoch
        overdue = time.monotonic() - self._saved_at > self.cfg.TRAIN.CHECKPOINT_SECONDS
        distributed.meet("the end of an epoch")
        votes = distributed.process_group().gather((self._stop.requested, overdue))
        stops, overdue = (any(answers) for answers in zip(*votes, strict=True))  # all processes save, or none
        frequency = self.cfg.TRAIN.CHECKPOINT_FREQ
        if not self.cfg.TEST.NO_TEST and self.cfg.TEST.FINAL_MODEL == "best_val":
            with self.deployed():
                result = self.test(split="val")
                if result > self.best_result:
                    self.best_result = result
                    self.save_model(self.epoch, self.output_dir, val_result=result, model_name=checkpoint.BEST)
        if last or (frequency > 0 and (self.epoch + 1) % frequency == 0):
            self.save_model(self.epoch, self.output_dir)
            CheckpointStore(self.output_dir).drop_rolling(self.get_model_names())
        elif stops or overdue:
            self._save_rolling()
        if stops and not last:
            raise KeyboardInterrupt(f"stopped after epoch {self.epoch + 1}; resume with --resume")

    def deployed(self) -> AbstractContextManager[None]:
        """A context in which the models are what the run would produce if it ended now.

        This changes nothing unless a method averages its epochs.
        """
        return nullcontext()

    def _save_rolling(self) -> None:
        """Save a checkpoint to resume from; the next one replaces it."""
        self.save_model(self.epoch, self.output_dir)
        CheckpointStore(self.output_dir).mark_rolling(self.get_model_names(), self.epoch + 1)
        self._saved_at = time.monotonic()

    def seconds_so_far(self) -> dict[str, float]:
        if "time_start" not in vars(self):
            return dict(self.seconds)
        within = self._seconds_elsewhere() - self._elsewhere_before
        return {**self.seconds, "train": time.time() - self.time_start - within}

    def after_train(self) -> None:
        self.run_log.close()
        self.seconds.update(self.seconds_so_far())
        logger.info("Finish training")
        distributed.wait()  # until rank 0 has written its files
        if not self.cfg.TEST.NO_TEST:
            if self.cfg.TEST.FINAL_MODEL == "best_val":
                logger.info("Deploy the model with the best val performance")
                load_model_of(self, self.output_dir)
            else:
                logger.info("Deploy the last-epoch model")
            with stops_at_once():  # all epochs are already saved
                self.evaluate_split()
        elapsed = datetime.timedelta(seconds=round(time.time() - self.time_start))
        logger.info(f"Elapsed: {elapsed}")
        self.close_writer()

    @cached_property
    def run_log(self) -> RunLog:  # type: ignore[override]  # set on first use
        """The run's output; created on first use, because a trainer may override ``before_train``."""
        frequency = self.cfg.TRAIN.PRINT_FREQ
        return RunLog(self.start_epoch, self.max_epoch, frequency, self.shows_progress, self.write_scalar)

    @property
    def shows_progress(self) -> bool:
        """Whether this process shows progress bars."""
        return self.cfg.VERBOSE and distributed.rank() == 0

    # ---- evaluation ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def test(self, split: str | None = None) -> float:
        """Evaluate on "val" or "test" (default: ``cfg.TEST.SPLIT``); returns the evaluator's first metric.

        Several processes share the batches. A model may define a context manager ``evaluating()``; its parameters do
        not change within it.
        """
        self.set_model_mode("eval")
        self.evaluator.reset()
        split = split or self.cfg.TEST.SPLIT
        loader = self.val_loader if split == "val" else self.test_loader
        if loader is None:
            raise UserError(f"{self.cfg.DATASET.NAME} has no {split} set to evaluate on")
        logger.info(f"Evaluate on the *{split}* set")
        start, before = time.perf_counter(), self._seconds_elsewhere()
        bar: Any = {"desc": f"Evaluating {split}", "unit": "batch", "file": sys.stderr, "leave": False}
        bar |= {"total": length_hint(loader) or None, "disable": not self.shows_progress}
        with ExitStack() as contexts:
            for model in self._models.values():
                if callable(evaluating := getattr(model, "evaluating", None)):
                    contexts.enter_context(evaluating())
            for output, label in tqdm(self.inferred(loader, split), **bar):
                self.evaluator.process(output, label)
        results = distributed.on_first(self._metrics)  # an evaluator may write files
        features = self._seconds_elsewhere() - before
        self._add_seconds(f"evaluate {split}", time.perf_counter() - start - features)
        self.results[split] = results
        self.history.append({"epoch": self.epoch + 1, "split": split, **results})
        for name, value in results.items():
            self.write_scalar(f"{split}/{name}", value, self.epoch)
        return next(iter(results.values()))

    def evaluate_split(self, split: str | None = None) -> None:
        """Call ``test`` and record the value that an overridden one returns."""
        value = self.test(split)
        if isinstance(value, float | int):
            self.results.setdefault(split or self.cfg.TEST.SPLIT, {"accuracy": float(value)})

    def inferred(self, loader: Any, split: str) -> Iterator[tuple[Any, Any]]:
        """Yield (logits, label) for every batch of a split's loader."""
        return outputs(loader, self._infer)

    def _infer(self, batch: dict[str, Any]) -> tuple[Any, Any]:
        input, label = self.parse_batch_test(batch)
        return self.model_inference(input), label

    def _metrics(self) -> dict[str, Any]:
        """The evaluator's metrics as plain numbers; a plug-in's evaluator may return tensors or NumPy numbers."""
        metrics = self.evaluator.evaluate()
        return {name: value.item() if hasattr(value, "item") else value for name, value in metrics.items()}

    def model_inference(self, input: Any) -> Tensor:
        return self.model(input)

    def parse_batch_test(self, batch: dict[str, Any]) -> Any:
        return batch["img"].to(self.device), batch["label"].to(self.device)

    @property
    def selects_on_test(self) -> bool:
        """Whether the final epoch is selected by its accuracy on test images."""
        test = self.cfg.TEST
        selects = self.has_epochs() and test.FINAL_MODEL == "best_val" and not test.NO_TEST
        return selects and validates_on_test(self.dm.dataset)

    def _tuned_on(self) -> str:
        """What the epoch or hyper-parameters were chosen on: "test", "val", the method's ``tuned_on``, or "nothing"."""
        if self.selects_on_test:
            return "test"
        selects = self.has_epochs() and self.cfg.TEST.FINAL_MODEL == "best_val" and bool(self.dm.dataset.val)
        return "val" if selects else self.tuned_on

    def run_results(self) -> dict[str, Any]:
        """The content of ``results.json``: the run's settings, metrics and costs, as plain values."""
        data, cfg = self.dm.dataset, self.cfg
        splits = {"train": data.train_x, "val": data.val, "test": data.test}
        return {
            "trainer": cfg.TRAINER.NAME,
            "method": self.method_label,
            "transductive": self.is_transductive,  # if so, the test images were seen, unlabelled, before prediction
            "dataset": published_name(cfg),
            "backbone": self.checkpoint_meta().get(
                "backbone", cfg.MODEL.BACKBONE.NAME
            ),  # a feature file names its own backbone
            "num_shots": cfg.DATASET.NUM_SHOTS,
            "seed": cfg.SEED,
            "num_classes": self.num_classes,
            "split_sizes": {name: len(items) if items else 0 for name, items in splits.items()},
            "fewshot_digest": getattr(data, "fewshot_digest", ""),
            "metrics": self.results,
            "selected_on_test": self.selects_on_test,  # if so, the metrics are not on unseen images
            "tuned_on": self._tuned_on(),
            "trainable_parameters": sum(
                parameter.numel()
                for model in self._models.values()
                for parameter in model.parameters()
                if parameter.requires_grad
            ),
            "per_class": getattr(self.evaluator, "per_class", []),
            "history": self.history,
            "seconds": self.seconds,
            "peak_memory": peak_memory(),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "environment": environment(),
            "config": to_dict(cfg),
        }


class TrainerX(SimpleTrainer):
    """A trainer for labelled data."""

    def epoch_batches(self) -> Iterator[tuple[Any, ...]]:
        self.num_batches = len(self.train_loader_x)
        return zip(self.train_loader_x)

    def parse_batch_train(self, batch: dict[str, Any]) -> Any:
        """(image, label, domain) on the device."""
        return batch["img"].to(self.device), batch["label"].to(self.device), batch["domain"].to(self.device)


class TrainerXU(SimpleTrainer):
    """A trainer for labelled and unlabelled data: ``forward_backward(batch_x, batch_u)``."""

    def epoch_batches(self) -> Iterator[tuple[Any, ...]]:
        if self.train_loader_u is None:
            raise UserError(f"{self.cfg.TRAINER.NAME} needs unlabelled images, but {self.cfg.DATASET.NAME} has none")
        len_x, len_u = len(self.train_loader_x), len(self.train_loader_u)
        lengths = {"train_x": len_x, "train_u": len_u, "smaller_one": min(len_x, len_u)}
        self.num_batches = lengths[self.cfg.TRAIN.COUNT_ITER]
        pairs = zip(_endless(self.train_loader_x), _endless(self.train_loader_u), strict=False)
        return itertools.islice(pairs, self.num_batches)

    def parse_batch_train(self, batch_x: dict[str, Any], batch_u: dict[str, Any]) -> Any:
        """(labelled image, its label, unlabelled image) on the device."""
        return batch_x["img"].to(self.device), batch_x["label"].to(self.device), batch_u["img"].to(self.device)


def _endless(loader: Iterable[Any]) -> Iterator[Any]:
    """Yield batches of ``loader``, restarting it when it ends."""
    # Call iter() now, not at the first batch, so that two loaders draw random numbers in the reference's order.
    return itertools.chain(iter(loader), itertools.chain.from_iterable(itertools.repeat(loader)))
