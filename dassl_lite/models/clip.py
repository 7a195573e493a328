"""CLIP, loaded with open_clip: one object with both encoders, the tokenizer and the preprocessing.

Shapes: B images, N texts, L tokens, D width of the features.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import json
import logging
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dassl_lite.models import (
    model_folder,
    names,
    openai_format,
    published_weights,
    settings,
    transformers_format,
    weights_file,
)
from dassl_lite.models.image_tower import ImageTower, Projection
from dassl_lite.models.names import BackboneName
from dassl_lite.models.preprocessing import Preprocessing, described_by_open_clip
from dassl_lite.models.text_tower import TextTower
from dassl_lite.models.tokenizer import Tokenizer, require_text_encoder, tokenizer_of, tokenizer_of_random
from dassl_lite.models.weights_file import WeightsFile
from dassl_lite.startup import loading
from dassl_lite.utils.errors import MISFITS, UserError, refusing_misfits, unknown
from dassl_lite.utils.files import write_json
from dassl_lite.utils.logger import get_logger

__all__ = ["PRECISIONS", "CLIPBackbone", "Preprocessing", "load_clip", "preprocessing"]

logger = get_logger(__name__)

# amp keeps the weights in fp32; the trainer runs them under autocast.
PRECISIONS = {"fp32": torch.float32, "amp": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_HEAD_WIDTH = 64  # of nearly all models
_OPEN_CLIP_PRECISIONS = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
# Raised by open_clip and the loaders that it calls for an unusable file or repository.
_OPEN_CLIP_ERRORS = (*MISFITS, OSError, EOFError, ImportError)


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
        images: the image encoder, an `ImageTower`.
        text: the text encoder, a `TextTower`; it reads the modules of `model`, so replacing one there takes effect.
        dtype: dtype of the weights.
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
        self.images = ImageTower(model)
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
        return self.images.encode(images.to(self.device, self.dtype))

    @property
    def image_projection(self) -> Projection:
        """The image encoder's last linear step. Raises UserError if there is none that gives the features."""
        if (found := self.images.projection) is None:
            raise UserError(
                "this backbone's image encoder does not end in a projection of open_clip's (visual.proj, "
                "attnpool.c_proj), which the method trains; use another one, such as ViT-B/16"
            )
        return found

    def encode_image_states(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, D) of preprocessed images (B, 3, H, W) and, of the same pass, states (B, W) before the
        projection."""
        projection = self.image_projection
        states = self.images.encode_states(images.to(self.device, self.dtype))
        return projection(states), states

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
            OpenAI's layout (TorchScript archive, state dict, safetensors; "openai:FILE" if nothing in it shows that it
            is OpenAI's), "ARCHITECTURE:FILE" or "ARCHITECTURE@TAG:FILE" for one in open_clip's layout, a folder or
            "hf-hub:ORG/REPO" with a model of open_clip's, or a CLIP or SigLIP of transformers', or
            "random:ARCHITECTURE[:SEED]" for random weights (timing and tests).
        precision: "fp32", "fp16", "bf16" or "amp". fp16 on a CPU works, but is slow; a warning says so.
        device: where to put it.

    Raises:
        UserError: unknown name or precision, weights unavailable, or a broken file; one line each.
    """
    if precision not in PRECISIONS:
        raise unknown("precision", precision, PRECISIONS)
    _import_open_clip()
    backbone = names.parse(name)
    if precision == "fp16" and torch.device(device).type == "cpu":
        logger.warning("fp16 on a CPU is slow and less accurate than fp32; use bf16 or fp32 there")
    model, tokenizer = assemble(backbone, PRECISIONS[precision])
    digest = digest_of_weights(model)
    clip = CLIPBackbone(model, name, precision, digest, preprocessing_of(backbone), tokenizer)
    return clip.to(device).requires_grad_(False).eval()


@functools.cache
def _import_open_clip() -> None:
    """Import open_clip early, so that a tool's garbage collector can skip its objects."""
    with loading():
        importlib.import_module("open_clip")


def preprocessing(name: str) -> Preprocessing:
    """How the backbone `name` expects its images, without loading its weights. Raises UserError as `load_clip` does."""
    return preprocessing_of(names.parse(name))


