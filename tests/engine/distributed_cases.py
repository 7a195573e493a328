"""What one process and two have to find alike; run by test_engine_distributed.py, in both."""

from __future__ import annotations

import functools
import gc
from pathlib import Path
from typing import Any

import numpy as np
import torch
from toy import make_images, toy_config, toy_trainer

from dassl_lite.data.feature_cache import FeatureSpec, FeatureStore, extract
from dassl_lite.engine import build_trainer
from dassl_lite.engine.build import make_config
from dassl_lite.engine.parallel import distributed
from dassl_lite.evaluation import EVALUATOR_REGISTRY, Classification
from dassl_lite.utils import set_random_seed

# Of the toy's images, 15 for testing and 9 for validation: neither can be shared equally.
PLAIN = ("INPUT.TRANSFORMS", "('normalize',)", "TEST.EVALUATOR", "Recorder")


@EVALUATOR_REGISTRY.register(force=True)
class Recorder(Classification):
    """An evaluator as a plug-in may have it: overridden, with a memory, metrics as tensors and a file of its own."""

    seen: list[Any]

    def reset(self) -> None:
        super().reset()
        self.seen = []

    def process(self, mo: torch.Tensor, gt: torch.Tensor) -> None:
        super().process(mo, gt)
        self.seen.append((mo.clone(), gt.clone()))

    def evaluate(self) -> Any:
        folder = Path(self.cfg.OUTPUT_DIR)
        folder.mkdir(exist_ok=True)
        with open(folder / "evaluations.txt", "a") as file:
            file.write("one\n")
        found = super().evaluate()
        return {"weighted": torch.tensor(found["accuracy"] + len(self.seen)), **found}


def evaluations(trainer: Any, *splits: str) -> dict[str, Any]:
    found = {}
    for split in splits:
        found[split] = (trainer.test(split), trainer.evaluator.seen, trainer.results[split])
    return found


def on_images(folder: Path) -> dict[str, Any]:
    """Evaluation of a classifier on images; with batches of 1, one of them cannot be read."""
    data = make_images(folder / "toy")
    trainer = toy_trainer(data, folder / "toy_run", *PLAIN, "DATALOADER.TEST.BATCH_SIZE", "4")
    found = {"whole": evaluations(trainer, "test", "val")}
    broken = make_images(folder / "broken")
    (broken / "test" / "green" / "2.png").write_bytes(b"no picture")
    options = ("DATALOADER.TEST.BATCH_SIZE", "1", "DATASET.ON_ERROR", "skip", "DATALOADER.NUM_WORKERS", "1")
    found["broken"] = evaluations(toy_trainer(broken, folder / "toy_run", *PLAIN, *options), "test")
    return found


def trained_on_images(folder: Path) -> dict[str, Any]:
    """A classifier trained where every process draws another number of random values; who saw which image when."""
    data = make_images(folder / "augmented")
    trainer = toy_trainer(data, folder / "augmented_run", "OPTIM.MAX_EPOCH", "3")
    seen: list[list[int]] = []

    def forward_backward(batch: Any, original: Any = trainer.forward_backward) -> Any:
        seen[len(seen) :] = [[] for _ in range(trainer.epoch + 1 - len(seen))]
        seen[-1] += batch["index"].tolist()
        torch.rand(distributed.rank())  # as an augmentation does that draws until it fits
        return original(batch)

    trainer.forward_backward = forward_backward
    trainer.train()
    return {"seen": seen, "weight": trainer.model[2].weight.detach()}


def method(folder: Path, name: str, data: Path, *options: str) -> Any:
    """A trainer of ``name`` on the demo backbone; everything that it encodes is counted in ``trainer.encoded``."""
    given = ("INPUT.SIZE", "()", "INPUT.PIXEL_MEAN", "[]", "INPUT.PIXEL_STD", "[]", "INPUT.INTERPOLATION", "''")
    cache = ("DATASET.FEATURES.DIR", str(folder / "cache"), "DATASET.FEATURES.BATCH_SIZE", "4", "OPTIM.LR", "0.01")
    batches = ("DATALOADER.TEST.BATCH_SIZE", "4", "TEST.EVALUATOR", "Recorder")
    output = folder / f"{data.name}_run"
    set_random_seed(1)
    trainer = build_trainer(toy_config(data, output, *given, *cache, *batches, *options, trainer=name))
    trainer.encoded = 0

    def encode(images: torch.Tensor, original: Any = trainer.encode_image) -> torch.Tensor:
        trainer.encoded += len(images)
        return original(images)

    trainer.encode_image = encode
    return trainer


