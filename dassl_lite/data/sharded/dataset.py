"""Datasets whose images lie in shards: their splits, classes and problems."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

from yacs.config import CfgNode

from dassl_lite.data.datum import Datum
from dassl_lite.data.fewshot import group_by_label
from dassl_lite.data.own_data import Groups, OwnDataset
from dassl_lite.data.sharded.members import OF_SHARD, Index, Record, Shard, folder_of, write_index
from dassl_lite.data.sharded.remote import expand, found_in, is_url, joined, local_copy
from dassl_lite.data.sharded.tar import COMPRESSED, Columns, index_shard
from dassl_lite.data.splits import UNSPLIT, split_called
from dassl_lite.utils.errors import MissingDatasetError, UserError, nearest, printable, shown
from dassl_lite.utils.files import digest_of, read_json, read_text
from dassl_lite.utils.logger import get_logger

logger = get_logger(__name__)

PARTS = {"TRAIN": "train", "VAL": "val", "TEST": "test"}


class ShardedDataset(OwnDataset):
    """Images in shards. A subclass says which shards there are, in :meth:`find_shards`.

    ``dataset_dir`` is the folder of the index in the cache; images are listed by key, so neither the order of the
    shards nor how the images are divided among them changes a split or a draw.
    """

    lists_files = True
    checks_itself = True
    split_file = "split_shards.json"
    source: str
    columns: Columns
    _on_error: str
    _names_file: str
    _patterns: dict[str, str]

    def find_shards(self) -> tuple[dict[str, list[Shard]], list[str], tuple[str, ...]]:
        """The indexed shards of each split, what is wrong with them, and the class names if they have them."""
        raise NotImplementedError

    def find_root(self, cfg: CfgNode) -> str:
        node = cfg.DATASET.SHARDS
        self.source = cfg.DATASET.ROOT
        self._patterns = {part: node[key] for key, part in PARTS.items() if node[key]}
        if not self.source and not self._patterns:
            raise MissingDatasetError(
                f"dataset {type(self).__name__} needs --root (DATASET.ROOT): {self._expected_root()}"
            )
        self.columns = self._columns_of(node)
        self._on_error = cfg.DATASET.ON_ERROR
        self._names_file = node.CLASSNAMES
        place = (
            self.source if is_url(self.source) or not self.source else os.path.abspath(os.path.expanduser(self.source))
        )
        return str(folder_of(digest_of([type(self).__name__, place, self._patterns, self.columns])))

    def _columns_of(self, node: CfgNode) -> Columns:
        return Columns(node.IMAGE, node.LABEL, node.KEY)

    def _expected_root(self) -> str:
        return "the folder of the shards"

    @property
    def called(self) -> str:
        return f"shards '{printable(self.source or next(iter(self._patterns.values())))}'"

    def prepare(self) -> None:
        """Index the shards that were not indexed before."""
        parts, problems, names = self.find_shards()
        names = self._classnames_of() or names
        shards = [shard for part in parts.values() for shard in part]
        records = list(self._merged(parts, problems))
        records = self._of_known_classes(records, names, shards, problems)
        self._tell(problems)
        about = {"parts": list(parts), "classnames": names, "shards": [shard.digest for shard in shards]}
        write_index(Path(self.dataset_dir), shards, records, about)

    def _tell(self, problems: list[str]) -> None:
        if not problems:
            return
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        if self._on_error != "skip":
            raise UserError(f"{problems[0]}{more}; DATASET.ON_ERROR skip leaves them out")
        logger.warning(f"{problems[0]}{more}: skipped (DATASET.ON_ERROR)")

    def _merged(self, parts: dict[str, list[Shard]], problems: list[str]) -> Iterator[tuple[int, Record]]:
        """The records of all shards with names that begin with the split's; a name that is taken is a problem."""
        number = 0
        for part, shards in parts.items():
            owner: dict[str, str] = {}
            for shard in shards:
                index = Index(folder_of(shard.digest))
                for _, record in index.records():
                    if (first := owner.setdefault(record.key, shard.source)) != shard.source:
                        problems.append(f"the key {shown(record.key)} is in '{first}' and in '{shard.source}'")
                        continue
                    name = f"{part or OF_SHARD}/{record.name.partition('/')[2]}"
                    yield number, record._replace(name=name)
                index.close()
                number += 1

    def _classnames_of(self) -> tuple[str, ...]:
        """The class names that the user gives, in label order."""
        given = self._names_file
        if not given and os.path.isdir(os.path.expanduser(self.source)):
            for name in ("classnames.json", "classnames.txt"):
                path = os.path.join(os.path.expanduser(self.source), name)
                given = given or (path if os.path.isfile(path) else "")
        if not given:
            return ()
        path = local_copy(given)
        try:
            if given.endswith(".json"):
                names = read_json(path)
            else:
                names = [line.strip() for line in read_text(path).splitlines() if line.strip()]
            if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names) or not names:
                raise ValueError("it is not a list of names")
            if len(set(names)) < len(names):
                raise ValueError("a name is there twice")
        except (OSError, ValueError) as error:
            raise UserError(
                f"cannot read class names '{printable(given)}': {getattr(error, 'strerror', None) or error}"
            ) from error
        return tuple(names)

    def _of_known_classes(
        self, records: list[tuple[int, Record]], names: tuple[str, ...], shards: list[Shard], problems: list[str]
    ) -> list[tuple[int, Record]]:
        """The records whose labels are classes; labels become ``[label, class name]``."""
        found = {record.label: json.loads(record.label) for _, record in records}
        kinds = {type(label) for label in found.values()}
        texts = sorted(label for label in found.values() if isinstance(label, str))
        numbers = [label for label in found.values() if isinstance(label, int)]
        if kinds == {int, str} and not names:
            raise UserError(f"{self.called}: some labels are numbers ({numbers[0]}) and some names ({shown(texts[0])})")
        if not names and numbers:
            logger.warning(
                "The classes have no names, so prompts use their labels; DATASET.SHARDS.CLASSNAMES names them"
            )
        known = names or tuple(texts)
        position = {name: label for label, name in enumerate(known)}
        classes: dict[str, str] = {}
        for text, label in found.items():
            if isinstance(label, int):
                if 0 <= label < len(known) or (not names and 0 <= label):
                    classes[text] = json.dumps([label, known[label] if known else str(label)])
            elif label in position:
                classes[text] = json.dumps([position[label], label])
        for number, record in records:
            if record.label not in classes:
                label = found[record.label]
                close = nearest(str(label), known) if isinstance(label, str) else None
                hint = f" (did you mean '{printable(close)}'?)" if close else ""
                of = f"which is none of the {len(known)} classes{hint}" if known else "and labels begin with 0"
                problems.append(
                    f"shard '{shards[number].source}': sample {shown(record.key)} has the label {shown(label)}, {of}"
                )
        return [(number, one._replace(label=classes[one.label])) for number, one in records if one.label in classes]

    def list_groups(self) -> dict[str, Groups]:
        index = Index(self.dataset_dir)
        items: dict[str, list[Datum]] = {part: [] for part in index.about["parts"]}
        for _, record in index.records():
            label, name = json.loads(record.label)
            part = record.name.partition("/")[0]
            path = os.path.join(self.image_dir, *record.name.split("/"))
            items[UNSPLIT if part == OF_SHARD else part].append(Datum(path, label, classname=name))
        index.close()
        lacking = [part for part, found in items.items() if not found]
        if lacking:
            raise UserError(f"{self.called}: there is no image{f' for {lacking[0]}' if lacking[0] else ''}")
        logger.info(f"{self.called}: " + ", ".join(f"{len(found):,} {part}".rstrip() for part, found in items.items()))
        return {part: list(dict(sorted(group_by_label(found).items())).values()) for part, found in items.items()}


