"""What a run does not do per image or per step."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from dassl_lite.data.datum import Datum, Rows
from dassl_lite.data.feature_files import FeatureFile, FeaturePart, write_feature_file
from dassl_lite.engine.build import make_config
from dassl_lite.engine.commands import run

CLASSES, TESTED = 3, 4000


@pytest.fixture
def file(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)

    def part(labels: np.ndarray) -> FeaturePart:
        return FeaturePart(rng.standard_normal((1, len(labels), 8), dtype=np.float32), labels)

    parts = {"train": part(np.arange(CLASSES).repeat(4)), "test": part(rng.integers(0, CLASSES, TESTED))}
    text = rng.standard_normal((1, CLASSES, 8), dtype=np.float32)
    write_feature_file(FeatureFile(parts, ("ant", "bee", "cat"), text), tmp_path / "features.npz")
    return tmp_path / "features.npz"


@pytest.mark.slow
def test_a_run_on_a_feature_file_makes_no_object_for_each_test_image(file: Path) -> None:
    flags = {"DATASET": {"FILE": str(file)}, "OUTPUT_DIR": str(file.parent / "run"), "VERBOSE": False}
    cfg = make_config(trainer="TaskRes", dataset_file="features", flags=flags, options=["OPTIM.MAX_EPOCH", "2"])
    made: list[str] = []
    before = Datum.__init__
    with mock.patch.object(
        Datum, "__init__", lambda self, path, *args, **kw: made.append(path) or before(self, path, *args, **kw)
    ):
        run.train(cfg)
    assert 0 < len(made) < 200


def test_the_rows_of_a_file_compare_with_lists_and_add_to_them() -> None:
    rows = Rows("file/test", np.array([1, 0, 1]), ("ant", "bee"), ("", "n2"))
    listed = [rows[0], rows[1], rows[2]]
    assert rows == listed
    assert listed == rows
    assert rows != listed[:2]
    assert rows != [*listed[:2], rows[1]]
    assert rows != 3
    assert [*rows] == listed
    assert rows + listed[:1] == [*listed, listed[0]]
    assert listed[:1] + rows == [listed[0], *listed]
    assert [item.impath for item in rows] == ["file/test/0", "file/test/1", "file/test/2"]
