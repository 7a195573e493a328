"""Merge yaml files and command-line options into a config.

On top of yacs: ``_BASE_``, with which a yaml file inherits from others, and ``_FOR_``, with settings for one dataset;
errors that name the file and suggest the closest key; integers are accepted for keys whose default is a float; and keys
whose default is text get the text as it was typed.

Files are untrusted: their size, depth, expanded aliases and types of values are limited.
"""

from __future__ import annotations

import ast
import copy
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dassl_lite.config.check import leaves
from dassl_lite.config.defaults import _C, CN
from dassl_lite.utils.errors import UserError, nearest, shown
from dassl_lite.utils.files import can_be_path

BASE_KEY = "_BASE_"
FOR_KEY = "_FOR_"
_SOURCES = "__sources__"  # attribute of a config beside yacs' own; copies have it too
MOST_BYTES = 2**18  # of a yaml file
MOST_VALUES = 20_000  # of a yaml file, with its aliases expanded
MOST_BASES = 64  # files that a yaml file inherits from
DEEPEST = 32  # nesting of keys and values
LONGEST_LITERAL = 10_000  # characters that are read as a Python literal
WIDEST_INTEGER = 4096  # bits; Python refuses to print much wider ones


class ConfigKeyError(UserError):
    """A config key that nothing declares, or whose value is not of its type.

    Attributes:
        key: the dotted key.
        what: the message without its hint.
    """

    def __init__(self, key: str, what: str, hint: str = "") -> None:
        super().__init__(f"{what}{hint}")
        self.key, self.what = key, what


def add_keys(cfg: CN, declare: Callable[[CN], None]) -> None:
    """Let a method or plug-in add its own keys: ``declare`` is called with the unfrozen config."""
    cfg.defrost()
    declare(cfg)


def completed(cfg: CN, defaults: CN = _C) -> CN:
    """``cfg`` with every key of ``defaults``; missing keys get their default values.

    A fork's copy of Dassl's ``defaults.py`` lacks our keys. A complete config is returned unchanged.

    Args:
        cfg: a config, or one of its nodes.
        defaults: the engine's defaults, or the same node of them. Nodes of trainers are never added.
    """
    if not _lacks(cfg, defaults):
        return cfg
    cfg, frozen = cfg.clone(), cfg.is_frozen()
    cfg.defrost()
    _fill(cfg, defaults)
    if frozen:
        cfg.freeze()
    return cfg


def _lacks(node: CN, defaults: CN) -> bool:
    pairs = ((key, value) for key, value in defaults.items() if not (defaults is _C and key == "TRAINER"))
    return any(
        key not in node or (isinstance(value, CN) and isinstance(node[key], CN) and _lacks(node[key], value))
        for key, value in pairs
    )


def _fill(node: CN, defaults: CN) -> None:
    for key, value in defaults.items():
        if key not in node:
            node[key] = copy.deepcopy(value)
        elif isinstance(value, CN) and isinstance(node[key], CN) and not (defaults is _C and key == "TRAINER"):
            _fill(node[key], value)


def clean_cfg(cfg: CN, trainer: str) -> None:
    """Drop the keys of all trainers except ``trainer``, whose node may be in capitals, as in Dassl."""
    for key in list(cfg.TRAINER):
        if key not in ("NAME", trainer, trainer.upper()):
            del cfg.TRAINER[key]


def merge_file(cfg: CN, path: str | Path, *, dataset: str = "", allow_new_keys: bool = False) -> None:
    """Merge a yaml file into ``cfg``, after the files that its ``_BASE_`` names (relative to the file).

    Args:
        cfg: changed in place.
        path: the yaml file.
        dataset: a file's settings for this dataset, ``_FOR_: {<dataset>: {<keys>}}``, are merged after the file.
        allow_new_keys: accept keys that nothing declares.

    Raises:
        UserError: the file is missing or not valid yaml, its ``_BASE_`` is circular, a key is unknown, or a value has
            the wrong type.
    """
    for number, (source, values) in enumerate(_with_bases(Path(path), ())):
        if number > MOST_BASES:
            raise UserError(f"{path} inherits from more than {MOST_BASES} files")
        for_datasets = values.pop(FOR_KEY, {})
        merge_mapping(cfg, values, str(source), allow_new_keys=allow_new_keys)
        if not isinstance(for_datasets, dict) or not all(isinstance(keys, dict) for keys in for_datasets.values()):
            raise UserError(f"{source}: {FOR_KEY} must give config keys for names of datasets")
        if dataset in for_datasets:
            where = f"{source} ({FOR_KEY} {dataset})"
            merge_mapping(cfg, for_datasets[dataset], where, allow_new_keys=allow_new_keys)


