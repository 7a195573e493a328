"""ImageFolder: a user's own images, with or without a split, among other files."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dassl_lite.config import get_cfg_default
from dassl_lite.data import build_dataset, images
from dassl_lite.datasets import image_folder  # noqa: F401  registers
from dassl_lite.utils.errors import UserError
from dassl_lite.utils.seeding import set_random_seed


def fill(folder: Path, n: int = 10, ending: str = "png") -> None:
    folder.mkdir(parents=True)
    for i in range(n):
        Image.new("RGB", (4, 4), (i, 0, 0)).save(folder / f"{i}.{ending}")


def load(root: Path, **dataset: Any) -> Any:
    cfg = get_cfg_default()
    cfg.DATASET.NAME, cfg.DATASET.ROOT = "ImageFolder", str(root)
    for key, value in dataset.items():
        cfg.DATASET[key] = value
    return build_dataset(cfg)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("white shark", "ant", "n01440764"):
        fill(tmp_path / "mine" / name)
    return tmp_path / "mine"


def sizes(dataset: Any) -> tuple[int, int, int]:
    return len(dataset.train_x), len(dataset.val), len(dataset.test)


def test_class_folders_are_split_within_each_class(root: Path) -> None:
    dataset = load(root)
    assert sizes(dataset) == (15, 6, 9)
    assert dataset.classnames == ["ant", "tench", "white shark"]  # a wnid gets its ImageNet name
    assert dataset.classes.ids == ("", "n01440764", "")


def test_nothing_is_written_into_the_folder_unless_asked(root: Path) -> None:
    first = load(root, NUM_SHOTS=2)
    assert not [path for path in root.iterdir() if path.is_file() or path.name == "split_fewshot"]
    asked = load(root, NUM_SHOTS=1, SPLITS_IN="dataset")
    assert (root / "split_fewshot" / "shot_1-seed_1.json").is_file()
    assert asked.test == load(root, NUM_SHOTS=2).test == first.test


def test_split_files_in_the_folder_are_used(root: Path) -> None:
    kept = load(root, NUM_SHOTS=2, SPLITS_IN="dataset")
    assert (root / "split_ImageFolder.json").is_file()
    set_random_seed(9)
    assert load(root, NUM_SHOTS=2).train_x == kept.train_x


def test_the_split_does_not_depend_on_the_seed_of_the_first_run(root: Path) -> None:
    splits = []
    for seed in (1, 2):
        set_random_seed(seed)
        splits.append([item.impath for item in load(root, SPLITS_IN="dataset").test])
        (root / "split_ImageFolder.json").unlink()
    assert splits[0] == splits[1]


def test_files_saved_by_a_run_are_not_taken_for_data_by_the_next(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        first = load(root, NUM_SHOTS=2)
        again = load(root, NUM_SHOTS=2)
    assert sizes(again) == (6, 6, 9)
    assert again.train_x == first.train_x
    assert "Ignored" not in caplog.text
    assert "Skipped in" not in caplog.text


def test_images_added_or_removed_after_the_split_are_reported(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    removed = load(root).test[0].impath
    Image.new("RGB", (4, 4)).save(root / "ant" / "new.png")
    with caplog.at_level(logging.WARNING):
        assert sizes(load(root)) == (15, 6, 9)
    assert "Ignored 1 image added after the split" in caplog.text
    Path(removed).unlink()
    with pytest.raises(UserError, match=r"missing 1 of 30 images: .* or delete .*_ImageFolder\.json to split again"):
        load(root)


def test_a_class_added_after_the_split_is_reported(root: Path) -> None:
    load(root)
    fill(root / "bee")
    with pytest.raises(UserError, match="no training image has label 1"):
        load(root)


@pytest.mark.parametrize("val", ["val", "valid", "validation"])
def test_given_split_folders_are_used(tmp_path: Path, val: str) -> None:
    for part, n in (("train", 5), (val, 2), ("test", 3)):
        for name in ("b", "a"):
            fill(tmp_path / part / name, n)
    dataset = load(tmp_path)
    assert sizes(dataset) == (10, 4, 6)
    assert dataset.classnames == ["a", "b"]
    assert not (tmp_path / "split_ImageFolder.json").exists()
    assert sizes(load(tmp_path, NUM_SHOTS=1)) == (2, 2, 6)
    assert sizes(load(tmp_path, NUM_SHOTS=1)) == (2, 2, 6)  # the folder of draws is not a split


def test_val_is_the_test_set_if_there_is_no_test_folder(tmp_path: Path) -> None:
    for part in ("train", "val"):
        fill(tmp_path / part / "a", 3)
    assert sizes(load(tmp_path)) == (3, 0, 3)


def test_a_class_called_train_stays_a_class(tmp_path: Path) -> None:
    for name in ("train", "bus"):
        fill(tmp_path / name)
    assert load(tmp_path).classnames == ["bus", "train"]


def test_split_folders_with_unknown_classes_are_refused(tmp_path: Path) -> None:
    fill(tmp_path / "train" / "a", 3)
    fill(tmp_path / "train" / "b", 3)
    fill(tmp_path / "test" / "a", 3)
    assert load(tmp_path).num_classes == 2
    fill(tmp_path / "test" / "c", 3)
    with pytest.raises(UserError, match=r"has classes that .*train' lacks: c"):
        load(tmp_path)


def test_files_that_are_not_images_are_skipped_and_counted_by_kind(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in (".hidden.png", "notes.txt", "Thumbs.db", "no_ending"):
        (root / "ant" / name).touch()
    (root / "ant" / "deeper").mkdir()
    (root / ".git").mkdir()
    Image.new("RGB", (4, 4)).save(root / "ant" / "UPPER.JPG")
    with caplog.at_level(logging.INFO):
        dataset = load(root)
    assert sum(sizes(dataset)) == 31
    assert f"Skipped in '{root}': 1 .db, 1 .txt, 1 hidden, 1 without extension" in caplog.text


@pytest.mark.parametrize(
    "names",
    [
        {"ant": "garden ant", "n01440764": {"name": "tench", "id": "n01440764"}},
        {"ant": "garden ant", "n01440764": "tench"},
        ["garden ant", "tench", "white shark"],
    ],
)
def test_class_names_come_from_classnames_json(root: Path, names: Any) -> None:
    (root / "classnames.json").write_text(json.dumps(names))
    dataset = load(root)
    assert dataset.classnames == ["garden ant", "tench", "white shark"]
    assert dataset.classes.ids == ("", "n01440764", "")
    (root / "classnames.json").write_text(json.dumps({"ant": "F-16A/B"}))
    assert load(root).classnames[0] == "F-16A/B"  # the saved split does not contain the old name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"aunt": "x"}', r"unknown class folder .* 'aunt'\. Did you mean 'ant'"),
        ('["x"]', "lists 1 class names, but there are 3"),
        ('{"ant": 3}', "entry of 'ant' should be a name"),
        ("3", "should contain an object"),
        ("{", "cannot read .* as JSON"),
    ],
)
def test_invalid_class_names_are_refused(root: Path, text: str, message: str) -> None:
    (root / "classnames.json").write_text(text)
    with pytest.raises(UserError, match=message):
        load(root)


def test_empty_and_tiny_classes_are_refused(root: Path, tmp_path: Path) -> None:
    (root / "empty").mkdir()
    with pytest.raises(UserError, match=r"class folder '.*empty' contains no images"):
        load(root)
    (root / "empty").rmdir()
    fill(root / "tiny", 2)
    with pytest.raises(UserError, match="class 'tiny' has 2 images, too few for train, val and test"):
        load(root)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(UserError, match="contains no class folders"):
        load(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"there is no folder '.*absent'.*should be the dataset's own folder"):
        load(tmp_path / "absent")
    with pytest.raises(UserError, match="needs --root"):
        load(Path(), ROOT="")


def test_a_folder_name_that_is_not_utf8_is_accepted(root: Path) -> None:
    fill(root / "caf\udce9")  # a non-UTF-8 byte as a surrogate
    dataset = load(root, NUM_SHOTS=1)
    assert "caf\ufffd" in dataset.classnames
    assert load(root, NUM_SHOTS=1).train_x == dataset.train_x


def test_the_users_template_is_used(root: Path) -> None:
    assert load(root).template == "a photo of a {}."
    assert load(root, TEMPLATE="a {} on my desk.").template == "a {} on my desk."


# ---- layouts ---------------------------------------------------------------------------------------------------------

# Folders, each with 10 images -> (training, validation, test) images and class names.
LAYOUTS: dict[str, tuple[list[str], tuple[int, int, int], list[str]]] = {
    "subfolders of a class": (["ant/2019", "ant/2020/spring", "bee"], (15, 6, 9), ["ant", "bee"]),
    "images at two depths in a class": (["ant", "ant/more", "bee"], (15, 6, 9), ["ant", "bee"]),
    "capitalised splits": (["Train/a", "Train/b", "Val/a", "Test/a", "Test/b"], (20, 10, 20), ["a", "b"]),
    "other split names": (["training/a", "VALIDATION/a", "testing/a"], (10, 10, 10), ["a"]),
    "names with a suffix": (["train_set/a", "Test Data/a"], (10, 0, 10), ["a"]),
    "train and val": (["TRAIN/a", "dev/a"], (10, 0, 10), ["a"]),
    "nested splits": (["train/a/x/y", "test/a/z"], (10, 0, 10), ["a"]),
    "splits in classes": (["a/train", "a/test", "b/Train", "b/Test"], (20, 0, 20), ["a", "b"]),
    "a folder around the classes": (["unpacked/data/a", "unpacked/data/b"], (10, 4, 6), ["a", "b"]),
    "a folder around the splits": (["unpacked/Train/a", "unpacked/Test/a"], (10, 0, 10), ["a"]),
    "only training images": (["train/a", "train/b"], (10, 4, 6), ["a", "b"]),
    "one class": (["a"], (5, 2, 3), ["a"]),
    "splits and an unrelated folder": (["train/a", "test/a", "extra/a"], (10, 0, 10), ["a"]),
    "classes named like splits": (["train", "test", "bus"], (15, 6, 9), ["bus", "test", "train"]),
    "system folders": (["a", "b", "__MACOSX/a", "@eaDir", ".git/x"], (10, 4, 6), ["a", "b"]),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_common_folder_layouts_are_recognised(tmp_path: Path, layout: str, caplog: pytest.LogCaptureFixture) -> None:
    folders, expected, classnames = LAYOUTS[layout]
    for folder in folders:
        if not (tmp_path / "mine" / folder).exists():
            fill(tmp_path / "mine" / folder)
            continue
        for i in range(10):
            Image.new("RGB", (4, 4), (i, 9, 0)).save(tmp_path / "mine" / folder / f"{i}.png")
    with caplog.at_level(logging.INFO):
        dataset = load(tmp_path / "mine")
    assert (sizes(dataset), dataset.classnames) == (expected, classnames)
    assert "is read as <" in caplog.text  # how folders were interpreted
    assert len({item.impath for part in (dataset.train_x, dataset.val, dataset.test) for item in part}) == sum(expected)
    assert sizes(load(tmp_path / "mine", NUM_SHOTS=1))[2] == expected[2]


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (["train/a", "test"], r"'.*mine/test' contains images but no class folders; .*mine/test/<class>/"),
        (["train", "test"], "contains images but no class folders"),
        (["train/a", "val/a", "Validation/a"], "two folders for val: 'Validation' and 'val'"),
        (["a/train", "a/test", "b"], r"are split by folders called test and train, but '.*mine/b' is not"),
        (["Train/Cat", "Test/cat"], r"Test' has classes that '.*Train' lacks: cat; did you mean Cat\?"),
    ],
)
def test_ambiguous_folders_are_refused(tmp_path: Path, folders: list[str], message: str) -> None:
    for folder in folders:
        fill(tmp_path / "mine" / folder)
    with pytest.raises(UserError, match=message):
        load(tmp_path / "mine")


def test_images_beside_the_class_folders_are_reported_and_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for folder in ("mine/train/a", "mine/test/a", "mine/extra/a"):
        fill(tmp_path / folder)
    for folder in ("mine", "mine/train"):
        Image.new("RGB", (4, 4)).save(tmp_path / folder / "loose.png")
    with caplog.at_level(logging.INFO):
        assert sizes(load(tmp_path / "mine")) == (10, 0, 10)
    assert f"Not used: 1 image beside the class folders in '{tmp_path / 'mine'}'" in caplog.text
    assert f"Not used: 1 image beside the class folders in '{tmp_path / 'mine' / 'train'}'" in caplog.text
    assert f"Not used: the folder '{tmp_path / 'mine' / 'extra'}'" in caplog.text


def test_domains_that_look_like_classes_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for folder in ("photo/dog", "photo/horse", "sketch/dog", "sketch/horse"):
        fill(tmp_path / "mine" / folder)
    with caplog.at_level(logging.INFO):
        assert load(tmp_path / "mine").classnames == ["photo", "sketch"]
    assert f"(dog, horse ...): if those are the classes, name one: {tmp_path / 'mine' / 'photo'}" in caplog.text


def test_circular_links_do_not_repeat_images(tmp_path: Path) -> None:
    for name in ("a", "b"):
        fill(tmp_path / "mine" / name)
        (tmp_path / "mine" / name / "up").symlink_to(tmp_path / "mine")
        (tmp_path / "mine" / name / "other").symlink_to(tmp_path / "elsewhere")
    fill(tmp_path / "elsewhere", 3)
    assert sum(sizes(load(tmp_path / "mine"))) == 23


def test_endlessly_nested_folders_are_refused_in_one_line(tmp_path: Path) -> None:
    deep = tmp_path / "mine"
    for _ in range(150):
        deep = deep / "x"
    deep.mkdir(parents=True)
    with pytest.raises(UserError, match="folders deep"):
        load(tmp_path / "mine")


def test_classnames_json_beside_the_class_folders_is_found(tmp_path: Path) -> None:
    for name in ("a", "b"):
        fill(tmp_path / "mine" / "unpacked" / name)
    (tmp_path / "mine" / "unpacked" / "classnames.json").write_bytes(b'\xef\xbb\xbf{"a": "ant", "b": "bee"}')
    assert load(tmp_path / "mine").classnames == ["ant", "bee"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_json_is_read_in_common_editor_encodings(root: Path, encoding: str) -> None:
    (root / "classnames.json").write_bytes('{"ant": "Ämter"}'.encode(encoding))
    assert load(root).classnames[0] == "Ämter"


@pytest.mark.parametrize("names", [("Cat", "cat"), ("ice_cream", "ice cream")])
def test_classes_with_identical_prompts_are_reported(
    tmp_path: Path, names: tuple[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    for name in (*names, "dog"):
        fill(tmp_path / "mine" / name)
    with caplog.at_level(logging.WARNING):
        load(tmp_path / "mine")
    assert "classes have the same name" in caplog.text
    assert "only predicts the first" in caplog.text


# ---- file formats ----------------------------------------------------------------------------------------------------


def test_unsupported_image_formats_are_skipped_and_named(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a.h5", "b.fits", "c.eps", "d.psd", "e.mp4", "f.mp4", "g.cr2"):
        (root / "ant" / name).write_bytes(b"x")
    (root / "ant" / "gone.png").symlink_to(root / "nowhere")
    with caplog.at_level(logging.INFO):
        assert sum(sizes(load(root))) == 30
    assert "2 .mp4, 1 .cr2, 1 .eps, 1 .fits, 1 .h5, 1 .psd, 1 special file or broken link" in caplog.text


@pytest.mark.parametrize("ending", [".heic", ".heics", ".heif", ".heifs", ".hif"])
def test_every_heif_extension_names_pillow_heif(root: Path, monkeypatch: pytest.MonkeyPatch, ending: str) -> None:
    monkeypatch.setattr(images, "reads_heif", lambda: False)
    (root / "phone").mkdir()
    (root / "phone" / f"photo{ending}").write_bytes(b"\0\0\0\x18ftypheic" + b"\0" * 40)
    with pytest.raises(UserError, match=rf"contains no images \(1 \{ending} \(pip install pillow-heif reads them"):
        load(root)


def test_the_error_names_pillow_heif_if_it_is_missing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "reads_heif", lambda: False)
    (root / "phone").mkdir()
    for i in range(3):
        (root / "phone" / f"IMG_{i}.HEIC").write_bytes(b"\0\0\0\x18ftypheic" + b"\0" * 40)
    with pytest.raises(UserError, match=r"phone' contains no images \(3 \.heic \(pip install pillow-heif reads them"):
        load(root)
    (root / "phone" / "renamed.jpg").write_bytes(b"\0\0\0\x18ftypheic" + b"\0" * 40)
    with pytest.raises(UserError, match="a HEIC picture; pip install pillow-heif"):
        images.read_image(root / "phone" / "renamed.jpg")


def test_heic_images_are_read_with_pillow_heif(root: Path) -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.register_heif_opener()
    (root / "phone").mkdir()
    for i in range(10):
        Image.new("RGB", (64, 64), (200, 10, 20)).save(root / "phone" / f"IMG_{i}.HEIC", format="HEIF")
    assert "phone" in load(root).classnames
    red, green, _ = images.read_image(root / "phone" / "IMG_0.HEIC").getpixel((32, 32))  # type: ignore[misc]
    assert (red > 180, green < 40) == (True, True)


# ---- evaluating ------------------------------------------------------------------------------------------------------


def test_evaluation_uses_all_images_and_writes_nothing(root: Path) -> None:
    before = sorted(root.rglob("*"))
    dataset = load(root, TEST_ONLY=True, NUM_SHOTS=2)
    assert len(dataset.test) == 30
    assert dataset.test_only
    assert sorted(root.rglob("*")) == before


def test_evaluation_uses_only_the_test_images_of_a_split(root: Path, tmp_path: Path) -> None:
    tested = load(root).test
    assert load(root, TEST_ONLY=True).test == tested  # the others may have been trained on
    for part in ("train", "test"):
        fill(tmp_path / "split" / part / "a", 3)
    assert sizes(load(tmp_path / "split", TEST_ONLY=True)) == (3, 0, 3)


@pytest.mark.parametrize("parts", [["test"], ["Test", "Val"]])
def test_a_folder_with_only_test_images_is_used_for_testing(tmp_path: Path, parts: list[str]) -> None:
    for part in parts:
        for name in ("a", "b"):
            fill(tmp_path / "mine" / part / name)
    dataset = load(tmp_path / "mine")
    assert (len(dataset.test), dataset.classnames, dataset.test_only) == (20, ["a", "b"], True)


def test_a_note_on_folders_that_look_like_domains_names_three_of_them(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for domain in ("photo", "sketch"):
        for name in ("ant", "bee", "cat", "dog"):
            folder = root / "domains" / domain / name
            folder.mkdir(parents=True)
            for number in range(5):
                Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"{number}.png")
    with caplog.at_level(logging.INFO):
        load(root / "domains")
    assert f"(ant, bee, cat ...): if those are the classes, name one: {root / 'domains' / 'photo'}" in caplog.text


def test_images_of_a_folder_have_no_domain(root: Path) -> None:
    assert {item.domain for item in load(root).train_x} == {0}
