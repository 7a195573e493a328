"""CLIPModel: CLIP's image encoder with a linear layer, for every backbone."""

from __future__ import annotations

from typing import Any

import open_clip
import pytest
import torch

from dassl_lite.models import CLIPModel, clip_model, load_clip
from dassl_lite.models.clip import CLIPBackbone, preprocessing

WIDTHS = {
    "RN50": 1024,
    "RN101": 512,
    "RN50x4": 640,
    "RN50x16": 768,
    "RN50x64": 1024,
    "ViT-B/32": 512,
    "ViT-B/16": 512,
    "ViT-L/14": 768,
    "ViT-L/14@336px": 768,
}


@pytest.fixture
def without_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Backbones on the meta device: tensors with shapes and no values."""

    def load(name: str, precision: str = "fp32", device: str = "cpu") -> CLIPBackbone:
        architecture = name.replace("@336px", "-336").replace("/", "-")
        with torch.device("meta"):
            model = open_clip.CLIP(**open_clip.get_model_config(architecture))
        return CLIPBackbone(model.eval(), name, precision, "", preprocessing(name), None)  # type: ignore[arg-type]

    monkeypatch.setattr(clip_model, "load_clip", load)


@pytest.mark.slow
@pytest.mark.parametrize("name", WIDTHS)
def test_layer_has_the_backbones_width(without_weights: None, name: str) -> None:
    model = CLIPModel(name, num_classes=3)
    assert (model.fc.in_features, model.fc.out_features) == (WIDTHS[name], 3)
    images = torch.empty(2, 3, *model.preprocessing.size, device="meta")
    model.to("meta")
    assert model(images, return_feature=True).shape == (2, WIDTHS[name])
    assert model(images).shape == (2, 3)


@pytest.mark.slow
def test_backbone_of_real_size_gives_outputs_and_features() -> None:
    model = CLIPModel("random:RN50")
    images = torch.randn(2, 3, *model.preprocessing.size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        outputs, features = model(images), model(images, return_feature=True)
    assert features.shape == (2, 1024)
    assert torch.isfinite(features).all()
    assert torch.equal(outputs, model.fc(features))


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("backbone", ["vit0", "rn1"])
def test_outputs_are_the_layer_on_the_image_encoders_features(golden: Any, golden_backbone: Any, backbone: str) -> None:
    name = str(golden_backbone(backbone))
    model = CLIPModel(name)
    images = golden.tiny_clip.images(backbone[:-1], 5, 3)
    features = model(images, return_feature=True)
    assert torch.allclose(features, load_clip(name).encode_image(images), atol=1e-6)
    assert model(images).shape == (3, 1)
    assert torch.equal(model(images), model.fc(features))
    assert CLIPModel(name, num_classes=7)(images).shape == (3, 7)
    assert [key for key, p in model.named_parameters() if p.requires_grad] == ["fc.weight", "fc.bias"]


@pytest.mark.slow
def test_frozen_encoder_keeps_its_batch_statistics_in_training(golden: Any, golden_backbone: Any) -> None:
    model = CLIPModel(str(golden_backbone("rn1"))).train()
    before = {key: value.clone() for key, value in model.visual.state_dict().items()}
    model(golden.tiny_clip.images("rn", 5, 3)).sum().backward()
    assert all(torch.equal(value, before[key]) for key, value in model.visual.state_dict().items())
    assert model.fc.training


def test_unfrozen_encoder_gets_gradients(golden: Any, golden_backbone: Any) -> None:
    model = CLIPModel(str(golden_backbone("vit0")))
    model.visual.requires_grad_(True)
    model(golden.tiny_clip.images("vit", 5, 3)).sum().backward()
    gradient = model.visual.conv1.weight.grad
    assert gradient is not None
    assert gradient.abs().max() > 0


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_outputs_are_float32_in_every_precision(golden: Any, golden_backbone: Any, precision: str) -> None:
    name, images = str(golden_backbone("vit0")), golden.tiny_clip.images("vit", 5, 3)
    exact, rough = CLIPModel(name)(images, True), CLIPModel(name, precision=precision)(images, True)
    assert rough.dtype == torch.float32
    assert 0 < (rough - exact).abs().max() < 0.05 * exact.abs().max()


@pytest.mark.slow
def test_state_survives_saving_and_loading(golden: Any, golden_backbone: Any, tmp_path: Any) -> None:
    name, images = str(golden_backbone("vit0")), golden.tiny_clip.images("vit", 5, 3)
    model, other = CLIPModel(name), CLIPModel(name)
    assert not torch.equal(model(images), other(images))
    torch.save(model.state_dict(), tmp_path / "model.pt")
    other.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    assert torch.equal(model(images), other(images))
