"""ImageNet and its variants in the standard layout, with one real photo per class or with empty files."""

from __future__ import annotations

import json
import os
import pkgutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from field_layouts import load

from dassl_lite.data import IMAGENET_TEMPLATES_SELECT, match_classes, normalise_name, read_image
from dassl_lite.data.imagenet import imagenet_classes, read_classnames
from dassl_lite.engine.plugins import load_plugins
from dassl_lite.utils.errors import UserError

IMAGE_DIRS = {
    "ImageNetV2": "imagenetv2/imagenetv2-matched-frequency-format-val",
    "ImageNetSketch": "imagenet-sketch/images",
    "ImageNetA": "imagenet-adversarial/imagenet-a",
    "ImageNetR": "imagenet-rendition/imagenet-r",
}


@pytest.fixture(autouse=True, scope="module")
def _registered() -> None:
    load_plugins()


def variant_wnids(variant: str) -> list[str]:
    """The 200 wnids of ImageNet-A or -R."""
    table = pkgutil.get_data("timm.data", f"_info/imagenet_{variant}_synsets.txt")
    assert table is not None
    return table.decode().split()


def lay_out(folder: Path, classes: Iterable[tuple[str, Path | None]], per_class: int = 1) -> None:
    """Create a folder per class with ``per_class`` images: links to a photo, or empty files."""
    for name, photograph in classes:
        (folder / name).mkdir(parents=True)
        for i in range(per_class):
            path = folder / name / f"{name}_{i}.JPEG"
            if photograph is None:
                path.touch()
            else:
                os.symlink(photograph, path)


@pytest.fixture(scope="module")
def real(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole family, one real image per class."""
    root, samples = tmp_path_factory.mktemp("imagenet"), shared / "data" / "imagenet_samples"
    photographs = {path.stem: path for path in sorted(samples.glob("*.jpg"))}
    for part in ("train", "val"):
        lay_out(root / "imagenet" / "images" / part, photographs.items())
    lay_out(root / IMAGE_DIRS["ImageNetSketch"], photographs.items())
    numbered = ((str(label), path) for label, path in enumerate(photographs.values()))
    lay_out(root / IMAGE_DIRS["ImageNetV2"], numbered)
    for variant in ("a", "r"):
        folder = root / IMAGE_DIRS[f"ImageNet{variant.upper()}"]
        lay_out(folder, ((wnid, photographs[wnid]) for wnid in variant_wnids(variant)))
        (folder / "README.txt").touch()
    return root


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Three classes of ImageNet, five files each."""
    for part in ("train", "val"):
        classes = [(wnid, None) for wnid in ("n02012849", "n01440764", "n03126707")]
        lay_out(tmp_path / "imagenet" / "images" / part, classes, per_class=5)
    return tmp_path


@pytest.mark.slow
def test_real_imagenet_has_the_published_classes(real: Path, shared: Path) -> None:
    dataset = load("ImageNet", real)
    sample_names = json.loads((shared / "data" / "imagenet_samples" / "names.json").read_text())
    assert dataset.classes.ids == tuple(sorted(sample_names)) == imagenet_classes().ids
    assert (dataset.num_classes, len(dataset.train_x), len(dataset.test)) == (1000, 1000, 1000)
    agree = sum(
        normalise_name(sample_names[i]) == normalise_name(n) for i, n in zip(*ids_and_names(dataset), strict=True)
    )
    assert agree > 650  # CLIP's authors renamed the others, such as "crane" to "crane bird"
    assert dataset.classnames[:2] == ["tench", "goldfish"]
    assert [i for i, name in enumerate(dataset.classnames) if name == "missile"] == [657, 744]
    assert all(item.classid in item.impath for item in dataset.test)
    assert read_image(dataset.test[500].impath).mode == "RGB"


def ids_and_names(dataset: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return dataset.classes.ids, dataset.classes.names


@pytest.mark.slow
def test_real_variants_have_imagenets_classes_in_their_own_order(real: Path, golden: Any) -> None:
    indexes = golden.json("imagenet_a_r_indexes")
    rows = {
        "ImageNetV2": list(range(1000)),
        "ImageNetSketch": list(range(1000)),
        "ImageNetA": indexes["imagenet_a"],
        "ImageNetR": indexes["imagenet_r"],
    }
    for name, expected in rows.items():
        dataset = load(name, real)
        match = match_classes(imagenet_classes(), dataset.classes)
        assert list(match.rows) == expected
        assert match.describe() == f"matched {len(expected)} of {len(expected)} classes (by id)"
        assert dataset.classnames == [imagenet_classes().names[row] for row in expected]
        photographs = [Path(os.readlink(item.impath)).stem for item in dataset.test]
        assert photographs == [dataset.classes.ids[item.label] for item in dataset.test]


@pytest.mark.parametrize("name", IMAGE_DIRS)
def test_a_variant_has_a_test_set_only(real: Path, name: str) -> None:
    dataset = load(name, real, NUM_SHOTS=16)
    assert dataset.train_x == dataset.test
    assert not dataset.val
    assert dataset.template == "a photo of a {}."
    assert dataset.ensemble_templates == ()
    assert not (Path(dataset.dataset_dir) / "split_fewshot").exists()


def test_imagenet_is_validated_on_its_test_set(small: Path) -> None:
    dataset = load("ImageNet", small, NUM_SHOTS=2)
    assert dataset.classes.ids == ("n01440764", "n02012849", "n03126707")
    assert dataset.classnames == ["tench", "crane bird", "construction crane"]
    assert (len(dataset.train_x), len(dataset.val), len(dataset.test)) == (6, 15, 15)
    assert dataset.val == dataset.test
    assert dataset.template == "a photo of a {}."
    assert dataset.ensemble_templates == IMAGENET_TEMPLATES_SELECT
    base = load("ImageNet", small, SUBSAMPLE_CLASSES="new")
    assert base.classes.ids == ("n03126707",)
    assert sorted(path.name for path in (small / "imagenet").iterdir()) == ["images", "split_fewshot"]


def test_training_images_are_sorted(small: Path) -> None:
    paths = [item.impath for item in load("ImageNet", small).train_x]
    assert paths == sorted(paths)


def test_class_names_come_from_the_text_file(small: Path) -> None:
    lines = ["n03126707 big crane", "n01440764 tinca tinca", "", "n02012849 grey bird", "n00000001 nothing"]
    (small / "imagenet" / "classnames.txt").write_text("\n".join(lines))
    dataset = load("ImageNet", small)
    assert dataset.classnames == ["tinca tinca", "grey bird", "big crane"]
    (small / "imagenet" / "classnames.txt").write_text("n03126707 big crane\n")
    with pytest.raises(UserError, match=r"classnames\.txt' has no class name for 2 of 3 folders: n01440764, n02012849"):
        load("ImageNet", small)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("n01440764 tench\nn01440764 again\n", "line 2: 'n01440764 again' occurs twice"),
        ("tench\n", "line 1: 'tench' should be a wnid and a class name"),
        ("n01440764\n", "line 1: 'n01440764' should be a wnid and a class name"),
    ],
)
def test_invalid_class_names_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "classnames.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        read_classnames(tmp_path / "classnames.txt")


