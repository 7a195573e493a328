"""Error handling and exit codes of the command-line tools, and their output folders."""

from __future__ import annotations

import contextlib
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from dassl_lite.engine.files.run_folder import holds_run, holds_saved_classifier
from dassl_lite.engine.files.run_lock import NAME as RUNNING
from dassl_lite.engine.parallel import distributed
from dassl_lite.startup import EXIT_INTERRUPTED, STOP_SIGNALS, keep_for_good, stopped_by
from dassl_lite.utils.errors import NO_ROOM, NOT_USABLE, UserError, printable, shown
from dassl_lite.utils.logger import Logger
from dassl_lite.utils.streams import lenient_streams

EXIT_USER_ERROR, EXIT_BROKEN_PIPE = 2, 141
LONGEST_MESSAGE = 2000  # characters
LESS_MEMORY = (
    "To use less memory, lower DATALOADER.TRAIN_X.BATCH_SIZE, set PREC fp16 on a GPU or, if the method learns prompts, "
    "set TEXT_CHECKPOINT True; checkpoints saved so far are intact"
)


def run_tool(main: Callable[[Sequence[str] | None], int | None], argv: Sequence[str] | None = None) -> int:
    """Run a tool's ``main`` and return the process's exit code.

    User errors and a full disk print one line to stderr and exit with 2. Ctrl-C, SIGTERM and SIGHUP print one line and
    exit with 130. ``--debug`` shows the traceback. If the reader of standard output goes away (``| head -1``), the tool
    finishes its work silently and exits with 141.
    """
    words = sys.argv[1:] if argv is None else argv
    debug = "--debug" in words
    keep_for_good()
    with lenient_streams() as out, contextlib.ExitStack() as stack:
        with contextlib.suppress(AttributeError, ValueError, OSError):  # a name that the terminal cannot encode
            sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
        stack.callback(keep_for_good)  # avoids a garbage collection when the process ends
        stack.enter_context(_signals_interrupt())
        if "--dassl-compat" in words:  # code written for Dassl expects what it prints to appear in log.txt
            stack.enter_context(contextlib.redirect_stdout(Logger()))
        try:
            code = main(argv) or 0
            sys.stdout.flush()
            return code or (EXIT_BROKEN_PIPE if out.lost else 0)
        except UserError as error:
            if debug:
                raise
            return _fail(" ".join(str(error).split()))
        except OSError as error:
            if not debug and error.errno in NOT_USABLE and error.filename:
                return _fail(f"{error.strerror}: {shown(error.filename)}")
            if debug or error.errno not in NO_ROOM:
                raise
            where = f" for {error.filename}" if error.filename else ""
            return _fail(f"{error.strerror}{where}; files written earlier are intact. Free some space and run again")
        except RuntimeError as error:
            from dassl_lite.utils.devices import is_out_of_memory  # imports torch

            if not debug and is_out_of_memory(error):
                return _fail(f"{' '.join(str(error).split())[:200]}. {LESS_MEMORY}")
            if debug or not distributed.lost_another(error):
                raise
            return _fail("another process of this run ended, so this one stops too; see its message")
        except KeyboardInterrupt as interrupt:
            if debug:
                raise
            sys.stderr.write(f"\nInterrupted: {interrupt or 'stopped'}\n")
            return EXIT_INTERRUPTED


@contextlib.contextmanager
def _signals_interrupt() -> Iterator[None]:
    """A context in which stop signals raise KeyboardInterrupt, except those that are ignored, as under nohup."""

    def interrupt(number: int, frame: object) -> NoReturn:
        raise KeyboardInterrupt(stopped_by(number))

    before = {}
    if threading.current_thread() is threading.main_thread():
        numbers = [number for number in STOP_SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
        before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _fail(message: str) -> int:
    if len(message) > LONGEST_MESSAGE:  # it quotes user input
        message = f"{message[: LONGEST_MESSAGE - 300]} ... {message[-200:]}"
    sys.stderr.write(f"Error: {printable(message)}\n")
    return EXIT_USER_ERROR


def prepare_output(folder: str | Path, *, overwrite: bool, resume: bool) -> Path:
    """Create the output folder of a run.

    Args:
        folder: the run's folder.
        overwrite, resume: accept a folder that contains a run; a run to be replaced stays until its successor is built.

    Raises:
        UserError: the folder contains another run or a saved classifier, or cannot be written to.
    """
    folder = Path(folder)
    if holds_run(folder) and not resume and not overwrite:
        raise UserError(
            f"output folder {folder} contains another run; choose another --output-dir, or add --resume to "
            "continue the run or --overwrite to replace it"
        )
    if holds_saved_classifier(folder):
        raise UserError(f"output folder {folder} contains a saved classifier; choose another --output-dir")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"output folder {folder} cannot be written: {error.strerror or error}") from None
    return folder


def free_folder(folder: Path) -> Path:
    """The first of ``folder``, ``folder-2``, ``folder-3``, ... without a run, including one that has just started."""
    number, candidate = 1, folder
    while holds_run(candidate) or (candidate / RUNNING).exists():
        number += 1
        candidate = folder.with_name(f"{folder.name}-{number}")
    return candidate
