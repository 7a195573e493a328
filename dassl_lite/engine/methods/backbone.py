"""Loads the frozen CLIP of a run: its precision, sharing between runs, and the stand-in for feature datasets."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor

from dassl_lite.data import DatasetBase
from dassl_lite.data.feature_files import FeatureDataset
from dassl_lite.models import names
from dassl_lite.models.clip import PRECISIONS, CLIPBackbone, load_clip, preprocessing
from dassl_lite.models.names import DEMO
from dassl_lite.models.precomputed_backbone import PrecomputedBackbone
from dassl_lite.models.prompts import fill_template
from dassl_lite.utils import devices
from dassl_lite.utils.errors import UserError, unknown
from dassl_lite.utils.logger import get_logger
from dassl_lite.utils.sharing import BACKBONE, Kept, is_shared, shared, sharing, stamp

logger = get_logger(__name__)

KNOWS_SHAPES = (
    "The backbone demo knows drawn shapes only, and will not recognise photographs: choose another, such as "
    "--backbone ViT-B/16 (MODEL.BACKBONE.NAME)"
)


AUTO = "auto"  # value of PREC


def known_precision(name: str, value: Any) -> None:
    """Rule for a config key: one of the precisions, or auto."""
    if value != AUTO and value not in PRECISIONS:
        raise unknown("precision", value, [AUTO, *PRECISIONS], hint=f"Set {name} to one of them.")


def precision_on(device: torch.device, wanted: str, *, only_encodes: bool) -> str:
    """The precision to run in.

    auto is fp16 if encoders are only used for inference and float16 is fast, and fp32 otherwise. Features in fp16 are
    within 2e-3 of fp32's; those in bf16, which is as fast, only within 2e-2 (``tools/bench.py precision``). Other
    values are used as given, except that fp16 on a CPU becomes fp32, with a warning: the field's yaml files ask for
    fp16, but a CPU has no fast half-precision arithmetic, and float32 only adds accuracy.

    Args:
        wanted: one of the precisions, or auto.
        only_encodes: whether there is something to encode, and no gradient runs through an encoder.
    """
    if wanted == AUTO:
        return "fp16" if only_encodes and devices.has_fast_float16(device) else "fp32"
    if wanted == "fp16" and device.type == "cpu":
        logger.warning("PREC fp16 needs a GPU; running in fp32 on this CPU")
        return "fp32"
    return wanted


def frozen_clip(
    dataset: DatasetBase, name: str, wanted: str, device: torch.device, *, method: str, only_encodes: bool
) -> tuple[CLIPBackbone | PrecomputedBackbone, str]:
    """Load the frozen CLIP of a run, or the stand-in for the encoder of a feature dataset; also returns its precision.

    With PREC auto, a backbone that overflows in float16 is loaded in float32, with a warning.

    Args:
        name: name of the backbone.
        wanted: one of the precisions, or auto.
        method: name of the method, for messages.
        only_encodes: see `precision_on`.
    """
    precision = precision_on(device, wanted, only_encodes=only_encodes and not isinstance(dataset, FeatureDataset))
    if isinstance(dataset, FeatureDataset):
        return _stand_in(dataset, method).to(device), precision
    logger.info(f"Loading CLIP (backbone: {name})")
    if name == DEMO and not getattr(dataset, "drawn", True):
        logger.warning(KNOWS_SHAPES)
    clip = _load(name, precision, device)
    if wanted == AUTO and precision == "fp16" and overflows(clip):
        logger.warning(f"Backbone {clip.name} overflows in float16: running in float32 (PREC auto)")
        clip, precision = _load(name, "fp32", device), "fp32"
    return clip, precision


def _stand_in(dataset: FeatureDataset, method: str) -> PrecomputedBackbone:
    """The stand-in for the encoder of a feature dataset."""
    file = dataset.file
    return PrecomputedBackbone(
        dataset.text_weights,
        [[fill_template(template, name) for name in dataset.classnames] for template in file.templates],
        file.logit_scale,
        bias=file.logit_bias,
        name=file.backbone or None,
        digest=file.backbone_digest,
        precision=file.precision,
        method=method,
        source=f"dataset {type(dataset).__name__} ({dataset.image_dir})",
        projection=None if file.projection is None else torch.from_numpy(file.projection),
        projection_bias=None if file.projection_bias is None else torch.from_numpy(file.projection_bias),
    )


@torch.no_grad()
def overflows(clip: CLIPBackbone) -> bool:
    """Whether features of a grey, a white and two noise images, or of a text, are infinite or NaN in its precision."""
    noise = torch.rand(2, 3, *clip.image_size, generator=torch.Generator().manual_seed(0))
    pixels = torch.cat([torch.full_like(noise[:1], 0.5), torch.ones_like(noise[:1]), noise])
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (clip.mean, clip.std))
    features = clip.encode_image(((pixels - mean) / std).to(clip.device)), clip.encode_text(clip.tokenize(["a photo."]))
    return not all(bool(part.isfinite().all()) for part in features)


def shared_backbone(kept: Kept | None = None) -> AbstractContextManager[None]:
    """A context in which consecutive runs with the same backbone load it once; each gets a copy that it may change.

    Runs share nothing else.

    Args:
        kept: holds the backbone, for contexts that share it; by default each context has its own.
    """
    return sharing(kept, (BACKBONE,))


def _load(name: str, precision: str, device: torch.device) -> CLIPBackbone:
    def load() -> CLIPBackbone:
        return load_clip(name, precision=precision, device=device).requires_grad_(False).eval()

    if not is_shared(BACKBONE):
        return load()
    path = names.parse(name).path
    clip = shared(BACKBONE, (name, precision, str(device), path and stamp(path)), load)
    return copy.deepcopy(clip, {id(clip.tokenizer): clip.tokenizer})  # nothing changes a tokenizer


@contextmanager
def reports_wrong_size(clip: Any, backbone: str, images: Tensor) -> Iterator[None]:
    """A context that encodes ``images`` (B, 3, H, W) with a CLIP; a UserError names the right size if it differs."""
    try:
        yield
    except (RuntimeError, AssertionError, ValueError) as error:
        size, wanted = tuple(images.shape[-2:]), preprocessing(backbone).size
        if size == tuple(wanted):
            raise
        raise UserError(
            f"backbone {clip.name} takes images of {wanted} pixels, not {size}; leave INPUT.SIZE and "
            "INPUT.NO_TRANSFORM as they are"
        ) from error
