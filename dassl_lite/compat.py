"""Run code written for Dassl: ``import dassl`` and its submodules resolve to this package.

    import dassl_lite.compat                      # before anything that imports dassl
    python tools/train.py --dassl-compat --plugin their/trainers/x.py ...

``dassl.engine`` *is* ``dassl_lite.engine``, not a copy, so a class that registers there is registered here. ``_PLACES``
maps the modules whose names differ. If a third party's trainer or dataset has the name of a built-in one (every fork
brings its own CoOp), it replaces the built-in one, and one log line says so.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from dassl_lite.config import CN, cfg_default
from dassl_lite.utils.errors import UserError
from dassl_lite.utils.logger import get_logger
from dassl_lite.utils.registry import Registry

logger = get_logger(__name__)

THEIRS, OURS = "dassl", "dassl_lite"

# Dassl's modules of a single family of backbones; networks.backbone has them all.
_BACKBONE_FILES = ("alexnet", "cnn_digitsdg", "efficientnet", "mobilenetv2", "shufflenetv2", "vgg")
# Our module of layers or losses -> the modules of Dassl whose names it defines.
_OPS = {
    "layers": ("attention", "conv", "reverse_grad", "sequential2"),
    "losses": ("cross_entropy", "mmd", "optimal_transport"),
    "mixing": ("efdmix", "mixstyle", "mixup"),
    "normalisation": ("dsbn", "transnorm"),
}
# Dassl's module -> ours, where the names differ. If there are several, the first that has an attribute provides it.
_PLACES: dict[str, tuple[str, ...]] = {
    "engine.trainer": ("engine.contract.trainer",),
    "data.data_manager": ("data.manager", "data.loaders"),
    "data.datasets.base_dataset": ("data.datasets",),
    "data.datasets.build": ("data.datasets",),
    "data.transforms.autoaugment": ("data.transforms.augmentations",),
    "data.transforms.randaugment": ("data.transforms.augmentations",),
    "data.transforms.transforms": ("data.transforms", "data.transforms.build"),
    "evaluation.build": ("evaluation.evaluator",),
    "modeling.backbone.backbone": ("networks.backbone.base",),
    "modeling.backbone.build": ("networks.build",),
    "modeling.backbone.resnet": ("networks.backbone.resnet", "networks.backbone"),
    **{f"modeling.backbone.{file}": ("networks.backbone",) for file in _BACKBONE_FILES},
    "modeling.head": ("networks.head", "networks.build"),
    "modeling.head.build": ("networks.build",),
    "modeling.head.mlp": ("networks.head",),
    "modeling.network": ("networks.build", "networks"),
    "modeling.network.build": ("networks.build",),
    **{f"modeling.ops.{file}": (f"networks.ops.{ours}",) for ours, files in _OPS.items() for file in files},
    "utils": ("utils", "utils.tools", "utils.logger", "data.images", "downloads.url"),
    "utils.tools": ("utils.tools", "data.images", "downloads.url"),
}


# Config keys of Dassl's own trainers, which Dassl declares in its defaults and papers build on.
_STRONG: dict[str, Any] = {"CONF_THRE": 0.95, "STRONG_TRANSFORMS": ()}
_KEYS: dict[str, dict[str, Any]] = {
    "MCD": {"N_STEP_F": 4},
    "MME": {"LMDA": 0.1},
    "CDAC": {
        "CLASS_LR_MULTI": 10,
        "RAMPUP_COEF": 30,
        "RAMPUP_ITRS": 1000,
        "TOPK_MATCH": 5,
        "P_THRESH": 0.95,
        "STRONG_TRANSFORMS": (),
    },
    "SE": {"EMA_ALPHA": 0.999, "CONF_THRE": 0.95, "RAMPUP": 300},
    "M3SDA": {"LMDA": 0.5, "N_STEP_F": 4},
    "DAEL": {"WEIGHT_U": 0.5, **_STRONG},
    "CROSSGRAD": {"EPS_F": 1.0, "EPS_D": 1.0, "ALPHA_F": 0.5, "ALPHA_D": 0.5},
    "DDAIG": {
        "G_ARCH": "",
        "LMDA": 0.3,
        "CLAMP": False,
        "CLAMP_MIN": -1.0,
        "CLAMP_MAX": 1.0,
        "WARMUP": 0,
        "ALPHA": 0.5,
    },
    "DAELDG": {"WEIGHT_U": 0.5, **_STRONG},
    "DOMAINMIX": {"TYPE": "crossdomain", "ALPHA": 1.0, "BETA": 1.0},
    "ENTMIN": {"LMDA": 1e-3},
    "MEANTEACHER": {"WEIGHT_U": 1.0, "EMA_ALPHA": 0.999, "RAMPUP": 5},
    "MIXMATCH": {"WEIGHT_U": 100.0, "TEMP": 2.0, "MIXUP_BETA": 0.75, "RAMPUP": 20000},
    "FIXMATCH": {"WEIGHT_U": 1.0, **_STRONG},
}


class _Alias(Loader):
    """Loads a module that already exists, unchanged."""

    def __init__(self, module: ModuleType) -> None:
        self.module, self.spec = module, module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self.module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self.spec  # the import system has set the alias's spec


class DasslFinder(MetaPathFinder):
    """Finds ``dassl`` and ``dassl.*`` among our modules."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        root, _, rest = fullname.partition(".")
        module = _resolve(rest) if root == THEIRS else None
        if module is None:
            return None
        _load_shadowed(rest, module)
        return ModuleSpec(fullname, _Alias(module), is_package=hasattr(module, "__path__"))


