"""Build a config from files and flags, and a trainer from a config."""

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
from dassl_lite.engine.plugins import declaring_script, load_plugins, requested_plugins, run_unchanged_hint
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
_UNNAMED = "unnamed"  # placeholder for a backbone that the user did not name
_current_config: CfgNode | None = None  # config of the third-party trainer being built
STORED = "the checkpoint's config"  # source of the keys when a run is evaluated
CONFIGS = "dassl_lite.configs"
# Dassl's defaults, for networks other than CLIP.
IMAGENET_INPUT = Preprocessing((224, 224), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bilinear")


def full_config() -> CfgNode:
    """The engine's defaults plus every registered trainer's keys, so that any method's yaml can be read."""
    cfg = get_cfg_default()
    # A third-party class may replace one of ours and still use its keys, as the CoOp forks do.
    trainers = [*TRAINER_REGISTRY.replaced.values(), *(TRAINER_REGISTRY.get(name) for name in TRAINER_REGISTRY)]
    for trainer in sorted(trainers, key=is_ours, reverse=True):  # if a fork redeclares one of our keys, the fork wins
        if hasattr(trainer, "extend_cfg"):
            add_keys(cfg, trainer.extend_cfg)
    for plugin in requested_plugins():
        if hasattr(plugin, "extend_cfg"):
            _declare(cfg, plugin)
    ours = [trainer for trainer in trainers if is_ours(trainer)]
    if len(ours) < len(trainers) or requested_plugins():
        for trainer in ours:  # a fork may redeclare a whole node and omit a key that our trainer needs
            cfg = completed(cfg, _own_keys(trainer))
    return cfg


def _declare(cfg: CfgNode, plugin: ModuleType) -> None:
    """Let a plug-in declare its keys.

    Raises:
        UserError: its ``extend_cfg`` fails, or requires arguments other than the config.
    """
    try:
        inspect.signature(plugin.extend_cfg).bind(cfg)
    except TypeError:
        raise UserError(
            f"extend_cfg of plug-in {plugin.__file__} takes more than a config and cannot be called here; "
            f"{run_unchanged_hint(plugin)}"
        ) from None
    try:
        add_keys(cfg, plugin.extend_cfg)
    except Exception as error:
        raise UserError(
            f"extend_cfg of plug-in {plugin.__file__} fails: {type(error).__name__}: {error}; "
            f"{run_unchanged_hint(plugin)}"
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
    """Build the frozen config of a run.

    Merge order, as in the reference: engine defaults, method keys, ``base`` (a stored run's config), dataset yaml,
    method yaml, flags, trailing options. The method yaml's settings for one dataset (``_FOR_``) are merged right after
    it if the run uses that dataset or a feature file of it. A yaml that does not exist as given is looked up in the
    package (``shapesnet`` or ``configs/datasets/shapesnet.yaml``). ``source`` names the origin of the flags in error
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
            f"{error.what}; {file} declares it: add --plugin {file}, or run that script unchanged: "
            f"dassl-lite run-dassl {file} ARGUMENTS"
        ) from error
    if trainer:
        cfg.TRAINER.NAME = trainer
    if cfg.MODEL.BACKBONE.NAME == _UNNAMED:
        cfg.MODEL.BACKBONE.NAME = full_config().MODEL.BACKBONE.NAME
        vars(cfg.MODEL.BACKBONE)[_UNNAMED] = True  # an attribute, not a key: copies keep it, files do not
    check_ranges(cfg)
    set_epochs(cfg)
    check = getattr(TRAINER_REGISTRY.get(trainer), "check_own_keys", None) if trainer in TRAINER_REGISTRY else None
    if check is not None:
        check(cfg)
    if cfg.DATALOADER.NUM_WORKERS == -1:  # code written for Dassl passes the number to its own DataLoader
        cfg.DATALOADER.NUM_WORKERS = usable_cores()
    cfg.freeze()
    return cfg


def build_trainer(cfg: CfgNode) -> Any:
    """Build the trainer named by ``cfg.TRAINER.NAME``."""
    load_plugins()
    trainer = TRAINER_REGISTRY.get(cfg.TRAINER.NAME)
    logger.info(f"Loading trainer: {cfg.TRAINER.NAME}")
    try:
        return _built(trainer, cfg)
    except MultiLabelError as error:
        supported = [
            name for name in TRAINER_REGISTRY if getattr(TRAINER_REGISTRY.get(name), "takes_multi_label", False)
        ]
        raise MultiLabelError(f"{error}; methods that support it: {', '.join(sorted(supported))}") from error


def _built(trainer: Any, cfg: CfgNode) -> Any:
    cfg = with_backbone_inputs(completed(cfg))
    if is_ours(trainer):
        return trainer(completed(cfg, _own_keys(trainer)))
    if not hasattr(trainer, "through_encoder"):  # not a FeatureTrainer
        cfg = _with_plain_precision(cfg)
    if Registry.others_win:
        cfg = _with_backbone_size(cfg)
    name = cfg.MODEL.BACKBONE.NAME
    try:
        with _building(cfg), sharing_only(BACKBONE):  # it gets a copy, which it may modify
            return trainer(cfg)
    except KeyError as error:  # from a lookup in its table of backbones
        if error.args != (name,):
            raise
        raise UserError(
            f"{cfg.TRAINER.NAME} does not know the backbone '{name}'; choose one that it knows with --backbone "
            "(MODEL.BACKBONE.NAME)"
        ) from error


def _with_plain_precision(cfg: CfgNode) -> CfgNode:
    """``cfg`` with PREC fp32 instead of auto, which third-party trainers that read our node do not know."""
    cfg = cfg.clone()
    cfg.defrost()
    for node in cfg.TRAINER.values():
        if isinstance(node, CfgNode) and node.get("PREC") == "auto":
            node.PREC = "fp32"
    cfg.freeze()
    return cfg


def _own_keys(trainer: Any) -> CfgNode:
    """A config with only the keys that one of our trainers declares."""
    cfg, node = get_cfg_default(), trainer.node_name()
    trainer.extend_cfg(cfg)
    return CfgNode({"TRAINER": {node: cfg.TRAINER[node]} if node in cfg.TRAINER else {}})


def uses_shots(trainer: str) -> bool:
    """Whether a method depends on the number of shots and the seed; assumed true for an unknown method."""
    kind = TRAINER_REGISTRY.get(trainer) if trainer in TRAINER_REGISTRY else None
    return bool(getattr(kind, "uses_shots", True))


@contextmanager
def _building(cfg: CfgNode) -> Iterator[None]:
    """A context in which a third-party trainer is built; see ``is_unnamed``."""
    global _current_config
    before, _current_config = _current_config, cfg
    try:
        yield
    finally:
        _current_config = before


def is_unnamed(backbone: str) -> bool:
    """Whether the trainer being built has this backbone only because the user named none."""
    cfg = _current_config
    return cfg is not None and cfg.MODEL.BACKBONE.NAME == backbone and not names_backbone(cfg)


def names_backbone(cfg: CfgNode) -> bool:
    """Whether a yaml, a flag or an option of ``make_config`` named the backbone, rather than the default applying."""
    return _UNNAMED not in vars(cfg.MODEL.BACKBONE)


def _with_backbone_size(cfg: CfgNode) -> CfgNode:
    """``cfg`` with our CLIP's image size, where a third-party yaml was written for another backbone."""
    name, size = cfg.MODEL.BACKBONE.NAME, tuple(cfg.INPUT.SIZE)
    if not names_backbone(cfg) or name in BACKBONE_REGISTRY or not is_local(name):
        return cfg
    backbone_size = preprocessing(name).size
    if size == backbone_size:
        return cfg
    logger.warning(f"INPUT.SIZE {size} does not fit backbone {name}; using the backbone's size, {backbone_size}")
    cfg = cfg.clone()
    cfg.defrost()
    cfg.INPUT.SIZE = backbone_size
    cfg.freeze()
    return cfg


def with_backbone_inputs(cfg: CfgNode) -> CfgNode:
    """``cfg`` with unset image settings (size, mean, std, interpolation, resize mode) taken from the backbone."""
    dassls, ours = ("SIZE", "PIXEL_MEAN", "PIXEL_STD", "INTERPOLATION"), ("RESIZE_MODE", "FILL_COLOR")
    if all(cfg.INPUT[key] for key in (*dassls, *ours)):
        return cfg
    name = cfg.MODEL.BACKBONE.NAME
    try:
        defaults = IMAGENET_INPUT if not name or name in BACKBONE_REGISTRY else preprocessing(name)
    except UserError:
        if not all(cfg.INPUT[key] for key in dassls):
            raise
        defaults = (
            IMAGENET_INPUT  # a third-party backbone with all of Dassl's keys set; loading it reports a wrong name
        )
    values = (
        tuple(defaults.size),
        list(defaults.mean),
        list(defaults.std),
        defaults.interpolation,
        defaults.resize_mode,
        tuple(defaults.fill_color),
    )
    cfg = cfg.clone()
    cfg.defrost()
    for key, value in zip((*dassls, *ours), values, strict=True):
        cfg.INPUT[key] = cfg.INPUT[key] or value
    cfg.freeze()
    return cfg


def set_by_user(cfg: CfgNode) -> set[str]:
    """The dotted keys that were last set by the command line or by a user's yaml.

    Keys set by recipes shipped with a method, and values equal to the defaults, do not count.
    """
    recipe = default_recipe(cfg.TRAINER.NAME)
    root = os.path.realpath(configs_root())
    values, defaults, keys = leaves(cfg), leaves(full_config()), set()
    for key, source in sources_of(cfg).items():
        shipped = source.startswith(root + os.sep) or (
            recipe is not None and source.startswith(os.path.realpath(recipe))
        )
        if not shipped and source != STORED and values.get(key) != defaults.get(key):
            keys.add(key)
    return keys


def find_yaml(name: str | Path, folder: str) -> Path:
    """Find a yaml file: as given, else in the package's ``folder`` ("datasets", "trainers/TaskRes").

    Raises:
        UserError: not found; the message lists the package's files in that folder.
    """
    given = Path(name)
    if given.is_file():
        return given
    root = configs_root()
    candidates = [root / folder / given.name, root / folder / f"{given.name}.yaml"]
    if given.parts and given.parts[0] == "configs":  # a checkout path, used from another directory
        candidates.append(root.joinpath(*given.parts[1:]))
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    known = sorted(path.stem for path in (root / folder).glob("*.yaml"))
    listed = f"; the package has {', '.join(known)}" if known else ""
    raise UserError(f"config file {given} does not exist{listed}")


def default_recipe(trainer: str) -> Path | None:
    """The yaml that a method uses by default, or None if it has none.

    In the package it is ``configs/trainers/<trainer>/default.yaml``; for a plug-in ``x.py``, the ``x.yaml`` beside it.
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
