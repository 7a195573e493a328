"""Evaluating a trained run: on its own dataset, or on others with their classes matched by identity."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from yacs.config import CfgNode

from dassl_lite.config import to_dict
from dassl_lite.engine.build import build_trainer, configs_root, default_recipe, make_config
from dassl_lite.engine.files.results import read_results
from dassl_lite.engine.parallel import distributed
from dassl_lite.utils import UserError, set_random_seed, unknown
from dassl_lite.utils.errors import LackingClassesError, MissingDatasetError
from dassl_lite.utils.safe_load import load_file

# A target: a dataset's yaml or name, or options over the run's own dataset.
Target = str | Mapping[str, Any]
# What belongs to the source's dataset and does not follow to another one.
_OWN_DATASET = ("NAME", "TEMPLATE", "FEWSHOT_FILE", "SUBSAMPLE_CLASSES", "FILE")
_OF_ANOTHER = "; files of another program need --trainer NAME and --backbone NAME"


@dataclass(frozen=True)
class Evaluation:
    """One row of an evaluation's table; metrics in percent, as the evaluator gives them.

    Attributes:
        matched: how many of the classes the run knows; None for a method without one row per class.
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
    seconds: float = 0.0
    missing: str = ""
    status: str = "evaluated"


def stored_config(model_dir: str | Path) -> dict[str, Any]:
    """The config of the run in ``model_dir``, as nested plain values.

    Raises:
        UserError: there is no run, or one that was not written by this package.
    """
    folder = Path(model_dir)
    if not folder.is_dir():
        raise UserError(f"--model-dir {folder} is not a folder{_OF_ANOTHER}")
    results = read_results(folder)
    if results is not None:
        return results["config"]
    for path in sorted(folder.glob("*/model*.pth.tar*")):
        state = load_file(path)
        config = (state.get("meta") or {}).get("config") if isinstance(state, dict) else None
        if config:
            return config
        raise UserError(
            f"{path} does not say how it was trained (another program's files never do); add --trainer NAME, "
            "--backbone NAME and, unless it is the method's default, --config-file YAML"
        )
    raise UserError(
        f"--model-dir {folder} holds no run: neither results.json nor a model's folder of checkpoints{_OF_ANOTHER}"
    )


def config_given(trainer: str, method_file: str = "", backbone: str = "") -> dict[str, Any]:
    """The config, as nested plain values, for a run that does not tell its own, such as one of Dassl's."""
    flags = {"MODEL": {"BACKBONE": {"NAME": backbone}}} if backbone else {}
    return to_dict(make_config(trainer=trainer, method_file=method_file or default_recipe(trainer), flags=flags))


def suite(name: str) -> list[Target]:
    """The targets of a suite in configs/suites; "all" is the field's three together."""
    folder = configs_root() / "suites"
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    if name == "all":
        return [target for part in known if part != "demo" for target in suite(part)]
    if name not in known:
        raise unknown("suite", name, [*known, "all"])
    return yaml.safe_load((folder / f"{name}.yaml").read_text(encoding="utf-8"))


def config_for(
    stored: dict[str, Any], target: Target | None, flags: dict[str, Any], options: Sequence[str] = ()
) -> CfgNode:
    """The stored run's config, on another target if one is given."""
    base = {key: value for key, value in stored.items() if key not in ("OUTPUT_DIR", "RESUME")}
    base["MODEL"] = {**base["MODEL"], "INIT_WEIGHTS": ""}  # the run's own weights take their place
    if "OUTPUT_DIR" not in flags:
        base["TEST"] = {**base["TEST"], "COMPUTE_CMAT": False}  # there is no folder that its file belongs into
    dataset_file = target if isinstance(target, str) else None
    if dataset_file:
        fresh = make_config().DATASET
        base = {**base, "DATASET": {**base["DATASET"], **{key: fresh[key] for key in _OWN_DATASET if key in fresh}}}
    elif target:
        options = [*(str(part) for pair in target.items() for part in pair), *options]  # type: ignore[union-attr]
    return make_config(
        trainer=stored["TRAINER"]["NAME"],
        base=base,
        dataset_file=dataset_file,
        flags=flags,
        options=options,
        allow_new_keys=True,
    )


def evaluate(cfg: CfgNode, model_dir: str | Path, epoch: int | None = None, *, strict_classes: bool = False) -> Any:
    """Build the trainer, load the run, test; returns the trainer, whose ``results`` hold the metrics.

    Of several processes each has its share of the work, and the results.
    """
    distributed.start()
    if cfg.SEED >= 0:
        set_random_seed(cfg.SEED)
    trainer = build_trainer(cfg)
    trainer.strict_classes = strict_classes
    if trainer.has_state():
        load_run(trainer, model_dir, epoch)
    trainer.evaluate_split()
    return trainer


def load_run(trainer: Any, model_dir: str | Path, epoch: int | None = None) -> None:
    """``load_model``; that of a paper's trainer, which takes the best epoch or none, may not find its file.

    Raises:
        UserError: there is no such file, or it does not fit.
    """
    try:
        trainer.load_model(model_dir, epoch=epoch)
    except FileNotFoundError as error:
        hint = "" if epoch is not None else "; --load-epoch N takes that of epoch N"
        raise UserError(f"{error}{hint}") from error


def evaluate_row(
    cfg: CfgNode, model_dir: str | Path, epoch: int | None = None, *, strict_classes: bool = False, strict: bool = False
) -> Evaluation:
    """One row of the table.

    A dataset that is not on this machine, or with classes that the run cannot do without, gives a row that says so,
    unless ``strict`` (or ``strict_classes``).
    """
    subset = cfg.DATASET.SUBSAMPLE_CLASSES
    name = cfg.DATASET.NAME + (f" ({subset})" if subset != "all" else "")
    start = time.perf_counter()
    try:
        trainer = evaluate(cfg, model_dir, epoch, strict_classes=strict_classes)
    except (MissingDatasetError, LackingClassesError) as error:
        lacks_classes = isinstance(error, LackingClassesError)
        if strict or (lacks_classes and strict_classes):
            raise
        return Evaluation(name, missing=str(error), status="lacks classes" if lacks_classes else "not there")
    split = cfg.TEST.SPLIT
    data, metrics = trainer.dm.dataset, trainer.results[split]
    return Evaluation(
        dataset=name,
        images=len(data.val if split == "val" else data.test),
        classes=trainer.num_classes,
        matched=trainer.class_match.matched if trainer.class_match else None,
        accuracy=metrics.get("accuracy", float("nan")),
        macro_f1=metrics.get("macro_f1", float("nan")),
        ece=metrics.get("ece", float("nan")),
        seconds=time.perf_counter() - start,
    )
