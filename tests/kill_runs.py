"""Kill runs at random instants, let them go on, and compare everything with runs that were never stopped.

    python tests/kill_runs.py                    # 60 kills, in turn of every kind
    python tests/kill_runs.py --count 5 --kinds train-images --seed 7

It takes 10 to 20 minutes; with `nice -n 10` it stands back behind other work.
Each trial starts a tool in a process of its own with a cache of its own, kills it (SIGKILL, with all of its processes)
somewhere between its first and its last moment, one time in three kills its continuation too, and then lets it end. All
of results.json but times, memory, places and environment must equal that of a run that was never stopped, so must the
tensors of the last checkpoints, and of ``extract`` the arrays; nothing half-written may be left.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from dassl_lite.engine.commands.cli import run_tool
from dassl_lite.tools import extract, sweep, train

GADGETS = ("--dataset-config-file", "gadgets")
WITHOUT_WORKERS = ("DATALOADER.NUM_WORKERS", "0")
# What differs between any two runs.
NOT_COMPARED = ("seconds", "peak_memory", "finished", "environment")
PLACES = ("OUTPUT_DIR", "RESUME")


@dataclass(frozen=True)
class Kind:
    """A kind of run.

    Attributes:
        tool: ``main`` of the tool.
        start: its arguments, for a folder, besides those of the data.
        resume: what is added to continue.
        warm: whether the features are in the cache before the first start.
    """

    tool: Callable[[Sequence[str] | None], int]
    start: Callable[[Path], list[str]]
    resume: tuple[str, ...] = ()
    warm: bool = False


def _train(*options: str) -> Callable[[Path], list[str]]:
    """Every epoch is saved and validated, so that there is as much to lose as possible."""
    flags = ["--trainer", "TaskRes", "--shots", "4", "--output-dir"]
    often = ("TRAIN.CHECKPOINT_FREQ", "5", "TRAIN.CHECKPOINT_SECONDS", "0", "TEST.FINAL_MODEL", "best_val")
    return lambda folder: [*flags, str(folder / "run"), *WITHOUT_WORKERS, *often, *options]


def _extract(folder: Path) -> list[str]:
    few = ["--views", "3", "--shots", "8", "DATASET.FEATURES.BATCH_SIZE", "32"]
    return ["--output", str(folder / "features.npz"), *few, *WITHOUT_WORKERS]


def _sweep(*flags: str) -> Callable[[Path], list[str]]:
    given = ["--trainers", "TaskRes", "ZeroshotCLIP", "TipAdapterF", "--shots", "1", "2"]
    few = ["OPTIM.MAX_EPOCH", "3", "DATASET.FEATURES.VIEWS", "2", *WITHOUT_WORKERS]
    return lambda folder: [*given, "--seeds", "1", "--output-dir", str(folder / "sweep"), *flags, *few]


FEATURES = ("OPTIM.MAX_EPOCH", "40", "DATASET.FEATURES.VIEWS", "4", "DATASET.FEATURES.BATCH_SIZE", "64")
IMAGES = (
    *("OPTIM.MAX_EPOCH", "8", "DATASET.FEATURES.VIEWS", "0", "DATALOADER.TRAIN_X.SAMPLER", "RandomClassSampler"),
    *("DATALOADER.TRAIN_X.BATCH_SIZE", "6", "DATALOADER.TRAIN_X.N_INS", "2"),
    *("INPUT.TRANSFORMS", "['random_translation', 'randaugment', 'normalize']"),  # they draw from Python's stream
)
KINDS = {
    "train-cold": Kind(train.main, _train(*FEATURES), ("--resume",)),
    "train-warm": Kind(train.main, _train(*FEATURES), ("--resume",), warm=True),
    "train-images": Kind(train.main, _train(*IMAGES), ("--resume",)),
    "extract": Kind(extract.main, _extract, ("--overwrite",)),
    "sweep": Kind(sweep.main, _sweep("--jobs", "1")),
    "sweep-jobs": Kind(sweep.main, _sweep("--jobs", "2")),
}
RARE = {"sweep-jobs": 4}  # it starts processes that import torch, which takes long: every fourth round


class Trials:
    """Runs below a folder, each in a process that is forked from this one, which has imported everything.

    Args:
        folder: of all runs; empty.
        chance: draws the moments.
        data: flags that name the data.
    """

    def __init__(self, folder: Path, chance: random.Random, data: Sequence[str] = GADGETS) -> None:
        self.folder, self.chance, self.data = folder, chance, data
        self.whole: dict[str, dict[str, Any]] = {}
        self.seconds: dict[str, float] = {}
        self.caches = {"cold": folder / "cold", "warm": folder / "warm"}

    def prepare(self, names: Sequence[str]) -> None:
        """Draw the pictures, import what runs import, and run every kind to its end."""
        self.caches["cold"].mkdir(parents=True)
        drawn = ["--trainer", "TaskRes", "--output-dir", str(self.folder / "drawn"), *WITHOUT_WORKERS]
        short = ("OPTIM.MAX_EPOCH", "1", "DATASET.FEATURES.VIEWS", "0")  # and nothing in the cache but the pictures
        here = mock.patch.dict(os.environ, DASSL_LITE_CACHE=str(self.caches["cold"]))
        with here, contextlib.redirect_stdout(io.StringIO()):
            assert run_tool(train.main, [*self.data, *drawn, *short]) == 0
        if any(KINDS[name].warm for name in names):
            warming = [*self.data, *_train(*FEATURES)(self.folder / "warming")]
            assert self._run(train.main, warming, self._copy("cold", "warm")) == 0
        for place in (self.caches["warm"] / "datasets").rglob("split_fewshot"):
            shutil.rmtree(place)  # the shots are to be drawn, too
        for name in names:
            place = self._place(name, "whole")
            start = time.monotonic()
            assert self._run(KINDS[name].tool, self._first(KINDS[name], place), place / "cache") == 0, place / "log"
            self.seconds[name] = time.monotonic() - start
            self.whole[name] = found_in(place)

    def kill(self, name: str, number: int) -> str:
        """One trial; returns what is wrong, or ""."""
        kind, moments = KINDS[name], []
        place = self._place(name, str(number))
        while not moments:
            moments = self._kill_once(kind, self._first(kind, place), place, self.seconds[name])
            if not moments:  # it had ended before
                shutil.rmtree(place)
                place = self._place(name, str(number))
        arguments = self._continuing(kind, place)
        if self.chance.random() < 1 / 3:
            moments += self._kill_once(kind, arguments, place, self.seconds[name])
            arguments = self._continuing(kind, place)
        code = self._run(kind.tool, arguments, place / "cache")
        told = f"{name}, killed after {', '.join(f'{moment:.2f}' for moment in moments)} s"
        wrong = f"exit code {code}: see {place / 'log'}" if code else difference(self.whole[name], found_in(place))
        print(f"{number:3} {told}: {wrong or 'equal'}", flush=True)
        if not wrong:
            shutil.rmtree(place)
        return wrong and f"{told}: {wrong}"

    def _first(self, kind: Kind, place: Path) -> list[str]:
        data = ["--datasets", "gadgets"] if kind.tool is sweep.main and self.data == GADGETS else self.data
        return [*data, *kind.start(place)]

    def _continuing(self, kind: Kind, place: Path) -> list[str]:
        return [*kind.resume, *self._first(kind, place)]

    def _place(self, name: str, what: str) -> Path:
        place = self.folder / f"{name}-{what}"
        place.mkdir(parents=True)
        self._copy("warm" if KINDS[name].warm else "cold", str(place / "cache"))
        return place

    def _copy(self, kind: str, to: str) -> Path:
        return Path(shutil.copytree(self.caches[kind], self.folder / to))

    def _start(self, tool: Any, arguments: Sequence[str], cache: Path) -> int:
        sys.stdout.flush()
        process = os.fork()
        if process:
            return process
        os.setsid()  # its own processes are killed with it
        log = os.open(cache.parent / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ["DASSL_LITE_CACHE"] = str(cache)
        torch.set_num_threads(1)
        code = 70
        try:
            code = run_tool(tool, list(arguments))
        finally:
            os._exit(code)

    def _run(self, tool: Any, arguments: Sequence[str], cache: Path) -> int:
        _, status = os.waitpid(self._start(tool, arguments, cache), 0)
        return os.waitstatus_to_exitcode(status)

    def _kill_once(self, kind: Kind, arguments: Sequence[str], place: Path, seconds: float) -> list[float]:
        """Kill a run somewhere in ``seconds``; the moment, or nothing if it had ended."""
        process, moment = self._start(kind.tool, arguments, place / "cache"), self.chance.uniform(0, seconds)
        deadline = time.monotonic() + moment
        while time.monotonic() < deadline:
            if os.waitpid(process, os.WNOHANG)[0]:
                return []
            time.sleep(0.005)
        os.killpg(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
        return [moment] if os.waitstatus_to_exitcode(status) == -signal.SIGKILL else []


def found_in(place: Path) -> dict[str, Any]:
    """What the runs below a folder have left, without what differs between any two runs."""
    found: dict[str, Any] = {}
    for path in sorted(place.rglob("*")):
        name = str(path.relative_to(place))
        if path.name == "results.json":
            found[name] = comparable(json.loads(path.read_text()))
        elif path.name.startswith("model") and ".pth.tar" in path.name:
            found[name] = torch.load(path, weights_only=False)["state_dict"]
        elif path.suffix == ".npz":
            found[name] = dict(np.load(path))
        elif path.name.endswith(".tmp") or path.name == ".running":
            found[name] = "left behind"
    return found


def comparable(results: dict[str, Any]) -> dict[str, Any]:
    """``results.json`` without times, memory, environment and places."""
    kept = {key: value for key, value in results.items() if key not in NOT_COMPARED}
    kept["config"] = {key: value for key, value in results["config"].items() if key not in PLACES}
    return kept


def difference(whole: Any, found: Any, where: str = "") -> str:
    """The first difference, or ""."""
    if isinstance(whole, dict) and isinstance(found, dict):
        if whole.keys() != found.keys():
            return f"{where}: {sorted(map(str, whole.keys() ^ found.keys()))} only once"
        return next((told for key in whole if (told := difference(whole[key], found[key], f"{where}/{key}"))), "")
    if isinstance(whole, list) and isinstance(found, list) and len(whole) == len(found):
        pairs = enumerate(zip(whole, found, strict=True))
        return next((told for i, pair in pairs if (told := difference(*pair, f"{where}[{i}]"))), "")
    if isinstance(whole, torch.Tensor | np.ndarray):
        same = np.array_equal(np.asarray(whole), np.asarray(found))
    else:
        same = whole == found or (whole != whole and found != found)
    return "" if same else f"{where}: {str(whole)[:80]} became {str(found)[:80]}"


def turns(count: int, names: Sequence[str]) -> Iterator[str]:
    """``count`` names, in turn, the rare ones more rarely."""
    rounds = 0
    while count > 0:
        for name in names:
            if count > 0 and (len(names) == 1 or rounds % RARE.get(name, 1) == 0):
                count -= 1
                yield name
        rounds += 1


def kill_runs(
    count: int, seed: int, folder: Path, names: Sequence[str] = tuple(KINDS), data: Sequence[str] = GADGETS
) -> list[str]:
    """Do ``count`` trials; returns what was wrong."""
    trials = Trials(folder, random.Random(seed), data)
    chosen = list(turns(count, names))
    trials.prepare(list(dict.fromkeys(chosen)))
    return [wrong for number, name in enumerate(chosen) if (wrong := trials.kill(name, number))]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=60, help="number of trials (default: 60)")
    parser.add_argument("--seed", type=int, default=1, help="of the moments (default: 1)")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS), help="kinds of runs")
    args = parser.parse_args()
    torch.set_num_threads(1)  # threads do not survive a fork
    folder = Path(tempfile.mkdtemp(prefix="killed-"))
    wrong = kill_runs(args.count, args.seed, folder, args.kinds)
    print(f"{args.count - len(wrong)}/{args.count} equal those of runs that were never stopped", *wrong, sep="\n")
    if not wrong:
        shutil.rmtree(folder)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
