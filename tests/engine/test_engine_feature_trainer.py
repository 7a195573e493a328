"""Training on cached features: the same as on images, views by epoch, precisions, corrupt images."""

from __future__ import annotations

import itertools
import logging
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from toy import make_images
from yacs.config import CfgNode

from dassl_lite.data.transforms import TRANSFORMS
from dassl_lite.engine.build import TRAINER_REGISTRY, build_trainer, make_config
from dassl_lite.engine.files import results
from dassl_lite.engine.files.checkpoint import follow_precision
from dassl_lite.engine.methods.feature_trainer import FeatureTrainer
from dassl_lite.engine.plugins import load_plugin
from dassl_lite.trainers.taskres import TaskRes
from dassl_lite.utils import UserError, set_random_seed
from dassl_lite.utils.errors import NotFiniteError


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_images(tmp_path_factory.mktemp("feature_images"))


@pytest.fixture
def build(data: Path, tmp_path: Path, golden_backbone: Any) -> Any:
    """``build("0", *options)``: TaskRes on the toy images with that many cached views."""

    runs = itertools.count()

    def make(views: str, *options: str, backbone: str = "vit0", root: Path = data, method: str = "TaskRes") -> Any:
        flags = {
            "DATASET": {"ROOT": str(root), "NAME": "ImageFolder", "FEATURES": {"DIR": str(tmp_path / "features")}},
            "MODEL": {"BACKBONE": {"NAME": str(golden_backbone(backbone))}},
            "DATALOADER": {"NUM_WORKERS": 0, "TRAIN_X": {"BATCH_SIZE": 4}},
            "OPTIM": {"MAX_EPOCH": 3, "LR": 0.01},
            "OUTPUT_DIR": str(tmp_path / f"run-{next(runs)}"),
        }
        cfg = make_config(trainer=method, flags=flags, options=["DATASET.FEATURES.VIEWS", views, *options])
        set_random_seed(3)
        return build_trainer(cfg)

    return make


@pytest.mark.slow
def test_a_run_on_cached_features_equals_one_on_images_where_nothing_is_random(build: Any) -> None:
    options = ("INPUT.TRANSFORMS", "('normalize',)")
    images, features = build("0", *options), build("5", *options)
    batches = {"img": 0, "feature": 0}
    for trainer in (images, features):
        original = trainer.parse_batch_train

        def parse(batch: dict, original: Any = original) -> Any:
            batches["img" if "img" in batch else "feature"] += 1
            return original(batch)

        trainer.parse_batch_train = parse
        set_random_seed(4)
        trainer.train()
    assert batches["img"] == batches["feature"] > 12
    assert features.train_loader_x.views.shape[0] == 1  # a transform without chance needs one view
    residuals = [t.head.text_feature_residuals for t in (images, features)]
    assert torch.allclose(residuals[0], residuals[1], atol=1e-5)  # batches of 4 and of 256 through the encoder
    assert images.results["test"] == pytest.approx(features.results["test"], abs=1e-3)


@pytest.mark.slow
def test_epoch_e_reads_view_e_mod_v(build: Any) -> None:
    trainer = build("2", "OPTIM.MAX_EPOCH", "5")
    seen: list[int] = []
    views = trainer.train_loader_x.views
    assert views.shape[0] == 2
    assert not torch.equal(views[0], views[1])
    original = trainer.forward_backward

    def forward_backward(batch: dict) -> Any:
        if trainer.batch_idx == 0:
            equal = [torch.equal(batch["feature"], view[batch["index"]]) for view in views]
            seen.append(equal.index(True))
        return original(batch)

    trainer.forward_backward = forward_backward
    trainer.train()
    assert seen == [0, 1, 0, 1, 0]


