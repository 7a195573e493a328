"""A user's own images, in a folder or in a table: split if they come split, otherwise split here or all for testing."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

from dassl_lite.data.datum import Datum
from dassl_lite.data.folder import FolderDataset
from dassl_lite.data.images import count_images
from dassl_lite.data.layouts import refresh_split
from dassl_lite.data.splits import UNSPLIT, Split, kept_labels, read_split, split_classes, split_multi_label
from dassl_lite.utils.errors import shown
from dassl_lite.utils.logger import get_logger

logger = get_logger(__name__)

Groups = Sequence[list[Datum]]  # the images of each class


class OwnDataset(FolderDataset):
    """Images that are not one of the field's datasets. A subclass says where they are, in :meth:`list_groups`.

    Images without splits are split once, and the split is kept. If they are only evaluated (``DATASET.TEST_ONLY``) and
    have not been split before, all of them are test images and nothing is kept.
    """

    dataset_dir = ""
    image_dir = ""
    own_data = True

    @property
    def called(self) -> str:
        return f"folder '{self.dataset_dir}'"

    def list_groups(self) -> dict[str, Groups]:
        """The images of each class, of all together if ``multi_label``, by split: "train", "val", "test" or UNSPLIT."""
        raise NotImplementedError

    def load(self) -> Split:
        groups = self.list_groups()
        if set(groups) == {"train"}:
            logger.info(f"{self.called} only has a train split, which is split here")
            groups = {UNSPLIT: groups["train"]}
        if UNSPLIT not in groups:
            return self._given({part: _joined(groups[part]) for part in groups})
        saved = self.sidecar.find(self.split_file)
        if saved is not None:
            split = refresh_split(read_split(saved, self.image_dir), groups[UNSPLIT], str(saved))
            if self.evaluating:
                total = count_images(sum(map(len, split)))
                logger.info(f"{len(split.test):,} of {total} are test images by {saved}; without it all of them are")
            return split
        if self.evaluating:
            return self._all_for_testing(_joined(groups[UNSPLIT]))
        # A generator with a fixed seed: the test images must not depend on the seed of the first run.
        rng = random.Random(1)
        if self.multi_label:
            self._new_split = split_multi_label(_joined(groups[UNSPLIT]), rng)
        else:
            self._new_split = split_classes(groups[UNSPLIT], rng)
        return self._new_split

    def _given(self, parts: dict[str, list[Datum]]) -> Split:
        """The splits that the images come with. Without one for testing, ``val`` is: selection must not see it."""
        if "test" not in parts:
            logger.info("There is no test split: val is the test set, and there is no validation set")
            parts["test"] = parts.pop("val")
        if "train" not in parts:
            return self._all_for_testing(parts["test"])
        held = [*parts.get("val", []), *parts["test"]]
        more = _of_other_classes(parts["train"], held) if self.evaluating else []
        return Split([*parts["train"], *more], parts.get("val", []), parts["test"])

    def _all_for_testing(self, items: list[Datum]) -> Split:
        logger.info(f"All {count_images(len(items))} are for testing")
        self.test_only = True
        labels = {label: position for position, label in enumerate(kept_labels(items, "all"))}
        return Split([], [], [item.mapped(labels) for item in items])


def _of_other_classes(train: Sequence[Datum], held: Sequence[Datum]) -> list[Datum]:
    """An image of each class that no training image has: where images are only evaluated, it is a class, too."""
    known = {label for item in train for label in item.labels}
    found: dict[int, tuple[str, Datum]] = {}
    for item in held:
        for label, name, _ in item.classes:
            if label not in known:
                found.setdefault(label, (name, item))
    if found:
        named = ", ".join(shown(name) for name, _ in list(found.values())[:5]) + (", ..." if len(found) > 5 else "")
        logger.warning(f"Classes without training images, which are evaluated nevertheless: {named}")
    return list(dict.fromkeys(item for _, item in found.values()))


def _joined(groups: Iterable[Iterable[Datum]]) -> list[Datum]:
    return [item for group in groups for item in group]
