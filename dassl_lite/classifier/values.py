"""Convert parameters and labels passed by a program to plain values."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dassl_lite.utils.errors import UserError, shown


def listed_values(y: Any) -> list[Any]:
    """Labels as plain Python values."""
    array = y if isinstance(y, list) else np.asarray(y)
    if not isinstance(array, list):
        if array.ndim == 2 and array.shape[1] == 1:
            array = array[:, 0]
        if not array.ndim:
            raise UserError(f"y is {shown(y)}; it is a list of labels")
        if array.ndim != 1:
            raise UserError(f"y must be a list of labels, not an array of {array.shape}")
        return array.tolist()
    return [label.item() if getattr(label, "shape", None) == () else label for label in array]  # NumPy's, torch's


def label_array(labels: Sequence[Any]) -> NDArray[Any]:
    """Labels (K,) of one type as an array whose elements equal the labels.

    Raises:
        UserError: they have several types, which NumPy would convert to one.
    """
    if len(kinds := sorted({type(label).__name__ for label in labels})) > 1:
        raise UserError(f"y mixes labels of several types: {', '.join(kinds)}")
    array = np.array(labels)
    if array.ndim != 1 or array.tolist() != list(labels):  # such as integers of more than 64 bits
        array = np.empty(len(labels), dtype=object)
        array[:] = labels
    return array


def texts(names: Any) -> list[str]:
    """Class names as a list.

    Raises:
        UserError: the argument is not a list of names, or one of them is empty.
    """
    ordered = hasattr(names, "__len__") and not isinstance(names, str | bytes | set | frozenset)
    if not ordered or not hasattr(names, "__iter__"):
        raise UserError(f"classes is {shown(names)}; it is a list of names, or a dict from label to name")
    plain_names = [name.item() if isinstance(name, np.generic) else name for name in names]
    if wrong := [name for name in plain_names if not isinstance(name, str) or not name.strip()]:
        raise UserError(f"classes has {shown(wrong[0])}, which is not a name")
    return plain_names


def plain(value: Any) -> Any:
    """A value as a config can hold it, from what a program or a NumPy parameter grid passes."""
    if isinstance(value, np.generic):
        return value.item()
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def plain_list(value: Any) -> Any:
    """`plain` for each element of a list or an array."""
    return [plain(element) for element in value] if isinstance(value, list | tuple | np.ndarray) else plain(value)


def plain_deep(value: Any) -> Any:
    """`plain` for each element at any depth: dicts, lists and plain values."""
    if isinstance(value, Mapping):
        return {plain(key): plain_deep(element) for key, element in value.items()}
    listed = value.tolist() if hasattr(value, "tolist") else value  # arrays, columns of a table, NumPy's scalars
    return [plain_deep(element) for element in listed] if isinstance(listed, list | tuple) else plain(listed)


def is_same(one: Any, other: Any) -> bool:
    """Whether two parameters are equal; the order of a dict matters, as it does for ``classes``."""
    one, other = plain_deep(one), plain_deep(other)
    if isinstance(one, dict) and isinstance(other, dict):
        one, other = list(one.items()), list(other.items())
    return bool(one == other)


def is_plain(value: Any) -> bool:
    """Whether a parameter survives a round trip through JSON unchanged."""
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and is_plain(one) for key, one in value.items())
    if isinstance(value, list):
        return all(map(is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)
