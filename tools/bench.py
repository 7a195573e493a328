"""Measure the speed of the feature cache and the text tower.

    python tools/bench.py text-tower
    python tools/bench.py extract --help

Rounds alternate between the two ways that a subject compares, so that a busy machine slows both.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Sequence
from types import ModuleType

from dassl_lite.engine.commands.arguments import ToolParser, tool_parser
from dassl_lite.engine.commands.cli import run_tool
from dassl_lite.tools import _bench


def subjects() -> list[ModuleType]:
    """The modules of ``_bench/``; each has ``NAME``, ``add_parser(subparsers)`` and ``run(args)``."""
    names = sorted(module.name for module in pkgutil.iter_modules(_bench.__path__))
    return [importlib.import_module(f"{_bench.__name__}.{name}") for name in names if not name.startswith("_")]


def make_parser() -> ToolParser:
    """The flags of bench.py: a sub-command for each subject."""
    parser = tool_parser("bench", __doc__, "%(prog)s [options] SUBJECT ...")
    subparsers = parser.add_subparsers(dest="subject", required=True, metavar="SUBJECT", prog=parser.prog)
    for module in subjects():
        module.add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    {module.NAME: module for module in subjects()}[args.subject].run(args)
    return 0


if __name__ == "__main__":
    sys.exit(run_tool(main))
