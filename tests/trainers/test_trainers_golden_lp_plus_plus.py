"""LP++ against the numbers that its authors' code printed; see tests/golden2/README.md."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from golden_count import plain

from dassl_lite.trainers.lp_plus_plus import Descent

CASES = json.loads((Path(__file__).parents[1] / "golden2" / "lpp.json").read_text())["cases"]
FORWARD, GRADIENT, STEPS = 1e-5, 1e-4, 1e-3


@pytest.mark.parametrize("case", CASES)
def test_lp_plus_plus_equals_its_authors(golden2, on_features, error, monkeypatch, case):
    arrays, expected = golden2.npz("lpp"), CASES[case]
    authors = ("TRAINER.LPPlusPlus.ALPHA_GRADIENT", "accumulated", "TRAINER.LPPlusPlus.EPOCHS", str(expected["epochs"]))
    trainer = on_features("LPPlusPlus", "lpp", case, "DATASET.NUM_SHOTS", "-1", *authors)
    head, val, step = trainer.head, trainer.selection_set(), Descent.step
    head.bias.copy_(torch.from_numpy(plain(arrays[f"{case}.bias0"])))

    def recorded(descent, epoch):
        if epoch == 0:
            assert descent.lr == pytest.approx(expected["lr_w"], rel=FORWARD)
            assert descent.alpha_lr == pytest.approx(expected["lr_alpha"], rel=FORWARD)
            assert head.alpha[0].item() == pytest.approx(expected["init_alpha"], rel=FORWARD)
            assert error(head.weight, arrays[f"{case}.w0"]) < FORWARD
            assert error(head.alpha[None], arrays[f"{case}.alpha0"]) < FORWARD
            assert error(head(descent.features), arrays[f"{case}.logits0"]) < FORWARD
            names = ("grad_w0", "grad_b0")
            for name, gradient in zip(names, descent.gradients(), strict=False):
                assert error(gradient, arrays[f"{case}.{name}"]) < GRADIENT
            assert error(descent.gradients()[2][None], arrays[f"{case}.grad_alpha0"]) < GRADIENT
        printed = expected["steps"][epoch]
        loss = F.cross_entropy(head(descent.features), descent.labels)
        assert loss.item() == pytest.approx(printed["loss"], rel=STEPS)
        step(descent, epoch)
        right = head(val.features).argmax(dim=1) == val.labels
        assert 100 * right.double().mean().item() == pytest.approx(printed["acc_val"])
        assert head.alpha.tolist() == pytest.approx(printed["alpha"], rel=STEPS)
        if f"{case}.e{epoch}.w" in arrays:
            assert error(head.weight, arrays[f"{case}.e{epoch}.w"]) < STEPS
            assert error(head.bias, arrays[f"{case}.e{epoch}.bias"]) < STEPS
            assert error(head.alpha[None], arrays[f"{case}.e{epoch}.alpha"]) < STEPS
            assert error(head(val.features), arrays[f"{case}.e{epoch}.val_logits"]) < STEPS
            assert error(descent.alpha_gradient[None], arrays[f"{case}.e{epoch}.alpha_grad_accumulated"]) < STEPS

    monkeypatch.setattr(Descent, "step", recorded)
    trainer.train()
    test = torch.from_numpy(plain(arrays[f"{case}.in.test"]))
    assert error(trainer.model_inference(test), arrays[f"{case}.test_logits"]) < STEPS
    assert trainer.results["test"]["accuracy"] == pytest.approx(expected["acc_test"])


def test_gradients_are_those_of_the_cross_entropy(on_features):
    trainer = on_features("LPPlusPlus", "lpp", "many", "DATASET.NUM_SHOTS", "-1")
    shots, head = trainer.training_set(augmented=True), trainer.head
    with torch.no_grad():
        descent = Descent(head, F.normalize(shots.features, dim=-1), shots.labels, accumulate=False)
    weights = [head.weight, head.bias, head.alpha]
    for tensor in weights:
        tensor.requires_grad_()
    automatic = torch.autograd.grad(F.cross_entropy(head(shots.features), shots.labels), weights)
    for found, wanted in zip(descent.gradients(), automatic, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-4)


def test_alpha_takes_the_gradient_of_the_epoch_alone(on_features):
    trainer = on_features("LPPlusPlus", "lpp", "many", "DATASET.NUM_SHOTS", "-1")
    shots = trainer.training_set(augmented=True)
    with torch.no_grad():
        descent = Descent(trainer.head, F.normalize(shots.features, dim=-1), shots.labels, accumulate=False)
        for epoch in range(10):
            expected = trainer.head.alpha - descent.alpha_lr * descent.gradients()[2]
            descent.step(epoch)
    assert torch.equal(trainer.head.alpha, expected)


@pytest.mark.slow
def test_the_last_epoch_counts_without_a_validation_set(on_features):
    options = ("DATASET.NUM_SHOTS", "-1", "TRAINER.LPPlusPlus.EPOCHS", "30")
    seen = []
    for has_val in (True, False):
        trainer = on_features("LPPlusPlus", "lpp", "many", *options)
        if not has_val:
            trainer.val_loader = None
        trainer.fit()
        seen.append(trainer.head.weight.clone())
    assert not torch.equal(*seen)
