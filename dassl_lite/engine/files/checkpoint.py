"""A run's files: which checkpoint to load, what a resumed run needs besides weights, and loading without loss.

Layout (the reference's): ``<output>/<model>/model.pth.tar-<epoch>``, ``model-best.pth.tar`` and a text file
``checkpoint`` that names the newest.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dassl_lite.utils import torchtools
from dassl_lite.utils.errors import UserError
from dassl_lite.utils.seeding import random_states, restore_random_states

BEST = "model-best.pth.tar"
_NUMBERED = re.compile(r"model\.pth\.tar-(\d+)$")
_ROLLING = ".rolling"  # text file: epoch of a checkpoint that only serves resuming
# Embeddings of the class names, which a prompt learner computes for the classes at hand.
_RECOMPUTED = ("token_prefix", "token_suffix")


def is_recomputed(key: str) -> bool:
    """Whether a state-dict entry is computed from the classes at hand and so never loaded."""
    return key.rpartition(".")[2] in _RECOMPUTED


def epochs_saved(folder: str | Path) -> list[int]:
    """Epoch numbers of the checkpoints in a model's folder, in ascending order."""
    folder = Path(folder)
    if not folder.is_dir():
        return []
    return sorted(int(match[1]) for path in folder.iterdir() if (match := _NUMBERED.match(path.name)))


def newest_common_epoch(directory: str | Path, names: Iterable[str]) -> int | None:
    """The newest epoch that every model has a checkpoint of, whatever was being written when a run was killed."""
    saved = [set(epochs_saved(Path(directory) / name)) for name in names]
    common = set.intersection(*saved) if saved else set()
    return max(common) if common else None


def find_file(directory: str | Path, name: str, epoch: int | None) -> Path:
    """The checkpoint of model ``name``: of ``epoch``, else the best, else the last.

    Raises:
        UserError: it is not there; says what is.
    """
    folder = Path(directory) / name
    saved = epochs_saved(folder)
    if epoch is not None:
        path = folder / f"model.pth.tar-{epoch}"
    elif (folder / BEST).is_file() or not saved:
        path = folder / BEST
    else:
        path = folder / f"model.pth.tar-{saved[-1]}"
    if not path.is_file():
        found = f"epochs there: {', '.join(map(str, saved))}" if saved else "the folder holds no checkpoint"
        raise UserError(f"no checkpoint at {path}; {found if folder.is_dir() else f'there is no folder {folder}'}")
    return path


def mark_rolling(directory: str | Path, names: Iterable[str], epoch: int) -> None:
    """Say that the checkpoint of ``epoch`` may go once there is a newer one, and drop the one said so before."""
    names = list(names)
    drop_rolling(directory, names, keep=epoch)
    for name in names:
        (Path(directory) / name / _ROLLING).write_text(str(epoch), encoding="utf-8")


def drop_rolling(directory: str | Path, names: Iterable[str], keep: int | None = None) -> None:
    """Remove checkpoints that were only kept to resume from, now that a newer one stands."""
    for name in names:
        marker = Path(directory) / name / _ROLLING
        if marker.is_file():
            epoch = marker.read_text(encoding="utf-8").strip()
            if epoch.isdigit() and int(epoch) != keep:
                (marker.parent / f"model.pth.tar-{epoch}").unlink(missing_ok=True)
            marker.unlink()


def why_not_written(error: OSError | RuntimeError) -> str:
    """The reason in a few words; an error that is not about the disk is raised again."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    text = str(error).splitlines()[0]
    if "unexpected pos" not in text and "write" not in text.lower():  # what torch's own writer says of a full disk
        raise error
    return f"the disk takes no more: {text}"


def load_weights(model: nn.Module, weights: Mapping[str, torch.Tensor], path: Path) -> None:
    """Load ``weights`` into ``model``: the same names and shapes, but for entries that are computed anew.

    Raises:
        UserError: names or shapes differ.
    """
    own = torchtools.unwrap(model).state_dict()
    kept = {key: value for key, value in own.items() if is_recomputed(key)}
    stored = {key: value for key, value in weights.items() if not is_recomputed(key)}
    torchtools.load_weights(model, {**stored, **kept}, path)


def run_state(best_result: float, history: list[dict[str, Any]], scaler: Any = None) -> dict[str, Any]:
    """What a resumed run needs besides models and optimisers, as tensors and plain values.

    Args:
        scaler: the trainer's gradient scaler, if it has one; one that is switched off has no state.
    """
    state = {"best_result": best_result, "history": list(history), "random_states": random_states()}
    return {**state, "scaler": scaler.state_dict()} if isinstance(scaler, torch.amp.GradScaler) else state


def restore(path: Path, state: Mapping[str, Any], model: nn.Module, optim: Any, sched: Any) -> None:
    """Put a checkpoint's weights, optimiser and schedule back, to go on as if never stopped."""
    load_weights(model, state["state_dict"], path)
    for what, part in (("optimizer", optim), ("scheduler", sched)):
        if part is not None:
            torchtools.restore_part(part, what, state, path)


def restore_run_state(state: Mapping[str, Any], scaler: Any = None) -> tuple[float, list[dict[str, Any]]]:
    """Restore the random states and the gradient scaler; returns the best result and the history so far."""
    saved = state.get("run_state") or {}
    if "random_states" in saved:
        restore_random_states(saved["random_states"])
    if isinstance(scaler, torch.amp.GradScaler) and saved.get("scaler"):
        scaler.load_state_dict(saved["scaler"])
    return saved.get("best_result", float("-inf")), list(saved.get("history", []))


# Config keys that may change between a run and its continuation: they say where and how fast, not what.
_FREE_ON_RESUME = (
    *("OUTPUT_DIR", "RESUME", "USE_CUDA", "VERBOSE", "TRAIN", "TEST"),
    *("DATASET.ROOT", "DATASET.FEATURES.DIR", "DATASET.FEATURES.BATCH_SIZE"),
    *("DATALOADER.NUM_WORKERS", "DATALOADER.TEST"),
)


def check_same_run(stored: Mapping[str, Any], now: Mapping[str, Any], path: Path) -> None:
    """Refuse to go on with a run under other settings: the result would be neither's.

    Raises:
        UserError: names the first key that differs, with both values.
    """
    before, after = _flat(stored), _flat(now)
    for key in sorted(before.keys() & after.keys()):
        free = any(key == name or key.startswith(f"{name}.") for name in _FREE_ON_RESUME)
        if not free and before[key] != after[key]:
            raise UserError(
                f"{path} is of a run with {key} {before[key]}, but it is {after[key]} now; go on with the same "
                "settings, or start anew in another folder (or with --overwrite)"
            )


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
