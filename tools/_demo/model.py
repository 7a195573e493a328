"""The demo model and its file: OpenAI's CLIP, as small as its format allows, with embeddings of used tokens only.

The file is safetensors with OpenAI's keys in half precision. ``token_embedding.weight`` has only the rows whose ids
``token_embedding.rows`` lists: those of the words in captions. The other rows were never trained; they are numpy's
``default_rng(2021)``, normal, times 0.02. The metadata has what cannot be read from the tensors' shapes, such as head
widths.

Shapes:
    B pictures or texts, L tokens, D = 128 features.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from open_clip.model import CLIP
from open_clip.tokenizer import SimpleTokenizer
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from dassl_lite.datasets._drawn.render import PIXELS
from dassl_lite.tools._demo.captions import every_word

EMBED_DIM = 128
CONTEXT_LENGTH = 77
VOCABULARY_SIZE = 49408
VISION_LAYERS = (1, 1, 1, 1)
VISION_WIDTH = 16
TEXT_WIDTH = 64
TEXT_LAYERS = 2
FIRST_TEMPERATURE = 0.07
OTHER_ROWS_SEED = 2021
OTHER_ROWS_SCALE = 0.02

MEAN = torch.tensor((0.48145466, 0.4578275, 0.40821073)).view(3, 1, 1)
STD = torch.tensor((0.26862954, 0.26130258, 0.27577711)).view(3, 1, 1)


class Vocabulary:
    """The tokens that occur in captions, numbered from 0 in the order of their ids.

    Attributes:
        rows: (V,) ids of the tokens.
        end: id of the end token.
    """

    def __init__(self) -> None:
        self._tokenizer = SimpleTokenizer(context_length=CONTEXT_LENGTH)
        self._cache: dict[str, list[int]] = {}
        self.end = self._tokenizer.eot_token_id
        self.rows = torch.tensor(sorted({0} | {token for text in every_word() for token in self._tokens(text)}))
        self._number = {int(row): number for number, row in enumerate(self.rows)}

    def _tokens(self, text: str) -> list[int]:
        if text not in self._cache:
            start = self._tokenizer.sot_token_id
            self._cache[text] = [start, *self._tokenizer.encode(text), self.end]
        return self._cache[text]

    def __call__(self, texts: Iterable[str]) -> Tensor:
        """Texts as numbers (B, L), zero-padded to the longest one; KeyError for an unknown word."""
        tokens = [self._tokens(text) for text in texts]
        length = max(map(len, tokens))
        padded = [row + [0] * (length - len(row)) for row in tokens]
        return torch.tensor([[self._number[token] for token in row] for row in padded])


def first_token_rows(width: int = TEXT_WIDTH) -> Tensor:
    """The token embedding (VOCABULARY_SIZE, width) before training, and after it for all rows not in the file."""
    rng = np.random.default_rng(OTHER_ROWS_SEED)
    rows = rng.standard_normal((VOCABULARY_SIZE, width), dtype=np.float32)
    return torch.from_numpy(rows * np.float32(OTHER_ROWS_SCALE))


def build_model(vocabulary: Vocabulary, seed: int) -> CLIP:
    """open_clip's CLIP with the vocabulary's rows of the token embedding and the initial temperature."""
    torch.manual_seed(seed)
    vision = {"image_size": PIXELS, "layers": VISION_LAYERS, "width": VISION_WIDTH, "head_width": 64}
    text = {
        "context_length": CONTEXT_LENGTH,
        "vocab_size": len(vocabulary.rows),
        "width": TEXT_WIDTH,
        "heads": TEXT_WIDTH // 64,
        "layers": TEXT_LAYERS,
    }
    model = CLIP(EMBED_DIM, vision, text, quick_gelu=True)
    with torch.no_grad():
        model.token_embedding.weight.copy_(first_token_rows()[vocabulary.rows])
        model.logit_scale.fill_(math.log(1 / FIRST_TEMPERATURE))
    return model


def encode_text(model: CLIP, tokens: Tensor) -> Tensor:
    """Features (B, D), not normalised, of numbered tokens (B, L); the end token has the largest number."""
    length = tokens.shape[1]
    hidden = model.token_embedding(tokens) + model.positional_embedding[:length]
    hidden = model.ln_final(model.transformer(hidden, attn_mask=model.attn_mask[:length, :length]))
    return hidden[torch.arange(len(hidden)), tokens.argmax(1)] @ model.text_projection


def to_input(images: Tensor) -> Tensor:
    """Pictures (B, S, S, 3) uint8 as the model's input (B, 3, S, S)."""
    scaled = images.permute(0, 3, 1, 2).float() / 255
    return ((scaled - MEAN) / STD).contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def image_features(model: CLIP, images: np.ndarray, batch_size: int = 256) -> Tensor:
    """Unit features (B, D) of pictures (B, S, S, 3) uint8."""
    batches = [to_input(torch.from_numpy(images[i : i + batch_size])) for i in range(0, len(images), batch_size)]
    return torch.nn.functional.normalize(torch.cat([model.encode_image(batch) for batch in batches]), dim=-1)


@torch.no_grad()
def text_features(model: CLIP, vocabulary: Vocabulary, texts: Sequence[str]) -> Tensor:
    """Unit features (B, D) of texts."""
    return torch.nn.functional.normalize(encode_text(model, vocabulary(texts)), dim=-1)


def export(model: CLIP, vocabulary: Vocabulary, recipe: str, path: Path) -> None:
    """Write the model to a file.

    Args:
        model: the model to write.
        vocabulary: the tokens whose rows the token embedding has.
        recipe: the training recipe as JSON, for the metadata.
        path: path of the file; its folder is created.
    """
    tensors = {name: _halved(value) for name, value in model.state_dict().items() if name != "attn_mask"}
    tensors["token_embedding.rows"] = vocabulary.rows.int()
    metadata = {
        "image_size": str(PIXELS),
        "width": str(VISION_WIDTH),
        "layers": ",".join(map(str, VISION_LAYERS)),
        "vision_head_width": "64",
        "text_width": str(TEXT_WIDTH),
        "text_layers": str(TEXT_LAYERS),
        "text_heads": str(TEXT_WIDTH // 64),
        "embed_dim": str(EMBED_DIM),
        "quick_gelu": "1",
        "other_rows": f"numpy default_rng({OTHER_ROWS_SEED}).standard_normal(({VOCABULARY_SIZE}, "
        f"{TEXT_WIDTH}), float32) * {OTHER_ROWS_SCALE}",
        "train": recipe,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata)


def _halved(value: torch.Tensor) -> torch.Tensor:
    value = value.detach().half() if value.is_floating_point() else value.detach()
    return value.contiguous().clone()


def digest(path: Path) -> str:
    """SHA-256 of the names, types, shapes and values of a file's tensors, without its metadata."""
    total = hashlib.sha256()
    with safe_open(path, framework="numpy") as file:
        for name in sorted(file.keys()):
            values = file.get_tensor(name)
            total.update(f"{name} {values.dtype} {values.shape}\n".encode())
            total.update(values.tobytes())
    return total.hexdigest()
