"""Few-shot adaptation of CLIP: trainers, datasets, one protocol. See README.md."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dassl_lite.startup import prepare_tool

if TYPE_CHECKING:
    from dassl_lite.classifier import FewShotClassifier

__all__ = ["FewShotClassifier", "__version__"]

__version__ = "0.1.0"

prepare_tool()


def __getattr__(name: str) -> Any:
    """`FewShotClassifier`, with torch and all it needs, once it is asked for."""
    if name == "FewShotClassifier":
        from dassl_lite.classifier import FewShotClassifier

        return FewShotClassifier
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
