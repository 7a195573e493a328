"""Registries of image networks, for trainers that do not use CLIP.

Shapes: B images, H x W pixels.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from dassl_lite.utils.logger import get_logger
from dassl_lite.utils.registry import Registry

logger = get_logger(__name__)

BACKBONE_REGISTRY = Registry("backbone")
HEAD_REGISTRY = Registry("head")
NETWORK_REGISTRY = Registry("network")


def build_backbone(name: str, verbose: bool = True, **kwargs: Any) -> Any:
    """Build a registered backbone, which maps images (B, 3, H, W) to features (B, ``out_features``)."""
    return _build(BACKBONE_REGISTRY, name, verbose, kwargs)


def build_head(name: str, verbose: bool = True, **kwargs: Any) -> Any:
    """Build a registered head, which maps features (B, ``in_features``) to features (B, ``out_features``)."""
    return _build(HEAD_REGISTRY, name, verbose, kwargs)


def build_network(name: str, verbose: bool = True, **kwargs: Any) -> Any:
    """Build a registered network of any other kind."""
    return _build(NETWORK_REGISTRY, name, verbose, kwargs)


def _build(registry: Registry, name: str, verbose: bool, kwargs: dict[str, Any]) -> nn.Module:
    make = registry.get(name)
    if verbose:
        logger.info(f"{registry.kind.capitalize()}: {name}")
    return make(**kwargs)
