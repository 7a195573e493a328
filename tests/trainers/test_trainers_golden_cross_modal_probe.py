"""CrossModalProbe against the numbers that its authors' code printed; see tests/golden2/README.md."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_count import plain

CASES = json.loads((Path(__file__).parents[1] / "golden2" / "xm.json").read_text())["cases"]
FORWARD, GRADIENT, STEPS = 1e-5, 1e-4, 1e-3
NAMES = {
    "linear": {"weight": "head.weight"},
    "adapter": {
        "weight": "head.1.weight",
        "adapter.0.weight": "head.0.fc.0.weight",
        "adapter.2.weight": "head.0.fc.2.weight",
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_run_equals_the_authors(golden2, on_features, error, name):
    case, arrays = CASES[name], golden2.npz("xm")
    every = -(-case["iters"] // len(case["val_acc_every_10"]))  # steps between two looks at the validation set
    values = {
        "OPTIM.LR": case["lr"],
        "OPTIM.WEIGHT_DECAY": case["wd"],
        "DATALOADER.TRAIN_X.BATCH_SIZE": case["bs"],
        "TRAINER.CrossModalProbe.ITERATIONS": case["iters"],
        "TRAINER.CrossModalProbe.EVAL_EVERY": every,
        "TRAINER.CrossModalProbe.INIT": {"zeroshot": "zero_shot"}.get(case["init"], case["init"]),
        "TRAINER.CrossModalProbe.HEAD": case["head"],
        "TRAINER.CrossModalProbe.TEXT_SHOTS": case["mod"] == "cross_modal",
        "TEST.FINAL_MODEL": "best_val",
        "DATASET.NUM_SHOTS": -1,
    }
    words = [word for item in values.items() for word in map(str, item)]
    trainer = on_features("CrossModalProbe", "xm", "x", *words, method_file="default")
    head, names, val = trainer.head, NAMES[case["head"]], []
    assert error(head.zero_shot_weights, arrays[f"{name}.zero_shot_weights"]) < FORWARD
    for own, theirs in names.items():
        stored = arrays[f"{name}.init.{theirs}"]
        if own == "weight" and case["init"] == "zeroshot":
            assert error(head.weight, stored) < FORWARD
        head.get_parameter(own).data.copy_(torch.from_numpy(plain(stored)))

    fit, step, epoch, steps = trainer.fit, trainer.forward_backward, trainer.after_epoch, []

    def fitted():
        fit()
        kinds = ("image_idx", "text_idx")[: len(trainer.train_loader_x.sets)]
        rows = {kind: iter(torch.from_numpy(plain(arrays[f"{name}.{kind}"]))) for kind in kinds}
        sets = trainer.train_loader_x.sets
        order = iter(list(kinds) * (1 + len(case["val_acc_every_10"])))
        assert [size for *_, size in sets] == [arrays[f"{name}.{kind}"].shape[1] for kind in kinds]
        trainer.train_loader_x.passes = lambda count, size: rows[next(order)]

    def one_step(batch):
        features, label = trainer.parse_batch_train(batch)
        logits = head(features)
        loss = trainer.loss(logits, label)
        if not steps:
            assert error(logits, arrays[f"{name}.logits0"]) < FORWARD
            gradients = torch.autograd.grad(loss, [head.get_parameter(own) for own in names])
            for theirs, gradient in zip(names.values(), gradients, strict=True):
                assert error(gradient, arrays[f"{name}.grad0.{theirs}"]) < GRADIENT
        steps.append((loss.item(), trainer.get_current_lr()))
        return step(batch)

    def one_epoch():
        epoch()
        val.append(trainer.results["val"]["accuracy"] / 100)

    trainer.fit, trainer.forward_backward, trainer.after_epoch = fitted, one_step, one_epoch
    trainer.train()
    assert len(steps) == case["iters"] - (case["iters"] - 1) % every  # what comes after the last look is left out
    assert np.allclose(steps, case["steps"][: len(steps)], rtol=STEPS)
    assert val == pytest.approx(case["val_acc_every_10"])
    assert every * val.index(max(val)) == case["best_iter"]
    for own, theirs in names.items():  # the best state was loaded for the test
        assert error(head.get_parameter(own), arrays[f"{name}.best.{theirs}"]) < STEPS
    test = torch.from_numpy(plain(arrays["x.in.test"]))
    with torch.no_grad():
        assert error(trainer.model_inference(test), arrays[f"{name}.test_logits.head"]) < STEPS
        head.wise_ft = 0.5
        assert error(trainer.model_inference(test), arrays[f"{name}.test_logits.head_wiseft_0.5"]) < STEPS
