"""Flags shared by several tools mean the same in each, methods can declare flags, and errors name a misspelt one."""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from yacs.config import CfgNode

from dassl_lite.config import get_cfg_default, to_dict
from dassl_lite.engine import TRAINER_REGISTRY
from dassl_lite.engine.build import make_config
from dassl_lite.engine.commands import arguments
from dassl_lite.engine.commands.arguments import DatasetChoice, ToolParser, config_arguments, own_data, plugins_in
from dassl_lite.engine.commands.cli import run_tool
from dassl_lite.engine.commands.evaluate import config_for
from dassl_lite.engine.commands.sweep import tasks
from dassl_lite.engine.plugins import load_plugins
from dassl_lite.tools import cli, extract, show, sweep, train
from dassl_lite.tools import eval as eval_tool

KINDS = ["folder", "table", "features"]


@pytest.fixture
def data_paths(tmp_path: Path) -> dict[str, Path]:
    """Map each kind of user data to its path."""
    (tmp_path / "photos" / "red").mkdir(parents=True)
    Image.new("RGB", (8, 8), "red").save(tmp_path / "photos" / "red" / "1.png")
    (tmp_path / "table.csv").write_text("path,classname\nphotos/red/1.png,red\n")
    np.savez(tmp_path / "x.npz")
    return {"folder": tmp_path / "photos", "table": tmp_path / "table.csv", "features": tmp_path / "x.npz"}


def config(tool: str, *argv: str) -> CfgNode:
    """The config that a tool builds from its command line (for the first dataset if it takes several)."""
    load_plugins()
    module = importlib.import_module(f"dassl_lite.tools.{tool}")
    args = module.make_parser().parse_args(argv)
    if tool == "eval":
        stored = to_dict(make_config(trainer="TaskRes", dataset_file="gadgets"))
        target, _ = eval_tool.targets_of(args)[0]
        flags = config_arguments(args, DatasetChoice())["flags"]
        return config_for(stored, target, flags, args.options, args.config_file)
    if tool == "sweep":
        (task,) = tasks(["TaskRes"], arguments.dataset_choices(args), [1], [1])
        return task.config(config_arguments(args, DatasetChoice(), trainer=""), Path("run"))
    return module.config_of(args)


TOOLS = {"train": ("--trainer", "TaskRes"), "eval": (), "extract": (), "sweep": (), "show": ()}


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("kind", KINDS)
def test_data_selects_the_same_dataset_in_every_tool(data_paths: dict[str, Path], tool: str, kind: str) -> None:
    path = str(data_paths[kind])
    dataset = config(tool, *TOOLS[tool], "--root", "elsewhere", "--data", path).DATASET
    expected = {
        "folder": ("ImageFolder", path, ""),
        "table": ("CSV", path, ""),
        "features": ("Features", "elsewhere", path),
    }
    assert (dataset.NAME, dataset.ROOT, dataset.FILE) == expected[kind]


@pytest.mark.parametrize("tool", TOOLS)
def test_dataset_config_file_and_root_select_the_same_dataset_in_every_tool(tool: str) -> None:
    dataset = config(tool, *TOOLS[tool], "--dataset-config-file", "dtd", "--root", "data").DATASET
    assert (dataset.NAME, dataset.ROOT) == ("DescribableTextures", "data")


@pytest.mark.parametrize("tool", ["train", "extract", "sweep", "show"])
def test_the_embedded_dataset_is_the_default(tool: str) -> None:
    assert config(tool, *TOOLS[tool]).DATASET.NAME == "ShapesNet"
    if tool != "sweep":
        assert config(tool, *TOOLS[tool], "DATASET.NAME", "Digits").DATASET.NAME == "Digits"


@pytest.mark.parametrize("tool", ["train", "eval", "sweep"])
def test_config_file_and_backbone_configure_the_method_in_every_tool(tool: str) -> None:
    flags = ("--config-file", "adam_lr2e-3_B256_ep100", "--backbone", "RN50")
    cfg = config(tool, *TOOLS[tool], "--dataset-config-file", "gadgets", *flags)
    assert cfg.OPTIM.MAX_EPOCH == 100
    assert cfg.MODEL.BACKBONE.NAME == "RN50"


