"""Tokenizers: CLIP's own, and Hugging Face's made and saved here, without a download."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from open_clip.tokenizer import HFTokenizer

from dassl_lite.models.tokenizer import Tokenizer
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
