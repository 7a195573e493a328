"""A visitor's session: pictures and predictions, kept until the page is closed.

Nothing here knows the page's widgets. Pictures are in the session's own folder, which `Session.close` removes.
"""

from __future__ import annotations

import base64
import contextlib
import io
import secrets
import shutil
import tempfile
import threading
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from dassl_lite.classifier import FewShotClassifier, Prediction
from dassl_lite.classifier.export import Agreement
from dassl_lite.data.images import open_image, read_image
from dassl_lite.datasets._drawn.classes import SHAPESNET, subjects_of
from dassl_lite.datasets._drawn.looks import PHOTO, compose
from dassl_lite.datasets._drawn.render import draw
from dassl_lite.engine.methods.backbone import KNOWS_SHAPES
from dassl_lite.tools import predict
from dassl_lite.utils.errors import UserError, printable

MOST_BYTES = 10 << 20  # of a picture's file
MOST_UPLOAD = 5 * MOST_BYTES  # larger uploads fail; up to this, a file is named and left out
MOST_PIXELS = 50_000_000  # of a picture
MOST_AT_ONCE = 100  # pictures that are uploaded together
MOST_CLASSES = 20  # to teach
MOST_TAUGHT = 400  # pictures to teach with
LONGEST_NAME = 60  # characters of a class name
LEFT_OUT_SINGLY = 60  # up to this many pictures, one is left out at a time; beyond, FOLDS fits leave out a share
FOLDS = 20
METHOD = "ProKeR"  # closed form, so training and cross-validation take seconds
EXAMPLE = ("hollow arrow", "hollow bolt", "hollow flower")
EXAMPLE_PICTURES = 8  # of each class
MOST_SESSIONS = 100  # at a time; beyond that, the one that was idle longest ends
SHOWN_CLASSES = 3  # bars of a picture
THUMBNAIL = 160  # pixels
LIMITS = f"Pictures of up to {MOST_BYTES >> 20} MB, at most {MOST_AT_ONCE} at a time."


@dataclass(frozen=True)
class Picture:
    """A picture that can be read.

    Attributes:
        name: name of the uploaded file.
        path: the session's own copy.
        thumbnail: a small JPEG, as a data URI.
    """

    name: str
    path: Path
    thumbnail: str


@dataclass
class Answers:
    """Pictures with their predictions, and lines about files that were left out."""

    pictures: list[Picture] = field(default_factory=list)
    found: list[Prediction] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)

    def rows(self, unknown_below: float) -> list[tuple[Picture, Prediction]]:
        """The pictures in order, with None for a class whose probability is below ``unknown_below``."""
        return [
            (
                picture,
                prediction._replace(
                    labels=tuple(None if p < unknown_below else label for label, p in _pairs(prediction))
                ),
            )
            for picture, prediction in zip(self.pictures, self.found, strict=True)
        ]


def _pairs(found: Prediction) -> Iterator[tuple[object, float]]:
    return zip(found.labels, found.probabilities, strict=True)


class Session:
    """A visitor's pictures and answers.

    Args:
        classifier: the classifier; None until one has been taught.
        root: folder in which the session's folder is made.

    Attributes:
        answers: the last predictions.
        lock: for callers to hold while they use the session.
    """

    def __init__(self, classifier: FewShotClassifier | None, root: Path) -> None:
        self.classifier = classifier
        self.answers = Answers()
        self.lock = threading.Lock()
        self._folder = tempfile.TemporaryDirectory(prefix="visitor-", dir=root)
        self._count = 0

    @property
    def folder(self) -> Path:
        return Path(self._folder.name)

    def close(self) -> None:
        """Remove everything that the session keeps on disk, after waiting for work in progress."""
        with self.lock:
            self._folder.cleanup()

    def take(self, files: Sequence[str]) -> tuple[list[Picture], list[str]]:
        """Copy uploaded pictures into the session and remove the uploads.

        Returns:
            The pictures, and a line for each file that was refused.
        """
        pictures, refused = [], []
        for number, file in enumerate(map(Path, files)):
            try:
                if number >= MOST_AT_ONCE:
                    raise UserError(f"more than {MOST_AT_ONCE} pictures at a time")
                pictures.append(self._copy(file))
            except (UserError, OSError) as error:
                reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)
                refused.append(f"{printable(file.name)}: {reason}")
            finally:
                with contextlib.suppress(OSError):
                    file.unlink()
                    file.parent.rmdir()  # Gradio makes a folder for each file
        return pictures, refused

    def _copy(self, file: Path) -> Picture:
        """Copy a picture's file into the session.

        Raises:
            UserError: it is not a picture, or too large.
        """
        if file.stat().st_size > MOST_BYTES:
            raise UserError(f"larger than {MOST_BYTES >> 20} MB")
        with open_image(file) as image:
            if image.width * image.height > MOST_PIXELS:
                raise UserError(f"more than {MOST_PIXELS // 1_000_000} million pixels")
        small = read_image(file)
        copy = self._new_path(file.suffix)
        shutil.copyfile(file, copy)
        return Picture(file.name, copy, thumbnail_of(small))

    def _new_path(self, suffix: str) -> Path:
        """A path for a new picture in the session's folder."""
        self._count += 1
        path = self.folder / "pictures" / f"{self._count}{suffix}"
        path.parent.mkdir(exist_ok=True)
        return path

    def predict(self, files: Sequence[str]) -> Answers:
        """Predict uploaded pictures; the answers replace the previous ones, and the files are removed."""
        if self.classifier is None:
            raise UserError("nothing has been taught yet: train first")
        pictures, refused = self.take(files)
        paths = (str(picture.path) for picture in pictures)  # an iterator, so that features are not cached
        top_k = min(SHOWN_CLASSES, len(self.classifier.classes_))
        try:
            predictions = list(self.classifier.stream(paths, top_k=top_k))
        finally:
            for picture in pictures:
                picture.path.unlink(missing_ok=True)
        self.answers = Answers(pictures, predictions, refused)
        return self.answers


