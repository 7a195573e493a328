"""CLIP through open_clip, prompts, and the modules that methods share."""

from dassl_lite.models.clip import CLIPBackbone, load_clip
from dassl_lite.models.clip_model import CLIPModel

__all__ = ["CLIPBackbone", "CLIPModel", "load_clip"]
