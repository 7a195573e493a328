"""Merge yaml files and command-line options into a config.

On top of yacs: ``_BASE_``, by which a yaml file inherits from others; errors that name the file and suggest the closest
key; and integers for keys whose default is a float.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from dassl_lite.config.check import leaves
from dassl_lite.config.defaults import CN
from dassl_lite.utils.errors import UserError, nearest

BASE_KEY = "_BASE_"


def add_keys(cfg: CN, declare: Callable[[CN], None]) -> None:
    """Let a method or plug-in add its own keys: ``declare`` is called with the unfrozen config."""
    cfg.defrost()
    declare(cfg)


def clean_cfg(cfg: CN, trainer: str) -> None:
    """Drop the keys of all trainers but ``trainer``, whose node may be in capitals, as in Dassl."""
    for key in list(cfg.TRAINER):
        if key not in ("NAME", trainer, trainer.upper()):
            del cfg.TRAINER[key]


def merge_file(cfg: CN, path: str | Path, *, allow_new_keys: bool = False) -> None:
    """Merge a yaml file into ``cfg``, after the files that its ``_BASE_`` names (relative to the file).

    Args:
        cfg: changed in place.
        path: the yaml file.
        allow_new_keys: accept keys that nothing declares.

    Raises:
        UserError: the file is missing or not valid yaml, its ``_BASE_`` is circular, a key is unknown, or a value has
            the wrong type.
    """
    for source in _with_bases(Path(path), ()):
        values = _read_yaml(source)
        values.pop(BASE_KEY, None)
        merge_mapping(cfg, values, str(source), allow_new_keys=allow_new_keys)


def merge_options(cfg: CN, options: Sequence[str], *, allow_new_keys: bool = False) -> None:
    """Merge the ``KEY VALUE`` pairs at the end of a command line."""
    if len(options) % 2:
        raise UserError(f"config keys come as KEY VALUE pairs; '{options[-1]}' has no value")
    for key, value in zip(options[::2], options[1::2], strict=True):
        nested: Any = value
        for part in reversed(key.split(".")):
            nested = {part: nested}
        merge_mapping(cfg, nested, "the command line", allow_new_keys=allow_new_keys)


def merge_mapping(cfg: CN, values: Mapping[str, Any], source: str, *, allow_new_keys: bool = False) -> None:
    """Merge nested ``values`` into ``cfg`` in place; errors name ``source``."""
    _merge(cfg, values, cfg, (), source, allow_new_keys)
    optim = values.get("OPTIM", {})
    if "MAX_EPOCH" in optim and "EPOCHS_BY_SHOTS" not in optim:
        cfg.OPTIM.EPOCHS_BY_SHOTS = ()


def set_epochs(cfg: CN) -> None:
    """Set MAX_EPOCH by the number of shots, if EPOCHS_BY_SHOTS is set."""
    pairs, shots = cfg.OPTIM.EPOCHS_BY_SHOTS, cfg.DATASET.NUM_SHOTS
    if pairs:
        fitting = [epochs for limit, epochs in pairs if 0 < shots <= limit]
        cfg.OPTIM.MAX_EPOCH = fitting[0] if fitting else pairs[-1][1]


def to_dict(cfg: CN) -> dict[str, Any]:
    """The config as nested dicts and lists, for JSON."""
    return {k: to_dict(v) if isinstance(v, CN) else list(v) if isinstance(v, tuple) else v for k, v in cfg.items()}


def _with_bases(path: Path, chain: tuple[Path, ...]) -> list[Path]:
    """``path`` after the files that it inherits from; ``chain``: the files that led to it."""
    path = path.resolve()
    if path in chain:
        raise UserError(f"{path}: its {BASE_KEY} is circular: " + " -> ".join(p.name for p in (*chain, path)))
    bases = _read_yaml(path).get(BASE_KEY, [])
    names = [bases] if isinstance(bases, str) else bases
    return [p for name in names for p in _with_bases(path.parent / name, (*chain, path))] + [path]


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"config file {path} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"config file {path} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1})" if mark else ""
        raise UserError(f"config file {path} is not valid yaml{where}: {getattr(error, 'problem', error)}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"config file {path} must hold KEY: value lines, not a {type(values).__name__}")
    return values


def _merge(node: CN, values: Mapping[str, Any], root: CN, path: tuple[str, ...], source: str, new: bool) -> None:
    for key, value in values.items():
        name = ".".join((*path, str(key)))
        if key not in node:
            if not new:
                raise _unknown_key(root, node, path, name, source)
            node[key] = CN(value) if isinstance(value, Mapping) else _decode(value)
        elif isinstance(node[key], CN):
            if not isinstance(value, Mapping):
                raise UserError(f"{source}: {name} is a group of keys, not a value (got {value!r})")
            _merge(node[key], value, root, (*path, key), source, new)
        else:
            node[key] = _cast(_decode(value), node[key], name, source)


def _decode(value: object) -> Any:
    """Parse a string that is a Python literal, such as "(224, 224)", "1e-5" or "True"."""
    if not isinstance(value, str):
        return value
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return value


def _cast(value: object, default: object, name: str, source: str) -> object:
    if default is None or (
        isinstance(value, type(default)) and not (isinstance(value, bool) ^ isinstance(default, bool))
    ):
        return value
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(default, tuple) and isinstance(value, list):
        return tuple(value)
    if isinstance(default, list) and isinstance(value, tuple):
        return list(value)
    if isinstance(default, tuple | list) and isinstance(value, str):
        return type(default)(part.strip() for part in value.split(",") if part.strip())
    if isinstance(default, str) and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)  # a folder or name that consists of digits
    raise UserError(f"{source}: {name} must be a {_kind(default)}, got {value!r}")


def _kind(default: object) -> str:
    names = {bool: "boolean (True or False)", int: "whole number", float: "number", str: "string"}
    return names.get(type(default), "list") + f", like {default!r}"


def _unknown_key(root: CN, node: CN, path: tuple[str, ...], name: str, source: str) -> UserError:
    siblings = [".".join((*path, key)) for key in node]
    likely = nearest(name, siblings) or nearest(name, leaves(root))
    hint = f"did you mean '{likely}'?" if likely else f"keys here: {', '.join(siblings)}"
    return UserError(f"{source}: unknown config key '{name}'; {hint} (--allow-new-keys accepts any key)")
