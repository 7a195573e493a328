"""configs/trainers: each recipe opens with a summary, the command that runs it and its source."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from dassl_lite.engine.plugins import load_plugins
from dassl_lite.tools.train import config_of, make_parser

FOLDER = Path(__file__).resolve().parents[2] / "configs" / "trainers"
RECIPES = [path for path in sorted(FOLDER.glob("*/*.yaml")) if not path.name.startswith("_")]
NEVER_TRAINED = {"rn50_val"}  # evaluation only, so its command is for another method


def name_of(path: Path) -> str:
    return path.relative_to(FOLDER).as_posix()


def header(path: Path) -> dict[str, str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    fields = re.findall(r"^# (Run|Source|Expect): +(.+)$", "\n".join(lines), re.MULTILINE)
    return {"what": lines[0].removeprefix("# "), "blank": lines[1], **dict(fields)}


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_the_command_of_a_recipe_uses_that_recipe(path: Path) -> None:
    found = header(path)
    program, script, *arguments = shlex.split(found["Run"])
    assert (program, script) == ("python", "tools/train.py")
    load_plugins()
    args = make_parser().parse_args(arguments)
    named = (args.trainer, Path(args.config_file).stem or "default")
    assert named == (path.parent.name, path.stem) or path.stem in NEVER_TRAINED
    assert config_of(args).TRAINER.NAME == args.trainer


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_a_recipe_has_a_one_line_summary_and_names_its_source(path: Path) -> None:
    found = header(path)
    assert found["what"].endswith(".")
    assert len(found["what"]) <= 100  # printed by --help-trainer
    assert found["blank"] == ""
    assert re.search(r"https://|ours", found["Source"])


def test_every_expected_accuracy_is_in_the_results() -> None:
    results = "".join(
        path.read_text(encoding="utf-8") for path in (FOLDER.parents[1] / "docs" / "results").glob("*.md")
    )
    expected = {name_of(path): header(path).get("Expect") for path in RECIPES}
    known = {name: re.match(r"\d+\.\d+ ± \d+\.\d+", text) for name, text in expected.items() if text}
    assert len(known) >= 8
    assert [name for name, found in known.items() if found is None or found[0] not in results] == []
