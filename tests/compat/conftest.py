"""The alias, switched on for these tests and off after them; a folder of tiny images; the tool as a function."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from recipe import PLUGINS, RECIPE

from dassl_lite import compat
from dassl_lite.data import DATASET_REGISTRY
from dassl_lite.data.transforms import TRANSFORMS
from dassl_lite.engine import TRAINER_REGISTRY, plugins
from dassl_lite.engine.commands.cli import run_tool as to_exit_code
from dassl_lite.evaluation import EVALUATOR_REGISTRY
from dassl_lite.networks import BACKBONE_REGISTRY, HEAD_REGISTRY
from dassl_lite.optim import LR_SCHEDULER_REGISTRY, OPTIMIZER_REGISTRY
from dassl_lite.tools import train as tool

compat.disable()  # importing it has enabled it, for the tests of other folders too

COLOURS = {"blue": (40, 40, 200), "green": (40, 200, 40), "red": (200, 40, 40)}


REGISTRIES = (TRAINER_REGISTRY, DATASET_REGISTRY, EVALUATOR_REGISTRY, OPTIMIZER_REGISTRY, LR_SCHEDULER_REGISTRY)
REGISTRIES += (TRANSFORMS, BACKBONE_REGISTRY, HEAD_REGISTRY)


@pytest.fixture(scope="module", autouse=True)
def _alias() -> Iterator[None]:
    """The alias for one file of tests; what it and the plug-ins leave behind is taken back for the others."""
    plugins.load_plugins()
    kept = [(registry, dict(registry._table)) for registry in REGISTRIES]
    compat.enable()
    yield
    compat.disable()
    for registry, table in kept:
        registry._table = table
        registry.replaced = {}
    for name in [name for name in sys.modules if "third_party" in name]:
        del sys.modules[name]
    plugins._requested.clear()


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``<root>/colours/{train,val,test}/<colour>/*.png``, noisy patches."""
    rng, root = np.random.default_rng(0), tmp_path_factory.mktemp("paper")
    for part, count in {"train": 6, "val": 3, "test": 5}.items():
        for name, colour in COLOURS.items():
            folder = root / "colours" / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = np.clip(rng.normal(colour, 70, (16, 16, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return root


@pytest.fixture
def run_tool(root: Path, tmp_path: Path) -> Callable[..., int]:
    """``run_tool("PaperPrompt", "run", "OPTIM.LR", "0.1")``: the exit code of tools/train.py --dassl-compat."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(RECIPE))

    def run(trainer: str, output: str, *more: str) -> int:
        flags: dict[str, Any] = {"--trainer": trainer, "--root": root, "--output-dir": tmp_path / output}
        if "DATASET.ROOT" in more:
            del flags["--root"]
        flags |= {"--dataset-config-file": recipe, "--seed": 1}
        given = [str(part) for pair in flags.items() for part in pair]
        plugins = [part for plugin in PLUGINS for part in ("--plugin", plugin)]
        return to_exit_code(tool.main, [*plugins, "--dassl-compat", *given, *more])

    return run
