"""IVLP, VPT, MaPLe and PromptSRC against the numbers that their authors' code printed; see tests/golden2/README.md."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dassl_lite.models.prompts import fill_templates
from dassl_lite.trainers.promptsrc import epoch_weights

FOLDER = Path(__file__).parents[1] / "golden2"
FILES = {name: json.loads((FOLDER / f"{name}.json").read_text()) for name in ("ivlp", "maple", "promptsrc")}
CASES = [
    (file, name)
    for file, content in FILES.items()
    for name, case in content["cases"].items()
    if "trainable" in case and "gpa" not in case  # the others have a known defect alone
]
GPA = [name for name, case in FILES["promptsrc"]["cases"].items() if "gpa" in case]
FORWARD, GRADIENT, STEPS, LOSS = 1e-5, 1e-4, 1e-3, 1e-4
# The authors' names of learned tensors, and ours.
NAMES = (
    (r"prompt_learner\.ctx", lambda: "ctx"),
    (r"image_encoder\.VPT", lambda: "vision.tokens.0"),
    (r"image_encoder\.transformer\.resblocks\.(\d+)\.VPT_shallow", lambda i: f"vision.tokens.{i}"),
    (r"text_encoder\.transformer\.resblocks\.(\d+)\.VPT_shallow", lambda i: f"deep.{int(i) - 1}"),
    (r"prompt_learner\.proj\.(\w+)", lambda which: f"coupled.projections.0.{which}"),
    (r"prompt_learner\.compound_prompts_text\.(\d+)", lambda i: f"deep.{i}"),
    (
        r"prompt_learner\.compound_prompt_projections\.(\d+)\.(\w+)",
        lambda i, which: f"coupled.projections.{int(i) + 1}.{which}",
    ),
)


def ours(name: str) -> str:
    return next(to(*found.groups()) for pattern, to in NAMES if (found := re.fullmatch(pattern, name)))


def build(prompts_trainer: Any, file: str, name: str, *more: str, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
    """The trainer of a case, which starts from the authors' values."""
    case, arrays = FILES[file]["cases"][name], np.load(FOLDER / f"{file}.npz")
    if file == "maple":
        method, node = "MaPLe", {"N_CTX": case["n"], "PROMPT_DEPTH": case["j"], "CTX_INIT": case["init"]}
    elif "nt" not in case:
        method, node = "VPT", {"N_CTX_VISION": case["nv"], "PROMPT_DEPTH_VISION": case["dv"]}
    else:
        method, node = {"ivlp": "IVLP", "promptsrc": "PromptSRC"}[file], {"CTX_INIT": case["init"]}
        node |= {"N_CTX_TEXT": case["nt"], "PROMPT_DEPTH_TEXT": case["dt"]}
        node |= {"N_CTX_VISION": case["nv"], "PROMPT_DEPTH_VISION": case["dv"]}
        if "wt" in case:
            node |= {"TEXT_LOSS_WEIGHT": float(case["wt"]), "IMAGE_LOSS_WEIGHT": float(case["wi"])}
    options = [str(part) for key, value in node.items() for part in (f"TRAINER.{method.upper()}.{key}", value)]
    lr = FILES[file]["lr_vpt" if method == "VPT" else "lr"]
    trainer = prompts_trainer(method, case["model"], *options, "OPTIM.LR", str(lr), *more, **kwargs)
    learned, stream = dict(trainer.head.named_parameters()), np.random.RandomState(case["param_seed"])
    with torch.no_grad():
        for theirs, shape, scale in case["param_order"]:
            learned[ours(theirs)].copy_(torch.from_numpy((scale * stream.randn(*shape)).astype(np.float32)))
    assert all(learned[ours(key.partition(".init.")[2])].shape == arrays[key].shape for key in starts(arrays, name))
    return trainer, case


def starts(arrays: Any, name: str) -> list[str]:
    return [key for key in arrays.files if key.startswith(f"{name}.init.")]


