"""``dassl-lite TOOL ...``: the tools as sub-commands of one installed command."""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

import dassl_lite
from dassl_lite.startup import loading

# Nothing else of the package is imported up here: torch takes seconds, and the list of tools does not need it.
FOLDER = Path(__file__).parent
UNLISTED = ("cli", "link_types")  # the latter is of use in a checkout only


def tools() -> list[str]:
    """Names of the tools: the modules of this folder."""
    names = (path.stem for path in FOLDER.glob("*.py"))
    return sorted(name for name in names if not name.startswith("_") and name not in UNLISTED)


def overview() -> str:
    """What ``dassl-lite --help`` prints: each tool with the first sentence of its docstring."""
    width = max(map(len, tools()))
    lines = [f"  {tool:{width}}  {summary(tool)}" for tool in tools()]
    return "\n".join(
        [
            "usage: dassl-lite TOOL [options]",
            "",
            "Few-shot adaptation of CLIP.",
            "",
            "tools:",
            *lines,
            "",
            "'dassl-lite TOOL --help' lists the options of a tool, 'dassl-lite --version' prints the version.",
        ]
    )


def dispatch(argv: Sequence[str] | None) -> int | None:
    """Run the tool that the first argument names."""
    from dassl_lite.utils.errors import unknown

    tool, *rest = sys.argv[1:] if argv is None else argv
    tool = tool.replace("-", "_")
    if tool not in (*tools(), "link_types"):
        raise unknown("tool", tool, tools())
    with loading():
        module = importlib.import_module(f"dassl_lite.tools.{tool}")
    return module.main(rest)


def main() -> int:
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(overview())
        return 0
    if arguments[0] == "--version":
        print(f"dassl-lite {dassl_lite.__version__}")
        return 0
    from dassl_lite.engine.commands.cli import run_tool

    return run_tool(dispatch)


def summary(tool: str) -> str:
    """The first line of the docstring of a tool, without importing it."""
    docstring = ast.get_docstring(ast.parse((FOLDER / f"{tool}.py").read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n")[0].rstrip(".")


if __name__ == "__main__":
    sys.exit(main())
