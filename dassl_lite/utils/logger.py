"""Logging: bare messages to the console and to ``log.txt``, on rank 0 only; printing for tools."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from pathlib import Path

from dassl_lite.utils.errors import printable

ROOT_NAME = "dassl_lite"
# logger.info(text, extra=FILE_ONLY) writes to log.txt but not to the console.
FILE_ONLY = {"file_only": True}
_HELD_SECONDS = 0.5  # how long `log_step` collects lines before writing them


class _ConsoleHandler(logging.StreamHandler):  # type: ignore[type-arg]  # no subscript before Python 3.11
    """Writes to the current ``sys.stdout`` (warnings: ``sys.stderr``), so that captured output stays captured."""

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "file_only", False):
            return
        out = getattr(sys.stdout, "console", sys.stdout)  # bypass Logger, which would write the line to log.txt twice
        self.stream = sys.stderr if record.levelno >= logging.WARNING else out
        if self.stream is not None:  # None: closed
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        if not isinstance(sys.exc_info()[1], OSError):  # a lost console must not end a run, or flood another stream
            super().handleError(record)


class _FileHandler(logging.FileHandler):
    """Writes ``log.txt``; if that fails, say on a full disk, it warns once and stops writing."""

    _failed = False
    _written_at = 0.0

    def __init__(self, path: Path) -> None:
        super().__init__(path, encoding="utf-8", delay=True)
        self._held: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self._write_held()
        if not self._failed:
            super().emit(record)

    def hold(self, line: str) -> None:
        """Hold a line back and write it with the next message, or within half a second if more lines follow."""
        with self.lock or contextlib.nullcontext():
            self._held.append(line)
            if time.monotonic() - self._written_at > _HELD_SECONDS:
                self._write_held()

    def _write_held(self) -> None:
        lines, self._held = self._held, []
        self._written_at = time.monotonic()
        if lines and not self._failed:
            super().emit(logging.makeLogRecord({"msg": "\n".join(lines), "levelno": logging.INFO}))

    def flush(self) -> None:
        with self.lock or contextlib.nullcontext():
            self._write_held()
            super().flush()

    def close(self) -> None:
        with self.lock or contextlib.nullcontext():
            self._write_held()
            super().close()

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        self._failed = True
        stream, self.stream = self.stream, None
        if stream is not None:
            with contextlib.suppress(OSError):  # closing flushes
                stream.close()
        sys.stderr.write(
            f"Warning: {printable(self.baseFilename)} cannot be written: {error.strerror}; logging stops here\n"
        )


class _BareFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = printable(super().format(record), keep="\n\t")
        return text if record.levelno < logging.WARNING else f"{record.levelname.capitalize()}: {text}"


def setup_logger(output: str | os.PathLike[str] | None = None, *, console: bool = True) -> logging.Logger:
    """Send the package's messages to the console and, if given, to a file.

    Calling it again replaces the handlers. Ranks other than 0 of a distributed run log only warnings, to the console.

    Args:
        output: a folder, for a ``log.txt`` in it (the name that the field's parsers expect), or a ``.txt`` or ``.log``
            file. An existing file is appended to, so a resumed run keeps its history.
        console: False shows only warnings on the console.

    Returns:
        The package's logger.
    """
    logger = logging.getLogger(ROOT_NAME)
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    rank_zero = int(os.environ.get("RANK", "0")) == 0
    logger.setLevel(logging.INFO if rank_zero else logging.WARNING)
    logger.propagate = False
    handlers: list[logging.Handler] = [_ConsoleHandler(sys.stdout)]
    if not console:
        handlers[0].setLevel(logging.WARNING)
    if output is not None and rank_zero:
        path = Path(output)
        if path.suffix not in (".txt", ".log"):
            path = path / "log.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        handlers.append(_FileHandler(path))
    for handler in handlers:
        handler.setFormatter(_BareFormatter("%(message)s"))
        logger.addHandler(handler)
    return logger


def log_step(line: str) -> None:
    """Write a line to ``log.txt`` but not to the console, as with FILE_ONLY; for lines that come every millisecond.

    Lines are collected, and written before the next message or by `flush_log`.
    """
    root = logging.getLogger(ROOT_NAME)
    others = [handler for handler in root.handlers if not isinstance(handler, _ConsoleHandler | _FileHandler)]
    if others or root.propagate:  # other handlers need each record
        root.info(line, extra=FILE_ONLY)
    elif root.isEnabledFor(logging.INFO):
        for handler in root.handlers:
            if isinstance(handler, _FileHandler):
                handler.hold(line)


def flush_log() -> None:
    """Write the collected lines to ``log.txt``."""
    for handler in logging.getLogger(ROOT_NAME).handlers:
        if isinstance(handler, _FileHandler):
            handler.flush()


def say(text: str) -> None:
    """Print a tool's result, which may have several lines; control characters in it become escapes."""
    # Flushed, because a tool that keeps running may write to a pipe.
    print(printable(text, keep="\n\t"), flush=True)  # noqa: T201 (the one place that prints)


class Logger:
    """Replaces ``sys.stdout`` and also writes to a file (Dassl's name).

    Args:
        fpath: the file; None copies what is printed to the run's ``log.txt``.
    """

    def __init__(self, fpath: str | os.PathLike[str] | None = None) -> None:
        self.console = sys.stdout
        self._file = open(fpath, "a", encoding="utf-8") if fpath is not None else None  # noqa: SIM115
        self._line = ""

    def write(self, msg: str) -> int:
        self.console.write(msg)
        if self._file is not None:
            return self._file.write(msg)
        *lines, self._line = (self._line + msg).split("\n")
        for line in lines:
            logging.getLogger(ROOT_NAME).info("%s", line, extra=FILE_ONLY)
        return len(msg)

    def flush(self) -> None:
        self.console.flush()
        if self._file is not None:
            self._file.flush()

    def isatty(self) -> bool:
        return self.console.isatty()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def get_logger(name: str) -> logging.Logger:
    """The logger of a module, under the package's logger even if the module was loaded by path."""
    return logging.getLogger(name if name.split(".")[0] == ROOT_NAME else f"{ROOT_NAME}.{name}")
