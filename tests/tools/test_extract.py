"""tools/extract.py: training on the feature file equals training on the images, and user errors print one line."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dassl_lite.data.feature_files import read_feature_file, write_feature_file
from dassl_lite.data.feature_files.pieces import UNDER_WAY
from dassl_lite.datasets.gadgets import Gadgets
from dassl_lite.engine import build_trainer
from dassl_lite.engine.build import make_config
from dassl_lite.engine.commands.cli import run_tool
from dassl_lite.engine.methods import backbone as run_backbone
from dassl_lite.models.clip import load_clip
from dassl_lite.tools import extract, train

FEW = ("DATALOADER.NUM_WORKERS", "0")
TRAINED = ("DATASET.NUM_SHOTS", "4", "OPTIM.MAX_EPOCH", "6", "DATASET.FEATURES.VIEWS", "2", *FEW)


def run_extract(*argv: str) -> int:
    return run_tool(extract.main, list(argv))


def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of 12 noisy coloured images each; one class name contains an underscore."""
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for name, colour in {"red_thing": (160, 90, 90), "green thing": (90, 160, 90), "blue": (90, 90, 160)}.items():
        (root / name).mkdir()
        for number in range(12):
            pixels = rng.normal(colour, 90, (24, 24, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


DATASET = ("--dataset-config-file", "gadgets")
LOGISTIC = ("TRAINER.LinearProbe.FIT", "logistic_regression")
BOTH = ("TRAINER.CLIP_Adapter.SIDE", "both")


@pytest.fixture(scope="module")
def gadgets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gadgets") / "gadgets.npz"
    assert run_extract(*DATASET, "--views", "2", "--output", str(path), *FEW) == 0
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "options"),
    [
        *((method, ()) for method in ("ZeroshotCLIP", "ZeroshotCLIP2", "TaskRes", "TipAdapter", "TipAdapterF")),
        *(("CLIP_Adapter", BOTH), ("LinearProbe", ()), ("LinearProbe", LOGISTIC)),
    ],
)
def test_a_run_on_the_file_equals_one_on_the_images(tmp_path, gadgets, method, options):
    few = (*TRAINED, "TRAINER.TipAdapter.BETA_STEPS", "20", "TRAINER.LinearProbe.C_STEPS", "2", *options)
    ways = {
        "images": (*DATASET, "--output-dir", str(tmp_path / "images"), *few),
        "features": (
            *("--dataset-config-file", "features", "--output-dir", str(tmp_path / "features")),
            *("DATASET.FILE", str(gadgets), *few),
        ),
    }
    for flags in ways.values():
        assert run_tool(train.main, ["--trainer", method, *flags]) == 0
    found = {way: results(tmp_path / way) for way in ways}
    assert found["features"]["split_sizes"] == found["images"]["split_sizes"]
    assert found["features"]["backbone"] == found["images"]["backbone"] == "demo"
    assert found["features"]["zero_shot_accuracy"] == found["images"]["zero_shot_accuracy"]
    # Logistic regression stops at a tolerance, so rounding may flip one image; the others train the same steps.
    tolerance = 1.5 * 100 / found["images"]["split_sizes"]["test"] if options == LOGISTIC else 1e-3
    for name, value in found["images"]["metrics"]["test"].items():
        assert found["features"]["metrics"]["test"][name] == pytest.approx(value, abs=tolerance), name


@pytest.mark.slow
def test_the_file_records_its_provenance(tmp_path, images):
    path = tmp_path / "mine.npz"
    assert run_extract("--data", str(images), "--output", str(path), "--views", "2", "--half", *FEW) == 0
    file = read_feature_file(path)
    assert file.backbone == "demo"
    assert len(file.backbone_digest) == 64
    assert file.precision == "fp32"
    assert sorted(file.classnames) == ["blue", "green thing", "red_thing"]
    assert file.templates[0] == "a photo of a {}."
    assert len(file.templates) == 8
    assert file.logit_scale > 1
    train_part, test_part = file.parts["train"], file.parts["test"]
    assert train_part.views.shape[0] == 2
    assert train_part.views.dtype == test_part.views.dtype == file.text_weights.dtype == np.float16
    assert train_part.plain is not None
    assert not np.array_equal(train_part.plain, train_part.views[0])
    (entry,) = map(json.loads, file.provenance)
    assert (entry["dataset"], entry["views"], entry["half"]) == ("ImageFolder", 2, True)
    assert str(images) not in "".join(file.provenance)  # the file contains no local path


