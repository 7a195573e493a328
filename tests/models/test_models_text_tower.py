"""The text tower against open_clip's own 77-token computation, features and gradients."""

from __future__ import annotations

import logging
from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor

from dassl_lite.models.text_tower import TextTower
from dassl_lite.models.tokenizer import Tokenizer
from dassl_lite.utils.errors import UserError

NAMES = ["cat", "golden retriever", "yo-yo", "dog", "Boeing 737-800", "missile", "a very long name of a class indeed"]
CONTEXT = 4
LAYOUTS = ("end", "middle", "front", "csc_end", "csc_middle", "csc_front")


def tiny(dtype: torch.dtype = torch.float64, custom_text: bool = False, **text: Any) -> Any:
    """A small CLIP with random weights large enough for every layer to matter."""
    torch.manual_seed(0)
    vision = {"layers": 1, "width": 32, "head_width": 16, "patch_size": 8, "image_size": 16}
    text = {"width": 32, "heads": 4, "layers": 3, "context_length": 77, "vocab_size": 49408} | text
    kind = open_clip.CustomTextCLIP if custom_text else open_clip.CLIP
    model = kind(16, vision, text, quick_gelu=True).to(dtype).eval()
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model.requires_grad_(False)


class Prompts:
    """Prompts with learned context, laid out for the tower, and encoded by open_clip for comparison."""

    def __init__(self, model: Any, layout: str, images: int = 0) -> None:
        self.model, self.tower = model, TextTower(model)
        per_class, place = layout.startswith("csc"), layout.removeprefix("csc_")
        width, dtype = self.tower.width, self.tower.dtype
        shape = (images,) if images else (len(NAMES),) if per_class else ()
        self.context = (torch.randn(*shape, CONTEXT, width, dtype=dtype) * 0.1).requires_grad_()
        ids = [Tokenizer().encode(name) for name in NAMES]
        self.lengths = [CONTEXT + len(i) + 2 for i in ids]  # without the start token
        self.rows = [self._row(k, i, place, per_class) for k, i in enumerate(ids)]
        if not images:
            self.prefix, self.suffix, self.cut = self._split(place, per_class)

    def _row(self, k: int, ids: list[int], place: str, per_class: bool) -> tuple[list[Any], int]:
        name = list(self.tower.embed(torch.tensor(ids)))
        tail = list(self.tower.embed(torch.tensor([269, 49407])))  # "." and the end token
        context = list(self.context[k] if per_class else self.context) if self.context.dim() < 4 else []
        half = CONTEXT // 2 if place == "middle" else CONTEXT if place == "end" else 0
        return [*context[:half], *name, *context[half:], *tail], half

    def _split(self, place: str, per_class: bool) -> tuple[Tensor, Tensor, int]:
        shared = 0 if per_class else self.rows[0][1]
        start = self.tower.embed(torch.tensor([49406]))
        prefix = torch.cat([start, self.context[:shared]]) if shared else start
        longest = max(self.lengths) - shared
        junk = torch.full((self.tower.width,), 7.0, dtype=self.tower.dtype)  # no prompt may depend on it
        rows = [torch.stack((row[shared:] + [junk] * longest)[:longest]) for row, _ in self.rows]
        return prefix, torch.stack(rows), shared

    def through_tower(self, **options: Any) -> Tensor:
        lengths = [length - self.cut for length in self.lengths]
        return self.tower.encode_prompts(self.prefix, self.suffix, lengths, **options)

    def plain(self, deep: dict[int, Tensor] | None = None, at: int = 1) -> Tensor:
        """All 77 positions through open_clip's modules, as its `encode_text` does after the embedding."""
        start, padding = self.tower.embed(torch.tensor([49406])), self.tower.embed(torch.zeros(77, dtype=torch.long))
        rows = [torch.cat([start, torch.stack(row), padding])[:77] for row, _ in self.rows]
        return plain(self.model, torch.stack(rows), torch.tensor(self.lengths), deep, at)


def plain(model: Any, embedded: Tensor, ends: Tensor, deep: dict[int, Tensor] | None = None, at: int = 1) -> Tensor:
    text, deep = getattr(model, "text", model), deep or {}
    x = embedded + text.positional_embedding
    for number, block in enumerate(text.transformer.resblocks):
        if number in deep:
            rows = deep[number].expand(len(x), -1, -1)
            x = torch.cat([x[:, :at], rows, x[:, at + rows.shape[1] :]], dim=1)
        x = block(x, attn_mask=text.attn_mask)
    return text.ln_final(x)[torch.arange(len(x)), ends] @ text.text_projection


