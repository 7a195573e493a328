"""CoOp and CoCoOp as their users meet them: files, other classes, evaluation, precisions, mistakes."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dassl_lite.engine.build import build_trainer, make_config
from dassl_lite.utils import UserError, set_random_seed

NODES = {"CoOp": "TRAINER.COOP", "CoCoOp": "TRAINER.COCOOP"}
CLASSES = ("golden retriever", "crane", "yo-yo")


@pytest.fixture
def build(tmp_path: Path, golden_backbone: Any) -> Any:
    """``build("CoOp", "N_CTX", "4")``: a trainer on noise; options are keys of the method's node or of the config."""
    runs = itertools.count()

    def make(method: str, *options: str, classes: Sequence[str] = CLASSES, output: Path | None = None) -> Any:
        root = tmp_path / "-".join(classes).replace("/", "")
        if not root.exists():
            draw_noise(root, classes)
        flags = {
            "DATASET": {"ROOT": str(root), "NAME": "ImageFolder", "FEATURES": {"VIEWS": 2}},
            "MODEL": {"BACKBONE": {"NAME": str(golden_backbone("vit0"))}},
            "DATALOADER": {"NUM_WORKERS": 0, "TRAIN_X": {"BATCH_SIZE": 3}, "TEST": {"BATCH_SIZE": 2}},
            "OPTIM": {"NAME": "sgd", "MAX_EPOCH": 4, "LR": 0.002, "LR_SCHEDULER": "cosine", "WARMUP_EPOCH": 1},
            "OUTPUT_DIR": str(output or tmp_path / f"run-{next(runs)}"),
        }
        node = make_config().TRAINER[NODES[method].partition(".")[2]]
        keyed = [f"{NODES[method]}.{part}" if i % 2 == 0 and part in node else part for i, part in enumerate(options)]
        cfg = make_config(trainer=method, flags=flags, options=[f"{NODES[method]}.N_CTX", "4", *keyed])
        set_random_seed(3)
        return build_trainer(cfg)

    return make


def draw_noise(root: Path, classes: Sequence[str]) -> None:
    rng = np.random.default_rng(0)
    for part, name, i in itertools.product(("train", "val", "test"), classes, range(3)):
        (root / part / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8)).save(root / part / name / f"{i}.png")


