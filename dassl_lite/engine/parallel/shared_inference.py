"""Evaluation by several processes: each infers whole batches in turn, and all see every output in its place.

The batches are those of one process, so the outputs are too, bit for bit, whatever their number and size; an evaluator
is handed the same tensors in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple

from torch import Tensor

from dassl_lite.data.feature_cache import ProcessGroup
from dassl_lite.data.loaders import ImageLoader
from dassl_lite.engine.parallel import distributed
from dassl_lite.utils.errors import UserError

Infer = Callable[[dict[str, Any]], tuple[Any, Any]]


def outputs(loader: Iterable[dict[str, Any]], infer: Infer) -> Iterator[tuple[Any, Any]]:
    """(model output, label) of every batch of ``loader``, in order and on the device where ``infer`` puts them.

    Args:
        infer: gives both for a batch.

    Raises:
        UserError: in every process, if one of them meets an image that cannot be read.
    """
    processes = distributed.process_group()
    if processes.size == 1:
        yield from map(infer, loader)
        return
    for found in processes.in_turn(_of_own_share(loader, infer, processes)):
        if isinstance(found, UserError):
            raise found
        if found is not None:
            yield _moved(found, _Sent.unpack)


def _of_own_share(loader: Iterable[dict[str, Any]], infer: Infer, processes: ProcessGroup) -> Iterator[Any]:
    """What ``infer`` gives for each batch of this process's, to be sent; None for one without images."""
    try:
        for batch in _share(loader, processes):
            yield _moved(infer(batch), _Sent.pack) if batch else None
    except UserError as error:
        yield UserError(str(error))  # some have a constructor of their own, and would not travel


def _share(loader: Iterable[dict[str, Any]], processes: ProcessGroup) -> Iterable[dict[str, Any]]:
    """This process's batches; of images, those of the others are not even read."""
    if not isinstance(loader, ImageLoader) or loader.batch_sampler is None:
        return islice(loader, processes.rank, None, processes.size)
    mine = loader.with_batches(_EveryNth(loader.batch_sampler, processes))
    mine.keeps_places, mine.skipped = True, loader.skipped
    return mine


class _EveryNth:
    """The lists of indices in a process's share."""

    def __init__(self, batches: Iterable[list[int]], processes: ProcessGroup) -> None:
        self.batches, self.processes = batches, processes

    def __iter__(self) -> Iterator[list[int]]:
        return islice(self.batches, self.processes.rank, None, self.processes.size)


class _Sent(NamedTuple):
    """A tensor between two processes: on the CPU, with the kind of device that it comes from."""

    tensor: Tensor
    device: str

    @classmethod
    def pack(cls, item: Any) -> Any:
        # A copy, as a view would take all of its storage along.
        return cls(item.detach().cpu().clone(), item.device.type) if isinstance(item, Tensor) else item

    @staticmethod
    def unpack(item: Any) -> Any:
        return item.tensor.to(item.device) if isinstance(item, _Sent) else item


def _moved(item: Any, move: Callable[[Any], Any]) -> Any:
    """``item`` with ``move`` applied to what it holds, as a trainer of one's own may give more than one tensor."""
    if isinstance(item, dict):
        return {key: _moved(value, move) for key, value in item.items()}
    if isinstance(item, list | tuple) and not isinstance(item, _Sent):
        values = [_moved(value, move) for value in item]
        return type(item)(*values) if hasattr(item, "_fields") else type(item)(values)
    return move(item)
