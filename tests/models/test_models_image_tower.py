"""The frozen image encoder: the model's own features up to rounding, and its own code wherever that could differ."""

from __future__ import annotations

from typing import Any

import open_clip
import pytest
import torch
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from dassl_lite.models import image_tower, load_clip
from dassl_lite.models.image_tower import ImageTower, is_plain

VIT = {"image_size": 32, "layers": 3, "width": 64, "head_width": 32, "patch_size": 8}
TEXT = {"context_length": 8, "vocab_size": 50, "width": 32, "heads": 2, "layers": 1}


def model_of(vision: dict[str, Any] = VIT, seed: int = 0, **options: Any) -> open_clip.CLIP:
    torch.manual_seed(seed)
    model = open_clip.CLIP(24, dict(vision), dict(TEXT), **options).eval()
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model


def images(count: int = 7) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def close(found: Tensor, wanted: Tensor, bound: float = 1e-6) -> bool:
    return bool((found - wanted).abs().max() <= bound * wanted.abs().max() * 10)


@pytest.mark.parametrize("quick_gelu", [False, True])
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"ls_init_value": 0.3},
        {"no_ln_pre": True},
        {"final_ln_after_pool": True},
        {"mlp_ratio": 2.0},
        {"layers": 1},
        {"pos_embed_type": "sin_cos_2d"},
    ],
)
def test_features_are_the_model_s(more: dict[str, Any], quick_gelu: bool) -> None:
    model = model_of({**VIT, **more}, quick_gelu=quick_gelu)
    assert is_plain(model.visual)
    with torch.no_grad():
        assert close(ImageTower(model).encode(images()), model.encode_image(images()))


RESNET: dict[str, Any] = {"image_size": 32, "layers": [1, 2, 1, 1], "width": 16, "patch_size": None}


def test_a_resnet_s_features_are_the_model_s() -> None:
    model = model_of(RESNET)
    for name, buffer in model.visual.named_buffers():
        if "running" in name:
            buffer += 0.3 * torch.rand(buffer.shape)
    assert is_plain(model.visual)
    with torch.no_grad():
        assert close(ImageTower(model).encode(images()), model.encode_image(images()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mixed", [False, True])
def test_features_in_half_precision_differ_by_its_rounding(dtype: torch.dtype, mixed: bool) -> None:
    model = model_of(quick_gelu=True)
    with torch.no_grad():
        wanted = model.encode_image(images())
        if not mixed:
            model = model.to(dtype)
        with torch.autocast("cpu", dtype, enabled=mixed):
            inputs = images() if mixed else images().to(dtype)
            found, own = ImageTower(model).encode(inputs), model.encode_image(inputs)
    assert found.dtype == own.dtype
    assert (found.float() - wanted).norm() <= 1.5 * (own.float() - wanted).norm()


@pytest.mark.parametrize("vision", [VIT, RESNET])
def test_a_cpu_encodes_a_few_images_at_a_time(vision: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(vision)
    seen: list[int] = []
    model.visual.conv1.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    monkeypatch.setattr(image_tower, "_CPU_BYTES", 3 * 4 * (17 * 256 if vision is VIT else 16 * 16 * 16))
    with torch.no_grad():
        found = ImageTower(model).encode(images())
        assert seen == [3, 3, 1]
        assert close(found, model.encode_image(images()))


@pytest.mark.parametrize(("width", "layers", "most"), [(768, 1, 32), (1024, 1, 5)])
def test_the_largest_tensor_of_a_layer_stays_below_what_the_system_takes_back(
    width: int, layers: int, most: int
) -> None:
    size, patch = (224, 32) if width == 768 else (224, 14)
    with torch.device("meta"):
        visual = VisionTransformer(size, patch, width, layers, width // 64, 4.0)
        inputs = torch.empty(1, 3, size, size)
    count = image_tower._images_at_a_time(visual, inputs)
    assert 0.6 * most <= count <= 34
    assert count * (1 + (size // patch) ** 2) * 4 * width * 4 <= 20 << 20


def test_gradients_come_from_the_model_s_own_code(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of()
    monkeypatch.setattr(image_tower, "_encode", lambda *_: pytest.fail("without gradients"))
    ImageTower(model).encode(images()).sum().backward()
    assert model.visual.conv1.weight.grad is not None


def test_a_hooked_resnet_runs_its_own_code() -> None:
    model = model_of(RESNET)
    model.visual.attnpool.register_forward_hook(lambda module, inputs, output: output * 2)
    assert not is_plain(model.visual)


def hooked(model: Any) -> None:
    model.visual.ln_post.register_forward_hook(lambda module, inputs, output: output * 2)


def in_training(model: Any) -> None:
    model.train()


def replaced_forward(model: Any) -> None:
    model.visual.forward = lambda x: torch.ones(len(x), 24)


def replaced_encode(model: Any) -> None:
    model.encode_image = lambda x: torch.ones(len(x), 24)


class Doubled(nn.Module):
    def forward(self, x: Tensor, attn_mask: Any = None) -> Tensor:
        return 2 * x


def replaced_block(model: Any) -> None:
    model.visual.transformer.resblocks[0] = Doubled()


def averaging(model: Any) -> None:
    model.visual.pool_type = "avg"


@pytest.mark.parametrize("change", [hooked, in_training, replaced_forward, replaced_encode, replaced_block, averaging])
def test_a_changed_encoder_runs_its_own_code(change: Any) -> None:
    model = model_of()
    change(model)
    with torch.no_grad():
        assert torch.equal(ImageTower(model).encode(images()), model.encode_image(images()))


def test_replaced_weights_take_effect_at_once() -> None:
    model, other = model_of(quick_gelu=True), model_of(seed=1, quick_gelu=True)
    tower = ImageTower(model)
    with torch.no_grad():
        before = tower.encode(images())
        model.load_state_dict(other.state_dict())
        assert close(tower.encode(images()), other.encode_image(images()))
        assert not close(tower.encode(images()), before)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["random:ViT-S-32-alt", "random:RN50-quickgelu", "random:ViT-B-32-quickgelu", "demo"])
def test_backbones_features_are_equal_to_a_hundred_thousandth(name: str) -> None:
    clip = load_clip(name)
    inputs = torch.randn(9, 3, *clip.image_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found, wanted = clip.encode_image(inputs), clip.model.encode_image(inputs)
    assert ((found - wanted).norm(dim=-1) / wanted.norm(dim=-1)).max() < 1e-5
    assert is_plain(clip.visual)
