"""One writer per store: a file lock that the operating system releases when its holder dies."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from dassl_lite.utils.logger import get_logger

if sys.platform != "win32":
    import fcntl

logger = get_logger(__name__)

_POLL_SECONDS = 0.2
_held: set[int] = set()


@contextlib.contextmanager
def exclusive_lock(path: Path) -> Iterator[None]:
    """Hold a lock on the file ``path``, after waiting for the process (or thread) that holds it.

    Raises:
        OSError: the file cannot be created (read-only or full disk), or the file system has no locks.
    """
    descriptor = _lock_by_creation(path) if sys.platform == "win32" else _lock_by_flock(path)
    _held.add(descriptor)
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())
        yield
    finally:
        _held.discard(descriptor)
        os.close(descriptor)  # releases the lock
        if sys.platform == "win32":
            path.unlink(missing_ok=True)


def drop_inherited_locks(worker_id: int = 0) -> None:
    """Close the locks that a forked worker has inherited.

    A lock is held until its last copy is closed, so workers that outlive a killed parent would keep it.

    Args:
        worker_id: not used; DataLoader passes it to a ``worker_init_fn``.
    """
    while _held:
        os.close(_held.pop())


def _lock_by_flock(path: Path) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _log_waiting(path)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _lock_by_creation(path: Path) -> int:
    """Lock without flock: the process that creates the file holds the lock.

    Windows refuses to delete an open file, so a file that can be deleted was left behind by a dead process.
    """
    logged = False
    while True:
        try:
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            with contextlib.suppress(OSError):
                path.unlink()
                continue
        if not logged:
            _log_waiting(path)
            logged = True
        time.sleep(_POLL_SECONDS)


def _log_waiting(path: Path) -> None:
    try:
        holder = path.read_text() or "unknown"
    except OSError:
        holder = "unknown"
    logger.info(f"Waiting for process {holder}, which is extracting the same features into {path.parent}")