@pytest.mark.slow
def test_a_second_run_encodes_nothing(build: Any) -> None:
    build("2").train()
    trainer = build("2", "SEED", "5", "DATASET.NUM_SHOTS", "2")  # other seed, fewer shots: the same images' rows
    trainer.encode_image = lambda images: pytest.fail("an image was encoded again")
    trainer.train()
    assert trainer.results["test"]["accuracy"] >= 0


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "amp", "fp16"])
def test_other_precisions_train_on_a_cpu_and_agree_with_fp32(
    build: Any, precision: str, capsys: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture
) -> None:
    exact, rough = build("1"), build("1", "TRAINER.TaskRes.PREC", precision)
    for trainer in (exact, rough):
        trainer.train()
    rough.load_model(exact.output_dir)  # a checkpoint is not tied to the precision it was trained in
    features = [trainer.test_loader.views[0].float() for trainer in (exact, rough)]
    assert (features[0] - features[1]).abs().max() < 0.05 * features[0].abs().max()
    assert torch.isfinite(rough.head.text_feature_residuals).all()
    assert rough.head.text_feature_residuals.dtype == torch.float32
    if precision == "fp16":
        assert rough.precision == "fp32"  # said in the log, not silently
        assert "PREC fp16 needs a GPU" in caplog.text
    else:
        assert not torch.equal(features[0], features[1])


@pytest.mark.slow
def test_precision_auto_is_fp32_on_a_cpu(build: Any) -> None:
    auto, exact = build("1"), build("1", "TRAINER.TaskRes.PREC", "fp32")
    assert auto.method_cfg.PREC == "auto"
    assert auto.precision == auto.clip.precision == "fp32"
    assert auto.run_results()["arithmetic"]["precision"] == "fp32"
    assert torch.equal(auto.test_loader.views, exact.test_loader.views)


@pytest.mark.slow
@pytest.mark.parametrize(("before", "resumes"), [("fp32", True), ("bf16", False)])
def test_a_run_from_before_auto_was_the_default_is_resumed_if_it_was_in_fp32(
    build: Any, before: str, resumes: bool
) -> None:
    old = build("1", "TRAINER.TaskRes.PREC", before, "OPTIM.MAX_EPOCH", "3", "TRAIN.CHECKPOINT_FREQ", "1")
    old.train()
    whole = old.head.state_dict()
    max(Path(old.output_dir).glob("*/model.pth.tar-*")).unlink()
    again = build("1", "RESUME", old.output_dir)
    if not resumes:
        with pytest.raises(UserError, match=r"TRAINER.TaskRes.PREC bf16, but now it is auto"):
            again.train()
        return
    again.train()
    assert again.start_epoch == 2
    torch.testing.assert_close(again.head.state_dict(), whole, rtol=0, atol=0)


