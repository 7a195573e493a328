"""From files and flags to a config, and from a config to a trainer."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from dassl_lite.config import (
    add_keys,
    check_ranges,
    get_cfg_default,
    merge_file,
    merge_mapping,
    merge_options,
    set_epochs,
)
from dassl_lite.engine.plugins import asked_plugins, load_plugins
from dassl_lite.models.clip import Preprocessing, preprocessing
from dassl_lite.networks import BACKBONE_REGISTRY
from dassl_lite.utils.errors import UserError
from dassl_lite.utils.logger import get_logger
from dassl_lite.utils.registry import Registry

logger = get_logger(__name__)

TRAINER_REGISTRY = Registry("trainer")
CONFIGS = "dassl_lite.configs"
# For networks other than CLIP: Dassl's defaults.
IMAGENET_INPUT = Preprocessing((224, 224), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bilinear")


def full_config() -> CfgNode:
    """The engine's defaults with every registered trainer's keys, so that any method's yaml can be read."""
    cfg = get_cfg_default()
    # A third party's class may replace one of ours and use its keys, as the forks of CoOp do.
    ours = TRAINER_REGISTRY.replaced.values()
    for source in [*ours, *(TRAINER_REGISTRY.get(name) for name in TRAINER_REGISTRY), *asked_plugins()]:
        declare = getattr(source, "extend_cfg", None)
        if declare is not None:
            add_keys(cfg, declare)
    return cfg


def make_config(
    *,
    trainer: str = "",
    dataset_file: str | Path | None = None,
    method_file: str | Path | None = None,
    flags: dict[str, Any] | None = None,
    options: Sequence[str] = (),
    base: dict[str, Any] | None = None,
    allow_new_keys: bool = False,
) -> CfgNode:
    """The frozen config of a run.

    Merge order (the reference's): engine defaults, the methods' own keys, ``base`` (a stored run's config), dataset
    yaml, method yaml, flags, trailing options. A yaml that does not exist as given is looked up among the package's
    (``shapesnet`` or ``configs/datasets/shapesnet.yaml``).
    """
    load_plugins()
    cfg = full_config()
    if base:
        merge_mapping(cfg, base, "the checkpoint's config", allow_new_keys=allow_new_keys)
    if dataset_file:
        merge_file(cfg, find_yaml(dataset_file, "datasets"), allow_new_keys=allow_new_keys)
    if method_file:
        merge_file(cfg, find_yaml(method_file, f"trainers/{trainer}"), allow_new_keys=allow_new_keys)
    merge_mapping(cfg, flags or {}, "the command line")
    merge_options(cfg, options, allow_new_keys=allow_new_keys)
    if trainer:
        cfg.TRAINER.NAME = trainer
    check_ranges(cfg)
    set_epochs(cfg)
    check = getattr(TRAINER_REGISTRY.get(trainer), "check_own_keys", None) if trainer in TRAINER_REGISTRY else None
    if check is not None:
        check(cfg)
    cfg.freeze()
    return cfg


def build_trainer(cfg: CfgNode) -> Any:
    """Build the trainer that ``cfg.TRAINER.NAME`` names."""
    load_plugins()
    trainer = TRAINER_REGISTRY.get(cfg.TRAINER.NAME)
    logger.info(f"Loading trainer: {cfg.TRAINER.NAME}")
    return trainer(with_backbone_inputs(cfg))


def with_backbone_inputs(cfg: CfgNode) -> CfgNode:
    """``cfg`` with image size, mean, std and interpolation filled in from the backbone unless they are set."""
    keys = ("SIZE", "PIXEL_MEAN", "PIXEL_STD", "INTERPOLATION")
    if all(cfg.INPUT[key] for key in keys):
        return cfg
    name = cfg.MODEL.BACKBONE.NAME
    own = IMAGENET_INPUT if not name or name in BACKBONE_REGISTRY else preprocessing(name)
    values = (tuple(own.size), list(own.mean), list(own.std), own.interpolation)
    cfg = cfg.clone()
    cfg.defrost()
    for key, value in zip(keys, values, strict=True):
        cfg.INPUT[key] = cfg.INPUT[key] or value
    cfg.freeze()
    return cfg


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
