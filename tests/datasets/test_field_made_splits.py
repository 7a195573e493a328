"""Datasets without a split file: the split is made from the publisher's files, as in CoOp."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from field_layouts import WRITERS, Rows, found, load

from dassl_lite.engine.plugins import load_plugins
from dassl_lite.utils.errors import UserError
from dassl_lite.utils.seeding import set_random_seed

TEMPLATES = {
    "OxfordPets": "a photo of a {}, a type of pet.",
    "StanfordCars": "a photo of a {}.",
    "OxfordFlowers": "a photo of a {}, a type of flower.",
    "UCF101": "a photo of a person doing {}.",
    "SUN397": "a photo of a {}.",
    "FGVCAircraft": "a photo of a {}, a type of aircraft.",
    "Food101": "a photo of {}, a type of food.",
    "DescribableTextures": "{} texture.",
    "EuroSAT": "a centered satellite photo of {}.",
}


@pytest.fixture(autouse=True, scope="module")
def _registered() -> None:
    load_plugins()


def as_lists(rows: Rows) -> dict[str, list[list[Any]]]:
    return {part: [list(row) for row in items] for part, items in rows.items()}


@pytest.mark.parametrize("name", WRITERS)
def test_the_split_equals_that_of_the_reference(tmp_path: Path, name: str) -> None:
    expected = WRITERS[name](tmp_path)
    random.seed(1)
    wanted = expected()
    random.seed(1)
    dataset = load(name, tmp_path)
    assert found(dataset) == wanted
    assert dataset.classnames == [n for _, n in sorted({(label, n) for _, label, n in wanted["train"]})]
    assert dataset.template == TEMPLATES[name]
    assert dataset.ensemble_templates == ()


@pytest.mark.parametrize("name", sorted(set(WRITERS) - {"FGVCAircraft"}))
def test_the_split_is_saved_under_coops_name(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path)
    first = load(name, tmp_path)
    kept = [path for path in Path(first.dataset_dir).iterdir() if path.name.startswith("split_")]
    assert [path.name for path in kept] == [f"split_zhou_{name}.json"]
    assert json.loads(kept[0].read_text()) == as_lists(found(first))
    assert found(load(name, tmp_path)) == found(first)  # with a different random state


@pytest.mark.parametrize("name", WRITERS)
def test_the_draw_is_identical_in_every_run(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path)
    set_random_seed(1)
    first = load(name, tmp_path, NUM_SHOTS=1)
    assert len(first.train_x) == first.num_classes == 3
    assert load(name, tmp_path, NUM_SHOTS=1).train_x == first.train_x
    assert (Path(first.dataset_dir) / "split_fewshot" / "shot_1-seed_1.json").is_file()


@pytest.mark.parametrize("key", [f"seed{seed}_shots{shots}" for seed in (1, 2, 3) for shots in (-1, 2)])
def test_pets_split_from_their_annotations_equal_the_reference(golden: Any, tmp_path: Path, key: str) -> None:
    protocol = golden.json("dassl_protocol")["split_trainval"]
    folder = tmp_path / "oxford_pets"
    (folder / "annotations").mkdir(parents=True)
    (folder / "images").mkdir()
    for part in ("trainval", "test"):
        (folder / "annotations" / f"{part}.txt").write_text("\n".join(protocol[f"{part}_lines"]))
        for line in protocol[f"{part}_lines"]:
            (folder / "images" / f"{line.split(' ')[0]}.jpg").touch()
    seed, num_shots = (int(part.lstrip("sedhot")) for part in key.split("_"))
    set_random_seed(seed)
    rows = found(load("OxfordPets", tmp_path, NUM_SHOTS=num_shots))
    names = [f"{line.split(' ')[0]}.jpg" for line in protocol["trainval_lines"]]
    for part in ("train", "val"):
        assert [row[0] for row in rows[part]] == [names[i] for i in protocol["runs"][key][part]]


@pytest.mark.parametrize(
    ("name", "file", "line", "message"),
    [
        ("OxfordPets", "annotations/trainval.txt", "Abyssinian_1 one 1 1", r"line 1: 'Abyssinian_1 one 1 1' is not in"),
        ("OxfordPets", "annotations/test.txt", "Abyssinian_1", r"test\.txt', line 1: .* publisher's format"),
        ("UCF101", "ucfTrainTestlist/trainlist01.txt", "Yodel/v_Yodel_g01_c01.avi 1", r"line 1: .* \('Yodel'\)"),
        ("UCF101", "ucfTrainTestlist/classInd.txt", "x", r"trainlist01\.txt', line 1"),
        ("SUN397", "Training_01.txt", "/z/zoo/x.jpg", r"Training_01\.txt', line 1: .*zoo"),
        ("FGVCAircraft", "images_variant_val.txt", "0000001 Concorde", r"line 1: .*Concorde"),
        ("StanfordCars", "devkit/cars_meta.mat", "no matrix", r"cars_meta\.mat' is not the publisher's \.mat file"),
        ("OxfordFlowers", "imagelabels.mat", "", r"imagelabels\.mat' is not the publisher's \.mat file"),
        (
            "OxfordFlowers",
            "cat_to_name.json",
            '{"1": "rose"}',
            r"imagelabels\.mat' is not the .*'labels' \(KeyError: '\d'",
        ),
        ("OxfordFlowers", "cat_to_name.json", "[]", "should hold a JSON object"),
    ],
)
def test_an_invalid_annotation_is_named(tmp_path: Path, name: str, file: str, line: str, message: str) -> None:
    WRITERS[name](tmp_path)
    next(tmp_path.glob(f"*/{file}")).write_text(line)
    with pytest.raises(UserError, match=message) as raised:
        load(name, tmp_path)
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.glob("*/split_*"))


@pytest.mark.parametrize(
    ("name", "file", "message"),
    [
        (
            "OxfordPets",
            "annotations/test.txt",
            r"test\.txt' is missing, and there is no split file 'split_zhou_OxfordPets",
        ),
        ("StanfordCars", "devkit/cars_train_annos.mat", "cars_train_annos.mat' is missing, and there is no split file"),
        ("OxfordFlowers", "imagelabels.mat", "imagelabels.mat' is missing, and there is no split file"),
        ("FGVCAircraft", "variants.txt", r"FGVCAircraft: '.*variants\.txt' is missing; get the dataset from https"),
        ("SUN397", "ClassName.txt", "ClassName.txt' is missing, and there is no split file"),
    ],
)
def test_a_missing_annotation_file_is_named(tmp_path: Path, name: str, file: str, message: str) -> None:
    WRITERS[name](tmp_path)
    next(tmp_path.glob(f"*/{file}")).unlink()
    with pytest.raises(UserError, match=message):
        load(name, tmp_path)


def test_lists_with_missing_images_are_refused(tmp_path: Path) -> None:
    WRITERS["SUN397"](tmp_path)
    shutil.rmtree(tmp_path / "sun397" / "SUN397" / "b")
    with pytest.raises(UserError, match=r"missing 8 of 24 images: '.*sun397/SUN397/b/bar/sun_"):
        load("SUN397", tmp_path)


def test_files_that_are_not_images_are_not_listed(tmp_path: Path) -> None:
    WRITERS["DescribableTextures"](tmp_path)
    for name in ("Thumbs.db", ".hidden.jpg", "banded_00.txt"):
        (tmp_path / "dtd" / "images" / "banded" / name).touch()
    (tmp_path / "dtd" / "images" / "notes.txt").touch()
    assert sum(map(len, found(load("DescribableTextures", tmp_path)).values())) == 40
