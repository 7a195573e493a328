"""Run a training script written for Dassl as it is, on this package.

    dassl-lite run-dassl REPO/train.py --root DATA --trainer X --config-file REPO/configs/trainers/X/y.yaml ...
    python -m dassl_lite.compat REPO/train.py ...

The words after the script are the script's own. Its folder is on the path, as with `python REPO/train.py`; `dassl` is
this package, and its `clip` package finds weights here. The folder in its OUTPUT_DIR gets a results.json besides.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from dassl_lite.engine.commands.arguments import ToolParser, tool_parser
from dassl_lite.engine.commands.cli import run_tool


def make_parser() -> ToolParser:
    """The flags of run_dassl.py, which stand before the script."""
    parser = tool_parser("run-dassl", __doc__, "%(prog)s [options] SCRIPT [ARGUMENT ...]")
    parser.add_argument("script", metavar="SCRIPT", help="the script, such as REPO/train.py")
    parser.add_argument("arguments", nargs="*", metavar="ARGUMENT", help="its own flags and config keys")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    start = next((i for i, word in enumerate(words) if not word.startswith("-")), len(words))
    args = make_parser().parse_args(words[: start + 1])
    from dassl_lite.compat import runner  # from now on, `import dassl` gives this package

    return runner.main([args.script, *words[start + 1 :]])


if __name__ == "__main__":
    sys.exit(run_tool(main))
