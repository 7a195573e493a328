"""A fitted classifier as plain values and tensors, and back: for saving, pickling, and changing classes.

The tensors are the head: the trainer's registered models without its backbone. A classifier is rebuilt from them the
way a run is evaluated: a trainer is built on the classes alone and loads them as a checkpoint. So a classifier can
change to any classes that its method can load a checkpoint onto.
"""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor
from yacs.config import CfgNode

from dassl_lite.classifier.images import GIVEN, Training, training_on
from dassl_lite.config import to_dict
from dassl_lite.data import DATASET_REGISTRY, build_dataset
from dassl_lite.data.classes import ClassList
from dassl_lite.data.descriptions import read_descriptions
from dassl_lite.data.feature_files import FeatureDataset
from dassl_lite.engine.build import TRAINER_REGISTRY, build_trainer, full_config, make_config
from dassl_lite.engine.commands.arguments import nested
from dassl_lite.engine.commands.evaluate import config_for, stored_config
from dassl_lite.engine.contract.base import load_model_of
from dassl_lite.engine.files import checkpoint
from dassl_lite.engine.files.checkpoint import CheckpointStore
from dassl_lite.engine.files.results import is_config, read_results
from dassl_lite.engine.plugins import load_plugins
from dassl_lite.utils import torchtools
from dassl_lite.utils.errors import UserError, refusing_misfits
from dassl_lite.utils.files import write_json
from dassl_lite.utils.logger import get_logger

logger = get_logger(__name__)

# Config keys for places on this machine or for how the run was made; they don't define the classifier.
LOCAL = {
    **dict.fromkeys(("ROOT", "FILE", "FEWSHOT_FILE", "DESCRIPTIONS"), ""),
    **{"TEST_ONLY": False, "SPLITS_IN": "auto"},
}


MULTI_LABEL = "multi_label"  # in `Content.meta`: images may have several classes


@dataclass
class Content:
    """A fitted classifier, without its backbone.

    Attributes:
        config: the config of its run as nested plain values, without this machine's paths.
        classes: names and ids of the classes, in label order.
        template: prompt template of the class names.
        ensemble_templates: ensemble templates of the dataset that the classes come from.
        descriptions: sentences that describe each class; empty if there are none.
        meta: the checkpoint's metadata other than config and classes.
        tensors: tensors by model and name, such as ``prompt_learner/text_feature_residuals``.
        dataset: registered name of the dataset that it was fitted on.
    """

    config: dict[str, Any]
    classes: ClassList
    template: str
    ensemble_templates: tuple[str, ...] = ()
    descriptions: list[list[str]] = field(default_factory=list)
    meta: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    dataset: str = ""

    @property
    def method(self) -> str:
        return str(self.config["TRAINER"]["NAME"])

    def plain(self) -> dict[str, Any]:
        """Everything but the tensors, for JSON."""
        return {
            "method": self.method,
            "backbone": self.meta.get("backbone", self.config["MODEL"]["BACKBONE"]["NAME"]),
            "backbone_digest": self.meta.get("backbone_digest", ""),
            "dataset": self.dataset,
            "class_names": list(self.classes.names),
            "class_ids": list(self.classes.ids),
            "template": self.template,
            "ensemble_templates": list(self.ensemble_templates),
            "descriptions": self.descriptions,
            "meta": self.meta,
            "config": self.config,
        }

    @classmethod
    def of_plain(cls, values: Mapping[str, Any], tensors: dict[str, Tensor]) -> Content:
        """The inverse of `plain`.

        Raises:
            UserError: the values are not what `plain` returns.
        """
        names, ids = values.get("class_names"), values.get("class_ids")
        lists = (names, ids, values.get("ensemble_templates"), values.get("descriptions"))
        if not all(isinstance(part, list) for part in lists) or not names or len(names) != len(ids):  # type: ignore[arg-type]
            raise UserError("it does not list its classes")
        sentences = [text for part in values["descriptions"] for text in (part if isinstance(part, list) else [None])]
        texts = [*names, *ids, *values["ensemble_templates"], *sentences, values.get("template")]  # type: ignore[misc]
        if not all(isinstance(text, str) for text in texts) or len(values["descriptions"]) not in (0, len(names)):
            raise UserError("its classes, templates and descriptions are not text")
        if not is_config(values.get("config")) or not isinstance(values.get("meta"), dict):
            raise UserError("it does not hold the config of a run")
        return cls(
            config=values["config"],
            classes=ClassList(tuple(names), tuple(ids)),  # type: ignore[arg-type]
            template=values["template"],
            ensemble_templates=tuple(values["ensemble_templates"]),
            descriptions=values["descriptions"],
            meta=values["meta"],
            tensors=tensors,
            dataset=str(values.get("dataset", "")),
        )

    def with_classes(self, classes: ClassList) -> Content:
        """The same content, to be rebuilt for other classes.

        Raises:
            UserError: there are descriptions, but one of the classes has none.
        """
        sentences = dict(zip(self.classes.names, self.descriptions, strict=True)) if self.descriptions else {}
        if sentences and (missing := [name for name in classes.names if name not in sentences]):
            raise UserError(f"the classes have descriptions, but '{missing[0]}' has none; fit again with one for it")
        return replace(
            self, classes=classes, descriptions=[sentences[name] for name in classes.names] if sentences else []
        )


