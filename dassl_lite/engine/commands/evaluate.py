"""Evaluates a trained run on its own dataset, or on others whose classes are matched by identity."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor
from yacs.config import CfgNode

from dassl_lite.config import get_cfg_default, to_dict
from dassl_lite.data import DATASET_REGISTRY, Datum, FolderDataset
from dassl_lite.engine.build import build_trainer, configs_root, default_recipe, make_config, names_backbone
from dassl_lite.engine.commands.arguments import OWN_DATA, nested
from dassl_lite.engine.contract.base import load_model_of
from dassl_lite.engine.files.results import config_in, is_config, read_results
from dassl_lite.engine.parallel import distributed
from dassl_lite.utils import UserError, set_random_seed, unknown
from dassl_lite.utils.errors import LackingClassesError, MissingDatasetError
from dassl_lite.utils.safe_load import load_file

# What to evaluate on: a dataset yaml by path or name, or dotted config keys that override the run's own dataset.
Target = str | Mapping[str, str]
# Keys of cfg.DATASET that describe the run's own dataset and are reset when evaluating on another one.
_OWN_DATASET = ("NAME", "TEMPLATE", "DESCRIPTIONS", "FEWSHOT_FILE", "SUBSAMPLE_CLASSES", "FILE")
_NEEDS_TRAINER = "; files from other programs need --trainer NAME and --backbone NAME"


@dataclass(frozen=True)
class Evaluation:
    """One row of the table. Metrics are in percent, NaN if not applicable: mAP and micro-F1 are for multi-label data.

    Attributes:
        matched: number of the dataset's classes that the run knows; None for a method without per-class parameters.
        method: label in tables, which marks transductive methods: those that have seen the images, unlabelled, before.
        missing: why the dataset could not be evaluated, or "".
        status: the same in a word or two.
    """

    dataset: str
    images: int = 0
    classes: int = 0
    matched: int | None = None
    accuracy: float = float("nan")
    macro_f1: float = float("nan")
    ece: float = float("nan")
    mAP: float = float("nan")  # noqa: N815 (its usual spelling)
    micro_f1: float = float("nan")
    seconds: float = 0.0
    method: str = ""
    transductive: bool = False
    missing: str = ""
    status: str = "evaluated"


def stored_config(model_dir: str | Path) -> dict[str, Any]:
    """The config of the run in ``model_dir``, as nested plain values.

    Raises:
        UserError: there is no run, or it does not store its config.
    """
    folder = Path(model_dir)
    if not folder.is_dir():
        raise UserError(f"--model-dir {folder} is not a folder{_NEEDS_TRAINER}")
    results = read_results(folder)
    if results is not None:
        return config_in(results, folder)
    for path in sorted(folder.glob("*/model*.pth.tar*")):
        state = load_file(path)
        meta = state.get("meta") if isinstance(state, dict) else None
        config = meta.get("config") if isinstance(meta, dict) else None
        if isinstance(config, dict) and is_config(config):
            return config
        raise UserError(
            f"{path} does not store its config (files from other programs never do); add --trainer NAME, "
            "--backbone NAME and, unless it used the method's default, --config-file YAML"
        )
    raise UserError(
        f"--model-dir {folder} contains no run: neither results.json nor a folder of checkpoints{_NEEDS_TRAINER}"
    )


def config_given(trainer: str, method_file: str | Path = "", backbone: str = "") -> dict[str, Any]:
    """The config, as nested plain values, for a run that does not store one, such as a run of Dassl."""
    flags = {"MODEL": {"BACKBONE": {"NAME": backbone}}} if backbone else {}
    cfg = make_config(trainer=trainer, method_file=method_file or default_recipe(trainer), flags=flags)
    config = to_dict(cfg)
    if not names_backbone(cfg):  # so that the evaluation's config does not name it either
        del config["MODEL"]["BACKBONE"]["NAME"]
    return config


def suite(name: str) -> list[Target]:
    """The targets of a suite in configs/suites; "all" means every suite except the demo."""
    folder = configs_root() / "suites"
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    if name == "all":
        return [target for part in known if part != "demo" for target in suite(part)]
    if name not in known:
        raise unknown("suite", name, [*known, "all"])
    return yaml.safe_load((folder / f"{name}.yaml").read_text(encoding="utf-8"))


def config_for(
    stored: Mapping[str, Any],
    target: Target | None,
    flags: Mapping[str, Any],
    options: Sequence[str] = (),
    method_file: str | Path | None = None,
    *,
    allow_new_keys: bool = False,
) -> CfgNode:
    """Build the config of an evaluation: the stored run's, with another target if one is given.

    Args:
        stored: the run's config.
        target: what to evaluate on; None for the run's own dataset.
        flags: config keys from the command line, nested.
        options: trailing KEY VALUE pairs.
        method_file: a method yaml to merge over the stored config.
        allow_new_keys: accept undeclared keys in ``options`` and yaml files, as always in the stored config.
    """
    base = {key: value for key, value in stored.items() if key not in ("OUTPUT_DIR", "RESUME")}
    base["MODEL"] = {**base["MODEL"], "INIT_WEIGHTS": ""}  # the run's own weights replace them
    if "OUTPUT_DIR" not in flags:
        base["TEST"] = {**base["TEST"], "COMPUTE_CMAT": False}  # the matrix would be written to a folder
    dataset_file = target if isinstance(target, str) else None
    keys = {} if target is None or isinstance(target, str) else target
    overrides = [*keys.items(), *zip(options[::2], options[1::2], strict=False)]
    names = [flags.get("DATASET", {}).get("NAME"), *(value for key, value in overrides if key == "DATASET.NAME")]
    if dataset_file or "DATASET.NAME" in keys or any(name not in (None, stored["DATASET"]["NAME"]) for name in names):
        base["DATASET"] = {**base["DATASET"], **_reset(base["DATASET"])}
    cfg = make_config(
        trainer=stored["TRAINER"]["NAME"],
        base=base,
        dataset_file=dataset_file,
        method_file=method_file,
        flags=nested(keys, flags),
        options=options,
        allow_new_keys=allow_new_keys,
    )
    return cfg if _own_data_of(cfg.DATASET) == _own_data_of(stored["DATASET"]) else for_testing(cfg)


def for_testing(cfg: CfgNode) -> CfgNode:
    """The config with all of the user's own images used for testing, unless the data are split."""
    if cfg.DATASET.NAME not in OWN_DATA:
        return cfg
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATASET.TEST_ONLY = True
    cfg.freeze()
    return cfg


