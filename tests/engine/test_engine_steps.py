"""Steps whose values stay on the device: the same log and scalars as values read at once, and no run beyond a loss that
is not a number."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import cuda_standin
import families
import pytest
import torch
from toy import ToyTrainer, make_images, toy_trainer

from dassl_lite.engine import TRAINER_REGISTRY
from dassl_lite.engine.build import build_trainer, default_recipe, make_config
from dassl_lite.engine.contract import base, run_log
from dassl_lite.engine.plugins import load_plugins
from dassl_lite.utils import meters, setup_logger
from dassl_lite.utils.errors import NotFiniteError

NOT_A_NUMBER_AT = (1, 2)  # epoch and batch of a step, from 0


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_images(tmp_path_factory.mktemp("toy_images"))


@TRAINER_REGISTRY.register(force=True)
class TensorToy(ToyTrainer):
    """Returns tensors, which a later step overwrites, and counts."""

    def forward_backward(self, batch: dict[str, Any]) -> dict[str, Any]:
        values = super().forward_backward(batch)
        if not hasattr(self, "static"):
            self.static = {name: torch.zeros(()) for name in values}
        for name, value in values.items():
            self.static[name].fill_(value)
        return self.static


@pytest.fixture
def on_device(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every tensor is one that is costly to read; how many were read each time."""
    reads: list[int] = []

    def read(values: list[torch.Tensor]) -> list[float]:
        reads.extend([len(values)] if values else [])
        return [float(value) for value in values]

    for module in (base, meters):
        monkeypatch.setattr(module, "is_costly_to_read", lambda value: True)
    for module in (base, run_log, meters):
        monkeypatch.setattr(module, "read_together", read)
    return reads


def log_of(folder: Path) -> list[str]:
    """The lines of steps without their times."""
    lines = [line for line in (folder / "log.txt").read_text().splitlines() if line.startswith("epoch [")]
    return [" ".join(line.split()[:4] + line.split()[line.split().index("loss") : -2]) for line in lines]


def run(data: Path, folder: Path, trainer: str, *options: str) -> Any:
    setup_logger(folder, console=False)
    scalars: list[tuple[str, float, int]] = []
    made = toy_trainer(
        data, folder, "OPTIM.MAX_EPOCH", "2", "DATALOADER.TRAIN_X.BATCH_SIZE", "2", *options, trainer=trainer
    )
    made.write_scalar = lambda tag, value, step=None: scalars.append((tag, value, step))
    try:
        made.train()
    finally:
        setup_logger()
    return made, scalars, log_of(folder)


@pytest.mark.slow
@pytest.mark.parametrize("print_freq", ["4", "10"])
def test_values_left_on_the_device_give_the_log_and_scalars_of_values_read_at_once(
    data: Path, tmp_path: Path, print_freq: str, request: pytest.FixtureRequest
) -> None:
    options = ("TRAIN.PRINT_FREQ", print_freq)
    floats, scalars, log = run(data, tmp_path / "floats", "ToyTrainer", *options)
    reads = request.getfixturevalue("on_device")
    tensors, left, later = run(data, tmp_path / "tensors", "TensorToy", *options)
    assert len(log) == (4 if print_freq == "4" else 18)
    assert later == log
    assert left == scalars
    assert len(scalars) > 54
    assert torch.equal(tensors.model[2].weight, floats.model[2].weight)
    if print_freq == "4":  # of the nine steps of an epoch: at two log lines and at its end
        assert reads[:3] == [4, 8, 4]  # losses, then losses and accuracies
        assert len(reads) == 2 * (3 * 2 + 1)  # and the weights


@pytest.mark.slow
@pytest.mark.parametrize("waits", [False, True])
def test_a_nan_loss_stops_the_run_before_anything_is_saved_and_is_located_exactly(
    data: Path, tmp_path: Path, waits: bool, request: pytest.FixtureRequest
) -> None:
    if waits:
        request.getfixturevalue("on_device")
    trainer = toy_trainer(
        data, tmp_path, "TRAIN.PRINT_FREQ", "9", "DATALOADER.TRAIN_X.BATCH_SIZE", "2", "TRAIN.CHECKPOINT_FREQ", "1"
    )
    steps, own = [], trainer.forward_backward

    def forward_backward(batch: dict[str, Any]) -> dict[str, float]:
        steps.append((trainer.epoch, trainer.batch_idx))
        if steps[-1] == NOT_A_NUMBER_AT:
            batch["img"].fill_(float("inf"))
        return own(batch)

    trainer.forward_backward = forward_backward
    with pytest.raises(NotFiniteError, match="the loss is infinite or NaN at epoch 2, batch 3; lower"):
        trainer.train()
    assert (steps[-1] == NOT_A_NUMBER_AT) is not waits  # it goes on to the next log line
    assert [path.name for path in tmp_path.glob("toy/model*")] == ["model.pth.tar-1"]


