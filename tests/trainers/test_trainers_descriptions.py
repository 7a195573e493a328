"""DATASET.DESCRIPTIONS: sentences of each class in place of its prompts, for every method that takes text features."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dassl_lite.config import to_dict
from dassl_lite.data import ClassList
from dassl_lite.data.descriptions import LONGEST_SENTENCE, read_descriptions
from dassl_lite.engine.build import make_config
from dassl_lite.engine.commands.evaluate import config_for
from dassl_lite.engine.commands.run import report_idle_keys
from dassl_lite.utils import UserError
from dassl_lite.utils.files import cache_root

# Keys spelt otherwise than the golden classes, in another order; the numbers of sentences differ.
SENTENCES = {
    "Yo Yo": ["a toy on a string."],
    "boeing 737 800": ["a narrow-body airliner.", "a plane with two engines under its wings."],
    "Golden_Retriever": ["a dog with a golden coat.", "a friendly dog.", "a large retriever."],
    "annual_crop_land": ["fields seen from above.", "a patchwork of crops."],
    "AMERICAN BULLDOG": ["a stocky dog with a broad head."],
}
ORDER = ["AMERICAN BULLDOG", "annual_crop_land", "Golden_Retriever", "boeing 737 800", "Yo Yo"]
CLASSES = ClassList(("american_bulldog", "yo-yo"), ("n01", "n02"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "sentences.json"
    path.write_text(json.dumps(SENTENCES))
    return path


def written(tmp_path: Path, content: Any) -> Path:
    path = tmp_path / "d.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def expected(trainer: Any, *, normalised: bool = True) -> torch.Tensor:
    """The class features (K, D), from the backbone alone."""
    rows = []
    for name in ORDER:
        features = trainer.clip.encode_text(trainer.clip.tokenize(SENTENCES[name]))
        rows.append((F.normalize(features, dim=-1) if normalised else features).mean(dim=0))
    weights = torch.stack(rows).float()
    return F.normalize(weights, dim=-1) if normalised else weights


# Method -> its class features; those of the first group average at length 1, those of the second as they are.
NORMALISED: dict[str, Callable[[Any], torch.Tensor]] = {
    "ZeroshotCLIP": lambda head: head.prototypes,
    "ZeroshotCLIP2": lambda head: head.prototypes,
    "CLIP_Adapter": lambda head: head.text_features,
}
PLAIN: dict[str, Callable[[Any], torch.Tensor]] = {
    "TaskRes": lambda head: head.base_text_features,
    "TaskResEnhance": lambda head: head.class_prototypes(),
    "CLAP": lambda head: head.base_text_features,
    "ZSLP": lambda head: head.class_prototypes(),
    "CrossModalProbe": lambda head: head.zero_shot_weights,
}
BY_WEIGHTS = ("TipAdapter", "TipAdapterF", "APE", "APET", "GDA", "ProKeR", "LPPlusPlus", "TransCLIP")


@pytest.mark.parametrize("method", [*NORMALISED, *PLAIN])
def test_text_features_are_the_means_of_each_class_s_sentences(golden_trainer: Any, file: Path, method: str) -> None:
    trainer = golden_trainer(method, "vit0", "ImageNet", "DATASET.DESCRIPTIONS", str(file))
    with torch.no_grad():
        found = (NORMALISED | PLAIN)[method](trainer.head)
        wanted = expected(trainer, normalised=method in NORMALISED)
    if method == "CrossModalProbe":
        wanted = F.normalize(wanted, dim=-1)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    assert "DATASET.DESCRIPTIONS" not in trainer.idle_keys()


@pytest.mark.parametrize("method", BY_WEIGHTS)
def test_methods_on_zero_shot_weights_hold_the_descriptions(golden_trainer: Any, file: Path, method: str) -> None:
    trainer = golden_trainer(method, "vit0", "OxfordPets", "DATASET.DESCRIPTIONS", str(file))
    with torch.no_grad():
        wanted = expected(trainer)
    held = [tensor.squeeze() for tensor in trainer.head.state_dict().values()]
    held += [value for value in vars(trainer.head).values() if isinstance(value, torch.Tensor)]
    held += list(trainer.head.buffers())
    assert any(
        torch.allclose(tensor.float(), like, atol=1e-5)
        for tensor in held
        for like in (wanted, wanted.t())
        if tensor.shape == like.shape
    )
    assert "DATASET.DESCRIPTIONS" not in trainer.idle_keys()


def test_an_enhanced_base_projects_the_mean_of_the_sentences_states(
    golden_trainer: Any, file: Path, tmp_path: Path
) -> None:
    clip = golden_trainer("ZeroshotCLIP", "vit0", "OxfordPets").clip
    tuned = tmp_path / "tuned.pth.tar"
    torch.save({"state_dict": {"weight": 2 * clip.text.projection.detach().t().clone()}}, tuned)
    options = ("DATASET.DESCRIPTIONS", str(file), "TRAINER.TaskRes.ENHANCED_BASE", str(tuned))
    trainer = golden_trainer("TaskRes", "vit0", "OxfordPets", *options)
    with torch.no_grad():
        wanted = 2 * expected(trainer, normalised=False)
    torch.testing.assert_close(trainer.head.base_text_features, wanted, atol=1e-4, rtol=1e-4)


def test_cross_modal_shots_are_the_sentences_with_their_classes(golden_trainer: Any, file: Path) -> None:
    rows = golden_trainer("CrossModalProbe", "vit0", "OxfordPets", "DATASET.DESCRIPTIONS", str(file)).text_rows()
    assert rows.labels.tolist() == [0, 1, 1, 2, 2, 2, 3, 3, 4]
    assert len(rows.values) == 9


@pytest.mark.parametrize("method", ["CoOp", "LinearProbe", "CLIPLoRA"])
def test_methods_without_fixed_text_features_say_that_descriptions_have_no_effect(
    golden_trainer: Any, file: Path, caplog: pytest.LogCaptureFixture, method: str
) -> None:
    trainer = golden_trainer(method, "vit0", "OxfordPets", "DATASET.DESCRIPTIONS", str(file))
    with caplog.at_level(logging.WARNING):
        report_idle_keys(trainer)
    assert f"DATASET.DESCRIPTIONS ({method} does not use class descriptions)" in caplog.text


def test_lora_in_the_image_encoder_alone_takes_the_descriptions(golden_trainer: Any, file: Path) -> None:
    options = ("DATASET.DESCRIPTIONS", str(file), "TRAINER.CLIPLoRA.ENCODER", "vision")
    trainer = golden_trainer("CLIPLoRA", "vit0", "OxfordPets", *options)
    with torch.no_grad():
        torch.testing.assert_close(trainer.head.class_features(), expected(trainer), atol=1e-5, rtol=1e-5)


def test_descriptions_are_refused_on_a_file_of_features(on_features: Any, file: Path) -> None:
    with pytest.raises(UserError, match="DATASET.DESCRIPTIONS needs a text encoder, but dataset Features holds"):
        on_features("GDA", "gda", "many", "DATASET.DESCRIPTIONS", str(file))


def test_a_sentence_that_is_too_long_is_named_with_its_class(golden_trainer: Any, tmp_path: Path) -> None:
    path = written(tmp_path, SENTENCES | {"Golden_Retriever": ["fine.", "a dog " * 60, "a cat " * 60]})
    with pytest.raises(UserError, match=r"d\.json.* class 'golden retriever': a text has \d+ tokens .*'a dog a dog"):
        golden_trainer("ZeroshotCLIP", "vit0", "OxfordPets", "DATASET.DESCRIPTIONS", str(path))


def test_features_of_descriptions_are_kept_by_their_texts(
    golden_trainer: Any, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DASSL_LITE_CACHE", str(tmp_path / "cache"))
    trainer, calls = golden_trainer("ZeroshotCLIP", "vit0", "OxfordPets", "DATASET.DESCRIPTIONS", str(file)), []
    monkeypatch.setattr(type(trainer), "text_cache", cache_root() / "text")
    own = trainer.clip.encode_text
    trainer.clip.encode_text = lambda tokens: calls.append(len(tokens)) or own(tokens)
    first = trainer.zero_shot_weights()
    assert torch.equal(trainer.zero_shot_weights(), first)
    assert calls == [9]
    trainer.descriptions[4][0] = "another toy."
    assert not torch.equal(trainer.zero_shot_weights(), first)


@pytest.mark.slow
def test_an_evaluation_on_another_dataset_forgets_the_descriptions(file: Path) -> None:
    dataset = {"NAME": "Gadgets", "DESCRIPTIONS": str(file)}
    stored = to_dict(make_config(trainer="ZeroshotCLIP", flags={"DATASET": dataset}))
    assert config_for(stored, None, {}).DATASET.DESCRIPTIONS == str(file)
    assert config_for(stored, {"DATASET.SUBSAMPLE_CLASSES": "new"}, {}).DATASET.DESCRIPTIONS == str(file)
    assert config_for(stored, "shapesnet", {}).DATASET.DESCRIPTIONS == ""
    options = ["DATASET.DESCRIPTIONS", "own.json"]
    assert config_for(stored, "shapesnet", {}, options).DATASET.DESCRIPTIONS == "own.json"


# ---- the file ---------------------------------------------------------------------------------------------------


def test_classes_are_found_by_id_then_by_name_then_by_spelling(tmp_path: Path) -> None:
    path = written(tmp_path, {"Yo_Yo": ["toy"], "n01": ["dog"]})
    assert read_descriptions(path, CLASSES) == [["dog"], ["toy"]]
    two = ClassList(("yo-yo", "yo yo"))
    assert read_descriptions(written(tmp_path, {"yo yo": ["b"], "yo-yo": ["a"]}), two) == [["a"], ["b"]]


def test_classes_of_one_name_share_its_sentences(tmp_path: Path) -> None:
    twice = ClassList(("missile", "missile"), ("n1", "n2"))
    assert read_descriptions(written(tmp_path, {"Missile": ["a", "b"]}), twice) == [["a", "b"], ["a", "b"]]


def test_descriptions_of_unknown_classes_are_ignored_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = written(tmp_path, {"yo-yo": ["a"], "n01": ["b"], "\x1b[2Jcat": ["c"], "cow": ["d"]})
    with caplog.at_level(logging.INFO):
        assert read_descriptions(path, CLASSES) == [["b"], ["a"]]
    assert [record.message for record in caplog.records if "2 classes of" in record.message]
    assert "\x1b" not in caplog.text


BOTH = {"yo-yo": ["a"], "american bulldog": ["b"]}
REFUSED = {
    "class without sentences": ({"yo-yo": ["a"]}, "no sentences for the dataset's class 'american_bulldog'$"),
    "misspelt class": ({"yo-yo": ["a"], "american buldog": ["b"]}, "mean it by 'american buldog'"),
    "empty file of classes": ({}, "'american_bulldog' and 1 more$"),
    "empty list": (BOTH | {"yo-yo": []}, "class 'yo-yo' has an empty list"),
    "sentence in place of a list": (BOTH | {"yo-yo": "a toy"}, "class 'yo-yo' has 'a toy' where a list"),
    "object in place of a list": (BOTH | {"yo-yo": {"a": 1}}, "class 'yo-yo' has an object where a list"),
    "number in a list": (BOTH | {"yo-yo": ["a", 3]}, "class 'yo-yo': entry 2 is 3, not a sentence"),
    "object in a list": (BOTH | {"yo-yo": [{"a": 1}]}, "class 'yo-yo': entry 1 is an object"),
    "null in a list": (BOTH | {"yo-yo": [None]}, "class 'yo-yo': entry 1 is None"),
    "blank sentence": (BOTH | {"yo-yo": ["a", " \n"]}, "class 'yo-yo': sentence 2 is empty"),
    "surrogate": (BOTH | {"yo-yo": ["\ud800"]}, "class 'yo-yo': sentence 1 has half of a surrogate"),
    "endless sentence": (
        BOTH | {"yo-yo": ["a" * (LONGEST_SENTENCE + 1)]},
        "class 'yo-yo': sentence 1 has 4,097 characters",
    ),
    "class twice": ('{"yo-yo": ["a"], "yo-yo": ["b"], "n01": ["c"]}', "'yo-yo' and 'yo-yo' are the same class"),
    "class in two spellings": (BOTH | {"Yo Yo": ["c"]}, "'yo-yo' and 'Yo Yo' are the same class, 'yo-yo'"),
    "class by id and by name": (BOTH | {"n02": ["c"]}, "'yo-yo' and 'n02' are the same class"),
    "list of classes": ([["a"]], "must be an object, class -> list of sentences; it is a list"),
    "broken JSON": ('{"yo-yo": ["a"', "cannot read descriptions .* Expecting"),
    "nesting": ("[" * 100_000, "nested too deeply"),
    "hostile name": ({"\x1b[2J\nyo\u202e": "x", "n01": ["a"]}, r"class '\\x1b\[2J\\nyo"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_wrong_file_is_refused_in_one_printable_line(tmp_path: Path, case: str) -> None:
    content, message = REFUSED[case]
    with pytest.raises(UserError, match=message) as caught:
        read_descriptions(written(tmp_path, content), CLASSES)
    text = str(caught.value)
    assert "DATASET.DESCRIPTIONS" in text
    assert "d.json" in text
    assert text.isprintable()
    assert len(text) < 1000


def test_a_missing_or_binary_file_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(9))
    for path in (tmp_path / "none.json", tmp_path, tmp_path / "x.npy"):
        with pytest.raises(UserError, match=r"cannot read descriptions .* \(DATASET\.DESCRIPTIONS\): ."):
            read_descriptions(path, CLASSES)
