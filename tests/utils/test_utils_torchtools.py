"""Checkpoints that survive a kill, resume exactly, and are refused with a reason."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dassl_lite.utils import torchtools
from dassl_lite.utils.errors import UserError


class Net(nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width))
        self.head = nn.Linear(width, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


def parts(seed: int = 0) -> tuple[Net, Any, Any]:
    torch.manual_seed(seed)
    model = Net()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    return model, optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)


def train(model: Net, optimizer: Any, scheduler: Any, epochs: range) -> None:
    for epoch in epochs:
        images = torch.randn(8, 3, generator=torch.Generator().manual_seed(epoch))
        optimizer.zero_grad()
        model(images).square().mean().backward()
        optimizer.step()
        scheduler.step()


def state_of(model: nn.Module, optimizer: Any, scheduler: Any, epoch: int) -> dict[str, Any]:
    return {
        "state_dict": model.state_dict(),
        "epoch": epoch,
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
    }


def test_a_resumed_run_is_bit_identical_to_an_uninterrupted_run(tmp_path: Path) -> None:
    whole = parts()
    train(*whole, range(6))
    first = parts()
    train(*first, range(3))
    torchtools.save_checkpoint(state_of(*first, epoch=3), tmp_path)
    second = parts(seed=1)
    epoch = torchtools.resume_from_checkpoint(tmp_path, *second)
    assert epoch == 3
    train(*second, range(epoch, 6))
    for name, value in whole[0].state_dict().items():
        assert torch.equal(value, second[0].state_dict()[name]), name
    assert whole[1].param_groups[0]["lr"] == second[1].param_groups[0]["lr"]


def test_files_have_dassls_names_and_the_pointer_names_the_newest(tmp_path: Path) -> None:
    state = state_of(*parts(), epoch=5)
    torchtools.save_checkpoint(state, tmp_path, is_best=True)
    assert sorted(os.listdir(tmp_path)) == ["checkpoint", "model-best.pth.tar", "model.pth.tar-5"]
    assert (tmp_path / "checkpoint").read_text() == "model.pth.tar-5\n"
    assert (tmp_path / "model-best.pth.tar").read_bytes() == (tmp_path / "model.pth.tar-5").read_bytes()
    torchtools.save_checkpoint({**state, "epoch": 6}, tmp_path, model_name="model-best.pth.tar")
    assert torchtools.newest_checkpoint(tmp_path).name == "model-best.pth.tar"
    assert torchtools.load_checkpoint(tmp_path / "model-best.pth.tar")["epoch"] == 6


@pytest.mark.parametrize("write", range(3))
def test_killed_at_any_write_the_folder_resumes_from_a_whole_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: int
) -> None:
    torchtools.save_checkpoint(state_of(*parts(), epoch=1), tmp_path, is_best=True)
    real, calls = os.replace, []

    def killed(source: Any, target: Any) -> None:
        calls.append(target)
        if len(calls) > write:
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        torchtools.save_checkpoint(state_of(*parts(), epoch=2), tmp_path, is_best=True)
    monkeypatch.undo()
    assert torchtools.resume_from_checkpoint(tmp_path, *parts(seed=1)) == 1
    for name in ("model-best.pth.tar", "model.pth.tar-1"):
        assert torchtools.load_checkpoint(tmp_path / name)["state_dict"].keys() == Net().state_dict().keys()


def test_a_checkpoint_loads_with_torchs_safe_loader(tmp_path: Path) -> None:
    torchtools.save_checkpoint(state_of(*parts(), epoch=1), tmp_path)
    torch.load(tmp_path / "model.pth.tar-1", weights_only=True)


def test_the_prefix_of_dataparallel_is_dropped_both_ways(tmp_path: Path) -> None:
    model, optimizer, scheduler = parts()
    wrapped = nn.DataParallel(model)
    torchtools.save_checkpoint(state_of(wrapped, optimizer, scheduler, epoch=1), tmp_path)
    assert torchtools.load_checkpoint(tmp_path / "model.pth.tar-1")["state_dict"].keys() == model.state_dict().keys()
    torchtools.save_checkpoint(
        state_of(wrapped, optimizer, scheduler, epoch=2), tmp_path, remove_module_from_keys=False
    )
    assert "module.head.bias" in torchtools.load_checkpoint(tmp_path / "model.pth.tar-2")["state_dict"]
    for target in (Net(), nn.DataParallel(Net())):
        torchtools.resume_from_checkpoint(tmp_path, target)
        assert torch.equal(torchtools.unwrap(target).head.bias, model.head.bias)


def test_saving_leaves_the_callers_state_as_it_was(tmp_path: Path) -> None:
    state = state_of(nn.DataParallel(Net()), *parts()[1:], epoch=1)
    torchtools.save_checkpoint(state, tmp_path)
    assert "module.head.bias" in state["state_dict"]


def test_a_file_of_the_reference_loads_with_its_pickled_scheduler_inert(golden: Any) -> None:
    folder = golden.path("checkpoint_taskres/prompt_learner")
    checkpoint = torchtools.load_checkpoint(torchtools.newest_checkpoint(folder))
    assert checkpoint["epoch"] == 3
    assert {name: tuple(value.shape) for name, value in checkpoint["state_dict"].items()} == {
        "text_feature_residuals": (1000, 32),
        "base_text_features": (1000, 32),
    }


def test_a_missing_file_is_named_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r'checkpoint ".*none\.tar" not found'):
        torchtools.load_checkpoint(tmp_path / "none.tar")
    with pytest.raises(UserError, match="no checkpoint to resume from"):
        torchtools.resume_from_checkpoint(tmp_path, Net())
    (tmp_path / "checkpoint").write_text("model.pth.tar-9\n")
    with pytest.raises(UserError, match=r'names "model\.pth\.tar-9"'):
        torchtools.resume_from_checkpoint(tmp_path, Net())


@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, 0.99])
def test_a_truncated_file_is_named_in_one_line(tmp_path: Path, keep: float) -> None:
    torchtools.save_checkpoint(state_of(*parts(), epoch=1), tmp_path)
    path = tmp_path / "model.pth.tar-1"
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    with pytest.raises(UserError, match=r"model\.pth\.tar-1") as caught:
        torchtools.load_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_a_file_without_a_dict_is_refused(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(UserError, match="it holds a list"):
        torchtools.load_checkpoint(tmp_path / "list.pt")


def test_weights_of_another_shape_or_name_are_refused_in_one_line(tmp_path: Path) -> None:
    torchtools.save_checkpoint(state_of(*parts(), epoch=1), tmp_path)
    for other in (Net(width=5), nn.Linear(3, 2)):
        with pytest.raises(UserError, match="do not fit the model") as caught:
            torchtools.resume_from_checkpoint(tmp_path, other)
        assert "\n" not in str(caught.value)


def test_resuming_without_the_optimisers_state_is_refused(tmp_path: Path) -> None:
    model, optimizer, _ = parts()
    torchtools.save_checkpoint({"state_dict": model.state_dict(), "epoch": 1}, tmp_path)
    assert torchtools.resume_from_checkpoint(tmp_path, model) == 1
    with pytest.raises(UserError, match="has no optimizer state"):
        torchtools.resume_from_checkpoint(tmp_path, model, optimizer)


def test_an_optimiser_over_other_parameters_is_refused(tmp_path: Path) -> None:
    model, optimizer, scheduler = parts()
    torchtools.save_checkpoint(state_of(model, optimizer, scheduler, epoch=1), tmp_path)
    with pytest.raises(UserError, match=r"optimizer state in .* does not fit"):
        torchtools.resume_from_checkpoint(tmp_path, model, torch.optim.SGD(model.head.parameters(), lr=0.1))


def test_pretrained_weights_that_fit_are_loaded_and_the_rest_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source, target = Net(), Net()
    weights = {f"module.{name}": value for name, value in source.state_dict().items()}
    weights["module.head.weight"] = torch.zeros(7, 4)
    torch.save({"state_dict": weights}, tmp_path / "weights.pt")
    kept = target.head.weight.clone()
    with caplog.at_level(logging.INFO):
        torchtools.load_pretrained_weights(target, tmp_path / "weights.pt")
    assert torch.equal(target.body[0].weight, source.body[0].weight)
    assert torch.equal(target.head.weight, kept)
    assert "unmatched keys or size: ['head.weight']" in caplog.text


def test_pretrained_weights_without_any_match_are_refused(tmp_path: Path) -> None:
    torch.save({"other.weight": torch.zeros(1)}, tmp_path / "weights.pt")
    with pytest.raises(UserError, match="no weight in .* matches the model"):
        torchtools.load_pretrained_weights(Net(), tmp_path / "weights.pt")


def test_parameters_are_counted() -> None:
    model = Net()
    assert torchtools.count_num_param(model) == 34
    assert torchtools.count_num_param(params=model.head.parameters()) == 10
    assert torchtools.count_num_param(params={"params": model.head.parameters()}) == 10
    with pytest.raises(UserError, match="model or params"):
        torchtools.count_num_param()


@pytest.mark.parametrize("wrapped", [False, True])
def test_only_the_named_layers_train(wrapped: bool) -> None:
    model = Net()
    torchtools.open_specified_layers(nn.DataParallel(model) if wrapped else model, "head")
    assert [p.requires_grad for p in model.parameters()] == [False] * 4 + [True] * 2
    assert (model.body.training, model.body[1].training, model.head.training) == (False, False, True)
    torchtools.open_all_layers(model)
    assert all(p.requires_grad for p in model.parameters())
    assert all(module.training for module in model.modules())
    with pytest.raises(UserError, match=r"unknown layer of Net 'heads'\. Did you mean 'head'"):
        torchtools.open_specified_layers(model, ["heads"])


@pytest.mark.parametrize("init_type", ["normal", "xavier", "kaiming", "orthogonal"])
def test_initialisation_resets_norms_and_biases_and_draws_weights(init_type: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.InstanceNorm2d(8), nn.Linear(8, 400))
    for parameter in model.parameters():
        nn.init.constant_(parameter, 7.0)
    torch.manual_seed(0)
    torchtools.init_network_weights(model, init_type)
    assert torch.equal(model[1].weight, torch.ones(8))
    assert not any(module.bias.any() for module in (model[0], model[1], model[3]))
    spread = {"normal": 0.02, "xavier": 0.02 * (2 / 408) ** 0.5, "kaiming": 0.5, "orthogonal": 0.02 * 400**-0.5}
    assert model[3].weight.std().item() == pytest.approx(spread[init_type], rel=0.05)


def test_an_unknown_initialisation_lists_the_choices() -> None:
    with pytest.raises(UserError, match="kaiming, normal, orthogonal, xavier"):
        torchtools.init_network_weights(Net(), "he")
