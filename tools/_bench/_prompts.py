"""Learned prompts through the text encoder, the plain way and through the tower: what `text_tower.py` times."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import open_clip
import torch
from torch import Tensor

from dassl_lite.models.text_tower import TextTower
from dassl_lite.models.tokenizer import Tokenizer


@dataclass
class Prompts:
    """K prompts `[start] context name. [end]` with a context that is learned, as in CoOp.

    Attributes:
        model: open_clip's, frozen; only its text side is used.
        context: (C, W), or (B, C, W) with one per image as in CoCoOp; a leaf with gradient.
        tokens: (K, 77) with any token in the context's place.
        target: the gradient (K, D) on the features, the same for both ways.
    """

    model: open_clip.CLIP
    context: Tensor
    tokens: Tensor
    target: Tensor

    @property
    def first(self) -> int:
        """P: where the class name starts."""
        return 1 + self.context.shape[-2]

    def plain(self) -> Tensor:
        """Features (K, D), or (B, K, D) image after image: all 77 tokens through open_clip's modules."""
        if self.context.dim() == 3:
            return torch.stack([self._plain(context) for context in self.context])
        return self._plain(self.context)

    def _plain(self, context: Tensor) -> Tensor:
        model, rows = self.model, torch.arange(len(self.tokens))
        embedded = model.token_embedding(self.tokens)
        start, rest = embedded[:, :1], embedded[:, self.first :]
        x = torch.cat([start, context.expand(len(rows), -1, -1), rest], dim=1) + model.positional_embedding
        x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask))
        return x[rows, self.tokens.argmax(dim=-1)] @ model.text_projection

    def tower(self, chunk: int = 0, checkpoint: bool = False) -> Tensor:
        """The same features through `TextTower`."""
        tower = TextTower(self.model)
        embedded = tower.embed(self.tokens)
        start = embedded[0, :1].expand(*self.context.shape[:-2], -1, -1)
        lengths = (tower.ends(self.tokens) + 1 - self.first).tolist()
        prefix = torch.cat([start, self.context], dim=-2)
        return tower.encode_prompts(prefix, embedded[:, self.first :], lengths, chunk=chunk, checkpoint=checkpoint)

    def step(self, encode: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
        """Forward and backward: the features and the gradient on the context."""
        self.context.grad = None
        features = encode()
        features.backward(self.target.expand_as(features))
        assert self.context.grad is not None
        return features.detach(), self.context.grad


def make_prompts(classes: int, context: int, images: int = 0, architecture: str = "ViT-B-16") -> Prompts:
    """Prompts over ImageNet's class names, taken evenly from its list, and drawn weights of a real text encoder."""
    config = open_clip.get_model_config(architecture)
    config["vision_cfg"]["layers"] = 1  # the images' side is not used
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = open_clip.CLIP(**config, quick_gelu=True).eval().requires_grad_(False)
        width, features = model.text_projection.shape
        shape = (images, context, width) if images else (context, width)
        learned = (0.02 * torch.randn(shape)).requires_grad_()
        target = torch.randn(classes, features)
    every = open_clip.IMAGENET_CLASSNAMES
    names = [every[number * len(every) // classes] for number in range(classes)]
    tokens = Tokenizer()([f"{' '.join(['X'] * context)} {name}." for name in names])
    return Prompts(model, learned, tokens, target)