def gradient(features: Tensor, context: Tensor) -> Tensor:
    weights = torch.randn(features.shape, generator=torch.Generator().manual_seed(1), dtype=features.dtype)
    (result,) = torch.autograd.grad((features * weights).sum(), context, retain_graph=True)
    return result


def assert_relative(ours: Tensor, theirs: Tensor, tolerance: float) -> None:
    assert ours.shape == theirs.shape
    ours, theirs = ours.detach(), theirs.detach()
    assert float((ours - theirs).abs().max()) <= tolerance * float(theirs.abs().max())


TOLERANCES = [(torch.float64, 1e-12), (torch.float32, 1e-5)]


@pytest.mark.slow_after(1)
@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
@pytest.mark.parametrize("custom_text", [False, True])
def test_tokens_equal_open_clips_encode_text(dtype: torch.dtype, tolerance: float, custom_text: bool) -> None:
    model = tiny(dtype, custom_text)
    templates = ("a photo of a {}.", "a photo of the large {}.", "art of the {}.", "{} texture.", "{}")
    tokens = Tokenizer()([template.format(name) for template in templates for name in [*NAMES, ""]])
    assert_relative(TextTower(model).encode_tokens(tokens), model.encode_text(tokens), tolerance)


def test_prompt_as_long_as_the_context_equals_encode_text() -> None:
    model = tiny()
    tokens = Tokenizer()(["dog " * 100, "cat"], truncate=True)
    assert_relative(TextTower(model).encode_tokens(tokens), model.encode_text(tokens), 1e-12)


@pytest.mark.slow_after(3)
@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_learned_prompts_equal_open_clips_computation(dtype: torch.dtype, tolerance: float, layout: str) -> None:
    prompts = Prompts(tiny(dtype), layout)
    ours, theirs = prompts.through_tower(), prompts.plain()
    assert_relative(ours, theirs, tolerance)
    assert_relative(gradient(ours, prompts.context), gradient(theirs, prompts.context), tolerance)


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("chunk", [1, 3, 100])
@pytest.mark.parametrize("layout", ["end", "csc_end"])
def test_chunks_and_checkpointing_change_nothing(layout: str, chunk: int, checkpoint: bool) -> None:
    prompts = Prompts(tiny(), layout)
    whole, parts = prompts.through_tower(), prompts.through_tower(chunk=chunk, checkpoint=checkpoint)
    assert_relative(parts, whole, 1e-13)
    assert_relative(gradient(parts, prompts.context), gradient(whole, prompts.context), 1e-13)


def test_exact_and_padded_rectangles_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = Prompts(tiny(), "end")
    monkeypatch.setattr("dassl_lite.models.text_tower._BLOCK_ROWS", {"cpu": 0})
    exact = prompts.through_tower()
    monkeypatch.setattr("dassl_lite.models.text_tower._BLOCK_ROWS", {"cpu": 10**6})
    padded = prompts.through_tower()
    assert_relative(padded, exact, 1e-13)
    assert_relative(gradient(padded, prompts.context), gradient(exact, prompts.context), 1e-13)


