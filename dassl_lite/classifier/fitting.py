"""Turn the parameters of `FewShotClassifier` into the config of a run, and run it to get a trainer."""

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

ZERO_SHOT = "ZeroshotCLIP"  # the method used without a fit
DESCRIPTIONS = "descriptions.json"  # in the run's folder, for descriptions passed as a dict

# Options for places on this machine.
_PLACES = {f"DATASET.{key}" for key, value in LOCAL.items() if value == ""} | {
    "DATASET.FEATURES.DIR",
    "MODEL.INIT_WEIGHTS",
    "OUTPUT_DIR",
    "RESUME",
}

Parameters = Mapping[str, Any]  # FewShotClassifier's, by name, as given


def trained(params: Parameters, flags: Mapping[str, Any], training: Training | None) -> tuple[Any, float | None]:
    """A trainer, trained as by tools/train.py, and the zero-shot accuracy before training.

    Args:
        flags: config keys for the training data.
        training: the images, if they are not on disk in a form that the engine reads.

    Raises:
        UserError: the parameters or the images are invalid.
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
    """Whether both sets of parameters give the same zero-shot CLIP."""
    return all(is_same(one[name], other[name]) for name in _WITHOUT_FIT)


def untrained(params: Parameters, names: list[str]) -> Any:
    """A zero-shot CLIP trainer for classes with these names."""
    with _run_folder() as folder, training_on(Training(ClassList(tuple(names)))):
        flags = {"DATASET.NAME": GIVEN, "DATASET.NUM_SHOTS": -1, "OUTPUT_DIR": folder}
        trainer = run.seeded(_config(params, flags, Path(folder), ZERO_SHOT))
    trainer.set_model_mode("eval")
    return trainer


def portable(params: Parameters, content: Content) -> dict[str, Any]:
    """The parameters as plain values for another machine: without this machine's paths, except a backbone file.

    Args:
        content: the classifier's content; provides the sentences of a descriptions file.
    """
    values = {**plain_deep(params), "method": content.method}  # zero-shot CLIP if there was no fit
    if isinstance(values["descriptions"], str):
        values["descriptions"] = dict(zip(content.classes.names, content.descriptions, strict=False)) or None
    if isinstance(values["options"], dict):
        values["options"] = {
            key: value
            for key, value in values["options"].items()
            if str(key) not in _PLACES
            and not (isinstance(value, str) and (os.path.isabs(value) or os.path.exists(value)))
        }
    return {name: value for name, value in values.items() if is_plain(value)}


def uses_accelerator(device: str | None) -> bool:
    """Whether the parameter ``device`` allows an accelerator: it asks for one, or is None.

    Raises:
        UserError: this machine has no such device.
    """
    if device is None:
        return True
    kind, present = str(device).partition(":")[0], accelerator()
    if kind not in ("cpu", present):
        raise UserError(f"device {shown(device)} is not on this machine; it has cpu{f', {present}' if present else ''}")
    return kind != "cpu"


def _config(params: Parameters, flags: Mapping[str, Any], folder: Path, method: str = "") -> CfgNode:
    """The config of a run with these parameters and config keys.

    Args:
        folder: the run's folder, to which descriptions passed as a dict are written.
        method: replaces the parameters' method; that method's own options are then dropped.
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
    """The parameter ``options`` by dotted config key; ``only_shared`` drops those of a method."""
    if not isinstance(options or {}, Mapping):
        raise UserError(f"options is {shown(options)}; it is a dict from config key to value")
    values: dict[str, Any] = {}
    known = method_keys(method)
    for key, value in (options or {}).items():
        if "." in str(key):
            values |= {str(key): value} if not only_shared or not str(key).startswith("TRAINER.") else {}
        elif only_shared:
            continue
        elif key in known:
            values[f"TRAINER.{node}.{key}"] = value
        else:
            raise unknown(f"option of {method}", key, known, hint='Others are dotted, such as "OPTIM.LR".')
    return values


def _descriptions_file(descriptions: Any, folder: Path) -> str | None:
    if not isinstance(descriptions, Mapping):
        return None if descriptions is None else os.fspath(descriptions)
    path = folder / DESCRIPTIONS
    write_json({str(name): plain_list(sentences) for name, sentences in descriptions.items()}, path)
    return str(path)


@contextmanager
def _run_folder() -> Iterator[str]:
    """A temporary folder for a run; errors do not mention the descriptions file in it."""
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
