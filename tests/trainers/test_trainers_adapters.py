"""CLIP-Adapter, Tip-Adapter(-F) and LinearProbe as runs: files, resuming, other classes, precisions, mistakes."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression

from dassl_lite.config import get_cfg_default
from dassl_lite.config.load import merge_file
from dassl_lite.engine import TRAINER_REGISTRY
from dassl_lite.engine.build import build_trainer, configs_root, make_config
from dassl_lite.engine.plugins import load_plugins
from dassl_lite.models import logistic_regression as logistic
from dassl_lite.utils import UserError, set_random_seed

LOGISTIC = ("TRAINER.LinearProbe.FIT", "logistic_regression")
METHODS = {
    "CLIP_Adapter": ("TRAINER.CLIP_Adapter.SIDE", "both"),
    "TipAdapter": (),
    "TipAdapterF": (),
    "LinearProbe": (),
    "logistic regression": LOGISTIC,
    "GDA": (),
    "ProKeR": (),
    "CLAP": ("TRAINER.CLAP.CONSTRAINT", "l2-adaptative"),
    "LPPlusPlus": (),
    "APE": (),
    "APET": (),
    "CrossModalProbe": ("TRAINER.CrossModalProbe.ITERATIONS", "30", "TRAINER.CrossModalProbe.EVAL_EVERY", "10"),
    "ZSLP": ("TRAINER.ZSLP.TEXT_ROWS", "True"),
}
load_plugins()
COLOURS = {"red": (200, 40, 40), "green": (40, 200, 40), "blue": (40, 40, 200)}


def make_folder(root: Path, classes: list[str], parts: tuple[str, ...] = ("train", "val", "test")) -> Path:
    random = np.random.default_rng(0)
    for part in parts:
        for name in classes:
            (root / part / name).mkdir(parents=True)
            for i in range(5):
                pixels = np.clip(random.normal(COLOURS[name], 70, (8, 8, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return make_folder(tmp_path_factory.mktemp("adapters") / "three", list(COLOURS))


@pytest.fixture
def build(images, tmp_path, golden_backbone):
    """``build("TipAdapter", *options)``: a trainer on the coloured images, whose files go to ``output``."""

    def make(method, *options, root=images, output="run", backbone="vit0"):
        flags = {
            "DATASET": {"ROOT": str(root), "NAME": "ImageFolder", "FEATURES": {"DIR": str(tmp_path / "features")}},
            "MODEL": {"BACKBONE": {"NAME": str(golden_backbone(backbone))}},
            "DATALOADER": {"NUM_WORKERS": 0, "TRAIN_X": {"BATCH_SIZE": 4}},
            "OPTIM": {"MAX_EPOCH": 3, "LR": 0.01, "LR_SCHEDULER": "cosine"},
            "OUTPUT_DIR": str(tmp_path / output),
        }
        options = ["DATASET.FEATURES.VIEWS", "2", *METHODS.get(method, ()), *options]
        cfg = make_config(
            trainer=method if method in METHODS and " " not in method else "LinearProbe", flags=flags, options=options
        )
        set_random_seed(1)
        return build_trainer(cfg)

    return make


def logits(trainer) -> torch.Tensor:
    trainer.set_model_mode("eval")
    with torch.no_grad():
        return torch.cat([trainer.model_inference(trainer.parse_batch_test(b)[0]) for b in trainer.test_loader])


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_loaded_run_gives_the_same_logits(build, tmp_path, method):
    trained = build(method)
    trained.train()
    loaded = build(method, output="elsewhere")
    loaded.load_model(tmp_path / "run")
    assert torch.equal(logits(loaded), logits(trained))
    assert loaded.test() == trained.results["test"]["accuracy"]


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_classes_follow_their_names_into_another_dataset(build, tmp_path, method):
    trained = build(method)
    trained.train()
    two = make_folder(tmp_path / "two", ["red", "blue"])  # labels 0 and 1; 0 and 2 in the source
    target = build(method, root=two, output="elsewhere")
    target.load_model(tmp_path / "run")
    features = torch.randn(7, target.clip.embed_dim)
    with torch.no_grad():
        expected, found = trained.model_inference(features), target.model_inference(features)
    assert found.shape == (7, 2)
    assert torch.allclose(found, expected[:, [0, 2]], atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "method", ["CLIP_Adapter", "TipAdapterF", "LinearProbe", "CLAP", "ZSLP", "APET", "CrossModalProbe"]
)
def test_a_resumed_run_ends_as_one_never_stopped(build, tmp_path, method):
    options = ("TRAIN.CHECKPOINT_FREQ", "1")
    whole = build(method, *options)
    whole.train()
    for path in (tmp_path / "run").rglob("model.pth.tar-[23]"):
        path.unlink()
    resumed = build(method, *options)
    resumed.train()
    assert resumed.start_epoch == 1
    for key, value in whole.head.state_dict().items():
        assert torch.equal(resumed.head.state_dict()[key], value), key


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_training_without_a_cache_of_features_works(build, method):
    trainer = build(method, "DATASET.FEATURES.VIEWS", "0", "TRAINER.TipAdapter.AUGMENT_EPOCH", "2")
    trainer.train()
    assert trainer.results["test"]["accuracy"] > 30
    assert not list(Path(trainer.cfg.DATASET.FEATURES.DIR).glob("*"))


@pytest.mark.slow
def test_the_text_adapter_learns_and_the_image_adapter_is_absent(build):
    trainer = build("CLIP_Adapter", "TRAINER.CLIP_Adapter.SIDE", "text")
    before = {key: value.clone() for key, value in trainer.head.state_dict().items()}
    trainer.train()
    assert set(before) == {"text_fc.0.weight", "text_fc.2.weight"}
    assert any(not torch.equal(trainer.head.state_dict()[key], value) for key, value in before.items())


@pytest.mark.slow
def test_adapter_width_follows_backbone_and_reduction(build):
    trainer = build("CLIP_Adapter", "TRAINER.CLIP_Adapter.REDUCTION", "8", backbone="rn1")
    assert trainer.head.fc[0].weight.shape == (trainer.clip.embed_dim // 8, trainer.clip.embed_dim)


def test_tip_keys_are_the_mean_over_the_cached_views(build):
    trainer = build("TipAdapter")
    trainer.fit()
    views = trainer.train_loader_x.views
    assert views.shape[:2] == (2, 15)
    assert torch.allclose(trainer.head.keys, torch.nn.functional.normalize(views.mean(0), dim=-1), atol=1e-6)


@pytest.mark.slow
def test_tip_without_a_validation_set_takes_the_configured_values_and_says_so(build, tmp_path, caplog):
    root = make_folder(tmp_path / "no-val", ["red", "blue"], ("train", "test"))
    trainer = build("TipAdapter", "TRAINER.TipAdapter.ALPHA", "2.5", "TRAINER.TipAdapter.BETA", "4", root=root)
    with caplog.at_level("INFO", "dassl_lite"):
        trainer.train()
    assert "no validation set" in caplog.text
    assert "alpha 2.5 and beta 4 are used as configured" in caplog.text
    assert (trainer.head.alpha.item(), trainer.head.beta.item()) == (2.5, 4.0)


def test_nothing_is_searched_on_test_images(build, caplog):
    trainer = build("TipAdapter")
    trainer.dm.dataset._val = trainer.dm.dataset.test  # as ImageNet's are, in the field's protocol
    with caplog.at_level("INFO", "dassl_lite"):
        trainer.fit()
    assert "its validation images are test images" in caplog.text
    assert trainer.head.alpha.item() == pytest.approx(1.17)


def test_the_search_never_reads_the_test_set_and_keeps_its_grid(build, tmp_path):
    trainer = build("TipAdapterF", "TRAINER.TipAdapter.BETA_STEPS", "5", "TRAINER.TipAdapter.ALPHA_STEPS", "4")
    trainer.test_loader = None
    trainer.fit()
    trainer.search()
    found = json.loads((tmp_path / "run" / "tip_adapter_f" / "search-1.json").read_text())
    assert np.shape(found["grid"]) == (5, 4)
    assert np.max(found["grid"]) == found["accuracy"]
    assert trainer.head.alpha.item() == pytest.approx(found["alpha"])


@pytest.mark.slow
def test_tip_f_keeps_searched_values_in_its_checkpoint_and_trains_with_the_configured_ones(build):
    trainer = build("TipAdapterF")
    seen = []
    step = trainer.forward_backward
    trainer.forward_backward = lambda batch: (seen.append(trainer.head.alpha.item()), step(batch))[1]
    trainer.train()
    saved = torch.load(Path(trainer.output_dir) / "tip_adapter_f" / "model.pth.tar-3", weights_only=True)
    assert seen == pytest.approx([1.17] * len(seen))
    assert saved["state_dict"]["alpha"] == trainer.head.alpha
    assert trainer.head.alpha.item() != pytest.approx(1.17)


@pytest.mark.slow
def test_tip_f_with_best_val_deploys_the_best_epochs_values(build):
    trainer = build("TipAdapterF", "TEST.FINAL_MODEL", "best_val")
    trainer.train()
    best = torch.load(Path(trainer.output_dir) / "tip_adapter_f" / "model-best.pth.tar", weights_only=True)
    assert torch.equal(best["state_dict"]["keys"], trainer.head.keys)
    assert best["state_dict"]["alpha"] == trainer.head.alpha


def test_an_empty_cache_is_reported_in_one_line(build):
    with pytest.raises(UserError, match="the cache is empty: it needs shots"):
        build("TipAdapter").test()


def test_a_cache_of_unreadable_images_is_reported_in_one_line(build, tmp_path):
    root = make_folder(tmp_path / "broken", ["red", "blue"])
    for path in (root / "train").rglob("*.png"):
        path.write_bytes(b"no image")
    with pytest.raises(UserError, match="cannot read"):
        build("TipAdapter", "DATASET.ON_ERROR", "skip", root=root).train()


@pytest.mark.parametrize(
    ("method", "key", "value", "message"),
    [
        ("CLIP_Adapter", "CLIP_Adapter.SIDE", "picture", "Choices: both, image, text"),
        ("CLIP_Adapter", "CLIP_Adapter.RATIO", "1.5", "RATIO is 1.5; it must be above 0 and at most 1"),
        ("CLIP_Adapter", "CLIP_Adapter.REDUCTION", "0", "REDUCTION is 0; it must be at least 1"),
        ("TipAdapter", "TipAdapter.ALPHA", "-1.0", "ALPHA is -1.0; it must be at least 0"),
        ("TipAdapterF", "TipAdapter.BETA_STEPS", "0", "BETA_STEPS is 0; it must be at least 1"),
        ("LinearProbe", "LinearProbe.FIT", "gradients", "gradient"),
        ("LinearProbe", "LinearProbe.C", "0.0", "C is 0.0"),
        ("LinearProbe", "LinearProbe.PREC", "fp64", "Choices: amp, auto, bf16, fp16, fp32"),
    ],
)
def test_a_wrong_value_is_reported_with_its_key(build, method, key, value, message):
    with pytest.raises(UserError, match=message):
        build(method, f"TRAINER.{key}", value)


@pytest.mark.slow
def test_a_checkpoint_of_another_backbone_is_refused(build, tmp_path):
    build("LinearProbe").train()
    with pytest.raises(UserError, match="was saved with backbone"):
        build("LinearProbe", backbone="rn1", output="elsewhere").load_model(tmp_path / "run")


@pytest.mark.slow
def test_a_class_that_a_probe_has_not_seen_is_an_error(build, images, tmp_path):
    two = make_folder(tmp_path / "two", ["red", "blue"])
    build("LinearProbe", root=two).train()
    with pytest.raises(UserError, match="lacks green"):
        build("LinearProbe", output="elsewhere").load_model(tmp_path / "run")


@pytest.mark.slow
def test_a_class_that_a_cache_has_not_seen_stays_zero_shot(build, tmp_path):
    two = make_folder(tmp_path / "two", ["red", "blue"])
    build("TipAdapter", root=two).train()
    target = build("TipAdapter", output="elsewhere")
    zero_shot = target.head.text_features[1].clone()
    target.load_model(tmp_path / "run")
    assert target.head.values[:, 1].abs().sum() == 0
    assert torch.equal(target.head.text_features[1], zero_shot)
    assert len(target.head.keys) == 10


@pytest.mark.slow
def test_logistic_regression_of_two_classes_separates_them(build, tmp_path):
    two = make_folder(tmp_path / "two", ["red", "blue"])
    trainer = build("logistic regression", root=two)
    trainer.train()
    assert trainer.results["test"]["accuracy"] > 70
    assert torch.allclose(trainer.head.weight[0], -trainer.head.weight[1])


@pytest.mark.parametrize("c", [0.01, 100.0])
def test_logistic_regression_without_a_validation_set_takes_the_configured_c(build, tmp_path, c):
    no_val = make_folder(tmp_path / "no_val", list(COLOURS), parts=("train", "test"))
    trainer = build("logistic regression", "TRAINER.LinearProbe.C", str(c), root=no_val)
    assert trainer.val_loader is None
    trainer.fit()
    train = trainer.training_set(augmented=False)
    expected = LogisticRegression(C=c, max_iter=1000).fit(train.features.double().numpy(), train.labels.numpy())
    assert np.allclose(trainer.head.weight.detach().numpy(), expected.coef_, atol=1e-5)
    assert np.allclose(trainer.head.bias.detach().numpy(), expected.intercept_, atol=1e-5)


def noisy_samples(seed: int, size: float = 0.0) -> logistic.Samples:
    """Three overlapping classes of 8 features of length 1, each moved by about ``size``."""
    labels = np.arange(3).repeat(16)
    features = np.eye(3, 8)[labels] + np.random.default_rng(seed).normal(scale=0.5, size=(48, 8))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    return logistic.Samples(features + size * np.random.default_rng(7).normal(size=features.shape), labels)


@pytest.mark.slow
def test_rounding_errors_in_the_features_do_not_move_c():
    chosen = [logistic.smooth_c(noisy_samples(1, size), noisy_samples(2, size))[0] for size in (0.0, 1e-6, -1e-6)]
    assert chosen[1:] == pytest.approx([chosen[0]] * 2, rel=0.02)


@pytest.mark.slow
def test_c_is_where_the_validation_log_loss_is_lowest():
    train, val = noisy_samples(1), noisy_samples(2)

    def log_loss(c: float) -> float:
        model = LogisticRegression(C=c, max_iter=1000, tol=1e-6).fit(train.features, train.labels)
        return -np.log(model.predict_proba(val.features)[np.arange(len(val.labels)), val.labels]).mean()

    c, loss = logistic.smooth_c(train, val)
    assert loss == pytest.approx(log_loss(c), rel=1e-6)
    assert loss <= min(log_loss(10.0**power) for power in np.arange(-6, 6.1, 0.5)) + 1e-6


@pytest.mark.slow
def test_validation_images_of_classes_without_training_images_do_not_count():
    train, val = noisy_samples(1), noisy_samples(2)
    more = logistic.Samples(np.concatenate([val.features, -val.features[:4]]), np.append(val.labels, [5, 5, 5, 5]))
    assert logistic.smooth_c(train, more) == logistic.smooth_c(train, val)
    with pytest.raises(UserError, match="no validation image belongs to a class with training images"):
        logistic.smooth_c(train, logistic.Samples(val.features, val.labels + 3))


@pytest.mark.slow
@pytest.mark.parametrize(("by", "line"), [("log_loss", "log loss: "), ("accuracy", "accuracy: ")])
def test_the_measure_that_chose_c_is_logged(build, caplog, by, line):
    trainer = build("logistic regression", "TRAINER.LinearProbe.C_BY", by)
    with caplog.at_level("INFO", "dassl_lite"):
        trainer.fit()
    assert "Search of C on the *val* set: " in caplog.text
    assert line in caplog.text


STATED = ("OPTIM.NAME", "OPTIM.LR", "OPTIM.WEIGHT_DECAY", "OPTIM.LR_SCHEDULER", "DATALOADER.TRAIN_X.BATCH_SIZE")


@pytest.mark.parametrize("method", sorted(folder.name for folder in (configs_root() / "trainers").iterdir()))
def test_recipes_leave_no_setting_of_the_optimiser_to_the_defaults(method):
    recipes = sorted((configs_root() / "trainers" / method).glob("[!_]*.yaml"))
    recipes = [path for path in recipes if path.name != "rn50_val.yaml"]  # for evaluation only
    assert recipes
    optimiser = method == "TipAdapter" or TRAINER_REGISTRY.get(method).trains  # TipAdapterF's recipes stand on it
    stated = [key for key in STATED if optimiser or not key.startswith("OPTIM.")]
    for recipe in recipes:
        cfg, unset = get_cfg_default(), {}
        for key in stated:
            *groups, name = key.split(".")
            node = functools.reduce(getattr, groups, cfg)
            node[name] = unset[key] = "unset" if isinstance(node[name], str) else -1 * type(node[name])(1)
        merge_file(cfg, recipe, allow_new_keys=True)
        assert [key for key in stated if functools.reduce(getattr, key.split("."), cfg) == unset[key]] == [], recipe


@pytest.mark.slow
@pytest.mark.parametrize(
    "method", ["CLIP_Adapter", "TipAdapter", "TipAdapterF", "LinearProbe", "GDA", "ProKeR", "CLAP", "ZSLP", "TransCLIP"]
)
def test_every_recipe_of_the_package_is_a_valid_config(method):
    recipes = sorted(path.name for path in (configs_root() / "trainers" / method).glob("*.yaml"))
    assert "default.yaml" in recipes
    epochs = {name: make_config(trainer=method, method_file=name).OPTIM.MAX_EPOCH for name in recipes}
    assert method != "TipAdapterF" or (epochs["eurosat.yaml"], epochs["dtd.yaml"]) == (100, 20)
    assert make_config(trainer=method, method_file="default.yaml").MODEL.BACKBONE.NAME == "demo"
