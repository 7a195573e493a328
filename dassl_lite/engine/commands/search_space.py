"""What a search for a method's settings goes through: config keys, each with a range or a list of values."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dassl_lite.engine.build import make_config
from dassl_lite.engine.commands.arguments import ConfigArguments
from dassl_lite.utils import UserError
from dassl_lite.utils.errors import shown

# Keys that say what the data are; these and what the machine is are nothing to search over, and no part of a recipe.
DATA_KEYS = (
    *("DATASET.NAME", "DATASET.ROOT", "DATASET.FILE", "DATASET.FEWSHOT_FILE", "DATASET.SUBSAMPLE_CLASSES"),
    *("DATASET.SOURCE_DOMAINS", "DATASET.TARGET_DOMAINS"),
)
NOT_SEARCHED = (*DATA_KEYS, "DATASET.FEATURES.DIR", "DATALOADER.NUM_WORKERS", "USE_CUDA", "TEST.EVALUATOR")
# Keys that a search sets itself -> what to use in their place.
FIXED = {
    **{"SEED": "--seed", "DATASET.NUM_SHOTS": "--shots", "OUTPUT_DIR": "--output-dir", "TRAINER.NAME": "--trainer"},
    **{"RESUME": "", "VERBOSE": "", "TEST.SPLIT": "", "TEST.NO_TEST": ""},
}
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$")
FORMS = "KEY=lo:hi, KEY=lo:hi:log, KEY=lo:hi:int or KEY=a,b,c"

Value = float | int | str


@dataclass(frozen=True)
class Dimension:
    """A config key that is searched over, and its values: ``choices``, or numbers from ``low`` to ``high``."""

    key: str
    choices: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0
    is_integer: bool = False
    is_log: bool = False

    @classmethod
    def of(cls, key: str, distribution: Any) -> Dimension:
        """That of a distribution of Optuna's; see `distribution`."""
        if hasattr(distribution, "choices"):
            return cls(key, tuple(map(str, distribution.choices)))
        is_integer = isinstance(distribution.low, int)
        return cls(key, (), float(distribution.low), float(distribution.high), is_integer, bool(distribution.log))

    @property
    def ends(self) -> tuple[Value, ...]:
        """Values that have to be valid for all others to be."""
        if self.choices:
            return self.choices
        return (int(self.low), int(self.high)) if self.is_integer else (self.low, self.high)

    @property
    def size(self) -> float:
        """The number of its values."""
        return len(self.choices) or (self.high - self.low + 1 if self.is_integer else math.inf)

    @property
    def values(self) -> tuple[Value, ...]:
        """All of them, if they are finitely many."""
        return self.choices or tuple(range(int(self.low), int(self.high) + 1))

    @property
    def text(self) -> str:
        """As on the command line."""
        if self.choices:
            return f"{self.key}={','.join(self.choices)}"
        low, high = self.ends
        kinds = [":int"] * self.is_integer + [":log"] * self.is_log
        return f"{self.key}={low!r}:{high!r}{''.join(kinds)}"

    def distribution(self, optuna: Any) -> Any:
        """As Optuna has it."""
        kinds = optuna.distributions
        if self.choices:
            return kinds.CategoricalDistribution(self.choices)
        kind = kinds.IntDistribution if self.is_integer else kinds.FloatDistribution
        return kind(*self.ends, log=self.is_log)

    def own(self, value: Any) -> Value | None:
        """A config's value as one of these; None if it is none of them."""
        if self.choices:
            return next((text for text in self.choices if text == str(value) or _same_number(text, value)), None)
        return value if isinstance(value, float | int) and self.low <= value <= self.high else None


def _same_number(text: str, value: Any) -> bool:
    return isinstance(value, float | int) and bool(_NUMBER.match(text)) and float(text) == value


def parse_space(words: Sequence[str], default: Callable[[str], Any]) -> tuple[Dimension, ...]:
    """The dimensions that the command line describes.

    Args:
        words: in one of the `FORMS`.
        default: gives the value that a config has for a key, or None.

    Raises:
        UserError: a word is in none of the forms, or its bounds make no range.
    """
    found: dict[str, Dimension] = {}
    for word in words:
        key, sign, text = word.partition("=")
        if not sign or not key or not text:
            raise UserError(f"--space {shown(word)} is not {FORMS}")
        if key in found:
            raise UserError(f"--space has {shown(key)} twice")
        found[key] = _dimension(word, key, text, default(key))
    return tuple(found.values())


def _dimension(word: str, key: str, text: str, default: Any) -> Dimension:
    choices = tuple(part.strip() for part in re.split(r",(?![^\[(]*[\])])", text))  # a list's commas are its own
    if len(choices) > 1:
        if not all(choices) or len(set(choices)) < len(choices):
            raise UserError(f"--space {shown(word)} has a value that is empty or there twice")
        return Dimension(key, choices)
    low, *others = text.split(":")
    if not others:
        raise UserError(f"--space {shown(word)} has one value; set it with {key} {text}, or give {FORMS}")
    high, *kinds = others
    numbers = [float(one) if _NUMBER.match(one) else math.nan for one in (low, high)]
    if not all(map(math.isfinite, numbers)) or len(set(kinds)) < len(kinds) or set(kinds) - {"log", "int"}:
        raise UserError(f"--space {shown(word)} is not {FORMS}")
    if numbers[0] >= numbers[1]:
        raise UserError(f"--space {shown(word)} is empty: {low} is not below {high}")
    if "log" in kinds and numbers[0] <= 0:
        raise UserError(f"--space {shown(word)} has no logarithm: {low} is not above 0")
    whole = "int" in kinds or (isinstance(default, int) and not isinstance(default, bool))
    if whole and not all(one.is_integer() for one in numbers):
        raise UserError(f"--space {shown(word)} takes whole numbers, and {low} or {high} is none")
    return Dimension(key, (), numbers[0], numbers[1], whole, "log" in kinds)


def check_space(space: Sequence[Dimension], shared: ConfigArguments, trainer: str) -> None:
    """Raise a UserError for a key that cannot be searched over, or a value that breaks its key's rule."""
    for one in space:
        for name in (*NOT_SEARCHED, *FIXED):
            if one.key == name or one.key.startswith(f"{name}."):
                instead = f"; use {FIXED[name]}" if FIXED.get(name) else ""
                raise UserError(f"--space {one.key} is nothing to search over{instead}")
        for value in one.ends:
            make_config(
                trainer=trainer,
                dataset_file=shared["dataset_file"],
                method_file=shared["method_file"],
                flags=shared["flags"],
                options=[*shared["options"], one.key, str(value)],
                allow_new_keys=shared["allow_new_keys"],
            )


def options_of(space: Sequence[Dimension], params: Mapping[str, Value]) -> list[str]:
    """Settings as KEY VALUE pairs."""
    return [text for one in space for text in (one.key, str(params[one.key]))]
