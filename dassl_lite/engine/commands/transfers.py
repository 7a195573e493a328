"""How runs transfer to other classes and datasets: tables of base and new classes, and of runs on a source dataset.

They are built from the evaluations that a benchmark stores in the folders of its runs.
"""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from dassl_lite.engine.build import find_yaml
from dassl_lite.engine.commands.benchmark import ALL, BASE_TO_NEW, CROSS, DG, EVALUATIONS, NEW, Datasets, evaluated
from dassl_lite.engine.commands.cells import backbone_label, dataset_label
from dassl_lite.engine.commands.published import AVERAGE, FIELD, SPLITS, Published
from dassl_lite.engine.commands.tables import Table, best_two
from dassl_lite.engine.files.results import config_in, read_results
from dassl_lite.engine.files.run_folder import REPLACED
from dassl_lite.evaluation.statistics import Estimate, estimate, estimate_of_means, harmonic_mean
from dassl_lite.utils import atomic_path


@dataclass(frozen=True)
class Transfer:
    """A method's runs on one dataset and their accuracies elsewhere, in percent, one per seed.

    Attributes:
        own: accuracies on the training dataset; with ``of_base``, on its base classes.
        elsewhere: key of an evaluation -> accuracies.
        reason: why the method could not be evaluated on some classes; "" if it could.
        trainer: the method's registered name; ``method`` is its label in tables.
        shots: number of shots of the runs; None if they differ.
    """

    method: str
    dataset: str
    backbone: str
    of_base: bool
    own: tuple[float, ...]
    elsewhere: Mapping[str, tuple[float, ...]]
    reason: str = ""
    trainer: str = ""
    shots: int | None = None


def gather_transfers(folder: str | Path) -> list[Transfer]:
    """Gather the evaluated runs below ``folder``, grouped over seeds."""
    groups: dict[tuple[str, str, str, str], list[tuple[dict[str, Any], dict[str, Any]]]] = defaultdict(list)
    for path in sorted(Path(folder).rglob(EVALUATIONS)):
        results = None if path.parent.name == REPLACED else read_results(path.parent)
        rows = evaluated(path.parent) if results else {}
        if results and rows:
            subset = config_in(results, path.parent)["DATASET"].get("SUBSAMPLE_CLASSES", ALL)
            method = str(results.get("method") or results["trainer"])
            # Runs with the cross-dataset recipe are never mixed with those with the default one.
            place = path.resolve().parts  # .../GROUP/DATASET/METHOD/RUN/evaluations.json
            group = place[-5] if len(place) > 4 else ""
            key = (method, dataset_label(results), backbone_label(results), f"{subset} {group}")
            groups[key].append((results, rows))
    transfers = []
    for (method, dataset, backbone, kind), runs in groups.items():
        elsewhere: dict[str, list[float]] = defaultdict(list)
        reasons = [row["missing"] for _, rows in runs for row in rows.values() if row["missing"]]
        for _, rows in runs:
            for name, row in rows.items():
                if not row["missing"] and not math.isnan(row["accuracy"]):
                    elsewhere[name].append(row["accuracy"])
        own = tuple(value for results, _ in runs if (value := _accuracy(results)) is not None)
        values = {name: tuple(accuracies) for name, accuracies in elsewhere.items()}
        of_base = kind.startswith("base ")
        reason = reasons[0] if reasons else ""
        shots = {int(results["num_shots"]) for results, _ in runs}
        common = shots.pop() if len(shots) == 1 else None
        transfers.append(Transfer(method, dataset, backbone, of_base, own, values, reason, method, common))
    if len({transfer.backbone for transfer in transfers}) > 1:  # one row per backbone
        transfers = [replace(transfer, method=f"{transfer.method} ({transfer.backbone})") for transfer in transfers]
    return transfers


def _accuracy(results: Mapping[str, Any]) -> float | None:
    value = results["metrics"].get("test", {}).get("accuracy")
    return float(value) if isinstance(value, int | float) else None


