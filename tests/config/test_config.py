"""Merging yaml files and options, range checks, and the defaults."""

from __future__ import annotations

from pathlib import Path

import pytest

from dassl_lite.config import (
    CN,
    ConfigKeyError,
    check_ranges,
    completed,
    get_cfg_default,
    merge_file,
    merge_mapping,
    merge_options,
    set_epochs,
    to_dict,
)
from dassl_lite.config.check import ENGINE_RULES, leaves
from dassl_lite.engine.build import make_config
from dassl_lite.utils import UserError


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_bases_are_merged_first_and_resolved_relative_to_their_file(tmp_path: Path) -> None:
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


def test_common_yaml_spellings_are_read(tmp_path: Path) -> None:
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
def test_errors_in_a_file_name_the_file_and_the_fix(tmp_path: Path, text: str, message: str) -> None:
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


def test_new_keys_must_be_allowed_explicitly() -> None:
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
def test_values_out_of_range_are_refused_naming_the_key(key: str, value: str) -> None:
    cfg = get_cfg_default()
    merge_options(cfg, [key, value])
    with pytest.raises(UserError, match=key):
        check_ranges(cfg)


@pytest.mark.parametrize(("shots", "epochs"), [(1, 50), (2, 100), (4, 100), (8, 200), (32, 200), (-1, 200)])
def test_a_recipe_may_set_epochs_by_the_number_of_shots(tmp_path: Path, shots: int, epochs: int) -> None:
    recipe = write(tmp_path / "x.yaml", "OPTIM: {EPOCHS_BY_SHOTS: [[1, 50], [4, 100], [16, 200]], MAX_EPOCH: 7}")
    cfg = get_cfg_default()
    merge_file(cfg, recipe)
    merge_options(cfg, ["DATASET.NUM_SHOTS", str(shots)])
    set_epochs(cfg)
    assert epochs == cfg.OPTIM.MAX_EPOCH


def test_epochs_set_after_the_recipe_take_precedence(tmp_path: Path) -> None:
    write(tmp_path / "x.yaml", "OPTIM: {EPOCHS_BY_SHOTS: [[1, 50], [16, 200]]}")
    mine = write(tmp_path / "mine.yaml", "_BASE_: x.yaml\nOPTIM: {MAX_EPOCH: 3}")
    cfg = get_cfg_default()
    merge_file(cfg, mine)
    merge_options(cfg, ["DATASET.NUM_SHOTS", "1"])
    set_epochs(cfg)
    assert cfg.OPTIM.MAX_EPOCH == 3


def test_a_config_round_trips_through_a_plain_dict() -> None:
    cfg = get_cfg_default()
    again = get_cfg_default()
    merge_mapping(again, to_dict(cfg), "round trip")
    assert to_dict(again) == to_dict(cfg)


def test_optimiser_defaults_equal_the_reference(golden) -> None:
    reference = golden.json("dassl_protocol")["optim"]["default_cfg"]
    ours = to_dict(get_cfg_default().OPTIM)
    assert {key: ours[key] for key in reference} == reference


# ---- hostile input: reading gives a config or a one-line error ------------------------------------------------------


def read(cfg: CN, given: Path | list[str]) -> None:
    """Read a config as the tools do."""
    if isinstance(given, Path):
        merge_file(cfg, given)
    else:
        merge_options(cfg, given)
    check_ranges(cfg)


