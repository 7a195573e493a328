"""CSV tables of images with several classes: every format, the split, the draw, and what is refused."""

from __future__ import annotations

import io
import json
import logging
import random
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from field_layouts import load
from PIL import Image

from dassl_lite.data import Datum
from dassl_lite.data.fewshot import draw_shots
from dassl_lite.data.own_check import check_own_data
from dassl_lite.data.splits import split_multi_label
from dassl_lite.engine.plugins import load_plugins
from dassl_lite.utils.errors import UserError
from dassl_lite.utils.seeding import set_random_seed

CLASSES = ("ant", "bee", "cat")
COUNT = 40


@pytest.fixture(autouse=True, scope="module")
def _registered() -> None:
    load_plugins()


@pytest.fixture(scope="module")
def pictures() -> list[bytes]:
    """Encoded images, drawn once, as drawing takes ten times as long as writing."""
    files = [io.BytesIO() for _ in range(COUNT)]
    for i, file in enumerate(files):
        Image.new("RGB", (40, 40), (i, 0, 0)).save(file, "png")
    return [file.getvalue() for file in files]


@pytest.fixture
def folder(tmp_path: Path, pictures: list[bytes]) -> Path:
    root = tmp_path / "mine"
    root.mkdir()
    for i, picture in enumerate(pictures):
        (root / f"{i:02}.png").write_bytes(picture)
    return root


def classes_of(i: int) -> list[str]:
    """The classes of image i; every eighth image has none."""
    return [name for bit, name in enumerate(CLASSES) if i % 8 >> bit & 1]


Line = Callable[[int], Sequence[str]]  # the lines of image i


def write(folder: Path, header: str, line: Line, numbers: Sequence[int] = range(COUNT)) -> Path:
    path = folder / "mine.csv"
    path.write_text("\n".join([header, *(text for i in numbers for text in line(i))]) + "\n", encoding="utf-8")
    return path


def found(dataset: Any) -> dict[int, tuple[str, ...]]:
    """The class names of each image, by its number."""
    items = [*dataset.train_x, *dataset.val, *dataset.test]
    assert len({item.impath for item in items}) == len(items), "an image is listed once"
    return {int(Path(item.impath).stem): tuple(name for _, name, _ in item.classes) for item in items}


EXPECTED = {i: tuple(classes_of(i)) for i in range(COUNT)}
WAYS: dict[str, tuple[str, Line]] = {
    "a bar": ("path,label", lambda i: [f"{i:02}.png,{'|'.join(classes_of(i))}"]),
    "a bar with spaces": ("path,classname", lambda i: [f"{i:02}.png,{' | '.join(classes_of(i))}"]),
    "a semicolon": ("path,classname", lambda i: [f"{i:02}.png,{';'.join(classes_of(i))}"]),
    "a semicolon beside other separators": ("path;labels", lambda i: [f'{i:02}.png;"{";".join(classes_of(i))}"']),
    "commas in a column labels": ("path,labels", lambda i: [f'{i:02}.png,"{", ".join(classes_of(i))}"']),
    "a column tags": ("filename,tags", lambda i: [f"{i:02}.png,{';'.join(classes_of(i))}"]),
    "JSON lists": ("path,label", lambda i: [f"{i:02}.png,{csv_quoted(json.dumps(classes_of(i)))}"]),
    "Python lists": ("path,classes", lambda i: [f"{i:02}.png,{csv_quoted(repr(classes_of(i)))}"]),
    "one row per class": ("path,labels", lambda i: [f"{i:02}.png,{name}" for name in classes_of(i) or [""]]),
    "zeros and ones": ("path,ant,bee,cat", lambda i: [",".join([f"{i:02}.png", *marks(i)])]),
    "booleans beside other columns": (
        "path,age,cat,ant,bee",
        lambda i: [",".join([f"{i:02}.png", str(i), *(("False", "True")[int(marks(i)[k])] for k in (2, 0, 1))])],
    ),
}


def csv_quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'


def marks(i: int) -> list[str]:
    return [str(int(name in classes_of(i))) for name in CLASSES]


