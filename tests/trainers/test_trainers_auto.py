"""Auto: what it leaves out, what it asks the methods, and that it looks at nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from dassl_lite.data.feature_files import FeatureFile, FeaturePart, write_feature_file
from dassl_lite.data.fewshot import folds_of
from dassl_lite.engine.build import build_trainer, make_config
from dassl_lite.engine.commands.cli import run_tool
from dassl_lite.tools import train
from dassl_lite.trainers.auto import METHODS
from dassl_lite.utils import UserError, set_random_seed

FEW = ("TRAINER.Auto.METHODS", "['ZeroshotCLIP', 'GDA', 'ProKeR', 'TipAdapter']")  # closed form


@pytest.fixture
def task(tmp_path):
    """``task("Auto", shots, *options)``: a trainer on five classes of 24 dimensions around their names."""

    def make(method, shots, *options, output="run", test_seed=1, classes=range(5), rows=None):
        draw = np.random.default_rng(0)
        means = draw.normal(size=(5, 24))
        text = (means + 0.5 * draw.normal(size=means.shape)).astype("float32")[None]

        def part(seed, count):
            labels = np.repeat(np.arange(len(classes)), count)
            noise = np.random.default_rng(seed).normal(size=(len(labels), 24))
            own = np.array(classes)[labels]
            return FeaturePart((means[own] + 0.9 * noise).astype("float32")[None], labels)

        path = tmp_path / f"{output}.npz"
        parts = {"train": rows or part(0, shots), "val": part(test_seed + 1, 4), "test": part(test_seed, 20)}
        names = tuple(f"class {number}" for number in classes)
        write_feature_file(FeatureFile(parts=parts, classnames=names, text_weights=text[:, list(classes)]), path)
        data = {"NAME": "Features", "FILE": str(path), "NUM_SHOTS": -1}
        flags = {"DATASET": data, "OUTPUT_DIR": str(tmp_path / output), "SEED": 1}
        set_random_seed(1)
        return build_trainer(make_config(trainer=method, flags=flags, options=options))

    return make


def choice(trainer):
    return json.loads((Path(trainer.output_dir) / "auto" / "choice.json").read_text())


def test_folds_share_out_each_class_and_never_leave_out_all_of_one():
    labels = torch.tensor([0] * 7 + [1] * 2 + [2] + [3] * 4)
    fold = folds_of(labels, 5, seed=3)
    assert (fold[labels == 2] == -1).all()
    for label, most in ((0, 2), (1, 1), (3, 1)):
        counts = fold[labels == label].bincount(minlength=5)
        assert counts.sum() == (labels == label).sum()
        assert counts.max() == most
    assert torch.equal(fold, folds_of(labels, 5, seed=3))
    assert not torch.equal(fold, folds_of(labels, 5, seed=4))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["GDA", "TaskRes"])
def test_a_method_predicts_a_fold_like_its_own_run_on_the_other_images(task, method):
    auto = task("Auto", 4, "TRAINER.Auto.METHODS", f"['{method}']", "TRAINER.Auto.FOLDS", "2")
    auto.fit()
    data = auto.training_set(augmented=True)
    fold = folds_of(data.labels, 2, seed=1)
    rest = FeaturePart(data.views[:, fold != 0].numpy(), data.labels[fold != 0].numpy())
    own = auto.side_cfg(method, {}, auto.output_dir)
    options = ("OPTIM.MAX_EPOCH", str(own.OPTIM.MAX_EPOCH), "OPTIM.LR", str(own.OPTIM.LR), "OPTIM.NAME", own.OPTIM.NAME)
    options += ("TRAINER.TaskRes.RESIDUAL_SCALE", str(own.TRAINER.TaskRes.RESIDUAL_SCALE), "OPTIM.WARMUP_EPOCH", "1")
    options += ("OPTIM.WARMUP_TYPE", "constant", "OPTIM.LR_SCHEDULER", "cosine", "DATALOADER.TRAIN_X.BATCH_SIZE", "256")
    alone = task(method, 4, *options, "TRAINER.GDA.ALPHA_BY", "leave_one_out", output="alone", rows=rest)
    alone.train()
    alone.set_model_mode("eval")
    expected = alone.head(auto.queries(data)[fold == 0])
    found = auto.choice[0].held_out[fold[fold >= 0] == 0]
    assert torch.allclose(found, expected.detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_validation_and_test_images_make_no_difference(task):
    runs = [task("Auto", 2, *FEW, output=f"run{seed}", test_seed=seed) for seed in (1, 7)]
    for trainer in runs:
        trainer.train()
    assert choice(runs[0]) == choice(runs[1])
    weights = [trainer.head.state_dict() for trainer in runs]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.slow
def test_two_runs_are_equal_and_leave_the_random_streams_alone(task):
    found = []
    for output in ("first", "second"):
        trainer = task("Auto", 2, "TRAINER.Auto.METHODS", "['GDA', 'LPPlusPlus']", output=output)
        before = torch.get_rng_state()
        trainer.fit()
        assert torch.equal(before, torch.get_rng_state())
        found.append(trainer.head.state_dict())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert [row["method"] for row in choice(trainer)] == ["GDA", "LPPlusPlus"]


@pytest.mark.slow
def test_with_one_shot_zero_shot_weighs_by_the_shots_that_it_gets_right(task):
    trainer = task("Auto", 1, *FEW)
    trainer.fit()
    data = trainer.training_set(augmented=True)
    zero_shot = data.features @ trainer.zero_shot_weights().t()
    right = int((zero_shot.argmax(dim=1) == data.labels).sum())
    odds = (right + 1) / (5 - right + 1)
    assert trainer.head.weights.tolist() == pytest.approx([odds / (odds + 3), *[1 / (odds + 3)] * 3])
    assert trainer.head.temperatures.tolist() == [1.0] * 4
    assert choice(trainer)[0]["accuracy"] == pytest.approx(20 * right)
    assert trainer.run_results()["tuned_on"] == "nothing"  # one shot: no image could be left out
    assert choice(trainer)[1]["accuracy"] is None


@pytest.mark.slow
def test_more_credit_makes_the_weights_more_equal(task):
    spread = {}
    for credit in ("0.01", "1.0", "100.0"):
        trainer = task("Auto", 2, *FEW, "TRAINER.Auto.CREDIT", credit, output=credit)
        trainer.fit()
        assert trainer.head.weights.sum().item() == pytest.approx(1.0)
        spread[credit] = trainer.head.weights.std().item()
    assert spread["0.01"] > spread["1.0"] > spread["100.0"]


@pytest.mark.slow
def test_of_the_settings_the_one_with_the_lowest_log_loss_is_kept(task):
    trainer = task("Auto", 2, *FEW)
    trainer.fit()
    rows = [row for row in choice(trainer) if row["method"] == "TipAdapter"]
    best = min(rows, key=lambda row: row["log_loss"])
    assert [row["settings"] for row in rows if row["weight"]] == [best["settings"]]
    assert trainer.run_results()["tuned_on"] == "cross_validation"
    cache = trainer.head.members[3]
    assert (cache.alpha.item(), cache.beta.item()) == (best["settings"]["ALPHA"], best["settings"]["BETA"])


@pytest.mark.slow
def test_a_loaded_run_says_the_same_and_takes_other_classes(task):
    trained = task("Auto", 1)
    trained.train()
    assert [row["method"] for row in choice(trained) if row["weight"]] == list(METHODS)
    features = torch.cat([batch["feature"] for batch in trained.test_loader])
    again = task("Auto", 1, output="again")
    again.load_model(trained.output_dir)
    assert torch.equal(again.model_inference(features), trained.model_inference(features))
    some = task("Auto", 1, output="some", classes=[4, 1])
    some.load_model(trained.output_dir)
    assert some.model_inference(features).shape == (100, 2)
    expected = trained.head.members[0](features)[:, [4, 1]]
    assert torch.allclose(some.head.members[0](features), expected)


@pytest.mark.slow
def test_a_key_of_a_method_that_the_user_sets_reaches_it_and_its_checkpoint(task):
    options = ("TRAINER.Auto.METHODS", "['TaskRes']", "TRAINER.TaskRes.RESIDUAL_SCALE", "0.125")
    trainer = task("Auto", 1, *options)
    trainer.train()
    assert trainer.head.members[0].alpha == 0.125
    again = task("Auto", 1, "TRAINER.Auto.METHODS", "['TaskRes']", output="again")
    again.load_model(trainer.output_dir)
    assert again.head.members[0].alpha == 0.125


@pytest.mark.slow_after(1)
@pytest.mark.parametrize(
    "members", [None, [], ["GDA"], [{"method": "os", "keys": {}}], [{"method": "GDA"}], [{"method": [1], "keys": {}}]]
)
def test_a_checkpoint_without_proper_members_is_refused(task, members):
    trainer = task("Auto", 1, *FEW)
    with pytest.raises(UserError, match="does not say which methods it is the mean of"):
        trainer.adapt_state_dict(trainer.head, {}, {"members": members}, Path("x"))


@pytest.mark.slow
def test_auto_is_the_default_for_own_data_and_explains_its_choice(task, tmp_path):
    file, output = task("Auto", 1, *FEW).cfg.DATASET.FILE, tmp_path / "own"
    assert run_tool(train.main, ["--data", file, "--shots", "1", "--output-dir", str(output), *FEW]) == 0
    results = json.loads((output / "results.json").read_text())
    assert results["trainer"] == "Auto"
    assert [row["method"] for row in results["choice"]][:3] == ["ZeroshotCLIP", "GDA", "ProKeR"]
    assert "Auto's choice" in (output / "log.txt").read_text()
