"""CSV: a user's table of images, written by hand, by pandas or by a spreadsheet program."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from field_layouts import load
from PIL import Image

from dassl_lite.engine.plugins import load_plugins
from dassl_lite.utils.errors import UserError
from dassl_lite.utils.seeding import set_random_seed


@pytest.fixture(autouse=True, scope="module")
def _registered() -> None:
    load_plugins()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Thirty images, ten of each of three classes."""
    root = tmp_path / "mine"
    (root / "images").mkdir(parents=True)
    for i in range(30):
        Image.new("RGB", (4, 4), (i, 0, 0)).save(root / "images" / f"{i:02}.png")
    return root


CLASSES = ("white shark", "ant", "n01440764")


def rows(classes: Sequence[Any] = CLASSES) -> list[list[str]]:
    return [[f"images/{i:02}.png", str(classes[i % len(classes)])] for i in range(30)]


def table(folder: Path, header: str, lines: Sequence[Sequence[str]], name: str = "mine.csv", sign: str = ",") -> Path:
    path = folder / name
    path.write_text("\n".join([header, *(sign.join(line) for line in lines)]) + "\n", encoding="utf-8")
    return path


def sizes(dataset: Any) -> tuple[int, int, int]:
    return len(dataset.train_x), len(dataset.val), len(dataset.test)


@pytest.mark.parametrize("header", ["path,classname", "Image,Class", "FILE,label"])
def test_class_names_alone_make_a_dataset(folder: Path, header: str) -> None:
    table(folder, header, rows())
    dataset = load("CSV", folder)
    assert sizes(dataset) == (15, 6, 9)
    assert dataset.classnames == ["ant", "tench", "white shark"]  # a wnid gets its ImageNet name
    assert dataset.classes.ids == ("", "n01440764", "")
    assert all(Path(item.impath).is_file() for item in dataset.test)


def test_the_split_is_saved_and_independent_of_the_seed(folder: Path) -> None:
    path = table(folder, "path,classname", rows())
    first = load("CSV", path)
    assert not (folder / "split_mine.json").exists()
    assert load("CSV", path, SPLITS_IN="dataset").test == first.test
    kept = first.sidecar.find("split_mine.json")
    assert kept is not None
    kept.unlink()
    set_random_seed(7)
    assert load("CSV", path).test == load("CSV", folder).test == first.test


def test_labels_and_names_are_used_as_given(folder: Path) -> None:
    lines = [[*line, ("dog", "Cat", "yak")[int(line[1])], f"id{line[1]}"] for line in rows((2, 0, 1))]
    dataset = load("CSV", table(folder, "path,label,classname,classid", lines))
    assert dataset.classnames == ["dog", "Cat", "yak"]
    assert dataset.classes.ids == ("id0", "id1", "id2")
    assert load("CSV", folder, NUM_SHOTS=1).classes.ids == ("id0", "id1", "id2")


def test_two_classes_with_the_same_name_stay_two(folder: Path) -> None:
    lines = [[*line, "missile", f"n0{line[1]}"] for line in rows((0, 1))]
    dataset = load("CSV", table(folder, "path,label,classname,classid", lines))
    assert (dataset.classnames, dataset.classes.ids) == (["missile", "missile"], ("n00", "n01"))


