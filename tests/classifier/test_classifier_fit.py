"""FewShotClassifier: its inputs and outputs, and that a fit equals a run of tools/train.py."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from toy_images import QUICK, SHAPES, TASKRES, ImageSet, drawn

from dassl_lite import FewShotClassifier
from dassl_lite.classifier.folder import card
from dassl_lite.classifier.images import Spool, spooled_in
from dassl_lite.classifier.predicting import left_out
from dassl_lite.classifier.quiet import alone
from dassl_lite.data.feature_cache import store
from dassl_lite.engine import TRAINER_REGISTRY, TrainerX
from dassl_lite.engine.commands.cli import run_tool
from dassl_lite.tools import train
from dassl_lite.utils.errors import UserError

OPTIONS = ["DATASET.FEATURES.VIEWS", "2", "DATALOADER.NUM_WORKERS", "0", "OPTIM.MAX_EPOCH", "3"]


def trained(data: Path, output: Path, method: str, *flags: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Results and weights of a run of tools/train.py."""
    argv = ["--trainer", method, "--data", str(data), "--output-dir", str(output), *flags, *OPTIONS]
    assert run_tool(train.main, argv) == 0
    state = torch.load(next(output.glob("*/model.pth.tar-*")), weights_only=True)
    return json.loads((output / "results.json").read_text()), state["state_dict"]


def weights(clf: FewShotClassifier) -> dict[str, torch.Tensor]:
    return {key.partition("/")[2]: value for key, value in clf._current().tensors.items()}


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for key in one:
        assert torch.equal(one[key], other[key]), key


@pytest.mark.slow
def test_errors_about_descriptions_passed_as_a_dict_name_no_file() -> None:
    message = r"^descriptions has no sentences for the dataset's class 'square'$"
    with pytest.raises(UserError, match=message):
        FewShotClassifier(classes=["circle", "square"], descriptions={"circle": ["a round thing."]}).predict_proba([])
    with pytest.raises(UserError, match="^descriptions: class 'circle' has an empty list"):
        FewShotClassifier(classes=["circle"], descriptions={"circle": []}).predict_proba([])


@pytest.mark.slow
def test_auto_is_the_default_and_learns_from_the_shots(photos: ImageSet, unseen: ImageSet) -> None:
    clf = FewShotClassifier(shots=2, **QUICK)
    assert clf.get_params()["method"] == "Auto"
    assert clf.fit(photos.paths, photos.labels).score(unseen.paths, unseen.labels) > 1 / len(SHAPES)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["TaskRes", "TipAdapterF"])
def test_a_fit_on_a_folder_equals_a_run_of_train_exactly(photos: ImageSet, tmp_path: Path, method: str) -> None:
    results, state = trained(photos.folder, tmp_path / "run", method, "--shots", "3", "--seed", "2")
    clf = FewShotClassifier(method=method, shots=3, seed=2, **QUICK).fit(photos.folder)
    assert_equal(weights(clf), state)
    for metric, value in results["metrics"]["test"].items():
        assert clf.report_[metric] == value
    assert clf.report_["zero_shot_accuracy"] == results["zero_shot_accuracy"]
    assert clf.score(photos.folder) == pytest.approx(results["metrics"]["test"]["accuracy"] / 100)


