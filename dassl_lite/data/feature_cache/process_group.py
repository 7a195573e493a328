"""Several processes of one run that do a piece of work together; here the one that is alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

T = TypeVar("T")


class ProcessGroup:
    """A process among those of its run. The engine derives from it for torchrun.

    Attributes:
        rank: its number, from 0.
        size: how many there are.
    """

    rank = 0
    size = 1

    def gather(self, item: T) -> list[T]:
        """What every process gives, in the order of their ranks; all have to come here."""
        return [item]

    @property
    def share(self) -> slice:
        """This process's part of a list whose items are dealt out in turn."""
        return slice(self.rank, None, self.size)

    def in_turn(self, own: Iterable[T]) -> Iterator[T]:
        """The items of every process, as each has those of its ``share``: in the order that the whole had.

        One item of each process is underway at a time.
        """
        if self.size == 1:
            yield from own
            return
        items = iter(own)
        while any(found := self.gather(list(islice(items, 1)))):
            for one in found:
                yield from one