def test_a_trainer_with_its_own_loop_saves_nothing_after_a_nan_loss(
    data: Path, tmp_path: Path, on_device: list[int]
) -> None:
    trainer = toy_trainer(data, tmp_path)
    for trainer.batch_idx in range(base.MAX_PENDING - 1):
        trainer.detect_anomaly(torch.tensor(float("nan") if trainer.batch_idx == 5 else 1.0))
    with pytest.raises(NotFiniteError, match="epoch 1, batch 6;"):
        trainer.save_model(0, tmp_path)
    assert not list(tmp_path.glob("toy/*"))
    trainer.save_model(0, tmp_path)  # it has been told
    for trainer.batch_idx in range(base.MAX_PENDING - 1):
        trainer.detect_anomaly(torch.tensor([1.0, float("inf") if trainer.batch_idx == 1 else 0.0]))
    with pytest.raises(NotFiniteError, match="epoch 1, batch 2;"):
        trainer.detect_anomaly(torch.tensor(1.0))


def test_weights_whose_sum_overflows_are_finite(data: Path, tmp_path: Path) -> None:
    trainer = toy_trainer(data, tmp_path)
    trainer.model[2].weight.data.fill_(3e38)
    trainer.require_finite_weights()
    trainer.model[2].weight.data[0, :2] = torch.tensor([float("inf"), float("-inf")])
    with pytest.raises(NotFiniteError, match="2.weight is infinite or NaN after epoch 1"):
        trainer.require_finite_weights()


def test_a_summary_that_is_not_a_dict_is_reported_with_its_step(data: Path, tmp_path: Path) -> None:
    trainer = toy_trainer(data, tmp_path)
    trainer.forward_backward = lambda batch: [1.0]
    with pytest.raises(TypeError, match="not a list"):
        trainer.train()


# ---- on a GPU, or what stands in for one ------------------------------------------------------------------------

METHODS = ("TaskRes", "TaskResEnhance", "CoOp", "CoCoOp", "CLIP_Adapter", "TipAdapterF", "LinearProbe", "CLIPLoRA")
METHODS += ("KgCoOp", "ProGrad", "TCP", "IVLP", "PromptSRC")


def steps_counted(trainer: str, precision: str, folder: str, features: str, family: str = "") -> tuple[int, str, str]:
    """Steps of an epoch on features between two log lines, and what they waited for and copied.

    Args:
        features: folder of the feature cache.
        family: of the backbone, one of `families`; the packaged one if empty.
    """
    load_plugins()
    backbone = families.register(Path(folder) / "families")[family] if family else "demo"
    node = TRAINER_REGISTRY.get(trainer).node_name()
    flags: dict[str, Any] = {
        "DATASET": {"NUM_SHOTS": 2, "FEATURES": {"VIEWS": 1, "DIR": features}},
        "DATALOADER": {"NUM_WORKERS": 0, "TRAIN_X": {"BATCH_SIZE": 4}},
        "MODEL": {"BACKBONE": {"NAME": backbone}},
        "OPTIM": {"MAX_EPOCH": 1, "SCHEDULE_UNIT": "batch"},
        "TRAIN": {"PRINT_FREQ": 4},
        "TRAINER": {
            node: {"PREC": precision} | ({"ENCODER": "text", "STEPS_PER_SHOT": 0} if trainer == "CLIPLoRA" else {})
        },
        "TEST": {"NO_TEST": True},
        "OUTPUT_DIR": f"{folder}/{trainer}-{precision}",
        "VERBOSE": False,
        "SEED": 1,
    }
    cfg = make_config(trainer=trainer, dataset_file="demo", method_file=default_recipe(trainer), flags=flags)
    made = build_trainer(cfg)
    assert made.device.type == "cuda"
    own, counted, number = made.forward_backward, cuda_standin.Counts(), 0
    with contextlib.ExitStack() as stack:

        def forward_backward(batch: dict[str, Any]) -> Any:
            nonlocal counted, number
            if made.batch_idx == 4:  # after a log line
                counted = stack.enter_context(cuda_standin.counting())
            if made.batch_idx == 7:  # before the next
                number = made.batch_idx - 4
                stack.close()
            return own(batch)

        made.forward_backward = forward_backward
        made.train()
    return number, str(dict(counted.waits)), str(dict(counted.copies))


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("features"))


@pytest.mark.slow
@pytest.mark.parametrize(("trainer", "precision"), [*((name, "fp32") for name in METHODS), ("CoOp", "bf16")])
def test_a_step_waits_for_no_device_and_copies_nothing_to_it(
    on_cuda: Any, tmp_path: Path, features: str, trainer: str, precision: str
) -> None:
    assert on_cuda(steps_counted, trainer, precision, str(tmp_path), features) == (3, "{}", "{}")


@pytest.mark.slow
@pytest.mark.parametrize("trainer", ["CoOp", "CoCoOp", "CLIPLoRA", "TCP"])
def test_a_step_of_whole_prompts_waits_and_copies_as_little(
    on_cuda: Any, tmp_path: Path, features: str, trainer: str
) -> None:
    pytest.importorskip("transformers")
    assert on_cuda(steps_counted, trainer, "fp32", str(tmp_path), features, "SigLIP") == (3, "{}", "{}")
