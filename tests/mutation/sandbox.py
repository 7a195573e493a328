"""A copy of the checkout in which tests run: each call in a process of its own, forked with the heavy imports done."""

from __future__ import annotations

import contextlib
import importlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

MAPPED = ("trainers", "datasets", "configs", "tools")  # top-level folders that setup.py maps into the package
KILLED_BY_TIME = 124


class Sandbox:
    """A copy of the tracked files of `repository` under `place`; the checkout itself is never written to."""

    def __init__(self, repository: Path, place: Path) -> None:
        self.root, self.scratch, self.log = place / "copy", place / "scratch", place / "log.txt"
        shutil.rmtree(place, ignore_errors=True)
        for name in tracked_files(repository):
            target = self.root / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(repository / name, target)
        for name in MAPPED:  # PYTHONPATH then gives the package as installed, ahead of an editable installation
            (self.root / "dassl_lite" / name).symlink_to(self.root / name)

    def start(self, work: Callable[[], int], seconds: float) -> Job:
        """Run `work` in a new process, in this copy; its result is the exit code.

        Args:
            seconds: limit on the CPU time of any one process, and ten times that on the wall-clock time.
        """
        shutil.rmtree(self.scratch, ignore_errors=True)
        self.scratch.mkdir()
        sys.stdout.flush()
        pid = os.fork()
        if pid:
            return Job(pid, time.monotonic() + 10 * seconds)
        code = 1
        try:
            os.setsid()
            log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(log, 1)
            os.dup2(log, 2)
            resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) + 1, int(seconds) + 3))
            os.chdir(self.root)
            os.environ |= {"PYTHONPATH": str(self.root), "TMPDIR": str(self.scratch), "HOME": str(self.scratch)}
            sys.path[:0] = [str(self.root)]
            code = work()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        except BaseException:  # noqa: BLE001 - the process ends here, whatever happened
            import traceback

            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)


class Job:
    """A running process of a sandbox."""

    def __init__(self, pid: int, deadline: float) -> None:
        self.pid, self.deadline = pid, deadline
        self.started = time.monotonic()

    def poll(self) -> int | None:
        """The exit code, KILLED_BY_TIME for a process that was stopped; None while it runs."""
        done, status, _ = os.wait4(self.pid, os.WNOHANG)
        if not done and time.monotonic() < self.deadline:
            return None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)  # what it has started ends with it
        if not done:
            os.waitpid(self.pid, 0)
            return KILLED_BY_TIME
        return os.WEXITSTATUS(status) if os.WIFEXITED(status) else KILLED_BY_TIME


def tracked_files(repository: Path) -> list[str]:
    """Files of the checkout, new ones that are not ignored included."""
    command = ["git", "ls-files", "-co", "--exclude-standard"]
    listed = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=True).stdout.splitlines()
    return [name for name in listed if (repository / name).is_file()]


# What takes seconds to import, and no mutation touches: every forked process has it already.
HEAVY = ("open_clip", "pytest", "sklearn.linear_model", "torch", "torch.utils.tensorboard", "torchvision")


def import_packages(names: Sequence[str]) -> None:
    """Import these for the processes to come, with one thread each."""
    for name in names:
        importlib.import_module(name)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
