"""What a program may pass as images: paths, PIL images, arrays, a folder, a Hugging Face dataset, or features.

Shapes: N images, D feature width, V views.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from yacs.config import CfgNode

from dassl_lite.data import DATASET_REGISTRY, Datum, read_image
from dassl_lite.data.classes import ClassList, warn_of_equal_names
from dassl_lite.data.dataset import DatasetBase
from dassl_lite.data.feature_cache.extract import Decoded, Encoder, ViewDataset, extract
from dassl_lite.data.feature_files import read_feature_file
from dassl_lite.data.fewshot import group_by_label, warn_of_small_classes
from dassl_lite.data.images import UnreadableImageError, as_rgb, is_folder, kind_of
from dassl_lite.utils.errors import MissingFileError, UserError, shown

GIVEN = "GivenImages"  # registered name of the dataset of passed images
BLOCK = 4096  # images of a stream that are processed together
IMAGE_COLUMNS = ("image", "img", "picture", "pixel_values")  # names to try if no column has an image type
LABEL_COLUMNS = ("label", "labels", "class", "target", "fine_label")
KINDS = "paths, PIL images or uint8 arrays (H, W, 3)"


# ---- what is passed -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Given:
    """Images without labels.

    Attributes:
        items: paths, PIL images or arrays; may be an endless iterator.
        total: number of images; None for an iterator.
        features: (N, D) float32, given instead of images.
    """

    items: Iterable[Any] = ()
    total: int | None = None
    features: Tensor | None = None

    @property
    def are_paths(self) -> bool:
        """Whether all images are paths, and their number is known."""
        return self.total is not None and all(map(is_path, self.items))


def is_path(item: object) -> bool:
    return isinstance(item, str | os.PathLike)


def read_images(source: Any) -> Given:
    """The images in ``source``: the path of an image, a folder or a feature file (its test images); or several `KINDS`.

    Raises:
        UserError: it is none of these.
    """
    if is_path(source):
        require(os.path.expanduser(source))
        return _at_path(Path(source))
    if isinstance(source, Image.Image):
        return Given([source], 1)
    if is_hugging_face(source):
        column = _image_column(source)
        return Given(_Rows(source, column), len(source))
    if isinstance(source, Mapping | bytes) or source is None:
        raise UserError(f"{shown(source)[:80]} is not a list of images; pass {KINDS}")
    if isinstance(source, Iterator):
        return Given(source)
    if hasattr(source, "detach"):
        source = source.detach().cpu().numpy()
    if isinstance(source, list | tuple):
        return Given(source, len(source))
    array = np.asarray(source)  # also for a table's column
    if not array.ndim:
        raise UserError(f"{shown(source)[:80]} is not a list of images; pass {KINDS}")
    if array.ndim == 2 and np.issubdtype(array.dtype, np.floating):
        return Given(total=len(array), features=torch.from_numpy(np.ascontiguousarray(array, np.float32)))
    if array.ndim == 2 and array.shape[1] == 1 and array.dtype.kind in "OU":
        array = array[:, 0]
    if array.ndim == 1 and array.dtype.kind in "OU":
        return Given(array.tolist(), len(array))
    if array.dtype == np.uint8 and array.ndim == 4:
        return Given(array, len(array))
    raise UserError(
        f"an array of {array.dtype} {array.shape} is not a list of images; pass {KINDS}, uint8 (N, H, W, 3), or "
        "features as float (N, D)"
    )


def _at_path(path: Path) -> Given:
    path = path.expanduser()
    if path.suffix == ".npz":
        views = read_feature_file(path).parts["test"].views
        return Given(total=views.shape[1], features=torch.from_numpy(views[0]).float())
    if not path.is_dir():
        return Given([str(path)], 1)
    paths = images_below(path)
    if not paths:
        raise UserError(f"'{path}' contains no images")
    return Given(paths, len(paths))


def require(path: str | os.PathLike[str]) -> None:
    """Raise a UserError, which is also a FileNotFoundError, if ``path`` does not exist."""
    if not os.path.exists(path):
        raise MissingFileError(f"there is no file or folder '{os.fspath(path)}'")


def images_below(folder: Path) -> list[str]:
    """The image files in a folder, at any depth, sorted; hidden ones and hidden folders are left out."""
    paths = []
    for place, folders, _ in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        with os.scandir(place) as entries:
            paths += sorted(entry.path for entry in entries if not is_folder(entry) and not kind_of(entry))
    return paths


# ---- Hugging Face datasets, by what they look like ------------------------------------------------------------------


def is_hugging_face(source: Any) -> bool:
    """Whether an object looks like a Hugging Face ``Dataset``."""
    return (
        hasattr(source, "column_names")
        and hasattr(source, "features")
        and hasattr(source, "__getitem__")
        and hasattr(source, "__len__")
    )


class _Rows(Sequence[Any]):
    """One column of a Hugging Face dataset, whose images are decoded on access."""

    def __init__(self, dataset: Any, column: str) -> None:
        self.dataset, self.column = dataset, column

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[row] for row in range(*number.indices(len(self)))]
        if not 0 <= number < len(self):
            raise IndexError(number)
        return self.dataset[int(number)][self.column]


def _columns(dataset: Any) -> list[str]:
    names = dataset.column_names
    if isinstance(names, Mapping):
        raise UserError(f"a dataset of several splits: pass one of them, such as data[{next(iter(names))!r}]")
    return list(names)


def _image_column(dataset: Any) -> str:
    names, features = _columns(dataset), dataset.features or {}
    typed = [name for name in names if type(features.get(name)).__name__ == "Image"]
    columns = typed or [name for name in IMAGE_COLUMNS if name in names]
    if not columns:
        raise UserError(f"the dataset has no column of images; it has {', '.join(names)}")
    return columns[0]


def hugging_face_labels(dataset: Any) -> list[Any]:
    """The labels of a Hugging Face dataset, as class names if it has them."""
    names, features = _columns(dataset), dataset.features or {}
    typed = [name for name in names if type(features.get(name)).__name__ == "ClassLabel"]
    columns = typed or [name for name in LABEL_COLUMNS if name in names]
    if not columns:
        raise UserError(f"the dataset has no column of labels; it has {', '.join(names)}; pass y")
    classes = getattr(features.get(columns[0]), "names", None)
    labels = list(dataset[columns[0]])
    return [classes[label] for label in labels] if classes else labels


# ---- reading one ----------------------------------------------------------------------------------------------------


def decoded(item: Any) -> Image.Image:
    """An image as 8-bit RGB.

    Raises:
        UserError: it cannot be read, or is not an image.
    """
    if is_path(item):
        return read_image(os.path.expanduser(item))
    if isinstance(item, Mapping) and {"bytes", "path"} >= set(item):  # a Hugging Face dataset without decoding
        if item.get("bytes") is None:
            return read_image(item.get("path") or "")
        with tempfile.NamedTemporaryFile() as file:
            file.write(item["bytes"])
            file.flush()
            return read_image(file.name)
    if isinstance(item, np.ndarray):
        form = item[..., 0] if item.ndim == 3 and item.shape[2] == 1 else item
        if item.dtype != np.uint8 or not (form.ndim == 2 or (form.ndim == 3 and form.shape[2] in (3, 4))):
            raise UserError(f"an array of {item.dtype} {item.shape} is not an image; pass uint8 (H, W, 3)")
        if not form.size:
            raise UserError(f"an array of {item.shape} has no pixels")
        item = Image.fromarray(np.ascontiguousarray(form))
    if not isinstance(item, Image.Image):
        raise UserError(f"{shown(item)[:80]} is not an image; pass {KINDS}")
    name = getattr(item, "filename", "") or "an image in memory"
    try:
        return as_rgb(item, name)
    except Exception as error:  # PIL decodes only now, and raises almost anything
        raise UnreadableImageError(str(name), " ".join(str(error).split()) or type(error).__name__) from error


def named(item: Any, number: int) -> str:
    """The name of an image in messages."""
    return os.fspath(item) if is_path(item) else f"image {number}"


class _Views(ViewDataset):
    """Images of any kind, each decoded once, with a deterministic transform."""

    def _decode(self, number: int) -> Decoded:
        item = self.images[number]
        try:
            return Decoded(number, [self._view(decoded(item), "", 0)])
        except (UserError, ValueError) as error:
            return Decoded(number, [], str(error) or type(error).__name__)


class Encoded(NamedTuple):
    """Consecutive images, with features (n, D) of those at the positions ``kept`` (n numbers from 0, in order)."""

    items: list[Any]
    kept: list[int]
    features: Tensor | None
    errors: dict[int, str]


def encode_stream(
    items: Iterable[Any], encode: Encoder, transform: Any, device: torch.device, batch_size: int, num_workers: int
) -> Iterator[Encoded]:
    """Encode images of any kind, in order and in constant memory.

    Args:
        items: paths, PIL images or arrays.
        encode: maps images (B, 3, H, W) to features (B, D).
        transform: maps a PIL image to a tensor (3, H, W).
    """
    rest = iter(items)
    while block := list(islice(rest, BLOCK)):
        done = 0
        for part in extract(_Views(block, transform, 1, 0), encode, device, batch_size, num_workers):
            count = len(part.numbers) + len(part.errors)
            kept = [number - done for number in part.numbers]
            features = None if part.features is None else part.features[:, 0]
            errors = {number - done: error for number, error in part.errors}
            yield Encoded(block[done : done + count], kept, features, errors)
            done += count


# ---- training images that a program passes --------------------------------------------------------------------------


class Spool:
    """A temporary folder for in-memory training images, as PNG files, and their features.

    Equal images share a file. The folder is removed by `close`, or at the end of the program.
    """

    def __init__(self) -> None:
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._process = os.getpid()

    @property
    def folder(self) -> Path:
        if self._folder is None or self._process != os.getpid():  # a forked process must not remove its parent's
            self._folder, self._process = tempfile.TemporaryDirectory(prefix="dassl-lite-images-"), os.getpid()
        return Path(self._folder.name)

    def close(self) -> None:
        """Remove all files; fitted classifiers can still predict."""
        if self._folder is not None and self._process == os.getpid():
            self._folder.cleanup()
        self._folder = None

    def path(self, item: Any, number: int) -> str:
        """The file of an image: its own if it has one, else one in the folder."""
        if is_path(item):
            require(item)
            return os.path.abspath(os.path.expanduser(item))
        try:
            image = decoded(item)
        except UserError as error:
            raise UserError(f"image {number}: {error}") from error
        digest = hashlib.blake2b(f"{image.size}".encode() + image.tobytes(), digest_size=16).hexdigest()
        path = self.folder / "images" / f"{digest}.png"
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            unfinished = path.with_suffix(".part")
            image.save(unfinished, format="PNG", compress_level=1)
            unfinished.replace(path)
        return str(path)


_of_the_process = Spool()
_spool: ContextVar[Spool | None] = ContextVar("spool", default=None)


def spool() -> Spool:
    """The spool for in-memory images: the one of `spooled_in`, else the process's."""
    return _spool.get() or _of_the_process


