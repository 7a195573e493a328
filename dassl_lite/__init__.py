"""Few-shot adaptation of CLIP: trainers, datasets, one protocol. See README.md."""

__all__ = ["__version__"]

__version__ = "0.1.0"
