"""Learned prompts as their users meet them: files, other classes, evaluation, precisions, mistakes."""

from __future__ import annotations

import itertools
import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from dassl_lite.data import DATASET_REGISTRY
from dassl_lite.engine.build import build_trainer, make_config
from dassl_lite.trainers.prograd import project
from dassl_lite.utils import UserError, set_random_seed

NODES = {"CoOp": "TRAINER.COOP", "CoCoOp": "TRAINER.COCOOP"}
NODES |= {name: f"TRAINER.{name}" for name in ("KgCoOp", "ProGrad", "TCP")}
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
@pytest.mark.slow_after(1)
@pytest.mark.parametrize("method", ["CoOp", "KgCoOp", "ProGrad", "TCP"])
def test_an_evaluation_computes_the_class_weights_once_and_never_old_ones(build, monkeypatch, method):
    trainer = build(method, "OPTIM.MAX_EPOCH", "2")
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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("CoOp", ("CSC", "True")),
        ("CoOp", ()),
        ("CoCoOp", ()),
        ("KgCoOp", ("CSC", "True")),
        ("ProGrad", ()),
        ("TCP", ()),
    ],
)
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


@pytest.mark.slow
@pytest.mark.parametrize("method", NODES)
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
@pytest.mark.slow_after(1)
@pytest.mark.parametrize("method", ["CoOp", "KgCoOp", "ProGrad"])
def test_a_context_per_class_is_loaded_by_name(build, method):
    options = ("CSC", "True", *(("CTX_INIT", "False") if method == "ProGrad" else ()))
    source = build(method, *options)
    source.train()
    target = build(method, *options, classes=("crane", "golden_retriever"))
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
@pytest.mark.slow_after(1)
@pytest.mark.parametrize("method", ["CoOp", "KgCoOp"])
def test_files_hold_what_is_learned_and_the_references_files_load(build, tmp_path, method):
    trainer = build(method)
    trainer.train()
    path = Path(trainer.output_dir, "prompt_learner", "model.pth.tar-4")
    state = torch.load(path, weights_only=True)
    assert list(state["state_dict"]) == ["ctx"]
    assert state["state_dict"]["ctx"].dtype == torch.float32
    theirs = tmp_path / "theirs" / "prompt_learner"
    theirs.mkdir(parents=True)
    tokens = {"token_prefix": torch.ones(37, 1, 64), "token_suffix": torch.ones(37, 72, 64)}
    if method == "KgCoOp":  # what theirs has, and never uses
        layer = {"meta_net.linear1.weight": torch.ones(512, 512), "meta_net.linear1.bias": torch.ones(512)}
        tokens |= {"bias_vectors": torch.ones(1, 512), **layer}
    ctx = torch.randn(4, 64).half()  # as PREC fp16 leaves it
    torch.save({"state_dict": {"ctx": ctx, **tokens}, "epoch": 50}, theirs / "model.pth.tar-50")
    trainer.load_model(theirs.parent, epoch=50)
    assert torch.equal(trainer.head.ctx, ctx.float())


@pytest.mark.slow
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
@pytest.mark.parametrize("method", ["CoOp", "CoCoOp", "TCP"])
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
        ("KgCoOp", ("W", "-1.0"), "TRAINER.KgCoOp.W is -1.0; it must be at least 0"),
        ("KgCoOp", ("CTX_INIT", "a photo of a", "CSC", "True"), "TRAINER.KgCoOp.CTX_INIT 'a photo of a' starts one"),
        ("ProGrad", ("CSC", "True"), "set CSC False, or CTX_INIT False"),
        (
            "ProGrad",
            ("N_CTX", "3"),
            "TRAINER.ProGrad.N_CTX 3 is too few for the 4 tokens of 'a photo of a'; set it to 4",
        ),
        ("ProGrad", ("DATASET.TEMPLATE", "{} texture."), "'{} texture.' has no words in front of the class name"),
        ("ProGrad", ("N_CTX", "72"), "TRAINER.ProGrad.N_CTX 72 does not fit: with the class name 'yo-yo'"),
        ("ProGrad", ("T", "0.0"), "TRAINER.ProGrad.T is 0.0; it must be above 0"),
        ("TCP", ("LAYER", "2"), "TRAINER.TCP.LAYER 2 is out of range: the text encoder has blocks 0 to 1; use -1"),
        ("TCP", ("DATASET.TEMPLATE", "{}" + " very" * 74), "a prompt has"),
        ("TCP", ("N_CTX", "0"), "TRAINER.TCP.N_CTX is 0; it must be at least 1"),
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


