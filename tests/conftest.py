"""Fixtures for every test: an isolated cache, the reference's golden numbers, optional real data."""

from __future__ import annotations

import compileall
import functools
import gc
import importlib.util
import json
import logging
import multiprocessing
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import PIL
import pytest
from browser import launched
from golden_count import ReferenceArrays, note_property, summary
from packaging.version import Version

if TYPE_CHECKING:
    import torch

# torch and what stands on it are imported where they are used: the process that hands tests out to others runs none,
# and they would wait for it.
REPOSITORY = Path(__file__).resolve().parent.parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--golden-report", action="store_true", help="count the reference's arrays that tests reproduce")


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        # Hundreds of the processes that tests start import the package. Where PYTHONDONTWRITEBYTECODE is set, as in
        # most images of Docker, each of them would compile it.
        for folder in ("dassl_lite", "trainers", "datasets", "tools"):
            compileall.compile_dir(REPOSITORY / folder, quiet=2)
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", None):
        prepare_process()


def prepare_process() -> None:
    """Make ready a process that runs tests."""
    import cuda_standin
    import torch

    from dassl_lite.startup import _NoWandbForTimm

    # Tests run in one process per core; their tensors are small, and threads would only wait for each other.
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # of the commands that tests start
    # What tests compare with was computed on a CPU. A GPU is hidden from them and from the commands that they start,
    # so they find the same on a machine with one. What runs on a GPU is tested on the stand-in, or on the GPU itself
    # if DASSL_LITE_TEST_GPU is set.
    if not on_real_gpu():
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        if hasattr(torch, "accelerator") and not cuda_standin.entered():
            torch.accelerator.is_available = lambda: False  # Apple's and Intel's
    sys.meta_path.insert(0, _NoWandbForTimm())  # as in a tool
    gc.disable()  # until all is imported


@functools.cache
def on_real_gpu() -> bool:
    import torch

    return bool(os.environ.get("DASSL_LITE_TEST_GPU")) and torch.cuda.is_available()


def pytest_collection_finish() -> None:
    gc.freeze()  # what was imported stays: a million objects, which the collector would go through many times
    gc.enable()


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Any:
    """pytest keeps the test modules that it has rewritten, which is a quarter of a collection's time, even where
    Python is told to keep no bytecode. Of what tests write themselves none is kept then."""
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, False
    try:
        return (yield)
    finally:
        sys.dont_write_bytecode = before


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Any:
    try:
        return (yield)
    finally:
        note_property(item)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """``slow_after(n)``: of a test's cases, all but the first ``n`` are slow."""
    seen: Counter[str] = Counter()
    for item in items:
        if mark := item.get_closest_marker("slow_after"):
            name = item.nodeid.partition("[")[0]
            seen[name] += 1
            if seen[name] > mark.args[0]:
                item.add_marker(pytest.mark.slow)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if config.getoption("--golden-report"):
        terminalreporter.section("reference arrays")
        terminalreporter.write_line(summary(GOLDEN, terminalreporter.stats))


GOLDEN = [REPOSITORY / "tests" / "golden", REPOSITORY / "tests" / "golden2"]


class Golden:
    """Numbers printed by the reference code; see the README.md in its folder.

    Args:
        root: tests/golden has the first methods, tests/golden2 newer ones.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, name: str) -> Path:
        return self.root / name

    def json(self, name: str) -> Any:
        return json.loads((self.root / f"{name}.json").read_text(encoding="utf-8"))

    def npz(self, name: str) -> Any:
        return ReferenceArrays(self.root / f"{name}.npz")

    def require_its_versions(self) -> None:
        """Skip the test with a torch or a Pillow older than those that printed the numbers: before, dropout masks were
        drawn, and images resized, in slightly other ways."""
        for name, here in (("torch", version("torch")), ("pillow", PIL.__version__)):
            printed = self.json("meta")["versions"][name]
            if Version(here).release[:2] < Version(printed).release[:2]:
                pytest.skip(f"{name} {here} gives other numbers than {printed}, which printed these")

    @functools.cached_property
    def tiny_clip(self) -> ModuleType:
        """The module that regenerates the tiny models and inputs; a model is drawn once a process, then copied."""
        spec = importlib.util.spec_from_file_location("golden_tiny_clip", GOLDEN[0] / "tiny_clip.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        drawn, draw = {}, module.state_dict

        def state_dict(kind: str, seed: int, scale: float = 1.0, **override: Any) -> dict[str, torch.Tensor]:
            key = kind, seed, scale, *override.items()
            if key not in drawn:
                drawn[key] = draw(kind, seed, scale, **override)
            return {name: tensor.clone() for name, tensor in drawn[key].items()}

        module.state_dict = state_dict  # type: ignore[attr-defined]
        return module


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless chromium; see browser.py."""
    with launched() as found:
        yield found


