"""The engine: builds a trainer from a config and runs it. Knows no method and no dataset by name."""

from dassl_lite.engine.build import TRAINER_REGISTRY, build_trainer
from dassl_lite.engine.contract.base import TrainerBase
from dassl_lite.engine.contract.simple_net import SimpleNet
from dassl_lite.engine.contract.trainer import SimpleTrainer, TrainerX, TrainerXU
from dassl_lite.engine.methods.feature_trainer import FeatureTrainer

__all__ = [
    "TRAINER_REGISTRY",
    "FeatureTrainer",
    "SimpleNet",
    "SimpleTrainer",
    "TrainerBase",
    "TrainerX",
    "TrainerXU",
    "build_trainer",
]