# ---- prompts that are guided by hand-written ones --------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "options"), [("KgCoOp", ("W", "0.0")), ("ProGrad", ("LAMBDA", "0.0", "CTX_INIT", "False"))]
)
def test_a_method_whose_guide_weighs_nothing_is_coop(build, method, options):
    plain = build("CoOp")
    plain.train()
    guided = build(method, *options)
    guided.train()
    assert torch.equal(guided.head.ctx, plain.head.ctx)


@pytest.mark.slow
def test_kgcoop_stays_nearer_to_the_hand_written_prompts_the_more_they_weigh(build):
    distances = []
    for weight in ("0.0", "100.0"):
        trainer = build("KgCoOp", "W", weight, "OPTIM.LR", "0.02")
        trainer.train()
        distances.append((1 - F.cosine_similarity(trainer.head.class_features(), trainer.teacher)).mean().item())
    assert distances[1] < distances[0]


def test_prograd_takes_from_a_step_what_works_against_the_guide():
    own, guide = torch.tensor([[3.0, -1.0]]), torch.tensor([[0.0, 2.0]])
    assert torch.equal(project(own, guide), torch.tensor([[3.0, 0.0]]))
    assert torch.equal(project(own, 1e-3 * guide, 0.5), torch.tensor([[3.0, -0.5]]))
    for harmless in (-guide, 0 * guide, 1e-7 * guide):  # the same side, and no direction but rounding noise
        assert torch.equal(project(own, harmless), own)
    for overflow in (torch.tensor([[0.0, torch.inf]]), torch.tensor([[torch.nan, 1.0]])):
        assert not torch.isfinite(project(own, overflow)).all()  # a step in float16 is repeated with another scale


@pytest.mark.parametrize("count", [9, 12])
def test_prograd_starts_from_every_token_of_the_words(build, count):
    template = "a type of pet, a photo of a {}."  # eight words, nine tokens
    trainer = build("ProGrad", "N_CTX", str(count), "DATASET.TEMPLATE", template)
    learned = trainer.clip.tokenizer.encode(template.partition("{}")[0].strip())
    assert len(learned) == 9
    assert torch.equal(trainer.head.ctx[-9:], trainer.clip.text.embed(torch.tensor(learned)))
    assert not trainer.head.ctx[:-9].any()
    if count == 9:  # both models are zero-shot CLIP, and the first step is CoOp's
        assert torch.allclose(F.normalize(trainer.head.class_features(), dim=-1), trainer.teacher, atol=1e-5)


@pytest.fixture
def describe(build):
    """``describe("TCP", "OxfordPets")``: a trainer whose three classes are described as that dataset's are."""

    def make(method: str, dataset: str, *options: str) -> Any:
        trainer, like = build(method, *options), DATASET_REGISTRY.get(dataset)
        trainer.dm.dataset.template, trainer.dm.dataset.method_templates = like.template, like.method_templates
        return trainer

    return make