@pytest.mark.parametrize("way", WAYS)
def test_every_format_for_several_classes_is_read_and_logged(
    folder: Path, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "dassl_lite")
    dataset = load("CSV", write(folder, *WAYS[way]))
    assert dataset.multi_label
    assert dataset.classnames == list(CLASSES)
    assert found(dataset) == EXPECTED
    assert "is multi-label" in caplog.text
    assert "5 images with none of the classes" in caplog.text


def test_labels_may_be_numbers_with_names_and_ids_beside_them(folder: Path) -> None:
    def line(i: int) -> list[str]:
        names = classes_of(i) or ["ant"]
        cells = [str(CLASSES.index(name)) for name in names], names, [f"id{name}" for name in names]
        return [",".join([f"{i:02}.png", *("|".join(cell) for cell in cells)])]

    dataset = load("CSV", write(folder, "path,label,classname,classid", line))
    assert dataset.classes.names == CLASSES
    assert dataset.classes.ids == ("idant", "idbee", "idcat")


@pytest.mark.parametrize("header", ["path,label", "path,labels"])
def test_numbers_are_also_separated_by_spaces(folder: Path, header: str) -> None:
    (folder / "classnames.json").write_text(json.dumps(CLASSES))
    path = write(folder, header, lambda i: [f"{i:02}.png,{' '.join(str(CLASSES.index(n)) for n in classes_of(i))}"])
    assert found(load("CSV", path)) == EXPECTED


@pytest.mark.parametrize(
    ("header", "line", "message"),
    [
        ("path,clas,flipped,indoor", "{i:02}.png,{name},0,1", r"a column 'clas' \(did you mean 'class'\?\) beside"),
        ("path,ant,bee,is_train", "{i:02}.png,1,{bit},{bit}", "in a column 'is_train', which is not a class"),
        ("path,ant,bee,Test", "{i:02}.png,1,{bit},{bit}", "in a column 'Test', which is not a class"),
    ],
)
def test_a_zero_one_column_that_is_not_a_class_is_refused(folder: Path, header: str, line: str, message: str) -> None:
    write(folder, header, lambda i: [line.format(i=i, name=CLASSES[i % 3], bit=i % 2)])
    with pytest.raises(UserError, match=message):
        load("CSV", folder)


