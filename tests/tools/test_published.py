"""Published numbers: every file in configs/published, and how a report shows them beside ours."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from dassl_lite.data import DATASET_REGISTRY
from dassl_lite.engine.build import TRAINER_REGISTRY, configs_root
from dassl_lite.engine.commands.cli import run_tool
from dassl_lite.engine.commands.published import (
    AVERAGE,
    FIELD,
    Published,
    Source,
    inconsistencies,
    read_source,
    read_sources,
)
from dassl_lite.engine.commands.tables import Table, escape_latex
from dassl_lite.engine.plugins import load_plugins
from dassl_lite.tools import report
from dassl_lite.utils import UserError
from dassl_lite.utils.files import write_json

FILES = sorted((configs_root() / "published").glob("*.yaml"))

CONTENT: dict[str, Any] = {
    **{"key": "Paper", "paper": "A paper", "read_in": "a page", "backbone": "RN50", "methods": {"Tip": "TipAdapter"}},
    "tables": [
        {
            **{"table": "1", "protocol": "few-shot", "columns": [4, 16]},
            "values": {"EuroSAT": {"CLIP": 37.5, "Tip": [65.32, 70.54]}},
        },
        {
            **{"table": "2", "protocol": "base-to-new", "shots": 16, "columns": ["base", "new", "H"]},
            "values": {"EuroSAT": {"CoOp": [92.19, 54.74, 68.69]}},
        },
    ],
}


@pytest.fixture(autouse=True)
def _methods() -> None:
    load_plugins()


@pytest.fixture(scope="module")
def sources() -> list[Source]:
    return read_sources()


def written(folder: Path, content: Any, name: str = "paper.yaml") -> Path:
    path = folder / name
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_a_file_names_known_datasets_and_methods_and_does_not_contradict_itself(path: Path) -> None:
    source = read_source(path)
    assert {value.dataset for value in source.values} <= {*DATASET_REGISTRY, AVERAGE}
    assert {value.method for value in source.values} <= {*TRAINER_REGISTRY}
    assert inconsistencies(source) == []
    assert len(source.read_in) > len("owner/name, file")


def test_the_sources_have_different_keys_and_the_field_has_eleven_datasets(
    tmp_path: Path, sources: list[Source]
) -> None:
    assert len(sources) == len(FILES) > 10
    assert len(FIELD) == 11
    assert set(DATASET_REGISTRY) > FIELD
    for name in ("one.yaml", "two.yaml"):
        written(tmp_path, CONTENT, name)
    with pytest.raises(UserError, match="two files of published numbers have the key Paper"):
        read_sources(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"key": ""}, "key is missing"),
        ({"papier": "x"}, "unknown keys papier"),
        ({"backbone": None}, "backbone is missing"),
        ({"methods": {"Tip": "TipAdapter", "Tap": "CoOp"}}, "no table has the method Tap"),
        ({"tables": []}, "not a list of tables"),
        ({"tables": [{**CONTENT["tables"][0], "protocol": "one-shot"}]}, "unknown protocol 'one-shot'"),
        ({"tables": [{**CONTENT["tables"][0], "columns": [4, "base"]}]}, "columns of table 1"),
        ({"tables": [{**CONTENT["tables"][0], "values": {"EuroSAT": {"Tip": [1.0]}}}]}, "1 values for 2 columns"),
        ({"tables": [{**CONTENT["tables"][0], "values": {"EuroSAT": {"Tip": [1.0, 654]}}}]}, "654 is not a number"),
        ({"tables": [{**CONTENT["tables"][0], "values": {"EuroSAT": {"Tip": [1.0, "2"]}}}]}, "'2' is not a number"),
        ({"tables": [{**CONTENT["tables"][1], "shots": None}]}, "shots are missing"),
        ({"tables": [{**CONTENT["tables"][1], "doubtful": {"DTD": ["CoOp"]}}]}, "doubtful in table 2"),
    ],
    ids=lambda given: given if isinstance(given, str) else "",
)
def test_a_malformed_file_is_refused_in_one_line(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = written(tmp_path, {**CONTENT, **change})
    with pytest.raises(UserError, match=message) as caught:
        read_source(path)
    assert "\n" not in str(caught.value)


def test_a_value_has_its_dataset_method_shots_and_split(tmp_path: Path) -> None:
    values = read_source(written(tmp_path, CONTENT)).values
    assert [(v.dataset, v.method, v.shots, v.split, v.value) for v in values] == [
        ("EuroSAT", "CLIP", 0, "all", 37.5),
        ("EuroSAT", "TipAdapter", 4, "all", 65.32),
        ("EuroSAT", "TipAdapter", 16, "all", 70.54),
        ("EuroSAT", "CoOp", 16, "base", 92.19),
        ("EuroSAT", "CoOp", 16, "new", 54.74),
        ("EuroSAT", "CoOp", 16, "H", 68.69),
    ]


def test_typing_errors_are_found_unless_marked_as_errors_of_the_source(tmp_path: Path) -> None:
    table = {**CONTENT["tables"][1], "values": {"EuroSAT": {"CoOp": [92.19, 54.74, 86.69]}}}
    only = {**CONTENT, "methods": {}}
    found = inconsistencies(read_source(written(tmp_path, {**only, "tables": [table]})))
    assert found == ["EuroSAT CoOp 16: H is 86.69, not 68.69"]
    marked = {**table, "doubtful": {"EuroSAT": ["CoOp"]}}
    assert inconsistencies(read_source(written(tmp_path, {**only, "tables": [marked]}))) == []
    right = {**marked, "values": CONTENT["tables"][1]["values"]}
    found = inconsistencies(read_source(written(tmp_path, {**only, "tables": [right]})))
    assert found == ["EuroSAT CoOp 16: marked doubtful, but is not"]
    shift: dict[str, Any] = {"table": "3", "protocol": "domain-generalization"}
    shift |= {"columns": ["ImageNet", "ImageNetA", "ImageNetR", AVERAGE], "values": {16: {"CoOp": [90, 40, 50, 45]}}}
    assert inconsistencies(read_source(written(tmp_path, {**only, "tables": [shift]}))) == []
    shift["values"] = {16: {"CoOp": [90, 40, 50, 60]}}
    found = inconsistencies(read_source(written(tmp_path, {**only, "tables": [shift]})))
    assert found == ["average CoOp 16: all is 60.0, not 45.000"]


def test_a_lookup_matches_dataset_method_shots_backbone_and_classes(sources: list[Source]) -> None:
    published = Published(sources)
    found = published.find("EuroSAT", "TipAdapterF", 4, "RN50")
    assert [(value.source, value.value) for value in found] == [("Tip-Adapter", 74.12)]
    assert published.find("EuroSAT", "TipAdapterF", 3, "RN50") == []
    assert published.find("EuroSAT", "TipAdapterF", 4, "ViT-B/16") == []
    assert published.find("Paints", "TipAdapterF", 4, "RN50") == []
    assert published.find("EuroSAT", "TipAdapterF", 4, "RN50", "") == []
    assert {value.value for value in published.find("EuroSAT", "CoOp", 16, "ViT-B-16", "base")} == {92.19}
    assert published.find("EuroSAT", "CoOp", 16, "ViT-B/16") == []
    # Without shots, numbers are equal in all protocols; averages cover the eleven datasets of the few-shot protocol.
    assert {value.source for value in published.find("ImageNetA", "ZeroshotCLIP", 4, "ViT-B/16")} > {"HPT", "CraFT"}
    assert {value.value for value in published.find(AVERAGE, "ZeroshotCLIP", 0, "ViT-B/16")} == {65.36, 65.1}


def test_disagreeing_sources_are_both_shown_and_marked(sources: list[Source]) -> None:
    published = Published(sources)
    texts = published.compare(80.0, published.find("EuroSAT", "MaPLe", 4, "ViT-B/16"))
    assert texts == ("84.50 [PromptSRC-13] ≠ 54.87 [TCP-4]", "-4.50 / +25.13")
    notes = published.notes()
    assert "≠: sources disagree" in notes[0]
    assert [note.split("]")[0] for note in notes[1:]] == ["[PromptSRC-13", "[TCP-4"]
    assert "issues/7" in notes[1]


def test_agreeing_sources_share_a_number_and_doubtful_ones_are_marked(sources: list[Source]) -> None:
    published = Published(sources)
    texts = published.compare(70.0, published.find("EuroSAT", "TipAdapter", 16, "RN50"))
    assert texts == ("70.54 [GDA, Tip-Adapter]", "-0.54")
    assert "≠" not in published.notes()[0]
    texts = published.compare(95.0, published.find("EuroSAT", "MaPLe", 16, "ViT-B/16", "base"))
    assert texts == ("94.07? [MaPLe-paper, RMAdapter]", "+0.93")
    assert "contradict" in published.notes()[0]


def test_numbers_are_compared_to_the_decimals_that_both_sources_print(sources: list[Source]) -> None:
    by_key = {source.key: source.values for source in sources}
    one_decimal = next(v for v in by_key["HALoRA"] if (v.dataset, v.shots) == (AVERAGE, 4))
    two = next(v for v in by_key["CLIP-SVD"] if (v.dataset, v.method, v.shots) == (AVERAGE, "CLIPLoRA", 4))
    assert (one_decimal.value, two.value) == (77.4, 77.32)
    assert not one_decimal.agrees(two)
    assert one_decimal.agrees(type(two)(**{**vars(two), "value": 77.36}))


def sweep_of(root: Path, *runs: tuple[str, str, int, float], classes: str = "all", backbone: str = "RN50") -> Path:
    for dataset, method, shots, accuracy in runs:
        results = {
            **{"trainer": method, "dataset": dataset, "backbone": backbone, "num_shots": shots, "seed": 1},
            **{"metrics": {"test": {"accuracy": accuracy}}},
            **{"config": {"DATASET": {"SUBSAMPLE_CLASSES": classes}}},
        }
        write_json(results, root / dataset / method / f"{shots}shots" / "results.json")
    return root


@pytest.mark.slow
def test_a_report_shows_published_numbers_beside_ours_with_their_sources(tmp_path: Path, capsys: Any) -> None:
    runs = [("EuroSAT", "TipAdapterF", 4, 75.0), ("EuroSAT", "TipAdapterF", 3, 70.0), ("EuroSAT", "GDA", 4, 75.0)]
    sweep_of(tmp_path, *runs, ("Paints", "GDA", 4, 50.0), ("EuroSAT", "ZeroshotCLIP", 0, 37.52))
    assert run_tool(report.main, [str(tmp_path), "--published"]) == 0
    out = capsys.readouterr().out
    main_table = [line for line in (tmp_path / "report.md").read_text(encoding="utf-8").splitlines() if "|" in line]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in main_table]
    zero = ["37.52 [Tip-Adapter] ≠ 37.56 [GDA]", "+0.00 / -0.04"]
    zero_row = next(row for row in rows if row[:2] == ["EuroSAT", "ZeroshotCLIP"])
    assert sorted(zero_row[3].split(" ≠ ")) == sorted(zero[0].split(" ≠ "))
    assert rows[0][2:5] == ["3 shots", "published, 3 shots", "difference, 3 shots"]
    tip = next(row for row in rows if row[:2] == ["EuroSAT", "TipAdapterF"])
    assert tip[2:] == ["70.00", "", "", "75.00", "74.12 [Tip-Adapter]", "+0.88"]
    assert next(row for row in rows if row[:2] == ["Paints", "GDA"])[2:] == ["", "", "", "50.00", "", ""]
    assert "others' numbers, not ours" in out
    assert "[Tip-Adapter] Tip-Adapter: Training-free" in out
    assert "[HPT]" not in out
    assert r"74.12 [Tip-Adapter] & +0.88" in (tmp_path / "report.tex").read_text(encoding="utf-8")
    assert r"$\neq$" in (tmp_path / "report.tex").read_text(encoding="utf-8")
    assert "74.12" not in (tmp_path / "report.csv").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_report_says_in_one_line_that_nothing_is_published(tmp_path: Path, capsys: Any) -> None:
    sweep_of(tmp_path, ("Paints", "GDA", 4, 50.0), ("EuroSAT", "GDA", 4, 50.0), backbone="demo")
    assert run_tool(report.main, [str(tmp_path), "--published"]) == 0
    out = capsys.readouterr().out
    assert len([line for line in out.splitlines() if "published" in line]) == 1
    assert "nothing published for these runs" in out


@pytest.mark.slow
def test_a_user_folder_with_a_published_name_is_not_compared(tmp_path: Path, capsys: Any) -> None:
    sweep_of(tmp_path, ("EuroSAT", "GDA", 4, 75.0), ("EuroSAT", "ZeroshotCLIP", 0, 40.0))
    for path in tmp_path.rglob("results.json"):
        results = yaml.safe_load(path.read_text(encoding="utf-8"))
        results["dataset"] = "ImageFolder"
        results["config"]["DATASET"]["ROOT"] = "/data/EuroSAT"
        write_json(results, path)
    assert run_tool(report.main, [str(tmp_path), "--published"]) == 0
    out = capsys.readouterr().out
    assert "EuroSAT" in out
    assert "nothing published" in out


@pytest.mark.slow
def test_base_class_runs_are_compared_with_base_numbers_and_other_metrics_are_not_compared(
    tmp_path: Path, capsys: Any
) -> None:
    sweep_of(tmp_path, ("EuroSAT", "CoOp", 16, 92.0), classes="base", backbone="ViT-B/16")
    assert run_tool(report.main, [str(tmp_path), "--published"]) == 0
    assert "92.19 [RMAdapter]" in capsys.readouterr().out
    sweep_of(tmp_path, ("EuroSAT", "CoOp", 16, 92.0), classes="new", backbone="ViT-B/16")
    assert run_tool(report.main, [str(tmp_path), "--published"]) == 0
    assert "nothing published" in capsys.readouterr().out


@pytest.mark.slow
def test_averages_over_exactly_the_standard_datasets_are_compared_with_published_ones(
    tmp_path: Path, capsys: Any
) -> None:
    eleven = [(dataset, "CLIPLoRA", 4, 77.0) for dataset in sorted(FIELD)]
    sweep_of(tmp_path, *eleven, backbone="ViT-B/16")
    assert run_tool(report.main, [str(tmp_path), "--published"]) == 0
    assert "77.32 [CLIP-SVD] ≠ 77.4 [HALoRA]" in capsys.readouterr().out
    sweep_of(tmp_path, ("Paints", "CLIPLoRA", 4, 77.0), backbone="ViT-B/16")
    assert run_tool(report.main, [str(tmp_path), "--published"]) == 0
    assert "77.32 [CLIP-SVD]" not in capsys.readouterr().out


def test_adding_columns_keeps_the_marks_in_place() -> None:
    table = Table("", ["a", "b", "c"], [["1", "2", "3"], ["4", "5", "6"]], {(0, 1): 1, (1, 2): 2})
    wide = table.with_columns(["p", "d"], {1: {1: ("x", "y")}, 2: {}})
    assert wide.headers == ["a", "b", "p, b", "d, b", "c"]
    assert wide.rows == [["1", "2", "", "", "3"], ["4", "5", "x", "y", "6"]]
    assert wide.places == {(0, 1): 1, (1, 4): 2}
    assert table.with_columns(["p"], {}).rows == table.rows


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("pdflatex"), reason="pdflatex is not installed")
def test_the_latex_with_published_numbers_compiles_and_fits(tmp_path: Path) -> None:
    runs = [("EuroSAT", method, shots, 70.0) for method in ("GDA", "TipAdapterF") for shots in (1, 4, 16)]
    sweep_of(tmp_path, *runs, ("EuroSAT", "ZeroshotCLIP", 0, 40.0))
    assert run_tool(report.main, [str(tmp_path), "--published"]) == 0
    first = (tmp_path / "report.tex").read_text(encoding="utf-8").splitlines()[0].removeprefix("% ")
    body = [r"\documentclass{article}", first, r"\begin{document}", r"\input{report}", r"\end{document}"]
    (tmp_path / "paper.tex").write_text("\n".join(body), encoding="utf-8")
    command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "paper.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "graphicx" in first
    assert "Overfull" not in done.stdout


def test_only_tables_that_are_too_wide_are_shrunk() -> None:
    narrow = Table("", ["a", "b"], [["1", "2"]])
    assert r"\resizebox" not in narrow.with_columns(["p"], {1: {0: "3"}}).as_latex()
    wide = narrow.with_columns(["p"], {1: {0: ["3" * 90]}})
    assert r"\resizebox" in wide.as_latex()


def test_a_table_longer_than_a_page_continues_on_the_next() -> None:
    rows = [[f"data{r // 30}", str(r)] for r in range(100)]
    latex = Table("Means", ["dataset", "x"], rows, {(99, 1): 1}).as_latex()
    assert latex.count(r"\begin{table}") == latex.count(r"\end{table}") == 3
    assert [latex.count(title) for title in ("{Means}", "{Means, continued}")] == [1, 2]
    # Each of the first two pages ends with a dataset.
    assert [part.count(" & ") - 1 for part in latex.split(r"\toprule")[1:]] == [30, 30, 40]
    assert r"data3 & \textbf{99}" in latex
    one = Table("", ["method", "x"], [["one", str(r)] for r in range(50)]).as_latex()
    assert [part.count(" & ") - 1 for part in one.split(r"\toprule")[1:]] == [40, 10]


def test_latex_turns_every_hyphen_before_a_number_into_a_minus() -> None:
    assert escape_latex("-4.50 / -25.13") == "$-$4.50 / $-$25.13"
    assert escape_latex("ViT-B-16 1 ≠ 2") == r"ViT-B-16 1 $\neq$ 2"