@contextmanager
def spooled_in(own: Spool) -> Iterator[None]:
    """A context that gives this thread its own spool, such as one per user."""
    token = _spool.set(own)
    try:
        yield
    finally:
        _spool.reset(token)


@dataclass(frozen=True)
class Training:
    """The content of the dataset `GivenImages`; without images it has only the classes.

    Attributes:
        classes: names and ids, in label order.
        items, labels: N training images and their labels.
        val, val_labels: validation images and their labels.
        ensemble_templates: ensemble templates of the dataset that the classes come from.
        template: its prompt template; "" for the usual one.
        drawn: whether its pictures are drawings, like those that the demo backbone knows.
        multi_label: whether an image may have several classes.
    """

    classes: ClassList
    items: Sequence[Any] = ()
    labels: Sequence[int] = ()
    val: Sequence[Any] = ()
    val_labels: Sequence[int] = ()
    ensemble_templates: tuple[str, ...] = ()
    template: str = ""
    drawn: bool = False
    multi_label: bool = False


_training: Training | None = None  # for the dataset being built; guarded by `quiet.alone`


@contextmanager
def training_on(training: Training | None) -> Iterator[None]:
    """A context in which the dataset `GivenImages` has this content."""
    global _training
    before, _training = _training, training
    try:
        yield
    finally:
        _training = before


