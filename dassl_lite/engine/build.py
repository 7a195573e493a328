"""From files and flags to a config, and from a config to a trainer."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from yacs.config import CfgNode

from dassl_lite.config import (
    ConfigKeyError,
    add_keys,
    check_ranges,
    completed,
    get_cfg_default,
    merge_file,
    merge_mapping,
    merge_options,
    set_epochs,
    sources_of,
)
from dassl_lite.config.check import leaves
from dassl_lite.data import published_name
from dassl_lite.engine.plugins import asked_plugins, declaring_script, load_plugins, run_as_it_is
from dassl_lite.models.clip import Preprocessing, preprocessing
from dassl_lite.models.names import is_local
from dassl_lite.networks import BACKBONE_REGISTRY
from dassl_lite.utils.env import usable_cores
from dassl_lite.utils.errors import MultiLabelError, UserError
from dassl_lite.utils.logger import get_logger
from dassl_lite.utils.registry import Registry, is_ours
from dassl_lite.utils.sharing import BACKBONE, sharing_only

logger = get_logger(__name__)

TRAINER_REGISTRY = Registry("trainer")
_UNNAMED = "unnamed"  # of a backbone that nothing named
_config_of_now: CfgNode | None = None  # of the third party's trainer that is being built
STORED = "the checkpoint's config"  # where the keys of a run that is evaluated come from
CONFIGS = "dassl_lite.configs"
# For networks other than CLIP: Dassl's defaults.
IMAGENET_INPUT = Preprocessing((224, 224), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bilinear")


def full_config() -> CfgNode:
    """The engine's defaults with every registered trainer's keys, so that any method's yaml can be read."""
    cfg = get_cfg_default()
    # A third party's class may replace one of ours and use its keys, as the forks of CoOp do.
    trainers = [*TRAINER_REGISTRY.replaced.values(), *(TRAINER_REGISTRY.get(name) for name in TRAINER_REGISTRY)]
    for trainer in sorted(trainers, key=is_ours, reverse=True):  # a fork's own declaration of a key of ours wins
        if hasattr(trainer, "extend_cfg"):
            add_keys(cfg, trainer.extend_cfg)
    for plugin in asked_plugins():
        if hasattr(plugin, "extend_cfg"):
            _declare(cfg, plugin)
    ours = [trainer for trainer in trainers if is_ours(trainer)]
    if len(ours) < len(trainers) or asked_plugins():
        for trainer in ours:  # a fork's declaration of a whole node may lack a key that ours needs
            cfg = completed(cfg, _own_keys(trainer))
    return cfg


def _declare(cfg: CfgNode, plugin: ModuleType) -> None:
    """Let a plug-in declare its keys.

    Raises:
        UserError: its ``extend_cfg`` fails, or wants more than a config.
    """
    try:
        inspect.signature(plugin.extend_cfg).bind(cfg)
    except TypeError:
        raise UserError(
            f"extend_cfg of plug-in {plugin.__file__} takes more than a config, so it cannot be called here; "
            f"{run_as_it_is(plugin)}"
        ) from None
    try:
        add_keys(cfg, plugin.extend_cfg)
    except Exception as error:
        raise UserError(
            f"extend_cfg of plug-in {plugin.__file__} fails: {type(error).__name__}: {error}; {run_as_it_is(plugin)}"
        ) from error


