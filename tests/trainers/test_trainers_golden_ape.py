"""APE and APE-T against the numbers that their authors' code printed; see tests/golden2/README.md."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_count import plain

from dassl_lite.trainers.ape import criterion

CASES = json.loads((Path(__file__).parents[1] / "golden2" / "ape.json").read_text())["cases"]
FORWARD, GRADIENT, STEPS = 1e-5, 1e-4, 1e-3


@pytest.fixture
def build(on_features):
    """``build("APE", "many")``: a trainer with the authors' settings of a case."""

    def make(method, case, *options):
        cfg = CASES[case]["cfg"]
        weights, channels = (
            ("w_training_free", "training_free_feat_num") if method == "APE" else ("w_training", "training_feat_num")
        )
        values = {"CHANNELS": cfg[channels], "SIMILARITY_WEIGHT": cfg[weights][0], "VARIANCE_WEIGHT": cfg[weights][1]}
        for place, name in enumerate(("BETA", "ALPHA", "GAMMA")):
            values |= {name: cfg[f"init_{name.lower()}"], f"{name}_MAX": cfg["search_scale"][place]}
            values[f"{name}_STEPS"] = cfg["search_step"][place]
        words = [word for name, value in values.items() for word in (f"TRAINER.{method}.{name}", str(value))]
        return on_features(method, "ape", case, "DATASET.NUM_SHOTS", "-1", *words, *options)

    return make


def similarity(trainer, *, with_keys):
    head, shots = trainer.head, trainer.training_set(augmented=True)
    rows, labels = head.text_features, torch.arange(len(head.text_features))
    if with_keys:
        rows, labels = torch.cat([rows, head.keys.detach()]), torch.cat([labels, shots.labels])
    return criterion(head.text_features, rows, labels, -1.0, 0.0)


def searched(trainer):
    (path,) = (Path(trainer.output_dir) / trainer.model_name).glob("search-*.json")
    return json.loads(path.read_text())


@pytest.mark.parametrize("case", CASES)
def test_ape_equals_its_authors(golden2, build, error, case):
    arrays, expected = golden2.npz("ape"), CASES[case]["free"]
    trainer = build("APE", case)
    trainer.train()
    head, key = trainer.head, f"{case}.free"
    node = trainer.method_cfg
    assert np.array_equal(head.channels.numpy(), arrays[f"{key}.indices"])
    assert error(head.keys.t(), arrays[f"{case}.cache_keys"]) < FORWARD
    test = torch.from_numpy(plain(arrays[f"{case}.in.test"]))
    zero_shot, affinity = head._similarities(test)
    assert error(zero_shot, arrays[f"{case}.zs_logits"]) < FORWARD
    assert error(affinity, arrays[f"{key}.R_fF"]) < FORWARD
    assert error(head.chosen(head.text_features).t(), arrays[f"{key}.new_clip_weights"]) < FORWARD
    assert error(head.chosen(head.keys), arrays[f"{key}.new_cache_keys"]) < FORWARD
    assert error(head.divergence[:, None], arrays[f"{key}.cache_div"]) < FORWARD
    init = head.soft_values(torch.tensor(float(node.GAMMA)))
    assert error(init, arrays[f"{key}.soft_cache_values"]) < FORWARD
    assert error(trainer.model_inference(test), arrays[f"{key}.logits"]) < FORWARD
    assert trainer.results["test"]["accuracy"] == pytest.approx(expected["test_acc"])

    found = searched(trainer)
    assert [found["beta"], found["alpha"], found["gamma"]] == pytest.approx(expected["best"])
    order = [(b, a, g) for b in found["betas"] for a in found["alphas"] for g in found["gammas"]]
    table = np.concatenate([np.array(order), np.array(found["grid"]).reshape(-1, 1)], axis=1)
    assert np.allclose(table, np.array(expected["grid"]))
    val = trainer.selection_set().features
    for number, (beta, alpha, gamma) in enumerate(order):
        if f"{key}.grid{number}.val_logits" in arrays:
            head.set_alpha_beta(alpha, beta)
            head.gamma.fill_(gamma)
            assert error(trainer.model_inference(val), arrays[f"{key}.grid{number}.val_logits"]) < FORWARD
    trainer.reset()
    assert error(trainer.model_inference(test), arrays[f"{key}.logits_init"]) < FORWARD
    assert error(similarity(trainer, with_keys=True), arrays[f"{key}.sim"]) < FORWARD


