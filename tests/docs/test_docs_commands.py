"""README.md and docs/: the commands, links and files that they name exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = [REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "trainers/README.md")]
PAGES += [REPOSITORY / "datasets/README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
# As frozen by tests/test_public_surface.py: "train --shots = None", "bench train --views = 10".
FROZEN = (REPOSITORY / "tests" / "public_surface" / "command_line.txt").read_text(encoding="utf-8").splitlines()
TOOLS = sorted({line.split()[0] for line in FROZEN})
COMMAND = re.compile(rf"(?:python tools/(\w+)\.py|dassl-lite ({'|'.join(TOOLS)})\b)((?:\\\n|[^\n`|;])*)")
EVERYWHERE = {"--help", "--version"}


def name_of(page: Path) -> str:
    return page.relative_to(REPOSITORY).as_posix()


def commands(page: Path) -> list[tuple[str, set[str]]]:
    """(tool, its flags) of every command on a page."""
    text = page.read_text(encoding="utf-8")
    return [(m[1] or m[2], set(re.findall(r"(?<!\S)--[a-z][\w-]*", m[3]))) for m in COMMAND.finditer(text)]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_flag_of_a_documented_command_exists(page: Path) -> None:
    for tool, flags in commands(page):
        assert (REPOSITORY / "tools" / f"{tool}.py").is_file()
        known = {word for line in FROZEN if line.split()[0] == tool for word in re.findall(r"--[\w-]+", line)}
        assert flags - known - EVERYWHERE == set(), f"of {tool}"


def test_the_flag_check_finds_the_commands_of_the_readme() -> None:
    found = commands(REPOSITORY / "README.md")
    assert ("train", {"--data", "--backbone"}) in found
    assert ("eval", {"--model-dir", "--suite", "--root"}) in found


def test_every_method_key_that_a_page_names_exists() -> None:
    frozen = (REPOSITORY / "tests" / "public_surface" / "config_keys.txt").read_text(encoding="utf-8")
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert "TRAINER.<" not in text
    named = set(re.findall(r"\bTRAINER\.\w+\.[A-Z_]+\b", text))
    assert "TRAINER.COOP.PREC" in named
    yours = {"TRAINER.BlendedProbe.ALPHA"}  # created by the reader of trainers/README.md
    assert {key for key in named - yours if f"{key} = " not in frozen} == set()


@pytest.mark.parametrize("page", ["docs/concepts/safety.md", "docs/tutorial.md"])
def test_pages_say_that_resuming_needs_the_same_command(page: str) -> None:
    lines = (REPOSITORY / page).read_text(encoding="utf-8").splitlines()
    sentences = [line for line in lines if "--resume DIR" in line and " alone " not in line]
    assert sentences
    assert all("command" in line and "add" in line for line in sentences)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_relative_link_leads_to_a_file(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?:|mailto:|#)([^)#\s]+)", page.read_text(encoding="utf-8"))
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_every_file_of_the_repository_that_a_page_names_exists() -> None:
    pattern = re.compile(r"`((?:dassl_lite|tools|tests|docs|examples|configs)/[\w/.\-]+\.\w+)`")
    named = {path for page in PAGES for path in pattern.findall(page.read_text(encoding="utf-8"))}
    # Files that readers of the two guides create.
    yours = {"configs/trainers/BlendedProbe/default.yaml", "configs/datasets/resisc45.yaml"}
    assert sorted(path for path in named - yours if not (REPOSITORY / path).exists()) == []


def test_the_readme_is_short_and_ci_runs_its_two_commands() -> None:
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert len(readme.splitlines()) < 200
    first, second = re.findall(r"\*\*(?:Try|Test) it\.\*\*.*?```bash\n(.*?)\n```", readme, re.DOTALL)
    ci = (REPOSITORY / ".ci" / "run").read_text(encoding="utf-8")
    assert first.endswith("python tools/train.py --trainer TaskRes")
    assert second.endswith("&& pytest")
    assert "\npytest\n" in ci
    assert "python tools/train.py --trainer TaskRes " in ci
