"""Mutation testing: change one token of the package, run the tests that execute it, see whether one of them fails.

    python tests/mutation/mutate.py --count 200 --seed 1         # a sample, the same for the same code and seed
    python tests/mutation/mutate.py --count 200 --seed 1 --list  # the sample alone
    python tests/mutation/mutate.py --count 200 --seed 1 --survivors   # again those that survived, after new tests

The first run measures, under coverage, which tests execute which lines (minutes); the map is kept and only what has
changed is measured again. Results are kept too: a run that was interrupted goes on where it stopped. Everything runs
in copies of the checkout. A mutation that runs out of time counts as killed. Ready-made tools (mutmut, cosmic-ray)
do not know folders that setup.py maps into a package, and start a Python with torch for every mutation.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from coverage_map import CoverageMap, load_or_measure, pytest_options
from mutations import Mutation, find_mutations
from sandbox import HEAVY, KILLED_BY_TIME, Job, Sandbox, import_packages

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = ("engine", "data", "models", "optim", "evaluation")
FIRST_TESTS = 5.0  # seconds of tests, from few files, that run before the others are even collected
KILLED, SURVIVED, TIMED_OUT, NO_TEST = "killed", "survived", "timed out", "no test"


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--count", type=int, default=200, help="number of mutations")
    add("--seed", type=int, default=1, help="of the sample")
    add("--packages", nargs="+", default=PACKAGES, help="of dassl_lite, to be mutated")
    add("--tests", nargs="+", default=("tests",), help="folders or files of tests to use")
    add("--id", nargs="+", default=(), help="these mutations instead of a sample, as the report names them")
    add("--survivors", action="store_true", help="run again what survived before")
    add("--budget", type=float, default=120, help="seconds of tests for one mutation; the slowest are left out")
    add("--patience", type=float, default=20, help="CPU seconds for one mutation, beyond 4 times those of its tests")
    add("--processes", type=int, default=2)
    add("--preload", nargs="*", default=HEAVY, metavar="MODULE", help="imported once, for all processes")
    add("--output", type=Path, default=REPOSITORY / "output" / "mutation", help="folder of the map, results, copies")
    add("--list", action="store_true", help="print the mutations and stop")
    return parser.parse_args(argv)


def sample(args: argparse.Namespace) -> list[Mutation]:
    """The mutations to run, in the order of the sample."""
    paths = [path for name in args.packages for path in sorted((REPOSITORY / "dassl_lite" / name).rglob("*.py"))]
    found = [mutation for path in paths for mutation in find_mutations(REPOSITORY, path)]
    if args.id:
        return [mutation for mutation in found if mutation.id in args.id]
    return random.Random(args.seed).sample(found, min(args.count, len(found)))


class Run:
    """One mutation in one sandbox: its tests in two goes, first the few that are over soonest."""

    def __init__(self, sandbox: Sandbox, mutation: Mutation, tests: CoverageMap, args: argparse.Namespace) -> None:
        self.sandbox, self.mutation, self.started = sandbox, mutation, time.monotonic()
        self.patience = args.patience
        self.seconds = tests.seconds
        lines, at_import = _lines_that_run_it(mutation)
        chosen = tests.tests_of(mutation.path, *lines, or_whole_file=at_import)
        self.count, self.left_out = len(chosen), 0
        self.goes = list(self._divide(chosen, args.budget))
        self.job: Job | None = None
        self._write(mutation.apply((REPOSITORY / mutation.path).read_bytes()))
        self.outcome = "" if self.goes else NO_TEST

    def _divide(self, tests: list[str], budget: float) -> Iterator[list[str]]:
        spent, first, rest = 0.0, [], []
        for test in tests:
            spent += self.seconds[test]
            if spent > budget and (first or rest):
                self.left_out += 1
            elif spent < FIRST_TESTS and len({t.partition("::")[0] for t in (*first, test)}) <= 6 and not rest:
                first.append(test)
            else:
                rest.append(test)
        yield from filter(None, (first, rest))

    def poll(self) -> bool:
        """Move on; True once the outcome is known, and the copy is as it was."""
        if not self.outcome and self.job is None:
            tests = self.goes.pop(0)
            limit = self.patience + 4 * sum(self.seconds[test] for test in tests)
            self.job = self.sandbox.start(lambda: _run_tests(self.sandbox, tests), limit)
        if self.job is not None and (code := self.job.poll()) is not None:
            self.job = None
            if code:
                self.outcome = TIMED_OUT if code == KILLED_BY_TIME else KILLED
            elif not self.goes:
                self.outcome = SURVIVED
        if self.outcome:
            self._write((REPOSITORY / self.mutation.path).read_bytes())
        return bool(self.outcome)

    def result(self) -> dict[str, Any]:
        failed = self.sandbox.scratch / "failed.txt"
        by = failed.read_text() if self.outcome == KILLED and failed.is_file() else ""
        return {
            "id": self.mutation.id,
            "outcome": self.outcome,
            "by": by,
            "tests": self.count,
            "left_out": self.left_out,
            "seconds": round(time.monotonic() - self.started, 1),
            "change": f"{self.mutation.before} -> {self.mutation.after or '(nothing)'}",
        }

    def _write(self, source: bytes) -> None:
        path = self.sandbox.root / self.mutation.path
        path.write_bytes(source)
        for compiled in path.parent.glob(f"__pycache__/{path.stem}.*"):  # of the same second, it would pass for current
            compiled.unlink()


def _run_tests(sandbox: Sandbox, tests: list[str]) -> int:
    """In a forked process: these tests in this order, up to the first that fails."""
    import pytest

    place = {test: number for number, test in enumerate(tests)}

    class Selection:
        @pytest.hookimpl(trylast=True)
        def pytest_collection_modifyitems(self, items: list[Any]) -> None:
            chosen = [item for item in items if item.nodeid in place]
            items[:] = sorted(chosen, key=lambda item: place[item.nodeid])

        def pytest_runtest_logreport(self, report: Any) -> None:
            if report.failed:
                (sandbox.scratch / "failed.txt").write_text(report.nodeid)

    files = dict.fromkeys(test.partition("::")[0] for test in tests)
    return int(pytest.main([*pytest_options(sandbox), "-x", "--no-header", *files], plugins=[Selection()]))


def _lines_that_run_it(mutation: Mutation) -> tuple[tuple[int, int], bool]:
    """Lines whose tests can notice a mutation, and whether it is executed when its module is imported.

    Within a function's body they are the mutation's own. A default value counts with its function's body, and a
    constant with all lines of the file: the tests that happen to import the module first tell nothing about its users.
    """
    tree = ast.parse((REPOSITORY / mutation.path).read_bytes())
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    around = [node for node in functions if node.lineno <= mutation.line <= (node.end_lineno or node.lineno)]
    if not around:
        return (mutation.line, mutation.last_line), True
    innermost = max(around, key=lambda node: node.lineno)
    first = innermost.body[0].lineno
    if mutation.line >= first:
        return (mutation.line, mutation.last_line), False
    return (first, innermost.end_lineno or first), False


def run_all(mutations: list[Mutation], tests: CoverageMap, sandboxes: list[Sandbox], args: Any) -> Iterator[dict]:
    """Results as they come."""
    waiting, running = list(mutations), {}
    while waiting or running:
        for sandbox in sandboxes:
            if sandbox not in running and waiting:
                running[sandbox] = Run(sandbox, waiting.pop(0), tests, args)
            if sandbox in running and running[sandbox].poll():
                yield running.pop(sandbox).result()
        time.sleep(0.02)


def report(results: list[dict[str, Any]]) -> str:
    counts = Counter(result["outcome"] for result in results)
    caught = counts[KILLED] + counts[TIMED_OUT]
    lines = [f"{caught} of {len(results)} killed ({100 * caught / max(1, len(results)):.1f}%): {dict(counts)}"]
    for result in sorted(results, key=lambda result: result["id"]):
        if result["outcome"] in (SURVIVED, NO_TEST):
            left = f", {result['left_out']} left out" if result["left_out"] else ""
            lines += [f"{result['outcome']}: {result['id']} ({result['tests']} tests{left})", f"    {result['change']}"]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    chosen = sample(args)
    if args.list:
        for mutation in chosen:
            print(f"{mutation.id}\n    {mutation.before} -> {mutation.after or '(nothing)'}")
        return 0
    import_packages(args.preload)
    sandboxes = [Sandbox(REPOSITORY, args.output / f"sandbox{number}") for number in range(args.processes)]
    tests = load_or_measure(REPOSITORY, args.output / "coverage.json.gz", sandboxes, args.tests)
    if tests.failed:
        print(f"{len(tests.failed)} tests fail, or are skipped, without a mutation and are not used")
    code = hashlib.sha256("".join(f"{m.id}{m.before}{m.after}" for m in chosen).encode()).hexdigest()[:12]
    kept = args.output / f"results-{code}.jsonl"
    known = {row["id"]: row for row in map(json.loads, kept.read_text().splitlines() if kept.is_file() else ())}
    again = (SURVIVED, NO_TEST) if args.survivors else ()
    todo = [m for m in chosen if m.id not in known or known[m.id]["outcome"] in again]
    with kept.open("a", encoding="utf-8") as file:
        for result in run_all(todo, tests, sandboxes, args):
            known[result["id"]] = result
            file.write(json.dumps(result) + "\n")
            file.flush()
            print(f"{len(known):4d}/{len(chosen)} {result['outcome']:9} {result['seconds']:5.1f} s  {result['id']}")
    print(report([known[mutation.id] for mutation in chosen]))
    print(f"Results: {kept}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
