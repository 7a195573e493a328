"""Every method that runs on feature files, on real features: the tables and the picture of real-features.md.

    for name in whurs19_RN50 whurs19_ViT-B-32 oxford_pets caltech101; do
      python tools/extract.py --convert features/$name.npz --output data/$name.npz
    done
    python docs/results/real_features.py data/*.npz --output-dir output/real_features     # runs what is missing
    python docs/results/real_features.py                                                  # tables and picture alone

The first command writes real_features.csv: mean accuracy, its interval and the CPU seconds of training, on one thread.
With --trainers it measures some methods, and the rows of the others stay.
Both print the tables and draw docs/images/real-features.png.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch
from scipy import stats
from tabulate import tabulate

from dassl_lite.engine.commands import run
from dassl_lite.engine.commands.arguments import DatasetChoice
from dassl_lite.engine.commands.sweep import Task, all_methods, tasks
from dassl_lite.engine.plugins import load_plugins
from dassl_lite.utils import UserError

DOCS = Path(__file__).resolve().parents[1]
TABLE = DOCS / "results" / "real_features.csv"
SHOTS, SEEDS = (1, 2, 4, 8, 16), (1, 2, 3)
SHOWN = (1, 4, 16)
PANELS = {
    "whurs19_RN50": "WHU-RS19, 19 classes of aerial scenes, RN50",
    "whurs19_ViT-B-32": "WHU-RS19, 19 classes of aerial scenes, ViT-B/32",
    "caltech101": "Caltech101, 30 of 100 classes, ViT-B/32",
    "oxford_pets": "OxfordPets, 24 of 37 classes, ViT-B/32",
}
DRAWN = ("Auto", "ProKeR", "GDA", "TaskRes", "LPPlusPlus", "TipAdapter")
COLOURS = dict(
    zip(DRAWN, ("#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00"), strict=True)
)  # Okabe and Ito
Row = dict[str, str]


def measure(files: Sequence[Path], trainers: Sequence[str], shots: Sequence[int], output: Path) -> None:
    """Do the runs that ``output`` lacks, each with the method's default recipe."""
    torch.set_num_threads(1)
    datasets = [DatasetChoice(data=str(path)) for path in files]
    todo = tasks(trainers, datasets, shots, SEEDS)
    refused: set[str] = set()
    for number, task in enumerate(todo):
        folder = output / task.folder
        if task.trainer not in refused and not (folder / "cpu_seconds").exists():
            try:
                seconds = _run(task, folder)
            except UserError as error:  # it needs images, or a text encoder
                refused.add(task.trainer)
                print(f"{task.trainer} is left out: {error}")
                continue
            (folder / "cpu_seconds").write_text(f"{seconds:.3f}\n", encoding="utf-8")
            print(f"{number + 1}/{len(todo)} {task.folder}: {seconds:.1f} s", flush=True)


def _run(task: Task, folder: Path) -> float:
    """CPU seconds of training and one test."""
    cfg = task.config({"method_file": None, "flags": {}, "options": [], "allow_new_keys": False}, folder)
    with run.session(cfg, overwrite=folder.exists()) as trainer:
        start = time.process_time()
        trainer.train()
        return time.process_time() - start


def collect(output: Path) -> list[Row]:
    """One row per feature file, method and number of shots."""
    found: dict[tuple[str, str, int], list[tuple[float, float]]] = defaultdict(list)
    for path in sorted(output.rglob("results.json")):
        if not (path.parent / "cpu_seconds").exists():  # not finished
            continue
        result = json.loads(path.read_text(encoding="utf-8"))
        file, method, _ = path.parent.relative_to(output).parts
        method = result.get("method", method)  # with (transductive), if it is
        shots = result["num_shots"] if path.parent.name != "0shots-seed1" else 0
        cpu = float((path.parent / "cpu_seconds").read_text(encoding="utf-8"))
        found[file, method, shots].append((result["metrics"]["test"]["accuracy"], cpu))
    rows = []
    for (file, method, shots), values in sorted(found.items()):
        accuracies, seconds = zip(*values, strict=True)
        spread = statistics.stdev(accuracies) / len(values) ** 0.5 if len(values) > 1 else 0.0
        interval = spread * stats.t.ppf(0.975, len(values) - 1) if len(values) > 1 else ""
        rows.append(
            {
                "features": file,
                "method": method,
                "shots": str(shots),
                "seeds": str(len(values)),
                "mean": str(statistics.mean(accuracies)),
                "ci95": str(interval),
                "cpu_seconds": f"{statistics.mean(seconds):.3f}",
                "values": " ".join(f"{value:.4f}" for value in accuracies),
            }
        )
    return rows


def write(rows: Sequence[Row]) -> None:
    with TABLE.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def replaced(old: Sequence[Row], new: Sequence[Row]) -> list[Row]:
    """The old rows with the new ones in their places: of a method that is measured alone, the others stay."""

    def cell(row: Row) -> tuple[str, str, int]:
        return row["features"], row["method"], int(row["shots"])

    rows = {cell(row): row for row in (*old, *new)}
    return [rows[key] for key in sorted(rows)]


def read() -> list[Row]:
    with TABLE.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


Found = dict[str, dict[str, dict[int, Row]]]  # features -> method -> shots (0: none) -> row


