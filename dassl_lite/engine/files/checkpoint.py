"""A run's checkpoints: where they are stored, which one to load, and what resuming needs besides weights.

Layout (the reference's): ``<output>/<model>/model.pth.tar-<epoch>``, ``model-best.pth.tar`` and a text file
``checkpoint`` that names the newest one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from yacs.config import CfgNode

from dassl_lite.engine.parallel import distributed
from dassl_lite.utils import torchtools
from dassl_lite.utils.errors import MissingCheckpointError, UserError, shown

BEST = "model-best.pth.tar"
_NUMBERED = re.compile(r"model\.pth\.tar-(\d+)$")
_ROLLING = ".rolling"  # text file with the epoch of a checkpoint kept only for resuming
_MAX_EPOCHS, _MAX_SECONDS = 10**9, 10**10  # larger values in a checkpoint are implausible
# Embeddings of the class names, which a prompt learner computes for the current classes.
_RECOMPUTED = ("token_prefix", "token_suffix")


class CheckpointStore:
    """The checkpoints in a run's folder, one sub-folder per registered model.

    Args:
        directory: the run's folder.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)

    def epochs(self, name: str) -> list[int]:
        """Epochs of a model's numbered checkpoints, in ascending order."""
        folder = self.directory / name
        if not folder.is_dir():
            return []
        return sorted(int(match[1]) for path in folder.iterdir() if (match := _NUMBERED.match(path.name)))

    def newest_common_epoch(self, names: Iterable[str]) -> int | None:
        """The newest epoch for which every model has a checkpoint, even if the run was killed while saving."""
        saved = [set(self.epochs(name)) for name in names]
        common = set.intersection(*saved) if saved else set()
        return max(common) if common else None

    def config(self) -> dict[str, Any]:
        """The config stored in one of the checkpoints, as nested plain values; {} if there is none."""
        for path in sorted(self.directory.glob("*/model*.pth.tar*"))[:1]:
            config = torchtools.load_run_checkpoint(str(path))["meta"].get("config")
            return config if isinstance(config, dict) else {}
        return {}

    def find(self, name: str, epoch: int | None = None) -> Path:
        """Find a model's checkpoint file: that of ``epoch``, else the best, else the last.

        Raises:
            MissingCheckpointError: there is no such file; the message lists the available epochs.
        """
        folder, saved = self.directory / name, self.epochs(name)
        if epoch is not None:
            path = folder / f"model.pth.tar-{epoch}"
        elif (folder / BEST).is_file() or not saved:
            path = folder / BEST
        else:
            path = folder / f"model.pth.tar-{saved[-1]}"
        if not path.is_file():
            content = f"epochs there: {', '.join(map(str, saved))}" if saved else "the folder holds no checkpoint"
            raise MissingCheckpointError(
                f"no checkpoint at {path}; {content if folder.is_dir() else f'there is no folder {folder}'}"
            )
        return path

    def save(self, name: str, state: Mapping[str, Any], *, is_best: bool = False, model_name: str = "") -> None:
        """Write a model's checkpoint atomically.

        Args:
            state: ``state_dict``, ``epoch`` and any other content of the file.
            is_best: also keep a copy as the best.
            model_name: file name to use instead of ``model.pth.tar-<epoch>``.

        Raises:
            UserError: the file cannot be written.
        """
        folder = self.directory / name
        try:
            torchtools.save_checkpoint(state, str(folder), is_best=is_best, model_name=model_name)
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"cannot write a checkpoint to {folder} ({_write_failure(error)}); earlier checkpoints are intact. "
                "Free some space there and resume with --resume"
            ) from error

    def mark_rolling(self, names: Iterable[str], epoch: int) -> None:
        """Mark the checkpoint of ``epoch`` as replaceable by a newer one, and delete the one marked before."""
        names = list(names)
        self.drop_rolling(names, keep=epoch)
        for name in names:
            (self.directory / name / _ROLLING).write_text(str(epoch), encoding="utf-8")

    def drop_rolling(self, names: Iterable[str], keep: int | None = None) -> None:
        """Delete checkpoints kept only for resuming, now that there is a newer one."""
        for name in names:
            marker = self.directory / name / _ROLLING
            if marker.is_file():
                epoch = marker.read_text(encoding="utf-8").strip()
                if epoch.isdigit() and int(epoch) != keep:
                    (marker.parent / f"model.pth.tar-{epoch}").unlink(missing_ok=True)
                marker.unlink()


