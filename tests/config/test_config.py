"""Merging yaml files and options, range checks, and the defaults."""

from __future__ import annotations

from pathlib import Path

import pytest

from dassl_lite.config import (
    check_ranges,
    get_cfg_default,
    merge_file,
    merge_mapping,
    merge_options,
    set_epochs,
    to_dict,
)
from dassl_lite.utils import UserError


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_bases_are_merged_first_and_relative_to_their_file(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    write(tmp_path / "base.yaml", "OPTIM: {LR: 0.1, MAX_EPOCH: 7}")
    write(tmp_path / "sub" / "middle.yaml", "_BASE_: ../base.yaml\nOPTIM: {LR: 0.2}")
    top = write(tmp_path / "top.yaml", "_BASE_: [sub/middle.yaml]\nOPTIM: {MOMENTUM: 0.5}")
    cfg = get_cfg_default()
    merge_file(cfg, top)
    assert (cfg.OPTIM.LR, cfg.OPTIM.MAX_EPOCH, cfg.OPTIM.MOMENTUM) == (0.2, 7, 0.5)


def test_circular_bases_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", "_BASE_: b.yaml")
    b = write(tmp_path / "b.yaml", "_BASE_: a.yaml")
    with pytest.raises(UserError, match="circular: b.yaml -> a.yaml -> b.yaml"):
        merge_file(get_cfg_default(), b)


def test_the_fields_yaml_spellings_are_read(tmp_path: Path) -> None:
    cfg = get_cfg_default()
    text = 'INPUT:\n  SIZE: (224, 224)\n  TRANSFORMS: ["random_flip"]\nOPTIM:\n  WARMUP_CONS_LR: 1e-5\n  LR: 1\n'
    merge_file(cfg, write(tmp_path / "x.yaml", text))
    assert cfg.INPUT.SIZE == (224, 224)
    assert cfg.INPUT.TRANSFORMS == ("random_flip",)
    assert cfg.OPTIM.WARMUP_CONS_LR == 1e-5
    assert isinstance(cfg.OPTIM.LR, float)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("OPTIM: {MAX_EPOCHS: 3}", r"x.yaml: unknown config key 'OPTIM.MAX_EPOCHS'; did you mean 'OPTIM.MAX_EPOCH'\?"),
        ("OPTIM: {LR: fast}", r"x.yaml: OPTIM.LR must be a number, like 0.0003, got 'fast'"),
        ("OPTIM: {MAX_EPOCH: 1.5}", "OPTIM.MAX_EPOCH must be a whole number"),
        ("USE_CUDA: 1", "USE_CUDA must be a boolean"),
        ("OPTIM: 3", "OPTIM is a group of keys"),
        ("a: [1,\n", r"x.yaml is not valid yaml \(line 2\)"),
        ("just text", "must hold KEY: value lines"),
    ],
)
def test_errors_in_a_file_name_the_file_and_the_remedy(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        merge_file(get_cfg_default(), write(tmp_path / "x.yaml", text))


def test_a_missing_file_is_named() -> None:
    with pytest.raises(UserError, match="nowhere.yaml does not exist"):
        merge_file(get_cfg_default(), "nowhere.yaml")


def test_options_override_files_and_need_values() -> None:
    cfg = get_cfg_default()
    merge_options(cfg, ["OPTIM.LR", "0.5", "INPUT.SIZE", "(32, 48)", "DATASET.NAME", "123"])
    assert (cfg.OPTIM.LR, cfg.INPUT.SIZE, cfg.DATASET.NAME) == (0.5, (32, 48), "123")
    with pytest.raises(UserError, match="'OPTIM.LR' has no value"):
        merge_options(cfg, ["OPTIM.LR"])


def test_new_keys_need_permission() -> None:
    cfg = get_cfg_default()
    with pytest.raises(UserError, match="unknown config key 'TRAINER.MINE'"):
        merge_mapping(cfg, {"TRAINER": {"MINE": {"A": 1}}}, "here")
    merge_mapping(cfg, {"TRAINER": {"MINE": {"A": 1}}}, "here", allow_new_keys=True)
    assert cfg.TRAINER.MINE.A == 1


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("DATASET.NUM_SHOTS", "0"),
        ("OPTIM.MAX_EPOCH", "0"),
        ("DATALOADER.TRAIN_X.BATCH_SIZE", "0"),
        ("OPTIM.LR", "-1.0"),
        ("OPTIM.WARMUP_TYPE", "'liner'"),
        ("DATASET.SUBSAMPLE_CLASSES", "old"),
        ("DATASET.TEMPLATE", "a photo"),
        ("INPUT.SIZE", "(0, 3)"),
    ],
)
def test_values_out_of_range_are_refused_by_key(key: str, value: str) -> None:
    cfg = get_cfg_default()
    merge_options(cfg, [key, value])
    with pytest.raises(UserError, match=key):
        check_ranges(cfg)


@pytest.mark.parametrize(("shots", "epochs"), [(1, 50), (2, 100), (4, 100), (8, 200), (32, 200), (-1, 200)])
def test_a_recipe_may_set_its_epochs_by_the_number_of_shots(tmp_path: Path, shots: int, epochs: int) -> None:
    recipe = write(tmp_path / "x.yaml", "OPTIM: {EPOCHS_BY_SHOTS: [[1, 50], [4, 100], [16, 200]], MAX_EPOCH: 7}")
    cfg = get_cfg_default()
    merge_file(cfg, recipe)
    merge_options(cfg, ["DATASET.NUM_SHOTS", str(shots)])
    set_epochs(cfg)
    assert epochs == cfg.OPTIM.MAX_EPOCH


def test_epochs_set_after_the_recipe_win(tmp_path: Path) -> None:
    write(tmp_path / "x.yaml", "OPTIM: {EPOCHS_BY_SHOTS: [[1, 50], [16, 200]]}")
    mine = write(tmp_path / "mine.yaml", "_BASE_: x.yaml\nOPTIM: {MAX_EPOCH: 3}")
    cfg = get_cfg_default()
    merge_file(cfg, mine)
    merge_options(cfg, ["DATASET.NUM_SHOTS", "1"])
    set_epochs(cfg)
    assert cfg.OPTIM.MAX_EPOCH == 3


def test_plain_dict_round_trip() -> None:
    cfg = get_cfg_default()
    again = get_cfg_default()
    merge_mapping(again, to_dict(cfg), "round trip")
    assert to_dict(again) == to_dict(cfg)


def test_defaults_of_the_optimiser_are_the_references(golden) -> None:
    reference = golden.json("dassl_protocol")["optim"]["default_cfg"]
    own = to_dict(get_cfg_default().OPTIM)
    assert {key: own[key] for key in reference} == reference
