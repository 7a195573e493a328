# ruff: noqa
"""As papers copy OpenAI's package: names of models, a download that checks a digest, a tokenizer."""

import os
import urllib.request

import open_clip
import torch
from pkg_resources import packaging

from .model import build_model

__all__ = ["available_models", "load", "tokenize"]

_MODELS = {
    "RN50": "https://openaipublic.azureedge.net/clip/models/afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762/RN50.pt",
    "tiny": "https://nowhere.invalid/clip/models/0123/tiny-of-paper.pt",
}


def _download(url: str, root: str = os.path.expanduser("~/.cache/clip-of-paper")):
    os.makedirs(root, exist_ok=True)
    target = os.path.join(root, os.path.basename(url))
    urllib.request.urlretrieve(url, target)
    return target


def available_models():
    return list(_MODELS.keys())


def load(name, device="cpu"):
    if name in _MODELS:
        model_path = _download(_MODELS[name])
    elif os.path.isfile(name):
        model_path = name
    else:
        raise RuntimeError(f"Model {name} not found; available models = {available_models()}")
    try:
        model = torch.jit.load(model_path, map_location=device).eval()
        state_dict = None
    except RuntimeError:
        state_dict = torch.load(model_path, map_location="cpu")
    return build_model(state_dict or model.state_dict())


def tokenize(texts, context_length=77):
    assert packaging.version.parse(torch.__version__.split("+")[0]) > packaging.version.parse("1.8.0")
    return open_clip.SimpleTokenizer(context_length=context_length)(texts)
