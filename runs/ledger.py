"""Write a file of the ledger, docs/results/ledger/NAME.json: a headline's numbers, and when, where and how found.

    python runs/ledger.py quickstart output/demo/quickstart --command "..." --seconds 42

The source is a run's folder, a benchmark's folder with its report, what ``pytest --golden-report`` printed (.txt), or a
table (.csv), which stays where it is. tests/docs/test_docs_ledger.py holds the README's numbers against these files.
"""

from __future__ import annotations

import argparse
import csv
import json
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

from dassl_lite.utils.env import environment, usable_cores

REPOSITORY = Path(__file__).resolve().parents[1]
LEDGER = REPOSITORY / "docs" / "results" / "ledger"
NOT_VERSIONS = ("cpus", "threads", "gpus", "platform")  # the last has the kernel's name, which may be a machine's
OF_A_CELL = ("dataset", "method", "shots", "seeds", "mean", "ci95")


def table_of(source: Path) -> Any:
    """Rows in full precision, by the name of the table; or the name of a file that holds them."""
    if source.suffix == ".csv":
        return source.resolve().relative_to(LEDGER.parent).as_posix()
    if source.suffix == ".txt":
        return {"arrays": golden(source.read_text(encoding="utf-8"))}
    if (source / "results.json").is_file():
        return {"accuracy": closing(json.loads((source / "results.json").read_text(encoding="utf-8")))}
    found = {"few-shot": [{key: row[key] for key in OF_A_CELL} for row in rows(source / "report.csv")]}
    transfers = source / "evaluations.csv"
    return {**found, **({"transfers": rows(transfers)} if transfers.is_file() else {})}


def rows(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8", newline="") as file:
        return [{key: _number(value) for key, value in row.items()} for row in csv.DictReader(file)]


def closing(results: dict[str, Any]) -> list[dict[str, Any]]:
    """The table that a run ends with."""
    accuracy, before = results["metrics"]["test"]["accuracy"], results["zero_shot_accuracy"]
    lines = [("zero-shot CLIP", 0, before), (results["method"], results["num_shots"], accuracy)]
    lines.append(("gain", "", accuracy - before))
    names = ("method", "shots", "accuracy")
    return [{"dataset": results["dataset"], **dict(zip(names, line, strict=True))} for line in lines]


def golden(printed: str) -> list[dict[str, Any]]:
    """The table below "reference arrays": file, arrays, inputs, known defects, to match, agree."""
    names = ("file", "arrays", "inputs", "known defects", "to match", "agree")
    lines = [line.split() for line in printed.splitlines()]
    found = [words for words in lines if len(words) == 6 and all(word.isdigit() for word in words[1:])]
    return [dict(zip(names, [words[0], *map(int, words[1:])], strict=True)) for words in found]


def written(entry: dict[str, Any]) -> str:
    """As JSON, each row of a table on a line of its own."""
    tables = entry["table"]
    if isinstance(tables, str):
        return json.dumps(entry, indent=1) + "\n"
    parts = []
    for name, lines in tables.items():
        inside = ",\n".join(f"   {json.dumps(line)}" for line in lines)
        parts.append(f"  {json.dumps(name)}: [\n{inside}\n  ]")
    head = json.dumps({key: value for key, value in entry.items() if key != "table"}, indent=1)
    return f'{head.removesuffix("}").rstrip()},\n "table": {{\n' + ",\n".join(parts) + "\n }\n}\n"


def machine() -> dict[str, Any]:
    """Cores and kinds of processors; no name of the machine."""
    cpu = platform.processor()
    if (info := Path("/proc/cpuinfo")).is_file():
        lines = info.read_text(encoding="utf-8").splitlines()
        cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), cpu)
    return {"cores": usable_cores(), "cpu": cpu, "gpus": environment()["gpus"]}


def commit() -> str:
    """The commit that was run, with a + if a file under version control besides the results differed."""
    head = _git("rev-parse", "--short=9", "HEAD")
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!docs/results")
    return head + ("+" if changed else "")


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.strip()


def _number(text: str) -> Any:
    try:
        return float(text) if "." in text or "e" in text else int(text)
    except ValueError:
        return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("source", type=Path)
    parser.add_argument("--command", required=True, help="what was typed, or the script that did it")
    parser.add_argument("--seconds", required=True, type=float, help="wall time")
    parser.add_argument("--note", action="append", default=[], help="what a reader must know")
    args = parser.parse_args()
    entry = {
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit(),
        "command": args.command,
        "machine": machine(),
        "seconds": args.seconds,
        "versions": {key: value for key, value in environment().items() if key not in NOT_VERSIONS},
        "notes": args.note,
        "table": table_of(args.source),
    }
    LEDGER.mkdir(parents=True, exist_ok=True)
    path = LEDGER / f"{args.name}.json"
    path.write_text(written(entry), encoding="utf-8")
    print(f"{path.relative_to(REPOSITORY)} is written")


if __name__ == "__main__":
    main()
