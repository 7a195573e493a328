"""Command-line flags that the tools share, and the config that they describe.

A flag has the same meaning in every tool. The ``add_*`` functions declare flags; :func:`config_arguments` turns the
parsed arguments into the arguments of ``make_config``.
"""

from __future__ import annotations

import argparse
import copy
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypedDict

from yacs.config import CfgNode

import dassl_lite
from dassl_lite.config.check import LARGEST_INTEGER
from dassl_lite.data import DATASET_REGISTRY, FolderDataset
from dassl_lite.data.feature_files import FeatureDataset
from dassl_lite.data.feature_files.folder import is_folder
from dassl_lite.data.images import kind_of
from dassl_lite.data.sharded.remote import dataset_at
from dassl_lite.engine.build import TRAINER_REGISTRY, default_recipe, set_by_user
from dassl_lite.engine.methods.feature_trainer import FeatureTrainer
from dassl_lite.engine.plugins import COMPAT
from dassl_lite.startup.tool_help import HelpFormatter, program
from dassl_lite.utils.errors import UserError, nearest, shown
from dassl_lite.utils.logger import get_logger
from dassl_lite.utils.registry import is_ours

DEFAULT_DATASET = "demo"  # embedded, so it needs no download
# Attribute of the parsed arguments -> config key.
CONFIG_KEYS = {
    "root": "DATASET.ROOT",
    "shots": "DATASET.NUM_SHOTS",
    "source_domains": "DATASET.SOURCE_DOMAINS",
    "target_domains": "DATASET.TARGET_DOMAINS",
    "transforms": "INPUT.TRANSFORMS",
    "backbone": "MODEL.BACKBONE.NAME",
    "head": "MODEL.HEAD.NAME",
    "output_dir": "OUTPUT_DIR",
    "seed": "SEED",
}
# Dataset classes for the user's own data -> key of cfg.DATASET that holds the path.
OWN_DATA = {"ImageFolder": "ROOT", "CSV": "ROOT", "Features": "FILE", "WebDataset": "ROOT", "HFDataset": "ROOT"}

logger = get_logger(__name__)

_GENERAL = "general options"
ALWAYS = ("--debug", "--version", "--help", "-h")  # flags that combine with all others
PLUGIN_FLAGS = ("--plugin", "--dassl-compat")
KEY_VALUE = "KEY VALUE"  # represents config keys among the flags of `ToolParser.ignores`
_CONFIG_KEY = re.compile(
    r"(SEED|VERBOSE|USE_CUDA|OUTPUT_DIR|RESUME|(INPUT|DATASET|DATALOADER|MODEL|OPTIM|TRAIN|TEST|TRAINER)(\.[A-Z]\w*)+)$"
)


class ConfigArguments(TypedDict):
    """Keyword arguments of ``make_config``."""

    trainer: str
    dataset_file: str
    method_file: str | Path | None
    flags: dict[str, Any]
    options: Sequence[str]
    allow_new_keys: bool


@dataclass(frozen=True)
class DatasetChoice:
    """A dataset as selected on the command line.

    Attributes:
        file: path or name of its yaml; "" if it has none.
        data: path of the user's own data; "" for a dataset described by the yaml.
    """

    file: str = ""
    data: str = ""

    @property
    def label(self) -> str:
        """Short name for tables and folders."""
        return data_label(self.data) if self.data else self.file

    @property
    def flags(self) -> dict[str, str]:
        """Dotted config keys that select the user's own data."""
        return own_data(self.data) if self.data else {}


@dataclass(frozen=True)
class _Rule:
    """A rule for flags that have no effect together with another flag, or without it."""

    mode: str
    together: bool  # whether the rule applies with ``mode`` given, or without it
    flags: tuple[str, ...] = ()
    but: tuple[str, ...] = ()

    def first_violation(self, given: Sequence[str]) -> str | None:
        """The first of the given flags that has no effect, or None."""
        if (self.mode in given) != self.together:
            return None
        unused = (flag for flag in given if flag in self.flags or (self.but and flag not in (self.mode, *self.but)))
        return next(unused, None)