@pytest.mark.parametrize("block_rows", [0, 10**6])
def test_prefix_per_image_equals_encoding_image_by_image(block_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dassl_lite.models.text_tower._BLOCK_ROWS", {"cpu": block_rows})
    prompts, images = Prompts(tiny(), "end"), 3
    context = (torch.randn(images, CONTEXT, prompts.tower.width, dtype=torch.float64) * 0.1).requires_grad_()
    start = prompts.prefix[:1].expand(images, -1, -1)
    lengths = [length - CONTEXT for length in prompts.lengths]
    ours = prompts.tower.encode_prompts(torch.cat([start, context], 1), prompts.suffix, lengths)
    one_by_one = [torch.cat([prompts.prefix[:1], image]) for image in context]
    theirs = torch.stack([prompts.tower.encode_prompts(prefix, prompts.suffix, lengths) for prefix in one_by_one])
    assert ours.shape == (images, len(NAMES), 16)
    assert_relative(ours, theirs, 1e-12)
    assert_relative(gradient(ours, context), gradient(theirs, context), 1e-12)


def test_empty_prefix_gives_every_image_the_same_features() -> None:
    prompts = Prompts(tiny(), "front")
    suffix = torch.cat([prompts.prefix.expand(len(NAMES), -1, -1), prompts.suffix], dim=1)
    lengths = [length + 1 for length in prompts.lengths]
    ours = prompts.tower.encode_prompts(prompts.prefix[None, :0].expand(2, -1, -1), suffix, lengths)
    assert_relative(ours, prompts.plain().expand(2, -1, -1), 1e-12)


def deep_rows(tower: TextTower, **shapes: tuple[int, ...]) -> dict[int, Tensor]:
    """Random rows ``b<block>`` of a shape, which learn."""
    rows = {int(name[1:]): torch.randn(*shape, tower.width, dtype=tower.dtype) * 0.1 for name, shape in shapes.items()}
    return {number: one.requires_grad_() for number, one in rows.items()}


PER_CLASS = (len(NAMES), CONTEXT)
DEEP = {
    "shared": {"b1": (CONTEXT,), "b2": (CONTEXT,)},
    "fewer than context vectors": {"b0": (1,), "b2": (2,)},
    "per class": {"b1": PER_CLASS},
    "per class, last block": {"b2": (len(NAMES), 2)},
    "shared, per class, shared": {"b0": (2,), "b1": (len(NAMES), 3), "b2": (CONTEXT,)},
    "beyond the prefix": {"b1": (CONTEXT,), "b2": (CONTEXT + 2,)},
}


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["end", "csc_middle"])
@pytest.mark.parametrize("shapes", DEEP.values(), ids=DEEP)
def test_deep_rows_equal_the_plain_77_token_computation(shapes: dict[str, tuple[int, ...]], layout: str) -> None:
    prompts = Prompts(tiny(), layout)
    deep = deep_rows(prompts.tower, **shapes)
    theirs = prompts.plain(deep)
    for options in ({}, {"chunk": 3, "checkpoint": True}):
        ours = prompts.through_tower(deep=deep, **options)
        assert_relative(ours, theirs, 1e-12)
        for learned in (prompts.context, *deep.values()):
            assert_relative(gradient(ours, learned), gradient(theirs, learned), 1e-12)


@pytest.mark.parametrize("shapes", [DEEP["shared"], DEEP["shared, per class, shared"]])
@pytest.mark.parametrize("at", [1, 2])
def test_deep_rows_equal_the_plain_computation_where_nothing_is_shared(at: int, shapes: Any) -> None:
    prompts = Prompts(tiny(), "end")
    _hook_block(prompts.model)
    deep = deep_rows(prompts.tower, **shapes)
    ours, theirs = prompts.through_tower(deep=deep, deep_at=at, chunk=2), prompts.plain(deep, at)
    assert_relative(ours, theirs, 1e-12)
    assert_relative(gradient(ours, deep[1]), gradient(theirs, deep[1]), 1e-12)


@pytest.mark.parametrize("shapes", [DEEP["shared"], DEEP["shared, per class, shared"]])
def test_deep_rows_of_every_image_equal_those_image_by_image(shapes: dict[str, tuple[int, ...]]) -> None:
    prompts, images = Prompts(tiny(), "end"), 2
    deep, lengths = deep_rows(prompts.tower, **shapes), [length - CONTEXT for length in prompts.lengths]
    context = torch.randn(images, CONTEXT, 32, dtype=torch.float64) * 0.1
    prefix = torch.cat([prompts.prefix[:1].expand(images, -1, -1), context], dim=1)
    ours = prompts.tower.encode_prompts(prefix, prompts.suffix, lengths, deep=deep)
    theirs = torch.stack([prompts.tower.encode_prompts(one, prompts.suffix, lengths, deep=deep) for one in prefix])
    assert_relative(ours, theirs, 1e-12)


