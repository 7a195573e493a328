"""The demo model's recipe: what it teaches, that it is deterministic, and that the shipped file is its result."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dassl_lite.data import DATASET_REGISTRY
from dassl_lite.datasets import gadgets, tiles
from dassl_lite.datasets._drawn.classes import GADGETS
from dassl_lite.datasets._drawn.fields import TILES
from dassl_lite.datasets._drawn.scene import COLOUR_NAMES, FILL_NAMES
from dassl_lite.datasets._drawn.shapes import SEEN_NAMES
from dassl_lite.engine.commands.cli import run_tool
from dassl_lite.models.clip import load_clip
from dassl_lite.tools import pretrain_demo
from dassl_lite.tools._demo import model as demo
from dassl_lite.tools._demo.captions import NOT_NAMED, caption, every_word
from dassl_lite.tools._demo.model import digest, export
from dassl_lite.tools._demo.pictures import DIGIT, SHAPE, UNKNOWN, Pictures, pretraining_pictures
from dassl_lite.tools._demo.pretraining import Recipe, contrastive_loss, pretrain
from dassl_lite.tools._demo.tilt import Trial, best

TRIAL = Recipe(pictures=200, steps=2, batch_size=16, held_out=60, warmup=1)


@pytest.fixture(scope="module")
def pictures() -> Pictures:
    return pretraining_pictures(400, np.random.default_rng(0))


@pytest.fixture(scope="module")
def trained() -> tuple:
    torch.set_num_threads(1)
    return pretrain(TRIAL)


def test_no_caption_contains_a_word_of_the_unseen_sets() -> None:
    assert {gadgets.Gadgets, tiles.Tiles} <= {DATASET_REGISTRY.get(name) for name in ("Gadgets", "Tiles")}
    known = {word.strip(".") for text in every_word() for word in text.split()}
    unseen = {cls.name for cls in GADGETS} | set(TILES)
    assert not unseen & known


@pytest.mark.slow
def test_every_caption_is_made_of_listed_words(pictures: Pictures) -> None:
    known = {word.strip(".") for text in every_word() for word in text.split()}
    rng = np.random.default_rng(1)
    for content in pictures.contents:
        text, _ = caption(content, rng)
        assert {word.strip(".") for word in text.split()} <= known


@pytest.mark.slow
def test_captions_are_true_and_mention_exactly_the_reported_parts(pictures: Pictures) -> None:
    rng = np.random.default_rng(2)
    for content in pictures.contents[pictures.contents[:, 0] == SHAPE]:
        text, named = caption(content, rng)
        words = text.strip(".").split()
        for names, part, truth in zip((SEEN_NAMES, FILL_NAMES, COLOUR_NAMES), named[1:], content[1:], strict=True):
            mentioned = set(names) & set(words)
            assert mentioned == (set() if part == NOT_NAMED else {names[truth]}), text


@pytest.mark.slow
def test_kinds_of_images_have_the_given_shares(pictures: Pictures) -> None:
    assert pictures.images.shape == (400, 64, 64, 3)
    kinds = np.bincount(pictures.contents[:, 0]) / 400
    assert kinds == pytest.approx([0.7, 0.2, 0.1])
    coarse = pictures.contents[:, 3] == UNKNOWN
    assert (pictures.contents[coarse, 0] == DIGIT).all()
    grey = pictures.images[coarse].astype(int)
    assert np.ptp(grey, axis=-1).max() <= 12  # grain only


def test_the_loss_is_the_contrastive_loss_if_each_image_has_one_true_caption() -> None:
    logits = torch.randn(6, 6, generator=torch.Generator().manual_seed(0))
    target = torch.arange(6)
    usual = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    assert contrastive_loss(logits, torch.eye(6)).item() == pytest.approx(usual.item(), rel=1e-6)


def test_several_true_captions_share_the_target_evenly() -> None:
    true = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    perfect = contrastive_loss(100 * true, true)
    assert perfect.item() == pytest.approx(2 / 3 * np.log(2), rel=1e-4)  # the entropy of an even choice of two


@pytest.mark.slow
def test_training_is_deterministic_and_changes_the_weights(trained: tuple, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    export(*trained, TRIAL.as_json(), tmp_path / "one.safetensors")
    export(*pretrain(TRIAL), TRIAL.as_json(), tmp_path / "two.safetensors")
    assert digest(tmp_path / "one.safetensors") == digest(tmp_path / "two.safetensors")
    start = demo.build_model(trained[1], TRIAL.seed)
    assert not torch.equal(start.text_projection, trained[0].text_projection)


@pytest.mark.slow
def test_the_exported_file_loads_as_the_model_that_was_trained(trained: tuple, tmp_path: Path) -> None:
    model, vocabulary = trained
    path = tmp_path / "demo.safetensors"
    export(model, vocabulary, TRIAL.as_json(), path)
    clip = load_clip(str(path))
    texts = ["a photo of a striped star.", "the digit seven."]
    images = demo.to_input(torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8))
    with torch.no_grad():
        pairs = [
            (clip.encode_text(clip.tokenize(texts)), demo.encode_text(model, vocabulary(texts))),
            (clip.encode_image(images), model.encode_image(images)),
        ]
    for loaded, original in pairs:
        assert F.cosine_similarity(loaded, original).min() > 0.999


@pytest.mark.slow
def test_the_digest_depends_only_on_the_weights(trained: tuple, tmp_path: Path) -> None:
    one, two, three = (tmp_path / f"{name}.safetensors" for name in ("one", "two", "three"))
    export(*trained, TRIAL.as_json(), one)
    tensors = load_file(one)
    save_file(tensors, two, {"another": "note"})
    tensors["text_projection"][0, 0] += 0.01
    save_file(tensors, three)
    assert digest(one) == digest(two) != digest(three)


@pytest.mark.slow
def test_the_command_trains_writes_and_compares(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    out = tmp_path / "demo.safetensors"
    argv = ["--steps", "1", "--pictures", "200", "--out", str(out)]
    assert run_tool(pretrain_demo.main, argv) == 0
    assert out.is_file()
    assert not pretrain_demo.compare(out, pretrain_demo.SHIPPED)
    assert run_tool(pretrain_demo.main, ["--steps", "0"]) == 2


@pytest.mark.slow
def test_the_shipped_file_has_the_metadata_of_the_recipe() -> None:
    assert pretrain_demo.SHIPPED.stat().st_size < 4e6
    with safe_open(pretrain_demo.SHIPPED, framework="pt") as file:
        rows, metadata = file.get_tensor("token_embedding.rows"), file.metadata()
    assert torch.equal(rows.long(), demo.Vocabulary().rows)
    assert metadata["train"] == Recipe().as_json()


@pytest.mark.slow
def test_the_shipped_model_recognises_clip_art_and_printed_digits() -> None:
    clip = load_clip("demo")
    shown = pretraining_pictures(200, np.random.default_rng(123), {"clean": 0.6, "digits": 0.4})
    with torch.no_grad():
        images = F.normalize(clip.encode_image(demo.to_input(torch.from_numpy(shown.images))), dim=-1)
        names = [f"{fill} {shape}" for fill in FILL_NAMES for shape in SEEN_NAMES]
        texts = F.normalize(clip.encode_text(clip.tokenize([f"a photo of a {name}." for name in names])), dim=-1)
    shapes = torch.from_numpy(shown.contents[:, 0] == SHAPE)
    truth = torch.from_numpy(shown.contents[:, 2] * len(SEEN_NAMES) + shown.contents[:, 1])
    right = (images @ texts.T).argmax(1) == truth
    assert right[shapes].float().mean() > 0.85  # chance is 1 in 100


def test_the_tilt_depends_only_on_zero_shot_accuracy() -> None:
    trials = [Trial(0, 90, 95), Trial(20, 67, 80), Trial(30, 55, 72), Trial(40, 30, 90)]
    assert best(trials).tilt == 30
