"""Learned prompts on every family of text towers, against the model's own `encode_text` of the same tokens.

A context that holds the embeddings of some tokens must give the features of the text with these tokens in its place.
The expected rows of ids are put together here, by hand.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from dassl_lite.models.prompt_learner import PromptLearner, lay_out
from dassl_lite.models.text_tower import TextTower
from dassl_lite.utils.errors import UserError

NAMES = ["cat", "golden_retriever", "yo-yo"]
CONTEXT = [301, 302, 303, 304, 305]  # ordinary words of every vocabulary
OTHERS = [311, 312, 313, 314, 315]
# One of each kind of text tower: read at the last token, averaged, at the first or end token, or at a token of its own;
# with and without start token, causal mask, padding mask, bias of the projection.
# The first three are quick; importing the models of transformers alone takes seconds.
QUICK = ("SigLIP", "CLIPA", "MetaCLIP2")
OTHER = (
    "roberta",
    "NLLB",
    "mT5",
    "CoCa",
    "CoCa-roberta",
    "XLM-roberta",
    "MobileCLIP-S",
    "SigLIP2",
    "SigLIP-i18n",
    "ResNet",
    "PE-Core",
)
every_family = pytest.mark.parametrize("family", [*QUICK, *OTHER])


@pytest.fixture
def load(family_clip: Callable[[str], Any]) -> Callable[[str], Any]:
    def make(family: str) -> Any:
        clip = family_clip(family).double()
        clip.text = TextTower(clip.model)
        torch.manual_seed(0)
        for parameter in clip.model.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)  # large enough for every layer to matter
        return clip

    return make


def row(clip: Any, *parts: Any) -> list[int]:
    """The ids of a prompt made of words and ids, with what the tokenizer puts around it."""
    tokenizer, ids = clip.tokenizer, []
    for part in parts:
        ids += tokenizer.encode(part, after_word=bool(ids)) if isinstance(part, str) else part
    return tokenizer.row(ids)


def expected(clip: Any, place: str, contexts: list[list[int]]) -> Tensor:
    """Features (K, D) of the prompts with each class's context ids."""
    before = {"end": 5, "middle": 2, "front": 0}[place]
    rows = []
    for name, context in zip(NAMES, contexts, strict=True):
        dotted = clip.tokenizer.encode(f"{name.replace('_', ' ')}.", after_word=before > 0)
        named = clip.tokenizer.encode(name.replace("_", " "), after_word=before > 0)
        assert dotted[: len(named)] == named
        rows.append(row(clip, context[:before], named, context[before:], dotted[len(named) :]))
    return clip.model.encode_text(torch.tensor(rows))


def learner(clip: Any, place: str, class_specific: bool = False, **options: Any) -> PromptLearner:
    layout = lay_out(clip, NAMES, 5, position=place, class_specific=class_specific)
    return PromptLearner(clip, layout, class_specific=class_specific, **options)