def content_of(trainer: Any, source: Content | None = None) -> Content:
    """The content of a built trainer.

    Args:
        source: content that the trainer was rebuilt from, if any; provides the run's config and dataset.
    """
    data = trainer.dm.dataset
    meta = dict(trainer.checkpoint_meta())
    stored = meta.pop("config", None) or to_dict(trainer.cfg)
    config = source.config if source else _without_paths(stored)
    if getattr(trainer, "is_multi_label", False):
        meta[MULTI_LABEL] = True
    if meta.get("backbone"):  # a feature file names its backbone, which replaces the config's
        if not source:
            config["MODEL"]["BACKBONE"]["NAME"] = meta["backbone"]
    elif isinstance(data, FeatureDataset):
        raise UserError("the feature file does not name its backbone, so the classifier cannot be used elsewhere")
    tensors = {
        f"{name}/{key}": value.detach().cpu().clone().contiguous()
        for name in trainer.get_model_names()
        for key, value in torchtools.unwrap(trainer._models[name]).state_dict().items()
        if not checkpoint.is_recomputed(key)
    }
    classes = trainer.target_classes() or ClassList(tuple(data.classnames))
    for known in ("classnames", "classids", "dataset", "version", "template"):
        meta.pop(known, None)
    return Content(
        config=config,
        classes=classes,
        template=getattr(trainer, "template", data.template),
        ensemble_templates=tuple(getattr(data, "ensemble_templates", ())),
        descriptions=trainer.descriptions if "descriptions" in vars(trainer) else [],
        meta=meta,
        tensors=tensors,
        dataset=source.dataset if source else trainer.cfg.DATASET.NAME,
    )


def _without_paths(given: Mapping[str, Any]) -> dict[str, Any]:
    """A config without this machine's paths; the backbone's name stays, even if it is a file."""
    config = copy.deepcopy(dict(given))
    config["DATASET"] |= {**LOCAL, "NAME": GIVEN, "FEATURES": {**config["DATASET"]["FEATURES"], "DIR": ""}}
    config["MODEL"]["INIT_WEIGHTS"] = ""
    config |= {"OUTPUT_DIR": "./output", "RESUME": ""}
    defaults = to_dict(full_config())["TRAINER"]
    for node, keys in config["TRAINER"].items():
        if isinstance(keys, dict):
            files = [key for key, value in keys.items() if isinstance(value, str) and os.path.isabs(value)]
            files += [key for key, value in keys.items() if isinstance(value, str) and os.path.isfile(value)]
            keys |= {key: defaults.get(node, {}).get(key, "") for key in files}
    return config


