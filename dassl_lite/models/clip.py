"""CLIP, loaded with open_clip: one object with both encoders, the tokenizer and the preprocessing.

Shapes: B images, N texts, L tokens, D width of the features.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.transformer import AttentionalPooler
from torch import Tensor, nn

from dassl_lite.models import names, openai_format, published_weights
from dassl_lite.models.names import BackboneName
from dassl_lite.models.preprocessing import Preprocessing, described_by_open_clip
from dassl_lite.models.text_tower import TextTower
from dassl_lite.models.tokenizer import Tokenizer
from dassl_lite.utils.errors import UserError, unknown
from dassl_lite.utils.logger import get_logger

__all__ = ["PRECISIONS", "CLIPBackbone", "Preprocessing", "load_clip", "preprocessing"]

logger = get_logger(__name__)

# amp keeps the weights in fp32; the trainer runs them under autocast.
PRECISIONS = {"fp32": torch.float32, "amp": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_OPEN_CLIP_PRECISIONS = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
# What open_clip and the loaders that it calls raise for an unusable file or repository.
_OPEN_CLIP_ERRORS = (OSError, RuntimeError, ValueError, LookupError, TypeError, EOFError, ImportError)


class CLIPBackbone(nn.Module):
    """A complete CLIP: image encoder, text encoder, tokenizer and preprocessing. Every method is built on one.

    `load_clip` returns it frozen and in eval mode. On a dataset of precomputed features, `PrecomputedBackbone` takes
    its place: it looks text features up in a table and has no encoders. `CLIPModel` is not a backbone but a plain
    network: the image encoder with a linear layer.

    Attributes:
        model: open_clip's model, with all parameters.
        name: as given to `load_clip`.
        precision: as given to `load_clip`.
        digest: hex digest of the weights as loaded, in the precision in which they are kept.
        preprocessing: how it expects its images.
        tokenizer: texts to token ids.
        text: the text encoder, a `TextTower`; it reads the modules of `model`, so replacing one there takes effect.
        dtype: of the weights.
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
        self.model: Any = model  # CLIP or CustomTextCLIP, whose modules methods read and replace
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
        """Logarithm of the factor that cosine similarities are multiplied by."""
        return self.model.logit_scale

    @property
    def logit_bias(self) -> Tensor | None:
        """Added to all logits by a model that was trained with a sigmoid loss (SigLIP); None if the model has none.

        A softmax over classes does not change with it, so it is left out of logits except for a sigmoid.
        """
        return getattr(self.model, "logit_bias", None)

    @property
    def embed_dim(self) -> int:
        """D, the width of image and text features."""
        return self.text.embed_dim

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the input images."""
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
        """Token ids (N, L), int64, on the CPU. Raises UserError for a text that is too long, naming it."""
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
    """Load a CLIP, frozen and in eval mode, without drawing from the global random streams.

    Args:
        name: "demo" (packaged), one of OpenAI's names, an open_clip name with a tag, "hf-hub:ORG/REPO", a file in
            OpenAI's layout (TorchScript archive, state dict, safetensors), "ARCHITECTURE:FILE" for one in open_clip's
            layout, or "random:ARCHITECTURE[:SEED]" for random weights (timing and tests).
        precision: "fp32", "fp16", "bf16" or "amp". fp16 on a CPU works, but is slow; a warning says so.
        device: where to put it.

    Raises:
        UserError: unknown name or precision, weights unavailable, or a broken file; one line each.
    """
    if precision not in PRECISIONS:
        raise unknown("precision", precision, PRECISIONS)
    backbone = names.parse(name)
    if precision == "fp16" and torch.device(device).type == "cpu":
        logger.warning("fp16 on a CPU is slow and less accurate than fp32; use bf16 or fp32 there")
    model, tokenizer = assemble(backbone, PRECISIONS[precision])
    digest = digest_of_weights(model)
    clip = CLIPBackbone(model, name, precision, digest, preprocessing_of(backbone), tokenizer)
    return clip.to(device).requires_grad_(False).eval()


def preprocessing(name: str) -> Preprocessing:
    """How the backbone `name` expects its images, without loading its weights. Raises UserError as `load_clip` does."""
    return preprocessing_of(names.parse(name))


def preprocessing_of(backbone: BackboneName) -> Preprocessing:
    """How a backbone expects its images. Only a local file is opened."""
    if backbone.kind == "hub":
        config = published_weights.hub_config(backbone.architecture)
        size = config["model_cfg"]["vision_cfg"]["image_size"]
        return described_by_open_clip(config.get("preprocess_cfg", {}), size, backbone.text)
    if backbone.kind == "file":
        status = backbone.file.stat() if backbone.file.is_file() else None
        size = _image_size(backbone.file, status and (status.st_size, status.st_mtime_ns))
        return described_by_open_clip({}, size, backbone.text)
    size = open_clip.get_model_config(backbone.architecture)["vision_cfg"]["image_size"]
    published = open_clip.get_pretrained_cfg(backbone.architecture, backbone.tag)
    return described_by_open_clip(published, size, backbone.text)


@functools.lru_cache(maxsize=8)
def _image_size(file: Path, status: tuple[int, int] | None) -> int:
    """Of the CLIP in a local file: asked for by the config and by the model, and the file may be of gigabytes.

    Args:
        status: size and time of the file, so that another one in its place is read again.
    """
    return openai_format.architecture_of(*openai_format.read(file), str(file))["vision_cfg"]["image_size"]


def digest_of_weights(model: nn.Module) -> str:
    """Hex sha256 of a model: every tensor of its state (name, dtype, shape, bytes) and what the tensors do not show.

    That is the types of its modules (activations) and the numbers of attention heads.
    """
    state = sorted(model.state_dict().items())
    with ThreadPoolExecutor() as pool:  # hashing releases the interpreter lock
        tensors = list(pool.map(_digest_of_tensor, (tensor for _, tensor in state)))
    activations = sorted({type(module).__name__ for module in model.modules()})
    heads = [module.num_heads for module in model.modules() if isinstance(module, nn.MultiheadAttention)]
    described = [(name, str(tensor.dtype), list(tensor.shape)) for name, tensor in state]
    return hashlib.sha256(json.dumps([described, tensors, activations, heads]).encode()).hexdigest()


def _digest_of_tensor(tensor: Tensor) -> str:
    raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(raw.numpy().data).hexdigest()


def assemble(backbone: BackboneName, dtype: torch.dtype) -> tuple[nn.Module, Tokenizer]:
    """open_clip's model on the CPU, with its weight matrices in `dtype`, and its tokenizer.

    The global random streams are left as they were.
    """
    if backbone.kind == "file":
        return _load_openai(backbone, dtype)
    with torch.random.fork_rng(devices=[]), _quiet_root_logger():
        if backbone.kind == "hub":
            published_weights.hub_config(backbone.architecture)  # reports an unreachable repository in one line
        tokenizer = _tokenizer(backbone)
        if backbone.kind == "random":
            logger.warning(
                f"Backbone {backbone.text}: random weights (seed {backbone.seed}), for timing and tests only"
            )
            torch.manual_seed(backbone.seed)
            return _create(backbone, dtype, None, {}), tokenizer
        if backbone.kind == "hub":
            return _create(backbone, dtype, None, {}), tokenizer
        if backbone.kind == "checkpoint":
            return _create(backbone, dtype, str(backbone.file), {}), tokenizer
        path = published_weights.locate(backbone.architecture, backbone.tag)
        if backbone.tag == "openai":
            return _load_openai(backbone.at(path), dtype)
        published = open_clip.get_pretrained_cfg(backbone.architecture, backbone.tag)
        return _create(backbone, dtype, str(path), published), tokenizer


def _load_openai(backbone: BackboneName, dtype: torch.dtype) -> tuple[nn.Module, Tokenizer]:
    tensors, metadata = openai_format.read(backbone.file)
    architecture = openai_format.architecture_of(tensors, metadata, str(backbone.file))
    model = openai_format.build(tensors, architecture, dtype, str(backbone.file))
    return model, Tokenizer(architecture["text_cfg"]["context_length"])


def _create(backbone: BackboneName, dtype: torch.dtype, path: str | None, published: Mapping[str, Any]) -> nn.Module:
    """With open_clip's own factory, which knows all of its file layouts."""
    try:
        model = open_clip.create_model(
            backbone.architecture,
            pretrained=path,
            precision=_OPEN_CLIP_PRECISIONS[dtype],
            force_quick_gelu=bool(published.get("quick_gelu")),
            pretrained_text=False,
            require_pretrained=backbone.kind != "random",
        )
        return _in_one_precision(model, dtype)
    except _OPEN_CLIP_ERRORS as error:
        raise UserError(f"cannot load backbone '{backbone.text}': {_one_line(error)}") from error


