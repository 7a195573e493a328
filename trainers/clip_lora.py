"""CLIP-LoRA: low-rank updates of the attention of both of CLIP's encoders.

Paper: Low-Rank Few-Shot Adaptation of Vision-Language Models, https://arxiv.org/abs/2405.18541

    W' x = W x + alpha / sqrt(r) * B A dropout(x),   logits = exp(logit_scale) * normalise(image) @ normalise(text).T

for W the query, key and value (optionally output) projections of the chosen blocks; only A and B are trained and saved.
Recipe (the authors' repository): r 2, alpha 1, dropout 0.25, all blocks; AdamW, lr 2e-4, weight decay 1e-2, batch 32,
500 steps per shot, cosine down to 1e-6 after every step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dassl_lite.engine import TRAINER_REGISTRY, FeatureTrainer, each, key, number, one_of, some_of
from dassl_lite.engine.files.checkpoint import load_weights
from dassl_lite.engine.methods.shared_keys import STEP_KEYS, TEXT_ENCODER_KEYS, class_prompts
from dassl_lite.models import lora_file
from dassl_lite.models.encoders import ENCODERS
from dassl_lite.models.heads import CosineHead
from dassl_lite.models.lora import PROJECTIONS, add_lora, blocks_by_encoder, choose_blocks, without_lora
from dassl_lite.utils import get_logger

logger = get_logger(__name__)


class LoRAHead(CosineHead):
    """Cosine logits against the class prompts' features; its state is the low-rank pairs of both encoders.

    Args:
        adapters: encoder ("text", "vision") -> block -> projection -> pair.
        encode: gives the class prompts' features (K, D) with the encoders as they are now.
        logit_scale: CLIP's, before exp.
    """

    through_encoder = True

    def __init__(
        self, adapters: dict[str, nn.ModuleDict], encode: Callable[[], torch.Tensor], logit_scale: torch.Tensor
    ) -> None:
        super().__init__(logit_scale.exp())
        self.settings: dict[str, Any] = {}
        self.text, self.vision = (adapters.get(encoder, nn.ModuleDict()) for encoder in ENCODERS["both"])
        self._encode = encode

    @property
    def meta(self) -> dict[str, Any]:
        """What a checkpoint stores about its weights."""
        return {"lora": self.settings}

    def class_prototypes(self) -> torch.Tensor:
        return self._encode()

    def blocks(self) -> list[str]:
        """The adapted blocks, such as "text.0", in the order of the authors' files."""
        return [f"{encoder}.{number}" for encoder in ENCODERS["both"] for number in getattr(self, encoder)]

    def prepare_to_load(self, weights: Mapping[str, torch.Tensor], meta: Mapping[str, Any], path: Path) -> None:
        lora_file.require_same_settings(meta.get("lora") or {}, self.settings, path)


@TRAINER_REGISTRY.register()
class CLIPLoRA(FeatureTrainer):
    """Low-rank updates of the attention of CLIP's image and text encoders."""

    model_name = "clip_lora"
    through_encoder = True
    head: LoRAHead
    keys = (
        *TEXT_ENCODER_KEYS,
        *STEP_KEYS,
        key("ENCODER", "auto", one_of(*ENCODERS, "auto"), "both | text | vision | auto: those with attention layers"),
        key("PARAMS", ("q", "k", "v"), some_of(*PROJECTIONS), "projections to adapt, among q, k, v, o"),
        key(
            "POSITION",
            "all",
            None,
            "all | bottom | mid | up | half-bottom | half-up | top1, top2 ... (last blocks)",
            lambda run: "BLOCKS names the blocks" if run.method_cfg.BLOCKS else "",
        ),
        key(
            "BLOCKS",
            (),
            each(number(at_least=0, at_most=1000), of="block numbers, like (0, 11)"),
            "block numbers from 0, instead of POSITION",
        ),
        key("RANK", 2, number(at_least=1, at_most=4096), "r"),
        key("ALPHA", 1.0, number(above=0, at_most=1e6), "the update's scale is ALPHA / sqrt(RANK)"),
        key("DROPOUT", 0.25, number(at_least=0, below=1), "of the update's input"),
    )

    def build_head(self) -> nn.Module:
        node, clip = self.method_cfg, self.clip
        adapters: dict[str, nn.ModuleDict] = {}
        for encoder, layers in blocks_by_encoder(clip.model, node.ENCODER, clip.name).items():
            numbers = choose_blocks(node.POSITION, node.BLOCKS, len(layers), encoder)
            options = {"rank": node.RANK, "alpha": node.ALPHA, "dropout": node.DROPOUT}
            adapters[encoder] = add_lora(layers, numbers, node.PARAMS, **options)
            logger.info(f"LoRA in {len(numbers)} of the {encoder} encoder's {len(layers)} blocks")
        head = LoRAHead(adapters, class_prompts(self, "text" in adapters), clip.logit_scale.detach().float())
        position = list(node.BLOCKS) or node.POSITION
        head.settings = lora_file.settings(head.blocks(), node.RANK, node.ALPHA, node.PARAMS, position)
        trained = sum(parameter.numel() for parameter in head.parameters())
        logger.info(f"{trained:,} trainable numbers, {self.steps_to_train()} steps")
        return head

    def zero_shot(self, split: str | None = None) -> float | None:
        with without_lora(self.head):
            return super().zero_shot(split)

    # ---- files --------------------------------------------------------------------------------------------------

    def load_model(self, directory: str | Path, epoch: int | None = None) -> None:
        """Load a run, or the authors' file: the file itself or a folder with ``lora_weights.pt``."""
        path = lora_file.find(directory)
        if path is None:
            super().load_model(directory, epoch)
            return
        logger.info(f'Loading LoRA weights of the authors\' format from "{path}"')
        load_weights(self.head, lora_file.read_reference(path, self.head.blocks(), self.head.settings), path)