def transfer_tables(folder: str | Path, published: Published | None = None) -> tuple[list[Table], list[str]]:
    """Tables of base and new classes and of runs on a source dataset, and notes for the reader.

    Both lists are empty if no run below ``folder`` has been evaluated elsewhere. ``published`` numbers are shown next
    to ours of the same protocol; for averages, only if they are over exactly the field's datasets.
    """
    transfers = gather_transfers(folder)
    of_base = [transfer for transfer in transfers if transfer.of_base]
    both = base_to_new_table(of_base, published), base_to_new_average(of_base, published)
    tables = [table for table in both if table is not None]
    groups: dict[tuple[str, str], list[Transfer]] = defaultdict(list)
    for transfer in transfers:
        if not transfer.of_base:
            groups[transfer.dataset, transfer.backbone].append(transfer)
    for (dataset, _), group in sorted(groups.items()):
        for protocol in (CROSS, DG):
            names = [*Datasets.field().of(protocol), *Datasets.demo().of(protocol)]
            table = source_table(group, protocol, dataset, names, published)
            tables += [] if table is None else [table]
    reasons = {
        transfer.method: f"{transfer.method} cannot be tested on other classes: {transfer.reason}"
        for transfer in transfers
        if transfer.reason
    }
    notes = ["on other classes, per-class parameters that were not learnt stay as in zero-shot CLIP"] if tables else []
    return tables, [*notes, *(reasons[method] for method in sorted(reasons))]


def write_transfers(folder: Path) -> Path | None:
    """Write ``evaluations.csv``, a line per kind of run and evaluation, in full precision; None if there are none."""
    transfers, path = gather_transfers(folder), folder / "evaluations.csv"
    if not transfers:
        return None
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["trained on", "classes", "method", "backbone", "tested on", "seeds", "mean", "values"])
        for transfer in transfers:
            run = [transfer.dataset, "base" if transfer.of_base else ALL, transfer.method, transfer.backbone]
            for key, values in {"own": transfer.own, **transfer.elsewhere}.items():
                if values:
                    writer.writerow([*run, key, len(values), fmean(values), " ".join(map(repr, values))])
    return path


def base_to_new_table(transfers: Sequence[Transfer], published: Published | None = None) -> Table | None:
    """A row per dataset and method: base, new and their harmonic mean H, and all classes together."""
    rows: list[list[str]] = []
    comparison = _PublishedColumns(published, BASE_TO_NEW)
    values: dict[int, tuple[str, float | None]] = {}
    for run in sorted(transfers, key=lambda run: (run.dataset, run.method)):
        base, new, joint = (_estimate(part) for part in (run.own, run.elsewhere.get(NEW), run.elsewhere.get(ALL)))
        h = harmonic_mean(base.mean, new.mean) if base and new else None
        values[len(rows)] = (run.dataset, h)
        for column, (split, value) in enumerate(zip(SPLITS, (base, new, h), strict=True), start=2):
            comparison.add(len(rows), column, run, run.dataset, value, split)
        rows.append([run.dataset, run.method, *map(_text, (base, new)), _text(h), _text(joint)])
    places = {}
    for dataset in {dataset for dataset, _ in values.values()}:
        by_row = {row: h for row, (name, h) in values.items() if name == dataset and h is not None}
        places.update({(row, 4): place for row, place in best_two(by_row).items()})
    title = "From base to new classes; H is the harmonic mean of base and new, all is over all classes together"
    headers = ["dataset", "method", "base", "new", "H", "all"]
    return comparison.extend(Table(title, headers, rows, places)) if rows else None


