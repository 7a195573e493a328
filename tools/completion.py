"""Print a script with which a shell completes dassl-lite: tools, flags, their values and config keys.

    dassl-lite completion bash > ~/.local/share/bash-completion/completions/dassl-lite
    dassl-lite completion zsh  > "${fpath[1]}/_dassl-lite"
    dassl-lite completion fish > ~/.config/fish/completions/dassl-lite.fish

Start a new shell afterwards. Repeat the command after an update, or after installing plug-ins with their own trainers.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from dassl_lite.engine.commands import completion
from dassl_lite.engine.commands.arguments import ToolParser, tool_parser
from dassl_lite.engine.commands.cli import run_tool
from dassl_lite.engine.plugins import load_plugins
from dassl_lite.tools.cli import summary, tools


def make_parser() -> ToolParser:
    """The flags of completion.py."""
    parser = tool_parser("completion", __doc__, "%(prog)s [options] SHELL")
    parser.add_argument("shell", choices=completion.SHELLS, metavar="SHELL", help="bash, zsh or fish")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    load_plugins()  # registers trainers and datasets
    parsers = {tool: importlib.import_module(f"dassl_lite.tools.{tool}").make_parser() for tool in tools()}
    print(completion.script(args.shell, parsers, {tool: summary(tool) for tool in tools()}), end="")
    return 0


if __name__ == "__main__":
    sys.exit(run_tool(main))
