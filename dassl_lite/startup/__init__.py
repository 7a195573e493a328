"""Start-up of a command-line tool, before the slow import of torch and the rest of the package.

Does nothing in other programs: a library leaves signals and streams alone.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

EXIT_INTERRUPTED = 130
# Sent by Ctrl-C, by a scheduler, and by a terminal that closes.
STOP_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))

_is_ours = False  # whether the package may tune this process's garbage collection
_in_tool = False  # whether this is a tool's process, or one that a tool has started


def prepare_tool() -> None:
    """Prepare streams and signals if this program is one of our tools, or a process that one has started.

    A signal ends the process with one line and exit code 130, until `run_tool` takes over and shuts down in an orderly
    way. If only the help is requested, it is printed here.
    """
    if not _is_tool() or threading.current_thread() is not threading.main_thread():
        return
    for descriptor in (0, 1, 2):  # else the next files get these numbers, and prints damage them
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for number in STOP_SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
            signal.signal(number, _end)
    sys.meta_path.insert(0, _NoWandbForTimm())
    global _in_tool
    _in_tool = True
    tool, words = _tool_and_words()
    if words in (["--help"], ["-h"]):
        from dassl_lite.startup.tool_help import print_if_asked

        print_if_asked(tool, words)
    if not _is_child():  # a child could not tell when its imports are done
        global _is_ours
        _is_ours = True
        gc.disable()


class _NoWandbForTimm:
    """Hides wandb from timm, which open_clip loads, to save a second: timm imports it for a log that is not used here.

    Other modules can import wandb.
    """

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        importer = sys.modules.get("timm.utils.summary") if name == "wandb" else None
        if getattr(getattr(importer, "__spec__", None), "_initializing", False):
            raise ModuleNotFoundError("wandb is not loaded for timm", name=name)


def in_tool() -> bool:
    """Whether this process is a tool's, or was started by one, so that we may change torch's global settings."""
    return _in_tool


def keep_for_good() -> None:
    """In a tool: exempt everything loaded so far from garbage collection, as it stays to the end.

    Loading the package makes a million objects. The collector would traverse them several times during loading, and
    again at the end of the process, which takes a quarter of a short run's time.
    """
    if _is_ours:
        gc.freeze()
        gc.enable()


def keep_in_worker() -> None:
    """`keep_for_good` for a worker process, once it has loaded the package: garbage is collected after each run of a
    sweep, and traversing all loaded objects would take half a second."""
    global _is_ours
    _is_ours = True
    keep_for_good()


@contextlib.contextmanager
def loading() -> Iterator[None]:
    """In a tool: a context for loading modules; see `keep_for_good`."""
    if _is_ours:
        gc.disable()
    try:
        yield
    finally:
        keep_for_good()


def _tool_and_words() -> tuple[str, list[str]]:
    """Name and arguments of the running tool; "" for the installed command without arguments."""
    program, words = sys.argv[0], sys.argv[1:]
    name = sys.orig_argv[2].rpartition(".")[2] if program == "-m" and len(sys.orig_argv) > 2 else Path(program).stem
    if name in ("dassl-lite", "cli"):
        return (words[0].replace("-", "_"), words[1:]) if words else ("", [])
    return name, words


def stopped_by(number: int) -> str:
    """Why a run ended, for its last line."""
    return "stopped" if number == signal.SIGINT else f"stopped by {signal.Signals(number).name}"


def _is_tool() -> bool:
    program, package = sys.argv[0] if sys.argv else "", Path(__file__).resolve().parent.parent
    if program == "-m":  # while Python is still looking for the module
        return any(word.startswith("dassl_lite.") for word in sys.orig_argv[1:3])
    if Path(program).stem == "dassl-lite":
        return True
    return program.endswith(".py") and Path(program).resolve().parent in (package / "tools", package.parent / "tools")


def _is_child() -> bool:
    """Whether another Python process has started this one."""
    processes = sys.modules.get("multiprocessing.process")
    return processes is not None and processes.parent_process() is not None


def _end(number: int, frame: object) -> NoReturn:
    if not _is_child():  # a sweep says it once, not once per process
        with contextlib.suppress(OSError):
            os.write(2, f"\nInterrupted: {stopped_by(number)}\n".encode())
    os._exit(EXIT_INTERRUPTED)
