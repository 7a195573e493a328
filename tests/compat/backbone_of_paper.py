"""What a paper keeps beside its trainers: here a tiny open_clip model, by the name in MODEL.BACKBONE.NAME."""

import open_clip
import torch

_VISION = {"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8}
_TEXT = {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}


def load(name):
    assert name == "tiny"
    state = torch.get_rng_state()
    torch.manual_seed(0)
    model = open_clip.CLIP(embed_dim=16, vision_cfg=_VISION, text_cfg=_TEXT).eval()
    torch.set_rng_state(state)
    return model, open_clip.SimpleTokenizer(context_length=12)
