"""Text features are encoded once per backbone and text, and cached separately."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dassl_lite.models.clip import load_clip
from dassl_lite.models.prompts import (
    class_weights,
    fill_templates,
    load_text_projection,
    template_means,
    text_features,
    text_states,
)
from dassl_lite.utils import UserError


@pytest.fixture(scope="module")
def clip(golden_backbone: Any) -> Any:
    return load_clip(str(golden_backbone("vit0")))


def test_prompts_are_ordered_by_class_and_keep_underscores_on_request() -> None:
    assert fill_templates(["a_b", "c"], ["x {}.", "{}"]) == ["x a b.", "a b", "x c.", "c"]
    assert fill_templates(["a_b"], ["{}!"], replace_underscore=False) == ["a_b!"]


def test_features_are_computed_once_and_read_back_bit_for_bit(clip: Any, tmp_path: Path, monkeypatch: Any) -> None:
    first = text_features(clip, ["a cat", "a dog"], tmp_path)
    monkeypatch.setattr(clip.text, "encode_tokens", lambda *a, **k: pytest.fail("encoded again"))
    assert torch.equal(text_features(clip, ["a cat", "a dog"], tmp_path), first)


def test_other_texts_weights_and_precisions_are_separate_entries(
    clip: Any, golden_backbone: Any, tmp_path: Path
) -> None:
    text_features(clip, ["a cat"], tmp_path)
    text_features(clip, ["a dog"], tmp_path)
    text_features(load_clip(str(golden_backbone("vit1"))), ["a cat"], tmp_path)
    text_features(load_clip(str(golden_backbone("vit0")), precision="bf16"), ["a cat"], tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) == 4


def test_truncated_entry_is_computed_again(clip: Any, tmp_path: Path) -> None:
    first = text_features(clip, ["a cat"], tmp_path)
    path = next(tmp_path.glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:30])
    assert torch.equal(text_features(clip, ["a cat"], tmp_path), first)


def test_unwritable_cache_is_only_a_warning(clip: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    features = text_features(clip, ["a cat"], tmp_path / "file" / "cache")
    assert features.shape == (1, clip.embed_dim)
    assert "text features are not cached" in caplog.text


def test_class_weights_have_length_one_and_the_base_is_the_plain_mean(clip: Any) -> None:
    templates = ["a {}.", "the {}."]
    assert torch.allclose(class_weights(clip, ["cat", "dog"], templates).norm(dim=-1), torch.ones(2), atol=1e-6)
    base = template_means(clip, ["cat", "dog"], templates)
    single = [template_means(clip, ["cat", "dog"], [template]) for template in templates]
    assert torch.allclose(base, (single[0] + single[1]) / 2, atol=1e-6)


def test_enhanced_base_for_another_backbone_is_refused(clip: Any, tmp_path: Path) -> None:
    path = tmp_path / "projection.tar"
    torch.save({"state_dict": {"weight": torch.zeros(3, 4)}}, path)
    with pytest.raises(UserError, match=r"shape \(3, 4\), but backbone .* needs \(32, 64\)"):
        load_text_projection(path, clip)
    torch.save({"state_dict": {"bias": torch.zeros(3)}}, path)
    with pytest.raises(UserError, match="contains no state_dict.weight"):
        load_text_projection(path, clip)


def test_texts_are_encoded_in_parts_when_memory_is_full(
    clip: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    texts = [f"a photo of {number}" for number in range(7)]
    whole, states = text_features(clip, texts), text_states(clip, texts)
    encode = clip.text.encode_tokens

    def small(tokens: torch.Tensor, **options: Any) -> torch.Tensor:
        if len(tokens) > 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return encode(tokens, **options)

    monkeypatch.setattr(clip.text, "encode_tokens", small)
    torch.testing.assert_close(text_features(clip, texts), whole)
    torch.testing.assert_close(text_states(clip, texts), states)
    assert "Out of memory while encoding texts: continuing with 1 at a time" in caplog.text
