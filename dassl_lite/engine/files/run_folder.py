"""The files in a run's folder, and how a new run replaces an old one.

The old run stays untouched until the new one is built. It is then moved to a hidden sub-folder. When the new run ends,
the old one is deleted if the new one left a checkpoint or results, and restored otherwise.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from dassl_lite.engine.files.results import FILE_NAME as RESULTS
from dassl_lite.utils.files import read_json

NEW_LOG = ".new-log.txt"  # log of a run being built while an old run is still in the folder
REPLACED = ".replaced"  # sub-folder with the old run
_PARTIAL = ".replaced.partly"  # the same, while files are being moved
SAVED_CONFIG, SAVED_FORMAT = "config.json", "dassl-lite classifier"  # in a folder written by FewShotClassifier.save
_FILES = (RESULTS, "log.txt", "cmat.pt", "tensorboard", "trackers.json", "wandb")


def holds_run(folder: str | Path) -> bool:
    """Whether a folder contains a training run: finished, unfinished, or set aside by a run that was killed."""
    folder = Path(folder)
    return folder.is_dir() and (_has_begun(folder) or any((folder / name).is_dir() for name in (REPLACED, _PARTIAL)))


def holds_saved_classifier(folder: str | Path) -> bool:
    """Whether a folder contains a classifier written by `FewShotClassifier.save`."""
    try:
        values = read_json(Path(folder) / SAVED_CONFIG)
    except (OSError, ValueError):
        return False
    return isinstance(values, dict) and values.get("format") == SAVED_FORMAT


def _has_begun(folder: Path) -> bool:
    return (folder / RESULTS).exists() or bool(_model_folders(folder))


def _model_folders(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_dir() and any(path.glob("model*.pth.tar*"))]


@contextlib.contextmanager
def replacing(folder: str | Path, *, overwrite: bool) -> Iterator[None]:
    """A context in which the run in ``folder`` is set aside while another one trains there.

    Args:
        folder: must be locked for this run.
        overwrite: False keeps an existing run in place and only cleans up after a killed process.
    """
    folder = Path(folder)
    if (folder / _PARTIAL).is_dir():
        _move_back(folder)
    if overwrite and _has_begun(folder):
        _set_aside(folder)
    if (folder / NEW_LOG).exists():
        os.replace(folder / NEW_LOG, folder / "log.txt")
    try:
        yield
    finally:
        if _has_begun(folder):
            shutil.rmtree(folder / REPLACED, ignore_errors=True)
        elif (folder / REPLACED).is_dir():
            for name in _FILES:
                _remove(folder / name)
            os.rename(folder / REPLACED, folder / _PARTIAL)
            _move_back(folder)


def _set_aside(folder: Path) -> None:
    """Move a run, and nothing else, out of the way; delete any run set aside before."""
    shutil.rmtree(folder / REPLACED, ignore_errors=True)
    partial = folder / _PARTIAL
    partial.mkdir()
    for path in [*_model_folders(folder), *(folder / name for name in _FILES)]:
        if path.exists():
            os.rename(path, partial / path.name)
    os.rename(partial, folder / REPLACED)


def _move_back(folder: Path) -> None:
    aside = folder / _PARTIAL
    for path in list(aside.iterdir()):
        _remove(folder / path.name)
        os.rename(path, folder / path.name)
    aside.rmdir()


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
