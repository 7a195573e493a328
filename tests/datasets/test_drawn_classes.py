"""The class lists of the drawn suite: ids, subsets, and what their images show."""

from __future__ import annotations

import re

import numpy as np
import pytest

from dassl_lite.data import DATASET_REGISTRY, ClassList, match_classes
from dassl_lite.datasets import (
    digits,
    gadgets,
    paints,
    shapesnet,
    shapesneta,
    shapesnetr,
    shapesnetsketch,
    shapesnetv2,
    silhouettes,
    textures,
    tiles,
)
from dassl_lite.datasets._drawn.classes import (
    GADGETS,
    PAINTS,
    SHAPESNET,
    SHAPESNET_A,
    SHAPESNET_R,
    SILHOUETTES,
    subjects_of,
)
from dassl_lite.datasets._drawn.scene import COLOUR_NAMES, FILL_NAMES
from dassl_lite.datasets._drawn.shapes import SHAPE_NAMES
from dassl_lite.datasets._drawn.suite import DrawnDataset

MODULES = (
    *(shapesnet, shapesnetv2, shapesnetsketch, shapesneta, shapesnetr),
    *(silhouettes, paints, gadgets, digits, textures, tiles),
)
SUITE = {
    "ShapesNet": 48,
    "ShapesNetV2": 48,
    "ShapesNetSketch": 48,
    "ShapesNetA": 16,
    "ShapesNetR": 24,
    "Silhouettes": 20,
    "Paints": 30,
    "Gadgets": 12,
    "Digits": 10,
    "Textures": 12,
    "Tiles": 10,
}


def table_of(name: str) -> list[tuple[str, str]]:
    dataset: type[DrawnDataset] = DATASET_REGISTRY.get(name)
    return list(dataset.class_table(dataset.__new__(dataset)))


def class_list(name: str) -> ClassList:
    names, ids = zip(*table_of(name), strict=True)
    return ClassList(names, ids)


def test_each_module_registers_the_dataset_of_its_lowercase_name() -> None:
    assert {module.__name__.rpartition(".")[2] for module in MODULES} == {name.lower() for name in SUITE}


@pytest.mark.parametrize(("name", "count"), SUITE.items())
def test_class_names_are_unique_and_counted(name: str, count: int) -> None:
    names = [name for name, _ in table_of(name)]
    assert len(names) == len(set(names)) == count


def test_source_ids_look_like_imagenets_and_are_unique() -> None:
    ids = [cls.id for cls in SHAPESNET]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[a-z]\d{8}", identity) for identity in ids)
    assert ids == sorted(ids)


@pytest.mark.parametrize("subset", [SHAPESNET_A, SHAPESNET_R])
def test_variants_a_and_r_contain_source_classes_at_other_labels(subset: tuple) -> None:
    assert set(subset) < set(SHAPESNET)
    moved = [label for label, cls in enumerate(subset) if SHAPESNET.index(cls) != label]
    assert len(moved) > 0.9 * len(subset)
    positions = [SHAPESNET.index(cls) for cls in subset]
    assert positions != sorted(positions)  # a remap that only drops rows would be wrong


@pytest.mark.parametrize("variant", ["ShapesNetV2", "ShapesNetSketch", "ShapesNetA", "ShapesNetR"])
def test_every_variant_class_is_matched_to_the_source_by_id(variant: str) -> None:
    source, target = class_list("ShapesNet"), class_list(variant)
    match = match_classes(source, target)
    assert match.by_id == len(target.names)
    assert [source.names[row] for row in match.rows] == list(target.names)


@pytest.mark.parametrize("classes", [SHAPESNET, SILHOUETTES, GADGETS, PAINTS])
def test_images_show_the_attributes_of_their_class(classes: tuple) -> None:
    labels = np.repeat(np.arange(len(classes)), 20)
    shown = subjects_of(classes, labels, np.random.default_rng(0))
    for picture, label in enumerate(labels):
        cls = classes[label]
        assert cls.shape in ("", SHAPE_NAMES[shown.shape[picture]])
        assert cls.fill in ("", FILL_NAMES[shown.fill[picture]])
        assert cls.colour in ("", COLOUR_NAMES[shown.colour[picture]])


def test_attributes_that_a_class_does_not_fix_vary() -> None:
    shown = subjects_of(GADGETS, np.zeros(200, np.int64), np.random.default_rng(0))
    assert len(set(shown.fill)) == len(FILL_NAMES)
    assert len(set(shown.colour)) == len(COLOUR_NAMES)
    assert set(shown.shape) == {SHAPE_NAMES.index(GADGETS[0].name)}
