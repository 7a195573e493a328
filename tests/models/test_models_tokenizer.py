"""Tokenizers: CLIP's own, and Hugging Face's made and saved here, without a download."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from open_clip.tokenizer import HFTokenizer

from dassl_lite.downloads.fetch import DownloadError
from dassl_lite.models import published_weights
from dassl_lite.models.clip import load_clip
from dassl_lite.models.prompt_learner import PromptLearner, lay_out
from dassl_lite.models.tokenizer import Tokenizer, tokenizer_of, tokenizer_of_random
from dassl_lite.utils.errors import UserError

WORDS = ["<pad>", "<s>", "</s>", "[UNK]", "<cls>", "a", "photo", "of", "cat", "dog", "."]
TEXTS = ["a photo of a cat.", "dog", ""]
# What stands around a text: as in roberta, BERT, T5 (SigLIP), where the padding is the end token, and CLIPS.
FRAMES: dict[str, tuple[str, dict[str, Any]]] = {
    "start and end": ("<s> $A </s>", {}),
    "end stripped": ("<cls> $A </s>", {"strip_sep_token": True}),
    "end only": ("$A </s>", {}),
    "end is padding": ("$A <pad>", {}),
    "clips": ("$A", {"tokenizer_mode": "clips"}),
}


def save_tokenizer(folder: Path, frame: str = "<s> $A </s>") -> Path:
    """Save a tokenizer of whole words in the files of transformers."""
    tokenizers, transformers = pytest.importorskip("tokenizers"), pytest.importorskip("transformers")
    ids = {word: number for number, word in enumerate(WORDS)}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token="[UNK]"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    special = [(word, ids[word]) for word in frame.split() if word in ids]
    words.post_processor = tokenizers.processors.TemplateProcessing(single=frame, special_tokens=special)
    names = {"bos_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "pad_token": "<pad>", "cls_token": "<cls>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", **names).save_pretrained(folder)
    return folder


@pytest.fixture(params=FRAMES)
def hugging_face(request: Any, tmp_path: Path) -> Any:
    """open_clip's wrapper of a tokenizer of each kind."""
    frame, settings = FRAMES[request.param]
    return HFTokenizer(str(save_tokenizer(tmp_path, frame)), context_length=9, **settings)


def test_rows_are_open_clips_own(hugging_face: Any) -> None:
    assert torch.equal(Tokenizer(9, hugging_face)(TEXTS), hugging_face(TEXTS))


def test_a_row_is_made_of_the_text_and_what_stands_around_it(hugging_face: Any) -> None:
    tokenizer = Tokenizer(9, hugging_face)
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert [WORDS[i] for i in ids] == text.replace(".", " .").split()
        assert tokenizer.row(ids) == hugging_face([text])[0].tolist()


def test_a_text_that_does_not_fit_is_named_and_truncated_only_on_request(hugging_face: Any) -> None:
    tokenizer = Tokenizer(9, hugging_face)
    room = 9 - sum(map(len, (tokenizer.prefix_ids, tokenizer.suffix_ids, tokenizer.final_ids)))
    assert tokenizer("cat " * room).shape == (1, 9)
    with pytest.raises(UserError, match="a text has 10 tokens where 9 fit.*cat cat"):
        tokenizer("cat " * (room + 1))
    assert torch.equal(tokenizer("cat " * 20, truncate=True), hugging_face("cat " * 20))


def test_clips_own_rows_are_made_the_same_way() -> None:
    tokenizer = Tokenizer()
    ids = tokenizer.encode("a photo of a cat.")
    assert tokenizer.row(ids) == tokenizer("a photo of a cat.")[0].tolist()
    assert (tokenizer.prefix_ids, tokenizer.suffix_ids, tokenizer.pad_id) == ((49406,), (49407,), 0)
    assert tokenizer.encode("cat.", after_word=True) == ids[-2:]
    assert tokenizer([]).shape == (0, 77)


