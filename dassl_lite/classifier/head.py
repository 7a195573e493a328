"""The fitted head of a classifier with its classes, and how it changes when a class is added or removed.

Shapes: K classes.
"""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from dassl_lite.classifier.content import Content, content_of, pictures_of_run, rebuilt
from dassl_lite.classifier.fitting import Parameters, trained, uses_accelerator
from dassl_lite.classifier.folder import holds_classifier
from dassl_lite.classifier.images import Training, read_images
from dassl_lite.classifier.labelled import flags_of
from dassl_lite.classifier.quiet import alone
from dassl_lite.data.classes import ClassList
from dassl_lite.engine.files.class_rows import ClassRows
from dassl_lite.engine.methods.feature_trainer import FeatureTrainer
from dassl_lite.utils.errors import UserError, shown

THE_CLASSIFIER = "the classifier"  # where a head comes from, for messages


@dataclass
class Head:
    """A fitted trainer, or the content to build one from on first use; copies have the content.

    Attributes:
        labels: (K,) labels of the classes.
        params: parameters of `FewShotClassifier` when the head was made; later changes apply to the next fit.
        without_fit: whether it is zero-shot CLIP, which is rebuilt when a parameter changes.
        trainer: a trainer that is ready to predict.
        content: what the trainer is built from; None after a fit.
        training: the images of the fit, if a program passed them.
        where: folder that the head was loaded from.
        known_shots: number of training images of each class, for a trainer that has no images itself.
    """

    labels: NDArray[Any]
    params: Parameters
    without_fit: bool = False
    trainer: Any = None
    content: Content | None = None
    training: Training | None = None
    where: str | None = None
    known_shots: list[int] | None = None
    _encoding: Any = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.params = copy.deepcopy(dict(self.params))

    def built(self, device: str | None, *, verbose: bool) -> Any:
        """The trainer, built if necessary. Call it within `alone`.

        Args:
            device: device to build the trainer on, as `FewShotClassifier` takes it.
            verbose: show its log messages.
        """
        if self.trainer is None:
            use_accelerator = uses_accelerator(device)
            self.trainer = rebuilt(
                self.current(), use_accelerator=use_accelerator, verbose=verbose, where=self.where or THE_CLASSIFIER
            )
        return self.trainer

    def current(self) -> Content:
        """The fitted classifier as plain values."""
        if self.trainer is None:
            assert self.content is not None, "a head has one or the other"
            return self.content
        return content_of(self.trainer, self.content)

    def __getstate__(self) -> dict[str, Any]:
        """State for pickles and copies, without the trainer (it holds the backbone) and without the images."""
        state = {**vars(self), "trainer": None, "training": None, "_encoding": None}
        if self.trainer is not None:
            with alone():
                state["content"], state["known_shots"] = self.current(), self.shots()
        return state

    @property
    def classes(self) -> ClassList:
        """Names and ids of the trainer's classes, in label order."""
        return self.trainer.target_classes() or ClassList(tuple(self.trainer.dm.dataset.classnames))

    def shots(self) -> list[int]:
        """Number of training images of each class; empty if that is not known."""
        if self.known_shots is not None and len(self.known_shots) == len(self.labels):
            return list(self.known_shots)
        data = self.trainer.dm.dataset
        if getattr(data, "test_only", False):
            return []
        counts = Counter(item.label for item in data.train_x)
        return [counts[label] for label in range(len(self.labels))]

    def pictures(self) -> list[str]:
        """The files of the test images of the fit or the loaded run, else of the training images; empty if there are
        only features."""
        data, where = self.trainer.dm.dataset, Path(self.where or "")
        if getattr(data, "test_only", False) and self.where is not None and not holds_classifier(where):
            return pictures_of_run(where)
        if getattr(data, "test_only", False) or getattr(getattr(self.trainer, "features", None), "is_file", False):
            return []
        return [item.impath for item in data.test or data.train_x]

    def with_encoder(self, device: str | None, *, verbose: bool) -> Any:
        """The trainer; after a fit on a feature file, which needs no encoder, the same head on the backbone that made
        the features."""
        if not isinstance(self.trainer, FeatureTrainer) or not self.trainer.features.is_file:
            return self.trainer
        if self._encoding is None:
            use_accelerator = uses_accelerator(device)
            self._encoding = rebuilt(
                self.current(), use_accelerator=use_accelerator, verbose=verbose, where=THE_CLASSIFIER
            )
        return self._encoding

    # ---- other classes ----------------------------------------------------------------------------------------------

    def with_classes(self, classes: ClassList, labels: NDArray[Any], device: str | None, *, verbose: bool) -> Head:
        """The head for other classes; rows of classes that it knows are picked by id or name.

        Raises:
            UserError: the method cannot change its classes.
        """
        current, use_accelerator = self.current(), uses_accelerator(device)
        trainer = rebuilt(current, classes, use_accelerator=use_accelerator, verbose=verbose, where=THE_CLASSIFIER)
        return replace(
            self, labels=labels, trainer=trainer, content=content_of(trainer, current), training=None, known_shots=None
        )

    def learns_from(self, images: Any, label: Any) -> bool:
        """Whether the images of a new class change the head, so that it has to be recomputed.

        Args:
            images: images of the class, or None.
            label: label of the class, for messages.

        Raises:
            UserError: the method would have to be retrained.
        """
        if images is None:
            return False
        trainer, method = self.trainer, self.trainer.cfg.TRAINER.NAME
        if not any(ClassRows.of(trainer._models[name]).dims for name in trainer.get_model_names()):
            warnings.warn(f"{method} knows a class by its name: its images are not used", stacklevel=3)
            return False
        if isinstance(trainer, FeatureTrainer) and trainer.uses_shots and not trainer.has_epochs():
            return True
        raise UserError(f"{method} trains a row for each class: fit again with the images of {shown(label)}")

    def fitted_with(self, classes: ClassList, labels: NDArray[Any], images: Any) -> Head:
        """The head of a closed-form method, recomputed with the same parameters and the images of a new, last class."""
        trainer = self.trainer
        data, given = trainer.dm.dataset, read_images(images)
        if getattr(data, "test_only", False) or not data.train_x or trainer.features.is_file:
            raise UserError(
                f"{trainer.cfg.TRAINER.NAME} needs the images of its fit for a new class: fit again with all"
            )
        items, new = [item.impath for item in data.train_x], list(given.items)
        if not new:
            raise UserError("there are no images of the new class")
        val = data.val if trainer.has_selection_set else []
        training = Training(
            classes,
            [*items, *new],
            [*(item.label for item in data.train_x), *[len(classes) - 1] * len(new)],
            [item.impath for item in val],
            [item.label for item in val],
            tuple(data.ensemble_templates),
            trainer.template,
        )
        flags = {**flags_of(given.are_paths and not trainer.cfg.DATASET.FEATURES.DIR), "DATASET.NUM_SHOTS": -1}
        return Head(labels, self.params, trainer=trained(self.params, flags, training)[0], training=training)
