"""Extraction in pieces writes the bytes of one process, whichever process does the work or is killed."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from feature_toys import CountingEncoder, draw_images, noisy, spec
from torch import Tensor

from dassl_lite.data.feature_cache import FeatureStore, extract
from dassl_lite.data.feature_files import pieces
from dassl_lite.data.feature_files.pieces import UNDER_WAY, Done, Piece, extract_piece, rows_of_a_piece
from dassl_lite.utils.errors import UserError

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
BATCH = 4


class Crowded(CountingEncoder):
    """Features that depend on the batch size, like the last bits of a real encoder's features."""

    def __call__(self, inputs: Tensor) -> Tensor:
        return super().__call__(inputs) + len(inputs)


class CrowdedStates(Crowded):
    def __call__(self, inputs: Tensor) -> Any:
        features = super().__call__(inputs)
        return features, features[:, :3].double()


def cut(paths: list[str], step: int, views: int = 1, arrays: tuple[str, ...] = ("test_features",)) -> list[Piece]:
    starts = range(0, len(paths), step)
    return [Piece(arrays, n, tuple(paths[s : s + step]), noisy, views, 1, "toy") for n, s in enumerate(starts)]


def done(piece: Piece, folder: Path, encode: Callable[[Tensor], Any] | None = None, **options: Any) -> Done:
    given = {"device": torch.device("cpu"), "batch_size": BATCH, "num_workers": 0, "commit_seconds": 0.0}
    return extract_piece(piece, folder, encode or Crowded(), Tensor.numpy, **{**given, **options})