def make_config(
    *,
    trainer: str = "",
    dataset_file: str | Path | None = None,
    method_file: str | Path | None = None,
    flags: dict[str, Any] | None = None,
    options: Sequence[str] = (),
    base: dict[str, Any] | None = None,
    allow_new_keys: bool = False,
    source: str = "the command line",
) -> CfgNode:
    """The frozen config of a run.

    Merge order (the reference's): engine defaults, the methods' own keys, ``base`` (a stored run's config), dataset
    yaml, method yaml, flags, trailing options. What the method yaml has for one dataset only (``_FOR_``) follows it, if
    the run's dataset is that one, or a feature file of it. A yaml that does not exist as given is looked up among the
    package's (``shapesnet`` or ``configs/datasets/shapesnet.yaml``). ``source`` is where the flags come from, for
    messages.
    """
    load_plugins()

    def merged(dataset: str) -> CfgNode:
        cfg = full_config()
        cfg.MODEL.BACKBONE.NAME = _UNNAMED
        if base:
            merge_mapping(cfg, base, STORED, allow_new_keys=True, own_types=True)
        if dataset_file:
            merge_file(cfg, find_yaml(dataset_file, "datasets"), allow_new_keys=allow_new_keys)
        if method_file:
            method = find_yaml(method_file, f"trainers/{trainer}")
            merge_file(cfg, method, dataset=dataset, allow_new_keys=allow_new_keys)
        merge_mapping(cfg, flags or {}, source)
        merge_options(cfg, options, allow_new_keys=allow_new_keys)
        return cfg

    try:
        cfg = merged("")
        if method_file:
            cfg = merged(published_name(cfg))
    except ConfigKeyError as error:
        file = declaring_script(error.key)
        if file is None:
            raise
        raise UserError(
            f"{error.what}; {file} declares it: add --plugin {file}, or run that script as it is: dassl-lite run-dassl "
            f"{file} ARGUMENTS"
        ) from error
    if trainer:
        cfg.TRAINER.NAME = trainer
    if cfg.MODEL.BACKBONE.NAME == _UNNAMED:
        cfg.MODEL.BACKBONE.NAME = full_config().MODEL.BACKBONE.NAME
        vars(cfg.MODEL.BACKBONE)[_UNNAMED] = True  # beside the keys, so that a copy has it and a file does not
    check_ranges(cfg)
    set_epochs(cfg)
    check = getattr(TRAINER_REGISTRY.get(trainer), "check_own_keys", None) if trainer in TRAINER_REGISTRY else None
    if check is not None:
        check(cfg)
    if cfg.DATALOADER.NUM_WORKERS == -1:  # code written for Dassl gives the number to a DataLoader of its own
        cfg.DATALOADER.NUM_WORKERS = usable_cores()
    cfg.freeze()
    return cfg


def build_trainer(cfg: CfgNode) -> Any:
    """Build the trainer that ``cfg.TRAINER.NAME`` names."""
    load_plugins()
    trainer = TRAINER_REGISTRY.get(cfg.TRAINER.NAME)
    logger.info(f"Loading trainer: {cfg.TRAINER.NAME}")
    try:
        return _built(trainer, cfg)
    except MultiLabelError as error:
        taking = [name for name in TRAINER_REGISTRY if getattr(TRAINER_REGISTRY.get(name), "takes_multi_label", False)]
        raise MultiLabelError(f"{error}; methods that take it: {', '.join(sorted(taking))}") from error


def _built(trainer: Any, cfg: CfgNode) -> Any:
    cfg = with_backbone_inputs(completed(cfg))
    if is_ours(trainer):
        return trainer(completed(cfg, _own_keys(trainer)))
    if not hasattr(trainer, "through_encoder"):  # no FeatureTrainer
        cfg = _with_plain_precision(cfg)
    if Registry.others_win:
        cfg = _with_size_of_backbone(cfg)
    name = cfg.MODEL.BACKBONE.NAME
    try:
        with _building(cfg), sharing_only(BACKBONE):  # of which it gets a copy, to change as it likes
            return trainer(cfg)
    except KeyError as error:  # of a table of backbones
        if error.args != (name,):
            raise
        raise UserError(
            f"{cfg.TRAINER.NAME} does not know the backbone '{name}'; name one that it knows with --backbone "
            "(MODEL.BACKBONE.NAME)"
        ) from error


def _with_plain_precision(cfg: CfgNode) -> CfgNode:
    """``cfg`` with PREC fp32 in place of auto, which a third party's trainer that reads our node does not know."""
    cfg = cfg.clone()
    cfg.defrost()
    for node in cfg.TRAINER.values():
        if isinstance(node, CfgNode) and node.get("PREC") == "auto":
            node.PREC = "fp32"
    cfg.freeze()
    return cfg


def _own_keys(trainer: Any) -> CfgNode:
    """A config of the keys that a trainer of ours declares, and no others."""
    cfg, node = get_cfg_default(), trainer.node_name()
    trainer.extend_cfg(cfg)
    return CfgNode({"TRAINER": {node: cfg.TRAINER[node]} if node in cfg.TRAINER else {}})


def uses_shots(trainer: str) -> bool:
    """Whether the number of shots and the seed make a difference to a method; one that is not known is taken to."""
    kind = TRAINER_REGISTRY.get(trainer) if trainer in TRAINER_REGISTRY else None
    return bool(getattr(kind, "uses_shots", True))


@contextmanager
def _building(cfg: CfgNode) -> Iterator[None]:
    """While a third party's trainer is built; see ``is_unnamed``."""
    global _config_of_now
    before, _config_of_now = _config_of_now, cfg
    try:
        yield
    finally:
        _config_of_now = before