def in_float32(content: Content) -> Content:
    """The same content, to be rebuilt in float32."""
    config, kind = copy.deepcopy(content.config), TRAINER_REGISTRY.get(content.method)
    node = config["TRAINER"].get(kind.node_name() if hasattr(kind, "node_name") else content.method, {})
    if "PREC" in node:
        node["PREC"] = "fp32"
    return replace(content, config=config)


def rebuilt(
    content: Content, classes: ClassList | None = None, *, use_accelerator: bool, verbose: bool, where: str
) -> Any:
    """A trainer, ready to predict, that has classes but no images.

    Args:
        classes: classes to use instead of the content's; rows of classes that it knows are picked by id or name.
        where: where the content comes from, for messages.

    Raises:
        UserError: the method, the backbone or the classes do not fit.
    """
    load_plugins()
    TRAINER_REGISTRY.get(content.method)  # raises if it is not installed
    target = content.with_classes(classes or content.classes)
    given = Training(
        target.classes,
        ensemble_templates=target.ensemble_templates,
        template=target.template,
        drawn=True,  # warnings about the backbone were given when it was chosen
        multi_label=bool(content.meta.get(MULTI_LABEL)),
    )
    fitting = refusing_misfits(f"{where} does not fit")
    with tempfile.TemporaryDirectory(prefix="dassl-lite-") as folder, training_on(given), fitting:
        trainer = build_trainer(_config(target, folder, use_accelerator, verbose))
        _load(trainer, content, Path(folder), where)
    refuse_transductive(trainer)
    trainer.set_model_mode("eval")
    return trainer


def refuse_transductive(trainer: Any) -> None:
    """Raise a UserError for a method whose prediction for an image depends on the other images."""
    if getattr(trainer, "is_transductive", False):
        raise UserError(
            f"{trainer.cfg.TRAINER.NAME} classifies all test images together (transductive), and a classifier answers "
            "each by itself: name another method, or leave TEST.TRANSDUCTIVE out"
        )


def _config(content: Content, folder: str, use_accelerator: bool, verbose: bool) -> CfgNode:
    flags: dict[str, Any] = {
        **{"DATASET.NAME": GIVEN, "DATASET.NUM_SHOTS": -1, "DATASET.TEMPLATE": content.template},
        **{"USE_CUDA": use_accelerator, "VERBOSE": verbose, "OUTPUT_DIR": folder},
    }
    if content.descriptions:
        path = Path(folder) / "descriptions.json"
        write_json(dict(zip(content.classes.names, content.descriptions, strict=True)), path)
        flags["DATASET.DESCRIPTIONS"] = str(path)
    return make_config(trainer=content.method, base=content.config, flags=nested(flags), source="the classifier")


def _load(trainer: Any, content: Content, folder: Path, where: str) -> None:
    """Load the tensors as a checkpoint with the content's classes."""
    meta = {**content.meta, "classnames": list(content.classes.names), "classids": list(content.classes.ids)}
    by_model: dict[str, dict[str, Tensor]] = {}
    for key, tensor in content.tensors.items():
        if tensor.is_floating_point() and tensor.isnan().any():
            raise UserError(f"{where} has NaN among its weights ({key}), so it answers nothing: train it again")
        model, _, name = key.partition("/")
        by_model.setdefault(model, {})[name] = tensor
    try:
        checkpoint.check_backbone(meta, trainer.checkpoint_meta(), Path(where))
        if not trainer.has_state():
            if by_model:
                raise UserError(f"{where} holds weights, but {content.method} has none")
            return
        lacking = sorted(set(trainer.get_model_names()) - set(by_model))
        if lacking or set(by_model) - set(trainer.get_model_names()):
            raise UserError(
                f"{where} holds weights of {', '.join(sorted(by_model)) or 'nothing'}, not of a whole model"
            )
        for name, weights in by_model.items():
            CheckpointStore(folder).save(name, {"state_dict": weights, "epoch": 1, "meta": meta})
        load_model_of(trainer, folder, 1)
    except UserError as error:
        text = str(error)
        for name in by_model:
            text = text.replace(str(folder / name / "model.pth.tar-1"), where)
        raise UserError(text) from None


