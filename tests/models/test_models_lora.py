"""The low-rank layers: what they add, when, where they go, and that merging changes nothing."""

from __future__ import annotations

import copy
import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from torch import nn

from dassl_lite.models import lora
from dassl_lite.models.clip import CLIPBackbone, load_clip
from dassl_lite.models.encoders import ENCODERS
from dassl_lite.models.lora import (
    LoRAAttention,
    LowRank,
    adaptable_blocks,
    add_lora,
    blocks_by_encoder,
    choose_blocks,
    merge_lora,
    without_lora,
)
from dassl_lite.utils.errors import UserError

POSITIONS = json.loads((Path(__file__).parents[1] / "golden" / "clip_lora.json").read_text())["position_table"]
WIDTH, HEADS, LENGTH = 16, 4, 5


def attention(batch_first: bool = True, dtype: torch.dtype = torch.float64) -> nn.MultiheadAttention:
    torch.manual_seed(0)
    base = nn.MultiheadAttention(WIDTH, HEADS, batch_first=batch_first, dtype=dtype)
    nn.init.normal_(base.in_proj_bias)
    nn.init.normal_(base.out_proj.bias)
    return base.requires_grad_(False).eval()


def adapted(base: nn.MultiheadAttention, filled: bool = True, dropout: float = 0.0) -> LoRAAttention:
    pairs = {projection: LowRank(WIDTH, WIDTH, 2, 1.0, dropout) for projection in "qkvo"}
    for pair in pairs.values():
        if filled:
            nn.init.normal_(pair.w_lora_B)
    return LoRAAttention(base, pairs).to(base.in_proj_weight.dtype)


def tokens(dtype: torch.dtype = torch.float64) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(3, LENGTH, WIDTH, dtype=dtype)


CAUSAL = torch.full((LENGTH, LENGTH), float("-inf")).triu(1)
MASKS = {
    "none": None,
    "added": CAUSAL.double(),
    "bool": torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1),
    "per head": CAUSAL.double().expand(3 * HEADS, -1, -1),
}


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("mask", list(MASKS))
def test_untrained_layer_equals_torchs_attention(batch_first, mask):
    base, x = attention(batch_first), tokens()
    x = x if batch_first else x.transpose(0, 1)
    layer = adapted(base, filled=False)
    found, _ = layer(x, x, x, attn_mask=MASKS[mask])
    expected, _ = base(x, x, x, need_weights=False, attn_mask=MASKS[mask])
    assert (found - expected).abs().max() < 1e-12


def test_a_pair_starts_as_the_authors_do():
    torch.manual_seed(0)
    pair = LowRank(256, 32, 64, 1.0)
    bound = 1 / math.sqrt(256)  # of kaiming_uniform_ with a = sqrt(5), by which torch starts its linear layers
    a = pair.w_lora_A.detach()
    assert a.shape == (64, 256)
    assert 0.99 * bound < a.max() <= bound
    assert -bound <= a.min() < -0.99 * bound
    assert a.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)  # of a uniform distribution
    assert abs(a.mean().item()) < 0.02 * bound
    assert not pair.w_lora_B.any()  # so that training starts at the frozen model


def test_merging_gives_the_same_output_in_a_plain_attention():
    base, x = attention(), tokens()
    layer = adapted(base)
    model = nn.ModuleDict({"attn": layer})
    expected, _ = layer(x, x, x, attn_mask=MASKS["added"])
    assert (expected - base(x, x, x, need_weights=False, attn_mask=MASKS["added"])[0]).abs().max() > 0.1
    assert merge_lora(model) == 1
    assert type(model["attn"]) is nn.MultiheadAttention
    found, _ = model["attn"](x, x, x, need_weights=False, attn_mask=MASKS["added"])
    assert (found - expected).abs().max() < 1e-12


def test_scaling_is_alpha_over_the_root_of_the_rank():
    pair = LowRank(WIDTH, WIDTH, 4, 3.0)
    nn.init.normal_(pair.w_lora_B)
    expected = 3.0 / math.sqrt(4) * pair.w_lora_B @ pair.w_lora_A
    assert torch.allclose(pair.weight(), expected)
    assert torch.allclose(pair(torch.eye(WIDTH)), expected.t(), atol=1e-6)