def preprocessing_of(backbone: BackboneName) -> Preprocessing:
    """How a backbone expects its images. May read a local file's content."""
    backbone = _with_description(backbone)
    if backbone.kind in ("folder", "hub"):
        return model_folder.of(backbone).preprocessing
    if backbone.kind == "file":
        status = backbone.file.stat() if backbone.file.is_file() else None
        return _preprocessing_of_file(backbone, status and (status.st_size, status.st_mtime_ns))
    import open_clip

    size = open_clip.get_model_config(backbone.architecture)["vision_cfg"]["image_size"]
    return described_by_open_clip(_settings(backbone), size, backbone.text)


@functools.lru_cache(maxsize=8)
def _preprocessing_of_file(backbone: BackboneName, status: tuple[int, int] | None) -> Preprocessing:
    """`preprocessing_of` for a file in OpenAI's layout. Both the config and the model ask for it.

    Args:
        status: size and time of the file, so that a changed file is read again.
    """
    architecture, said = _described(backbone, weights_file.outline(backbone.file))
    return described_by_open_clip(said, architecture["vision_cfg"]["image_size"], backbone.text)


def _with_description(backbone: BackboneName) -> BackboneName:
    """The name of the folder's model, for a file of weights with a description beside it; else the name as it is."""
    if backbone.kind == "file" and not backbone.tag and model_folder.is_described(backbone.file):
        return replace(backbone, kind="folder")
    return backbone


def _settings(backbone: BackboneName) -> settings.Settings:
    """The settings that the weights do not show, for one of open_clip's architectures."""
    if backbone.kind == "checkpoint":
        return settings.of_checkpoint(backbone)
    if backbone.kind == "random":
        return settings.of_random(backbone.architecture)
    return settings.of_published(backbone.architecture, backbone.tag)


def digest_of_weights(model: nn.Module) -> str:
    """Hex sha256 of a model: every tensor of its state (name, dtype, shape, bytes) and what the tensors do not show.

    The latter are the types of its modules (activations) and the numbers of attention heads.
    """
    state = sorted(model.state_dict().items())
    with ThreadPoolExecutor() as pool:  # hashing releases the interpreter lock
        tensors = list(pool.map(_digest_of_tensor, (tensor for _, tensor in state)))
    activations = sorted({type(module).__name__ for module in model.modules()})
    heads = [module.num_heads for module in model.modules() if isinstance(module, nn.MultiheadAttention)]
    described = [(name, str(tensor.dtype), list(tensor.shape)) for name, tensor in state]
    parts = [described, tensors, activations, heads]
    if unusual := sorted(set(filter(None, map(_unusual, model.modules())))):
        parts.append(unusual)
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _unusual(module: nn.Module) -> str:
    """Settings that change what a module computes and that neither its type nor its tensors show."""
    if getattr(module, "approximate", "none") != "none":
        return f"{type(module).__name__} {module.approximate}"
    if isinstance(getattr(module, "num_heads", None), int) and getattr(module, "head_dim", _HEAD_WIDTH) != _HEAD_WIDTH:
        return f"{type(module).__name__} {module.num_heads} heads"  # of timm's, which are not counted above
    if isinstance(module, nn.LayerNorm) and module.eps not in (1e-5, 1e-6):
        return f"{type(module).__name__} {module.eps}"
    return ""


def _digest_of_tensor(tensor: Tensor) -> str:
    raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(raw.numpy().data).hexdigest()


def assemble(backbone: BackboneName, dtype: torch.dtype) -> tuple[nn.Module, Tokenizer]:
    """open_clip's model on the CPU, with its weight matrices in `dtype`, and its tokenizer.

    The global random streams are left as they were.
    """
    import open_clip

    backbone = _with_description(backbone)
    if backbone.kind == "file":
        return _load_openai(backbone, dtype)
    with torch.random.fork_rng(devices=[]), _quiet_root_logger():
        if backbone.kind in ("folder", "hub"):
            with refusing_misfits(f"cannot load backbone '{backbone.text}'"):
                return _load_folder(backbone, dtype)
        text = open_clip.get_model_config(backbone.architecture)["text_cfg"]
        require_text_encoder(text, backbone.text)
        if backbone.kind == "random":
            logger.warning(
                f"Backbone {backbone.text}: random weights (seed {backbone.seed}), for timing and tests only"
            )
            tokenizer = tokenizer_of_random(text, backbone.architecture, backbone.text)
            torch.manual_seed(backbone.seed)
            return _create(backbone.architecture, backbone, dtype, _settings(backbone)), tokenizer
        tokenizer = tokenizer_of(text, backbone.architecture, backbone.text)
        if backbone.path is None:
            path = published_weights.locate(backbone.architecture, backbone.tag)
            content = published_weights.read(path, backbone.architecture, backbone.tag)
        else:
            path, content = backbone.path, weights_file.read(backbone.path)
        if backbone.kind == "tag" and backbone.tag == "openai":
            return _built(backbone.at(path), content, dtype)
        model = _create(backbone.architecture, backbone, dtype, _settings(backbone))
        source = f"backbone '{backbone.text}': {path.name}"
        weights_file.load_into(model, _in_open_clips_layout(content.tensors, source), source)
        return model, tokenizer


