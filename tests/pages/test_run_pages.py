"""`report.py --html`: the page of a run, and of two runs on the same images."""

from __future__ import annotations

import csv
import json
import re
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from browser import PHONE, opened
from PIL import Image
from scipy.stats import binom

from dassl_lite.config.check import leaves
from dassl_lite.data import Datum
from dassl_lite.data.feature_files import FeatureFile, write_feature_file
from dassl_lite.data.feature_files.file import FeaturePart
from dassl_lite.engine.commands.cli import run_tool
from dassl_lite.engine.commands.evaluate import RunOutputs
from dassl_lite.pages import base
from dassl_lite.pages.confusion import clustered_order
from dassl_lite.pages.curves import read_curves, thinned
from dassl_lite.pages.pair import changes, mcnemar, verdict
from dassl_lite.pages.run import command_of, multi_label_sections, single_label_sections
from dassl_lite.pages.thumbnails import Thumbnails
from dassl_lite.tools import report, train
from dassl_lite.utils.errors import UserError

HOSTILE = "<script>window.hit=1</script>"
COLOURS = {HOSTILE: (210, 30, 30), "a & <b>b</b>": (30, 160, 50), '"blue"': (40, 60, 210), "ñandú": (220, 200, 60)}
FEW = ("OPTIM.MAX_EPOCH", "3", "DATASET.FEATURES.VIEWS", "1", "DATALOADER.NUM_WORKERS", "0")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs of TaskRes and ZeroshotCLIP on images whose classes and files have hostile names."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    with (folder / "table.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split"])
        for index, (name, colour) in enumerate(COLOURS.items()):
            for number in range(14):
                path = f"<img src=x onerror=alert(1)> {index}-{number}.png"
                pixels = np.array(colour) + rng.normal(0, 90, (64, 64, 3))
                Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / path)
                writer.writerow([path, name, "train" if number < 4 else "test"])
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("DASSL_LITE_CACHE", str(folder / "cache"))
        for method, options in (("TaskRes", FEW), ("ZeroshotCLIP", FEW[2:])):
            flags = ["--trainer", method, "--data", str(folder / "table.csv"), "--output-dir", str(folder / method)]
            assert run_tool(train.main, [*flags, *options]) == 0
        arguments = {"run": [folder / "TaskRes"], "pair": [folder / "ZeroshotCLIP", folder / "TaskRes"]}
        for name, given in arguments.items():
            assert run_tool(report.main, [*map(str, given), "--html", str(folder / f"{name}.html")]) == 0
    return folder


@pytest.mark.slow
def test_the_page_of_a_run_has_the_numbers_of_its_results(runs: Path) -> None:
    results = json.loads((runs / "TaskRes" / "results.json").read_text())
    text = (runs / "run.html").read_text(encoding="utf-8")
    metrics = results["metrics"]["test"]
    assert f"<dd>{metrics['accuracy']:.2f} %</dd>" in text
    assert f"<dd>{metrics['ece']:.2f} %</dd>" in text
    assert f"ECE is {metrics['ece']:.2f} %" in text  # computed with the bins of the diagram
    assert f"<dd>{results['zero_shot_accuracy']:.2f} %</dd>" in text
    assert "Evaluated again" not in text
    table = text[text.index('id="per-class"') :]
    rows = [re.findall(r'data-v="([^"]*)"', row) for row in table[: table.index("</table>")].split("<tr>")[2:]]
    found = [(int(row[0]), int(row[1]), float(row[2])) for row in rows]
    assert found == sorted(
        ((r["total"], r["correct"], r["accuracy"]) for r in results["per_class"]), key=lambda r: r[2]
    )
    zero_shot = sum(float(row[3]) / 100 * int(row[0]) for row in rows) / sum(int(row[0]) for row in rows)
    assert 100 * zero_shot == pytest.approx(results["zero_shot_accuracy"])


@pytest.mark.slow
def test_user_supplied_names_are_escaped_on_a_page(runs: Path) -> None:
    for name in ("run", "pair"):
        text = (runs / f"{name}.html").read_text(encoding="utf-8")
        assert "<script>window.hit" not in text
        assert "<img src=x" not in text
        assert "&lt;script&gt;window.hit=1&lt;/script&gt;" in text


@pytest.mark.slow
def test_the_command_on_a_page_gives_the_same_config(runs: Path) -> None:
    config = json.loads((runs / "TaskRes" / "results.json").read_text())["config"]
    words = shlex.split(command_of(config))
    assert words[:4] == ["dassl-lite", "train", "--trainer", "TaskRes"]
    again = leaves(train.config_of(train.make_parser().parse_args(words[2:])))
    from dassl_lite.pages.run import _as_nodes, _plain

    before = leaves(_as_nodes(config))
    differing = {key for key in before if _plain(again.get(key)) != _plain(before[key])}
    assert {key for key in differing if not key.startswith("INPUT.")} <= {"OUTPUT_DIR", "RESUME"}


