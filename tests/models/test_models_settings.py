"""What a tag knows is not lost when the same weights come as a file, and what nobody says is asked about."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from download_server import Server
from open_clip.transformer import QuickGELU
from safetensors.torch import load_file, save_file

from dassl_lite.models import names, published_weights
from dassl_lite.models.clip import load_clip, preprocessing
from dassl_lite.models.preprocessing import described_by_open_clip
from dassl_lite.utils.errors import UserError


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], dict[str, Any]]:
    """``small("ViT-B-32")``: makes it a model that is built in no time; returns its description."""

    def shrink(name: str) -> dict[str, Any]:
        config = open_clip.get_model_config(name)
        config["vision_cfg"] |= {"layers": 1, "width": 64, "image_size": 32}
        config["text_cfg"] |= {"layers": 1, "width": 64, "heads": 1}
        monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, name, config)
        return config

    return shrink


def save_training(name: str, path: Path) -> Any:
    """A checkpoint as open_clip's training writes it, from several processes; returns the model."""
    torch.manual_seed(0)
    model = open_clip.create_model(name, load_weights=False)
    state = {f"module.{key}": value for key, value in model.state_dict().items()}
    torch.save({"epoch": 3, "name": "run", "state_dict": state, "optimizer": {"state": {}}}, path)
    return model.eval()


def uses_quick_gelu(clip: Any) -> bool:
    return any(isinstance(module, QuickGELU) for module in clip.modules())


# --- an architecture and a file ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("tag", "quick"), [("openai", True), ("laion2b_s34b_b79k", False), ("scratch", False)])
def test_a_training_loads_as_the_tag_that_is_named_with_it(small: Any, tmp_path: Path, tag: str, quick: bool) -> None:
    small("ViT-B-32")
    model = save_training("ViT-B-32", tmp_path / "epoch_3.pt")
    clip = load_clip(f"ViT-B-32@{tag}:{tmp_path / 'epoch_3.pt'}")
    assert uses_quick_gelu(clip) == quick
    assert torch.equal(clip.model.visual.proj, model.visual.proj)
    if not quick:
        image = torch.rand(1, 3, 32, 32)
        assert torch.allclose(clip.encode_image(image), model.encode_image(image), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["ViT-B-32:{}", "{}"])