class TarDataset(ShardedDataset):
    """Tar shards of the WebDataset convention, on disk or behind URLs."""

    def _columns_of(self, node: CfgNode) -> Columns:
        """Endings as they are compared: ``.PNG`` is ``png``; a field of ``.json`` stays as it is written."""
        label = node.LABEL.removeprefix(".")
        return Columns(node.IMAGE.removeprefix(".").lower(), label, node.KEY)

    def _expected_root(self) -> str:
        return "a folder of .tar files, a pattern such as train-{000..099}.tar, or a URL"

    def find_shards(self) -> tuple[dict[str, list[Shard]], list[str], tuple[str, ...]]:
        parts: dict[str, list[Shard]] = {}
        problems: list[str] = []
        failed: list[UserError] = []
        for part, names in self._names().items():
            parts[part] = []
            for name in names:
                try:
                    shard, wrong = index_shard(local_copy(name), name, self.columns)
                except UserError as error:
                    failed.append(error)
                    if self._on_error != "skip":
                        raise
                    problems.append(str(error))
                    continue
                parts[part].append(shard)
                problems += wrong
        if failed and not any(parts.values()):
            raise failed[0]
        return parts, problems, ()

    def _names(self) -> dict[str, list[str]]:
        """The shards of each split, as the user names them."""
        if self._patterns:
            return {part: [joined(self.source, name) for name in expand(text)] for part, text in self._patterns.items()}
        root = os.path.expanduser(self.source)
        if not is_url(root) and os.path.isdir(root):
            endings = (".tar", ".tgz", *(f".tar{ending}" for ending in COMPRESSED))
            names = [os.path.join(root, name) for name in found_in(root, endings)]
            if not names:
                raise MissingDatasetError(f"dataset {type(self).__name__}: '{printable(root)}' has no .tar files")
        else:
            names = expand(root)
            if len(names) == 1 and is_url(root) and not root.partition("?")[0].endswith(".tar"):
                raise UserError(
                    f"'{printable(root)}' cannot be listed; DATASET.SHARDS.TRAIN and .TEST name the shards below it"
                )
        found: dict[str, list[str]] = {}
        for name in names:
            inside = os.path.relpath(name, root) if os.path.isdir(root) else os.path.basename(name.partition("?")[0])
            words = (*Path(inside).parts[:-1], Path(inside).name.partition(".")[0].partition("-")[0].partition("_")[0])
            found.setdefault(next((part for word in words if (part := split_called(word))), UNSPLIT), []).append(name)
        if len(found) > 1 and UNSPLIT in found:
            raise UserError(
                f"shard '{printable(found[UNSPLIT][0])}' belongs to no split; call it train-, val- or test-, "
                "or set DATASET.SHARDS"
            )
        return found


class HuggingFaceDataset(ShardedDataset):
    """A folder of Parquet or Arrow files, or a dataset of Hugging Face's hub."""

    def _expected_root(self) -> str:
        return "a folder of .parquet or .arrow files, or an id of the hub"

    def find_shards(self) -> tuple[dict[str, list[Shard]], list[str], tuple[str, ...]]:
        from dassl_lite.data.sharded.hugging_face import tables_of

        if self._patterns:
            raise UserError("DATASET.SHARDS.TRAIN, VAL and TEST are for WebDataset; an HFDataset has its splits")
        tables = tables_of(self.source, self.columns)
        names = {table.classnames for table in tables.values() if table.classnames}
        if len(names) > 1:
            raise UserError(f"{self.called}: the splits have different class names")
        problems = [problem for table in tables.values() for problem in table.problems]
        return {part: [table.shard] for part, table in tables.items()}, problems, next(iter(names), ())