# ---- the folder of a run --------------------------------------------------------------------------------------------


def content_of_run(folder: Path, epoch: int | None = None) -> Content:
    """The content of a run of tools/train.py.

    Args:
        epoch: epoch of the checkpoint to load; None for the best one if there is one, else the last.

    Raises:
        UserError: the folder holds no run.
    """
    names = sorted({path.parent.name for path in folder.glob("*/model*.pth.tar*")})
    if not names and read_results(folder) is None:
        raise UserError(f"'{folder}' holds neither a classifier nor a run of tools/train.py")
    config = stored_config(folder)
    states = {name: torchtools.load_run_checkpoint(CheckpointStore(folder).find(name, epoch)) for name in names}
    meta = dict(next(iter(states.values()))["meta"]) if states else {}
    kind = DATASET_REGISTRY.get(config["DATASET"]["NAME"]) if config["DATASET"]["NAME"] in DATASET_REGISTRY else None
    classes = ClassList(tuple(meta.pop("classnames", ())), tuple(meta.pop("classids", ())))
    template = meta.pop("template", "") or config["DATASET"].get("TEMPLATE", "") or getattr(kind, "template", "")
    if not len(classes):  # a method without weights: its run does not store them
        data = build_dataset(config_for(config, None, {"VERBOSE": False}))
        classes, template = data.classes, data.template
    weights = {
        f"{name}/{key}": value
        for name, state in states.items()
        for key, value in torchtools.strip_module_prefix(state["state_dict"]).items()
        if not checkpoint.is_recomputed(key)
    }
    meta.pop("config", None)
    if _is_multi_label(folder, meta, config):
        meta[MULTI_LABEL] = True
    content = Content(
        config=_without_paths(config),
        classes=classes,
        template=template,
        ensemble_templates=tuple(getattr(kind, "ensemble_templates", ())),
        descriptions=_descriptions(config, classes),
        meta=meta,
        tensors=weights,
        dataset=config["DATASET"]["NAME"],
    )
    if meta.get("backbone"):
        content.config["MODEL"]["BACKBONE"]["NAME"] = meta["backbone"]
    return content


def pictures_of_run(folder: Path) -> list[str]:
    """The files of a run's test images; empty if it used features, or if its dataset is not on this machine."""
    try:
        stored = stored_config(folder)
        stored["DATASET"] |= {"NUM_SHOTS": -1, "FEWSHOT_FILE": ""}  # no training images are drawn
        data = build_dataset(config_for(stored, None, {"VERBOSE": False}))
    except UserError as error:
        logger.warning(f"The run's test images are not found: {error}")
        return []
    return [] if isinstance(data, FeatureDataset) else [item.impath for item in data.test or ()]


def _is_multi_label(folder: Path, meta: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    """Whether a run's images may have several classes: according to its results or, before it ends, its loss."""
    metrics = results_of_run(folder).get("metrics")
    entries = list(metrics.values()) if isinstance(metrics, dict) else []
    if entries:
        return any(isinstance(entry, dict) and "mAP" in entry for entry in entries)
    nodes = [node for node in config["TRAINER"].values() if isinstance(node, dict)]
    return meta.get("loss") == "sigmoid" and not any(node.get("LOSS") == "sigmoid" for node in nodes)


def _descriptions(config: Mapping[str, Any], classes: ClassList) -> list[list[str]]:
    path = config["DATASET"].get("DESCRIPTIONS", "")
    return read_descriptions(path, classes) if path and os.path.isfile(path) else []


def results_of_run(folder: Path) -> dict[str, Any]:
    """The results of a run of tools/train.py; empty if it has not finished."""
    return read_results(folder) or {}


def method_keys(trainer: str) -> Sequence[str]:
    """The names of a method's own config keys."""
    load_plugins()
    kind = TRAINER_REGISTRY.get(trainer)
    node = kind.node_name() if hasattr(kind, "node_name") else trainer
    return list(full_config().TRAINER.get(node, {}))