@pytest.mark.slow
def test_a_fit_on_lists_equals_a_run_on_a_table_exactly(photos: ImageSet, unseen: ImageSet, tmp_path: Path) -> None:
    with open(tmp_path / "table.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "classname", "split"])
        rows.writerows(zip(photos.paths, photos.labels, ["train"] * 30, strict=True))
        rows.writerows(zip(unseen.paths, unseen.labels, ["test"] * 12, strict=True))
    results, state = trained(tmp_path / "table.csv", tmp_path / "run", "TaskRes", "--shots", "4")
    clf = FewShotClassifier(shots=4, **TASKRES).fit(photos.paths, photos.labels)
    assert_equal(weights(clf), state)
    found = clf.evaluate(unseen.paths, unseen.labels)
    assert found["accuracy"] == results["metrics"]["test"]["accuracy"]
    assert found["ece"] == pytest.approx(results["metrics"]["test"]["ece"], abs=1e-4)


@pytest.mark.slow
def test_images_in_memory_are_learned_like_their_files(photos: ImageSet, unseen: ImageSet, fitted: Any) -> None:
    images = [Image.open(path) for path in photos.paths]
    arrays = np.stack([np.asarray(Image.open(path)) for path in photos.paths])
    few = {"METHODS": ["ZeroshotCLIP", "GDA", "TaskRes"], "FOLDS": 2}
    options = {**QUICK["options"], **few, "INPUT.TRANSFORMS": ["normalize"]}  # views depend on file names
    plain = {**QUICK, "options": options}
    of_files = FewShotClassifier(**plain).fit(photos.paths, photos.labels)
    expected = of_files.predict_proba(unseen.paths)
    for given in (images, arrays):
        clf = FewShotClassifier(**plain).fit(given, photos.labels)
        np.testing.assert_array_equal(clf.predict_proba(unseen.paths), expected)
    in_memory = [Image.open(path) for path in unseen.paths]
    np.testing.assert_allclose(of_files.predict_proba(in_memory), expected, rtol=1e-5)


@pytest.mark.slow
def test_a_private_spool_keeps_in_memory_images_until_it_is_closed(photos: ImageSet) -> None:
    spool, images = Spool(), [Image.open(path) for path in photos.paths[::5]]
    with spooled_in(spool):
        clf = FewShotClassifier(**TASKRES).fit(images, photos.labels[::5])
    folder = spool.folder
    assert len(list(folder.glob("images/*.png"))) == 6
    assert list(folder.glob("features/*/meta.json"))
    spool.close()
    assert not folder.exists()
    assert clf.predict(images).shape == (6,)


class Tiny(TrainerX):
    """A third-party trainer that does not use CLIP."""

    def build_model(self) -> None:
        self.model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, self.num_classes))
        self.optim = torch.optim.SGD(self.model.parameters(), lr=0.01)
        self.register_model("tiny", self.model, self.optim, None)

    def forward_backward(self, batch: Any) -> dict[str, Any]:
        images, labels, _ = self.parse_batch_train(batch)
        loss = torch.nn.functional.cross_entropy(self.model(images), labels)
        self.model_backward_and_update(loss)
        return {"loss": loss.item()}


@pytest.mark.slow
def test_a_third_party_trainer_can_be_a_method(
    photos: ImageSet, unseen: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TRAINER_REGISTRY._table, "Tiny", Tiny)
    options = {"INPUT.SIZE": (16, 16), "DATALOADER.NUM_WORKERS": 0, "INPUT.TRANSFORMS": ("normalize",)}
    clf = FewShotClassifier(method="Tiny", epochs=2, options=options).fit(photos.paths, photos.labels)
    expected = clf.predict_proba(unseen.paths)
    assert expected.shape == (12, 3)
    loaded = FewShotClassifier.load(clf.save(tmp_path / "tiny") and tmp_path / "tiny")
    np.testing.assert_allclose(loaded.predict_proba(unseen.paths), expected, rtol=1e-5)


class ClassLabel(SimpleNamespace):
    """Like Hugging Face's column type."""


class HuggingFace:
    """Imitates a Hugging Face ``Dataset``."""

    def __init__(self, images: list[Any], labels: list[int], names: list[str]) -> None:
        self.rows = [{"image": image, "label": label} for image, label in zip(images, labels, strict=True)]
        self.column_names = ["image", "label"]
        self.features = {"image": None, "label": ClassLabel(names=names)}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: Any) -> Any:
        return [row[key] for row in self.rows] if isinstance(key, str) else self.rows[key]


@pytest.mark.slow
def test_labels_are_taken_from_a_hugging_face_dataset(photos: ImageSet) -> None:
    images = [Image.open(path) for path in photos.paths]
    data = HuggingFace(images, [SHAPES.index(label) for label in photos.labels], list(SHAPES))
    clf = FewShotClassifier(**TASKRES).fit(data)
    assert clf.classes_.tolist() == sorted(SHAPES)
    assert set(clf.predict(data)) <= set(SHAPES)
    assert clf.score(data) > 0.4


@pytest.mark.slow
def test_predicted_labels_have_the_type_of_the_given_ones(photos: ImageSet) -> None:
    numbers = [7 * SHAPES.index(label) for label in photos.labels]
    clf = FewShotClassifier(classes={7 * n: name for n, name in enumerate(SHAPES)}, **QUICK)
    clf.fit(photos.paths, numbers)
    assert not any("Prompts name the classes by their labels" in message for message in clf.messages_)
    assert clf.classes_.tolist() == [0, 7, 14]
    assert clf.predict(photos.paths[:1]).dtype == clf.classes_.dtype
    assert clf._current().classes.names == SHAPES


