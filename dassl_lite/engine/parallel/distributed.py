"""Runs with several processes, started by torchrun: the same numbers as with one process, in less time.

    torchrun --nproc-per-node 4 tools/train.py --trainer CLIPLoRA ...

Every process draws the same batches from the same seeds and takes its share of each. Gradients are averaged, so the
models stay identical. A batch that cannot be split equally is processed in full by every process. Evaluation and
feature extraction distribute whole batches, so their numbers are bit-identical to a single process's. Training on
cached features is too cheap to split: every process does the same work, on one shared copy of the features. Only rank 0
writes files. Without torchrun, all of this is a no-op.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import socket
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import Sampler

from dassl_lite.data.feature_cache import ProcessGroup
from dassl_lite.data.loaders import ImageLoader
from dassl_lite.utils import devices
from dassl_lite.utils.env import world_size as world_size  # re-exported
from dassl_lite.utils.errors import UserError
from dassl_lite.utils.logger import get_logger
from dassl_lite.utils.seeding import random_states, restore_random_states

T = TypeVar("T")
logger = get_logger(__name__)

# A process may wait for another run that extracts the same features; if one dies, torchrun stops the others.
_TIMEOUT = timedelta(hours=12)
_ENDED = "its end"
_MIN_FILE_BYTES = 1 << 20  # smaller tensors are sent directly
_meetings: Meetings | None = None  # this process's meetings with the other processes of its run


def rank() -> int:
    """This process's rank; rank 0 writes the files."""
    return int(os.environ.get("RANK", "0"))


def restarted() -> bool:
    """Whether torchrun has restarted the processes after one of them failed (``--max-restarts``)."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"


def start(use_gpus: bool = True) -> None:
    """Join the other processes if torchrun started several: NCCL for tensors on GPUs, gloo for the rest.

    Args:
        use_gpus: USE_CUDA; each process then gets its own GPU, if there are any.

    Raises:
        UserError: there are fewer GPUs than processes.
    """
    if world_size() == 1 or dist.is_initialized():
        return
    gpus = use_gpus and torch.cuda.is_available()
    if gpus:
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        devices.join_gpu(local_rank, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    global _meetings
    store, number, size = next(dist.rendezvous("env://", timeout=_TIMEOUT))
    store.set_timeout(_TIMEOUT)
    # torchrun may keep the store when it restarts the processes; entries of the old ones would mislead the new ones.
    store = dist.PrefixStore(f"start-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    _meetings = Meetings(dist.PrefixStore("meetings", store), number, size)
    atexit.register(_meetings.leave)
    # gloo even with GPUs, because gathered tensors are on the CPU.
    backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"
    dist.init_process_group(backend, timeout=_TIMEOUT, store=store, rank=number, world_size=size)


def wait() -> None:
    """Block until all processes reach this point."""
    if dist.is_initialized():
        dist.barrier()


class Meetings:
    """Makes processes announce what they are about to do together, so that a mismatch is an error, not a deadlock.

    Args:
        store: key-value store shared by the processes.
        rank: this process's rank.
        size: number of processes.
    """

    def __init__(self, store: Any, rank: int, size: int) -> None:
        self.store, self.rank, self.size, self.number = store, rank, size, 0

    def meet(self, what: str) -> None:
        self._announce(what)
        for other in range(self.size):
            try:
                state = self.store.get(f"{self.number}/{other}").decode()
            except RuntimeError:  # the process that hosts the store has ended
                state = _ENDED
            if state != what:
                raise UserError(
                    f"process {self.rank} of this run is at {what}, but process {other} is at {state}: all processes "
                    "must train, test and evaluate together, so make the same calls in each of them"
                )

    def leave(self) -> None:
        with contextlib.suppress(RuntimeError):
            self._announce(_ENDED)

    def _announce(self, what: str) -> None:
        self.number += 1
        with contextlib.suppress(RuntimeError):
            self.store.set(f"{self.number}/{self.rank}", what)


def meet(what: str) -> None:
    """Block until all processes reach ``what``, such as "an evaluation".

    Raises:
        UserError: another process is doing something else, or has ended.
    """
    if _meetings is not None:
        _meetings.meet(what)


def lost_another(error: RuntimeError) -> bool:
    """Whether ``error`` only reports that another process of the run has ended, which has reported the cause itself."""
    reports = ("Connection closed by peer", "Connection reset by peer", "remote process exited")
    return dist.is_initialized() and any(words in str(error) for words in reports)


class _Torchrun(ProcessGroup):
    """The processes started by torchrun."""

    def __init__(self) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()

    def gather(self, item: T) -> list[T]:
        items: list[Any] = [None] * self.size
        dist.all_gather_object(items, item)
        return items

    @property
    def holder(self) -> int:
        return _holder(self.rank)

    def shared(self, make: Callable[[], Tensor]) -> Tensor:
        with contextlib.ExitStack() as stack:
            tensor = make().contiguous() if self.rank == self.holder else None
            received = self.gather(None if tensor is None else _packed(tensor, stack))[self.holder]
            assert received is not None, "the holder has sent it"
            if isinstance(received, Tensor):
                return received
            mapped = torch.from_file(received.path, shared=False, size=received.shape.numel(), dtype=received.dtype)
            self.gather(None)  # keep the file until all processes have mapped it
        return mapped.view(received.shape)


@functools.cache
def _holder(rank: int) -> int:
    """The first process on the machine of this process, number ``rank``. Every process must call it."""
    machine = socket.gethostname(), os.environ.get("GROUP_RANK", "")
    return _Torchrun().gather(machine).index(machine)


class _Mapped(NamedTuple):
    """A file with a tensor's values."""

    path: str
    shape: torch.Size
    dtype: torch.dtype