def _own_data_of(dataset: Mapping[str, Any]) -> Path | None:
    """The path of the user's own data; None for a standard dataset."""
    key = OWN_DATA.get(dataset["NAME"])
    return Path(dataset[key]).expanduser().resolve() if key else None


def _reset(dataset: Mapping[str, Any]) -> dict[str, Any]:
    """Default values for the keys that describe the run's own dataset."""
    fresh = make_config().DATASET
    keys = (*_OWN_DATASET, "ROOT") if _is_own_data(dataset["NAME"]) else _OWN_DATASET
    return {key: fresh[key] for key in keys if key in fresh}


def _is_own_data(name: str) -> bool:
    """Whether DATASET.ROOT is the user's own dataset itself, so that it cannot contain another dataset."""
    kind = DATASET_REGISTRY.get(name) if name in DATASET_REGISTRY else None
    plain = isinstance(kind, type) and issubclass(kind, FolderDataset) and not kind.dataset_dir
    return name in OWN_DATA or plain


def evaluate(
    cfg: CfgNode,
    model_dir: str | Path,
    epoch: int | None = None,
    *,
    strict_classes: bool = False,
    watch: Callable[[Any], None] = lambda trainer: None,
) -> Any:
    """Build the trainer, load the run and test it; returns the trainer, whose ``results`` hold the metrics.

    Several processes share the work, and each gets the results. ``watch`` is called with the trainer before the test.
    """
    distributed.start(cfg.USE_CUDA)
    if cfg.SEED >= 0:
        set_random_seed(cfg.SEED)
    with _with_folder(cfg) as cfg:
        trainer = build_trainer(cfg)
        trainer.strict_classes = strict_classes
        if trainer.has_state():
            load_run(trainer, model_dir, epoch)
        elif epoch is not None:
            raise UserError(f"--load-epoch {epoch} has no effect: {cfg.TRAINER.NAME} has no weights to load")
        watch(trainer)
        trainer.evaluate_split()
    return trainer


@dataclass(frozen=True)
class RunOutputs:
    """A run's outputs for each image of its split.

    Shapes: N images, K classes, D feature width.

    Attributes:
        trainer: the trainer that `evaluate` returned.
        split: "test" or "val".
        logits: (N, K) float32, on the CPU.
        labels: (N,) int64; for multi-label data bool (N, K).
        items: N dataset items; empty if their order is not known.
        features: (N, D), the input of the method's head for each image; None if it has no such head.
    """

    trainer: Any
    split: str
    logits: Tensor
    labels: Tensor
    items: list[Datum]
    features: Tensor | None

    @property
    def metrics(self) -> dict[str, float]:
        """The evaluator's metrics, in percent."""
        return dict(self.trainer.results.get(self.split, {}))


