"""A web server on loopback with the bad habits of real ones, and the fixture that gives it to a test."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from dassl_lite.downloads.fetch import Patience

IMPATIENT = Patience(connect=2.0, read=0.5, tries=3, pause=0.01)


@dataclass
class Page:
    """How one URL responds.

    Args:
        content: the file.
        cuts: bytes after which the first, second ... response breaks off.
        stalls: like ``cuts``, but the server falls silent until the test is over.
        slow: seconds between any two of ten blocks.
        ranges: whether Range headers are honoured.
        etag: the ETag.
        kind: the Content-Type.
        states: HTTP status codes of the first, second ... response.
        length: whether the length is declared.
    """

    content: bytes
    cuts: list[int] = field(default_factory=list)
    stalls: list[int] = field(default_factory=list)
    slow: float = 0.0
    ranges: bool = True
    etag: str = '"first"'
    kind: str = "application/octet-stream"
    states: list[int] = field(default_factory=list)
    length: bool = True
    asked: list[str] = field(default_factory=list)  # the Range of each request, "" without


class Server:
    """Its pages, by path."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.pages: dict[str, Page] = {}
        self.test_is_over = threading.Event()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}/{path}"

    def add(self, path: str, content: bytes, **habits: object) -> Page:
        self.pages[f"/{path}"] = Page(content, **habits)  # type: ignore[arg-type]
        return self.pages[f"/{path}"]


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    """Run a server in a thread."""

    class Handler(_Handler):
        def do_GET(self) -> None:
            self.answer(server)

        def do_HEAD(self) -> None:
            self.send_response(200 if self.path in server.pages else 404)
            self.end_headers()

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    server = Server(http.server_address[1])
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join(timeout=5)


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass

    def answer(self, server: Server) -> None:
        page = server.pages.get(self.path)
        if page is None:
            self.send_error(404)
            return
        asked = self.headers.get("Range", "")
        page.asked.append(asked)
        if page.states:
            self.send_error(page.states.pop(0))
            return
        start = self.start_of(page, asked)
        if start and start >= len(page.content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(page.content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_head(page, start)
        self.send_body(page, page.content[start:], server.test_is_over)

    def start_of(self, page: Page, asked: str) -> int:
        same = self.headers.get("If-Range", page.etag) == page.etag
        match = re.fullmatch(r"bytes=(\d+)-", asked)
        return int(match[1]) if match and page.ranges and same else 0

    def send_head(self, page: Page, start: int) -> None:
        self.send_response(206 if start else 200)
        self.send_header("Content-Type", page.kind)
        if page.length:
            self.send_header("Content-Length", str(len(page.content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(page.content) - 1}/{len(page.content)}")
        if page.etag:
            self.send_header("ETag", page.etag)
        self.end_headers()

    def send_body(self, page: Page, body: bytes, test_is_over: threading.Event) -> None:
        with contextlib.suppress(OSError):  # the client has hung up
            if page.cuts:
                self.wfile.write(body[: page.cuts.pop(0)])
            elif page.stalls:
                self.wfile.write(body[: page.stalls.pop(0)])
                self.wfile.flush()
                test_is_over.wait(timeout=60)
            elif page.slow:
                for block in (body[i : i + len(body) // 10 + 1] for i in range(0, len(body), len(body) // 10 + 1)):
                    self.wfile.write(block)
                    self.wfile.flush()
                    time.sleep(page.slow)
            else:
                self.wfile.write(body)
        self.close_connection = True


@pytest.fixture(scope="session")
def shared_server() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.fixture
def server(shared_server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """The server, without pages."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    shared_server.pages.clear()
    shared_server.test_is_over.clear()
    yield shared_server
    shared_server.test_is_over.set()