@pytest.mark.slow
def test_labels_without_a_numpy_type_are_kept_unchanged() -> None:
    from dassl_lite.classifier.values import label_array, listed_values

    for labels in ([0, 1, 2**63 + 5], [1, 10**30], ["a\0", "b"], [-1, 4], [False, True]):
        assert label_array(labels).tolist() == labels
        assert [type(label) for label in label_array(labels).tolist()] == [type(label) for label in labels]
    tensors = list(torch.tensor([0, 1]))
    assert listed_values(tensors) == [0, 1]
    assert all(type(label) is int for label in listed_values(tensors))


@pytest.mark.slow
def test_class_names_without_a_fit_give_zero_shot_clip(photos: ImageSet) -> None:
    clf = FewShotClassifier(classes=list(SHAPES), options={"DATALOADER.NUM_WORKERS": 0})
    found = clf.predict(photos.paths)
    assert (found == photos.labels).mean() > 0.4
    assert clf.predict_proba(photos.paths[:2]).shape == (2, 3)


@pytest.mark.slow
def test_predictions_have_the_documented_shapes_and_types(fitted: Any, unseen: ImageSet) -> None:
    paths = unseen.paths[:5]
    proba, logits = fitted.predict_proba(paths), fitted.decision_function(paths)
    assert proba.shape == logits.shape == (5, 3)
    assert proba.dtype == logits.dtype == np.float32
    np.testing.assert_allclose(proba.sum(axis=1), 1, rtol=1e-5)
    assert fitted.transform(paths).shape == (5, fitted._trainer.clip.embed_dim)
    assert fitted.predict(paths).shape == (5,)
    top = fitted.predict(paths, top_k=2)
    assert top.shape == (5, 2)
    np.testing.assert_array_equal(top[:, 0], fitted.predict(paths))
    np.testing.assert_array_equal(fitted.classes_[proba.argmax(axis=1)], fitted.predict(paths))
    assert fitted.predict([]).shape == (0,)


@pytest.mark.slow
def test_an_improbable_prediction_is_none(fitted: Any, unseen: ImageSet) -> None:
    proba = fitted.predict_proba(unseen.paths).max(axis=1)
    limit = float(np.median(proba))
    found = fitted.predict(unseen.paths, unknown_below=limit)
    np.testing.assert_array_equal([label is None for label in found], proba < limit)


def test_features_are_predicted_like_their_images(fitted: Any, unseen: ImageSet) -> None:
    features = fitted.transform(unseen.paths)
    np.testing.assert_allclose(fitted.predict_proba(features), fitted.predict_proba(unseen.paths), rtol=1e-5)


@pytest.mark.slow
def test_features_that_are_not_finite_are_predicted_as_none(fitted: Any, unseen: ImageSet) -> None:
    features = fitted.transform(unseen.paths[:3])
    features[1, 0] = np.nan
    with pytest.warns(UserWarning, match="image 1: the features are not finite"):
        assert [label is None for label in fitted.predict(features)] == [False, True, False]


def test_an_evaluation_agrees_with_its_predictions(fitted: Any, unseen: ImageSet) -> None:
    found = fitted.evaluate(unseen.folder)
    right = fitted.predict(unseen.paths) == np.array(unseen.labels)
    assert found["accuracy"] == pytest.approx(100 * right.mean())
    assert fitted.score(unseen.folder) == pytest.approx(right.mean())
    assert np.array(found["confusion"]).sum() == found["images"] == 12
    assert np.trace(found["confusion"]) == right.sum()
    assert {row["label"]: row["images"] for row in found["per_class"]} == dict.fromkeys(SHAPES, 4)
    low, high = found["interval"]
    assert low < found["accuracy"] < high or right.all()


@pytest.mark.slow
def test_a_repeated_fit_is_identical_and_another_seed_differs(photos: ImageSet, unseen: ImageSet) -> None:
    one, same, other = (
        FewShotClassifier(shots=2, seed=seed, **TASKRES).fit(photos.paths, photos.labels).predict_proba(unseen.paths)
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


@pytest.mark.slow
def test_calibration_matches_probabilities_to_accuracy(photos: ImageSet, unseen: ImageSet) -> None:
    clf = FewShotClassifier(**TASKRES).fit(photos.paths, photos.labels)
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4000, 3)) * 3
    proba = np.exp(logits - logits.max(axis=1, keepdims=True))
    proba /= proba.sum(axis=1, keepdims=True)
    truth = (proba.cumsum(axis=1) > rng.random((4000, 1))).argmax(axis=1)  # labels drawn from these probabilities
    from dassl_lite.classifier.report import best_temperature, calibration_error

    assert best_temperature(4 * logits, truth) == pytest.approx(4, rel=0.1)
    assert calibration_error(4 * logits, truth, 4.0) < 2 < calibration_error(4 * logits, truth, 1.0)
    before = clf.predict_proba(unseen.paths)
    clf.calibrate(unseen.paths, unseen.labels)
    assert clf.temperature_ != 1
    assert clf.calibration_.images == 12
    np.testing.assert_array_equal(clf.predict_proba(unseen.paths).argmax(axis=1), before.argmax(axis=1))


