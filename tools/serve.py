"""Open a page in the browser where anyone can train an image classifier, or use one.

    python tools/serve.py --backbone ViT-B/16
    python tools/serve.py --model-dir RUN

Without --model-dir, name the classes on the page, drop a few images into each, train, try out and save the classifier.
With one, a folder written by tools/train.py or FewShotClassifier.save, drop images to classify them. The page is only
reachable from this machine unless --host says otherwise. It loads nothing from the network and keeps nothing: images
stay in a temporary folder until the page is closed.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import logging
import os
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from dassl_lite.classifier import FewShotClassifier
from dassl_lite.engine.commands.arguments import ToolParser, add_plugin_flags, tool_parser
from dassl_lite.engine.commands.cli import run_tool
from dassl_lite.engine.plugins import load_plugins
from dassl_lite.models.names import DEMO
from dassl_lite.tools._serve.session import Session, Teaching, Visitors
from dassl_lite.utils import UserError, setup_logger
from dassl_lite.utils.errors import printable
from dassl_lite.utils.lazy import optional_module
from dassl_lite.utils.logger import ROOT_NAME, say

HOST, PORT = "127.0.0.1", 7860


def make_parser() -> ToolParser:
    """The flags of serve.py."""
    parser = tool_parser("serve", __doc__)
    add = parser.add_argument
    add("--model-dir", metavar="DIR", help="folder of a run or a saved classifier to use")
    add(
        "--backbone",
        default="",
        metavar="NAME",
        help=f"CLIP backbone to train with (default: {DEMO}, which only knows drawings)",
    )
    add("--host", default=HOST, metavar="NAME", help=f"address to listen on (default: {HOST}, this machine only)")
    add("--port", type=int, default=PORT, metavar="N", help=f"port to listen on (default: {PORT}; 0: any free port)")
    add("--device", metavar="NAME", help="cpu, cuda ... (default: an accelerator if available)")
    add_plugin_flags(parser)
    parser.ignores("--model-dir", "--backbone")
    return parser


def listening(host: str, port: int) -> socket.socket:
    """A socket that browsers can connect to.

    Raises:
        UserError: the address or the port cannot be used.
    """
    if not 0 <= port <= 65535:
        raise UserError(f"--port must be 0 to 65535, not {port}")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError):
        remedy = "use 127.0.0.1 for this machine, 0.0.0.0 for the network"
        raise UserError(f"--host '{host}' is not an address; {remedy}") from None
    found = socket.socket(family, kind, protocol)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen()
    except OSError as error:
        found.close()
        if error.errno == errno.EADDRINUSE:
            raise UserError(f"port {port} is taken; name another: --port {port + 1 if port < 65535 else 0}") from None
        if error.errno == errno.EADDRNOTAVAIL:
            raise UserError(f"--host '{host}' is not an address of this machine") from None
        raise UserError(f"cannot listen on {host}, port {port}: {error.strerror or error}") from None
    return found


def address_of(found: socket.socket) -> str:
    """What to type into a browser on this machine."""
    host, port = found.getsockname()[:2]
    host = {"0.0.0.0": "localhost", "::": "localhost"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{host}:{port}"


@contextlib.contextmanager
def private_folder() -> Iterator[Path]:
    """A folder for all that Gradio and visitors leave on disk, which is removed in the end; no other is written to."""
    with tempfile.TemporaryDirectory(prefix="dassl-lite-serve-", ignore_cleanup_errors=True) as folder:
        own = {"GRADIO_TEMP_DIR": str(Path(folder) / "uploads"), "GRADIO_ANALYTICS_ENABLED": "False"}
        before = {name: os.environ.get(name) for name in own}
        os.environ.update(own)
        try:
            yield Path(folder)
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})


def about(classifier: FewShotClassifier) -> str:
    """A line on a classifier, as Markdown without markup of others."""
    names = [printable(name) for name in classifier.classes_.tolist()]
    told = ", ".join(names[:8]) + (" ..." if len(names) > 8 else "")
    return f"{len(names)} classes: {as_markdown(told)}"


def as_markdown(told: str) -> str:
    """Text of others, which is shown as it is."""
    return "".join(f"\\{letter}" if letter in "\\`*_{}[]()<>#+!|$~&:." else letter for letter in told)


def serve(app: Any, found: socket.socket) -> None:
    """Answer until a signal asks to end."""
    uvicorn = optional_module("uvicorn", "serve", "serve.py")
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1, access_log=False)
    uvicorn.Server(config).run(sockets=[found])


def main(argv: Sequence[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    setup_logger(console=False)
    load_plugins(args.plugin)
    start: Callable[[], Session]
    with contextlib.closing(listening(args.host, args.port)) as found, private_folder() as folder:
        start, told = sessions(args, folder)
        optional_module("gradio", "serve", "serve.py")
        from dassl_lite.tools._serve.page import Page

        with contextlib.closing(Visitors(start)) as visitors:
            page = Page(visitors, told, teaches=args.model_dir is None, has_example=args.backbone in ("", DEMO))
            app = page.app()
            say(f"Open {address_of(found)} in a browser; Ctrl-C ends it")
            logging.getLogger(ROOT_NAME).handlers.clear()  # visitors are told on the page, and nobody else
            with meanwhile(rehearse, start):
                serve(app, found)
    return 0


@contextlib.contextmanager
def meanwhile(work: Callable[..., None], *args: Any) -> Iterator[None]:
    """Work in a thread of its own; leaving waits for its end."""
    thread = threading.Thread(target=work, args=args)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def rehearse(start: Callable[[], Session]) -> None:
    """Train once before a visitor does, who then does not wait for libraries to load."""
    with contextlib.closing(start()) as session:
        if isinstance(session, Teaching):
            session.rehearse()


def sessions(args: argparse.Namespace, folder: Path) -> tuple[Callable[[], Session], str]:
    """What makes the session of a visitor, and a line on what answers."""
    if args.model_dir is not None:
        if not args.model_dir:
            raise UserError("--model-dir is empty: name the folder of a run, or leave it out to teach")
        classifier = FewShotClassifier.load(args.model_dir, device=args.device)
        classifier.predict_proba([Image.new("RGB", (8, 8))])  # one that cannot answer says so now
        return lambda: Session(classifier, folder), about(classifier)
    backbone = args.backbone or None
    first = FewShotClassifier(backbone=backbone, device=args.device, classes=["circle"])
    first.predict_proba([Image.new("RGB", (8, 8))])  # what is wrong with the backbone is told now; visitors share it
    told = f"Backbone: {as_markdown(args.backbone or DEMO)}."
    if args.backbone in ("", DEMO):
        told += " It knows drawn shapes only; for photographs, start the server with `--backbone ViT-B/16`."
    return lambda: Teaching(backbone, args.device, folder), told


if __name__ == "__main__":
    sys.exit(run_tool(main))
