"""Few-shot draws that Dassl's forks keep as pickles: ``split_fewshot/shot_N-seed_S.pkl``, read as data.

One is taken wherever our JSON is not there yet, so a folder that the reference has used keeps its shots.

Such a file is ``{"train": [...], "val": [...]}`` of Datum objects, with absolute paths of the machine that wrote it. Of
each Datum its four fields are taken; anything else in the file is refused, and nothing in it is imported or called.
"""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath, PureWindowsPath
from typing import Any, NoReturn

import torch

from dassl_lite.data.datum import Datum
from dassl_lite.data.fewshot import Draw
from dassl_lite.data.splits import rows_from_items
from dassl_lite.utils.errors import UserError
from dassl_lite.utils.inert import Inert
from dassl_lite.utils.inert_pickle import PICKLE_ERRORS, InertUnpickler, check_opcodes


def read_pickled_draw(path: Path, image_dir: str, source: Draw) -> Draw:
    """The draw in ``path``, as items of ``source``, the whole dataset.

    A stored path stands for the image whose path below ``image_dir`` it ends in, whatever is before that.

    Raises:
        UserError: no draw, one that holds other objects, or one of images that this dataset has not.
    """
    try:
        stored = _read(path)
        return Draw(*(_match(stored.get(part, []), image_dir, getattr(source, part)) for part in Draw._fields))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except PICKLE_ERRORS as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"few-shot pickle {path} cannot be used: {reason}. Nothing in it was run; delete it to draw anew."
        ) from error


def _read(path: Path) -> Mapping[str, Any]:
    data = path.read_bytes()
    check_opcodes(data)
    stored = InertUnpickler(io.BytesIO(data), _no_tensors).load()
    if not isinstance(stored, dict) or not isinstance(stored.get("train"), list):
        raise pickle.UnpicklingError("it holds no list of training images")
    return stored


def _no_tensors(dtype: torch.dtype, key: str, numel: int) -> NoReturn:
    raise pickle.UnpicklingError("it holds a tensor")


def _match(stored: Any, image_dir: str, items: Sequence[Datum]) -> list[Datum]:
    wanted = [_fields(entry) for entry in stored]
    names = {_parts(path)[-1] for path, _ in wanted}  # a few of ImageNet's 1.3 million
    near = [item for item in items if os.path.basename(item.impath) in names]
    known = {str(row[0]): item for row, item in zip(rows_from_items(near, image_dir), near, strict=True)}
    return [_item_of(_parts(path), label, known) for path, label in wanted]


def _fields(entry: Any) -> tuple[str, int]:
    """Path and label of an inert Datum."""
    name = entry.name if isinstance(entry, Inert) else type(entry).__name__
    if name.rpartition(".")[2] != "Datum" or not isinstance(entry.state, dict):
        raise pickle.UnpicklingError(f"it holds a {name}, where Datum is expected")
    path, label = entry.state.get("_impath"), entry.state.get("_label")
    if not isinstance(path, str) or not isinstance(label, int) or not _parts(path):
        raise pickle.UnpicklingError("it holds a Datum without path or label")
    return path, label


def _parts(path: str) -> tuple[str, ...]:
    return (PureWindowsPath(path) if "\\" in path else PurePath(path)).parts


def _item_of(parts: Sequence[str], label: int, known: Mapping[str, Datum]) -> Datum:
    for start in range(len(parts)):
        item = known.get("/".join(parts[start:]))
        if item is not None and item.label == label:
            return item
    raise pickle.UnpicklingError(f"this split has no image {os.path.join(*parts[-2:])} with label {label}")
