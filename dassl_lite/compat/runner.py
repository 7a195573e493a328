"""Run a training script written for Dassl as it is, on this package.

    python -m dassl_lite.compat REPO/train.py --root DATA --trainer X --config-file REPO/configs/trainers/X/y.yaml ...
    dassl-lite run-dassl REPO/train.py ...

The words after the script are the script's own. Its folder is on the path, as with ``python REPO/train.py``; ``dassl``
is this package, and its ``clip`` package finds weights here. What it prints goes to ``log.txt`` too, and the folder in
its OUTPUT_DIR gets a ``results.json`` besides.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib.util
import os
import runpy
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from dassl_lite.config import cfg_default
from dassl_lite.engine.contract.base import TrainerBase
from dassl_lite.engine.contract.trackers import outcome_of
from dassl_lite.engine.contract.trainer import SimpleTrainer
from dassl_lite.engine.files.checkpoint import CheckpointStore
from dassl_lite.engine.files.results import write_results
from dassl_lite.engine.parallel import distributed
from dassl_lite.utils import UserError, get_logger, setup_logger
from dassl_lite.utils.logger import Logger

logger = get_logger(__name__)

# Top-level module -> what pip calls it, where the names differ.
_PIP_NAMES = {"PIL": "pillow", "clip": "git+https://github.com/openai/CLIP.git", "cv2": "opencv-python"}
_PIP_NAMES |= {"skimage": "scikit-image", "sklearn": "scikit-learn", "yaml": "pyyaml"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script that the first argument names, with the other arguments as its own."""
    words = list(sys.argv[1:] if argv is None else argv)
    while words and words[0] == "--debug":
        del words[0]
    if not words or words[0] in ("-h", "--help"):
        sys.stdout.write(f"{__doc__}\n")
        return 0
    run(Path(words[0]), words[1:])
    return 0


def run(script: Path, arguments: Sequence[str]) -> None:
    """Run a script as ``python SCRIPT ARGUMENTS`` would; it may end in a SystemExit.

    Raises:
        UserError: there is no such script, or it imports something that is not installed or not in this package.
    """
    if not script.is_file():
        raise UserError(f"script {script} does not exist")
    setup_logger()
    with contextlib.redirect_stdout(Logger()), _as_main(script, arguments), _dassls_default(), _results() as write:
        try:
            runpy.run_path(str(script), run_name="__main__")
        except ImportError as error:
            raise _import_failed(error, script) from error
        except SystemExit as end:
            if end.code in (None, 0):
                write()
            raise
        write()


@contextlib.contextmanager
def _as_main(script: Path, arguments: Sequence[str]) -> Iterator[None]:
    """``sys.argv`` and ``sys.path`` as if Python had been started with the script."""
    argv, path, folder = sys.argv, list(sys.path), str(script.resolve().parent)
    sys.argv = [str(script), *arguments]
    if sys.path and sys.path[0] in ("", os.getcwd()):  # put there by `python -m`
        del sys.path[0]
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.argv, sys.path[:] = argv, path


@contextlib.contextmanager
def _dassls_default() -> Iterator[None]:
    """No backbone by default, as in Dassl: a script that names none should not get ours."""
    node = cfg_default.MODEL.BACKBONE
    ours, node.NAME = node.NAME, ""
    try:
        yield
    finally:
        node.NAME = ours


# ---- results.json ----


@contextlib.contextmanager
def _results() -> Iterator[Callable[[], None]]:
    """A context that tracks each trainer that is built; it yields a function that writes the last one's results.

    An earlier trainer's results are written when the next one is built.
    """
    initialise, last = TrainerBase.__init__, [None]

    @functools.wraps(initialise)
    def noticed(self: Any, *args: Any, **more: Any) -> None:
        write()
        initialise(self, *args, **more)
        last[0] = self
        _keep_what_test_returns(self)

    def write() -> None:
        trainer, last[0] = last[0], None
        if isinstance(trainer, SimpleTrainer) and not distributed.rank():
            _write(trainer)

    TrainerBase.__init__ = noticed  # type: ignore[method-assign]
    try:
        yield write
    finally:
        TrainerBase.__init__ = initialise  # type: ignore[method-assign]


