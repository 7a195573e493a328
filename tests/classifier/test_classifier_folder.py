"""Streams of images, adding and removing classes, and the folder that a classifier is saved to."""

from __future__ import annotations

import copy
import json
import shutil
import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from toy_images import QUICK, SHAPES, TASKRES, ImageSet, drawn

from dassl_lite import FewShotClassifier
from dassl_lite.classifier import predicting
from dassl_lite.classifier.content import method_keys
from dassl_lite.classifier.folder import card
from dassl_lite.classifier.predicting import Prediction
from dassl_lite.engine.build import TRAINER_REGISTRY
from dassl_lite.engine.commands.cli import run_tool
from dassl_lite.engine.methods.feature_trainer import FeatureTrainer
from dassl_lite.engine.plugins import load_plugins
from dassl_lite.tools import extract, train
from dassl_lite.utils.errors import UserError
from dassl_lite.utils.files import write_json
from dassl_lite.utils.registry import is_ours

load_plugins()
METHODS = [
    name
    for name in TRAINER_REGISTRY
    if is_ours(kind := TRAINER_REGISTRY.get(name)) and issubclass(kind, FeatureTrainer) and kind.standalone
    if kind.is_transductive is not True
]


# ---- streams --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_stream_predicts_each_image_in_order(fitted: Any, unseen: ImageSet) -> None:
    found = list(fitted.stream((path for path in unseen.paths), top_k=2))
    assert [prediction.image for prediction in found] == unseen.paths
    expected = fitted.predict(unseen.paths, top_k=2)
    np.testing.assert_array_equal([prediction.labels for prediction in found], expected)
    proba = np.sort(fitted.predict_proba(unseen.paths), axis=1)[:, ::-1][:, :2]
    np.testing.assert_allclose([prediction.probabilities for prediction in found], proba, rtol=1e-4)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_length_of_a_stream(fitted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from dassl_lite.classifier import images

    monkeypatch.setattr(images, "BLOCK", 16)
    array = np.asarray(drawn("circle", 1))

    def peak(count: int) -> int:
        tracemalloc.start()
        for _ in fitted.stream(array for _ in range(count)):
            pass
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(16)
    assert peak(192) < 1.5 * peak(32)


@pytest.mark.slow
@pytest.mark.parametrize("many", [False, True])
def test_an_unreadable_image_is_predicted_as_none_with_a_warning(
    fitted: Any, unseen: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, many: bool
) -> None:
    if many:
        monkeypatch.setattr(predicting, "CACHED", 0)
    broken = tmp_path / "broken.png"
    broken.write_bytes(Path(unseen.paths[0]).read_bytes()[:100])
    paths = [unseen.paths[0], str(broken), str(tmp_path / "gone.png"), unseen.paths[1]]
    with pytest.warns(UserWarning, match="2 images could not be read") as caught:
        found = fitted.predict(paths)
    assert len(caught) == 1
    assert caught[0].filename == __file__  # the warning points to the caller
    assert [prediction is None for prediction in found] == [False, True, True, False]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert np.isnan(fitted.predict_proba(paths)[1:3]).all()
        streamed = list(fitted.stream(paths))
        assert fitted.predict(paths[1:3]).tolist() == [None, None]
        assert fitted.score(paths, unseen.labels[:4]) <= 0.5
        assert fitted.evaluate(paths, unseen.labels[:4])["unreadable"] == 2
    assert streamed[1].labels == (None,)
    assert "broken.png" in streamed[1].error
    assert streamed[0].error == streamed[3].error == ""
    with pytest.raises(ValueError, match=r"broken\.png"):
        fitted.predict(paths, on_error="raise")
    with pytest.raises(FileNotFoundError, match=r"gone\.png"):
        fitted.predict(paths[2:], on_error="raise")


def test_items_that_are_not_images_are_reported_and_the_rest_is_predicted(fitted: Any) -> None:
    given = [drawn("circle", 1), np.zeros((4, 4)), None, np.zeros((8, 8), np.uint8), drawn("square", 2).convert("LA")]
    with pytest.warns(UserWarning, match="image 1: an array of float64"):
        found = fitted.predict(given)
    assert [prediction is None for prediction in found] == [False, True, True, False, False]


def test_an_invalid_path_is_reported_and_the_rest_is_predicted(fitted: Any, unseen: ImageSet) -> None:
    with pytest.warns(UserWarning, match=r"a\\x00b.png': .*embedded null") as caught:
        found = fitted.predict([unseen.paths[0], "a\0b.png", "a" * 5000])
    assert [prediction is None for prediction in found] == [False, True, True]
    assert str(caught[0].message).count("b.png") == 1  # the path is named once


@pytest.mark.slow
def test_circular_links_are_not_images(fitted: Any, unseen: ImageSet, tmp_path: Path) -> None:
    shutil.copytree(unseen.folder, tmp_path / "photos")
    for shape in ("circle", "square"):
        (tmp_path / "photos" / shape / "a.png").symlink_to("b.png")
        (tmp_path / "photos" / shape / "b.png").symlink_to("a.png")
    (tmp_path / "photos" / "loop").symlink_to("loop")
    assert len(fitted.predict(tmp_path / "photos")) == len(unseen.paths)
    assert fitted.score(tmp_path / "photos") == fitted.score(unseen.folder)


def test_a_folder_is_read_as_all_images_below_it(fitted: Any, unseen: ImageSet) -> None:
    np.testing.assert_array_equal(fitted.predict(unseen.folder), fitted.predict(sorted(unseen.paths)))
    empty = unseen.folder.parent / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match="contains no images"):
        fitted.predict(empty)


