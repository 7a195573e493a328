"""A recipe of third parties, and their files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PLUGINS = [str(HERE / "third_party_parts.py"), str(HERE / "third_party.py")]

# Keys as Dassl's users write them.
RECIPE: dict[str, Any] = {
    "DATALOADER": {"NUM_WORKERS": 0, "TRAIN_X": {"BATCH_SIZE": 4}, "TEST": {"BATCH_SIZE": 8}},
    "DATASET": {"NAME": "PaperColours"},
    "INPUT": {"SIZE": "(16, 16)", "INTERPOLATION": "bilinear", "TRANSFORMS": ["random_flip", "normalize"]},
    "MODEL": {"BACKBONE": {"NAME": "paper_net", "PRETRAINED": False}},
    "OPTIM": {"NAME": "sgd", "LR": 0.02, "MAX_EPOCH": 4, "LR_SCHEDULER": "cosine", "WARMUP_EPOCH": 1},
    "TRAIN": {"PRINT_FREQ": 1, "CHECKPOINT_FREQ": 1},
}
RECIPE["INPUT"] |= {"PIXEL_MEAN": [0.485, 0.456, 0.406], "PIXEL_STD": [0.229, 0.224, 0.225]}