def _keep_what_test_returns(trainer: Any) -> None:
    """Store the return value of ``test`` as the accuracy: an overridden one may store no results."""
    test = trainer.test

    @functools.wraps(test)
    def kept(*args: Any, **more: Any) -> Any:
        value = test(*args, **more)
        split = next(iter([*args, *more.values()]), None) or trainer.cfg.TEST.SPLIT
        if isinstance(value, float | int) and isinstance(split, str):
            trainer.results.setdefault(split, {"accuracy": float(value)})
        return value

    trainer.test = kept


def _write(trainer: Any) -> None:
    """Write the results of a trainer that did something into its OUTPUT_DIR."""
    trained = "time_start" in vars(trainer)
    if not trainer.results and not trained:
        return
    folder = Path(trainer.cfg.OUTPUT_DIR)
    if not trained and any(CheckpointStore(folder).epochs(name) for name in trainer.get_model_names()):
        logger.info(
            f"\n{folder} holds a trained run, whose results stay; give --output-dir for those of this evaluation"
        )
        return
    results = {**trainer.run_results(), "zero_shot_accuracy": None}
    path = write_results(results, folder)
    trainer.trackers.finish(outcome_of(results, folder))
    logger.info(f"\nResults: {path}")


# ---- what cannot be imported ----


def _import_failed(error: ImportError, script: Path) -> UserError:
    """The error in one line: what the script needs and this Python, or this package, lacks."""
    name = error.name or ""
    top = name.partition(".")[0]
    if top in ("dassl", "dassl_lite"):
        name = name.replace("dassl_lite", "dassl", 1)
        what = name if isinstance(error, ModuleNotFoundError) else f"{str(error).split(chr(39))[1]} from {name}"
        return UserError(
            f"{script} imports {what}, which this package does not have; 'Coming from Dassl' in trainers/README.md "
            "lists what is not included"
        )
    if not isinstance(error, ModuleNotFoundError):
        return UserError(f"{script} cannot be imported: {error}")
    if _local_file(name, script.resolve().parent, whole=False):
        return UserError(f"{script} cannot be imported: its repository has no module {name}")
    lacking = sorted({top, *_lacking(script)})
    pip = " ".join(_PIP_NAMES.get(name, name) for name in lacking)
    return UserError(f"{script} needs {', '.join(lacking)}, which this Python lacks; pip install {pip}")


def _lacking(script: Path) -> set[str]:
    """Top-level packages that a script and its local imports need, but that are not installed."""
    root = script.resolve().parent
    todo, seen, lacking = [script.resolve()], set(), set()
    while todo:
        file = todo.pop()
        if file in seen:
            continue
        seen.add(file)
        for name in _imports(file, root):
            local = _local_file(name, root)
            top = name.partition(".")[0]
            if local is not None:
                todo.append(local)
            elif _local_file(top, root) is None and top not in sys.modules and importlib.util.find_spec(top) is None:
                lacking.add(top)
    return lacking


def _imports(file: Path, root: Path) -> Iterator[str]:
    """Dotted names of the modules that a file imports at import time, except inside a ``try``."""
    try:
        todo: list[ast.AST] = [ast.parse(file.read_text(encoding="utf-8", errors="replace"))]
    except (OSError, SyntaxError, ValueError):
        return
    package = ".".join(file.parent.relative_to(root).parts)
    while todo:
        node = todo.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.Try):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".") if package else []
            base = parts[: len(parts) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            if module:
                yield module
            if node.level or _local_file(module, root):
                yield from (
                    f"{module}.{alias.name}" for alias in node.names if _local_file(f"{module}.{alias.name}", root)
                )
        todo += ast.iter_child_nodes(node)


def _local_file(name: str, root: Path, *, whole: bool = True) -> Path | None:
    """The file of a module in the script's folder; if not ``whole``, that of its top-level package."""
    place = root.joinpath(*(name if whole else name.partition(".")[0]).split("."))
    for path in (place.with_suffix(".py"), place / "__init__.py"):
        if path.is_file():
            return path
    return place if place.is_dir() and not whole else None
