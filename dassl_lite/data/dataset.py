"""DatasetBase: lists of Datums and the names of their classes, as the engine sees a dataset (Dassl's contract)."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import overload

from yacs.config import CfgNode

from dassl_lite.config import completed
from dassl_lite.data.classes import ClassList
from dassl_lite.data.datum import Datum, classes_of, is_multi_label, labels_of, of_each_class
from dassl_lite.data.fewshot import draw_shots, group_by_label
from dassl_lite.utils.errors import UserError, unknown
from dassl_lite.utils.logger import get_logger
from dassl_lite.utils.registry import Registry
from dassl_lite.utils.seeding import random_streams_kept

logger = get_logger(__name__)

DATASET_REGISTRY = Registry("dataset")
_change: Callable[[DatasetBase], None] | None = None  # applied to every dataset that is built


@contextmanager
def changed_datasets(change: Callable[[DatasetBase], None]) -> Iterator[None]:
    """A context in which ``change`` is called with every dataset that is built, before anything is read from it."""
    global _change
    before, _change = _change, change
    try:
        yield
    finally:
        _change = before


def build_dataset(cfg: CfgNode) -> DatasetBase:
    """Build the dataset called ``cfg.DATASET.NAME``; ``cfg.DATASET.TEMPLATE`` overrides its prompt template.

    It may draw shots or a split from the random streams, or read them from a file; either way it leaves the streams as
    they were, so what follows is the same in a first and a later run.
    """
    cfg = completed(cfg)
    dataset_class = DATASET_REGISTRY.get(cfg.DATASET.NAME)
    if cfg.VERBOSE:
        logger.info(f"Loading dataset: {cfg.DATASET.NAME}")
    with random_streams_kept(), _collection_paused():
        dataset: DatasetBase = dataset_class(cfg)
    if cfg.DATASET.TEMPLATE:
        if cfg.DATASET.TEMPLATE.count("{}") != 1:
            raise UserError(f"DATASET.TEMPLATE '{cfg.DATASET.TEMPLATE}' must contain {{}} once for the class name")
        dataset.template = cfg.DATASET.TEMPLATE
    if _change is not None:
        _change(dataset)
    return dataset


@contextmanager
def _collection_paused() -> Iterator[None]:
    """Pause garbage collection, which would traverse a million new Datums again and again."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def published_name(cfg: CfgNode) -> str:
    """Name under which papers report the dataset of ``cfg``: its own, or the one that its feature file states."""
    name = str(cfg.DATASET.NAME)
    stated = getattr(DATASET_REGISTRY.get(name), "stated_name", None) if name in DATASET_REGISTRY else None
    return (stated(cfg) if stated else "") or name


