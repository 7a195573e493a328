"""The engine: builds a trainer from a config and runs it. Knows no method and no dataset by name."""

from dassl_lite.engine.base import TrainerBase
from dassl_lite.engine.build import TRAINER_REGISTRY, build_trainer
from dassl_lite.engine.feature_trainer import FeatureTrainer
from dassl_lite.engine.simple_net import SimpleNet
from dassl_lite.engine.trainer import SimpleTrainer, TrainerX, TrainerXU

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
