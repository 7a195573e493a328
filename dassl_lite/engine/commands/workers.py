"""Pieces of work side by side, in processes of this machine.

with local_workers(jobs=4) as each:
    for result in each(function, items):  # as they end
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import Protocol, TypeVar

import torch

from dassl_lite.engine.plugins import load_plugins
from dassl_lite.startup import EXIT_INTERRUPTED, keep_in_worker
from dassl_lite.utils import UserError
from dassl_lite.utils.sharing import sharing
from dassl_lite.utils.streams import make_streams_lenient

Item = TypeVar("Item")
Result = TypeVar("Result")


class Workers(Protocol):
    """Processes that call a function with each of the items; gives the results as they come.

    Functions, items and results are pickled. What a function raises is raised here, and ends the work.
    """

    def __call__(self, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]: ...


@contextlib.contextmanager
def local_workers(jobs: int, plugins: Sequence[str] = (), threads: int = 0) -> Iterator[Workers]:
    """Several processes of this machine, each with its share of the cores; they end with the context.

    Args:
        jobs: how many.
        plugins: files or modules that each process imports first.
        threads: of each process; 0 gives it its share of the cores.

    Raises:
        UserError: one of them was killed.
    """
    context = multiprocessing.get_context("spawn")  # a forked process inherits torch's threads in an unknown state
    threads = threads or max(1, (os.cpu_count() or 1) // jobs)
    with ProcessPoolExecutor(jobs, context, _start, (threads, tuple(plugins))) as pool:

        def each(function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
            for future in as_completed([pool.submit(_call, function, item) for item in items]):
                yield future.result()

        try:
            yield each
        except BrokenProcessPool:
            raise UserError(
                "a process was killed, perhaps for lack of memory; repeat the command with fewer --jobs to continue"
            ) from None
        except BaseException:
            for process in multiprocessing.active_children():
                process.terminate()  # each saves a checkpoint first
            raise
        finally:
            pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def this_process() -> Iterator[Workers]:
    """No process but this one, which does one piece after the other."""

    def each(function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        return map(function, items)

    with sharing():
        yield each


_of_worker = contextlib.ExitStack()  # what a worker is in until its process ends


def _start(threads: int, plugins: Sequence[str]) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    enter_worker(threads, plugins)
    keep_in_worker()


def enter_worker(threads: int, plugins: Sequence[str]) -> None:
    """Make this process a worker: its number of threads, its plug-ins, what its runs share."""
    make_streams_lenient()
    torch.set_num_threads(threads)
    _of_worker.enter_context(sharing())
    load_plugins(plugins)


def _end_with_parent() -> None:
    """Stop this process when its parent is killed: it would otherwise finish its work and then wait forever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)  # wakes it if it waits


def _call(function: Callable[[Item], Result], item: Item) -> Result:
    try:
        return function(item)
    except KeyboardInterrupt:  # after its checkpoint; the pool would go on with the next item
        os._exit(EXIT_INTERRUPTED)