def test_a_word_behind_another_is_encoded_as_it_is_written_there(tmp_path: Path) -> None:
    tokenizers, transformers = pytest.importorskip("tokenizers"), pytest.importorskip("transformers")
    bytes_ = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token=None))
    bytes_.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=300, special_tokens=["<pad>"], show_progress=False)
    bytes_.train_from_iterator(["a cat", "the cat"] * 9, trainer)
    transformers.PreTrainedTokenizerFast(tokenizer_object=bytes_, pad_token="<pad>").save_pretrained(tmp_path)
    tokenizer = Tokenizer(9, HFTokenizer(str(tmp_path), context_length=9))
    assert tokenizer.encode("a") + tokenizer.encode("cat", after_word=True) == tokenizer.encode("a cat")
    assert tokenizer.encode("cat") != tokenizer.encode("cat", after_word=True)


# --- which tokenizer a backbone has ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["ViT-B-16-SigLIP:webli", "ViT-L-14-CLIPA:datacomp1b", "roberta-ViT-B-32:laion2b_s12b_b32k"]
)
def test_a_backbone_that_needs_transformers_names_the_extra(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r'needs transformers: pip install "dassl-lite\[hf\]"$') as caught:
        load_clip(name)
    assert name in str(caught.value)


def unreachable(url: str, patience: Any) -> None:
    raise DownloadError(url, "Network is unreachable")


@pytest.mark.parametrize("name", ["ViT-B-16-SigLIP:webli", "roberta-ViT-B-32:laion2b_s12b_b32k"])
def test_an_unavailable_tokenizer_is_reported_at_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    monkeypatch.setattr(published_weights, "try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr(published_weights, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(published_weights, "check_reachable", unreachable)
    with pytest.raises(
        UserError, match=r"config\.json gives nothing \(Network is unreachable\); download it elsewhere"
    ):
        load_clip(name)


def test_meaningless_token_ids_fit_the_text_encoder(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(published_weights, "check_hub", unavailable)
    for text in (
        {"hf_tokenizer_name": "org/words", "vocab_size": 100, "context_length": 12},
        {"hf_tokenizer_name": "org/words", "vocab_size": 100, "context_length": 12, "pool_type": "eos", "eos_id": 2},
    ):
        tokenizer = tokenizer_of_random(text, "", "random:SigLIP")
        rows = tokenizer(["a photo of a cat.", "two dogs"])
        assert rows.shape == (2, 12)
        assert 0 <= int(rows.min()) <= int(rows.max()) < 100
        assert tokenizer.end == (2 if "eos_id" in text else 99)
        assert not torch.equal(rows[0], rows[1])
    assert "Ids that stand for nothing" in caplog.text


def unavailable(repository: str, filename: str) -> None:
    raise UserError(f"{repository} is nowhere")


def test_a_causal_text_encoder_with_a_hugging_face_tokenizer_learns_prompts(family_clip: Any) -> None:
    clip = family_clip("MetaCLIP2")
    assert clip.text.is_causal
    learner = PromptLearner(clip, lay_out(clip, ["cat", "golden retriever"], 0, "a photo of a"))
    expected = clip.encode_text(clip.tokenize(["a photo of a cat.", "a photo of a golden retriever."]))
    assert torch.allclose(learner.class_prototypes(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"version": "1.0"}', b'{"model": {"type": "BPE", "vocab": 3}}']
)
def test_a_broken_tokenizer_is_one_line(content: bytes, tmp_path: Path) -> None:
    save_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(UserError, match="no tokenizer for backbone 'mine'") as caught:
        tokenizer_of({}, "", "mine", str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_tokenizers_own_code_is_not_run(tmp_path: Path) -> None:
    save_tokenizer(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config |= {"auto_map": {"AutoTokenizer": ["mine.Mine", "mine.Mine"]}, "tokenizer_class": "Mine"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "mine.py").write_text(f"open({str(tmp_path / 'was-run')!r}, 'w')\nclass Mine: pass\n")
    with contextlib.suppress(UserError):
        tokenizer_of({}, "", "mine", str(tmp_path))
    assert not (tmp_path / "was-run").exists()