# ---- classes --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_removing_a_class_does_not_change_the_others(photos: ImageSet, unseen: ImageSet) -> None:
    clf = FewShotClassifier(**TASKRES).fit(photos.paths, photos.labels)
    before = clf.decision_function(unseen.paths)
    clf.add_class("star")
    after = clf.decision_function(unseen.paths)
    assert clf.classes_.tolist() == [*sorted(SHAPES), "star"]
    np.testing.assert_allclose(after[:, :3], before, rtol=1e-5)
    clf.remove_class("star").remove_class("square")
    assert clf.classes_.tolist() == ["circle", "triangle"]
    np.testing.assert_allclose(clf.decision_function(unseen.paths), before[:, 2] - before[:, 0], atol=1e-4)
    assert clf.report_ is None
    clf.calibrate(unseen.paths[:4], unseen.labels[:4]).remove_class("circle")
    assert "chosen before classes were added or removed" in card(clf._current(), clf._described(clf._current()))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["TipAdapter", "GDA"])
def test_a_closed_form_method_learns_a_new_class_from_its_images(
    photos: ImageSet, unseen: ImageSet, method: str
) -> None:
    first = [n for n, label in enumerate(photos.labels) if label != "triangle"]
    new = [path for path, label in zip(photos.paths, photos.labels, strict=True) if label == "triangle"]
    clf = FewShotClassifier(method=method, **QUICK)
    clf.fit([photos.paths[n] for n in first], [photos.labels[n] for n in first]).add_class("triangle", new)
    refitted = FewShotClassifier(method=method, **QUICK).fit(photos.paths, photos.labels)
    np.testing.assert_allclose(clf.predict_proba(unseen.paths), refitted.predict_proba(unseen.paths), atol=1e-5)


@pytest.mark.slow
def test_a_method_without_per_class_parameters_warns_that_images_are_not_used(photos: ImageSet) -> None:
    clf = FewShotClassifier(method="CLIP_Adapter", **QUICK).fit(photos.paths, photos.labels)
    with pytest.warns(UserWarning, match="by its name"):
        clf.add_class("star", [drawn("circle", 1)])
    assert clf.predict_proba(photos.paths[:1]).shape == (1, 4)


