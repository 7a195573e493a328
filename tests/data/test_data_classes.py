"""Class identity: classes are matched by id and name, not by label."""

from __future__ import annotations

import pytest

from dassl_lite.data import ClassList, match_classes, normalise_name
from dassl_lite.data.classes import describe_equal_names


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Yin_Yang", "yin yang", True),
        ("707-320", "707/320", True),
        ("  great   white_shark ", "Great white shark", True),
        ("\uff21\uff22", "ab", True),  # full width
        ("c", "c++", False),
        ("missile", "missiles", False),
    ],
)
def test_only_spellings_of_the_same_name_are_equal(one: str, other: str, same: bool) -> None:
    assert (normalise_name(one) == normalise_name(other)) is same


def test_ids_match_before_names() -> None:
    source = ClassList(("crane", "bird"), ("n1", "n2"))
    target = ClassList(("crane", "machine"), ("n2", "n1"))
    match = match_classes(source, target)
    assert match.rows == (1, 0)
    assert match.describe() == "matched 2 of 2 classes (by id)"


def test_classes_with_different_ids_never_match_by_name() -> None:
    match = match_classes(ClassList(("crane",), ("n1",)), ClassList(("crane",), ("n9",)))
    assert match.rows == (-1,)
    assert match.describe() == "matched 0 of 1 classes"


def test_names_match_if_one_side_has_no_ids() -> None:
    match = match_classes(ClassList(("Tabby_cat", "dog"), ("n1", "n2")), ClassList(("tabby cat",)))
    assert match.rows == (0,)
    assert (match.by_id, match.by_name) == (0, 1)


@pytest.mark.parametrize(
    ("source", "target"),
    [(("missile", "missile", "dog"), ("missile", "dog")), (("missile", "dog"), ("missile", "missile", "dog"))],
)
def test_a_name_that_occurs_twice_matches_nothing(source: tuple[str, ...], target: tuple[str, ...]) -> None:
    match = match_classes(ClassList(source), ClassList(target))
    assert match.rows == (*([-1] * (len(target) - 1)), source.index("dog"))


def test_classes_with_duplicate_names_match_by_id() -> None:
    imagenet = ClassList(("missile", "missile"), ("n03773504", "n04008634"))
    assert match_classes(imagenet, ClassList(imagenet.names[::-1], imagenet.ids[::-1])).rows == (1, 0)


def test_a_row_matched_by_id_is_not_matched_by_name_again() -> None:
    match = match_classes(ClassList(("cat",), ("n1",)), ClassList(("feline", "cat"), ("n1", "")))
    assert match.rows == (0, -1)


def test_the_log_line_counts_matches_by_id_and_by_name() -> None:
    match = match_classes(ClassList(("a", "b", "c"), ("1", "", "")), ClassList(("x", "c", "d"), ("1", "", "")))
    assert match.describe() == "matched 2 of 3 classes (1 by id, 1 by name)"


def test_a_different_number_of_names_and_ids_is_refused() -> None:
    with pytest.raises(ValueError, match="2 class names, but 1"):
        ClassList(("a", "b"), ("1",))


@pytest.mark.parametrize(("groups", "more"), [(1, ""), (3, ""), (4, " and 1 more")])
def test_the_first_three_groups_of_equal_names_are_listed(groups: int, more: str) -> None:
    text = describe_equal_names([name for k in range(groups) for name in (f"class {k}", f"Class_{k}")])
    listed = ", ".join(f"'class {k}' (labels {2 * k}, {2 * k + 1})" for k in range(min(groups, 3)))
    assert text.startswith(f"classes have the same name: {listed}{more}; text alone")