@pytest.mark.slow
def test_the_file_keeps_the_bias_of_a_sigmoid_model(tmp_path, images, monkeypatch):
    load = load_clip

    def load_biased(name: str, **options: Any) -> Any:
        clip = load(name, **options)
        clip.model.logit_bias = torch.nn.Parameter(torch.tensor(-12.5))
        return clip

    for name, loader, bias in (("plain", load, None), ("biased", load_biased, -12.5)):
        monkeypatch.setattr(run_backbone, "load_clip", loader)
        path = tmp_path / f"{name}.npz"
        assert run_extract("--data", str(images), "--output", str(path), "--views", "0", *FEW) == 0
        assert read_feature_file(path).logit_bias == bias
        flags = {"DATASET": {"NAME": "Features", "FILE": str(path)}, "OUTPUT_DIR": str(tmp_path / name)}
        found = build_trainer(make_config(trainer="ZeroshotCLIP", flags=flags)).clip.logit_bias
        assert found is None if bias is None else found.item() == bias


@pytest.mark.slow
def test_zero_views_store_features_without_augmentation(tmp_path, images):
    assert run_extract("--data", str(images), "--output", str(tmp_path / "a.npz"), "--views", "0", *FEW) == 0
    assert run_extract("--data", str(images), "--output", str(tmp_path / "b.npz"), "--views", "1", *FEW) == 0
    plain, augmented = (read_feature_file(tmp_path / f"{name}.npz").parts["train"] for name in "ab")
    assert plain.plain is None
    assert np.array_equal(plain.views[0], augmented.plain)


@pytest.mark.slow
def test_validation_images_that_are_also_test_images_are_left_out(tmp_path, monkeypatch):
    load = Gadgets.load
    monkeypatch.setattr(Gadgets, "load", lambda self: load(self)._replace(val=load(self).test))  # as in ImageNet
    path = tmp_path / "x.npz"
    assert run_extract("--views", "0", "--output", str(path), "DATASET.NAME", "Gadgets", *FEW) == 0
    assert set(read_feature_file(path).parts) == {"train", "test"}


# ---- folders of shards, by several processes -------------------------------------------------------------------------

