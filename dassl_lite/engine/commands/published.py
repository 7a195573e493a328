"""Published numbers from ``configs/published/*.yaml``, to compare with ours.

A file is one source: where its numbers were read, and its tables. A table's columns are numbers of shots (rows are then
grouped by dataset), ``[base, new, H]`` (also by dataset), or datasets (rows are then grouped by number of shots)::

    key: Tip-Adapter                             # its name in reports
    paper: "Tip-Adapter: ..., ECCV 2022"
    read_in: gaopengcuhk/Tip-Adapter, exp.log, commit 30d2598
    backbone: RN50                               # for all tables, or set in a table
    methods: {Tip: TipAdapter}                   # printed names that differ from ours
    tables:
      - table: exp.log
        protocol: few-shot                       # one of `PROTOCOLS`
        columns: [16, 8, 4, 2, 1]
        values:
          ImageNet: {Tip: [62.01, 61.45, 60.98, 60.96, 60.70]}

A method that uses no shots may have a single number instead of a row. ``average`` is a dataset like the others. In a
table, ``doubtful: {ImageNet: [PromptSRC]}`` marks rows whose printed numbers contradict each other; if the columns are
datasets, it marks the average.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from dassl_lite.engine.build import configs_root, uses_shots
from dassl_lite.utils.errors import UserError, shown

PROTOCOLS = ("few-shot", "base-to-new", "cross-dataset", "domain-generalization")
SPLITS = ("base", "new", "H")
AVERAGE = "average"
_EPSILON = 1e-9  # tolerance for floating-point rounding
SOURCE_DATASET = "ImageNet"  # training dataset of the last two protocols, excluded from their averages
FIELD = frozenset(  # the eleven datasets over which papers average
    (
        *("ImageNet", "Caltech101", "OxfordPets", "StanfordCars", "OxfordFlowers", "Food101", "FGVCAircraft"),
        *("SUN397", "DescribableTextures", "EuroSAT", "UCF101"),
    )
)


@dataclass(frozen=True)
class Value:
    """A published number, in percent.

    Attributes:
        source: key of its source.
        table: name of the source's table.
        dataset: registered name, or `AVERAGE`.
        method: registered name, or the printed name of a method that the package does not have.
        shots: number of shots; 0 for none.
        split: "all" classes, or one of `SPLITS`.
        decimals: number of printed decimals.
        doubtful: whether the source's own numbers contradict each other here.
    """

    source: str
    table: str
    protocol: str
    backbone: str
    dataset: str
    method: str
    shots: int
    split: str
    value: float
    decimals: int = 2
    doubtful: bool = False

    def agrees(self, other: Value) -> bool:
        """Whether both may be the same number, to the decimals that both print."""
        return abs(self.value - other.value) <= 0.5 * 10 ** -min(self.decimals, other.decimals) + _EPSILON


@dataclass(frozen=True)
class Source:
    """A source: where numbers were published, where they were read, and the numbers."""

    key: str
    paper: str
    read_in: str
    note: str
    values: tuple[Value, ...] = field(repr=False)

    def __str__(self) -> str:
        return f"[{self.key}] {self.paper}; read in {self.read_in}"


def read_sources(folder: str | Path = "") -> list[Source]:
    """Read all sources in ``folder``, by default those shipped with the package.

    Raises:
        UserError: a file does not have the format of this module; the message says which and why.
    """
    sources = [read_source(path) for path in sorted(Path(folder or configs_root() / "published").glob("*.yaml"))]
    keys = [source.key for source in sources]
    if repeated := sorted({key for key in keys if keys.count(key) > 1}):
        raise UserError(f"two files of published numbers have the key {', '.join(repeated)}")
    return sources


def read_source(path: str | Path) -> Source:
    """Read a source from a file.

    Raises:
        UserError: as in `read_sources`.
    """
    path = Path(path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        return _source(content)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None


def inconsistencies(source: Source) -> list[str]:
    """Contradictions between the numbers of a source that are not marked doubtful; most are typing errors.

    Up to rounding, H must be the harmonic mean of base and new, and an average the mean over the datasets if all are
    printed (without the training dataset in cross-dataset transfer and domain generalization). Doubtful marks without a
    contradiction are reported too.
    """
    wrong = dict((*_wrong_harmonic_means(source), *_wrong_averages(source)))
    marked = {_place(value) for value in source.values if value.doubtful}
    return [
        *(f"{' '.join(map(str, place[-3:]))}: {text}" for place, text in wrong.items() if place not in marked),
        *(f"{' '.join(map(str, place[-3:]))}: marked doubtful, but is not" for place in marked - set(wrong)),
    ]


_Place = tuple[str, str, str, str, str, int]


def _place(value: Value) -> _Place:
    """The identity of the row that contains a value."""
    return value.table, value.protocol, value.backbone, value.dataset, value.method, value.shots


def _wrong_harmonic_means(source: Source) -> Iterator[tuple[_Place, str]]:
    rows: dict[_Place, dict[str, Value]] = defaultdict(dict)
    for value in source.values:
        rows[_place(value)][value.split] = value
    for place, row in rows.items():
        if set(row) == set(SPLITS):
            base, new, harmonic = (row[split].value for split in SPLITS)
            expected = 2 * base * new / (base + new)
            if abs(expected - harmonic) > 1.5 * 10 ** -row["H"].decimals + _EPSILON:
                yield place, f"H is {harmonic}, not {expected:.2f}"


def _wrong_averages(source: Source) -> Iterator[tuple[_Place, str]]:
    columns: dict[tuple[Any, ...], dict[str, Value]] = defaultdict(dict)
    datasets: dict[tuple[Any, ...], set[str]] = defaultdict(set)
    for value in source.values:
        table = (value.table, value.protocol, value.backbone)
        key = (*table, value.method, value.shots, value.split)
        columns[key][value.dataset] = value
        datasets[table].add(value.dataset)
    for key, column in columns.items():
        if AVERAGE not in column or len(column) < 3 or set(column) < datasets[key[:3]] or key[-1] == "H":
            continue
        average = column[AVERAGE]
        left_out = {AVERAGE, SOURCE_DATASET} if average.protocol in PROTOCOLS[2:] else {AVERAGE}
        expected = fmean(value.value for dataset, value in column.items() if dataset not in left_out)
        if abs(expected - average.value) > 10**-average.decimals + _EPSILON:
            yield _place(average), f"{average.split} is {average.value}, not {expected:.3f}"


class Published:
    """Compares published numbers with ours, and remembers which sources were shown.

    Args:
        sources: sources from `read_sources`.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = {source.key: source for source in sources}
        self._shown: set[str] = set()
        self._disagree = self._doubtful = False

    def find(
        self, dataset: str, method: str, shots: int, backbone: str, split: str = "all", protocol: str = ""
    ) -> list[Value]:
        """Published values for a dataset, method, number of shots and backbone.

        Without a ``protocol``, results on all classes are looked up in few-shot tables, and results on base classes in
        base-to-new tables. A method that uses no shots has the same number in every protocol, except for averages,
        which are over other datasets.
        """
        fixed = not uses_shots(method)
        protocols = {protocol or {"all": "few-shot", "base": "base-to-new"}.get(split, "")}
        if fixed and dataset != AVERAGE:
            protocols = set(PROTOCOLS)
        return [
            value
            for source in self._sources.values()
            for value in source.values
            if (value.dataset, value.method, value.split) == (dataset, method, split)
            and value.protocol in protocols
            and (fixed or value.shots == shots)
            and _plain(value.backbone) == _plain(backbone)
        ]

    def compare(self, ours: float, values: Sequence[Value]) -> tuple[str, str]:
        """Texts for the published values, each with its sources, and for our difference from each."""
        groups: list[list[Value]] = []
        for value in sorted(values, key=lambda value: -value.decimals):
            same = next((group for group in groups if group[0].agrees(value)), None)
            same.append(value) if same is not None else groups.append([value])
        self._shown |= {value.source for value in values}
        self._disagree |= len(groups) > 1
        self._doubtful |= any(value.doubtful for value in values)
        published = [
            f"{group[0].value:.{group[0].decimals}f}{'?' if any(value.doubtful for value in group) else ''}"
            f" [{', '.join(dict.fromkeys(value.source for value in group))}]"
            for group in groups
        ]
        return " ≠ ".join(published), " / ".join(f"{ours - group[0].value:+.2f}" for group in groups)

    def notes(self) -> list[str]:
        """What a reader must know about the published numbers, one line each."""
        if not self._shown:
            return [f"nothing published for these runs in the {len(self._sources)} sources of configs/published"]
        marks = ["published: others' numbers, not ours, with the source in brackets; difference: ours minus theirs"]
        marks += ["≠: sources disagree"] if self._disagree else []
        marks += ["?: the source's own numbers contradict each other"] if self._doubtful else []
        return ["; ".join(marks), *(str(source) for key, source in self._sources.items() if key in self._shown)]


