"""The README's numbers stand in the ledger, docs/results/ledger: one file per headline, made by a script of runs/."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
RESULTS = REPOSITORY / "docs" / "results"
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
# Columns of the README's table of real features -> files of features.
FEATURES = {
    "WHU-RS19, RN50": "whurs19_RN50",
    "WHU-RS19, ViT-B/32": "whurs19_ViT-B-32",
    "Caltech101 (30 classes), ViT-B/32": "caltech101",
    "Pets (24 classes), ViT-B/32": "oxford_pets",
}
NUMBER = re.compile(r"[-+]?\d[\d,]*\.?\d*")


def entry(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / "ledger" / f"{name}.json").read_text(encoding="utf-8"))
    return found


def cells(line: str) -> list[str]:
    return [cell.strip().replace("**", "") for cell in line.strip().strip("|").split("|")]


def tables(text: str) -> list[list[list[str]]]:
    """The tables in Markdown and in blocks of text, as rows of cells."""
    found = []
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        lines = block.splitlines()
        found.append([cells(line) for line in [lines[0], *lines[2:]]])
    for block in re.findall(r"```text\n(.*?)```", text, re.DOTALL):
        rows = [re.split(r"\s{2,}", line.strip()) for line in block.splitlines() if "  " in line and "---" not in line]
        found.append(rows)
    return found


def with_numbers(text: str) -> list[list[list[str]]]:
    """The tables that say how something turned out: those with a decimal number in a cell."""
    decimal = re.compile(r"[-+]?\d+\.\d+( ±.*)?")
    return [table for table in tables(text) if any(decimal.fullmatch(cell) for row in table for cell in row)]


def quickstart() -> dict[str, list[str]]:
    """Cells of the README's first table by method, as the ledger has them."""
    rows = entry("quickstart")["table"]["accuracy"]
    shown = {row["method"]: [str(row["shots"]), f"{row['accuracy']:.2f}"] for row in rows}
    gain = next(row["accuracy"] for row in rows if row["method"] == "gain")
    return {**shown, "gain": [f"{gain:+.2f}"]}


def real_features() -> dict[tuple[str, str], str]:
    """(method, file of features) -> the README's cell, at 16 shots."""
    found = {}
    with (RESULTS / entry("real-features")["table"]).open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["method"] == "ZeroshotCLIP":
                found["zero-shot CLIP", row["features"]] = f"{float(row['mean']):.2f}"
            elif row["shots"] == "16":
                found[row["method"], row["features"]] = f"{float(row['mean']):.2f} ± {float(row['ci95']):.2f}"
    return found


def differences(text: str) -> list[str]:
    """Cells of a README's tables that the ledger does not have so."""
    wrong = []
    for header, *rows in with_numbers(text):
        if header[0] == "16 images per class":
            known, files = real_features(), [FEATURES.get(name, "") for name in header[1:]]
            expected = {row[0]: [known.get((row[0], file), "") for file in files] for row in rows}
        elif header[0] == "ShapesNet":
            expected = quickstart()
        else:
            wrong.append(f"the ledger has nothing on the table {header}")
            continue
        wrong += [f"{row}, ledger {expected.get(row[0])}" for row in rows if row[1:] != expected.get(row[0])]
    return wrong


def test_every_number_in_the_readmes_tables_is_the_ledgers() -> None:
    assert len(with_numbers(README)) == 2
    assert differences(README) == []


@pytest.mark.parametrize(
    ("true", "false"),
    [("82.22", "82.23"), ("+23.54", "+23.55"), ("96.59 ± 0.61", "96.59 ± 0.62"), ("| 16 ", "| 8 ")],
)
def test_a_wrong_number_in_the_readme_is_found(true: str, false: str) -> None:
    if true not in README:
        true, false = "TaskRes                        16", "TaskRes                         8"
    assert len(differences(README.replace(true, false, 1))) == 1


def test_a_table_that_the_ledger_does_not_know_is_found() -> None:
    assert len(differences(README + "\n| speed | s |\n|---|---|\n| TaskRes | 1.25 |\n")) == 1


def test_the_readmes_count_of_reference_arrays_is_the_ledgers() -> None:
    files = {path.stem for path in (REPOSITORY / "tests" / "golden").glob("*.npz")}
    rows = [row for row in entry("reference-arrays")["table"]["arrays"] if row["file"] in files]
    assert len(rows) == len(files)
    total = {name: sum(row[name] for row in rows) for name in rows[0] if name != "file"}
    sentence = r"printed (\d+) arrays:.*?(\d+) are inputs and (\d+) record.*?other (\d+) all agree"
    said = re.search(sentence, README, re.DOTALL)
    assert said is not None
    assert list(map(int, said.groups())) == [total[name] for name in ("arrays", "inputs", "known defects", "agree")]
    assert total["agree"] == total["to match"]


@pytest.mark.parametrize("path", sorted((RESULTS / "ledger").glob("*.json")), ids=lambda path: path.stem)
def test_a_file_of_the_ledger_says_when_where_and_how(path: Path) -> None:
    found = entry(path.stem)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", found["date"])
    assert re.fullmatch(r"[0-9a-f]{7,}\+?", found["commit"])
    assert found["command"].startswith(("python ", "bash runs/", "pytest "))
    assert set(found["machine"]) == {"cores", "cpu", "gpus"}
    assert {"python", "torch"} <= set(found["versions"])
    assert found["table"]
    script = "real_features.sh" if path.stem == "real-features" else "demo.sh"
    assert f"ledger.py {path.stem} " in (REPOSITORY / "runs" / script).read_text(encoding="utf-8")