def on_cached_features(folder: Path) -> dict[str, Any]:
    """TaskRes from an empty cache to its end, on two views of every image; one image cannot be read."""
    data = make_images(folder / "cached")
    (data / "train" / "red" / "1.png").write_bytes(b"no picture")
    options = ("DATASET.FEATURES.VIEWS", "2", "TEST.FINAL_MODEL", "best_val", "DATASET.ON_ERROR", "skip")
    trainer = method(folder, "TaskRes", data, *options, "OPTIM.MAX_EPOCH", "3")
    zero_shot = trainer.zero_shot()
    trainer.train()
    again = method(folder, "TaskRes", data, *options)
    again.zero_shot()
    return {
        "encoded": trainer.encoded,
        "encoded again": again.encoded,
        "ended": (zero_shot, trainer.head.state_dict(), trainer.results, trainer.history, trainer.best_result),
        "features": [trainer.train_loader_x.views, trainer.train_loader_x.kept, trainer.test_loader.views],
        "evaluated": evaluations(trainer, "test", "val"),
    }


def without_a_cache(folder: Path, name: str, *more: str) -> dict[str, Any]:
    """A method that encodes the images of its batches: evaluated before training, and what training ends with."""
    data = make_images(folder / "_".join(("images", name, *more[1::2])))
    if "skip" in more:
        (data / "train" / "red" / "1.png").write_bytes(b"no picture")
    options = ("DATASET.FEATURES.VIEWS", "0", *PLAIN, "OPTIM.MAX_EPOCH", "2", *more)
    steps = ("TRAINER.CLIPLoRA.STEPS_PER_SHOT", "0", "TRAINER.CLIPLoRA.DROPOUT", "0.0")
    trainer = method(folder, name, data, *options, *(steps if name == "CLIPLoRA" else ()))
    found: dict[str, Any] = {"zero_shot": trainer.zero_shot(), "evaluated": evaluations(trainer, "test", "val")}
    found["encoded"] = trainer.encoded
    trainer.train()
    return {**found, "trained": trainer.head.state_dict()}


def private_megabytes() -> float:
    """Of this process's memory, what no file stands behind."""
    gc.collect()
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Anonymous:"):
            return int(line.split()[1]) / 1024
    raise AssertionError("Linux tells")


def memory_held(folder: Path) -> dict[str, float]:
    """MiB that 64 MiB take: of own numbers, of a feature file after a test on all of it, and of the cache."""
    path, stream = folder / "many.npz", np.random.default_rng(0)
    labels = np.arange(2**13) % 2
    arrays = {"classnames": ["one", "other"], "text_weights": np.eye(2, 2048, dtype="f4"), "train_labels": labels[:8]}
    wide = stream.standard_normal((len(labels), 2048), dtype="f4")
    arrays |= {"train_features": wide[:8], "test_features": wide, "test_labels": labels}
    distributed.on_first(functools.partial(np.savez, path, **arrays))
    del wide, arrays
    found, before = {}, private_megabytes()
    own = np.ones(2**23)
    found["own"] = private_megabytes() - before
    del own
    before = private_megabytes()
    flags = {"DATASET": {"NAME": "Features", "FILE": str(path)}, "OUTPUT_DIR": str(folder / "many"), "VERBOSE": False}
    flags |= {"DATALOADER": {"TEST": {"BATCH_SIZE": 1024}}}
    trainer = build_trainer(make_config(trainer="ZeroshotCLIP", flags=flags))
    trainer.test()
    found["file"] = private_megabytes() - before
    del trainer
    (picture, *_) = sorted((make_images(folder / "few") / "train").rglob("*.png"))
    spec = FeatureSpec("wide", "", lambda image: torch.zeros(3, 1, 1), "none")
    before = private_megabytes()
    store = FeatureStore(spec, folder / "wide_cache", processes=distributed.process_group(), shows_progress=False)
    features = store.fetch([picture], lambda inputs: torch.ones(len(inputs), 2**24))
    assert features.tensor.sum() == 2**24
    found["cache"] = private_megabytes() - before
    return found


def run_all(folder: Path) -> dict[str, Any]:
    """Everything above, with what each found."""
    extract._workers = lambda *_: 0  # type: ignore[assignment]  # how many pay depends on the machine
    return {
        "images": on_images(folder),
        "augmented": trained_on_images(folder),
        "cached": on_cached_features(folder),
        "TaskRes": without_a_cache(folder, "TaskRes"),
        "CLIPLoRA": without_a_cache(folder, "CLIPLoRA"),
        "ProGrad": without_a_cache(folder, "ProGrad"),
        "odd": without_a_cache(folder, "TaskRes", "DATASET.NUM_SHOTS", "5", "DATALOADER.TRAIN_X.BATCH_SIZE", "32"),
        "unreadable": without_a_cache(folder, "TaskRes", "DATASET.ON_ERROR", "skip"),
        "memory": memory_held(folder),
    }
