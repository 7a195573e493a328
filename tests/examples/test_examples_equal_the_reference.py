"""The plain examples against the reference's numbers; tolerances as tests/golden/README.md suggests."""

from __future__ import annotations

import ast
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import plain_coop
import plain_taskres
import pytest
import torch
import torch.nn.functional as F
from plain_clip import load_clip

EXAMPLES = Path(plain_taskres.__file__).parent
FORWARD, STEPS = 1e-5, 1e-3
PETS = "a photo of a {}, a type of pet."


@pytest.fixture(scope="module")
def model(golden_backbone: Any) -> Any:
    return load_clip(str(golden_backbone("vit0")))


@pytest.fixture(scope="module")
def inputs(golden: Any) -> Any:
    """``inputs("eval")``: images (N, 3, H, W); ``inputs(3)``: training batch 3, (images, labels)."""
    params, tiny = golden.json("meta")["params"], golden.tiny_clip

    def get(which: Any) -> Any:
        if which == "eval":
            return tiny.images("vit", params["eval_seed"], params["n_eval"])
        labels = np.random.RandomState(params["label_seed"] + which).randint(0, len(params["classnames"]), params["bs"])
        return tiny.images("vit", params["batch_seed"] + which, params["bs"]), torch.from_numpy(labels)

    return get


def error(found: torch.Tensor, expected: np.ndarray) -> float:
    """Largest difference relative to the largest magnitude expected."""
    return float(np.abs(found.detach().numpy() - expected).max() / np.abs(expected).max())


def check_steps(example: Any, head: Any, model: Any, inputs: Any, steps: list, monkeypatch: Any) -> None:
    """Train on the golden batches at the golden constant rate; every loss as the reference's."""
    monkeypatch.setattr(example, "learning_rate", lambda epoch, epochs: steps[0]["lr"])
    losses = example.train(model, head, [inputs(step["step"]) for step in steps], epochs=1)
    assert losses == pytest.approx([step["loss"] for step in steps], rel=STEPS)


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_plain_taskres_equals_the_reference(alpha, golden, model, inputs, monkeypatch):
    reference, arrays = golden.json("taskres"), golden.npz("taskres")
    name = f"vit0.OxfordPets.a{alpha}"
    head = plain_taskres.TaskRes(model, reference["classnames"], PETS, alpha)
    features = model.encode_image(inputs("eval"))
    assert error(head.t, arrays[f"{name}.base"]) < FORWARD
    assert error(head(features), arrays[f"{name}.logits0"]) < FORWARD
    images, labels = inputs(0)
    loss = F.cross_entropy(head(model.encode_image(images)), labels)
    assert loss.item() == pytest.approx(reference["cases"][name]["loss0"], rel=FORWARD)
    steps = reference["cases"][f"{name}.adam.const"]["steps"]
    check_steps(plain_taskres, head, model, inputs, steps, monkeypatch)
    assert error(head.x, arrays[f"{name}.adam.const.residual"]) < STEPS
    assert error(head(features), arrays[f"{name}.adam.const.logits_final"]) < STEPS


@pytest.mark.parametrize("n_ctx", [4, 16])
def test_plain_coop_equals_the_reference(n_ctx, golden, model, inputs, monkeypatch):
    reference, arrays = golden.json("coop"), golden.npz("coop")
    name = f"vit0_n{n_ctx}_csc0_end"
    case = reference["cases"][name]
    head = plain_coop.CoOp(model, golden.json("taskres")["classnames"], n_ctx)
    drawn = golden.tiny_clip.array(case["ctx_seed"], *case["ctx_shape"], scale=reference["ctx_scale"])
    head.v.data.copy_(torch.from_numpy(drawn))
    assert error(head.text_features(), arrays[f"{name}.text_features"]) < FORWARD
    assert error(head(model.encode_image(inputs("eval"))), arrays[f"{name}.logits"]) < FORWARD
    check_steps(plain_coop, head, model, inputs, case["steps"], monkeypatch)
    assert error(head.v, arrays[f"{name}.ctx5"]) < STEPS


@pytest.mark.parametrize("example", [plain_taskres, plain_coop])
def test_plain_learning_rates_equal_the_references(example, golden):
    steps = golden.json("taskres")["cases"]["vit0.ImageNet.a0.5.adam.yaml"]["steps"]  # 2 batches per epoch of 100
    found = [example.learning_rate(step["step"] // 2, 100) for step in steps]
    assert found == pytest.approx([step["lr"] for step in steps], rel=1e-9)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_example_imports_nothing_of_the_engine(path):
    imported = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module or "")
    assert "torch" in {name.partition(".")[0] for name in imported}
    assert not {name for name in imported if name.partition(".")[0] in ("dassl_lite", "dassl")}


QUICK = ("--shots", "2", "--epochs", "2")


@pytest.mark.slow
def test_example_runs_from_the_command_line(images):
    command = [sys.executable, str(EXAMPLES / "plain_coop.py"), "--images", str(images), *QUICK]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "test accuracy" in done.stdout


def test_example_runs_as_a_script(images, monkeypatch, capsys):
    script = str(EXAMPLES / "plain_taskres.py")
    monkeypatch.setattr(sys, "argv", [script, "--images", str(images), *QUICK])
    runpy.run_path(script, run_name="__main__")
    assert "test accuracy" in capsys.readouterr().out
