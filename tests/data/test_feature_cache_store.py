"""What the feature cache shares between runs, and what it stores separately."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from feature_toys import WIDTH, CountingEncoder, draw_images, expected, noisy, plain, store
from PIL import Image

from dassl_lite.data.feature_cache import describe_stores, rows
from dassl_lite.data.feature_cache.shards import Layout
from dassl_lite.data.feature_cache.store import FeatureSpec


def test_features_equal_the_encoders_in_the_requested_order(tmp_path: Path) -> None:
    paths = draw_images(tmp_path / "a", 5)
    order = [paths[i] for i in (3, 0, 4, 0, 2)]
    features = store(tmp_path / "cache").fetch(order, CountingEncoder(), batch_size=2)
    inputs = torch.stack([plain(Image.open(path)) for path in order])
    assert features.tensor.shape == (1, 5, WIDTH)
    assert torch.equal(features.tensor[0], CountingEncoder()(inputs))
    assert features.kept.all()
    assert features.tensor.is_contiguous()


def test_a_second_fetch_encodes_nothing(tmp_path: Path) -> None:
    paths = draw_images(tmp_path / "a", 5)
    first = store(tmp_path / "cache")
    given = first.fetch(paths, CountingEncoder()).tensor
    for again in (first, store(tmp_path / "cache")):
        encoder = CountingEncoder()
        assert torch.equal(again.fetch(paths, encoder).tensor, given)
        assert encoder.calls == []


def test_one_view_of_seed_0_is_the_default() -> None:
    described = FeatureSpec("toy", "d1gest", plain, "plain").describe()
    assert (described["views"], described["seed"]) == (1, 0)


def test_overlapping_requests_share_rows(tmp_path: Path) -> None:
    paths = draw_images(tmp_path / "a", 8)
    encoder = CountingEncoder()
    for chosen in (paths[2:4], paths[0:6], paths[5:1:-1], [*paths, *paths]):
        features = store(tmp_path / "cache").fetch(chosen, encoder).tensor
        assert torch.equal(features, expected(chosen))
    assert sorted(encoder.seen) == list(range(8))


def test_relative_and_absolute_paths_share_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = draw_images(tmp_path / "a", 2)
    encoder = CountingEncoder()
    monkeypatch.chdir(tmp_path / "a")
    features = store(tmp_path / "cache").fetch([paths[0], "000.png", Path("../a/001.png"), "./001.png"], encoder)
    assert sorted(encoder.seen) == [0, 1]
    assert torch.equal(features.tensor, expected([paths[0], paths[0], paths[1], paths[1]]))


@pytest.mark.parametrize(
    "changes",
    [
        {"backbone": "other"},
        {"digest": "other"},
        {"transform_text": "other"},
        {"views": 2},
        {"seed": 2},
    ],
)
def test_every_setting_of_the_features_has_its_own_store(tmp_path: Path, changes: dict[str, Any]) -> None:
    paths = draw_images(tmp_path / "a", 3)
    store(tmp_path / "cache").fetch(paths, CountingEncoder())
    encoder = CountingEncoder()
    features = store(tmp_path / "cache", **changes).fetch(paths, encoder)
    assert set(encoder.seen) == {0, 1, 2}
    assert features.tensor.shape[0] == changes.get("views", 1)
    assert len(describe_stores(tmp_path / "cache")) == 2


def test_only_a_changed_image_is_encoded_again(tmp_path: Path) -> None:
    paths = draw_images(tmp_path / "a", 3)
    run = store(tmp_path / "cache")
    before = run.fetch(paths, CountingEncoder()).tensor
    Image.open(paths[2]).save(paths[1])
    encoder = CountingEncoder()
    after = run.fetch(paths, encoder).tensor
    assert encoder.seen == [2]
    assert torch.equal(after[:, 1], before[:, 2])


@pytest.mark.parametrize("what", ["time", "size"])
def test_a_change_of_size_or_time_alone_reveals_a_changed_image(tmp_path: Path, what: str) -> None:
    paths = draw_images(tmp_path / "a", 2)
    status = os.stat(paths[0])
    store(tmp_path / "cache").fetch(paths, CountingEncoder())
    if what == "time":
        os.utime(paths[0], ns=(status.st_atime_ns, status.st_mtime_ns + 1000))
    else:
        with open(paths[0], "ab") as file:
            file.write(b"\0")
        os.utime(paths[0], ns=(status.st_atime_ns, status.st_mtime_ns))
    encoder = CountingEncoder()
    store(tmp_path / "cache").fetch(paths, encoder)
    assert encoder.seen == [0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_float_dtype_round_trips_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    paths = draw_images(tmp_path / "a", 3)
    given = store(None).fetch(paths, CountingEncoder(dtype)).tensor
    store(tmp_path / "cache").fetch(paths, CountingEncoder(dtype))
    read = store(tmp_path / "cache").fetch(paths, CountingEncoder()).tensor
    assert read.dtype == dtype
    assert torch.equal(read, given)


def test_nan_and_infinity_round_trip_bit_for_bit() -> None:
    values = torch.tensor([[[float("nan"), float("inf"), -0.0]]], dtype=torch.bfloat16)
    layout = Layout.of(values)
    bits = layout.bits(values)
    assert torch.equal(layout.tensor(bits).view(torch.int16), values.view(torch.int16))


def test_rows_in_several_shards_are_read_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dassl_lite.data.feature_cache.shards.SHARD_BYTES", 5 * WIDTH * 4)
    monkeypatch.setattr("dassl_lite.data.feature_cache.shards.GATHER_BYTES", 2 * WIDTH * 4)
    paths = draw_images(tmp_path / "a", 12)
    run = store(tmp_path / "cache", commit_seconds=0)
    run.fetch(paths, CountingEncoder(), batch_size=2)
    assert run.folder is not None
    assert len(list(run.folder.glob("rows-*.bin"))) == 3
    chosen = [paths[i] for i in (11, 0, 5, 5, 7, 2, 9)]
    encoder = CountingEncoder()
    assert torch.equal(store(tmp_path / "cache").fetch(chosen, encoder).tensor, expected(chosen))
    assert encoder.calls == []


def test_the_encoder_gets_batches_of_the_requested_size(tmp_path: Path) -> None:
    paths = draw_images(tmp_path / "a", 7)
    encoder = CountingEncoder()
    store(None).fetch(paths, encoder, batch_size=3)
    assert encoder.calls == [3, 3, 1]
    encoder = CountingEncoder()
    store(None, views=3).fetch(paths, encoder, batch_size=6)  # two images per batch
    assert encoder.calls == [6, 6, 6, 3]
    encoder = CountingEncoder()
    store(None, views=5).fetch(paths[:1], encoder, batch_size=2)  # one image has more views than a batch
    assert encoder.calls == [2, 2, 1]


def test_an_image_is_decoded_once_for_all_views(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dassl_lite.data.feature_cache import extract

    read = []
    monkeypatch.setattr(extract, "read_image", lambda path: read.append(path) or Image.open(path).convert("RGB"))
    paths = draw_images(tmp_path / "a", 3)
    store(None, transform=noisy, views=4).fetch(paths, CountingEncoder())
    assert read == paths


def test_no_images_give_no_features(tmp_path: Path) -> None:
    run = store(tmp_path / "cache", views=2)
    assert run.fetch([], CountingEncoder()).tensor.shape[:2] == (2, 0)
    run.fetch(draw_images(tmp_path / "a", 1), CountingEncoder())
    assert run.fetch([], CountingEncoder()).tensor.shape == (2, 0, WIDTH)


def test_an_extraction_logs_one_line_and_a_cached_fetch_logs_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    paths = draw_images(tmp_path / "a", 5)
    run = store(tmp_path / "cache")
    run.fetch(paths[:2], CountingEncoder())
    with caplog.at_level(logging.INFO):
        run.fetch(paths, CountingEncoder())
        run.fetch(paths, CountingEncoder())
    assert len(caplog.records) == 1
    assert "Features of 5 images (toy, views: 1): 2 from the cache, 3 extracted" in caplog.text


def test_features_carry_no_gradient(tmp_path: Path) -> None:
    weight = torch.ones(3 * 36, WIDTH, requires_grad=True)
    paths = draw_images(tmp_path / "a", 2)
    assert not store(None).fetch(paths, lambda inputs: inputs.flatten(1) @ weight).tensor.requires_grad


def test_a_listing_describes_each_store(tmp_path: Path) -> None:
    paths = draw_images(tmp_path / "a", 3)
    store(tmp_path / "cache", views=2).fetch(paths, CountingEncoder())
    (summary,) = describe_stores(tmp_path / "cache")
    assert summary.images == 3
    assert summary.bytes >= 3 * 2 * WIDTH * 4
    assert summary.made_with["transform"] == "plain"
    assert describe_stores(tmp_path / "nothing") == []


def test_rows_are_committed_every_few_seconds(tmp_path, monkeypatch):
    clock, commits = [100.0], []
    monkeypatch.setattr(rows.time, "monotonic", lambda: clock[0])
    kept = rows.Rows(None, commit_seconds=10.0, writes=True)
    monkeypatch.setattr(kept, "_commit", lambda: commits.append(clock[0]) or setattr(kept, "_committed", clock[0]))
    for clock[0] in (100.0, 105.0, 109.0, 110.0, 119.0, 121.0):
        kept.add([f"image at {clock[0]}"], torch.zeros(1, 1, WIDTH))
    assert commits == [100.0, 110.0, 121.0]


def test_extraction_continues_with_smaller_batches_when_out_of_memory(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    paths, encoder, calls = draw_images(tmp_path / "a", 9), CountingEncoder(), []

    def small(inputs: torch.Tensor) -> torch.Tensor:
        calls.append(len(inputs))
        if len(inputs) > 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB")
        return encoder(inputs)

    features = store(tmp_path / "cache").fetch(paths, small, batch_size=8).tensor
    assert torch.equal(features, expected(paths))
    assert calls == [8, 4, 2, 2, 2, 2, 1]
    assert caplog.text.count("Out of memory while encoding images: continuing with 2 at a time") == 1
