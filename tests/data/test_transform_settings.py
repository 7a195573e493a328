"""Settings of the random transforms: each key has the effect that its comment describes."""

from __future__ import annotations

import colorsys
import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from dassl_lite.config import get_cfg_default
from dassl_lite.data.transforms import RandAugment, RandAugment2, RandAugmentFixMatch, augmentations, build_transform

# Magnitudes at 0 and 30 in the published implementation that Dassl copies.
RANDAUGMENT = {
    "autocontrast": (0, 1),
    "equalize": (0, 1),
    "invert": (0, 1),
    "rotate": (0, 30),
    "posterize": (4, 8),
    "solarize": (0, 256),
    "solarize_add": (0, 110),
    "color": (0.1, 1.9),
    "contrast": (0.1, 1.9),
    "brightness": (0.1, 1.9),
    "sharpness": (0.1, 1.9),
    "shear_x": (0.0, 0.3),
    "shear_y": (0.0, 0.3),
    "cutout": (0, 40),
    "translate_x_pixels": (0, 100),
    "translate_y_pixels": (0, 100),
}
PER_OPERATION = {
    "autocontrast": (0, 1),
    "equalize": (0, 1),
    "identity": (0, 1),
    "posterize": (4, 8),
    "rotate": (-30, 30),
    "shear_x": (-0.3, 0.3),
    "shear_y": (-0.3, 0.3),
    "solarize": (0, 256),
    "translate_x": (-0.3, 0.3),
    "translate_y": (-0.3, 0.3),
}
ENHANCEMENTS = ("brightness", "color", "contrast", "sharpness")


def transform(choice: str, **settings: Any) -> Callable[[Image.Image], Tensor]:
    """The transform that the config's ``choice`` gives for images of 32 x 32 pixels."""
    cfg = get_cfg_default()
    cfg.INPUT.SIZE, cfg.INPUT.INTERPOLATION = (32, 32), "nearest"
    for key, value in settings.items():
        cfg.INPUT[key] = value
    built = build_transform(cfg, choices=[choice])
    assert built is not None
    return built


def noise() -> Image.Image:
    return Image.fromarray(np.random.RandomState(0).randint(0, 256, (32, 32, 3), dtype=np.uint8))


def share_changed(apply: Callable[[Image.Image], Tensor], image: Image.Image, times: int = 200) -> float:
    torch.manual_seed(0)
    unchanged = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
    return sum(not torch.equal(apply(image), unchanged) for _ in range(times)) / times


def recording(table: Sequence[Any], seen: dict[str, float]) -> tuple[Any, ...]:
    """``table`` with operations that record their magnitude and return the image unchanged."""

    def recorder(name: str) -> Callable[[Image.Image, float], Image.Image]:
        def note(image: Image.Image, magnitude: float) -> Image.Image:
            seen[name] = magnitude
            return image

        return note

    return tuple((recorder(operation.__name__), low, high) for operation, low, high in table)


@pytest.mark.parametrize("m", [0, 10, 30])
def test_randaugment_scales_magnitudes_linearly_up_to_30(m: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, float] = {}
    monkeypatch.setattr(augmentations, "ORIGINAL", recording(augmentations.ORIGINAL, seen))
    random.seed(0)
    RandAugment(n=500, m=m)(noise())
    assert seen == pytest.approx({name: low + (high - low) * m / 30 for name, (low, high) in RANDAUGMENT.items()})


