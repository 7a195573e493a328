"""What only a machine with a GPU can tell, in under five minutes: a table and one JSON.

Stages, each on its own, so that one that fails or takes too long leaves the others: the tests that ask for a GPU; every
method in every precision against this machine's CPU; encoders against the CPU; extraction from JPEG files; and runs of
ImageNet's size (1000 classes, 16 shots, 10 views, 50,000 test images, random weights): TaskRes from the files, then
CoOp and others on what is cached. Goals are compared at the end; what the limit left no time for is listed.

JPEG files are drawn, or taken from --photos. On a machine without a GPU, the whole can be rehearsed:

    python tests/cuda_standin.py tools/bench.py gpu --size small
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import open_clip
import torch
from tabulate import tabulate

from dassl_lite.engine import TRAINER_REGISTRY
from dassl_lite.engine.build import default_recipe, make_config
from dassl_lite.engine.commands import run as engine
from dassl_lite.engine.commands.arguments import ToolParser, check_at_least
from dassl_lite.engine.commands.sweep import all_methods
from dassl_lite.engine.files.results import read_results
from dassl_lite.engine.plugins import load_plugins
from dassl_lite.models.clip import load_clip
from dassl_lite.tools._bench import extract, photographs, write_rows
from dassl_lite.utils import UserError, setup_logger
from dassl_lite.utils.env import environment, usable_cores

NAME = "gpu"
PRECISIONS = ("fp32", "fp16", "amp", "bf16")
POINTS = {"fp32": 0.3, "amp": 1.5, "fp16": 1.5, "bf16": 1.5}  # of accuracy that a GPU may differ from the CPU in fp32
ERRORS = {"fp32": 2e-3, "fp16": 2e-2, "bf16": 1e-1}  # relative errors of features
ON_IMAGES = ("CoOp", "CoCoOp", "CLIPLoRA")  # methods whose steps run an encoder
SHORT = {  # settings for short runs in the comparison with the CPU
    "TipAdapter": ["TRAINER.TipAdapter.ALPHA_STEPS", "5", "TRAINER.TipAdapter.BETA_STEPS", "5"],
    "TipAdapterF": ["TRAINER.TipAdapter.ALPHA_STEPS", "5", "TRAINER.TipAdapter.BETA_STEPS", "5"],
    "CoCoOp": ["DATALOADER.TRAIN_X.BATCH_SIZE", "8"],
    "CLIPLoRA": ["TRAINER.CLIPLoRA.STEPS_PER_SHOT", "10", "TRAINER.CLIPLoRA.DROPOUT", "0.0"],
    "CrossModalProbe": ["TRAINER.CrossModalProbe.ITERATIONS", "100", "TRAINER.CrossModalProbe.EVAL_EVERY", "50"],
    "LPPlusPlus": ["TRAINER.LPPlusPlus.EPOCHS", "20"],
    "Auto": ["TRAINER.Auto.METHODS", "['TaskRes']", "TRAINER.Auto.FOLDS", "2"],
}
COOP_EPOCHS = 50  # CoOp's recipe for ImageNet


@dataclass(frozen=True)
class Size:
    """How large the check is.

    Attributes:
        methods: methods to compare with the CPU; empty for all.
        precisions: precisions to compare them in.
        photos: number of different JPEG files; runs see each of them under many names.
        images: number of images in the extraction.
        classes, shots, views, test_images: size of the ImageNet-like runs; test images are per class.
        backbone: backbone of the extraction and of those runs.
        tests: pytest arguments, relative to the root of the repository.
    """

    methods: tuple[str, ...] = ()
    precisions: tuple[str, ...] = PRECISIONS
    photos: int = 256
    images: int = 1024
    classes: int = 1000
    shots: int = 16
    views: int = 10
    test_images: int = 50
    backbone: str = "random:ViT-B-16"
    tests: tuple[str, ...] = (
        "-m",
        "not slow",
        "-k",
        "cuda or gpu or device",
        "tests/engine",
        "tests/models",
        "tests/trainers",
        "tests/data",
    )


SIZES = {
    "full": Size(),
    "small": Size(
        methods=("TaskRes", "CoOp"),
        precisions=("fp32", "fp16"),
        photos=3,
        images=3,
        classes=3,
        shots=1,
        views=2,
        test_images=1,
        backbone="demo",
        tests=("tests/utils/test_utils_env.py",),
    ),
}


@dataclass
class Check:
    """A check in progress.

    Attributes:
        size: size of the check.
        folder: folder for its files.
        limit: seconds for the whole check.
        found: results of the stages, by name.
        seconds: seconds that the stages took, by name.
        failures, left_out: one line for each stage that failed, or that there was no time for.
    """

    size: Size
    folder: Path
    limit: float
    photos: str | None = None
    precision: str = "fp16"
    start: float = field(default_factory=time.monotonic)
    found: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    @property
    def left(self) -> float:
        """Seconds left of the limit."""
        return self.limit - (time.monotonic() - self.start)

    def stage(self, name: str, work: Callable[[], Any], share: float = 1.0) -> None:
        """Run ``work`` within ``share`` of the time left; errors are recorded."""
        if self.left < 1:
            self.left_out.append(name)
            return
        start = time.monotonic()
        print(f"{name} ...", file=sys.stderr, flush=True)
        try:
            with _within(self.left * share), contextlib.redirect_stdout(io.StringIO()):
                self.found[name] = work()
        except TooLongError:
            self.left_out.append(f"{name} (stopped after {time.monotonic() - start:.0f} s)")
        except Exception as error:  # the other stages run in any case  # noqa: BLE001
            self.failures.append(f"{name}: {type(error).__name__}: {' '.join(str(error).split())[:300]}")
            traceback.print_exc()
        finally:
            setup_logger()
            self.seconds[name] = time.monotonic() - start


class TooLongError(Exception):
    """A stage has used up its time."""


@contextlib.contextmanager
def _within(seconds: float) -> Iterator[None]:
    """Raise TooLongError inside the block after this many seconds; no effect on systems without such a signal."""

    def stop(*_: Any) -> None:
        raise TooLongError

    if not hasattr(signal, "setitimer"):
        yield
        return
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.1))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def add_parser(subparsers: argparse._SubParsersAction[ToolParser]) -> None:
    """Declare the flags of ``bench.py gpu``."""
    parser = subparsers.add_parser(NAME, help="everything that only a machine with a GPU can tell", description=__doc__)
    add = parser.add_argument
    add("--size", choices=list(SIZES), default="full", help="full, or small to see that every stage runs")
    add("--limit", type=int, default=290, metavar="SECONDS", help="for all stages together")
    add("--photos", metavar="FOLDER", help="JPEG files to extract from (default: drawn)")
    add("--precision", default="fp16", metavar="NAME", help="of the runs of ImageNet's size")
    add("--json", metavar="FILE", help="also write the JSON to FILE")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Run the stages and print a table and a JSON, which it returns. SystemExit(1) if a stage failed."""
    check_at_least(args, 1, ["limit"], at_most=100_000)
    if not torch.cuda.is_available():
        raise UserError(
            "there is no GPU here; python tests/cuda_standin.py tools/bench.py gpu --size small rehearses it"
        )
    load_plugins()
    with tempfile.TemporaryDirectory() as folder:
        check = Check(SIZES[args.size], Path(folder), args.limit, args.photos, args.precision)
        with mock.patch.dict(os.environ, DASSL_LITE_CACHE=str(check.folder / "cache")):
            _stages(check)
    goals = goals_of(check)
    report = {
        "size": args.size,
        "ok": not check.failures,
        "environment": environment(),
        "memory_gib": torch.cuda.mem_get_info()[1] / 2**30,
        "cores": usable_cores(),
        "goals": goals,
        "failures": check.failures,
        "left_out": check.left_out,
        "seconds": {name: round(value, 1) for name, value in check.seconds.items()},
        **check.found,
    }
    shown = [[g["goal"], g["measured"], g["bound"], "reached" if g["reached"] else "missed"] for g in goals]
    print(tabulate(shown, headers=["goal", "measured", "bound", ""], floatfmt=".4g"))
    for title, lines in (("failed", check.failures), ("left out", check.left_out)):
        print("".join(f"{title}: {line}\n" for line in lines), end="")
    print(json.dumps(report, indent=1))
    write_rows(args.json, report)
    if check.failures:
        raise SystemExit(1)
    return report