def _in_open_clips_layout(tensors: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """Tensors in open_clip's layout: those of transformers converted, others unchanged."""
    if openai_format.TRANSFORMERS_KEY not in tensors:
        return tensors
    kind = "siglip" if "logit_bias" in tensors else "clip"
    with refusing_misfits(f"{source} does not fit"):
        return transformers_format.converted(tensors, kind, source)


def _described(backbone: BackboneName, content: WeightsFile) -> tuple[dict[str, Any], settings.Settings]:
    """Architecture of a file in OpenAI's layout, and the settings that its tensors do not show."""
    source = str(backbone.file)
    openai_format.require_layout(content.tensors, source)
    said = settings.of_openais_layout(backbone, content)
    architecture = openai_format.architecture_of(content.tensors, content.metadata, source)
    return {**architecture, "quick_gelu": said["quick_gelu"]}, said


def _load_openai(backbone: BackboneName, dtype: torch.dtype) -> tuple[nn.Module, Tokenizer]:
    return _built(backbone, weights_file.read(backbone.file), dtype)


def _built(backbone: BackboneName, content: WeightsFile, dtype: torch.dtype) -> tuple[nn.Module, Tokenizer]:
    """The model in a file in OpenAI's layout."""
    architecture, _ = _described(backbone, content)
    model = openai_format.build(content.tensors, architecture, dtype, str(backbone.file))
    return model, Tokenizer(architecture["text_cfg"]["context_length"])


def _load_folder(backbone: BackboneName, dtype: torch.dtype) -> tuple[nn.Module, Tokenizer]:
    folder = model_folder.of(backbone)
    if folder.open_clip is not None:
        require_text_encoder(folder.open_clip["text_cfg"], backbone.text)
    tokenizer = folder.tokenizer()
    path = folder.weights()
    tensors = weights_file.read(path).tensors
    if folder.transformers is not None:
        return transformers_format.build(folder.transformers, tensors, dtype, str(path)), tokenizer
    with tempfile.TemporaryDirectory() as place:  # the factory reads descriptions from files only
        write_json({"model_cfg": folder.open_clip}, Path(place) / settings.CONFIG_FILE)
        model = _create(f"local-dir:{place}", backbone, dtype, {})
    weights_file.load_into(model, tensors, f"backbone '{backbone.text}': {path.name}")
    return model, tokenizer


def _create(architecture: str, backbone: BackboneName, dtype: torch.dtype, known: settings.Settings) -> nn.Module:
    """Create the model with open_clip's own factory and random weights."""
    import open_clip

    try:
        model = open_clip.create_model(
            architecture,
            load_weights=False,
            precision=_OPEN_CLIP_PRECISIONS[dtype],
            force_quick_gelu=bool(known.get("quick_gelu")),
            pretrained_text=False,
        )
        return _in_one_precision(model, dtype)
    except _OPEN_CLIP_ERRORS as error:
        raise UserError(f"cannot load backbone '{backbone.text}': {_one_line(error)}") from error


def _in_one_precision(model: Any, dtype: torch.dtype) -> nn.Module:
    """Convert what open_clip forgets, although it meets matrices in `dtype`: Hugging Face text encoders, CoCa's
    class token, and the queries of an attentional pooling."""
    from open_clip.transformer import AttentionalPooler

    if hasattr(getattr(model, "text", None), "pooler"):
        model.text.to(dtype)
    parameters = [getattr(getattr(model, "text", None), "cls_emb", None)]
    parameters += [module.query for module in model.modules() if isinstance(module, AttentionalPooler)]
    for parameter in parameters:
        if parameter is not None:
            parameter.data = parameter.data.to(dtype)
    return model


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


@contextlib.contextmanager
def _quiet_root_logger() -> Iterator[None]:
    """Keep open_clip from configuring the root logger.

    It logs there, and the first such call adds a permanent handler, which would print all our lines twice.
    """
    root, handler = logging.getLogger(), logging.NullHandler()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
