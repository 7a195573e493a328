"""A small classifier on images, written as a third party would, and a folder of images for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch.nn.functional as F
from PIL import Image
from torch import nn

from dassl_lite.engine import TRAINER_REGISTRY, TrainerX, build_trainer
from dassl_lite.engine.build import make_config
from dassl_lite.metrics import compute_accuracy
from dassl_lite.optim import build_lr_scheduler, build_optimizer
from dassl_lite.utils import set_random_seed

COLOURS = {"red": (200, 40, 40), "green": (40, 200, 40), "blue": (40, 40, 200)}


def make_images(root: Path, per_class: dict[str, int] | None = None) -> Path:
    """``root/{train,val,test}/<colour>/*.png``: noisy patches of three colours."""
    rng = np.random.default_rng(0)
    for part, count in (per_class or {"train": 6, "val": 3, "test": 5}).items():
        for name, colour in COLOURS.items():
            folder = root / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = np.clip(rng.normal(colour, 70, (8, 8, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return root


@TRAINER_REGISTRY.register(force=True)
class ToyTrainer(TrainerX):
    """Dropout and a linear layer on the pixels: every random stream of a run is used."""

    def build_model(self) -> None:
        self.model = nn.Sequential(nn.Flatten(), nn.Dropout(0.2), nn.Linear(192, self.num_classes)).to(self.device)
        self.optim = build_optimizer(self.model, self.cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, self.cfg.OPTIM)
        self.register_model("toy", self.model, self.optim, self.sched)

    def forward_backward(self, batch: dict[str, Any]) -> dict[str, float]:
        image, label, _ = self.parse_batch_train(batch)
        output = self.model(image)
        loss = F.cross_entropy(output, label)
        self.model_backward_and_update(loss)
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        return {"loss": loss.item(), "acc": compute_accuracy(output, label)[0].item()}


def toy_config(data: Path, output: Path, *options: str, trainer: str = "ToyTrainer") -> Any:
    flags = {
        "DATASET": {"ROOT": str(data), "NAME": "ImageFolder"},
        "DATALOADER": {"NUM_WORKERS": 0, "TRAIN_X": {"BATCH_SIZE": 4}},
        "INPUT": {"SIZE": (8, 8), "PIXEL_MEAN": [0.5] * 3, "PIXEL_STD": [0.25] * 3, "INTERPOLATION": "bilinear"},
        "OPTIM": {"NAME": "sgd", "LR": 0.01, "MAX_EPOCH": 4, "LR_SCHEDULER": "cosine", "WARMUP_EPOCH": 1},
        "OUTPUT_DIR": str(output),
    }
    return make_config(trainer=trainer, flags=flags, options=options)


def toy_trainer(data: Path, output: Path, *options: str, trainer: str = "ToyTrainer") -> Any:
    set_random_seed(1)
    return build_trainer(toy_config(data, output, *options, trainer=trainer))