def count_calls(trainer: Any, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """One entry for each set of prompts that the text encoder computes: whether with gradients."""
    calls: list[bool] = []
    encode = trainer.clip.text.encode_prompts

    def encode_prompts(*args: Any, **options: Any) -> torch.Tensor:
        calls.append(torch.is_grad_enabled())
        return encode(*args, **options)

    monkeypatch.setattr(trainer.clip.text, "encode_prompts", encode_prompts)
    return calls


@pytest.mark.slow
def test_an_evaluation_computes_the_class_weights_once_and_never_old_ones(build, monkeypatch):
    trainer = build("CoOp", "OPTIM.MAX_EPOCH", "2")
    calls = count_calls(trainer, monkeypatch)
    trainer.train()
    steps = 2 * len(trainer.train_loader_x)
    assert len(trainer.test_loader) > 1
    assert calls == [True] * steps + [False]  # a step each, then the test
    del calls[:]
    image = trainer.test_loader.views[0, :1]
    logits = []
    for _ in range(3):
        torch.nn.init.normal_(trainer.head.ctx)
        trainer.test()
        logits.append(trainer.model_inference(image).detach())
    assert len(calls) == 6
    assert len({float(row[0, 0]) for row in logits}) == 3


@pytest.mark.slow_after(1)
@pytest.mark.parametrize(("method", "options"), [("CoOp", ("CSC", "True")), ("CoOp", ()), ("CoCoOp", ())])
def test_a_resumed_run_equals_one_never_stopped(build, tmp_path, method, options):
    whole = build(method, "TRAIN.CHECKPOINT_FREQ", "2", *options)
    whole.train()
    stopped = tmp_path / "stopped" / "prompt_learner"
    stopped.mkdir(parents=True)
    shutil.copy(Path(whole.output_dir, "prompt_learner", "model.pth.tar-2"), stopped)
    resumed = build(method, "TRAIN.CHECKPOINT_FREQ", "2", *options, output=stopped.parent)
    resumed.train()
    assert resumed.start_epoch == 2
    for key, value in whole.head.state_dict().items():
        assert torch.equal(resumed.head.state_dict()[key], value), key
    assert resumed.results == whole.results


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("method", ["CoOp", "CoCoOp"])
def test_a_shared_context_is_loaded_into_any_classes(build, method):
    source = build(method)
    source.train()
    other = ("aqueduct", "great pyrenees dog", "owl", "crane")
    target = build(method, classes=other)
    target.load_model(source.output_dir)
    features = target.test_loader.views[0]
    places = [source.classnames.index("crane"), target.classnames.index("crane")]
    logits = [trainer.model_inference(features)[:, k] for trainer, k in zip((source, target), places, strict=True)]
    assert torch.allclose(*logits, rtol=1e-5, atol=1e-5)
    target.test()


@pytest.mark.slow
def test_a_context_per_class_is_loaded_by_name(build):
    source = build("CoOp", "CSC", "True")
    source.train()
    target = build("CoOp", "CSC", "True", classes=("crane", "golden_retriever"))
    target.load_model(source.output_dir)
    row = {name.replace("_", " "): k for k, name in enumerate(source.classnames)}
    for k, name in enumerate(target.classnames):
        assert torch.equal(target.head.ctx[k], source.head.ctx[row[name.replace("_", " ")]]), name


@pytest.mark.slow
def test_a_class_without_its_own_context_is_an_error(build):
    source = build("CoOp", "CSC", "True")
    source.train()
    with pytest.raises(UserError, match="knows 2 of this dataset's 3 classes; it lacks aardvark"):
        build("CoOp", "CSC", "True", classes=("crane", "aardvark", "yo-yo")).load_model(source.output_dir)


@pytest.mark.slow
def test_files_hold_what_is_learned_and_the_references_files_load(build, tmp_path):
    trainer = build("CoOp")
    trainer.train()
    path = Path(trainer.output_dir, "prompt_learner", "model.pth.tar-4")
    state = torch.load(path, weights_only=True)
    assert list(state["state_dict"]) == ["ctx"]
    assert state["state_dict"]["ctx"].dtype == torch.float32
    theirs = tmp_path / "theirs" / "prompt_learner"
    theirs.mkdir(parents=True)
    tokens = {"token_prefix": torch.ones(37, 1, 64), "token_suffix": torch.ones(37, 72, 64)}
    ctx = torch.randn(4, 64).half()  # as PREC fp16 leaves it
    torch.save({"state_dict": {"ctx": ctx, **tokens}, "epoch": 50}, theirs / "model.pth.tar-50")
    trainer.load_model(theirs.parent, epoch=50)
    assert torch.equal(trainer.head.ctx, ctx.float())


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("method", ["CoOp", "CoCoOp"])
@pytest.mark.parametrize("precision", ["bf16", "amp", "fp16"])
def test_other_precisions_train_on_a_cpu_and_agree_with_fp32(build, caplog, method, precision):
    exact, rough = build(method), build(method, "PREC", precision)
    batch = next(iter(exact.train_loader_x))
    with torch.no_grad():
        logits = [trainer.model_inference(batch["feature"].float()) for trainer in (exact, rough)]
    assert (logits[0] - logits[1]).abs().max() < 0.05 * exact.head.scale  # a cosine similarity to 0.05
    rough.train()
    assert all(p.dtype == torch.float32 and torch.isfinite(p).all() for p in rough.head.parameters())
    if precision == "fp16":
        assert "PREC fp16 needs a GPU" in caplog.text
    else:
        assert not torch.equal(logits[0], logits[1])


@pytest.mark.slow
@pytest.mark.parametrize("method", ["CoOp", "CoCoOp"])
def test_saving_memory_changes_no_gradient(build, method):
    gradients = []
    for options in ((), ("TEXT_CHUNK", "2", "TEXT_CHECKPOINT", "True")):
        trainer = build(method, *options)
        features, label = trainer.parse_batch_train(next(iter(trainer.train_loader_x)))
        trainer.loss(trainer.head(features), label).backward()
        gradients.append(trainer.head.ctx.grad)
    assert (gradients[0] - gradients[1]).abs().max() < 1e-5 * gradients[0].abs().max()


@pytest.mark.slow_after(1)
@pytest.mark.parametrize(
    ("position", "words", "sentence"),
    [
        ("end", "a  photo_of a", "a photo of a {}."),
        ("middle", "a photo of a", "a photo {} of a."),
        ("front", "a photo of a", "{} a photo of a."),
        # "hyperspectral" has two tokens: four words, five tokens, the last of which is fixed behind the context.
        ("end", "a hyperspectral photo of", "a hyperspectral photo of {}."),
        ("front", "a hyperspectral photo of", "{} a hyperspectral photo of."),
    ],
)
def test_a_context_from_words_starts_as_the_sentence_they_make(build, position, words, sentence):
    trainer = build("CoOp", "CTX_INIT", words, "CLASS_TOKEN_POSITION", position)
    assert trainer.head.ctx.shape[0] == 4
    texts = [sentence.format(name) for name in trainer.classnames]
    expected = trainer.clip.encode_text(trainer.clip.tokenize(texts))
    assert torch.allclose(trainer.head.class_features(), expected, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.slow_after(1)
@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("CoOp", ("CLASS_TOKEN_POSITION", "ende"), "CLASS_TOKEN_POSITION 'ende'. Did you mean 'end'?"),
        ("CoOp", ("N_CTX", "0"), "TRAINER.COOP.N_CTX is 0; it must be at least 1"),
        (
            "CoOp",
            ("N_CTX", "72"),
            "COOP.N_CTX 72 does not fit: with the class name 'yo-yo' a prompt has 78 tokens",
        ),
        ("CoCoOp", ("CTX_INIT", "very " * 73), "use a context of at most 71 tokens"),
        ("CoOp", ("CTX_INIT", "very " * 90), "TRAINER.COOP.CTX_INIT 'very very"),
        ("CoOp", ("CTX_INIT", "a photo of a", "CSC", "True"), "set CSC False, or CTX_INIT ''"),
        ("CoOp", ("CTX_INIT", "a photo of a {}."), "it must be words alone, like 'a photo of a'"),
        ("CoCoOp", ("CTX_INIT", "__"), "it must be words alone"),
        ("CoCoOp", ("TEXT_CHUNK", "-1"), "TRAINER.COCOOP.TEXT_CHUNK is -1; it must be at least 0"),
        ("CoCoOp", ("PREC", "fp8"), "unknown precision 'fp8'"),
    ],
)
def test_a_mistake_is_one_line_with_the_remedy(build, method, options, message):
    with pytest.raises(UserError) as raised:
        build(method, *options)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.slow
