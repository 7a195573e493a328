"""`FewShotClassifier`, in scikit-learn's manner: parameters are stored as given, and the work is done in `fit`.

Shapes: N images, K classes, D feature width.
"""

from __future__ import annotations

import os
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, TransformerMixin
from sklearn.exceptions import NotFittedError
from torch import Tensor
from tqdm import tqdm
from yacs.config import CfgNode

from dassl_lite.classifier import content as contents
from dassl_lite.classifier import export as exporting
from dassl_lite.classifier import folder as folders
from dassl_lite.classifier.content import Content, content_of, rebuilt, refuse_transductive
from dassl_lite.classifier.images import (
    GIVEN,
    Given,
    Training,
    hugging_face_labels,
    is_hugging_face,
    is_path,
    read_images,
    require,
    spool,
    training_on,
)
from dassl_lite.classifier.predicting import (
    ON_ERROR,
    Prediction,
    Unreadable,
    check_threshold,
    checked_top_k,
    chosen_labels,
    left_out,
    logits_of,
    parts_of,
    probabilities_of,
    rows_of,
    split_logits,
)
from dassl_lite.classifier.quiet import alone
from dassl_lite.classifier.report import Calibration, best_temperature, calibration_error, report
from dassl_lite.classifier.values import is_plain, label_array, listed_values, plain, plain_list, texts
from dassl_lite.data import build_dataset
from dassl_lite.data.classes import ClassList, match_classes
from dassl_lite.data.manager import validates_on_test
from dassl_lite.engine.build import TRAINER_REGISTRY, default_recipe, make_config
from dassl_lite.engine.commands import run
from dassl_lite.engine.commands.arguments import nested, own_data
from dassl_lite.engine.files.class_rows import ClassRows
from dassl_lite.engine.methods.feature_trainer import FeatureTrainer
from dassl_lite.engine.plugins import load_plugins
from dassl_lite.evaluation import build_evaluator
from dassl_lite.utils.devices import accelerator
from dassl_lite.utils.errors import MissingFileError, UserError, nearest, shown, unknown
from dassl_lite.utils.files import write_json

DEFAULT_METHOD = "Auto"
ZERO_SHOT = "ZeroshotCLIP"  # the method without fit
DESCRIPTIONS = "descriptions.json"  # in the folder of a run: those that a program passes
_HIDDEN = ("_trainer", "_training")  # of an object, not of its copies


