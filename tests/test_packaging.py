"""A wheel holds everything, under one name; the console script runs the tools outside a checkout."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the tracked files, so that the checkout stays as it is."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    for name in listed.stdout.splitlines():
        if not name.startswith("tests/") and (REPOSITORY / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((REPOSITORY / name).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", str(out), "."]
    subprocess.run(command, cwd=source, check=True)
    return next(out.glob("*.whl"))


@pytest.mark.slow
def test_a_wheel_holds_every_module_yaml_and_the_weights_and_nothing_at_top_level(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.split("/")[0] for name in names} <= {"dassl_lite", wheel.name.rpartition("-py3")[0] + ".dist-info"}
    for folder in ("trainers", "datasets", "tools", "configs"):
        for path in (REPOSITORY / folder).rglob("*"):
            if path.suffix in (".py", ".yaml"):
                assert f"dassl_lite/{path.relative_to(REPOSITORY)}" in names
    assert "dassl_lite/py.typed" in names
    assert "dassl_lite/models/weights/demo.safetensors" in names


@pytest.mark.slow
def test_a_wheel_trains_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(site), str(wheel)]
    subprocess.run(install, check=True)
    # The path put first wins over an editable installation of the same name.
    code = (
        f"import sys; sys.path.insert(0, {str(site)!r});"
        "sys.meta_path = [f for f in sys.meta_path if 'editable' not in getattr(f, '__module__', str(f))];"
        "import dassl_lite; print(dassl_lite.__file__);"
        "from dassl_lite.tools.cli import main; sys.exit(main())"
    )
    arguments = ["train", "--trainer", "TaskRes", "--dataset-config-file", "gadgets", "--shots", "1"]
    arguments += ["--output-dir", "run", "OPTIM.MAX_EPOCH", "2", "DATASET.FEATURES.VIEWS", "1"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert str(site) in done.stdout.splitlines()[0]
    assert (tmp_path / "run" / "results.json").is_file()