@pytest.mark.slow
def test_a_fit_on_a_folder_calibrates_on_its_validation_images(photos: ImageSet) -> None:
    clf = FewShotClassifier(**TASKRES).fit(photos.folder).calibrate()
    assert clf.calibration_.images == len(clf._trainer.dm.dataset.val) > 0
    assert clf.calibration_.measured_on == "test images of the fit"


NOT_FITTED = [
    lambda clf: clf.predict(["a.jpg"]),
    lambda clf: clf.score("photos"),
    lambda clf: clf.save("folder"),
    lambda clf: clf.calibrate(),
    lambda clf: next(clf.stream(["a.jpg"])),
]


@pytest.mark.parametrize("call", NOT_FITTED)
def test_methods_that_need_a_fit_raise_not_fitted_error(call: Any) -> None:
    with pytest.raises(NotFittedError, match=r"^this FewShotClassifier is not fitted yet"):
        call(FewShotClassifier())


def fit(images: Any, labels: Any, **parameters: Any) -> Any:
    return FewShotClassifier(**{**TASKRES, **parameters}).fit(images, labels)


WRONG = [
    (lambda p: fit("no-such-folder", None), FileNotFoundError, "no-such-folder"),
    (lambda p: fit(["no-such.png"], ["cat"]), FileNotFoundError, "no-such.png"),
    (lambda p: fit(p.paths, None), ValueError, "needs labels"),
    (lambda p: fit(p.paths[0], None), ValueError, "is a single image; give a folder"),
    (lambda p: fit(p.paths, p.labels[:-1]), ValueError, "30 images, but y has 29"),
    (lambda p: fit(p.paths, [None, *p.labels[1:]]), ValueError, "None, which is not a label"),
    (lambda p: fit(p.paths, p.labels, method="TaskRs"), ValueError, "Did you mean 'TaskRes'"),
    (lambda p: fit(p.paths, p.labels, backbone="no/such"), ValueError, "no/such"),
    (lambda p: fit(p.paths, p.labels, options={"RESIDUAL_SCAL": 1}), ValueError, "Did you mean 'RESIDUAL_SCALE'"),
    (lambda p: fit(p.paths, p.labels, options={"OPTIM.LRR": 1}), ValueError, "OPTIM.LR"),
    (lambda p: fit(p.paths, p.labels, shots=0), ValueError, "NUM_SHOTS is 0"),
    (lambda p: fit(p.paths, p.labels, shots="many"), ValueError, "many"),
    (lambda p: fit(p.paths, p.labels, device="tpu"), ValueError, "tpu"),
    (lambda p: fit(p.paths, p.labels, method="TransCLIP"), ValueError, "transductive"),
    (lambda p: fit(p.paths, p.labels, precision="fp8"), ValueError, "fp8"),
    (lambda p: fit(p.paths, p.labels, template="a photo"), ValueError, "a photo"),
    (lambda p: fit(p.paths, p.labels, classes=["circle"]), ValueError, "no name for label 'square'"),
    (lambda p: fit(p.paths[:2], [0, 3], classes=["a", "b"]), ValueError, "label 3 of y; a list names text, or labels"),
    (lambda p: fit(p.paths[:1], [0.0]), ValueError, "0.0, which is not a label; labels are text, integers or booleans"),
    (lambda p: fit([3.5], ["cat"]), ValueError, "3.5 is not an image"),
    (lambda p: fit(p.paths, [True, *[0] * 29]), ValueError, "y mixes labels of several types: bool, int"),
    (lambda p: fit(p.paths, "circle"), ValueError, "y is 'circle'; it is a list of labels"),
    (lambda p: fit(p.paths[:1], [0], classes={0: None}), ValueError, "classes has None, which is not a name"),
    (lambda p: fit(p.paths[:1], [0], classes={0: " "}), ValueError, "classes has ' ', which is not a name"),
    (lambda p: FewShotClassifier(classes={1: None}).predict(p.paths), ValueError, "classes has None"),
    (lambda p: FewShotClassifier(classes={1: "cat", "x": "dog"}).predict(p.paths), ValueError, "several types"),
    (lambda p: FewShotClassifier(classes={"cat", "dog"}).predict(p.paths), ValueError, "list of names"),
    (lambda p: fit(p.paths, ["", *p.labels[1:]]), ValueError, "y has an empty label"),
    (
        lambda p: fit(p.paths, p.labels, shots=1, options={"DATASET.NUM_SHOTS": 4}),
        ValueError,
        "options has DATASET.NUM_SHOTS, which a parameter sets too",
    ),
    (lambda p: FewShotClassifier().fit(np.zeros((4, 8)), [0, 0, 1, 1]), ValueError, "feature file"),
    (lambda p: FewShotClassifier(classes="cat").predict(p.paths), ValueError, "list of names"),
    (lambda p: FewShotClassifier(classes=["a", "a"]).predict(p.paths), ValueError, "twice"),
    (lambda p: FewShotClassifier.load("no-such-folder"), FileNotFoundError, "no-such-folder"),
]


