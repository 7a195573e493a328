from __future__ import annotations

from pathlib import Path

import pytest

from dassl_lite.utils import get_logger, setup_logger
from dassl_lite.utils.logger import FILE_ONLY


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


def test_other_ranks_log_warnings_only_and_to_no_file(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    setup_logger(tmp_path)
    get_logger("plugin").info("said by rank 0")
    get_logger("plugin").warning("said by all")
    assert capsys.readouterr() == ("", "Warning: said by all\n")
    assert not (tmp_path / "log.txt").exists()
