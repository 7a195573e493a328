"""Evaluation with several processes: they take turns at whole batches, and each receives every output in order.

The batches are those of a single process. The outputs are therefore bit-identical for any number of processes, and an
evaluator gets the same tensors in the same order.
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
    """Yield (model output, label) for every batch of ``loader``, in order, on the device where ``infer`` puts them.

    A batch that does not fit in memory is split and yields several pairs.

    Args:
        infer: computes both for a batch.

    Raises:
        UserError: in every process, if one finds an unreadable image or not all processes evaluate.
    """
    processes = distributed.process_group()
    if processes.size == 1:
        halving = Halving("evaluating")
        for batch in loader:
            yield from halving(infer, batch)
        return
    distributed.meet("an evaluation")
    for received in processes.in_turn(_of_own_share(loader, infer, processes)):
        if isinstance(received, UserError):
            raise received
        for part in received:
            yield _moved(part, _Sent.unpack)


def _of_own_share(loader: Iterable[dict[str, Any]], infer: Infer, processes: ProcessGroup) -> Iterator[Any]:
    """Yield the results of ``infer`` for this process's batches, ready to be sent."""
    halving = Halving("evaluating")
    try:
        for batch in _share(loader, processes):
            yield [_moved(part, _Sent.pack) for part in halving(infer, batch)] if batch else []
    except UserError as error:
        yield UserError(str(error))  # some subclasses override the constructor and cannot be pickled


def _share(loader: Iterable[dict[str, Any]], processes: ProcessGroup) -> Iterable[dict[str, Any]]:
    """This process's batches; images of other processes' batches are not read."""
    if not isinstance(loader, ImageLoader) or loader.batch_sampler is None:
        return islice(loader, processes.rank, None, processes.size)
    mine = loader.with_batches(_EveryNth(loader.batch_sampler, processes))
    mine.keep_empty_batches, mine.skipped = True, loader.skipped
    return mine


class _EveryNth:
    """Yields the lists of indices in this process's share."""

    def __init__(self, batches: Iterable[list[int]], processes: ProcessGroup) -> None:
        self.batches, self.processes = batches, processes

    def __iter__(self) -> Iterator[list[int]]:
        return islice(self.batches, self.processes.rank, None, self.processes.size)


class _Sent(NamedTuple):
    """A tensor in transit between processes: its values on the CPU and the type of its original device."""

    tensor: Tensor
    device: str

    @classmethod
    def pack(cls, item: Any) -> Any:
        # Cloned, because pickling a view would include its whole storage.
        return cls(item.detach().cpu().clone(), item.device.type) if isinstance(item, Tensor) else item

    @staticmethod
    def unpack(item: Any) -> Any:
        return item.tensor.to(item.device) if isinstance(item, _Sent) else item


def _moved(item: Any, move: Callable[[Any], Any]) -> Any:
    """``item`` with ``move`` applied to every tensor in it; a plug-in trainer may return nested outputs."""
    if isinstance(item, dict):
        return {key: _moved(value, move) for key, value in item.items()}
    if isinstance(item, list | tuple) and not isinstance(item, _Sent):
        values = [_moved(value, move) for value in item]
        return type(item)(*values) if hasattr(item, "_fields") else type(item)(values)
    return move(item)
