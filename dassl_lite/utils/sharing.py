"""Values that runs in one process share: read or computed once, as long as their source is the same.

    with sharing():
        for cfg in configs:
            run.train(cfg)

Only the last value of each kind is kept, so memory holds the values for one dataset. Shared values must not be changed;
where that is not certain, runs get a copy, or a change is detected and the value is computed again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from torch import Tensor

from dassl_lite.utils.files import PathLike

T = TypeVar("T")
BACKBONE = "backbone"  # a kind of which each run gets a copy
Kept = dict[str, tuple[Hashable, object]]  # kind -> what the value came from, and the value

_kept: Kept | None = None
_kinds: tuple[str, ...] | None = None  # the kinds that are shared; None: all


@contextmanager
def sharing(kept: Kept | None = None, kinds: tuple[str, ...] | None = None) -> Iterator[None]:
    """A context in which runs share values.

    Args:
        kept: the store of values, for contexts that share one; by default, each context has its own.
        kinds: the kinds of values that are shared; None for all.
    """
    global _kept, _kinds
    before, (_kept, _kinds) = (_kept, _kinds), ({} if kept is None else kept, kinds)
    try:
        yield
    finally:
        _kept, _kinds = before


@contextmanager
def sharing_only(*kinds: str) -> Iterator[None]:
    """A context within `sharing` in which runs share only values of these kinds."""
    global _kinds
    before, _kinds = _kinds, kinds
    try:
        yield
    finally:
        _kinds = before


def is_shared(kind: str) -> bool:
    """Whether runs currently share values of this kind."""
    return _kept is not None and (_kinds is None or kind in _kinds)


def shared(kind: str, source: Hashable, make: Callable[[], T], is_intact: Callable[[T], bool] | None = None) -> T:
    """The stored value or, if there is none from the same source, a new one from ``make``.

    Args:
        kind: kind of the value; a new value replaces the last one of its kind.
        source: what the value comes from, such as `stamp` of a file: equal sources give equal values.
        make: makes the value.
        is_intact: returns False for a stored value that has been changed since, which is then made again.
    """
    if _kept is None or not is_shared(kind):
        return make()
    before, value = _kept.get(kind, (None, None))
    if kind not in _kept or before != source or (is_intact is not None and not is_intact(value)):  # type: ignore[arg-type]
        _kept.pop(kind, None)
        del value  # frees memory for the next one
        _kept[kind] = source, make()
    return _kept[kind][1]  # type: ignore[return-value]


def stamp(path: PathLike) -> tuple[int, ...] | None:
    """A fingerprint that changes if a file is changed or replaced; None if it does not exist."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def is_unwritten(tensor: Tensor) -> bool:
    """Whether a tensor has had no in-place operation, on itself or a view of it, as far as torch knows."""
    return not tensor.is_inference() and tensor._version == 0