def is_recomputed(key: str) -> bool:
    """Whether a state-dict entry is recomputed from the current classes and therefore never loaded."""
    return key.rpartition(".")[2] in _RECOMPUTED


def _write_failure(error: OSError | RuntimeError) -> str:
    """A short reason why writing failed; an error that is not about the disk is re-raised."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    text = str(error).splitlines()[0]
    if "unexpected pos" not in text and "write" not in text.lower():  # torch's wording for a full disk
        raise error
    return f"the disk may be full: {text}"


def check_origin(meta: Mapping[str, Any], own: Mapping[str, Any], path: Path) -> None:
    """Refuse a checkpoint of another method or backbone; accept one that names neither, such as the reference's.

    Args:
        meta: the checkpoint's ``meta``.
        own: this run's ``meta``.

    Raises:
        UserError: they differ; the message names both.
    """
    if meta.get("trainer") not in (None, own["trainer"]):
        raise UserError(
            f"{path} was saved with trainer '{meta['trainer']}', but this run has trainer '{own['trainer']}'"
        )
    check_backbone(meta, own, path)


def check_backbone(meta: Mapping[str, Any], own: Mapping[str, Any], path: Path) -> None:
    """Refuse a checkpoint of another backbone, or of the same one with other weights, if both sides name theirs.

    Raises:
        UserError: they differ; the message names both.
    """
    if meta.get("backbone") is None or own.get("backbone") is None:
        return
    # Digests are of the weights in the run's precision, so they are only comparable within one precision.
    key = "backbone_digest" if meta.get("precision") == own.get("precision") else "backbone"
    if meta[key] != own[key]:
        weights = "" if meta["backbone"] != own["backbone"] else " with other weights"
        raise UserError(
            f"{path} was saved with backbone '{meta['backbone']}', but this run has backbone "
            f"'{own['backbone']}'{weights}"
        )


def load_weights(model: nn.Module, weights: Mapping[str, torch.Tensor], path: Path) -> None:
    """Load ``weights`` into ``model``; names and shapes must match, except for recomputed entries.

    Raises:
        UserError: names or shapes differ.
    """
    current = torchtools.unwrap(model).state_dict()
    recomputed = {key: value for key, value in current.items() if is_recomputed(key)}
    stored = {key: value for key, value in weights.items() if not is_recomputed(key)}
    torchtools.load_weights(model, {**stored, **recomputed}, path)


def run_state(
    best_result: float, history: list[dict[str, Any]], results: Mapping[str, dict[str, Any]], scaler: Any = None
) -> dict[str, Any]:
    """State needed to resume besides models and optimisers, as tensors and plain values. Every process must call it.

    Args:
        results: metrics by split, from the last evaluation.
        scaler: the trainer's gradient scaler, if any; a disabled one has no state.
    """
    state = {"best_result": best_result, "history": list(history), "results": dict(results)}
    state |= {"random_states": distributed.random_states_of_all()}
    return {**state, "scaler": scaler.state_dict()} if isinstance(scaler, torch.amp.GradScaler) else state


def restore(path: Path, state: Mapping[str, Any], model: nn.Module, optim: Any, sched: Any) -> None:
    """Restore weights, optimiser and schedule from a checkpoint, so that training continues as if never interrupted."""
    load_weights(model, state["state_dict"], path)
    for what, part in (("optimizer", optim), ("scheduler", sched)):
        if part is not None:
            torchtools.restore_part(part, what, state, path)


def restore_run_state(
    state: Mapping[str, Any], scaler: Any = None
) -> tuple[float, list[dict[str, Any]], dict[str, dict[str, Any]]]:
    """Restore random states and the gradient scaler; returns the best result, the history and the results so far."""
    saved = state.get("run_state") or {}
    if "random_states" in saved:
        distributed.restore_random_states_of_all(saved["random_states"])
    if isinstance(scaler, torch.amp.GradScaler) and saved.get("scaler"):
        scaler.load_state_dict(saved["scaler"])
    best_result, history = saved.get("best_result", float("-inf")), list(saved.get("history", []))
    return best_result, history, dict(saved.get("results", {}))


def progress(state: Mapping[str, Any], path: Path) -> tuple[int, dict[str, float]]:
    """The number of finished epochs, and the wall time of each phase so far in seconds.

    Raises:
        UserError: a number is implausible.
    """
    epoch, seconds = int(state["epoch"]), dict(state.get("seconds") or {})
    for name, value, most in [("epoch", epoch, _MAX_EPOCHS), *((n, s, _MAX_SECONDS) for n, s in seconds.items())]:
        if not 0 <= value <= most:
            raise UserError(f"{path} cannot be resumed: its {name} is {shown(value)}")
    return epoch, seconds


# Config keys that may change when a run is resumed: they affect where and how fast it runs, not its result.
_FREE_ON_RESUME = (
    *("OUTPUT_DIR", "RESUME", "USE_CUDA", "VERBOSE", "LOG", "TRAIN", "TEST"),
    *("DATASET.ROOT", "DATASET.SPLITS_IN", "DATASET.FEATURES.DIR", "DATASET.FEATURES.BATCH_SIZE"),
    *("DATALOADER.NUM_WORKERS", "DATALOADER.TEST"),
)


def follow_precision(cfg: CfgNode, stored: Mapping[str, Any]) -> CfgNode:
    """``cfg`` with PREC fp32 instead of auto where the stored run has fp32.

    Runs from before auto became the default are thus resumed in their original precision.
    """
    before = flat(stored)
    cfg, frozen = cfg.clone(), cfg.is_frozen()
    cfg.defrost()
    for node, keys in cfg.TRAINER.items():
        if isinstance(keys, CfgNode) and _was_default_before(before.get(f"TRAINER.{node}.PREC"), keys.get("PREC")):
            keys.PREC = "fp32"
    if frozen:
        cfg.freeze()
    return cfg


def _was_default_before(stored: Any, now: Any) -> bool:
    return (stored, now) == ("fp32", "auto")


def check_precision(meta: Mapping[str, Any], own: Mapping[str, Any], path: Path) -> None:
    """Refuse to resume a run with PREC auto if auto means another precision on this machine.

    Raises:
        UserError: they differ; the message names both.
    """
    before, now = meta.get("precision"), own.get("precision")
    older, newer = flat(meta.get("config", {})), flat(own.get("config", {}))
    follows = any(_was_default_before(older.get(key), value) for key, value in newer.items() if key.endswith(".PREC"))
    if follows and None not in (before, now) and before != now:
        raise UserError(f"{path} belongs to a run in {before}, but PREC auto is {now} here; set it to {before}")


def check_same_run(stored: Mapping[str, Any], now: Mapping[str, Any], path: Path) -> None:
    """Refuse to resume a run with different settings: the result would belong to neither.

    Raises:
        UserError: a key differs; the message names the first one with both values.
    """
    before, after = flat(stored), flat(now)
    for key in sorted(before.keys() & after.keys()):
        free = any(key == name or key.startswith(f"{name}.") for name in _FREE_ON_RESUME)
        free |= key.endswith(".PREC") and _was_default_before(before[key], after[key])
        if not free and before[key] != after[key]:
            raise UserError(
                f"{path} belongs to a run with {key} {before[key]}, but now it is {after[key]}; resume with the same "
                "settings, or start a new run in another folder (or with --overwrite)"
            )


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings: values by dotted key."""
    values: dict[str, Any] = {}
    for key, value in tree.items():
        values |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return values
