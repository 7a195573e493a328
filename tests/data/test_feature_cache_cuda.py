"""Extraction on the GPU stand-in gives the CPU's features and copies without waiting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cuda_standin
import numpy as np
import pytest
import torch
from feature_toys import draw_images, noisy, store
from PIL import Image
from torch import Tensor
from torchvision import transforms as T

pytestmark = pytest.mark.slow

WEIGHT = torch.linspace(-1, 1, 5 * 3 * 6 * 6).reshape(5, 3, 6, 6)
NORMALISED = T.Compose([T.Resize((6, 6)), T.ToTensor(), T.Normalize((0.48, 0.45, 0.40), (0.26, 0.25, 0.27))])


def encoder(weight: Tensor, seen: list[int]) -> Any:
    def encode(inputs: Tensor) -> Tensor:
        seen.append(len(inputs))
        return (inputs[:, None] * weight).flatten(2).sum(-1)

    return encode


def fetched(paths: list[str], device: str, transform: Any, views: int) -> dict[str, Any]:
    """The features, the batch sizes of the encoder, and the counted copies and waits."""
    seen: list[int] = []
    weight = WEIGHT.to(device)
    with cuda_standin.counting() as counts:
        found = store(None, transform=transform, views=views).fetch(
            paths, encoder(weight, seen), device=device, batch_size=4, on_error="skip"
        )
    return {
        "features": found.tensor.numpy().copy(),
        "kept": found.kept.tolist(),
        "batches": seen,
        "waits": {name.split()[0] for name in counts.waits},
        "copies": counts.copies.total(),
    }


@pytest.mark.parametrize(("transform", "views"), [(NORMALISED, 1), (NORMALISED, 2), (noisy, 3)])
def test_gpu_features_equal_cpu_features(tmp_path: Path, on_cuda: Any, transform: Any, views: int) -> None:
    paths = draw_images(tmp_path / "a", 9)
    Path(paths[5]).write_bytes(b"no picture")
    Image.effect_noise((6, 6), 90).convert("RGB").save(tmp_path / "a" / "photo.jpg")
    paths.append(str(tmp_path / "a" / "photo.jpg"))
    here = fetched(paths, "cpu", transform, views)
    there = on_cuda(fetched, paths, "cuda", transform, views)
    assert there["kept"] == here["kept"]
    np.testing.assert_allclose(there["features"], here["features"], rtol=1e-6)
    assert max(there["batches"]) <= 4
    assert there["waits"] <= {"copy_", "event"}  # the features of each batch, while the next is encoded
    assert there["copies"] <= 3 + len(there["batches"])  # one per batch, and the lookup table