def merge_options(cfg: CN, options: Sequence[str], *, allow_new_keys: bool = False) -> None:
    """Merge the ``KEY VALUE`` pairs at the end of a command line."""
    for name, following in zip(options[::2], options[1::2], strict=False):
        if name.startswith("--"):
            raise UserError(f"the flag {shown(name)} must come before the config keys, which are last")
        if following.startswith("--"):
            raise UserError(f"the config key {shown(name)} has no value: the flag {shown(following)} follows it")
    if len(options) % 2:
        raise UserError(f"config keys come as KEY VALUE pairs; {shown(options[-1])} has no value")
    for key, value in zip(options[::2], options[1::2], strict=True):
        parts = key.split(".")
        if len(parts) > DEEPEST or not all(parts):
            raise UserError(f"the command line: {shown(key)} is not a config key, such as OPTIM.LR")
        nested: Any = _unquoted(value)
        for part in reversed(parts):
            nested = {part: nested}
        merge_mapping(cfg, nested, "the command line", allow_new_keys=allow_new_keys)


def merge_mapping(
    cfg: CN, values: Mapping[str, Any], source: str, *, allow_new_keys: bool = False, own_types: bool = False
) -> None:
    """Merge nested ``values`` into ``cfg`` in place; errors name ``source``.

    Args:
        own_types: trainers' keys may have other types than ours. A fork may declare ``CTX_INIT`` as False.

    Raises:
        ConfigKeyError: a key is unknown, or a value has the wrong type.
    """
    _merge(cfg, values, cfg, (), source, allow_new_keys, own_types)
    optim = values.get("OPTIM", {})
    if "MAX_EPOCH" in optim and "EPOCHS_BY_SHOTS" not in optim:
        cfg.OPTIM.EPOCHS_BY_SHOTS = ()


def sources_of(cfg: CN) -> dict[str, str]:
    """What set each key last, a file or "the command line", by dotted key; keys at their defaults are left out."""
    return dict(cfg.__dict__.get(_SOURCES, {}))


def set_epochs(cfg: CN) -> None:
    """Set MAX_EPOCH by the number of shots, if EPOCHS_BY_SHOTS is set."""
    pairs, shots = cfg.OPTIM.EPOCHS_BY_SHOTS, cfg.DATASET.NUM_SHOTS
    if pairs:
        fitting = [epochs for limit, epochs in pairs if 0 < shots <= limit]
        cfg.OPTIM.MAX_EPOCH = fitting[0] if fitting else pairs[-1][1]


def to_dict(cfg: CN) -> dict[str, Any]:
    """The config as nested dicts and lists, for JSON."""
    return {k: to_dict(v) if isinstance(v, CN) else list(v) if isinstance(v, tuple) else v for k, v in cfg.items()}


