"""Rules for the values of config keys, and the check of all keys before any data or model is loaded.

A rule is a function of a key's name and value that raises a UserError. A method states its keys' rules beside the keys
(`dassl_lite.engine.key`). A key that neither we nor a method of ours declares has no rule.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from dassl_lite.config.defaults import CN, get_cfg_default
from dassl_lite.utils.errors import UserError, shown, unknown
from dassl_lite.utils.files import can_be_path
from dassl_lite.utils.registry import Registry

Rule = Callable[[str, Any], None]  # (key, value): raises a UserError for a value that is not allowed

LONGEST_TEXT = 4096  # characters; also the longest path of Linux
LARGEST_INTEGER = 2**63 - 1  # what tensors and files hold
LARGEST_FLOAT = 1e38  # what float32 holds


def satisfying(holds: Callable[[Any], bool], expected: str) -> Rule:
    """A value for which ``holds`` is true; ``expected`` completes "it must be ..."."""

    def check(name: str, value: Any) -> None:
        if not holds(value):
            raise UserError(f"{name} is {shown(value)}; it must be {expected}")

    return check


def one_of(*choices: str, hint: str = "") -> Rule:
    """One of these words."""

    def check(name: str, value: Any) -> None:
        if value not in choices:
            raise unknown(f"value of {name}", value, choices, hint)

    return check


def some_of(*choices: str) -> Rule:
    """A list of these words, at least one."""

    def check(name: str, value: Any) -> None:
        for word in value:
            if word not in choices:
                raise unknown(f"value in {name}", word, choices)
        if not value:
            raise UserError(f"{name} is {value}; it must be some of {', '.join(choices)}")

    return check


def number(
    *, at_least: float = -math.inf, above: float = -math.inf, at_most: float = math.inf, below: float = math.inf
) -> Rule:
    """A finite number within the given bounds."""
    bounds = {"at least": at_least, "above": above, "at most": at_most, "below": below}
    expected = " and ".join(
        f"{word} {bound:,}" if isinstance(bound, int) else f"{word} {bound:g}"
        for word, bound in bounds.items()
        if math.isfinite(bound)
    )

    def holds(value: Any) -> bool:
        return _is_number(value) and at_least <= value <= at_most and above < value < below

    return satisfying(holds, expected or "a finite number")


def each(rule: Rule, *, lengths: Sequence[int] = (), of: str = "") -> Rule:
    """A list whose elements all follow ``rule``.

    Args:
        lengths: the numbers of elements that are allowed; empty: any up to 1000.
        of: what the list holds, for messages, such as "(height, width) in pixels".
    """

    def check(name: str, value: Any) -> None:
        if not isinstance(value, list | tuple) or (lengths and len(value) not in lengths) or len(value) > 1000:
            raise UserError(f"{name} is {shown(value)}; it must be a list{f' of {of}' if of else ''}")
        for element in value:
            try:
                rule(f"an element of {name}", element)
            except UserError as error:
                raise UserError(f"{name}: {error}{f'. It takes {of}' if of else ''}") from None

    return check


def text(name: str, value: Any) -> None:
    """Rule for names and paths: text that the system accepts, of at most 4,096 characters."""
    if not isinstance(value, str):
        raise UserError(f"{name} is {shown(value)}; it must be text")
    if not can_be_path(value) or len(value) > LONGEST_TEXT:
        what = (
            f"has {len(value):,} characters"
            if can_be_path(value)
            else "has a NUL character or half of a surrogate pair"
        )
        raise UserError(
            f"{name} is {shown(value)}, which {what}; it must be text of at most {LONGEST_TEXT:,} characters"
        )


def sane(name: str, value: Any) -> None:
    """Rule for every declared key, besides its own: finite numbers that fit tensors, text that fits files."""
    if isinstance(value, str):
        text(name, value)
    elif isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{name} is {value}; it must be a finite number")
    elif isinstance(value, int | float) and abs(value) > (LARGEST_INTEGER if isinstance(value, int) else LARGEST_FLOAT):
        raise UserError(f"{name} is {shown(value)}; it is too large")
    elif isinstance(value, list | tuple):
        for element in value:
            sane(name, element)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_list(value: Any, *lengths: int) -> bool:
    return isinstance(value, list | tuple) and len(value) in lengths


def _whole(least: int, most: int) -> Rule:
    within = number(at_least=least, at_most=most)

    def check(name: str, value: Any) -> None:
        satisfying(_is_whole, "a whole number")(name, value)
        within(name, value)

    return check


MOST_EPOCHS = 1_000_000
MOST_SHOTS = 1_000_000
MOST_IMAGES = 10_000_000  # of a batch
LARGEST_SIDE = 4096  # of an image, in pixels

_epochs = _whole(1, MOST_EPOCHS)
_batch_size = _whole(1, MOST_IMAGES)
_fraction = number(at_least=0, at_most=1)
_decay = number(at_least=0, below=1)
_not_negative = number(at_least=0, at_most=LARGEST_FLOAT)
_finite = number(at_least=-LARGEST_FLOAT, at_most=LARGEST_FLOAT)
_names = each(text, of="names")
_resize_mode = one_of("", "shortest", "squash", "longest", "cover")
_channels = each(_finite, lengths=(0, 1, 3), of="three numbers, for red, green and blue")


def _epochs_by_shots(name: str, value: Any) -> None:
    shots = _whole(1, MOST_SHOTS)
    for pair in value if isinstance(value, list | tuple) else [value]:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise UserError(f"{name}: {shown(pair)} is not a pair of shots and epochs, like (16, 200)")
        shots(f"{name}: the shots of {shown(pair)}", pair[0])
        _epochs(f"{name}: the epochs of {shown(pair)}", pair[1])


def _size(name: str, value: Any) -> None:
    if not _is_list(value, 0, 2) or not all(_is_whole(side) and 1 <= side <= LARGEST_SIDE for side in value):
        raise UserError(
            f"{name} is {shown(value)}; it must be (height, width) in pixels, each from 1 to {LARGEST_SIDE}"
        )


def _step_size(name: str, value: Any) -> None:  # a plug-in may have made it a number
    each(_whole(-1, MOST_EPOCHS), of="epochs, or -1")(name, value if isinstance(value, list | tuple) else [value])


def _scale(name: str, value: Any) -> None:
    if not _is_list(value, 2) or not all(map(_is_number, value)) or not 0 < value[0] <= value[1] <= 1:
        raise UserError(f"{name} is {shown(value)}; it must be (least, most) area, like (0.08, 1.0)")


def _template(name: str, value: Any) -> None:
    text(name, value)
    if value and (value.count("{}") != 1 or set("{}") & set(value.replace("{}", ""))):
        raise UserError(f"{name} is {shown(value)}; it needs {{}} in place of the class name, once, and no other brace")


# A rule for every key of the engine that is not a yes or no; text keys without an entry follow `text`.
ENGINE_RULES: dict[str, Rule] = {
    "VERSION": _whole(1, 1),
    "SEED": _whole(-(2**32), 2**32 - 1),  # what NumPy takes; negative: unseeded
    "INPUT.SIZE": _size,
    "INPUT.RESIZE_MODE": _resize_mode,
    "INPUT.FILL_COLOR": each(_whole(0, 255), lengths=(0, 3), of="three numbers, for red, green and blue"),
    "INPUT.PIXEL_MEAN": _channels,
    "INPUT.PIXEL_STD": _channels,
    "INPUT.TRANSFORMS": _names,
    "INPUT.CROP_PADDING": _whole(0, LARGEST_SIDE),
    "INPUT.RRCROP_SCALE": _scale,
    "INPUT.CUTOUT_N": _whole(0, 1000),
    "INPUT.CUTOUT_LEN": _whole(0, LARGEST_SIDE),
    "INPUT.GN_MEAN": _finite,
    "INPUT.GN_STD": _not_negative,
    "INPUT.RANDAUGMENT_N": _whole(0, 100),
    "INPUT.RANDAUGMENT_M": number(at_least=0, at_most=30),
    "INPUT.COLORJITTER_B": number(at_least=0, at_most=1000),
    "INPUT.COLORJITTER_C": number(at_least=0, at_most=1000),
    "INPUT.COLORJITTER_S": number(at_least=0, at_most=1000),
    "INPUT.COLORJITTER_H": number(at_least=0, at_most=0.5),
    "INPUT.RGS_P": _fraction,
    "INPUT.GB_P": _fraction,
    "INPUT.GB_K": satisfying(
        lambda k: _is_whole(k) and 1 <= k < LARGEST_SIDE and k % 2 == 1, "an odd number of pixels"
    ),
    "DATASET.SOURCE_DOMAINS": _names,
    "DATASET.TARGET_DOMAINS": _names,
    "DATASET.NUM_LABELED": _whole(-1, MOST_IMAGES),
    "DATASET.NUM_SHOTS": satisfying(
        lambda n: _is_whole(n) and (n == -1 or 1 <= n <= MOST_SHOTS),
        f"at least 1, or -1 for all images (at most {MOST_SHOTS:,})",
    ),
    "DATASET.VAL_PERCENT": _fraction,
    "DATASET.STL10_FOLD": _whole(-1, 9),
    "DATASET.CIFAR_C_LEVEL": _whole(1, 5),
    "DATASET.SUBSAMPLE_CLASSES": one_of("all", "base", "new"),
    "DATASET.TEMPLATE": _template,
    "DATASET.ON_ERROR": one_of("stop", "skip"),
    "DATASET.SPLITS_IN": one_of("auto", "dataset", "cache"),
    "DATASET.FEATURES.VIEWS": _whole(0, 10_000),  # 0: no cache
    "DATASET.FEATURES.SEED": _whole(0, 2**32 - 1),
    "DATASET.FEATURES.BATCH_SIZE": _batch_size,
    "DATALOADER.NUM_WORKERS": _whole(-1, 1024),
    "DATALOADER.K_TRANSFORMS": _whole(1, 100),
    "DATALOADER.TRAIN_X.BATCH_SIZE": _batch_size,
    "DATALOADER.TRAIN_X.N_DOMAIN": _whole(-1, MOST_IMAGES),
    "DATALOADER.TRAIN_X.N_INS": _whole(1, MOST_IMAGES),
    "DATALOADER.TRAIN_U.BATCH_SIZE": _batch_size,
    "DATALOADER.TRAIN_U.N_DOMAIN": _whole(-1, MOST_IMAGES),
    "DATALOADER.TRAIN_U.N_INS": _whole(1, MOST_IMAGES),
    "DATALOADER.TEST.BATCH_SIZE": _batch_size,
    "MODEL.HEAD.HIDDEN_LAYERS": each(_whole(1, 100_000), of="widths"),
    "MODEL.HEAD.DROPOUT": _fraction,
    "OPTIM.LR": number(above=0, at_most=LARGEST_FLOAT),
    "OPTIM.WEIGHT_DECAY": _not_negative,
    "OPTIM.MOMENTUM": _not_negative,
    "OPTIM.SGD_DAMPNING": _finite,
    "OPTIM.RMSPROP_ALPHA": _fraction,
    "OPTIM.ADAM_BETA1": _decay,
    "OPTIM.ADAM_BETA2": _decay,
    "OPTIM.ADAM_EPS": number(above=0, at_most=LARGEST_FLOAT),
    "OPTIM.NEW_LAYERS": _names,
    "OPTIM.BASE_LR_MULT": _not_negative,
    "OPTIM.MIN_LR": _not_negative,
    "OPTIM.STEPSIZE": _step_size,
    "OPTIM.GAMMA": _not_negative,
    "OPTIM.MAX_EPOCH": _epochs,
    "OPTIM.SCHEDULE_UNIT": one_of("epoch", "batch"),
    "OPTIM.EPOCHS_BY_SHOTS": _epochs_by_shots,
    "OPTIM.WARMUP_EPOCH": _whole(-1, MOST_EPOCHS),
    "OPTIM.WARMUP_TYPE": one_of("linear", "constant"),
    "OPTIM.WARMUP_CONS_LR": _not_negative,
    "OPTIM.WARMUP_MIN_LR": _not_negative,
    "TRAIN.CHECKPOINT_FREQ": _whole(-MOST_EPOCHS, MOST_EPOCHS),  # 0 or less: only the last epoch
    "TRAIN.CHECKPOINT_SECONDS": number(at_least=0, at_most=1e9),  # 0: after every epoch
    "TRAIN.PRINT_FREQ": _whole(1, LARGEST_INTEGER),
    "TRAIN.COUNT_ITER": one_of("train_x", "train_u", "smaller_one"),
    "LOG.TRACKERS": _names,
    "TEST.SPLIT": one_of("test", "val"),
    "TEST.FINAL_MODEL": one_of("last_step", "best_val"),
}


# Values that Dassl accepts for its own keys, for code that was written for it.
_DASSLS: dict[str, Rule] = {
    "DATASET.NUM_SHOTS": _whole(-MOST_SHOTS, MOST_SHOTS),  # below 1: all images
    "DATALOADER.TRAIN_U.BATCH_SIZE": _whole(-MOST_IMAGES, MOST_IMAGES),  # unused without unlabelled images
    "OPTIM.LR": _not_negative,
    "TRAIN.PRINT_FREQ": satisfying(
        lambda n: _is_whole(n) and 0 < abs(n) <= LARGEST_INTEGER, "a number of batches, not 0"
    ),
}


def check_ranges(cfg: CN) -> None:
    """Check the engine's keys against their rules.

    Raises:
        UserError: for the first wrong value, with its key.
    """
    values = leaves(cfg)
    rules = ENGINE_RULES | _DASSLS if Registry.others_win else ENGINE_RULES
    if Registry.others_win and values.get("OPTIM.WARMUP_EPOCH", 0) <= 0:
        rules = {key: rule for key, rule in rules.items() if key != "OPTIM.WARMUP_TYPE"}  # without effect
    for key, value in values.items():  # a plug-in's nodes may lack some of our keys
        if key in ENGINE_KEYS:
            sane(key, value)
        if key in rules:
            rules[key](key, value)
    nesterov = values.get("OPTIM.NAME") == "sgd" and values.get("OPTIM.SGD_NESTEROV")
    if nesterov and (values["OPTIM.MOMENTUM"] == 0 or values["OPTIM.SGD_DAMPNING"] != 0):
        raise UserError("OPTIM.SGD_NESTEROV True needs an OPTIM.MOMENTUM above 0 and an OPTIM.SGD_DAMPNING of 0")


def leaves(node: CN, prefix: str = "") -> dict[str, Any]:
    """All values of a config by dotted key."""
    values: dict[str, Any] = {}
    for key, value in node.items():
        values |= leaves(value, f"{prefix}{key}.") if isinstance(value, CN) else {f"{prefix}{key}": value}
    return values


ENGINE_KEYS = frozenset(leaves(get_cfg_default()))
