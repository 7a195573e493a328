"""CLIP's tokenizer: texts to token ids, with their lengths checked.

Shapes: N texts, L tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any

import regex
import torch
from open_clip import SimpleTokenizer
from torch import Tensor

from dassl_lite.utils.errors import UserError

CONTEXT_LENGTH = 77


class Tokenizer:
    """Texts to (N, L) token ids: start token, the text, end token, zeros.

    Args:
        context_length: L.
        tokenizer: an open_clip tokenizer; CLIP's own byte-pair encoding if None.
    """

    def __init__(self, context_length: int = CONTEXT_LENGTH, tokenizer: Callable[..., Tensor] | None = None) -> None:
        self.context_length = context_length
        self._tokenizer: Any = tokenizer if tokenizer is not None else _byte_pairs()

    def __call__(self, texts: str | Sequence[str], truncate: bool = False) -> Tensor:
        """Token ids (N, L), int64.

        Raises:
            UserError: a text does not fit and `truncate` is False; names the text.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        if not isinstance(self._tokenizer, SimpleTokenizer):
            return self._tokenizer(texts, context_length=self.context_length)  # truncates texts that are too long
        rows = torch.zeros(len(texts), self.context_length, dtype=torch.long)
        for row, text in zip(rows, texts, strict=True):
            ids = [self.start, *self.encode(text), self.end]
            if len(ids) > self.context_length:
                if not truncate:
                    raise UserError(
                        f"a text has {len(ids)} tokens where {self.context_length} fit, including start and end; "
                        f"shorten it: '{text[:60]}...'"
                    )
                ids = [*ids[: self.context_length - 1], self.end]
            row[: len(ids)] = torch.tensor(ids)
        return rows

    def encode(self, text: str) -> list[int]:
        """The ids of a text alone, without start and end token."""
        return self._tokenizer.encode(text)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of some ids, in lower case and with a space after each word, as CLIP's decoder returns it."""
        return self._tokenizer.decode([int(i) for i in ids])

    @property
    def start(self) -> int:
        """Id of the start token."""
        return self._tokenizer.sot_token_id

    @property
    def end(self) -> int:
        """Id of the end token."""
        return self._tokenizer.eot_token_id


@lru_cache(maxsize=1)
def _byte_pairs() -> SimpleTokenizer:
    """OpenAI's tokenizer, from open_clip's: they differ in how a text spells the special tokens.

    Cached, because reading the merges takes a third of a second.
    """
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
