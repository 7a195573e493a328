"""Checkpoints, and small operations on modules, under Dassl's names."""

from __future__ import annotations

import logging
import shutil
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dassl_lite.utils.errors import UserError, unknown
from dassl_lite.utils.files import PathLike, atomic_path
from dassl_lite.utils.safe_load import load_file

logger = logging.getLogger(__name__)

BEST_NAME = "model-best.pth.tar"
POINTER_NAME = "checkpoint"  # text file that names the newest checkpoint beside it


def save_checkpoint(
    state: Mapping[str, Any],
    save_dir: PathLike,
    is_best: bool = False,
    remove_module_from_keys: bool = True,
    model_name: str = "",
) -> None:
    """Write a checkpoint, then the pointer file that names it.

    Each file is written whole or not at all, and the pointer last: killed at any moment, the folder holds a pointer
    to a complete file.

    Args:
        state: ``state_dict`` and ``epoch`` (the next one to run), and whatever else a resumed run needs.
        save_dir: folder; made if missing.
        is_best: keep a copy as ``model-best.pth.tar``.
        remove_module_from_keys: drop the ``module.`` that DataParallel puts before names.
        model_name: file name instead of ``model.pth.tar-<epoch>``.
    """
    if remove_module_from_keys:
        state = {**state, "state_dict": strip_module_prefix(state["state_dict"])}
    folder = Path(save_dir)
    path = folder / (model_name or f"model.pth.tar-{state['epoch']}")
    with atomic_path(path) as temporary:
        torch.save(dict(state), temporary)
    logger.info("Checkpoint saved to %s", path)
    if is_best:
        with atomic_path(folder / BEST_NAME) as temporary:
            shutil.copyfile(path, temporary)
        logger.info('Best checkpoint saved to "%s"', folder / BEST_NAME)
    with atomic_path(folder / POINTER_NAME) as temporary:
        temporary.write_text(f"{path.name}\n", encoding="utf-8")


def load_checkpoint(fpath: PathLike) -> dict[str, Any]:
    """Read a checkpoint onto the CPU: tensors and plain values; anything else stays inert, nothing is executed.

    Raises:
        UserError: no such file, a damaged one, or one that is no checkpoint.
    """
    if fpath is None:
        raise UserError("no checkpoint file is given (the path is None)")
    path = Path(fpath)
    if not path.is_file():
        raise UserError(f'checkpoint "{path}" is not found')
    checkpoint = load_file(path)
    if not isinstance(checkpoint, Mapping):
        raise UserError(f'"{path}" is no checkpoint: it holds a {type(checkpoint).__name__}')
    return dict(checkpoint)


def newest_checkpoint(fdir: PathLike) -> Path:
    """The file that the folder's pointer file names.

    Raises:
        UserError: there is no pointer, or the file that it names is gone.
    """
    pointer = Path(fdir) / POINTER_NAME
    if not pointer.is_file():
        raise UserError(f'no checkpoint to resume from: "{pointer}" is not found')
    name = pointer.read_text(encoding="utf-8").strip()
    path = pointer.parent / name
    if not name or not path.is_file():
        raise UserError(f'"{pointer}" names "{name}", which is not in its folder')
    return path


def resume_from_checkpoint(fdir: PathLike, model: nn.Module, optimizer: Any = None, scheduler: Any = None) -> int:
    """Restore the newest checkpoint of a folder in place, and return the epoch to go on with.

    Raises:
        UserError: nothing to resume from, weights that do not fit, or no state for a given optimiser or scheduler.
    """
    path = newest_checkpoint(fdir)
    logger.info('Loading checkpoint from "%s"', path)
    checkpoint = load_checkpoint(path)
    load_weights(model, checkpoint["state_dict"], path)
    logger.info("Loaded model weights")
    for name, part in (("optimizer", optimizer), ("scheduler", scheduler)):
        if part is not None:
            restore_part(part, name, checkpoint, path)
            logger.info("Loaded %s", name)
    epoch = checkpoint["epoch"]
    logger.info("Previous epoch: %s", epoch)
    return epoch