@pytest.mark.parametrize("shapes", [{"b1": (CONTEXT,)}, {"b1": PER_CLASS}])
def test_encoder_that_sees_padding_takes_deep_rows(shapes: Any) -> None:
    model = tiny(custom_text=True, no_causal_mask=True, pool_type="last")
    prompts = Prompts(model, "end")
    deep, tokens = deep_rows(prompts.tower, **shapes), torch.zeros(len(NAMES), 77, dtype=torch.long)
    start, padding = prompts.tower.embed(torch.tensor([49406])), prompts.tower.embed(torch.zeros(77, dtype=torch.long))
    embedded = torch.stack([torch.cat([start, torch.stack(row), padding])[:77] for row, _ in prompts.rows])
    theirs = plain(model, embedded, torch.full((len(NAMES),), 76), deep)
    assert_relative(prompts.through_tower(deep=deep, tokens=tokens, chunk=3), theirs, 1e-12)


def test_deep_rows_that_fit_no_block_or_prompt_are_refused() -> None:
    prompts = Prompts(tiny(), "end")
    for shapes, why in (
        ({"b3": (4,)}, "has 3 blocks"),
        ({"b1": (3, 4)}, "are neither"),
        ({"b1": (7,)}, "up to position 7, but a prompt ends at 7"),
    ):
        with pytest.raises(ValueError, match=why):
            prompts.through_tower(deep=deep_rows(prompts.tower, **shapes))


def test_frozen_weights_get_no_gradient() -> None:
    prompts = Prompts(tiny(), "end")
    prompts.through_tower(chunk=2, checkpoint=True).sum().backward()
    assert prompts.context.grad is not None
    assert all(parameter.grad is None for parameter in prompts.model.parameters())


def test_tuned_weights_get_open_clips_gradients() -> None:
    model = tiny()
    weight = model.transformer.resblocks[1].attn.in_proj_weight.requires_grad_()
    tokens = Tokenizer()([f"a photo of a {name}." for name in NAMES])
    ours, theirs = TextTower(model).encode_tokens(tokens, checkpoint=True), model.encode_text(tokens)
    assert_relative(gradient(ours, weight), gradient(theirs, weight), 1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.05), (torch.float16, 0.01)])
def test_half_precision_stays_near_encode_text(dtype: torch.dtype, tolerance: float) -> None:
    model = tiny(torch.float32)
    reference = model.encode_text(tokens := Tokenizer()(NAMES))
    vision, text = {"layers": 1, "width": 32, "head_width": 16, "patch_size": 8, "image_size": 16}, {"width": 32}
    half = open_clip.CLIP(16, vision, text | {"heads": 4, "layers": 3}, quick_gelu=True, cast_dtype=dtype).eval()
    half.load_state_dict(model.state_dict())
    open_clip.convert_weights_to_lp(half, dtype)
    ours = TextTower(half).encode_tokens(tokens)
    assert ours.dtype == dtype
    assert_relative(ours.float(), reference, tolerance)
    assert_relative(half.encode_text(tokens).float(), reference, tolerance)


def test_autocast_stays_near_fp32() -> None:
    prompts = Prompts(tiny(torch.float32), "end")
    with torch.autocast("cpu", torch.bfloat16):
        features = prompts.through_tower()
    assert_relative(features.float(), prompts.plain(), 0.05)
    assert_relative(gradient(features.float(), prompts.context), gradient(prompts.plain(), prompts.context), 0.1)


def test_another_projection_leaves_the_model_unchanged() -> None:
    model, tower = (m := tiny()), TextTower(m)
    tokens, projection = Tokenizer()(NAMES), torch.randn(32, 5, dtype=torch.float64)
    before = model.text_projection.clone()
    states = tower.encode_tokens(tokens, project=False)
    assert torch.equal(tower.encode_tokens(tokens, projection=projection), states @ projection)
    assert_relative(states @ tower.projection, model.encode_text(tokens), 1e-12)
    assert torch.equal(model.text_projection, before)


