"""From images to rows of numbers, and from these to labels: the code that all predictions share.

Shapes: N images, n images in a part, K classes.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

import dassl_lite
from dassl_lite.classifier.images import Given, encode_stream, is_path, named
from dassl_lite.classifier.quiet import alone
from dassl_lite.data import Datum
from dassl_lite.engine.contract.threads import threads_for
from dassl_lite.engine.methods.feature_source import FeatureSet
from dassl_lite.engine.methods.feature_trainer import FeatureTrainer
from dassl_lite.engine.methods.side_run import side_run_class
from dassl_lite.utils.errors import MissingFileError, UserError, printable, shown

CACHED = 20_000  # most images whose features predictions cache; beyond that they are streamed
ON_ERROR = ("warn", "raise")
_MOST_NAMED = 5  # unreadable images named in a warning


class Prediction(NamedTuple):
    """The prediction of `FewShotClassifier.stream` for an image.

    Attributes:
        image: the image as it was passed.
        labels: labels of the ``top_k`` classes, the likeliest first; None where the probability is below
            ``unknown_below``, or if the image cannot be read.
        probabilities: probabilities of these classes.
        error: why the image cannot be read, or "".
    """

    image: Any
    labels: tuple[Any, ...]
    probabilities: tuple[float, ...]
    error: str = ""


class Part(NamedTuple):
    """A part of the images: consecutive ones.

    Attributes:
        items: the n images.
        errors: errors of unreadable images, by position from 0.
        rows: (n, W) float32; NaN for unreadable images.
        ok: (n,) bool, whether each image can be read.
    """

    items: list[Any]
    errors: dict[int, str]
    rows: NDArray[Any]
    ok: NDArray[Any]


def parts_of(trainer: Any, given: Given) -> Iterator[Any]:
    """Yield images part by part: items, positions of the readable ones, their features, and errors."""
    if given.features is not None:
        if not isinstance(trainer, FeatureTrainer):
            raise UserError(f"{trainer.cfg.TRAINER.NAME} takes images, not features")
        width = trainer.input_width
        if given.features.shape[1] != width:
            raise UserError(f"features of width {given.features.shape[1]}, but the backbone's have {width}")
        finite = given.features.isfinite().all(dim=1)
        errors = dict.fromkeys((~finite).nonzero().flatten().tolist(), "the features are not finite")
        kept = finite.nonzero().flatten().tolist()
        yield list(range(len(given.features))), kept, given.features[finite], errors
        return
    cached = isinstance(trainer, FeatureTrainer) and not trainer.trains_images and given.are_paths
    if cached and 0 < (given.total or 0) <= CACHED:
        items = list(given.items)
        paths = [os.path.abspath(os.path.expanduser(item)) for item in items]
        data = [Datum(path, 0) for path in paths]
        found = trainer.features.fetch(data, trainer.dm.tfm_test, on_error="leave")
        kept = found.kept.nonzero().flatten().tolist()
        errors = {n: found.errors.get(path, "") for n, path in enumerate(paths) if not found.kept[n]}
        yield items, kept, found.tensor[0, found.kept] if kept else None, errors
        return
    cfg = trainer.cfg
    yield from encode_stream(
        given.items,
        encoder_of(trainer),
        trainer.dm.tfm_test,
        trainer.device,
        cfg.DATASET.FEATURES.BATCH_SIZE,
        cfg.DATALOADER.NUM_WORKERS,
    )


@dataclass(frozen=True)
class Answering:
    """A snapshot of a classifier for one prediction call: later changes to the classifier do not affect it.

    Attributes:
        trainer: a trainer that is ready to predict.
        labels: (K,) labels of its classes.
        temperature: divides the logits for probabilities.
        on_error: "warn" reports unreadable images at the end; "raise" raises an error.
        messages: list to which the engine's warnings are appended.
        verbose: show log messages and progress.
    """

    trainer: Any
    labels: NDArray[Any]
    temperature: float
    on_error: str
    messages: list[str]
    verbose: bool

    def logits(self, features: Tensor) -> Tensor:
        """Logits (n, K) of features (n, D)."""
        return logits_of(self.trainer, features, len(self.labels))

    def probabilities(self, features: Tensor) -> Tensor:
        """Probabilities (n, K) of features (n, D)."""
        return probabilities_of(self.trainer, self.logits(features), self.temperature)

    def parts(self, given: Given, function: Callable[[Tensor], Tensor]) -> Iterator[Part]:
        """Apply ``function`` to the images' features (n, D) part by part; on the CPU, in constant memory."""
        bad, steps, done = Unreadable(self.on_error), parts_of(self.trainer, given), 0
        with tqdm(total=given.total, unit="image", disable=not self.verbose, file=sys.stderr, leave=False) as bar:
            while True:
                with alone(self.messages, verbose=self.verbose):  # released while the caller handles a part
                    part = next(steps, None)
                    if part is None:
                        break
                    items, kept, features, errors = part
                    values = None if features is None or not kept else function(features.float().cpu()).numpy()
                rows, ok = rows_of(values, len(items), kept, len(self.labels))
                bad.add({number + done: error for number, error in errors.items()}, items, done)
                done += len(items)
                bar.update(len(items))
                yield Part(items, errors, rows, ok)
        bad.warn()

    def rows(self, given: Given, function: Callable[[Tensor], Tensor]) -> tuple[NDArray[Any], NDArray[Any]]:
        """The results of `parts` for all images, (N, W), and a mask of the readable ones (N,); a part without a
        readable image gets the width of the others."""
        found = list(self.parts(given, function))
        width = next((part.rows.shape[1] for part in found if part.ok.any()), len(self.labels))
        rows = [part.rows if part.ok.any() else np.full((len(part.ok), width), np.nan, np.float32) for part in found]
        if not found:
            return np.empty((0, width), np.float32), np.zeros(0, dtype=bool)
        return np.concatenate(rows), np.concatenate([part.ok for part in found])

    def predictions(self, given: Given, top_k: int, unknown_below: float | None) -> Iterator[Prediction]:
        """Yield a `Prediction` for each image."""
        for items, errors, rows, ok in self.parts(given, self.probabilities):
            chosen = chosen_labels(rows, ok, self.labels, top_k, unknown_below)
            best = np.sort(rows, axis=1)[:, ::-1][:, :top_k]
            for number, item in enumerate(items):
                row = tuple(float(value) for value in best[number]) if ok[number] else ()
                labels = tuple(chosen[number].tolist()) if ok[number] else (None,)
                yield Prediction(item, labels, row, errors.get(number, ""))


