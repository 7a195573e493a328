"""CLIP, loaded through open_clip: one object with both encoders, tokenizer and preprocessing."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn

from dassl_lite.models import names
from dassl_lite.models.assemble import assemble
from dassl_lite.models.preprocessing import Preprocessing, preprocessing, preprocessing_of
from dassl_lite.models.text_tower import TextTower
from dassl_lite.models.tokenizer import Tokenizer
from dassl_lite.utils.errors import unknown

__all__ = ["PRECISIONS", "CLIPBackbone", "Preprocessing", "load_clip", "preprocessing"]

logger = logging.getLogger(__name__)

# amp keeps the weights in fp32; autocast is the trainer's business.
PRECISIONS = {"fp32": torch.float32, "amp": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class CLIPBackbone(nn.Module):
    """Both encoders of a CLIP. Frozen and in eval mode as `load_clip` gives it.

    Attributes:
        model: open_clip's model, with every parameter.
        name, precision: as asked for.
        digest: hex digest of the weights as loaded, in the precision in which they are held.
        preprocessing: what it expects of its images.
        tokenizer: text to token ids.
        text: the text encoder, see `TextTower`; it reads the modules of `model`, so a replaced one counts.
    """

    def __init__(
        self,
        model: nn.Module,
        name: str,
        precision: str,
        digest: str,
        preprocessing: Preprocessing,
        tokenizer: Tokenizer,
    ) -> None:
        super().__init__()
        self.model: Any = model
        self.name, self.precision, self.digest = name, precision, digest
        self.preprocessing, self.tokenizer = preprocessing, tokenizer
        self.text = TextTower(model)
        self.dtype = PRECISIONS[precision]

    @property
    def visual(self) -> nn.Module:
        """The image encoder, (B, 3, H, W) -> (B, D)."""
        return self.model.visual

    @property
    def logit_scale(self) -> nn.Parameter:
        """Logarithm of the factor on cosine similarities."""
        return self.model.logit_scale

    @property
    def embed_dim(self) -> int:
        """D, the width of image and text features."""
        return self.text.embed_dim

    @property
    def image_size(self) -> tuple[int, int]:
        return self.preprocessing.size

    @property
    def mean(self) -> tuple[float, ...]:
        return self.preprocessing.mean

    @property
    def std(self) -> tuple[float, ...]:
        return self.preprocessing.std

    @property
    def interpolation(self) -> str:
        return self.preprocessing.interpolation

    @property
    def device(self) -> torch.device:
        return self.logit_scale.device

    def tokenize(self, texts: str | Sequence[str]) -> Tensor:
        """Token ids (N, L) on the CPU. Raises UserError for a text that is too long, naming it."""
        return self.tokenizer(texts)

    def encode_image(self, images: Tensor) -> Tensor:
        """Features (B, D), not normalised, of preprocessed images (B, 3, H, W)."""
        return self.model.encode_image(images.to(self.device, self.dtype))

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Features (N, D), not normalised, of token ids (N, L)."""
        return self.text.encode_tokens(tokens)

    def forward(self, images: Tensor, tokens: Tensor) -> Tensor:
        """Logits (B, N): cosine similarity of each image with each text, times exp(logit_scale)."""
        image_features = nn.functional.normalize(self.encode_image(images), dim=-1)
        text_features = nn.functional.normalize(self.encode_text(tokens), dim=-1)
        return self.logit_scale.exp() * image_features @ text_features.t()


def load_clip(name: str, precision: str = "fp32", device: str | torch.device = "cpu") -> CLIPBackbone:
    """Load a CLIP, frozen and in eval mode; no random number is drawn from the global streams.

    Args:
        name: "demo" (packaged), one of OpenAI's names, open_clip's name with a tag, "hf-hub:ORG/REPO", a file
            in OpenAI's layout (TorchScript archive, state dict, safetensors), "ARCHITECTURE:FILE" for one in
            open_clip's, or "random:ARCHITECTURE[:SEED]" for drawn weights (timing and tests).
        precision: "fp32", "fp16", "bf16" or "amp". fp16 works on a CPU, slowly: a warning says so.
        device: where to put it.

    Raises:
        UserError: unknown name or precision, no weights to be had, a broken file; one line each.
    """
    if precision not in PRECISIONS:
        raise unknown("precision", precision, PRECISIONS)
    backbone = names.parse(name)
    if precision == "fp16" and torch.device(device).type == "cpu":
        logger.warning("fp16 on a CPU is slow and less exact than fp32; bf16 or fp32 serve better there")
    model, tokenizer = assemble(backbone, PRECISIONS[precision])
    digest = digest_of_weights(model)
    clip = CLIPBackbone(model, name, precision, digest, preprocessing_of(backbone), tokenizer)
    return clip.to(device).requires_grad_(False).eval()


def digest_of_weights(model: nn.Module) -> str:
    """Hex sha256 over every tensor of the model's state (name, dtype, shape, bytes) and what the tensors
    do not tell: the kinds of modules (activations) and the numbers of heads."""
    state = sorted(model.state_dict().items())
    with ThreadPoolExecutor() as pool:  # hashing lets go of the interpreter lock
        tensors = list(pool.map(_digest_of_tensor, (tensor for _, tensor in state)))
    activations = sorted({type(module).__name__ for module in model.modules()})
    heads = [module.num_heads for module in model.modules() if isinstance(module, nn.MultiheadAttention)]
    described = [(name, str(tensor.dtype), list(tensor.shape)) for name, tensor in state]
    return hashlib.sha256(json.dumps([described, tensors, activations, heads]).encode()).hexdigest()


def _digest_of_tensor(tensor: Tensor) -> str:
    raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(raw.numpy().data).hexdigest()
