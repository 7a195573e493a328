"""What a run leaves in its folder, which holds nothing else, and how a new run takes the place of an old one.

The old run stays as it is until the new one is built. Then it is set aside, in a hidden folder beside its successor's
files, and it goes for good if those hold a checkpoint or results in the end; else it comes back.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from dassl_lite.engine.files.results import FILE_NAME as RESULTS
from dassl_lite.utils.files import read_json

NEW_LOG = ".new-log.txt"  # log of a run that is being built while an old one is still there
REPLACED = ".replaced"  # folder with the run that was set aside
_PARTLY = ".replaced.partly"  # the same while its files are being moved
SAVED_CONFIG, SAVED_FORMAT = "config.json", "dassl-lite classifier"  # of a folder of FewShotClassifier.save
_FILES = (RESULTS, "log.txt", "cmat.pt", "tensorboard", "trackers.json", "wandb")


def holds_run(folder: str | Path) -> bool:
    """Whether a folder contains a training run: finished, unfinished, or set aside by one that was killed."""
    folder = Path(folder)
    return folder.is_dir() and (_has_begun(folder) or any((folder / name).is_dir() for name in (REPLACED, _PARTLY)))


def holds_saved_classifier(folder: str | Path) -> bool:
    """Whether a folder contains what `FewShotClassifier.save` writes."""
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
    """Set aside the run in ``folder`` while another one is trained there.

    Args:
        folder: must be locked for this run.
        overwrite: False leaves a run where it is; only what a killed process left behind is put in order.
    """
    folder = Path(folder)
    if (folder / _PARTLY).is_dir():
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
            os.rename(folder / REPLACED, folder / _PARTLY)
            _move_back(folder)


def _set_aside(folder: Path) -> None:
    """Move a run, and nothing else, out of the way; whatever had been set aside before goes."""
    shutil.rmtree(folder / REPLACED, ignore_errors=True)
    partly = folder / _PARTLY
    partly.mkdir()
    for path in [*_model_folders(folder), *(folder / name for name in _FILES)]:
        if path.exists():
            os.rename(path, partly / path.name)
    os.rename(partly, folder / REPLACED)


def _move_back(folder: Path) -> None:
    aside = folder / _PARTLY
    for path in list(aside.iterdir()):
        _remove(folder / path.name)
        os.rename(path, folder / path.name)
    aside.rmdir()


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
