"""LoRA in every kind of attention layer: timm's trunks, Hugging Face's text encoders, open_clip's own."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from families import FAMILIES
from torch import nn

from dassl_lite.models.lora import LoRALinear, LowRank, add_lora, blocks_by_encoder, merge_lora, without_lora
from dassl_lite.models.text_tower import TextTower
from dassl_lite.utils.errors import UserError

# Adapted layers of each encoder, text before vision; the others have two and two.
DEPTHS = {
    "ResNet": (2, 0),
    "ConvNeXt": (2, 0),
    "Swin": (2, 5),
    "MobileCLIP-B": (2, 1),
    "MobileCLIP-S": (2, 1),
    "MobileCLIP2-S": (2, 2),
    "ViTamin": (2, 2),
}
QUICK = ("SigLIP", "CLIPA")
EVERY = [*QUICK, *(family for family in FAMILIES if family not in QUICK)]
TEXTS = ["a photo of a cat.", "a photo of a golden retriever."]


@pytest.fixture
def load(family_clip: Callable[..., Any]) -> Callable[[str], Any]:
    def make(family: str) -> Any:
        clip = family_clip(family).double()
        clip.text, clip.dtype = TextTower(clip.model), torch.float64
        torch.manual_seed(0)
        for parameter in clip.model.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)
        return clip

    return make


def adapt(clip: Any, projections: str, dropout: float = 0.0) -> nn.ModuleDict:
    adapters = nn.ModuleDict()
    for encoder, blocks in blocks_by_encoder(clip.model, "auto", "tiny").items():
        adapters[encoder] = add_lora(
            blocks, range(len(blocks)), projections, rank=2, alpha=1.0, dropout=dropout
        ).double()
    for name, parameter in adapters.named_parameters():
        nn.init.normal_(parameter, std=0.5 if name.endswith("B") else 0.2)
    return adapters.eval()


def encode(clip: Any) -> dict[str, torch.Tensor]:
    images = torch.randn(3, 3, *clip.image_size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return {"text": clip.encode_text(clip.tokenize(TEXTS)), "vision": clip.encode_image(images)}


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("family", EVERY)
def test_every_projection_of_every_layer_acts_and_merges_exactly(load: Any, family: str) -> None:
    clip = load(family)
    plain = encode(clip)
    for projections in ("q", "k", "v", "o", "qkvo"):
        adapters = adapt(clip, projections)
        depths = tuple(len(adapters[encoder]) if encoder in adapters else 0 for encoder in ("text", "vision"))
        assert depths == DEPTHS.get(family, (2, 2))
        assert sum(isinstance(module, LowRank) for module in adapters.modules()) == sum(depths) * len(projections)
        changed = encode(clip)
        effects = {encoder: difference(features, plain[encoder]) for encoder, features in changed.items()}
        for encoder, effect in effects.items():
            assert (effect > 1e-10) == (encoder in adapters), (projections, encoder)
        with without_lora(adapters):
            assert all(difference(found, plain[encoder]) < 1e-12 for encoder, found in encode(clip).items())
        assert merge_lora(clip.model) == sum(depths)
        for encoder, found in encode(clip).items():
            assert difference(found, changed[encoder]) <= 1e-4 * effects[encoder]
        assert not [module for module in clip.model.modules() if isinstance(module, LowRank)]
        plain = encode(clip)


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("family", EVERY)
def test_every_pair_gets_a_gradient_and_the_model_none(load: Any, family: str) -> None:
    clip = load(family)
    clip.model.requires_grad_(False)
    adapters = adapt(clip, "qkvo", dropout=0.25).train()
    images = torch.randn(2, 3, *clip.image_size, dtype=torch.float64)
    outputs = {"text": clip.encode_text(clip.tokenize(TEXTS)), "vision": clip.encode_image(images)}
    sum(outputs[encoder].square().sum() for encoder in adapters).backward()
    for name, parameter in adapters.named_parameters():
        assert parameter.grad is not None, name
        # Queries and keys of random layers may move nothing that float64 shows.
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.any() or "k_proj" in name or "q_proj" in name, name
    assert not [name for name, own in clip.model.named_parameters() if own.grad is not None and "lora" not in name]


@pytest.mark.parametrize("adapted", ["".join(some) for n in (1, 2, 3) for some in itertools.combinations("qkv", n)])
def test_three_projections_in_one_layer_have_pairs_of_their_own(adapted: str) -> None:
    torch.manual_seed(0)
    base = nn.Linear(6, 12).double()  # three projections of width 4
    pairs = {projection: LowRank(6, 4, 2, 3.0).double() for projection in adapted}
    for pair in pairs.values():
        nn.init.normal_(pair.w_lora_B)
    x = torch.randn(5, 6, dtype=torch.float64)
    expected = base(x)
    for number, projection in enumerate("qkv"):
        if projection in pairs:
            pair = pairs[projection]
            update = 3.0 / 2**0.5 * x @ pair.w_lora_A.t() @ pair.w_lora_B.t()
            expected[:, 4 * number : 4 * number + 4] += update
    layer = LoRALinear(base, [pairs.get(projection) for projection in "qkv"], first=True)
    assert torch.allclose(layer(x), expected, atol=1e-12)
    assert torch.allclose(layer.merge()(x), expected, atol=1e-12)
    assert not hasattr(layer, "weight")


def test_dropout_acts_on_the_branch_alone(load: Any) -> None:
    clip = load("SigLIP")
    before = encode(clip)["vision"]
    adapters = adapt(clip, "qv", dropout=0.5).train()
    assert difference(encode(clip)["vision"], encode(clip)["vision"]) > 1e-6  # masks of their own
    for name, parameter in adapters.named_parameters():
        if name.endswith("B"):
            nn.init.zeros_(parameter)
    assert difference(encode(clip)["vision"], before) < 1e-12


@pytest.mark.slow
def test_an_encoder_without_attention_layers_is_reported_by_name(load: Any, caplog: Any) -> None:
    model = load("ConvNeXt").model
    with pytest.raises(UserError, match="cannot adapt the vision encoder of backbone x, which has no attention layers"):
        blocks_by_encoder(model, "both", "x")
    with caplog.at_level("INFO"):
        assert list(blocks_by_encoder(model, "auto", "x")) == ["text"]
    assert "image encoder of backbone x has no attention layers of a known kind" in caplog.text