KILLER = """
import multiprocessing, os, signal
from pathlib import Path
from dassl_lite.data.feature_files import pieces

MARK, add = Path({mark!r}), pieces._Rows.add

def add_and_die(self, *args):
    add(self, *args)
    self.commit()
    if not MARK.exists():
        MARK.touch()
        os.kill(os.getpid(), signal.SIGKILL)

if multiprocessing.parent_process() is not None:  # not in the process of the tests
    pieces._Rows.add = add_and_die
"""
IN_PIECES = ("--views", "2", "--shard-rows", "6", "DATASET.FEATURES.BATCH_SIZE", "4", *FEW)


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache without features; the split of the images is drawn once and then reused."""
    monkeypatch.setenv("DASSL_LITE_CACHE", str(tmp_path / "cache"))
    return tmp_path


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.slow
def test_several_processes_write_the_bytes_of_one_even_if_one_is_killed(empty_cache, images, capsys):
    one, two, plugin = empty_cache / "one", empty_cache / "two", empty_cache / "killer.py"
    assert run_extract("--data", str(images), "--output", str(one), *IN_PIECES) == 0
    plugin.write_text(KILLER.format(mark=str(empty_cache / "killed")))
    line = ("--data", str(images), "--output", str(two), "--jobs", "2", "--plugin", str(plugin), *IN_PIECES)
    capsys.readouterr()
    assert run_extract(*line) == 2
    errors = [
        line for line in capsys.readouterr().err.splitlines() if not line.startswith("Warning: The backbone demo")
    ]
    assert len(errors) == 1
    assert errors[0].startswith("Error: a process was killed")
    assert (empty_cache / "killed").exists()
    assert run_extract(*line) == 0
    assert content(two) == content(one)
    # Extraction through memory and the cache writes the same bytes.
    whole, joined = empty_cache / "whole.npz", empty_cache / "joined.npz"
    assert run_extract("--data", str(images), "--output", str(whole), *IN_PIECES[:2], *IN_PIECES[4:]) == 0
    write_feature_file(read_feature_file(two), joined)
    assert whole.read_bytes() == joined.read_bytes()


@pytest.mark.slow
def test_every_split_is_sharded_and_methods_train_on_the_shards(empty_cache, images):
    folder, run = empty_cache / "folder", empty_cache / "run"
    flags = ("--data", str(images), "--output", str(folder), "--half")
    assert run_extract(*flags, *IN_PIECES) == 0
    file = read_feature_file(folder)
    assert {name: part.views.shape for name, part in file.parts.items()} == {
        "train": (2, 18, 128),
        "val": (1, 6, 128),
        "test": (1, 12, 128),
    }
    assert len(list(folder.glob("test_features-*"))) == 2
    assert not (folder / UNDER_WAY).exists()
    assert (
        run_tool(train.main, ["--trainer", "TaskRes", "--data", str(folder), "--output-dir", str(run), *TRAINED]) == 0
    )
    assert results(run)["split_sizes"] == {"train": 12, "val": 6, "test": 12}


@pytest.mark.slow
def test_a_folder_is_replaced_or_resumed_only_on_request(empty_cache, images, capsys):
    folder = empty_cache / "folder"
    flags = ("--data", str(images), "--output", str(folder))
    assert run_extract(*flags, *IN_PIECES) == 0
    before = content(folder)
    assert run_extract(*flags, *IN_PIECES) == 2
    assert "already exists" in capsys.readouterr().err
    assert run_extract(*flags, "--overwrite", "--half", *IN_PIECES[:2], *FEW) == 0
    assert len(list(folder.glob("test_features-*"))) == 1  # no shard of the previous extraction is left
    (folder / UNDER_WAY).mkdir()
    (folder / UNDER_WAY / "plan.json").write_text("{}")
    assert run_extract(*flags, *IN_PIECES) == 2
    assert "holds another unfinished extraction" in capsys.readouterr().err
    assert run_extract(*flags, "--overwrite", *IN_PIECES) == 0
    assert content(folder) == before
    other = empty_cache / "other"
    other.mkdir()
    (other / "mine.txt").write_text("mine")
    assert run_extract("--data", str(images), "--output", str(other), "--overwrite", *IN_PIECES) == 2
    assert "is a folder that contains other files" in capsys.readouterr().err
    assert [path.name for path in other.iterdir()] == ["mine.txt"]
    assert run_extract("--data", str(images), "--output", str(other / "mine.txt" / "features"), *IN_PIECES) == 2
    assert "mine.txt/features cannot be written: Not a directory" in capsys.readouterr().err


@pytest.mark.slow
def test_a_bad_shard_prints_one_line_and_the_rest_is_extracted(empty_cache, capsys):
    def tar(name: str, samples: list[tuple[str, bytes]], cut: int = 0) -> None:
        path = empty_cache / "tars" / name
        path.parent.mkdir(exist_ok=True)
        with tarfile.open(path, "w") as archive:
            for key, data in samples:
                entry = tarfile.TarInfo(key)
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))
        if cut:
            path.write_bytes(path.read_bytes()[:cut])

    def png_bytes(red: int) -> bytes:
        file = io.BytesIO()
        Image.new("RGB", (8, 8), (red, 0, 0)).save(file, "PNG")
        return file.getvalue()

    sound = [(f"{n}.{end}", data) for n in range(6) for end, data in (("png", png_bytes(n)), ("cls", b"%d" % (n % 2)))]
    tar("train-0.tar", sound)
    tar("test-0.tar", sound)
    bad = {
        "no label": [("7.png", png_bytes(7)), ("8.png", png_bytes(8)), ("8.cls", b"0")],
        "twice": [("7.png", png_bytes(7)), ("7.cls", b"0"), ("7.png", png_bytes(9))],
        "truncated": [("7.png", png_bytes(7)), ("7.cls", b"0"), ("8.png", png_bytes(8) * 40)],
    }
    flags = ("--views", "0", "--output", str(empty_cache / "out"), "DATASET.NAME", "WebDataset")
    flags += ("DATASET.ROOT", str(empty_cache / "tars"), *FEW)
    for kind, message in {"no label": "has no label", "twice": "twice", "truncated": "truncated"}.items():
        tar("train-1.tar", bad[kind], 2600 if kind == "truncated" else 0)
        capsys.readouterr()
        assert run_extract(*flags) == 2
        error = capsys.readouterr().err
        assert message in error.splitlines()[-1]
        assert error.count("Error") == 1
    assert run_extract(*flags, "DATASET.ON_ERROR", "skip") == 0
    assert read_feature_file(empty_cache / "out").parts["train"].views.shape == (1, 7, 128)


def extracted(*argv: str) -> int:
    return run_extract(*argv)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "precisions"),
    [("vit0", {"fp32": 1e-5, "amp": 5e-3, "fp16": 5e-3, "bf16": 5e-2}), ("rn0", {"fp32": 1e-5})],
)
def test_gpu_features_match_the_cpu_in_every_precision(
    on_cuda: Any, tmp_path: Path, images: Path, golden_backbone: Any, backbone: str, precisions: dict[str, float]
) -> None:
    flags = ["--data", str(images), "--backbone", str(golden_backbone(backbone)), "--views", "2", "--shots", "2", *FEW]
    assert run_extract("--output", str(tmp_path / "cpu.npz"), *flags) == 0
    wanted = read_feature_file(tmp_path / "cpu.npz")
    for precision, bound in {**precisions, "auto": 5e-3}.items():
        path = tmp_path / f"{precision}.npz"
        assert on_cuda(extracted, "--output", str(path), "--precision", precision, *flags) == 0
        found = read_feature_file(path)
        assert found.precision == {"auto": "fp16"}.get(precision, precision)
        pairs = [(found.parts[part].views, wanted.parts[part].views) for part in wanted.parts]
        for values, expected in [*pairs, (found.text_weights, wanted.text_weights)]:
            error = np.linalg.norm(values.astype(np.float32) - expected, axis=-1) / np.linalg.norm(expected, axis=-1)
            assert error.max() < bound, precision


def test_user_errors_print_one_line(tmp_path, capsys):
    there = tmp_path / "there.npz"
    there.write_text("mine")
    for argv, message in (
        (("--output", "x.txt"), "--output 'x.txt' must name an .npz file"),
        (("--output", str(there)), "already exists"),
        (("--output", str(tmp_path / "x"), "--jobs", "0"), "--jobs is 0"),
        (("--output", str(tmp_path / "x"), "--shard-rows", "-1"), "--shard-rows is -1"),
        (("--output", str(tmp_path / "x.npz"), "--jobs", "2", "--ray"), "--jobs has no effect with --ray"),
        (("--output", str(tmp_path / "x.npz"), "--run-cpus", "2"), "--run-cpus has no effect without --ray"),
        (("--output", str(tmp_path / "x.npz"), "--views", "-1"), "--views is -1"),
        (("--output", str(tmp_path / "x.npz"), "--first", "1"), "--first goes with --convert"),
        (("--output", str(tmp_path / "x.npz"), "--convert", str(there)), "is not an .npz"),
        (("--output", str(tmp_path / "x.npz"), "--precision", "fp8"), "unknown precision 'fp8'"),
    ):
        assert run_extract(*argv) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert there.read_text() == "mine"
    assert not (tmp_path / "x.npz").exists()