def is_unnamed(backbone: str) -> bool:
    """Whether the trainer that is being built has this backbone for the only reason that no other was named."""
    cfg = _config_of_now
    return cfg is not None and cfg.MODEL.BACKBONE.NAME == backbone and not names_backbone(cfg)


def names_backbone(cfg: CfgNode) -> bool:
    """Whether a yaml, a flag or an option of ``make_config`` named the backbone; otherwise it is the default."""
    return _UNNAMED not in vars(cfg.MODEL.BACKBONE)


def _with_size_of_backbone(cfg: CfgNode) -> CfgNode:
    """``cfg`` with the image size of a CLIP of ours that a third party's yaml, made for another one, does not fit."""
    name, size = cfg.MODEL.BACKBONE.NAME, tuple(cfg.INPUT.SIZE)
    if not names_backbone(cfg) or name in BACKBONE_REGISTRY or not is_local(name):
        return cfg
    own = preprocessing(name).size
    if size == own:
        return cfg
    logger.warning(f"INPUT.SIZE {size} does not fit backbone {name}; its own size, {own}, is used")
    cfg = cfg.clone()
    cfg.defrost()
    cfg.INPUT.SIZE = own
    cfg.freeze()
    return cfg


def with_backbone_inputs(cfg: CfgNode) -> CfgNode:
    """``cfg`` with what the backbone says of its images (size, mean, std, interpolation, way of resizing) filled in
    unless it is set."""
    dassls, ours = ("SIZE", "PIXEL_MEAN", "PIXEL_STD", "INTERPOLATION"), ("RESIZE_MODE", "FILL_COLOR")
    if all(cfg.INPUT[key] for key in (*dassls, *ours)):
        return cfg
    name = cfg.MODEL.BACKBONE.NAME
    try:
        own = IMAGENET_INPUT if not name or name in BACKBONE_REGISTRY else preprocessing(name)
    except UserError:
        if not all(cfg.INPUT[key] for key in dassls):
            raise
        own = IMAGENET_INPUT  # a third party's name, beside everything that Dassl has: whoever loads it reports it
    values = (tuple(own.size), list(own.mean), list(own.std), own.interpolation, own.resize_mode, tuple(own.fill_color))
    cfg = cfg.clone()
    cfg.defrost()
    for key, value in zip((*dassls, *ours), values, strict=True):
        cfg.INPUT[key] = cfg.INPUT[key] or value
    cfg.freeze()
    return cfg


def set_by_user(cfg: CfgNode) -> set[str]:
    """The keys, dotted, that the command line or a yaml of the user's set last; neither recipes that come with methods
    nor values that are the defaults count."""
    own = default_recipe(cfg.TRAINER.NAME)
    root = os.path.realpath(configs_root())
    values, defaults, found = leaves(cfg), leaves(full_config()), set()
    for key, source in sources_of(cfg).items():
        shipped = source.startswith(root + os.sep) or (own is not None and source.startswith(os.path.realpath(own)))
        if not shipped and source != STORED and values.get(key) != defaults.get(key):
            found.add(key)
    return found


def find_yaml(name: str | Path, folder: str) -> Path:
    """A yaml file: as given, else from the package's ``folder`` ("datasets", "trainers/TaskRes").

    Raises:
        UserError: not found; lists the package's files in that folder.
    """
    given = Path(name)
    if given.is_file():
        return given
    root = configs_root()
    candidates = [root / folder / given.name, root / folder / f"{given.name}.yaml"]
    if given.parts and given.parts[0] == "configs":  # a path in a checkout, used from another folder
        candidates.append(root.joinpath(*given.parts[1:]))
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    known = sorted(path.stem for path in (root / folder).glob("*.yaml"))
    listed = f"; the package has {', '.join(known)}" if known else ""
    raise UserError(f"config file {given} does not exist{listed}")


def default_recipe(trainer: str) -> Path | None:
    """The yaml that a method uses if none is named, or None if it has none.

    It is the package's ``configs/trainers/<trainer>/default.yaml``; for a plug-in ``x.py``, the ``x.yaml`` beside it.
    """
    paths = [configs_root() / "trainers" / trainer / "default.yaml"]
    if trainer in TRAINER_REGISTRY:
        file = getattr(sys.modules.get(TRAINER_REGISTRY.get(trainer).__module__), "__file__", None)
        paths += [Path(file).with_suffix(".yaml")] if file else []
    return next((path for path in paths if path.is_file()), None)


def configs_root() -> Path:
    """Folder of the yaml files that come with the package."""
    import dassl_lite.configs

    return Path(dassl_lite.configs.__path__[0])
