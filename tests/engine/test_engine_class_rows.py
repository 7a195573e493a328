"""Rows of a checkpoint are picked by what a class is, not by where it stands."""

from __future__ import annotations

import logging
import pkgutil
from pathlib import Path

import pytest
import torch
from torch import nn

from dassl_lite.data.classes import ClassList
from dassl_lite.engine.files.class_rows import ClassRows, imagenet_classes
from dassl_lite.utils import UserError

PATH = Path("model.pth.tar-1")


class Head(nn.Module):
    """Two class-row entries, one of them along the second dimension, and one that is no class row."""

    class_rows = {"weight": 0, "columns": 1}  # noqa: RUF012

    def __init__(self, num_classes: int, fill: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((num_classes, 2), fill))
        self.columns = nn.Parameter(torch.full((3, num_classes), fill))
        self.other = nn.Parameter(torch.full((4,), fill))


def numbered(num_classes: int) -> dict[str, torch.Tensor]:
    rows = torch.arange(num_classes, dtype=torch.float32)
    return {"weight": rows[:, None].expand(-1, 2), "columns": rows.expand(3, -1), "other": torch.full((4,), 9.0)}


def test_reordered_classes_find_their_rows_along_either_dimension() -> None:
    source, target = ClassList(("cat", "dog", "owl")), ClassList(("Owl", "cat"))
    meta = {"classnames": list(source.names), "classids": list(source.ids)}
    picked, _ = ClassRows.of(Head(2, -1.0)).pick(numbered(3), meta, target, PATH)
    assert picked["weight"][:, 0].tolist() == [2.0, 0.0]
    assert picked["columns"][0].tolist() == [2.0, 0.0]
    assert picked["other"].tolist() == [9.0] * 4


def test_ids_win_over_names() -> None:
    meta = {"classnames": ["crane", "crane"], "classids": ["n1", "n2"]}
    target = ClassList(("heron", "machine"), ("n2", "n1"))
    picked, _ = ClassRows.of(Head(2, -1.0)).pick(numbered(2), meta, target, PATH)
    assert picked["weight"][:, 0].tolist() == [1.0, 0.0]


def test_a_class_that_the_source_lacks_keeps_the_models_own_row(caplog: pytest.LogCaptureFixture) -> None:
    meta = {"classnames": ["cat", "dog"], "classids": []}
    with caplog.at_level(logging.INFO, logger="dassl_lite"):
        picked, _ = ClassRows.of(Head(2, -1.0)).pick(numbered(2), meta, ClassList(("dog", "newt")), PATH)
    assert picked["weight"][:, 0].tolist() == [1.0, -1.0]
    assert "matched 1 of 2 classes (by name)" in caplog.text
    assert "newt" in caplog.text


def test_strict_makes_a_lacking_class_an_error() -> None:
    meta = {"classnames": ["cat", "dog"], "classids": []}
    with pytest.raises(UserError, match="it lacks newt"):
        ClassRows.of(Head(2, -1.0)).pick(numbered(2), meta, ClassList(("dog", "newt")), PATH, strict=True)


def test_classes_are_tied_by_position_where_none_is_in_common(caplog: pytest.LogCaptureFixture) -> None:
    meta = {"classnames": ["cat", "dog"], "classids": []}
    with caplog.at_level(logging.INFO, logger="dassl_lite"):
        picked, _ = ClassRows.of(Head(2, -1.0)).pick(numbered(2), meta, ClassList(("newt", "toad")), PATH)
    assert picked["weight"][:, 0].tolist() == [-1.0, -1.0]
    assert "all 2 classes are not in the checkpoint and stay zero-shot: newt, toad" in caplog.text


def test_a_lacking_class_is_accepted_where_untrained_rows_mean_nothing() -> None:
    class Layer(Head):
        class_rows_required = True

    meta = {"classnames": ["cat", "dog"], "classids": []}
    with pytest.raises(UserError, match="knows 1 of this dataset's 2 classes; it lacks newt"):
        ClassRows.of(nn.Sequential(Layer(2, -1.0))).pick(
            {f"0.{key}": value for key, value in numbered(2).items()}, meta, ClassList(("cat", "newt")), PATH
        )


def test_a_nameless_checkpoint_of_another_class_count_is_refused() -> None:
    with pytest.raises(UserError, match="holds 3 classes without their names, but this dataset has 2"):
        ClassRows.of(Head(2, -1.0)).pick(numbered(3), {}, ClassList(("newt", "toad")), PATH)


@pytest.mark.parametrize("variant", ["a", "r"])
def test_a_nameless_1000_row_checkpoint_gives_the_references_rows_of_imagenet_a_and_r(golden, variant: str) -> None:
    indexes = golden.json("imagenet_a_r_indexes")[f"imagenet_{variant}"]
    table = pkgutil.get_data("timm.data", f"_info/imagenet_{variant}_synsets.txt")
    assert table is not None
    wnids = table.decode().split()
    target = ClassList(tuple(f"class {w}" for w in wnids), tuple(wnids))
    picked, _ = ClassRows.of(Head(200, -1.0)).pick(numbered(1000), {}, target, PATH)
    assert picked["weight"][:, 0].tolist() == indexes
    assert len(imagenet_classes()) == 1000


def test_a_module_without_class_rows_takes_its_weights_as_they_are() -> None:
    model = nn.Linear(2, 2)
    weights = {"weight": torch.ones(2, 2), "bias": torch.zeros(2)}
    assert ClassRows.of(model).pick(weights, {}, ClassList(("a",)), PATH) == (weights, None)
