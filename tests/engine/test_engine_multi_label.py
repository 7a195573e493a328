"""Runs on images with several classes: training, evaluation, transfer, and the methods that refuse them."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from toy import make_images, toy_config

from dassl_lite.data.feature_files import FeatureFile, FeaturePart, read_feature_file, write_feature_file
from dassl_lite.engine import TRAINER_REGISTRY
from dassl_lite.engine.build import build_trainer, make_config
from dassl_lite.engine.commands import run as runs
from dassl_lite.engine.commands.evaluate import config_for, evaluate, evaluate_row, stored_config
from dassl_lite.engine.commands.sweep import all_methods
from dassl_lite.engine.plugins import load_plugins
from dassl_lite.models import clip
from dassl_lite.utils import UserError, set_random_seed

load_plugins()
NAMES = ("cat", "dog", "red fox", "owl", "yak")
WIDTH = 16
TAKING = {"CoOp", "LinearProbe", "TaskRes", "ZeroshotCLIP", "ZeroshotCLIP2"}
COUNTS = {"train": 60, "val": 30, "test": 80}


def feature_file(order: tuple[int, ...] = (0, 1, 2, 3, 4), *, several: bool = True, **changes: Any) -> FeatureFile:
    """Features around the sum of the directions of an image's classes; every tenth image has none.

    Args:
        order: which class has which label.
        several: False for one class per image.
    """
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(len(NAMES), WIDTH))
    text = centres + 1.5 * rng.normal(size=centres.shape)

    def part(count: int) -> FeaturePart:
        own = rng.random((count, len(NAMES))) < 0.3
        own[::10] = False
        if not several:
            own = np.eye(len(NAMES), dtype=bool)[np.arange(count) % len(NAMES)]
        values = own @ centres + 0.5 * rng.normal(size=(count, WIDTH))
        labels = own[:, list(order)] if several else own[:, list(order)].argmax(1)
        return FeaturePart(values[None].astype(np.float32), labels)

    file = FeatureFile(
        parts={name: part(count) for name, count in COUNTS.items()},
        classnames=tuple(NAMES[i] for i in order),
        text_weights=text[list(order)][None].astype(np.float32),
        backbone="RN50",
    )
    return dataclasses.replace(file, **changes)


def without(file: FeatureFile, *parts: str) -> FeatureFile:
    return dataclasses.replace(file, parts={name: part for name, part in file.parts.items() if name not in parts})


class Place:
    """Builds configs of runs on feature files in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = 0

    def write(self, file: FeatureFile) -> str:
        self.files += 1
        path = self.folder / f"features{self.files}.npz"
        write_feature_file(file, path)
        return str(path)

    def config(self, method: str, file: FeatureFile, *options: str) -> Any:
        flags = {
            "DATASET": {"NAME": "Features", "FILE": self.write(file)},
            "DATALOADER": {"TRAIN_X": {"BATCH_SIZE": 32}},
            "OPTIM": {"NAME": "adam", "MAX_EPOCH": 30, "LR": 0.01},
            "OUTPUT_DIR": str(self.folder / f"run{self.files}"),
        }
        return make_config(trainer=method, flags=flags, options=options)

    def build(self, method: str, file: FeatureFile, *options: str) -> Any:
        set_random_seed(1)
        return build_trainer(self.config(method, file, *options))

    def results(self, method: str, file: FeatureFile, *options: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(runs.train(self.config(method, file, *options)).read_text())
        return found


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setattr(clip, "assemble", lambda *_: pytest.fail("a CLIP was loaded"))
    return Place(tmp_path)


# ---- training and evaluation -----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("method", ["TaskRes", "LinearProbe"])
def test_a_trained_method_beats_zero_shot_and_says_so_by_its_metric(
    place: Place, method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = place.results(method, feature_file())
    metrics = found["metrics"]["test"]
    assert list(metrics) == ["mAP", "micro_f1", "macro_f1"]
    assert metrics["mAP"] > found["zero_shot_mAP"] + 5
    assert metrics["micro_f1"] > 60
    assert (found["threshold_from"], type(found["threshold"])) == ("val", float)
    assert [row["classname"] for row in found["per_class"]] == list(NAMES)
    assert np.mean([row["ap"] for row in found["per_class"]]) == pytest.approx(metrics["mAP"])
    told = capsys.readouterr().out
    assert "test mAP %" in told
    assert f"Zero-shot CLIP before training: {found['zero_shot_mAP']:.2f}% mAP" in told


def test_zero_shot_has_the_metrics_of_its_logits(place: Place) -> None:
    file = feature_file()
    trainer = place.build("ZeroshotCLIP", file)
    trainer.train()
    arrays = file.parts["test"].views, file.text_weights
    image, text = (torch.nn.functional.normalize(torch.from_numpy(array[0]), dim=-1) for array in arrays)
    expected = average_precision_score(file.parts["test"].labels, (image @ text.T).numpy(), average="macro")
    assert trainer.results["test"]["mAP"] == pytest.approx(100 * expected)
    assert trainer.zero_shot() == pytest.approx(100 * expected)
    always = 2 * file.parts["test"].labels.mean() / (1 + file.parts["test"].labels.mean())
    assert trainer.results["test"]["micro_f1"] > 100 * always, "better than to predict every class"


@pytest.mark.slow
def test_the_epoch_is_selected_by_map_on_the_validation_images(place: Place) -> None:
    trainer = place.build("TaskRes", feature_file(), "TEST.FINAL_MODEL", "best_val")
    trainer.train()
    on_val = [row["mAP"] for row in trainer.history if row["split"] == "val"]
    assert trainer.best_result == max(on_val)
    assert len(on_val) == 30
    assert trainer.threshold_from == "val"


@pytest.mark.slow
def test_validation_metrics_have_f1_where_they_are_asked_for(place: Place) -> None:
    trainer = place.build("TaskRes", feature_file(), "TEST.SPLIT", "val")
    trainer.train()
    assert list(trainer.results["val"]) == ["mAP", "micro_f1", "macro_f1"]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["TaskRes", "ZeroshotCLIP"])
@pytest.mark.parametrize("lacking", [(), ("val",)])
def test_the_threshold_does_not_depend_on_the_test_images(place: Place, method: str, lacking: tuple[str, ...]) -> None:
    file = without(feature_file(), *lacking)
    other = dataclasses.replace(file.parts["test"], labels=~file.parts["test"].labels, views=-file.parts["test"].views)
    changed = dataclasses.replace(file, parts={**file.parts, "test": other})
    first, second = (place.results(method, one) for one in (file, changed))
    assert first["threshold_from"] == second["threshold_from"] == ("train" if lacking else "val")
    assert first["threshold"] == second["threshold"]
    assert first["metrics"]["test"]["micro_f1"] > second["metrics"]["test"]["micro_f1"]


@pytest.mark.slow
def test_only_test_images_leave_f1_out_unless_the_backbone_has_a_bias(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    file = without(feature_file(), "train", "val")
    found = place.results("ZeroshotCLIP", file)
    assert (list(found["metrics"]["test"]), found["threshold"]) == (["mAP"], None)
    assert "Skipping F1" in capsys.readouterr().err
    found = place.results("ZeroshotCLIP", dataclasses.replace(file, logit_bias=-12.5))
    assert (list(found["metrics"]["test"]), found["threshold"]) == (["mAP", "micro_f1", "macro_f1"], 12.5)


def test_the_sigmoid_starts_from_what_fits_the_training_images(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    """Cosines times 100 would be probabilities of 0 and 1: the loss starts below that of the classes' shares alone."""
    caplog.set_level(logging.INFO, "dassl_lite")
    file = feature_file()
    trainer = place.build("TaskRes", file, "OPTIM.MAX_EPOCH", "1", "OPTIM.LR", "1e-9")
    trainer.train()
    train = trainer.training_set(augmented=False)
    loss = trainer.loss(trainer.model_inference(train.features), train.labels).item()
    share = file.parts["train"].labels.mean()
    assert loss < -len(NAMES) * (share * np.log(share) + (1 - share) * np.log(1 - share))
    assert "Sigmoid loss: training starts from logits times 0." in caplog.text


@pytest.mark.slow
def test_a_backbone_s_own_bias_is_where_the_sigmoid_starts(place: Place) -> None:
    trainer = place.build("TaskRes", feature_file(logit_bias=-12.5), "OPTIM.MAX_EPOCH", "1", "OPTIM.LR", "1e-9")
    plain = place.build("ZeroshotCLIP", feature_file(logit_bias=-12.5))
    trainer.train()
    features = trainer.training_set(augmented=False).features
    assert torch.allclose(trainer.model_inference(features), plain.model_inference(features) - 12.5, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["TaskRes", "LinearProbe"])
def test_a_sigmoid_can_be_chosen_for_one_class_per_image(place: Place, method: str) -> None:
    file = feature_file(several=False)
    accuracies = {}
    for loss in ("auto", "softmax", "sigmoid"):
        found = place.results(method, file, f"TRAINER.{method}.LOSS", loss)
        accuracies[loss] = found["metrics"]["test"]["accuracy"]
        assert "threshold" not in found
    assert accuracies["auto"] == accuracies["softmax"]
    assert accuracies["sigmoid"] > 90


@pytest.mark.slow
def test_keys_without_effect_are_reported(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.results("TaskRes", feature_file(), "TEST.COMPUTE_CMAT", "True")
    told = "no effect in this run: TEST.COMPUTE_CMAT (images of the dataset have several classes)"
    assert told in capsys.readouterr().err
    fit = ("TRAINER.LinearProbe.FIT", "logistic_regression", "TRAINER.LinearProbe.LOSS", "sigmoid")
    place.results("LinearProbe", feature_file(several=False), *fit)
    assert "TRAINER.LinearProbe.LOSS (FIT is logistic_regression)" in capsys.readouterr().err


@pytest.mark.slow
def test_a_draw_of_shots_is_trained_on(place: Place) -> None:
    trainer = place.build("TaskRes", feature_file(), "DATASET.NUM_SHOTS", "4")
    shots = np.sum([np.isin(range(5), item.labels) for item in trainer.dm.dataset.train_x], axis=0)
    assert shots.min() == 4
    assert len(trainer.dm.dataset.train_x) < 20
    trainer.train()
    assert trainer.results["test"]["mAP"] > 50


def metrics_of(method: str, precision: str, file: str, output: str) -> dict[str, Any]:
    """What a short run finds, as plain values."""
    flags = {
        "DATASET": {"NAME": "Features", "FILE": file},
        "DATALOADER": {"TRAIN_X": {"BATCH_SIZE": 32}},
        "OPTIM": {"NAME": "adam", "MAX_EPOCH": 5, "LR": 0.01},
        "OUTPUT_DIR": output,
        "VERBOSE": False,
    }
    set_random_seed(1)
    trainer = build_trainer(make_config(trainer=method, flags=flags, options=[f"TRAINER.{method}.PREC", precision]))
    trainer.train()
    return {"device": trainer.device.type, "zero-shot": trainer.zero_shot(), **trainer.results["test"]}


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "amp"])
@pytest.mark.parametrize("method", ["TaskRes", "LinearProbe", "ZeroshotCLIP"])
def test_a_gpu_gives_the_cpu_s_numbers(place: Place, on_cuda: Any, method: str, precision: str) -> None:
    file = place.write(feature_file())
    expected = metrics_of(method, "fp32", file, str(place.folder / "cpu"))
    found = on_cuda(metrics_of, method, precision, file, str(place.folder / "gpu"))
    assert found.pop("device") == "cuda"
    assert expected.pop("device") == "cpu"
    assert found == pytest.approx(expected, abs=1e-3 if precision == "fp32" else 3.0)


# ---- other datasets --------------------------------------------------------------------------------------------------


def transferred(place: Place, source: Any, file: FeatureFile) -> Any:
    target = {"DATASET.NAME": "Features", "DATASET.FILE": place.write(file)}
    return evaluate(config_for(stored_config(source.output_dir), target, {}), source.output_dir)


@pytest.mark.slow
def test_a_run_is_evaluated_as_it_was_trained(place: Place) -> None:
    trainer = place.build("TaskRes", feature_file())
    with runs.session(trainer.cfg) as again:
        again.train()
    found = evaluate(config_for(stored_config(again.output_dir), None, {}), again.output_dir)
    assert found.results == again.results
    row = evaluate_row(config_for(stored_config(again.output_dir), None, {}), again.output_dir)
    assert (row.mAP, row.micro_f1) == (again.results["test"]["mAP"], again.results["test"]["micro_f1"])
    assert np.isnan(row.accuracy)


@pytest.mark.slow
def test_classes_are_matched_by_name_on_another_multi_label_dataset(place: Place) -> None:
    trainer = place.build("TaskRes", feature_file())
    trainer.train()
    same = transferred(place, trainer, feature_file(order=(3, 1, 4, 0, 2)))
    assert same.class_match.matched == 5
    assert same.results["test"]["mAP"] == pytest.approx(trainer.results["test"]["mAP"], rel=1e-5)
    fewer = transferred(place, trainer, without(feature_file(order=(4, 2)), "train", "val"))
    assert list(fewer.results["test"]) == ["mAP", "micro_f1", "macro_f1"], "the sigmoid's threshold comes along"
    assert fewer.evaluator.threshold == 0.0


@pytest.mark.slow
def test_runs_go_from_several_classes_to_one_and_back(place: Place) -> None:
    several, one = feature_file(), feature_file(several=False)
    for source, target, metric in ((several, one, "accuracy"), (one, several, "mAP")):
        trainer = place.build("TaskRes", source)
        trainer.train()
        found = transferred(place, trainer, target)
        assert found.results["test"][metric] > 60
        assert next(iter(found.results["test"])) == metric


@pytest.mark.slow
def test_training_starts_from_the_weights_of_another_loss(place: Place) -> None:
    source = place.build("TaskRes", feature_file(several=False))
    source.train()
    weights = next(Path(source.output_dir).glob("prompt_learner/model*"))
    trainer = place.build("TaskRes", feature_file(), "MODEL.INIT_WEIGHTS", str(weights))
    trainer.train()
    assert trainer.results["test"]["mAP"] > 60


@pytest.mark.slow
def test_a_stopped_run_is_resumed_where_it_was(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = place.build("TaskRes", feature_file(), "OPTIM.MAX_EPOCH", "6", "TRAIN.CHECKPOINT_FREQ", "3")
    whole.train()
    final = {name: value.clone() for name, value in whole.head.state_dict().items()}
    folder = Path(whole.output_dir) / "prompt_learner"
    (folder / "model.pth.tar-6").unlink()
    (folder / "checkpoint").write_text("model.pth.tar-3\n")
    set_random_seed(1)
    again = build_trainer(whole.cfg)
    again.train()
    assert again.start_epoch == 3
    assert all(torch.equal(value, final[name]) for name, value in again.head.state_dict().items())


# ---- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("method", sorted({*all_methods(), "TaskResEnhance"} - TAKING))
def test_every_other_method_refuses_in_a_line_that_names_those_that_take_it(place: Place, method: str) -> None:
    with pytest.raises(UserError) as raised:
        place.build(method, feature_file())
    line, _, named = str(raised.value).partition("; methods that support it: ")
    assert line == f"{method} needs one class per image, but dataset Features is multi-label"
    assert set(named.split(", ")) >= TAKING, "and those that other tests have registered"


def test_a_third_partys_trainer_refuses_multi_label_data(tmp_path: Path) -> None:
    make_images(tmp_path / "data", {"train": 4})
    lines = [f"train/{name}/{i}.png,{name}|red" for name in ("red", "green", "blue") for i in range(4)]
    (tmp_path / "data" / "x.csv").write_text("\n".join(["path,label", *lines]))
    cfg = toy_config(tmp_path / "data" / "x.csv", tmp_path / "run", "DATASET.NAME", "CSV")
    with pytest.raises(UserError, match="^ToyTrainer needs one class per image, but dataset CSV is multi-label"):
        build_trainer(cfg)


def test_methods_declare_that_they_take_multi_label_data() -> None:
    taking = {name for name in all_methods() if TRAINER_REGISTRY.get(name).takes_multi_label}
    assert taking == TAKING


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("TaskRes", ("TRAINER.TaskRes.LOSS", "softmax"), "LOSS softmax needs one class per image.*use sigmoid"),
        (
            "LinearProbe",
            ("TRAINER.LinearProbe.FIT", "logistic_regression"),
            "LinearProbe without epochs needs one class per image.*FIT gradient",
        ),
        ("TaskRes", ("TRAINER.TaskRes.LOSS", "hinge"), "LOSS"),
    ],
)
def test_settings_for_one_class_per_image_are_refused(
    place: Place, method: str, options: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        place.build(method, feature_file(), *options)


# ---- feature files ---------------------------------------------------------------------------------------------------


def test_a_feature_file_keeps_several_classes(tmp_path: Path) -> None:
    file = feature_file()
    write_feature_file(file, tmp_path / "x.npz")
    found = read_feature_file(tmp_path / "x.npz")
    assert found.multi_label
    assert all((found.parts[part].labels == file.parts[part].labels).all() for part in COUNTS)
    assert found.parts["test"].labels.dtype == bool


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.full((80, 5), 2), "is of shape .N, K., so it must hold zeros and ones"),
        (np.zeros((80, 4), int), "has shape .80, 4., but test_features has 80 rows, and there are 5 classes"),
        (np.zeros((80, 5), float), "must be whole numbers of shape"),
        (np.zeros(80, int), "train_labels and test_labels differ"),
    ],
)
def test_labels_that_do_not_fit_are_refused(tmp_path: Path, labels: np.ndarray, message: str) -> None:
    write_feature_file(feature_file(), tmp_path / "x.npz")
    arrays = dict(np.load(tmp_path / "x.npz"))
    np.savez(tmp_path / "y.npz", **{**arrays, "test_labels": labels})
    with pytest.raises(UserError, match=message):
        read_feature_file(tmp_path / "y.npz")


@pytest.mark.slow
def test_base_and_new_classes_of_a_feature_file_have_their_own_text_features(place: Place) -> None:
    file = feature_file()
    for which, kept in (("base", [0, 1, 2]), ("new", [3, 4])):
        trainer = place.build("ZeroshotCLIP", file, "DATASET.SUBSAMPLE_CLASSES", which)
        dataset = trainer.dm.dataset
        assert dataset.classnames == [NAMES[label] for label in kept]
        assert np.array_equal(dataset.text_weights.numpy(), file.text_weights[:, kept])
        assert len(dataset.test) == file.parts["test"].labels[:, kept].any(1).sum()