class FewShotClassifier(ClassifierMixin, TransformerMixin, BaseEstimator):
    """A classifier of pictures from a few examples per class, on a frozen CLIP.

        clf = FewShotClassifier(backbone="ViT-B/16").fit("photos")  # a folder per class
        clf.predict(["new.jpg"])

    A fit does what tools/train.py does: with the same settings it finds the same numbers. Without one, a classifier
    with ``classes`` is zero-shot CLIP.

    Args:
        method: a registered method, a plug-in's too.
        backbone: of ``--backbone``; None for the method's default, which is the small CLIP that ships with the package:
            it knows drawn shapes only.
        template: prompt with {} for the class name; None for the usual one.
        descriptions: sentences in place of prompts: a JSON file, or a dict from class name to list.
        shots: training images per class that are drawn; None for the method's default, -1 for all.
        seed: of the draw and of training.
        epochs: of training; None as the method's recipe says.
        device: "cpu", "cuda" ...; None for an accelerator if there is one.
        precision: "auto", "fp32", "amp", "fp16" or "bf16"; None as the recipe says.
        options: config keys: the method's own by name (``{"RESIDUAL_SCALE": 0.5}``), others dotted (``"OPTIM.LR"``).
        classes: names of the classes. Without `fit`, those to tell apart; in `fit`, the name that prompts take for each
            label: by position for labels from 0, or a dict from label to name.
        verbose: show what is logged, and progress.

    Attributes:
        classes_: (K,) labels, in the order of columns.
        temperature_: logits are divided by it; 1 until `calibrate`.
        report_: what the run found on its test images, or `evaluate` on others; None if nothing was evaluated.
        calibration_: what `calibrate` found, or None.
        messages_: what the engine warned of.

    Raises:
        UserError: a ValueError of one line, of whatever is wrong.
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
                training, validation and test images as there; a Hugging Face dataset; or images, with ``y``: paths, PIL
                images or uint8 arrays, which all are for training.
            y: N labels, text or whole numbers.

        Raises:
            UserError: whatever is wrong with images, labels or parameters.
        """
        messages: list[str] = []
        with alone(messages, verbose=bool(self.verbose)):
            load_plugins()
            labels, flags, training = self._labelled(X, y)
            trainer, zero_shot = self._trained(flags, training)
            self._trainer, self._training = trainer, training
            if labels is None:
                labels = np.array(trainer.dm.dataset.classnames)
            self._start(labels, messages, trainer, zero_shot)
        return self

    def _start(
        self, labels: NDArray[Any], messages: list[str], trainer: Any = None, zero_shot: float | None = None
    ) -> None:
        """Attributes after a fit, of which ``trainer`` is what has been trained."""
        self.classes_, self.messages_ = labels, messages
        self.temperature_ = 1.0
        self.calibration_: Calibration | None = None
        self.report_ = None if trainer is None else _report_of_run(trainer, labels, zero_shot)
        self._content: Content | None = None
        for known in ("_shots", "_where"):  # of what was loaded before
            self.__dict__.pop(known, None)

    def _labelled(self, X: Any, y: Any) -> tuple[NDArray[Any] | None, dict[str, Any], Training | None]:
        """Labels of the classes, config keys, and the images where they are not on disk as the engine reads them."""
        if y is None and is_path(X):
            require(os.path.expanduser(X))
            return None, own_data(os.fspath(X)), None
        if y is None:
            if not is_hugging_face(X):
                raise UserError("fit needs labels, y, unless X is a folder, a table, a feature file or a dataset")
            y = hugging_face_labels(X)
        given = read_images(X)
        if given.features is not None:
            raise UserError(
                "fit takes features from a feature file (.npz), which has text features beside them; see "
                "datasets/README.md"
            )
        if given.total is None:
            given = Given(items := list(given.items), len(items))
        listed = listed_values(y)
        if len(listed) != given.total:
            raise UserError(f"X has {given.total:,} images, but y has {len(listed):,} labels")
        if not listed:
            raise UserError("there are no images to learn from")
        labels, names = self._names(listed)
        numbers = {label: number for number, label in enumerate(labels.tolist())}
        training = Training(ClassList(tuple(names)), given.items, [numbers[label] for label in listed])  # type: ignore[arg-type]
        flags = {"DATASET.NAME": GIVEN, "TEST.NO_TEST": True}
        if not given.are_paths:
            flags["DATASET.FEATURES.DIR"] = str(spool().folder / "features")
        return labels, flags, training

    def _names(self, listed: list[Any]) -> tuple[NDArray[Any], list[str]]:
        """The labels that occur, sorted, and the name that prompts take for each."""
        if wrong := [one for one in listed if not isinstance(one, str | int | bool)]:
            raise UserError(f"y has {shown(wrong[0])}, which is no label; labels are text or whole numbers")
        if any(isinstance(one, str) and not one.strip() for one in listed):
            raise UserError("y has an empty label; a class needs a name")
        label_array(listed)  # refuses several types, of which no order is
        labels = label_array(sorted(set(listed)))
        if self.classes is None:
            return labels, [str(label) for label in labels.tolist()]
        known = self._given_names(as_text=labels.dtype.kind == "U")
        if missing := [label for label in labels.tolist() if label not in known]:
            raise UserError(f"classes has no name for label {shown(missing[0])} of y")
        return labels, [str(known[label]) for label in labels.tolist()]

    def _given_names(self, *, as_text: bool) -> dict[Any, Any]:
        """The parameter ``classes`` as a dict from label, which is text or a number, to name."""
        if self.classes is None:
            return {}
        if isinstance(self.classes, Mapping):
            return dict(zip(listed_values(list(self.classes)), texts(list(self.classes.values())), strict=True))
        names = texts(self.classes)
        return {name: name for name in names} if as_text else dict(enumerate(names))

    def _trained(self, flags: Mapping[str, Any], training: Training | None) -> tuple[Any, float | None]:
        """A trainer that has been trained, as a run of tools/train.py; and the zero-shot accuracy before."""
        with _run_folder() as folder, training_on(training):
            cfg = self._config({**flags, "OUTPUT_DIR": folder}, Path(folder))
            trainer = run.seeded(cfg)
            refuse_transductive(trainer)
            if getattr(trainer, "is_multi_label", False):
                raise UserError(
                    "images of several classes each: tools/train.py learns them, FewShotClassifier does not"
                )
            trainer.init_writer = lambda log_dir: None  # its folder is temporary
            if isinstance(trainer, FeatureTrainer):
                trainer.features.shows_progress = bool(self.verbose)
            zero_shot = run.before_training(trainer)
            trainer.train()
        trainer.set_model_mode("eval")
        return trainer, zero_shot

    def _config(self, flags: Mapping[str, Any], folder: Path, method: str = "") -> CfgNode:
        """The config of a run with these parameters, and with these config keys."""
        method = method or self.method
        kind = TRAINER_REGISTRY.get(method)
        node = kind.node_name() if hasattr(kind, "node_name") else method
        values = {
            "MODEL.BACKBONE.NAME": self.backbone,
            "DATASET.TEMPLATE": self.template,
            "DATASET.DESCRIPTIONS": self._descriptions_file(folder),
            "DATASET.NUM_SHOTS": self.shots,
            "SEED": self.seed,
            "OPTIM.MAX_EPOCH": self.epochs,
            f"TRAINER.{node}.PREC": self.precision,
            "USE_CUDA": self._use_accelerator(),
            "VERBOSE": bool(self.verbose),
        }
        if method == self.method:
            options = self._options(method, node)
            twice = [
                key for key in options if values.get(key) is not None and key not in ("SEED", "USE_CUDA", "VERBOSE")
            ]
            if twice:
                raise UserError(f"options has {twice[0]}, which a parameter sets too; give one of them")
            values |= options
        values |= flags
        given = {key: plain(value) for key, value in values.items() if value is not None}
        return make_config(
            trainer=method, method_file=default_recipe(method), flags=nested(given), source="FewShotClassifier"
        )

    def _options(self, method: str, node: str) -> dict[str, Any]:
        if not isinstance(self.options or {}, Mapping):
            raise UserError(f"options is {shown(self.options)}; it is a dict from config key to value")
        found, known = {}, contents.method_keys(method)
        for key, value in (self.options or {}).items():
            if "." in str(key):
                found[str(key)] = value
            elif key in known:
                found[f"TRAINER.{node}.{key}"] = value
            else:
                raise unknown(f"option of {method}", key, known, hint='Others are dotted, such as "OPTIM.LR".')
        return found

    def _descriptions_file(self, folder: Path) -> str | None:
        if not isinstance(self.descriptions, Mapping):
            return None if self.descriptions is None else os.fspath(self.descriptions)
        path = folder / DESCRIPTIONS
        write_json({str(name): plain_list(sentences) for name, sentences in self.descriptions.items()}, path)
        return str(path)

    def _use_accelerator(self) -> bool:
        if self.device is None:
            return True
        wanted, own = str(self.device).partition(":")[0], accelerator()
        if wanted not in ("cpu", own):
            raise UserError(
                f"device {shown(self.device)} is not on this machine; it has cpu{f', {own}' if own else ''}"
            )
        return wanted != "cpu"

    # ---- the fitted trainer ---------------------------------------------------------------------------------------

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "classes_") or self.classes is not None

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.three_d_array = True
        tags.input_tags.string = True
        tags.non_deterministic = False
        return tags

    def _fitted(self) -> Any:
        """The trainer; without a fit, that of zero-shot CLIP. Within `alone`."""
        if "_trainer" in vars(self):
            return self._trainer
        if getattr(self, "_content", None) is not None:
            where, own = getattr(self, "_where", "the classifier"), self._use_accelerator()
            self._trainer = rebuilt(self._content, use_accelerator=own, verbose=bool(self.verbose), where=where)  # type: ignore[arg-type]
            return self._trainer
        self._check_fitted()
        names = texts(list(self.classes.values()) if isinstance(self.classes, Mapping) else self.classes)
        if not names:
            raise UserError("classes is empty; name those to tell apart")
        if len(set(names)) < len(names):
            raise UserError(f"classes has {shown(Counter(names).most_common(1)[0][0])} twice")
        labels = label_array(listed_values(list(self.classes)) if isinstance(self.classes, Mapping) else names)
        with _run_folder() as folder, training_on(Training(ClassList(tuple(names)))):
            load_plugins()
            flags = {"DATASET.NAME": GIVEN, "DATASET.NUM_SHOTS": -1, "OUTPUT_DIR": folder}
            trainer = run.seeded(self._config(flags, Path(folder), ZERO_SHOT))
        trainer.set_model_mode("eval")
        self._start(labels, [])
        self._trainer, self._training = trainer, None
        return trainer

    def _check_fitted(self) -> None:
        if not self.__sklearn_is_fitted__():
            raise NotFittedError(
                "this FewShotClassifier is not fitted yet: call fit, or name classes for zero-shot CLIP"
            )

    def __getstate__(self) -> dict[str, Any]:
        """For pickles and copies: the parameters, and the fitted head without its backbone."""
        state = {key: value for key, value in vars(self).items() if key not in _HIDDEN}
        if "_trainer" in vars(self):
            state["_content"], state["_shots"] = self._current(), self._shots_known()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def _current(self) -> Content:
        """The fitted classifier as plain values."""
        with alone(verbose=bool(self.verbose)):
            return content_of(self._fitted(), getattr(self, "_content", None))

    # ---- predicting -----------------------------------------------------------------------------------------------

    def predict(
        self,
        X: Any,
        top_k: int | None = None,
        unknown_below: float | None = None,
        on_error: str = "warn",
    ) -> NDArray[Any]:
        """The label of each image (N,), or with ``top_k`` those of the likeliest classes (N, top_k).

        Args:
            X: images, as in `fit`; a folder is all images below it, a feature file its test images, and an iterator may
                be endless in `stream`.
            top_k: 1 to K.
            unknown_below: None is answered where the probability is lower; `calibrate` makes that mean something.
            on_error: "warn" answers None for an image that cannot be read; "raise" raises.
        """
        k = self._checked(top_k, unknown_below, on_error)
        kept = [
            chosen_labels(probabilities, ok, self.classes_, k, unknown_below)
            for probabilities, ok in self._batches(X, on_error, self._probabilities)
        ]
        found = np.concatenate(kept) if kept else np.empty((0, k), self.classes_.dtype)
        if not any(one.dtype == object for one in kept):
            found = found.astype(self.classes_.dtype)
        return found if top_k is not None else found[:, 0]

    def predict_proba(self, X: Any, on_error: str = "warn") -> NDArray[Any]:
        """Probabilities (N, K) float32, of logits divided by ``temperature_``; NaN for an image that cannot be read."""
        return self._joined(X, on_error, self._probabilities)

    def decision_function(self, X: Any, on_error: str = "warn") -> NDArray[Any]:
        """Logits (N, K) float32; of two classes, as scikit-learn has it, their difference (N,)."""
        logits = self._joined(X, on_error, self._logits)
        return logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else logits

    def transform(self, X: Any, on_error: str = "warn") -> NDArray[Any]:
        """Image features (N, D) float32, not normalised."""
        found = self._joined(X, on_error, lambda features: features)
        trainer = self._trainer
        if len(found) and not np.isnan(found).all():
            return found
        width = trainer.input_width if isinstance(trainer, FeatureTrainer) else len(self.classes_)
        return np.full((len(found), width), np.nan, np.float32)  # no image that says how wide features are

    def stream(
        self,
        X: Any,
        top_k: int = 1,
        unknown_below: float | None = None,
        on_error: str = "warn",
    ) -> Iterator[Prediction]:
        """A `Prediction` for each image, in order, as they are made, in constant memory.

        Args: as in `predict`.
        """
        return self._stream(X, self._checked(top_k, unknown_below, on_error), unknown_below, on_error)

    def _stream(self, X: Any, k: int, unknown_below: float | None, on_error: str) -> Iterator[Prediction]:
        for items, errors, probabilities, ok in self._encoded(X, on_error, self._probabilities):
            chosen = chosen_labels(probabilities, ok, self.classes_, k, unknown_below)
            best = np.sort(probabilities, axis=1)[:, ::-1][:, :k]
            for number, item in enumerate(items):
                row = tuple(float(value) for value in best[number]) if ok[number] else ()
                yield Prediction(
                    item, tuple(chosen[number].tolist()) if ok[number] else (None,), row, errors.get(number, "")
                )

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
        """All metrics on labelled images, in percent; they become ``report_``, which `save` writes into the card.

        Returns:
            ``accuracy`` with its 95 % ``interval``, ``error_rate``, ``macro_f1``, ``ece``, ``images``, ``unreadable``
            (left out), ``per_class``, and ``confusion`` (K, K), number of images by true and predicted class.
        """
        logits, truth, ok = self._tested(X, y, on_error)
        if not ok.any():
            raise UserError("there are no images to evaluate on")
        found = self._measured(logits[ok], truth[ok])
        self.report_ = {**found, "unreadable": int((~ok).sum()), "on": "images given to evaluate"}
        return dict(self.report_)

    def cross_validate(self, folds: int | None = None) -> dict[str, Any]:
        """All metrics on the training images, each of which is left out of a fit in turn; they become ``report_``.

        The method is fitted to the others each time, with the same settings; what it chooses for itself it chooses
        without the image left out. An image is encoded once, not once for each fit. A class's only image is not left
        out.

        Args:
            folds: number of fits, each of which leaves out its share of every class; None leaves out one image at a
                time.

        Returns:
            As `evaluate`, and ``zero_shot_accuracy`` on the same images.

        Raises:
            UserError: the method trains the image encoder or its projection, the training images are not at hand, as
                after `load`, or no class has two.
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
            with tempfile.TemporaryDirectory(prefix="dassl-lite-") as folder, training_on(self._training):
                logits, zero_shot, truth = left_out(trainer, folds, folder)
        if not len(truth):
            raise UserError("no class has two training images, so none can be left out")
        found = self._measured(logits, truth)
        how = "each left out of the fit in turn" if folds is None else f"left out of the fit in {folds} parts"
        self.report_ = {**found, "unreadable": 0, "on": f"training images, {how}"}
        self.report_["zero_shot_accuracy"] = 100.0 * float((zero_shot.argmax(axis=1) == truth).mean())
        return dict(self.report_)

    def _measured(self, logits: NDArray[Any], truth: NDArray[Any]) -> dict[str, Any]:
        """The report on logits (n, K) of images with labels (n,)."""
        with alone(self.messages_, verbose=bool(self.verbose)):
            cfg = self._fitted().cfg.clone()
            cfg.defrost()
            cfg.TEST.COMPUTE_CMAT, cfg.TEST.PER_CLASS_RESULT, cfg.TEST.EVALUATOR = False, False, "Classification"
            evaluator: Any = build_evaluator(cfg, lab2cname=dict(enumerate(map(str, self.classes_.tolist()))))
            evaluator.most_kept = sys.maxsize  # the report is of every image
            evaluator.process(torch.from_numpy(logits / self.temperature_), torch.from_numpy(truth))
            results = evaluator.evaluate()
            return report(results, evaluator._y_true, evaluator._y_pred, self.classes_.tolist())

    def calibrate(self, X: Any = None, y: Any = None) -> FewShotClassifier:
        """Set ``temperature_``, so that probabilities say how often they are right.

        Args:
            X, y: labelled images that the classifier was not fitted on; by default the validation images of the fit.

        Raises:
            UserError: there are none.
        """
        with alone(verbose=bool(self.verbose)):
            trainer = self._fitted()
        if X is None:
            with alone(self.messages_, verbose=bool(self.verbose)):
                own = getattr(trainer, "val_loader", None)
                if own is None or not trainer.dm.dataset.val or validates_on_test(trainer.dm.dataset):
                    raise UserError(
                        "there are no validation images: pass calibrate(X, y) images that the fit has not seen, or fit "
                        "a folder or a table, of which some are kept for that"
                    )
                logits, truth = split_logits(trainer, own)
                test = None if trainer.test_loader is None else split_logits(trainer, trainer.test_loader)
            source = "validation images of the fit"
        else:
            logits, truth, ok = self._tested(X, y, "warn")
            logits, truth, test, source = logits[ok], truth[ok], None, "images given to calibrate"
        if not len(truth):
            raise UserError("there are no images to calibrate on")
        self.temperature_ = best_temperature(logits, truth)
        seen, labels = (logits, truth) if test is None else test
        self.calibration_ = Calibration(
            temperature=self.temperature_,
            images=len(truth),
            chosen_on=source,
            ece_before=calibration_error(seen, labels, 1.0),
            ece_after=calibration_error(seen, labels, self.temperature_),
            measured_on=source if test is None else "test images of the fit",
        )
        return self

    # ---- classes that come and go ---------------------------------------------------------------------------------

    def add_class(self, name: Any, images: Any = None) -> FewShotClassifier:
        """Add a class without training anew, where the method allows it.

        Methods that learn nothing per class know it by its name, and need no images. Those in closed form are computed
        again from the images of the fit and ``images``. Those that train a row for each class start the new one as
        zero-shot, without images; with images they have to be fitted again.

        Args:
            name: its label, of the type of the others; prompts take its name in ``classes``, if that has one.
            images: of the class, as in `fit`.

        Raises:
            UserError: the method does not allow it; nothing has changed.
        """
        with alone(verbose=bool(self.verbose)):
            trainer = self._fitted()
        if name in self.classes_.tolist():
            raise UserError(f"there is a class {shown(name)} already")
        if isinstance(name, str) and not name.strip():
            raise UserError(f"{shown(name)} is no name of a class")
        name = name.item() if isinstance(name, np.generic) else name
        kinds = {type(label) for label in self.classes_.tolist()}
        if type(name) not in kinds:  # NumPy would turn the labels that there are into text
            known = ", ".join(sorted(kind.__name__ for kind in kinds))
            raise UserError(f"{shown(name)} cannot be a label beside those of the fit, which are of type {known}")
        names = list(self._class_list(trainer).names)
        labels = label_array([*self.classes_.tolist(), name])
        own = self._given_names(as_text=isinstance(name, str)).get(name, name)
        classes = ClassList((*names, str(own)), (*self._class_list(trainer).ids, ""))
        per_class = any(ClassRows.of(trainer._models[one]).dims for one in trainer.get_model_names())
        closed_form = isinstance(trainer, FeatureTrainer) and trainer.uses_shots and not trainer.has_epochs()
        if images is not None and per_class and closed_form:
            self._refit(trainer, classes, labels, images)
            return self
        if images is not None and per_class:
            method = trainer.cfg.TRAINER.NAME
            raise UserError(f"{method} trains a row for each class: fit again with the images of {shown(name)}")
        if images is not None:
            warnings.warn(
                f"{trainer.cfg.TRAINER.NAME} knows a class by its name: its images are not used", stacklevel=2
            )
        self._change(classes, labels)
        return self

    def remove_class(self, name: Any) -> FewShotClassifier:
        """Remove a class; the others stay as they are.

        Raises:
            UserError: there is no such class, or it is the last.
        """
        with alone(verbose=bool(self.verbose)):
            trainer = self._fitted()
        known = self.classes_.tolist()
        if name not in known:
            raise unknown("class", name, map(str, known))
        if len(known) == 1:
            raise UserError(f"{shown(name)} is the only class")
        stay, old = [number for number, label in enumerate(known) if label != name], self._class_list(trainer)
        self._change(
            ClassList(tuple(old.names[number] for number in stay), tuple(old.ids[number] for number in stay)),
            self.classes_[stay],
        )
        return self

    def _class_list(self, trainer: Any) -> ClassList:
        return trainer.target_classes() or ClassList(tuple(trainer.dm.dataset.classnames))

    def _change(self, classes: ClassList, labels: NDArray[Any]) -> None:
        """Rebuild the trainer for other classes."""
        current = self._current()
        with alone(self.messages_, verbose=bool(self.verbose)):
            trainer = rebuilt(
                current,
                classes,
                use_accelerator=self._use_accelerator(),
                verbose=bool(self.verbose),
                where="the classifier",
            )
        self._trainer, self._training, self.classes_ = trainer, None, labels
        self.__dict__.pop("_shots", None)
        self._content = content_of(trainer, current)
        self.report_ = self.calibration_ = None  # were of other classes

    def _refit(self, trainer: Any, classes: ClassList, labels: NDArray[Any], images: Any) -> None:
        """Compute a method in closed form again, with the images of a new class."""
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
        flags = {"DATASET.NAME": GIVEN, "DATASET.NUM_SHOTS": -1, "TEST.NO_TEST": True}
        if not given.are_paths or trainer.cfg.DATASET.FEATURES.DIR:
            flags["DATASET.FEATURES.DIR"] = str(spool().folder / "features")
        messages: list[str] = []
        with alone(messages, verbose=bool(self.verbose)):
            self._trainer, _ = self._trained(flags, training)
        self._training = training
        self._start(labels, messages)

    # ---- saving ---------------------------------------------------------------------------------------------------

    def save(self, folder: str | os.PathLike[str]) -> FewShotClassifier:
        """Write ``model.safetensors`` (the head), ``config.json`` and ``README.md`` (a model card) into a folder.

        Raises:
            UserError: the folder has other files of these names, or cannot be written.
        """
        self._check_fitted()
        place, current = folders.place_of(folder), self._current()
        folders.write(place, current, self._described(current))
        return self

    def _described(self, current: Content) -> folders.Described:
        return folders.Described(
            params={name: value for name, value in self.get_params(deep=False).items() if is_plain(value)},
            labels=self.classes_.tolist(),
            temperature=self.temperature_,
            report=self.report_,
            calibration=None if self.calibration_ is None else self.calibration_._asdict(),
            shots=self._shots_known(),
        )

    def _shots_known(self) -> list[int]:
        """Number of training images of each class; empty if that is not known."""
        return _shots(getattr(self._trainer.dm, "dataset", None), getattr(self, "_shots", None), len(self.classes_))

    def export(self, folder: str | os.PathLike[str], format: str = "onnx", images: Any = None) -> exporting.Agreement:
        """Write the classifier for other programs, as tools/export.py does, and compare it with this one.

        Args:
            folder: new, or empty.
            format: "onnx" (pictures in, probabilities out, and a script that uses it), "torch" (the same as an
                ExportedProgram) or "npz" (weights (K, D), for features of your own).
            images: to compare on; by default the test images of the fit or the run, else those of training, else noise.

        Raises:
            UserError: the method cannot be exported so, or the result would give other answers.
        """
        with alone(getattr(self, "messages_", None), verbose=bool(self.verbose)):
            return exporting.export(
                Path(folder), format, self._exported, lambda: self._fitted_on() if images is None else _listed(images)
            )

    def _exported(self) -> exporting.Source:
        """A trainer of its own, in float32 on the CPU."""
        self._check_fitted()
        current = content_of(self._fitted(), getattr(self, "_content", None))
        trainer = rebuilt(contents.in_float32(current), use_accelerator=False, verbose=False, where="the classifier")
        return exporting.Source(trainer, self.classes_.tolist(), self.temperature_, current.template)

    def _fitted_on(self) -> list[str]:
        """The files of the test images of the fit, or of the run that was loaded, else those of training; it may have
        none, or only features."""
        data, where = self._trainer.dm.dataset, Path(getattr(self, "_where", ""))
        if getattr(data, "test_only", False) and "_where" in vars(self) and not folders.holds_classifier(where):
            return contents.pictures_of_run(where)
        if getattr(data, "test_only", False) or getattr(getattr(self._trainer, "features", None), "is_file", False):
            return []
        return [item.impath for item in data.test or data.train_x]

    @classmethod
    def load(
        cls, folder: str | os.PathLike[str], *, device: str | None = None, verbose: bool = False
    ) -> FewShotClassifier:
        """A classifier from a folder of `save`, or from that of a run of tools/train.py.

        The backbone is found or fetched as for training, and its weights have to be the same.

        Raises:
            UserError: there is none, it was changed, or does not fit.
        """
        place = folders.place_of(folder)
        if not os.path.isdir(place):
            raise MissingFileError(f"there is no folder '{place}' of a classifier")
        messages: list[str] = []
        with alone(messages, verbose=verbose):
            if folders.holds_classifier(place):
                current, said = folders.read(place)
            else:
                current, said = contents.content_of_run(place), None
            params = {name: value for name, value in (said.params if said else {}).items() if name in _PARAMETERS}
            if said is None:
                params["backbone"] = current.config["MODEL"]["BACKBONE"]["NAME"]
            params |= {"device": device, "verbose": verbose, "method": current.method}
            made = cls(**params)
            made._start(label_array(said.labels if said else list(current.classes.names)), messages)
            made._content, made._where = current, str(place)
            made._fitted()
        if said:
            made.temperature_, made.report_, made._shots = said.temperature, said.report, said.shots
            made.calibration_ = Calibration(**said.calibration) if said.calibration else None
        return made

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike[str], **options: Any) -> FewShotClassifier:
        """A classifier from a repository of the Hugging Face Hub, ``org/name``, or from a folder.

        Args:
            **options: ``revision``, ``token``, ``cache_dir``, ``local_files_only``, ``force_download`` of
                huggingface_hub, and ``device`` and ``verbose`` of `load`.
        """
        own = {key: options.pop(key) for key in ("device", "verbose") if key in options}
        folders.place_of(name)
        return cls.load(folders.fetched(os.fspath(name), **options), **own)

    def push_to_hub(self, name: str, **options: Any) -> str:
        """Save to a repository of the Hugging Face Hub, ``org/name``; returns the address of the commit.

        Args:
            **options: of ``ModelHubMixin.push_to_hub``, such as ``private``, ``token`` or ``commit_message``.
        """
        self._check_fitted()
        return folders.pushed(self.save, name, **options)

    # ---- images to numbers ----------------------------------------------------------------------------------------

    def _checked(self, top_k: int | None, unknown_below: Any, on_error: str) -> int:
        """``top_k``, after what is wrong with a question has been told, before any image is read."""
        check_threshold(unknown_below)
        if on_error not in ON_ERROR:
            raise unknown("on_error", on_error, ON_ERROR)
        self._check_fitted()
        with alone(verbose=bool(self.verbose)):
            self._fitted()  # without a fit, what the classes are is known then
        return checked_top_k(top_k, len(self.classes_))

    def _probabilities(self, features: Tensor) -> Tensor:
        return probabilities_of(
            self._trainer, logits_of(self._trainer, features, len(self.classes_)), self.temperature_
        )

    def _logits(self, features: Tensor) -> Tensor:
        return logits_of(self._trainer, features, len(self.classes_))

    def _joined(self, X: Any, on_error: str, function: Any) -> NDArray[Any]:
        """Rows of all images; those of a part without a readable image are as wide as the others'."""
        found = list(self._batches(X, on_error, function))
        width = next((values.shape[1] for values, ok in found if ok.any()), len(self.classes_))
        rows = [values if ok.any() else np.full((len(ok), width), np.nan, np.float32) for values, ok in found]
        return np.concatenate(rows) if rows else np.empty((0, width), np.float32)

    def _batches(self, X: Any, on_error: str, function: Any) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
        for _, _, values, ok in self._encoded(X, on_error, function):
            yield values, ok

    def _encoded(
        self,
        X: Any,
        on_error: str,
        function: Any,
    ) -> Iterator[tuple[list[Any], dict[int, str], NDArray[Any], NDArray[Any]]]:
        """For images that follow each other: themselves, errors by number, and what ``function`` makes of features
        (n, D): rows of float32, NaN where ``ok`` (n,) is False."""
        if on_error not in ON_ERROR:
            raise unknown("on_error", on_error, ON_ERROR)
        self._check_fitted()
        with alone(verbose=bool(self.verbose)):
            trainer = self._fitted()
        given, bad = read_images(X), Unreadable(on_error)
        bar = tqdm(total=given.total, unit="image", disable=not self.verbose, file=sys.stderr, leave=False)
        if given.features is None and isinstance(trainer, FeatureTrainer) and trainer.features.is_file:
            with alone(verbose=bool(self.verbose)):
                trainer = self._with_backbone()
        steps, done = parts_of(trainer, given), 0
        with bar:
            while True:
                with alone(self.messages_, verbose=bool(self.verbose)):  # not while the caller has its turn
                    part = next(steps, None)
                    if part is None:
                        break
                    items, kept, features, errors = part
                    values = None if features is None or not kept else function(features.float().cpu()).numpy()
                rows, ok = rows_of(values, len(items), kept, len(self.classes_))
                bad.add({number + done: error for number, error in errors.items()}, items, done)
                done += len(items)
                bar.update(len(items))
                yield items, errors, rows, ok
        bad.tell()

    def _with_backbone(self) -> Any:
        """After a fit on a feature file: the same head on the backbone that made the features, which has an encoder."""
        current = content_of(self._trainer)
        own = self._use_accelerator()
        self._trainer = rebuilt(current, use_accelerator=own, verbose=bool(self.verbose), where="the classifier")
        return self._trainer

    def _tested(self, X: Any, y: Any, on_error: str) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Logits (N, K), labels as numbers (N,), and which images could be read (N,)."""
        with alone(verbose=bool(self.verbose)):
            self._check_fitted()
            trainer = self._fitted()
        if y is None and is_path(X):
            X, truth = self._labelled_test(trainer, os.path.expanduser(X))
        else:
            if y is None:
                if not is_hugging_face(X):
                    raise UserError("labels, y, are missing; only a folder, a table or a dataset brings its own")
                y = hugging_face_labels(X)
            if not hasattr(X, "__len__") and isinstance(X, Iterator):
                X = list(X)
            known = {label: number for number, label in enumerate(self.classes_.tolist())}
            listed = listed_values(y)
            if missing := [label for label in listed if not isinstance(label, Hashable) or label not in known]:
                likely = nearest(str(missing[0]), map(str, known))
                raise UserError(
                    f"label {shown(missing[0])} is not a class of this classifier"
                    + (f"; did you mean {shown(likely)}?" if likely else f"; it has {shown(list(known))}")
                )
            truth = np.array([known[label] for label in listed], dtype=np.int64)
        parts = list(self._batches(X, on_error, self._logits))
        count = sum(len(ok) for _, ok in parts)
        if count != len(truth):
            raise UserError(f"X has {count:,} images, but y has {len(truth):,} labels")
        if not parts:
            raise UserError("there are no images to evaluate on")
        return np.concatenate([logits for logits, _ in parts]), truth, np.concatenate([ok for _, ok in parts])

    def _labelled_test(self, trainer: Any, path: str) -> tuple[Any, NDArray[Any]]:
        """The test images in a folder, a table or a feature file: all of them, if they are not split."""
        require(path)
        with alone(self.messages_, verbose=bool(self.verbose)):
            flags = {**own_data(path), "DATASET.TEST_ONLY": True, "DATASET.NUM_SHOTS": -1, "VERBOSE": False}
            data: Any = build_dataset(make_config(flags=nested(flags), source="FewShotClassifier"))
        if data.multi_label:
            raise UserError(f"'{path}' has images of several classes each")
        own = self._class_list(trainer)
        rows = match_classes(own, data.classes).rows if own != data.classes else tuple(range(len(own)))
        used = {item.label for item in data.test}
        lacking = [name for label, name in enumerate(data.classnames) if rows[label] < 0 and label in used]
        if lacking:
            raise UserError(
                f"'{path}' has a class {shown(lacking[0])} that this classifier lacks; it has {shown(list(own.names))}"
            )
        truth = np.array([rows[item.label] for item in data.test], dtype=np.int64)
        return (path if path.endswith(".npz") else [item.impath for item in data.test]), truth


@contextmanager
def _run_folder() -> Iterator[str]:
    """A folder for a run, which is removed; an error does not name the file of descriptions in it."""
    with tempfile.TemporaryDirectory(prefix="dassl-lite-") as folder:
        try:
            yield folder
        except UserError as error:
            told = str(error).replace(
                f"descriptions '{Path(folder) / DESCRIPTIONS}' (DATASET.DESCRIPTIONS)", "descriptions"
            )
            if told == str(error):
                raise
            raise UserError(told) from None


def _listed(images: Any) -> list[Any]:
    """Images, as `FewShotClassifier.predict` takes them, in a list."""
    given = read_images(images)
    if given.features is not None:
        raise UserError("an export is compared on pictures, not on features")
    return list(given.items)


_PARAMETERS = FewShotClassifier._get_param_names()


def _report_of_run(trainer: Any, labels: NDArray[Any], zero_shot: float | None) -> dict[str, Any] | None:
    """What a run found on its test images; None if it did not look."""
    evaluator, split = trainer.evaluator, trainer.cfg.TEST.SPLIT
    results = trainer.results.get(split)
    if not results or not getattr(evaluator, "_y_true", None):
        return None
    return {
        **report(results, evaluator._y_true, evaluator._y_pred, labels.tolist()),
        "on": f"{split} images of the run",
        **({} if zero_shot is None else {"zero_shot_accuracy": zero_shot}),
    }


def _shots(data: Any, stored: Any, classes: int) -> list[int]:
    """Number of training images of each class."""
    if stored is not None and len(stored) == classes:
        return list(stored)
    if getattr(data, "test_only", False):
        return []
    counts = Counter(item.label for item in data.train_x)
    return [counts[label] for label in range(classes)]
