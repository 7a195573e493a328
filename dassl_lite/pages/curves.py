"""Reads the curves of a run: scalars in TensorBoard event files."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dassl_lite.utils.files import open_file
from dassl_lite.utils.logger import get_logger

logger = get_logger(__name__)

POINTS = 400  # maximum number of points of a curve
_MAX_BYTES = 1 << 30  # of a file
_MAX_VALUES = 20_000  # values read per curve; longer curves are sampled evenly

Curve = tuple[NDArray[np.int32], NDArray[np.float64]]


def read_curves(folder: Path) -> dict[str, Curve]:
    """Steps and values by tag, such as "train/loss"; in long curves, consecutive steps are averaged.

    Empty if there are none. A damaged file is read up to the damage.
    """
    names = sorted(path for path in folder.glob("*tfevents*")) if folder.is_dir() else []
    for path in names:
        try:
            open_file(path, _MAX_BYTES).close()
        except OSError as error:
            logger.warning(f"{path} is not read: {error.strerror or error}; the page will have no curves")
            return {}
    if not names:
        return {}
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # slow to import

    read = EventAccumulator(os.fspath(folder), size_guidance={"scalars": _MAX_VALUES})
    try:
        read.Reload()
    except Exception as error:  # noqa: BLE001 (its readers raise many kinds on files that are not event files)
        logger.warning(f"{folder} cannot be read ({type(error).__name__}); the page will have no curves")
        return {}
    curves = {}
    for tag in read.Tags()["scalars"]:
        events = read.Scalars(tag)
        last = {event.step: event.value for event in events}  # if a resumed run repeated a step, its last value counts
        steps = np.array(sorted(last), dtype=np.int64)
        curves[tag] = thinned(steps, np.array([last[step] for step in steps.tolist()], dtype=np.float64))
    return curves


def thinned(steps: NDArray[np.int64], values: NDArray[np.float64], most: int = POINTS) -> Curve:
    """Reduce a curve to at most ``most`` points by averaging consecutive steps."""
    size = -(-len(steps) // most)
    starts = np.arange(0, len(steps), size)
    numbers = np.diff([*starts, len(steps)])
    means = [np.add.reduceat(part, starts) / numbers for part in (steps.astype(np.float64), values)]
    return means[0].round().astype(np.int32), means[1]
