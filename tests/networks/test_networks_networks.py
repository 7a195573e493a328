"""Backbones and heads: found by name, equal to torchvision's, helpful when weights cannot be had."""

from __future__ import annotations

import logging
from urllib.error import URLError

import pytest
import torch
import torchvision
from torch import nn

from dassl_lite.networks import (
    BACKBONE_REGISTRY,
    NETWORK_REGISTRY,
    build_backbone,
    build_head,
    build_network,
    ops,
)
from dassl_lite.utils.errors import UserError


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "resnet18_ms_l12", "resnet18_efdmix_l123"])
def test_a_resnet_is_torchvisions_without_its_classifier(name: str) -> None:
    reference = torchvision.models.resnet18(weights=None).eval()
    backbone = build_backbone(name, verbose=False, pretrained=False).eval()
    backbone.load_state_dict({k: v for k, v in reference.state_dict().items() if not k.startswith("fc.")})
    reference.fc = nn.Identity()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(backbone(images), reference(images))
    assert backbone.out_features == 512
    assert backbone.featuremaps(images).shape == (2, 512, 2, 2)


def test_a_backbone_is_found_by_dassls_name() -> None:
    """The names in its package's list; not ours: wide, pre-activated and digit networks, and the dynamic ones."""
    mixed = [
        f"{net}_{kind}_l{layers}"
        for net in ("resnet18", "resnet50", "resnet101")
        for kind in ("ms", "efdmix")
        for layers in ("1", "12", "123")
    ]
    names = [*mixed, "resnet18_ms123", "resnet50_ms123", "vgg16", "alexnet", "mobilenetv2", "cnn_digitsdg"]
    names += [f"resnet{depth}" for depth in (18, 34, 50, 101, 152)] + [f"efficientnet_b{i}" for i in range(8)]
    assert set(names) - set(BACKBONE_REGISTRY) == set()


def test_the_mixed_stages_are_those_in_the_name() -> None:
    backbone = build_backbone("resnet18_ms_l12", verbose=False, pretrained=False)
    seen = []
    backbone.mixer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1]))
    backbone(torch.randn(2, 3, 64, 64))
    assert seen == [64, 128]
    assert isinstance(backbone.mixer, ops.MixStyle)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "width"), [("resnet50", 2048), ("mobilenetv2", 1280), ("shufflenet_v2_x0_5", 1024)])
def test_features_have_the_width_that_the_backbone_states(name: str, width: int) -> None:
    backbone = build_backbone(name, verbose=False, pretrained=False).eval()
    assert backbone.out_features == width
    with torch.no_grad():
        assert backbone(torch.randn(1, 3, 64, 64)).shape == (1, width)


@pytest.mark.slow
def test_pretrained_weights_reach_the_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = torchvision.models.resnet18(weights=None).state_dict()
    kind = torchvision.models.ResNet18_Weights
    monkeypatch.setattr(kind, "get_state_dict", lambda self, **kwargs: weights)
    backbone = build_backbone("resnet18", verbose=False)
    assert torch.equal(backbone.layer4[1].conv2.weight, weights["layer4.1.conv2.weight"])


def test_weights_that_cannot_be_fetched_say_where_they_belong(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(self: object, **kwargs: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr(torchvision.models.ResNet18_Weights, "get_state_dict", offline)
    with pytest.raises(UserError, match=r"checkpoints/resnet18-.*save https://.*MODEL\.BACKBONE\.PRETRAINED") as caught:
        build_backbone("resnet18", verbose=False)
    assert "\n" not in str(caught.value)


def test_the_digit_network_refuses_other_sizes() -> None:
    backbone = build_backbone("cnn_digitsdg", verbose=False, pretrained=True)
    assert backbone(torch.randn(2, 3, 32, 32)).shape == (2, backbone.out_features)
    with pytest.raises(ValueError, match="32 x 32 pixels"):
        backbone(torch.randn(2, 3, 64, 64))


def test_the_head_is_built_from_its_widths() -> None:
    head = build_head(
        "mlp", verbose=False, in_features=8, hidden_layers=(6, 4), activation="leaky_relu", bn=True, dropout=0.1
    )
    kinds = [type(layer).__name__ for layer in head.mlp]
    assert kinds == ["Linear", "BatchNorm1d", "LeakyReLU", "Dropout"] * 2
    assert head(torch.randn(3, 8)).shape == (3, 4)
    assert head.out_features == 4
    assert [type(layer).__name__ for layer in build_head("mlp", hidden_layers=5, bn=False).mlp] == ["Linear", "ReLU"]


def test_wrong_heads_are_named() -> None:
    with pytest.raises(UserError, match="HIDDEN_LAYERS is empty"):
        build_head("mlp")
    with pytest.raises(UserError, match="leaky_relu, relu"):
        build_head("mlp", hidden_layers=(4,), activation="gelu")


def test_building_logs_the_name_and_a_wrong_one_lists_the_nearest(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        build_backbone("cnn_digitsdg")
    assert caplog.messages == ["Backbone: cnn_digitsdg"]
    with pytest.raises(UserError, match=r"unknown backbone 'resnet81'\. Did you mean 'resnet18'"):
        build_backbone("resnet81")


def test_a_plugin_registers_a_backbone_and_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    for registry in (BACKBONE_REGISTRY, NETWORK_REGISTRY):
        monkeypatch.setattr(registry, "_table", dict(registry._table))

    def flat(width: int, **kwargs: object) -> nn.Module:
        return nn.Flatten(width)

    BACKBONE_REGISTRY.register(flat)
    NETWORK_REGISTRY.register(flat)
    assert isinstance(build_backbone("flat", width=1), nn.Flatten)
    assert isinstance(build_network("flat", width=1), nn.Flatten)


def test_every_registered_backbone_says_what_it_is() -> None:
    for name in BACKBONE_REGISTRY:
        build = BACKBONE_REGISTRY.get(name)
        assert (build.__name__, build.__qualname__) == (name, name)
        assert build.__doc__