@pytest.mark.parametrize("drawn", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(
    ("kind", "table", "enhancement", "extra"),
    [
        (RandAugment2(n=500, p=1.0), "SECOND", (0.1, 1.9), {"invert": (0, 1)}),
        (RandAugmentFixMatch(n=500), "FIXMATCH", (0.05, 0.95), {}),
    ],
    ids=["randaugment2", "fixmatch"],
)
def test_a_drawn_magnitude_is_scaled_to_the_range_of_its_operation(
    kind: Callable[[Image.Image], Image.Image],
    table: str,
    enhancement: tuple[float, float],
    extra: dict[str, tuple[float, float]],
    drawn: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: dict[str, float] = {}
    monkeypatch.setattr(augmentations, table, recording(getattr(augmentations, table), seen))
    choices = random.Random(0).choices
    monkeypatch.setattr(augmentations.random, "choices", choices)
    monkeypatch.setattr(augmentations.random, "random", lambda: drawn)
    kind(noise())
    ranges = PER_OPERATION | dict.fromkeys(ENHANCEMENTS, enhancement) | extra
    assert seen == pytest.approx({name: low + (high - low) * drawn for name, (low, high) in ranges.items()})


def test_randaugment_m_sets_the_strength() -> None:
    image = noise()
    seen = {}
    for m in (1, 30):
        random.seed(3)
        np.random.seed(3)
        seen[m] = [transform("randaugment", RANDAUGMENT_N=1, RANDAUGMENT_M=m)(image) for _ in range(40)]
    changed = [not torch.equal(weak, strong) for weak, strong in zip(seen[1], seen[30], strict=True)]
    assert sum(changed) > 20


@pytest.mark.parametrize("choice", ["randaugment", "randaugment2", "randaugment_fixmatch"])
def test_randaugment_n_sets_the_number_of_operations(choice: str, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = []
    draw = random.choices
    monkeypatch.setattr(augmentations.random, "choices", lambda table, k: counts.append(k) or draw(table, k=k))
    transform(choice, RANDAUGMENT_N=3)(noise())
    assert counts == [3]


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("choice", "key"), [("gaussian_blur", "GB_P"), ("randomgrayscale", "RGS_P")])
def test_a_probability_is_the_share_of_changed_images(choice: str, key: str, p: float) -> None:
    share = share_changed(transform(choice, **{key: p}), noise())
    assert share == pytest.approx(p, abs=0.08 if p else 0.0)  # a weak blur may change no pixel


def test_the_blurs_kernel_bounds_how_far_a_pixel_spreads() -> None:
    image = Image.new("RGB", (32, 32))
    image.putpixel((16, 16), (255, 255, 255))
    for kernel in (3, 7):
        lit = transform("gaussian_blur", GB_P=1.0, GB_K=kernel)(image)[0] > 0
        rows = lit.any(1).nonzero()
        assert int(rows.max() - rows.min()) + 1 <= kernel
        assert int(rows.max() - rows.min()) + 1 > 1


def jittered(key: str, strength: float, colour: tuple[int, int, int]) -> list[tuple[float, float, float]]:
    """The first pixel, as RGB in [0, 1], after 200 jitters of one kind."""
    kinds = dict.fromkeys(("COLORJITTER_B", "COLORJITTER_C", "COLORJITTER_S", "COLORJITTER_H"), 0.0)
    apply = transform("colorjitter", **kinds | {key: strength})
    torch.manual_seed(0)
    image = Image.new("RGB", (32, 32), colour)
    return [tuple(apply(image)[:, 0, 0].tolist()) for _ in range(200)]


@pytest.mark.parametrize("strength", [0.1, 0.4])
def test_hue_jitter_shifts_by_up_to_its_strength_and_changes_nothing_else(strength: float) -> None:
    shifts = []
    for pixel in jittered("COLORJITTER_H", strength, (255, 0, 0)):
        hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
        shifts.append(min(hue, 1 - hue))
        assert (saturation, value) == pytest.approx((1, 1), abs=0.02)
    assert 0.85 * strength < max(shifts) < strength + 0.01
    assert min(shifts) < 0.2 * strength


def test_brightness_jitter_scales_by_up_to_its_strength() -> None:
    factors = [pixel[0] / (100 / 255) for pixel in jittered("COLORJITTER_B", 0.4, (100, 100, 100))]
    assert 0.6 - 0.02 < min(factors) < 0.7
    assert 1.3 < max(factors) < 1.4 + 0.02


def test_saturation_jitter_scales_by_up_to_its_strength() -> None:
    spans = [max(pixel) - min(pixel) for pixel in jittered("COLORJITTER_S", 0.4, (150, 100, 100))]
    factors = [span / (50 / 255) for span in spans]
    assert 0.6 - 0.05 < min(factors) < 0.7
    assert 1.3 < max(factors) < 1.4 + 0.05


def test_contrast_jitter_keeps_the_mean_and_scales_deviations() -> None:
    apply = transform("colorjitter", COLORJITTER_B=0.0, COLORJITTER_S=0.0, COLORJITTER_H=0.0, COLORJITTER_C=0.4)
    pixels = np.full((32, 32, 3), 100, dtype=np.uint8)
    pixels[:16] = 150
    image = Image.fromarray(pixels)
    torch.manual_seed(0)
    factors = []
    for _ in range(200):
        changed = apply(image) * 255
        factors.append(float(changed[0, 0, 0] - changed[0, -1, 0]) / 50)
        assert float(changed.mean()) == pytest.approx(125, abs=1)
    assert 0.6 - 0.03 < min(factors) < 0.7
    assert 1.3 < max(factors) < 1.4 + 0.03


@pytest.mark.parametrize(("mean", "std"), [(0.0, 0.5), (2.0, 0.1)])
def test_gaussian_noise_has_its_mean_and_deviation(mean: float, std: float) -> None:
    apply = transform("gaussian_noise", GN_MEAN=mean, GN_STD=std)
    random.seed(0)
    torch.manual_seed(0)
    image = Image.new("RGB", (32, 32))
    noisy = [found for found in (apply(image) for _ in range(40)) if found.any()]
    assert len(noisy) > 10
    everything = torch.stack(noisy)
    assert everything.mean().item() == pytest.approx(mean, abs=0.02)
    assert everything.std().item() == pytest.approx(std, rel=0.02)


@pytest.mark.parametrize(("n", "length"), [(1, 6), (3, 4)])
def test_cutout_cuts_its_number_of_squares_of_its_side(n: int, length: int) -> None:
    np.random.seed(0)
    apply = transform("cutout", CUTOUT_N=n, CUTOUT_LEN=length)
    cut = [int((apply(Image.new("RGB", (32, 32), "white"))[0] == 0).sum()) for _ in range(100)]
    assert max(cut) == n * length**2  # if squares do not overlap or cross the border


@pytest.mark.parametrize("padding", [0, 4])
def test_crop_padding_bounds_how_far_the_image_moves(padding: int) -> None:
    apply = transform("random_crop", CROP_PADDING=padding)
    image = Image.new("RGB", (32, 32), "white")
    torch.manual_seed(0)
    black_rows = [int((apply(image)[0].amax(1) == 0).sum()) for _ in range(100)]
    assert max(black_rows) == padding


@pytest.mark.parametrize("scale", [(0.08, 0.1), (0.9, 1.0)])
def test_the_resized_crop_takes_a_share_of_the_area_within_its_scale(scale: tuple[float, float]) -> None:
    apply = transform("random_resized_crop", RRCROP_SCALE=scale)
    ramp = np.zeros((320, 320, 3), dtype=np.uint8)
    ramp[..., 0], ramp[..., 1] = np.arange(320)[:, None] * 255 // 320, np.arange(320) * 255 // 320
    torch.manual_seed(0)
    areas = []
    for _ in range(50):
        rows, columns = apply(Image.fromarray(ramp))[:2]
        areas.append(float((rows.max() - rows.min()) * (columns.max() - columns.min())) * (32 / 31) ** 2)
    assert min(areas) == pytest.approx(scale[0], abs=0.06)
    assert max(areas) == pytest.approx(scale[1], abs=0.06)