@dataclass(frozen=True)
class Lesson:
    """The result of training; accuracies in percent.

    Attributes:
        pictures: number of pictures that were left out in turn.
        singly: whether they were left out one at a time.
        zero_shot: accuracy with the class names alone.
        trained: accuracy of the method.
        interval: its 95 % interval.
        notes: the engine's warnings.
    """

    pictures: int
    singly: bool
    zero_shot: float
    trained: float
    interval: tuple[float, float]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Exported:
    """The taught classifier as ONNX.

    Attributes:
        path: a zip file in the session's folder.
        token: the secret with which the browser requests it.
        agreement: how it compares with the classifier.
    """

    path: Path
    token: str
    agreement: Agreement


class Teaching(Session):
    """A session in which a visitor teaches a classifier.

    Args:
        backbone: name of the CLIP.
        device: as `FewShotClassifier` takes it.
        root: folder in which the session's folder is made.

    Attributes:
        classes: the pictures of each class.
        lesson: the result of the last training; None before it, and after the classes change.
        exported: the export of that classifier, or None.
    """

    def __init__(self, backbone: str | None, device: str | None, root: Path) -> None:
        super().__init__(None, root)
        self.backbone, self.device = backbone, device
        self.classes: dict[str, list[Picture]] = {}
        self.lesson: Lesson | None = None
        self.exported: Exported | None = None

    def add_class(self, name: str) -> None:
        """Add a class without pictures.

        Raises:
            UserError: the name is invalid, or there are too many classes.
        """
        name = " ".join(name.split())
        if not name:
            raise UserError("name the class first")
        if len(name) > LONGEST_NAME:
            raise UserError(f"a name has at most {LONGEST_NAME} characters")
        if name.casefold() in map(str.casefold, self.classes):
            raise UserError(f"there is a class {printable(name)} already")
        if len(self.classes) >= MOST_CLASSES:
            raise UserError(f"there are {MOST_CLASSES} classes, the most that this page teaches")
        self.classes[name] = []
        self._forget()

    def remove_class(self, name: str) -> None:
        """Remove a class and its pictures, if it exists."""
        for picture in self.classes.pop(name, []):
            picture.path.unlink(missing_ok=True)
        self._forget()

    def add_pictures(self, name: str, files: Sequence[str]) -> list[str]:
        """Add uploaded pictures to a class; returns a line for each file that was left out."""
        if name not in self.classes:
            raise UserError(f"there is no class {printable(name)} any more")
        pictures, refused = self.take(files)
        room = max(0, MOST_TAUGHT - sum(map(len, self.classes.values())))
        for picture in pictures[room:]:
            picture.path.unlink(missing_ok=True)
            refused.append(f"{printable(picture.name)}: more than {MOST_TAUGHT} pictures in all")
        self.classes[name] += pictures[:room]
        self._forget()
        return refused

    def _forget(self) -> None:
        """Drop the classifier, because its classes or pictures have changed."""
        self.classifier = self.lesson = None
        self._drop_export()

    def _drop_export(self) -> None:
        if self.exported is not None:
            self.exported.path.unlink(missing_ok=True)
        self.exported = None

    def load_example(self) -> None:
        """Replace all classes by three of drawn pictures, which the demo backbone knows."""
        for name in list(self.classes):
            self.remove_class(name)
        for name, images in drawn_example().items():
            self.add_class(name)
            for number, image in enumerate(images, 1):
                path = self._new_path(".png")
                image.save(path)
                self.classes[name].append(Picture(f"{name} {number}.png", path, thumbnail_of(image)))

    def rehearse(self) -> None:
        """Train on dummy pictures, to load everything that training needs."""
        for name, colour in (("dark", 64), ("light", 192)):
            self.add_class(name)
            for _ in range(2):
                path = self._new_path(".png")
                Image.new("RGB", (8, 8), (colour,) * 3).save(path)
                self.classes[name].append(Picture(path.name, path, thumbnail=""))
        self.train()

    def train(self) -> Lesson:
        """Fit a classifier to all pictures, and measure it on pictures left out.

        Raises:
            UserError: there are too few classes or pictures.
        """
        if len(self.classes) < 2:
            raise UserError("name two classes or more")
        if bare := [name for name, pictures in self.classes.items() if len(pictures) < 2]:
            raise UserError(f"{printable(bare[0])} needs two pictures or more")
        pairs = [(str(picture.path), name) for name, pictures in self.classes.items() for picture in pictures]
        options = {"DATASET.FEATURES.DIR": str(self.folder / "features"), "DATALOADER.NUM_WORKERS": 0}
        classifier = FewShotClassifier(
            method=METHOD, backbone=self.backbone, device=self.device, shots=-1, options=options
        )
        classifier.fit([path for path, _ in pairs], [name for _, name in pairs])
        singly = len(pairs) <= LEFT_OUT_SINGLY
        metrics = classifier.cross_validate(None if singly else FOLDS)
        classifier.set_params(options=None)  # they contain the session's folder
        self._forget()
        self.classifier = classifier
        self.lesson = Lesson(
            *(
                metrics["images"],
                singly,
                metrics["zero_shot_accuracy"],
                metrics["accuracy"],
                tuple(metrics["interval"]),
            ),
            tuple(message for message in classifier.messages_ if message != KNOWS_SHAPES),  # the page says so
        )
        return self.lesson

    def zipped(self) -> bytes:
        """The taught classifier as `FewShotClassifier.save` writes it, in a zip file."""
        if self.classifier is None:
            raise UserError("nothing has been taught yet: train first")
        file = io.BytesIO()
        with tempfile.TemporaryDirectory(dir=self.folder) as scratch:
            self.classifier.save(Path(scratch) / "classifier")
            with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
                for path in sorted((Path(scratch) / "classifier").iterdir()):
                    archive.write(path, f"classifier/{path.name}")
        return file.getvalue()

    def export(self) -> Exported:
        """Export the classifier to ONNX, as tools/export.py does, and compare it on the training pictures.

        Raises:
            UserError: nothing has been taught, a library is missing, or the export was rejected.
        """
        if self.classifier is None:
            raise UserError("nothing has been taught yet: train first")
        self._drop_export()
        path = self.folder / "onnx.zip"
        with tempfile.TemporaryDirectory(dir=self.folder) as scratch:
            place = Path(scratch) / "onnx"
            agreement = self.classifier.export(place, "onnx")
            with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:  # weights hardly compress
                for file in sorted(place.iterdir()):
                    archive.write(file, f"onnx/{file.name}")
        self.exported = Exported(path, secrets.token_urlsafe(), agreement)
        return self.exported


