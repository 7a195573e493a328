"""What users' scripts, yaml files and plug-ins depend on changes only together with the files that list it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_the_public_surface_is_the_stored_one() -> None:
    """Renew the stored files with ``python tests/public_surface.py --write`` and commit them with the change."""
    # A process of its own: other tests register trainers, and dassl_lite.compat adds config keys.
    script = Path(__file__).with_name("public_surface.py")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}\nrenew with: python tests/public_surface.py --write"
