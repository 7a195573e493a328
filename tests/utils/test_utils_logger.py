"""Logging: what goes to the console, what to the file, and from which rank."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from dassl_lite.utils import get_logger, setup_logger
from dassl_lite.utils.logger import FILE_ONLY, flush_log, log_step


def test_messages_go_bare_to_console_and_file_and_are_never_doubled(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    setup_logger(tmp_path)
    setup_logger(tmp_path)
    logger = get_logger("dassl_lite.anything")
    logger.info("=> result")
    logger.info("only in the file", extra=FILE_ONLY)
    logger.warning("mind this")
    shown = capsys.readouterr()
    assert shown.out == "=> result\n"
    assert shown.err == "Warning: mind this\n"
    assert (tmp_path / "log.txt").read_text() == "=> result\nonly in the file\nWarning: mind this\n"


def test_other_ranks_log_only_warnings_and_only_to_the_console(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    setup_logger(tmp_path)
    get_logger("plugin").info("said by rank 0")
    get_logger("plugin").warning("said by all")
    assert capsys.readouterr() == ("", "Warning: said by all\n")
    assert not (tmp_path / "log.txt").exists()


def test_a_log_file_that_cannot_be_written_warns_once_and_the_console_continues(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    resource = pytest.importorskip("resource")
    logger = setup_logger(tmp_path)
    logger.info("first")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
    try:
        for number in range(3):
            logger.info("line %d", number)
        setup_logger()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    shown = capsys.readouterr()
    assert shown.out.splitlines() == ["first", "line 0", "line 1", "line 2"]
    assert shown.err == f"Warning: {tmp_path / 'log.txt'} cannot be written: File too large; logging stops here\n"
    assert (tmp_path / "log.txt").read_text().startswith("first\n")


def test_lines_of_steps_wait_for_others_and_stay_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("dassl_lite.utils.logger.time.monotonic", lambda: now)
    logger, file = setup_logger(tmp_path, console=False), tmp_path / "log.txt"
    logger.info("start")
    log_step("step 1")
    log_step("step 2\x1b")
    assert file.read_text() == "start\n"
    logger.info("in between")
    assert file.read_text() == "start\nstep 1\nstep 2\\x1b\nin between\n"
    now += 1
    log_step("step 3")
    log_step("step 4")
    assert file.read_text().endswith("in between\nstep 3\n")
    flush_log()
    assert file.read_text().endswith("step 3\nstep 4\n")
    log_step("step 5")
    setup_logger()  # closes the file
    assert file.read_text().endswith("step 4\nstep 5\n")


def test_whoever_listens_to_the_logger_hears_each_step(tmp_path: Path) -> None:
    logger, heard = setup_logger(tmp_path), logging.Handler()
    messages: list[str] = []
    heard.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logger.addHandler(heard)
    log_step("step 1")
    setup_logger()
    assert messages == ["step 1"]
    assert (tmp_path / "log.txt").read_text() == "step 1\n"
