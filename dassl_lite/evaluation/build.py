"""Finding an evaluator by the name in the config."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dassl_lite.config import CN
from dassl_lite.utils.registry import Registry

if TYPE_CHECKING:
    from dassl_lite.evaluation.evaluator import EvaluatorBase

logger = logging.getLogger(__name__)

EVALUATOR_REGISTRY = Registry("evaluator")


def build_evaluator(cfg: CN, lab2cname: Mapping[int, str] | None = None, **kwargs: Any) -> EvaluatorBase:
    """The evaluator that TEST.EVALUATOR names; a UserError lists the choices for any other name."""
    evaluator = EVALUATOR_REGISTRY.get(cfg.TEST.EVALUATOR)
    if cfg.VERBOSE:
        logger.info("Loading evaluator: %s", cfg.TEST.EVALUATOR)
    return evaluator(cfg, lab2cname=lab2cname, **kwargs)
