"""Datasets in the field's layout: a folder under the root, with a folder of images and a split file in it.

A dataset file only declares where things are; ``FolderDataset`` does the work. The smallest one::

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

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from yacs.config import CfgNode

from dassl_lite.data.classes import warn_of_equal_names
from dassl_lite.data.dataset import DatasetBase
from dassl_lite.data.datum import Datum
from dassl_lite.data.fewshot import (
    LISTS,
    MAX_VAL_SHOTS,
    Draw,
    DrawFile,
    draw_digest,
    read_listed_draw,
    read_pickled_draw,
    warn_of_small_classes,
)
from dassl_lite.data.splits import (
    Split,
    check_files,
    check_labels,
    read_split,
    save_split,
    subsample_classes,
)
from dassl_lite.utils.errors import MissingDatasetError, UserError, shown
from dassl_lite.utils.files import cache_root, digest_of, read_json
from dassl_lite.utils.logger import get_logger
from dassl_lite.utils.registry import Registry
from dassl_lite.utils.sharing import shared, stamp

logger = get_logger(__name__)


class FolderDataset(DatasetBase):
    """A dataset of image files under ``cfg.DATASET.ROOT``, with few-shot draws and base and new classes.

    A subclass declares the attributes; on an instance ``dataset_dir`` and ``image_dir`` are absolute paths.

    Attributes:
        dataset_dir: folder under the root.
        image_dir: folder of images in ``dataset_dir``; paths in split files are relative to it.
        split_file: split file in ``dataset_dir``; read if it exists, otherwise made and saved.
        classes_file: JSON list of ``{"name": ..., "id": ...}`` in label order, in ``dataset_dir``, for classes with ids
            that are not in the split file.
        homepage: where to get the dataset.
        fewshot_dir: folder of few-shot draws in ``dataset_dir``.
        val_is_test: the test images are also the validation set, and no shots are drawn from it (ImageNet).
        test_only: there is no training set; the test images define the classes, and shots do not apply (ImageNet's
            variants).
        lists_files: :meth:`load` lists the folders on every run, so there is no need to check that its images exist.
        checks_itself: :meth:`prepare` finds problems and only writes to the cache, so the doctor calls it.
        own_data: the user's own files, not a dataset of the field: nothing is written into their folder unless
            DATASET.SPLITS_IN asks for it.
        drawn: the images are drawings like those that the demo backbone was trained on.
        evaluating: the images are only evaluated (``DATASET.TEST_ONLY``).
        sidecar: where the split file and the few-shot draws are kept.

    Hooks, in the order in which they are called: :meth:`find_root`, :meth:`prepare`, :meth:`load` (which calls
    :meth:`make_split` if there is no split file).
    """

    image_dir: str = "images"
    split_file: str = ""
    classes_file: str = ""
    homepage: str = ""
    fewshot_dir: str = "split_fewshot"
    val_is_test: bool = False
    test_only: bool = False
    lists_files: bool = False
    checks_itself: bool = False
    own_data: bool = False
    drawn: bool = False
    evaluating: bool = False
    sidecar: SidecarFiles
    _new_split: Split | None = None

    def __init__(self, cfg: CfgNode) -> None:
        self.evaluating = cfg.DATASET.TEST_ONLY
        self.locate(cfg)
        self.prepare()
        self._check_layout()
        try:
            split = self._with_class_ids(self.load())
        except FileNotFoundError as error:
            raise MissingDatasetError(f"dataset {type(self).__name__}: {self._describe_missing(error)}") from error
        except OSError as error:
            raise UserError(f"dataset {type(self).__name__} cannot be read: {error}") from error
        if self.test_only:
            split = Split(split.test, split.val, split.test)
        self.check_split(split, cfg.DATASET.ON_ERROR)
        if split.train and not split.test and not cfg.TEST.NO_TEST:
            raise UserError(
                f"dataset {type(self).__name__} has no test images; TEST.NO_TEST True trains without evaluating"
            )
        if not self.test_only:
            split = self._few_shots(split, cfg)
        if self._new_split is not None:
            # Saved only now: both come from one random stream, so a run killed in between must make both again.
            self.sidecar.write(self.split_file, partial(save_split, self._new_split, image_dir=self.image_dir))
        split = subsample_classes(split, cfg.DATASET.SUBSAMPLE_CLASSES)
        super().__init__(train_x=split.train, val=split.val, test=split.test)
        warn_of_equal_names(self.classnames)

    # Hooks that a subclass may override.

    def find_root(self, cfg: CfgNode) -> str:
        """Absolute path of the folder that contains ``dataset_dir``."""
        if not cfg.DATASET.ROOT:
            raise MissingDatasetError(
                f"dataset {type(self).__name__} needs {self._root_flag()}: {self._expected_root()}"
            )
        return os.path.abspath(os.path.expanduser(cfg.DATASET.ROOT))

    def prepare(self) -> None:
        """Called before anything is read: the place to generate or unpack files that do not exist yet."""

    def load(self) -> Split:
        """The full dataset, from the split file or newly split; once checked, a new split is saved.

        Override it if there is no such file.
        """
        kept = self.sidecar.find(self.split_file)
        if kept is not None:
            source = str(kept), stamp(kept), self.image_dir
            return Split(*map(list, shared("split file", source, lambda: read_split(kept, self.image_dir))))
        self._new_split = self.make_split()
        return self._new_split

    def make_split(self) -> Split:
        """The split to use if there is no split file."""
        raise MissingDatasetError(
            f"dataset {type(self).__name__}: no split file '{os.path.join(self.dataset_dir, self.split_file)}'"
            f"{self._where_to_get()}"
        )

    # The same for every dataset.

    def locate(self, cfg: CfgNode) -> None:
        """Make the folders absolute without reading anything, for callers that do not build the dataset."""
        self.dataset_dir = os.path.normpath(os.path.join(self.find_root(cfg), self.dataset_dir))
        self.image_dir = os.path.normpath(os.path.join(self.dataset_dir, self.image_dir))
        self.sidecar = self.sidecar_files(cfg)

    def sidecar_files(self, cfg: CfgNode) -> SidecarFiles:
        """Where the split file and the few-shot draws are kept: beside the dataset, those of own data in the cache."""
        place = cfg.DATASET.SPLITS_IN
        beside = place == "dataset" or (place == "auto" and not self.own_data)
        return SidecarFiles(type(self).__name__, self.dataset_dir, beside=beside)

    @classmethod
    def missing(cls, cfg: CfgNode) -> str:
        """Why the dataset's folder is not on this machine, or ""; nothing in it is read, so it may be incomplete."""
        dataset = cls.__new__(cls)
        dataset.evaluating = cfg.DATASET.TEST_ONLY
        try:
            dataset.locate(cfg)
            if cls.prepare is FolderDataset.prepare:  # otherwise it may make its folder
                dataset._check_layout()
        except MissingDatasetError as error:
            return str(error)
        return ""

    def _where_to_get(self) -> str:
        return f"; get the dataset from {self.homepage}" if self.homepage else ""

    def _describe_missing(self, error: FileNotFoundError) -> str:
        """The missing file and its alternative, for error messages."""
        alternative = f", and there is no split file '{self.split_file}'" if self.split_file else ""
        return f"'{error.filename}' is missing{alternative}{self._where_to_get()}"

    def _root_flag(self) -> str:
        """The option that sets the root, for error messages."""
        return "--root (DATASET.ROOT)" if type(self).dataset_dir else "--root or --data (DATASET.ROOT)"

    def _expected_root(self) -> str:
        """What the root should be, for error messages."""
        folder = type(self).dataset_dir
        return f"the folder that contains '{folder}'" if folder else "the dataset's own folder"

    def _check_layout(self) -> None:
        try:
            os.scandir(self.image_dir).close()
        except (FileNotFoundError, NotADirectoryError):
            raise MissingDatasetError(
                f"dataset {type(self).__name__} is missing: there is no folder '{self.image_dir}'"
                f"{self._where_to_get()}; {self._root_flag()} should be {self._expected_root()}"
            ) from None
        except OSError as error:
            raise UserError(
                f"dataset {type(self).__name__}: cannot read the folder '{self.image_dir}': {error.strerror}"
            ) from error

    @property
    def called(self) -> str:
        """The source of the lists, for error messages."""
        return f"dataset {type(self).__name__}"

    def check_split(self, split: Split, on_error: str) -> None:
        """Raise UserError if labels or files of a split are wrong; called before it is saved, if it is made here."""
        kept = self.sidecar.find(self.split_file) if self.split_file else None
        source = f"split file '{kept}'" if kept else self.called
        hint = f"Check the folder{f', or delete {kept} to split again' if kept else ''}."
        try:
            if not self.lists_files:
                check_files(split, source, hint)
        except UserError as error:
            if on_error != "skip":
                raise
            logger.warning(f"{error} Missing images are skipped (DATASET.ON_ERROR).")
        check_labels(split, source)

    def _with_class_ids(self, split: Split) -> Split:
        """The split with the class ids of ``classes_file``."""
        if not self.classes_file:
            return split
        path = os.path.join(self.dataset_dir, self.classes_file)
        try:
            classes = [(entry["name"], entry.get("id", "")) for entry in read_json(path)]
            if wrong := next((entry for _, entry in classes if not isinstance(entry, str)), None):
                raise ValueError(f"the id {shown(wrong)} is not a text")
            return Split(*([_with_class_id(item, *classes[item.label]) for item in part] for part in split))
        except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
            raise UserError(f"class table '{path}' does not fit the split: {error}") from error

    def _few_shots(self, split: Split, cfg: CfgNode) -> Split:
        """The split with train and val replaced by a few-shot draw: given, kept from an earlier run, or drawn now."""
        num_shots, seed, given = cfg.DATASET.NUM_SHOTS, cfg.SEED, cfg.DATASET.FEWSHOT_FILE
        if num_shots < 1 and Registry.others_win:
            num_shots = -1  # as in Dassl
        if num_shots == 0 or num_shots < -1:
            raise UserError(f"DATASET.NUM_SHOTS {num_shots} is out of range: 1 or more, or -1 for all images")
        if num_shots == -1 and not given:
            return split
        source = Draw(split.train, [] if self.val_is_test else split.val)
        file = DrawFile(type(self).__name__, self.image_dir, source)
        name = os.path.join(self.fewshot_dir, f"shot_{num_shots}-seed_{seed}.json")
        pickled = f"{name.removesuffix('.json')}.pkl"  # CoOp's
        kept = Path(given).expanduser() if given else self.sidecar.find(name) or self.sidecar.find(pickled)
        if kept is not None:
            logger.info(f"Loading preprocessed few-shot data from {kept}")
        if kept is None:
            draw = self._draw(source, num_shots)
        elif kept.suffix == ".pkl":
            draw = read_pickled_draw(kept, self.image_dir, source)
        elif kept.suffix in LISTS:
            draw = read_listed_draw(kept, self.image_dir, source, num_shots)
        else:
            expected = {"num_shots": num_shots} if num_shots > 0 else {}
            remedy = "Check DATASET.FEWSHOT_FILE." if given else "Delete it to draw again."
            draw = file.load(kept, expected if given else {**expected, "seed": seed}, remedy)
        if kept is None or (kept.suffix == ".pkl" and not given):  # a given draw is not saved as this dataset's own
            kept = self.sidecar.write(name, lambda path: file.save(draw, num_shots, seed, path))
            if kept is not None:
                logger.info(f"Saving preprocessed few-shot data to {kept}")
        check_labels(Split(draw.train, draw.val, []), f"few-shot file '{kept}'")  # draws made here contain all classes
        self.fewshot_digest = draw_digest(draw, self.image_dir)
        return Split(draw.train, split.val if self.val_is_test else draw.val, split.test)

    def _draw(self, source: Draw, num_shots: int) -> Draw:
        """Draw from train first, then from val: the order is part of the protocol."""
        train = self.generate_fewshot_dataset(source.train, num_shots=num_shots)
        if self.val_is_test:
            val = []
        else:
            val = self.generate_fewshot_dataset(source.val, num_shots=min(num_shots, MAX_VAL_SHOTS))
        warn_of_small_classes(source.train, num_shots)
        return Draw(train, val)