def test_train_combines_a_dataset_yaml_with_the_users_own_data(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text('DATASET: {TEMPLATE: "an aerial photo of {}."}')
    dataset = config("train", "--dataset-config-file", str(tmp_path / "mine.yaml"), "--data", str(tmp_path)).DATASET
    assert (dataset.NAME, dataset.TEMPLATE) == ("ImageFolder", "an aerial photo of {}.")


def test_a_dataset_name_among_the_config_keys_replaces_the_embedded_dataset() -> None:
    args = train.make_parser().parse_args(["DATASET.NAME", "Digits"])
    assert arguments.dataset_choice(args) == DatasetChoice()


def test_resume_with_a_folder_sets_its_key() -> None:
    assert config("train", *TOOLS["train"], "--resume", "runs/one").RESUME == "runs/one"
    assert config("train", *TOOLS["train"], "--resume").RESUME == ""


@pytest.mark.slow
def test_eval_only_tests_on_all_of_the_users_own_data(data_paths: dict[str, Path]) -> None:
    data = ("--data", str(data_paths["folder"]))
    assert config("train", *TOOLS["train"], "--eval-only", *data).DATASET.TEST_ONLY
    assert not config("train", *TOOLS["train"], *data).DATASET.TEST_ONLY
    assert not config("train", *TOOLS["train"], "--eval-only").DATASET.TEST_ONLY


def test_the_extension_determines_the_kind_of_a_missing_path() -> None:
    assert own_data("no/x.csv")["DATASET.NAME"] == "CSV"
    assert own_data("no/x.npz") == {"DATASET.NAME": "Features", "DATASET.FILE": "no/x.npz"}
    assert own_data("no/x") == {"DATASET.NAME": "ImageFolder", "DATASET.ROOT": "no/x"}


def test_evaluating_the_users_own_data_ignores_the_dataset_settings_of_the_run() -> None:
    dataset = {"NAME": "Gadgets", "SUBSAMPLE_CLASSES": "base", "TEMPLATE": "a photo of the gadget {}."}
    stored = to_dict(make_config(trainer="TaskRes", flags={"DATASET": dataset}))
    now = config_for(stored, own_data("photos"), {}).DATASET
    assert (now.NAME, now.SUBSAMPLE_CLASSES, now.TEMPLATE) == ("ImageFolder", "all", "")


def test_eval_merges_a_method_yaml_over_the_run_s_config(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[CfgNode] = []
    stored = to_dict(make_config(trainer="TaskRes", dataset_file="gadgets"))
    monkeypatch.setattr(eval_tool, "stored_config", lambda folder: stored)
    monkeypatch.setattr(eval_tool, "evaluate_row", lambda cfg, *args, **kwargs: seen.append(cfg) or sys.exit(0))
    with pytest.raises(SystemExit):
        eval_tool.main(["--model-dir", "run", "--config-file", "adam_lr2e-3_B256_ep100"])
    assert seen[0].OPTIM.MAX_EPOCH == 100


@pytest.mark.slow
def test_another_dataset_is_not_searched_for_inside_the_users_own_data(tmp_path: Path) -> None:
    stored = to_dict(make_config(trainer="TaskRes", flags={"DATASET": {"NAME": "ImageFolder", "ROOT": "photos"}}))
    assert config_for(stored, "gadgets", {}).DATASET.ROOT == ""
    assert config_for(stored, None, {}).DATASET.ROOT == "photos"
    field = to_dict(make_config(trainer="TaskRes", flags={"DATASET": {"NAME": "Caltech101", "ROOT": "data"}}))
    assert config_for(field, "dtd", {}).DATASET.ROOT == "data"


@pytest.mark.parametrize(
    ("main", "argv", "message"),
    [
        (eval_tool.main, ["--model", "x"], "unknown flag --model; did you mean --model-dir?"),
        (train.main, ["--dataset", "x"], "unknown flag --dataset; did you mean --dataset-config-file?"),
        (train.main, ["--sead=3"], "unknown flag --sead; did you mean --seed? (see train.py --help)"),
        (show.main, ["Digits", "--tile", "0"], "--tile must be at least 1, not 0"),
        (sweep.main, ["--jobs", "0"], "--jobs must be at least 1, not 0"),
        (cli.dispatch, ["trian"], "unknown tool 'trian'. Did you mean 'train'?"),
        (cli.dispatch, ["report", "a", "b"], "two runs are compared on a page: add --html FILE"),
        (cli.dispatch, ["report", "a", "b", "c"], "c is one argument too many (see report.py --help)"),
        (cli.dispatch, ["report", "a", "OPTIM.LR", "1"], "OPTIM.LR is a config key, but this tool accepts none"),
    ],
)
def test_an_invalid_command_line_prints_one_line(main, argv, message, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_tool(main, argv) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_the_smallest_allowed_value_is_accepted() -> None:
    arguments.check_at_least(argparse.Namespace(jobs=1, tile=2), 1, ["jobs", "tile"])


@pytest.mark.parametrize("key", ["OPTIM.LR", "SEED", "VERBOSE", "TRAINER.TaskRes.PREC"])
def test_a_config_key_ends_the_values_of_the_flag_before_it(key: str) -> None:
    args = eval_tool.make_parser().parse_args(["--data", "a", "b", key, "1"])
    assert (args.data, args.options) == (["a", "b"], [key, "1"])


# ---- flags of methods ----


class Declaring:
    """A trainer with a flag."""

    cli_flags = {"--temperature": ("TRAINER.Declaring.TEMPERATURE", "of the softmax")}  # noqa: RUF012

    @classmethod
    def extend_cfg(cls, cfg: CfgNode) -> None:
        cfg.TRAINER.Declaring = CfgNode({"TEMPERATURE": 1.0})


class Inheriting(Declaring):
    """A trainer with the same flag."""


class Clashing:
    cli_flags = {"--shots": ("TRAINER.Clashing.SHOTS", "taken")}  # noqa: RUF012


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    load_plugins()
    monkeypatch.setattr(TRAINER_REGISTRY, "_table", dict(TRAINER_REGISTRY._table))
    for kind in (Declaring, Inheriting):
        TRAINER_REGISTRY.register(kind)


def test_a_flag_that_a_trainer_declares_sets_its_key(registered: None) -> None:
    flags = ["--trainer", "Inheriting", "--temperature", "0.5"]
    assert train.config_of(train.make_parser().parse_args(flags)).TRAINER.Declaring.TEMPERATURE == 0.5
    assert train.config_of(train.make_parser().parse_args(flags[:2])).TRAINER.Declaring.TEMPERATURE == 1.0
    assert "--temperature VALUE" in train.make_parser().format_help()


def test_a_flag_that_a_trainer_declares_must_be_free(registered: None) -> None:
    TRAINER_REGISTRY.register(Clashing)
    with pytest.raises(ValueError, match="trainer Clashing declares the flag --shots, which is already taken"):
        train.make_parser()


def test_a_plugins_flag_is_registered_before_the_command_line_is_parsed(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(TRAINER_REGISTRY, "_table", dict(TRAINER_REGISTRY._table))
    path = tmp_path / "declaring_plugin.py"
    path.write_text(
        "from dassl_lite.engine import TRAINER_REGISTRY\n"
        "@TRAINER_REGISTRY.register()\nclass OfPlugin:\n"
        "    cli_flags = {'--of-plugin': ('OPTIM.LR', 'sets it')}\n"
    )
    argv = ["--plugin", str(path), "--trainer", "OfPlugin", "--of-plugin", "0.25", "--no-train"]
    assert plugins_in(argv) == [str(path)]
    seen: list[CfgNode] = []
    monkeypatch.setattr(train, "with_output", lambda cfg, args: seen.append(cfg) or sys.exit(0))
    with pytest.raises(SystemExit):
        train.main(argv)
    assert seen[0].OPTIM.LR == 0.25


# ---- every tool ----


@pytest.mark.parametrize("tool", cli.tools())
def test_every_tool_prints_the_version(tool: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = importlib.import_module(f"dassl_lite.tools.{tool}").make_parser()
    with pytest.raises(SystemExit) as ended:
        parser.parse_args(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("dassl-lite 0.")


@pytest.mark.parametrize("argument", ["--version", "--help"])
def test_the_command_prints_its_version_and_tools_without_importing_torch(argument: str) -> None:
    code = "import sys; from dassl_lite.tools.cli import main; main(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, argument], capture_output=True, text=True, check=True)
    assert "dassl-lite" in done.stdout
    assert done.stdout.endswith("False\n")
    if argument == "--help":
        assert all(f"\n  {tool} " in done.stdout for tool in cli.tools())


def test_help_names_the_installed_command_if_it_was_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/usr/bin/dassl-lite", "report"])
    assert importlib.import_module("dassl_lite.tools.report").make_parser().prog == "dassl-lite report"


def test_help_explains_every_flag() -> None:
    load_plugins()

    def parsers(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
        subparsers = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
        return [parser, *(sub for action in subparsers for sub in action.choices.values())]

    for tool in cli.tools():
        for parser in parsers(importlib.import_module(f"dassl_lite.tools.{tool}").make_parser()):
            silent = [a.dest for a in parser._actions if not a.help and not isinstance(a, argparse._SubParsersAction)]
            assert silent == [], parser.prog
            assert isinstance(parser, ToolParser)


def test_help_appends_a_default_that_the_text_does_not_mention() -> None:
    shown = " ".join(sweep.make_parser().format_help().split())
    assert "training images per class; -1 for all (default: 1 2 4 8 16)" in shown
    assert "runs at a time (default: with a GPU 1, else one per core, at most 4) " in shown


def test_config_keys_that_flags_set_exist() -> None:
    dataset = get_cfg_default().DATASET
    assert set(arguments.OWN_DATA.values()) <= set(dataset)
    assert {key.split(".")[0] for key in arguments.CONFIG_KEYS.values()} <= set(get_cfg_default())
    assert extract.FROZEN_CLIP in TRAINER_REGISTRY


def test_a_parser_has_a_usage_line_and_domain_flags_set_config_keys():
    assert arguments.tool_parser("mine", "Mine.").format_usage() == "usage: mine.py [options]\n"
    args = train.make_parser().parse_args(
        ["--trainer", "TaskRes", "--target-domains", "a", "b", "--source-domains", "c"]
    )
    node = make_config(**config_arguments(args, trainer="TaskRes")).DATASET
    assert (node.TARGET_DOMAINS, node.SOURCE_DOMAINS) == (("a", "b"), ("c",))
