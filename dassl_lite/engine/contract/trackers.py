"""Experiment trackers: TensorBoard, MLflow, Weights & Biases, or a tracker of your own.

``LOG.TRACKERS`` lists them. All receive the same data: the run's config, scalars, tables and files. A library is
imported only if its tracker is listed. To add a tracker, define it in a plug-in::

    @TRACKER_REGISTRY.register(name="mine")
    class Mine(Tracker):
        def scalar(self, tag: str, value: float, step: int | None) -> None: ...

To resume a run, a tracker needs the id that its ``start`` returned; it is stored in the run's ``trackers.json``.
"""

from __future__ import annotations

import contextlib
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from yacs.config import CfgNode

from dassl_lite.config import to_dict
from dassl_lite.data import published_name
from dassl_lite.utils.errors import UserError, printable
from dassl_lite.utils.files import read_json, write_json
from dassl_lite.utils.logger import get_logger
from dassl_lite.utils.registry import Registry

logger = get_logger(__name__)

TRACKER_REGISTRY = Registry("tracker")
IDS = "trackers.json"  # in a run's folder: tracker name -> the run's id in that tracker
FINISHED, FAILED, STOPPED = "finished", "failed", "stopped"
PAGES = "*.html"  # in a run's folder
_FILES = ("results.json", "log.txt", "cmat.pt")


@dataclass(frozen=True)
class TrackedRun:
    """A run, as presented to trackers.

    Attributes:
        folder: folder with the run's files.
        name: method, dataset, shots and seed.
        group: method and dataset, shared by runs of a sweep.
        config: config as nested plain values.
        id: id that ``start`` returned when the run began, if this process resumes it; else "".
    """

    folder: Path
    name: str
    group: str
    config: Mapping[str, Any]
    id: str = ""


@dataclass(frozen=True)
class Outcome:
    """The outcome of a run.

    Attributes:
        status: FINISHED, FAILED (with an error) or STOPPED (by the user, who may resume it).
        summary: final numbers by name, such as "test/accuracy" in percent.
        tables: name -> headers and rows of plain values.
        files: files in the run's folder: results, log, pages.
    """

    status: str
    summary: Mapping[str, float] = field(default_factory=dict)
    tables: Mapping[str, tuple[list[str], list[list[Any]]]] = field(default_factory=dict)
    files: Sequence[Path] = ()


class Tracker(Protocol):
    """The interface of a tracker; every method is optional. It is built, without arguments, before the run.

    An exception in ``start`` ends the run with a one-line error. A later exception is logged as a warning, and the run
    continues without the tracker.
    """

    def start(self, run: TrackedRun) -> str:
        """Open the run, or resume the one with id ``run.id``; returns its id, or "" if it needs none."""
        return ""

    def open_writer(self, log_dir: str) -> Any:
        """Called before the first epoch, if any; returns an object with ``add_scalar`` for ``log_dir``, or None."""
        return None

    def scalar(self, tag: str, value: float, step: int | None) -> None:
        """Called for each value: ``train/*`` with the step number, others with the epoch number."""

    def finish(self, outcome: Outcome) -> None:
        """Called when the run has ended."""


