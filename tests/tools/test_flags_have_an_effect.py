"""A flag without effect is an error: every flag of every tool in every mode, and what a flag or key overrides."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dassl_lite.engine.build import make_config
from dassl_lite.engine.commands.arguments import refuse_keys, refuse_without_effect
from dassl_lite.engine.commands.cli import run_tool
from dassl_lite.engine.plugins import load_plugins
from dassl_lite.tools import cli
from dassl_lite.trainers.taskres import TaskRes
from dassl_lite.utils.errors import UserError

GENERAL = {"--debug", "--version", "--help", "-h"}
PLUGINS = {"--plugin", "--dassl-compat"}
OTHER_MODES = {"--list", "--help-trainer"}
ALL = "all others"
RAY = {"--run-cpus", "--run-gpus", "--run-memory"}

# (tool, mode) -> flags without effect in that mode; ALL means all flags except those listed after it.
WITHOUT_EFFECT: dict[tuple[str, str], set[str]] = {
    ("train", ""): {"--model-dir", "--load-epoch"},
    ("train", "--list"): {ALL, *PLUGINS},
    ("train", "--help-trainer TaskRes"): {ALL, *PLUGINS},
    ("train", "--eval-only"): {"--resume", "--overwrite", "--no-train", *OTHER_MODES},
    ("train", "--no-train"): {"--resume", "--overwrite", "--model-dir", "--load-epoch", "--eval-only", *OTHER_MODES},
    ("eval", ""): set(),
    ("eval", "--trainer TaskRes"): set(),
    ("predict", "IMAGE"): set(),
    ("extract", ""): RAY,  # --first: see below
    ("extract", "--ray"): {"--jobs", "--convert"},
    ("extract", "--convert x.npz"): {ALL, "--output", "--overwrite", "--first"},
    ("export", ""): set(),
    ("serve", ""): set(),
    ("serve", "--model-dir x"): {"--backbone"},
    ("sweep", ""): RAY,
    ("sweep", "--ray"): {"--jobs"},
    ("benchmark", "all"): RAY,
    ("tune", ""): RAY,
    ("report", "FOLDER"): set(),
    ("prepare", "NAME"): set(),
    ("prepare", "--check NAME"): {"--keep-archives"},
    ("run_dassl", "SCRIPT"): set(),
    ("show", ""): set(),
    ("completion", "bash"): set(),
    ("bench", "train"): set(),
    ("bench", "text-tower"): set(),
    ("bench", "extract"): set(),
    ("pretrain_demo", ""): {"--angles", "--weights"},
    ("pretrain_demo", "--choose-tilt"): {"--output", "--steps", "--pictures", "--seed"},
}


def parser_of(tool: str) -> argparse.ArgumentParser:
    load_plugins()
    return importlib.import_module(f"dassl_lite.tools.{tool}").make_parser()


def words_of(action: argparse.Action) -> list[str]:
    """The flag with an example value, as words of a command line."""
    flag = action.option_strings[0]
    if action.nargs == 0:
        return [flag]
    return [flag, str(next(iter(action.choices))) if action.choices else "1"]


def flags_of(parser: argparse.ArgumentParser, mode: Sequence[str]) -> list[argparse.Action]:
    """The flags of a tool (or of the sub-command that the mode names), except general flags and those of the mode."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return flags_of(action.choices[mode[0]], ["", *mode[1:]])
    left_out = GENERAL | set(mode)
    return [a for a in parser._actions if a.option_strings and not left_out & set(a.option_strings)]


def test_every_tool_is_in_the_table() -> None:
    assert {tool for tool, _ in WITHOUT_EFFECT} == set(cli.tools())


@pytest.mark.parametrize(("tool", "mode"), WITHOUT_EFFECT)
def test_a_flag_without_effect_in_a_mode_is_an_error(tool: str, mode: str) -> None:
    parser, words = parser_of(tool), mode.split()
    expected = WITHOUT_EFFECT[tool, mode]
    refused = set()
    flags = flags_of(parser, words)
    for action in flags:
        # A flag with many values would consume the positional argument of the mode.
        argv = [*words, *words_of(action)] if not words or words[0].startswith("-") or tool == "bench" else None
        argv = argv or [*words_of(action), *([] if action.nargs != "+" else ["--debug"]), *words]
        try:
            parser.parse_args(argv)
        except UserError as error:
            if "has no effect" not in str(error):
                raise
            refused.add(action.option_strings[0])
    if ALL in expected:
        expected = {action.option_strings[0] for action in flags} - expected
    assert refused == expected


