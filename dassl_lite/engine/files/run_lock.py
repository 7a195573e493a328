"""Allows one run at a time in an output folder, and removes temporary files of a killed run."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from dassl_lite.engine.files.run_folder import NEW_LOG
from dassl_lite.utils.errors import UserError

if sys.platform != "win32":
    import fcntl

NAME = ".running"  # lock file with the id of the process that uses the folder
# Partially written files of a killed run; other hidden files are not ours.
_PARTIAL = (".results.json.*.tmp", ".cmat.pt.*.tmp", "*/.model*.pth.tar*.tmp", "*/.checkpoint.*.tmp", NEW_LOG)


class FolderInUseError(UserError):
    """Another process is using the output folder."""


@contextlib.contextmanager
def only_run_in(folder: str | Path) -> Iterator[None]:
    """Lock an existing ``folder`` for this run.

    Child processes do not inherit the lock, and the system releases it when its holder dies, so a killed run can be
    resumed immediately. On a file system without locks, nothing is checked.

    Raises:
        FolderInUseError: another process uses the folder.
    """
    path = Path(folder) / NAME
    descriptor = _acquire(path)
    try:
        for partial in (path for pattern in _PARTIAL for path in Path(folder).glob(pattern)):
            partial.unlink(missing_ok=True)
        yield
    finally:
        (Path(folder) / NEW_LOG).unlink(missing_ok=True)  # left by a run that could not be built
        if descriptor is not None:
            path.unlink(missing_ok=True)
            os.close(descriptor)  # releases the lock


def _acquire(path: Path) -> int | None:
    """Open and lock the lock file; None if locking is not possible."""
    while sys.platform != "win32":
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError:  # writing the run's first file will report the problem
            break
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(descriptor, 0)
            os.write(descriptor, str(os.getpid()).encode())
            if os.path.exists(path) and os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
            os.close(descriptor)  # its last holder has just deleted it: lock the new file instead
        except (BlockingIOError, PermissionError):
            holder = os.read(descriptor, 32).decode(errors="replace") or "unknown"
            os.close(descriptor)
            raise FolderInUseError(
                f"output folder {path.parent} is in use by process {holder}; wait for it, or choose another "
                "--output-dir"
            ) from None
        except OSError:  # no lock support, or no space
            os.close(descriptor)
            break
    return None
