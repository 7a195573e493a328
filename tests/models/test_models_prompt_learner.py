"""Learned prompts against prompts put together by hand and encoded by open_clip's own layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dassl_lite.models.clip import load_clip
from dassl_lite.models.prompt_learner import STD, PromptLearner, lay_out

NAMES = ["golden_retriever", "yo-yo"]


@pytest.fixture(scope="module")
def clip(golden_backbone: Any) -> Any:
    return load_clip(str(golden_backbone("vit0")))


def learner(clip: Any, n_ctx: int, position: str, class_specific: bool) -> PromptLearner:
    layout = lay_out(clip, NAMES, n_ctx, position=position, class_specific=class_specific)
    return PromptLearner(clip, layout, class_specific=class_specific)


def encode(clip: Any, rows: torch.Tensor) -> torch.Tensor:
    """Features (D,) of one prompt's embeddings (L, W), its end token last."""
    model = clip.model
    states = model.transformer((rows + model.positional_embedding[: len(rows)])[None], attn_mask=_causal(len(rows)))
    return model.ln_final(states)[0, -1] @ model.text_projection


def _causal(length: int) -> torch.Tensor:
    return torch.full((length, length), float("-inf")).triu(1)


# The reference puts half of the vectors, rounded down, before the name.
@pytest.mark.parametrize(("position", "before"), [("front", 0), ("middle", 2), ("end", 5)])
@pytest.mark.parametrize("class_specific", [False, True], ids=["shared", "class-specific"])
def test_an_odd_context_stands_around_the_name_as_the_position_says(clip, position, before, class_specific):
    head = learner(clip, 5, position, class_specific)
    found = head.class_features()
    for number, name in enumerate(NAMES):
        context = head.ctx[number] if class_specific else head.ctx
        ids = [clip.tokenizer.encode(text) for text in (name.replace("_", " "), ".")]
        start, name_rows, dot, end = (
            clip.text.embed(torch.tensor(part))
            for part in ([clip.tokenizer.start], ids[0], ids[1], [clip.tokenizer.end])
        )
        rows = torch.cat([start, context[:before], name_rows, context[before:], dot, end])
        assert (found[number] - encode(clip, rows)).abs().max() < 1e-5


@pytest.mark.parametrize(("class_specific", "shape"), [(False, (16, 64)), (True, (2, 16, 64))])
def test_the_context_is_drawn_with_the_papers_standard_deviation(clip, class_specific, shape):
    torch.manual_seed(0)
    head = learner(clip, 16, "end", class_specific)
    torch.manual_seed(0)
    assert STD == 0.02
    assert torch.equal(head.ctx, torch.empty(shape).normal_(std=0.02))