class DatasetBase:
    """Up to four lists of images, and their classes.

    A subclass reads its files and passes the lists to this constructor. A dataset in the usual layout derives from
    :class:`dassl_lite.data.FolderDataset` instead and only declares where its files are.

    Args:
        train_x: labelled training images; they define the classes and their names.
        train_u: unlabelled training images, if any.
        val: validation images, if any.
        test: test images.

    Attributes:
        dataset_dir: folder of the dataset.
        domains: names of all domains, for datasets with several.
        template: prompt template, with ``{}`` for the class name.
        ensemble_templates: further templates that the field averages for this dataset (ImageNet's seven).
        method_templates: pairs of a method and the template that its authors use for this dataset instead.
        fewshot_digest: digest of the few-shot draw in use, "" if all training images are used.
        multi_label: an image has any number of classes; found from the images, unless a subclass declares it.
    """

    dataset_dir: str = ""
    domains: Sequence[str] = ()
    template: str = "a photo of a {}."
    ensemble_templates: tuple[str, ...] = ()
    method_templates: tuple[tuple[str, str], ...] = ()
    fewshot_digest: str = ""
    multi_label: bool = False

    def __init__(
        self,
        train_x: list[Datum] | None = None,
        train_u: list[Datum] | None = None,
        val: list[Datum] | None = None,
        test: list[Datum] | None = None,
    ) -> None:
        if not train_x:
            raise UserError(f"dataset {type(self).__name__} has no training images, so its classes are unknown")
        self._train_x = train_x
        self._train_u = train_u
        self._val = val
        self._test = test
        self._num_classes = self.get_num_classes(train_x)
        self._lab2cname, self._classnames = self.get_lab2cname(train_x)
        self.multi_label = self.multi_label or any(map(is_multi_label, (train_x, val or (), test or ())))

    @property
    def train_x(self) -> list[Datum]:
        return self._train_x

    @property
    def train_u(self) -> list[Datum] | None:
        return self._train_u

    @property
    def val(self) -> list[Datum] | None:
        return self._val

    @property
    def test(self) -> list[Datum] | None:
        return self._test

    def use_splits(self, train_x: list[Datum], val: list[Datum] | None, test: list[Datum] | None) -> None:
        """Replace the lists of labelled images; the classes stay, so each must have a training image."""
        self._train_x, self._val, self._test = train_x, val, test

    @property
    def lab2cname(self) -> dict[int, str]:
        """Class name of each label."""
        return self._lab2cname

    @property
    def classnames(self) -> list[str]:
        """Class names in label order."""
        return self._classnames

    @property
    def num_classes(self) -> int:
        return self._num_classes

    @property
    def classes(self) -> ClassList:
        """Names and ids of the classes in label order."""
        ids = {label: classid for item in of_each_class(self._train_x) for label, _, classid in classes_of(item)}
        return ClassList(tuple(self._classnames), tuple(ids[label] for label in sorted(ids)))

    @staticmethod
    def get_num_classes(data_source: Iterable[Datum]) -> int:
        """The largest label + 1."""
        return max(label for item in of_each_class(data_source) for label in labels_of(item)) + 1

    @staticmethod
    def get_lab2cname(data_source: Iterable[Datum]) -> tuple[dict[int, str], list[str]]:
        """Class name of each label; and the class names in label order."""
        names: dict[int, str] = {}
        for item in of_each_class(data_source):
            for label, name, _ in classes_of(item):
                names.setdefault(label, name)
        mapping = {label: names[label] for label in sorted(names)}
        return mapping, list(mapping.values())

    def check_input_domains(self, source_domains: Iterable[str], target_domains: Iterable[str]) -> None:
        """Raise UserError if this dataset lacks one of the domains."""
        self.is_input_domain_valid((*source_domains, *target_domains))

    def is_input_domain_valid(self, input_domains: Iterable[str]) -> None:
        """Raise UserError if this dataset lacks one of the domains (Dassl's name for a single list)."""
        for domain in input_domains:
            if domain not in self.domains:
                raise unknown("domain", domain, self.domains)

    def download_data(self, url: str, dst: str, from_gdrive: bool = True) -> None:
        """Download the archive at ``url`` to ``dst`` and unpack it there, as Dassl's datasets do for missing files."""
        from dassl_lite.downloads.url import download_and_unpack  # slow to import

        download_and_unpack(url, dst, from_gdrive)

    @overload
    def generate_fewshot_dataset(
        self, data_source: list[Datum], /, *, num_shots: int = -1, repeat: bool = False
    ) -> list[Datum]: ...

    @overload
    def generate_fewshot_dataset(
        self, *data_sources: list[Datum], num_shots: int = -1, repeat: bool = False
    ) -> Sequence[list[Datum]]: ...

    def generate_fewshot_dataset(
        self, *data_sources: list[Datum], num_shots: int = -1, repeat: bool = False
    ) -> list[Datum] | Sequence[list[Datum]]:
        """Draw ``num_shots`` images per class from each list, in the order given.

        Args:
            num_shots: images per class; below 1, the lists are returned as they are.
            repeat: draw with replacement from a class with fewer images; otherwise it gives all of its images.

        Returns:
            A list for one source, a sequence of lists for several.
        """
        if num_shots < 1:
            return data_sources[0] if len(data_sources) == 1 else data_sources
        logger.info(f"Creating a {num_shots}-shot dataset")
        drawn = [draw_shots(source, num_shots, repeat) for source in data_sources]
        return drawn[0] if len(drawn) == 1 else drawn

    @staticmethod
    def split_dataset_by_label(data_source: Iterable[Datum]) -> dict[int, list[Datum]]:
        """Images per label, labels in order of first appearance; an image of several classes is listed with each."""
        return group_by_label(data_source)

    @staticmethod
    def split_dataset_by_domain(data_source: Iterable[Datum]) -> dict[int, list[Datum]]:
        """Images per domain, domains in order of first appearance."""
        groups: dict[int, list[Datum]] = {}
        for item in data_source:
            groups.setdefault(item.domain, []).append(item)
        return groups
