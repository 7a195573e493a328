"""Reading images: every kind becomes 8-bit RGB, and a broken file is named in one line."""

from __future__ import annotations

import contextlib
import copy
import os
import socket
import struct
import subprocess
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dassl_lite.data import UnreadableImageError, read_image
from dassl_lite.data.images import image_extensions
from dassl_lite.utils.errors import UserError

RED = (200, 10, 20)


@pytest.mark.parametrize(
    ("mode", "colour", "ending", "expected"),
    [
        ("RGB", RED, "png", RED),
        ("RGBA", (*RED, 0), "png", RED),  # the alpha channel is dropped, not blended
        ("CMYK", (0, 255, 255, 0), "tif", (255, 0, 0)),
        ("L", 77, "png", (77, 77, 77)),
        ("LA", (77, 3), "png", (77, 77, 77)),
        ("1", 1, "png", (255, 255, 255)),
        ("P", 0, "gif", (0, 0, 0)),
    ],
)
def test_every_kind_of_image_becomes_rgb(
    tmp_path: Path, mode: str, colour: object, ending: str, expected: object
) -> None:
    path = tmp_path / f"image.{ending}"
    Image.new(mode, (4, 3), colour).save(path)  # type: ignore[arg-type]
    image = read_image(path)
    assert (image.mode, image.size) == ("RGB", (4, 3))
    assert image.getpixel((2, 1)) == expected


def test_a_cmyk_jpeg_keeps_its_colours(tmp_path: Path) -> None:
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "print.jpg")
    red, green, blue = read_image(tmp_path / "print.jpg").getpixel((8, 8))  # type: ignore[misc]
    assert red > 240
    assert max(green, blue) < 15


def test_a_sixteen_bit_colour_image_is_scaled(tmp_path: Path) -> None:
    # PIL cannot write one, so write the PNG chunks by hand: header, one big-endian 16-bit pixel, end.
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0))
    pixel = zlib.compress(b"\0" + struct.pack(">HHH", 200 * 257, 10 * 257, 20 * 257))
    (tmp_path / "wide.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", pixel) + chunk(b"IEND", b""))
    assert read_image(tmp_path / "wide.png").getpixel((0, 0)) == RED


def test_sixteen_bit_grey_is_scaled(tmp_path: Path) -> None:
    values = np.array([[0, 257, 128 * 257, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "wide.png")
    assert np.asarray(read_image(tmp_path / "wide.png"))[0, :, 0].tolist() == [0, 1, 128, 255]


def test_exif_rotation_is_ignored_as_in_the_reference(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: rotate by 90 degrees for display
    Image.new("RGB", (6, 4), RED).save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg").size == (6, 4)


def test_an_animation_gives_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, (0, 255, 0))]
    frames[0].save(tmp_path / "moving.png", save_all=True, append_images=frames[1:])
    assert read_image(tmp_path / "moving.png").getpixel((0, 0)) == RED


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not an image in a format that is read here"),
        (b"<html>over quota</html>", "not an image in a format that is read here"),
        (None, "no such file"),
        ("cut", "."),
    ],
)
def test_a_broken_image_is_named_in_one_line(tmp_path: Path, content: bytes | str | None, reason: str) -> None:
    path = tmp_path / "broken image.png"
    if content == "cut":
        Image.effect_noise((64, 64), 50).save(path)
        path.write_bytes(path.read_bytes()[:-200])
    elif isinstance(content, bytes):
        path.write_bytes(content)
    with pytest.raises(UserError, match=reason) as raised:
        read_image(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.fixture
def no_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        pytest.fail(f"a program was started: {args}")

    for name in ("Popen", "check_call", "check_output", "run"):
        monkeypatch.setattr(subprocess, name, refuse)


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
UNWANTED = {
    "EPS": EPS,
    "EPS in a binary header": struct.pack("<IIIIIII", 0xC6D3D0C5, 32, len(EPS), 0, 0, 0, 0) + b"\0" * 4 + EPS,
    "HDF5": b"\x89HDF\r\n\x1a\n" + b"\0" * 64,
    "GRIB": b"GRIB\0\0\0\1" + b"\0" * 64,
    "FITS": b"SIMPLE  =                    T" + b" " * 3000,
    "WMF": b"\xd7\xcd\xc6\x9a\0\0" + b"\1\0" * 40,
    "XBM": b"#define a_width 8\n#define a_height 1\nstatic char a_bits[] = {\n0x00};\n",
}


@pytest.mark.usefixtures("no_programs")
@pytest.mark.parametrize("ending", ["png", "jpg", "tif"])
@pytest.mark.parametrize("kind", UNWANTED)
def test_a_file_in_an_unsupported_format_is_not_opened_whatever_its_extension(
    tmp_path: Path, kind: str, ending: str
) -> None:
    path = tmp_path / f"photo.{ending}"
    path.write_bytes(UNWANTED[kind])
    with pytest.raises(UnreadableImageError, match="not an image in a format that is read here"):
        read_image(path)


def test_only_extensions_of_supported_formats_count_as_images() -> None:
    assert {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".webp", ".ppm", ".jp2", ".tga"} <= image_extensions()
    assert not {".eps", ".ps", ".h5", ".hdf", ".fits", ".grib", ".wmf", ".mpg", ".psd"} & image_extensions()


@pytest.mark.parametrize("target", ["pipe", "/dev/zero", "socket"])
def test_only_a_regular_file_is_opened_as_an_image(tmp_path: Path, target: str) -> None:
    path = tmp_path / "photo.png"
    with contextlib.ExitStack() as stack:
        if target == "pipe":
            os.mkfifo(path)
        elif target == "socket":
            stack.enter_context(socket.socket(socket.AF_UNIX)).bind(str(path))
        else:
            path.symlink_to(target)
        with pytest.raises(UnreadableImageError, match="not a file"):
            read_image(path)


def test_a_folder_is_refused_as_an_image(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImageError, match="directory"):
        read_image(tmp_path)


def test_the_error_survives_pickling_from_a_worker() -> None:
    error = copy.copy(UnreadableImageError("a.png", "torn"))  # as pickling does
    assert (error.path, error.reason, str(error)) == ("a.png", "torn", "cannot read image 'a.png': torn")


@pytest.mark.skipif(os.geteuid() == 0 if hasattr(os, "geteuid") else True, reason="root reads everything")
def test_an_image_without_permission_is_named(tmp_path: Path) -> None:
    path = tmp_path / "locked.png"
    Image.new("RGB", (4, 4)).save(path)
    path.chmod(0)
    with pytest.raises(UnreadableImageError, match="Permission denied"):
        read_image(path)
