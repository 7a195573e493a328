"""Runs work in parallel on a Ray cluster, of one machine or several.

    with ray_workers(Cluster(), plugins=[]) as each:
        for result in each(function, items, lost=...):  # in order of completion

A task whose process or node dies is retried on another. This package and the code in the working folder are copied to a
cluster given by its address. Data, caches and results are not, so keep them in a folder that all nodes can access.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import platform
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import dassl_lite
from dassl_lite.engine.commands.workers import enter_worker
from dassl_lite.engine.plugins import COMPAT
from dassl_lite.utils import UserError, get_logger
from dassl_lite.utils.errors import shown
from dassl_lite.utils.lazy import optional_module

logger = get_logger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")

LOCAL = "local"  # value of --ray for a cluster on this machine
_STORE = 100 * 2**20  # bytes of shared memory for results in a local cluster
_RETRIES = 5  # retries of a task whose process or node dies
_STARTS = 3  # attempts to start a local cluster on a very busy machine
_SECONDS = 60.0  # longest wait for a node to answer, and for running tasks to stop
_PARTS = ("trainers", "datasets", "configs", "tools")  # parts of this package that may be stored outside its folder
_COPIED_SUFFIXES = (".py", ".yaml", ".yml", ".json", ".toml")  # files in the working folder that are copied
_MAX_BYTES, _MAX_FILE_BYTES = 50 * 2**20, 2 * 2**20
_MUST_MATCH = ("python", "dassl-lite", "torch", "ray")  # versions that must match for equal results


@dataclass(frozen=True)
class Cluster:
    """The cluster on which tasks run, and the resources per task.

    Attributes:
        address: address of Ray; `LOCAL` for a cluster on this machine that ends with the work.
        cpus, gpus, memory: resources per task: cores, GPUs (possibly fractional) and GiB; gpus None means one if
            there are any.
    """

    address: str = LOCAL
    cpus: float = 1.0
    gpus: float | None = None
    memory: float = 0.0

    @property
    def needs(self) -> str:
        """A task's resources, for messages."""
        parts = [f"{self.cpus:g} CPU{'s' * (self.cpus != 1)}"]
        parts += [f"{self.gpus:g} GPU{'s' * (self.gpus != 1)}"] if self.gpus else []
        return " and ".join([*parts, *([f"{self.memory:g} GiB of memory"] if self.memory else [])])


def cluster_of(args: argparse.Namespace) -> Cluster | None:
    """The cluster given by the flags of `arguments.add_ray_flags`; None without ``--ray``.

    Raises:
        UserError: Ray is not installed, or a value is impossible.
    """
    if not args.ray:
        return None
    optional_module("ray", "ray", "--ray")  # fails before any work is planned
    for flag in ("run_cpus", "run_gpus", "run_memory"):
        value = getattr(args, flag)
        if value is not None and not 0 <= value <= 1e6:
            raise UserError(f"--{flag.replace('_', '-')} must be from 0 to 1,000,000, not {shown(value)}")
    if args.run_gpus is not None and args.run_gpus > 1 and not args.run_gpus.is_integer():
        raise UserError(f"--run-gpus must be an integer or below 1, not {args.run_gpus:g}")
    cpus = 1.0 if args.run_cpus is None else args.run_cpus
    return Cluster(args.ray, cpus, args.run_gpus, args.run_memory or 0.0)


@dataclass(frozen=True)
class _Context:
    """The settings of a process on a node.

    Attributes:
        versions: versions on the driver.
        folder: the driver's working folder.
        plugins: file or module -> its copy among the copied files; "" for none.
        threads: threads per process.
    """

    versions: dict[str, str]
    folder: str
    plugins: dict[str, str]
    threads: int


def versions() -> dict[str, str]:
    """This machine's versions of everything that must match between nodes."""
    versions_here = {"python": platform.python_version(), "dassl-lite": dassl_lite.__version__}
    for name in ("torch", "ray"):
        with contextlib.suppress(PackageNotFoundError):
            versions_here[name] = version(name)
    return versions_here


def check_versions(node: str, theirs: dict[str, str], own: dict[str, str]) -> None:
    """Raise a UserError if a node's versions differ from the driver's."""
    differing = [name for name in _MUST_MATCH if theirs.get(name) != own.get(name)]
    if differing:
        listed = ", ".join(f"{name} {theirs.get(name, 'is missing')} (here {own.get(name)})" for name in differing)
        raise UserError(f"node {node} has {listed}; all nodes need the same versions, or results would differ")


