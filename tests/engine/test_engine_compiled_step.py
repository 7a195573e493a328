"""TRAIN.COMPILE: the same numbers up to rounding; where torch cannot compile, training goes on and says so."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

from dassl_lite.data.feature_files import FeatureFile, FeaturePart, write_feature_file
from dassl_lite.engine.build import make_config
from dassl_lite.engine.commands.run import seeded
from dassl_lite.engine.methods import compiled_step
from dassl_lite.engine.methods.compiled_step import compiled
from dassl_lite.engine.methods.feature_trainer import FeatureTrainer

NAMES = ("ant", "bee", "cat")
CPU = torch.device("cpu")
ASKED_FOR = "DASSL_LITE_TEST_COMPILE"
needs_compiler = pytest.mark.skipif(
    bool(compiled_step._why_unavailable(CPU)), reason="no C++ compiler for torch.compile"
)


@pytest.fixture
def features(tmp_path: Path) -> dict[str, Any]:
    rng = np.random.default_rng(0)

    def part(count: int) -> FeaturePart:
        return FeaturePart(rng.standard_normal((1, 3 * count, 8), dtype=np.float32), np.arange(3).repeat(count))

    text = rng.standard_normal((1, 3, 8), dtype=np.float32)
    write_feature_file(FeatureFile({"train": part(4), "test": part(2)}, NAMES, text), tmp_path / "features.npz")
    return {"DATASET": {"NAME": "Features", "FILE": str(tmp_path / "features.npz")}}


@pytest.fixture
def images(tmp_path: Path, golden_backbone: Any) -> dict[str, Any]:
    for split in ("train", "test"):
        for number, name in enumerate(NAMES):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for shade in (40, 120):
                color = tuple(shade if channel == number else 200 for channel in range(3))
                Image.new("RGB", (8, 8), color).save(tmp_path / "data" / split / name / f"{shade}.png")
    return {
        "DATASET": {"NAME": "ImageFolder", "ROOT": str(tmp_path / "data")},
        "MODEL": {"BACKBONE": {"NAME": str(golden_backbone("vit0"))}},
        "DATALOADER": {"NUM_WORKERS": 0},
    }


@pytest.fixture
def trained(tmp_path: Path) -> Callable[..., dict[str, torch.Tensor]]:
    """Weights after two epochs of two steps, the second of which is shorter."""

    def train(method: str, data: dict[str, Any], *options: str) -> dict[str, torch.Tensor]:
        flags = {**data, "OUTPUT_DIR": str(tmp_path / f"{method}{len(options)}"), "VERBOSE": False}
        steps = ("OPTIM.NAME", "sgd", "OPTIM.LR", "0.01", "OPTIM.MAX_EPOCH", "2", "DATALOADER.TRAIN_X.BATCH_SIZE", "4")
        trainer = seeded(make_config(trainer=method, flags=flags, options=(*steps, "TEST.NO_TEST", "True", *options)))
        trainer.train()
        return {name: value.clone() for name, value in trainer.head.state_dict().items()}

    return train


def assert_close(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        largest = max(1e-6, value.abs().max().item())
        assert (found[name] - value).abs().max().item() <= 1e-5 * largest, name


@pytest.fixture(params=["aot_eager", pytest.param("inductor", marks=needs_compiler)])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """What compiles: torch's own compiler takes minutes to start; trace and gradients are checked without it."""
    if request.param == "inductor":
        yield request.param
        return
    compile_ = torch.compile

    def traced(step: Any, **options: Any) -> Any:
        return compile_(step, backend=request.param)

    with (
        mock.patch.object(torch, "compile", traced),
        mock.patch.object(compiled_step, "_why_unavailable", return_value=""),
    ):
        yield request.param


@pytest.mark.slow
@pytest.mark.parametrize("method", ["TaskRes", "LinearProbe", "CoOp"])
def test_a_compiled_step_trains_as_a_plain_one(
    trained: Any, features: dict[str, Any], images: dict[str, Any], method: str, backend: str
) -> None:
    if (backend == "inductor" or method == "CoOp") and not os.environ.get(ASKED_FOR):
        pytest.skip(f"takes minutes; {ASKED_FOR}=1 runs it")
    own = {"LinearProbe": ("TRAINER.LinearProbe.FIT", "gradient"), "CoOp": ("TRAINER.COOP.N_CTX", "2")}.get(method, ())
    data = images if method == "CoOp" else features
    plain = trained(method, data, *own)
    with mock.patch.object(compiled_step.logger, "warning", pytest.fail):
        assert_close(trained(method, data, *own, "TRAIN.COMPILE", "True"), plain)


