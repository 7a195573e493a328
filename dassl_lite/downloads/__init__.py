"""Getting the field's datasets: what to fetch from where, fetching, checking, unpacking, putting in place."""

from __future__ import annotations

from dassl_lite.downloads.preparation import prepare
from dassl_lite.downloads.sources import SOURCES

__all__ = ["SOURCES", "prepare"]
