"""Precisions by their config names."""

from __future__ import annotations

from typing import Any

import torch

from dassl_lite.utils.errors import unknown
from dassl_lite.utils.logger import get_logger

logger = get_logger(__name__)

PRECISIONS = ("fp32", "fp16", "bf16", "amp")


def known_precision(key: str, value: Any) -> None:
    """Raise a UserError for a value of config key ``key`` that is no precision."""
    if value not in PRECISIONS:
        raise unknown("precision", value, PRECISIONS, hint=f"Set {key} to one of them.")


def precision_for(wanted: str, device: torch.device) -> str:
    """The precision to run in: ``wanted``, but fp32 in the place of fp16 on a CPU (said once, in the log).

    The field's yaml files ask for fp16; a CPU has no fast half-precision arithmetic, and float32 only adds accuracy.
    """
    if wanted == "fp16" and device.type == "cpu":
        logger.warning("PREC fp16 needs a GPU; running in fp32 on this CPU")
        return "fp32"
    return wanted