def _in_one_precision(model: Any, dtype: torch.dtype) -> nn.Module:
    """Convert what open_clip forgets, and then multiplies with matrices in `dtype`: Hugging Face text encoders, CoCa's
    class token, and the queries of an attentional pooling."""
    if hasattr(getattr(model, "text", None), "pooler"):
        model.text.to(dtype)
    parameters = [getattr(getattr(model, "text", None), "cls_emb", None)]
    parameters += [module.query for module in model.modules() if isinstance(module, AttentionalPooler)]
    for parameter in parameters:
        if parameter is not None:
            parameter.data = parameter.data.to(dtype)
    return model


def _tokenizer(backbone: BackboneName) -> Tokenizer:
    try:
        tokenizer = open_clip.get_tokenizer(backbone.architecture)
    except _OPEN_CLIP_ERRORS as error:
        raise UserError(f"no tokenizer for backbone '{backbone.text}': {_one_line(error)}") from error
    return Tokenizer(tokenizer.context_length, tokenizer)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


@contextlib.contextmanager
def _quiet_root_logger() -> Iterator[None]:
    """Keep open_clip from configuring the root logger.

    It logs there, and the first such call would add a handler for good, which then prints all our lines twice.
    """
    root, handler = logging.getLogger(), logging.NullHandler()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
