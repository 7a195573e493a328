"""The stand-in for CLIP on a dataset of features: looks class features up by prompts, and refuses encoders."""

from __future__ import annotations

import pytest
import torch

from dassl_lite.models.precomputed_backbone import PrecomputedBackbone
from dassl_lite.models.prompts import class_weights, fill_templates, template_means, text_features
from dassl_lite.utils import UserError

NAMES = ["red_fox", "crane", "crane"]  # two classes of one name, as ImageNet has them
TEMPLATES = ["a {}.", "art of {}."]


@pytest.fixture
def backbone() -> PrecomputedBackbone:
    torch.manual_seed(0)
    prompts = [[template.format(name) for name in NAMES] for template in TEMPLATES]
    return PrecomputedBackbone(torch.randn(2, 3, 5).half(), prompts, 100.0, method="CoOp", source="dataset Features")


def test_each_class_and_template_gets_its_own_feature(backbone):
    table = backbone.text_features
    assert table.dtype == torch.float32
    features = text_features(backbone, fill_templates(NAMES, ["art of {}.", "a {}."]))
    assert torch.equal(features.view(3, 2, 5), table.flip(0).transpose(0, 1))
    assert torch.equal(template_means(backbone, NAMES, TEMPLATES), table.mean(dim=0))  # class names verbatim
    unit = torch.nn.functional.normalize(table, dim=-1)
    expected = torch.nn.functional.normalize(unit.mean(dim=0), dim=-1)
    assert torch.allclose(class_weights(backbone, NAMES, TEMPLATES), expected, atol=1e-6)


def test_scale_is_the_given_one(backbone):
    assert backbone.logit_scale.exp().item() == pytest.approx(100.0, rel=1e-6)
    assert not backbone.logit_scale.requires_grad
    assert backbone.embed_dim == 5


@pytest.mark.parametrize("texts", [["a photo of a red fox."] * 3, ["a crane."] * 3, ["a red fox."]])
def test_prompts_outside_the_table_are_refused(backbone, texts):
    with pytest.raises(UserError, match=r"CoOp needs the text encoder.*dataset Features holds features only") as caught:
        backbone.tokenize(texts)
    assert "'a red fox.', 'art of red fox.'" in str(caught.value)


@pytest.mark.parametrize("name", ["text", "visual", "model", "tokenizer"])
def test_encoders_are_refused(backbone, name):
    with pytest.raises(UserError, match="CoOp needs the .* encoder, but dataset Features holds features only"):
        getattr(backbone, name)
    with pytest.raises(UserError, match="needs the image encoder"):
        backbone.encode_image(torch.zeros(1, 3, 2, 2))


def test_the_bias_of_a_sigmoid_is_the_given_one_and_none_otherwise(backbone):
    assert backbone.logit_bias is None
    biased = PrecomputedBackbone(torch.ones(1, 1, 2), [["a"]], 10.0, bias=-12.5)
    assert biased.logit_bias.item() == -12.5