def _stages(check: Check) -> None:
    """All stages, the most important first."""
    check.stage("photos", lambda: _draw(check))
    check.stage("extract", lambda: _extract(check), 0.3)
    check.stage("cold TaskRes", lambda: _imagenet(check, "TaskRes", cold=True), 0.6)
    check.stage("CoOp", lambda: _imagenet(check, "CoOp", epochs=1), 0.4)
    for method in feature_methods():
        check.stage(f"warm {method}", lambda method=method: _warm(check, method), 0.3)  # type: ignore[misc]
    check.stage("encoders", lambda: _encoders(check), 0.4)
    check.stage("parity", lambda: _parity(check), 0.6)
    check.stage("tests", lambda: _tests(check))


def feature_methods() -> list[str]:
    """The methods with frozen encoders, whose second run finds all features in the cache; the best known first."""
    first = ["TaskRes", "TipAdapterF", "CLIP_Adapter", "LinearProbe"]
    found = [name for name in all_methods() if not TRAINER_REGISTRY.get(name).through_encoder]
    return first + [name for name in found if name not in first]


# ---- stages ---------------------------------------------------------------------------------------------------------


def _draw(check: Check) -> dict[str, int]:
    """Make the JPEG files, and the folder of a dataset of ImageNet's size that links to them."""
    size = check.size
    files = photographs(check.folder / "photos", size.photos, check.photos)
    names = [name.replace("/", " ") for name in open_clip.IMAGENET_CLASSNAMES[: size.classes]]
    for part, count in (("train", size.shots), ("test", size.test_images)):
        for label, name in enumerate(names):
            folder = check.folder / "imagenet" / part / f"{name} {label}"
            folder.mkdir(parents=True)
            for number in range(count):
                os.symlink(files[(label * count + number) % len(files)], folder / f"{number}.jpg")
    return {"files": len(files), "bytes": sum(os.path.getsize(file) for file in files) // len(files)}


def _extract(check: Check) -> list[Any]:
    """Rates of the loader, the encoder and both, for test images and for views."""
    rows: list[Any] = []
    for views in (1, check.size.views):
        parser = ToolParser(prog=NAME)
        extract.add_parser(parser.add_subparsers())
        flags = ["--backbone", check.size.backbone, "--precision", check.precision, "--device", "cuda", "--rounds", "2"]
        flags += [
            "--images",
            str(max(1, check.size.images // (1 if views == 1 else 2))),
            "--views",
            str(views),
            "--batch-size",
            "256",
        ]
        flags += ["--photos", str(check.folder / "photos")]
        rows += [{"views": views, **row} for row in extract.run(parser.parse_args([extract.NAME, *flags]))]
    return rows


def _imagenet(check: Check, method: str, *, cold: bool = False, epochs: int = 0) -> dict[str, Any]:
    """A run of ImageNet's size on the JPEG files or, once they are cached, on their features."""
    size, node = check.size, TRAINER_REGISTRY.get(method).node_name()
    flags = {
        "DATASET": {"ROOT": str(check.folder / "imagenet"), "NUM_SHOTS": size.shots, "FEATURES": {"VIEWS": size.views}},
        "MODEL": {"BACKBONE": {"NAME": size.backbone}},
    }
    options = [f"TRAINER.{node}.PREC", check.precision, *(["OPTIM.MAX_EPOCH", str(epochs)] if epochs else [])]
    if size is SIZES["small"]:
        options += ["OPTIM.MAX_EPOCH", "1", *SHORT.get(method, [])]
    found = _run(check, method, "image_folder", flags, options)
    images = size.classes * (size.shots * size.views + size.test_images)
    return {**found, "passes": images if cold else 0, "precision": check.precision}


def _warm(check: Check, method: str) -> dict[str, Any]:
    """A run on cached features; repeated if the first one had to extract features that only this method uses."""
    found = _imagenet(check, method)
    if found["phases"].get("features", 0.0) < 0.2 * found["seconds"]:
        return found
    return {**_imagenet(check, method), "first_seconds": found["seconds"]}


def _run(check: Check, method: str, dataset: str, flags: dict[str, Any], options: Sequence[str]) -> dict[str, Any]:
    """Seconds, accuracy and memory of a run."""
    folder = Path(tempfile.mkdtemp(dir=check.folder))
    flags = {**flags, "OUTPUT_DIR": str(folder), "VERBOSE": False}
    start = time.perf_counter()
    cfg = make_config(
        trainer=method, dataset_file=dataset, method_file=default_recipe(method), flags=flags, options=options
    )
    engine.train(cfg)
    seconds = time.perf_counter() - start
    results = read_results(folder)
    assert results is not None
    return {
        "seconds": seconds,
        "phases": results["seconds"],
        "accuracy": results["metrics"]["test"]["accuracy"],
        "device_mib": results["peak_memory"].get("device_mib", 0.0),
        "epochs": cfg.OPTIM.MAX_EPOCH,
    }


@torch.no_grad()
def _encoders(check: Check) -> dict[str, float]:
    """Largest relative error of a feature against the CPU in fp32, by encoder and precision."""
    texts = [f"a photo of a {name}." for name in open_clip.IMAGENET_CLASSNAMES[:32]]
    cpu = load_clip(check.size.backbone)
    images = torch.randn(8, 3, *cpu.image_size, generator=torch.Generator().manual_seed(0))
    expected = {"text": cpu.encode_text(cpu.tokenize(texts)), "image": cpu.encode_image(images)}
    rows = {}
    for precision, bound in ERRORS.items():
        gpu = load_clip(check.size.backbone, precision=precision, device="cuda")
        outputs = {"text": gpu.encode_text(gpu.tokenize(texts)), "image": gpu.encode_image(images)}
        for what, features in outputs.items():
            error = (features.float().cpu() - expected[what]).norm(dim=-1) / expected[what].norm(dim=-1)
            rows[f"{what} {precision}"] = float(error.max())
            if not rows[f"{what} {precision}"] <= bound:
                check.failures.append(
                    f"encoders: {what} {precision}: an error of {float(error.max()):.2g}, not {bound}"
                )
    return rows


def _parity(check: Check) -> dict[str, Any]:
    """Accuracy of every method in every precision, and on the CPU in fp32, on the demo dataset."""
    ours = [name for name in TRAINER_REGISTRY if TRAINER_REGISTRY.get(name).__module__.startswith("dassl_lite.")]
    rows: dict[str, Any] = {}
    on_cpu: dict[str, float] = {}
    deadline = time.monotonic() + 0.55 * check.left  # earlier than the stage's limit, so that its rows are kept
    for precision in check.size.precisions:
        for method in check.size.methods or ours:
            if time.monotonic() > deadline:
                check.left_out.append(f"parity {method} {precision}")
                continue
            try:
                if method not in on_cpu:
                    on_cpu[method] = _short_run(check, method, "fp32", cuda=False)
                on_gpu = _short_run(check, method, precision, cuda=True)
            except TooLongError:
                raise
            except Exception as error:  # the other methods run in any case  # noqa: BLE001
                check.failures.append(f"parity {method} {precision}: {type(error).__name__}: {error}")
                continue
            rows[f"{method} {precision}"] = {"cuda": on_gpu, "cpu": on_cpu[method]}
            if abs(on_gpu - on_cpu[method]) > POINTS[precision]:
                check.failures.append(
                    f"parity {method} {precision}: {on_gpu:.2f} % on the GPU, {on_cpu[method]:.2f} % on the CPU in fp32"
                )
    return rows


def _short_run(check: Check, method: str, precision: str, *, cuda: bool) -> float:
    """Test accuracy in percent after ten epochs on the demo; if small, after one on the photographs."""
    node = TRAINER_REGISTRY.get(method).node_name()
    small = check.size is SIZES["small"]
    flags: dict[str, Any] = {"DATASET": {"NUM_SHOTS": 2, "FEATURES": {"VIEWS": 4}}, "USE_CUDA": cuda}
    if small:
        flags["DATASET"] = {"NUM_SHOTS": 1, "FEATURES": {"VIEWS": 1}, "ROOT": str(check.folder / "imagenet")}
    epochs = 1 if small else 10
    options = [f"TRAINER.{node}.PREC", precision, "OPTIM.MAX_EPOCH", str(epochs), *SHORT.get(method, [])]
    cache = check.folder / ("cache-cuda" if cuda else "cache-cpu")
    with mock.patch.dict(os.environ, DASSL_LITE_CACHE=str(cache)):
        return float(_run(check, method, "image_folder" if small else "demo", flags, options)["accuracy"])


def _tests(check: Check) -> dict[str, Any]:
    """The tests that ask for a GPU, in a separate process."""
    root = Path(__file__).resolve().parents[2]
    if not (root / "tests").is_dir():
        return {"skipped": "the package is installed without its tests"}
    command = [sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", *check.size.tests]
    with mock.patch.dict(os.environ):
        del os.environ["DASSL_LITE_CACHE"]
        os.environ["DASSL_LITE_TEST_GPU"] = "1"  # otherwise the tests see no GPU
        process = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=max(5, check.left))
    last = (process.stdout.strip().splitlines() or [""])[-1]
    if process.returncode not in (0, 5):  # 5: no tests collected
        check.failures.append(f"tests: {last}")
        sys.stderr.write(process.stdout[-4000:])
    return {"summary": last}


# ---- goals ----------------------------------------------------------------------------------------------------------


def goals_of(check: Check) -> list[dict[str, Any]]:
    """The goals of the stages that ran, each with its measured value and bound."""
    found, goals = check.found, []

    def goal(name: str, measured: float, bound: float, *, at_least: bool = False) -> None:
        reached = measured >= bound if at_least else measured <= bound
        goals.append({"goal": name, "measured": measured, "bound": bound, "reached": bool(reached)})

    for row in found.get("extract", ()):
        if row["what"] == extract.FILES:
            goal(
                f"extraction, {row['views']} views: of its slower half, at least",
                row["of_reachable"],
                0.9,
                at_least=True,
            )
    cold, coop = found.get("cold TaskRes"), found.get("CoOp")
    if cold:
        goal("TaskRes from JPEG files, seconds", cold["seconds"], 90)
    if cold and coop:
        steps = coop["phases"].get("train", 0.0) * COOP_EPOCHS / max(coop["epochs"], 1)
        rest = coop["seconds"] - coop["phases"].get("train", 0.0)
        goal(
            "CoOp from JPEG files, seconds (its epochs scaled)", cold["phases"].get("features", 0.0) + rest + steps, 300
        )
    if coop:
        goal("CoOp, memory of the GPU, GB", coop["device_mib"] * 2**20 / 1e9, 24)
    for name, row in found.items():
        if name.startswith("warm "):
            goal(f"{name.removeprefix('warm ')} on cached features, seconds", row["seconds"], 3)
    goal("the whole check, seconds", sum(check.seconds.values()), 300)
    return goals