class Trackers:
    """The trackers of one run. If one fails, a warning says so and the run continues without it.

    Args:
        names: registered names, in config order.

    Raises:
        UserError: a name is not registered, or its library is not installed.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._open: dict[str, Tracker] = {name: TRACKER_REGISTRY.get(name)() for name in dict.fromkeys(names)}
        self.started = False

    def start(self, run: TrackedRun, previous: str | Path) -> None:
        """Open the run in all trackers.

        Args:
            previous: folder of the run being resumed, whose ids are reused.

        Raises:
            UserError: a tracker cannot track the run.
        """
        self.started = True
        known, ids = _ids_in(Path(previous)), {}
        for name, tracker in self._open.items():
            tracked = TrackedRun(run.folder, run.name, run.group, run.config, known.get(name, ""))
            try:
                ids[name] = tracker.start(tracked)
            except Exception as error:
                self.finish(Outcome(FAILED))
                if isinstance(error, UserError):
                    raise
                raise UserError(f"LOG.TRACKERS: {name} cannot track this run ({_summary(error)})") from error
        if ids := {name: id for name, id in ids.items() if id}:
            write_json({**known, **ids}, run.folder / IDS)

    def open_writer(self, log_dir: str | Path) -> Any:
        """The first writer that a tracker opens for ``log_dir``; None if none does."""
        writers = [self._guarded(name, lambda tracker: tracker.open_writer(str(log_dir))) for name in list(self._open)]
        return next((writer for writer in writers if writer is not None), None)

    def scalar(self, tag: str, value: float, step: int | None = None) -> None:
        """Pass one value to all trackers that accept values."""
        for name, tracker in list(self._open.items()):
            if getattr(type(tracker), "scalar", None) is not Tracker.scalar:
                self._guarded(name, lambda tracker: tracker.scalar(tag, value, step))

    def finish(self, outcome: Outcome) -> None:
        """Pass the run's outcome to all trackers, and close them."""
        for name in list(self._open):
            self._guarded(name, lambda tracker: tracker.finish(outcome))
        self._open.clear()

    def _guarded(self, name: str, call: Callable[[Tracker], Any]) -> Any:
        try:
            return call(self._open[name])
        except Exception as error:  # noqa: BLE001  # a library's error must not end a run of hours
            del self._open[name]
            logger.warning(f"{name} no longer tracks this run ({_summary(error)}); the run continues")


def _summary(error: Exception) -> str:
    return textwrap.shorten(printable(f"{type(error).__name__}: {error}"), 300, placeholder="...")


def _ids_in(folder: Path) -> dict[str, str]:
    """The ids stored in a run's folder; empty if the file is missing or not ours."""
    if not (folder / IDS).is_file():
        return {}
    try:
        ids = read_json(folder / IDS)
    except (ValueError, OSError):
        ids = None
    if not isinstance(ids, dict) or not all(isinstance(id, str) for id in ids.values()):
        logger.warning(f"{folder / IDS} does not hold tracker ids; the run gets new ones")
        return {}
    return ids


def tracked_run(cfg: CfgNode) -> TrackedRun:
    """The run that a config describes."""
    method, dataset, shots = cfg.TRAINER.NAME, published_name(cfg), cfg.DATASET.NUM_SHOTS
    name = f"{method} {dataset} {f'{shots} shots' if shots > 0 else 'all images'} seed {cfg.SEED}"
    return TrackedRun(Path(cfg.OUTPUT_DIR), name, f"{method} {dataset}", to_dict(cfg))


@contextlib.contextmanager
def finishing(trackers: Trackers) -> Iterator[None]:
    """A context that closes the trackers if it fails: the run has failed, or the user has stopped it."""
    try:
        yield
    except BaseException as error:
        trackers.finish(Outcome(STOPPED if isinstance(error, KeyboardInterrupt) else FAILED))
        raise


def outcome_of(results: Mapping[str, Any], folder: str | Path) -> Outcome:
    """A finished run's numbers, tables and files, built from the content of its ``results.json``."""
    folder = Path(folder)
    splits: dict[str, dict[str, Any]] = results["metrics"]
    summary = {f"{split}/{name}": value for split, metrics in splits.items() for name, value in metrics.items()}
    zero_shot = "zero_shot_"
    summary |= {f"zero_shot/{key[len(zero_shot) :]}": results[key] for key in results if key.startswith(zero_shot)}
    summary |= {f"seconds/{phase}": value for phase, value in results["seconds"].items()}
    summary["trainable_parameters"] = results["trainable_parameters"]
    tables = {"metrics": _table([{"split": split, **metrics} for split, metrics in splits.items()])}
    tables |= {name: _table(results[name]) for name in ("per_class", "history")}
    files = [folder / name for name in _FILES] + sorted(folder.glob(PAGES))
    return Outcome(
        FINISHED,
        {name: float(value) for name, value in summary.items() if isinstance(value, int | float)},
        {name: table for name, table in tables.items() if table[1]},
        [path for path in files if path.is_file()],
    )


def _table(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[Any]]]:
    """Headers and rows of plain values; missing cells are None."""
    headers = list(dict.fromkeys(name for row in rows for name in row))
    return headers, [[row.get(name) for name in headers] for row in rows]