def _with_class_id(item: Datum, name: str, classid: str) -> Datum:
    if name != item.classname:
        raise ValueError(f"label {item.label} is '{name}' in the table, but '{item.classname}' in the split")
    return Datum(item.impath, item.label, item.domain, item.classname, classid)


class SidecarFiles:
    """Files that runs save for a dataset: its split and its few-shot draws.

    They are kept beside the dataset, or in the cache if its folder cannot or may not be written to. Files that lie in
    either place are found.

    Args:
        dataset: registered name.
        dataset_dir: absolute path of the dataset's folder.
        beside: whether that folder may be written to.
    """

    def __init__(self, dataset: str, dataset_dir: str, *, beside: bool = True) -> None:
        # Two copies of a dataset (a full and a reduced one) must not share their draws.
        place = f"{dataset}-{digest_of(os.path.realpath(dataset_dir))[:12]}"
        self.folders = (Path(dataset_dir), cache_root() / "splits" / place)
        self.beside = beside

    def find(self, name: str) -> Path | None:
        """Path of the file ``name``, or None. A folder without read permission counts as empty."""
        return next((folder / name for folder in self.folders if os.path.isfile(folder / name)), None)

    def write(self, name: str, writer: Callable[[Path], None]) -> Path | None:
        """Write the file ``name`` with ``writer``, beside the dataset if possible and allowed, else in the cache.

        Returns:
            Path of the file, or None if it cannot be written anywhere.
        """
        problem: OSError | None = None
        for folder in self.folders if self.beside else self.folders[1:]:
            try:
                writer(folder / name)
            except OSError as error:
                problem = error
            else:
                return folder / name
        logger.warning(f"Cannot save '{name}' ({problem}); the run continues without it")
        return None
