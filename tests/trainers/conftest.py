"""Trainers on the golden inputs: tiny CLIPs, five class names, batches drawn from seeds."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden_count import plain
from safetensors.torch import save_file

from dassl_lite.data import DATASET_REGISTRY, IMAGENET_TEMPLATES_SELECT, DatasetBase, Datum
from dassl_lite.data.feature_files import FeatureFile, FeaturePart, write_feature_file
from dassl_lite.engine.build import build_trainer, make_config
from dassl_lite.utils import set_random_seed

CLASSNAMES = ["american_bulldog", "Annual Crop Land", "golden retriever", "Boeing 737-800", "yo-yo"]
# Own template and ensemble of the golden cases' datasets, as PROTOCOL.md lists them.
TEMPLATES = {
    "ImageNet": ("a photo of a {}.", IMAGENET_TEMPLATES_SELECT),
    "OxfordPets": ("a photo of a {}, a type of pet.", ()),
    "EuroSAT": ("a centered satellite photo of {}.", ()),
    "DescribableTextures": ("{} texture.", ()),
    "FGVCAircraft": ("a photo of a {}, a type of aircraft.", ()),
    "UCF101": ("a photo of a person doing {}.", ()),
}


class _GoldenDataset(DatasetBase):
    """Five classes whose images come from seeds, not from files."""

    def __init__(self, cfg: Any) -> None:
        items = [Datum(f"{name}.png", label, classname=name) for label, name in enumerate(CLASSNAMES)]
        super().__init__(train_x=items, val=items, test=items)


@pytest.fixture(scope="session", autouse=True)
def _golden_datasets() -> None:
    for name, (template, ensemble) in TEMPLATES.items():
        fields = {"template": template, "ensemble_templates": tuple(ensemble), "__module__": __name__}
        DATASET_REGISTRY.register(type(f"Golden{name}", (_GoldenDataset,), fields), name=f"Golden{name}")
    return


@pytest.fixture
def golden_trainer(golden_backbone: Any, tmp_path: Path) -> Callable[..., Any]:
    """``golden_trainer("TaskRes", "vit0", "OxfordPets", "TRAINER.TaskRes.RESIDUAL_SCALE", "0.5")``: a built trainer
    that encodes the images of its batches (VIEWS 0)."""

    def make(method: str, backbone: str, dataset: str, *options: str, method_file: str | None = None) -> Any:
        cfg = make_config(
            trainer=method,
            method_file=method_file,
            flags={
                "DATASET": {"NAME": f"Golden{dataset}", "FEATURES": {"VIEWS": 0}},
                "MODEL": {"BACKBONE": {"NAME": str(golden_backbone(backbone))}},
                "OUTPUT_DIR": str(tmp_path / "run"),
            },
            options=options,
        )
        torch.manual_seed(0)
        return build_trainer(cfg)

    return make


@pytest.fixture(scope="session")
def golden_inputs(golden: Any) -> Any:
    """Evaluation images and training batches of the golden runs."""
    params, tiny = golden.json("meta")["params"], golden.tiny_clip

    class Inputs:
        @staticmethod
        def images(backbone: str) -> torch.Tensor:
            return tiny.images(backbone.rstrip("0123456789"), params["eval_seed"], params["n_eval"])

        @staticmethod
        def batch(backbone: str, step: int, size: int = params["bs"]) -> dict[str, torch.Tensor]:
            labels = np.random.RandomState(params["label_seed"] + step).randint(0, len(CLASSNAMES), size=size)
            images = tiny.images(backbone.rstrip("0123456789"), params["batch_seed"] + step, size)
            return {"img": images, "label": torch.from_numpy(labels)}

        array = staticmethod(tiny.array)

    return Inputs


PROMPTS_PARAMS = json.loads((Path(__file__).parents[1] / "golden2" / "meta_prompts.json").read_text())["params"]


class _PromptsDataset(DatasetBase):
    """The classes of the prompt methods in tests/golden2, whose images come from seeds."""

    template = "a photo of a {}."

    def __init__(self, cfg: Any) -> None:
        names = PROMPTS_PARAMS["classnames"]
        items = [Datum(f"{name}.png", label, classname=name) for label, name in enumerate(names)]
        super().__init__(train_x=items, val=items, test=items)


@pytest.fixture(scope="session")
def prompts_trainer(golden2: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """``prompts_trainer("IVLP", "vit20", *options)``: a built trainer on a model of tests/golden2's prompt methods; it
    encodes the images of its batches and has a constant rate."""
    DATASET_REGISTRY.register(_PromptsDataset, name="GoldenPrompts", force=True)
    folder = tmp_path_factory.mktemp("prompts")

    def make(method: str, model: str, *options: str, output: Path | None = None) -> Any:
        weights, made = folder / f"{model}.safetensors", PROMPTS_PARAMS["models"][model]
        if not weights.exists():
            state = golden2.tiny_clip.state_dict(made["kind"], made["seed"], made["scale"], **made["override"])
            save_file(state, weights)
        flags = {
            "DATASET": {"NAME": "GoldenPrompts", "FEATURES": {"VIEWS": 0}},
            "MODEL": {"BACKBONE": {"NAME": str(weights)}},
            "OUTPUT_DIR": str(output or folder / "run"),
        }
        constant = (
            "OPTIM.WARMUP_EPOCH",
            "-1",
            "OPTIM.LR_SCHEDULER",
            "single_step",
            "OPTIM.STEPSIZE",
            "(1000,)",
            "DATASET.NUM_SHOTS",
            "-1",
        )
        cfg = make_config(trainer=method, method_file="default", flags=flags, options=[*constant, *options])
        torch.manual_seed(0)
        return build_trainer(cfg)

    return make


@pytest.fixture(scope="session")
def prompts_inputs(golden2: Any) -> Any:
    """Evaluation images and training batches of the prompt methods in tests/golden2."""
    params, tiny = PROMPTS_PARAMS, golden2.tiny_clip

    class Inputs:
        @staticmethod
        def images(model: str) -> torch.Tensor:
            return tiny.images(params["models"][model]["kind"], params["eval_seed"], params["n_eval"])

        @staticmethod
        def batch(model: str, step: int) -> dict[str, torch.Tensor]:
            stream = np.random.RandomState(params["label_seed"] + step)
            labels = stream.randint(0, len(params["classnames"]), size=params["bs"])
            images = tiny.images(params["models"][model]["kind"], params["batch_seed"] + step, params["bs"])
            return {"img": images, "label": torch.from_numpy(labels)}

    return Inputs


@pytest.fixture
def on_features(golden2: Any, tmp_path: Path) -> Callable[..., Any]:
    """``on_features("GDA", "gda", "many", *options)``: a trainer on the feature file of a case of tests/golden2.

    ``train`` tells where training and validation images come from, if the case has test images only.
    """

    def make(
        method: str, name: str, case: str, *options: str, train: str = "", output: str = "run", **kwargs: Any
    ) -> Any:
        arrays = golden2.npz(name)

        def part(split: str) -> FeaturePart:
            home = train if train and split != "test" else case
            views = [key for key in arrays if re.fullmatch(rf"{re.escape(home)}\.in\.{split}\d*", key)]
            return FeaturePart(
                np.stack([plain(arrays[key]) for key in views]), plain(arrays[f"{home}.in.{split}_labels"])
            )

        text = plain(arrays[f"{case}.in.text"])
        labels = f"{case}.in.text_labels"  # several prompts of each class, class by class
        templates = int((plain(arrays[labels]) == 0).sum()) if labels in arrays else 1
        text = text.reshape(-1, templates, text.shape[-1]).swapaxes(0, 1)
        path = tmp_path / f"{output}-{case}.npz"
        file = FeatureFile(
            parts={split: part(split) for split in ("train", "val", "test") if train != "none" or split == "test"},
            classnames=tuple(f"{case} {label}" for label in range(text.shape[1])),
            text_weights=text,
            templates=tuple(f"{{}} {number}" for number in range(templates)),
            ensemble_templates=tuple(f"{{}} {number}" for number in range(templates)) if templates > 1 else (),
        )
        write_feature_file(file, path)
        flags = {"DATASET": {"NAME": "Features", "FILE": str(path)}, "OUTPUT_DIR": str(tmp_path / output)}
        set_random_seed(0)
        return build_trainer(make_config(trainer=method, flags=flags, options=options, **kwargs))

    return make


def relative_error(found: Any, expected: Any) -> float:
    """Largest difference relative to the largest magnitude expected."""
    found = found.detach().cpu().numpy() if isinstance(found, torch.Tensor) else np.asarray(found)
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / (np.abs(expected).max() or 1.0))


@pytest.fixture(scope="session")
def error() -> Callable[[Any, Any], float]:
    return relative_error
