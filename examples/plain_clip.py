"""What every method needs: a frozen CLIP, its image transforms, a few images per class. No dassl_lite."""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from open_clip.model import build_model_from_openai_state_dict
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import DataLoader, default_collate
from torchvision import transforms as T
from torchvision.datasets import ImageFolder
from torchvision.transforms import InterpolationMode

DEMO = Path(__file__).resolve().parents[1] / "dassl_lite" / "models" / "weights" / "demo.safetensors"


def parse_args(description: str, argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--images",
        required=True,
        help="{train,test}/<class>/*; train.py draws some into ~/.cache/dassl_lite/datasets/*/images",
    )
    parser.add_argument(
        "--backbone",
        default=str(DEMO),
        help="open_clip's NAME:TAG, or a .safetensors file in OpenAI's format (default: the demo CLIP)",
    )
    parser.add_argument("--shots", type=int, default=16, help="training images per class")
    parser.add_argument("--epochs", type=int, help="default: the paper's, by the number of shots")
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args(argv)


def load_clip(backbone: str) -> Any:
    """A frozen CLIP in float32: open_clip's NAME:TAG (ViT-B-16-quickgelu:openai) or a file in OpenAI's format."""
    if backbone.endswith(".safetensors"):
        state = load_file(backbone)
        if "token_embedding.rows" in state:  # the demo file omits the token embeddings that its training never used
            table = np.random.default_rng(2021).standard_normal((49408, 64), dtype=np.float32) * np.float32(0.02)
            table[state.pop("token_embedding.rows")] = state["token_embedding.weight"]
            state["token_embedding.weight"] = torch.from_numpy(table)
        model = build_model_from_openai_state_dict(state, cast_dtype=torch.float32)
    else:
        name, tag = backbone.split(":")
        model = open_clip.create_model(name, pretrained=tag)
    return model.float().eval().requires_grad_(False).to("cuda" if torch.cuda.is_available() else "cpu")


def load_images(folder: str, model: Any, shots: int, batch_size: int) -> tuple[DataLoader, DataLoader, list[str]]:
    """Loaders of the few-shot training set and the test set, and the class names (the names of the folders)."""
    size = model.visual.image_size  # pixels: a number for ResNets, (height, width) for transformers
    size = size if isinstance(size, int) else size[0]
    bicubic = InterpolationMode.BICUBIC
    to_input = [T.ToTensor(), T.Normalize(open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)]
    augment = [T.RandomResizedCrop(size, (0.08, 1), interpolation=bicubic), T.RandomHorizontalFlip()]
    resize = [T.Resize(size, bicubic), T.CenterCrop(size)]
    train = ImageFolder(f"{folder}/train", T.Compose(augment + to_input))
    test = ImageFolder(f"{folder}/test", T.Compose(resize + to_input))
    train.samples = few_shots(train.samples, shots)

    def collate(batch: list[tuple[Tensor, int]]) -> list[Tensor]:
        return [part.to(model.logit_scale.device) for part in default_collate(batch)]

    drop_last = len(train) >= batch_size  # an incomplete last batch is left out, but never the only one
    train_loader = DataLoader(train, batch_size, shuffle=True, drop_last=drop_last, collate_fn=collate)
    return train_loader, DataLoader(test, 500, collate_fn=collate), test.classes


def few_shots(samples: list[tuple[str, int]], shots: int) -> list[tuple[str, int]]:
    """``shots`` random images of each class, or all where it has fewer."""
    by_class: dict[int, list[tuple[str, int]]] = {}
    for path, label in samples:
        by_class.setdefault(label, []).append((path, label))
    return [item for group in by_class.values() for item in random.sample(group, min(shots, len(group)))]


@torch.no_grad()
def predict(model: Any, head: torch.nn.Module, loader: DataLoader) -> tuple[Tensor, Tensor]:
    """Logits (N, K) and labels (N,) of all images of a loader."""
    batches = [(head(model.encode_image(images)), labels) for images, labels in loader]
    return torch.cat([logits for logits, _ in batches]), torch.cat([labels for _, labels in batches])