@pytest.mark.parametrize(("call", "kind", "text"), WRONG)
def test_a_user_error_prints_one_line(photos: ImageSet, call: Any, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind) as caught:
        call(photos)
    assert isinstance(caught.value, UserError)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


WRONG_QUESTIONS = [
    (lambda c, p: c.predict(p.paths, top_k=4), "top_k is 4"),
    (lambda c, p: c.predict(p.paths, unknown_below=2), "unknown_below is 2"),
    (lambda c, p: c.predict(p.paths, unknown_below="0.4"), "unknown_below is '0.4'"),
    (lambda c, p: c.predict(p.paths, unknown_below=True), "unknown_below is True"),
    (lambda c, p: c.predict([], top_k=4), "top_k is 4"),
    (lambda c, p: c.stream([], top_k=4), "top_k is 4"),
    (lambda c, p: c.stream([], on_error="stop"), "on_error"),
    (lambda c, p: c.predict("no-such-folder"), "no file or folder 'no-such-folder'"),
    (lambda c, p: c.predict(""), "no file or folder ''"),
    (lambda c, p: c.predict("a\0b"), "no file or folder"),
    (lambda c, p: c.predict(3), "3 is not a list of images"),
    (lambda c, p: c.predict({"a.png"}), "{'a.png'} is not a list of images"),
    (lambda c, p: c.save(""), "'' is not the path"),
    (lambda c, p: c.save(None), "None is not the path"),
    (lambda c, p: c.save("a\0b"), "is not the path"),
    (lambda c, p: type(c).load(""), "'' is not the path"),
    (lambda c, p: type(c).load("a" * 5000), "there is no folder"),
    (lambda c, p: type(c).from_pretrained("typo"), "there is no folder 'typo'"),
    (lambda c, p: type(c).from_pretrained("./a/b"), "there is no folder './a/b'"),
    (lambda c, p: c.predict(p.paths, on_error="stop"), "on_error"),
    (lambda c, p: c.predict(np.zeros((2, 3))), "width 3"),
    (lambda c, p: c.predict(np.zeros((2, 3, 4))), "not a list of images"),
    (lambda c, p: c.predict({"a": 1}), "not a list of images"),
    (lambda c, p: c.score(p.paths), "labels, y, are missing"),
    (lambda c, p: c.score(p.paths, ["dog"] * 30), "'dog' is not a class"),
    (lambda c, p: c.score(p.paths, [["circle"]] * 30), "['circle'] is not a class"),
    (lambda c, p: c.score(p.paths, p.labels, [0] * 30), "sample_weight is [0"),
    (lambda c, p: c.score(p.paths, p.labels, [1]), "30 numbers"),
    (lambda c, p: c.calibrate(), "no validation images"),
    (lambda c, p: c.remove_class("dog"), "unknown class 'dog'"),
    (lambda c, p: c.add_class("circle"), "already"),
    (lambda c, p: c.add_class(np.str_("circle")), "a class 'circle' already"),
    (lambda c, p: c.add_class(" "), "' ' is not the name of a class"),
    (lambda c, p: c.add_class(3), "3 cannot be a label: those of the fit"),
    (lambda c, p: c.add_class("star", [drawn("circle", 1)]), "fit again"),
]


