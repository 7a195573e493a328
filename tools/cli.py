"""``dassl-lite TOOL ...``: the tools as sub-commands, for an installation without the checkout."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Sequence

import dassl_lite.tools
from dassl_lite.engine.commands.cli import run_tool
from dassl_lite.utils.errors import unknown


def tools() -> list[str]:
    """Names of the tools: the modules of this folder, but for this one."""
    names = (module.name for module in pkgutil.iter_modules(dassl_lite.tools.__path__))
    return sorted(name for name in names if not name.startswith("_") and name != "cli")


def dispatch(argv: Sequence[str] | None) -> int | None:
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"usage: dassl-lite TOOL ...\n\ntools: {', '.join(tools())}\n\n'dassl-lite TOOL --help' says more.")
        return 0
    tool, *rest = arguments
    if tool not in tools():
        raise unknown("tool", tool, tools())
    return importlib.import_module(f"dassl_lite.tools.{tool}").main(rest)


def main() -> int:
    return run_tool(dispatch)


if __name__ == "__main__":
    sys.exit(main())
