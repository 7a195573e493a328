"""tools/train.py --list and --help-trainer: what is registered and which keys a trainer has."""

from __future__ import annotations

from pathlib import Path

import pytest

from dassl_lite.engine.commands.cli import run_tool
from dassl_lite.engine.commands.describe import REGISTRIES
from dassl_lite.tools import train

PLUGIN = '''"""Methods of a plugin."""

from yacs.config import CfgNode

from dassl_lite.engine import TRAINER_REGISTRY, FeatureTrainer, key, number
from dassl_lite.optim import OPTIMIZER_REGISTRY


@TRAINER_REGISTRY.register()
class ListedTrainer(FeatureTrainer):
    """What the listed trainer does.

    A second paragraph.
    """

    keys = (
        key("ALPHA", 0.25, number(above=0), "weight of the first term"),
        key("DELTA", (1, 2)),
    )

    @classmethod
    def extend_cfg(cls, cfg):  # Dassl's way, without descriptions of the keys
        super().extend_cfg(cfg)
        cfg.TRAINER.ListedTrainer.BARE = True
        cfg.TRAINER.ListedTrainer.DEEP = CfgNode()
        cfg.TRAINER.ListedTrainer.DEEP.BARE = 3


@OPTIMIZER_REGISTRY.register()
def listed_optimizer(params, optim_cfg):
    pass
'''


@pytest.fixture
def plugin(tmp_path: Path):
    path = tmp_path / "plugin_to_list.py"
    path.write_text(PLUGIN)
    yield path
    for registry in REGISTRIES.values():
        for name in ("ListedTrainer", "listed_optimizer"):
            registry._table.pop(name, None)


def printed(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert run_tool(train.main, list(argv)) == 0
    return capsys.readouterr().out


def cells(text: str, first: str) -> list[str]:
    """The cells of the table row that begins with ``first``."""
    (line,) = [line for line in text.splitlines() if line.split("  ")[0] == first]
    return [cell.strip() for cell in line.split("  ") if cell.strip()]


def test_the_list_has_every_registered_name_of_every_kind(capsys):
    out = printed(capsys, "--list")
    for taker, registry in REGISTRIES.items():
        assert f"{registry.kind} ({taker})" in out or not list(registry)
        assert {name for name in registry if not cells(out, name)} == set()
    assert {"trainer", "dataset", "evaluator", "optimizer", "learning-rate schedule", "transform"} < {
        registry.kind for registry in REGISTRIES.values()
    }


def test_everything_in_the_package_is_listed_with_origin_and_summary(capsys):
    out = printed(capsys, "--list")
    silent = [name for registry in REGISTRIES.values() for name in registry if len(cells(out, name)) < 3]
    ours = [name for name in silent if "dassl_lite." in cells(out, name)[1]]
    assert ours == []
    taskres = ["TaskRes", "dassl_lite.trainers.taskres", "A learned residual on every class's text feature."]
    assert cells(out, "TaskRes") == taskres
    assert cells(out, "Caltech101")[2].startswith("Photos of 100 kinds of objects")  # not their paths


def test_the_list_names_the_file_of_a_plugin(capsys, plugin):
    out = printed(capsys, "--list", "--plugin", str(plugin))
    assert cells(out, "ListedTrainer") == ["ListedTrainer", str(plugin), "What the listed trainer does."]
    assert cells(out, "listed_optimizer") == ["listed_optimizer", str(plugin)]  # it has no docstring


def test_a_trainers_keys_are_listed_with_defaults_and_descriptions(capsys, plugin):
    out = printed(capsys, "--help-trainer", "ListedTrainer", "--plugin", str(plugin))
    node = "TRAINER.ListedTrainer"
    assert cells(out, f"{node}.PREC") == [f"{node}.PREC", "'auto'", "auto | fp32 | amp | fp16 | bf16"]  # inherited
    assert cells(out, f"{node}.ALPHA") == [f"{node}.ALPHA", "0.25", "weight of the first term"]
    assert cells(out, f"{node}.DELTA") == [f"{node}.DELTA", "(1, 2)"]
    assert cells(out, f"{node}.BARE") == [f"{node}.BARE", "True"]
    assert cells(out, f"{node}.DEEP.BARE") == [f"{node}.DEEP.BARE", "3"]
    assert "ListedTrainer has no recipe" in out
    assert "OPTIM.LR" not in out  # the engine's keys are not the method's


def test_the_help_shows_the_values_of_the_default_recipe_and_lists_the_recipes(capsys):
    out = printed(capsys, "--help-trainer", "TaskRes")
    assert "https://arxiv.org/abs/2211.10277" in out
    key = "TRAINER.TaskRes.RESIDUAL_SCALE"
    assert cells(out, key) == [key, "1.0 (0.5 in default.yaml)", "alpha; the recipes use 0.5"]
    assert "the paper's recipe" in cells(out, "default")[1]
    assert cells(out, "adam_lr2e-3_B256_ep100")[1] == "RN50, 100 epochs, for 1, 2 or 4 shots."
    assert "_base" not in out


@pytest.mark.parametrize("name", ["ZeroshotCLIP2", "TipAdapterF", "CoCoOp"])
def test_inherited_keys_are_listed_under_the_node_that_the_method_reads(capsys, name):
    nodes = {"ZeroshotCLIP2": "ZeroshotCLIP", "TipAdapterF": "TipAdapter", "CoCoOp": "COCOOP"}
    out = printed(capsys, "--help-trainer", name)
    assert cells(out, f"TRAINER.{nodes[name]}.PREC")[-1] == "auto | fp32 | amp | fp16 | bf16"


def test_a_misspelt_trainer_is_an_error(capsys):
    assert run_tool(train.main, ["--help-trainer", "TaskRess"]) == 2
    assert "Did you mean 'TaskRes'?" in capsys.readouterr().err