# ---- effects that depend on values, on the method or on the data -----------------------------------------------------


@pytest.fixture
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a folder of photographs, a table and a (broken) file of features."""
    for name in ("red", "blue"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8), name).save(tmp_path / "photos" / name / "1.png")
    (tmp_path / "table.csv").write_text("path,classname\nphotos/red/1.png,red\n")
    np.savez(tmp_path / "x.npz")
    monkeypatch.chdir(tmp_path)
    return tmp_path


TRAIN = "train --trainer TaskRes"
# Command line -> the flag without effect, or what it conflicts with.
COMMANDS = {
    f"{TRAIN} --list": "--trainer has no effect with --list",
    f"{TRAIN} --model-dir x": "--model-dir has no effect without --eval-only",
    f"{TRAIN} --overwrite": "--overwrite has no effect without --output-dir",
    f"{TRAIN} --output-dir x --overwrite --resume": "leave one of them out",
    f"{TRAIN} --head mlp": "--head has no effect on a method on top of CLIP",
    f"{TRAIN} --source-domains a": "--source-domains has no effect on a dataset without domains",
    f"{TRAIN} --target-domains a": "--target-domains has no effect on a dataset without domains",
    f"{TRAIN} --data x.npz --backbone RN50": "--backbone has no effect on features",
    f"{TRAIN} --data x.npz --transforms normalize": "--transforms has no effect on features",
    f"{TRAIN} --data photos --root x": "--root has no effect with --data",
    f"{TRAIN} --data table.csv --root x": "--root has no effect with --data",
    f"{TRAIN} --seed 1 --seed 2": "--seed is given twice",
    "sweep --trainers TaskRes --shots 1 --shots 2": "--shots is given twice",
    "bench train --views 2 --views 3": "--views is given twice",
    f"{TRAIN} --seed 1 SEED 2": "--seed and SEED contradict each other",
    f"{TRAIN} --seed 1 OPTIM.LR 1 TRAIN.PRINT_FREQ 5 SEED 2": "--seed and SEED contradict each other",
    f"{TRAIN} --shots 1 DATASET.NUM_SHOTS 2": "--shots and DATASET.NUM_SHOTS contradict each other",
    f"{TRAIN} TRAINER.NAME CoOp": "--trainer and TRAINER.NAME contradict each other",
    f"{TRAIN} --data photos DATASET.NAME Digits": "--data and DATASET.NAME contradict each other",
    "train --trainer CoOp --enhanced-base x": "--enhanced-base has no effect on CoOp: it belongs to TaskRes",
    "train --trainer ZeroshotCLIP --eval-only --model-dir x --dataset-config-file gadgets --output-dir o": (
        "--model-dir has no effect: ZeroshotCLIP learns nothing"
    ),
    "train --trainer ZeroshotCLIP --eval-only --load-epoch 1 --dataset-config-file gadgets --output-dir o": (
        "--load-epoch has no effect: ZeroshotCLIP learns nothing"
    ),
    "eval --trainer TaskRes --model-dir x --data x.npz --backbone RN50": "--backbone has no effect on features",
    "eval --trainer TaskRes --model-dir x --data photos --root x": "--root has no effect with --data",
    "eval --trainer TaskRes --model-dir x --suite demo SEED 1 OUTPUT_DIR y": "OUTPUT_DIR has no effect on an",
    "eval --trainer TaskRes --model-dir x --suite demo TRAINER.NAME CoOp": "use --trainer",
    "eval --trainer TaskRes --model-dir x --suite demo TEST.NONSENSE 1": "unknown config key",
    "extract --output o.npz --first 1": "--first goes with --convert",
    "extract --output o.npz --convert x.npz --half": "--half has no effect with --convert",
    "extract --output o.npz --convert x.npz OPTIM.LR 1": "OPTIM.LR has no effect with --convert",
    "extract --output o.npz --data photos --root x": "--root has no effect with --data",
    "extract --output o.npz DATASET.FEATURES.VIEWS 3": "DATASET.FEATURES.VIEWS has no effect on features; use --views",
    "extract --output o.npz --seed 1 SEED 2": "--seed and SEED contradict each other",
    "sweep --trainers ZeroshotCLIP --shots 1": "--shots has no effect on ZeroshotCLIP",
    "sweep --trainers ZeroshotCLIP --seeds 1": "--seeds has no effect on ZeroshotCLIP",
    "sweep --trainers TaskRes SEED 3": "SEED has no effect in a sweep; use --seeds",
    "sweep --trainers TaskRes DATASET.NUM_SHOTS 3": "use --shots",
    "sweep --trainers TaskRes OUTPUT_DIR x": "use --output-dir",
    "sweep --trainers TaskRes --data photos --root x": "--root has no effect with --data",
    "show Digits --data photos": "name one dataset",
    "show Digits --dataset-config-file gadgets": "name one dataset",
    "show --data photos --root x": "--root has no effect with --data",
    "show Digits OUTPUT_DIR x": "use --output",
    "bench train --data photos --dataset gadgets": "leave them out",
    "prepare --check photos --root x": "--root has no effect on your own data",
    "prepare --check EuroSAT --keep-archives": "--keep-archives has no effect with --check",
    "pretrain_demo --angles 3": "--angles has no effect without --choose-tilt",
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_with_an_ineffective_flag_prints_one_line(
    workdir: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tool, *argv = command.split()
    assert run_tool(importlib.import_module(f"dassl_lite.tools.{tool}").main, argv) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert COMMANDS[command] in error
    assert not (workdir / "output").exists()


def arguments_of(tool: str, *argv: str) -> argparse.Namespace:
    return parser_of(tool).parse_args(argv)


@pytest.mark.parametrize(
    "argv",
    [
        ("--seed", "2", "SEED", "2"),
        ("--dataset-config-file", "dtd", "--root", "x"),
        ("--data", "y/absent.npz", "--root", "x"),  # may be relative to the root
        ("--backbone", "RN50", "--shots", "4"),
        ("--enhanced-base", "x"),
    ],
)
def test_flags_that_agree_or_have_an_effect_are_accepted(
    workdir: Path, argv: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    args = arguments_of("train", "--trainer", "TaskRes", *argv)
    refuse_without_effect(args, [TaskRes], make_config(dataset_file="gadgets"))
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("key", "warning"),
    [
        ("TRAINER.COOP.N_CTX", "TRAINER.COOP.N_CTX has no effect on TaskRes: it belongs to COOP"),
        ("MODEL.HEAD.BN", "MODEL.HEAD.BN has no effect on a method on top of CLIP"),
        ("DATASET.FILE", "DATASET.FILE has no effect on a dataset of images"),
        ("DATASET.CIFAR_C_LEVEL", "has no effect on a dataset without unlabelled images"),
    ],
)
def test_a_config_key_without_effect_on_the_command_line_is_reported(
    key: str, warning: str, caplog: pytest.LogCaptureFixture
) -> None:
    refuse_without_effect(arguments_of("train", key, "1"), [TaskRes], make_config(dataset_file="gadgets"))
    assert warning in caplog.text


def test_third_party_trainers_are_not_checked(caplog: pytest.LogCaptureFixture) -> None:
    class Theirs(TaskRes):
        __module__ = "theirs"

    args = arguments_of("train", "--head", "mlp", "TRAINER.COOP.N_CTX", "1")
    refuse_without_effect(args, [Theirs], make_config(dataset_file="gadgets"))
    assert caplog.text == ""


def test_training_keys_are_reported_in_an_evaluation(caplog: pytest.LogCaptureFixture) -> None:
    refuse_keys(["OPTIM.LR", "1", "SEED", "2", "OPTIM.MAX_EPOCH", "3"], {"OPTIM": ""}, "on an evaluation")
    assert [record.getMessage() for record in caplog.records] == [
        "No effect on an evaluation: OPTIM.LR, OPTIM.MAX_EPOCH"
    ]


@pytest.mark.parametrize("tool", ["eval", "sweep", "prepare"])
def test_data_may_be_repeated_if_the_tool_takes_several(tool: str) -> None:
    assert arguments_of(tool, "--data", "a", "b", "--data", "c").data == ["a", "b", "c"]


def test_plugin_may_be_repeated() -> None:
    assert arguments_of("eval", "--plugin", "a", "--plugin", "b").plugin == ["a", "b"]


# Flag -> tools that accept it.
SHARED = {
    "--data": {"train", "eval", "extract", "sweep", "tune", "show", "prepare", "bench"},
    "--dataset-config-file": {"train", "eval", "extract", "sweep", "tune", "show", "bench"},
    "--output": {"eval", "export", "extract", "show", "pretrain_demo", "predict"},
}


@pytest.mark.parametrize("flag", SHARED)
def test_one_concept_has_the_same_flag_in_all_tools(flag: str) -> None:
    taking = set()
    for tool in cli.tools():
        parser = parser_of(tool)
        flags = {
            name for action in flags_of(parser, ["train" if tool == "bench" else ""]) for name in action.option_strings
        }
        taking |= {tool} if flag in flags else set()
    assert taking == SHARED[flag]