def shards(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.npy"))}


def killed_at(folder: Path, work: Callable[[], object], moment: int, how: str) -> None:
    """Run ``work`` in a process that is killed at write number ``moment``."""
    real, calls = pieces.append, []

    def append(path: Path, end: int, data: Any) -> None:
        calls.append(path)
        if len(calls) == moment:
            if how == "half":
                real(path, end, bytes(data)[: len(bytes(data)) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        real(path, end, data)

    def child() -> None:
        pieces.append = append  # type: ignore[assignment]
        work()

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL


def test_pieces_together_equal_the_feature_cache(tmp_path: Path) -> None:
    paths = draw_images(tmp_path / "images", 11)
    for views in (1, 2):
        expected = FeatureStore(spec(transform=noisy, views=views), None).fetch(paths, Crowded(), batch_size=BATCH)
        step = rows_of_a_piece(11, views, BATCH, wanted=3)
        assert step == 4
        folder = tmp_path / str(views)
        for piece in reversed(cut(paths, step, views)):
            assert done(piece, folder).encoded == len(piece.paths)
        found = np.concatenate([np.load(folder / name) for name in shards(folder)], axis=-2)
        assert np.array_equal(found, expected.tensor.numpy()[0] if views == 1 else expected.tensor.numpy())


@forks
@pytest.mark.slow_after(3)
@pytest.mark.parametrize(
    "moment", [2, 3, 4, 5, 6, 7]
)  # writes after the first line of the log: rows, log, rows, log, ...
@pytest.mark.parametrize("how", ["before", "half"])
def test_a_piece_whose_process_was_killed_resumes_to_the_same_bytes(tmp_path: Path, moment: int, how: str) -> None:
    paths = draw_images(tmp_path / "images", 14)
    Path(paths[5]).write_text("no picture")
    (piece,) = cut(paths, 14)
    assert list(done(piece, tmp_path / "one", skip=True).errors) == [5]
    killed_at(tmp_path, lambda: done(piece, tmp_path / "two", skip=True), moment, how)
    assert not shards(tmp_path / "two")
    found = done(piece, tmp_path / "two", skip=True)
    assert shards(tmp_path / "two") == shards(tmp_path / "one")
    assert list(found.errors) == [5]
    committed = (moment - 2) // 2 * BATCH  # only the commit in progress is lost
    assert found.encoded == 14 - committed
    again = done(piece, tmp_path / "two", Crowded(), skip=True)
    assert again == Done(piece.name, found.errors, 0)


def test_states_are_written_to_separate_shards(tmp_path: Path) -> None:
    paths = draw_images(tmp_path / "images", 5)
    (piece,) = cut(paths, 8, 1, ("train_features", "train_states"))
    done(piece, tmp_path / "out", CrowdedStates())
    features, states = (np.load(tmp_path / "out" / f"train_{kind}-00000.npy") for kind in ("features", "states"))
    assert (features.dtype, states.dtype) == (np.float32, np.float64)
    assert np.array_equal(features[:, :3], states)


def test_only_changed_pieces_are_encoded_again(tmp_path: Path) -> None:
    paths = draw_images(tmp_path / "images", 8)
    both = cut(paths, 4)
    for piece in both:
        done(piece, tmp_path / "out")
    draw_images(tmp_path / "images", 1)
    os.utime(paths[0], ns=(1, 1))
    assert [done(piece, tmp_path / "out").encoded for piece in both] == [4, 0]
    (tmp_path / "out" / "test_features-00001.npy").unlink()
    assert [done(piece, tmp_path / "out").encoded for piece in both] == [0, 4]


def test_an_unreadable_image_stops_a_piece_in_one_line_and_loses_nothing(tmp_path: Path) -> None:
    paths = draw_images(tmp_path / "images", 12)
    (piece,) = cut(paths, 12)
    good = Path(paths[9]).read_bytes()
    Path(paths[9]).write_text("no picture")
    with pytest.raises(UserError, match="cannot read image.*009.png") as error:
        done(piece, tmp_path / "out", commit_seconds=100.0)
    assert "\n" not in str(error.value)
    gone = Path(paths[0])
    gone.rename(tmp_path / "gone")
    with pytest.raises(UserError, match="cannot read .*000.png.*o such file"):
        done(piece, tmp_path / "out")
    (tmp_path / "gone").rename(gone)
    Path(paths[9]).write_bytes(good)
    assert done(piece, tmp_path / "out").encoded == 12  # the file has changed, so this is a different piece


@pytest.mark.parametrize("spoil", ["log", "rows"])
@forks
def test_rows_lost_by_the_disk_are_encoded_again(tmp_path: Path, spoil: str) -> None:
    paths = draw_images(tmp_path / "images", 12)
    (piece,) = cut(paths, 12)
    done(piece, tmp_path / "one")
    killed_at(tmp_path, lambda: done(piece, tmp_path / "two"), 6, "before")
    folder = tmp_path / "two" / UNDER_WAY
    if spoil == "log":
        path = folder / "test_features-00000.log"
        path.write_bytes(path.read_bytes().replace(b'"done":8', b'"done":9'))
    else:
        os.truncate(folder / "test_features-00000.rows-0", 5)
    assert done(piece, tmp_path / "two").encoded == (8 if spoil == "log" else 12)
    assert shards(tmp_path / "two") == shards(tmp_path / "one")


def test_a_piece_without_readable_images_writes_no_shard(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_text("no picture")
    (piece,) = cut([str(tmp_path / "images" / "a.png")], 4)
    for _ in range(2):
        assert list(done(piece, tmp_path / "out", skip=True).errors) == [0]
        assert not shards(tmp_path / "out")
    assert json.loads((tmp_path / "out" / UNDER_WAY / "test_features-00000.json").read_text())["errors"]


@pytest.mark.parametrize(("images", "views", "wanted", "rows"), [(10, 1, 0, 4), (10, 1, 5, 8), (10, 3, 5, 5)])
def test_a_piece_consists_of_whole_batches(images: int, views: int, wanted: int, rows: int) -> None:
    assert rows_of_a_piece(images, views, BATCH, wanted) == rows


def test_batches_have_the_same_images_for_any_chunk_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many decoding processes and little shared memory lead to small chunks."""
    paths = draw_images(tmp_path / "images", 45)
    found = []
    for chunk in (32, 7):
        monkeypatch.setattr(extract, "_plan", lambda *_, chunk=chunk: (0, chunk))
        found.append(FeatureStore(spec(), None).fetch(paths, Crowded(), batch_size=40).tensor)
    assert torch.equal(*found)
