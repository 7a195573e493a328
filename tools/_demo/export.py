"""The weights' file: OpenAI's keys as safetensors in half precision, and its digest.

`token_embedding.weight` holds only the rows whose ids `token_embedding.rows` lists, those of the words in captions. The
others have never been trained: they come from numpy's `default_rng(2021)`, normal, times 0.02. What the tensors' shapes
do not tell (head widths, activation) stands in the metadata.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from open_clip.model import CLIP
from safetensors import safe_open
from safetensors.torch import save_file

from dassl_lite.datasets._drawn.render import PIXELS
from dassl_lite.tools._demo import model as demo
from dassl_lite.tools._demo.pretraining import Recipe


def export(model: CLIP, vocabulary: demo.Vocabulary, recipe: Recipe, path: Path) -> None:
    """Write the model to `path`."""
    tensors = {name: _halved(value) for name, value in model.state_dict().items() if name != "attn_mask"}
    tensors["token_embedding.rows"] = vocabulary.rows.int()
    metadata = {
        "image_size": str(PIXELS),
        "width": str(demo.VISION_WIDTH),
        "layers": ",".join(map(str, demo.VISION_LAYERS)),
        "vision_head_width": "64",
        "text_width": str(demo.TEXT_WIDTH),
        "text_layers": str(demo.TEXT_LAYERS),
        "text_heads": str(demo.TEXT_WIDTH // 64),
        "embed_dim": str(demo.EMBED_DIM),
        "quick_gelu": "1",
        "other_rows": f"numpy default_rng({demo.OTHER_ROWS_SEED}).standard_normal(({demo.VOCABULARY_SIZE}, "
        f"{demo.TEXT_WIDTH}), float32) * {demo.OTHER_ROWS_SCALE}",
        "train": recipe.as_json(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata)


def _halved(value: torch.Tensor) -> torch.Tensor:
    value = value.detach().half() if value.is_floating_point() else value.detach()
    return value.contiguous().clone()


def digest(path: Path) -> str:
    """SHA-256 over names, types, shapes and values of a file's tensors (not over its metadata)."""
    total = hashlib.sha256()
    with safe_open(path, framework="numpy") as file:
        for name in sorted(file.keys()):
            values = file.get_tensor(name)
            total.update(f"{name} {values.dtype} {values.shape}\n".encode())
            total.update(values.tobytes())
    return total.hexdigest()
