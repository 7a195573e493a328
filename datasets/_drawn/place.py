"""Folders that are there whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dassl_lite.data.folder import UserError
from dassl_lite.data.splits import write_listing

STAMP_FILE = "drawing.json"
ABANDONED_AFTER = 3600.0  # seconds without a change, after which another process's unfinished drawing is removed


def place_whole(folder: Path, stamp: Mapping[str, Any], fill: Callable[[Path], None]) -> None:
    """Make sure that `folder` holds what `fill` puts into an empty folder, under this `stamp`.

    `fill` works in a folder beside it, which takes its name when done; nothing else is ever visible under that name.

    Raises:
        UserError: the folder holds something else, or cannot be made.
    """
    if _holds(folder, stamp):
        return
    try:
        _remove_abandoned(folder)
        drawing = _new_sibling(folder)
        try:
            fill(drawing)
            write_listing(stamp, drawing / STAMP_FILE)
            _put_in_place(drawing, folder, stamp)
        finally:
            shutil.rmtree(drawing, ignore_errors=True)
    except OSError as error:
        where = "set DATASET.ROOT (--root) or DASSL_LITE_CACHE to a folder that can be written to"
        raise UserError(f"cannot draw into '{folder}' ({error.strerror or error}); {where}") from error


def _holds(folder: Path, stamp: Mapping[str, Any]) -> bool:
    """Whether the folder carries this stamp; False if it is not there, empty, or of another edition of ours."""
    if not folder.is_dir() or not any(folder.iterdir()):
        return False
    try:
        found = json.loads((folder / STAMP_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict) or found.get("drawn") != stamp["drawn"]:
        raise UserError(f"'{folder}' holds something that was not drawn here; move it away, or set another --root")
    return found == dict(stamp)


def _new_sibling(folder: Path) -> Path:
    sibling = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.drawing")
    sibling.mkdir(parents=True)
    return sibling


def _put_in_place(drawing: Path, folder: Path, stamp: Mapping[str, Any]) -> None:
    """Rename `drawing` to `folder`, unless another process was first with the same; an older edition gives way."""
    try:
        os.rename(drawing, folder)
    except OSError:
        if not folder.is_dir():
            raise
        if _holds(folder, stamp):
            return
        old = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.drawing")
        os.rename(folder, old)
        os.rename(drawing, folder)
        shutil.rmtree(old, ignore_errors=True)


def _remove_abandoned(folder: Path) -> None:
    """Remove what killed processes have left beside `folder`."""
    for left in folder.parent.glob(f".{folder.name}.*.drawing"):
        try:
            idle = time.time() - max(path.stat().st_mtime for path in [left, *left.rglob("*")])
        except FileNotFoundError:
            continue  # its process has just finished
        if idle > ABANDONED_AFTER:
            shutil.rmtree(left, ignore_errors=True)
