"""From the parameters of `FewShotClassifier` to the config of a run, and to the trainer that the run leaves."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from dassl_lite.classifier.content import LOCAL, Content, method_keys, refuse_transductive
from dassl_lite.classifier.images import GIVEN, Training, training_on
from dassl_lite.classifier.values import is_plain, is_same, plain, plain_deep, plain_list
from dassl_lite.data.classes import ClassList
from dassl_lite.engine.build import TRAINER_REGISTRY, default_recipe, make_config
from dassl_lite.engine.commands import run
from dassl_lite.engine.commands.arguments import nested
from dassl_lite.engine.methods.feature_trainer import FeatureTrainer
from dassl_lite.utils.devices import accelerator
from dassl_lite.utils.errors import UserError, shown, unknown
from dassl_lite.utils.files import write_json

ZERO_SHOT = "ZeroshotCLIP"  # the method without fit
DESCRIPTIONS = "descriptions.json"  # in the folder of a run: those that a program passes

# Options that say where things lie on this machine.
_PLACES = {f"DATASET.{key}" for key, value in LOCAL.items() if value == ""} | {
    "DATASET.FEATURES.DIR",
    "MODEL.INIT_WEIGHTS",
    "OUTPUT_DIR",
    "RESUME",
}

Parameters = Mapping[str, Any]  # of FewShotClassifier, by name, as they were given


def trained(params: Parameters, flags: Mapping[str, Any], training: Training | None) -> tuple[Any, float | None]:
    """A trainer that has been trained, as a run of tools/train.py; and the zero-shot accuracy before.

    Args:
        flags: config keys that say what it learns from.
        training: the images, where they are not on disk as the engine reads them.

    Raises:
        UserError: whatever is wrong with the parameters or the images.
    """
    with _run_folder() as folder, training_on(training):
        trainer = run.seeded(_config(params, {**flags, "OUTPUT_DIR": folder}, Path(folder)))
        refuse_transductive(trainer)
        if getattr(trainer, "is_multi_label", False):
            raise UserError("images of several classes each: tools/train.py learns them, FewShotClassifier does not")
        trainer.init_writer = lambda log_dir: None  # its folder is temporary
        if isinstance(trainer, FeatureTrainer):
            trainer.features.shows_progress = bool(params["verbose"])
        zero_shot = run.before_training(trainer)
        trainer.train()
    trainer.set_model_mode("eval")
    return trainer, zero_shot


# What zero-shot CLIP depends on.
_WITHOUT_FIT = ("classes", "backbone", "template", "descriptions", "precision", "device", "options")


def same_without_fit(one: Parameters, other: Parameters) -> bool:
    """Whether zero-shot CLIP is the same with these parameters."""
    return all(is_same(one[name], other[name]) for name in _WITHOUT_FIT)


def untrained(params: Parameters, names: list[str]) -> Any:
    """The trainer of zero-shot CLIP on classes of these names."""
    with _run_folder() as folder, training_on(Training(ClassList(tuple(names)))):
        flags = {"DATASET.NAME": GIVEN, "DATASET.NUM_SHOTS": -1, "OUTPUT_DIR": folder}
        trainer = run.seeded(_config(params, flags, Path(folder), ZERO_SHOT))
    trainer.set_model_mode("eval")
    return trainer


def portable(params: Parameters, content: Content) -> dict[str, Any]:
    """The parameters as plain values for another machine: without paths of this one, except a backbone's file.

    Args:
        content: of the classifier, which has the sentences of a file of descriptions.
    """
    found = {**plain_deep(params), "method": content.method}  # which without a fit is zero-shot CLIP
    if isinstance(found["descriptions"], str):
        found["descriptions"] = dict(zip(content.classes.names, content.descriptions, strict=False)) or None
    if isinstance(found["options"], dict):
        found["options"] = {
            key: value
            for key, value in found["options"].items()
            if str(key) not in _PLACES
            and not (isinstance(value, str) and (os.path.isabs(value) or os.path.exists(value)))
        }
    return {name: value for name, value in found.items() if is_plain(value)}


def uses_accelerator(device: str | None) -> bool:
    """Whether the parameter ``device`` asks for an accelerator, or leaves it open.

    Raises:
        UserError: this machine has no such device.
    """
    if device is None:
        return True
    wanted, own = str(device).partition(":")[0], accelerator()
    if wanted not in ("cpu", own):
        raise UserError(f"device {shown(device)} is not on this machine; it has cpu{f', {own}' if own else ''}")
    return wanted != "cpu"


def _config(params: Parameters, flags: Mapping[str, Any], folder: Path, method: str = "") -> CfgNode:
    """The config of a run with these parameters, and with these config keys.

    Args:
        folder: of the run, where descriptions are written that a program passes.
        method: in place of that of the parameters, whose own options it does not take.
    """
    method = method or params["method"]
    kind = TRAINER_REGISTRY.get(method)
    node = kind.node_name() if hasattr(kind, "node_name") else method
    values = {
        "MODEL.BACKBONE.NAME": params["backbone"],
        "DATASET.TEMPLATE": params["template"],
        "DATASET.DESCRIPTIONS": _descriptions_file(params["descriptions"], folder),
        "DATASET.NUM_SHOTS": params["shots"],
        "SEED": params["seed"],
        "OPTIM.MAX_EPOCH": params["epochs"],
        f"TRAINER.{node}.PREC": params["precision"],
        "USE_CUDA": uses_accelerator(params["device"]),
        "VERBOSE": bool(params["verbose"]),
    }
    if options := _options(params["options"], method, node, only_shared=method != params["method"]):
        twice = [key for key in options if values.get(key) is not None and key not in ("SEED", "USE_CUDA", "VERBOSE")]
        if twice:
            raise UserError(f"options has {twice[0]}, which a parameter sets too; give one of them")
        values |= options
    values |= flags
    given = {key: plain(value) for key, value in values.items() if value is not None}
    return make_config(
        trainer=method, method_file=default_recipe(method), flags=nested(given), source="FewShotClassifier"
    )


def _options(options: Any, method: str, node: str, *, only_shared: bool) -> dict[str, Any]:
    """The parameter ``options`` by dotted config key; with ``only_shared`` without those of a method."""
    if not isinstance(options or {}, Mapping):
        raise UserError(f"options is {shown(options)}; it is a dict from config key to value")
    found: dict[str, Any] = {}
    known = method_keys(method)
    for key, value in (options or {}).items():
        if "." in str(key):
            found |= {str(key): value} if not only_shared or not str(key).startswith("TRAINER.") else {}
        elif only_shared:
            continue
        elif key in known:
            found[f"TRAINER.{node}.{key}"] = value
        else:
            raise unknown(f"option of {method}", key, known, hint='Others are dotted, such as "OPTIM.LR".')
    return found


def _descriptions_file(descriptions: Any, folder: Path) -> str | None:
    if not isinstance(descriptions, Mapping):
        return None if descriptions is None else os.fspath(descriptions)
    path = folder / DESCRIPTIONS
    write_json({str(name): plain_list(sentences) for name, sentences in descriptions.items()}, path)
    return str(path)


@contextmanager
def _run_folder() -> Iterator[str]:
    """A folder for a run, which is removed; an error does not name the file of descriptions in it."""
    with tempfile.TemporaryDirectory(prefix="dassl-lite-") as folder:
        try:
            yield folder
        except UserError as error:
            message = str(error).replace(
                f"descriptions '{Path(folder) / DESCRIPTIONS}' (DATASET.DESCRIPTIONS)", "descriptions"
            )
            if message == str(error):
                raise
            raise UserError(message) from None
