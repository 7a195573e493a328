"""CLIP-LoRA: low-rank updates of the attention of both of CLIP's encoders.

Paper: Low-Rank Few-Shot Adaptation of Vision-Language Models, https://arxiv.org/abs/2405.18541

    W' x = W x + alpha / sqrt(r) * B A dropout(x),   logits = exp(logit_scale) * normalise(image) @ normalise(text).T

for W the query, key and value (and, if asked for, output) projection of the chosen blocks; A and B alone are trained
and saved. Recipe (the authors' repository): r 2, alpha 1, dropout 0.25, all blocks; AdamW, lr 2e-4, weight decay 1e-2,
batch 32, 500 steps per shot, cosine down to 1e-6 after every step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from yacs.config import CfgNode

from dassl_lite.engine import TRAINER_REGISTRY
from dassl_lite.engine.checkpoint import load_weights
from dassl_lite.engine.encoder_trainer import EncoderTrainer
from dassl_lite.models import lora_file
from dassl_lite.models.heads import cosine_logits
from dassl_lite.models.lora import PROJECTIONS, add_lora, without_lora
from dassl_lite.models.lora_blocks import ENCODERS, blocks_by_encoder, choose_blocks
from dassl_lite.models.prompts import class_weights, fill_templates
from dassl_lite.utils import UserError, get_logger, unknown

logger = get_logger(__name__)


class LoRAHead(nn.Module):
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
        self._kept: tuple[list[int], torch.Tensor] | None = None  # versions of the parameters, and their features
        self.register_buffer("scale", logit_scale.exp(), persistent=False)

    def text_features(self) -> torch.Tensor:
        """Features (K, D) of the class prompts; where no gradient is asked for, computed once per set of weights."""
        if self.training or torch.is_grad_enabled():
            return self._encode()
        versions = [parameter._version for parameter in self.parameters()]
        if self._kept is None or self._kept[0] != versions:
            self._kept = versions, self._encode()
        return self._kept[1]

    def forward(self, image_features: torch.Tensor) -> torch.Tensor:
        """Logits (B, K) for image features (B, D) in float32."""
        return cosine_logits(image_features, self.text_features().float(), self.scale)


@TRAINER_REGISTRY.register()
class CLIPLoRA(EncoderTrainer):
    """Low-rank updates of the attention of CLIP's image and text encoders."""

    model_name = "clip_lora"

    @staticmethod
    def extend_cfg(cfg: CfgNode) -> None:
        node = cfg.TRAINER.CLIPLoRA = CfgNode()
        node.ENCODER = "auto"  # both | text | vision | auto: both, but text where the image encoder is a ResNet
        node.PARAMS = ("q", "k", "v")  # projections to adapt, of q, k, v, o
        node.POSITION = "all"  # all | bottom | mid | up | half-bottom | half-up | top1, top2 ... (the last blocks)
        node.BLOCKS = ()  # block numbers from 0, in POSITION's place
        node.RANK = 2  # r
        node.ALPHA = 1.0  # the update's scale is ALPHA / sqrt(RANK)
        node.DROPOUT = 0.25  # of the update's input
        node.STEPS_PER_SHOT = 500  # length of the training; 0: OPTIM.MAX_EPOCH epochs
        node.PREC = "fp32"  # fp32 | amp | fp16 | bf16

    def check_cfg(self, cfg: CfgNode) -> None:
        super().check_cfg(cfg)
        node, prefix = cfg.TRAINER.CLIPLoRA, "TRAINER.CLIPLoRA"
        if node.ENCODER not in (*ENCODERS, "auto"):
            raise unknown(f"value of {prefix}.ENCODER", node.ENCODER, (*ENCODERS, "auto"))
        for projection in node.PARAMS:
            if projection not in PROJECTIONS:
                raise unknown(f"value in {prefix}.PARAMS", projection, PROJECTIONS)
        numbers = all(isinstance(number, int) for number in node.BLOCKS)
        for key, holds, expected in (
            ("PARAMS", len(node.PARAMS) > 0, f"some of {', '.join(PROJECTIONS)}"),
            ("RANK", node.RANK >= 1, "at least 1"),
            ("ALPHA", math.isfinite(node.ALPHA) and node.ALPHA > 0, "a number above 0"),
            ("DROPOUT", 0 <= node.DROPOUT < 1, "at least 0 and below 1"),
            ("STEPS_PER_SHOT", node.STEPS_PER_SHOT >= 0, "0 (train for OPTIM.MAX_EPOCH epochs) or more"),
            ("BLOCKS", numbers, "a list of block numbers, like (0, 11)"),
        ):
            if not holds:
                raise UserError(f"{prefix}.{key} is {node[key]}; it must be {expected}")

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
            return lambda: self.clip.encode_text(tokens)
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
        adapted = tuple(encoder for encoder in ENCODERS["both"] if len(getattr(self.head, encoder)))
        (encoder,) = (name for name, encoders in ENCODERS.items() if encoders == adapted)
        position = list(node.BLOCKS) or node.POSITION
        values = (node.RANK, node.ALPHA, encoder, list(node.PARAMS), position)
        return dict(zip(lora_file.OPTIONS, values, strict=True))

    def checkpoint_meta(self) -> dict[str, Any]:
        return {**super().checkpoint_meta(), "lora": self.settings()}

    def adapt_state_dict(
        self, model: nn.Module, weights: dict[str, torch.Tensor], meta: dict[str, Any], path: Path
    ) -> dict[str, torch.Tensor]:
        lora_file.require_same_settings(meta.get("lora") or {}, self.settings(), path)
        return super().adapt_state_dict(model, weights, meta, path)

    def load_model(self, directory: str | Path, epoch: int | None = None) -> None:
        """Load a run, or the authors' file: the file itself or a folder with ``lora_weights.pt``."""
        path = Path(directory)
        path = path / lora_file.FILE_NAME if path.is_dir() else path
        if not directory or not path.is_file():
            super().load_model(directory, epoch)
            return
        blocks = [f"{encoder}.{number}" for encoder in ENCODERS["both"] for number in getattr(self.head, encoder)]
        logger.info(f'Loading LoRA weights of the authors\' format from "{path}"')
        load_weights(self.head, lora_file.read_reference(path, blocks, self.settings()), path)
