"""What `FewShotClassifier` costs: its stream against bare extraction, and the time from import to a prediction.

The stream decodes, encodes, classifies and answers one picture after the other; extraction decodes and encodes the
same files and does nothing with the features. Rounds alternate. Memory is what Python holds at most, for as many
pictures and for four times as many. With --files, so many files go through a stream, one in a hundred of them broken,
and a tenth as many through extraction between; memory is the process's resident one, at most. A process of its own
imports, fits three classes of 8 pictures and predicts, with an empty cache and with what the first left in it; its CPU
seconds are also given over those of a bare ``import torch``.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import sys
import tempfile
import time
import tracemalloc
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from unittest import mock

from tabulate import tabulate

from dassl_lite.classifier import FewShotClassifier, Prediction
from dassl_lite.data.feature_cache.extract import ViewDataset, extract
from dassl_lite.data.feature_cache.shards import ImageFile
from dassl_lite.engine.commands.arguments import ToolParser, check_at_least
from dassl_lite.tools._bench import Row, photographs, seconds_of, write_rows
from dassl_lite.tools._bench.startup import cpu_seconds
from dassl_lite.utils.errors import UserError

NAME = "classifier"
BROKEN = 100  # of --files, one in this many is broken
TENTH = 10
_IMPORT = "import torch"
_PREDICT = """
from dassl_lite import FewShotClassifier
FewShotClassifier().fit("photos").predict(["photos/0/0.jpg"])
"""


def add_parser(subparsers: argparse._SubParsersAction[ToolParser]) -> None:
    """Declare the flags of ``bench.py classifier``."""
    parser = subparsers.add_parser(
        NAME, help="FewShotClassifier: its stream, and import to prediction", description=__doc__
    )
    add = parser.add_argument
    add("--backbone", default="random:ViT-B-32", metavar="NAME", help="backbone; random:ARCHITECTURE needs no download")
    add("--device", metavar="NAME", help="cpu, cuda ... (default: an accelerator if there is one)")
    add("--images", type=int, default=256, metavar="N", help="pictures of 500 x 375 pixels")
    add("--workers", type=int, default=-1, metavar="N", help="decoding processes, at most; -1: one for each core")
    add("--photos", metavar="FOLDER", help="JPEG files to read (default: drawn)")
    add("--rounds", type=int, default=3, metavar="N", help="repetitions; the median of the ratios is reported")
    add("--files", type=int, default=0, metavar="N", help="stream so many files, links to the pictures, too")
    add("--cpu-time", action="store_true", help="count this process's CPU seconds; needs --workers 0")
    add("--no-start", action="store_true", help="leave out import to prediction")
    add("--json", metavar="FILE", help="also write the rows to FILE")


def run(args: argparse.Namespace) -> dict[str, list[Row]]:
    """Measure and print tables; returns their rows."""
    check_at_least(args, 1, ["images", "rounds"], at_most=1_000_000)
    check_at_least(args, 0, ["files"], at_most=10_000_000)
    if args.cpu_time and args.workers:
        raise UserError("--cpu-time counts this process only; add --workers 0")
    with tempfile.TemporaryDirectory() as folder:
        photos = photographs(Path(folder) / "images", args.images, args.photos)
        rows = {"stream": _stream(args, photos)}
        if args.files:
            rows["files"] = _files(args, linked(Path(folder) / "files", photos, args.files))
        if not args.no_start:
            rows["start"] = _start(args.rounds, Path(folder))
    for table in rows.values():
        print(tabulate(table, headers="keys", floatfmt=".3g"))
    write_rows(args.json, rows)
    return rows


class _Subject:
    """The classifier, and bare extraction with its own encoder, transform and batches."""

    def __init__(self, args: argparse.Namespace, photo: str) -> None:
        classes, options = [f"class {number}" for number in range(100)], {"DATALOADER.NUM_WORKERS": args.workers}
        self.clf = FewShotClassifier(backbone=args.backbone, classes=classes, device=args.device, options=options)
        self.clf.predict(photo)
        self.workers, self.clock = args.workers, time.process_time if args.cpu_time else time.perf_counter

    def extract(self, photos: Sequence[str]) -> float:
        """Seconds that extraction takes."""
        trainer = self.clf._trainer
        size = trainer.cfg.DATASET.FEATURES.BATCH_SIZE

        def work() -> None:
            dataset = ViewDataset([ImageFile.of(photo) for photo in photos], trainer.dm.tfm_test, 1, 0)
            for _ in extract(dataset, trainer.encode_image, trainer.device, size, self.workers):
                pass

        return seconds_of(work, self.clock)

    def stream(self, photos: Iterator[str]) -> float:
        """Seconds that a stream takes."""
        return seconds_of(lambda: _exhaust(self.clf.stream(photos)), self.clock)


def _exhaust(steps: Iterator[Prediction], most: int | None = None) -> int:
    """Take up to ``most`` steps; returns how many of them have an error."""
    return sum(bool(step.error) for step in itertools.islice(steps, most))


def _stream(args: argparse.Namespace, photos: Sequence[str]) -> list[Row]:
    subject = _Subject(args, photos[0])

    def many(times: int) -> Callable[[], object]:
        return lambda: subject.stream(itertools.chain.from_iterable(itertools.repeat(photos, times)))

    seconds = [(subject.extract(photos), subject.stream(iter(photos))) for _ in range(args.rounds)]
    return [
        {
            "images/s, extraction": len(photos) / statistics.median(one for one, _ in seconds),
            "images/s, stream": len(photos) / statistics.median(one for _, one in seconds),
            "stream / extraction": statistics.median(a / b for a, b in seconds),
            "memory, 4 x as many / as many": _peak(many(4), args.images) / _peak(many(1), args.images),
        }
    ]


def linked(folder: Path, photos: Sequence[str], count: int) -> list[str]:
    """Make ``count`` links to photos, in folders of a thousand; one in `BROKEN` is a truncated, unreadable file."""
    paths = [folder / str(number // 1000) / f"{number}.jpg" for number in range(count)]
    start = Path(photos[0]).read_bytes()[:100]
    for number, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        if number % BROKEN == BROKEN - 1:
            path.write_bytes(start)
        else:
            os.symlink(os.path.realpath(photos[number % len(photos)]), path)
    return list(map(str, paths))


def _files(args: argparse.Namespace, paths: Sequence[str]) -> list[Row]:
    """A row for each tenth of a stream, with the totals so far."""
    import resource  # not on every system

    subject, rows, part = _Subject(args, paths[0]), list[Row](), -(-len(paths) // TENTH)
    stream, extraction, answers, unreadable = subject.clf.stream(iter(paths)), 0.0, 0.0, 0

    def step() -> None:
        nonlocal unreadable
        unreadable += _exhaust(stream, part)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about unreadable files
        for start in range(0, len(paths), part):
            batch = paths[start : start + part]
            sample = batch[::TENTH]
            extraction += subject.extract(sample) * len(batch) / len(sample)
            answers += seconds_of(step, subject.clock)
            done = start + len(batch)
            row: Row = {
                "files": done,
                "unreadable": unreadable,
                "images/s, stream": done / answers,
                "stream / extraction": extraction / answers,
                "resident MB, at most": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            }
            rows.append(row)
            print(tabulate([row], headers="keys", floatfmt=".3g"), file=sys.stderr, flush=True)
    return rows


def _peak(work: Callable[[], object], images: int) -> int:
    """Peak of the bytes that Python holds during ``work``, with blocks so small that there are several."""
    with mock.patch("dassl_lite.classifier.images.BLOCK", max(1, images // 4)):
        tracemalloc.start()
        work()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return peak


def _start(rounds: int, folder: Path) -> list[Row]:
    for number, photo in enumerate(photographs(folder / "drawn", 24)):
        path = folder / "photos" / str(number % 3) / f"{number // 3}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        os.symlink(photo, path)
    seconds: dict[str, list[float]] = {_IMPORT: [], "empty cache": [], "features cached": []}
    for number in range(rounds):
        with mock.patch.dict(os.environ, DASSL_LITE_CACHE=str(folder / f"cache{number}")):
            for name, code in ((_IMPORT, _IMPORT), ("empty cache", _PREDICT), ("features cached", _PREDICT)):
                seconds[name].append(cpu_seconds([sys.executable, "-c", code], folder))
    return [
        {
            "import to prediction": name,
            "CPU s": statistics.median(values),
            "over import torch": statistics.median(a / b for a, b in zip(values, seconds[_IMPORT], strict=True)),
        }
        for name, values in seconds.items()
    ]
