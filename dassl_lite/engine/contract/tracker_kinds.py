"""The built-in trackers: TensorBoard, MLflow with a local store, Weights & Biases offline.

None of them uses the network unless the user's settings (``MLFLOW_TRACKING_URI``, ``WANDB_MODE``) say so.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import time
from pathlib import Path
from typing import Any

from filelock import FileLock

from dassl_lite.engine.contract.trackers import (
    FINISHED,
    STOPPED,
    TRACKER_REGISTRY,
    Outcome,
    TrackedRun,
    Tracker,
    Trackers,
)
from dassl_lite.engine.files.checkpoint import flat
from dassl_lite.utils.lazy import optional_module
from dassl_lite.utils.logger import get_logger

__all__ = ["MLflow", "TensorBoard", "Trackers", "WandB"]

logger = get_logger(__name__)

PROJECT = "dassl-lite"  # MLflow's experiment, Weights & Biases' project
_MAX_PENDING, _SECONDS = 1000, 10.0  # most scalars, and longest time, buffered for MLflow; 1000 is its limit
_PARAM_BATCH, _MAX_PARAM_LENGTH = 100, 6000  # MLflow's limits


@TRACKER_REGISTRY.register(name="tensorboard")
class TensorBoard(Tracker):
    """Event files in ``RUN/tensorboard``, for runs with epochs."""

    def open_writer(self, log_dir: str) -> Any:
        from dassl_lite.engine.contract.scalar_writer import ScalarWriter  # slow to import

        logger.info(f"Initialize tensorboard (log_dir={log_dir})")
        return ScalarWriter(log_dir)


@TRACKER_REGISTRY.register(name="mlflow")
class MLflow(Tracker):
    """MLflow's store: ``mlflow.db`` and ``mlruns/`` in the working directory, or the one at ``MLFLOW_TRACKING_URI``.

    The experiment is ``dassl-lite`` unless ``MLFLOW_EXPERIMENT_NAME`` is set. MLflow's telemetry is disabled.
    """

    def __init__(self) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        optional_module("sqlalchemy", "mlflow", "LOG.TRACKERS mlflow")
        self._mlflow = optional_module("mlflow", "mlflow", "LOG.TRACKERS mlflow")
        logging.getLogger("mlflow").setLevel(logging.WARNING)  # else it reports every table that it creates
        self._pending: list[Any] = []
        self._sent_at = time.monotonic()

    def start(self, run: TrackedRun) -> str:
        local = not os.environ.get("MLFLOW_TRACKING_URI")
        # The runs of a sweep start at the same time.
        with FileLock(Path("mlflow.db.lock") if local else run.folder / ".mlflow.lock"):
            self._client = self._mlflow.tracking.MlflowClient("sqlite:///mlflow.db" if local else None)
            experiment = self._experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT), local)
        self._id = run.id if run.id and self._continues(run.id) else ""
        if not self._id:
            tags = {"mlflow.runName": run.name, "group": run.group, "folder": str(run.folder)}
            self._id = self._client.create_run(experiment, tags=tags, run_name=run.name).info.run_id
            entities = self._mlflow.entities
            params = [
                entities.Param(key, str(value)[:_MAX_PARAM_LENGTH])
                for key, value in flat(run.config).items()
                if str(value)
            ]
            for first in range(0, len(params), _PARAM_BATCH):
                self._client.log_batch(self._id, params=params[first : first + _PARAM_BATCH])
        return self._id

    def _experiment(self, name: str, local: bool) -> str:
        experiment = self._client.get_experiment_by_name(name)
        if experiment is not None:
            return experiment.experiment_id
        return self._client.create_experiment(
            name, artifact_location=Path("mlruns").resolve().as_uri() if local else None
        )

    def _continues(self, id: str) -> bool:
        try:
            self._client.update_run(id, status="RUNNING")
        except self._mlflow.exceptions.MlflowException:
            logger.warning(f"mlflow's store no longer has run {id}; starting a new one")
            return False
        return True

    def scalar(self, tag: str, value: float, step: int | None) -> None:
        name = re.sub(r"[^\w\-. /:]", "_", tag)
        now = int(time.time() * 1000)
        self._pending.append(self._mlflow.entities.Metric(name, float(value), now, step or 0))
        if len(self._pending) >= _MAX_PENDING or time.monotonic() - self._sent_at > _SECONDS:
            self._send()

    def _send(self) -> None:
        pending, self._pending = self._pending, []
        self._sent_at = time.monotonic()
        if pending:
            self._client.log_batch(self._id, metrics=pending)

    def finish(self, outcome: Outcome) -> None:
        for name, value in outcome.summary.items():
            if not name.startswith("test/"):  # those were sent as scalars
                self.scalar(name, value, None)
        self._send()
        for name, (headers, rows) in outcome.tables.items():
            self._client.log_dict(self._id, {"columns": headers, "data": rows}, f"tables/{name}.json")
        for path in outcome.files:
            self._client.log_artifact(self._id, str(path))
        status = {FINISHED: "FINISHED", STOPPED: "KILLED"}.get(outcome.status, "FAILED")
        self._client.set_terminated(self._id, status)


@TRACKER_REGISTRY.register(name="wandb")
class WandB(Tracker):
    """Weights & Biases, offline: writes to ``RUN/wandb/``, which the user can upload with ``wandb sync``.

    ``WANDB_MODE=online`` uploads immediately; ``WANDB_PROJECT`` and ``WANDB_ENTITY`` work as usual.
    """

    def __init__(self) -> None:
        self._mode = os.environ.get("WANDB_MODE") or "offline"
        if self._mode != "online":
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # else the library uploads its own errors
        self._wandb = optional_module("wandb", "wandb", "LOG.TRACKERS wandb")
        self._prefixes: set[str] = set()

    def start(self, run: TrackedRun) -> str:
        id = run.id or secrets.token_hex(4)
        self._run = self._wandb.init(
            id=id,
            dir=str(run.folder),
            name=run.name,
            group=run.group,
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            config=dict(run.config),
            mode=self._mode,
            resume="allow" if run.id and self._mode == "online" else None,
            reinit="create_new",
            settings=self._wandb.Settings(console="off", silent=True, x_disable_stats=True),
        )
        return id

    def scalar(self, tag: str, value: float, step: int | None) -> None:
        prefix = tag.rpartition("/")[0]
        counter = f"{prefix}/step" if prefix else "step"
        if counter not in self._prefixes:  # batches and epochs have separate counters
            self._prefixes.add(counter)
            self._run.define_metric(counter, hidden=True)
            self._run.define_metric(f"{prefix}/*" if prefix else tag, step_metric=counter)
        self._run.log({tag: float(value)} if step is None else {tag: float(value), counter: step})

    def finish(self, outcome: Outcome) -> None:
        self._run.summary.update(dict(outcome.summary))
        tables = {
            f"tables/{name}": self._wandb.Table(columns=headers, data=rows, allow_mixed_types=True)
            for name, (headers, rows) in outcome.tables.items()
        }
        pages = {f"pages/{path.stem}": self._wandb.Html(str(path)) for path in outcome.files if path.suffix == ".html"}
        if tables or pages:
            self._run.log({**tables, **pages})
        for path in outcome.files:
            self._run.save(str(path), base_path=str(path.parent), policy="now")
        self._run.finish(exit_code=0 if outcome.status == FINISHED else 1)
