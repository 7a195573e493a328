"""SimpleTrainer: what every trainer does with a config (Dassl's contract)."""

from __future__ import annotations

import datetime
import time
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from yacs.config import CfgNode

import dassl_lite
from dassl_lite.config import to_dict
from dassl_lite.data import DataManager
from dassl_lite.data.classes import ClassList
from dassl_lite.data.feature_files.dataset import FeatureDataset
from dassl_lite.data.manager import validates_on_test
from dassl_lite.engine.contract.evaluating import EvaluatingTrainer
from dassl_lite.engine.contract.graceful_stop import GracefulStop
from dassl_lite.engine.contract.own_loaders import complete_data
from dassl_lite.engine.contract.run_log import RunLog
from dassl_lite.engine.contract.simple_net import SimpleNet
from dassl_lite.engine.files import checkpoint
from dassl_lite.engine.parallel import distributed
from dassl_lite.evaluation import build_evaluator
from dassl_lite.optim import build_lr_scheduler, build_optimizer
from dassl_lite.utils import count_num_param, load_pretrained_weights
from dassl_lite.utils.errors import UserError
from dassl_lite.utils.logger import get_logger

logger = get_logger(__name__)


class SimpleTrainer(EvaluatingTrainer):
    """A trainer built from a frozen config: data, model, evaluator, checkpoints, test.

    A subclass gives ``forward_backward`` and, mostly, ``build_model``, which registers its models.
    """

    takes_features = False  # whether it can do with features in the place of images
    uses_shots = True  # whether the training images make a difference
    standalone = True  # False: it makes a file that another method takes; sweeps over all methods leave it out
    trains = True  # False: there are no epochs; what there is to learn, fit() learns at once

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__()
        self.check_cfg(cfg)
        self.cfg = cfg
        self.device = torch.device("cuda" if cfg.USE_CUDA and torch.cuda.is_available() else "cpu")
        self.max_epoch = cfg.OPTIM.MAX_EPOCH
        self.output_dir = cfg.OUTPUT_DIR
        self.build_data_loader()
        complete_data(self)
        if cfg.TEST.FINAL_MODEL == "best_val" and self.val_loader is None:
            raise UserError(
                f"TEST.FINAL_MODEL is best_val, but {cfg.DATASET.NAME} has no validation set; use last_step"
            )
        self.build_model()
        self.evaluator = build_evaluator(cfg, lab2cname=self.lab2cname)

    def check_cfg(self, cfg: CfgNode) -> None:
        """Raise a UserError for values that this method cannot take; called before anything is built."""

    def build_data_loader(self) -> None:
        """Build the dataset and its loaders."""
        dm = DataManager(self.cfg)
        if isinstance(dm.dataset, FeatureDataset) and not self.takes_features:
            name = self.cfg.TRAINER.NAME
            raise UserError(f"{name} needs images, but dataset {self.cfg.DATASET.NAME} holds features only")
        self.dm = dm
        self.train_loader_x: Any = dm.train_loader_x
        self.train_loader_u: Any = dm.train_loader_u
        if distributed.world_size() > 1:
            self.train_loader_x = distributed.shared_loader(dm.train_loader_x)
        self.val_loader: Any = dm.val_loader
        self.test_loader: Any = dm.test_loader
        self.num_classes, self.num_source_domains = dm.num_classes, dm.num_source_domains
        self.lab2cname = dm.lab2cname

    def build_model(self) -> None:
        """Build the models, their optimisers and schedules, and register them; not overridden, a SimpleNet."""
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

    def checkpoint_meta(self) -> dict[str, Any]:
        classes = self.target_classes()
        return {
            **super().checkpoint_meta(),
            "version": dassl_lite.__version__,
            "dataset": self.cfg.DATASET.NAME,
            "classnames": list(classes.names) if classes else [],
            "classids": list(classes.ids) if classes else [],
            "config": to_dict(self.cfg),
        }

    # ---- training -----------------------------------------------------------------------------------------------

    def train(self) -> None:  # type: ignore[override]  # Dassl's signature: the range comes from the config
        """Train from the start, or from where a resumed run stopped, then test."""
        if self.uses_shots and getattr(self.dm.dataset, "test_only", False):  # its test images stand in for others
            raise UserError(
                f"{self.cfg.DATASET.NAME} has no training images; train on another dataset, and evaluate the run on "
                "this one with tools/eval.py"
            )
        if not self.trains:
            self._train_at_once()
            return
        if self.selects_on_test:
            logger.warning(
                f"TEST.FINAL_MODEL best_val chooses the epoch on validation images that are test images of "
                f"{self.cfg.DATASET.NAME}, as the reference does: its accuracy is none on unseen images (results.json "
                "says selected_on_test). Take last_step for one that is"
            )
        try:
            with GracefulStop() as self._stop:
                super().train(self.start_epoch, self.max_epoch)
        finally:  # what was logged is kept when a run is stopped, too
            if "run_log" in self.__dict__:
                self.run_log.close()
            self.close_writer()

    @property
    def selects_on_test(self) -> bool:
        """Whether the epoch that is tested is chosen by its accuracy on test images."""
        test = self.cfg.TEST
        chooses = self.trains and test.FINAL_MODEL == "best_val" and not test.NO_TEST
        return chooses and validates_on_test(self.dm.dataset)

    def _train_at_once(self) -> None:
        start = time.time()
        self.fit()
        if self.has_state():
            self.save_model(0, self.output_dir)
            self.seconds["train"] = time.time() - start
            logger.info("Finish training")
        if not self.cfg.TEST.NO_TEST:
            self.evaluate_split()

    def fit(self) -> None:
        """Make a model that needs no epochs (``trains`` is False) out of the training set."""

    def has_state(self) -> bool:
        """Whether there is anything to save and load."""
        return any(model.state_dict() for model in self._models.values())

    def before_train(self) -> None:
        self.start_epoch = self.resume_model_if_exist(self.cfg.RESUME or self.output_dir)
        distributed.same_random_states()  # which also waits: nobody writes what another has still to read
        self.init_writer(Path(self.output_dir) / "tensorboard")
        self.time_start = time.time()
        self._saved_at = time.monotonic()
        self.__dict__.pop("run_log", None)

    def after_epoch(self) -> None:
        self.require_finite_weights()
        self.run_log.end_epoch(self.get_current_lr())
        last = self.epoch + 1 == self.max_epoch
        stops = any(distributed.process_group().gather(self._stop.requested))
        frequency = self.cfg.TRAIN.CHECKPOINT_FREQ
        if not self.cfg.TEST.NO_TEST and self.cfg.TEST.FINAL_MODEL == "best_val":
            result = self.test(split="val")
            if result > self.best_result:
                self.best_result = result
                self.save_model(self.epoch, self.output_dir, val_result=result, model_name=checkpoint.BEST)
        if last or (frequency and (self.epoch + 1) % frequency == 0):
            self.save_model(self.epoch, self.output_dir)
            checkpoint.drop_rolling(self.output_dir, self.get_model_names())
        elif stops or time.monotonic() - self._saved_at > self.cfg.TRAIN.CHECKPOINT_SECONDS:
            self._save_rolling()
        if stops and not last:
            raise KeyboardInterrupt(f"stopped after epoch {self.epoch + 1}; go on with --resume")

    def after_train(self) -> None:
        self.run_log.close()
        self.seconds["train"] = time.time() - self.time_start
        logger.info("Finish training")
        distributed.wait()  # for rank 0's files
        if not self.cfg.TEST.NO_TEST:
            if self.cfg.TEST.FINAL_MODEL == "best_val":
                logger.info("Deploy the model with the best val performance")
                self.load_model(self.output_dir)
            else:
                logger.info("Deploy the last-epoch model")
            self.evaluate_split()
        elapsed = datetime.timedelta(seconds=round(time.time() - self.time_start))
        logger.info(f"Elapsed: {elapsed}")
        self.close_writer()

    def _save_rolling(self) -> None:
        """A checkpoint to resume from, which the next one replaces."""
        self.save_model(self.epoch, self.output_dir)
        checkpoint.mark_rolling(self.output_dir, self.get_model_names(), self.epoch + 1)
        self._saved_at = time.monotonic()

    # ---- what TrainerX and TrainerXU share ----------------------------------------------------------------------

    def _run_batches(self, batches: Iterable[Any]) -> None:
        """``forward_backward`` for each batch, with log lines and scalars; expects ``self.num_batches``."""
        self.set_model_mode("train")
        log = self.run_log
        log.start_epoch(self.epoch, self.num_batches)
        for self.batch_idx, batch in enumerate(batches):
            log.data_ready()
            summary = self._step(batch)
            log.batch_done(self.batch_idx, summary, self.get_current_lr())
            step = self.epoch * self.num_batches + self.batch_idx
            for name, meter in log.losses.meters.items():
                self.write_scalar(f"train/{name}", meter.avg, step)
            self.write_scalar("train/lr", self.get_current_lr(), step)

    def _step(self, batch: Any) -> dict[str, float]:
        return self.forward_backward(batch)

    @cached_property
    def run_log(self) -> RunLog:
        """What the run prints; made when first asked for, as a trainer may override ``before_train``."""
        return RunLog(self.start_epoch, self.max_epoch, self.cfg.TRAIN.PRINT_FREQ, self.shows_progress)

    # Here and not in __init__: some trainers write that anew, on top of TrainerBase's.
    num_batches = 0
    batch_idx = 0
    model: Any = None
    _saved_at = float("inf")  # time of the last checkpoint
    _stop = GracefulStop()  # train() enters one of its own