def restore_part(part: Any, name: str, checkpoint: Mapping[str, Any], path: Path) -> None:
    """Load an optimiser's or a schedule's state, ``checkpoint[name]``, in place; UserError if it is absent or odd."""
    if checkpoint.get(name) is None:
        raise UserError(f'checkpoint "{path}" holds no {name} state: it can be evaluated, but not resumed')
    try:
        part.load_state_dict(checkpoint[name])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f'the {name} state in "{path}" does not fit this run: {_one_line(error)}') from error


_MISFIT = "Load them with the method, backbone (MODEL.BACKBONE.NAME) and settings that they were trained with."


def load_weights(model: nn.Module, state_dict: Mapping[str, Any], source: PathLike) -> None:
    """Load all weights, and exactly those, in place; ``source`` says in errors where they came from.

    Raises:
        UserError: names or shapes differ; the one line names them.
    """
    try:
        unwrap(model).load_state_dict(strip_module_prefix(state_dict))
    except RuntimeError as error:
        raise UserError(f'the weights in "{source}" do not fit the model: {_one_line(error)} {_MISFIT}') from error


def load_pretrained_weights(model: nn.Module, weight_path: PathLike) -> None:
    """Load the weights of a file whose names and shapes the model has, and log those it has not.

    Raises:
        UserError: not one fits.
    """
    checkpoint = load_checkpoint(weight_path)
    weights = strip_module_prefix(checkpoint.get("state_dict", checkpoint))
    own = unwrap(model).state_dict()
    matched = {name: value for name, value in weights.items() if name in own and _same_shape(own[name], value)}
    discarded = [name for name in weights if name not in matched]
    if not matched:
        raise UserError(f'not one weight of "{weight_path}" fits the model: check the names, like {discarded[:3]}')
    unwrap(model).load_state_dict({**own, **matched})
    logger.info('Successfully loaded pretrained weights from "%s"', weight_path)
    if discarded:
        logger.info("Layers discarded due to unmatched keys or size: %s", discarded)


def strip_module_prefix(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """The same weights without the ``module.`` that DataParallel puts before their names."""
    return {name.removeprefix("module."): value for name, value in state_dict.items()}


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside DataParallel or DistributedDataParallel; any other module itself."""
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return model.module
    return model


def count_num_param(model: nn.Module | None = None, params: Iterable[Any] | None = None) -> int:
    """How many numbers a module's parameters hold, or those in ``params`` (parameters, or one param group)."""
    if model is not None:
        return sum(p.numel() for p in model.parameters())
    if params is None:
        raise UserError("count_num_param needs a model or params")
    return sum(p.numel() for p in (params["params"] if isinstance(params, Mapping) else params))


def open_all_layers(model: nn.Module) -> None:
    """Put the whole model in training mode with every parameter trainable."""
    model.train().requires_grad_(True)


def open_specified_layers(model: nn.Module, open_layers: str | Iterable[str]) -> None:
    """Train only the named children: the others are frozen and in evaluation mode.

    Raises:
        UserError: a name that is no child of the model.
    """
    children = dict(unwrap(model).named_children())
    names = {open_layers} if isinstance(open_layers, str) else set(open_layers)
    for name in names - children.keys():
        raise unknown(f"layer of {type(unwrap(model)).__name__}", name, children)
    for name, child in children.items():
        child.train(name in names).requires_grad_(name in names)


def init_network_weights(model: nn.Module, init_type: str = "normal", gain: float = 0.02) -> None:
    """Draw new weights for linear and convolution layers, biases 0; normalisation layers become the identity.

    Args:
        model: changed in place.
        init_type: normal (std ``gain``), xavier or orthogonal (scaled by ``gain``), or kaiming (no gain).
        gain: see above.
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


def _same_shape(own: Any, other: Any) -> bool:
    return isinstance(own, Tensor) and isinstance(other, Tensor) and own.shape == other.shape


def _one_line(error: BaseException) -> str:
    text = str(error) or type(error).__name__
    return textwrap.shorten(text, width=400, placeholder=" ...")
