"""Datasets in the field's layout: a folder under the root, a folder of images in it, a split file.

A dataset file declares; this does the work. The smallest one::

    @DATASET_REGISTRY.register()
    class EuroSAT(FolderDataset):
        dataset_dir = "eurosat"
        image_dir = "2750"
        split_file = "split_zhou_EuroSAT.json"
        template = "a centered satellite photo of {}."
        homepage = "https://github.com/phelber/eurosat"

        def make_split(self) -> Split:
            return split_folders(self.image_dir)
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from dassl_lite.data.dataset import DatasetBase
from dassl_lite.data.datum import Datum
from dassl_lite.data.fewshot import MAX_VAL_SHOTS, Draw, DrawFile, draw_digest, read_pickled_draw, warn_of_small_classes
from dassl_lite.data.splits import Split, check_files, check_labels, read_split, save_split, subsample_classes
from dassl_lite.utils.errors import MissingDatasetError, UserError
from dassl_lite.utils.files import cache_root, digest_of, read_json

logger = logging.getLogger(__name__)


class FolderDataset(DatasetBase):
    """A dataset of image files under ``cfg.DATASET.ROOT``, with few-shot draws and base/new classes.

    Declared by a subclass (on an instance the two folders are absolute paths):

    Attributes:
        dataset_dir: folder under the root.
        image_dir: folder of images in it; split files name images relative to it.
        split_file: split file in ``dataset_dir``, read if present, else made and saved.
        classes_file: JSON list of ``{"name": ..., "id": ...}`` in label order, in ``dataset_dir``, if the
            classes have ids that the split file does not tell.
        homepage: where to get the dataset.
        fewshot_dir: folder of draws in ``dataset_dir``.
        val_is_test: validation uses the test images, and is not drawn from (ImageNet).
        test_only: there is no training set; the test images stand in for it, to tell the classes, and shots
            do not apply (ImageNet's variants).
        lists_files: :meth:`load` lists the folders each time, so its images need not be looked for.

    Hooks, in the order in which they are called: :meth:`find_root`, :meth:`prepare`, :meth:`load` (which
    calls :meth:`make_split` if there is no split file).
    """

    image_dir: str = "images"
    split_file: str = ""
    classes_file: str = ""
    homepage: str = ""
    fewshot_dir: str = "split_fewshot"
    val_is_test: bool = False
    test_only: bool = False
    lists_files: bool = False

    def __init__(self, cfg: Any) -> None:
        self.locate(cfg)
        self.prepare()
        self._check_layout()
        try:
            split = self._with_class_ids(self.load())
        except FileNotFoundError as error:
            raise MissingDatasetError(f"dataset {type(self).__name__}: {self._lacking(error)}") from error
        except OSError as error:
            raise UserError(f"dataset {type(self).__name__} cannot be read: {error}") from error
        if self.test_only:
            split = Split(split.test, split.val, split.test)
        self._check(split, cfg.DATASET.ON_ERROR)
        if not self.test_only:
            split = self._few_shots(split, cfg)
        split = subsample_classes(split, cfg.DATASET.SUBSAMPLE_CLASSES)
        super().__init__(train_x=split.train, val=split.val, test=split.test)

    # What a subclass may replace.

    def find_root(self, cfg: Any) -> str:
        """Folder that ``dataset_dir`` is in, absolute."""
        if not cfg.DATASET.ROOT:
            raise MissingDatasetError(f"dataset {type(self).__name__} needs {self._root_flag()}: {self._root_holds()}")
        return os.path.abspath(os.path.expanduser(cfg.DATASET.ROOT))

    def prepare(self) -> None:
        """Called before anything is read; the place to draw or unpack what is not there yet."""

    def load(self) -> Split:
        """The whole dataset: from the split file, or made and saved. Replace it where there is no such file."""
        kept = self.sidecar.find(self.split_file)
        if kept is not None:
            return read_split(kept, self.image_dir)
        split = self.make_split()
        self.sidecar.write(self.split_file, partial(save_split, split, image_dir=self.image_dir))
        return split

    def make_split(self) -> Split:
        """The split as the reference makes it, where there is no split file."""
        raise MissingDatasetError(
            f"dataset {type(self).__name__}: no split file '{os.path.join(self.dataset_dir, self.split_file)}'"
            f"{self._where_to_get()}"
        )

    # The rest is the same for all.

    def locate(self, cfg: Any) -> None:
        """Make the folders absolute; nothing is read. The doctor looks at a dataset that it does not build."""
        self.dataset_dir = os.path.normpath(os.path.join(self.find_root(cfg), self.dataset_dir))
        self.image_dir = os.path.normpath(os.path.join(self.dataset_dir, self.image_dir))
        self.sidecar = SidecarFiles(type(self).__name__, self.dataset_dir)

    def _where_to_get(self) -> str:
        return f"; get the dataset from {self.homepage}" if self.homepage else ""

    def _lacking(self, error: FileNotFoundError) -> str:
        """What is not there, and what could stand in for it, for error messages."""
        instead = f", nor is the split file '{self.split_file}'" if self.split_file else ""
        return f"'{error.filename}' is not there{instead}{self._where_to_get()}"

    def _root_flag(self) -> str:
        """What sets the root, for error messages."""
        return "--root (DATASET.ROOT)" if type(self).dataset_dir else "--root or --data (DATASET.ROOT)"

    def _root_holds(self) -> str:
        """What the root should be, for error messages."""
        folder = type(self).dataset_dir
        return f"the folder that holds '{folder}'" if folder else "the folder of the dataset itself"

    def _check_layout(self) -> None:
        try:
            os.scandir(self.image_dir).close()
        except (FileNotFoundError, NotADirectoryError):
            raise MissingDatasetError(
                f"dataset {type(self).__name__} is not there: looked for the folder '{self.image_dir}'"
                f"{self._where_to_get()}; {self._root_flag()} should be {self._root_holds()}"
            ) from None
        except OSError as error:
            raise UserError(
                f"dataset {type(self).__name__}: cannot look into '{self.image_dir}': {error.strerror}"
            ) from error

    def _check(self, split: Split, on_error: str) -> None:
        kept = self.sidecar.find(self.split_file) if self.split_file else None
        source = f"split file '{kept}'" if kept else f"dataset {type(self).__name__}"
        hint = f"Check the folder{f', or delete {kept} to split anew' if kept else ''}."
        try:
            if not self.lists_files:
                check_files(split, source, hint)
        except UserError as error:
            if on_error != "skip":
                raise
            logger.warning("%s They are skipped (DATASET.ON_ERROR).", error)
        check_labels(split, source)

    def _with_class_ids(self, split: Split) -> Split:
        """The split with the ids of ``classes_file`` on its items."""
        if not self.classes_file:
            return split
        path = os.path.join(self.dataset_dir, self.classes_file)
        try:
            classes = [(entry["name"], entry.get("id", "")) for entry in read_json(path)]
            return Split(*([_identified(item, *classes[item.label]) for item in part] for part in split))
        except (OSError, ValueError, TypeError, LookupError) as error:
            raise UserError(f"class table '{path}' does not fit the split: {error}") from error

    def _few_shots(self, split: Split, cfg: Any) -> Split:
        """The split with its few-shot draw in place of train and val: given, kept from before, or drawn now."""
        num_shots, seed, given = cfg.DATASET.NUM_SHOTS, cfg.SEED, cfg.DATASET.FEWSHOT_FILE
        if num_shots == 0 or num_shots < -1:
            raise UserError(f"DATASET.NUM_SHOTS {num_shots} is out of range: 1 or more, or -1 for all images")
        if num_shots == -1 and not given:
            return split
        source = Draw(split.train, [] if self.val_is_test else split.val)
        file = DrawFile(type(self).__name__, self.image_dir, source)
        name = os.path.join(self.fewshot_dir, f"shot_{num_shots}-seed_{seed}.json")
        pickled = f"{name.removesuffix('.json')}.pkl"  # the reference's, kept beside the dataset
        kept = Path(given).expanduser() if given else self.sidecar.find(name) or self.sidecar.find(pickled)
        if kept is not None and kept.suffix != ".pkl":
            logger.info("Loading preprocessed few-shot data from %s", kept)
            expected = {"num_shots": num_shots} if num_shots > 0 else {}
            remedy = "Check DATASET.FEWSHOT_FILE." if given else "Delete it to draw anew."
            draw = file.load(kept, expected if given else {**expected, "seed": seed}, remedy)
        else:
            if kept is None:
                draw = self._draw(source, num_shots)
            else:
                logger.info("Loading preprocessed few-shot data from %s", kept)
                draw = read_pickled_draw(kept, self.image_dir, source)
            kept = self.sidecar.write(name, lambda path: file.save(draw, num_shots, seed, path))
            if kept is not None:
                logger.info("Saving preprocessed few-shot data to %s", kept)
        self.fewshot_digest = draw_digest(draw, self.image_dir)
        return Split(draw.train, split.val if self.val_is_test else draw.val, split.test)

    def _draw(self, source: Draw, num_shots: int) -> Draw:
        """Train first, then val: the order is part of the protocol."""
        train = self.generate_fewshot_dataset(source.train, num_shots=num_shots)
        if self.val_is_test:
            val = []
        else:
            val = self.generate_fewshot_dataset(source.val, num_shots=min(num_shots, MAX_VAL_SHOTS))
        warn_of_small_classes(source.train, num_shots)
        return Draw(train, val)


def _identified(item: Datum, name: str, identity: str) -> Datum:
    if name != item.classname:
        raise ValueError(f"label {item.label} is '{name}' there, but '{item.classname}' in the split")
    return Datum(item.impath, item.label, item.domain, item.classname, identity)


class SidecarFiles:
    """Finds and writes a dataset's kept files: its made split and its few-shot draws.

    Args:
        dataset: registered name.
        dataset_dir: the dataset's folder, absolute.
    """

    def __init__(self, dataset: str, dataset_dir: str) -> None:
        # Two folders of one dataset (a full and a reduced copy) must not share their draws.
        place = f"{dataset}-{digest_of(os.path.realpath(dataset_dir))[:12]}"
        self.folders = (Path(dataset_dir), cache_root() / "splits" / place)

    def find(self, name: str) -> Path | None:
        """Where the file called ``name`` (relative) is, if it is; a folder closed to us counts as empty."""
        return next((folder / name for folder in self.folders if os.path.isfile(folder / name)), None)

    def write(self, name: str, writer: Callable[[Path], None]) -> Path | None:
        """Let ``writer`` write the file, beside the dataset if that works; None if it works nowhere."""
        problem: OSError | None = None
        for folder in self.folders:
            try:
                writer(folder / name)
            except OSError as error:
                problem = error
            else:
                return folder / name
        logger.warning("Cannot keep '%s' (%s): the run goes on without", name, problem)
        return None