def test_dropout_acts_on_the_branch_alone_and_only_in_training():
    x = tokens()
    dropping, plain = adapted(attention(), dropout=0.5), adapted(attention())
    plain.load_state_dict(dropping.state_dict())
    assert torch.equal(dropping.eval()(x, x, x)[0], plain(x, x, x)[0])
    dropping.train()
    assert not torch.equal(dropping(x, x, x)[0], dropping(x, x, x)[0])
    nn.init.zeros_(dropping.q_proj.w_lora_B)
    frozen = nn.functional.linear(x, dropping.base.in_proj_weight[:WIDTH], dropping.base.in_proj_bias[:WIDTH])
    assert torch.equal(dropping.in_proj(x, "q")[0], frozen)


def test_dropout_drops_elements_of_the_input_and_scales_up_the_others():
    pair = LowRank(WIDTH, WIDTH, WIDTH, 1.0, dropout=0.5).train()
    with torch.no_grad():
        pair.w_lora_A.copy_(torch.eye(WIDTH))
        pair.w_lora_B.copy_(torch.eye(WIDTH) / pair.scaling)
    rows = pair(torch.ones(1000, WIDTH))
    assert set(rows.unique().tolist()) == {0.0, 2.0}  # elements of the input are dropped, and the others doubled
    assert rows.mean().item() == pytest.approx(1.0, abs=0.05)


def test_without_lora_gives_the_original_model_and_restores_it_after_an_error():
    base, x = attention(), tokens()
    layer = adapted(base)
    expected = layer(x, x, x)[0]
    with without_lora(layer):
        assert torch.allclose(layer(x, x, x)[0], base(x, x, x, need_weights=False)[0], atol=1e-12)
    assert torch.equal(layer(x, x, x)[0], expected)
    with pytest.raises(ValueError, match="self-attention"), without_lora(layer):
        layer(x, x, x.clone())
    assert torch.equal(layer(x, x, x)[0], expected)


def test_cross_attention_is_refused():
    layer, x = adapted(attention()), tokens()
    with pytest.raises(ValueError, match="self-attention"):
        layer(x, x.clone(), x.clone())


# ---- in a CLIP ------------------------------------------------------------------------------------------------------


def adapted_clip(backbone: str, precision: str = "fp32", dropout: float = 0.0) -> tuple[CLIPBackbone, nn.ModuleList]:
    clip = load_clip(str(backbone), precision)
    torch.manual_seed(0)
    adapters = nn.ModuleList(
        add_lora(blocks, range(len(blocks)), "qkvo", rank=2, alpha=1.0, dropout=dropout)
        for blocks in blocks_by_encoder(clip.model, "both", "vit").values()
    )
    for pair in adapters.modules():
        if isinstance(pair, LowRank):
            nn.init.normal_(pair.w_lora_B, std=0.5)
    return clip, adapters.eval()


def encode(clip: CLIPBackbone, golden: Any) -> tuple[torch.Tensor, torch.Tensor]:
    texts = ["a photo of a yo-yo.", "a photo of a golden retriever.", "itap of a boat."]
    with torch.no_grad():
        return clip.encode_image(golden.tiny_clip.images("vit", 1, 4)).float(), clip.encode_text(
            clip.tokenize(texts)
        ).float()


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("bf16", 0.05)])
def test_merged_clip_gives_the_same_features(golden, golden_backbone, error_of, precision, tolerance):
    clip, _ = adapted_clip(golden_backbone("vit0"), precision)
    plain = encode(load_clip(str(golden_backbone("vit0")), precision), golden)
    expected = encode(clip, golden)
    assert merge_lora(clip.model) == 4
    assert not [name for name, _ in clip.model.named_parameters() if "lora" in name]
    for found, wanted, without in zip(encode(clip, golden), expected, plain, strict=True):
        assert error_of(found, wanted) < tolerance
        assert error_of(without, wanted) > 4 * tolerance