def test_a_third_partys_trainer_that_reads_a_node_of_ours_sees_fp32(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[str] = []

    class Fork:
        def __init__(self, cfg: Any) -> None:
            seen.append(cfg.TRAINER.TaskRes.PREC)

    monkeypatch.setitem(TRAINER_REGISTRY._table, "Fork", Fork)
    build_trainer(make_config(trainer="Fork", flags={"OUTPUT_DIR": str(tmp_path)}))
    assert seen == ["fp32"]


@pytest.mark.slow
def test_a_corrupt_image_is_named_and_handled_as_configured(build: Any, tmp_path: Path) -> None:
    root = make_images(tmp_path / "with_corrupt")
    corrupt = root / "train" / "red" / "3.png"
    corrupt.write_bytes(corrupt.read_bytes()[:40])
    with pytest.raises(UserError, match=str(corrupt)):
        build("1", root=root).train()
    trainer = build("1", "DATASET.ON_ERROR", "skip", root=root)
    trainer.train()
    assert int((~trainer.train_loader_x.kept).sum()) == 1
    indices = torch.cat([batch["index"] for batch in trainer.train_loader_x])
    assert str(corrupt) not in {trainer.train_loader_x.items[i].impath for i in indices.tolist()}


def test_zero_shot_accuracy_is_that_of_the_zero_shot_trainer(build: Any, data: Path, golden_backbone: Any) -> None:
    trainer = build("1")
    flags = {
        "DATASET": {"ROOT": str(data), "NAME": "ImageFolder"},
        "MODEL": {"BACKBONE": {"NAME": str(golden_backbone("vit0"))}},
        "OUTPUT_DIR": trainer.cfg.OUTPUT_DIR,
    }
    zero_shot = build_trainer(make_config(trainer="ZeroshotCLIP", flags=flags))
    zero_shot.train()
    assert trainer.zero_shot() == zero_shot.results["test"]["accuracy"]


def test_the_backbone_gives_the_preprocessing_unless_the_config_does(build: Any) -> None:
    trainer = build("1")
    assert trainer.cfg.INPUT.SIZE == (32, 32)
    assert trainer.cfg.INPUT.INTERPOLATION == "bicubic"
    assert trainer.cfg.INPUT.PIXEL_MEAN[0] == pytest.approx(0.48145466)
    other = build("1", "INPUT.PIXEL_MEAN", "[0.5, 0.5, 0.5]")
    assert other.cfg.INPUT.PIXEL_MEAN == [0.5, 0.5, 0.5]
    assert other.cfg.INPUT.SIZE == (32, 32)


def test_a_step_whose_scaled_gradients_overflow_is_repeated_with_a_smaller_scale(build: Any) -> None:
    plain, scaled = build("1"), build("1")
    scaled.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)  # as on a GPU in PREC amp
    factors = [1.0, float("inf"), float("inf"), 1.0]  # of the gradients: the second step overflows twice
    hook = scaled.head.text_feature_residuals.register_hook(lambda gradient: gradient * factors.pop(0))
    batch = next(iter(plain.train_loader_x))
    for scale in (2.0**16, 2.0**14):
        for trainer in (plain, scaled):
            trainer.set_model_mode("train")
            trainer.forward_backward(batch)
        assert plain.head.text_feature_residuals.abs().max() > 0
        torch.testing.assert_close(
            scaled.head.text_feature_residuals, plain.head.text_feature_residuals, rtol=1e-4, atol=1e-7
        )
        assert scaled.scaler.get_scale() == scale
    hook.remove()


def test_gradients_and_losses_that_are_infinite_at_any_scale_stop_the_run(build: Any) -> None:
    trainer = build("1")
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    trainer.set_model_mode("train")
    batch = next(iter(trainer.train_loader_x))
    before = trainer.head.text_feature_residuals.detach().clone()
    hook = trainer.head.text_feature_residuals.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(NotFiniteError, match="gradients are infinite or NaN at epoch 1, batch 1"):
        trainer.forward_backward(batch)
    assert torch.equal(trainer.head.text_feature_residuals, before)
    hook.remove()
    with pytest.raises(NotFiniteError, match="the loss is infinite or NaN at epoch 1, batch 1"):
        trainer.model_backward_and_update(trainer.head(batch["feature"]).sum() * float("inf"))


def test_weights_that_are_not_finite_are_never_saved(build: Any) -> None:
    trainer = build("1", "TRAIN.CHECKPOINT_FREQ", "1")
    own = trainer.run_epoch

    def run_epoch() -> None:
        own()
        if trainer.epoch == 1:  # the last step of the epoch goes wrong; no loss has seen it yet
            trainer.head.text_feature_residuals.data[0, 0] = float("nan")

    trainer.run_epoch = run_epoch
    with pytest.raises(NotFiniteError, match="text_feature_residuals is infinite or NaN after epoch 2; lower OPTIM.LR"):
        trainer.train()
    assert [path.name for path in Path(trainer.output_dir).glob("*/model.pth.tar*")] == ["model.pth.tar-1"]


# ---- what a run's time was spent on, and whose features it shares ----


