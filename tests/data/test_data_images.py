"""Reading images: every kind becomes 8-bit RGB, and a broken file is named in one line."""

from __future__ import annotations

import contextlib
import copy
import io
import os
import random
import socket
import struct
import subprocess
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import dassl_lite.data.images as reader
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
    # PIL cannot write one: PNG's header, one row of one pixel in big-endian 16 bits, and the end, by hand.
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
    exif[0x0112] = 6  # rotate by 90 degrees to show
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
def test_a_file_of_an_unwanted_format_is_not_opened_whatever_it_is_called(
    tmp_path: Path, kind: str, ending: str
) -> None:
    path = tmp_path / f"photo.{ending}"
    path.write_bytes(UNWANTED[kind])
    with pytest.raises(UnreadableImageError, match="not an image in a format that is read here"):
        read_image(path)


def test_only_extensions_of_wanted_formats_count_as_images() -> None:
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


def test_the_error_survives_the_way_back_from_a_worker() -> None:
    error = copy.copy(UnreadableImageError("a.png", "torn"))  # as pickling does
    assert (error.path, error.reason, str(error)) == ("a.png", "torn", "cannot read image 'a.png': torn")


@pytest.mark.skipif(os.geteuid() == 0 if hasattr(os, "geteuid") else True, reason="root reads everything")
def test_an_image_without_permission_is_named(tmp_path: Path) -> None:
    path = tmp_path / "locked.png"
    Image.new("RGB", (4, 4)).save(path)
    path.chmod(0)
    with pytest.raises(UnreadableImageError, match="Permission denied"):
        read_image(path)


# ---- plain JPEG files go to torchvision -----------------------------------------------------------------------------


def outcome(path: Path, *, by_pil: bool) -> tuple[Any, ...]:
    """Size and pixels that are read, or the error."""
    with pytest.MonkeyPatch.context() as patch:
        if by_pil:
            patch.setattr(reader, "_read_plain_jpeg", lambda path: None)
        try:
            image = read_image(path)
            return image.mode, image.size, image.tobytes()
        except UnreadableImageError as error:
            return "error", str(error)


def jpeg(rng: random.Random, **options: Any) -> bytearray:
    width, height = rng.randint(1, 70), rng.randint(1, 70)
    pixels = np.random.default_rng(rng.randrange(2**31)).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC, (0, 0, width / 3, height / 3))
    file = io.BytesIO()
    image.save(
        file,
        "JPEG",
        **{"quality": rng.choice([5, 50, 75, 90, 95, 100]), "subsampling": rng.choice([0, 1, 2])} | options,
    )
    return bytearray(file.getvalue())


def damaged(data: bytearray, rng: random.Random) -> bytearray:
    place, kind = rng.randrange(2, len(data)), rng.randrange(8)
    if kind == 0:
        return data[:place]
    if kind in (1, 2, 3):
        for _ in range(rng.choice([1, 1, 3, 20])):
            data[rng.randrange(2, len(data) if kind == 1 else min(len(data), 650))] = rng.randrange(256)
    if kind == 4:
        data[place:place] = rng.randbytes(rng.choice([1, 2, 50]))
    if kind == 5:
        del data[place : place + rng.choice([1, 2, 50])]
    if kind == 6:
        data += b"more" * 9
    return data


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"optimize": True, "restart_marker_blocks": 3},
        {"restart_marker_rows": 1, "comment": b"drawn"},
        {"icc_profile": bytes(300), "dpi": (72, 72)},
    ],
)
def test_a_plain_jpeg_has_pil_s_pixels(tmp_path: Path, options: dict[str, Any]) -> None:
    rng, path = random.Random(str(options)), tmp_path / "a.jpg"
    for _ in range(12):
        path.write_bytes(jpeg(rng, **options))
        assert reader._read_plain_jpeg(str(path)) is not None
        assert outcome(path, by_pil=False) == outcome(path, by_pil=True)


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.slow_after(4)
def test_a_damaged_jpeg_gives_what_pil_gives(tmp_path: Path, seed: int, capfd: pytest.CaptureFixture[str]) -> None:
    rng, path = random.Random(seed), tmp_path / "a.jpg"
    for _ in range(20):
        path.write_bytes(damaged(jpeg(rng), rng))
        assert outcome(path, by_pil=False) == outcome(path, by_pil=True)


def rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif.tobytes()


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("CMYK", {}),
        ("L", {}),
        ("RGB", {"exif": rotated()}),
        ("RGB", {"progressive": True}),
        ("RGB", {"keep_rgb": True}),
    ],
)
def test_another_kind_of_jpeg_goes_to_pil(tmp_path: Path, mode: str, options: dict[str, Any]) -> None:
    path = tmp_path / "a.jpg"
    Image.new(mode, (20, 30)).save(path, **options)
    assert reader._read_plain_jpeg(str(path)) is None
    assert read_image(path).size == (20, 30)  # EXIF's rotation is not applied, as in Dassl


def test_a_jpeg_that_says_it_is_huge_is_refused_before_its_pixels_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = jpeg(random.Random(0))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = b"\xff\xdc\xff\xdc"  # 65,500 x 65,500
    (tmp_path / "a.jpg").write_bytes(data)
    assert reader._plain_size(data) == (65_500, 65_500)
    monkeypatch.setattr(reader, "_decode", lambda data: pytest.fail("decoded"))
    with pytest.raises(UnreadableImageError, match="decompression bomb"):
        read_image(tmp_path / "a.jpg")


def test_a_second_header_in_a_jpeg_is_not_taken_for_the_first(tmp_path: Path) -> None:
    data = jpeg(random.Random(0))
    frame = data.index(b"\xff\xc0")
    header = data[frame : frame + 19]
    assert reader._plain_size(data[:frame] + header + data[frame:]) is None


def test_pil_decodes_where_torchvision_s_pixels_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg(random.Random(0)))
    reader._torchvision_agrees.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(reader, "_decode", lambda data: Image.new("RGB", (61, 45)))
        assert not reader._torchvision_agrees()
        assert reader._read_plain_jpeg(str(path)) is None
    reader._torchvision_agrees.cache_clear()
    assert reader._torchvision_agrees()


@pytest.mark.slow
def test_real_photographs_have_pil_s_pixels(shared: Path) -> None:
    files = sorted(path for path in (shared / "data").rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    read = [path for path in files[::10] if reader._read_plain_jpeg(str(path)) is not None]
    assert len(read) > 0.9 * len(files[::10]) > 100
    for path in read:
        assert outcome(path, by_pil=False) == outcome(path, by_pil=True)
