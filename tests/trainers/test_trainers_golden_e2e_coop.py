"""A whole run of CoOp against the reference's train.py: steps, files, tests, final context (golden/e2e_coop)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import default_collate

from dassl_lite.engine.build import build_trainer, make_config
from dassl_lite.utils import set_random_seed

STEPS = 1e-3


class RecordedBatches:
    """The reference run's batches, epoch by epoch: their order depends on how much chance it had used before."""

    def __init__(self, loader: Any, steps: list[dict[str, Any]]) -> None:
        self.dataset, self.epochs = loader.dataset, {step["epoch"] for step in steps}
        self.steps, self.epoch = steps, 0

    def __len__(self) -> int:
        return len(self.steps) // len(self.epochs)

    def __iter__(self) -> Iterator[Any]:
        mine = [step for step in self.steps if step["epoch"] == self.epoch]
        self.epoch += 1
        for step in mine:
            yield default_collate([self.dataset[index] for index in step["index"]])


def draw_images(spec: dict[str, Any], folder: Path) -> None:
    """The generated folder of the golden run: its rule stands in the file."""
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


@pytest.mark.parametrize("name", ["last_step", "best_val"])
def test_a_whole_run_of_coop_equals_the_references(golden, golden_backbone, error, tmp_path, caplog, name):
    spec, arrays = golden.json("e2e_coop"), golden.npz("e2e_coop")
    run = spec[name]
    draw_images(spec["dataset"], tmp_path / "oxford_pets")
    options = list(run["opts"])
    options[options.index("vit0")] = str(golden_backbone("vit0"))
    cfg = make_config(
        trainer="CoOp",
        method_file="_base.yaml",
        flags={"DATASET": {"NAME": "OxfordPets", "ROOT": str(tmp_path)}, "OUTPUT_DIR": str(tmp_path / "run")},
        options=[*options, "DATASET.FEATURES.VIEWS", "0"],
    )
    set_random_seed(1)
    trainer = build_trainer(cfg)
    assert [Path(item.impath).name for item in trainer.dm.dataset.train_x] == run["train_files"]
    trainer.head.ctx.data.copy_(torch.from_numpy(arrays[f"{name}.init.ctx"]))
    trainer.train_loader_x = RecordedBatches(trainer.train_loader_x, run["steps"])
    seen = []
    step_of = trainer.forward_backward

    def forward_backward(batch: dict[str, Any]) -> dict[str, float]:
        lr = trainer.get_current_lr()
        seen.append((lr, step_of(batch)))
        return seen[-1][1]

    trainer.forward_backward = forward_backward
    trainer.train()

    for (lr, found), step in zip(seen, run["steps"], strict=True):
        assert lr == pytest.approx(step["lr"], rel=1e-9)
        assert found["loss"] == pytest.approx(step["loss"], rel=STEPS)
        assert found["acc"] == pytest.approx(step["acc"])
    assert [row["accuracy"] for row in trainer.history] == [pytest.approx(test[1]) for test in run["tests"]]
    last = torch.load(tmp_path / "run" / "prompt_learner" / "model.pth.tar-3", weights_only=True)
    assert error(last["state_dict"]["ctx"], arrays[f"{name}.final.ctx"]) < STEPS
    files = sorted(str(path.relative_to(tmp_path / "run")) for path in (tmp_path / "run").rglob("*") if path.is_file())
    assert set(files) >= set(run["outputs"]) - {"log.txt"}