@pytest.mark.slow
def test_a_browser_shows_the_page_of_a_run(browser: Any, runs: Path) -> None:
    with opened(browser, runs / "run.html") as found:
        page = found.page
        assert page.evaluate("window.hit") is None
        assert page.locator(".plot .main-svg").count() >= 10
        loaded = "[...document.images].filter(one => one.naturalWidth > 0).length"
        assert page.evaluate(loaded) == page.locator(".images img").count() > 0

        box = page.locator("#confusions .nsewdrag").bounding_box()
        page.locator("#confusions").scroll_into_view_if_needed()
        box = page.locator("#confusions .nsewdrag").bounding_box()
        matrix = page.evaluate("document.querySelector('#confusions .plot')._fullData[0].z.map(row => [...row])")
        row, column = next((r, c) for r in range(4) for c in range(4) if r != c and matrix[r][c])
        page.mouse.move(box["x"] + box["width"] * (column + 0.5) / 4, box["y"] + box["height"] * (row + 0.5) / 4)
        page.wait_for_selector("#confusions .hovertext")
        assert f"{matrix[row][column]} images" in page.locator("#confusions .hoverlayer").text_content()
        assert "onerror=alert(1)" in page.locator("#_card").inner_text()
        assert page.evaluate("[...document.querySelectorAll('#_card img')].every(one => one.src.startsWith('data:'))")
        assert (found.complaints, found.requests, found.overflow()) == ([], [], 0)


@pytest.mark.slow
def test_the_pages_fit_a_phone_in_dark_mode(browser: Any, runs: Path) -> None:
    for name in ("run", "pair"):
        with opened(browser, runs / f"{name}.html", dark=True, size=PHONE) as found:
            assert (found.complaints, found.requests, found.overflow()) == ([], [], 0), name


@pytest.mark.slow
def test_the_page_of_two_runs_counts_what_changed(runs: Path) -> None:
    text = (runs / "pair.html").read_text(encoding="utf-8")
    table = text[text.index('id="by-class"') :]
    rows = [re.findall(r'data-v="([^"]*)"', row) for row in table[: table.index("</table>")].split("<tr>")[2:]]
    right = {}
    for method in ("ZeroshotCLIP", "TaskRes"):
        results = json.loads((runs / method / "results.json").read_text())
        right[method] = sum(row["correct"] for row in results["per_class"])
    gained, lost = (sum(int(row[column]) for row in rows) for column in (-2, -1))
    assert gained - lost == right["TaskRes"] - right["ZeroshotCLIP"]
    assert f"<dd>{gained}</dd>" in text
    changed = text[text.index('id="changed-images"') :]
    assert changed[: changed.index("</table>")].count("<tr>") == gained + lost + 1


def answers(logits: Any, labels: Any, paths: list[str] | None = None, names: list[str] | None = None) -> RunOutputs:
    """Outputs of a run, without a method."""
    logits = torch.as_tensor(logits, dtype=torch.float32)
    names = names or [f"class {label}" for label in range(logits.shape[1])]
    paths = [f"{n}.png" for n in range(len(logits))] if paths is None else paths
    trainer = SimpleNamespace(
        lab2cname=dict(enumerate(names)), is_multi_label=False, method_label="Method", dm=SimpleNamespace(dataset=None)
    )
    items = [Datum(path) for path in paths]
    return RunOutputs(trainer, "test", logits, torch.as_tensor(labels), items, None)


def test_changes_match_images_by_path_and_classes_by_name() -> None:
    first = answers([[1, 0], [1, 0], [0, 1], [0, 1]], [0, 1, 1, 0], ["a", "b", "c", "d"], ["cat", "dog"])
    # The same images in another order with the classes swapped, and one more image.
    second = answers(
        [[1, 0], [0, 1], [1, 0], [0, 1], [1, 0]], [1, 0, 0, 1, 0], ["d", "c", "b", "a", "e"], ["dog", "cat"]
    )
    found = changes(first, second)
    assert found.gained.tolist() == [False, True, False, False]  # b: a dog, previously predicted as cat
    assert found.lost.tolist() == [False, False, True, False]  # c: a dog, now predicted as cat
    assert verdict(found, ["A", "B"]) == (
        "B gets 1 image right that A gets wrong, and 1 wrong that the other gets right: +0.00 points of accuracy. By "
        "McNemar's exact test on these 2 images, the difference may be chance (p = 1.0000, level 0.05)."
    )


def test_runs_without_a_common_image_or_class_are_refused() -> None:
    one = answers([[1, 0]], [0])
    with pytest.raises(UserError, match="no test image in common"):
        changes(one, answers([[1, 0]], [0], ["other.png"]))
    with pytest.raises(UserError, match=r"different classes \(2 and 3\)"):
        changes(one, answers([[1, 0, 0]], [0]))


