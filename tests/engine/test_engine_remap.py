"""A model trained on one dataset, loaded into another through the public trainer: classes are matched by identity."""

from __future__ import annotations

import json
import logging
import pkgutil
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dassl_lite.data.imagenet import imagenet_classes
from dassl_lite.engine.build import build_trainer, make_config
from dassl_lite.utils import UserError, load_checkpoint, set_random_seed

CASES = json.loads((Path(__file__).parents[1] / "golden" / "checkpoint_taskres.json").read_text())["cases"]
IMAGE_DIRS = {
    "ImageNet": "imagenet/images/train",
    "ImageNetV2": "imagenetv2/imagenetv2-matched-frequency-format-val",
    "ImageNetSketch": "imagenet-sketch/images",
    "ImageNetA": "imagenet-adversarial/imagenet-a",
    "ImageNetR": "imagenet-rendition/imagenet-r",
}
ALPHA = ("TRAINER.TaskRes.RESIDUAL_SCALE", "0.5")


def flags(name: str, root: Path, backbone: Path, output: Path, views: int = 0) -> dict[str, Any]:
    return {
        "DATASET": {"NAME": name, "ROOT": str(root), "FEATURES": {"VIEWS": views}},
        "MODEL": {"BACKBONE": {"NAME": str(backbone)}},
        "OUTPUT_DIR": str(output),
    }


# ---- The reference's checkpoint of ImageNet's 1000 classes ----


@pytest.fixture(scope="module")
def imagenet_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The family in the field's layout; the files are empty, as nothing reads them."""
    root = tmp_path_factory.mktemp("imagenet")
    folders = {name: list(imagenet_classes().ids) for name in IMAGE_DIRS}
    folders["ImageNetV2"] = [str(label) for label in range(1000)]
    for variant in ("a", "r"):
        table = pkgutil.get_data("timm.data", f"_info/imagenet_{variant}_synsets.txt")
        assert table is not None
        folders[f"ImageNet{variant.upper()}"] = table.decode().split()
    for name, place in IMAGE_DIRS.items():
        for folder in folders[name]:
            (root / place / folder).mkdir(parents=True)
            (root / place / folder / "0.JPEG").touch()
    (root / "imagenet" / "images" / "val").symlink_to("train")
    return root


