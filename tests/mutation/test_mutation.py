"""The mutation driver: what it changes, what it leaves alone, and what it reports."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))  # as `python tests/mutation/mutate.py` does

from mutations import find_mutations  # noqa: E402

SOURCE = '''
"""A docstring stays."""
import logging
logger = logging.getLogger("left alone")

def grade(points: "int | None", bonus=1):
    """So does this one."""
    if points is None or points < 0:
        raise ValueError(f"{points} < 0 stays")
    logger.info("stays, too: %d", 1 + 1)
    total = points + bonus
    found = sorted([total], key=lambda x: -x, reverse=True)
    return not found
'''


def mutants(tmp_path: Path, source: str) -> list[tuple[str, str, str]]:
    path = tmp_path / "module.py"
    path.write_text(source)
    return [(m.kind, m.before, m.after) for m in find_mutations(tmp_path, path)]


def test_every_kind_of_token_has_its_change(tmp_path):
    found = mutants(tmp_path, SOURCE)
    assert Counter(kind for kind, _, _ in found) == {
        "constant": 3,
        "condition": 1,
        "comparison": 2,
        "boolean": 2,
        "statement": 1,
        "arithmetic": 1,
        "keyword": 2,
        "return": 1,
    }
    assert ("comparison", "<", "<=") in found
    assert ("comparison", "is", "is not") in found
    assert ("boolean", "or", "and") in found
    assert ("boolean", "not ", "") in found
    assert ("arithmetic", "+", "-") in found
    assert ("constant", "1", "2") in found
    assert ("keyword", ", reverse=True", "") in found
    assert ("return", "not found", "None") in found


def test_code_that_no_test_can_notice_is_not_mutated(tmp_path):
    changed = {before for kind, before, _ in mutants(tmp_path, SOURCE) if kind != "statement"}
    assert not {text for text in changed if "stays" in text or "docstring" in text or "left alone" in text}
    assert mutants(tmp_path, "x: int = y\nz = zip(a, b, strict=True)\nq = open(p, encoding='utf-8')\n") == []


def test_exactly_one_change_is_made(tmp_path):
    path = tmp_path / "module.py"
    path.write_text("limit = 'ä' if size > 3 else 5\n", encoding="utf-8")  # columns are counted in bytes
    changed = {m.apply(path.read_bytes()).decode() for m in find_mutations(tmp_path, path)}
    assert changed == {
        "limit = 'ä_' if size > 3 else 5\n",
        "limit = 'ä' if size >= 3 else 5\n",
        "limit = 'ä' if size > 4 else 5\n",
        "limit = 'ä' if size > 3 else 6\n",
        "limit = 'ä' if not (size > 3) else 5\n",
    }


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A repository with a package of that name, one tested function and one that no test calls."""
    root = tmp_path / "project"
    module, test = root / "dassl_lite" / "optim" / "rates.py", root / "tests" / "test_rates.py"
    for path in (module, test):
        path.parent.mkdir(parents=True)
    for package in (root / "dassl_lite", module.parent):
        (package / "__init__.py").touch()
    module.write_text(
        "def double(x):\n    return x * 2\n\n\ndef half(x):\n    while x > 9:\n        x -= 1\n    return x\n"
    )
    test.write_text(
        "from dassl_lite.optim.rates import double, half\n\n\n"
        "def test_double():\n    assert double(4) == 8\n\n\ndef test_half():\n    assert half(12) > 0\n"
    )
    (root / "pyproject.toml").write_text("[tool.pytest.ini_options]\naddopts = ''\n")
    (root / ".gitignore").write_text("output/\n__pycache__/\n")
    shutil.copytree(HERE, root / "tests" / "mutation", ignore=shutil.ignore_patterns("__pycache__", "test_*"))
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    return root


@pytest.mark.slow
def test_killed_and_surviving_mutations_are_told_apart(project):
    before = {path: path.read_bytes() for path in project.rglob("*.py")}
    command = [sys.executable, "tests/mutation/mutate.py", "--packages", "optim", "--patience", "2"]
    command += ["--preload", "pytest"]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=True)
    killed = {line.split()[-1] for line in done.stdout.splitlines() if " killed " in line and "/" in line.split()[0]}
    survived = {line.split()[1] for line in done.stdout.splitlines() if line.startswith("survived: ")}
    assert {name.rpartition(":")[2] for name in killed if ":2:" in name} == {"arithmetic", "constant", "return"}
    assert {name.rpartition(":")[2] for name in survived if ":6:" in name} == {"comparison", "constant"}
    assert "timed out" in done.stdout  # x += 1 never ends
    assert {path: path.read_bytes() for path in before} == before
    again = subprocess.run(command, cwd=project, capture_output=True, text=True, check=True)
    assert again.stdout == done.stdout[done.stdout.index(again.stdout.splitlines()[0]) :]  # the results are kept
