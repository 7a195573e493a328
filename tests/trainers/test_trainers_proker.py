"""ProKeR against scikit-learn's kernel ridge regression, and its leave-one-out against fitting to the others."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.kernel_ridge import KernelRidge

from dassl_lite.trainers.proker import solutions

NONE = ("DATASET.NUM_SHOTS", "-1", "TRAINER.ProKeR.SEARCH_BY", "none")


def parts(trainer):
    """Images X, one-hot labels and cosines of the training images, in float64."""
    shots = trainer.training_set(augmented=True)
    images = F.normalize(shots.views.mean(dim=0), dim=-1).double()
    prior = images @ trainer.zero_shot_weights().double().t()
    return images, F.one_hot(shots.labels, prior.shape[1]).double(), prior


@pytest.mark.parametrize(("case", "beta", "penalty"), [("many", 1.5, 0.2), ("oneaug", 0.7, 0.01)])
def test_the_votes_are_those_of_kernel_ridge_regression_on_the_residuals(on_features, error, case, beta, penalty):
    values = ("TRAINER.ProKeR.BETA", str(beta), "TRAINER.ProKeR.LAMBDA", str(penalty))
    trainer = on_features("ProKeR", "gda", case, *NONE, *values)
    trainer.train()
    images, labels, prior = parts(trainer)
    # |x - y|^2 = 2 - 2 x.y for features of length 1, so scikit-learn's gamma is half of beta.
    ridge = KernelRidge(alpha=penalty, kernel="rbf", gamma=beta / 2).fit(images.numpy(), (labels - prior).numpy())
    test = torch.cat([batch["feature"] for batch in trainer.test_loader])
    queries = F.normalize(test, dim=-1).double()
    votes = penalty * torch.from_numpy(ridge.predict(queries.numpy()))
    expected = trainer.head.temperature * (queries @ trainer.zero_shot_weights().double().t() + votes)
    assert error(trainer.model_inference(test), expected.numpy()) < 1e-5


@pytest.mark.slow
def test_leaving_one_out_equals_fitting_to_the_others(on_features):
    images, labels, prior = parts(on_features("ProKeR", "gda", "many", *NONE))
    for penalty, (_, left_out) in zip((0.01, 1.0), solutions(images, labels - prior, 2.0, [0.01, 1.0]), strict=True):
        for i in range(len(images)):
            others = np.arange(len(images)) != i
            ridge = KernelRidge(alpha=penalty, kernel="rbf", gamma=1.0)
            ridge.fit(images[others].numpy(), (labels - prior)[others].numpy())
            expected = penalty * ridge.predict(images[i : i + 1].numpy())[0]
            assert np.allclose(left_out[i].numpy(), expected, atol=1e-9)


@pytest.mark.parametrize("by", ["val", "leave_one_out"])
@pytest.mark.parametrize("measure", ["log_loss", "accuracy"])
def test_the_best_of_the_grid_is_kept(on_features, by, measure):
    options = ("TRAINER.ProKeR.SEARCH_BY", by, "TRAINER.ProKeR.MEASURE", measure)
    trainer = on_features("ProKeR", "gda", "many", "DATASET.NUM_SHOTS", "-1", *options)
    trainer.train()
    found = json.loads((Path(trainer.output_dir) / "proker" / "search.json").read_text())
    scores = [score for _, _, score in found["grid"]]
    best = found["grid"][scores.index(max(scores))]
    assert (found["by"], found["measure"], len(scores)) == (by, measure, 100)
    assert best[:2] == [found["beta"], found["lambda"]]
    assert len(set(scores)) > 1
    if by == "val":
        val = trainer.selection_set()
        logits = trainer.model_inference(val.features)
        accuracy = (logits.argmax(dim=1) == val.labels).double().mean().item()
        loss = F.cross_entropy(logits.double(), val.labels).item()
        assert max(scores) == pytest.approx(accuracy if measure == "accuracy" else -loss, rel=1e-5)


@pytest.mark.slow
def test_without_a_validation_set_images_are_left_out(on_features, monkeypatch):
    trainer = on_features("ProKeR", "gda", "many", "DATASET.NUM_SHOTS", "-1")
    trainer.val_loader = None
    trainer.test_loader = None  # nothing else to look at
    trainer.fit()
    found = json.loads((Path(trainer.output_dir) / "proker" / "search.json").read_text())
    assert found["by"] == "leave_one_out"
