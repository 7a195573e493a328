"""Logging: bare messages on the console and in ``log.txt``, from rank 0 only."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from pathlib import Path

ROOT_NAME = "dassl_lite"
# logger.info(text, extra=FILE_ONLY): for log.txt, not for the console.
FILE_ONLY = {"file_only": True}


class _ConsoleHandler(logging.StreamHandler):
    """Writes to whatever ``sys.stdout`` (warnings: ``sys.stderr``) is now, so that captured output stays captured."""

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "file_only", False):
            return
        out = getattr(sys.stdout, "console", sys.stdout)  # past what keeps printed lines, or they were kept twice
        self.stream = sys.stderr if record.levelno >= logging.WARNING else out
        super().emit(record)


class _FileHandler(logging.FileHandler):
    """``log.txt``. Where the disk takes no more it is told once, and the run goes on without."""

    _told = False

    def emit(self, record: logging.LogRecord) -> None:
        if not self._told:
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        self._told = True
        stream, self.stream = self.stream, None
        if stream is not None:
            with contextlib.suppress(OSError):  # it tries to write once more
                stream.close()
        sys.stderr.write(f"Warning: {self.baseFilename} cannot be written: {error.strerror}; it ends here\n")


class _BareFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return text if record.levelno < logging.WARNING else f"{record.levelname.capitalize()}: {text}"


def setup_logger(output: str | os.PathLike[str] | None = None, *, console: bool = True) -> logging.Logger:
    """Send the package's messages to the console and, if given, to a file.

    Args:
        output: a folder (the file is its ``log.txt``, as the field's parsers expect) or a ``.txt``/``.log`` file;
            an existing file is continued, so that a resumed run keeps its history.
        console: False keeps everything below a warning off the console.

    Returns:
        The package's logger. Calling again replaces the handlers, it never doubles them. Other than rank 0 of a
        distributed run log warnings only, and to no file.
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
        handlers.append(_FileHandler(path, encoding="utf-8", delay=True))
    for handler in handlers:
        handler.setFormatter(_BareFormatter("%(message)s"))
        logger.addHandler(handler)
    return logger


class Logger:
    """A stand-in for ``sys.stdout`` that also writes to a file (Dassl's name).

    Args:
        fpath: the file; None keeps what is printed in the run's ``log.txt``.
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
    """The logger of a module, below the package's, also for modules whose folder is mapped or loaded by path."""
    return logging.getLogger(name if name.split(".")[0] == ROOT_NAME else f"{ROOT_NAME}.{name}")
