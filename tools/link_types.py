"""Create .types/dassl_lite, links that show mypy and editors the package as it is installed.

    python tools/link_types.py

Installation maps trainers/, datasets/, configs/ and tools/ into the package, which type checkers cannot follow.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

MAPPED = ("trainers", "datasets", "configs", "tools")


def main(argv: Sequence[str] | None = None) -> int:
    argparse.ArgumentParser(prog="link_types.py", description=__doc__).parse_args(argv)
    root = Path(__file__).resolve().parent.parent
    view = root / ".types" / "dassl_lite"
    view.mkdir(parents=True, exist_ok=True)
    wanted = {path.name: path for path in (root / "dassl_lite").iterdir() if path.name != "__pycache__"}
    wanted |= {name: root / name for name in MAPPED}
    for link in view.iterdir():
        if link.name not in wanted:
            link.unlink()
    for name, path in wanted.items():
        if not (view / name).exists():
            (view / name).symlink_to(path)
    print(f"{view}: {len(wanted)} links")
    return 0


if __name__ == "__main__":
    sys.exit(main())
