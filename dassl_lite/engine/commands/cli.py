"""What the command-line tools share: one line for a user's mistake, folders of runs, common flags."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from dassl_lite.engine.files.results import FILE_NAME as RESULTS
from dassl_lite.engine.files.run_lock import NAME as RUNNING
from dassl_lite.engine.files.run_lock import only_run_in
from dassl_lite.engine.parallel import distributed
from dassl_lite.engine.plugins import COMPAT
from dassl_lite.utils.errors import NO_ROOM, UserError
from dassl_lite.utils.logger import Logger

_CONFIG_KEY = re.compile(r"(INPUT|DATASET|DATALOADER|MODEL|OPTIM|TRAIN|TEST|TRAINER)(\.[A-Z]\w*)+$")

EXIT_USER_ERROR, EXIT_INTERRUPTED, EXIT_BROKEN_PIPE = 2, 130, 141


def run_tool(main: Callable[[Sequence[str] | None], int | None], argv: Sequence[str] | None = None) -> int:
    """Run a tool's ``main`` and turn its ending into an exit code.

    A user's mistake or a full disk is one line on stderr and code 2, Ctrl-C one line and code 130; ``--debug`` shows
    the traceback.
    """
    given = sys.argv[1:] if argv is None else argv
    debug = "--debug" in given
    # Code that was written for Dassl prints, and expects to find it in log.txt.
    prints: Any = contextlib.redirect_stdout(Logger()) if "--dassl-compat" in given else contextlib.nullcontext()
    try:
        with prints:
            return main(argv) or 0
    except UserError as error:
        if debug:
            raise
        sys.stderr.write(f"Error: {' '.join(str(error).split())}\n")
        return EXIT_USER_ERROR
    except BrokenPipeError:  # the reader has gone (`| head`); nothing more is to be said
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    except OSError as error:
        if debug or error.errno not in NO_ROOM:
            raise
        where = f" for {error.filename}" if error.filename else ""
        sys.stderr.write(f"Error: {error.strerror}{where}; what was written before stays. Make room and run again\n")
        return EXIT_USER_ERROR
    except RuntimeError as error:
        if debug or not distributed.lost_another(error):
            raise
        sys.stderr.write("Error: another process of this run has ended, so this one does too; see what it said\n")
        return EXIT_USER_ERROR
    except KeyboardInterrupt as interrupt:
        if debug:
            raise
        sys.stderr.write(f"\nInterrupted: {interrupt or 'stopped'}\n")
        return EXIT_INTERRUPTED


class ToolParser(argparse.ArgumentParser):
    """A parser whose mistakes are UserErrors, and for which config keys end the flags, whatever stands before them."""

    def parse_args(  # type: ignore[override]  # the overloads say nothing that Any does not
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> Any:
        given = list(sys.argv[1:] if args is None else args)
        start = next((i for i, word in enumerate(given) if _CONFIG_KEY.match(word)), len(given))
        parsed = super().parse_args(given[:start], namespace)
        if start < len(given):
            if not hasattr(parsed, "options"):
                self.error(f"{given[start]} is a config key, and this tool takes none")
            parsed.options = [*parsed.options, *given[start:]]
        return parsed

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} ({self.prog} --help lists the flags)")


def add_common_flags(parser: argparse.ArgumentParser) -> None:
    """Flags that every tool with a config takes."""
    parser.add_argument("--root", default="", help="folder that holds the datasets' folders")
    parser.add_argument("--plugin", action="append", default=[], metavar="FILE_OR_MODULE", help="import this first")
    parser.add_argument(
        "--dassl-compat",
        dest="plugin",
        action="append_const",
        const=COMPAT,
        help="run plug-ins that were written for Dassl: import dassl gives this package",
    )
    parser.add_argument("--allow-new-keys", action="store_true", help="take config keys that nothing declares")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    parser.add_argument("options", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config keys to set, last")


def holds_run(folder: str | Path) -> bool:
    """Whether a folder holds a training run, finished or not."""
    folder = Path(folder)
    return folder.is_dir() and ((folder / RESULTS).exists() or bool(_model_folders(folder)))


def prepare_output(folder: str | Path, *, overwrite: bool, resume: bool) -> Path:
    """Make a run's folder, or say why it cannot be used; ``overwrite`` removes the run in it (and nothing else)."""
    folder = Path(folder)
    if holds_run(folder) and not resume:
        if not overwrite:
            raise UserError(
                f"output folder {folder} holds another run; choose another --output-dir, or give --resume to go on "
                "with it or --overwrite to replace it"
            )
        with only_run_in(folder):
            _remove_run(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"output folder {folder} cannot be written: {error.strerror or error}") from None
    return folder


def free_folder(folder: Path) -> Path:
    """``folder``, or the first of ``folder-2``, ``folder-3`` ... that holds no run yet, not even one just begun."""
    number, candidate = 1, folder
    while holds_run(candidate) or (candidate / RUNNING).exists():
        number += 1
        candidate = folder.with_name(f"{folder.name}-{number}")
    return candidate


def _model_folders(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_dir() and any(path.glob("model*.pth.tar*"))]


def _remove_run(folder: Path) -> None:
    for path in [*_model_folders(folder), folder / "tensorboard"]:
        shutil.rmtree(path, ignore_errors=True)
    for name in (RESULTS, "log.txt", "cmat.pt"):
        (folder / name).unlink(missing_ok=True)