def _with_bases(path: Path, chain: tuple[Path, ...]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The files that ``path`` inherits from, then ``path``, with their content; ``chain``: the files that led here."""
    if not can_be_path(str(path)):
        raise UserError(
            f"config file {shown(str(path))} cannot exist: it has a NUL character or half of a surrogate pair"
        )
    path = Path(os.path.realpath(path))
    if len(chain) > MOST_BASES:
        raise UserError(f"{chain[0]} inherits from more than {MOST_BASES} files")
    if path in chain:
        raise UserError(f"{path}: its {BASE_KEY} is circular: " + " -> ".join(p.name for p in (*chain, path)))
    values = _read_yaml(path)
    bases = values.pop(BASE_KEY, [])
    names = bases if isinstance(bases, list) else [bases]
    for name in names:
        base = name.text if isinstance(name, _Scalar) else name
        if not isinstance(base, str) or not base:
            raise UserError(
                f"{path}: {BASE_KEY} is {shown(name)}; it must be the name of a yaml file, or a list of them"
            )
        yield from _with_bases(path.parent / base, (*chain, path))
    yield path, values


@dataclass(frozen=True)
class _Scalar:
    """A number or boolean in a yaml file, and its text as typed, which a text key keeps."""

    value: Any
    text: str

    def __repr__(self) -> str:
        return self.text


class _Loader(yaml.SafeLoader):
    """yaml without dates, with limits, and with numbers and booleans that keep their text."""

    values = depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.values, self.depth = self.values + 1, self.depth + 1
        if self.depth > DEEPEST:
            raise yaml.YAMLError(f"it is nested more than {DEEPEST} deep")
        if self.values > MOST_VALUES:
            raise yaml.YAMLError(f"it holds more than {MOST_VALUES:,} values")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        value = super().construct_object(node, deep)
        typed = isinstance(value, bool | int | float) and isinstance(node.value, str)
        return _Scalar(value, node.value) if typed else value


# Dates are text; otherwise a date as a key would be refused.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read_yaml(path: Path) -> dict[str, Any]:
    """The content of one yaml file, without what it inherits, as plain values; errors as in `merge_file`."""
    return _unwrapped(_read_yaml(path))


def _read_yaml(path: Path) -> dict[str, Any]:
    """The content of a yaml file; numbers and booleans are `_Scalar`.

    Raises:
        UserError: it cannot be read, is not valid, or is larger or deeper than a config may be.
    """
    try:
        content = _content(path)
        loader = _Loader(content)
        node = loader.get_single_node()
        _check_size(node)
        values = None if node is None else loader.construct_document(node)
    except FileNotFoundError:
        raise UserError(f"config file {_shown_path(path)} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"config file {_shown_path(path)} cannot be read: {reason}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1})" if mark else ""
        reason = getattr(error, "problem", None) or error
        raise UserError(f"config file {path} is not valid yaml{where}: {reason}") from None
    except UserError:
        raise
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:  # from yaml's constructors
        raise UserError(f"config file {path} is not valid yaml: {error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        kind = type(values.value if isinstance(values, _Scalar) else values).__name__
        raise UserError(f"config file {path} must hold KEY: value lines, not a {kind}")
    return values


def _content(path: Path) -> str:
    if path.exists() and not path.is_file():
        raise UserError(f"config file {path} is not a file")
    with path.open("rb") as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise UserError(f"config file {path} has more than {MOST_BYTES:,} bytes")
    return content.decode("utf-8-sig")


def _shown_path(path: Path) -> str:
    """A path for a message, shortened if it is too long to exist."""
    text = str(path)
    return text if len(text) <= 1000 else f"{text[:100]}...{text[-100:]}"


def _check_size(root: Any) -> None:
    """Refuse a yaml document that is too deep, contains itself, or whose aliases expand to too many values."""
    sizes: dict[int, int] = {}  # node -> values in it, with aliases expanded

    def measure(node: Any, depth: int) -> int:
        if depth > DEEPEST:
            raise yaml.YAMLError(f"it contains itself, or its aliases make it more than {DEEPEST} deep")
        if id(node) not in sizes:
            children = [] if isinstance(node, yaml.ScalarNode) else node.value
            flat = [part for child in children for part in (child if isinstance(child, tuple) else (child,))]
            sizes[id(node)] = 1 + sum(measure(child, depth + 1) for child in flat)
        return sizes[id(node)]

    if root is not None and measure(root, 0) > MOST_VALUES:
        raise yaml.YAMLError(f"its aliases expand to more than {MOST_VALUES:,} values")


def _merge(
    node: CN,
    values: Mapping[str, Any],
    root: CN,
    path: tuple[str, ...],
    source: str,
    new: bool,
    own_types: bool = False,
) -> None:
    for key, value in values.items():
        name = ".".join((*path, str(key)))
        if not isinstance(value, Mapping):
            root.__dict__.setdefault(_SOURCES, {})[name] = source
        if key not in node:
            if not new:
                raise _unknown_key(root, node, path, name, source)
            _require_plain({key: value}, name, source)
            node[key] = CN(_unwrapped(value)) if isinstance(value, Mapping) else _decode(value)
        elif isinstance(node[key], CN):
            if not isinstance(value, Mapping):
                raise UserError(f"{source}: {name} is a group of keys, not a value (got {shown(value)})")
            _merge(node[key], value, root, (*path, key), source, new, own_types)
        else:
            _require_plain(value, name, source)
            try:
                node[key] = _cast(value, node[key], name, source)
            except ConfigKeyError:
                if not own_types or path[:1] != ("TRAINER",) or isinstance(value, Mapping):
                    raise
                node[key] = _decode(value)


def _require_plain(value: Any, name: str, source: str, depth: int = 0) -> None:
    """Refuse what a config cannot hold: anything but text, numbers, lists and groups, and excessive depth."""
    if depth > DEEPEST:
        raise UserError(f"{source}: {name} is nested more than {DEEPEST} deep")
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if not isinstance(key, str) or not key:
                raise UserError(f"{source}: {name}: {shown(key)} is not the name of a config key")
            _require_plain(inner, name, source, depth + 1)
    elif isinstance(value, list | tuple):
        for inner in value:
            _require_plain(inner, name, source, depth + 1)
    elif isinstance(value, _Scalar):
        _require_plain(value.value, name, source, depth)
    elif isinstance(value, int) and value.bit_length() > WIDEST_INTEGER:
        raise UserError(f"{source}: {name} is a number of {value.bit_length():,} bits, which is too large")
    elif not isinstance(value, str | int | float | type(None)):
        raise UserError(f"{source}: {name} is a {type(value).__name__}, which a config cannot hold")


def _unwrapped(value: Any) -> Any:
    """The value with each `_Scalar` replaced by its value."""
    if isinstance(value, _Scalar):
        return value.value
    if isinstance(value, Mapping):
        return {key: _unwrapped(inner) for key, inner in value.items()}
    return type(value)(map(_unwrapped, value)) if isinstance(value, list | tuple) else value


def _decode(value: Any) -> Any:
    """The value of a string if it is a Python literal, such as "(224, 224)", "1e-5" or "True"; else the string."""
    if not isinstance(value, str):
        return _unwrapped(value)
    if len(value) > LONGEST_LITERAL:
        return value
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about invalid escapes: the string may not be a literal at all
            decoded = ast.literal_eval(value)
        _require_plain(decoded, "", "")
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return value
    return decoded


def _unquoted(value: str) -> str:
    """The text of a quoted string; scripts for yacs pass an empty one this way: ``KEY "''"``."""
    quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
    decoded = _decode(value) if quoted else value
    return decoded if isinstance(decoded, str) else value


def _cast(given: Any, default: object, name: str, source: str) -> object:
    if isinstance(default, str):
        return _as_text(given, name, source, default)
    value = _decode(given)
    if default is None or (
        isinstance(value, type(default)) and not (isinstance(value, bool) ^ isinstance(default, bool))
    ):
        return value
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise UserError(f"{source}: {name} is {shown(value)}, which is too large") from None
    if isinstance(default, tuple) and isinstance(value, list):
        return tuple(value)
    if isinstance(default, list) and isinstance(value, tuple):
        return list(value)
    if isinstance(default, tuple | list) and isinstance(value, str):
        return type(default)(part.strip() for part in value.split(",") if part.strip())
    raise ConfigKeyError(name, f"{source}: {name} must be a {_kind(default)}, got {shown(value)}")


def _as_text(given: Any, name: str, source: str, default: str) -> str:
    """The text as typed: a folder may be called 007, 1e5 or 2024-01-01."""
    if isinstance(given, str):
        return given
    if isinstance(given, _Scalar) and not isinstance(given.value, bool):
        return given.text
    if isinstance(given, int | float) and not isinstance(given, bool):
        return str(given)
    raise ConfigKeyError(name, f"{source}: {name} must be a {_kind(default)}, got {shown(given)}")


def _kind(default: object) -> str:
    names = {bool: "boolean (True or False)", int: "whole number", float: "number", str: "string"}
    return names.get(type(default), "list") + f", like {default!r}"


def _unknown_key(root: CN, node: CN, path: tuple[str, ...], name: str, source: str) -> ConfigKeyError:
    siblings = [".".join((*path, key)) for key in node]
    likely = nearest(name, siblings) or nearest(name, leaves(root))
    brief = name if len(name) <= 100 else f"{name[:100]}..."
    hint = f"did you mean '{likely}'?" if likely else f"keys here: {', '.join(siblings)}"
    return ConfigKeyError(
        name, f"{source}: unknown config key '{brief}'", f"; {hint} (--allow-new-keys accepts any key)"
    )
