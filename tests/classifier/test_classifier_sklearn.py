"""FewShotClassifier fulfils scikit-learn's contract and changes nothing else in the process."""

from __future__ import annotations

import copy
import logging
import pickle
import random
import subprocess
import sys
import threading
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone, is_classifier
from sklearn.calibration import CalibratedClassifierCV
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_predict, cross_val_score
from sklearn.pipeline import Pipeline
from sklearn.utils import estimator_checks
from toy_images import QUICK, SHAPES, TASKRES, ImageSet

import dassl_lite
from dassl_lite import FewShotClassifier
from dassl_lite.data.feature_cache import store


def test_parameters_are_stored_as_given() -> None:
    options = {"RESIDUAL_SCALE": 0.5}
    clf = FewShotClassifier(method="no such", options=options, shots="x")
    assert clf.get_params()["options"] is options
    assert clf.set_params(shots=3).shots == 3
    assert clone(clf).get_params() == clf.get_params()
    assert is_classifier(clf)
    with pytest.raises(ValueError, match="Invalid parameter"):
        clf.set_params(shot=3)


@pytest.mark.slow
def test_set_params_takes_effect_on_zero_shot_clip(unseen: ImageSet) -> None:
    clf = FewShotClassifier(classes=["circle", "square"])
    assert clf.classes_.tolist() == ["circle", "square"]  # before any prediction
    clf.calibrate(unseen.paths[:8], unseen.labels[:8])
    expected = FewShotClassifier(classes=["square", "triangle", "circle"]).predict_proba(unseen.paths)
    for twin in (copy.deepcopy(clf), pickle.loads(pickle.dumps(clf)), clf):  # noqa: S301
        twin.set_params(classes=["square", "triangle", "circle"])
        assert twin.classes_.tolist() == ["square", "triangle", "circle"]
        np.testing.assert_array_equal(twin.predict_proba(unseen.paths), expected)
        assert twin.temperature_ == 1.0
    clf.classes.append("star")  # in place
    assert clf.predict_proba(unseen.paths[:1]).shape == (1, 4)
    clf.add_class("heart").set_params(template="a drawing of a {}.")
    assert clf.classes_.tolist() == ["square", "triangle", "circle", "star", "heart"]
    drawing = FewShotClassifier(classes=clf.classes_.tolist(), template="a drawing of a {}.")
    np.testing.assert_array_equal(clf.predict_proba(unseen.paths), drawing.predict_proba(unseen.paths))
    with pytest.raises(NotFittedError):
        clf.set_params(classes=None).predict(unseen.paths)
    assert not hasattr(clf, "classes_")


@pytest.mark.slow
def test_set_params_does_not_change_a_fitted_classifier(photos: ImageSet, unseen: ImageSet, tmp_path: Any) -> None:
    first = [n for n, label in enumerate(photos.labels) if label != "triangle"]
    clf = FewShotClassifier(method="GDA", **QUICK, seed=3)
    clf.fit([photos.paths[n] for n in first], [photos.labels[n] for n in first])
    twin = copy.copy(clf)
    clf.set_params(method="TaskRes", seed=4, classes=["x"], template="an {}.", options=None)
    expected = twin.predict_proba(unseen.paths)
    np.testing.assert_array_equal(clf.predict_proba(unseen.paths), expected)
    again = FewShotClassifier.load(clf.save(tmp_path / "clf") and tmp_path / "clf")
    assert {name: again.get_params()[name] for name in ("method", "seed", "classes", "template", "options")} == {
        **{"method": "GDA", "seed": 3, "classes": None, "template": None},
        "options": QUICK["options"],
    }
    new = [path for path, label in zip(photos.paths, photos.labels, strict=True) if label == "triangle"]
    clf.set_params(classes=None).add_class("triangle", new)
    np.testing.assert_array_equal(
        clf.decision_function(unseen.paths), twin.add_class("triangle", new).decision_function(unseen.paths)
    )


