"""`FewShotClassifier`, a scikit-learn style estimator: parameters are stored as given, and `fit` does the work.

Shapes: N images, K classes, D feature width.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.exceptions import NotFittedError

from dassl_lite.classifier import content as contents
from dassl_lite.classifier import export as exporting
from dassl_lite.classifier import folder as folders
from dassl_lite.classifier.content import Content
from dassl_lite.classifier.fitting import ZERO_SHOT, portable, same_without_fit, trained, untrained
from dassl_lite.classifier.head import Head
from dassl_lite.classifier.images import Given, read_images, training_on
from dassl_lite.classifier.labelled import names_by_label, to_learn, to_tell_apart, to_test
from dassl_lite.classifier.predicting import (
    ON_ERROR,
    Answering,
    Prediction,
    check_threshold,
    checked_top_k,
    chosen_labels,
    left_out,
    split_logits,
)
from dassl_lite.classifier.quiet import alone
from dassl_lite.classifier.report import Calibration, calibrated, report_of_logits, report_of_run
from dassl_lite.classifier.values import is_same, label_array
from dassl_lite.data.classes import ClassList
from dassl_lite.data.manager import validates_on_test
from dassl_lite.engine.methods.feature_trainer import FeatureTrainer
from dassl_lite.engine.plugins import load_plugins
from dassl_lite.utils.errors import MissingFileError, UserError, shown, unknown

DEFAULT_METHOD = "Auto"


class FewShotClassifier(ClassNamePrefixFeaturesOutMixin, ClassifierMixin, TransformerMixin, BaseEstimator):
    """A picture classifier on a frozen CLIP, trained on a few examples per class.

        clf = FewShotClassifier(backbone="ViT-B/16").fit("photos")  # a folder per class
        clf.predict(["new.jpg"])

    A fit does what tools/train.py does: the same settings give the same numbers. Without a fit, a classifier with
    ``classes`` is zero-shot CLIP, and changing a parameter takes effect at once; after a fit, it takes effect at the
    next one.

    Args:
        method: a registered method, built in or from a plug-in.
        backbone: a name or file as for ``--backbone``; None for the method's default, the small CLIP that ships with
            the package, which knows drawn shapes only.
        template: prompt with {} for the class name; None for the usual one.
        descriptions: sentences that replace prompts: a JSON file, or a dict from class name to list.
        shots: training images to draw per class; None for the method's default, -1 for all.
        seed: seed of the draw and of training.
        epochs: number of training epochs; None for the method's recipe.
        device: "cpu", "cuda" ...; None for an accelerator if there is one.
        precision: "auto", "fp32", "amp", "fp16" or "bf16"; None for the recipe's.
        options: config keys: the method's own by name (``{"RESIDUAL_SCALE": 0.5}``), others dotted (``"OPTIM.LR"``).
        classes: names of the classes. Without `fit`, those to distinguish; in `fit`, the name used in prompts for each
            label: by position for labels from 0, or a dict from label to name.
        verbose: show log messages and progress.

    Attributes:
        classes_: (K,) labels, in column order.
        temperature_: divides the logits; 1 until `calibrate`.
        report_: the metrics of the run on its test images, or of `evaluate`; None if nothing was evaluated.
        calibration_: the result of `calibrate`, or None.
        messages_: the engine's warnings.

    Raises:
        UserError: a ValueError whose one-line message says what is wrong.
    """

    def __init__(
        self,
        *,
        method: str = DEFAULT_METHOD,
        backbone: str | None = None,
        template: str | None = None,
        descriptions: Any = None,
        shots: int | None = None,
        seed: int = 1,
        epochs: int | None = None,
        device: str | None = None,
        precision: str | None = None,
        options: Mapping[str, Any] | None = None,
        classes: Any = None,
        verbose: bool = False,
    ) -> None:
        self.method = method
        self.backbone = backbone
        self.template = template
        self.descriptions = descriptions
        self.shots = shots
        self.seed = seed
        self.epochs = epochs
        self.device = device
        self.precision = precision
        self.options = options
        self.classes = classes
        self.verbose = verbose

    # ---- fitting --------------------------------------------------------------------------------------------------

    def fit(self, X: Any, y: Any = None) -> FewShotClassifier:
        """Learn from labelled images.

        Args:
            X: a folder with a sub-folder per class, a table, or a feature file, as ``--data`` takes them, split into
                training, validation and test images in the same way; a Hugging Face dataset; or, with ``y``, images
                that are all for training: paths, PIL images or uint8 arrays.
            y: N labels: text, integers or booleans.

        Raises:
            UserError: images, labels or parameters are invalid.
        """
        messages: list[str] = []
        with alone(messages, verbose=bool(self.verbose)):
            load_plugins()
            given = to_learn(X, y, self.classes)
            params = self.get_params(deep=False)
            trainer, zero_shot = trained(params, given.flags, given.training)
            labels = np.array(trainer.dm.dataset.classnames) if given.labels is None else given.labels
            report = report_of_run(trainer, labels, zero_shot)
            self._start(Head(labels, params, trainer=trainer, training=given.training), messages, report)
        return self

    def _start(self, head: Head, messages: list[str], report: dict[str, Any] | None = None) -> None:
        """Set the attributes after a fit, a load, or the first prediction without a fit."""
        self._head, self.messages_, self.report_ = head, messages, report
        self.temperature_ = 1.0
        self.calibration_: Calibration | None = None

    # ---- the fitted trainer ---------------------------------------------------------------------------------------

    def __sklearn_is_fitted__(self) -> bool:
        return self.classes is not None or ("_head" in vars(self) and not self._head.without_fit)

    @property
    def classes_(self) -> NDArray[Any]:
        """(K,) labels, in column order."""
        if not self.__sklearn_is_fitted__():
            raise AttributeError("a FewShotClassifier has classes_ after fit, or with classes for zero-shot CLIP")
        return self._distinguished()[0] if self._is_outdated() else self._head.labels

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.three_d_array = True
        tags.input_tags.string = True
        tags.non_deterministic = False
        return tags

    def _fitted(self) -> Any:
        """The trainer; without a fit, zero-shot CLIP's. Call it within `alone`."""
        if self._is_outdated():
            self._check_fitted()
            labels, names = self._distinguished()
            load_plugins()
            params = self.get_params(deep=False)
            self._start(Head(labels, params, without_fit=True, trainer=untrained(params, names)), [])
        return self._head.built(self.device, verbose=bool(self.verbose))

    def _is_outdated(self) -> bool:
        """Whether there is no fit, and no zero-shot head for the current parameters."""
        head = vars(self).get("_head")
        return head is None or (head.without_fit and not same_without_fit(head.params, self.get_params(deep=False)))

    def _distinguished(self) -> tuple[NDArray[Any], list[str]]:
        """Labels and names without a fit; with other parameters those that there are, also if a class was added."""
        head = vars(self).get("_head")
        if head is None or not is_same(head.params["classes"], self.classes):
            return to_tell_apart(self.classes)
        return head.labels, list(head.current().classes.names)

    @property
    def _trainer(self) -> Any:
        """The trainer after a fit, or after the first prediction of a loaded or copied classifier."""
        return self._head.trainer

    def _check_fitted(self) -> None:
        if not self.__sklearn_is_fitted__():
            raise NotFittedError(
                "this FewShotClassifier is not fitted yet: call fit, or name classes for zero-shot CLIP"
            )

    def _current(self) -> Content:
        """The fitted classifier as plain values."""
        with alone(verbose=bool(self.verbose)):
            self._fitted()
            return self._head.current()

    # ---- predicting -----------------------------------------------------------------------------------------------

    def predict(
        self,
        X: Any,
        top_k: int | None = None,
        unknown_below: float | None = None,
        on_error: str = "warn",
    ) -> NDArray[Any]:
        """The label of each image (N,), or with ``top_k`` the labels of its likeliest classes (N, top_k).

        Args:
            X: images, as in `fit`; a folder means all images below it, a feature file its test images, and an iterator
                may be endless in `stream`.
            top_k: number of classes per image, 1 to K.
            unknown_below: return None where the probability is lower; call `calibrate` first to make it meaningful.
            on_error: "warn" returns None for an image that cannot be read; "raise" raises.
        """
        k = self._checked(top_k, unknown_below, on_error)
        ask, given = self._asking(X, on_error)
        kept = [
            chosen_labels(part.rows, part.ok, ask.labels, k, unknown_below)
            for part in ask.parts(given, ask.probabilities)
        ]
        chosen = np.concatenate(kept) if kept else np.empty((0, k), ask.labels.dtype)
        if not any(part_labels.dtype == object for part_labels in kept):
            chosen = chosen.astype(ask.labels.dtype)
        return chosen if top_k is not None else chosen[:, 0]

    def predict_proba(self, X: Any, on_error: str = "warn") -> NDArray[Any]:
        """Probabilities (N, K) float32, with logits divided by ``temperature_``; NaN for unreadable images."""
        ask, given = self._asking(X, on_error)
        return ask.rows(given, ask.probabilities)[0]

    def decision_function(self, X: Any, on_error: str = "warn") -> NDArray[Any]:
        """Logits (N, K) float32; for two classes their difference (N,), as in scikit-learn."""
        ask, given = self._asking(X, on_error)
        logits, _ = ask.rows(given, ask.logits)
        return logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else logits

    def transform(self, X: Any, on_error: str = "warn") -> NDArray[Any]:
        """Image features (N, D) float32, not normalised."""
        ask, given = self._asking(X, on_error)
        rows, ok = ask.rows(given, lambda features: features)
        if ok.any():
            return rows
        return np.full((len(rows), self._n_features_out), np.nan, np.float32)  # no image gives the width

    @property
    def _n_features_out(self) -> int:
        """Number of columns of `transform`, for which scikit-learn makes names."""
        with alone(verbose=bool(self.verbose)):
            trainer = self._fitted()
        return trainer.input_width if isinstance(trainer, FeatureTrainer) else len(self.classes_)

    def stream(
        self,
        X: Any,
        top_k: int = 1,
        unknown_below: float | None = None,
        on_error: str = "warn",
    ) -> Iterator[Prediction]:
        """Yield a `Prediction` for each image, in order, as it becomes available, in constant memory.

        Args: as in `predict`.
        """
        k = self._checked(top_k, unknown_below, on_error)
        return self._stream(X, k, unknown_below, on_error)

    def _stream(self, X: Any, k: int, unknown_below: float | None, on_error: str) -> Iterator[Prediction]:
        ask, given = self._asking(X, on_error)
        yield from ask.predictions(given, k, unknown_below)

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Accuracy, 0 to 1, on labelled images, as in `fit`; a folder's classes are matched by name.

        Images that cannot be read count as wrong.
        """
        logits, truth, ok = self._tested(X, y, "warn")
        right = np.where(ok, logits.argmax(axis=1) == truth, False).astype(float)
        if sample_weight is None:
            return float(right.mean())
        weights = np.asarray(sample_weight)
        if weights.shape != right.shape or weights.dtype.kind not in "biuf" or not weights.sum() > 0:
            raise UserError(f"sample_weight is {shown(sample_weight)}; it is {len(right):,} numbers of a sum above 0")
        return float(np.average(right, weights=weights))

    def evaluate(self, X: Any, y: Any = None, on_error: str = "warn") -> dict[str, Any]:
        """All metrics on labelled images, in percent; also stored as ``report_``, which `save` writes into the card.

        Returns:
            ``accuracy`` with its 95 % ``interval``, ``error_rate``, ``macro_f1``, ``ece``, ``images``, ``unreadable``
            (left out), ``per_class``, and ``confusion`` (K, K), number of images by true and predicted class.
        """
        logits, truth, ok = self._tested(X, y, on_error)
        if not ok.any():
            raise UserError("there are no images to evaluate on")
        metrics = self._measured(logits[ok], truth[ok])
        self.report_ = {**metrics, "unreadable": int((~ok).sum()), "on": "images given to evaluate"}
        return dict(self.report_)

    def cross_validate(self, folds: int | None = None) -> dict[str, Any]:
        """All metrics on the training images, each left out of a fit in turn; also stored as ``report_``.

        The method is fitted to the other images each time, with the same settings; anything it tunes, it tunes without
        the images left out. Each image is encoded only once. A class's only image is not left out.

        Args:
            folds: number of fits, each of which leaves out its share of every class; None leaves out one image at a
                time.

        Returns:
            The same keys as `evaluate`, and ``zero_shot_accuracy`` on the same images.

        Raises:
            UserError: the method trains the image encoder or its projection, the training images are not available
                (as after `load`), or no class has two.
        """
        if folds is not None and (isinstance(folds, bool) or not isinstance(folds, int | np.integer) or folds < 2):
            raise UserError(f"folds is {shown(folds)}; it is 2 or more, or None to leave out one image at a time")
        with alone(verbose=bool(self.verbose)):
            trainer = self._fitted()
            if getattr(trainer.dm.dataset, "test_only", False) or not trainer.dm.dataset.train_x:
                raise UserError("there are no training images: cross_validate follows fit, in the same program")
            frozen = isinstance(trainer, FeatureTrainer) and not trainer.trains_images and not trainer.takes_states
            if not frozen or trainer.features_kept() != "disk":
                raise UserError(f"{trainer.cfg.TRAINER.NAME} does not work on fixed features: use cross_val_score")
            with tempfile.TemporaryDirectory(prefix="dassl-lite-") as folder, training_on(self._head.training):
                logits, zero_shot, truth = left_out(trainer, folds, folder)
        if not len(truth):
            raise UserError("no class has two training images, so none can be left out")
        metrics = self._measured(logits, truth)
        how = "each left out of the fit in turn" if folds is None else f"left out of the fit in {folds} parts"
        self.report_ = {**metrics, "unreadable": 0, "on": f"training images, {how}"}
        self.report_["zero_shot_accuracy"] = 100.0 * float((zero_shot.argmax(axis=1) == truth).mean())
        return dict(self.report_)

    def _measured(self, logits: NDArray[Any], truth: NDArray[Any]) -> dict[str, Any]:
        """The report on logits (n, K) of images with labels (n,)."""
        with alone(self.messages_, verbose=bool(self.verbose)):
            return report_of_logits(self._fitted(), logits, truth, self.classes_, self.temperature_)

    def calibrate(self, X: Any = None, y: Any = None) -> FewShotClassifier:
        """Set ``temperature_`` so that probabilities match how often predictions are right.

        Args:
            X, y: labelled images that the classifier was not fitted on; by default the validation images of the fit.

        Raises:
            UserError: there are no such images.
        """
        with alone(verbose=bool(self.verbose)):
            trainer = self._fitted()
        if X is None:
            with alone(self.messages_, verbose=bool(self.verbose)):
                val_loader = getattr(trainer, "val_loader", None)
                if val_loader is None or not trainer.dm.dataset.val or validates_on_test(trainer.dm.dataset):
                    raise UserError(
                        "there are no validation images: pass calibrate(X, y) images that the fit has not seen, or fit "
                        "a folder or a table, of which some are kept for that"
                    )
                chosen_on = split_logits(trainer, val_loader)
                test = None if trainer.test_loader is None else split_logits(trainer, trainer.test_loader)
            source = "validation images of the fit"
        else:
            logits, truth, ok = self._tested(X, y, "warn")
            chosen_on, test, source = (logits[ok], truth[ok]), None, "images given to calibrate"
        if not len(chosen_on[1]):
            raise UserError("there are no images to calibrate on")
        self.calibration_ = calibrated(chosen_on, source, test)
        self.temperature_ = self.calibration_.temperature
        return self

    # ---- classes that come and go ---------------------------------------------------------------------------------

    def add_class(self, name: Any, images: Any = None) -> FewShotClassifier:
        """Add a class without retraining, where the method allows it.

        Methods that learn nothing per class need only its name, no images. Closed-form methods are recomputed from the
        images of the fit and ``images``. Methods that train a row per class start the new row at zero-shot and take no
        images; to use images, fit again.

        Args:
            name: its label, of the same type as the others; if ``classes`` names it, prompts use that name.
            images: images of the class, as in `fit`.

        Raises:
            UserError: the method does not allow it; nothing has changed.
        """
        with alone(verbose=bool(self.verbose)):  # one block: another thread may change the classes too
            self._fitted()
            classes, labels = self._with_label(name)
            if self._head.learns_from(images, name):
                messages: list[str] = []
                with alone(messages, verbose=bool(self.verbose)):
                    head = self._head.fitted_with(classes, labels, images)
                self._start(head, messages)
            else:
                self._change(classes, labels)
        return self

    def _with_label(self, name: Any) -> tuple[ClassList, NDArray[Any]]:
        """The classes and their labels (K + 1,), including the new one."""
        name = name.item() if isinstance(name, np.generic) else name
        labels, before = self.classes_.tolist(), self._head.classes
        if name in labels:
            raise UserError(f"there is a class {shown(name)} already")
        if isinstance(name, str) and not name.strip():
            raise UserError(f"{shown(name)} is not the name of a class")
        kinds = {type(label) for label in labels}
        if type(name) not in kinds:  # NumPy would turn the existing labels into text
            listed = ", ".join(sorted(kind.__name__ for kind in kinds))
            raise UserError(f"{shown(name)} cannot be a label: those of the fit are of type {listed}")
        prompt_name = names_by_label(self.classes, as_text=isinstance(name, str)).get(name, name)
        return ClassList((*before.names, str(prompt_name)), (*before.ids, "")), label_array([*labels, name])

    def remove_class(self, name: Any) -> FewShotClassifier:
        """Remove a class; the others keep their weights.

        Raises:
            UserError: there is no such class, or it is the only one.
        """
        with alone(verbose=bool(self.verbose)):
            self._fitted()
            known, old = self.classes_.tolist(), self._head.classes
            if name not in known:
                raise unknown("class", name, map(str, known))
            if len(known) == 1:
                raise UserError(f"{shown(name)} is the only class")
            stay = [number for number, label in enumerate(known) if label != name]
            names, ids = (tuple(values[number] for number in stay) for values in (old.names, old.ids))
            self._change(ClassList(names, ids), self.classes_[stay])
        return self

    def _change(self, classes: ClassList, labels: NDArray[Any]) -> None:
        """Rebuild the trainer for other classes."""
        with alone(self.messages_, verbose=bool(self.verbose)):
            self._head = self._head.with_classes(classes, labels, self.device, verbose=bool(self.verbose))
        self.report_ = self.calibration_ = None  # they were about the old classes

    # ---- saving ---------------------------------------------------------------------------------------------------

    def save(self, folder: str | os.PathLike[str]) -> FewShotClassifier:
        """Write ``model.safetensors`` (the head), ``config.json`` and ``README.md`` (a model card) into a folder.

        Raises:
            UserError: the folder holds a run or unrelated files of these names, or cannot be written.
        """
        self._check_fitted()
        place, current = folders.place_of(folder), self._current()
        folders.write(place, current, self._described(current))
        return self

    def _described(self, current: Content) -> folders.Described:
        return folders.Described(
            params=portable(self._head.params, current),
            labels=self.classes_.tolist(),
            temperature=self.temperature_,
            report=self.report_,
            calibration=None if self.calibration_ is None else self.calibration_._asdict(),
            shots=self._head.shots(),
        )

    def export(self, folder: str | os.PathLike[str], format: str = "onnx", images: Any = None) -> exporting.Agreement:
        """Export the classifier for other programs, as tools/export.py does, and compare the result with this one.

        Args:
            folder: a new or empty folder.
            format: "onnx" (pictures in, probabilities out, with a script that uses it), "torch" (the same as an
                ExportedProgram) or "npz" (weights (K, D), for your own features).
            images: images to compare on; by default the test images of the fit or the run, else the training images,
                else noise.

        Raises:
            UserError: the method cannot be exported to this format, or the export's predictions would differ.
        """
        with alone(getattr(self, "messages_", None), verbose=bool(self.verbose)):
            return exporting.export(
                Path(folder),
                format,
                self._exported,
                lambda: self._head.pictures() if images is None else _listed(images),
            )

    def _exported(self) -> exporting.Source:
        """A separate copy of the trainer, in float32 on the CPU."""
        self._check_fitted()
        self._fitted()
        current = self._head.current()
        float32 = contents.in_float32(current)
        trainer = contents.rebuilt(float32, use_accelerator=False, verbose=False, where="the classifier")
        return exporting.Source(trainer, self.classes_.tolist(), self.temperature_, current.template)

    @classmethod
    def load(
        cls, folder: str | os.PathLike[str], *, device: str | None = None, verbose: bool = False
    ) -> FewShotClassifier:
        """Load a classifier from a folder written by `save`, or from a run of tools/train.py.

        The backbone is found or downloaded as for training; its weights must be the same.

        Raises:
            UserError: the folder does not exist, was modified, or does not fit.
        """
        place = folders.place_of(folder)
        if not os.path.isdir(place):
            raise MissingFileError(f"there is no folder '{place}' of a classifier")
        messages: list[str] = []
        with alone(messages, verbose=verbose):
            if folders.holds_classifier(place):
                current, stored = folders.read(place)
            else:
                current, stored = contents.content_of_run(place), None
            names = list(current.classes.names)
            params = {name: value for name, value in (stored.params if stored else {}).items() if name in _PARAMETERS}
            if stored is None:
                params["backbone"] = current.config["MODEL"]["BACKBONE"]["NAME"]
            elif params.get("classes") is None and list(map(str, stored.labels)) != names:  # JSON keys are text
                params["classes"] = dict(zip(stored.labels, names, strict=True))
            params |= {"device": device, "verbose": verbose, "method": current.method}
            classifier = cls(**params)
            head = Head(
                label_array(stored.labels if stored else names),
                classifier.get_params(deep=False),
                without_fit=current.method == ZERO_SHOT
                and classifier.classes is not None
                and not (stored and stored.shots),
                content=current,
                where=str(place),
                known_shots=stored.shots if stored else None,
            )
            classifier._start(head, messages)
            classifier._fitted()
        if stored:
            classifier.temperature_, classifier.report_ = stored.temperature, stored.report
            classifier.calibration_ = Calibration(**stored.calibration) if stored.calibration else None
        return classifier

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike[str], **options: Any) -> FewShotClassifier:
        """Load a classifier from a Hugging Face Hub repository, ``org/name``, or from a folder.

        Args:
            **options: huggingface_hub's ``revision``, ``token``, ``cache_dir``, ``local_files_only`` and
                ``force_download``, and ``device`` and ``verbose`` as for `load`.
        """
        params = {key: options.pop(key) for key in ("device", "verbose") if key in options}
        folders.place_of(name)
        return cls.load(folders.fetched(os.fspath(name), **options), **params)

    def push_to_hub(self, name: str, **options: Any) -> str:
        """Save to a Hugging Face Hub repository, ``org/name``; returns the URL of the commit.

        Args:
            **options: options of ``ModelHubMixin.push_to_hub``, such as ``private``, ``token`` or ``commit_message``.
        """
        self._check_fitted()
        return folders.pushed(self.save, name, **options)

    # ---- images to numbers ----------------------------------------------------------------------------------------

    def _checked(self, top_k: int | None, unknown_below: Any, on_error: str) -> int:
        """Check the arguments of a prediction before any image is read; returns ``top_k``."""
        check_threshold(unknown_below)
        if on_error not in ON_ERROR:
            raise unknown("on_error", on_error, ON_ERROR)
        self._check_fitted()
        with alone(verbose=bool(self.verbose)):
            self._fitted()  # without a fit, the classes are only known afterwards
        return checked_top_k(top_k, len(self.classes_))

    def _asking(self, X: Any, on_error: str) -> tuple[Answering, Given]:
        """The classifier as it is now, and the images to predict."""
        if on_error not in ON_ERROR:
            raise unknown("on_error", on_error, ON_ERROR)
        self._check_fitted()
        given, verbose = read_images(X), bool(self.verbose)
        with alone(verbose=verbose):
            trainer, head = self._fitted(), self._head
            if given.features is None:
                trainer = head.with_encoder(self.device, verbose=verbose)
            return Answering(trainer, head.labels, self.temperature_, on_error, self.messages_, verbose), given

    def _tested(self, X: Any, y: Any, on_error: str) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Logits (N, K), class numbers (N,), and a mask of the images that could be read (N,)."""
        with alone(verbose=bool(self.verbose)):
            self._check_fitted()
            trainer = self._fitted()
        if getattr(trainer, "is_multi_label", False):
            raise UserError(
                "this classifier is of images of several classes each, which score, evaluate and calibrate do not "
                "take; tools/eval.py evaluates its run"
            )
        X, truth = to_test(X, y, self.classes_, self._head.classes, self.messages_, verbose=bool(self.verbose))
        ask, given = self._asking(X, on_error)
        logits, ok = ask.rows(given, ask.logits)
        if len(logits) != len(truth):
            raise UserError(f"X has {len(logits):,} images, but y has {len(truth):,} labels")
        if not len(logits):
            raise UserError("there are no images to evaluate on")
        return logits, truth, ok


def _listed(images: Any) -> list[Any]:
    """A list of images, from whatever `FewShotClassifier.predict` takes."""
    given = read_images(images)
    if given.features is not None:
        raise UserError("an export is compared on pictures, not on features")
    return list(given.items)


_PARAMETERS = FewShotClassifier._get_param_names()
