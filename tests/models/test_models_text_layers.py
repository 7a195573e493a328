"""How prompts are grouped and laid out."""

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


def test_templates_are_shared_each_for_itself_where_that_saves() -> None:
    prompts = [(1, 2, 3, 4, name, 9) for name in range(50)] + [(1, 5, 6, 7, name, 9) for name in range(50)]
    groups = share_prefixes(prompts, overhead=8)
    assert sorted((shared, len(members)) for shared, members in groups) == [(4, 50), (4, 50)]
    assert share_prefixes(prompts, overhead=10**6)[0][0] == 1


def test_few_prompts_stay_together() -> None:
    prompts = [(1, 2, 3, 9), (1, 2, 4, 9), (1, 5, 6, 9)]
    assert share_prefixes(prompts, overhead=32) == [(1, [0, 1, 2])]


def test_equal_prompts_keep_a_token_each() -> None:
    assert share_prefixes([(1, 2, 9), (1, 2, 9)], overhead=0) == [(2, [0, 1])]


def test_packing_leaves_the_padding_out() -> None:
    (packed,) = pack((3, 5, 3, 1), stride=6, chunk=10, slack=0, device=CPU)
    assert [(block.count, block.length) for block in packed.blocks] == [(1, 5), (2, 3), (1, 1)]
    assert len(packed.source) == 3 + 5 + 3 + 1
    assert packed.classes.tolist() == [1, 0, 2, 3]
    assert packed.source[packed.ends].tolist() == [6 + 4, 2, 12 + 2, 18]
    assert all(block.seen is None for block in packed.blocks)


def test_padding_within_the_slack_joins_blocks_and_is_masked() -> None:
    (packed,) = pack((3, 5, 3, 1), stride=6, chunk=10, slack=4, device=CPU)
    assert [(block.count, block.length) for block in packed.blocks] == [(4, 5)]
    seen = packed.blocks[0].seen
    assert seen is not None
    assert seen.sum(dim=1).tolist() == [5, 3, 3, 1]
    assert packed.offset[packed.ends].tolist() == [4, 2, 2, 0]


def test_chunks_hold_no_more_than_asked_for() -> None:
    parts = pack(tuple(range(1, 11)), stride=10, chunk=4, slack=0, device=CPU)
    assert [len(part.classes) for part in parts] == [4, 4, 2]
    assert sorted(k for part in parts for k in part.classes.tolist()) == list(range(10))