def test_the_longest_prompt_that_fits_is_taken(build):
    trainer = build("CoOp", "N_CTX", "71")
    assert 1 + trainer.head.layout.shared + max(trainer.head.layout.lengths) == 77
    assert torch.isfinite(trainer.head.class_features()).all()


@pytest.mark.parametrize(("shots", "epochs"), [("1", 50), ("2", 100), ("4", 100), ("8", 200), ("16", 200), ("-1", 200)])
def test_coop_without_a_recipe_trains_as_long_as_in_the_paper(shots, epochs):
    cfg = make_config(trainer="CoOp", method_file="default.yaml", options=["DATASET.NUM_SHOTS", shots])
    found = (cfg.OPTIM.MAX_EPOCH, cfg.MODEL.BACKBONE.NAME)
    assert found == (epochs, "demo")


@pytest.mark.parametrize(
    ("method", "recipe", "expected"),
    [
        ("CoOp", "rn50_ep50_ctxv1", ("RN50", 50, 32, "a photo of a", 16)),
        ("CoOp", "vit_b16_ep100", ("ViT-B/16", 100, 32, "", 16)),
        ("CoOp", "vit_b32", ("ViT-B/32", 200, 32, "", 16)),
        ("CoCoOp", "vit_b16_c4_ep10_batch1_ctxv1", ("ViT-B/16", 10, 1, "a photo of a", 4)),
        ("CoCoOp", "vit_b16_c16_ep10_batch1", ("ViT-B/16", 10, 1, "", 16)),
    ],
)
def test_recipes_say_what_the_references_files_of_that_name_say(method, recipe, expected):
    cfg = make_config(trainer=method, method_file=f"{recipe}.yaml")
    node = cfg.TRAINER[NODES[method].partition(".")[2]]
    found = (cfg.MODEL.BACKBONE.NAME, cfg.OPTIM.MAX_EPOCH, cfg.DATALOADER.TRAIN_X.BATCH_SIZE, node.CTX_INIT, node.N_CTX)
    assert found == expected
    optim = cfg.OPTIM
    rates = (optim.NAME, optim.LR, optim.LR_SCHEDULER, optim.WARMUP_EPOCH, optim.WARMUP_TYPE, optim.WARMUP_CONS_LR)
    assert rates == ("sgd", 0.002, "cosine", 1, "constant", 1e-5)
