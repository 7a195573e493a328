"""Transforms and loaders compared with the output of the reference (golden/dassl_protocol)."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch

from dassl_lite.config import get_cfg_default
from dassl_lite.data import Datum, build_data_loader, build_transform, read_image
from dassl_lite.utils.seeding import set_random_seed

CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]
CLIP_STD = [0.26862954, 0.26130258, 0.27577711]
IMAGENET = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


@pytest.fixture(scope="session")
def protocol(golden: Any) -> Any:
    return golden.json("dassl_protocol")


@pytest.fixture(scope="session")
def outputs(golden: Any) -> Any:
    return golden.npz("dassl_protocol")


def config(size: int | tuple[int, int], interpolation: str = "bicubic", transforms: tuple[str, ...] = ()) -> Any:
    cfg = get_cfg_default()
    cfg.INPUT.SIZE = (size, size) if isinstance(size, int) else size
    cfg.INPUT.INTERPOLATION = interpolation
    cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD = CLIP_MEAN, CLIP_STD
    cfg.INPUT.TRANSFORMS = transforms
    return cfg


def default_config() -> Any:
    """Dassl's own defaults in another shape, with a flip and normalisation."""
    cfg = config((24, 40), "bilinear", ("random_flip", "normalize"))
    cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD = IMAGENET
    return cfg


@pytest.mark.parametrize("size", [32, 64, 224])
@pytest.mark.parametrize("part", ["test", "train"])
def test_log_lines_and_repr_of_the_transforms_equal_the_reference(
    protocol: Any, caplog: pytest.LogCaptureFixture, part: str, size: int
) -> None:
    with caplog.at_level(logging.INFO):
        transform = build_transform(config(size), is_train=part == "train")
    assert caplog.messages == protocol["transforms"]["printed"][f"{part}{size}"].splitlines()
    assert repr(transform) == protocol["transforms"]["repr"][f"{part}{size}"]


def test_log_lines_for_another_shape_equal_the_reference(protocol: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        build_transform(default_config(), is_train=False)
        train = build_transform(default_config(), is_train=True)
    assert caplog.messages == protocol["transforms"]["printed"]["default_24x40_test_then_train"].splitlines()
    assert repr(train) == protocol["transforms"]["repr"]["default_24x40_train"]


@pytest.mark.parametrize(
    ("size", "name"),
    [(32, name) for name in ("rgb0", "rgb1", "rgb2", "gray", "rgba")] + [(64, "rgb0"), (64, "rgb1")],
)
def test_test_images_equal_the_reference(golden: Any, outputs: Any, size: int, name: str) -> None:
    transform = build_transform(config(size), is_train=False)
    image = transform(read_image(golden.path(f"images/{name}.png")))
    np.testing.assert_allclose(image.numpy(), outputs[f"tfm.test{size}.{name}.png"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["rgb0", "rgb1", "rgb2", "rgba"])
def test_large_test_images_equal_the_reference(golden: Any, protocol: Any, outputs: Any, name: str) -> None:
    transform = build_transform(config(224), is_train=False)
    image = transform(read_image(golden.path(f"images/{name}.png")))
    np.testing.assert_allclose(
        image[:, ::16, ::16].numpy(), outputs[f"tfm.test224.{name}.png.sub16"], rtol=0, atol=1e-6
    )
    mean, std, total = protocol["transforms"]["stats224"][f"{name}.png"]
    exact = image.double()
    assert exact.mean().item() == pytest.approx(mean, rel=1e-5)
    assert exact.std().item() == pytest.approx(std, rel=1e-5)
    assert exact.sum().item() == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize(
    ("key", "name", "cfg"),
    [
        ("tfm.test32_bilinear.rgb0.png", "rgb0", config(32, "bilinear")),
        ("tfm.test24x40_default.rgb1.png", "rgb1", default_config()),
    ],
)
def test_other_interpolations_and_shapes_equal_the_reference(
    golden: Any, outputs: Any, key: str, name: str, cfg: Any
) -> None:
    image = build_transform(cfg, is_train=False)(read_image(golden.path(f"images/{name}.png")))
    np.testing.assert_allclose(image.numpy(), outputs[key], rtol=0, atol=1e-6)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_training_images_equal_the_reference(golden: Any, outputs: Any, seed: int) -> None:
    transform = build_transform(config(32), is_train=True)
    torch.manual_seed(seed)
    image = transform(read_image(golden.path("images/rgb2.png")))
    np.testing.assert_allclose(image.numpy(), outputs[f"tfm.train32.seed{seed}.rgb2.png"], rtol=0, atol=1e-6)


def loader_cases() -> list[str]:
    sizes = [(n, 4) for n in (1, 3, 4, 5, 8, 11)] + [(n, 32) for n in (31, 32, 33, 70)]
    return [f"n{n}_bs{size}_{part}" for n, size in sizes for part in ("train", "test")]


@pytest.mark.slow_after(3)
@pytest.mark.parametrize("case", loader_cases())
def test_batches_equal_the_reference(golden: Any, protocol: Any, case: str) -> None:
    expected = protocol["loader"]["cases"][case]
    n, batch_size, part = case.split("_")
    cfg = config(32)
    cfg.DATALOADER.NUM_WORKERS = 0
    loader = build_data_loader(
        cfg,
        sampler_type="RandomSampler" if part == "train" else "SequentialSampler",
        data_source=[Datum(str(golden.path("images/rgb0.png")), i % 3) for i in range(int(n[1:]))],
        batch_size=int(batch_size[2:]),
        tfm=build_transform(cfg, is_train=False),  # uses no random numbers
        is_train=part == "train",
    )
    batches = list(loader)
    assert len(loader) == expected["len"]
    assert loader.drop_last == expected["drop_last"]
    assert [len(batch["label"]) for batch in batches] == expected["batch_sizes"]
    assert sorted(batches[0]) == expected["keys"]
    for seed, epochs in expected.get("index_order", {}).items():
        set_random_seed(int(seed))
        for order in epochs:
            assert [int(index) for batch in loader for index in batch["index"]] == order