def test_a_folder_without_a_class_name_is_refused(small: Path) -> None:
    lay_out(small / "imagenet" / "images" / "train", [("n99999999", None)])
    with pytest.raises(UserError, match=r"open_clip's table .* has no class name for 1 of 4 folders: n99999999"):
        load("ImageNet", small)


def test_validation_classes_without_training_images_are_refused(small: Path) -> None:
    lay_out(small / "imagenet" / "images" / "val", [("n01443537", None)])
    with pytest.raises(UserError, match=r"images/val' has classes that '.*images/train' lacks: n01443537"):
        load("ImageNet", small)


def test_an_empty_or_missing_folder_is_named(small: Path) -> None:
    train = small / "imagenet" / "images" / "train"
    for path in (train / "n01440764").iterdir():
        path.unlink()
    with pytest.raises(UserError, match=r"class folder '.*train/n01440764' contains no images"):
        load("ImageNet", small)
    (train / "n01440764" / "1.JPEG").touch()
    (small / "imagenet" / "images" / "val").rename(small / "val")
    with pytest.raises(UserError, match=r"ImageNet: '.*images/val' is missing; get the dataset from https://image-net"):
        load("ImageNet", small)


def test_v2_without_one_of_its_folders_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / IMAGE_DIRS["ImageNetV2"]
    (tmp_path / "imagenetv2").mkdir()
    wnids = [f"n{number:08}" for number in range(12)]
    lines = "".join(f"{wnid} thing {int(wnid[1:])}\n" for wnid in reversed(wnids))
    (tmp_path / "imagenetv2" / "classnames.txt").write_text(lines)
    lay_out(folder, ((str(label), None) for label in range(12)))
    dataset = load("ImageNetV2", tmp_path)
    assert [Path(item.impath).parent.name for item in dataset.test] == [str(label) for label in range(12)]
    assert dataset.classes.ids == tuple(wnids)
    assert dataset.classnames[10] == "thing 10"
    (folder / "7" / "7_0.JPEG").unlink()
    (folder / "7").rmdir()
    with pytest.raises(UserError, match=r"class folder '.*/7' is missing"):
        load("ImageNetV2", tmp_path)
