"""The reference's own runs from the seed alone: step by step, file by file, line by line of their logs (golden/e2e_*).

Nothing recorded is fed in. The reference builds OpenAI's CLIP, which draws all its weights before the checkpoint's
replace them; ours draws none. So torch's generator is moved on by as many numbers once the trainer is built; from there
on the batches, their augmentation and CoOp's first context are drawn as the reference drew them.

What differs, on purpose:

- draws are JSON: the file's name in one line;
- lines between the table and the evaluator: the backbone's file stands for its key, and what is trained is said in
  other words;
- one line more when a model is loaded, on its classes, which files now name;
- tools/train.py adds results.json and closes with a table; here the trainer alone is run.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden_pets import draw_pets
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dassl_lite.engine.build import make_config
from dassl_lite.engine.commands import run
from dassl_lite.utils import load_checkpoint, setup_logger

NODES = {"taskres": ("TaskRes", "text_feature_residuals"), "coop": ("CoOp", "ctx")}
RUNS = ("last_step", "best_val", "eval_only", "augmented")  # in the reference's order: they share a few-shot draw
LOGGED = RUNS[:3]  # of the fourth only steps and tests were recorded
# Our lines that the reference has not, and its that we have not (see above).
OURS = ("matched ", "Trainable: ")
THEIRS = ("Building custom CLIP", ">> ", "Turning off gradients", "prompt_learner.")


@dataclass
class Replay:
    """What a run of ours has left, in the golden file's terms."""

    root: Path
    output: Path
    trainer: Any
    initial: np.ndarray  # what is learned, before the first step
    steps: list[dict[str, Any]] = field(default_factory=list)
    tests: list[list[Any]] = field(default_factory=list)  # split, accuracy, steps before it


def numbers_drawn_by_building() -> int:
    """32-bit numbers that OpenAI's CLIP draws when it is built in the size of ``vit0``, before it gets its weights.

    torch's layers draw theirs, then CLIP draws most of them anew.
    """
    width, layers, feature, pixels, patches, tokens, words = 64, 2, 32, 3 * 8 * 8, 16, 77, 49408
    attention, mlp = 4 * width**2 + width, 8 * width**2 + 5 * width  # torch draws biases too, but for q, k and v
    towers = 2 * layers * (attention + mlp)
    image = width * pixels + width + (patches + 1) * width + width * feature  # patches, class token, positions, output
    text = words * width  # positions and output are drawn by CLIP only:
    anew = words * width + tokens * width + layers * 12 * width**2 + width * feature
    return towers + image + text + anew


def build(method: str, name: str, options: list[str], root: Path, backbone: Path) -> Any:
    options = [str(backbone) if value == "vit0" else value for value in options]
    cfg = make_config(
        trainer=NODES[method][0],
        method_file="_base.yaml",
        flags={"DATASET": {"NAME": "OxfordPets", "ROOT": str(root)}, "OUTPUT_DIR": str(root / name), "SEED": 1},
        options=[*options, "DATASET.FEATURES.VIEWS", "0"],
    )
    trainer = run.build(cfg)
    torch.manual_seed(1)
    torch.empty(numbers_drawn_by_building()).uniform_()
    if method == "coop":
        torch.nn.init.normal_(trainer.head.ctx, std=0.02)
    return trainer


def watched(replay: Replay) -> None:
    """Keep what the golden file records of every step and every test."""
    trainer, steps = replay.trainer, replay.steps
    forward_backward, test = trainer.forward_backward, trainer.test

    def watch_step(batch: dict[str, Any]) -> dict[str, float]:
        lr = trainer.get_current_lr()
        steps.append({"epoch": trainer.epoch, "batch": trainer.batch_idx, "lr": lr})
        steps[-1] |= {"index": batch["index"].tolist(), "label": batch["label"].tolist()}
        steps[-1] |= {"files": [Path(path).name for path in batch["impath"]]}
        steps[-1] |= {"img_sum": batch["img"].double().sum().item()}
        summary = forward_backward(batch)
        steps[-1] |= summary
        return summary

    def watch_test(split: str | None = None) -> float:
        replay.tests.append([split, test(split), len(steps)])
        return replay.tests[-1][1]

    trainer.forward_backward, trainer.test = watch_step, watch_test


def replay_of(method: str, name: str, recorded: dict[str, Any], root: Path, backbone: Path) -> Replay:
    """One of the reference's runs, done by ours as its train.py does it."""
    spec, options = recorded[name], list(recorded["last_step" if name == "augmented" else name]["opts"])
    if name == "augmented":  # all as in the first run but for the transforms, which are then the yaml's
        at = options.index("INPUT.TRANSFORMS")
        del options[at : at + 2]
    trainer = build(method, name, options, root, backbone)
    replay = Replay(root, root / name, trainer, trainer.head.state_dict()[NODES[method][1]].numpy().copy())
    watched(replay)
    if spec.get("eval_only"):
        replay.trainer.load_model(str(root / "last_step"), epoch=spec["load_epoch"])
        replay.trainer.test()
    else:
        replay.trainer.train()
    return replay