class Doubled(torch.nn.MultiheadAttention):
    """A replaced attention, with a different forward."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        attended, weights = super().forward(*args, **kwargs)
        return 2 * attended, weights


def _replace_attention(model: Any) -> None:
    block = model.transformer.resblocks[1]
    own = block.attn
    block.attn = Doubled(own.embed_dim, own.num_heads, batch_first=True, dtype=torch.float64).eval()
    block.attn.load_state_dict(own.state_dict())


def _hook_block(model: Any) -> None:
    model.transformer.resblocks[0].register_forward_hook(lambda module, inputs, output: 3 * output)


@pytest.mark.parametrize("change", [_replace_attention, _hook_block])
def test_changed_layer_takes_effect_and_is_logged(change: Any, caplog: pytest.LogCaptureFixture) -> None:
    model = tiny()
    tokens = Tokenizer()(NAMES)
    before = model.encode_text(tokens)
    change(model)
    with caplog.at_level(logging.INFO):
        ours = TextTower(model).encode_tokens(tokens)
    assert_relative(ours, model.encode_text(tokens), 1e-12)
    assert float((ours - before).detach().abs().max()) > 1e-3
    assert "without a shared prefix" in caplog.text


@pytest.mark.slow_after(2)
@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("chunk", [2, 100])
def test_whole_prompts_in_chunks_give_the_same_features_and_gradients(chunk: int, checkpoint: bool) -> None:
    prompts = Prompts(tiny(), "end")
    _hook_block(prompts.model)
    ours, theirs = prompts.through_tower(chunk=chunk, checkpoint=checkpoint), prompts.plain()
    assert_relative(ours, theirs, 1e-12)
    assert_relative(gradient(ours, prompts.context), gradient(theirs, prompts.context), 1e-12)


def test_chunk_of_whole_prompts_is_as_long_as_its_longest_prompt() -> None:
    model, seen = tiny(), []
    model.transformer.resblocks[0].register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape))
    tokens = Tokenizer()(NAMES)
    TextTower(model).encode_tokens(tokens, chunk=3)
    ends = TextTower(model).ends(tokens)
    assert [shape[:2] for shape in seen] == [(len(part), int(part.max()) + 1) for part in ends.split(3)]


class Projecting(torch.nn.Module):
    """What a replacement of the attention must provide to keep the shared prefix, as LoRA's does."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.inner, self.out_proj, self.num_heads = attention, attention.out_proj, attention.num_heads
        self.asked: list[str] = []

    def project(self, x: Tensor, parts: str) -> tuple[Tensor, ...]:
        self.asked.append(parts)
        rows = torch.nn.functional.linear(x, self.inner.in_proj_weight, self.inner.in_proj_bias).chunk(3, dim=-1)
        return tuple(rows["qkv".index(part)] for part in parts)


def test_module_with_project_can_replace_the_attention() -> None:
    model = tiny()
    tokens = Tokenizer()(NAMES)
    expected = model.encode_text(tokens)
    for block in model.transformer.resblocks:
        block.attn = Projecting(block.attn)
    assert_relative(TextTower(model).encode_tokens(tokens), expected, 1e-12)
    assert set(model.transformer.resblocks[-1].attn.asked) == {"q", "kv"}


def test_encoder_of_another_kind_runs_unchanged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        model = tiny(custom_text=True, no_causal_mask=True, pool_type="last")
        tower = TextTower(model)
    tokens = Tokenizer()(NAMES)
    assert torch.equal(tower.encode_tokens(tokens), model.encode_text(tokens))
    assert "not of CLIP's kind" in caplog.text
    model.text.token_embedding = None
    with pytest.raises(UserError, match="cannot take learned prompts"):
        tower.embed(tokens)


def test_end_token_is_found_by_id_if_the_model_says_so() -> None:
    model = tiny(custom_text=True, pool_type="eos", eos_id=49407)
    tokens = Tokenizer()(NAMES)
    assert_relative(TextTower(model).encode_tokens(tokens), model.encode_text(tokens), 1e-12)


def test_too_many_tokens_are_refused() -> None:
    tower = TextTower(tiny())
    with pytest.raises(UserError, match="a prompt has 80 tokens where 77 fit"):
        tower.encode_prompts(torch.zeros(70, 32), torch.zeros(2, 10, 32), [10, 5])


def test_lengths_must_fit_the_suffix() -> None:
    tower = TextTower(tiny())
    with pytest.raises(ValueError, match="do not fit"):
        tower.encode_prompts(torch.zeros(2, 32), torch.zeros(2, 10, 32), [11, 5])


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("layout", ["end", "csc_end"])
def test_checkpointing_keeps_less_than_half_for_the_backward_pass(layout: str, whole: bool) -> None:
    prompts = Prompts(tiny(torch.float32), layout)
    if whole:
        _hook_block(prompts.model)

    def kept(**options: Any) -> int:
        sizes: list[int] = []

        def pack(tensor: Tensor) -> Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            prompts.through_tower(**options)
        return sum(sizes)

    assert kept(checkpoint=True, chunk=2) < kept() / 2