def test_labels_without_names_log_a_warning(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = [[*row, "train" if i < 15 else "test"] for i, row in enumerate(rows(range(11)))]
    with caplog.at_level(logging.WARNING):
        dataset = load("CSV", table(folder, "path,label,split", lines))
    assert dataset.classnames == [str(label) for label in range(11)]
    assert "prompts use their labels" in caplog.text


@pytest.mark.parametrize("names", [["ant", "bee", "cat"], {"0": "ant", "1": {"name": "bee", "id": "i1"}, "2": "cat"}])
def test_class_names_come_from_classnames_json(folder: Path, names: Any) -> None:
    table(folder, "path,label", rows((2, 0, 1)))
    (folder / "classnames.json").write_text(json.dumps(names))
    dataset = load("CSV", folder)
    assert dataset.classnames == ["ant", "bee", "cat"]
    assert dataset.classes.ids[1] == ("i1" if isinstance(names, dict) else "")


def test_the_split_column_of_the_table_is_used(folder: Path) -> None:
    parts = ["train"] * 15 + ["Valid"] * 6 + ["TEST"] * 9
    path = table(folder, "path,classname,split", [[*row, part] for row, part in zip(rows(), parts, strict=True)])
    dataset = load("CSV", path)
    assert sizes(dataset) == (15, 6, 9)
    assert dataset.train_x[0].impath.endswith("images/00.png")
    assert sizes(load("CSV", path, NUM_SHOTS=1)) == (3, 3, 9)
    assert sorted(entry.name for entry in folder.iterdir()) == ["images", "mine.csv"]
    parts = ["train"] * 15 + ["val"] * 15
    table(folder, "path,classname,split", [[*row, part] for row, part in zip(rows(), parts, strict=True)])
    assert sizes(load("CSV", path)) == (15, 0, 15)  # model selection must not see test images


@pytest.mark.parametrize("sign", [",", ";", "\t"])
def test_each_separator_is_recognised(folder: Path, sign: str) -> None:
    path = table(folder, sign.join(("path", "classname", "note")), [[*row, "a"] for row in rows()], "t.tsv", sign)
    assert load("CSV", path).num_classes == 3


def test_a_table_exported_by_a_spreadsheet_program_is_read(folder: Path) -> None:
    text = "path,classname\r\n" + "".join(f'{a},"{b}, ""big"""\r\n' for a, b in rows(("ant", "bee"))) + ",\r\n"
    (folder / "mine.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert load("CSV", folder).classnames == ['ant, "big"', 'bee, "big"']


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-16-le"])
def test_a_utf_16_table_is_recognised_by_its_byte_order_mark(folder: Path, encoding: str) -> None:
    text = "\r\n".join(["path;classname", *(";".join(row) for row in rows(("Müll", "ant", "bee")))])
    data = text.encode(encoding)
    (folder / "mine.csv").write_bytes(data if encoding == "utf-16" else "\ufeff".encode(encoding) + data)
    assert load("CSV", folder).classnames == ["Müll", "ant", "bee"]


def test_integer_labels_that_pandas_wrote_as_floats_are_read_as_integers(folder: Path) -> None:
    dataset = load("CSV", table(folder, "path,label", rows(("2.0", "0.0", "1"))))
    assert dataset.classnames == ["0", "1", "2"]
    (folder / "mine.csv").unlink()
    named = [[*row, f"thing {row[1]}"] for row in rows(("1.0", "0.0", "2.0"))]
    assert load("CSV", table(folder, "path,label,classname", named)).classnames == [f"thing {i}.0" for i in range(3)]
    versions = load(
        "CSV", table(folder, "path,label", rows(("2.0", "0.5", "1.0")), "versions.csv").rename(folder / "v.csv")
    )
    assert versions.classnames == ["0.5", "1.0", "2.0"]  # kept as names, as one is not an integer


def test_a_class_only_in_the_test_split_is_evaluated_and_reported(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = [
        [*row, "test" if row[1] == "tench" or i < 6 else "train"] for i, row in enumerate(rows(("ant", "bee", "tench")))
    ]
    path = table(folder, "path,classname,split", lines)
    with pytest.raises(UserError, match="class 'tench', which no training image has"):
        load("CSV", path)
    dataset = load("CSV", path, TEST_ONLY=True)
    assert dataset.classnames == ["ant", "bee", "tench"]
    assert len(dataset.test) == 14
    assert "Classes without training images, which are evaluated nevertheless: 'tench'" in caplog.text


def test_paths_outside_the_folder_are_kept(folder: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "tables"
    elsewhere.mkdir()
    lines = [[f"../mine/{path}", name] for path, name in rows()]
    lines[0][0] = str(folder / "images" / "00.png")  # absolute
    path = table(elsewhere, "path,classname", lines)
    first = load("CSV", path, NUM_SHOTS=2)
    again = load("CSV", path, NUM_SHOTS=2)
    assert again.train_x == first.train_x
    assert again.test == first.test
    assert all(Path(item.impath).is_file() and ".." not in item.impath for item in again.test)


def test_two_tables_in_a_folder_have_separate_files(folder: Path) -> None:
    one, two = (
        table(folder, "path,classname", rows(classes), f"{n}.csv") for n, classes in (("a", "xyz"), ("b", "pq"))
    )
    assert load("CSV", one, NUM_SHOTS=1).num_classes == 3
    assert load("CSV", two, NUM_SHOTS=1).num_classes == 2
    with pytest.raises(UserError, match=r"the folder '.*mine' has 2: a\.csv, b\.csv"):
        load("CSV", folder)


def test_changes_to_the_table_after_the_split_are_reported(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = table(folder, "path,classname", rows())
    dataset = load("CSV", path)
    tested = next(i for i in range(30) if dataset.test[0].impath.endswith(f"{i:02}.png"))
    table(folder, "path,classname", [row for i, row in enumerate(rows()) if i != tested])
    with pytest.raises(UserError, match=r"has 1 image no longer listed: .*delete .*split_mine\.json"):
        load("CSV", path)
    Image.new("RGB", (4, 4)).save(folder / "images" / "30.png")
    table(folder, "path,classname", [*rows(), ["images/30.png", "ant"]])
    with caplog.at_level(logging.WARNING):
        assert sizes(load("CSV", path)) == (15, 6, 9)
    assert "Ignored 1 image added after the split" in caplog.text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,weight\na,1\n", r"needs a header with path, and label or classname .* first line is: image, weight"),
        ("", "its first line is: empty"),
        ("path,label\n", "lists no images"),
        ("path,image,label\n", "has two columns for 'path': path, image, label"),
        ("path,classname\nimages/00.png,ant\nimages/01.png\n", r"line 3 has no classname: images/01\.png"),
        ("path,classname\n,ant\n", "line 2 has no path"),
        ("path,classname\nimages/00.png,\n", "line 2 has no class name"),
        ("path,label,classname\nimages/00.png,0,a\nimages/01.png,x,b\n", "line 3: label 'x' is not a whole number"),
        ("path,label,classname\nimages/00.png,-1,a\n", "line 2: label '-1' is not a whole number"),
        ("path,label,classname\na,0,a\nb,0,b\n", r"line 3: class '0' has a different name or id in .* line 2"),
        ("path,classname,classid\na,x,1\nb,x,2\n", r"line 3: class 'x' has a different name or id in .* line 2"),
        ("path,classname\na,x\n\na,x\n", r"line 4: 'a' is already listed in .* line 2"),
        ("path,classname,split\na,x,train\nb,x,tset\n", r"unknown split in .*line 3: 'tset'\. Did you mean 'test'"),
        ("path,classname,split\na,x,train\nb,x,\n", r"unknown split in .*line 3: ''"),
        ("path,classname,split\na,x,train\n", "has the split test or val"),
        ('path,classname\n"a,x\n', "cannot read the table"),
        (
            "path,label,classname,split\na.png,0,a,train\nb.png,2,c,train\nc.png,0,a,test\n",
            r"table '.*mine\.csv': missing 3 of 3 images",
        ),
    ],
)
def test_an_invalid_row_is_named(folder: Path, text: str, message: str) -> None:
    (folder / "mine.csv").write_text(text)
    with pytest.raises(UserError, match=message) as raised:
        load("CSV", folder / "mine.csv")
    assert "\n" not in str(raised.value)


def test_a_table_that_cannot_be_read_is_named(folder: Path) -> None:
    (folder / "mine.csv").write_bytes("path,classname\ncaf\xe9.png,x\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"cannot read the table '.*mine\.csv': 'utf-8'"):
        load("CSV", folder)
    with pytest.raises(UserError, match=r"cannot read the table '.*other\.csv': .*No such file"):
        load("CSV", folder / "other.csv")
    (folder / "mine.csv").unlink()
    with pytest.raises(UserError, match=r"set the root to the table's file; the folder '.*mine' has none"):
        load("CSV", folder)


def test_an_unused_column_is_logged(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    table(folder, "path,classname,spllit", [[*row, "test"] for row in rows()])
    with caplog.at_level(logging.INFO):
        load("CSV", folder)
    assert "Column 'spllit' of" in caplog.text
    assert "did you mean 'split'?" in caplog.text


def test_a_test_only_table_is_evaluated(folder: Path) -> None:
    lines = [[path, name, "Test"] for path, name in rows()]
    dataset = load("CSV", table(folder, "path,classname,split", lines))
    assert (len(dataset.test), dataset.test_only) == (30, True)
    assert dataset.classnames == ["ant", "tench", "white shark"]


def test_labels_of_a_test_only_table_may_have_gaps(folder: Path) -> None:
    lines = [[path, str(3 + 4 * int(label)), f"thing {label}", "test"] for path, label in rows((2, 0, 1))]
    dataset = load("CSV", table(folder, "path,label,classname,split", lines))
    assert dataset.classnames == ["thing 0", "thing 1", "thing 2"]
    assert {item.label for item in dataset.test} == {0, 1, 2}


def test_evaluation_uses_all_rows_of_a_table_without_splits(folder: Path) -> None:
    path = table(folder, "path,classname", rows())
    assert len(load("CSV", path, TEST_ONLY=True).test) == 30
    assert sorted(entry.name for entry in folder.iterdir()) == ["images", "mine.csv"]


def test_one_based_labels_are_refused_before_a_split_is_saved(folder: Path) -> None:
    path = table(folder, "path,label", rows((1, 2, 3)))
    for _ in range(2):
        with pytest.raises(UserError, match=r"table '.*mine\.csv': .* no training image has label 0: .*subtract 1"):
            load("CSV", path)
    assert not list(folder.glob("split_*"))


def test_missing_images_are_reported_before_a_split_is_saved(folder: Path) -> None:
    path = table(folder, "path,classname", [*rows(), *([f"gone{i}.png", "ant"] for i in range(10))])
    for _ in range(2):
        with pytest.raises(UserError, match=r"table '.*mine\.csv': missing 10 of 40 images"):
            load("CSV", path)
    assert sum(sizes(load("CSV", path, ON_ERROR="skip"))) == 40