@pytest.mark.parametrize(("lost", "gained"), [(0, 0), (3, 9), (12, 31), (7, 7)])
def test_mcnemars_exact_test_is_twice_the_smaller_tail_of_a_binomial(lost: int, gained: int) -> None:
    tail = binom.cdf(min(lost, gained), lost + gained, 0.5)
    assert mcnemar(lost, gained) == pytest.approx(min(1.0, 2 * tail))


def test_confused_classes_are_placed_next_to_each_other() -> None:
    counts = np.diag([8] * 8)
    pairs = [(0, 7), (1, 4), (2, 6)]
    for row, column in pairs:
        counts[row, column] = counts[column, row] = 4
    order = clustered_order(counts).tolist()
    assert sorted(order) == list(range(8))
    assert [abs(order.index(row) - order.index(column)) for row, column in pairs] == [1, 1, 1]


def test_a_long_curve_is_thinned_to_means_of_adjacent_steps() -> None:
    steps, values = thinned(np.arange(1000), np.arange(1000.0), 100)
    assert len(steps) == 100
    assert values[:2].tolist() == [4.5, 14.5]


def test_invalid_event_files_give_no_curves(tmp_path: Path) -> None:
    assert read_curves(tmp_path / "missing") == {}
    (tmp_path / "events.out.tfevents.1").write_bytes(b"\x00" * 100 + b"not events")
    assert read_curves(tmp_path) == {}
    (tmp_path / "events.out.tfevents.1").unlink()
    (tmp_path / "events.out.tfevents.2").symlink_to("/dev/zero")
    assert read_curves(tmp_path) == {}


@pytest.mark.slow
def test_a_page_of_a_thousand_classes_stays_small(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(1000).repeat(10)
    logits = rng.normal(size=(10_000, 1000)).astype(np.float32)
    logits[np.arange(10_000), labels] += 3
    found = answers(logits, labels, names=[f"a class with a name of usual length, {n}" for n in range(1000)])
    sections = single_label_sections(found, Thumbnails(answers(logits[:1], labels[:1], [])))
    base.write_page(base.Page("t", sections), path := tmp_path / "page.html")
    assert path.stat().st_size < 7_500_000


@pytest.mark.slow
def test_the_page_of_a_run_on_features_says_that_there_are_no_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(3).repeat(6)
    features = rng.standard_normal((1, 18, 8), dtype=np.float32)
    parts = {name: FeaturePart(features, labels) for name in ("train", "test")}
    write_feature_file(FeatureFile(parts, ("cat", "dog", "cow"), features[:, :3]), tmp_path / "features.npz")
    run = tmp_path / "run"
    flags = ["--trainer", "TaskRes", "--data", str(tmp_path / "features.npz"), "--output-dir", str(run)]
    assert run_tool(train.main, [*flags, "OPTIM.MAX_EPOCH", "2"]) == 0
    assert run_tool(report.main, [str(run), "--html", str(tmp_path / "page.html")]) == 0
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "only features, so no images are shown" in text
    assert "data-image=" not in text.replace("[data-image]", "")
    assert 'id="feature-projection"' in text
    capsys.readouterr()
    monkeypatch.setitem(__import__("sys").modules, "jinja2", None)
    assert run_tool(report.main, [str(run), "--html", str(tmp_path / "other.html")]) == 2
    assert capsys.readouterr().err == 'Error: --html needs jinja2: pip install "dassl-lite[html]"\n'


def test_a_page_of_a_folder_without_a_run_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = str(tmp_path / "page.html")
    assert run_tool(report.main, [str(tmp_path), str(tmp_path), "--html", page]) == 2
    assert f"'{tmp_path}' is not the folder of a run" in capsys.readouterr().err
    assert run_tool(report.main, [str(tmp_path), str(tmp_path)]) == 2
    assert "add --html FILE" in capsys.readouterr().err


def test_the_page_of_multi_label_data_lists_average_precisions_worst_first() -> None:
    found = answers([[3.0, -2, 1], [-1, 2, 0]], [[1, 0, 0], [0, 1, 1]], names=["cat", HOSTILE, "cow"])
    rows = [{"classname": "cat", "total": 1, "ap": 90.0}, {"classname": HOSTILE, "total": 0, "ap": None}]
    found.trainer.evaluator = SimpleNamespace(per_class=[*rows, {"classname": "cow", "total": 1, "ap": 12.5}])
    classes, pictures = multi_label_sections(found, Thumbnails(answers(found.logits, found.labels, [])))
    assert [row[0] for row in classes.parts[0].rows] == ["cow", "cat", HOSTILE]
    wrong, missed = (gallery.images[0] for gallery in pictures.parts)
    assert (wrong.title, wrong.scores[1][0]) == ("cat", "cow")  # predicted as likely, but absent
    assert missed.title == f"{HOSTILE}, cow"
    assert HOSTILE not in base.render(base.Page("t", [classes, pictures]))