def drawn_example() -> dict[str, list[Image.Image]]:
    """The example's pictures by class, the same each time."""
    kinds = [object_class for object_class in SHAPESNET if object_class.name in EXAMPLE]
    labels, rng = np.repeat(np.arange(len(kinds)), EXAMPLE_PICTURES), np.random.default_rng(1)
    images = draw(compose(subjects_of(kinds, labels, rng), PHOTO, rng), rng)
    return {
        kind.name: [Image.fromarray(image) for image in images[labels == label]] for label, kind in enumerate(kinds)
    }


def thumbnail_of(image: Image.Image) -> str:
    """A small JPEG of an RGB image, as a data URI."""
    small = image.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    return data_uri(_saved(small), "image/jpeg")


def _saved(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, format="JPEG", quality=80)
    return file.getvalue()


def data_uri(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def csv_of(rows: Sequence[tuple[Picture, Prediction]]) -> str:
    """The table that tools/predict.py writes."""
    predictions = [prediction._replace(image=picture.name) for picture, prediction in rows]
    top_k = max((len(prediction.labels) for prediction in predictions), default=1)
    file = io.StringIO(newline="")
    write = predict.csv_writer(file, top_k)
    for prediction in predictions:
        write(prediction)
    return file.getvalue()


class Visitors:
    """All sessions, by the secret of their browser tab.

    Args:
        start: makes a session for a new visitor.
    """

    def __init__(self, start: Callable[[], Session]) -> None:
        self._start = start
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._sessions)

    def of(self, secret: str) -> Session:
        """The session of a browser tab; it is made on first use."""
        idle = None
        with self._lock:
            if secret not in self._sessions:
                self._sessions[secret] = self._start()
            self._sessions.move_to_end(secret)
            session = self._sessions[secret]
            if len(self._sessions) > MOST_SESSIONS:
                idle = self._sessions.popitem(last=False)[1]
        if idle is not None:
            idle.close()
        return session

    def export(self, token: str) -> Path | None:
        """The exported file with this token, while its session keeps it."""
        with self._lock:
            exports = [session.exported for session in self._sessions.values() if isinstance(session, Teaching)]
        return next(
            (
                session.path
                for session in exports
                if session is not None and session.token == token and session.path.is_file()
            ),
            None,
        )

    def forget(self, secret: str) -> None:
        """End the session of a browser tab, if it has one."""
        with self._lock:
            session = self._sessions.pop(secret, None)
        if session is not None:
            session.close()

    def close(self) -> None:
        """End all sessions."""
        for secret in list(self._sessions):
            self.forget(secret)