def _packed(tensor: Tensor, stack: contextlib.ExitStack) -> Tensor | _Mapped:
    """What to send of a tensor: a file that exists until ``stack`` closes or, if it is small, the tensor itself."""
    if tensor.nbytes < _MIN_FILE_BYTES:
        return tensor
    try:
        file = stack.enter_context(tempfile.NamedTemporaryFile(prefix="dassl-lite-"))  # noqa: SIM115
        file.write(tensor.view(-1).view(torch.uint8).numpy().data)
        file.flush()
    except OSError as error:
        logger.warning(
            f"{tempfile.gettempdir()} has no room for {tensor.nbytes / 2**20:.0f} MiB of features that the processes "
            f"would share ({error.strerror or error}); each gets a copy. Set TMPDIR to use another folder"
        )
        return tensor
    return _Mapped(file.name, tensor.shape, tensor.dtype)


def process_group() -> ProcessGroup:
    """The process group of this run; without torchrun, this process alone."""
    return _Torchrun() if dist.is_initialized() else ProcessGroup()


def on_first(find: Callable[[], T], what: str = "a step of the first process for all") -> T:
    """Call ``find`` in the first process only and return its result in every process; ``what`` as in `meet`."""
    if not dist.is_initialized():
        return find()
    meet(what)
    result = [find() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(result)
    return result[0]  # type: ignore[return-value]  # None only in transit


def same_random_states() -> None:
    """Copy the first process's random states to all; they may differ, as each process drew for its own images."""
    if dist.is_initialized():
        restore_random_states({**on_first(random_states, "an epoch of training"), "cuda": []})


def random_states_of_all() -> dict[str, Any]:
    """The random states to save: this process's, and those of every process's GPU. Every process must call it."""
    states = random_states()
    if dist.is_initialized() and states["cuda"]:
        states["cuda"] = process_group().gather(torch.cuda.get_rng_state())
    return states


def restore_random_states_of_all(states: dict[str, Any]) -> None:
    """Restore what `random_states_of_all` returned; each process restores the state of its own GPU."""
    restore_random_states(states, dist.get_rank() if dist.is_initialized() else None)


def average_gradients(models: Iterable[nn.Module]) -> None:
    """Replace every gradient by its mean over the processes."""
    if not dist.is_initialized():
        return
    gradients = [p.grad for model in models for p in model.parameters() if p.grad is not None]
    if not gradients:
        return
    flat = torch.cat([gradient.reshape(-1).float() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


class ShareOfBatches(Sampler[list[int]]):
    """This process's equal share of every batch of another sampler, or the whole batch if it cannot be split equally.

    The mean of the processes' gradients is therefore the batch's gradient.

    Args:
        batches: yields the same lists of indices in every process.

    Attributes:
        given: the full batches whose shares were handed out, oldest first; None if they are not kept.
    """

    def __init__(self, batches: Any, rank: int, world: int) -> None:
        self.batches, self.rank, self.world = batches, rank, world
        self.given: deque[list[int]] | None = None

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        same_random_states()
        if self.given is not None:
            self.given.clear()
        for batch in self.batches:
            if self.given is not None:
                self.given.append(batch)
            yield batch if len(batch) % self.world else batch[self.rank :: self.world]

    def instead(self, lacks: bool) -> list[int] | None:
        """The whole next batch if any process ``lacks`` an image of its share. Every process must call it."""
        assert self.given is not None, "full batches are kept"
        whole = self.given.popleft()
        return whole if any(process_group().gather(lacks)) else None


def shared_loader(loader: ImageLoader) -> ImageLoader:
    """``loader`` with this process's share of each batch; unchanged if there is only one process.

    Raises:
        UserError: the batch size is not a multiple of the number of processes.
    """
    world = world_size()
    if world == 1:
        return loader
    if (loader.batch_size or 0) % world:
        raise UserError(
            f"DATALOADER.TRAIN_X.BATCH_SIZE {loader.batch_size} cannot be shared equally by {world} processes"
        )
    shares = ShareOfBatches(loader.batch_sampler, rank(), world)
    shared = loader.with_batches(shares)
    if loader.on_error == "skip":
        shares.given, shared.instead = deque(), shares.instead
    return shared