@DATASET_REGISTRY.register(name=GIVEN)
class GivenImages(DatasetBase):
    """Images passed by a program, ordered as for a table: by class, with classes in order of first occurrence.

    Attributes:
        test_only: there are no training images, only one placeholder per class, which nothing reads.
    """

    test_only = False

    def __init__(self, cfg: CfgNode) -> None:
        given = _training
        if given is None:
            raise UserError(f"dataset {GIVEN} is what FewShotClassifier passes; name another, or --data PATH")
        self.test_only = not len(given.items)
        self.ensemble_templates = given.ensemble_templates
        self.template = given.template or self.template
        self.drawn, self.multi_label = given.drawn, given.multi_label
        classes = list(zip(given.classes.names, given.classes.ids, strict=True))
        if self.test_only:
            train = [Datum("", label, 0, *one) for label, one in enumerate(classes)]
        else:
            drawn = self._draw(given, cfg.DATASET.NUM_SHOTS)
            train = [
                Datum(spool().path(given.items[number], number), label, 0, *classes[label]) for number, label in drawn
            ]
        val = [
            Datum(spool().path(item, number), label, 0, *classes[label])
            for number, (item, label) in enumerate(zip(given.val, given.val_labels, strict=True))
        ]
        super().__init__(train_x=train, val=val or None, test=train if self.test_only else None)
        warn_of_equal_names(self.classnames)

    def _draw(self, given: Training, num_shots: int) -> list[tuple[int, int]]:
        """Number and label of each image in the draw; no other image is opened."""
        numbered = [Datum(str(number), label) for number, label in enumerate(given.labels)]
        source = [item for group in group_by_label(numbered).values() for item in group]
        if num_shots > 0:
            warn_of_small_classes(
                [Datum(item.impath, item.label, classname=given.classes.names[item.label]) for item in source],
                num_shots,
            )
        drawn = self.generate_fewshot_dataset(source, num_shots=num_shots)
        return [(int(item.impath), item.label) for item in drawn]