def difference(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    return float((ours.double() - theirs).detach().abs().max() / theirs.detach().abs().max())


@pytest.mark.slow_after(3)
@every_family
def test_a_context_of_words_gives_the_features_of_the_text(load: Any, family: str) -> None:
    clip = load(family)
    head = PromptLearner(clip, lay_out(clip, NAMES, 0, "a photo of a"))
    tokens = clip.tokenize([f"a photo of a {name.replace('_', ' ')}." for name in NAMES])
    theirs = clip.model.encode_text(tokens)
    assert difference(head.encode(head.ctx.double()), theirs) < 1e-6  # the context is kept in float32
    assert difference(theirs[:1], theirs[1:2]) > 1e-4


@pytest.mark.slow_after(3)
@pytest.mark.parametrize("place", ["end", "middle", "front"])
@every_family
def test_a_context_of_embeddings_gives_the_features_of_their_tokens(load: Any, family: str, place: str) -> None:
    clip = load(family)
    context, other = (clip.text.embed(torch.tensor(ids)) for ids in (CONTEXT, OTHERS))
    shared = learner(clip, place)
    assert difference(shared.encode(context), expected(clip, place, [CONTEXT] * 3)) < 1e-9
    own = learner(clip, place, class_specific=True)
    theirs = expected(clip, place, [CONTEXT, OTHERS, CONTEXT])
    assert difference(own.encode(torch.stack([context, other, context])), theirs) < 1e-9


@pytest.mark.slow_after(3)
@every_family
def test_a_context_for_each_image_gives_the_features_of_their_tokens(load: Any, family: str) -> None:
    clip = load(family)
    contexts = torch.stack([clip.text.embed(torch.tensor(ids)) for ids in (CONTEXT, OTHERS)])
    theirs = torch.stack([expected(clip, "end", [ids] * 3) for ids in (CONTEXT, OTHERS)])
    for chunk in (0, 2):
        assert difference(learner(clip, "end", chunk=chunk).encode(contexts), theirs) < 1e-9


@pytest.mark.slow_after(3)
@every_family
def test_gradients_of_the_context_are_those_of_its_tokens(load: Any, family: str) -> None:
    clip = load(family)
    table = clip.text._own.embedding
    context = clip.text.embed(torch.tensor(CONTEXT)).requires_grad_()
    direction = torch.randn(3, clip.embed_dim, dtype=torch.double, generator=torch.Generator().manual_seed(1))
    gradients = []
    for checkpoint in (False, True):
        features = learner(clip, "end", checkpoint=checkpoint, chunk=2).encode(context)
        gradients += torch.autograd.grad((features * direction).sum(), context)
    table.weight.requires_grad_()
    features = expected(clip, "end", [CONTEXT] * 3)
    (of_table,) = torch.autograd.grad((features * direction).sum(), table.weight)
    scale = float(getattr(table, "embed_scale", 1.0))  # NLLB's
    for gradient in gradients:
        assert difference(gradient * scale, of_table[CONTEXT]) < 1e-9


@pytest.mark.slow_after(3)
@every_family
def test_states_and_projection_give_the_features(load: Any, family: str) -> None:
    clip = load(family)
    tokens, tower = clip.tokenize(NAMES), clip.text
    theirs = clip.model.encode_text(tokens)
    states = tower.encode_tokens(tokens, project=False)
    ours = tower.project(states, tower.projection)
    assert torch.equal(ours, tower.encode_tokens(tokens, projection=tower.projection))
    if family.startswith("CoCa"):  # whose own encode_text normalises
        ours = torch.nn.functional.normalize(ours, dim=-1)
    assert difference(ours, theirs) < 1e-9
    assert tower.embed_dim == theirs.shape[1]
    assert torch.equal(clip.model.encode_text(tokens), theirs)  # the model is as it was


@pytest.mark.slow_after(3)
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@every_family
def test_lower_precisions_stay_near_fp32(family_clip: Any, family: str, precision: str) -> None:
    exact, low = family_clip(family), family_clip(family, precision)
    tokens, images = low.tokenize(NAMES), torch.randn(2, 3, *low.image_size)
    for clip in (exact, low):
        clip.head = PromptLearner(clip, lay_out(clip, NAMES, 0, "a photo of a"))
    for compute in (
        lambda clip: clip.encode_text(tokens),
        lambda clip: clip.encode_image(images),
        lambda clip: clip.head.class_features(),
        lambda clip: clip.text.project(clip.text.encode_tokens(tokens, project=False), clip.text.projection),
    ):
        assert difference(compute(low), compute(exact)) < 0.05


def test_tokens_are_encoded_by_the_towers_own_forward(load: Any) -> None:
    clip = load("SigLIP")
    tokens = clip.tokenize(NAMES)
    assert torch.equal(clip.text.encode_tokens(tokens), clip.model.encode_text(tokens))
    layout = lay_out(clip, NAMES, 3)
    assert layout.rows.shape == (3, clip.tokenizer.context_length)
    with pytest.raises(ValueError, match="needs the tokens of whole rows"):
        clip.text.encode_prompts(torch.zeros(1, 32).double(), torch.zeros(1, 2, 32).double(), [2])


def test_a_prompt_that_is_too_long_is_reported_with_its_tokens(load: Any) -> None:
    clip = load("SigLIP")
    name = "an extraordinarily long name of a class"
    count = len(clip.tokenizer.encode(f"{name}.", after_word=True)) + 60 + 1  # no start token, one end token
    with pytest.raises(UserError, match=f"with the class name '{name}' a prompt has {count} tokens where 64 fit"):
        lay_out(clip, ["cat", name], 60)


def test_words_that_a_tokenizer_drops_are_reported(load: Any) -> None:
    clip = load("SigLIP")  # its tokenizer removes punctuation
    with pytest.raises(UserError, match="CTX_INIT '- .' has 2 words, but for this backbone's tokenizer only 0 tokens"):
        lay_out(clip, NAMES, 0, "- .")


@pytest.mark.slow
def test_hooks_are_gone_when_the_encoder_fails(load: Any) -> None:
    clip = load("roberta")
    head, proj = learner(clip, "end"), clip.model.text.proj
    context, tokens = head.ctx.double(), clip.tokenize(NAMES)
    before = clip.model.encode_text(tokens)
    broken = copy.copy(clip.model.text.pooler)
    clip.model.text.pooler = None
    for call in (lambda: head.encode(context), lambda: clip.text.encode_tokens(tokens, project=False)):
        with pytest.raises(TypeError):
            call()
    clip.model.text.pooler = broken
    assert clip.model.text.proj is proj
    assert torch.equal(clip.model.encode_text(tokens), before)
