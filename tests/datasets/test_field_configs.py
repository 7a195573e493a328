"""The fifteen standard datasets: short yaml files and modules with CoOp's names."""

from __future__ import annotations

from pathlib import Path

import pytest

from dassl_lite.data import DATASET_REGISTRY
from dassl_lite.engine.build import make_config

REPOSITORY = Path(__file__).resolve().parents[2]
# CoOp's yaml file -> registered name and folder under the root.
FIELD = {
    "caltech101": ("Caltech101", "caltech-101/101_ObjectCategories"),
    "oxford_pets": ("OxfordPets", "oxford_pets/images"),
    "stanford_cars": ("StanfordCars", "stanford_cars/"),
    "oxford_flowers": ("OxfordFlowers", "oxford_flowers/jpg"),
    "food101": ("Food101", "food-101/images"),
    "fgvc_aircraft": ("FGVCAircraft", "fgvc_aircraft/images"),
    "sun397": ("SUN397", "sun397/SUN397"),
    "dtd": ("DescribableTextures", "dtd/images"),
    "eurosat": ("EuroSAT", "eurosat/2750"),
    "ucf101": ("UCF101", "ucf101/UCF-101-midframes"),
    "imagenet": ("ImageNet", "imagenet/images"),
    "imagenetv2": ("ImageNetV2", "imagenetv2/imagenetv2-matched-frequency-format-val"),
    "imagenet_sketch": ("ImageNetSketch", "imagenet-sketch/images"),
    "imagenet_a": ("ImageNetA", "imagenet-adversarial/imagenet-a"),
    "imagenet_r": ("ImageNetR", "imagenet-rendition/imagenet-r"),
}


@pytest.mark.parametrize("file", FIELD)
def test_each_yaml_finds_its_dataset(file: str) -> None:
    name, folder = FIELD[file]
    assert name == make_config(dataset_file=file).DATASET.NAME
    dataset = DATASET_REGISTRY.get(name)
    assert f"{dataset.dataset_dir}/{dataset.image_dir}" == folder
    assert dataset.homepage.startswith("https://")


@pytest.mark.parametrize("file", [*FIELD, "csv", "image_folder"])
def test_each_yaml_has_at_most_five_lines(file: str) -> None:
    assert len((REPOSITORY / "configs" / "datasets" / f"{file}.yaml").read_text().splitlines()) <= 5


@pytest.mark.parametrize("file", FIELD)
def test_each_module_has_at_most_thirty_lines(file: str) -> None:
    assert len((REPOSITORY / "datasets" / f"{file}.py").read_text().splitlines()) <= 30