# ---- the folder -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(fitted: Any, unseen: ImageSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "shapes"
    fitted.evaluate(unseen.paths, unseen.labels)
    fitted.save(folder)
    return folder


@pytest.mark.slow
def test_a_loaded_classifier_equals_the_saved_one(fitted: Any, saved: Path, unseen: ImageSet) -> None:
    assert sorted(path.name for path in saved.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert (saved / "model.safetensors").stat().st_size < 100_000
    for loaded in (FewShotClassifier.load(saved), FewShotClassifier.from_pretrained(saved)):
        np.testing.assert_array_equal(loaded.predict_proba(unseen.paths), fitted.predict_proba(unseen.paths))
        assert loaded.classes_.tolist() == fitted.classes_.tolist()
        assert loaded.get_params()["epochs"] == 3
        assert loaded.report_ == fitted.report_


SAVED_AGAIN = [
    lambda p: FewShotClassifier(method="GDA", **QUICK).fit(p.folder).calibrate(),
    lambda p: FewShotClassifier(method="TaskRes", **QUICK).fit(p.paths, p.labels).remove_class("square"),
    lambda p: FewShotClassifier(method="GDA", **QUICK, shots=np.int64(2), classes=[*SHAPES]).fit(
        p.paths, [SHAPES.index(label) for label in p.labels]
    ),
    lambda p: FewShotClassifier(classes={3: "circle", 5: "square"}).add_class(7),
    lambda p: FewShotClassifier(
        classes=[*SHAPES], descriptions={name: [f"a {name}.", f"one {name}."] for name in SHAPES}
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize("make", SAVED_AGAIN)
def test_a_loaded_classifier_is_saved_to_the_same_bytes(photos: ImageSet, tmp_path: Path, make: Any) -> None:
    folders = tmp_path / "once", tmp_path / "twice"
    FewShotClassifier.load(make(photos).save(folders[0]) and folders[0]).save(folders[1])
    first, second = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders)
    assert first == second


@pytest.mark.slow
def test_the_saved_parameters_contain_no_paths(photos: ImageSet, tmp_path: Path) -> None:
    write_json({name: [f"a {name}.", f"one {name}."] for name in SHAPES}, tmp_path / "texts.json")
    options = {**QUICK["options"], "DATASET.FEATURES.DIR": str(tmp_path / "cache"), "OPTIM.LR": np.float32(0.5)}
    clf = FewShotClassifier(method="TaskRes", epochs=1, options=options, descriptions=tmp_path / "texts.json")
    clf.set_params(classes={3 * n: name for n, name in enumerate(SHAPES)}, seed=np.int64(3))
    clf.fit(photos.paths, [3 * SHAPES.index(label) for label in photos.labels]).save(tmp_path / "clf")
    assert str(tmp_path) not in (tmp_path / "clf" / "config.json").read_text()
    found = FewShotClassifier.load(tmp_path / "clf").get_params()
    assert found["options"] == {**QUICK["options"], "OPTIM.LR": 0.5}
    assert found["descriptions"] == {name: [f"a {name}.", f"one {name}."] for name in SHAPES}
    assert (found["classes"], found["seed"]) == ({0: "circle", 3: "square", 6: "triangle"}, 3)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_every_method_can_be_saved_and_loaded(
    photos: ImageSet, unseen: ImageSet, tmp_path: Path, golden_backbone: Any, method: str
) -> None:
    quick = {**QUICK, "epochs": 1, "shots": 2}
    if method in ("MaPLe", "VPT"):  # these need a ViT
        quick["backbone"] = str(golden_backbone("vit0"))
    # The training length of methods that do not count epochs, and of Auto's comparison.
    length = {"ITERATIONS": 2, "STEPS_PER_SHOT": 1, "METHODS": ["GDA"], "FOLDS": 2}
    quick["options"] = {**QUICK["options"], **{key: length[key] for key in method_keys(method) if key in length}}
    clf = FewShotClassifier(method=method, **quick).fit(photos.folder).calibrate().save(tmp_path / "clf")
    loaded = FewShotClassifier.load(tmp_path / "clf")
    expected = clf.predict_proba(unseen.paths)
    np.testing.assert_allclose(loaded.predict_proba(unseen.paths), expected, rtol=1e-4, atol=1e-6)
    assert np.isfinite(expected).all()
    assert loaded.temperature_ == clf.temperature_
    assert loaded.calibration_ == clf.calibration_
    text = (tmp_path / "clf" / "config.json").read_text()
    assert str(photos.folder.parent) not in text
    loaded.remove_class("square")
    assert loaded.predict_proba(unseen.paths).shape == (12, 2)


def test_the_model_card_shows_the_results(fitted: Any, saved: Path) -> None:
    card = (saved / "README.md").read_text()
    low, high = fitted.report_["interval"]
    assert f"{fitted.report_['accuracy']:.2f} ({low:.2f} to {high:.2f})" in card
    assert "30 training images, 10 per class" in card
    assert "TO BE FILLED IN" in card
    assert "from dassl_lite import FewShotClassifier" in card
    assert card.startswith("---\nlibrary_name: dassl-lite\n")


@pytest.mark.parametrize("name", ["README.md", "config.json", "model.safetensors"])
def test_a_save_keeps_files_that_are_not_part_of_a_classifier(fitted: Any, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match=f"{name}' is not a classifier's; choose another folder"):
        fitted.save(tmp_path)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "mine")]


