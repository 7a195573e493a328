"""Evaluation by several processes: each infers whole batches in turn, and all get every output in order.

The batches are the same as in a single process, so the outputs are equal bit for bit, whatever the number of processes;
an evaluator gets the same tensors in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple

from torch import Tensor

from dassl_lite.data.feature_cache import ProcessGroup
from dassl_lite.data.loaders import ImageLoader
from dassl_lite.engine.parallel import distributed
from dassl_lite.utils.devices import Halving
from dassl_lite.utils.errors import UserError

Infer = Callable[[dict[str, Any]], tuple[Any, Any]]


def outputs(loader: Iterable[dict[str, Any]], infer: Infer) -> Iterator[tuple[Any, Any]]:
    """(model output, label) for every batch of ``loader``, in order, on the device where ``infer`` puts them.

    A batch that memory has no room for gives several, of its parts.

    Args:
        infer: computes both for a batch.

    Raises:
        UserError: in every process, if one of them finds an unreadable image, or not all processes evaluate.
    """
    processes = distributed.process_group()
    if processes.size == 1:
        halving = Halving("evaluating")
        for batch in loader:
            yield from halving(infer, batch)
        return
    distributed.meet("an evaluation")
    for found in processes.in_turn(_of_own_share(loader, infer, processes)):
        if isinstance(found, UserError):
            raise found
        for part in found:
            yield _moved(part, _Sent.unpack)


def _of_own_share(loader: Iterable[dict[str, Any]], infer: Infer, processes: ProcessGroup) -> Iterator[Any]:
    """The results of ``infer`` for the parts of this process's batches, ready to be sent."""
    halving = Halving("evaluating")
    try:
        for batch in _share(loader, processes):
            yield [_moved(part, _Sent.pack) for part in halving(infer, batch)] if batch else []
    except UserError as error:
        yield UserError(str(error))  # some subclasses have their own constructor and cannot be pickled


def _share(loader: Iterable[dict[str, Any]], processes: ProcessGroup) -> Iterable[dict[str, Any]]:
    """This process's batches; images of the others' batches are not read."""
    if not isinstance(loader, ImageLoader) or loader.batch_sampler is None:
        return islice(loader, processes.rank, None, processes.size)
    mine = loader.with_batches(_EveryNth(loader.batch_sampler, processes))
    mine.keep_empty_batches, mine.skipped = True, loader.skipped
    return mine


class _EveryNth:
    """The lists of indices in a process's share."""

    def __init__(self, batches: Iterable[list[int]], processes: ProcessGroup) -> None:
        self.batches, self.processes = batches, processes

    def __iter__(self) -> Iterator[list[int]]:
        return islice(self.batches, self.processes.rank, None, self.processes.size)


class _Sent(NamedTuple):
    """A tensor in transit between two processes: on the CPU, with the type of device that it came from."""

    tensor: Tensor
    device: str

    @classmethod
    def pack(cls, item: Any) -> Any:
        # A copy: a view would take its whole storage along.
        return cls(item.detach().cpu().clone(), item.device.type) if isinstance(item, Tensor) else item

    @staticmethod
    def unpack(item: Any) -> Any:
        return item.tensor.to(item.device) if isinstance(item, _Sent) else item


def _moved(item: Any, move: Callable[[Any], Any]) -> Any:
    """``item`` with ``move`` applied to every tensor in it: a plug-in trainer may return several."""
    if isinstance(item, dict):
        return {key: _moved(value, move) for key, value in item.items()}
    if isinstance(item, list | tuple) and not isinstance(item, _Sent):
        values = [_moved(value, move) for value in item]
        return type(item)(*values) if hasattr(item, "_fields") else type(item)(values)
    return move(item)
