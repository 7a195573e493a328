"""Runs work in parallel, in processes on this machine.

with local_workers(jobs=4) as each:
    for result in each(function, items):  # in order of completion
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
    """Worker processes that call a function on each item; yields the results as they complete.

    Functions, items and results are pickled. An exception in a function is re-raised here and ends the work.
    """

    def __call__(self, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]: ...


@contextlib.contextmanager
def local_workers(jobs: int, plugins: Sequence[str] = (), threads: int = 0) -> Iterator[Workers]:
    """A context with several worker processes on this machine.

    Args:
        jobs: number of processes.
        plugins: files or modules that each process imports first.
        threads: threads per process; 0 divides the cores equally.

    Raises:
        UserError: a process was killed.
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
    """A context in which this process does all the work, one item at a time."""

    def each(function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        return map(function, items)

    with sharing():
        yield each


_worker_contexts = contextlib.ExitStack()  # contexts that a worker stays in until its process ends


def _start(threads: int, plugins: Sequence[str]) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    enter_worker(threads, plugins)
    keep_in_worker()


def enter_worker(threads: int, plugins: Sequence[str]) -> None:
    """Make this process a worker: set its threads, import its plug-ins, let its runs share what they load."""
    make_streams_lenient()
    torch.set_num_threads(threads)
    _worker_contexts.enter_context(sharing())
    load_plugins(plugins)


def _end_with_parent() -> None:
    """Stop this process when its parent is killed; otherwise it would finish its work and then wait forever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)  # also interrupts a wait


def _call(function: Callable[[Item], Result], item: Item) -> Result:
    try:
        return function(item)
    except KeyboardInterrupt:  # raised after the checkpoint; exit, or the pool would start the next item
        os._exit(EXIT_INTERRUPTED)