@pytest.mark.slow
def test_text_tower_shares_prefixes_with_lora_exactly_until_dropout_acts(golden, golden_backbone, error_of):
    clip, adapters = adapted_clip(golden_backbone("vit0"), dropout=0.5)
    prompts = clip.tokenize([f"a photo of a {name}." for name in ("dog", "cat", "golden retriever")])
    with torch.no_grad():
        whole = clip.model.encode_text(prompts)
        assert error_of(clip.encode_text(prompts), whole) < 1e-5
        attn = clip.text.blocks[0].attn
        assert attn.project is not None
        adapters.train()
        assert attn.project is None
        # The same prompt twice: with a shared prefix the two would be more alike than with masks of their own.
        twice = clip.encode_text(prompts[:1].expand(2, -1))
        assert not torch.allclose(twice[0], twice[1])


@pytest.mark.slow
def test_dropout_masks_survive_checkpointing_in_chunks_of_bounded_size(golden_backbone):
    clip, adapters = adapted_clip(golden_backbone("vit0"), dropout=0.5)
    adapters.train()
    tokens, sizes = clip.tokenize([f"a photo of a {'very ' * n}good dog." for n in range(7)]), []
    clip.text.blocks[0].attn.base.out_proj.register_forward_hook(lambda module, given, out: sizes.append(len(out)))

    def gradients(**options: Any) -> list[torch.Tensor]:
        adapters.zero_grad()
        torch.manual_seed(3)
        clip.text.encode_tokens(tokens, **options).square().sum().backward()
        return [pair.w_lora_A.grad.clone() for pair in adapters[0].modules() if isinstance(pair, LowRank)]

    plain, again, other = gradients(chunk=3), gradients(chunk=3, checkpoint=True), gradients(chunk=2)
    assert max(sizes[:9]) == 3  # three chunks, and with checkpointing each of them twice
    assert len(plain) == 8
    assert all(torch.allclose(a, b, rtol=1e-5) for a, b in zip(plain, again, strict=True))
    assert not any(torch.allclose(a, b, rtol=1e-2) for a, b in zip(plain, other, strict=True))  # masks of its own


def choices() -> Iterator[tuple[str, str, str]]:
    """Encoder, projections and position: every choice of projections, and every encoder with every position."""
    subsets = ["".join(chosen) for size in range(1, 5) for chosen in itertools.combinations("qkvo", size)]
    positions = (*lora.POSITIONS, "top1", "top3")
    return itertools.chain((("both", subset, "all") for subset in subsets), itertools.product(ENCODERS, "v", positions))


@pytest.mark.slow
def test_merging_any_projections_of_any_blocks_gives_the_same_logits():
    torch.manual_seed(0)
    vision = {"layers": 6, "width": 16, "head_width": 8, "patch_size": 8, "image_size": 16}
    text = {"width": 16, "heads": 2, "layers": 6, "context_length": 8, "vocab_size": 20}
    plain = open_clip.CLIP(8, vision, text).double().eval().requires_grad_(False)
    images, tokens = torch.randn(3, 3, 16, 16, dtype=torch.float64), torch.randint(1, 20, (4, 8))
    with torch.no_grad():
        before = torch.cat([plain.encode_image(images).flatten(), plain.encode_text(tokens).flatten()])
        for encoder, projections, position in choices():
            model, adapted_blocks = copy.deepcopy(plain), 0
            for name, blocks in blocks_by_encoder(model, encoder, "tiny").items():
                numbers = choose_blocks(position, (), len(blocks), name)
                pairs = add_lora(blocks, numbers, projections, rank=2, alpha=1.0).double()
                assert len(list(pairs.parameters())) == 2 * len(projections) * len(numbers)
                for key, parameter in pairs.named_parameters():
                    nn.init.normal_(parameter, std=0.5 if key.endswith("B") else 0.2)
                adapted_blocks += len(numbers)
            changed = torch.cat([model.encode_image(images).flatten(), model.encode_text(tokens).flatten()])
            assert merge_lora(model) == adapted_blocks
            merged = torch.cat([model.encode_image(images).flatten(), model.encode_text(tokens).flatten()])
            choice = (encoder, projections, position)
            assert (changed - before).abs().max() > 1e-5, choice
            assert (merged - changed).abs().max() < 1e-12 * changed.abs().max(), choice