CHECKS = [  # checks that need no numeric matrix
    "check_no_attributes_set_in_init",
    "check_parameters_default_constructible",
    "check_estimator_cloneable",
    "check_estimator_repr",
    "check_estimator_tags_renamed",
    "check_valid_tag_types",
    "check_get_params_invariance",
    "check_set_params",
]


@pytest.mark.parametrize("check", CHECKS)
def test_the_checks_of_scikit_learn_that_take_any_input_pass(check: str) -> None:
    if not hasattr(estimator_checks, check):
        pytest.skip(f"this scikit-learn has no {check}")
    getattr(estimator_checks, check)("FewShotClassifier", FewShotClassifier())


@pytest.mark.slow
def test_cross_validation_encodes_each_image_once(photos: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[int] = []
    original = store.extract

    def counting(dataset: Any, *arguments: Any, **options: Any) -> Any:
        encoded.append(len(dataset))
        return original(dataset, *arguments, **options)

    monkeypatch.setattr(store, "extract", counting)
    clf = FewShotClassifier(**TASKRES, seed=11)
    clf.options = {**QUICK["options"], "DATASET.FEATURES.SEED": 99, "DATASET.FEATURES.VIEWS": 1}
    scores = cross_val_score(clf, photos.paths, photos.labels, cv=3)
    assert scores.shape == (3,)
    assert sum(encoded) <= 2 * len(photos.paths)  # one training view and one test view each
    encoded.clear()
    assert cross_val_score(clf, photos.paths, photos.labels, cv=3).tolist() == scores.tolist()
    assert sum(encoded) == 0


@pytest.mark.slow
def test_a_grid_search_selects_methods_and_shots(photos: ImageSet) -> None:
    grid = {"method": ["TaskRes", "ZeroshotCLIP"], "shots": np.array([1, 4])}
    search = GridSearchCV(FewShotClassifier(**TASKRES), grid, cv=2).fit(photos.paths, photos.labels)
    assert len(search.cv_results_["mean_test_score"]) == 4
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert search.predict(photos.paths[:2]).shape == (2,)


@pytest.mark.slow
@pytest.mark.parametrize("classes", [2, 3])
def test_scikit_learn_calibration_uses_the_logits(photos: ImageSet, classes: int) -> None:
    paths, labels = photos.paths[: 10 * classes], photos.labels[: 10 * classes]
    found = CalibratedClassifierCV(FewShotClassifier(**TASKRES), cv=2).fit(paths, labels).predict_proba(paths)
    assert found.shape == (10 * classes, classes)
    np.testing.assert_allclose(found.sum(axis=1), 1)


@pytest.mark.slow
def test_it_is_a_classifier_or_a_transformer_in_a_pipeline(photos: ImageSet) -> None:
    last = Pipeline([("clf", FewShotClassifier(**TASKRES))]).fit(photos.paths, photos.labels)
    assert last.score(photos.paths, photos.labels) > 0.4
    first = Pipeline([("clip", FewShotClassifier(method="ZeroshotCLIP")), ("lr", LogisticRegression(max_iter=200))])
    assert first.fit(photos.paths, photos.labels).score(photos.paths, photos.labels) > 0.6
    assert set(cross_val_predict(first, photos.paths, photos.labels, cv=2)) <= set(photos.labels)
    features = first["clip"].set_output(transform="pandas").transform(photos.paths[:2])
    assert list(features.columns) == [f"fewshotclassifier{column}" for column in range(features.shape[1])]


@pytest.mark.slow
def test_copies_and_pickles_predict_the_same(fitted: Any, unseen: ImageSet) -> None:
    expected = fitted.predict_proba(unseen.paths)
    for twin in (copy.deepcopy(fitted), pickle.loads(pickle.dumps(fitted))):  # noqa: S301
        np.testing.assert_array_equal(twin.predict_proba(unseen.paths), expected)


# ---- no global side effects -----------------------------------------------------------------------------------------


def state_of_the_process() -> tuple[Any, ...]:
    root, logger = logging.getLogger(), logging.getLogger("dassl_lite")
    return (
        random.getstate(),
        np.random.get_state()[1].tolist(),  # type: ignore[union-attr,index]
        np.random.get_state()[2],  # type: ignore[index]
        torch.get_rng_state().tolist(),
        torch.get_num_threads(),
        torch.get_float32_matmul_precision(),
        torch.backends.cudnn.allow_tf32,
        torch.is_grad_enabled(),
        [*root.handlers],
        root.level,
        [*logger.handlers],
        logger.level,
        logger.propagate,
    )


@pytest.mark.slow
def test_nothing_global_changes_and_nothing_is_printed(
    photos: ImageSet, unseen: ImageSet, tmp_path: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    torch.set_num_threads(2)
    torch.set_float32_matmul_precision("medium")
    try:
        before = state_of_the_process()
        clf = FewShotClassifier(**TASKRES).fit(photos.folder)
        clf.predict(unseen.paths)
        clf.calibrate()
        clf.evaluate(unseen.folder)
        list(clf.stream(unseen.paths))
        clf.save(tmp_path / "saved")
        FewShotClassifier.load(tmp_path / "saved").add_class("star")
        with pytest.raises(ValueError, match="no-such"):
            FewShotClassifier(backbone="no-such").fit(photos.folder)
        assert state_of_the_process() == before
    finally:
        torch.set_num_threads(1)
        torch.set_float32_matmul_precision("highest")
    assert capfd.readouterr() == ("", "")
    assert any("knows drawn shapes only" in message for message in clf.messages_)


@pytest.mark.slow
def test_classifiers_in_threads_give_the_same_results_as_alone(photos: ImageSet, unseen: ImageSet) -> None:
    def work(seed: int, found: dict[int, Any]) -> None:
        clf = FewShotClassifier(**TASKRES, shots=2, seed=seed).fit(photos.paths, photos.labels)
        found[seed] = [clf.predict_proba(unseen.paths) for _ in range(3)][-1]

    alone: dict[int, Any] = {}
    together: dict[int, Any] = {}
    for seed in (1, 2, 3):
        work(seed, alone)
    threads = [threading.Thread(target=work, args=(seed, together)) for seed in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in alone:
        np.testing.assert_array_equal(together[seed], alone[seed])


@pytest.mark.slow
def test_no_class_is_lost_when_threads_add_classes(unseen: ImageSet) -> None:
    clf = FewShotClassifier(classes=list(SHAPES))
    stream = clf.stream([*unseen.paths, *unseen.paths], top_k=3)
    first = next(stream)
    threads = [threading.Thread(target=clf.add_class, args=(name,)) for name in ("star", "heart", "moon", "arrow")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(clf.classes_) == sorted([*SHAPES, "star", "heart", "moon", "arrow"])
    assert clf.predict_proba(unseen.paths).shape == (12, 7)
    for prediction in [first, *stream]:  # with the classes at the start of the stream
        assert sorted(prediction.labels) == sorted(SHAPES)


@pytest.mark.slow
def test_a_stream_does_not_change_the_random_state_of_its_consumer(fitted: Any, unseen: ImageSet) -> None:
    random.seed(5)
    torch.manual_seed(5)
    expected = [(random.random(), torch.rand(()).item()) for _ in unseen.paths]
    random.seed(5)
    torch.manual_seed(5)
    images = (path for path in unseen.paths)
    assert [(random.random(), torch.rand(()).item()) for _ in fitted.stream(images)] == expected


def test_importing_the_package_is_light_until_the_class_is_used() -> None:
    code = "import sys, dassl_lite; print({'torch', 'sklearn', 'numpy', 'huggingface_hub'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
    with pytest.raises(AttributeError, match="FewShotClassifer"):
        dassl_lite.FewShotClassifer  # noqa: B018