class SlowEncoder:
    """Pretends that encoding takes a hundred seconds per call, by moving the clocks."""

    def __init__(self, trainer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.late, self.calls = 0.0, 0
        clock, wall, encode = time.perf_counter, time.time, trainer.features.encode
        monkeypatch.setattr(time, "perf_counter", lambda: clock() + self.late)
        monkeypatch.setattr(time, "time", lambda: wall() + self.late)

        def late_encode(images: torch.Tensor) -> torch.Tensor:
            self.late += 100
            self.calls += 1
            return encode(images)

        trainer.features.encode = late_encode


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("TaskRes", ("TEST.FINAL_MODEL", "best_val")),
        ("LinearProbe", ("TRAINER.LinearProbe.FIT", "logistic_regression")),
        ("TipAdapterF", ()),
    ],
)
def test_the_phases_of_a_run_do_not_overlap(
    build: Any, monkeypatch: pytest.MonkeyPatch, method: str, options: tuple[str, ...]
) -> None:
    trainer = build("1", *options, method=method)
    slow = SlowEncoder(trainer, monkeypatch)
    start = time.perf_counter()
    trainer.train()
    assert slow.calls >= 2  # training and test images at least
    assert trainer.seconds["features"] >= 100 * slow.calls
    assert {phase: seconds for phase, seconds in trainer.seconds.items() if seconds > 90}.keys() == {"features"}
    assert {"train", "evaluate test"} <= trainer.seconds.keys()
    assert sum(trainer.seconds.values()) <= time.perf_counter() - start + 0.1


@pytest.mark.slow
def test_the_peak_memory_of_a_run_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    resets: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: resets.append(1))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 2**20 if resets else 2**30)
    results.reset_peak_memory()
    assert results.peak_memory()["device_mib"] == 1
    if "VmHWM" not in Path("/proc/self/status").read_text():
        pytest.skip("this system does not tell a process's peak memory")
    big = torch.ones(2**26)  # 256 MiB
    with_it = results.peak_memory()["host_mib"]
    del big
    results.reset_peak_memory()
    assert results.peak_memory()["host_mib"] < with_it - 200


SCALED = """
from dassl_lite.data.transforms import TRANSFORMS
from dassl_lite.data.transforms.build import Step

SCALE = {scale}
FILE = open(__file__)

def scaled(image):
    return image.point(lambda value: value * SCALE)

def unsure(image):
    return image.point(lambda value: value * len(FILE.name))

for function in (scaled, unsure):
    TRANSFORMS.register(lambda cfg, f=function: Step(f"+ {{f.__name__}}", f), name=function.__name__, force=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["scaled", "unsure"])
def test_two_versions_of_a_plugins_transform_share_no_features(
    build: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    monkeypatch.setattr(TRANSFORMS, "_table", dict(TRANSFORMS._table))
    found = []
    for number, scale in enumerate((0.1, 0.9, 0.1)):
        folder = tmp_path / f"version{number}"
        folder.mkdir()
        (folder / "plugin.py").write_text(SCALED.format(scale=scale))
        monkeypatch.delitem(sys.modules, "dassl_lite_plugin_plugin", raising=False)
        load_plugin(str(folder / "plugin.py"))
        with caplog.at_level(logging.INFO):
            found.append(build("1", "INPUT.TRANSFORMS", f"('{name}', 'normalize')").train_loader_x.views)
    if name == "scaled":
        assert not torch.equal(found[0], found[1])
        assert torch.equal(found[0], found[2])
        assert caplog.text.count("18 extracted in") == 2
    else:
        assert caplog.text.count("18 extracted in") == 3
        assert (
            "The features are not kept for other runs: the transform depends on things that may change" in caplog.text
        )


@pytest.mark.slow
def test_a_method_that_encodes_in_its_own_way_shares_no_features(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = build("1").train_loader_x.views
    encode = FeatureTrainer.encode_image
    monkeypatch.setattr(TaskRes, "encode_image", lambda self, images: 2 * encode(self, images), raising=False)
    assert torch.allclose(build("1").train_loader_x.views, 2 * plain)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize(
    ("stored", "now", "expected"), [("fp32", "auto", "fp32"), ("amp", "auto", "auto"), ("fp32", "amp", "amp")]
)
def test_precision_follows_a_stored_run_from_before_auto_only(
    stored: str, now: str, expected: str, frozen: bool
) -> None:
    cfg = CfgNode({"TRAINER": {"NAME": "TaskRes", "TaskRes": {"PREC": now}}})
    if frozen:
        cfg.freeze()
    followed = follow_precision(cfg, {"TRAINER": {"TaskRes": {"PREC": stored}}})
    assert (followed.TRAINER.TaskRes.PREC, followed.is_frozen()) == (expected, frozen)
    assert cfg.TRAINER.TaskRes.PREC == now
