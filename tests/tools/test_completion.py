"""Shells complete ``dassl-lite``: tools, flags, values, paths and config keys."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dassl_lite.engine.commands.cli import run_tool
from dassl_lite.tools import completion

CASES = {
    "tra": {"train"},
    "train --train": {"--trainer"},
    "train --trainer TaskRes --enh": {"--enhanced-base"},
    "train --trainer Tip": {"TipAdapter", "TipAdapterF"},
    "train --dataset-config-file calt": {"caltech101"},
    "train --trainer TaskRes OPTIM.LR_": {"OPTIM.LR_SCHEDULER"},
    "train --overwrite --trainer CLIPL": {"CLIPLoRA"},
    "sweep --trainers TaskRes CoO": {"CoOp"},
    "eval --suite cro": {"cross-dataset"},
    "bench te": {"text-tower"},
    "bench extract --prec": {"--precision"},
    "bench extract --precision b": {"bf16"},
    "prepare --check EuroSAT Calt": {"Caltech101"},
    "completion z": {"zsh"},
    "train --root pho": {"photos"},  # the folder, not the file beside it
    "train --data pho": {"photos", "photos.csv"},
    "train --shots pho": set(),
}


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Map each shell to its completion script, generated once."""
    folder = tmp_path_factory.mktemp("scripts")
    found = {}
    for shell in completion.completion.SHELLS:
        with pytest.MonkeyPatch.context() as patch, (folder / shell).open("w") as file:
            patch.setattr("sys.stdout", file)
            assert run_tool(completion.main, [shell]) == 0
        found[shell] = folder / shell
    return found


@pytest.fixture
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos.csv").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def require(shell: str) -> str:
    path = shutil.which(shell)
    if path is None:
        pytest.skip(f"{shell} is not installed")
    return path


def output_of(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.stderr == ""
    return done.stdout


@pytest.mark.slow
def test_bash_finds_the_candidates(scripts: dict[str, Path], workdir: Path) -> None:
    lines = [f"source {scripts['bash']}"]
    for line in CASES:
        words = ["dassl-lite", *line.split(" ")]
        lines += [f"COMP_WORDS=({' '.join(words)}) COMP_CWORD={len(words) - 1}", '_dassl_lite; echo "${COMPREPLY[*]}"']
    found = output_of(require("bash"), "--norc", "-c", "\n".join(lines)).split("\n")
    assert dict(zip(CASES, (set(line.split()) for line in found), strict=False)) == CASES


def test_zsh_finds_the_candidates(scripts: dict[str, Path], workdir: Path) -> None:
    # zsh's completion builtins only work in an interactive shell; these stand-ins do the same for this folder.
    lines = [
        "compdef() { }",
        'compadd() { shift; for word in $@; do [[ $word = ${words[CURRENT]}* ]] && print -n -- "$word "; done }',
        "_files() { [[ $1 = -/ ]] && compadd -- photos || compadd -- photos photos.csv }",
        f"source {scripts['zsh']}",
    ]
    for line in CASES:
        words = ["dassl-lite", *line.split(" ")]
        lines += [f"words=({' '.join(words)}); CURRENT={len(words)}; _dassl-lite; print"]
    found = output_of(require("zsh"), "-f", "-c", "\n".join(lines)).split("\n")
    assert dict(zip(CASES, (set(line.split()) for line in found), strict=False)) == CASES


@pytest.mark.slow
def test_fish_finds_the_candidates(scripts: dict[str, Path], workdir: Path) -> None:
    fish, several = require("fish"), {"sweep --trainers TaskRes CoO"}  # fish only completes a flag's first value
    for line in CASES.keys() - several:
        out = output_of(fish, "--no-config", "-c", f"source {scripts['fish']}; complete -C 'dassl-lite {line}'")
        assert {row.split("\t")[0].rstrip("/") for row in out.splitlines()} == CASES[line], line


def typed(keys: str, shell: list[str], until: Callable[[str], bool], seconds: float = 60) -> str:
    """Type ``keys`` into an interactive shell and return its output once ``until`` is satisfied."""
    child, terminal = pty.fork()
    if child == 0:
        os.environ |= {"PS1": "> ", "TERM": "dumb", "INPUTRC": os.devnull}
        os.execvp(shell[0], shell)
    shown, deadline = "", time.monotonic() + seconds
    try:
        os.write(terminal, keys.encode())
        while not until(shown) and time.monotonic() < deadline:
            if select.select([terminal], [], [], 1)[0]:
                shown += os.read(terminal, 4096).decode(errors="replace")
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
        os.close(terminal)
    return shown


@pytest.mark.slow
def test_the_tab_key_completes_in_an_interactive_bash(scripts: dict[str, Path]) -> None:
    keys = f'dassl-lite() {{ echo "<$*>"; }}; source {scripts["bash"]}\ndassl-lite trai\t--trainer TaskRe\tEnh\t\n'
    expected = "<train --trainer TaskResEnhance>"
    assert expected in typed(keys, [require("bash"), "--norc", "--noprofile", "-i"], lambda shown: expected in shown)


def test_an_unknown_shell_prints_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_tool(completion.main, ["tcsh"]) == 2
    assert "invalid choice: 'tcsh'" in capsys.readouterr().err
