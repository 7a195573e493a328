"""Startup of the tools: help without importing torch, and no garbage collection of modules that stay loaded."""

from __future__ import annotations

import argparse
import gc
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dassl_lite.data.feature_files import FeatureFile, write_feature_file
from dassl_lite.data.feature_files.file import FeaturePart
from dassl_lite.engine.commands.arguments import tool_parser
from dassl_lite.engine.commands.workers import local_workers
from dassl_lite.startup import tool_help
from dassl_lite.tools.cli import tools

FOLDER = Path(__file__).resolve().parents[2] / "tools"
RUN = """
import runpy, sys
sys.argv = {argv!r}
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    print(end.code, *sorted({{"torch", "numpy", "torchvision", "open_clip"}} & set(sys.modules)))
"""


def run(*argv: str, script: str = RUN) -> list[str]:
    """The lines that a process prints; RUN ends with the exit code and the heavy modules it loaded."""
    code = script.format(argv=list(argv), slow=SLOW, tool=str(FOLDER / "train.py"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.slow_after(2)
@pytest.mark.parametrize("tool", ["train", "sweep", *sorted({*tools()} - {"train", "sweep"})])
def test_help_imports_nothing_heavy(tool: str) -> None:
    """If a tool's flags have changed, refresh tools/help.json with ``python tests/public_surface.py --write``."""
    lines = run(str(FOLDER / f"{tool}.py"), "--help")
    assert lines[-1] == "0"
    assert lines[0].startswith("usage: ")
    assert "--version" in "\n".join(lines)


# Slow libraries besides torch that a command must not import unless it needs images or an encoder.
SLOW = [
    "torchvision",
    "open_clip",
    "timm",
    "transformers",
    "sklearn",
    "scipy",
    "pandas",
    "matplotlib",
    "torch.utils.tensorboard",
    "torch._dynamo",
]
LOADED = """
import sys
sys.argv = [{tool!r}]
from dassl_lite.engine.plugins import load_plugins
load_plugins()
slow = {slow!r}
print("loaded:", *(name for name in slow if name in sys.modules))
slow.remove("torch.utils.tensorboard")  # which a run writes to
from dassl_lite.tools import train
for argv in ["--list"], {argv!r}:
    train.main(argv)
    print("loaded:", *(name for name in slow if name in sys.modules))
"""


@pytest.mark.slow
def test_plugin_discovery_listing_and_a_run_on_features_load_no_slow_library(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    features, labels = rng.standard_normal((1, 6, 8), dtype=np.float32), np.arange(6) % 2
    part = FeaturePart(features, labels)
    write_feature_file(FeatureFile({"train": part, "test": part}, ("a", "b"), features[:, :2]), tmp_path / "f.npz")
    flags = ["--trainer", "TaskRes", "--data", str(tmp_path / "f.npz"), "--output-dir", str(tmp_path / "run")]
    lines = run(*flags, "OPTIM.MAX_EPOCH", "1", script=LOADED)
    assert [line for line in lines if line.startswith("loaded:")] == ["loaded:"] * 3


OPTIMISERS = """
import copy, sys
sys.argv = [{tool!r}] if {argv!r} else ["script.py"]
import torch
from dassl_lite.config import get_cfg_default
from dassl_lite.optim import build_optimizer
def step(optimizer):
    optimizer.zero_grad()
    weight = optimizer.param_groups[0]["params"][0]
    (weight.exp() * weight).sum().backward()
    optimizer.step()
    assert torch.is_grad_enabled()
found = []
for loaded in (False, True):
    if loaded:
        import torch._dynamo
    for name in ("adam", "amsgrad", "sgd", "rmsprop", "radam", "adamw"):
        cfg = get_cfg_default().OPTIM
        cfg.NAME, cfg.LR = name, 0.1
        weights = [torch.nn.Parameter(torch.linspace(-1, 1, 5)) for _ in range(2)]
        first, second = (build_optimizer([weight], cfg) for weight in weights)
        step(first)
        second.load_state_dict(copy.deepcopy(first.state_dict()))
        step(second)
        found += [weight.tolist() for weight in weights]
    print("torch._dynamo" in sys.modules)
plain = torch.optim.Optimizer.zero_grad.__wrapped__
print(found, getattr(plain, "__dynamo_disable").__module__)
"""


@pytest.mark.slow
def test_optimisers_in_a_tool_skip_the_compiler_and_give_the_same_results_with_it() -> None:
    in_tool, elsewhere = run("tool", script=OPTIMISERS), run(script=OPTIMISERS)
    assert in_tool[:2] == ["False", "True"]
    assert elsewhere[:2] == ["True", "True"]
    assert in_tool[2] == elsewhere[2]


@pytest.mark.slow
def test_the_installed_command_shows_a_tools_help_under_its_own_name() -> None:
    shown = run("dassl-lite", "train", "-h", script="import sys\nsys.argv = {argv!r}\nimport dassl_lite.tools.cli")
    assert shown[0] == "usage: dassl-lite train [options] [KEY VALUE ...]"


FOR_TIMM = """
import sys
sys.argv = {argv!r}
import dassl_lite.tools.cli
from timm.utils import summary
print(hasattr(summary, "wandb"), "wandb" in sys.modules)
import wandb
print(wandb.__name__)
"""


@pytest.mark.slow
def test_timm_does_not_load_wandb_but_a_plugin_may() -> None:
    pytest.importorskip("wandb")
    assert run(str(FOLDER / "train.py"), "--list", script=FOR_TIMM) == ["False False", "wandb"]


def example() -> argparse.ArgumentParser:
    """A parser with every kind of argument that tools use."""
    parser = tool_parser("example", "It does things.\n\n    with indented lines", usage=None)
    parser.add_argument("--number", type=int, default=3, metavar="N", help="how many " + 20 * "words ")
    parser.add_argument("--several", "-s", nargs="+", default=[1, 2], metavar="N", help="100 %%")
    parser.add_argument("--kind", choices=["a", "b"], required=True, help="one of them")
    parser.add_argument("--hidden", help=argparse.SUPPRESS)
    parser.add_argument("files", nargs="*", metavar="FILE", help="to read")
    parser.add_argument_group("group", "with a description").add_argument("--path", default=Path("x"), help="where")
    subparsers = parser.add_subparsers(metavar="SUBJECT")
    subparsers.add_parser("first", help="the first subject")
    return parser


@pytest.mark.parametrize("columns", ["60", "80", "200"])
def test_a_cached_parser_prints_the_same_help_as_the_original(
    columns: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setattr(tool_help, "folder_of", lambda name: tmp_path)
    (tmp_path / "example.py").write_text("its digest is kept", encoding="utf-8")
    (tmp_path / tool_help.FILE).write_text(tool_help.content({"example": example()}), encoding="utf-8")
    assert tool_help.text("example") == example().format_help()


def test_a_tool_whose_flags_may_have_changed_does_not_use_the_cached_help(monkeypatch: pytest.MonkeyPatch) -> None:
    assert tool_help.text("train") is not None
    assert tool_help.text("unknown") is None
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: [group])  # as if a plugin were installed
    assert tool_help.text("train") is None
    assert tool_help.text("sweep") is not None  # this tool has no plugin flags
    monkeypatch.setattr(tool_help, "digest", lambda tool: "another")
    assert tool_help.text("sweep") is None


COLLECTOR = """
import gc, sys
sys.argv = {argv!r}
import dassl_lite
print(gc.isenabled(), gc.get_freeze_count())
from dassl_lite.engine.commands.cli import run_tool
run_tool(lambda argv: print(gc.isenabled(), gc.get_freeze_count() > 100_000))
"""


@pytest.mark.slow
def test_a_worker_excludes_loaded_modules_from_garbage_collection() -> None:
    with local_workers(1) as each:
        assert next(each(frozen, [0])) > 100_000


def frozen(_: int) -> int:
    return gc.get_freeze_count()


@pytest.mark.slow
def test_tools_collect_no_garbage_while_loading_and_the_library_leaves_the_collector_alone() -> None:
    assert run(str(FOLDER / "train.py"), script=COLLECTOR) == ["False 0", "True True"]
    assert run("script.py", script=COLLECTOR) == ["True 0", "True False"]