DEEP, LONG, DIGITS = "[" * 5000, "x" * 300_000, "9" * 400
LAUGHS = "A0: &a0 [1, 1]\n" + "".join(f"A{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9))
MERGES = "A0: &a0 {k: 1}\n" + "".join(f"A{i}: &a{i}\n  <<: [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9))


@pytest.mark.parametrize(
    "text",
    [
        *(
            "OPTIM: {LR: 2001-99-99}",
            "OPTIM: {LR: !!int abc}",
            "OPTIM: {LR: !!timestamp abc}",
            "OPTIM: {LR: !!float ''}",
        ),
        *(
            "OPTIM: {LR: !!bool 7}",
            "OPTIM: !!python/object:os.system {}",
            "? [a, b]\n: 1",
            "<<: 3",
            "\0",
            "OPTIM: \x1b",
        ),
        *(f"OPTIM: {{LR: {DEEP}", "- " * 20000, "? " * 20000, f"OPTIM: {{LR: {'[' * 40}{']' * 40}}}", "a\n" * 200_000),
        *(f"OPTIM: {{MAX_EPOCH: {DIGITS}}}", f"OPTIM: {{LR: {DIGITS}}}", f"OPTIM: {{MAX_EPOCH: {DIGITS * 20}}}"),
        *(f"OPTIM: {{MAX_EPOCH: 0x{'F' * 5000}}}", "OPTIM: {LR: .inf}", "OPTIM: {LR: .nan}", "OPTIM: {LR: 1e39}"),
        *("_BASE_: null", "_BASE_: 3", "_BASE_: 2001-01-01", "_BASE_: [[]]", "_BASE_: {a: b}", "_BASE_: ''"),
        *(
            f"_BASE_: {'b' * 300}",
            '_BASE_: "a\\0b"',
            "_BASE_: .",
            '_BASE_: "\\ud800"',
            'DATASET: {NAME: "\\ud800"}',
            "_BASE_: /dev/zero",
        ),
        *("OPTIM: &a {LR: *a}", "DATASET: &a\n  ROOT: *a", "&a [*a]", LAUGHS, MERGES, LONG),
        *(
            "OPTIM: null",
            "OPTIM: [LR]",
            "OPTIM: {LR: null}",
            "OPTIM: {1: 2}",
            "OPTIM: {null: 2}",
            "- OPTIM",
            "3",
            "!!set {a}",
        ),
        *(
            "DATASET: {NAME: [x]}",
            "DATASET: {NAME: !!binary aGVsbG8=}",
            "DATASET: {SOURCE_DOMAINS: [{}]}",
            "USE_CUDA: 2",
        ),
    ],
    ids=lambda text: text[:30],
)
def test_a_hostile_yaml_is_refused_in_one_short_line(tmp_path: Path, text: str) -> None:
    cfg = get_cfg_default()
    with pytest.raises(UserError) as found:
        read(cfg, write(tmp_path / "x.yaml", text))
    assert len(str(found.value)) < 1000


@pytest.mark.parametrize("text", [LAUGHS, MERGES, "A: &a {B: *a}", "A: !!set {a}", "A: !!binary aGVsbG8=", "A: {1: 2}"])
def test_allowing_new_keys_does_not_allow_values_that_a_config_cannot_hold(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError, match=r"x.yaml"):
        merge_file(get_cfg_default(), write(tmp_path / "x.yaml", text), allow_new_keys=True)


def test_aliases_and_merge_keys_are_read(tmp_path: Path) -> None:
    text = "OPTIM: {LR: &rate 0.5, MIN_LR: *rate}\nMINE: &mine {A: 1}\nOTHER:\n  <<: *mine\n  B: 2\n"
    cfg = get_cfg_default()
    merge_file(cfg, write(tmp_path / "x.yaml", text), allow_new_keys=True)
    assert (cfg.OPTIM.LR, cfg.OPTIM.MIN_LR, dict(cfg.OTHER)) == (0.5, 0.5, {"A": 1, "B": 2})


def test_endless_bases_are_refused(tmp_path: Path) -> None:
    for number in range(20):  # each file names the next one twice
        write(tmp_path / f"{number}.yaml", f"_BASE_: [{number + 1}.yaml, {number + 1}.yaml]")
    write(tmp_path / "20.yaml", "OPTIM: {LR: 1}")
    with pytest.raises(UserError, match="inherits from more than 64 files"):
        merge_file(get_cfg_default(), tmp_path / "0.yaml")


LITERALS = [
    "{[]:1}",
    "-" * 20000,
    "-" * 9000,
    "(" * 9000,
    DIGITS,
    DIGITS * 20,
    f"0x{'f' * 5000}",
    "1e999",
    "1j",
    "...",
    "{1}",
]


@pytest.mark.parametrize(
    "value", [*LITERALS, "b'x'", "1is 2", "'\\d'", "\0", "[[[]]]", LONG], ids=lambda value: value[:20]
)
@pytest.mark.parametrize("key", ["OPTIM.LR", "OPTIM.MAX_EPOCH", "OPTIM.STEPSIZE", "OPTIM.EPOCHS_BY_SHOTS", "USE_CUDA"])
def test_a_hostile_option_is_refused_in_one_short_line(key: str, value: str, recwarn: pytest.WarningsRecorder) -> None:
    cfg = get_cfg_default()
    with pytest.raises(UserError, match=key) as found:
        read(cfg, [key, value])
    assert len(str(found.value)) < 500
    assert not recwarn.list


@pytest.mark.parametrize("key", ["...", ".OPTIM", "OPTIM..LR", "", ".".join("A" * 5000), "OPTIM.LR.X", "OPTIM"])
def test_an_option_that_is_not_a_key_is_refused(key: str) -> None:
    with pytest.raises(UserError):
        merge_options(get_cfg_default(), [key, "1"], allow_new_keys=True)


@pytest.mark.parametrize("typed", ["1e5", "007", "True", "None", "(1, 2)", "[a]", "2024-01-01", "1_000", "{}", "no"])
def test_a_string_key_keeps_an_option_as_typed(typed: str) -> None:
    cfg = get_cfg_default()
    merge_options(cfg, ["DATASET.ROOT", typed])
    merge_mapping(cfg, {"DATASET": {"NAME": typed}}, "a flag")
    assert (cfg.DATASET.ROOT, cfg.DATASET.NAME) == (typed, typed)


@pytest.mark.parametrize("typed", ["1e5", "007", "1.50", "0x1F", "2024-01-01", "1_000", "12:30:45", "None"])
def test_a_string_key_keeps_a_yaml_value_as_typed(tmp_path: Path, typed: str) -> None:
    cfg = get_cfg_default()
    merge_file(cfg, write(tmp_path / "x.yaml", f"DATASET: {{ROOT: {typed}}}"))
    assert cfg.DATASET.ROOT == typed


def test_quotes_around_an_option_are_removed() -> None:
    """Scripts written for yacs pass an empty string this way."""
    cfg = get_cfg_default()
    merge_options(cfg, ["DATASET.NAME", "'mine'", "MODEL.BACKBONE.NAME", "''"])
    assert (cfg.DATASET.NAME, cfg.MODEL.BACKBONE.NAME) == ("mine", "")


@pytest.mark.parametrize("value", [2.5, "nan", 10**400, float("inf"), [1, "a", None], "\0", "x" * 10_000, True])
def test_a_third_party_key_accepts_any_plain_value(value: object) -> None:
    cfg = get_cfg_default()
    cfg.TRAINER.THEIRS = CN({"A": None})
    merge_mapping(cfg, {"TRAINER": {"THEIRS": {"A": value}}}, "their file")
    check_ranges(cfg)
    assert cfg.TRAINER.THEIRS.A is value or value == cfg.TRAINER.THEIRS.A


def test_every_number_and_list_of_the_engine_has_a_rule() -> None:
    free = {key for key, value in leaves(get_cfg_default()).items() if isinstance(value, bool | str)}
    assert leaves(get_cfg_default()).keys() - free <= ENGINE_RULES.keys() <= leaves(get_cfg_default()).keys()


def test_the_defaults_pass_the_range_checks() -> None:
    check_ranges(get_cfg_default())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("SEED", "4294967296"), ("OPTIM.MAX_EPOCH", "10000000"), ("DATALOADER.NUM_WORKERS", "100000")),
        *(("DATALOADER.TRAIN_X.BATCH_SIZE", "1000000000"), ("OPTIM.LR", "1e39"), ("OPTIM.MOMENTUM", "-1.0")),
        *(("OPTIM.ADAM_BETA1", "1.0"), ("INPUT.RRCROP_SCALE", "(0.5, 'a')"), ("INPUT.RRCROP_SCALE", "(1.0, 0.5)")),
        *(("OPTIM.EPOCHS_BY_SHOTS", "(1, 2)"), ("OPTIM.EPOCHS_BY_SHOTS", "((1, 0),)"), ("INPUT.GB_K", "4")),
        *(
            ("OPTIM.EPOCHS_BY_SHOTS", "(('a', 'b'),)"),
            ("OPTIM.STEPSIZE", "('a',)"),
            ("INPUT.PIXEL_MEAN", "[0.5, 'a', 1]"),
        ),
        *(("MODEL.HEAD.HIDDEN_LAYERS", "(-1,)"), ("DATASET.SOURCE_DOMAINS", "[1]"), ("INPUT.TRANSFORMS", "[[]]")),
        *(("DATASET.TEMPLATE", "{} {0.__class__}"), ("DATASET.TEMPLATE", "{} {x"), ("DATASET.ROOT", "a" * 5000)),
        *(("DATASET.NUM_SHOTS", "10**9"), ("DATASET.FEATURES.VIEWS", "1000000"), ("INPUT.SIZE", "(100000, 100000)")),
    ],
)
def test_unusable_values_are_refused_naming_the_key(key: str, value: str) -> None:
    cfg = get_cfg_default()
    with pytest.raises(UserError, match=key):
        read(cfg, [key, value])


