"""Reading publishers' annotation files: text lists with one image per line, and MATLAB's .mat files."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from dassl_lite.data.datum import Datum
from dassl_lite.data.splits import Split, split_trainval
from dassl_lite.utils.errors import UserError

T = TypeVar("T")
Row = tuple[str, int, str]  # image path relative to the image folder, label, class name


def parse_lines(path: Path, parse: Callable[[str], T]) -> list[T]:
    """What ``parse`` makes of each line of a text file; blank lines are passed over.

    Raises:
        UserError: names the line on which ``parse`` raised ValueError or LookupError.
        OSError: the file cannot be read.
    """
    results = []
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        for number, line in enumerate(file, 1):
            text = line.strip()
            try:
                if text:
                    results.append(parse(text))
            except (ValueError, LookupError) as error:
                raise UserError(
                    f"'{path}', line {number}: '{text}' is not in the publisher's form ({error})"
                ) from error
    return results


def listed_images(path: Path, image_dir: str, parse: Callable[[str], Row]) -> list[Datum]:
    """The images that the lines of a text file name."""
    rows = parse_lines(path, parse)
    return [Datum(os.path.join(image_dir, image), label, classname=name) for image, label, name in rows]


def split_lists(trainval: Path, test: Path, image_dir: str, parse: Callable[[str], Row]) -> Split:
    """The split of two lists; a fifth of each class in ``trainval`` becomes val, as :func:`split_trainval` draws."""
    train, val = split_trainval(listed_images(trainval, image_dir, parse))
    return Split(train, val, listed_images(test, image_dir, parse))


def parse_mat(path: Path, key: str, parse: Callable[[Any], T]) -> list[T]:
    """What ``parse`` makes of each element of the variable ``key`` of a .mat file; structures come as dicts.

    Raises:
        UserError: not a .mat file, one without that variable, or an element on which ``parse`` failed.
        OSError: the file cannot be read.
    """
    from scipy.io import loadmat  # slow to import, and few datasets need it

    try:
        with open(path, "rb") as file:
            elements = np.atleast_1d(loadmat(file, simplify_cells=True)[key])
        return [parse(element) for element in elements]
    except OSError:
        raise
    except Exception as error:  # scipy raises nearly anything on a broken file
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"'{path}' is not the publisher's .mat file with the variable '{key}' ({reason})") from error
