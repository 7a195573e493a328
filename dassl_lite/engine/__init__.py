"""The engine builds a trainer from a config and runs it. It knows methods and datasets only by their registered names.

- ``contract/``: Dassl's trainers, which third parties subclass
- ``methods/``: the base of the package's own methods
- ``files/``: the files that a run writes to its folder and reads back
- ``parallel/``: runs with several processes
- ``commands/``: the code behind the command-line tools
- ``build.py``: the trainer registry, and merging files and flags into a config
- ``plugins.py``: discovery of trainers and datasets
"""

from dassl_lite.engine.build import TRAINER_REGISTRY, build_trainer
from dassl_lite.engine.contract.base import TrainerBase
from dassl_lite.engine.contract.keys import Key, each, idle_if, key, number, one_of, satisfying, some_of
from dassl_lite.engine.contract.simple_net import SimpleNet
from dassl_lite.engine.contract.trackers import TRACKER_REGISTRY, Outcome, TrackedRun, Tracker
from dassl_lite.engine.contract.trainer import SimpleTrainer, TrainerX, TrainerXU
from dassl_lite.engine.methods.feature_trainer import FeatureTrainer

__all__ = [
    "TRACKER_REGISTRY",
    "TRAINER_REGISTRY",
    "FeatureTrainer",
    "Key",
    "Outcome",
    "SimpleNet",
    "SimpleTrainer",
    "TrackedRun",
    "Tracker",
    "TrainerBase",
    "TrainerX",
    "TrainerXU",
    "build_trainer",
    "each",
    "idle_if",
    "key",
    "number",
    "one_of",
    "satisfying",
    "some_of",
]
