"""What a dataset is to the engine: lists of Datums, and the names of the classes (Dassl's contract)."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any

from dassl_lite.data.classes import ClassList
from dassl_lite.data.datum import Datum
from dassl_lite.data.fewshot import draw_shots, group_by_label
from dassl_lite.utils.errors import UserError, unknown
from dassl_lite.utils.registry import Registry

logger = logging.getLogger(__name__)

DATASET_REGISTRY = Registry("dataset")


def build_dataset(cfg: Any) -> DatasetBase:
    """Make the dataset that ``cfg.DATASET.NAME`` names; ``cfg.DATASET.TEMPLATE`` replaces its template."""
    make = DATASET_REGISTRY.get(cfg.DATASET.NAME)
    if cfg.VERBOSE:
        logger.info("Loading dataset: %s", cfg.DATASET.NAME)
    dataset = make(cfg)
    if cfg.DATASET.TEMPLATE:
        if cfg.DATASET.TEMPLATE.count("{}") != 1:
            raise UserError(f"DATASET.TEMPLATE '{cfg.DATASET.TEMPLATE}' must contain {{}} once, for the class name")
        dataset.template = cfg.DATASET.TEMPLATE
    return dataset


class DatasetBase:
    """Images in up to four lists, and their classes.

    A subclass reads its files and hands the lists to this constructor; one in the field's layout derives
    from :class:`dassl_lite.data.FolderDataset` instead and only declares where things are.

    Args:
        train_x: labelled training items; classes and their names come from these.
        train_u: unlabelled training items, if any.
        val: validation items, if any.
        test: test items.

    Attributes:
        dataset_dir: folder of the dataset.
        domains: names of all domains, where there are several.
        template: prompt for one class name.
        ensemble_templates: further prompts that the field averages for this dataset (ImageNet's seven).
        fewshot_digest: identity of the few-shot draw in use, "" if all training images are used.
    """

    dataset_dir: str = ""
    domains: Sequence[str] = ()
    template: str = "a photo of a {}."
    ensemble_templates: tuple[str, ...] = ()
    fewshot_digest: str = ""

    def __init__(
        self,
        train_x: list[Datum] | None = None,
        train_u: list[Datum] | None = None,
        val: list[Datum] | None = None,
        test: list[Datum] | None = None,
    ) -> None:
        if not train_x:
            raise UserError(f"dataset {type(self).__name__} has no training image, so its classes are unknown")
        self._train_x = train_x
        self._train_u = train_u
        self._val = val
        self._test = test
        self._num_classes = self.get_num_classes(train_x)
        self._lab2cname, self._classnames = self.get_lab2cname(train_x)

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
        ids = {item.label: item.classid for item in self._train_x}
        return ClassList(tuple(self._classnames), tuple(ids[label] for label in sorted(ids)))

    @staticmethod
    def get_num_classes(data_source: Iterable[Datum]) -> int:
        """The largest label + 1."""
        return max(item.label for item in data_source) + 1

    @staticmethod
    def get_lab2cname(data_source: Iterable[Datum]) -> tuple[dict[int, str], list[str]]:
        """Class name of each label, and the names in label order."""
        names: dict[int, str] = {}
        for item in data_source:
            names.setdefault(item.label, item.classname)
        mapping = {label: names[label] for label in sorted(names)}
        return mapping, list(mapping.values())

    def check_input_domains(self, source_domains: Iterable[str], target_domains: Iterable[str]) -> None:
        """Raise UserError for a domain that this dataset does not have."""
        self.is_input_domain_valid((*source_domains, *target_domains))

    def is_input_domain_valid(self, input_domains: Iterable[str]) -> None:
        """The same for one list of domains."""
        for domain in input_domains:
            if domain not in self.domains:
                raise unknown("domain", domain, self.domains)

    def download_data(self, url: str, dst: str, from_gdrive: bool = True) -> None:
        """Download an archive to ``dst`` and unpack it there, as Dassl's datasets do where theirs is missing."""
        from dassl_lite.downloads.url import download_and_unpack  # only where it is used: slow to import

        download_and_unpack(url, dst, from_gdrive)

    def generate_fewshot_dataset(self, *data_sources: list[Datum], num_shots: int = -1, repeat: bool = False) -> Any:
        """Draw ``num_shots`` items per class from each list, in the order given; all of them if it is below 1.

        Returns:
            A list of Datums for one source, a sequence of such lists for several.
        """
        if num_shots < 1:
            return data_sources[0] if len(data_sources) == 1 else data_sources
        logger.info("Creating a %d-shot dataset", num_shots)
        drawn = [draw_shots(source, num_shots, repeat) for source in data_sources]
        return drawn[0] if len(drawn) == 1 else drawn

    @staticmethod
    def split_dataset_by_label(data_source: Iterable[Datum]) -> dict[int, list[Datum]]:
        """Items per label, labels in the order in which they first appear."""
        return group_by_label(data_source)

    @staticmethod
    def split_dataset_by_domain(data_source: Iterable[Datum]) -> dict[int, list[Datum]]:
        """Items per domain, domains in the order in which they first appear."""
        groups: dict[int, list[Datum]] = {}
        for item in data_source:
            groups.setdefault(item.domain, []).append(item)
        return groups