def evaluate(trainer: Any, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Image features and logits."""
    trainer.set_model_mode("eval")
    with torch.no_grad():
        features = trainer.encode_image(images)
        return features, trainer.model_inference(features)


def require_their_tokens(trainer: Any, expected: Any) -> None:
    if not hasattr(trainer.head, "layout"):
        texts = fill_templates(trainer.classnames, trainer.templates())
        assert np.array_equal(trainer.clip.tokenize(texts).numpy(), expected)
        return
    layout = trainer.head.layout
    behind = expected[:, 1 + layout.n_ctx :]
    assert np.array_equal(layout.behind.numpy(), behind[:, : layout.behind.shape[1]])
    assert not behind[:, layout.behind.shape[1] :].any()  # what was cut off is padding
    assert list(layout.lengths) == ((expected != 0).sum(axis=1) - 1 - layout.n_ctx).tolist()


@pytest.mark.slow
@pytest.mark.parametrize(("file", "name"), CASES)
def test_a_method_equals_its_authors(golden2, prompts_trainer, prompts_inputs, error, file, name):
    arrays = golden2.npz(file)
    trainer, case = build(prompts_trainer, file, name)
    head, model, learned = trainer.head, case["model"], dict(trainer.head.named_parameters())
    assert {ours(theirs) for theirs in case["trainable"]} == set(learned)
    assert sum(tensor.numel() for tensor in learned.values()) == case["n_trainable"]
    for key in starts(arrays, name):
        assert error(learned[ours(key.partition(".init.")[2])], arrays[key]) < FORWARD, key
    require_their_tokens(trainer, arrays[f"{name}.tokenized"])
    features, logits = evaluate(trainer, prompts_inputs.images(model))
    assert error(features, arrays[f"{name}.image_features"]) < FORWARD
    assert error(logits, arrays[f"{name}.logits"]) < FORWARD
    text = torch.nn.functional.normalize(head.class_features(), dim=-1)
    theirs = arrays[f"{name}.text_features"]  # not normalised, but VPT keeps them at length 1
    found = text if not hasattr(head, "layout") else head.class_features()
    scale = 1.0 if hasattr(head, "layout") else np.linalg.norm(theirs, axis=-1, keepdims=True)
    assert error(found.detach().numpy() * scale, theirs) < FORWARD
    if file == "promptsrc":
        batch = prompts_inputs.batch(model, 0)
        taught = trainer.teacher_image(batch)
        assert error(trainer.text_rows().means(), arrays[f"{name}.teacher_text"]) < FORWARD
        assert error(taught, arrays[f"{name}.teacher_image"]) < FORWARD
        assert error(head.scale * taught @ trainer.teacher_text.t(), arrays[f"{name}.teacher_logits"]) < FORWARD
        assert error(head(trainer.parse_batch_train(batch)[0]), arrays[f"{name}.train_logits"]) < FORWARD
    trainer.num_batches = len(case["steps"]) + 1
    trainer.set_model_mode("train")
    for step, expected in enumerate(case["steps"]):
        trainer.batch_idx = step
        found = trainer.forward_backward(prompts_inputs.batch(model, step))
        assert found["loss"] == pytest.approx(expected["loss"], rel=STEPS if step else LOSS)
        if step == 0:
            assert found["loss"] == pytest.approx(case["loss"], rel=LOSS)
            for key, tensor in learned.items():
                their = next(theirs for theirs in case["trainable"] if ours(theirs) == key)
                if f"{name}.grad.{their}" in arrays:
                    assert error(tensor.grad, arrays[f"{name}.grad.{their}"]) < GRADIENT, key
                else:
                    assert tensor.grad is None, key
    for theirs in case["trainable"]:
        assert error(learned[ours(theirs)], arrays[f"{name}.final.{theirs}"]) < STEPS, theirs
    assert error(evaluate(trainer, prompts_inputs.images(model))[1], arrays[f"{name}.final_logits"]) < STEPS


class Batches:
    """The batches of the averaged runs, epoch by epoch; remembers weights and rates of each step."""

    def __init__(self, trainer: Any, count: int, inputs: Any, model: str, stop: int = 0) -> None:
        self.trainer, self.count, self.stop = trainer, count, stop
        self.batch = lambda number: inputs.batch(model, number)
        self.rates: list[float] = []
        trainer.train_loader_x = self

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Any:
        if self.stop and self.trainer.epoch == self.stop:
            raise InterruptedError
        for number in range(self.count):
            self.rates.append(self.trainer.get_current_lr())
            yield self.batch(self.trainer.epoch * self.count + number)


def averaged(prompts_trainer: Any, inputs: Any, name: str, output: Path, *more: str, stop: int = 0) -> Any:
    gpa = FILES["promptsrc"]["cases"][name]["gpa"]
    settings = {"OPTIM.MAX_EPOCH": gpa["epochs"], "OPTIM.LR_SCHEDULER": "cosine", "OPTIM.WARMUP_EPOCH": 1}
    settings |= {"TRAINER.PROMPTSRC.GPA_MEAN": float(gpa["mean"]), "TRAINER.PROMPTSRC.GPA_STD": float(gpa["std"])}
    settings |= {"TRAIN.CHECKPOINT_FREQ": 1, "OPTIM.LR": gpa["lr"], "TEST.NO_TEST": True}
    options = [str(part) for pair in settings.items() for part in pair]
    trainer, case = build(prompts_trainer, "promptsrc", name, *options, *more, output=output)
    trainer.batches = Batches(trainer, gpa["nb"], inputs, case["model"], stop)
    trainer.val_loader = trainer.test_loader = [inputs.batch(case["model"], 50)]
    return trainer


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["state_dict"]


@pytest.mark.slow
@pytest.mark.parametrize("name", GPA)
def test_prompts_are_averaged_as_by_their_authors(golden2, prompts_trainer, prompts_inputs, error, tmp_path, name):
    arrays, case = golden2.npz("promptsrc"), FILES["promptsrc"]["cases"][name]
    gpa = case["gpa"]
    assert error(epoch_weights(gpa["epochs"], gpa["mean"], gpa["std"]), arrays[f"{name}.weights"]) < FORWARD
    trainer, raw = averaged(prompts_trainer, prompts_inputs, name, tmp_path), {}
    for key in starts(arrays, name):
        assert error(dict(trainer.head.named_parameters())[ours(key.partition(".init.")[2])], arrays[key]) < FORWARD
    losses, forward_backward = [], trainer.forward_backward

    def step(batch: Any) -> Any:
        found = forward_backward(batch)
        losses.append(float(found["loss"]))
        raw.update({key: tensor.clone() for key, tensor in trainer.head.named_parameters()})
        return found

    trainer.forward_backward = step
    trainer.train()
    assert losses == pytest.approx([one["loss"] for one in case["steps"]], rel=STEPS)
    assert trainer.batches.rates == pytest.approx([one["lr"] for one in case["steps"]], rel=1e-9)
    saved = {e: weights_of(tmp_path / trainer.model_name / f"model.pth.tar-{e + 1}") for e in range(gpa["epochs"])}
    for key in [key for key in arrays.files if key.startswith(f"{name}.epoch")]:
        epoch, _, theirs = key.removeprefix(f"{name}.epoch").partition(".")
        assert error(saved[int(epoch)][ours(theirs)], arrays[key]) < STEPS, key
    for key in [key for key in arrays.files if key.startswith((f"{name}.raw.", f"{name}.final."))]:
        _, which, theirs = key.split(".", 2)
        found = raw if which == "raw" else saved[gpa["epochs"] - 1]
        assert error(found[ours(theirs)], arrays[key]) < STEPS, key
    logits = evaluate(trainer, prompts_inputs.images(case["model"]))[1]
    assert error(logits, arrays[f"{name}.final_logits"]) < STEPS


@pytest.mark.slow
def test_a_resumed_average_has_every_epoch_bit_by_bit(prompts_trainer, prompts_inputs, tmp_path):
    best = ("TEST.FINAL_MODEL", "best_val", "TEST.NO_TEST", "False")  # epochs are selected by the average so far
    whole = averaged(prompts_trainer, prompts_inputs, GPA[0], tmp_path / "whole", *best)
    whole.train()
    stopped = averaged(prompts_trainer, prompts_inputs, GPA[0], tmp_path / "again", *best, stop=2)
    with pytest.raises(InterruptedError):
        stopped.train()
    again = averaged(prompts_trainer, prompts_inputs, GPA[0], tmp_path / "again", *best)
    again.train()
    assert again.start_epoch == 2
    for name in ("model.pth.tar-4", "model-best.pth.tar"):
        one, other = (weights_of(tmp_path / run / whole.model_name / name) for run in ("whole", "again"))
        assert all(torch.equal(tensor, other[key]) for key, tensor in one.items()), name
    assert whole.total == again.total == pytest.approx(1)
