"""What the feature cache holds."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from dassl_lite.data.feature_cache.shards import DAMAGED, META, ShardStore
from dassl_lite.utils.files import read_json


@dataclasses.dataclass(frozen=True)
class StoreSummary:
    """One store, for a listing: its folder, how much it holds, and what that was made with."""

    folder: Path
    images: int
    bytes: int
    made_with: dict[str, Any]


def describe_stores(root: Path) -> list[StoreSummary]:
    """The stores below ``root``, largest first. A folder with nothing committed is none, nor one that was set aside."""
    found = []
    for meta_path in sorted(Path(root).glob(f"*/{META}")):
        folder = meta_path.parent
        if DAMAGED in folder.name:
            continue
        disk = ShardStore(folder, read_json(meta_path)["made_with"])
        disk.load()
        size = sum(path.stat().st_size for path in folder.iterdir())
        found.append(StoreSummary(folder, len(disk), size, disk.description))
    return sorted(found, key=lambda summary: -summary.bytes)