@pytest.mark.parametrize("case", CASES)
def test_ape_t_trains_as_its_authors(golden2, build, error, case):
    arrays, cfg, expected = golden2.npz("ape"), CASES[case]["cfg"], CASES[case]["T"]
    optim = {"NAME": "adamw", "LR": cfg["lr"], "ADAM_EPS": cfg["eps"], "WEIGHT_DECAY": 0.1}
    optim |= {"MAX_EPOCH": cfg["train_epoch"], "LR_SCHEDULER": "cosine", "SCHEDULE_UNIT": "batch"}
    options = [word for name, value in optim.items() for word in (f"OPTIM.{name}", str(value))]
    options += ["DATALOADER.TRAIN_X.BATCH_SIZE", "8", "DATALOADER.TRAIN_X.SAMPLER", "SequentialSampler"]
    trainer = build("APET", case, *options)
    trainer.train_loader_x._batches.drop_last = False  # theirs keeps the last, smaller batch; Dassl drops it
    trainer.sched = trainer._scheds[trainer.model_name] = trainer.build_schedule()
    head, key, step, epoch = trainer.head, f"{case}.T", trainer.forward_backward, trainer.after_epoch
    steps, states, right, val = [], [], [], trainer.selection_set()

    def one_step(batch):
        number = len(steps)
        features, label = trainer.parse_batch_train(batch)
        logits = head(features)
        loss = trainer.loss(logits, label)
        if f"{key}.step{number}.logits" in arrays:
            assert error(logits, arrays[f"{key}.step{number}.logits"]) < (STEPS if number else FORWARD)
            gradients = torch.autograd.grad(loss, (head.residual, head.value_weights))
            for name, gradient in zip(("res", "value_weights"), gradients, strict=True):
                assert error(gradient, arrays[f"{key}.step{number}.grad_{name}"]) < (STEPS if number else GRADIENT)
        steps.append((loss.item(), trainer.get_current_lr()))
        return step(batch)

    def one_epoch():
        searched_values = head.alpha.item(), head.beta.item()
        trainer.reset()
        with torch.no_grad():
            logits = trainer.model_inference(val.features)
        if (place := f"{key}.epoch{trainer.epoch}.val_logits") in arrays:
            assert error(logits, arrays[place]) < STEPS
        right.append(100 * (logits.argmax(dim=1) == val.labels).double().mean().item())
        states.append({name: value.clone() for name, value in head.state_dict().items()})
        head.set_alpha_beta(*searched_values)
        epoch()

    trainer.forward_backward, trainer.after_epoch = one_step, one_epoch
    trainer.train()
    assert np.array_equal(head.channels.numpy(), arrays[f"{key}.indices"])
    assert error(similarity(trainer, with_keys=False), arrays[f"{key}.sim"]) < FORWARD
    assert np.allclose(steps, expected["steps"], rtol=STEPS)
    assert right == pytest.approx(expected["val_acc_per_epoch"])
    assert right.index(max(right)) == expected["best_epoch"]
    head.load_state_dict(states[expected["best_epoch"]])
    assert error(head.residual, arrays[f"{key}.best.res"]) < STEPS
    assert error(head.value_weights, arrays[f"{key}.best.value_weights"]) < STEPS
    (Path(trainer.output_dir) / "ape_t" / f"search-{trainer.epoch + 1}.json").unlink()
    trainer.search()
    found = searched(trainer)
    assert [found["beta"], found["alpha"]] == pytest.approx(expected["best"])
    grid = np.array([(b, a) for b in found["betas"] for a in found["alphas"]])
    assert np.allclose(np.column_stack([grid, np.array(found["grid"]).ravel()]), np.array(expected["grid"]))
    test = torch.from_numpy(plain(arrays[f"{case}.in.test"]))
    with torch.no_grad():
        logits = trainer.model_inference(test)
    assert error(logits, arrays[f"{key}.logits"]) < STEPS
    labels = torch.from_numpy(plain(arrays[f"{case}.in.test_labels"]))
    assert 100 * (logits.argmax(dim=1) == labels).double().mean().item() == pytest.approx(expected["test_acc"])
