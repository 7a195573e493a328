"""Tiny datasets in their publishers' formats, and the splits that the reference's rules give for them.

The rules are implemented here independently, from the reference's description, so that tests compare two versions.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from scipy.io import savemat

from dassl_lite.config import get_cfg_default
from dassl_lite.data import build_dataset

Row = tuple[str, int, str]
Rows = dict[str, list[Row]]


def load(name: str, root: Path, **dataset: Any) -> Any:
    """The dataset ``name`` under ``root``, with further keys of cfg.DATASET."""
    cfg = get_cfg_default()
    cfg.DATASET.NAME, cfg.DATASET.ROOT = name, str(root)
    for key, value in dataset.items():
        cfg.DATASET[key] = value
    return build_dataset(cfg)


def found(dataset: Any) -> Rows:
    """The dataset's items as rows of a split file."""
    prefix = f"{dataset.image_dir}/"
    parts = {"train": dataset.train_x, "val": dataset.val, "test": dataset.test}
    return {
        part: [(item.impath.removeprefix(prefix), item.label, item.classname) for item in items]
        for part, items in parts.items()
    }


def touch(folder: Path, names: Iterable[str]) -> None:
    """Create empty files, as a split only depends on names."""
    paths = [folder / name for name in names]
    for parent in {path.parent for path in paths}:
        parent.mkdir(parents=True, exist_ok=True)
    for path in paths:
        path.touch()


