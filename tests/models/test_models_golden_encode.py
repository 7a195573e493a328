"""Encoders and tokenizer against the reference's numbers (tests/golden/README.md gives the tolerances)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from dassl_lite.models.clip import CLIPBackbone, load_clip
from dassl_lite.models.tokenizer import Tokenizer
from dassl_lite.utils.errors import UserError

TAGS = ("vit0", "vit1", "rn0", "rn1")
FORWARD = 1e-5  # relative to the largest magnitude in the array


def assert_close(ours: torch.Tensor, golden: np.ndarray, tolerance: float = FORWARD) -> None:
    assert tuple(ours.shape) == golden.shape
    assert np.abs(ours.detach().numpy() - golden).max() <= tolerance * np.abs(golden).max()


@pytest.fixture(scope="module", params=TAGS)
def tagged(request: Any, golden_backbone: Any) -> tuple[str, CLIPBackbone]:
    return request.param, load_clip(str(golden_backbone(request.param)))


@pytest.fixture
def inputs(tagged: tuple[str, CLIPBackbone], golden: Any) -> tuple[torch.Tensor, torch.Tensor]:
    tag, _ = tagged
    drawn = golden.json("clip_encode")["images"]
    images = golden.tiny_clip.images(tag.rstrip("01"), drawn["seed"], drawn["n"])
    return images, torch.from_numpy(golden.npz("clip_encode")["token_ids"]).long()


@pytest.mark.slow
def test_generated_weights_are_those_of_the_reference(golden: Any) -> None:
    for model in golden.json("clip_encode")["models"].values():
        state = golden.tiny_clip.state_dict(model["kind"], model["seed"], model["scale"])
        for name, (shape, total, absolute) in model["fingerprint"].items():
            assert list(state[name].shape) == shape
            assert state[name].double().sum().item() == pytest.approx(total, rel=1e-6, abs=1e-6)
            assert state[name].double().abs().sum().item() == pytest.approx(absolute, rel=1e-6)


@pytest.mark.slow_after(1)
def test_image_features_equal_the_references(tagged: Any, inputs: Any, golden: Any) -> None:
    tag, clip = tagged
    assert_close(clip.encode_image(inputs[0]), golden.npz("clip_encode")[f"{tag}.image"])


def test_text_features_equal_the_references(tagged: Any, inputs: Any, golden: Any) -> None:
    tag, clip = tagged
    assert_close(clip.encode_text(inputs[1]), golden.npz("clip_encode")[f"{tag}.text"])


def test_logits_equal_the_references(tagged: Any, inputs: Any, golden: Any) -> None:
    tag, clip = tagged
    assert_close(clip(*inputs), golden.npz("clip_encode")[f"{tag}.logits_per_image"])


def test_architecture_inferred_from_the_weights_equals_the_references(tagged: Any, golden: Any) -> None:
    tag, clip = tagged
    expected = golden.json("clip_encode")["models"][tag]
    assert clip.image_size == (expected["input_resolution"],) * 2
    assert sum(p.numel() for p in clip.parameters()) == expected["n_params"]
    assert clip.logit_scale.exp().item() == pytest.approx(expected["logit_scale_exp"], rel=1e-6)


def test_texts_give_the_references_token_ids(golden: Any) -> None:
    texts = golden.json("clip_encode")["texts"]
    ids = Tokenizer()(texts, truncate=True)
    assert np.array_equal(ids.numpy(), golden.npz("clip_encode")["token_ids"])


def _padded(ids: list[int], length: int) -> list[int]:
    return ids + [0] * (length - len(ids))


def test_tokenizer_equals_the_references_on_every_text(golden: Any) -> None:
    tokenizer = Tokenizer()
    for item in golden.json("tokenizer")["items"]:
        ids = tokenizer([item["text"]], truncate=True)[0]
        assert ids.tolist() == _padded(item["ids"], 77), item["text"]
        assert int(ids.argmax()) == item["first_eot"]
        assert len(tokenizer.encode(item["text"])) + 2 == item["raw_length"]


def test_tokenizer_refuses_exactly_the_texts_that_are_too_long(golden: Any) -> None:
    items = golden.json("tokenizer")["items"]
    assert any(item["too_long"] for item in items)
    for item in items:
        if item["too_long"]:
            with pytest.raises(UserError, match="tokens where 77 fit"):
                Tokenizer()([item["text"]])
        else:
            Tokenizer()([item["text"]])


def test_other_context_lengths_equal_the_references(golden: Any) -> None:
    for item in golden.json("tokenizer")["custom_context"]:
        ids = Tokenizer(item["context_length"])([item["text"]], truncate=True)[0]
        assert ids.tolist() == _padded(item["ids"], item["context_length"]), item["text"]


def test_decoding_equals_the_references(golden: Any) -> None:
    for item in golden.json("tokenizer")["decode"]:
        assert Tokenizer().decode(item["ids"]) == item["text"]