@pytest.mark.slow
def test_features_keep_their_width_if_images_are_unreadable(fitted: Any, photos: ImageSet) -> None:
    width = fitted._trainer.input_width
    assert fitted.transform([]).shape == (0, width)
    with pytest.warns(UserWarning, match="300 images could not be read"):
        found = fitted.transform(path for path in ["missing.png"] * 300 + photos.paths[:1])
    assert found.shape == (301, width)
    assert np.isnan(found[:300]).all()
    np.testing.assert_allclose(found[300], fitted.transform(photos.paths[:1])[0], atol=1e-5)
    with pytest.warns(UserWarning, match="1 image could not be read"):
        assert fitted.transform(["missing.png"]).shape == (1, width)


@pytest.mark.slow
def test_a_new_class_keeps_the_type_of_the_labels_and_takes_its_name_from_classes(photos: ImageSet) -> None:
    names = {0: "circle", 1: "square", 2: "star"}
    clf = FewShotClassifier(method="ZeroshotCLIP", classes=names).fit(photos.paths[:2], [0, 1])
    with pytest.raises(UserError, match="'star' cannot be a label: those of the fit are of type int"):
        clf.add_class("star")
    clf.add_class(2)
    assert clf.classes_.tolist() == [0, 1, 2]
    expected = FewShotClassifier(classes=["circle", "square", "star"]).predict_proba(photos.paths[:1])
    np.testing.assert_allclose(clf.predict_proba(photos.paths[:1]), expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("call", "text"), WRONG_QUESTIONS)
def test_an_invalid_call_is_refused_in_one_line(fitted: Any, photos: ImageSet, call: Any, text: str) -> None:
    with pytest.raises(UserError) as caught:
        call(fitted, photos)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


# ---- cross-validation -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_cross_validation_equals_fits_to_the_remaining_images(photos: ImageSet, tmp_path: Path) -> None:
    rows = [row for row in range(30) if row % 10 < 3]  # three images of each class
    paths, labels = [photos.paths[row] for row in rows], [photos.labels[row] for row in rows]
    clf = FewShotClassifier(method="ProKeR", shots=-1, **{**QUICK, "epochs": None}).fit(paths, labels)
    with alone():
        logits, zero_shot, truth = left_out(clf._fitted(), None, str(tmp_path))
    assert truth.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    for row in (0, 4, 8):
        rest = [number for number in range(9) if number != row]
        other = clone(clf).fit([paths[number] for number in rest], [labels[number] for number in rest])
        np.testing.assert_allclose(logits[row], other.decision_function([paths[row]])[0], rtol=1e-4, atol=1e-4)
    found = clf.cross_validate()
    assert (found["images"], found["accuracy"]) == (9, 100 * np.mean(logits.argmax(axis=1) == truth))
    plain = FewShotClassifier(classes=list(SHAPES)).score(paths, labels)
    assert found["zero_shot_accuracy"] == pytest.approx(100 * plain)
    assert zero_shot.shape == (9, 3)
    assert "each left out of the fit in turn" in card(clf._current(), clf._described(clf._current()))


@pytest.mark.slow
def test_cross_validation_encodes_no_image_again_and_does_not_change_the_classifier(photos: ImageSet) -> None:
    clf = FewShotClassifier(**TASKRES, shots=-1).fit(photos.paths[:20], photos.labels[:20])
    before = clf.predict_proba(photos.paths[:20])  # encodes the images unless an earlier test has
    with mock.patch.object(store, "extract", side_effect=AssertionError("an image is encoded")):
        assert clf.cross_validate(folds=4)["images"] == 20
    np.testing.assert_array_equal(clf.predict_proba(photos.paths[:20]), before)


@pytest.mark.slow
def test_cross_validation_that_is_impossible_is_refused(
    photos: ImageSet, fitted: FewShotClassifier, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="folds is 1; it is 2 or more"):
        fitted.cross_validate(folds=1)
    loaded = FewShotClassifier.load(fitted.save(tmp_path / "x") and tmp_path / "x")
    with pytest.raises(ValueError, match="there are no training images"):
        loaded.cross_validate()
    single = FewShotClassifier(**TASKRES).fit([photos.paths[0], photos.paths[10]], ["circle", "square"])
    with pytest.raises(ValueError, match="no class has two training images"):
        single.cross_validate()
    projection = FewShotClassifier(method="ProLIP", **QUICK).fit(photos.paths[:2], photos.labels[:2])
    with pytest.raises(ValueError, match="ProLIP does not work on fixed features"):
        projection.cross_validate()
