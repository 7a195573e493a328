"""The space of a hyper-parameter search: config keys, each with a range or a list of values."""

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

# Keys that define the data. Like keys of the machine, they cannot be searched over and are not part of a recipe.
DATA_KEYS = (
    *("DATASET.NAME", "DATASET.ROOT", "DATASET.FILE", "DATASET.FEWSHOT_FILE", "DATASET.SUBSAMPLE_CLASSES"),
    *("DATASET.SOURCE_DOMAINS", "DATASET.TARGET_DOMAINS"),
)
NOT_SEARCHED = (*DATA_KEYS, "DATASET.FEATURES.DIR", "DATALOADER.NUM_WORKERS", "USE_CUDA", "TEST.EVALUATOR")
# Keys that a search sets itself -> the flag to use instead.
FIXED = {
    **{"SEED": "--seed", "DATASET.NUM_SHOTS": "--shots", "OUTPUT_DIR": "--output-dir", "TRAINER.NAME": "--trainer"},
    **{"RESUME": "", "VERBOSE": "", "TEST.SPLIT": "", "TEST.NO_TEST": ""},
}
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$")
FORMS = "KEY=lo:hi, KEY=lo:hi:log, KEY=lo:hi:int or KEY=a,b,c"

Value = float | int | str


@dataclass(frozen=True)
class Dimension:
    """A config key to search over, and its values: ``choices``, or numbers from ``low`` to ``high``."""

    key: str
    choices: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0
    is_integer: bool = False
    is_log: bool = False

    @classmethod
    def of(cls, key: str, distribution: Any) -> Dimension:
        """Convert an Optuna distribution; the inverse of `distribution`."""
        if hasattr(distribution, "choices"):
            return cls(key, tuple(map(str, distribution.choices)))
        is_integer = isinstance(distribution.low, int)
        return cls(key, (), float(distribution.low), float(distribution.high), is_integer, bool(distribution.log))

    @property
    def ends(self) -> tuple[Value, ...]:
        """Values whose validity implies that of all others."""
        if self.choices:
            return self.choices
        return (int(self.low), int(self.high)) if self.is_integer else (self.low, self.high)

    @property
    def size(self) -> float:
        """The number of values."""
        return len(self.choices) or (self.high - self.low + 1 if self.is_integer else math.inf)

    @property
    def values(self) -> tuple[Value, ...]:
        """All values, if there are finitely many."""
        return self.choices or tuple(range(int(self.low), int(self.high) + 1))

    @property
    def text(self) -> str:
        """The dimension as written on the command line."""
        if self.choices:
            return f"{self.key}={','.join(self.choices)}"
        low, high = self.ends
        kinds = [":int"] * self.is_integer + [":log"] * self.is_log
        return f"{self.key}={low!r}:{high!r}{''.join(kinds)}"

    def distribution(self, optuna: Any) -> Any:
        """The dimension as an Optuna distribution."""
        kinds = optuna.distributions
        if self.choices:
            return kinds.CategoricalDistribution(self.choices)
        kind = kinds.IntDistribution if self.is_integer else kinds.FloatDistribution
        return kind(*self.ends, log=self.is_log)

    def match(self, value: Any) -> Value | None:
        """A config value as a value of this dimension; None if it is not one."""
        if self.choices:
            return next((text for text in self.choices if text == str(value) or _same_number(text, value)), None)
        return value if isinstance(value, float | int) and self.low <= value <= self.high else None


def _same_number(text: str, value: Any) -> bool:
    return isinstance(value, float | int) and bool(_NUMBER.match(text)) and float(text) == value


def parse_space(words: Sequence[str], default: Callable[[str], Any]) -> tuple[Dimension, ...]:
    """Parse the dimensions given on the command line.

    Args:
        words: arguments in one of the `FORMS`.
        default: returns the config's value for a key, or None.

    Raises:
        UserError: an argument has none of the forms, or its bounds are not a range.
    """
    dimensions: dict[str, Dimension] = {}
    for word in words:
        key, sign, text = word.partition("=")
        if not sign or not key or not text:
            raise UserError(f"--space {shown(word)} is not {FORMS}")
        if key in dimensions:
            raise UserError(f"--space has {shown(key)} twice")
        dimensions[key] = _dimension(word, key, text, default(key))
    return tuple(dimensions.values())


def _dimension(word: str, key: str, text: str, default: Any) -> Dimension:
    choices = tuple(
        part.strip() for part in re.split(r",(?![^\[(]*[\])])", text)
    )  # do not split at commas within lists
    if len(choices) > 1:
        if not all(choices) or len(set(choices)) < len(choices):
            raise UserError(f"--space {shown(word)} has an empty or repeated value")
        return Dimension(key, choices)
    low, *others = text.split(":")
    if not others:
        raise UserError(f"--space {shown(word)} has one value; set it with {key} {text}, or give {FORMS}")
    high, *kinds = others
    numbers = [float(bound) if _NUMBER.match(bound) else math.nan for bound in (low, high)]
    if not all(map(math.isfinite, numbers)) or len(set(kinds)) < len(kinds) or set(kinds) - {"log", "int"}:
        raise UserError(f"--space {shown(word)} is not {FORMS}")
    if numbers[0] >= numbers[1]:
        raise UserError(f"--space {shown(word)} is empty: {low} is not below {high}")
    if "log" in kinds and numbers[0] <= 0:
        raise UserError(f"--space {shown(word)} has no logarithm: {low} is not above 0")
    is_integer = "int" in kinds or (isinstance(default, int) and not isinstance(default, bool))
    if is_integer and not all(number.is_integer() for number in numbers):
        raise UserError(f"--space {shown(word)} needs integers, but {low} or {high} is not one")
    return Dimension(key, (), numbers[0], numbers[1], is_integer, "log" in kinds)


def check_space(space: Sequence[Dimension], shared: ConfigArguments, trainer: str) -> None:
    """Raise a UserError for a key that cannot be searched over, or a value that breaks its key's rule."""
    for dimension in space:
        key = dimension.key
        for name in (*NOT_SEARCHED, *FIXED):
            if key == name or key.startswith(f"{name}."):
                instead = f"; use {FIXED[name]}" if FIXED.get(name) else ""
                raise UserError(f"--space {key} cannot be searched over{instead}")
        for value in dimension.ends:
            make_config(
                trainer=trainer,
                dataset_file=shared["dataset_file"],
                method_file=shared["method_file"],
                flags=shared["flags"],
                options=[*shared["options"], key, str(value)],
                allow_new_keys=shared["allow_new_keys"],
            )


def options_of(space: Sequence[Dimension], params: Mapping[str, Value]) -> list[str]:
    """Settings as KEY VALUE pairs."""
    return [text for dimension in space for text in (dimension.key, str(params[dimension.key]))]