@pytest.fixture(scope="session")
def golden() -> Golden:
    return Golden(GOLDEN[0])


@pytest.fixture(scope="session")
def golden2() -> Golden:
    return Golden(GOLDEN[1])


@pytest.fixture(scope="session")
def golden_backbone(golden: Golden, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """``golden_backbone("vit0")``: path of that tiny model as a file in OpenAI's layout; safetensors loads fastest."""
    folder = tmp_path_factory.mktemp("golden_backbones")

    def make(tag: str) -> Path:
        from safetensors.torch import save_file

        path = folder / f"{tag}.safetensors"
        if not path.exists():
            save_file(golden.tiny_clip.state_dict(tag.rstrip("0123456789"), int(tag.lstrip("vitrn"))), path)
        return path

    return make


@pytest.fixture(autouse=True)
def clips_are_built_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """See built_clips.py. tests/models, which tests the building, replaces this fixture."""
    import built_clips

    built_clips.patch(monkeypatch.setattr)


@pytest.fixture(scope="session")
def family_names(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What MODEL.BACKBONE.NAME takes for the small CLIP of each family (tests/families.py)."""
    pytest.importorskip("transformers")
    import families

    return families.register(tmp_path_factory.mktemp("families"))


@pytest.fixture(scope="session")
def family_clip(family_names: dict[str, str]) -> Callable[..., Any]:
    """``family_clip("SigLIP")``: a small CLIP of that family, a new one at each call."""
    import families

    from dassl_lite.models import clip

    loaded: dict[str, Any] = {}

    def load(family: str, precision: str = "fp32") -> Any:
        key = f"{family} {precision}"
        if key not in loaded:
            loaded[key] = clip.load_clip(family_names[family], precision)
        return families.copied(loaded[key])

    return load


@pytest.fixture(scope="session")
def on_cuda() -> Iterator[Callable[..., Any]]:
    """``on_cuda(function, *arguments)``: what it returns in a process with a GPU, a stand-in or a real one.

    The process is the same for all calls. Function, arguments and result have to be picklable.
    """
    import built_clips
    import cuda_standin

    if not on_real_gpu() and (reason := cuda_standin.why_not()):
        pytest.skip(reason)
    context = multiprocessing.get_context("spawn")
    begin = built_clips.patch if on_real_gpu() else built_clips.patch_on_the_standin
    with ProcessPoolExecutor(1, context, begin) as pool:
        yield lambda function, *arguments: pool.submit(function, *arguments).result()


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of real data: $DASSL_LITE_SHARED, else `shared` beside the checkout; without it the test is skipped."""
    folder = Path(os.environ.get("DASSL_LITE_SHARED") or REPOSITORY.parent / "shared")
    if not (folder / "data").is_dir():
        pytest.skip(f"no shared real data: {folder / 'data'} does not exist (set DASSL_LITE_SHARED)")
    return folder


@pytest.fixture(autouse=True)
def _isolated(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Any:
    """No test reads or writes the user's cache; one cache serves the session. Logging is as at import."""
    cache = tmp_path_factory.getbasetemp() / "cache"
    monkeypatch.setenv("DASSL_LITE_CACHE", str(cache))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    yield
    logger = logging.getLogger("dassl_lite")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    logger.propagate = True
    logger.setLevel(logging.NOTSET)