def test_an_unknown_activation_is_asked_for(small: Any, tmp_path: Path, name: str) -> None:
    small("ViT-B-32")
    save_training("ViT-B-32", tmp_path / "epoch_3.pt")
    for load in (load_clip, preprocessing):
        with pytest.raises(UserError, match=r"Say .*ViT-B-32@.*epoch_3\.pt.*scratch") as caught:
            load(name.format(tmp_path / "epoch_3.pt"))
        assert "activation" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_the_question_names_a_tag_for_each_answer(tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(b"")
    with pytest.raises(UserError) as caught:
        preprocessing(f"ViT-H-14-quickgelu:{tmp_path / 'x.pt'}")
    assert "differ in their way of resizing" in str(caught.value)
    for answer in ("@metaclip_fullcc:", "(shortest)", "@dfn5b:", "(squash)"):
        assert answer in str(caught.value)


@pytest.mark.parametrize("architecture", open_clip.list_models())
def test_a_file_has_the_settings_of_its_architecture_or_a_question(architecture: str, tmp_path: Path) -> None:
    """Every architecture: with a tag named, the file has the tag's preprocessing; without, the one of all tags."""
    save_file({"a": torch.zeros(1)}, tmp_path / "x.safetensors")
    size = open_clip.get_model_config(architecture)["vision_cfg"]["image_size"]
    own = bool(open_clip.get_model_config(architecture).get("quick_gelu"))
    tags = {tag: open_clip.get_pretrained_cfg(architecture, tag) for tag in _tags(architecture)}
    expected = {tag: described_by_open_clip(published, size, "") for tag, published in tags.items()}
    for tag, wanted in expected.items():
        assert preprocessing(f"{architecture}@{tag}:{tmp_path / 'x.safetensors'}") == wanted
    kinds = {(expected[tag], own or bool(tags[tag].get("quick_gelu"))) for tag in tags}
    if len(kinds) > 1:
        with pytest.raises(UserError, match=f"models of {architecture} differ in their"):
            preprocessing(f"{architecture}:{tmp_path / 'x.safetensors'}")
    else:
        wanted = next(iter(kinds))[0] if kinds else described_by_open_clip({}, size, "")
        assert preprocessing(f"{architecture}:{tmp_path / 'x.safetensors'}") == wanted


def _tags(architecture: str) -> list[str]:
    return open_clip.list_pretrained_tags_by_model(architecture)


@pytest.mark.slow
def test_openais_own_file_needs_no_tag(small: Any, tmp_path: Path) -> None:
    small("ViT-B-32")
    model = open_clip.create_model("ViT-B-32", load_weights=False, force_quick_gelu=True)
    torch.save({**model.state_dict(), "input_resolution": torch.tensor(32)}, tmp_path / "ours.pt")
    for name in ("ViT-B-32:{}", "ViT-B/32:{}", "{}"):
        assert uses_quick_gelu(load_clip(name.format(tmp_path / "ours.pt")))


@pytest.mark.slow
def test_a_file_of_a_model_of_openais_can_be_said_to_be_one(small: Any, tmp_path: Path) -> None:
    small("ViT-B-32")
    save_training("ViT-B-32", tmp_path / "tuned.pt")
    assert uses_quick_gelu(load_clip(f"openai:{tmp_path / 'tuned.pt'}"))


@pytest.mark.slow
def test_a_custom_architecture_that_nobody_publishes_is_asked_about(golden_backbone: Any, tmp_path: Path) -> None:
    state = load_file(golden_backbone("vit0"))
    plain = {k: v for k, v in state.items() if k not in ("input_resolution", "context_length", "vocab_size")}
    torch.save(plain, tmp_path / "tiny.pt")
    with pytest.raises(UserError, match=r"openai:.*tiny\.pt.*open_clip_config\.json beside it"):
        load_clip(str(tmp_path / "tiny.pt"))
    assert load_clip(f"openai:{tmp_path / 'tiny.pt'}").digest == load_clip(str(golden_backbone("vit0"))).digest


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ViT-B-32@laion:x.pt", "unknown weights for backbone ViT-B-32: 'laion'"),
        ("ViT-B-32@openai:nowhere.pt", "no weights file nowhere.pt"),
        ("openai:nowhere.pt", "no weights file nowhere.pt"),
        ("ViT-B/61@openai:x.pt", r"unknown backbone 'ViT-B/61'.*'ViT-B/16'"),
    ],
)
def test_a_wrong_name_of_a_file_is_one_line(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        names.parse(name)


def test_an_at_sign_in_openais_name_does_not_start_a_tag(tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(b"")
    plain = names.parse(f"ViT-L/14@336px:{tmp_path / 'x.pt'}")
    tagged = names.parse(f"ViT-L/14@336px@openai:{tmp_path / 'x.pt'}")
    assert (plain.architecture, plain.tag) == ("ViT-L-14-336", "")
    assert (tagged.kind, tagged.architecture, tagged.tag) == ("checkpoint", "ViT-L-14-336", "openai")


# --- what a file says itself ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_metadata_of_a_file_are_used(small: Any, tmp_path: Path) -> None:
    small("ViT-B-32")
    model = open_clip.create_model("ViT-B-32", load_weights=False)
    said = {"quick_gelu": "0", "mean": "[0, 0, 0]", "std": "1", "resize_mode": "squash", "interpolation": "bilinear"}
    save_file(model.state_dict(), tmp_path / "x.safetensors", said)
    for name in ("ViT-B-32:{}", "{}"):
        clip = load_clip(name.format(tmp_path / "x.safetensors"))
        assert not uses_quick_gelu(clip)
        assert clip.preprocessing == described_by_open_clip(
            {"mean": [0, 0, 0], "std": 1, "resize_mode": "squash", "interpolation": "bilinear"}, 32, ""
        )


def test_invalid_metadata_are_refused_in_one_line(small: Any, tmp_path: Path) -> None:
    small("ViT-B-32")
    for said in ({"mean": "[0"}, {"quick_gelu": "yes"}, {"std": "[0, 1, 1]"}):
        save_file({"a": torch.zeros(1)}, tmp_path / "x.safetensors", {"quick_gelu": "1", **said})
        with pytest.raises(UserError, match=r"x\.safetensors"):
            preprocessing(f"ViT-B-32:{tmp_path / 'x.safetensors'}")


def save_folder(folder: Path, config: dict[str, Any], preprocess: dict[str, Any]) -> Any:
    """A folder as open_clip's push to the hub writes it; returns the model."""
    folder.mkdir(exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return model.eval()


@pytest.mark.slow_after(1)
@pytest.mark.parametrize(
    "named", ["{}", "local-dir:{}", "{}/open_clip_model.safetensors", "ViT-B-32:{}/open_clip_model.safetensors"]
)
def test_a_description_next_to_the_weights_is_used(small: Any, tmp_path: Path, named: str) -> None:
    config = {**small("ViT-B-32"), "quick_gelu": True}
    described = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "resize_mode": "squash", "interpolation": "bicubic"}
    model = save_folder(tmp_path / "folder", config, described)
    clip = load_clip(named.format(tmp_path / "folder"))
    image, tokens = torch.rand(2, 3, 32, 32), clip.tokenize(["a cat", "two dogs"])
    assert torch.allclose(clip.encode_image(image), model.encode_image(image), rtol=1e-5, atol=1e-6)
    assert torch.allclose(clip.encode_text(tokens), model.encode_text(tokens), rtol=1e-5, atol=1e-6)
    assert uses_quick_gelu(clip)
    assert clip.preprocessing == described_by_open_clip(described, 32, "")
    assert preprocessing(named.format(tmp_path / "folder")) == clip.preprocessing


def test_a_description_of_another_architecture_is_refused(small: Any, tmp_path: Path) -> None:
    save_folder(tmp_path / "folder", small("ViT-B-32"), {})
    with pytest.raises(UserError, match="describes another architecture than ViT-B-16"):
        preprocessing(f"ViT-B-16:{tmp_path / 'folder' / 'open_clip_model.safetensors'}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vision_cfg": {"width": 10**7, "layers": 1, "image_size": 32}}, "vision_cfg.width would be 10000000"),
        *(
            ({part: {"layers": 1, "norm_kwargs": {"eps": eps}}}, r"norm_kwargs\.eps .* is not a number above 0")
            for part in ("vision_cfg", "text_cfg")
            for eps in (None, "32", [32], -1, 3.5)
        ),
        ({"vision_cfg": 3}, "describes no open_clip model"),
        ({"text_cfg": {"tokenizer_kwargs": {"trust_remote_code": True}}}, "setting 'trust_remote_code' is not supp"),
        ({"embed_dim": -3}, "."),
    ],
)
def test_a_wrong_description_is_refused_in_one_line(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    config = {"embed_dim": 8, "vision_cfg": {"layers": 1, "width": 64, "image_size": 32}, "text_cfg": {"layers": 1}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": {**config, **change}}))
    with pytest.raises(UserError, match=message) as caught:
        load_clip(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_description_or_weights_is_one_line(small: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has neither open_clip's open_clip_config\.json nor"):
        load_clip(str(tmp_path))
    save_folder(tmp_path, small("ViT-B-32"), {})
    (tmp_path / "open_clip_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"has no weights: none of open_clip_model\.safetensors, "):
        load_clip(str(tmp_path))


# --- files are read without running code in them -------------------------------------------------------------------


class Runs:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("was-run"),)


def test_a_named_architectures_file_is_read_without_running_code(
    small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small("ViT-B-32")
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"a": torch.zeros(1)}, "args": Runs()}, tmp_path / "bad.pt")
    with pytest.raises(UserError, match=r"bad\.pt is refused|bad\.pt does not fit"):
        load_clip(f"ViT-B-32@openai:{tmp_path / 'bad.pt'}")
    assert not (tmp_path / "was-run").exists()


def test_a_file_that_does_not_fit_its_architecture_names_what_differs(small: Any, tmp_path: Path) -> None:
    small("ViT-B-32")
    model = open_clip.create_model("ViT-B-32", load_weights=False)
    state = {**model.state_dict(), "surplus": torch.zeros(1)}
    torch.save(state, tmp_path / "x.pt")
    with pytest.raises(UserError, match=r"ViT-B-32@openai:.*x\.pt does not fit the architecture: surplus"):
        load_clip(f"ViT-B-32@openai:{tmp_path / 'x.pt'}")


@pytest.mark.slow
@pytest.mark.parametrize("family", ["SigLIP", "MobileCLIP-S", "CoCa", "EVA02", "roberta"])
def test_a_file_of_every_kind_of_model_equals_open_clips_own_loader(
    family: str, family_clip: Any, tmp_path: Path
) -> None:
    name = family_clip(family).name.removeprefix("random:")
    torch.manual_seed(3)
    model = open_clip.create_model(name, load_weights=False, pretrained_text=False)
    theirs = model.state_dict()
    for tensor in theirs.values():  # CoCa's second text projection is uninitialised memory, which may be NaN
        if tensor.is_floating_point():
            tensor.nan_to_num_()
    torch.save({"state_dict": theirs, "epoch": 1}, tmp_path / "x.pt")
    clip = load_clip(f"{name}:{tmp_path / 'x.pt'}")
    assert all(torch.equal(value, theirs[key]) for key, value in clip.model.state_dict().items())


# --- descriptions that lie -----------------------------------------------------------------------------------------

HOSTILE: tuple[Any, ...] = (None, "", "x", -1, 0, 1, 3, 2.5, 10**30, float("nan"), [], [1, 2, 3], {}, {"a": 1}, True)


@pytest.mark.slow
@pytest.mark.parametrize("value", HOSTILE, ids=repr)
def test_any_value_in_a_description_gives_a_model_or_one_line(value: Any, tmp_path: Path) -> None:
    vision = {"layers": 1, "width": 64, "image_size": 32, "patch_size": 16, "mlp_ratio": 1.0, "head_width": 64}
    text = {"layers": 1, "width": 64, "heads": 1, "context_length": 16, "vocab_size": 99, "pool_type": "argmax"}
    more = {"tokenizer_kwargs": {}, "hf_tokenizer_name": "", "tokenizer_mode": "", "timm_model_name": ""}
    config: dict[str, Any] = {"embed_dim": 8, "vision_cfg": vision, "text_cfg": {**text, **more}}
    preprocess = {"mean": 0.5, "std": 0.5, "interpolation": "bicubic", "resize_mode": "squash", "fill_color": 0}
    whole = {"model_cfg": config, "preprocess_cfg": preprocess}
    places = [(whole, key) for key in whole] + [(config, key) for key in config] + [(preprocess, k) for k in preprocess]
    places += [(part, key) for part in (vision, config["text_cfg"]) for key in part]
    for part, key in places:
        before, part[key] = part[key], value
        (tmp_path / "open_clip_config.json").write_text(json.dumps(whole))
        part[key] = before
        with contextlib.suppress(UserError):
            preprocessing(str(tmp_path))
        with pytest.raises(UserError) as caught:  # there are no weights
            load_clip(str(tmp_path))
        assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_training_of_an_architecture_that_is_published_with_the_other_activation_is_asked_about(
    small: Any, tmp_path: Path
) -> None:
    small("ViT-L-14-336")  # published with QuickGELU only, and trained with GELU
    model = save_training("ViT-L-14-336", tmp_path / "epoch_3.pt")
    with pytest.raises(UserError, match=r"differ in their activation.*@openai:.*\(QuickGELU\).*@scratch:.*\(GELU\)$"):
        load_clip(f"ViT-L-14-336:{tmp_path / 'epoch_3.pt'}")
    torch.save(model.state_dict(), tmp_path / "plain.pt")
    assert uses_quick_gelu(load_clip(f"ViT-L-14-336:{tmp_path / 'plain.pt'}"))
    assert not uses_quick_gelu(load_clip(f"ViT-L-14-336@scratch:{tmp_path / 'epoch_3.pt'}"))


@pytest.mark.slow
@pytest.mark.parametrize(("tag", "quick"), [("laion400m_e32", True), ("laion2b_s34b_b79k", False)])
def test_published_weights_have_their_tags_activation(
    small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tag: str, quick: bool
) -> None:
    small("ViT-B-32")
    model = save_training("ViT-B-32", tmp_path / "published.pt")
    monkeypatch.setattr(published_weights, "locate", lambda architecture, tag: tmp_path / "published.pt")
    clip = load_clip(f"ViT-B-32:{tag}")
    assert uses_quick_gelu(clip) == quick
    assert torch.equal(clip.model.token_embedding.weight, model.token_embedding.weight)


def test_a_repository_without_open_clips_config_is_read_by_that_of_transformers(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(published_weights, "ENDPOINT", server.url("").rstrip("/"))
    monkeypatch.setattr(published_weights, "try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr(published_weights, "HF_HUB_OFFLINE", False)
    assert published_weights.hub_file("hf-hub:org/model", "open_clip_config.json") is None
    with pytest.raises(
        UserError, match=r"'hf-hub:org/model' has neither open_clip's .* nor the config\.json of transf"
    ):
        preprocessing("hf-hub:org/model")
