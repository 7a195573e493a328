"""How a command-line tool begins, before torch and the rest of the package are loaded, which takes seconds.

It does nothing in other programs: a library leaves signals and streams alone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from pathlib import Path
from typing import NoReturn

EXIT_INTERRUPTED = 130
# What asks a run to end: Ctrl-C, a scheduler, a terminal that closes.
STOP_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


def prepare_tool() -> None:
    """If this program is one of our tools, or a process that one has started: open streams, ready to be stopped.

    A signal ends it with one line and exit code 130 until `run_tool` takes over, which ends it in an orderly way.
    """
    if not _is_tool() or threading.current_thread() is not threading.main_thread():
        return
    for descriptor in (0, 1, 2):  # closed ones would be taken by the next files, which a library's prints would damage
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for number in STOP_SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
            signal.signal(number, _end)


def stopped_by(number: int) -> str:
    """Why a run ends, for its last line."""
    return "stopped" if number == signal.SIGINT else f"stopped by {signal.Signals(number).name}"


def _is_tool() -> bool:
    program, package = sys.argv[0] if sys.argv else "", Path(__file__).resolve().parent
    if program == "-m":  # until the module is found
        return any(word.startswith("dassl_lite.") for word in sys.orig_argv[1:3])
    if Path(program).stem == "dassl-lite":
        return True
    return program.endswith(".py") and Path(program).resolve().parent in (package / "tools", package.parent / "tools")


def _end(number: int, frame: object) -> NoReturn:
    processes = sys.modules.get("multiprocessing.process")
    if processes is None or processes.parent_process() is None:  # a sweep says it once, not once per process
        with contextlib.suppress(OSError):
            os.write(2, f"\nInterrupted: {stopped_by(number)}\n".encode())
    os._exit(EXIT_INTERRUPTED)