@pytest.mark.slow
def test_a_classifier_and_a_run_cannot_share_a_folder(fitted: Any, photos: ImageSet, tmp_path: Path) -> None:
    run, clf = tmp_path / "run", tmp_path / "clf"
    run.mkdir()
    write_json({"metrics": {}}, run / "results.json")
    (tmp_path / "begun" / "prompt_learner").mkdir(parents=True)
    (tmp_path / "begun" / "prompt_learner" / "model.pth.tar-3").write_bytes(b"")
    for folder in (run, tmp_path / "begun"):
        before = sorted(folder.rglob("*"))
        with pytest.raises(UserError, match="contains a run of tools/train.py; choose another folder"):
            fitted.save(folder)
        assert sorted(folder.rglob("*")) == before
    fitted.save(clf)
    for flags in ([], ["--overwrite"], ["--resume"]):
        with pytest.raises(UserError, match="contains a saved classifier; choose another --output-dir"):
            train.main(["--trainer", "TaskRes", "--data", str(photos.folder), "--output-dir", str(clf), *flags])
    assert sorted(path.name for path in clf.iterdir()) == ["README.md", "config.json", "model.safetensors"]


def test_a_folder_without_a_classifier_is_refused_without_mentioning_flags(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        FewShotClassifier.load(tmp_path)
    assert str(caught.value) == f"'{tmp_path}' holds neither a classifier nor a run of tools/train.py"


def change(name: str, edit: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def do(folder: Path) -> None:
        values = json.loads((folder / name).read_text())
        edit(values)
        (folder / name).write_text(json.dumps(values))

    return do


def other_weights(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({name: values + 1 for name, values in tensors.items()}, folder / "model.safetensors")


TAMPERED = [
    (other_weights, "changed or damaged"),
    (lambda folder: (folder / "model.safetensors").write_bytes(b"\x80\x04."), "changed or damaged"),
    (lambda folder: (folder / "model.safetensors").unlink(), "lacks model.safetensors"),
    (lambda folder: (folder / "config.json").unlink(), "lacks config.json"),
    (lambda folder: (folder / "config.json").write_text("{"), "cannot be read"),
    (lambda folder: (folder / "config.json").write_text("[]"), "not a classifier's"),
    (change("config.json", lambda values: values.update(format_version=0)), "format 0"),
    (change("config.json", lambda values: values.update(labels=["a"])), "changed or damaged"),
    (change("config.json", lambda values: values.update(method="x", temperature=1e9)), "changed or damaged"),
]


@pytest.mark.parametrize(("tamper", "text"), TAMPERED)
def test_a_tampered_folder_is_refused_in_one_line(saved: Path, tmp_path: Path, tamper: Any, text: str) -> None:
    shutil.copytree(saved, tmp_path / "copy")
    tamper(tmp_path / "copy")
    with pytest.raises(UserError, match=text) as caught:
        FewShotClassifier.load(tmp_path / "copy")
    assert "\n" not in str(caught.value)


FORGED = [
    (lambda values: values.update(class_names=["a"]), "list its classes"),
    (lambda values: values.update(class_names=[1, 2, 3]), "not text"),
    (lambda values: values.update(labels=["a"]), "1 labels for 3 classes"),
    (lambda values: values.update(config={}), "config of a run"),
    (lambda values: values.update(temperature=-1), "temperature"),
    (lambda values: values.update(temperature="hot"), "hold a classifier"),
    (lambda values: values.pop("params"), "hold a classifier"),
    (lambda values: values["config"]["TRAINER"].update(NAME="os.system"), "unknown trainer"),
    (lambda values: values["config"]["MODEL"]["BACKBONE"].update(NAME="no/such"), "no/such"),
    (lambda values: values["config"]["TRAINER"].update(NAME="LinearProbe"), "holds weights of prompt_learner"),
    (lambda values: values["meta"].update(backbone_digest="0" * 64), "with other weights"),
    (lambda values: values.update(template="no place"), "no place"),
    (lambda values: values.update(labels="abc"), "has labels 'abc'"),
    (lambda values: values.update(labels=["a", "a", "b"]), "each another"),
    (lambda values: values.update(labels=[[1], [2], [3]]), "all text or all numbers"),
    (lambda values: values.update(labels=["a", 1, 2]), "all text or all numbers"),
    (lambda values: values.update(temperature=float("inf")), "temperature inf"),
    (lambda values: values.update(calibration={"a": 1}), "does not hold a classifier"),
    (lambda values: values.update(calibration="abc"), "does not hold a classifier"),
    (lambda values: values.update(report=3), "does not hold a classifier"),
    (lambda values: values.update(report={"accuracy": 1}), "does not hold a classifier"),
    (lambda values: values.update(shots="abc"), "does not say how"),
    (lambda values: values.update(descriptions=[None, None, None]), "not text"),
]


@pytest.mark.parametrize(("edit", "text"), FORGED)
def test_a_forged_folder_is_refused_in_one_line(saved: Path, tmp_path: Path, edit: Any, text: str) -> None:
    from dassl_lite.classifier.folder import _digest

    shutil.copytree(saved, tmp_path / "copy")
    values = json.loads((tmp_path / "copy" / "config.json").read_text())
    edit(values)
    values["digest"] = _digest(values, (tmp_path / "copy" / "model.safetensors").read_bytes())
    (tmp_path / "copy" / "config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=text) as caught:
        FewShotClassifier.load(tmp_path / "copy")
    assert "\n" not in str(caught.value)


def test_a_head_with_nan_is_refused(saved: Path, tmp_path: Path) -> None:
    from dassl_lite.classifier.folder import _digest

    shutil.copytree(saved, tmp_path / "copy")
    tensors = load_file(tmp_path / "copy" / "model.safetensors")
    save_file({name: values * float("nan") for name, values in tensors.items()}, tmp_path / "copy/model.safetensors")
    values = json.loads((tmp_path / "copy" / "config.json").read_text())
    values["digest"] = _digest(values, (tmp_path / "copy" / "model.safetensors").read_bytes())
    (tmp_path / "copy" / "config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"has NaN among its weights \(prompt_learner/"):
        FewShotClassifier.load(tmp_path / "copy")


@pytest.mark.slow
def test_the_model_card_counts_the_images_of_the_last_fit_even_after_a_copy(
    saved: Path, unseen: ImageSet, tmp_path: Path
) -> None:
    clf = FewShotClassifier.load(saved).set_params(method="ZeroshotCLIP", shots=1, epochs=None, options=None)
    clf.fit(unseen.paths, unseen.labels)
    copy.deepcopy(clf).save(tmp_path / "new")
    assert json.loads((tmp_path / "new" / "config.json").read_text())["shots"] == [1, 1, 1]


def test_a_folder_with_other_content_is_not_overwritten(fitted: Any, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(UserError, match="choose another folder"):
        fitted.save(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        fitted.save(tmp_path / "file" / "below")


def test_push_to_hub_uploads_the_folder(fitted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    sent: dict[str, Any] = {}

    def upload(self: Any, *, repo_id: str, folder_path: Path, **options: Any) -> str:
        sent.update({path.name: path.stat().st_size for path in Path(folder_path).iterdir()}, repo=repo_id)
        return "https://example.org/commit"

    made = type("Made", (), {"repo_id": "org/shapes"})
    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", lambda self, repo_id, **options: made)
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload)
    assert fitted.push_to_hub("org/shapes") == "https://example.org/commit"
    assert sent.pop("repo") == "org/shapes"
    assert sorted(sent) == ["README.md", "config.json", "model.safetensors"]


def test_an_unreachable_repository_is_reported_in_one_line() -> None:
    with pytest.raises(UserError, match="'org/no-such' is not a folder") as caught:
        FewShotClassifier.from_pretrained("org/no-such", local_files_only=True)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_run_of_train_can_be_loaded_as_a_classifier(photos: ImageSet, unseen: ImageSet, tmp_path: Path) -> None:
    for method in ("TaskRes", "ZeroshotCLIP"):
        run, options = tmp_path / method, ["DATASET.FEATURES.VIEWS", "2", "OPTIM.MAX_EPOCH", "3"]
        argv = ["--trainer", method, "--data", str(photos.folder), "--output-dir", str(run)]
        assert run_tool(train.main, [*argv, *options, "DATALOADER.NUM_WORKERS", "0"]) == 0
        clf = FewShotClassifier(method=method, **QUICK).fit(photos.folder)
        loaded = FewShotClassifier.load(run)
        np.testing.assert_allclose(loaded.predict_proba(unseen.paths), clf.predict_proba(unseen.paths), rtol=1e-5)
    with pytest.raises(UserError, match="holds neither a classifier nor a run"):
        FewShotClassifier.load(unseen.folder)


@pytest.mark.slow
def test_a_classifier_fitted_on_a_feature_file_predicts_images(
    photos: ImageSet, unseen: ImageSet, tmp_path: Path
) -> None:
    file = tmp_path / "features.npz"
    argv = ["--data", str(photos.folder), "--output", str(file), "--views", "2", "DATALOADER.NUM_WORKERS", "0"]
    assert run_tool(extract.main, argv) == 0
    clf = FewShotClassifier(**TASKRES).fit(file)
    assert clf.score(file) == pytest.approx(clf.report_["accuracy"] / 100)
    features = clf.predict_proba(FewShotClassifier(classes=["x"]).transform(unseen.paths))
    np.testing.assert_allclose(clf.predict_proba(unseen.paths), features, rtol=1e-4)
    assert clf.calibrate().calibration_.chosen_on == "validation images of the fit"  # even after predicting images
    loaded = FewShotClassifier.load(clf.save(tmp_path / "clf") and tmp_path / "clf")
    np.testing.assert_allclose(loaded.decision_function(unseen.paths), clf.decision_function(unseen.paths), rtol=1e-4)


def test_a_prediction_has_plain_types(fitted: Any, unseen: ImageSet) -> None:
    found = next(fitted.stream(unseen.paths))
    assert isinstance(found, Prediction)
    assert type(found.labels[0]) is str
    assert type(found.probabilities[0]) is float