def run_outputs(cfg: CfgNode, model_dir: str | Path) -> RunOutputs:
    """Evaluate a run, as `evaluate` does, and keep its outputs.

    Raises:
        UserError: the run cannot be evaluated, or does not pass logits (K columns) and labels to its evaluator.
    """
    split = cfg.TEST.SPLIT
    outputs: list[tuple[Tensor, Tensor]] = []
    batches: list[tuple[Tensor | None, list[int]]] = []  # features, indices of the images

    def watch(trainer: Any) -> None:
        parse, process = trainer.parse_batch_test, trainer.evaluator.process

        def parsed(batch: Any) -> Any:
            parsed_batch = parse(batch)
            features = parsed_batch[0] if isinstance(parsed_batch, list | tuple) else None
            rows = features if isinstance(features, Tensor) and features.dim() == 2 else None
            index = batch.get("index") if isinstance(batch, dict) else None
            indices = [int(number) for number in index] if index is not None else []
            batches.append((None if rows is None else rows.detach().cpu().float(), indices))
            return parsed_batch

        def processed(output: Tensor, label: Tensor) -> None:
            outputs.append((output.detach().float().cpu(), label.detach().cpu()))
            process(output, label)

        trainer.parse_batch_test, trainer.evaluator.process = parsed, processed

    trainer = evaluate(cfg, model_dir, watch=watch)
    if not outputs or any(logits.dim() != 2 for logits, _ in outputs):
        raise UserError(f"{cfg.TRAINER.NAME} does not pass logits to its evaluator, so no page can be made of it")
    logits, labels = (torch.cat(parts) for parts in zip(*outputs, strict=True))
    # Batches of other splits, used to choose a threshold, may come first.
    images = [index for _, indices in batches for index in indices][-len(logits) :]
    features = [part for part, _ in batches if part is not None]
    rows = torch.cat(features)[-len(logits) :] if features and len({part.shape[1] for part in features}) == 1 else None
    all_items = (trainer.dm.dataset.val if split == "val" else trainer.dm.dataset.test) or []
    known = len(images) == len(logits) and max(images) < len(all_items)
    return RunOutputs(
        trainer=trainer,
        split=split,
        logits=logits,
        labels=labels,
        items=[all_items[index] for index in images] if known else [],
        features=rows if rows is not None and len(rows) == len(logits) else None,
    )


@contextmanager
def _with_folder(cfg: CfgNode) -> Iterator[CfgNode]:
    """``cfg`` with an OUTPUT_DIR that exists, as papers' trainers may write there; temporary unless one is set."""
    if cfg.OUTPUT_DIR != get_cfg_default().OUTPUT_DIR and Path(cfg.OUTPUT_DIR).is_dir():
        yield cfg
        return
    with tempfile.TemporaryDirectory(prefix="dassl-lite-") as folder:
        cfg = cfg.clone()
        cfg.defrost()
        cfg.OUTPUT_DIR = folder
        cfg.freeze()
        yield cfg


def load_run(trainer: Any, model_dir: str | Path, epoch: int | None = None) -> None:
    """Load a run into a trainer.

    Raises:
        UserError: the checkpoint does not exist or does not match.
    """
    try:
        load_model_of(trainer, model_dir, epoch)
    except FileNotFoundError as error:
        raise UserError(f"{error}") from error


def evaluate_row(
    cfg: CfgNode,
    model_dir: str | Path,
    epoch: int | None = None,
    *,
    name: str = "",
    strict_classes: bool = False,
    strict: bool = False,
) -> Evaluation:
    """Evaluate a run and return its row of the table.

    Args:
        cfg: the evaluation's config.
        model_dir: the run's folder.
        epoch: checkpoint epoch to load; None for the best, else the last.
        name: the row's name; by default the dataset's.
        strict_classes: raise an error for a class that the run does not know.
        strict: if the dataset is not on this machine or has classes that the run needs but does not know, raise an
            error instead of returning a row that says so.
    """
    subset = cfg.DATASET.SUBSAMPLE_CLASSES
    name = (name or cfg.DATASET.NAME) + (f" ({subset})" if subset != "all" else "")
    start = time.perf_counter()
    try:
        trainer = evaluate(cfg, model_dir, epoch, strict_classes=strict_classes)
    except (MissingDatasetError, LackingClassesError) as error:
        is_lacking = isinstance(error, LackingClassesError)
        if strict or (is_lacking and strict_classes):
            raise
        return Evaluation(name, missing=str(error), status="lacks classes" if is_lacking else "not found")
    split = cfg.TEST.SPLIT
    data, metrics = trainer.dm.dataset, trainer.results[split]
    return Evaluation(
        dataset=name,
        images=len(data.val if split == "val" else data.test),
        classes=trainer.num_classes,
        matched=trainer.class_match.matched if trainer.class_match else None,
        **{name: metrics.get(name, float("nan")) for name in ("accuracy", "macro_f1", "ece", "mAP", "micro_f1")},
        seconds=time.perf_counter() - start,
        method=getattr(trainer, "method_label", cfg.TRAINER.NAME),
        transductive=getattr(trainer, "is_transductive", False),
    )
