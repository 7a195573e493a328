"""The backbone's base class, and pretrained weights from torchvision.

Shapes: B images, H x W pixels.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import URLError

import torch
from torch import nn

from dassl_lite.utils.errors import UserError
from dassl_lite.utils.lazy import lazy_module

if TYPE_CHECKING:
    import torchvision
else:
    torchvision = lazy_module("torchvision")


class Backbone(nn.Module):
    """Maps images (B, 3, H, W) to features (B, out_features). A subclass sets ``_out_features``."""

    _out_features: int | None = None

    @property
    def out_features(self) -> int | None:
        """Width of the features."""
        return self._out_features


def pretrained_weights(name: str) -> dict[str, Any]:
    """torchvision's ImageNet weights (IMAGENET1K_V1) of the model ``name``, from the cache or downloaded.

    Raises:
        UserError: they are not in the cache and the download fails.
    """
    weights = torchvision.models.get_model_weights(name)["IMAGENET1K_V1"]
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
    try:
        return dict(weights.get_state_dict(progress=True, check_hash=True, weights_only=True))
    except (URLError, OSError, RuntimeError) as error:
        raise UserError(
            f"pretrained weights of {name} are not at {path} and cannot be downloaded ({error}): save {weights.url} "
            "there, or set MODEL.BACKBONE.PRETRAINED False"
        ) from error