def base_to_new_average(transfers: Sequence[Transfer], published: Published | None = None) -> Table | None:
    """A row per method: means over datasets of base and new, and their H; None for fewer than two datasets.

    Each has an interval over datasets; the one for H is a jackknife estimate.
    """
    groups: dict[str, list[tuple[float, float, float | None]]] = defaultdict(list)
    runs: dict[str, list[Transfer]] = defaultdict(list)
    for transfer in transfers:
        if transfer.own and (new := transfer.elsewhere.get(NEW)):
            joint = transfer.elsewhere.get(ALL)
            groups[transfer.method].append((fmean(transfer.own), fmean(new), fmean(joint) if joint else None))
            runs[transfer.method].append(transfer)
    comparison = _PublishedColumns(published, BASE_TO_NEW)
    rows: list[list[str]] = []
    harmonic: dict[int, float] = {}
    for method, group in sorted(groups.items()):
        base, unseen = estimate([row[0] for row in group]), estimate([row[1] for row in group])
        together = [row[2] for row in group if row[2] is not None]
        h = estimate_of_means([row[:2] for row in group], harmonic_mean)
        harmonic[len(rows)] = h.mean
        mean_of_all = estimate(together) if len(together) == len(group) else None
        settings = {(run.backbone, run.shots) for run in runs[method]}
        if {run.dataset for run in runs[method]} == FIELD and len(settings) == 1:
            for column, (split, value) in enumerate(zip(SPLITS, (base, unseen, h), strict=True), start=1):
                comparison.add(len(rows), column, runs[method][0], AVERAGE, value, split)
        rows.append([method, *map(_text, (base, unseen, h, mean_of_all)), str(len(group))])
    if max((len(group) for group in groups.values()), default=0) < 2:
        return None
    most = max(len(group) for group in groups.values())
    comparable = {row: h for row, h in harmonic.items() if rows[row][-1] == str(most)}
    places = {(row, 3): place for row, place in best_two(comparable).items()}
    title = (
        "From base to new classes, averages over datasets, ± 95 % interval with datasets as the unit: first base and "
        "new are averaged, then H is taken"
    )
    return comparison.extend(Table(title, ["method", "base", "new", "H", "all", "datasets"], rows, places))


def source_table(
    transfers: Sequence[Transfer], protocol: str, source: str, names: Sequence[str], published: Published | None = None
) -> Table | None:
    """A row per method: accuracy on the source, on each of ``names`` that was tested, and their average.

    The average excludes the source; a method that lacks one of the datasets has none. Returns None if no method was
    tested on any of them.
    """
    columns = [name for name in names if any(name in transfer.elsewhere for transfer in transfers)]
    if not columns:
        return None
    datasets = [source, *map(_registered, columns)] if published else []
    as_published = set(columns) == set(Datasets.field().of(protocol))
    comparison = _PublishedColumns(published, protocol)
    rows: list[list[str]] = []
    means: dict[int, float] = {}
    for run in sorted(transfers, key=lambda run: run.method):
        each = [_estimate(run.elsewhere.get(name)) for name in columns]
        known = [result.mean for result in each if result]
        if not known:  # a run with the other protocol's recipe, or a method that only knows its own classes
            continue
        average = fmean(known) if len(known) == len(columns) else None
        if average is not None:
            means[len(rows)] = average
        for column, (dataset, value) in enumerate(zip(datasets, (_estimate(run.own), *each), strict=False), start=1):
            comparison.add(len(rows), column, run, dataset, value)
        comparison.add(len(rows), len(columns) + 2, run, AVERAGE, average if as_published else None)
        rows.append([run.method, _text(_estimate(run.own)), *map(_text, each), _text(average)])
    places = {(row, len(columns) + 2): place for row, place in best_two(means).items()}
    title = f"{protocol.capitalize()} from {source}; the average is without the source"
    return comparison.extend(Table(title, ["method", source, *columns, "average"], rows, places))


class _PublishedColumns:
    """Columns with published numbers, and our differences from them, next to the columns of a table.

    Args:
        published: published numbers; None for none.
        protocol: protocol of the published tables to look in.
    """

    def __init__(self, published: Published | None, protocol: str) -> None:
        self._published, self._protocol = published, protocol
        self._texts: dict[int, dict[int, tuple[str, str]]] = defaultdict(dict)  # column -> row -> number, difference

    def add(
        self, row: int, column: int, run: Transfer, dataset: str, ours: Estimate | float | None, split: str = ALL
    ) -> None:
        """Add what is published for a run on this dataset, if anything, next to ``ours``."""
        if self._published is None or ours is None or run.shots is None:
            return
        values = self._published.find(dataset, run.trainer, run.shots, run.backbone, split, self._protocol)
        if values:
            mean = ours if isinstance(ours, float) else ours.mean
            self._texts[column][row] = self._published.compare(mean, values)

    def extend(self, table: Table) -> Table:
        """The table with these columns added."""
        return table.with_columns(["published", "difference"], self._texts)


def _registered(file: str) -> str:
    """The registered name of the dataset in a yaml of configs/datasets."""
    content = yaml.safe_load(find_yaml(file, "datasets").read_text(encoding="utf-8"))
    return str(content["DATASET"]["NAME"])


def _estimate(values: Sequence[float] | None) -> Estimate | None:
    return estimate(values) if values else None


def _text(value: Estimate | float | None) -> str:
    return "" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)
