"""A local web server for datasets behind URLs."""

from __future__ import annotations

from download_server import server, shared_server

__all__ = ["server", "shared_server"]
