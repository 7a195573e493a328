"""Measure what the project promises about speed; each subject is a module of `_bench/`.

python tools/bench.py text-tower
python tools/bench.py extract --help
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys
from collections.abc import Sequence
from types import ModuleType

from dassl_lite.engine.commands.cli import ToolParser, run_tool
from dassl_lite.tools import _bench


def subjects() -> list[ModuleType]:
    """The modules of `_bench/`: each has `NAME`, `add_parser(subparsers)` and `run(args)`."""
    names = sorted(module.name for module in pkgutil.iter_modules(_bench.__path__))
    return [importlib.import_module(f"{_bench.__name__}.{name}") for name in names if not name.startswith("_")]


def main(argv: Sequence[str] | None = None) -> int:
    parser = ToolParser(prog="bench.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    subparsers = parser.add_subparsers(dest="subject", required=True, metavar="SUBJECT")
    modules = {module.NAME: module for module in subjects()}
    for module in modules.values():
        module.add_parser(subparsers)
    args = parser.parse_args(argv)
    modules[args.subject].run(args)
    return 0


if __name__ == "__main__":
    sys.exit(run_tool(main))
