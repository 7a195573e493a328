"""Thumbnails of a run's images, for its page."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Sequence

from dassl_lite.data.feature_files import FeatureDataset
from dassl_lite.data.images import UnreadableImageError, read_image
from dassl_lite.engine.commands.evaluate import RunOutputs

SIDE = 128  # pixels of a thumbnail
MAX_BYTES = 1_200_000  # of all thumbnails of a page


class Thumbnails:
    """Creates thumbnails on request, each only once, up to `MAX_BYTES` in total.

    Attributes:
        addresses: the requested thumbnails, as ``data:`` URLs.
    """

    def __init__(self, outputs: RunOutputs) -> None:
        self._outputs = outputs
        self._has_images = bool(outputs.items) and not isinstance(outputs.trainer.dm.dataset, FeatureDataset)
        self._numbers: dict[str, int | None] = {}
        self._bytes = 0
        self.addresses: list[str] = []

    def name_of(self, image: int) -> str:
        """The last two parts of an image's path, or its number."""
        if not self._has_images:
            return f"image {image}"
        return os.sep.join(self._outputs.items[image].impath.split(os.sep)[-2:])

    def classes_of(self, image: int, names: Sequence[str]) -> str:
        """The names of an image's classes."""
        labels = self._outputs.labels[image]
        return ", ".join(names[label] for label in labels.nonzero().flatten().tolist()) or "none of the classes"

    def of(self, image: int) -> int | None:
        """The number of an image's thumbnail; None if there is no image file, or the limit is reached."""
        if not self._has_images:
            return None
        path = self._outputs.items[image].impath
        if path not in self._numbers:
            self._numbers[path] = self._add(path)
        return self._numbers[path]

    def _add(self, path: str) -> int | None:
        if self._bytes >= MAX_BYTES:
            return None
        try:
            thumbnail = read_image(path)
        except UnreadableImageError:
            return None
        thumbnail.thumbnail((SIDE, SIDE))
        buffer = io.BytesIO()
        thumbnail.save(buffer, "JPEG", quality=75, optimize=True)
        address = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
        self._bytes += len(address)
        self.addresses.append(address)
        return len(self.addresses) - 1
