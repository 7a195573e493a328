"""Registries of networks for trainers that start from images rather than from CLIP."""

from __future__ import annotations

import logging
from typing import Any

from torch import nn

from dassl_lite.utils.registry import Registry

logger = logging.getLogger(__name__)

BACKBONE_REGISTRY = Registry("backbone")
HEAD_REGISTRY = Registry("head")
NETWORK_REGISTRY = Registry("network")


def build_backbone(name: str, verbose: bool = True, **kwargs: Any) -> Any:
    """The registered backbone ``name``: images (B, 3, H, W) to features (B, ``out_features``)."""
    return _build(BACKBONE_REGISTRY, name, verbose, kwargs)


def build_head(name: str, verbose: bool = True, **kwargs: Any) -> Any:
    """The registered head ``name``: features (B, ``in_features``) to features (B, ``out_features``)."""
    return _build(HEAD_REGISTRY, name, verbose, kwargs)


def build_network(name: str, verbose: bool = True, **kwargs: Any) -> Any:
    """The registered network ``name`` of any other kind."""
    return _build(NETWORK_REGISTRY, name, verbose, kwargs)


def _build(registry: Registry, name: str, verbose: bool, kwargs: dict[str, Any]) -> nn.Module:
    make = registry.get(name)
    if verbose:
        logger.info("%s: %s", registry.kind.capitalize(), name)
    return make(**kwargs)