def write(path: Path, lines: Iterable[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def shuffled_groups(rows: Iterable[Row]) -> list[list[Row]]:
    """Rows by label, labels in the order of their first row, each group shuffled by ``random``."""
    groups: dict[int, list[Row]] = {}
    for row in rows:
        groups.setdefault(row[1], []).append(row)
    for group in groups.values():
        random.shuffle(group)
    return list(groups.values())


def take_fifth_for_val(trainval: Iterable[Row], test: list[Row]) -> Rows:
    """Take the first round(n / 5) items of each shuffled class for val."""
    groups = shuffled_groups(trainval)
    counts = [round(len(group) * 0.2) for group in groups]
    return {
        "train": [row for group, n in zip(groups, counts, strict=True) for row in group[n:]],
        "val": [row for group, n in zip(groups, counts, strict=True) for row in group[:n]],
        "test": test,
    }


def take_half_for_train(rows: Iterable[Row]) -> Rows:
    """Take round(n / 2) items of each shuffled class for train, the next round(n / 5) for val and the rest for test."""
    parts: Rows = {"train": [], "val": [], "test": []}
    for group in shuffled_groups(rows):
        n_train, n_val = round(len(group) * 0.5), round(len(group) * 0.2)
        parts["train"] += group[:n_train]
        parts["val"] += group[n_train : n_train + n_val]
        parts["test"] += group[n_train + n_val :]
    return parts


# ---- One function per dataset: writes the publisher's files; returns the reference's split. ----


def write_pets(root: Path, trainval: list[Row] | None = None, test: list[Row] | None = None) -> Callable[[], Rows]:
    breeds = ["Abyssinian", "american_bulldog", "shiba_inu"]
    if trainval is None or test is None:
        every = [(f"{b}_{i}.jpg", label, b.lower()) for i in range(12) for label, b in enumerate(breeds)]
        trainval, test = every[:27], every[27:]
    for name, rows in (("trainval", trainval), ("test", test)):
        lines = (f"{image.removesuffix('.jpg')} {label + 1} 1 {label + 1}" for image, label, _ in rows)
        write(root / "oxford_pets" / "annotations" / f"{name}.txt", lines)
    touch(root / "oxford_pets" / "images", [row[0] for row in (*trainval, *test)])
    return lambda: take_fifth_for_val(trainval, test)


def write_cars(root: Path, trainval: list[Row] | None = None, test: list[Row] | None = None) -> Callable[[], Rows]:
    cars = ["2012 Audi TTS Coupe", "2012 Ram C/V Cargo Van Minivan", "2007 Suzuki Aerio Sedan"]
    if trainval is None or test is None:
        trainval = [(f"cars_train/{i:05}.jpg", i % 3, cars[i % 3]) for i in range(1, 24)]
        test = [(f"cars_test/{i:05}.jpg", i % 3, cars[i % 3]) for i in range(1, 7)]
    folder = root / "stanford_cars"
    touch(folder, [row[0] for row in (*trainval, *test)])
    names = [name for _, name in sorted({(label, name) for _, label, name in trainval})]
    table = [" ".join(name.partition(" ")[::-2]) for name in names]  # with the year at the end
    (folder / "devkit").mkdir(exist_ok=True)
    savemat(folder / "devkit" / "cars_meta.mat", {"class_names": np.array([table], dtype=object)})
    fields = [("bbox_x1", "O"), ("class", "O"), ("fname", "O")]
    for file, rows in (("devkit/cars_train_annos.mat", trainval), ("cars_test_annos_withlabels.mat", test)):
        entries = [(np.uint16(39), np.uint8(label + 1), image.rpartition("/")[2]) for image, label, _ in rows]
        savemat(folder / file, {"annotations": np.array([entries], dtype=fields)})
    return lambda: take_fifth_for_val(trainval, test)


def write_flowers(root: Path, rows: list[Row] | None = None) -> Callable[[], Rows]:
    names = ["pink primrose", "hard-leaved pocket orchid", "canterbury bells"]
    if rows is None:  # labels are unordered
        rows = [(f"image_{i:05}.jpg", (i * 2 + 1) % 3, names[(i * 2 + 1) % 3]) for i in range(1, 31)]
    folder = root / "oxford_flowers"
    touch(folder / "jpg", [row[0] for row in rows])
    savemat(folder / "imagelabels.mat", {"labels": np.array([[label + 1 for _, label, _ in rows]], dtype=np.uint8)})
    table = {str(label + 1): name for _, label, name in rows}
    (folder / "cat_to_name.json").write_text(json.dumps(table))
    return lambda: take_half_for_train(rows)


def write_ucf(root: Path, trainval: list[Row] | None = None, test: list[Row] | None = None) -> Callable[[], Rows]:
    actions = ["Apply_Eye_Makeup", "Yo_Yo", "Archery"]
    if trainval is None or test is None:
        every = [
            (f"{a}/v_{a.replace('_', '')}_g{i:02}_c01.jpg", label, a)
            for label, a in enumerate(actions)
            for i in range(1, 13)
        ]
        trainval, test = [row for row in every if "_g01" not in row[0]], [row for row in every if "_g01" in row[0]]
    folder, lists = root / "ucf101", root / "ucf101" / "ucfTrainTestlist"
    touch(folder / "UCF-101-midframes", [row[0] for row in (*trainval, *test)])
    names = sorted({(label, name.replace("_", "")) for _, label, name in trainval})
    write(lists / "classInd.txt", (f"{label + 1} {name}" for label, name in names))

    def video(row: Row) -> str:
        return f"{row[2].replace('_', '')}/{row[0].rpartition('/')[2].removesuffix('.jpg')}.avi"

    write(lists / "trainlist01.txt", (f"{video(row)} {row[1] + 1}" for row in trainval))
    write(lists / "testlist01.txt", map(video, test))
    return lambda: take_fifth_for_val(trainval, test)


def write_sun(root: Path) -> Callable[[], Rows]:
    places = {"/a/abbey": "abbey", "/a/apartment_building/outdoor": "outdoor apartment_building", "/b/bar": "bar"}
    every = [
        (f"{place[1:]}/sun_{i}.jpg", label, name)
        for i in range(8)
        for label, (place, name) in enumerate(places.items())
    ]
    trainval, test = every[:18], every[18:]
    touch(root / "sun397" / "SUN397", [row[0] for row in every])
    write(root / "sun397" / "ClassName.txt", places)
    write(root / "sun397" / "Training_01.txt", (f"/{row[0]}" for row in trainval))
    write(root / "sun397" / "Testing_01.txt", (f"/{row[0]}" for row in test))
    return lambda: take_fifth_for_val(trainval, test)


def write_aircraft(root: Path) -> Callable[[], Rows]:
    variants = ["F/A-18", "707-320", "Boeing 717"]  # in file order, not alphabetical
    parts: Rows = {"train": [], "val": [], "test": []}
    for i in range(18):
        part = ("train", "val", "test")[i // 6]
        parts[part].append((f"{i:07}.jpg", i % 3, variants[i % 3]))
    folder = root / "fgvc_aircraft"
    write(folder / "variants.txt", variants)
    for part, rows in parts.items():
        touch(folder / "images", [row[0] for row in rows])
        lines = (f"{image.removesuffix('.jpg')} {name}" for image, _, name in rows)
        write(folder / f"images_variant_{part}.txt", lines)
    return lambda: parts


def write_folders(folder: Path, classes: dict[str, str], sizes: Iterable[int] = (10, 23, 7)) -> Callable[[], Rows]:
    """Write folders of images; ``classes`` maps each folder to its class name."""
    rows = [
        (f"{name}/{name}_{i:02}.jpg", label, classes[name])
        for label, (name, size) in enumerate(zip(sorted(classes), sizes, strict=False))
        for i in range(size)
    ]
    touch(folder, [row[0] for row in rows])
    return lambda: take_half_for_train(rows)


WRITERS: dict[str, Callable[[Path], Callable[[], Rows]]] = {
    "OxfordPets": write_pets,
    "StanfordCars": write_cars,
    "OxfordFlowers": write_flowers,
    "UCF101": write_ucf,
    "SUN397": write_sun,
    "FGVCAircraft": write_aircraft,
    "Food101": lambda root: write_folders(
        root / "food-101" / "images", {name: name for name in ("apple_pie", "baby_back_ribs", "sushi")}
    ),
    "DescribableTextures": lambda root: write_folders(
        root / "dtd" / "images", {name: name for name in ("banded", "zigzagged", "woven")}
    ),
    "EuroSAT": lambda root: write_folders(
        root / "eurosat" / "2750", {"AnnualCrop": "Annual Crop Land", "SeaLake": "Sea or Lake", "River": "River"}
    ),
}
