"""The training loop on a toy model: order of hooks, files, best model, resuming without a trace."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from toy import ToyTrainer, make_images, toy_trainer

from dassl_lite.engine import TRAINER_REGISTRY, TrainerXU
from dassl_lite.engine.commands.cli import run_tool
from dassl_lite.engine.contract.loaders import manager_of
from dassl_lite.engine.files.checkpoint import CheckpointStore, progress
from dassl_lite.engine.files.results import write_results
from dassl_lite.utils import UserError, set_random_seed, torchtools
from dassl_lite.utils.safe_load import load_file


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_images(tmp_path_factory.mktemp("toy_images"))


def test_hooks_run_in_dassls_order(data: Path, tmp_path: Path) -> None:
    calls: list[str] = []
    hooks = ("before_train", "before_epoch", "run_epoch", "after_epoch", "after_train", "test")

    def traced(name: str) -> Any:
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            return getattr(ToyTrainer, name)(self, *args, **kwargs)

        return call

    traced_trainer = type("TracedToy", (ToyTrainer,), {name: traced(name) for name in hooks})
    TRAINER_REGISTRY.register(traced_trainer, force=True)
    toy_trainer(data, tmp_path, "OPTIM.MAX_EPOCH", "2", trainer="TracedToy").train()
    epoch = ["before_epoch", "run_epoch", "after_epoch"]
    assert calls == ["before_train", *epoch, *epoch, "after_train", "test"]


@pytest.mark.slow
def test_a_run_leaves_the_references_files_and_learns(data: Path, tmp_path: Path) -> None:
    trainer = toy_trainer(data, tmp_path, "TRAIN.CHECKPOINT_FREQ", "2")
    trainer.train()
    assert sorted(p.name for p in (tmp_path / "toy").iterdir()) == ["checkpoint", "model.pth.tar-2", "model.pth.tar-4"]
    assert (tmp_path / "toy" / "checkpoint").read_text().strip() == "model.pth.tar-4"
    state = torch.load(tmp_path / "toy" / "model.pth.tar-4", weights_only=True)
    assert state["epoch"] == 4
    assert {"state_dict", "optimizer", "scheduler", "val_result"} <= state.keys()
    assert state["meta"]["classnames"] == ["blue", "green", "red"]
    assert trainer.results["test"]["accuracy"] > 60  # chance is 33
    assert list((tmp_path / "tensorboard").glob("events*"))


@pytest.mark.slow
@pytest.mark.parametrize("stop", [1, 2, 3])
@pytest.mark.parametrize("final", ["last_step", "best_val"])
def test_a_resumed_run_is_bit_identical_to_an_uninterrupted_run(
    data: Path, tmp_path: Path, stop: int, final: str
) -> None:
    options = ("TRAIN.CHECKPOINT_FREQ", "1", "TEST.FINAL_MODEL", final)
    whole = toy_trainer(data, tmp_path / "whole", *options)
    whole.train()
    killed = toy_trainer(data, tmp_path / "parts", *options)

    class Killed(BaseException): ...

    def after_epoch(original: Any = killed.after_epoch) -> None:
        original()
        if killed.epoch + 1 == stop:
            raise Killed

    killed.after_epoch = after_epoch
    with pytest.raises(Killed):
        killed.train()
    resumed = toy_trainer(data, tmp_path / "parts", *options)
    set_random_seed(77)  # whatever the new process has drawn before, the run goes on as it was
    resumed.train()
    assert resumed.start_epoch == stop
    states = [load_file(tmp_path / run / "toy" / "model.pth.tar-4") for run in ("whole", "parts")]
    for key in ("state_dict", "optimizer", "scheduler", "run_state", "val_result", "epoch"):
        assert repr(states[0][key]) == repr(states[1][key])
    for key, value in states[0]["state_dict"].items():
        assert torch.equal(value, states[1]["state_dict"][key])
    assert resumed.results == whole.results
    assert resumed.best_result == whole.best_result
    assert resumed.get_current_lr() == whole.get_current_lr()


@pytest.mark.slow
def test_a_run_killed_before_its_results_resumes_to_those_of_an_uninterrupted_run(data: Path, tmp_path: Path) -> None:
    """With best_val, its last checkpoint holds a validation result that nothing computes again."""
    whole = toy_trainer(data, tmp_path / "whole", "TEST.FINAL_MODEL", "best_val")
    whole.train()
    killed = toy_trainer(data, tmp_path / "run", "TEST.FINAL_MODEL", "best_val")

    def die() -> None:
        raise RuntimeError("killed")

    killed.after_train = die
    with pytest.raises(RuntimeError, match="killed"):
        killed.train()
    resumed = toy_trainer(data, tmp_path / "run", "TEST.FINAL_MODEL", "best_val")
    resumed.train()
    assert resumed.results == whole.results
    assert resumed.history == whole.history
    assert [row["epoch"] for row in resumed.history] == [1, 2, 3, 4, 4]
    assert resumed.seconds.keys() == whole.seconds.keys()


@pytest.mark.slow
def test_the_time_of_a_resumed_run_adds_up(data: Path, tmp_path: Path) -> None:
    first = toy_trainer(data, tmp_path, "TRAIN.CHECKPOINT_FREQ", "1")

    def stop() -> None:
        if first.epoch == 2:
            first.time_start -= 100  # as if the first two epochs had taken that long
            first.save_model(first.epoch - 1, tmp_path)
            raise RuntimeError("killed")

    first.before_epoch = stop
    with pytest.raises(RuntimeError, match="killed"):
        first.train()
    resumed = toy_trainer(data, tmp_path, "TRAIN.CHECKPOINT_FREQ", "1")
    resumed.train()
    assert 100 < resumed.seconds["train"] < 200


@pytest.mark.slow
def test_ctrl_c_saves_the_epoch_and_the_run_resumes_from_it(data: Path, tmp_path: Path) -> None:
    whole = toy_trainer(data, tmp_path / "whole")
    whole.train()
    trainer = toy_trainer(data, tmp_path / "run")

    def before_epoch() -> None:
        if trainer.epoch == 1:
            os.kill(os.getpid(), signal.SIGINT)

    trainer.before_epoch = before_epoch
    with pytest.raises(KeyboardInterrupt, match="stopped after epoch 2; resume with --resume"):
        trainer.train()
    assert CheckpointStore(tmp_path / "run").epochs("toy") == [2]
    resumed = toy_trainer(data, tmp_path / "run")
    resumed.train()
    assert torch.equal(resumed.model[2].weight, whole.model[2].weight)
    assert CheckpointStore(tmp_path / "run").epochs("toy") == [4]  # what only served resuming is gone


@pytest.mark.slow
def test_best_val_deploys_the_best_epoch(data: Path, tmp_path: Path) -> None:
    trainer = toy_trainer(data, tmp_path, "TEST.FINAL_MODEL", "best_val", "OPTIM.MAX_EPOCH", "3")
    accuracies = iter([50.0, 80.0, 60.0])
    weights: list[torch.Tensor] = []
    original = trainer.test

    def test(split: str | None = None) -> float:
        result = original(split)
        weights.append(trainer.model[2].weight.detach().clone())
        return next(accuracies) if split == "val" else result

    trainer.test = test
    trainer.train()
    assert torch.equal(weights[-1], weights[1])
    assert not torch.equal(weights[-1], weights[2])
    assert trainer.best_result == 80.0


def test_best_val_without_a_validation_set_is_an_error(tmp_path: Path) -> None:
    data = make_images(tmp_path / "data", {"train": 2, "test": 2})
    with pytest.raises(UserError, match="best_val, but ImageFolder has no validation set"):
        toy_trainer(data, tmp_path / "run", "TEST.FINAL_MODEL", "best_val")


@pytest.mark.slow_after(1)
@pytest.mark.parametrize(("val", "final"), [("test", "best_val"), ("test", "last_step"), ("val", "best_val")])
def test_an_epoch_chosen_on_test_images_is_reported_in_the_log_and_the_results(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, val: str, final: str
) -> None:
    trainer = toy_trainer(data, tmp_path, "TEST.FINAL_MODEL", final, "OPTIM.MAX_EPOCH", "2")
    trainer.dm.dataset._val = getattr(trainer.dm.dataset, val)  # ImageNet's is its test set
    with caplog.at_level(logging.WARNING, logger="dassl_lite"):
        trainer.train()
    on_test = (val, final) == ("test", "best_val")
    assert (
        "best_val selects the epoch on validation images that are also test images of ImageFolder" in caplog.text
    ) is on_test
    path = write_results(trainer.run_results(), tmp_path)
    assert json.loads(path.read_text())["selected_on_test"] is on_test


class ScaledToy(ToyTrainer):
    """In mixed precision as a third party writes it, with a gradient scaler that grows fast."""

    def build_model(self) -> None:
        super().build_model()
        self.scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=5)

    def model_backward_and_update(self, loss: torch.Tensor, names: Any = None) -> None:
        self.model_zero_grad(names)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optim)
        self.scaler.update()
        self.scales = [*getattr(self, "scales", []), self.scaler.get_scale()]


@pytest.mark.slow
def test_a_resumed_run_in_mixed_precision_keeps_its_gradient_scale(data: Path, tmp_path: Path) -> None:
    TRAINER_REGISTRY.register(ScaledToy, force=True)
    options = ("TRAIN.CHECKPOINT_FREQ", "2", "OPTIM.MAX_EPOCH", "4")
    whole = toy_trainer(data, tmp_path / "whole", *options, trainer="ScaledToy")
    whole.train()
    assert len(set(whole.scales)) > 2
    part = tmp_path / "part" / "toy"
    part.mkdir(parents=True)
    shutil.copy(tmp_path / "whole" / "toy" / "model.pth.tar-2", part)
    resumed = toy_trainer(data, tmp_path / "part", *options, trainer="ScaledToy")
    resumed.train()
    assert resumed.scales == whole.scales[-len(resumed.scales) :]
    assert resumed.scaler.state_dict() == whole.scaler.state_dict()
    assert torch.equal(resumed.model[2].weight, whole.model[2].weight)


@pytest.mark.slow
def test_a_checkpoint_without_a_gradient_scale_and_a_trainer_without_a_scaler_resume(
    data: Path, tmp_path: Path
) -> None:
    TRAINER_REGISTRY.register(ScaledToy, force=True)
    scaled = toy_trainer(data, tmp_path, "OPTIM.MAX_EPOCH", "1", trainer="ScaledToy")
    scaled.train()
    path = tmp_path / "toy" / "model.pth.tar-1"
    state = load_file(path)
    for scaler in (torch.amp.GradScaler("cpu"), torch.amp.GradScaler("cpu", enabled=False), None, 0.5):
        again = toy_trainer(data, tmp_path, "OPTIM.MAX_EPOCH", "1", trainer="ScaledToy")
        again.scaler = scaler
        assert again.resume_model_if_exist(tmp_path) == 1
        again.save_model(0, tmp_path / "again")  # one that is switched off has no state to keep
    del state["run_state"]["scaler"]
    torch.save(state, path)
    assert toy_trainer(data, tmp_path, "OPTIM.MAX_EPOCH", "1", trainer="ScaledToy").resume_model_if_exist(tmp_path) == 1


def test_a_nan_loss_stops_the_run_and_is_located(data: Path, tmp_path: Path) -> None:
    trainer = toy_trainer(data, tmp_path, "TRAIN.CHECKPOINT_FREQ", "1")

    def before_epoch() -> None:
        if trainer.epoch == 1:
            trainer.model[2].weight.data.fill_(float("nan"))

    trainer.before_epoch = before_epoch
    with pytest.raises(UserError, match=r"NaN at epoch 2, batch 1; lower OPTIM.LR"):
        trainer.train()
    assert CheckpointStore(tmp_path).epochs("toy") == [1]


def test_loading_says_what_is_wrong_with_a_checkpoint(data: Path, tmp_path: Path) -> None:
    trainer = toy_trainer(data, tmp_path, "OPTIM.MAX_EPOCH", "1")
    with pytest.raises(UserError, match="no checkpoint at .*model-best.pth.tar; there is no folder"):
        trainer.load_model(tmp_path)
    trainer.train()
    with pytest.raises(UserError, match=r"no checkpoint at .*model.pth.tar-7; epochs there: 1"):
        trainer.load_model(tmp_path, epoch=7)
    path = tmp_path / "toy" / "model.pth.tar-1"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"model.pth.tar-1"):
        trainer.load_model(tmp_path)
    path.write_bytes(whole)
    TRAINER_REGISTRY.register(type("OtherToy", (ToyTrainer,), {}), force=True)
    other = toy_trainer(data, tmp_path / "other", trainer="OtherToy")
    with pytest.raises(UserError, match="saved with trainer 'ToyTrainer', but this run has trainer 'OtherToy'"):
        other.load_model(tmp_path)


@pytest.mark.parametrize(("unit", "count"), [("train_x", 2), ("train_u", 5), ("smaller_one", 2)])
def test_an_epoch_on_unlabelled_data_has_as_many_batches_as_count_iter_says(unit: str, count: int) -> None:
    loaders = {"train_loader_x": ["x0", "x1"], "train_loader_u": list("abcde")}
    trainer: Any = SimpleNamespace(**loaders, cfg=SimpleNamespace(TRAIN=SimpleNamespace(COUNT_ITER=unit)))
    batches = list(TrainerXU.epoch_batches(trainer))
    assert batches == [("x0", "a"), ("x1", "b"), ("x0", "c"), ("x1", "d"), ("x0", "e")][:count]
    assert trainer.num_batches == count


def test_a_model_registered_without_a_name_is_called_model(data: Path, tmp_path: Path) -> None:
    trainer = toy_trainer(data, tmp_path)
    trainer.register_model(model=nn.Linear(1, 1))
    assert trainer.get_model_names() == ["toy", "model"]


def test_registering_twice_or_without_a_model_is_refused(data: Path, tmp_path: Path) -> None:
    trainer = toy_trainer(data, tmp_path)
    with pytest.raises(ValueError, match="'toy' is already registered"):
        trainer.register_model("toy", trainer.model)
    with pytest.raises(ValueError, match="got no model"):
        trainer.register_model("empty")
    with pytest.raises(UserError, match="unknown registered model 'tox'"):
        trainer.set_model_mode("eval", "tox")


@pytest.mark.slow
def test_a_run_is_not_continued_under_other_settings(data: Path, tmp_path: Path) -> None:
    toy_trainer(data, tmp_path, "OPTIM.MAX_EPOCH", "1").train()
    longer = toy_trainer(data, tmp_path, "OPTIM.MAX_EPOCH", "9")
    with pytest.raises(UserError, match="belongs to a run with OPTIM.MAX_EPOCH 1, but now it is 9"):
        longer.train()
    same = toy_trainer(data, tmp_path, "OPTIM.MAX_EPOCH", "1", "TRAIN.PRINT_FREQ", "3")
    same.train()
    assert same.start_epoch == 1


@TRAINER_REGISTRY.register(force=True)
class HomonymTrainer(ToyTrainer):
    """A third party's trainer, whose names for its own things are also ours."""

    keys = ["a", "b"]  # noqa: RUF012
    training = True

    def build_model(self) -> None:
        super().build_model()
        self.model.evaluating = False

    def fit(self, features: Any, labels: Any) -> None:
        raise AssertionError("not ours to call")


