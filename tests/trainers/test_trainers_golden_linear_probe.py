"""LinearProbe's logistic regression against CoOp's script, printed line by printed line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from dassl_lite.engine.methods.feature_source import FeatureSet
from dassl_lite.models import logistic_regression as logistic
from dassl_lite.trainers import linear_probe

RULE = json.loads((Path(__file__).parents[1] / "golden" / "linear_probe.json").read_text())
ARGUMENTS = dict(zip(RULE["args"][::2], RULE["args"][1::2], strict=True))
SHOTS, SEEDS, STEPS = (1, 2, 4, 8, 16), range(1, int(ARGUMENTS["--num_run"]) + 1), int(ARGUMENTS["--num_step"])


@pytest.fixture(scope="module")
def data(golden):
    """split -> (features in float64, labels) of the golden run."""
    prototypes = golden.tiny_clip.array(RULE["seed"], RULE["n_cls"], RULE["dim"])

    def split(part, name):
        labels = np.arange(RULE["n_cls"]).repeat(RULE["n"][name])
        noise = golden.tiny_clip.array(RULE["seed"] + part, len(labels), RULE["dim"], scale=2.0)
        return (prototypes[labels] + noise).astype(np.float64), labels

    return {name: split(part, name) for part, name in enumerate(("train", "val", "test"), 1)}


def draw(data, name, shots):
    """The script's own draw, from numpy's global stream."""
    features, labels = data[name]
    chosen = [np.random.choice(np.where(labels == label)[0], shots, replace=False) for label in np.unique(labels)]
    return features[np.concatenate(chosen)], labels[np.concatenate(chosen)]


def expected_lines(golden, shots, seed):
    """What the script printed for one run: accuracies of the first sweep, then four lines per round."""
    lines = [line for line in golden.json("linear_probe")["stdout"] if line and "Test acc stat" not in line]
    starts = [i for i, line in enumerate(lines) if line.startswith("-- Seed")]
    first = starts[SHOTS.index(shots) * len(SEEDS) + SEEDS.index(seed)] + 1
    return lines[first : first + 1 + 4 * STEPS]


def numbers(line):
    """The numbers in a line: a power of ten may differ in its last bit between two versions of NumPy."""
    return [float(number) for number in re.findall(r"(?<![\w.])\d[\d.]*(?:e-?\d+)?", line)]


def words(line):
    return re.sub(r"(?<![\w.])\d[\d.]*(?:e-?\d+)?", "<n>", line)


@pytest.mark.slow_after(3)
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("shots", SHOTS)
def test_c_sweep_prints_what_the_reference_printed(golden, data, shots, seed):
    np.random.seed(seed)
    train, val = logistic.Samples(*draw(data, "train", shots)), logistic.Samples(*draw(data, "val", min(shots, 4)))
    test_features, test_labels = data["test"]
    sweep = logistic.sweep_c(train, val, STEPS)
    found = [f"[{', '.join(f'np.float64({float(accuracy)})' for accuracy in sweep.first)}]"]  # as NumPy 2 prints it
    for number, step in enumerate(sweep.rounds):
        weight, bias = logistic.weights_of(logistic.fit(train, step.c), RULE["n_cls"])
        accuracy = ((test_features @ weight.T + bias).argmax(1) == test_labels).mean()
        found += [
            f"{ARGUMENTS['--dataset']}, {shots} Shot, Round {number}: {step.left}/{step.right}",
            f"Val accuracy (Left): {100 * step.left_accuracy:.2f}",
            f"Val accuracy (Right): {100 * step.right_accuracy:.2f}",
            f"Test Accuracy: {100 * accuracy:.2f}",
        ]
    expected = expected_lines(golden, shots, seed)
    assert [words(line) for line in found] == [words(line) for line in expected]
    for line, reference in zip(found, expected, strict=True):
        assert numbers(line) == pytest.approx(numbers(reference), rel=1e-12), line


@pytest.mark.slow
def test_the_trainer_takes_the_sweeps_classifier(golden, data, golden_trainer, monkeypatch):
    np.random.seed(SEEDS[-1])
    sets = {}
    for name in ("train", "val"):
        features, labels = draw(data, name, 4)
        sets[name] = FeatureSet(torch.from_numpy(features)[None], torch.from_numpy(labels))
    monkeypatch.setattr(linear_probe.LinearProbe, "training_set", lambda trainer, augmented: sets["train"])
    monkeypatch.setattr(linear_probe.LinearProbe, "selection_set", lambda trainer: sets["val"])
    options = ["TRAINER.LinearProbe.FIT", "logistic_regression"]
    options += ["TRAINER.LinearProbe.C_BY", "accuracy", "TRAINER.LinearProbe.C_STEPS", str(STEPS)]
    trainer = golden_trainer("LinearProbe", "vit0", "OxfordPets", *options)
    trainer.head = linear_probe.LinearLayer(RULE["dim"], RULE["n_cls"])
    trainer.fit()
    test_features, test_labels = (torch.from_numpy(array) for array in data["test"])
    accuracy = (trainer.model_inference(test_features.float()).argmax(-1) == test_labels).double().mean().item()
    assert f"Test Accuracy: {100 * accuracy:.2f}" == expected_lines(golden, 4, SEEDS[-1])[-1]