def test_missing_keys_get_their_defaults_and_a_complete_config_is_unchanged() -> None:
    cfg = get_cfg_default()
    cfg.OPTIM.LR = 0.5
    cfg.TRAINER.OWN = CN({"A": 1})
    cfg.freeze()
    assert completed(cfg) is cfg
    short = cfg.clone()
    short.defrost()
    for node, key in (("DATASET", "TEMPLATE"), ("OPTIM", "ADAM_EPS")):
        del short[node][key]
    del short["TEST"]
    short.freeze()
    full = completed(short)
    assert full == cfg
    assert full.is_frozen()
    assert "TEST" not in short
    assert completed(short.OPTIM, cfg.OPTIM) == cfg.OPTIM
    full.defrost()
    full.TEST.SPLIT = "val"
    assert get_cfg_default().TEST.SPLIT == "test"


def test_types_of_a_stored_config_are_kept_only_for_trainer_keys() -> None:
    cfg = get_cfg_default()
    cfg.TRAINER.COOP = CN({"CTX_INIT": "", "N_CTX": 4})
    merge_mapping(cfg, {"TRAINER": {"COOP": {"CTX_INIT": False, "N_CTX": 2}}}, "a run", own_types=True)
    assert (cfg.TRAINER.COOP.CTX_INIT, cfg.TRAINER.COOP.N_CTX) == (False, 2)
    with pytest.raises(ConfigKeyError, match=r"a run: OPTIM\.LR must be a number"):
        merge_mapping(cfg, {"OPTIM": {"LR": "fast"}}, "a run", own_types=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["OPTIM.LR", "0.1", "--output-dir", "x"], "the flag '--output-dir' must come before the config keys"),
        (
            ["OPTIM.LR", "--output-dir", "x"],
            "the config key 'OPTIM.LR' has no value: the flag '--output-dir' follows it",
        ),
    ],
)
def test_a_flag_among_the_config_keys_is_an_error(options: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        merge_options(get_cfg_default(), options)


def test_the_range_checks_of_a_method_run_before_anything_is_built() -> None:
    with pytest.raises(UserError, match="unknown precision 'fp8'"):
        make_config(trainer="TaskRes", options=["TRAINER.TaskRes.PREC", "fp8"])