class ToolParser(argparse.ArgumentParser):
    """A parser that raises UserError, rejects abbreviated flags and stops reading flags at the first config key.

    A flag that has no effect together with another one, or without it, is an error: see `ignores` and `needs`. The
    namespace has an attribute ``given``: the flags on the command line, by the attributes that they set.

    Attributes:
        takes_files: arguments may be file names such as ``TEST.JPG``, which look like config keys.
    """

    takes_files = False

    def __init__(self, **settings: Any) -> None:
        settings.setdefault("formatter_class", HelpFormatter)
        super().__init__(**settings, allow_abbrev=False)
        self.rules: list[_Rule] = []

    def ignores(self, mode: str, *flags: str, but: Iterable[str] = ()) -> None:
        """Declare that with ``mode``, ``flags`` have no effect; without ``flags``, all others except ``but``."""
        self.rules.append(_Rule(mode, True, flags, () if flags else (*but, *ALWAYS)))

    def needs(self, mode: str, *flags: str) -> None:
        """Declare that without the flag ``mode``, ``flags`` have no effect."""
        self.rules.append(_Rule(mode, False, flags))

    def parse_known_args(  # type: ignore[override]  # the base class overloads it for other namespace types
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        words = list(sys.argv[1:] if args is None else args)
        for word in words:
            if "\0" in word:  # possible only when called from Python: no system passes one
                self.error(f"{shown(word)} has a NUL character")
        parsed, rest = super().parse_known_args(words, namespace)
        known = [flag for word in words if (flag := word.partition("=")[0]) in self._option_string_actions]
        by_attribute = {self._option_string_actions[flag].dest: flag for flag in sorted(known)}
        repeated = {flag for flag, number in Counter(known).items() if number > 1} - self._repeatable()
        if repeated:
            self.error(f"{sorted(repeated)[0]} is given twice, and the first would have no effect")
        parsed.given = {**getattr(parsed, "given", {}), **by_attribute}
        self._check_rules(parsed, [])
        return parsed, rest

    def _repeatable(self) -> set[str]:
        """The flags that may be repeated: those that collect values, or take none."""
        collect = (argparse._AppendAction, argparse._ExtendAction)
        return {flag for flag, a in self._option_string_actions.items() if isinstance(a, collect) or a.nargs == 0}

    def _check_rules(self, parsed: argparse.Namespace, options: Sequence[str]) -> None:
        """Raise a UserError for the first flag, or config key among ``options``, that has no effect."""
        names = {dest: self._first_name(flag) for dest, flag in parsed.given.items()}
        given = [*names.values(), *([KEY_VALUE] if options else [])]
        for rule in self.rules:
            flag = rule.first_violation(given)
            if flag is not None:
                shown = options[0] if flag == KEY_VALUE else flag
                self.error(f"{shown} has no effect {'with' if rule.together else 'without'} {rule.mode}")

    def _first_name(self, flag: str) -> str:
        """The first name of a flag; for general flags and those of a sub-command, the name as given."""
        action = self._option_string_actions.get(flag)
        return action.option_strings[0] if action else flag

    def parse_args(  # type: ignore[override]  # the base class overloads it for other namespace types
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        words = list(sys.argv[1:] if args is None else args)
        keys = (i for i, word in enumerate(words) if _CONFIG_KEY.match(word) and not self.takes_files)
        start = next(keys, len(words))
        parsed, rest = self.parse_known_args(words[:start], namespace)
        for word in rest:
            if word.startswith("-"):
                self._report_unknown(word.partition("=")[0])
        options = [*rest, *words[start:]]
        if options and not hasattr(parsed, "options"):
            problem = (
                "is a config key, but this tool accepts none" if start < len(words) else "is one argument too many"
            )
            self.error(f"{options[0]} {problem}")
        if options:
            parsed.options = [*parsed.options, *options]
            self._check_rules(parsed, parsed.options)
        return parsed

    def _report_unknown(self, flag: str) -> NoReturn:
        known = list(self._option_string_actions)
        longer = [
            name for name in known if name.startswith(flag)
        ]  # abbreviations are rejected, but used as suggestions
        likely = longer[0] if len(longer) == 1 else nearest(flag, known)
        self.error(f"unknown flag {flag}" + (f"; did you mean {likely}?" if likely else ""))

    def format_help(self) -> str:
        self._action_groups.sort(key=lambda group: group.title == _GENERAL)  # last
        return super().format_help()

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def tool_parser(tool: str, description: str | None, usage: str | None = "%(prog)s [options]") -> ToolParser:
    """Create a tool's parser, with the flags common to all tools.

    Args:
        tool: name of the tool's module.
        description: the module's docstring.
        usage: None lists every flag.
    """
    parser = ToolParser(prog=program(tool), description=description, usage=usage)
    group = parser.add_argument_group(_GENERAL)
    group.add_argument("--debug", action="store_true", help="show the full traceback of an error")
    group.add_argument(
        "--version",
        action="version",
        version=f"dassl-lite {dassl_lite.__version__}",
        help="print the version and exit",
    )
    return parser


def add_dataset_flags(
    parser: ToolParser, *, several: bool = False, alias: str = "", default: str = "the embedded dataset"
) -> None:
    """Add ``--dataset-config-file``, ``--data`` and ``--root``.

    Args:
        parser: parser to add the flags to.
        several: allow several values for the first two flags.
        alias: alternative name for the first flag.
        default: description of the default, for the help.
    """
    group = parser.add_argument_group("dataset options")
    add = group.add_argument
    nargs, none = ("+", []) if several else (None, "")
    add(
        *filter(None, (alias, "--dataset-config-file")),
        dest="dataset_config_file",
        action="extend" if several else "store",
        nargs=nargs,
        default=none,
        metavar="FILE",
        help=f"dataset yaml, as a path or a name such as caltech101 (default: {default})",
    )
    add_data_flag(group, several=several)
    add_root_flag(group)


def add_data_flag(group: argparse._ActionsContainer, *, several: bool = False) -> None:
    """Add ``--data`` to a parser or an argument group."""
    group.add_argument(
        "--data",
        action="extend" if several else "store",
        nargs="+" if several else None,
        default=[] if several else "",
        metavar="PATH",
        help="your own data: a folder with a sub-folder of images per class, a table (.csv) or features (.npz)",
    )


def add_root_flag(group: argparse._ActionsContainer) -> None:
    """Add ``--root`` to a parser or an argument group."""
    group.add_argument("--root", default="", metavar="DIR", help="folder that contains the datasets' folders")


def add_model_flags(parser: ToolParser) -> None:
    """Add ``--backbone`` and ``--config-file``."""
    add = parser.add_argument
    add(
        "--config-file",
        default="",
        metavar="FILE",
        help="method yaml, as a path or a name in configs/trainers/TRAINER (default: default)",
    )
    add_backbone_flag(parser)


def add_backbone_flag(parser: ToolParser) -> None:
    """Add ``--backbone``."""
    parser.add_argument(
        "--backbone",
        default="",
        metavar="NAME",
        help="CLIP backbone: ViT-B/16, ViT-B-16:laion2b_s34b_b88k, a file or folder of weights, demo ...",
    )


def add_plugin_flags(parser: argparse.ArgumentParser) -> None:
    """Add ``--plugin`` and ``--dassl-compat``."""
    add = parser.add_argument_group("plug-ins").add_argument
    add(
        "--plugin",
        action="append",
        default=[],
        metavar="FILE_OR_MODULE",
        help="Python file or module to import first, such as one that registers a trainer; repeatable",
    )
    add(
        "--dassl-compat",
        dest="plugin",
        action="append_const",
        const=COMPAT,
        help="run plug-ins written for Dassl: `import dassl` imports this package",
    )


def add_config_flags(parser: ToolParser) -> None:
    """Add what every tool with a config accepts: plug-ins, ``--allow-new-keys`` and trailing KEY VALUE pairs."""
    add_plugin_flags(parser)
    add = parser.add_argument_group("config keys").add_argument
    add("--allow-new-keys", action="store_true", help="accept undeclared config keys")
    add("options", nargs="*", metavar="KEY VALUE", help="config keys to set, such as OPTIM.LR 0.002; must come last")
    parser.usage = "%(prog)s [options] [KEY VALUE ...]"


def add_method_flags(parser: ToolParser) -> None:
    """Add the flags that registered trainers declare in ``cli_flags``: flag -> (config key, help)."""
    declared: dict[str, str] = {}
    for name in sorted(TRAINER_REGISTRY):
        classes = TRAINER_REGISTRY.replaced.get(name), TRAINER_REGISTRY.get(name)
        flags = {flag: value for kind in classes for flag, value in getattr(kind, "cli_flags", {}).items()}
        new = {flag: value for flag, value in flags.items() if declared.get(flag) != value[0]}  # without inherited ones
        group = parser.add_argument_group(f"{name} options") if new else parser
        for flag, (key, text) in new.items():
            if flag in parser._option_string_actions:
                raise UserError(f"trainer {name} declares the flag {flag}, which is already taken")
            declared[flag] = key
            group.add_argument(flag, dest=key, default="", metavar="VALUE", help=text)


def add_ray_flags(parser: ToolParser, what: str = "run") -> None:
    """Add ``--ray`` and the resources of a run; ``what`` is the word for a run in the help."""
    add = parser.add_argument_group("Ray").add_argument
    add(
        "--ray",
        nargs="?",
        const="local",
        default="",
        metavar="ADDRESS",
        help=f"execute the {what}s on a Ray cluster: on this machine, or at an address such as 10.0.0.1:6379",
    )
    add("--run-cpus", type=float, metavar="N", help=f"CPU cores per {what} (default: 1)")
    add(
        "--run-gpus",
        type=float,
        metavar="N",
        help=f"GPUs per {what}, possibly fractional, such as 0.5 (default: 1 if there are any)",
    )
    add("--run-memory", type=float, metavar="GIB", help=f"memory per {what} (default: no limit)")
    parser.needs("--ray", "--run-cpus", "--run-gpus", "--run-memory")


def plugins_in(argv: Sequence[str] | None) -> list[str]:
    """The plug-ins named on the command line; needed before the rest is parsed, as plug-ins may declare flags."""
    parser = ToolParser(add_help=False)
    add_plugin_flags(parser)
    return parser.parse_known_args(argv)[0].plugin


def dataset_choices(args: argparse.Namespace, default: str = DEFAULT_DATASET) -> list[DatasetChoice]:
    """The datasets given by ``--dataset-config-file`` and ``--data``, for tools that accept several.

    Args:
        args: the parsed arguments.
        default: dataset to use if neither flag is given and DATASET.NAME is not set; "" for none.
    """
    chosen = [*(DatasetChoice(file) for file in args.dataset_config_file), *(DatasetChoice("", p) for p in args.data)]
    if chosen or not default or "DATASET.NAME" in args.options[::2]:
        return chosen
    return [DatasetChoice(default)]


def dataset_choice(args: argparse.Namespace, default: str = DEFAULT_DATASET) -> DatasetChoice:
    """The dataset given by ``--dataset-config-file`` and ``--data``; a yaml may accompany the user's own data."""
    given = args.dataset_config_file or args.data or "DATASET.NAME" in args.options[::2]
    return DatasetChoice(args.dataset_config_file or ("" if given else default), args.data)


def own_data(path: str) -> dict[str, str]:
    """Dotted config keys for the user's own data: a folder, table or shards of images, or features."""
    place = Path(path)
    if not kind_of(place):
        raise UserError(
            f"'{path}' is a single image; give a folder with a sub-folder per class, or a table with labels"
        )
    if place.suffix == ".npz" or is_folder(place):
        name = "Features"
    elif place.suffix == ".tar":
        name = "WebDataset"
    elif shards := dataset_at(path):
        name = shards
    else:
        name = "CSV" if place.is_file() or (place.suffix == ".csv" and not place.is_dir()) else "ImageFolder"
    return {"DATASET.NAME": name, f"DATASET.{OWN_DATA[name]}": path}


def data_label(path: str) -> str:
    """A name for the user's own data: the folder's name, or the file's without extension."""
    place = Path(path).resolve()
    return place.stem if place.suffix in (".npz", ".csv", ".tsv") else place.name


def config_arguments(
    args: argparse.Namespace,
    dataset: DatasetChoice | None = None,
    *,
    trainer: str | None = None,
    flags: Mapping[str, Any] | None = None,
) -> ConfigArguments:
    """The arguments for ``make_config``, from the command line.

    Args:
        args: the parsed arguments.
        dataset: the dataset, for tools that accept several; by default :func:`dataset_choice` of ``args``.
        trainer: name of the method, for tools without ``--trainer``.
        flags: additional dotted config keys.
    """
    dataset = dataset or dataset_choice(args)
    trainer = args.trainer if trainer is None else trainer
    given = vars(args)
    values = {key: given[name] for name, key in CONFIG_KEYS.items() if name in given}
    values |= {key: value for key, value in given.items() if "." in key}  # flags that a method declares
    values |= {**dataset.flags, **(flags or {})}
    return {
        "trainer": trainer,
        "dataset_file": dataset.file,
        "method_file": given.get("config_file") or default_recipe(trainer),
        "flags": nested({key: value for key, value in values.items() if value not in ("", None)}),
        "options": args.options,
        "allow_new_keys": args.allow_new_keys,
    }


def refuse_conflicts(args: argparse.Namespace) -> None:
    """Raise a UserError for a flag that contradicts another part of the command line."""
    typed: dict[str, str] = getattr(args, "given", {})
    options = dict(zip(args.options[::2], args.options[1::2], strict=False))
    keys = {**CONFIG_KEYS, "trainer": "TRAINER.NAME"}
    for attribute, flag in typed.items():
        key = keys.get(attribute, attribute)
        if key in options and options[key] != str(getattr(args, attribute)):
            raise UserError(f"{flag} and {key} contradict each other; leave one of them out")
    data = [path for path in ([args.data] if isinstance(args.data, str) else args.data) if path]
    places = {key for path in data for key in own_data(path)}
    for key in options:
        if key in places:
            raise UserError(f"--data and {key} contradict each other; leave one of them out")
    several = isinstance(args.dataset_config_file, list) and bool(args.dataset_config_file)
    exists = all(Path(path).suffix != ".npz" or Path(path).is_absolute() or Path(path).is_file() for path in data)
    if "root" in typed and data and exists and not several and not getattr(args, "suite", ""):
        raise UserError("--root has no effect with --data, which gives the location of the data")


def refuse_keys(options: Sequence[str], ignored: Mapping[str, str], where: str) -> None:
    """Raise a UserError for a config key that a flag of the tool replaces; warn about others that have no effect.

    Args:
        options: KEY VALUE pairs.
        ignored: keys, or nodes of keys, without effect -> the flag to use instead ("" if there is none).
        where: what they have no effect on, for the message.
    """
    unused = []
    for key in options[::2]:
        for name, instead in ignored.items():
            if key == name or key.startswith(f"{name}."):
                if instead:
                    raise UserError(f"{key} has no effect {where}; use {instead}")
                unused.append(key)
    if unused:
        logger.warning(f"No effect {where}: {', '.join(unused)}")


ON_CLIP = "a method on top of CLIP"
# Kind of dataset or method -> config keys, or nodes of keys, that have no effect on it.
IGNORED = {
    "features, which are read from a file": (
        *("MODEL.BACKBONE", "INPUT", "DATASET.ON_ERROR"),
        *("DATASET.FEATURES.DIR", "DATASET.FEATURES.SEED", "DATASET.FEATURES.BATCH_SIZE"),
    ),
    "a dataset of images": ("DATASET.FILE",),
    "a dataset without domains": ("DATASET.SOURCE_DOMAINS", "DATASET.TARGET_DOMAINS"),
    "a dataset without unlabelled images": (
        *("DATASET.NUM_LABELED", "DATASET.VAL_PERCENT", "DATASET.ALL_AS_UNLABELED"),
        *("DATASET.STL10_FOLD", "DATASET.CIFAR_C_TYPE", "DATASET.CIFAR_C_LEVEL"),
    ),
    ON_CLIP: ("MODEL.HEAD", "MODEL.BACKBONE.PRETRAINED", "DATALOADER.TRAIN_U", "TRAIN.COUNT_ITER"),
}


def refuse_without_effect(
    args: argparse.Namespace, trainers: Sequence[Any], cfg: CfgNode, searched: Sequence[str] = ()
) -> None:
    """Raise a UserError for a flag that has no effect on a run, and warn about config keys of the user without effect.

    Third-party trainers and datasets may read any key, so they are not checked. Keys whose effect depends on values in
    a run (an optimiser's keys, a search) are reported by `run.report_idle_keys` once the trainer is built.

    Args:
        args: the parsed arguments.
        trainers: classes of the methods to run; may be empty.
        cfg: the config, which determines the dataset.
        searched: config keys that must have an effect, as flags must.
    """
    refuse_conflicts(args)
    flags = {CONFIG_KEYS.get(attribute, attribute): flag for attribute, flag in getattr(args, "given", {}).items()}
    ignored = {
        name: kind
        for kind in _kinds_of(DATASET_REGISTRY.get(cfg.DATASET.NAME) if cfg.DATASET.NAME in DATASET_REGISTRY else None)
        for name in IGNORED[kind]
    }
    if trainers and all(is_ours(trainer) for trainer in trainers):
        names = ", ".join(trainer.__name__ for trainer in trainers)
        if all(issubclass(trainer, FeatureTrainer) for trainer in trainers):
            ignored |= dict.fromkeys(IGNORED[ON_CLIP], ON_CLIP)
        nodes = {_node(TRAINER_REGISTRY.get(name)) for name in TRAINER_REGISTRY} - set(map(_node, trainers))
        ignored |= {f"TRAINER.{node}": f"{names}: it belongs to {node}" for node in nodes}
    flags |= {key: f"--space {key}" for key in searched}
    keys = sorted(set_by_user(cfg) - {*flags, *args.options[::2]})
    for key in [*flags, *dict.fromkeys([*args.options[::2], *keys])]:
        for name, kind in ignored.items():
            if key == name or key.startswith(f"{name}."):
                if key in flags:
                    raise UserError(f"{flags[key]} has no effect on {kind}")
                logger.warning(f"{key} has no effect on {kind}")


def _node(trainer: Any) -> str:
    """Name of the node of ``cfg.TRAINER`` with a method's keys."""
    return trainer.node_name() if hasattr(trainer, "node_name") else getattr(trainer, "__name__", "")


def _kinds_of(dataset: Any) -> list[str]:
    """The kinds in ``IGNORED`` that apply to a dataset class."""
    if not (isinstance(dataset, type) and is_ours(dataset) and issubclass(dataset, FolderDataset)):
        return []
    images = "features, which are read from a file" if issubclass(dataset, FeatureDataset) else "a dataset of images"
    return [images, "a dataset without domains", "a dataset without unlabelled images"]


def nested(flat: Mapping[str, Any], over: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Convert dotted config keys to a tree, merged over a copy of the tree ``over``."""
    tree = copy.deepcopy(dict(over or {}))
    for key, value in flat.items():
        *parents, leaf = key.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree


def _several(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def check_at_least(args: argparse.Namespace, least: int, names: Iterable[str], at_most: int = LARGEST_INTEGER) -> None:
    """Raise a UserError for the first of these arguments that is below ``least`` or above ``at_most``."""
    values = [(name, value) for name in names for value in _several(getattr(args, name))]
    for name, value in values:
        if value < least:
            raise UserError(f"--{name.replace('_', '-')} must be at least {least}, not {shown(value)}")
        if value > at_most:
            raise UserError(f"--{name.replace('_', '-')} must be at most {at_most:,}, not {shown(value)}")
