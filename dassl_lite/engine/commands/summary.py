"""Means and confidence intervals over the seeds of finished runs."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dassl_lite.engine.build import uses_shots
from dassl_lite.engine.commands.arguments import OWN_DATA, data_label
from dassl_lite.engine.files.results import FILE_NAME, MAIN_METRICS, main_metric, read_results
from dassl_lite.engine.files.run_folder import REPLACED
from dassl_lite.utils.errors import UserError, shown, unknown
from dassl_lite.utils.logger import get_logger

logger = get_logger(__name__)


@dataclass(frozen=True)
class Cell:
    """One method on one dataset with one number of shots, over its seeds; ``values`` are of ``metric``, in percent."""

    dataset: str
    trainer: str
    backbone: str
    shots: int
    values: tuple[float, ...]
    metric: str = MAIN_METRICS[0]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def interval(self) -> float | None:
        """Half the width of the mean's 95 % confidence interval; None for a single value."""
        return confidence_interval(self.values)

    def __str__(self) -> str:
        interval = self.interval
        return f"{self.mean:.2f}" if interval is None else f"{self.mean:.2f} ± {interval:.2f}"


def confidence_interval(values: Sequence[float], level: float = 0.95) -> float | None:
    """Half-width of the two-sided interval for the mean, by Student's t with n - 1 degrees of freedom."""
    if len(values) < 2:
        return None
    from scipy.stats import t  # takes a while to import, and only reports need it

    quantile = float(t.ppf(0.5 + level / 2, len(values) - 1))
    return quantile * statistics.stdev(values) / math.sqrt(len(values))


def gather(folder: str | Path, metric: str = "", split: str = "test") -> list[Cell]:
    """All finished runs below ``folder``, one cell per dataset, method, backbone and number of shots.

    Args:
        folder: of the sweep.
        metric: "" for each run's main one: accuracy, or mAP on a multi-label dataset.
        split: "test" or "val".

    Raises:
        UserError: there is none, or they lack the metric; lists the metrics that they have.
    """
    root = Path(folder)
    if not root.is_dir():
        raise UserError(f"{root} is not a folder")
    paths = [path for path in sorted(root.rglob(FILE_NAME)) if path.parent.name != REPLACED]
    runs = [results for path in paths if (results := read_results(path.parent))]
    if not runs:
        raise UserError(f"no finished run (a folder with {FILE_NAME}) below {root}")
    cells: dict[tuple[str, str, str, int, str], dict[int, float]] = defaultdict(dict)
    repeated: set[str] = set()
    for run in runs:
        if not _is_complete(run):
            raise UserError(f"a {FILE_NAME} below {root} does not hold the results of a run; delete it")
        metrics = run["metrics"].get(split, {})
        name = metric or main_metric(metrics) or MAIN_METRICS[0]
        if name not in metrics:
            raise unknown("metric", name, metrics)
        if not isinstance(metrics[name], int | float):
            raise UserError(f"a {FILE_NAME} below {root} says that its {name} is {shown(metrics[name])}; delete it")
        key = (dataset_label(run), run["trainer"], run["backbone"], max(run["num_shots"], 0), name)
        if cells[key].get(run["seed"], metrics[name]) != metrics[name]:
            repeated.add(f"{run['trainer']} on {dataset_label(run)}")
        cells[key][run["seed"]] = metrics[name]
    if repeated:
        logger.warning(
            f"some runs below {root} differ in settings that the table does not show (other than dataset, method, "
            f"backbone, shots, seed); of each, one is shown: {', '.join(sorted(repeated)[:5])}; "
            "report their folders one by one"
        )
    return [
        Cell(dataset, trainer, backbone, shots, tuple(by_seed[seed] for seed in sorted(by_seed)), name)
        for (dataset, trainer, backbone, shots, name), by_seed in cells.items()
    ]


def _is_complete(run: Mapping[str, Any]) -> bool:
    """Whether results have what a table needs."""
    words = all(isinstance(run.get(key), str) for key in ("trainer", "dataset", "backbone"))
    numbers = all(type(run.get(key)) is int for key in ("num_shots", "seed"))
    metrics = run.get("metrics")
    config = run.get("config", {})
    config = config.get("DATASET", {}) if isinstance(config, dict) else None
    splits = (
        isinstance(config, dict) and isinstance(metrics, dict) and all(isinstance(of, dict) for of in metrics.values())
    )
    return words and numbers and splits


def dataset_label(results: Mapping[str, Any]) -> str:
    """The dataset of a run; the user's own data goes by the name of its folder or file, to tell one from another."""
    name = results["dataset"]
    path = results.get("config", {}).get("DATASET", {}).get(OWN_DATA.get(name, ""), "")
    return data_label(path) if path else name


def as_table(cells: Sequence[Cell]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: a row per dataset and method, a column per number of shots, and one for all training images.

    A method that uses no shots has the same number in every column. Where datasets have different metrics, their names
    say which.
    """
    by_row: dict[tuple[str, str], dict[int, Cell]] = defaultdict(dict)
    mixed = len({cell.metric for cell in cells}) > 1
    for cell in cells:
        dataset = f"{cell.dataset} ({cell.metric})" if mixed else cell.dataset
        by_row[dataset, cell.trainer][cell.shots] = cell
    columns = sorted({cell.shots for cell in cells if cell.shots})
    if any(cell.shots == 0 and uses_shots(cell.trainer) for cell in cells):
        columns.append(0)
    rows = []
    for (dataset, trainer), found in sorted(by_row.items()):
        fixed = None if uses_shots(trainer) else found.get(0)
        rows.append([dataset, trainer, *(str(found.get(number) or fixed or "") for number in columns or [0])])
    names = ["all" if number == 0 else f"{number} shot{'s' if number > 1 else ''}" for number in columns]
    return ["dataset", "method", *(names or ["no shots"])], rows
