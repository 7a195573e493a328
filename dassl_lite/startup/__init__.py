"""How a command-line tool begins, before torch and the rest of the package are loaded, which takes seconds.

It does nothing in other programs: a library leaves signals and streams alone.
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
# What asks a run to end: Ctrl-C, a scheduler, a terminal that closes.
STOP_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))

_is_ours = False  # whether this process is a tool's, which loads the package for itself
_in_tool = False  # that, or one that a tool has started


def prepare_tool() -> None:
    """If this program is one of our tools, or a process that one has started: open streams, ready to be stopped.

    A signal ends it with one line and exit code 130 until `run_tool` takes over, which ends it in an orderly way. If it
    is only asked for its help, that is printed here.
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
    sys.meta_path.insert(0, _NoWandbForTimm())
    global _in_tool
    _in_tool = True
    tool, words = _tool_and_words()
    if words in (["--help"], ["-h"]):
        from dassl_lite.startup.tool_help import print_if_asked

        print_if_asked(tool, words)
    if not _is_child():  # nothing would notify it that its imports are done
        global _is_ours
        _is_ours = True
        gc.disable()


class _NoWandbForTimm:
    """timm, which open_clip loads, imports wandb wherever it is installed, for a log that nothing here writes.

    That takes a second. Others that import wandb get it.
    """

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        importer = sys.modules.get("timm.utils.summary") if name == "wandb" else None
        if getattr(getattr(importer, "__spec__", None), "_initializing", False):
            raise ModuleNotFoundError("wandb is not loaded for timm", name=name)


def in_tool() -> bool:
    """Whether this process is a tool's, or one that a tool has started, so that torch is ours to change."""
    return _in_tool


def keep_for_good() -> None:
    """In a tool: what is loaded now stays to the end, so the garbage collector need not look at it any more.

    Loading the package makes a million objects. The collector would go through them several times meanwhile, and once
    more at the end of the process, which takes a quarter of a short run's time.
    """
    if _is_ours:
        gc.freeze()
        gc.enable()


def keep_in_worker() -> None:
    """`keep_for_good` in a process that a tool has started, now that it has loaded the package: after each run of a
    sweep garbage is collected, which otherwise goes through all that is loaded, in half a second."""
    global _is_ours
    _is_ours = True
    keep_for_good()


@contextlib.contextmanager
def loading() -> Iterator[None]:
    """In a tool: a context in which modules are loaded; see `keep_for_good`."""
    if _is_ours:
        gc.disable()
    try:
        yield
    finally:
        keep_for_good()


def _tool_and_words() -> tuple[str, list[str]]:
    """The tool that this program is, and its arguments; "" for the command whose first argument names it."""
    program, words = sys.argv[0], sys.argv[1:]
    name = sys.orig_argv[2].rpartition(".")[2] if program == "-m" and len(sys.orig_argv) > 2 else Path(program).stem
    if name in ("dassl-lite", "cli"):
        return (words[0].replace("-", "_"), words[1:]) if words else ("", [])
    return name, words


def stopped_by(number: int) -> str:
    """Why a run ends, for its last line."""
    return "stopped" if number == signal.SIGINT else f"stopped by {signal.Signals(number).name}"


def _is_tool() -> bool:
    program, package = sys.argv[0] if sys.argv else "", Path(__file__).resolve().parent.parent
    if program == "-m":  # until the module is found
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