@pytest.fixture(scope="module", params=NODES)
def method(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def replays(
    method: str, golden: Any, golden_backbone: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Replay]]:
    """The method's four runs, one after another."""
    recorded, root = golden.json(f"e2e_{method}"), tmp_path_factory.mktemp(method)
    draw_pets(recorded["dataset"], root)
    yield {name: replay_of(method, name, recorded, root, golden_backbone("vit0")) for name in RUNS}
    setup_logger()  # let go of log.txt


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_every_step_and_evaluation_match_the_references(
    golden: Any, replays: dict[str, Replay], method: str, name: str
) -> None:
    spec, replay = golden.json(f"e2e_{method}")[name], replays[name]
    if name == "augmented":
        golden.require_its_versions()
    tolerances = {"lr": 1e-9, "img_sum": 1e-5, "loss": 1e-3, "acc": 1e-6}
    for found, step in zip(replay.steps, spec["steps"], strict=True):
        expected = {
            key: value if key not in tolerances else pytest.approx(value, rel=tolerances[key])
            for key, value in step.items()
        }
        assert found == expected
    assert replay.tests == [[split, pytest.approx(accuracy), steps] for split, accuracy, steps in spec["tests"]]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["last_step", "best_val"])
def test_what_is_learned_matches_the_references(
    golden: Any, replays: dict[str, Replay], method: str, name: str
) -> None:
    """best_val: of the best epoch, which is deployed."""
    arrays, key = golden.npz(f"e2e_{method}"), NODES[method][1]
    expected, replay = arrays[f"{name}.final.{key}"], replays[name]
    if method == "coop":  # TaskRes starts from 0
        assert np.array_equal(replay.initial, arrays[f"{name}.init.{key}"])
    file = f"model.pth.tar-{replay.trainer.max_epoch}" if name == "last_step" else "model-best.pth.tar"
    saved = load_checkpoint(replay.output / "prompt_learner" / file)["state_dict"][key]
    for learned in (replay.trainer.head.state_dict()[key], saved):
        assert np.abs(learned.numpy() - expected).max() < 1e-3 * np.abs(expected).max()


@pytest.mark.parametrize("name", LOGGED)
def test_the_shots_and_a_runs_files_match_the_references(
    golden: Any, replays: dict[str, Replay], method: str, name: str
) -> None:
    spec, replay = golden.json(f"e2e_{method}")[name], replays[name]
    data = replay.trainer.dm.dataset
    assert [Path(item.impath).name for item in data.train_x] == spec["train_files"]
    assert [Path(item.impath).name for item in data.val] == spec["val_files"]
    files = [path.relative_to(replay.output) for path in replay.output.rglob("*") if path.is_file()]
    events = [path for path in files if path.name.startswith("events.out.tfevents")]
    assert sorted(map(str, set(files) - set(events))) == spec["outputs"]
    assert [f"/{path.parent}" for path in events] == spec["tensorboard"]


# ---- logs and curves ----


def normalised(lines: list[str], root: Path) -> list[str]:
    """Log lines without times and places, without the lines that differ on purpose."""
    text = re.sub(rf"{re.escape(str(root))}|<root>", "", "\n".join(lines))
    text = re.sub(rf"/(out_)?({'|'.join(RUNS)})/", "<run>/", text)
    text = re.sub(r"time \S+ \(\S+\) data \S+ \(\S+\)", "time <t> (<t>) data <t> (<t>)", text)
    text = re.sub(r"eta \S+", "eta <eta>", re.sub(r"Elapsed: .*", "Elapsed: <elapsed>", text))
    text = re.sub(r"Loading CLIP \(backbone: .*\)", "Loading CLIP", text.replace("seed_1.json", "seed_1.pkl"))
    return [line for line in text.splitlines() if line and not line.startswith((*OURS, *THEIRS))]


def text_of(line: str) -> str:
    """A line of a step without its numbers, whose last digit may differ; another line as it is."""
    return re.sub(r"\d+\.\d+", "<n>", line) if line.startswith("epoch [") else line


def numbers_in(lines: list[str]) -> list[list[float]]:
    """Of every step: loss, its average, accuracy, its average, the learning rate that follows."""
    steps = [line for line in lines if line.startswith("epoch [")]
    return [[float(number) for number in re.findall(r"\d+\.\d+(?:e-\d+)?", line)] for line in steps]


@pytest.mark.parametrize("name", LOGGED)
def test_the_log_matches_the_references(golden: Any, replays: dict[str, Replay], method: str, name: str) -> None:
    replay = replays[name]
    found = normalised((replay.output / "log.txt").read_text(encoding="utf-8").splitlines(), replay.root)
    expected = normalised(golden.json(f"e2e_{method}")[name]["log"], replay.root)
    assert list(map(text_of, found)) == list(map(text_of, expected))
    for numbers, theirs in zip(numbers_in(found), numbers_in(expected), strict=True):
        assert numbers == pytest.approx(theirs, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("name", ["last_step", "best_val"])
def test_curves_match_the_references_log(golden: Any, replays: dict[str, Replay], method: str, name: str) -> None:
    """Dassl's tags; of the training curves a point per batch (averages over the epoch so far), else one per epoch."""
    spec = golden.json(f"e2e_{method}")[name]
    events = EventAccumulator(str(replays[name].output / "tensorboard"))
    events.Reload()
    points = {tag: [(point.step, point.value) for point in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    logged = numbers_in(spec["log"])
    for tag, column in {"train/loss": -4, "train/acc": -2, "train/lr": -1}.items():
        expected = [(step, pytest.approx(numbers[column], rel=1e-3)) for step, numbers in enumerate(logged)]
        assert points[tag] == expected
    per_epoch = len(spec["steps"]) // replays[name].trainer.max_epoch
    for split in ("val", "test"):
        tests = [
            (steps // per_epoch - 1, pytest.approx(accuracy, rel=1e-6))  # the curves are stored in float32
            for part, accuracy, steps in spec["tests"]
            if (part or "test") == split
        ]
        assert points.get(f"{split}/accuracy", []) == tests
