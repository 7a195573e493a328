"""Few-shot pickles of CoOp and its forks give the same images without executing their code."""

from __future__ import annotations

import os
import pickle
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from test_data_dataset import Toy, config, lay_out

from dassl_lite.utils.errors import UserError

MODULE = "their.data.datasets.base_dataset"


@pytest.fixture
def foreign() -> Iterator[type]:
    """Dassl's Datum as pickled: private attributes, in a module that no longer exists when it is read."""

    class Datum:
        def __init__(self, impath: str, label: int, classname: str) -> None:
            self._impath, self._label, self._domain, self._classname = impath, label, 0, classname

    Datum.__module__, Datum.__qualname__ = MODULE, "Datum"
    parts = MODULE.split(".")
    names = [".".join(parts[: i + 1]) for i in range(len(parts))]
    for name in names:
        sys.modules[name] = ModuleType(name)
    sys.modules[MODULE].Datum = Datum  # type: ignore[attr-defined]
    yield Datum
    for name in names:
        del sys.modules[name]


@pytest.fixture
def toy(tmp_path: Path) -> Callable[..., Any]:
    lay_out(tmp_path)
    return lambda **options: Toy(config(tmp_path, **{"NUM_SHOTS": 2, **options}))


@pytest.fixture
def pickled(tmp_path: Path) -> Path:
    return tmp_path / "toy" / "split_fewshot" / "shot_2-seed_1.pkl"


def rewrite(drawn: Any, path: Path, datum: type, prefix: str = "/home/somebody/data/toy/images") -> None:
    """Replace the JSON with ``drawn`` pickled as the reference would."""
    path.with_suffix(".json").unlink()
    root = Path(drawn.image_dir)

    def items(part: Any) -> list[Any]:
        return [datum(f"{prefix}/{Path(i.impath).relative_to(root)}", i.label, i.classname) for i in part]

    path.write_bytes(pickle.dumps({"train": items(drawn.train_x), "val": items(drawn.val)}, pickle.HIGHEST_PROTOCOL))


@pytest.mark.parametrize("prefix", ["/home/somebody/data/toy/images", "", "C:\\data\\images"])
def test_a_pickled_draw_gives_the_same_images(toy: Any, pickled: Path, foreign: type, prefix: str) -> None:
    random.seed(1)
    drawn = toy()
    rewrite(drawn, pickled, foreign, prefix)
    for name in [name for name in sys.modules if name.startswith("their")]:
        del sys.modules[name]  # importing it now fails
    sys.modules.update(dict.fromkeys(["their", "their.data", "their.data.datasets", MODULE], ModuleType("gone")))
    random.seed(7)
    before = random.getstate()
    read = toy()
    assert read.train_x == drawn.train_x
    assert read.val == drawn.val
    assert random.getstate() == before
    assert pickled.with_suffix(".json").is_file()  # later runs read the JSON
    pickled.write_bytes(b"")
    assert toy().train_x == drawn.train_x


def test_a_pickle_given_by_name_is_read(toy: Any, pickled: Path, foreign: type, tmp_path: Path) -> None:
    random.seed(1)
    drawn = toy()
    rewrite(drawn, pickled, foreign)
    os.rename(pickled, tmp_path / "colleague.pkl")
    pickled.with_suffix(".json").unlink(missing_ok=True)
    random.seed(7)
    assert toy(FEWSHOT_FILE=str(tmp_path / "colleague.pkl")).train_x == drawn.train_x
    assert not pickled.with_suffix(".json").exists()  # a run without FEWSHOT_FILE would use it as its own draw


class _Bomb:
    def __init__(self, target: str) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.target,)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("bomb", r"would call posix.mkdir. None of its code was run"),
        ("other", "no image c0/nowhere.png with label 0"),
        ("text", "contains a str, not a Datum"),
        ("empty", "is truncated or not a pickle"),
    ],
)
def test_a_pickle_that_does_not_fit_the_split_is_refused(
    toy: Any, pickled: Path, foreign: type, tmp_path: Path, kind: str, message: str
) -> None:
    target = tmp_path / "was_run"
    items = {"bomb": [_Bomb(str(target))], "other": [foreign("/x/c0/nowhere.png", 0, "c0")], "text": ["x"]}
    pickled.parent.mkdir(exist_ok=True)
    pickled.write_bytes(pickle.dumps({"train": items[kind]}) if kind in items else b"")
    with pytest.raises(UserError, match=message):
        toy()
    assert not target.exists()
    assert not pickled.with_suffix(".json").exists()
