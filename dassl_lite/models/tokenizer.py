"""A backbone's tokenizer: texts to token ids, with their lengths checked.

Most backbones have CLIP's own byte-pair encoding; others use a Hugging Face tokenizer, which needs the extra ``hf``.

Shapes: N texts, L tokens.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import regex
import torch
from torch import Tensor

from dassl_lite.models import published_weights
from dassl_lite.utils.errors import UserError
from dassl_lite.utils.lazy import install_line
from dassl_lite.utils.logger import get_logger

if TYPE_CHECKING:
    from open_clip import SimpleTokenizer

logger = get_logger(__name__)

CONTEXT_LENGTH = 77


class Tokenizer:
    """Texts to (N, L) token ids: `prefix_ids`, the text, `suffix_ids`, padding, `final_ids`.

    CLIP's own byte-pair encoding puts a start token before the text, an end token behind it, and zeros for padding.

    Args:
        context_length: L.
        tokenizer: an open_clip tokenizer; CLIP's own byte-pair encoding if None.
    """

    def __init__(self, context_length: int = CONTEXT_LENGTH, tokenizer: Any = None) -> None:
        self.context_length = context_length
        self._tokenizer: Any = tokenizer if tokenizer is not None else _byte_pairs()
        # Hugging Face's, in open_clip's wrapper, which cleans the text first.
        self._inner: Any = getattr(self._tokenizer, "tokenizer", None)

    def __call__(self, texts: str | Sequence[str], truncate: bool = False) -> Tensor:
        """Token ids (N, L), int64.

        Raises:
            UserError: a text does not fit and `truncate` is False; names the text.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        encoded = self._encode(texts)
        if not truncate:
            for text, ids in zip(texts, encoded, strict=True):
                self._require_room(text, len(ids))
        if self._inner is not None and texts:
            return self._tokenizer(texts, context_length=self.context_length).long()
        rows = torch.zeros(len(texts), self.context_length, dtype=torch.long)
        for row, ids in zip(rows, encoded, strict=True):
            framed = [self.start, *ids[: self.context_length - 2], self.end]
            row[: len(framed)] = torch.tensor(framed)
        return rows

    def encode(self, text: str, *, after_word: bool = False) -> list[int]:
        """The ids of a text alone, without special tokens.

        Args:
            after_word: encode the text as it follows another word and a space, which some tokenizers spell differently.
        """
        if not after_word:
            return self._encode([text])[0]
        word, both = self._encode(["a", f"a {text}"])
        return both[len(word) :] if both[: len(word)] == word else self.encode(text)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of some ids. CLIP's is in lower case and has a space after each word."""
        coder = self._tokenizer if self._inner is None else self._inner
        return coder.decode([int(i) for i in ids])

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, without special tokens."""
        if self._inner is None:
            return [self._tokenizer.encode(text) for text in texts]
        return self._ids([self._clean(text) for text in texts], special=False)

    def _ids(self, texts: list[str], special: bool) -> list[list[int]]:
        """The ids from a Hugging Face tokenizer, neither padded nor truncated."""
        return self._inner(texts, add_special_tokens=special, verbose=False)["input_ids"] if texts else []

    def _clean(self, text: str) -> str:
        """A text as cleaned by open_clip's wrapper."""
        from open_clip.tokenizer import SigLipTokenizer, basic_clean, canonicalize_text

        if isinstance(self._tokenizer, SigLipTokenizer):
            return canonicalize_text(basic_clean(text))
        return self._tokenizer.clean_fn(text)

    def _require_room(self, text: str, ids: int) -> None:
        count = len(self.prefix_ids) + ids + len(self.suffix_ids) + len(self.final_ids)
        if count > self.context_length:
            raise UserError(
                f"a text has {count} tokens where {self.context_length} fit, including start and end; "
                f"shorten it: '{text[:60]}...'"
            )

    # ---- what stands around a text -----------------------------------------------------------------------------------

    @cached_property
    def _frame(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The special tokens before and after a text."""
        if self._inner is None:
            return (self._tokenizer.sot_token_id,), (self._tokenizer.eot_token_id,)
        inner = self._inner
        if self._mode == "clips":
            return (inner.bos_token_id,), (inner.eos_token_id,)
        (text,), (framed,) = self._ids(["a"], special=False), self._ids(["a"], special=True)
        first = next((i for i in range(len(framed)) if framed[i : i + len(text)] == text), None)
        if first is None:
            raise UserError("this backbone's tokenizer changes the text when it adds special tokens")
        before, behind = framed[:first], framed[first + len(text) :]
        if getattr(self._tokenizer, "strip_sep_token", False):
            before, behind = ([0 if i == inner.sep_token_id else i for i in ids] for ids in (before, behind))
        return tuple(before), tuple(behind)

    @property
    def _mode(self) -> str:
        return getattr(self._tokenizer, "tokenizer_mode", "")

    @property
    def prefix_ids(self) -> tuple[int, ...]:
        """The special tokens before a text; none for SigLIP."""
        return self._frame[0]

    @property
    def suffix_ids(self) -> tuple[int, ...]:
        """The special tokens directly after a text."""
        return self._frame[1]

    @property
    def final_ids(self) -> tuple[int, ...]:
        """The special tokens at the end of a row, behind the padding; most tokenizers have none."""
        return (self._inner.cls_token_id,) if self._mode == "clips" else ()

    @property
    def pad_id(self) -> int:
        """The id that fills a row."""
        return 0 if self._inner is None else self._inner.pad_token_id

    def row(self, ids: Sequence[int]) -> list[int]:
        """The L ids of a text's row, given the text's own: with special tokens and padding.

        Raises:
            UserError: they do not fit.
        """
        self._require_room(self.decode(ids), len(ids))
        framed = [*self.prefix_ids, *ids, *self.suffix_ids]
        return [*framed, *[self.pad_id] * (self.context_length - len(framed) - len(self.final_ids)), *self.final_ids]

    @property
    def start(self) -> int:
        """Id of the start token. Raises UserError if the backbone has none."""
        if not self.prefix_ids:
            raise UserError("this backbone's tokenizer has no start token")
        return self.prefix_ids[0]

    @property
    def end(self) -> int:
        """Id of the end token. Raises UserError if the backbone has none."""
        if not self.suffix_ids:
            raise UserError("this backbone's tokenizer has no end token")
        return self.suffix_ids[-1]


class _StandIn:
    """CLIP's byte pairs with their ids folded into another vocabulary: words differ, and mean nothing.

    Args:
        text: open_clip's description of the text encoder that reads them.
    """

    def __init__(self, text: Mapping[str, Any]) -> None:
        vocabulary = int(text.get("vocab_size", 49408))
        self._words = vocabulary - 3  # besides padding, start and end
        self.sot_token_id = vocabulary - 2
        self.eot_token_id = int(text.get("eos_id", 2)) if text.get("pool_type") == "eos" else vocabulary - 1

    def encode(self, text: str) -> list[int]:
        return [1 + number % self._words for number in _byte_pairs().encode(text)]

    def decode(self, ids: list[int]) -> str:
        return _byte_pairs().decode([number - 1 for number in ids if 0 < number <= self._words])


def tokenizer_of(text: Mapping[str, Any], architecture: str, backbone: str, folder: str = "") -> Tokenizer:
    """The tokenizer that belongs to a text encoder of open_clip's.

    Args:
        text: its description, open_clip's `text_cfg`.
        architecture: name of a built-in architecture, or "".
        backbone: name of the model, for messages.
        folder: folder with a Hugging Face tokenizer's files, used instead of the repository that the description names.

    Raises:
        UserError: the tokenizer is unavailable, or transformers is not installed.
    """
    import open_clip
    from open_clip.tokenizer import HFTokenizer

    name = folder or text.get("hf_tokenizer_name") or ""
    length = int(text.get("context_length", CONTEXT_LENGTH))
    if not name and "siglip" not in architecture.lower():
        return Tokenizer(length, _open_clips(**_plain(text)))
    _require_transformers(backbone, "tokenizer")
    problem = f"no tokenizer for backbone '{backbone}'"
    if name:
        _require_reachable(name, "tokenizer_config.json", problem)
    try:
        if not name:
            return Tokenizer(length, open_clip.get_tokenizer(architecture))
        more = {**(text.get("tokenizer_kwargs") or {}), "trust_remote_code": False}
        mode = text.get("tokenizer_mode")
        return Tokenizer(length, HFTokenizer(name, context_length=length, tokenizer_mode=mode, **more))
    except Exception as error:  # whatever tokenizers raises for an invalid file
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        missing = isinstance(error, ImportError) or "sentencepiece" in reason
        raise UserError(f"{problem}: {reason}{f'; {_REMEDY}' if missing else ''}") from error


def require_text_encoder(text: Mapping[str, Any], backbone: str) -> None:
    """Raise UserError if a text encoder is one of Hugging Face's whose library or description is unavailable.

    Args:
        text, backbone: as for `tokenizer_of`.
    """
    if name := text.get("hf_model_name"):
        _require_transformers(backbone, "text encoder")
        _require_reachable(name, "config.json", f"no text encoder for backbone '{backbone}'")


def _require_reachable(name: str, filename: str, problem: str) -> None:
    """Fail fast for a repository that is neither here nor reachable; transformers would keep retrying."""
    if Path(name).is_dir():
        return
    try:
        published_weights.check_hub(name, filename)
    except UserError as error:
        raise UserError(f"{problem}: {error}") from error


def tokenizer_of_random(text: Mapping[str, Any], architecture: str, backbone: str) -> Tokenizer:
    """As `tokenizer_of`, for random weights: if the tokenizer is unavailable, ids as meaningless as the weights."""
    try:
        return tokenizer_of(text, architecture, backbone)
    except UserError as error:
        logger.warning(f"{error}. Ids that stand for nothing take its place, as the weights do")
        return Tokenizer(int(text.get("context_length", CONTEXT_LENGTH)), _StandIn(text))


def is_clips_own(vocabulary: object) -> bool:
    """Whether a dictionary from words to ids is OpenAI's vocabulary of byte pairs."""
    return vocabulary == _byte_pairs().encoder


_REMEDY = install_line("hf")


def _require_transformers(backbone: str, part: str) -> None:
    if importlib.util.find_spec("transformers") is None:
        raise UserError(f"backbone '{backbone}' has a {part} of Hugging Face's, which needs transformers: {_REMEDY}")


def _plain(text: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of open_clip's own tokenizer; masks of words, for training, do not count."""
    given = text.get("tokenizer_kwargs") or {}
    return {key: given[key] for key in ("clean",) if key in given}


@lru_cache(maxsize=4)
def _open_clips(**settings: Any) -> SimpleTokenizer:
    from open_clip import SimpleTokenizer

    return SimpleTokenizer(**settings)


@lru_cache(maxsize=1)
def _byte_pairs() -> SimpleTokenizer:
    """OpenAI's tokenizer, made from open_clip's: they differ in how a text spells the special tokens.

    Cached, because reading the merges takes a third of a second.
    """
    from open_clip import SimpleTokenizer

    tokenizer = SimpleTokenizer()
    pattern = tokenizer.pat.pattern
    tokenizer.cache = {}
    for number, name in ((tokenizer.sot_token_id, "<|startoftext|>"), (tokenizer.eot_token_id, "<|endoftext|>")):
        theirs = tokenizer.decoder[number]
        pattern = pattern.replace(theirs, regex.escape(name))
        del tokenizer.encoder[theirs]
        tokenizer.encoder[name], tokenizer.decoder[number], tokenizer.cache[name] = number, name, name
    tokenizer.pat = regex.compile(pattern, regex.IGNORECASE)
    return tokenizer
