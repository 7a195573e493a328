"""What runs of one process share: kept as long as its source is the same, one value of a kind, nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dassl_lite.utils.sharing import is_unwritten, shared, sharing, sharing_only, stamp


@pytest.fixture
def made() -> list[str]:
    """The sources of the values that were made."""
    return []


def value(made: list[str], source: str, kind: str = "letters") -> list[str]:
    def make() -> list[str]:
        made.append(source)
        return [source]

    return shared(kind, source, make, is_intact=lambda one: one == [source])


def test_a_value_is_made_once_for_each_source_and_the_last_of_a_kind_is_kept(made: list[str]) -> None:
    with sharing():
        first = value(made, "a")
        assert value(made, "a") is first
        assert value(made, "b", kind="others") == ["b"]
        assert [value(made, source) for source in ("a", "c", "c", "a")] == [["a"], ["c"], ["c"], ["a"]]
    assert made == ["a", "b", "c", "a"]


def test_a_value_that_was_changed_is_made_again(made: list[str]) -> None:
    with sharing():
        value(made, "a").append("b")
        assert value(made, "a") == ["a"]
    assert made == ["a", "a"]


def test_nothing_is_kept_outside_or_of_other_kinds_than_those_asked_for(made: list[str]) -> None:
    value(made, "a"), value(made, "a")
    with sharing():
        with sharing_only("others"):
            value(made, "b"), value(made, "b")
            value(made, "c", kind="others"), value(made, "c", kind="others")
        value(made, "d"), value(made, "d")
    with sharing(kinds=("others",)):
        value(made, "d"), value(made, "d")
    assert "".join(made) == "aabbcddd"


def test_contexts_with_the_same_place_share(made: list[str]) -> None:
    place = {}
    for _ in range(2):
        with sharing(place):
            value(made, "a")
    assert made == ["a"]


def test_a_value_that_cannot_be_made_is_not_kept(made: list[str]) -> None:
    def fail() -> list[str]:
        raise OSError

    with sharing():
        value(made, "a")
        with pytest.raises(OSError, match="^$"):
            shared("letters", "b", fail)
        value(made, "a")
    assert made == ["a", "a"]


def test_a_file_that_is_changed_or_replaced_has_another_stamp(tmp_path: Path) -> None:
    path, other = tmp_path / "file", tmp_path / "other"
    assert stamp(path) is None
    path.write_text("a")
    before = stamp(path)
    assert stamp(path) == before
    path.write_text("bc")
    assert stamp(path) != before
    other.write_text("bc")
    before = stamp(path)
    other.replace(path)
    assert stamp(path) != before


def test_a_tensor_that_was_written_into_through_a_view_is_told() -> None:
    tensor = torch.zeros(2, 3)
    assert is_unwritten(tensor)
    tensor[1:] + 1
    assert is_unwritten(tensor)
    with torch.no_grad():
        tensor[1:, 0].detach().add_(1)
    assert not is_unwritten(tensor)