def _resolve(rest: str) -> ModuleType | None:
    """Our module for ``dassl.<rest>``, or None if there is none."""
    same_name = re.sub(r"^modeling\b", "networks", rest)
    places = [f"{OURS}.{place}".rstrip(".") for place in _PLACES.get(rest, (same_name,))]
    if not all(_exists(place) for place in places):
        return None
    modules = [importlib.import_module(place) for place in places]
    return modules[0] if len(modules) == 1 else _gathered(f"{THEIRS}.{rest}", modules)


def _load_shadowed(rest: str, package: ModuleType) -> None:
    """Load the modules of ``package`` that share a name with one of its functions, such as ``ops.mixup``.

    The import system sets a submodule as an attribute of its package when it finds it, which would replace the
    function in our package. It looks in ``sys.modules`` first, and then leaves the attribute alone.
    """
    for place in _PLACES:
        parent, _, name = place.rpartition(".")
        if parent == rest and not isinstance(getattr(package, name, package), ModuleType):
            module = _resolve(place)
            if module is not None:
                sys.modules.setdefault(f"{THEIRS}.{place}", module)


def _exists(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # its parent does not exist either
        return False


def _gathered(name: str, modules: Sequence[ModuleType]) -> ModuleType:
    """A module with the names of several modules."""
    gathered = ModuleType(name, f"Names of {', '.join(module.__name__ for module in modules)}.")

    def find(attribute: str) -> Any:
        for module in modules:
            if hasattr(module, attribute):
                return getattr(module, attribute)
        raise AttributeError(f"module '{name}' has no attribute '{attribute}'")

    gathered.__path__ = []  # makes it a package, so that its submodules can be imported
    gathered.__getattr__ = find  # type: ignore[method-assign]
    gathered.__dict__["__all__"] = sorted({n for module in modules for n in vars(module) if not n.startswith("_")})
    return gathered


def enable() -> None:
    """Make ``import dassl`` resolve to this package. Importing this module does so; a second call does nothing.

    Raises:
        UserError: the real Dassl has already been imported.
    """
    if any(isinstance(finder, DasslFinder) for finder in sys.meta_path):
        return
    if THEIRS in sys.modules:
        place = getattr(sys.modules[THEIRS], "__file__", None)
        raise UserError(f"dassl has already been imported from {place}; import dassl_lite.compat before it")
    installed = importlib.util.find_spec(THEIRS)
    if installed is not None:
        logger.warning(f"dassl is installed at {installed.origin}, but dassl_lite replaces it in this process")
    sys.meta_path.insert(0, DasslFinder())
    Registry.others_win = True
    for name, keys in _KEYS.items():
        cfg_default.TRAINER[name] = CN(keys)


def disable() -> None:
    """Undo ``enable``. Code that has already imported something from ``dassl`` keeps it."""
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, DasslFinder)]
    for name in [name for name in sys.modules if name.partition(".")[0] == THEIRS]:
        del sys.modules[name]
    Registry.others_win = False
    for name in _KEYS:
        cfg_default.TRAINER.pop(name, None)


enable()
