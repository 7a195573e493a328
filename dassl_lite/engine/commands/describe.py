"""The output of tools/train.py for --list and --help-trainer: registered names, config keys and recipes."""

from __future__ import annotations

import inspect
import sys
import sysconfig
from itertools import takewhile
from pathlib import Path
from textwrap import shorten
from typing import Any

from tabulate import tabulate
from yacs.config import CfgNode

from dassl_lite.config import add_keys, get_cfg_default
from dassl_lite.config.check import leaves
from dassl_lite.config.load import BASE_KEY, read_yaml
from dassl_lite.data import DATASET_REGISTRY, DatasetBase
from dassl_lite.data.transforms import TRANSFORMS
from dassl_lite.engine.build import TRAINER_REGISTRY, configs_root, default_recipe, make_config
from dassl_lite.engine.contract.keys import keys_of
from dassl_lite.engine.contract.trackers import TRACKER_REGISTRY
from dassl_lite.engine.plugins import requested_plugins
from dassl_lite.evaluation import EVALUATOR_REGISTRY
from dassl_lite.models.names import DEMO, OPENAI_NAMES
from dassl_lite.networks import BACKBONE_REGISTRY, HEAD_REGISTRY, NETWORK_REGISTRY
from dassl_lite.optim import LR_SCHEDULER_REGISTRY, OPTIMIZER_REGISTRY
from dassl_lite.utils.registry import Registry

PACKAGE = __name__.partition(".")[0]
INSTALLED = sysconfig.get_paths()["purelib"]
WIDTH = 100  # maximum length of a recipe's description

# Flag, config key or function that accepts the name -> registry.
REGISTRIES: dict[str, Registry] = {
    "--trainer": TRAINER_REGISTRY,
    "DATASET.NAME": DATASET_REGISTRY,
    "TEST.EVALUATOR": EVALUATOR_REGISTRY,
    "LOG.TRACKERS": TRACKER_REGISTRY,
    "OPTIM.NAME": OPTIMIZER_REGISTRY,
    "OPTIM.LR_SCHEDULER": LR_SCHEDULER_REGISTRY,
    "INPUT.TRANSFORMS": TRANSFORMS,
    "build_backbone()": BACKBONE_REGISTRY,
    "build_head()": HEAD_REGISTRY,
    "build_network()": NETWORK_REGISTRY,
}


def registered() -> str:
    """Tables of everything registered: name, origin and first docstring line."""
    tables = []
    for taker, registry in REGISTRIES.items():
        entries = [(name, registry.get(name)) for name in sorted(registry, key=str.lower)]
        rows = [[name, origin(entry), summary(entry)] for name, entry in entries]
        headers = [f"{registry.kind} ({taker})", "from", "description"]
        if rows:
            tables.append(tabulate(rows, headers=headers, disable_numparse=True))
    tables.append(f"CLIP (--backbone): {', '.join((DEMO, *OPENAI_NAMES))}, any of open_clip's with a tag, or a file.")
    return "\n\n".join(tables)


def origin(thing: Any) -> str:
    """The place where an object is defined: its module, or its file if it is neither ours nor installed."""
    module = getattr(thing, "__module__", None) or ""
    path = getattr(sys.modules.get(module), "__file__", None)
    if not path or module.partition(".")[0] == PACKAGE or Path(path).is_relative_to(INSTALLED):
        return module
    return str(path)


def summary(thing: Any) -> str:
    """The first line of an object's docstring.

    For a dataset, the first line of its module's docstring if that starts with the dataset's name, because the class
    docstring only says where the images are stored.
    """
    about = _docstring(inspect.getmodule(thing)).partition("\n")[0]
    if isinstance(thing, type) and issubclass(thing, DatasetBase) and about.startswith(f"{thing.__name__}: "):
        about = about.partition(": ")[2]
        return about[:1].upper() + about[1:]
    return _docstring(thing).partition("\n")[0]


def _docstring(thing: Any) -> str:
    return inspect.cleandoc(getattr(thing, "__doc__", None) or "")


def trainer_help(name: str) -> str:
    """A trainer's description, config keys with defaults and comments, and recipes.

    Raises:
        UserError: no trainer has that name.
    """
    trainer = TRAINER_REGISTRY.get(name)
    first = f"{name} ({origin(trainer)}): {summary(trainer)}".rstrip(": ")
    parts = (first, _docstring(inspect.getmodule(trainer)), _key_table(name), _recipes(name))
    return "\n\n".join(part for part in parts if part)


def own_keys(trainer: Any) -> dict[str, Any]:
    """A trainer's config keys with their defaults.

    They are the keys added by its own, an inherited or its module's ``extend_cfg``, and keys under its name that are
    declared elsewhere, such as in a paper's train.py.
    """
    owners = inspect.getmodule(trainer), trainer  # third parties declare them in the module
    engine, everything = leaves(get_cfg_default()), _with_keys_of(*requested_plugins(), *owners)
    declared = _with_keys_of(*owners).keys() - engine.keys()
    node = f"trainer.{trainer.__name__}.".lower()
    return {key: default for key, default in everything.items() if key in declared or key.lower().startswith(node)}


def _with_keys_of(*owners: Any) -> dict[str, Any]:
    """The keys of the engine and of ``owners``, with their defaults."""
    cfg = get_cfg_default()
    for owner in owners:
        declare = getattr(owner, "extend_cfg", None)
        if declare is not None:
            add_keys(cfg, declare)
    return leaves(cfg)


def _key_table(name: str) -> str:
    trainer = TRAINER_REGISTRY.get(name)
    keys = own_keys(trainer)
    if not keys:
        return f"{name} declares no config keys of its own."
    recipe, declared = default_recipe(name), {key.lower(): about for key, about in _descriptions(trainer).items()}
    values, rows = leaves(make_config(trainer=name, method_file=recipe)), []
    for key, default in keys.items():
        other = f" ({values[key]!r} in {recipe.name})" if recipe and values[key] != default else ""
        rows.append([key, f"{default!r}{other}", declared.get(key.lower(), "")])
    return tabulate(rows, headers=["config key", "default", "what it does"], disable_numparse=True)


def _descriptions(trainer: Any) -> dict[str, str]:
    """The description of each declared key; keys added by ``extend_cfg``, as in Dassl, have none."""
    if not isinstance(trainer, type) or not hasattr(trainer, "node_name"):
        return {}
    return {f"TRAINER.{trainer.node_name()}.{name}": key.about for name, key in keys_of(trainer).items()}


def _recipes(name: str) -> str:
    """The method's yaml files with their opening comment or else their settings; a leading underscore hides a file."""
    paths = sorted((configs_root() / "trainers" / name).glob("*.yaml"))
    rows = [[path.stem, _about_recipe(path)] for path in paths if not path.name.startswith("_")]
    default = default_recipe(name)
    if default is not None and default not in paths:
        rows.append([str(default), _about_recipe(default)])
    if not rows:
        return f"{name} has no recipe in configs/trainers/{name}; use --config-file with a yaml of your own."
    return tabulate(rows, headers=["recipe (--config-file)", "description"], disable_numparse=True)


def _about_recipe(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    comment = " ".join(line.lstrip("# ") for line in takewhile(lambda line: line.startswith("#"), text.splitlines()))
    values = read_yaml(path)
    base = values.pop(BASE_KEY, "")
    settings = ", ".join(f"{key} {value}" for key, value in leaves(CfgNode(values)).items())
    return shorten(comment or settings or f"as {base}", WIDTH)
