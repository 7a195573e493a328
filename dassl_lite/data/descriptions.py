"""Sentences that describe the classes, read from a JSON file: ``{"class": ["a sentence", ...], ...}``, CuPL's form."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dassl_lite.data.classes import ClassList, normalise_name
from dassl_lite.utils.errors import UserError, nearest, shown
from dassl_lite.utils.files import read_json
from dassl_lite.utils.logger import get_logger

logger = get_logger(__name__)

LONGEST_SENTENCE = 4096  # characters; more never fit into a text encoder


def read_descriptions(path: str | Path, classes: ClassList) -> list[list[str]]:
    """The sentences of each of the K classes, in label order, as the file orders them.

    A key of the file is a class's id, else its name as the dataset spells it, else its name up to case, ``_``, ``-``,
    ``/`` and spaces; classes of the same name share a key. Descriptions of other classes are ignored with a warning.

    Raises:
        UserError: the file cannot be read or has another form, a class has no sentence, or two keys are one class.
    """
    what = f"descriptions '{path}' (DATASET.DESCRIPTIONS)"
    try:
        content = read_json(Path(path).expanduser(), object_pairs_hook=_Pairs)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {what}: {getattr(error, 'strerror', None) or error}") from error
    if not isinstance(content, _Pairs):
        raise UserError(f"{what} must be an object, class -> list of sentences; it is a {type(content).__name__}")
    for name, sentences in content:
        _check(sentences, f"{what}: class {shown(name)}")
    return _by_class(content, classes, what)


class _Pairs(list[tuple[str, Any]]):
    """The keys and values of a JSON object, also of one that has a key twice."""


def _check(sentences: Any, what: str) -> None:
    """Raise a UserError unless these are sentences that can be encoded."""
    if not isinstance(sentences, list) or isinstance(sentences, _Pairs):
        kind = "an object" if isinstance(sentences, _Pairs) else shown(sentences)
        raise UserError(f"{what} has {kind} where a list of sentences belongs")
    if not sentences:
        raise UserError(f"{what} has an empty list; give it at least one sentence")
    for number, sentence in enumerate(sentences, start=1):
        if not isinstance(sentence, str):
            kind = "an object" if isinstance(sentence, _Pairs) else shown(sentence)
            raise UserError(f"{what}: entry {number} is {kind}, not a sentence")
        if not sentence.strip():
            raise UserError(f"{what}: sentence {number} is empty")
        if len(sentence) > LONGEST_SENTENCE:
            raise UserError(
                f"{what}: sentence {number} has {len(sentence):,} characters, more than the {LONGEST_SENTENCE:,} that "
                f"are read: {shown(sentence)}"
            )
        if any("\ud800" <= character <= "\udfff" for character in sentence):
            raise UserError(f"{what}: sentence {number} has half of a surrogate pair: {shown(sentence)}")


def _by_class(content: Sequence[tuple[str, list[str]]], classes: ClassList, what: str) -> list[list[str]]:
    by_id, by_name, by_spelling = _positions(classes.ids), _positions(classes.names), _positions(_spelled(classes))
    found: dict[int, tuple[str, list[str]]] = {}
    others = []
    for name, sentences in content:
        positions = by_id.get(name) or by_name.get(name) or by_spelling.get(normalise_name(name), [])
        if not positions:
            others.append(name)
        for position in positions:
            if position in found:
                raise UserError(
                    f"{what}: {shown(found[position][0])} and {shown(name)} are the same class, "
                    f"{shown(classes.names[position])}; leave one out"
                )
            found[position] = name, sentences
    if lacking := [name for position, name in enumerate(classes.names) if position not in found]:
        more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        like = nearest(lacking[0], others)
        hint = f"; did you mean it by {shown(like)}?" if like else ""
        raise UserError(f"{what} has no sentences for the dataset's class {shown(lacking[0])}{more}{hint}")
    if others:
        listed = ", ".join(map(shown, others[:3])) + (", ..." if len(others) > 3 else "")
        logger.info(f"{len(others)} classes of {what} are not classes of the dataset and not used: {listed}")
    return [found[position][1] for position in range(len(classes))]


def _spelled(classes: ClassList) -> list[str]:
    return [normalise_name(name) for name in classes.names]


def _positions(values: Sequence[str]) -> dict[str, list[int]]:
    """The positions of each value, the empty string excepted."""
    found: dict[str, list[int]] = {}
    for position, value in enumerate(values):
        if value:
            found.setdefault(value, []).append(position)
    return found