def test_where_there_is_no_compiler_the_step_runs_as_it_is_and_says_so() -> None:
    told: list[str] = []
    with mock.patch.object(compiled_step.logger, "warning", told.append):
        with mock.patch("torch._inductor.cpp_builder.get_cpp_compiler", side_effect=RuntimeError("none\nfound")):
            assert compiled(torch.neg, CPU) is torch.neg
        assert compiled(torch.neg, torch.device("mps")) is torch.neg
    assert told == [
        "TRAIN.COMPILE: torch cannot compile the step (a CPU needs a C++ compiler: none); running it uncompiled",
        "TRAIN.COMPILE: torch cannot compile the step (untested on mps); running it uncompiled",
    ]


def test_a_step_that_cannot_be_compiled_runs_as_it_is_but_its_own_errors_are_raised() -> None:
    class TracingError(RuntimeError):
        __module__ = "torch._dynamo.exc"

    def fails(kind: type[Exception]) -> Any:
        def compile_(step: Any, **options: Any) -> Any:
            return mock.Mock(side_effect=kind("of many\nlines"))

        return compile_

    told: list[str] = []
    able = mock.patch.object(compiled_step, "_why_unavailable", return_value="")
    with able, mock.patch.object(compiled_step.logger, "warning", told.append):
        with mock.patch.object(torch, "compile", fails(TracingError)):
            step = compiled(torch.neg, CPU)
            assert [step(torch.ones(1)).item(), step(torch.ones(1)).item()] == [-1, -1]
        with mock.patch.object(torch, "compile", fails(ValueError)), pytest.raises(ValueError, match="of many"):
            compiled(torch.neg, CPU)(torch.ones(1))
    assert told == ["TRAIN.COMPILE: torch cannot compile the step (TracingError: of many); running it uncompiled"]


class BackwardFails(torch.autograd.Function):
    """What a compiled step gives whose backward pass cannot be compiled, which torch finds out when it runs."""

    @staticmethod
    def forward(ctx: Any, loss: torch.Tensor) -> torch.Tensor:
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        raise AssertionError("no kernel for it\nat all")


def test_a_step_whose_backward_pass_cannot_be_compiled_runs_as_it_is(trained: Any, features: dict[str, Any]) -> None:
    def compile_(step: Any, **options: Any) -> Any:
        def fast(*args: Any) -> Any:
            logits, loss = step(*args)
            return logits, BackwardFails.apply(loss)  # type: ignore[no-untyped-call]

        return fast

    plain, told = trained("TaskRes", features), []
    with (
        mock.patch.object(compiled_step, "_why_unavailable", return_value=""),
        mock.patch.object(torch, "compile", compile_),
        mock.patch.object(compiled_step.logger, "warning", told.append),
    ):
        found = trained("TaskRes", features, "TRAIN.COMPILE", "True")
    assert all(torch.equal(found[name], value) for name, value in plain.items())
    assert told == [
        "TRAIN.COMPILE: torch cannot compile the step (AssertionError: no kernel for it); running it uncompiled"
    ]


def test_an_error_of_the_backward_pass_itself_is_raised_though_the_step_is_compiled(
    trained: Any, features: dict[str, Any]
) -> None:
    def fails(*args: Any) -> Any:
        raise RuntimeError("its own")

    with (
        mock.patch.object(compiled_step, "_why_unavailable", return_value=""),
        mock.patch.object(torch, "compile", lambda step, **options: step),
        mock.patch.object(FeatureTrainer, "compute_gradients", fails),
        pytest.raises(RuntimeError, match="its own"),
    ):
        trained("TaskRes", features, "TRAIN.COMPILE", "True")


@pytest.mark.slow
def test_a_method_whose_steps_cannot_be_compiled_says_that_the_key_has_no_effect(
    tmp_path: Path, images: dict[str, Any]
) -> None:
    for method, told in (("KgCoOp", True), ("CoOp", False)):
        flags = {**images, "OUTPUT_DIR": str(tmp_path / method), "VERBOSE": False}
        trainer = seeded(make_config(trainer=method, flags=flags, options=("TRAIN.COMPILE", "True")))
        assert ("TRAIN.COMPILE" in trainer.idle_keys()) == told
