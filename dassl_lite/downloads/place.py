"""Putting what an archive holds into a dataset's folder: whole, or not at all."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

from dassl_lite.downloads.remote import File
from dassl_lite.downloads.unpack import unpack
from dassl_lite.utils.errors import UserError

logger = logging.getLogger(__name__)


def is_there(path: Path) -> bool:
    """Whether there is a file, or a folder with something in it."""
    return any(path.iterdir()) if path.is_dir() else path.is_file()


def place(archive: Path, file: File, folder: Path, work: Path) -> None:
    """Unpack an archive beside its place and rename it there, so that a killed unpacking leaves nothing there.

    Args:
        folder: the dataset's folder.
        work: a folder on the same disk.

    Raises:
        UserError: the archive is not fit, see :func:`unpack`, or does not hold what it should.
    """
    what = file.unpack
    assert what is not None
    logger.info("Unpacking %s", archive.name)
    staging = work / "unpacking"
    shutil.rmtree(staging, ignore_errors=True)  # of a run that was killed
    try:
        if what.inner:
            unpack(archive, staging / "outer", what.inner, what.limits)
            archive = staging / "outer" / Path(what.inner).name
        unpack(archive, staging / "whole", what.take, what.limits)
        if what.to:
            _put(staging / "whole", folder / what.to)
        else:
            _put_each(staging / "whole", folder, file)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _put_each(whole: Path, folder: Path, file: File) -> None:
    """Put everything in ``whole`` into the folder; what tells that all of it is there comes last."""
    names = sorted(os.listdir(whole), key=lambda name: (name == file.result, name))
    if file.result not in names:
        raise UserError(f"archive {file.name} holds no '{file.result}', only {', '.join(names[:5])}")
    for name in names:
        if is_there(folder / name):
            logger.info("'%s' is there already, and is left as it is", folder / name)
        else:
            _put(whole / name, folder / name)


def _put(what: Path, where: Path) -> None:
    """Rename; an empty folder gives way."""
    where.parent.mkdir(parents=True, exist_ok=True)
    if where.is_dir():
        where.rmdir()
    os.replace(what, where)
