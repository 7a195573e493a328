"""How prompts are grouped and laid out in rows."""

from __future__ import annotations

import torch

from dassl_lite.models.text_layers import pack, share_prefixes

CPU = torch.device("cpu")


def cost(groups: list[tuple[int, list[int]]], prompts: list[tuple[int, ...]], overhead: int) -> int:
    return sum(overhead + shared + sum(len(prompts[i]) - shared for i in members) for shared, members in groups)


def test_every_prompt_is_in_one_group_that_shares_its_first_tokens() -> None:
    prompts = [(1, 2, 3, name, 9) for name in range(50)] + [(1, 5, 6, name, name, 9) for name in range(50)] + [(1, 9)]
    groups = share_prefixes(prompts, overhead=8)
    assert sorted(i for _, members in groups for i in members) == list(range(101))
    for shared, members in groups:
        assert len({prompts[i][:shared] for i in members}) == 1
        assert all(len(prompts[i]) > shared for i in members)


def test_each_template_gets_its_own_prefix_where_that_saves_rows() -> None:
    prompts = [(1, 2, 3, 4, name, 9) for name in range(50)] + [(1, 5, 6, 7, name, 9) for name in range(50)]
    groups = share_prefixes(prompts, overhead=8)
    assert sorted((shared, len(members)) for shared, members in groups) == [(4, 50), (4, 50)]
    assert share_prefixes(prompts, overhead=10**6)[0][0] == 1


def test_few_prompts_stay_in_one_group() -> None:
    prompts = [(1, 2, 3, 9), (1, 2, 4, 9), (1, 5, 6, 9)]
    assert share_prefixes(prompts, overhead=32) == [(1, [0, 1, 2])]


def test_equal_prompts_keep_one_token_each() -> None:
    assert share_prefixes([(1, 2, 9), (1, 2, 9)], overhead=0) == [(2, [0, 1])]


def test_packing_drops_the_padding() -> None:
    (packed,) = pack((3, 5, 3, 1), stride=6, chunk=10, slack=0, device=CPU)
    assert [(rectangle.count, rectangle.length) for rectangle in packed.rectangles] == [(1, 5), (2, 3), (1, 1)]
    assert len(packed.source) == 3 + 5 + 3 + 1
    assert packed.classes.tolist() == [1, 0, 2, 3]
    assert packed.source[packed.ends].tolist() == [6 + 4, 2, 12 + 2, 18]
    assert all(rectangle.visible is None for rectangle in packed.rectangles)


def test_padding_within_the_slack_joins_rectangles_and_is_masked() -> None:
    (packed,) = pack((3, 5, 3, 1), stride=6, chunk=10, slack=4, device=CPU)
    assert [(rectangle.count, rectangle.length) for rectangle in packed.rectangles] == [(4, 5)]
    visible = packed.rectangles[0].visible
    assert visible is not None
    assert visible.sum(dim=1).tolist() == [5, 3, 3, 1]
    assert packed.offset[packed.ends].tolist() == [4, 2, 2, 0]


def test_chunks_are_at_most_as_large_as_requested() -> None:
    parts = pack(tuple(range(1, 11)), stride=10, chunk=4, slack=0, device=CPU)
    assert [len(part.classes) for part in parts] == [4, 4, 2]
    assert sorted(k for part in parts for k in part.classes.tolist()) == list(range(10))
