"""Few-shot adaptation of CLIP: trainers, datasets, one protocol. See README.md."""

from dassl_lite.startup import prepare_tool

__all__ = ["__version__"]

__version__ = "0.1.0"

prepare_tool()