@pytest.fixture(scope="module")
def imagenet_trainer(imagenet_root: Path, golden_backbone: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """``imagenet_trainer("ImageNetA")``: a TaskRes trainer on that dataset, built once."""
    built: dict[str, Any] = {}

    def make(name: str) -> Any:
        if name not in built:
            given = flags(name, imagenet_root, golden_backbone("vit0"), tmp_path_factory.mktemp("run"))
            built[name] = build_trainer(make_config(trainer="TaskRes", flags=given, options=ALPHA))
        return built[name]

    return make


@pytest.mark.slow
@pytest.mark.parametrize("case", [*CASES, "ImageNetSketch.3"])
def test_the_reference_checkpoint_gives_its_logits(
    golden: Any, imagenet_trainer: Callable[..., Any], caplog: pytest.LogCaptureFixture, case: str
) -> None:
    name, _, which = case.partition(".")
    trainer = imagenet_trainer(name)
    with caplog.at_level(logging.INFO, logger="dassl_lite"):
        trainer.load_model(golden.path("checkpoint_taskres"), epoch=None if which == "best" else int(which))
    count = CASES[case]["n_classes"] if case in CASES else 1000
    assert f"matched {count} of {count} classes (by id)" in caplog.text
    features = trainer.encode_image(golden.tiny_clip.images("vit", 100, 4))
    trainer.set_model_mode("eval")
    with torch.no_grad():
        logits = trainer.model_inference(features).numpy()
    key = case if case in CASES else f"ImageNetV2.{which}"  # Sketch has V2's classes, in the same order
    expected = golden.npz("checkpoint_taskres")[f"{key}.logits"]
    assert np.abs(logits - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.slow
def test_the_reference_checkpoint_loads_into_classes_without_ids(
    golden: Any, golden_backbone: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place = lay_out(tmp_path / "fish", {"Great-White_Shark": "", "some newt": "", "goldfish": ""})
    trainer = make("TaskRes", place, golden_backbone)
    with caplog.at_level(logging.INFO, logger="dassl_lite"):
        trainer.load_model(golden.path("checkpoint_taskres"))
    assert "matched 2 of 3 classes (by name)" in caplog.text
    assert "1 class is not in the checkpoint and stays zero-shot: some newt" in caplog.text
    stored = load_checkpoint(golden.path("checkpoint_taskres") / "prompt_learner" / "model-best.pth.tar")
    residuals = stored["state_dict"]["text_feature_residuals"]
    assert torch.equal(trainer.head.text_feature_residuals[[0, 2]], residuals[[2, 1]])
    assert not trainer.head.text_feature_residuals[1].any()


# ---- Our own checkpoints ----


def lay_out(root: Path, classes: dict[str, str], folders: Sequence[str] = ()) -> Path:
    """An image folder with train and test parts; the images of a class depend on its (lower-case) name and id alone.

    Args:
        classes: id of each class by its name; labels follow this order.
        folders: names of the class folders, in label order.
    """
    folders = folders or [f"{label:02}" for label in range(len(classes))]
    for (name, identity), folder in zip(classes.items(), folders, strict=True):
        rng = np.random.default_rng(zlib.crc32(f"{name.lower().replace('_', ' ')}{identity}".encode()))
        colour = rng.uniform(0, 255, 3)
        for part, count in (("train", 6), ("test", 8)):
            (root / part / folder).mkdir(parents=True)
            for i in range(count):
                pixels = np.clip(rng.normal(colour, 60, (32, 32, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / part / folder / f"{i}.png")
    described = zip(folders, classes.items(), strict=True)
    table = {folder: {"name": name.strip(), "id": identity} for folder, (name, identity) in described}
    (root / "classnames.json").write_text(json.dumps(table))
    return root


def make(method: str, root: Path, golden_backbone: Any, *options: str) -> Any:
    """A trainer of ``method`` on the image folder ``root``."""
    given = flags("ImageFolder", root, golden_backbone("vit0"), root.parent / f"run_{root.name}", views=1)
    common = ("OPTIM.NAME", "adam", "OPTIM.LR", "0.01", "OPTIM.MAX_EPOCH", "10", "DATALOADER.NUM_WORKERS", "0")
    set_random_seed(1)
    return build_trainer(make_config(trainer=method, flags=given, options=(*common, *options)))


ANIMALS = {"White_Shark": "", "ant": "", "Bee": "", "crab": "", "Goldfish": "", "F-16A/B": ""}


@pytest.fixture(scope="module")
def trained(golden_backbone: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """``trained("TaskRes")``: a trainer with six classes learnt."""
    runs: dict[str, Any] = {}

    def get(method: str) -> Any:
        if method not in runs:
            folder = tmp_path_factory.mktemp(method)
            runs[method] = make(method, lay_out(folder / "animals", ANIMALS), golden_backbone)
            runs[method].train()
        return runs[method]

    return get


def logits(trainer: Any) -> torch.Tensor:
    """Logits (16, K) of fixed random features."""
    features = torch.randn(16, trainer.clip.embed_dim, generator=torch.Generator().manual_seed(0))
    trainer.set_model_mode("eval")
    with torch.no_grad():
        return trainer.model_inference(features)


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    ["TaskRes", "LinearProbe", "TipAdapter", "TipAdapterF", "CLAP", "GDA", "ProKeR", "LPPlusPlus", "APE", "APET"],
)
@pytest.mark.parametrize("folders", ["numbered", "renamed"])
def test_accuracy_does_not_depend_on_class_order(
    trained: Any, golden_backbone: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, method: str, folders: str
) -> None:
    source = trained(method)
    order = [3, 0, 5, 4, 1, 2]
    names = [list(ANIMALS)[i] for i in order]
    renamed = [f"class {label} of six" for label in range(6)] if folders == "renamed" else ()
    target = make(method, lay_out(tmp_path / "other", dict.fromkeys(names, ""), renamed), golden_backbone)
    with caplog.at_level(logging.INFO, logger="dassl_lite"):
        target.load_model(source.output_dir)
    assert "matched 6 of 6 classes (by name)" in caplog.text
    torch.testing.assert_close(logits(target), logits(source)[:, order])
    accuracy = source.test()
    assert accuracy > 100 / 6
    assert target.test() == pytest.approx(accuracy)


@pytest.mark.slow
def test_class_names_match_across_spellings(trained: Any, golden_backbone: Any, tmp_path: Path) -> None:
    source = trained("TaskRes")
    spelt = ["white shark", "Ant", " bee ", "CRAB", "gold_fish", "f_16a b"]
    target = make("TaskRes", lay_out(tmp_path / "other", dict.fromkeys(spelt, "")), golden_backbone)
    target.load_model(source.output_dir)
    found = target.head.text_feature_residuals
    assert torch.equal(found[[0, 1, 2, 3, 5]], source.head.text_feature_residuals[[0, 1, 2, 3, 5]])
    assert not found[4].any()  # gold fish is another word than goldfish


@pytest.mark.slow
def test_a_subset_of_the_classes_can_be_evaluated(trained: Any, golden_backbone: Any, tmp_path: Path) -> None:
    for method in ("TaskRes", "LinearProbe"):
        source = trained(method)
        target = make(method, lay_out(tmp_path / f"few{method}", dict.fromkeys(["crab", "ant"], "")), golden_backbone)
        target.load_model(source.output_dir)
        torch.testing.assert_close(logits(target), logits(source)[:, [3, 1]])


@pytest.mark.slow
def test_classes_that_the_checkpoint_lacks_stay_zero_shot(trained: Any, golden_backbone: Any, tmp_path: Path) -> None:
    source = trained("TaskRes")
    wider = {**ANIMALS, "newt": "", "toad": ""}
    target = make("TaskRes", lay_out(tmp_path / "wide", wider), golden_backbone)
    untrained = logits(target)
    target.load_model(source.output_dir)
    torch.testing.assert_close(logits(target)[:, :6], logits(source))
    torch.testing.assert_close(logits(target)[:, 6:], untrained[:, 6:])
    target.strict_classes = True
    with pytest.raises(UserError, match=r"knows 6 of this dataset's 8 classes; it lacks newt, toad"):
        target.load_model(source.output_dir)


@pytest.mark.slow
def test_base_rows_are_never_used_for_new_classes(
    trained: Any, golden_backbone: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = lay_out(tmp_path / "animals", ANIMALS)
    subsample = "DATASET.SUBSAMPLE_CLASSES"
    base = make("TaskRes", root, golden_backbone, subsample, "base")
    base.train()
    new = make("TaskRes", root, golden_backbone, subsample, "new")
    zero_shot = logits(new)
    with caplog.at_level(logging.INFO, logger="dassl_lite"):
        new.load_model(base.output_dir)
    assert "matched 0 of 3 classes" in caplog.text
    assert "all 3 classes are not in the checkpoint and stay zero-shot: crab, Goldfish, F-16A/B" in caplog.text
    torch.testing.assert_close(logits(new), zero_shot)
    whole = make("TaskRes", root, golden_backbone)
    untrained = logits(whole)
    whole.load_model(base.output_dir)
    torch.testing.assert_close(logits(whole), torch.cat([logits(base), untrained[:, 3:]], dim=1))
    probe = trained("LinearProbe")
    other = make("LinearProbe", lay_out(tmp_path / "toads", dict.fromkeys(["ant", "toad"], "")), golden_backbone)
    with pytest.raises(UserError, match="knows 1 of this dataset's 2 classes; it lacks toad"):
        other.load_model(probe.output_dir)  # it has no zero-shot rows


@pytest.mark.slow
def test_two_classes_with_the_same_name_are_not_confused(golden_backbone: Any, tmp_path: Path) -> None:
    # ImageNet's two missiles; a blank makes two keys of one name.
    ids = {"missile": "n03773504", "missile ": "n04008634", "dog": "n02084071"}
    source = make("TaskRes", lay_out(tmp_path / "source", ids), golden_backbone)
    source.train()
    turned = dict(reversed(ids.items()))
    target = make("TaskRes", lay_out(tmp_path / "target", turned), golden_backbone)
    target.load_model(source.output_dir)
    torch.testing.assert_close(logits(target), logits(source).flip(1))
    assert target.test() == pytest.approx(source.test())

    nameless = make("TaskRes", lay_out(tmp_path / "nameless", dict.fromkeys(turned, "")), golden_backbone)
    nameless.load_model(source.output_dir)
    found = nameless.head.text_feature_residuals
    assert torch.equal(found[0], source.head.text_feature_residuals[2])
    assert not found[1:].any()  # nothing says which missile is which
