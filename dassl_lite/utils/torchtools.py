"""Checkpoints and small operations on modules, under Dassl's names."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from dassl_lite.utils.errors import MISFITS, MissingCheckpointError, UserError, unknown
from dassl_lite.utils.files import PathLike, atomic_path, read_text
from dassl_lite.utils.logger import get_logger
from dassl_lite.utils.safe_load import load_file

logger = get_logger(__name__)

BEST_NAME = "model-best.pth.tar"
POINTER_NAME = "checkpoint"  # text file with the name of the newest checkpoint


def save_checkpoint(
    state: Mapping[str, Any],
    save_dir: PathLike,
    is_best: bool = False,
    remove_module_from_keys: bool = True,
    model_name: str = "",
) -> None:
    """Write a checkpoint, then the pointer file with its name.

    Every write is atomic and the pointer comes last, so even a killed process leaves a pointer to a complete file.

    Args:
        state: ``state_dict``, ``epoch`` (the next one to run), and whatever else a resumed run needs.
        save_dir: folder; made if missing.
        is_best: also save a copy as ``model-best.pth.tar``.
        remove_module_from_keys: drop DataParallel's ``module.`` prefix.
        model_name: file name; defaults to ``model.pth.tar-<epoch>``.
    """
    if remove_module_from_keys:
        state = {**state, "state_dict": strip_module_prefix(state["state_dict"])}
    folder = Path(save_dir)
    path = folder / (model_name or f"model.pth.tar-{state['epoch']}")
    with atomic_path(path) as temporary:
        torch.save(dict(state), temporary)
    logger.info(f"Checkpoint saved to {path}")
    if is_best:
        with atomic_path(folder / BEST_NAME) as temporary:
            shutil.copyfile(path, temporary)
        logger.info(f'Best checkpoint saved to "{folder / BEST_NAME}"')
    with atomic_path(folder / POINTER_NAME) as temporary:
        temporary.write_text(f"{path.name}\n", encoding="utf-8")


def load_checkpoint(fpath: PathLike) -> dict[str, Any]:
    """Load a checkpoint onto the CPU without executing anything in it (see ``safe_load``).

    Raises:
        UserError: the file is missing, damaged, or not a checkpoint.
    """
    if fpath is None:
        raise UserError("no checkpoint given: the path is None")
    path = Path(fpath)
    if not path.is_file():
        raise MissingCheckpointError(f'checkpoint "{path}" not found')
    checkpoint = load_file(path)
    if not isinstance(checkpoint, Mapping):
        raise UserError(f'"{path}" is not a checkpoint: it holds a {type(checkpoint).__name__}, not a dict')
    return dict(checkpoint)


def load_run_checkpoint(fpath: PathLike) -> dict[str, Any]:
    """Load a run's checkpoint: ``load_checkpoint``, with a ``state_dict`` of names and a ``meta`` that is a dict.

    Raises:
        UserError: as ``load_checkpoint``, or it has no such ``state_dict``.
    """
    checkpoint = load_checkpoint(fpath)
    weights = checkpoint.get("state_dict")
    if not isinstance(weights, Mapping) or not all(isinstance(name, str) for name in weights):
        found = ", ".join(map(str, list(checkpoint)[:3])) or "nothing"
        raise UserError(f'"{fpath}" is not the checkpoint of a run: it has no state_dict, but {found}')
    meta = checkpoint.get("meta")
    return {**checkpoint, "meta": meta if isinstance(meta, dict) else {}}


def newest_checkpoint(fdir: PathLike) -> Path:
    """The checkpoint that the folder's pointer file names.

    Raises:
        UserError: there is no pointer file, or the checkpoint is gone.
    """
    pointer = Path(fdir) / POINTER_NAME
    if not pointer.is_file():
        raise UserError(f'no checkpoint to resume from: "{pointer}" not found')
    name = _read_name(pointer)
    path = pointer.parent / name
    if not name or not path.is_file():
        raise UserError(f'"{pointer}" names "{name}", which is not in that folder')
    return path


def _read_name(pointer: Path) -> str:
    """The file name in a pointer file."""
    try:
        return read_text(pointer, 4096).strip()
    except (OSError, ValueError) as error:
        raise UserError(f'cannot read "{pointer}": {getattr(error, "strerror", None) or error}') from error


def resume_from_checkpoint(
    fdir: PathLike, model: nn.Module, optimizer: Optimizer | None = None, scheduler: LRScheduler | None = None
) -> int:
    """Restore the newest checkpoint of a folder in place.

    Args:
        fdir: folder of the checkpoints.
        model: gets the weights.
        optimizer: gets its state, if given.
        scheduler: gets its state, if given.

    Returns:
        The epoch to continue with.

    Raises:
        UserError: there is no checkpoint, its weights do not fit, or it has no state for the optimiser or scheduler.
    """
    path = newest_checkpoint(fdir)
    logger.info(f'Loading checkpoint from "{path}"')
    checkpoint = load_run_checkpoint(path)
    load_weights(model, checkpoint["state_dict"], path)
    logger.info("Loaded model weights")
    for name, part in (("optimizer", optimizer), ("scheduler", scheduler)):
        if part is not None:
            restore_part(part, name, checkpoint, path)
            logger.info(f"Loaded {name}")
    epoch = checkpoint.get("epoch")
    if not isinstance(epoch, int):
        raise UserError(f'"{path}" does not say which epoch it is of, so it cannot be resumed')
    logger.info(f"Previous epoch: {epoch}")
    return epoch


def restore_part(part: Optimizer | LRScheduler, name: str, checkpoint: Mapping[str, Any], path: Path) -> None:
    """Load the state of an optimiser or a schedule, ``checkpoint[name]``, in place.

    Raises:
        UserError: the state is missing or does not fit.
    """
    if checkpoint.get(name) is None:
        raise UserError(f'checkpoint "{path}" has no {name} state: it can be evaluated but not resumed')
    try:
        part.load_state_dict(checkpoint[name])
    except MISFITS as error:
        raise UserError(f'the {name} state in "{path}" does not fit this run: {_one_line(error)}') from error


_MISFIT = "Use the method, backbone (MODEL.BACKBONE.NAME) and settings that they were trained with."


def load_weights(model: nn.Module, state_dict: Mapping[str, Any], source: PathLike) -> None:
    """Load weights in place; their names and shapes must match the model's exactly.

    Args:
        model: changed in place.
        state_dict: with or without DataParallel's ``module.`` prefix.
        source: where the weights come from, for error messages.

    Raises:
        UserError: names or shapes differ.
    """
    try:
        unwrap(model).load_state_dict(strip_module_prefix(state_dict))
    except (AttributeError, RuntimeError, TypeError) as error:
        raise UserError(f'the weights in "{source}" do not fit the model: {_one_line(error)} {_MISFIT}') from error


def load_pretrained_weights(model: nn.Module, weight_path: PathLike) -> None:
    """Load the weights in a file that match the model by name and shape; log and discard the rest.

    Raises:
        UserError: no weight matches.
    """
    checkpoint = load_checkpoint(weight_path)
    weights = checkpoint.get("state_dict", checkpoint)
    if not isinstance(weights, Mapping):
        raise UserError(f'"{weight_path}" holds no weights: its state_dict is a {type(weights).__name__}')
    weights = strip_module_prefix(weights)
    model_state = unwrap(model).state_dict()
    matched = {
        name: value for name, value in weights.items() if name in model_state and _same_shape(model_state[name], value)
    }
    discarded = [name for name in weights if name not in matched]
    if not matched:
        raise UserError(f'no weight in "{weight_path}" matches the model; its first names are {discarded[:3]}')
    unwrap(model).load_state_dict({**model_state, **matched})
    logger.info(f'Successfully loaded pretrained weights from "{weight_path}"')
    if discarded:
        logger.info(f"Layers discarded due to unmatched keys or size: {discarded}")


def strip_module_prefix(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """The same weights without DataParallel's ``module.`` prefix."""
    return {str(name).removeprefix("module."): value for name, value in state_dict.items()}


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside DataParallel or DistributedDataParallel; any other module unchanged."""
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return model.module
    return model


def count_num_param(model: nn.Module | None = None, params: Iterable[Tensor] | Mapping[str, Any] | None = None) -> int:
    """Total size of a module's parameters, or of ``params`` (an iterable of parameters, or one param group)."""
    if model is not None:
        return sum(p.numel() for p in model.parameters())
    if params is None:
        raise UserError("count_num_param needs a model or params")
    return sum(p.numel() for p in (params["params"] if isinstance(params, Mapping) else params))


