"""MMA: adapters beside the upper blocks of both of CLIP's encoders, with a layer between that the two share.

Paper: MMA: Multi-Modal Adapter for Vision-Language Models, CVPR 2024, https://github.com/ZjjConan/VLM-MultiModalAdapter

    block_i(x)  ->  block_i(x) + s * up_i(relu(shared_i(relu(down_i(ln_1(x))))))
    logits = exp(logit_scale) * normalise(image) @ normalise(text).T

The layers' gradients are those that they would have with s = 1 (`dassl_lite.models.multimodal_adapter`). Recipe (the
authors' repository): ViT-B/16, blocks 5 to 12, width 32, s 0.001; SGD, lr 0.0015 with a cosine, 5 epochs, batch 16
(ImageNet 128), mixed precision.

Deviations: text features follow every step, where the authors' code keeps those of its first evaluation. Encoders may
differ in depth, as those of ViT-L/14 do: shared_i serves both where both have a block i; a number that only one of them
has is that one's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dassl_lite.engine import TRAINER_REGISTRY, FeatureTrainer, key, number, one_of
from dassl_lite.engine.methods.shared_keys import TEXT_ENCODER_KEYS, class_prompts
from dassl_lite.models.encoders import ENCODERS, choose_encoders, name_of, require_same_settings, transformer_blocks
from dassl_lite.models.heads import CosineHead
from dassl_lite.models.multimodal_adapter import MultiModalAdapters, adapter_widths
from dassl_lite.utils import UserError, get_logger

logger = get_logger(__name__)


class MMAHead(CosineHead):
    """Cosine logits against the class prompts' features; its state is the adapters.

    Args:
        adapters: of both encoders, attached.
        encode: gives the class prompts' features (K, D) with the encoders as they are now.
        scale: exp(logit_scale), a scalar.
        settings: config keys that the adapters' weights belong to, with their values.
    """

    through_encoder = True

    def __init__(
        self,
        adapters: MultiModalAdapters,
        encode: Callable[[], torch.Tensor],
        scale: torch.Tensor,
        settings: dict[str, Any],
    ) -> None:
        super().__init__(scale)
        self.adapters, self._encode, self.settings = adapters, encode, settings

    @property
    def meta(self) -> dict[str, Any]:
        """What a checkpoint stores about its weights."""
        return {"mma": self.settings}

    def class_prototypes(self) -> torch.Tensor:
        return self._encode()

    def prepare_to_load(self, weights: Mapping[str, torch.Tensor], meta: Mapping[str, Any], path: Path) -> None:
        require_same_settings(meta.get("mma"), self.settings, path, "TRAINER.MMA")


@TRAINER_REGISTRY.register()
class MMA(FeatureTrainer):
    """Adapters beside blocks of CLIP's image and text encoders, with a shared layer between."""

    model_name = "mma"
    through_encoder = True
    head: MMAHead
    keys = (
        *TEXT_ENCODER_KEYS,
        key("ENCODER", "auto", one_of(*ENCODERS, "auto"), "both | text | vision | auto: those with CLIP's blocks"),
        key(
            "START",
            -1,
            number(at_least=-1, at_most=1000),
            "first block with an adapter, from 1; 0: one behind the embedding, too; -1: five twelfths of END",
        ),
        key("END", -1, number(at_least=-1, at_most=1000), "last one; -1: the last block of the shallower encoder"),
        key("DIM", 32, number(at_least=1, at_most=4096), "width of the layer between"),
        key("SCALE", 0.001, number(above=0, at_most=1e6), "s"),
    )

    @property
    def trains_images(self) -> bool:
        """Whether there are adapters in the image encoder."""
        return bool(len(self.head.adapters.vision))

    def build_head(self) -> nn.Module:
        node, clip = self.method_cfg, self.clip
        needs, own_key = "transformer blocks of CLIP's kind", "TRAINER.MMA.ENCODER"
        found = transformer_blocks(clip.model)
        blocks = choose_encoders(found, node.ENCODER, clip.name, method="MMA", needs=needs, key=own_key)
        first, last = self._range({encoder: len(own) for encoder, own in blocks.items()})
        adapters = MultiModalAdapters(adapter_widths(blocks, first, last), node.DIM, node.SCALE)
        for encoder, own in blocks.items():
            many = len(getattr(adapters, encoder))
            logger.info(f"Adapters {first} to {last}: {many} in the {encoder} encoder, which has {len(own)} blocks")
        encode = class_prompts(self, bool(len(adapters.text)))
        adapters.to(self.device).attach(clip.model)
        settings = {"ENCODER": name_of(blocks), "START": first, "END": last, "DIM": node.DIM, "SCALE": node.SCALE}
        return MMAHead(adapters, encode, clip.logit_scale.detach().float().exp(), settings)

    def _range(self, depths: Mapping[str, int]) -> tuple[int, int]:
        """The first and the last adapter, for encoders of these depths."""
        node = self.method_cfg
        last = node.END if node.END >= 0 else min(depths.values())
        first = node.START if node.START >= 0 else max(1, last * 5 // 12)
        if not first <= last <= max(depths.values()):
            deep = ", ".join(f"{depth} of the {encoder} encoder" for encoder, depth in depths.items())
            raise UserError(
                f"TRAINER.MMA.START {first} and TRAINER.MMA.END {last} must be in order and within the blocks of "
                f"backbone {self.clip.name}: {deep}"
            )
        return first, last

    def zero_shot(self, split: str | None = None) -> float | None:
        with self.head.adapters.off():
            return super().zero_shot(split)
