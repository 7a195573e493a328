"""The curves that a run kept: scalars of TensorBoard's event files, read as data."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dassl_lite.utils.files import open_file
from dassl_lite.utils.logger import get_logger

logger = get_logger(__name__)

POINTS = 400  # of a curve, at most
_MOST_BYTES = 1 << 30  # of a file
_MOST_VALUES = 20_000  # of a curve that are read; of more, an even sample

Curve = tuple[NDArray[np.int32], NDArray[np.float64]]


def read_curves(folder: Path) -> dict[str, Curve]:
    """Steps and values by tag, such as "train/loss"; of long curves, means of steps side by side.

    Empty if there are none. A file that is damaged gives what stands before the damage.
    """
    names = sorted(path for path in folder.glob("*tfevents*")) if folder.is_dir() else []
    for path in names:
        try:
            open_file(path, _MOST_BYTES).close()
        except OSError as error:
            logger.warning(f"{path} is not read: {error.strerror or error}; the page goes without curves")
            return {}
    if not names:
        return {}
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # slow to import

    read = EventAccumulator(os.fspath(folder), size_guidance={"scalars": _MOST_VALUES})
    try:
        read.Reload()
    except Exception as error:  # noqa: BLE001 (of its readers, on files that are no events)
        logger.warning(f"{folder} cannot be read ({type(error).__name__}); the page goes without curves")
        return {}
    found = {}
    for tag in read.Tags()["scalars"]:
        events = read.Scalars(tag)
        last = {event.step: event.value for event in events}  # a step that a resumed run took again: its last value
        steps = np.array(sorted(last), dtype=np.int64)
        found[tag] = thinned(steps, np.array([last[step] for step in steps.tolist()], dtype=np.float64))
    return found


def thinned(steps: NDArray[np.int64], values: NDArray[np.float64], most: int = POINTS) -> Curve:
    """A curve as at most ``most`` points, each the mean of as many steps side by side."""
    size = -(-len(steps) // most)
    starts = np.arange(0, len(steps), size)
    numbers = np.diff([*starts, len(steps)])
    means = [np.add.reduceat(part, starts) / numbers for part in (steps.astype(np.float64), values)]
    return means[0].round().astype(np.int32), means[1]