def test_a_third_partys_own_names_are_left_alone(data: Path, tmp_path: Path) -> None:
    trainer = toy_trainer(data, tmp_path, trainer="HomonymTrainer")
    trainer.train()
    assert trainer.results["test"]["accuracy"] > 0


def test_time_spent_before_resuming_is_added_to_that_of_the_stopped_run(data: Path, tmp_path: Path) -> None:
    first = toy_trainer(data, tmp_path)
    first.seconds["features"] = 7.0
    first.save_model(0, tmp_path)
    resumed = toy_trainer(data, tmp_path)
    resumed.seconds["features"] = 5.0  # as the zero-shot evaluation before training takes
    resumed.resume_model_if_exist(tmp_path)
    assert resumed.seconds["features"] == 12.0


def test_a_full_disk_is_reported_and_another_error_is_not_mistaken_for_one(tmp_path, monkeypatch):
    def failing(text: str):
        monkeypatch.setattr(torchtools, "save_checkpoint", lambda *_, **__: (_ for _ in ()).throw(RuntimeError(text)))

    store = CheckpointStore(tmp_path)
    failing("[enforce fail at inline_container.cc] . PytorchStreamWriter failed writing file data/1")
    with pytest.raises(UserError, match="the disk may be full: .* earlier checkpoints are intact"):
        store.save("model", {"epoch": 1})
    failing("a shape is wrong")
    with pytest.raises(RuntimeError, match="a shape is wrong"):
        store.save("model", {"epoch": 1})