@pytest.mark.parametrize(
    ("dataset", "kgcoop", "prograd", "tcp", "tail"),
    [
        ("OxfordPets", "a photo of a {}, a type of pet.", "a type of pet, a photo of a {}.", "", "{}, a type of pet."),
        (
            "OxfordFlowers",
            "a photo of a {}, a type of flower.",
            "a type of flower, a photo of a {}.",
            "",
            "{}, a type of flower.",
        ),
        (
            "FGVCAircraft",
            "a photo of a {}, a type of aircraft.",
            "a type of aircraft, a photo of a {}.",
            "a photo of an aircraft {}.",
            "{}, a type of aircraft.",
        ),
        ("DescribableTextures", "a photo of a {}, a type of texture.", "a texture of {}.", "", "{} texture."),
        ("EuroSAT", "a centered satellite photo of {}.", "a centered satellite photo of {}.", "", "{}."),
        (
            "Food101",
            "a photo of {}, a type of food.",
            "a type of food, a photo of {}.",
            "a photo of a {}, a type of food.",
            "{}, a type of food.",
        ),
        ("UCF101", "a photo of a person doing {}.", "a photo of a person doing {}.", "", "person doing {}."),
        ("StanfordCars", "a photo of a {}.", "a photo of a {}.", "", "{}, a type of car"),
        ("ImageNetA", "a photo of a {}.", "a photo of a {}.", "", "{}."),
    ],
)
def test_a_dataset_is_described_as_a_methods_authors_do(describe, dataset, kgcoop, prograd, tcp, tail):
    trainer = describe("TCP", dataset)
    assert trainer.templates() == [tcp or kgcoop]
    layout = trainer.layout()
    decode = trainer.clip.tokenizer.decode
    ids = layout.behind[2][: layout.lengths[2] - 1].tolist()
    assert decode(ids).split() == decode(trainer.clip.tokenizer.encode(tail.format("yo-yo"))).split()
    for method, template in (("KgCoOp", kgcoop), ("ProGrad", prograd)):
        assert trainer.template_by(method) in (template, "")
        assert (trainer.template_by(method) or trainer.template) == template


@pytest.mark.slow
@pytest.mark.parametrize("method", ["KgCoOp", "ProGrad", "TCP"])
def test_what_a_user_says_of_the_classes_replaces_what_authors_say(build, tmp_path, method):
    own = build(method, "DATASET.TEMPLATE", "a drawing of a {}, in ink.")
    own.dm.dataset.method_templates = ((method, "a photo of a {}."),)
    assert own.templates() == ["a drawing of a {}, in ink."]
    sentences = tmp_path / "sentences.json"
    sentences.write_text(json.dumps({name: [f"Some {name} or other.", "Another."] for name in CLASSES}))
    described = build(method, "DATASET.DESCRIPTIONS", str(sentences))
    texts = [text for name in described.classnames for text in (f"Some {name} or other.", "Another.")]
    features = F.normalize(described.clip.encode_text(described.clip.tokenize(texts)), dim=-1)
    expected = F.normalize(features.unflatten(0, (3, 2)).mean(dim=1), dim=-1)
    assert torch.allclose(described.teacher, expected, atol=1e-5)
    assert "DATASET.DESCRIPTIONS" not in described.idle_keys()


@pytest.mark.slow
def test_tcp_says_where_class_prompts_enter_an_encoder_of_few_blocks(build, caplog):
    caplog.set_level(logging.INFO)
    trainer = build("TCP")
    assert trainer.head.layer == 1
    assert "The text encoder has 2 blocks: class prompts enter the last, not number 8" in caplog.text
    moved = build("TCP", "LAYER", "0")
    moved.head.load_state_dict(trainer.head.state_dict())
    assert not torch.allclose(moved.head.class_features(), trainer.head.class_features())


@pytest.mark.parametrize(
    ("method", "options", "expected"),
    [
        ("KgCoOp", (), ("sgd", 100, 128, 16, "a photo of a")),
        ("ProGrad", ("DATASET.NUM_SHOTS", "4"), ("sgd", 100, 32, 16, True)),
        ("ProGrad", (), ("sgd", 200, 32, 16, True)),
        ("TCP", (), ("adam", 50, 32, 4, "")),
    ],
)
def test_guided_methods_have_their_authors_recipes(method, options, expected):
    cfg = make_config(trainer=method, method_file="default.yaml", options=options)
    node, optim = cfg.TRAINER[method], cfg.OPTIM
    found = (optim.NAME, optim.MAX_EPOCH, cfg.DATALOADER.TRAIN_X.BATCH_SIZE, node.N_CTX, node.CTX_INIT)
    assert found == expected
    assert (optim.LR, optim.LR_SCHEDULER, optim.WARMUP_EPOCH, optim.WARMUP_CONS_LR) == (0.002, "cosine", 1, 1e-5)
    new = make_config(trainer=method, method_file="base_to_new.yaml")
    assert (new.OPTIM.MAX_EPOCH, new.DATASET.NUM_SHOTS) == ((100, 4) if method == "ProGrad" else (expected[1], 16))
