"""What one visitor of the page has: pictures and what they show, until the page is closed.

Nothing here knows the page's widgets. Pictures lie in a folder of the session's own, which `Session.close` removes.
"""

from __future__ import annotations

import base64
import contextlib
import io
import shutil
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from dassl_lite.classifier import FewShotClassifier, Prediction
from dassl_lite.data.images import open_image, read_image
from dassl_lite.tools import predict
from dassl_lite.utils.errors import UserError, printable

MOST_BYTES = 10 << 20  # of a picture's file
MOST_UPLOAD = 5 * MOST_BYTES  # of a file that is taken at all, to be named and left out
MOST_PIXELS = 50_000_000  # of a picture
MOST_AT_ONCE = 100  # pictures that are dropped together
MOST_SESSIONS = 100  # at a time; of more, the one that was idle longest ends
SHOWN_CLASSES = 3  # bars of a picture
THUMBNAIL = 160  # pixels
LIMITS = f"Pictures of up to {MOST_BYTES >> 20} MB, at most {MOST_AT_ONCE} at a time."


@dataclass(frozen=True)
class Picture:
    """A picture that can be read.

    Attributes:
        name: of its file, as its owner calls it.
        path: of the session's own copy.
        thumbnail: a small JPEG, as a data URI.
    """

    name: str
    path: Path
    thumbnail: str


@dataclass
class Answers:
    """Pictures with what they show, and lines about files that were left out."""

    pictures: list[Picture] = field(default_factory=list)
    found: list[Prediction] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)

    def rows(self, unknown_below: float) -> list[tuple[Picture, Prediction]]:
        """The pictures in order; a class that is less likely than this is None."""
        return [
            (picture, one._replace(labels=tuple(None if p < unknown_below else label for label, p in _pairs(one))))
            for picture, one in zip(self.pictures, self.found, strict=True)
        ]


def _pairs(found: Prediction) -> Iterator[tuple[object, float]]:
    return zip(found.labels, found.probabilities, strict=True)


class Session:
    """A visitor's pictures and answers.

    Args:
        classifier: that answers; None until one has been taught.
        root: where the session's folder is made.
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
        """Remove all that the session keeps on disk."""
        self._folder.cleanup()

    def take(self, files: Sequence[str]) -> tuple[list[Picture], list[str]]:
        """Take over uploaded files: the pictures, and a line for each file that is none.

        The uploaded files are removed.
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
                    file.parent.rmdir()  # Gradio makes one for each file
        return pictures, refused

    def _copy(self, file: Path) -> Picture:
        """The session's own copy of a picture's file.

        Raises:
            UserError: it is none, or too large.
        """
        if file.stat().st_size > MOST_BYTES:
            raise UserError(f"larger than {MOST_BYTES >> 20} MB")
        with open_image(file) as image:
            if image.width * image.height > MOST_PIXELS:
                raise UserError(f"more than {MOST_PIXELS // 1_000_000} million pixels")
        small = read_image(file)
        self._count += 1
        copy = self.folder / "pictures" / f"{self._count}{file.suffix}"
        copy.parent.mkdir(exist_ok=True)
        shutil.copyfile(file, copy)
        return Picture(file.name, copy, thumbnail_of(small))

    def predict(self, files: Sequence[str]) -> Answers:
        """Say what uploaded pictures show; they take the place of those before, and are not kept."""
        if self.classifier is None:
            raise UserError("nothing has been taught yet")
        pictures, refused = self.take(files)
        paths = (str(picture.path) for picture in pictures)  # an iterator: features of it are not cached
        top_k = min(SHOWN_CLASSES, len(self.classifier.classes_))
        try:
            found = list(self.classifier.stream(paths, top_k=top_k))
        finally:
            for picture in pictures:
                picture.path.unlink(missing_ok=True)
        self.answers = Answers(pictures, found, refused)
        return self.answers


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
    found = [one._replace(image=picture.name) for picture, one in rows]
    top_k = max((len(one.labels) for one in found), default=1)
    file = io.StringIO(newline="")
    write = predict.csv_writer(file, top_k)
    for one in found:
        write(one)
    return file.getvalue()


class Visitors:
    """The sessions, each by the secret that its browser tab was given.

    Args:
        start: makes the session of a new visitor.
    """

    def __init__(self, start: Callable[[], Session]) -> None:
        self._start = start
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._sessions)

    def of(self, secret: str) -> Session:
        """The session of a browser tab; a new one at its first question."""
        with self._lock:
            if secret not in self._sessions:
                self._sessions[secret] = self._start()
            self._sessions.move_to_end(secret)
            if len(self._sessions) > MOST_SESSIONS:
                self._sessions.popitem(last=False)[1].close()
            return self._sessions[secret]

    def forget(self, secret: str) -> None:
        """End the session of a browser tab, if it has one."""
        with self._lock:
            if (session := self._sessions.pop(secret, None)) is not None:
                session.close()

    def close(self) -> None:
        for secret in list(self._sessions):
            self.forget(secret)