def by_method(rows: Sequence[Row]) -> Found:
    found: Found = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        found[row["features"]][row["method"]][int(row["shots"])] = row
    return found


def at(cells: dict[int, Row], shots: int) -> Row | None:
    """The row of a method at a number of shots; of zero-shot CLIP at any; None if it was not measured."""
    return cells.get(shots, cells.get(0))


def show(rows: Sequence[Row]) -> None:
    """Print the tables in markdown."""
    found = by_method(rows)
    for file, title in PANELS.items():
        print(f"\n### {title}\n")
        print(_table(found[file]))
    print("\n### CPU seconds of training, mean over the files\n")
    print(_seconds(found))
    print(f"\n### Mean over all files, of methods measured at {len(SHOTS)} numbers of shots\n")
    print(_overall(found))


def _table(cells: dict[str, dict[int, Row]]) -> str:
    compared = [one for name, one in cells.items() if "transductive" not in name]
    known = [[float(row["mean"]) for one in compared if (row := at(one, shots))] for shots in SHOWN]
    best = [f"{max(means):.2f}" for means in known]
    lines = []
    for method in sorted(cells, key=lambda name: ("Zeroshot" not in name, name.lower())):
        line = [method]
        for shots, highest in zip(SHOWN, best, strict=True):
            row = at(cells[method], shots)
            text = f"{float(row['mean']):.2f}" if row else "-"
            text = f"**{text}**" if text == highest else text
            line.append(f"{text} ± {float(row['ci95']):.2f}" if row and row["ci95"] else text)
        lines.append(line)
    return _markdown(lines, [_shots(s) for s in SHOWN])


def _shots(number: int) -> str:
    return f"{number} shot{'s' if number > 1 else ''}"


def _markdown(lines: list[list[str]], columns: list[str]) -> str:
    return tabulate(lines, ["method", *columns], tablefmt="github", disable_numparse=True)


def _seconds(found: Found) -> str:
    lines = []
    for name in sorted({method for cells in found.values() for method in cells}, key=str.lower):
        rows = [[at(found[file][name], shots) for file in PANELS] for shots in SHOWN]
        values = [[float(row["cpu_seconds"]) for row in of_shots if row] for of_shots in rows]
        lines.append([name, *(f"{statistics.mean(one):.2f}" if len(one) == len(PANELS) else "-" for one in values)])
    return _markdown(lines, [_shots(s) for s in SHOWN])


def _overall(found: Found) -> str:
    """Mean accuracy by shots and over all cells, and the cell that is worst against zero-shot CLIP."""
    lines = []
    for name in sorted({method for cells in found.values() for method in cells}, key=str.lower):
        cells = {(file, shots): at(found[file][name], shots) for file in PANELS for shots in SHOTS}
        if None in cells.values():
            continue
        means = [statistics.mean(float(cells[file, shots]["mean"]) for file in PANELS) for shots in SHOTS]  # type: ignore[index]
        gains = [
            float(value) - float(found[file]["ZeroshotCLIP"][0]["mean"])
            for (file, _), row in cells.items()
            for value in (row or {})["values"].split()
        ]
        lines.append([name, *(f"{mean:.2f}" for mean in (*means, statistics.mean(means))), f"{min(gains):+.2f}"])
    lines.sort(key=lambda line: -float(line[-2]))
    return _markdown(lines, [*(_shots(s) for s in SHOTS), "mean", "worst run against zero-shot"])


def draw(rows: Sequence[Row]) -> None:
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    found = by_method(rows)
    figure, axes = plt.subplots(1, len(PANELS), figsize=(10.8, 3.5), layout="constrained")
    for axis, (features, title) in zip(axes, PANELS.items(), strict=True):
        cells = found[features]
        for name in DRAWN:
            means = {shots: float(row["mean"]) for shots in SHOTS if (row := at(cells[name], shots))}
            axis.plot(
                list(means), list(means.values()), "o-", color=COLOURS[name], label=name, linewidth=1.8, markersize=4
            )
        zero_shot = float(cells["ZeroshotCLIP"][0]["mean"])
        axis.axhline(zero_shot, color="#555555", linestyle="--", linewidth=1.2, label="zero-shot CLIP")
        axis.set_xscale("log", base=2)
        axis.set_xticks(SHOTS, [str(shots) for shots in SHOTS])
        axis.set_xlabel("training images per class")
        axis.set_title(title.replace(" of aerial scenes", ""), fontsize=8)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("test accuracy in %")
    legend = axes[0].get_legend_handles_labels()
    figure.legend(*legend, loc="outside lower center", ncols=7, frameon=False, fontsize=10, columnspacing=1.4)
    figure.savefig(DOCS / "images" / "real-features.png", dpi=130)


def main() -> None:
    load_plugins()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--trainers", nargs="+", default=all_methods())
    parser.add_argument("--shots", nargs="+", type=int, default=SHOTS)
    parser.add_argument("--output-dir", type=Path, default=Path("output/real_features"))
    args = parser.parse_args()
    if args.files:
        measure(args.files, args.trainers, args.shots, args.output_dir)
        write(replaced(read(), collect(args.output_dir)))
    rows = read()
    show(rows)
    draw(rows)


if __name__ == "__main__":
    main()
