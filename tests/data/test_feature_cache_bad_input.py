"""The feature cache with unreadable images and invalid arguments and encoders."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
import torch
from feature_toys import WIDTH, CountingEncoder, draw_images, expected, plain, store
from PIL import Image

from dassl_lite.utils.errors import UserError


def test_an_image_that_changes_while_being_read_is_not_cached(tmp_path: Path) -> None:
    paths = draw_images(tmp_path / "a", 2)

    def meddling(image: Image.Image) -> torch.Tensor:
        os.utime(paths[1], ns=(0, 0))
        return plain(image)

    real = os.stat(paths[1])
    run = store(tmp_path / "cache", transform=meddling)
    # Images are decoded in order: the transform of the first changes the second file after its key was computed.
    with pytest.raises(UserError, match=r"001\.png changed while it was being read"):
        run.fetch(paths, CountingEncoder())
    os.utime(paths[1], ns=(real.st_atime_ns, real.st_mtime_ns))
    encoder = CountingEncoder()
    run.fetch(paths[:1], encoder)
    assert encoder.seen == []  # images encoded before the error are kept


def test_a_corrupt_image_stops_the_run_and_is_named(tmp_path: Path) -> None:
    paths = draw_images(tmp_path / "a", 6)
    Path(paths[4]).write_bytes(Path(paths[4]).read_bytes()[:40])
    run = store(tmp_path / "cache")
    with pytest.raises(UserError, match=r"004\.png"):
        run.fetch(paths, CountingEncoder(), batch_size=2)
    encoder = CountingEncoder()
    run.fetch([*paths[:4], paths[5]], encoder)
    assert encoder.seen == []  # no computed feature is lost


def test_corrupt_and_missing_images_can_be_skipped_on_request(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    paths = [*draw_images(tmp_path / "a", 4), str(tmp_path / "none.png")]
    Path(paths[1]).write_bytes(b"no picture")
    run = store(tmp_path / "cache")
    for _ in range(2):  # the second time, the others come from the cache
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            features = run.fetch(paths, CountingEncoder(), on_error="skip")
        assert features.kept.tolist() == [True, False, True, True, False]
        assert torch.equal(features.tensor[:, 1], torch.zeros(1, WIDTH))
        assert torch.equal(features.tensor[:, [0, 2, 3]], expected([paths[0], *paths[2:4]]))
        assert len(caplog.records) == 1
        assert "Skipped 2 images that could not be read" in caplog.text
        assert "001.png" in caplog.text
        assert "none.png" in caplog.text
    with pytest.raises(UserError, match=r"none\.png"):
        run.fetch(paths[4:], CountingEncoder())


def test_a_repaired_image_is_used(tmp_path: Path) -> None:
    paths = draw_images(tmp_path / "a", 3)
    intact = Path(paths[1]).read_bytes()
    Path(paths[1]).write_bytes(intact[:40])
    run = store(tmp_path / "cache")
    run.fetch(paths, CountingEncoder(), on_error="skip")
    Path(paths[1]).write_bytes(intact)
    features = run.fetch(paths, CountingEncoder())
    assert features.kept.all()
    assert torch.equal(features.tensor, expected(paths))


def test_no_readable_image_is_an_error_even_with_skip(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.png.*1 more"):
        store(None).fetch([tmp_path / "a.png", tmp_path / "b.png"], CountingEncoder(), on_error="skip")


def test_invalid_arguments_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at least 1, not 0"):
        store(None, views=0)
    with pytest.raises(UserError, match=r"'skipp'.*Did you mean 'skip'"):
        store(None).fetch([], CountingEncoder(), on_error="skipp")
    with pytest.raises(UserError, match="at least 1, not 0"):
        store(None).fetch([], CountingEncoder(), batch_size=0)
    paths = draw_images(tmp_path / "a", 1)
    with pytest.raises(TypeError, match="ToTensor"):
        store(None, transform=lambda image: image).fetch(paths, CountingEncoder())
    with pytest.raises(ValueError, match=r"\(B, D\)"):
        store(None).fetch(paths, lambda inputs: inputs)
    with pytest.raises(TypeError, match="not int32"):
        store(None).fetch(paths, lambda inputs: torch.zeros(len(inputs), 3, dtype=torch.int32))


def test_an_encoder_with_varying_feature_width_is_an_error(tmp_path: Path) -> None:
    paths = draw_images(tmp_path / "a", 2)
    store(tmp_path / "cache").fetch(paths[:1], CountingEncoder())
    with pytest.raises(ValueError, match="width=3"):
        store(tmp_path / "cache").fetch(paths, lambda inputs: torch.zeros(len(inputs), 3))
