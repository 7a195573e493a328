"""CLIP-LoRA: low-rank updates of the attention of both of CLIP's encoders.

Paper: Low-Rank Few-Shot Adaptation of Vision-Language Models, https://arxiv.org/abs/2405.18541

    W' x = W x + alpha / sqrt(r) * B A dropout(x),   logits = exp(logit_scale) * normalise(image) @ normalise(text).T

for W the query, key and value (and, if asked for, output) projection of the chosen blocks; A and B alone are trained
and saved. Recipe (the authors' repository): r 2, alpha 1, dropout 0.25, all blocks; AdamW, lr 2e-4, weight decay 1e-2,
batch 32, 500 steps per shot, cosine down to 1e-6 after every step.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from yacs.config import CfgNode

from dassl_lite.engine import TRAINER_REGISTRY
from dassl_lite.engine.files.checkpoint import load_weights
from dassl_lite.engine.methods.encoder_trainer import EncoderTrainer
from dassl_lite.engine.methods.key_rules import number, one_of, rules, satisfying, some_of
from dassl_lite.models import lora_file
from dassl_lite.models.heads import ClassFeatures, cosine_logits
from dassl_lite.models.lora import PROJECTIONS, add_lora, without_lora
from dassl_lite.models.lora_blocks import ENCODERS, blocks_by_encoder, choose_blocks
from dassl_lite.models.prompts import class_weights, fill_templates
from dassl_lite.utils import get_logger

logger = get_logger(__name__)


class LoRAHead(ClassFeatures):
    """Cosine logits against the class prompts' features; its state is the low-rank pairs of both encoders.

    Args:
        adapters: encoder ("text", "vision") -> block -> projection -> pair.
        encode: gives the class prompts' features (K, D) as the encoders are now.
        logit_scale: CLIP's, before exp.
    """

    scale: torch.Tensor

    def __init__(
        self, adapters: dict[str, nn.ModuleDict], encode: Callable[[], torch.Tensor], logit_scale: torch.Tensor
    ) -> None:
        super().__init__()
        self.text, self.vision = (adapters.get(encoder, nn.ModuleDict()) for encoder in ENCODERS["both"])
        self._encode = encode
        self.register_buffer("scale", logit_scale.exp(), persistent=False)

    def encode_classes(self) -> torch.Tensor:
        return self._encode()

    def blocks(self) -> list[str]:
        """The adapted blocks, such as "text.0", in the order of the authors' files."""
        return [f"{encoder}.{number}" for encoder in ENCODERS["both"] for number in getattr(self, encoder)]

    def forward(self, image_features: torch.Tensor) -> torch.Tensor:
        """Logits (B, K) for image features (B, D) in float32."""
        return cosine_logits(image_features, self.class_features(), self.scale)


@TRAINER_REGISTRY.register()
class CLIPLoRA(EncoderTrainer):
    """Low-rank updates of the attention of CLIP's image and text encoders."""

    model_name = "clip_lora"
    head: LoRAHead
    key_rules = rules(
        ENCODER=one_of(*ENCODERS, "auto"),
        PARAMS=some_of(*PROJECTIONS),
        BLOCKS=satisfying(lambda blocks: all(isinstance(n, int) for n in blocks), "a list of numbers, like (0, 11)"),
        RANK=number(at_least=1),
        ALPHA=number(above=0),
        DROPOUT=number(at_least=0, below=1),
    )

    @classmethod
    def extend_cfg(cls, cfg: CfgNode) -> None:
        super().extend_cfg(cfg)
        node = cfg.TRAINER[cls.node_name()]
        node.ENCODER = "auto"  # both | text | vision | auto: both, but text where the image encoder is a ResNet
        node.PARAMS = ("q", "k", "v")  # projections to adapt, of q, k, v, o
        node.POSITION = "all"  # all | bottom | mid | up | half-bottom | half-up | top1, top2 ... (the last blocks)
        node.BLOCKS = ()  # block numbers from 0, in POSITION's place
        node.RANK = 2  # r
        node.ALPHA = 1.0  # the update's scale is ALPHA / sqrt(RANK)
        node.DROPOUT = 0.25  # of the update's input

    def build_head(self) -> nn.Module:
        node, clip = self.method_cfg, self.clip
        adapters: dict[str, nn.ModuleDict] = {}
        for encoder, layers in blocks_by_encoder(clip.model, node.ENCODER, clip.name).items():
            numbers = choose_blocks(node.POSITION, node.BLOCKS, len(layers), encoder)
            options = {"rank": node.RANK, "alpha": node.ALPHA, "dropout": node.DROPOUT}
            adapters[encoder] = add_lora(layers, numbers, node.PARAMS, **options)
            logger.info(f"LoRA in {len(numbers)} of the {encoder} encoder's {len(layers)} blocks")
        head = LoRAHead(adapters, self._text_encoder("text" in adapters), clip.logit_scale.detach().float())
        trained = sum(parameter.numel() for parameter in head.parameters())
        logger.info(f"{trained:,} trainable numbers, {self.total_steps} steps")
        return head

    def _text_encoder(self, trained: bool) -> Callable[[], torch.Tensor]:
        """Gives the features (K, D) of the class prompts: computed anew if the text encoder is trained."""
        if trained:
            tokens = self.clip.tokenize(fill_templates(self.classnames, [self.template]))
            return lambda: self.clip.text.encode_tokens(tokens, **self.text_options())
        with torch.no_grad():
            weights = class_weights(self.clip, self.classnames, [self.template], self.text_cache)
        return lambda: weights

    def zero_shot(self, split: str | None = None) -> float:
        with without_lora(self.head):
            return super().zero_shot(split)

    # ---- files --------------------------------------------------------------------------------------------------

    def settings(self) -> dict[str, Any]:
        """What the weights belong to, under the names of the authors' files."""
        node = self.method_cfg
        return lora_file.settings(
            self.head.blocks(), node.RANK, node.ALPHA, node.PARAMS, list(node.BLOCKS) or node.POSITION
        )

    def checkpoint_meta(self) -> dict[str, Any]:
        return {**super().checkpoint_meta(), "lora": self.settings()}

    def adapt_state_dict(
        self, model: nn.Module, weights: dict[str, torch.Tensor], meta: dict[str, Any], path: Path
    ) -> dict[str, torch.Tensor]:
        lora_file.require_same_settings(meta.get("lora") or {}, self.settings(), path)
        return super().adapt_state_dict(model, weights, meta, path)

    def load_model(self, directory: str | Path, epoch: int | None = None) -> None:
        """Load a run, or the authors' file: the file itself or a folder with ``lora_weights.pt``."""
        path = lora_file.find(directory)
        if path is None:
            super().load_model(directory, epoch)
            return
        logger.info(f'Loading LoRA weights of the authors\' format from "{path}"')
        load_weights(self.head, lora_file.read_reference(path, self.head.blocks(), self.settings()), path)