class RayWorkers:
    """The worker processes of a cluster, with the interface of `workers.Workers`."""

    def __init__(self, ray: Any, cluster: Cluster, context: _Context) -> None:
        needs: dict[str, Any] = {"num_cpus": cluster.cpus, "num_gpus": cluster.gpus or 0}
        if cluster.memory:
            needs["memory"] = int(cluster.memory * 2**30)
        self._ray, self._context = ray, context
        self._task = ray.remote(_run_task).options(**needs, max_retries=_RETRIES, retry_exceptions=False)

    def __call__(
        self,
        function: Callable[[Item], Result],
        items: Sequence[Item],
        *,
        lost: Callable[[Item, str], Result] | None = None,
        before: tuple[Callable[[list[Item]], object], Callable[[Item], Hashable]] | None = None,
    ) -> Iterator[Result]:
        """Yield the results as they complete.

        Args:
            lost: makes the result of an item whose processes kept dying, from the item and the reason; without it, such
                an item is an error.
            before: a function that is called once for each group of items, before any of them, and a function that
                returns an item's group.
        """
        ray, first = self._ray, {}
        if before is not None:
            groups: dict[Hashable, list[Item]] = {}
            for item in items:
                groups.setdefault(before[1](item), []).append(item)
            first = {
                key: self._task.remote(self._context, _silently, (before[0], group)) for key, group in groups.items()
            }
        todo = {
            self._task.remote(self._context, function, item, first[before[1](item)] if before else None): item
            for item in items
        }
        try:
            while todo:
                ended, _ = ray.wait(list(todo), num_returns=1, timeout=1.0)  # so that Ctrl-C works
                for task in ended:
                    item = todo.pop(task)
                    try:
                        yield ray.get(task)
                    except ray.exceptions.RayTaskError as error:
                        raise _cause(error) from None
                    except ray.exceptions.RayError as error:
                        reason = f"its process died {_RETRIES + 1} times ({type(error).__name__})"
                        if lost is None:
                            raise UserError(f"a task was lost: {reason}") from error
                        yield lost(item, reason)
        except BaseException:
            for task in todo:
                ray.cancel(task, force=False, recursive=True)  # a run saves a checkpoint first
            with contextlib.suppress(Exception):
                ray.wait(list(todo), num_returns=len(todo), timeout=_SECONDS)
            raise


def _cause(error: Any) -> BaseException:
    cause = getattr(error, "cause", error)
    return cause if isinstance(cause, BaseException) else error


def _silently(work: tuple[Callable[[Any], object], Any]) -> None:
    """Call a function and ignore its errors: the tasks that wait for it run into them too, and report them."""
    function, argument = work
    with contextlib.suppress(Exception):
        function(argument)


def _run_task(context: _Context, function: Callable[[Any], Any], item: Any, prepared: object = None) -> Any:
    """Run a task; ``prepared`` is the result of another task that it had to wait for."""
    _enter(context)
    return function(item)


_entered = False  # whether this process has become a worker


def _enter(context: _Context) -> None:
    """Make a process on a node a worker."""
    global _entered
    if _entered:
        return
    check_versions(node_name(), versions(), context.versions)
    copied = Path.cwd()
    if Path(context.folder).is_dir():
        os.chdir(context.folder)  # relative data paths start there
    plugins = [
        given if not copy or Path(given).is_file() else str(copied / copy) for given, copy in context.plugins.items()
    ]
    enter_worker(context.threads, plugins)
    _entered = True


def node_name() -> str:
    """The name of this machine, for messages."""
    return socket.gethostname()


def _probe() -> tuple[str, dict[str, str]]:
    return node_name(), versions()


# ---- the cluster ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def ray_workers(cluster: Cluster, plugins: Sequence[str] = ()) -> Iterator[RayWorkers]:
    """A context with the workers of a cluster; on exit, disconnects from it, or shuts it down if it is local.

    Args:
        plugins: files or modules that each process imports first.

    Raises:
        UserError: there is no cluster, it lacks the resources of a task, or versions differ.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray = optional_module("ray", "ray", "--ray")
    with contextlib.ExitStack() as stack:
        copies = dict.fromkeys(plugins, "")
        settings: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
        if cluster.address == LOCAL:
            root = "/tmp" if os.access("/tmp", os.W_OK) else None  # socket paths must be short
            place = stack.enter_context(tempfile.TemporaryDirectory(prefix="r", dir=root, ignore_cleanup_errors=True))
            settings |= {"include_dashboard": False, "object_store_memory": _STORE, "_temp_dir": place}
        else:
            place = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
            copies = copy_code(Path(place), plugins)
            env_vars = {name: value for name, value in os.environ.items() if name.startswith("DASSL_LITE_")}
            settings["runtime_env"] = {"working_dir": place, "env_vars": env_vars}
        stack.callback(ray.shutdown)
        _connect(ray, cluster.address, settings)
        cluster = _with_gpus(ray, cluster)
        threads = max(1, int(cluster.cpus))
        context = _Context(versions(), os.getcwd(), copies, threads)
        _check_nodes(ray, context)
        yield RayWorkers(ray, cluster, context)


def _connect(ray: Any, address: str, settings: dict[str, Any]) -> None:
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        except OSError as error:
            raise UserError(f"there is no Ray cluster at {address}: {error.strerror or error}") from None
    elif address not in (LOCAL, "auto"):
        raise UserError(f"--ray {shown(address)} is not an address, such as 10.0.0.1:6379")
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        _init(ray, address, settings)
    except ConnectionError as error:
        raise UserError(f"there is no Ray cluster at {address}: {str(error).partition(chr(10))[0]}") from error
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise UserError(f"Ray at {address} cannot be used: {' '.join(lines)[:400]}") from error
    finally:
        for number, handler in handlers.items():  # Ray installs its own for SIGTERM
            signal.signal(number, handler)


def _init(ray: Any, address: str, settings: dict[str, Any]) -> None:
    """Call ``ray.init``; retry if a local cluster does not start within Ray's limit of half a minute."""
    for attempt in range(_STARTS):
        try:
            ray.init(address=address, **settings)
            return
        except Exception as error:
            if address != LOCAL or attempt + 1 == _STARTS or "timed out during startup" not in str(error):
                raise
            ray.shutdown()


