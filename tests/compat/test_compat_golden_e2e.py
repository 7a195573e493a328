"""The reference's own runs, step by step, file by file and line by line of their logs (golden/e2e_*).

The batches of the recorded run are fed in (their order depends on how much chance building the model had used), for
CoOp the initial context too. What differs, on purpose:

- draws are JSON: the file's name in one line;
- lines between the table and the evaluator: the backbone's file stands for its key, and what is trained is said in
  other words;
- one line more when a model is loaded, on its classes, which files now name;
- tools/train.py adds results.json and closes with a table; here the trainer alone is run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import default_collate

from dassl_lite.engine import run
from dassl_lite.engine.build import make_config
from dassl_lite.utils import setup_logger

NODES = {"taskres": ("TaskRes", "text_feature_residuals"), "coop": ("CoOp", "ctx")}
# Our lines that the reference has not, and its that we have not (see above).
OURS = ("matched ", "Trainable: ")
THEIRS = ("Building custom CLIP", ">> ", "Turning off gradients", "prompt_learner.")


class RecordedBatches:
    """The reference run's batches, epoch by epoch."""

    def __init__(self, loader: Any, steps: list[dict[str, Any]]) -> None:
        self.dataset, self.steps, self.epoch = loader.dataset, steps, 0

    def __len__(self) -> int:
        return len(self.steps) // len({step["epoch"] for step in self.steps})

    def __iter__(self) -> Iterator[Any]:
        mine = [step for step in self.steps if step["epoch"] == self.epoch]
        self.epoch += 1
        for step in mine:
            yield default_collate([self.dataset[index] for index in step["index"]])


def draw_images(spec: dict[str, Any], folder: Path) -> None:
    """The folder of the golden run: its rule stands in the file."""
    (folder / "images").mkdir(parents=True)
    names, seed, counter = spec["classnames"], spec["seed0"], 0
    prototypes = np.random.RandomState(seed - 1).randint(0, 256, (len(names), 4, 4, 3))
    for part, count in spec["n_per_class"].items():
        for label, name in enumerate(names):
            for i in range(count):
                noise = np.random.RandomState(seed + counter).randint(0, 256, (4, 4, 3))
                pixels = ((prototypes[label] + noise) // 2).astype(np.uint8).repeat(10, axis=0).repeat(9, axis=1)
                Image.fromarray(pixels).save(folder / "images" / f"{name}_{part}{i}.png")
                counter += 1
    (folder / "split_zhou_OxfordPets.json").write_text(json.dumps(spec["split"]))


@pytest.fixture(scope="module")
def pets(golden: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``pets("coop")``: the root of that golden run's dataset, which its runs share, one after another."""
    made: dict[str, Path] = {}

    def make(method: str) -> Path:
        if method not in made:
            made[method] = tmp_path_factory.mktemp(method)
            draw_images(golden.json(f"e2e_{method}")["dataset"], made[method] / "oxford_pets")
        return made[method]

    return make


def normalised(lines: list[str], root: Path) -> list[str]:
    """Log lines without times and places, without the lines that differ on purpose."""
    text = "\n".join(lines).replace(str(root), "<root>").replace("/out_last_step/", "/").replace("/out_best_val/", "/")
    text = text.replace("<root>/last_step/", "<root>/").replace("<root>/best_val/", "<root>/")
    text = re.sub(r"time \S+ \(\S+\) data \S+ \(\S+\)", "time <t> (<t>) data <t> (<t>)", text)
    text = re.sub(r"eta \S+", "eta <eta>", re.sub(r"Elapsed: .*", "Elapsed: <elapsed>", text))
    text = re.sub(r"Loading CLIP \(backbone: .*\)", "Loading CLIP", text.replace("seed_1.json", "seed_1.pkl"))
    return [line for line in text.splitlines() if line and not line.startswith((*OURS, *THEIRS))]


def text(line: str) -> str:
    """A line of a step without its numbers, whose last digit may differ; another line as it is."""
    return re.sub(r"\d+\.\d+", "<n>", line) if line.startswith("epoch [") else line


def numbers_in(lines: list[str]) -> list[float]:
    """Loss, accuracy and their averages, of all steps."""
    return [float(n) for line in lines if line.startswith("epoch [") for n in re.findall(r"\d+\.\d+", line)]


def build(method: str, name: str, spec: dict[str, Any], root: Path, backbone: Path) -> Any:
    options = [str(backbone) if value == "vit0" else value for value in spec["opts"]]
    cfg = make_config(
        trainer=NODES[method][0],
        method_file="_base.yaml",
        flags={"DATASET": {"NAME": "OxfordPets", "ROOT": str(root)}, "OUTPUT_DIR": str(root / name), "SEED": 1},
        options=[*options, "DATASET.FEATURES.VIEWS", "0"],
    )
    return run.build(cfg)


def train(trainer: Any, spec: dict[str, Any]) -> list[tuple[float, dict[str, float]]]:
    """Train on the recorded batches; learning rate and summary of every step."""
    seen: list[tuple[float, dict[str, float]]] = []
    trainer.train_loader_x = RecordedBatches(trainer.train_loader_x, spec["steps"])
    original = trainer.forward_backward

    def forward_backward(batch: dict[str, Any]) -> dict[str, float]:
        seen.append((trainer.get_current_lr(), original(batch)))
        return seen[-1][1]

    trainer.forward_backward = forward_backward
    trainer.train()
    return seen


@pytest.mark.parametrize("method", NODES)
def test_a_run_differs_from_the_references(
    golden: Any, golden_backbone: Any, pets: Callable[[str], Path], method: str
) -> None:
    recorded, arrays, root = golden.json(f"e2e_{method}"), golden.npz(f"e2e_{method}"), pets(method)
    for name in ("last_step", "best_val"):
        spec, output = recorded[name], root / name
        trainer = build(method, name, spec, root, golden_backbone("vit0"))
        for part, items in (("train", trainer.dm.dataset.train_x), ("val", trainer.dm.dataset.val)):
            assert [Path(item.impath).name for item in items] == spec[f"{part}_files"]
        if f"{name}.init.ctx" in arrays:
            trainer.head.ctx.data.copy_(torch.from_numpy(arrays[f"{name}.init.ctx"]))
        for (lr, found), step in zip(train(trainer, spec), spec["steps"], strict=True):
            assert lr == pytest.approx(step["lr"], rel=1e-9)
            assert found["loss"] == pytest.approx(step["loss"], rel=1e-3)
            assert found["acc"] == pytest.approx(step["acc"])
        tests = [[row["split"], row["accuracy"]] for row in trainer.history]
        assert tests == [[split or "test", pytest.approx(accuracy)] for split, accuracy, _ in spec["tests"]]

        files = {str(path.relative_to(output)) for path in output.rglob("*") if path.is_file()}
        assert {file for file in files if "tensorboard" not in file} == set(spec["outputs"])
        key = NODES[method][1]
        last = trainer.head.state_dict()[key]  # best_val: of the best epoch, which is deployed
        expected = arrays[f"{name}.final.{key}"]
        assert np.abs(last.numpy() - expected).max() < 1e-3 * np.abs(expected).max()
        found_log = (output / "log.txt").read_text(encoding="utf-8").splitlines()
        expected_log = normalised(spec["log"], root)
        assert [text(line) for line in normalised(found_log, root)] == [text(line) for line in expected_log]
        found_numbers, numbers = (numbers_in(lines) for lines in (normalised(found_log, root), expected_log))
        assert found_numbers == pytest.approx(numbers, rel=1e-3, abs=1e-3)
    setup_logger()