def open_all_layers(model: nn.Module) -> None:
    """Put the model in training mode and make all parameters trainable."""
    model.train().requires_grad_(True)


def open_specified_layers(model: nn.Module, open_layers: str | Iterable[str]) -> None:
    """Train only the named child modules; freeze the others and put them in evaluation mode.

    Raises:
        UserError: the model has no child of that name.
    """
    children = dict(unwrap(model).named_children())
    names = {open_layers} if isinstance(open_layers, str) else set(open_layers)
    for name in names - children.keys():
        raise unknown(f"layer of {type(unwrap(model)).__name__}", name, children)
    for name, child in children.items():
        child.train(name in names).requires_grad_(name in names)


def init_network_weights(model: nn.Module, init_type: str = "normal", gain: float = 0.02) -> None:
    """Initialise linear and convolution layers at random, with zero biases, and normalisation layers to the identity.

    Args:
        model: changed in place.
        init_type: ``normal``, ``xavier``, ``orthogonal`` or ``kaiming``.
        gain: standard deviation for ``normal``, scale for ``xavier`` and ``orthogonal``; ``kaiming`` ignores it.
    """
    draw = {
        "normal": lambda weight: nn.init.normal_(weight, 0.0, gain),
        "xavier": lambda weight: nn.init.xavier_normal_(weight, gain=gain),
        "kaiming": lambda weight: nn.init.kaiming_normal_(weight, a=0, mode="fan_in"),
        "orthogonal": lambda weight: nn.init.orthogonal_(weight, gain=gain),
    }
    if init_type not in draw:
        raise unknown("weight initialisation", init_type, draw)
    norms = (nn.modules.batchnorm._NormBase,)
    convolutions = (nn.Linear, nn.modules.conv._ConvNd)
    for module in model.modules():
        if isinstance(module, norms) and module.weight is not None:
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, convolutions):
            draw[init_type](module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _same_shape(own: object, other: object) -> bool:
    return isinstance(own, Tensor) and isinstance(other, Tensor) and own.shape == other.shape


def _one_line(error: BaseException) -> str:
    text = str(error) or type(error).__name__
    return textwrap.shorten(text, width=400, placeholder=" ...")
