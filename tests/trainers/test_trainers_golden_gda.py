"""GDA against the numbers that its authors' code printed; see tests/golden2/README.md."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dassl_lite.models import gaussian_discriminant as gaussian

FORWARD, STEPS = 1e-5, 1e-4
FEW_SHOT = ["many", "one", "oneaug"]


def agrees(trainer, arrays, expected, case, error):
    """The discriminant, alpha and the logits of the validation set."""
    head, found = trainer.head, trainer.training_set(augmented=True)
    rows, labels = F.normalize(found.views, dim=-1).flatten(0, 1), found.labels.repeat(len(found.views))
    per_class = trainer.method_cfg.COVARIANCE == "per_class"
    fitted = gaussian.fit(rows, labels, head.text_features, per_class=per_class)
    assert error(fitted.means, arrays[f"{case}.mus"]) < FORWARD
    assert error(fitted.precision, arrays[f"{case}.cov_inv"]) < FORWARD
    assert error(head.weight.t(), arrays[f"{case}.W"]) < FORWARD
    assert error(head.bias, arrays[f"{case}.b"]) < FORWARD
    search = json.loads((Path(trainer.output_dir) / "gda" / "search.json").read_text())
    assert search["by"] == "val"
    assert search["alphas"] == expected.get("alphas", search["alphas"])
    assert search["accuracies"] == pytest.approx(expected["val_acc"])
    assert search["alpha"] == expected["best_alpha"]
    val = trainer.selection_set().features
    for number, alpha in enumerate(search["alphas"]):
        head.alpha.fill_(alpha)
        assert error(trainer.model_inference(val), arrays[f"{case}.val_logits.{number}"]) < STEPS
    head.alpha.fill_(expected["best_alpha"])


@pytest.mark.parametrize("case", FEW_SHOT)
def test_gda_equals_its_authors(golden2, on_features, error, case):
    arrays, expected = golden2.npz("gda"), golden2.json("gda")["cases"][case]
    trainer = on_features("GDA", "gda", case, "DATASET.NUM_SHOTS", "-1")
    trainer.train()
    agrees(trainer, arrays, expected, case, error)
    test = torch.from_numpy(np.asarray(arrays[f"{case}.in.test"]))
    assert error(trainer.model_inference(test), arrays[f"{case}.test_logits"]) < STEPS
    assert trainer.results["test"]["accuracy"] == pytest.approx(expected["test_acc"])


def test_gda_goes_from_base_to_new_classes_as_its_authors(golden2, on_features, error):
    arrays, expected = golden2.npz("gda"), golden2.json("gda")["cases"]["b2n"]
    base = on_features("GDA", "gda", "b2n", "DATASET.NUM_SHOTS", "-1", "TRAINER.GDA.COVARIANCE", "per_class")
    base.train()
    agrees(base, arrays, expected, "b2n", error)
    test = torch.from_numpy(np.asarray(arrays["b2n.in.test"]))
    assert error(base.model_inference(test), arrays["b2n.base_logits"]) < STEPS
    assert base.results["test"]["accuracy"] == pytest.approx(expected["base_acc"])

    new = on_features("GDA", "gda", "b2n.new", "DATASET.NUM_SHOTS", "-1", train="none", output="new")
    new.load_model(base.output_dir)
    fitted = gaussian.fit_names(new.zero_shot_weights(), base.head.rows)
    assert error(fitted.means, arrays["b2n.new.mu"]) < FORWARD
    assert error(fitted.precision, arrays["b2n.new.cov_inv"]) < FORWARD
    assert error(new.head.weight.t(), arrays["b2n.new.W_new"]) < FORWARD
    assert error(new.head.bias, arrays["b2n.new.b_new"]) < FORWARD
    test = torch.from_numpy(np.asarray(arrays["b2n.new.in.test"]))
    assert error(new.model_inference(test), arrays["b2n.new_logits"]) < STEPS
    assert new.test() == pytest.approx(expected["new_acc"])
