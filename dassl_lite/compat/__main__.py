"""``python -m dassl_lite.compat REPO/train.py ARGUMENTS``: see runner.py."""

from __future__ import annotations

import sys

from dassl_lite.compat.runner import main
from dassl_lite.engine.commands.cli import run_tool

if __name__ == "__main__":
    sys.exit(run_tool(main))
