"""Which tests execute which lines: measured once, kept in a file, measured again only where something has changed."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sandbox import Sandbox, tracked_files

MEASURED = ("dassl_lite", "trainers", "datasets", "tools")
SECONDS_PER_FILE = 600.0
# Runs in every Python that a test starts: its lines count for that test.
STARTUP = "import coverage\ncoverage.process_startup()\n"


class CoverageMap:
    """Lines of the package -> tests, with the time that each test takes.

    Attributes:
        seconds: test (its pytest node id) -> seconds, for tests that pass without a mutation.
        lines: path -> line -> tests that execute it.
        failed: tests that fail in a copy without a mutation; they are not used.
    """

    def __init__(self, content: Mapping[str, Any]) -> None:
        self.by_file: dict[str, Any] = dict(content)
        self.seconds: dict[str, float] = {}
        self.failed: list[str] = []
        self.lines: dict[str, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
        for measured in self.by_file.values():
            passed = {test: seconds for test, (seconds, good) in measured["tests"].items() if good}
            self.failed += measured["tests"].keys() - passed.keys()
            self.seconds |= passed
            for path, lines in measured["lines"].items():
                for line, tests in lines.items():
                    self.lines[path][int(line)].update(passed.keys() & set(tests))

    def tests_of(self, path: str, first: int, last: int, *, or_whole_file: bool = False) -> list[str]:
        """Tests that execute one of the lines, those that are over soonest first, file by file.

        Args:
            or_whole_file: any line of the file counts, as it does if no test executes these.
        """
        known = self.lines.get(path, {})
        found = {test for line in range(first, last + 1) for test in known.get(line, ())}
        if or_whole_file or not found:
            found = {test for tests in known.values() for test in tests}
        files: dict[str, list[str]] = defaultdict(list)
        for test in sorted(found, key=lambda test: self.seconds[test]):
            files[test.partition("::")[0]].append(test)
        ordered = sorted(
            files.values(), key=lambda tests: self.seconds[tests[0]] + sum(map(self.seconds.get, tests)) / 20
        )
        return [test for tests in ordered for test in tests]


def load_or_measure(
    repository: Path, cache: Path, sandboxes: Sequence[Sandbox], folders: Sequence[str] = ("tests",)
) -> CoverageMap:
    """The map of this checkout: from `cache` as far as it still holds, else measured in `sandboxes`.

    Args:
        folders: of the tests to use.
    """
    files = tracked_files(repository)
    sources = _digest(repository, [name for name in files if not _is_test(name)])
    wanted = {name: sources + _digest(repository, [name]) for name in files if _is_test(name)}
    known: dict[str, Any] = json.loads(gzip.decompress(cache.read_bytes())) if cache.is_file() else {}
    kept = {name: known[name] for name in wanted if known.get(name, {}).get("digest") == wanted[name]}
    asked = [name for name in wanted if any(f"{name}/".startswith(f"{folder.rstrip('/')}/") for folder in folders)]
    waiting = sorted(name for name in asked if name not in kept)
    running: dict[Sandbox, tuple[str, Any]] = {}
    started = time.monotonic()
    while waiting or running:
        for sandbox in sandboxes:
            if sandbox not in running and waiting:
                name = waiting.pop(0)
                running[sandbox] = name, sandbox.start(lambda s=sandbox, n=name: _measure(s, n), SECONDS_PER_FILE)
        for sandbox, (name, job) in list(running.items()):
            if (code := job.poll()) is not None:
                del running[sandbox]
                kept[name] = {"digest": wanted[name], **_collect(sandbox)}
                count = len(kept[name]["tests"])
                print(f"{time.monotonic() - started:5.0f} s  measured {name}: {count} tests, exit code {code}")
                cache.parent.mkdir(parents=True, exist_ok=True)
                cache.write_bytes(gzip.compress(json.dumps(kept).encode(), 1))
        time.sleep(0.05)
    return CoverageMap({name: kept[name] for name in asked})


def _is_test(name: str) -> bool:
    """Whether a file holds tests of the package."""
    place, _, file = name.rpartition("/")
    return (
        f"{place}/".startswith("tests/")
        and place != "tests/mutation"
        and file.startswith("test_")
        and file.endswith(".py")
    )


def _digest(repository: Path, names: Iterable[str]) -> str:
    """Of the content of files; of what is neither code nor configuration nothing counts."""
    digest = hashlib.sha256()
    for name in sorted(names):
        if Path(name).suffix in (".py", ".yaml", ".toml", ".npz", ".json"):
            digest.update(name.encode() + (repository / name).read_bytes())
    return digest.hexdigest()


def _measure(sandbox: Sandbox, name: str) -> int:
    """In a forked process: run a file of tests under coverage."""
    import coverage
    import pytest

    settings = sandbox.scratch / "coverage.ini"
    settings.write_text(
        f"[run]\nparallel = True\ndata_file = {sandbox.scratch}/data\ncontext = ${{MUTATION_TEST}}\n"
        f"source =\n" + "".join(f"    {sandbox.root / folder}\n" for folder in MEASURED)
    )
    (sandbox.scratch / "startup").mkdir()
    (sandbox.scratch / "startup" / "sitecustomize.py").write_text(STARTUP)
    os.environ["PYTHONPATH"] = f"{sandbox.root}{os.pathsep}{sandbox.scratch / 'startup'}"
    os.environ |= {"COVERAGE_PROCESS_START": str(settings), "MUTATION_TEST": ""}
    measuring = coverage.Coverage(config_file=str(settings))
    outcomes: dict[str, list[Any]] = {}

    class Recorder:
        @pytest.hookimpl(wrapper=True)
        def pytest_runtest_protocol(self, item: Any) -> Any:
            outcomes[item.nodeid] = [time.perf_counter(), True]
            os.environ["MUTATION_TEST"] = item.nodeid
            measuring.switch_context(item.nodeid)
            result = yield
            outcomes[item.nodeid][0] = round(time.perf_counter() - outcomes[item.nodeid][0], 4)
            return result

        def pytest_runtest_logreport(self, report: Any) -> None:
            if not report.passed:  # skipped: it says nothing about a mutation either
                outcomes[report.nodeid][1] = False

    measuring.start()
    code = pytest.main([*pytest_options(sandbox), name], plugins=[Recorder()])
    measuring.stop()
    measuring.save()
    (sandbox.scratch / "outcomes.json").write_text(json.dumps(outcomes))
    return int(code)


def pytest_options(sandbox: Sandbox) -> list[str]:
    return ["-q", "-n0", "-p", "no:cacheprovider", f"--basetemp={sandbox.scratch / 'tmp'}", f"--rootdir={sandbox.root}"]


def _collect(sandbox: Sandbox) -> dict[str, Any]:
    """What a measured file of tests has left: outcomes, and path -> line -> tests."""
    from coverage import CoverageData
    from coverage.exceptions import DataError

    outcomes = sandbox.scratch / "outcomes.json"
    if not outcomes.is_file():
        return {"tests": {}, "lines": {}}
    lines: dict[str, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
    for file in sandbox.scratch.glob("data.*"):
        data = CoverageData(str(file))
        try:
            data.read()
        except DataError as error:  # left half-written by a process that a test killed
            print(f"skipped coverage of a killed process ({error})")
            continue
        for measured in data.measured_files():
            path = str(Path(measured).resolve().relative_to(sandbox.root.resolve()))
            for line, tests in data.contexts_by_lineno(measured).items():
                lines[path][line].update(test for test in tests if test)
    plain = {path: {line: sorted(tests) for line, tests in of.items() if tests} for path, of in lines.items()}
    return {"tests": json.loads(outcomes.read_text()), "lines": plain}