@pytest.mark.slow
def test_pairs_stay_in_float32_and_get_finite_gradients_in_half_precision(golden, golden_backbone):
    clip, adapters = adapted_clip(golden_backbone("vit0"), "bf16")
    logits = clip(golden.tiny_clip.images("vit", 1, 4), clip.tokenize(["a dog", "a cat"]))
    logits.float().logsumexp(-1).sum().backward()
    for parameter in adapters.parameters():
        assert parameter.dtype == torch.float32
        assert parameter.grad is not None
        assert torch.isfinite(parameter.grad).all()


@pytest.fixture
def error_of():
    return lambda found, expected: float((found - expected).abs().max() / expected.abs().max())


# ---- where it goes --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("backbone", sorted({row["backbone"] for row in POSITIONS}))
def test_adapted_blocks_and_parameter_counts_equal_the_references(backbone):
    with torch.device("meta"):
        model = open_clip.CLIP(**open_clip.get_model_config(backbone.replace("/", "-")))
    rows = [row for row in POSITIONS if row["backbone"] == backbone]
    assert len(rows) > 20
    for row in rows:
        clip = copy.deepcopy(model)
        chosen = {"text": [], "vision": []}
        adapters = nn.ModuleDict()
        for encoder, blocks in blocks_by_encoder(clip, row["encoder"], backbone).items():
            chosen[encoder] = choose_blocks(row["position"], (), len(blocks), encoder)
            adapters[encoder] = add_lora(blocks, chosen[encoder], row["params"], rank=2, alpha=1)
        if "error" in row:  # the reference's table has no such entry; by its rule there is one
            assert all(chosen[encoder] for encoder in ENCODERS[row["encoder"]])
            continue
        assert (chosen["text"], chosen["vision"]) == (row["blocks_text"], row["blocks_vision"]), row
        assert sum(isinstance(module, LoRAAttention) for module in clip.modules()) == row["n_modules"]
        assert sum(parameter.numel() for parameter in adapters.parameters()) == row["n_trainable"], row


def test_positions_partition_every_depth():
    for depth in range(3, 40):
        thirds = [choose_blocks(position, (), depth, "text") for position in ("bottom", "mid", "up")]
        halves = [choose_blocks(position, (), depth, "text") for position in ("half-bottom", "half-up")]
        for parts in (thirds, halves):
            assert list(itertools.chain(*parts)) == list(range(depth))
    assert choose_blocks("top2", (), 24, "vision") == [22, 23]
    assert choose_blocks("all", (7, 3, 3), 12, "text") == [3, 7]


@pytest.mark.parametrize(
    ("position", "numbers", "message"),
    [
        ("top13", (), "'top13' is out of range: the text encoder has 12 blocks; use 'all', or 'top1' to 'top12'"),
        ("top0", (), "unknown LoRA position 'top0'"),
        ("half_up", (), "half-up"),
        ("all", (3, 12), "block 12 is out of range: the text encoder has blocks 0 to 11"),
        ("all", (-1,), "block -1 is out of range"),
    ],
)
def test_unknown_position_is_named(position, numbers, message):
    with pytest.raises(UserError) as caught:
        choose_blocks(position, numbers, 12, "text")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_position_that_selects_no_block_of_a_shallow_encoder_is_an_error():
    with pytest.raises(UserError, match="has 2 blocks"):
        choose_blocks("bottom", (), 2, "text")


@pytest.mark.slow
def test_resnet_is_refused_and_auto_adapts_only_its_text_encoder(golden_backbone):
    model = load_clip(str(golden_backbone("rn0"))).model
    assert adaptable_blocks(model.visual) == []
    assert list(blocks_by_encoder(model, "auto", "rn")) == ["text"]
    for wanted in ("both", "vision"):
        with pytest.raises(UserError, match="vision encoder of backbone rn"):
            blocks_by_encoder(model, wanted, "rn")
