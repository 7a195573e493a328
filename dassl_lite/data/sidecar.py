"""Small files kept beside a dataset, or in the cache where its folder cannot be written to."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

from dassl_lite.utils.files import cache_root, digest_of

logger = logging.getLogger(__name__)


class SidecarFiles:
    """Finds and writes a dataset's kept files: its made split and its few-shot draws.

    Args:
        dataset: registered name.
        dataset_dir: the dataset's folder, absolute.
    """

    def __init__(self, dataset: str, dataset_dir: str) -> None:
        # Two folders of one dataset (a full and a reduced copy) must not share their draws.
        place = f"{dataset}-{digest_of(os.path.realpath(dataset_dir))[:12]}"
        self.folders = (Path(dataset_dir), cache_root() / "splits" / place)

    def find(self, name: str) -> Path | None:
        """Where the file called ``name`` (relative) is, if it is; a folder closed to us counts as empty."""
        return next((folder / name for folder in self.folders if os.path.isfile(folder / name)), None)

    def write(self, name: str, writer: Callable[[Path], None]) -> Path | None:
        """Let ``writer`` write the file, beside the dataset if that works; None if it works nowhere."""
        problem: OSError | None = None
        for folder in self.folders:
            try:
                writer(folder / name)
            except OSError as error:
                problem = error
            else:
                return folder / name
        logger.warning("Cannot keep '%s' (%s): the run goes on without", name, problem)
        return None
