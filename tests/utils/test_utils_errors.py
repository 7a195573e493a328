"""What a user is told: text from outside cannot act on the terminal, whichever way it takes there."""

from __future__ import annotations

import io
import logging
import random
import sys
from pathlib import Path

import pytest

from dassl_lite.engine.commands.cli import run_tool
from dassl_lite.utils import get_logger, setup_logger
from dassl_lite.utils.errors import UserError, printable
from dassl_lite.utils.logger import say

# Each acts on a terminal: title, colours, bell, backspace, 8-bit CSI, line ends, reversed order, bytes without text.
ACTING = {
    "\x1b]0;owned\x07": r"\x1b]0;owned\x07",
    "\x1b[31mred\x1b[0m": r"\x1b[31mred\x1b[0m",
    "a\0b": r"a\x00b",
    "secret\b\b\b\b\b\bpublic": r"secret\x08\x08\x08\x08\x08\x08public",
    "\x9b2J": r"\x9b2J",
    "wrong\rright": r"wrong\rright",
    "one\u2028two\x85three": r"one\u2028two\x85three",
    "\u202egnp.exe": r"\u202egnp.exe",
    "\u2066x\u2069": r"\u2066x\u2069",
    "caf\udce9": r"caf\udce9",
    "\x7f": r"\x7f",
}
KEPT = ["forêt", "猫", "كلب", "नमस्ते", "👩\u200d🚀", "می\u200cخم", r"back\slash", "it's 100 % {}", ""]


@pytest.mark.parametrize("text", ACTING)
def test_characters_that_act_become_their_escapes(text: str) -> None:
    assert printable(text) == ACTING[text]
    assert printable(printable(text)) == printable(text)


@pytest.mark.parametrize("text", KEPT)
def test_text_of_any_script_stays(text: str) -> None:
    assert printable(text) == text


def test_no_code_point_below_the_emoji_acts() -> None:
    shown = printable("".join(map(chr, range(0x3000))))
    assert not [char for char in shown if ord(char) < 32 or 127 <= ord(char) < 160 or 0x2028 <= ord(char) <= 0x202E]
    assert len(printable("\n")) == 2
    assert printable("a\nb", keep="\n") == "a\nb"


@pytest.mark.parametrize("way", ["log", "log argument", "warning", "say", "error", "error of a tool"])
def test_no_way_to_the_terminal_lets_text_from_outside_act(
    way: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hostile = "".join(random.Random(8).sample([*ACTING, *KEPT], k=len(ACTING) + len(KEPT)))
    logger = get_logger("dassl_lite.test") if setup_logger(tmp_path) else logging.getLogger()

    def main(argv: object) -> int:
        raise UserError(f"no {hostile}")

    if way == "log":
        logger.info(f"class {hostile}")
    elif way == "log argument":
        logger.info("class %s", hostile)
    elif way == "warning":
        logger.warning(f"class {hostile}")
    elif way == "say":
        say(hostile)
    elif way == "error":
        print(UserError(hostile))
    else:
        assert run_tool(main, []) == 2
    shown = "".join(capsys.readouterr())
    assert printable(hostile) in shown
    assert printable(shown, keep="\n") == shown
    log = tmp_path / "log.txt"
    assert not log.exists() or printable(log.read_text(), keep="\n") == log.read_text()


def test_a_name_that_the_terminal_cannot_encode_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    terminal = io.TextIOWrapper(written, encoding="ascii", newline="\n")
    monkeypatch.setattr(sys, "stdout", terminal)
    assert run_tool(lambda argv: say("forêt"), []) == 0  # type: ignore[func-returns-value]
    terminal.flush()
    assert written.getvalue() == b"for\\xeat\n"
