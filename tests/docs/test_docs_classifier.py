"""The README's first block and the blocks of docs/classifier.md run, on the backbone that ships with the package."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from dassl_lite.trainers.auto import Auto

REPOSITORY = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


def draw(path: Path, sides: int, number: int) -> None:
    image = Image.new("RGB", (64, 64), "white")
    centre, colour = (32 + number % 3, 32 - number % 3), (20 * number, 0, 90)
    ImageDraw.Draw(image).regular_polygon((*centre, 16 + number), sides, fill=colour)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


@pytest.fixture(autouse=True)
def few_methods_in_two_folds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten Auto, the default method; tests/trainers/test_trainers_auto.py runs it in full."""
    short = {"METHODS": ["ZeroshotCLIP", "GDA", "TipAdapter"], "FOLDS": 2}
    keys = tuple(replace(key, default=short.get(key.name, key.default)) for key in Auto.keys)
    monkeypatch.setattr(Auto, "keys", keys)


@pytest.mark.slow
def test_the_first_block_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for sides, name in enumerate(("chanterelle", "porcini", "truffle"), start=3):
        for number in range(8):
            draw(Path("photos", name, f"{number}.jpg"), sides, number)
            draw(Path("test-photos", name, f"{number}.jpg"), sides, number + 1)
    draw(Path("new.jpg"), 3, 2)
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    first = re.search(r"^```(\w*)\n(.*?)^```", readme, re.DOTALL | re.MULTILINE)
    assert first is not None
    assert first[1] == "python"
    lines = first[2].replace('backbone="ViT-B/16"', 'backbone="demo"').strip().splitlines()
    names: dict[str, object] = {}
    exec("\n".join(lines[:3]), names)
    said = [eval(line, names) for line in lines[3:]]  # noqa: S307
    assert said[0].tolist() in ([name] for name in ("chanterelle", "porcini", "truffle"))
    assert said[1].shape == (1, 3)
    assert said[1].dtype == "float32"
    assert 0.5 < said[3] <= 1
    assert sorted(path.name for path in Path("mushrooms").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]


@pytest.mark.slow
def test_the_blocks_of_the_guide_run_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    blocks = BLOCK.findall((REPOSITORY / "docs" / "classifier.md").read_text(encoding="utf-8"))
    assert len(blocks) > 8
    for block in blocks:
        exec(compile(block, "docs/classifier.md", "exec"), names)
    output = capsys.readouterr()
    assert output.err == ""
    assert output.out.splitlines()[0].startswith("[")
    assert output.out.splitlines()[-1] == "True"
