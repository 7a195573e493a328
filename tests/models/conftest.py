"""For the tests of this folder: the web server on loopback; every CLIP is built from its file."""

from __future__ import annotations

import pytest
from download_server import server, shared_server

__all__ = ["server", "shared_server"]


@pytest.fixture
def clips_are_built_once() -> None:
    """Not here: building is what these tests are about."""
