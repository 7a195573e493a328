"""The benchmarks of ``bench.py``, one per module, each with ``NAME``, ``add_parser(subparsers)`` and ``run(args)``; and
what they share: drawn photographs, the clock and the JSON file."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dassl_lite.utils.errors import UserError

Row = dict[str, float | str | bool]  # a row of a table and of the JSON file


def draw_photos(folder: Path, count: int, seed: int = 0) -> list[str]:
    """Draw JPEG files of 500 x 375 pixels with about as much detail as photographs.

    Args:
        folder: folder for the files; it is created.
        count: number of files.
        seed: seed of the drawing.

    Returns:
        Their paths.
    """
    folder.mkdir(parents=True)
    paths: list[str] = []
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        picture = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC)) + rng.normal(0, 6, (375, 500, 1))
        paths.append(str(folder / f"{number}.jpg"))
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(paths[-1], quality=90)
    return paths


def photographs(folder: Path, count: int, source: str | None = None) -> list[str]:
    """Up to ``count`` JPEG files below ``source`` or, without it, as many drawn ones in ``folder``, which is created.

    Raises:
        UserError: there are no JPEG files below ``source``.
    """
    if source is None:
        return draw_photos(folder, count)
    kinds = (".jpg", ".jpeg")
    found = islice((path for path in Path(source).rglob("*") if path.suffix.lower() in kinds and path.is_file()), count)
    folder.mkdir(parents=True)
    paths: list[str] = []
    for path in found:
        paths.append(str(folder / f"{len(paths)}.jpg"))
        os.symlink(path.resolve(), paths[-1])
    if not paths:
        raise UserError(f"--photos {source} holds no JPEG files")
    return paths


def seconds_of(work: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds that ``work`` takes, including what it has started on a GPU."""
    synchronize = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    synchronize()
    start = clock()
    work()
    synchronize()
    return clock() - start


def write_rows(path: str | None, rows: object) -> None:
    """Write the measured rows to the file of ``--json``, if one is given."""
    if path:
        Path(path).write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
