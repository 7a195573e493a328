"""The second field of a row: the states before the encoder's final projection."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from feature_toys import CountingEncoder, draw_images, plain, store
from PIL import Image

from dassl_lite.data.feature_cache import describe_stores


class TwoFields(CountingEncoder):
    """An encoder that returns features, and states of twice the width and another dtype, in one pass."""

    def __call__(self, inputs):
        features = super().__call__(inputs)
        return features, torch.cat([features.float(), -features.float()], dim=-1)


def files(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != "lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("root", ["cache", None])
def test_both_fields_come_from_one_pass(tmp_path: Path, dtype: torch.dtype, root: str | None) -> None:
    paths, encode = draw_images(tmp_path / "images", 5), TwoFields(dtype)
    folder = tmp_path / root if root else None
    states = store(folder).fetch(paths, encode, states=True)
    assert encode.seen == [0, 1, 2, 3, 4]
    wanted = CountingEncoder(dtype)(torch.stack([plain(Image.open(path)) for path in paths]))
    assert torch.equal(states.tensor[0], torch.cat([wanted.float(), -wanted.float()], dim=-1))
    if folder:
        untouched = CountingEncoder(dtype)
        features = store(folder).fetch(paths, untouched)
        assert not untouched.seen
        assert torch.equal(features.tensor[0], wanted)
        assert features.tensor.dtype == dtype
        again = store(folder).fetch(paths[::-1], encode, states=True)
        assert torch.equal(again.tensor, states.tensor.flip(1))
        assert len(encode.seen) == 5


def test_missing_states_are_added_to_a_cache_of_features_and_logged(tmp_path: Path, caplog) -> None:
    paths = draw_images(tmp_path / "images", 4)
    store(tmp_path / "cache").fetch(paths[:3], CountingEncoder())
    before = files(tmp_path / "cache")
    encode = TwoFields()
    with caplog.at_level(logging.INFO, logger="dassl_lite"):
        states = store(tmp_path / "cache").fetch(paths, encode, states=True)
    assert encode.seen == [0, 1, 2, 3]
    assert "3 images had features only in the cache" in caplog.text
    after = files(tmp_path / "cache")
    for name, content in before.items():  # the files of the features are only appended to
        assert after[name].startswith(content), name
    features = store(tmp_path / "cache").fetch(paths, encode).tensor
    assert torch.equal(states.tensor, torch.cat([features, -features], dim=-1))


def test_fetching_only_features_writes_no_second_field(tmp_path: Path) -> None:
    paths = draw_images(tmp_path / "images", 3)
    store(tmp_path / "cache").fetch(paths, CountingEncoder())
    assert not list((tmp_path / "cache").rglob("states"))
    (alone,) = describe_stores(tmp_path / "cache")
    store(tmp_path / "cache").fetch(paths[:2], TwoFields(), states=True)
    (both,) = describe_stores(tmp_path / "cache")  # no separate store
    assert (both.folder, both.images) == (alone.folder, 3)
    assert both.bytes > alone.bytes
    more = CountingEncoder()
    store(tmp_path / "cache").fetch([*paths, *draw_images(tmp_path / "more", 1)], more)
    assert more.seen == [0]


@pytest.mark.parametrize("what", ["states/rows-00000.bin", "states/meta.json", "states/index.jsonl", "meta.json"])
def test_damaged_states_are_extracted_again_and_features_are_kept(tmp_path: Path, what: str) -> None:
    paths = draw_images(tmp_path / "images", 3)
    expected = store(tmp_path / "cache").fetch(paths, TwoFields(), states=True).tensor
    (folder,) = (path.parent for path in (tmp_path / "cache").glob("*/meta.json"))
    content = (folder / what).read_bytes()
    (folder / what).write_bytes(content[: len(content) // 2])
    encode = TwoFields()
    assert torch.equal(store(tmp_path / "cache").fetch(paths, encode, states=True).tensor, expected)
    assert encode.seen
    untouched = CountingEncoder()
    assert torch.equal(store(tmp_path / "cache").fetch(paths, untouched).tensor, expected[..., :4])
    assert not untouched.seen