def test_columns_that_are_read_as_classes_are_named(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(folder, "path,caption,ant,bee", lambda i: [f"{i:02}.png,picture {i},{i % 2},1"])
    with caplog.at_level(logging.INFO):
        load("CSV", folder)
    assert "zeros and ones in 2 columns, each of a class: 'ant', 'bee'" in caplog.text


def test_one_hot_columns_are_read_as_single_label(folder: Path) -> None:
    def line(i: int) -> list[str]:
        return [",".join([f"{i:02}.png", *("1" if k == i % 3 else "0" for k in range(3))])]

    dataset = load("CSV", write(folder, "path,ant,bee,cat", line))
    assert not dataset.multi_label
    assert dataset.classnames == list(CLASSES)


@pytest.mark.parametrize("name", ["Tench, Tinca tinca", "salt;pepper", "a b"])
def test_a_name_that_contains_a_separator_stays_one_class(folder: Path, name: str) -> None:
    names = [name, "bee"]
    dataset = load("CSV", write(folder, "path,classname", lambda i: [f"{i:02}.png,{csv_quoted(names[i % 2])}"]))
    assert not dataset.multi_label
    assert dataset.classnames == sorted(names)


@pytest.mark.parametrize(
    ("header", "lines", "message"),
    [
        ("path,label", ["00.png,ant", "00.png,bee"], "line 3: '00.png' is already listed.*call the column.*'labels'"),
        ("path,label,classname", ["00.png,0|1,ant", "01.png,0,ant"], "has 2 in the column of labels, but 1 classname"),
        ("path,labels", ['00.png,"[""ant"", [1]]"', '01.png,"[""ant""]"'], "is not a list of names or labels"),
        ("path,labels,split", ["00.png,ant,train", "00.png,bee,test"], "is for test, but in another row for train"),
        ("path,labels", ["00.png,", "01.png,"], "no image of the table has a class"),
        ("path,ant", ["00.png,1", "01.png,0"], "needs a header with path, and label or classname"),
        ("path,label,labels", ["00.png,ant,1", "00.png,bee,2"], "is already listed"),
    ],
)
def test_a_table_that_contradicts_itself_is_refused(folder: Path, header: str, lines: list[str], message: str) -> None:
    path = write(folder, header, lambda i: [lines[i]], range(len(lines)))
    with pytest.raises(UserError, match=message):
        load("CSV", path)


@pytest.mark.parametrize("header", ["path,label", "path,labels", "path,classname"])
@pytest.mark.parametrize(
    "cell",
    [
        '["ant", "bee"',
        '"ant", "bee"]',
        "['ant', 'bee'",
        "['ant' 'bee']",
        "['ant'\n 'bee']",
        "[ant, bee]]",
        "[[ant, bee]",
        "[4 6]",
        "[1. 0.]",
        "{'ant', 'bee'}",
        '{"ant": 1}',
        "{ant",
        "('ant', 'bee')",
    ],
)
def test_a_malformed_list_is_refused_naming_its_line(folder: Path, header: str, cell: str) -> None:
    cells = ['["ant", "bee"]', '["bee"]', cell, "['ant', 'cat']", "[]"]
    path = write(folder, header, lambda i: [f"{i:02}.png,{csv_quoted(cells[i])}"], range(len(cells)))
    with pytest.raises(UserError, match="line 4: .* is not a list of classes"):
        load("CSV", path)


def test_plain_names_among_lists_are_one_class_each(folder: Path) -> None:
    def line(i: int) -> list[str]:
        names = classes_of(i)
        return [f"{i:02}.png,{csv_quoted(names[0] if len(names) == 1 else json.dumps(names))}"]

    assert found(load("CSV", write(folder, "path,label", line))) == EXPECTED


@pytest.mark.parametrize("name", ["seal [animal]", "[background]", "Pallas's cat {adult}"])
def test_a_name_with_brackets_stays_a_name(folder: Path, name: str) -> None:
    names = [name, "bee"]
    dataset = load("CSV", write(folder, "path,classname", lambda i: [f"{i:02}.png,{csv_quoted(names[i % 2])}"]))
    assert not dataset.multi_label
    assert dataset.classnames == sorted(names)


def test_separated_names_may_end_in_brackets(folder: Path) -> None:
    path = write(folder, "path,label", lambda i: [f"{i:02}.png,{'|'.join(f'{name} [x]' for name in classes_of(i))}"])
    assert found(load("CSV", path)) == {i: tuple(f"{name} [x]" for name in classes_of(i)) for i in range(COUNT)}


@pytest.mark.parametrize(
    ("cells", "joined"),
    [
        (["ant|bee", "ant;bee", "cat"], "ant;bee"),
        (["ant;bee", "ant|bee;cat", "ant", "cat|bee"], "ant;bee"),
        (["ant", "bee", "ant, bee"], "ant, bee"),
        (['["ant", "bee"]', '["ant; bee"]', "[]"], "ant; bee"),
    ],
)
def test_a_class_name_that_looks_like_several_joined_names_is_reported_once(
    folder: Path, caplog: pytest.LogCaptureFixture, cells: list[str], joined: str
) -> None:
    load("CSV", write(folder, "path,label", lambda i: [f"{i:02}.png,{csv_quoted(cells[i % len(cells)])}"]))
    (message,) = [record.getMessage() for record in caplog.records if "look like several others" in record.getMessage()]
    assert f"'{joined}'" in message


@pytest.mark.parametrize("way", WAYS)
def test_a_consistent_table_has_no_joined_names(folder: Path, way: str, caplog: pytest.LogCaptureFixture) -> None:
    load("CSV", write(folder, *WAYS[way]))
    assert "look like several others" not in caplog.text


@pytest.mark.parametrize(
    ("absent", "message"),
    [
        ("bee", "no training image has label 1, class 'bee'"),
        ("cat", "has label 2, class 'cat', which no training image"),
    ],
)
def test_a_class_without_training_images_is_named(folder: Path, absent: str, message: str) -> None:
    def line(i: int) -> list[str]:
        return [f"{i:02}.png,{'|'.join(classes_of(i))},{'test' if absent in classes_of(i) else 'train'}"]

    with pytest.raises(UserError, match=message):
        load("CSV", write(folder, "path,labels,split", line))


# ---- split and draw --------------------------------------------------------------------------------------------------


def items_of(count: int = 200) -> list[Datum]:
    """Items in which class k occurs in about one of 2 ** (k + 1) images."""
    names = "abcde"
    return [
        Datum(f"/x/{i}.png", classes=[(k, names[k], "") for k in range(5) if (i * 2654435761 >> 7) % 2 ** (k + 1) == 0])
        for i in range(count)
    ]


def counts(items: Sequence[Datum]) -> Counter[int]:
    return Counter(label for item in items for label in item.labels)


def test_a_split_divides_every_class_by_the_fractions() -> None:
    items = items_of()
    split = split_multi_label(items, random.Random(1))
    assert sorted(item.impath for part in split for item in part) == sorted(item.impath for item in items)
    total = counts(items)
    for part, fraction in zip(split, (0.5, 0.2, 0.3), strict=True):
        assert len(part) == pytest.approx(fraction * len(items), abs=3)
        for label, count in counts(part).items():
            assert count == pytest.approx(fraction * total[label], abs=1.5)
    assert split == split_multi_label(items, random.Random(1)) != split_multi_label(items, random.Random(2))


def test_the_split_is_saved_and_read_again(folder: Path) -> None:
    path = write(folder, *WAYS["a bar"])
    first = load("CSV", path)
    kept = first.sidecar.find("split_mine.json")
    rows = json.loads(kept.read_text())["train"]
    assert any(isinstance(label, list) and len(label) == 2 for _, label, _ in rows)
    set_random_seed(9)
    again = load("CSV", path)
    assert (again.train_x, again.val, again.test) == (first.train_x, first.val, first.test)


@pytest.mark.parametrize("shots", [1, 2, 4, 8, 16])
def test_a_draw_gives_every_class_its_shots_and_counts_images_once(shots: int) -> None:
    items = items_of()
    set_random_seed(1)
    drawn = draw_shots(items, shots)
    assert len({item.impath for item in drawn}) == len(drawn)
    available, shots_of = counts(items), counts(drawn)
    assert all(shots_of[label] >= min(shots, available[label]) for label in available)
    rarest = min(available, key=available.__getitem__)
    assert shots_of[rarest] == min(shots, available[rarest])
    assert sum(not item.labels for item in drawn) == min(shots, sum(not item.labels for item in items))
    assert sum(bool(item.labels) for item in drawn) < shots * len(available), (
        "images with several classes serve all of them"
    )
    set_random_seed(1)
    assert draw_shots(items, shots) == drawn
    set_random_seed(2)
    assert draw_shots(items, shots) != drawn


@pytest.mark.parametrize(("shots", "without"), [(1, 1), (4, 4), (16, 10)])
def test_a_draw_has_as_many_images_without_classes_as_shots_per_class(shots: int, without: int) -> None:
    items = [Datum(f"/x/{i}.png", classes=[(0, "yes", "")] if i % 3 else []) for i in range(30)]

    def drawn(seed: int) -> list[Datum]:
        set_random_seed(seed)
        return draw_shots(items, shots)

    assert Counter(bool(item.labels) for item in drawn(1)) == {True: shots, False: without}
    assert len({item.impath for item in drawn(1)}) == shots + without
    assert drawn(1) == drawn(1) != drawn(2)


def test_a_draw_from_a_binary_table_has_both_answers(folder: Path) -> None:
    path = write(folder, "path,labels", lambda i: [f"{i:02}.png,{'ant' if i % 2 else ''}"])
    first = load("CSV", path, NUM_SHOTS=3)
    assert Counter(bool(item.labels) for item in first.train_x) == {True: 3, False: 3}
    assert Counter(bool(item.labels) for item in first.val) == {True: 3, False: 3}
    assert load("CSV", path, NUM_SHOTS=3).train_x == first.train_x


def test_a_draw_contains_images_without_a_class_that_all_others_have() -> None:
    both, one = [(0, "a", ""), (1, "b", "")], [(1, "b", "")]
    items = [Datum(f"/x/{i}.png", classes=both if i < 3 else one if i > 15 else [(0, "a", "")]) for i in range(20)]
    for seed in range(20):  # with some seeds, all drawn images of b also have a
        set_random_seed(seed)
        drawn = draw_shots(items[:16] + items[16:], 2)
        assert any(0 not in item.labels for item in drawn)
        assert any(1 not in item.labels for item in drawn)
        assert len({item.impath for item in drawn}) == len(drawn)


def test_drawing_with_replacement_fills_a_small_class() -> None:
    items = [
        Datum("/x/0.png", classes=[(0, "a", ""), (1, "b", "")]),
        *(Datum(f"/x/{i}.png", 1, classname="b") for i in range(1, 9)),
    ]
    assert counts(draw_shots(items, 4, repeat=True))[0] == 4
    assert counts(draw_shots(items, 4))[0] == 1


def test_a_saved_draw_is_reused_and_one_with_other_labels_is_refused(folder: Path) -> None:
    path = write(folder, *WAYS["a bar"])
    first = load("CSV", path, NUM_SHOTS=2)
    assert first.fewshot_digest == load("CSV", path, NUM_SHOTS=2).fewshot_digest
    assert load("CSV", path, NUM_SHOTS=2).train_x == first.train_x
    kept = first.sidecar.find("split_fewshot/mine/shot_2-seed_1.json")
    content = json.loads(kept.read_text())
    content["train"] = [[impath, 0, "ant"] for impath, _, _ in content["train"]]
    kept.write_text(json.dumps(content))
    with pytest.raises(UserError, match="does not fit this split"):
        load("CSV", path, NUM_SHOTS=2)


def test_base_and_new_classes_share_images_but_no_classes(folder: Path) -> None:
    path = write(folder, *WAYS["a bar"])
    base, new = (load("CSV", path, SUBSAMPLE_CLASSES=which) for which in ("base", "new"))
    assert (base.classnames, new.classnames) == (["ant", "bee"], ["cat"])
    assert found(base) == {i: kept for i in EXPECTED if (kept := tuple(n for n in EXPECTED[i] if n != "cat"))}
    assert found(new) == {i: ("cat",) for i in EXPECTED if "cat" in EXPECTED[i]}
    assert new.multi_label
    assert {item.label for item in new.test} == {0}


def test_a_test_only_table_is_evaluated(folder: Path) -> None:
    dataset = load("CSV", write(folder, *WAYS["a bar"]), TEST_ONLY=True)
    assert (dataset.test_only, len(dataset.test)) == (True, COUNT)


def test_the_check_describes_a_multi_label_table(folder: Path) -> None:
    report = check_own_data(write(folder, *WAYS["a bar"]))
    assert report.taken == "a table of 40 images, not split, multi-label: 1.5 classes per image, 5 without"
    assert (report.images, report.counts) == ({"": 40}, {"": [20, 20, 20]})
    assert report.problems == report.warnings == []


# ---- a Datum with several classes ------------------------------------------------------------------------------------


def test_dassls_attributes_give_the_first_class() -> None:
    item = Datum("x.png", classes=[(2, "cat", "c"), (0, "ant", "")])
    assert (item.label, item.classname, item.classid, item.labels) == (0, "ant", "", (0, 2))
    assert (Datum("x.png", classes=[]).label, Datum("x.png", classes=[]).labels) == (-1, ())
    assert Datum("x.png", classes=[(2, "cat", "c")]) == Datum("x.png", 2, classname="cat", classid="c")
    assert item != Datum("x.png", 0, classname="ant")