def _with_gpus(ray: Any, cluster: Cluster) -> Cluster:
    """The cluster with the number of GPUs per task filled in.

    Raises:
        UserError: no node has the resources of a task.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = cluster.gpus
    if gpus is None:
        gpus = 1.0 if any(node.get("GPU", 0) >= 1 for node in nodes) else 0.0
    complete = Cluster(cluster.address, cluster.cpus, gpus, cluster.memory)
    wanted = {"CPU": cluster.cpus, "GPU": gpus, "memory": cluster.memory * 2**30}
    if not any(all(node.get(name, 0) >= amount for name, amount in wanted.items()) for node in nodes):
        raise UserError(f"no node of the cluster has {complete.needs} for a run")
    return complete


def _check_nodes(ray: Any, context: _Context) -> None:
    """Raise a UserError for a node with different versions; a node that does not answer is left to Ray."""
    strategy = importlib.import_module("ray.util.scheduling_strategies").NodeAffinitySchedulingStrategy
    probe = ray.remote(_probe)
    nodes = [strategy(node["NodeID"], soft=False) for node in ray.nodes() if node["Alive"]]
    probes = [probe.options(num_cpus=0, max_retries=0, scheduling_strategy=node).remote() for node in nodes]
    for answered in ray.wait(probes, num_returns=len(probes), timeout=_SECONDS)[0]:
        try:
            node, theirs = ray.get(answered)
        except ray.exceptions.RayError as error:
            logger.warning(f"a node of the cluster does not answer: {' '.join(str(error).split())[:200]}")
            continue
        check_versions(node, theirs, context.versions)


# ---- copying code ---------------------------------------------------------------------------------------------------


def copy_code(place: Path, plugins: Sequence[str] = ()) -> dict[str, str]:
    """Copy this package and the code in the working folder to ``place``; returns plug-in -> its copy there.

    From the working folder, it copies code and yaml files that git does not ignore.
    """
    for relative in _code(Path.cwd()):
        (place / relative).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(relative, place / relative)
    package, unwanted = place / "dassl_lite", shutil.ignore_patterns("__pycache__", "*.pyc", ".*")
    shutil.rmtree(package, ignore_errors=True)
    shutil.copytree(Path(dassl_lite.__file__).parent, package, ignore=unwanted)
    for part in _PARTS:
        source = Path(next(iter(importlib.import_module(f"dassl_lite.{part}").__path__)))
        shutil.copytree(source, package / part, ignore=unwanted, dirs_exist_ok=True)
    copies = {}
    for number, plugin in enumerate(plugins):
        copies[plugin] = ""
        if plugin != COMPAT and plugin.endswith(".py"):
            folder = place / "copied_plugins" / str(number)
            folder.mkdir(parents=True)
            for path in sorted(Path(plugin).resolve().parent.iterdir()):
                if path.suffix in _COPIED_SUFFIXES and path.is_file() and path.stat().st_size <= _MAX_FILE_BYTES:
                    shutil.copyfile(path, folder / path.name)
            copies[plugin] = str((folder / Path(plugin).name).relative_to(place))
    return copies


def _code(folder: Path) -> list[Path]:
    """Relative paths of the code and yaml files below a folder that git does not ignore.

    Without git, only files directly in the folder are listed.
    """
    words = ["git", "-C", str(folder), "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        listed = subprocess.run(words, capture_output=True, check=True, timeout=60).stdout
        paths = [Path(os.fsdecode(name)) for name in listed.split(b"\0") if name]
    except (OSError, subprocess.SubprocessError):
        paths = [Path(path.name) for path in sorted(folder.iterdir())]
    code, total = [], 0
    for path in paths:
        full = folder / path
        if path.suffix not in _COPIED_SUFFIXES or not full.is_file() or full.is_symlink():
            continue
        size = full.stat().st_size
        total += size if size <= _MAX_FILE_BYTES else 0
        if total > _MAX_BYTES:
            logger.warning(f"Only the first {_MAX_BYTES >> 20} MiB of code in {folder} are copied to the cluster")
            break
        if size <= _MAX_FILE_BYTES:
            code.append(path)
    return code
