"""MODEL.INIT_WEIGHTS for a head: training starts from a checkpoint's weights, classes matched by identity."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from dassl_lite.engine.files import checkpoint
from dassl_lite.utils import torchtools
from dassl_lite.utils.errors import UserError
from dassl_lite.utils.logger import get_logger

if TYPE_CHECKING:
    from dassl_lite.engine.methods.feature_trainer import FeatureTrainer

logger = get_logger(__name__)


def load_init_weights(trainer: FeatureTrainer) -> None:
    """Load the file that MODEL.INIT_WEIGHTS names into ``trainer.head``; nothing where it names none.

    The method may be another one, if only names and shapes are the same; the backbone may not.

    Raises:
        UserError: the method learns nothing from given weights, or the file's do not fit.
    """
    name, method = trainer.cfg.MODEL.INIT_WEIGHTS, trainer.cfg.TRAINER.NAME
    if not name:
        return
    if not (trainer.trains and trainer.takes_init_weights):
        raise UserError(
            f"MODEL.INIT_WEIGHTS {name} has no effect on {method}, which starts from no weights; leave it out"
        )
    path, head = Path(name), trainer.head
    state = torchtools.load_checkpoint(path)
    weights, meta = state.get("state_dict", state), state.get("meta") or {}
    if not isinstance(weights, Mapping):
        raise UserError(f"MODEL.INIT_WEIGHTS {path} holds no weights: its state_dict is a {type(weights).__name__}")
    trainer.check_backbone(meta, path)
    picked = trainer.adapt_state_dict(head, torchtools.strip_module_prefix(weights), meta, path)
    checkpoint.load_weights(head, picked, path)
    trainer.class_match = None  # of what is evaluated, not of what training starts from
    logger.info(f"Training starts from the weights in {path} (MODEL.INIT_WEIGHTS)")
