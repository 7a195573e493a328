"""Greyscale images of more than 8 bits: the value range comes from the file's metadata or else from its values."""

from __future__ import annotations

import logging
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from dassl_lite.data import grey, read_image

STEPS = np.array([[0, 51, 128, 255]])  # how every image below must look, whatever its values

# Kind of file -> extension and pixel values.
KINDS: dict[str, tuple[str, Any]] = {
    "all of 16 bits": ("png", (STEPS * 257).astype(np.uint16)),
    "all of 16 bits, tif": ("tif", (STEPS * 257).astype(np.uint16)),
    "12 bits in 16": ("png", np.round(STEPS * 4095 / 255).astype(np.uint16)),
    "12 bits in 16, tif": ("tif", np.round(STEPS * 4095 / 255).astype(np.uint16)),
    "12 bits in 32": ("tif", np.round(STEPS * 4095 / 255).astype(np.int32)),
    "16 bits in 32": ("tif", (STEPS * 257).astype(np.int32)),
    "8 bits in 16": ("png", STEPS.astype(np.uint16)),
    "8 bits in 16, tif": ("tif", STEPS.astype(np.uint16)),
    "8 bits in 32": ("tif", STEPS.astype(np.int32)),
    "0 to 1": ("tif", (STEPS / 255).astype(np.float32)),
    "0 to 255": ("tif", STEPS.astype(np.float32)),
    "0 to 65535": ("tif", (STEPS * 257).astype(np.float32)),
    "-1 to 1": ("tif", (STEPS / 127.5 - 1).astype(np.float32)),
    "negative integers": ("tif", (STEPS * 10 - 1000).astype(np.int32)),
    "an unusual range": ("tif", (STEPS * 20.0 - 1000).astype(np.float32)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_value_range_is_scaled_from_black_to_white(tmp_path: Path, kind: str) -> None:
    ending, values = KINDS[kind]
    path = tmp_path / f"image.{ending}"
    Image.fromarray(values).save(path)
    image = read_image(path)
    assert image.mode == "RGB"
    assert np.asarray(image)[0, :, 0].tolist() == STEPS[0].tolist()


@pytest.mark.parametrize(
    ("values", "low", "high"),
    [([0.0, 0.5], 0, 1), ([-0.5, 0.5], -1, 1), ([0.0, 1.5], 0, 255), ([-1.5, 0.5], -1.5, 0.5), ([-9.0, -8.5], -9, -8)],
)
def test_floats_are_read_as_0_to_1_or_minus_1_to_1_only_if_all_values_fit(
    values: list[float], low: float, high: float
) -> None:
    image = Image.fromarray(np.array([values], dtype=np.float32))
    found = grey.range_of(image, np.array(values), "image.tif")
    assert (found.low, found.high) == (low, high)


def test_values_slightly_outside_0_to_1_are_clipped(tmp_path: Path) -> None:
    Image.fromarray(np.array([[-0.02, 0.2, 1.03]], dtype=np.float32)).save(tmp_path / "image.tif")
    assert np.asarray(read_image(tmp_path / "image.tif"))[0, :, 0].tolist() == [0, 51, 255]


def test_nan_is_black_and_infinity_is_clipped(tmp_path: Path) -> None:
    values = np.array([[np.nan, 0.2, 1, np.inf, -np.inf]], dtype=np.float32)
    Image.fromarray(values).save(tmp_path / "image.tif")
    assert np.asarray(read_image(tmp_path / "image.tif"))[0, :, 0].tolist() == [0, 51, 255, 255, 0]


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_a_black_image_stays_black(tmp_path: Path, dtype: Any) -> None:
    Image.fromarray(np.zeros((3, 3), dtype)).save(tmp_path / "image.tif")
    assert np.asarray(read_image(tmp_path / "image.tif")).max() == 0


# ---- ranges from metadata --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("tag", "kind"), [(281, 3), (341, 3)])
def test_the_largest_value_is_read_from_tiff_tags(tmp_path: Path, tag: int, kind: int) -> None:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags.tagtype[tag] = kind
    tags[tag] = 1023
    Image.fromarray(np.array([[0, 100, 1023]], np.uint16)).save(tmp_path / "image.tif", tiffinfo=tags)
    assert np.asarray(read_image(tmp_path / "image.tif"))[0, :, 0].tolist() == [0, 25, 255]


def test_the_largest_value_is_read_from_a_pgm_header(tmp_path: Path) -> None:
    (tmp_path / "image.pgm").write_bytes(b"P5 3 1 1023\n" + struct.pack(">HHH", 0, 100, 1023))
    assert np.asarray(read_image(tmp_path / "image.pgm"))[0, :, 0].tolist() == [0, 25, 255]
    (tmp_path / "dark.pgm").write_bytes(b"P5 2 1 65535\n" + struct.pack(">HH", 0, 257))
    assert np.asarray(read_image(tmp_path / "dark.pgm"))[0, :, 0].tolist() == [
        0,
        1,
    ]  # the header gives the range, so the image stays dark


def png_with_significant_bits(path: Path, values: Any, bits: int) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", len(values), 1, 16, 0, 0, 0, 0)) + chunk(b"sBIT", bytes([bits]))
    pixels = zlib.compress(b"\0" + struct.pack(f">{len(values)}H", *values))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", pixels) + chunk(b"IEND", b""))


@pytest.mark.parametrize(
    ("bits", "values", "expected"),
    [
        (10, [0, 100, 1023], [0, 25, 255]),  # as common programs write it
        (10, [0, 100 << 6, 1023 << 6], [0, 25, 255]),  # as the PNG standard says
        (12, [0, 16, 32], [0, 0, 0]),  # very dark according to the standard
        (16, [0, 257, 514], [0, 1, 2]),  # dark, not 12 bits
    ],
)
def test_the_number_of_significant_bits_is_read_from_a_png(
    tmp_path: Path, bits: int, values: list[int], expected: list[int]
) -> None:
    png_with_significant_bits(tmp_path / "image.png", values, bits)
    assert np.asarray(read_image(tmp_path / "image.png"))[0, :, 0].tolist() == expected


# ---- log messages ----------------------------------------------------------------------------------------------------


def test_each_kind_of_range_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for kind in range(len(grey._TOLD)):
        grey._TOLD[kind] = 0
    for number in range(3):
        for kind in ("12 bits in 16", "8 bits in 16"):
            Image.fromarray(KINDS[kind][1]).save(tmp_path / f"{kind} {number}.png")
    with caplog.at_level(logging.INFO):
        for path in sorted(tmp_path.iterdir()):
            read_image(path)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2
    assert "12 bits in 16 0.png' from the range 0 to 4095" in messages[0]
    assert "8 bits in 16 0.png' from the range 0 to 255" in messages[1]


@pytest.mark.parametrize(
    ("values", "warned"), [((20, 200, 255), True), ((4095, 0, 9), True), ((51400, 2570, 5140), False)]
)
def test_a_16_bit_colour_image_that_becomes_black_logs_a_warning(
    tmp_path: Path, values: tuple[int, ...], warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0))
    pixel = chunk(b"IDAT", zlib.compress(b"\0" + struct.pack(">HHH", *values)))
    (tmp_path / "wide.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + pixel + chunk(b"IEND", b""))
    grey._TOLD[len(grey._TOLD) - 1] = 0
    read_image(tmp_path / "wide.png")
    read_image(tmp_path / "wide.png")
    assert caplog.text.count("all but black") == int(warned)
