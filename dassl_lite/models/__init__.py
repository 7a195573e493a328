"""Models: CLIP through open_clip, and the modules that methods build on it.

`clip` loads a backbone by name (`names` parses it, `published_weights` finds or downloads the file, `openai_format`
reads OpenAI's layout) and returns a `CLIPBackbone`: both encoders with `tokenizer` and preprocessing. Its text encoder
runs in `text_tower`, over `text_layers`. `precomputed_backbone` stands in for it on a dataset of features, and
`clip_model` offers its image encoder with a linear layer as a plain module. `prompts` turns class names into class
weights. The other files are the methods' parts: prompt learners, heads, the key-value cache, LoRA and logistic
regression.

open_clip takes a while to import, and listings and runs on feature files do without it: the functions that use it
import it.
"""

from __future__ import annotations

from dassl_lite.models.clip import CLIPBackbone, load_clip
from dassl_lite.models.clip_model import CLIPModel

__all__ = ["CLIPBackbone", "CLIPModel", "load_clip"]