def encoder_of(trainer: Any) -> Any:
    """The function from images (B, 3, H, W) to features or, for a third party's trainer, to logits."""
    if isinstance(trainer, FeatureTrainer):
        return trainer.encode_inputs

    def logits(images: Tensor) -> Tensor:
        batch = {"img": images, "label": torch.zeros(len(images), dtype=torch.int64)}
        with torch.no_grad():
            return trainer.model_inference(trainer.parse_batch_test(batch)[0])

    return logits


def logits_of(trainer: Any, features: Tensor, classes: int) -> Tensor:
    """Logits (n, K) on the CPU from the output of `encoder_of` (n, ...), in the test batches of a run."""
    if not isinstance(trainer, FeatureTrainer):
        return features  # already logits
    head, size = trainer.head, trainer.cfg.DATALOADER.TEST.BATCH_SIZE
    with torch.no_grad(), head.evaluating() if hasattr(head, "evaluating") else nullcontext():
        parts = [trainer.model_inference(part.float().to(trainer.device)) for part in features.split(size)]
    return torch.cat(parts).float().cpu() if parts else torch.empty(0, classes)


def probabilities_of(trainer: Any, logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Probabilities (n, K) of logits (n, K): a softmax, or one probability per class if images have several classes.

    Raises:
        UserError: images have several classes, and the logit that means a probability of 0.5 is unknown.
    """
    if not getattr(trainer, "is_multi_label", False):
        return torch.softmax(logits / temperature, dim=1)
    half = getattr(trainer, "half_logit", None)
    if half is None:
        raise UserError(
            f"{trainer.cfg.TRAINER.NAME} ranks images of several classes, but gives no probabilities: no sigmoid was "
            "trained; use another method, such as TaskRes or LinearProbe"
        )
    return torch.sigmoid((logits - half) / temperature)


def rows_of(values: Any, count: int, kept: list[int], width: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Rows (count, W), NaN for missing images, and a mask of those present (count,).

    Args:
        values: (n, W) rows of the images ``kept``; None if there are none.
        width: W if there are none.
    """
    ok = np.zeros(count, dtype=bool)
    ok[kept] = True
    if values is not None and len(kept) == count:
        return values, ok
    rows = np.full((count, width if values is None else values.shape[1]), np.nan, np.float32)
    if values is not None:
        rows[kept] = values
    return rows, ok


def split_logits(trainer: Any, loader: Any) -> tuple[NDArray[Any], NDArray[Any]]:
    """Logits (N, K) and labels (N,) of a split of the trainer's own data."""
    trainer.set_model_mode("eval")
    with torch.no_grad():
        pairs = [trainer._infer(batch) for batch in loader]
    logits, labels = (torch.cat([part.float().cpu() for part in parts]) for parts in zip(*pairs, strict=True))
    return logits.numpy(), labels.long().numpy()


def left_out(trainer: Any, folds: int | None, folder: str) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Cross-validated logits: predictions for training images left out of a fit of the trainer's method.

    A class's only image is not left out: without it no method could learn that class.

    Args:
        trainer: a built trainer on frozen features.
        folds: number of fits; each leaves out its share of every class. None leaves out one image at a time.
        folder: folder for files that a method writes.

    Returns:
        Logits (n, K) of the images left out; logits of zero-shot CLIP for them, up to a factor; and their labels (n,).
    """
    views = trainer.training_set(augmented=True, views=trainer.method_cfg.get("AUGMENT_EPOCH", 1))
    queries, labels = trainer.training_set(augmented=False).features, views.labels
    fold = torch.full_like(labels, -1)
    for group in (torch.nonzero(labels == label).flatten() for label in labels.unique()):
        if len(group) > 1:
            fold[group] = group if folds is None else torch.arange(len(group), device=group.device) % folds
    cfg, kind = trainer.cfg.clone(), side_run_class(type(trainer))
    cfg.defrost()
    cfg.OUTPUT_DIR, cfg.VERBOSE, cfg.TEST.FINAL_MODEL = folder, False, "last_step"
    cfg.freeze()
    logits = torch.zeros(len(labels), trainer.num_classes)
    with threads_for(views.views.numel()):
        for number in fold[fold >= 0].unique():
            out = fold == number
            run = kind(trainer, cfg, FeatureSet(views.views[:, ~out], labels[~out])).fitted()
            logits[out.cpu()] = logits_of(run, queries[out], trainer.num_classes)
    tested = (fold >= 0).cpu()
    zero_shot = torch.nn.functional.normalize(queries, dim=-1) @ trainer.zero_shot_weights().t()
    return logits[tested].numpy(), zero_shot.float().cpu()[tested].numpy(), labels.cpu()[tested].numpy()


def chosen_labels(
    probabilities: NDArray[Any], ok: NDArray[Any], labels: NDArray[Any], top_k: int, unknown_below: float | None
) -> NDArray[Any]:
    """Labels (n, top_k) of the likeliest classes, the first of equal ones; of dtype object if some are None."""
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :top_k]
    chosen = labels[order]
    unsure = np.zeros(order.shape, dtype=bool)
    if unknown_below is not None:
        unsure = np.take_along_axis(probabilities, order, axis=1) < unknown_below
    unsure |= ~ok[:, None]
    if unsure.any():
        chosen = chosen.astype(object)
        chosen[unsure] = None
    return chosen


def check_threshold(unknown_below: Any) -> None:
    """Raise a UserError unless the threshold is None or a probability."""
    number = isinstance(unknown_below, int | float | np.integer | np.floating) and not isinstance(unknown_below, bool)
    if unknown_below is not None and not (number and 0 <= unknown_below <= 1):
        raise UserError(f"unknown_below is {shown(unknown_below)}; it is a probability, 0 to 1")


def checked_top_k(top_k: int | None, classes: int) -> int:
    """``top_k``; 1 for None."""
    if top_k is None:
        return 1
    if isinstance(top_k, bool) or not isinstance(top_k, int | np.integer) or not 1 <= top_k <= classes:
        raise UserError(f"top_k is {shown(top_k)}; it is 1 to {classes}, the number of classes")
    return int(top_k)


def _named(item: Any, number: int, error: str) -> str:
    """The error for an image, with the image named once."""
    says_name = is_path(item) and f"{os.path.basename(printable(os.fspath(item)))}'" in error
    return error if says_name else f"{named(item, number)}: {error}"


class Unreadable:
    """Handles unreadable images: raises at the first one, or warns about all of them at the end."""

    def __init__(self, on_error: str) -> None:
        self.on_error, self.count, self.first = on_error, 0, list[str]()

    def add(self, errors: Mapping[int, str], items: Sequence[Any], start: int) -> None:
        for number, error in errors.items():
            item = items[number - start]
            if self.on_error == "raise":
                gone = is_path(item) and not os.path.exists(os.path.expanduser(item))
                raise (MissingFileError if gone else UserError)(_named(item, number, error))
            self.count += 1
            if len(self.first) < _MOST_NAMED:
                self.first.append(_named(item, number, error))

    def warn(self) -> None:
        if self.count:
            more = f"; and {self.count - len(self.first)} more" if self.count > len(self.first) else ""
            count = "1 image" if self.count == 1 else f"{self.count:,} images"
            warnings.warn(f"{count} could not be read: {'; '.join(self.first)}{more}", stacklevel=_level_of_caller())


def _level_of_caller() -> int:
    """The ``stacklevel`` with which the calling function's warning points at the user's code, not at this package."""
    package, frame, level = os.path.dirname(dassl_lite.__file__) + os.sep, sys._getframe(1), 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith(package):
        frame, level = frame.f_back, level + 1
    return level
