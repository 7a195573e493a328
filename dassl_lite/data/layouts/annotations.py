"""Publishers' annotation files: text lists with one image per line, and MATLAB's .mat files."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from dassl_lite.data.datum import Datum
from dassl_lite.data.splits import Split, split_trainval
from dassl_lite.utils.errors import UserError, shown
from dassl_lite.utils.files import MAX_TEXT, open_file, open_text

T = TypeVar("T")
Row = tuple[str, int, str]  # image path relative to the image folder, label, class name


def parse_lines(path: Path, parse: Callable[[str], T]) -> list[T]:
    """Parse each line of a text file that is not blank.

    Raises:
        UserError: ``parse`` raised ValueError or LookupError; the message has the line.
        OSError: the file cannot be read.
    """
    results = []
    with open_text(path, encoding="utf-8", errors="surrogateescape") as file:
        for number, line in enumerate(file, 1):
            text = line.strip()
            try:
                if text:
                    results.append(parse(text))
            except (ValueError, LookupError) as error:
                raise UserError(
                    f"'{path}', line {number}: {shown(text)} is not in the publisher's format ({error})"
                ) from error
    return results


def listed_images(path: Path, image_dir: str, parse: Callable[[str], Row]) -> list[Datum]:
    """The images listed in a text file, one per line."""
    rows = parse_lines(path, parse)
    return [Datum(os.path.join(image_dir, image), label, classname=name) for image, label, name in rows]


def split_lists(trainval: Path, test: Path, image_dir: str, parse: Callable[[str], Row]) -> Split:
    """The split given by two text files; :func:`split_trainval` draws a fifth of ``trainval`` for validation."""
    train, val = split_trainval(listed_images(trainval, image_dir, parse))
    return Split(train, val, listed_images(test, image_dir, parse))


def parse_mat(path: Path, key: str, parse: Callable[[Any], T]) -> list[T]:
    """Parse each element of the variable ``key`` of a .mat file; structures are passed as dicts.

    Raises:
        UserError: the file is not a .mat file or lacks the variable, or ``parse`` failed.
        OSError: the file cannot be read.
    """
    from scipy.io import loadmat  # slow to import, and few datasets need it

    try:
        with open_file(path, MAX_TEXT) as file:
            elements = np.atleast_1d(loadmat(file, simplify_cells=True)[key])
        return [parse(element) for element in elements]
    except OSError:
        raise
    except Exception as error:  # scipy raises almost anything on a broken file
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"'{path}' is not the publisher's .mat file with the variable '{key}' ({reason})") from error
