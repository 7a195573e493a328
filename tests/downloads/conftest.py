"""A web server on loopback for the tests of downloading."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from download_server import Server, serving


@pytest.fixture(scope="session")
def shared_server() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.fixture
def server(shared_server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """Without pages."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    shared_server.pages.clear()
    return shared_server
