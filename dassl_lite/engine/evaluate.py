"""Evaluating a trained run: on its own dataset, or on others with their classes matched by identity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from dassl_lite.engine.build import build_trainer, make_config
from dassl_lite.engine.results import read_results
from dassl_lite.utils import UserError, set_random_seed
from dassl_lite.utils.safe_load import load_file


@dataclass(frozen=True)
class Evaluation:
    """One row of an evaluation's table; metrics in percent, as the evaluator gives them."""

    dataset: str
    images: int
    classes: int
    accuracy: float
    macro_f1: float
    seconds: float


def stored_config(model_dir: str | Path) -> dict[str, Any]:
    """The config of the run in ``model_dir``, as nested plain values.

    Raises:
        UserError: there is no run, or one that was not written by this package.
    """
    folder = Path(model_dir)
    if not folder.is_dir():
        raise UserError(f"--model-dir {folder} is not a folder")
    results = read_results(folder)
    if results is not None:
        return results["config"]
    for path in sorted(folder.glob("*/model*.pth.tar*")):
        state = load_file(path)
        config = (state.get("meta") or {}).get("config") if isinstance(state, dict) else None
        if config:
            return config
        raise UserError(
            f"{path} does not say how it was trained; evaluate it with train.py --eval-only --trainer NAME "
            f"--config-file YAML --dataset-config-file YAML --model-dir {folder}"
        )
    raise UserError(f"--model-dir {folder} holds no run: neither results.json nor a model's folder of checkpoints")


def config_for(
    stored: dict[str, Any], dataset_file: str | Path | None, flags: dict[str, Any], options: Sequence[str]
) -> CfgNode:
    """The stored run's config, on another dataset if one is given."""
    base = {key: value for key, value in stored.items() if key not in ("OUTPUT_DIR", "RESUME")}
    if dataset_file:
        own = make_config().DATASET  # what belongs to the source's dataset does not follow to another one
        base = {**base, "DATASET": {**base["DATASET"], "NAME": "", "TEMPLATE": own.TEMPLATE, "FEWSHOT_FILE": ""}}
    return make_config(
        trainer=stored["TRAINER"]["NAME"],
        base=base,
        dataset_file=dataset_file,
        flags=flags,
        options=options,
        allow_new_keys=True,
    )


def evaluate(cfg: CfgNode, model_dir: str | Path, epoch: int | None = None, *, strict_classes: bool = False) -> Any:
    """Build the trainer, load the run, test; returns the trainer, whose ``results`` hold the metrics."""
    if cfg.SEED >= 0:
        set_random_seed(cfg.SEED)
    trainer = build_trainer(cfg)
    trainer.strict_classes = strict_classes
    if trainer.has_state():
        trainer.load_model(model_dir, epoch=epoch)
    trainer.test()
    return trainer


def row_of(trainer: Any) -> Evaluation:
    """What the table says of one evaluation."""
    split = trainer.cfg.TEST.SPLIT
    metrics = trainer.results[split]
    data = trainer.dm.dataset
    return Evaluation(
        dataset=trainer.cfg.DATASET.NAME,
        images=len(data.val if split == "val" else data.test),
        classes=trainer.num_classes,
        accuracy=metrics["accuracy"],
        macro_f1=metrics["macro_f1"],
        seconds=sum(trainer.seconds.values()),
    )


def as_dict(row: Evaluation) -> dict[str, Any]:
    """For JSON."""
    return asdict(row)
