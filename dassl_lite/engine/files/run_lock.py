"""One run at a time in an output folder, and none of a killed run's torn files left in it."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from dassl_lite.utils.errors import UserError

if sys.platform != "win32":
    import fcntl

NAME = ".running"  # lock file; holds the number of the process that has the folder
# What is left of a file of a run's whose writer was killed; others' hidden files are none of ours.
_TORN = (".results.json.*.tmp", ".cmat.pt.*.tmp", "*/.model*.pth.tar*.tmp", "*/.checkpoint.*.tmp")


@contextlib.contextmanager
def only_run_in(folder: str | Path) -> Iterator[None]:
    """Have ``folder``, which is there, to oneself.

    The lock is one that child processes do not inherit and that the system drops when its holder dies, so a killed run
    can be gone on with at once. Where the file system knows no locks, nothing is checked.

    Raises:
        UserError: another process runs in it.
    """
    path = Path(folder) / NAME
    descriptor = _taken(path)
    try:
        for torn in (torn for pattern in _TORN for torn in Path(folder).glob(pattern)):
            torn.unlink(missing_ok=True)
        yield
    finally:
        if descriptor is not None:
            path.unlink(missing_ok=True)
            os.close(descriptor)  # drops the lock


def _taken(path: Path) -> int | None:
    """The lock file, open and locked; None where there can be none."""
    while sys.platform != "win32":
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError:  # whoever writes the run's first file says what is wrong
            break
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(descriptor, 0)
            os.write(descriptor, str(os.getpid()).encode())
            if os.path.exists(path) and os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
            os.close(descriptor)  # its last holder has just removed it: this is the lock of nothing
        except (BlockingIOError, PermissionError):
            holder = os.read(descriptor, 32).decode(errors="replace") or "unknown"
            os.close(descriptor)
            raise UserError(
                f"output folder {path.parent} is in use: process {holder} runs in it; wait for it, or choose another "
                "--output-dir"
            ) from None
        except OSError:  # no locks here, or no room
            os.close(descriptor)
            break
    return None