def _plain(backbone: str) -> str:
    """Normalise a backbone name: ``ViT-B/16`` and ``ViT-B-16`` are the same."""
    return re.sub(r"[/_-]", "", backbone).lower()


# ---- reading ------------------------------------------------------------------------------------------------------


def _source(content: Any) -> Source:
    if not isinstance(content, dict):
        raise ValueError("is not a mapping")
    known = {"key", "paper", "read_in", "backbone", "backbone_from", "note", "methods", "tables"}
    if unknown := sorted(map(str, set(content) - known)):
        raise ValueError(f"unknown keys {', '.join(unknown)}; known keys: {', '.join(sorted(known))}")
    key, paper, read_in = (_word(content, name) for name in ("key", "paper", "read_in"))
    methods = content.get("methods") or {}
    if not isinstance(methods, dict) or not all(isinstance(word, str) for pair in methods.items() for word in pair):
        raise ValueError("methods is not a mapping of printed names to ours")
    tables = content.get("tables")
    if not isinstance(tables, list) or not tables or not all(isinstance(table, dict) for table in tables):
        raise ValueError("tables is not a list of tables")
    values: dict[tuple[Any, ...], Value] = {}
    printed: set[str] = set()
    for table in tables:
        for name, value in _values(key, {"backbone": content.get("backbone"), **table}, methods):
            printed.add(name)
            place = (value.protocol, value.backbone, value.dataset, value.method, value.shots, value.split)
            if (other := values.get(place)) and not other.agrees(value):
                raise ValueError(f"{value.dataset}, {name}, {value.split}: both {other.value} and {value.value}")
            values.setdefault(place, value)
    if unused := sorted(set(methods) - printed):
        raise ValueError(f"no table has the method {', '.join(unused)}")
    return Source(key, paper, read_in, str(content.get("note") or "").strip(), tuple(values.values()))


