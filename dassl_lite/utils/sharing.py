"""What runs of one process share: read or computed once, as long as what it came from is the same.

    with sharing():
        for cfg in configs:
            run.train(cfg)

Of each kind the last value alone is kept, so memory holds those of one dataset. Nobody changes what is shared; where
that is not sure, a copy is handed out, or a change is found and the value made again.
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
_kinds: tuple[str, ...] | None = None  # that are kept; None: all


@contextmanager
def sharing(kept: Kept | None = None, kinds: tuple[str, ...] | None = None) -> Iterator[None]:
    """A context whose runs share.

    Args:
        kept: where values are, for contexts that share them; by default a context has its own.
        kinds: that are shared; None: all.
    """
    global _kept, _kinds
    before, (_kept, _kinds) = (_kept, _kinds), ({} if kept is None else kept, kinds)
    try:
        yield
    finally:
        _kept, _kinds = before


@contextmanager
def sharing_only(*kinds: str) -> Iterator[None]:
    """A context within `sharing` in which runs share what is of these kinds alone."""
    global _kinds
    before, _kinds = _kinds, kinds
    try:
        yield
    finally:
        _kinds = before


def is_shared(kind: str) -> bool:
    """Whether runs share what is of this kind now."""
    return _kept is not None and (_kinds is None or kind in _kinds)


def shared(kind: str, source: Hashable, make: Callable[[], T], is_intact: Callable[[T], bool] | None = None) -> T:
    """The value that ``make`` gives, or the one kept.

    Args:
        kind: of the value; the next value of a kind takes the place of the last one.
        source: what the value comes from, such as `stamp` of a file: equal ones give equal values.
        make: called if none is kept, or one of another source.
        is_intact: False for a kept value that somebody has changed.
    """
    if _kept is None or not is_shared(kind):
        return make()
    before, value = _kept.get(kind, (None, None))
    if kind not in _kept or before != source or (is_intact is not None and not is_intact(value)):  # type: ignore[arg-type]
        _kept.pop(kind, None)
        del value  # room for the next
        _kept[kind] = source, make()
    return _kept[kind][1]  # type: ignore[return-value]


def stamp(path: PathLike) -> tuple[int, ...] | None:
    """What changes if a file is changed or replaced; None if there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def is_unwritten(tensor: Tensor) -> bool:
    """Whether nothing was done in place to a tensor, or to a view of it, since it was made, as far as torch knows."""
    return not tensor.is_inference() and tensor._version == 0
