"""MODEL.INIT_WEIGHTS: training starts from a checkpoint, its classes matched by identity, or says why it cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from toy import make_images

from dassl_lite.engine.build import build_trainer, make_config
from dassl_lite.engine.commands.evaluate import config_for, evaluate, stored_config
from dassl_lite.utils import UserError, set_random_seed

METHODS = ["TaskRes", "CoOp", "CoCoOp", "CLIP_Adapter", "LinearProbe", "CLIPLoRA", "TaskResEnhance", "TCP", "MMA"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_images(tmp_path_factory.mktemp("init_images"), {"train": 2, "test": 2})


@pytest.fixture
def build(data: Path, tmp_path: Path, golden_backbone: Any) -> Any:
    """``build("TaskRes", "OPTIM.LR", "1")``: that method on the toy images, on a tiny backbone."""

    def make(method: str, *options: str, backbone: str = "vit0", output: str = "run", root: Path = data) -> Any:
        flags = {
            "DATASET": {"ROOT": str(root), "NAME": "ImageFolder", "FEATURES": {"DIR": str(tmp_path / "features")}},
            "MODEL": {"BACKBONE": {"NAME": str(golden_backbone(backbone))}},
            "DATALOADER": {"NUM_WORKERS": 0, "TRAIN_X": {"BATCH_SIZE": 4}},
            "OPTIM": {"MAX_EPOCH": 1, "LR": 0.01},
            "OUTPUT_DIR": str(tmp_path / output),
        }
        few = ("DATASET.FEATURES.VIEWS", "1", "TRAINER.CLIPLoRA.STEPS_PER_SHOT", "0", "TRAINER.COOP.N_CTX", "2")
        set_random_seed(3)
        return build_trainer(make_config(trainer=method, flags=flags, options=[*few, *options]))

    return make


def trained(build: Any, method: str, **given: Any) -> tuple[Any, str]:
    """A trainer after an epoch, and its checkpoint's path."""
    trainer = build(method, output="source", **given)
    trainer.train()
    return trainer, str(Path(trainer.output_dir) / trainer.model_name / "model.pth.tar-1")


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_training_starts_from_the_given_weights(build: Any, method: str) -> None:
    source, path = trained(build, method)
    fresh, started = build(method), build(method, "MODEL.INIT_WEIGHTS", path)
    learnt = {name for name, parameter in source.head.named_parameters() if parameter.requires_grad}
    assert learnt
    for name, value in source.head.state_dict().items():
        assert torch.equal(started.head.state_dict()[name], value), name
    assert any(not torch.equal(fresh.head.state_dict()[name], source.head.state_dict()[name]) for name in learnt)
    started.train()  # the optimiser holds these parameters
    assert any(not torch.equal(started.head.state_dict()[name], source.head.state_dict()[name]) for name in learnt)


@pytest.mark.slow
def test_rows_are_matched_by_class_identity(build: Any, tmp_path: Path) -> None:
    source, path = trained(build, "TaskRes")
    root = tmp_path / "other"
    make_images(root, {"train": 2, "test": 2})
    for part in ("train", "test"):
        (root / part / "blue").rename(root / part / "violet")  # labels go by name: green, red, violet
    started = build("TaskRes", "MODEL.INIT_WEIGHTS", path, root=root)
    rows, own = started.head.text_feature_residuals, source.head.text_feature_residuals
    assert torch.equal(rows[:2], own[1:])
    assert own[0].any()
    assert not rows[2].any()
    assert started.class_match is None, "that is what evaluation reports"
    _, probe = trained(build, "LinearProbe")
    with pytest.raises(UserError, match="it lacks violet"):
        build("LinearProbe", "MODEL.INIT_WEIGHTS", probe, root=root)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("ZeroshotCLIP", ()),
        ("TipAdapter", ()),
        ("TipAdapterF", ()),
        ("LinearProbe", ("TRAINER.LinearProbe.FIT", "logistic_regression")),
    ],
)
def test_weights_that_would_have_no_effect_are_refused(build: Any, method: str, options: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match=f"INIT_WEIGHTS x.pth has no effect on {method}"):
        build(method, "MODEL.INIT_WEIGHTS", "x.pth", *options)


@pytest.mark.slow
def test_weights_that_do_not_fit_are_reported_in_one_line(build: Any, tmp_path: Path) -> None:
    _, path = trained(build, "TaskRes")
    for options, backbone, expected in (
        (("CLIP_Adapter", "MODEL.INIT_WEIGHTS", path), "vit0", "do not fit the model"),
        (("TaskRes", "MODEL.INIT_WEIGHTS", path), "vit1", "was saved with backbone"),
        (("TaskRes", "MODEL.INIT_WEIGHTS", str(tmp_path / "no.pth")), "vit0", "not found"),
    ):
        with pytest.raises(UserError, match=expected) as told:
            build(*options, backbone=backbone)
        assert "\n" not in str(told.value)
    torch.save({"state_dict": [1, 2]}, tmp_path / "list.pth")
    with pytest.raises(UserError, match="list.pth has no weights"):
        build("TaskRes", "MODEL.INIT_WEIGHTS", str(tmp_path / "list.pth"))


@pytest.mark.slow
def test_another_method_with_the_same_head_may_start_from_it(build: Any) -> None:
    from dassl_lite.engine import TRAINER_REGISTRY

    base = TRAINER_REGISTRY.get("TaskRes")
    TRAINER_REGISTRY.register(type("TaskResOfMine", (base,), {"config_node": "TaskRes"}), force=True)
    source, path = trained(build, "TaskRes")
    started = build("TaskResOfMine", "MODEL.INIT_WEIGHTS", path)
    assert torch.equal(started.head.text_feature_residuals, source.head.text_feature_residuals)


@pytest.mark.slow
def test_a_run_is_evaluated_without_the_file_that_it_started_from(build: Any, tmp_path: Path) -> None:
    _, path = trained(build, "TaskRes")
    run = build("TaskRes", "MODEL.INIT_WEIGHTS", path)
    run.train()
    accuracy = run.results["test"]["accuracy"]
    Path(path).unlink()
    again = evaluate(config_for(stored_config(run.output_dir), None, {}), run.output_dir)
    assert again.results["test"]["accuracy"] == accuracy