@pytest.mark.parametrize(
    ("lie", "told"),
    [
        ({"epoch": 10**38}, "its epoch is 10{38}$"),
        ({"epoch": -1}, "its epoch is -1$"),
        ({"seconds": {"train": 1e38}}, r"its train is 1e\+38$"),
        ({"seconds": {"train": float("nan")}}, "its train is nan$"),
    ],
)
def test_progress_that_no_run_has_made_is_refused(tmp_path, lie, told):
    state = {"epoch": 3, "seconds": {"train": 2.5}}
    assert progress(state, tmp_path) == (3, {"train": 2.5})
    with pytest.raises(UserError, match=f"cannot be resumed: {told}"):
        progress({**state, **lie}, tmp_path)


def test_a_missing_replaceable_checkpoint_is_not_an_error(tmp_path):
    (tmp_path / "model").mkdir()
    store = CheckpointStore(tmp_path)
    store.mark_rolling(["model"], 1)
    store.mark_rolling(["model"], 2)
    assert [path.read_text() for path in (tmp_path / "model").iterdir()] == ["2"]


def test_loaders_without_a_dataset_have_no_classes():
    manager = manager_of(dict.fromkeys(("train_x", "train_u", "val", "test")), 0)
    assert (manager.num_classes, manager.lab2cname) == (0, {})


@pytest.mark.slow
def test_evaluation_continues_with_smaller_batches_after_running_out_of_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = toy_trainer(make_images(tmp_path / "data"), tmp_path / "run")
    expected, seen = trainer.test(), []
    infer = trainer.model_inference

    def small(images: torch.Tensor) -> torch.Tensor:
        if len(images) > 4:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        seen.append(len(images))
        return infer(images)

    monkeypatch.setattr(trainer, "model_inference", small)
    assert trainer.test() == expected
    assert sum(seen) == 15
    assert "Out of memory while evaluating: continuing with" in caplog.text


def test_running_out_of_memory_in_training_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def main(argv: Any) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has")

    assert run_tool(main, []) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("Error: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has. To use less memory")
    assert shown.count("\n") == 1