def _values(source: str, table: Mapping[str, Any], methods: Mapping[str, str]) -> Iterator[tuple[str, Value]]:
    """Yield (printed name of the method, value) for all values of a table."""
    name, protocol, backbone = (_word(table, key) for key in ("table", "protocol", "backbone"))
    if protocol not in PROTOCOLS:
        raise ValueError(f"unknown protocol {shown(protocol)}; it must be one of {', '.join(PROTOCOLS)}")
    columns, groups, decimals = table.get("columns"), table.get("values"), table.get("decimals", 2)
    if not isinstance(columns, list) or not columns or not isinstance(groups, dict) or type(decimals) is not int:
        raise ValueError(f"table {name} needs a list of columns and a mapping of values")
    kinds = {type(column) for column in columns}
    if kinds not in ({int}, {str}) or len(set(columns)) < len(columns):
        raise ValueError(f"the columns of table {name} must be distinct shots, datasets, or base, new and H")
    doubtful = table.get("doubtful") or {}
    if not isinstance(doubtful, dict) or not set(doubtful) <= set(groups):
        raise ValueError(f"doubtful in table {name} names rows that the table does not have")
    by_split = set(columns) <= set(SPLITS)
    for group, rows in groups.items():
        if not isinstance(rows, dict) or not set(doubtful.get(group, ())) <= set(rows):
            raise ValueError(f"table {name} has no rows of methods for {shown(group)}")
        for method, row in rows.items():
            numbers = row if isinstance(row, list) else [row]
            doubted = method in doubtful.get(group, ())
            if len(numbers) != (len(columns) if isinstance(row, list) else 1):
                raise ValueError(f"table {name}, {group}, {method}: {len(numbers)} values for {len(columns)} columns")
            for column, number in zip(columns, numbers, strict=False):
                if type(number) not in (int, float) or not 0 <= number <= 100 or math.isnan(number):
                    raise ValueError(f"table {name}, {group}, {method}: {shown(number)} is not a number from 0 to 100")
                if by_split:
                    dataset, shots, split = group, table.get("shots"), column
                elif kinds == {int}:
                    dataset, shots, split = group, column if isinstance(row, list) else 0, "all"
                else:
                    dataset, shots, split = column, group, "all"
                if not isinstance(dataset, str) or type(shots) is not int or shots < 0:
                    raise ValueError(
                        f"table {name}: {shown(group)} does not match columns {shown(columns)}, or shots are missing"
                    )
                yield (
                    str(method),
                    Value(
                        *(source, name, protocol, backbone, dataset, methods.get(method, str(method)), shots, split),
                        *(float(number), decimals, doubted and (kinds == {int} or by_split or dataset == AVERAGE)),
                    ),
                )


def _word(content: Mapping[str, Any], key: str) -> str:
    value = content.get(key)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{key} is missing")
    return value.strip()
