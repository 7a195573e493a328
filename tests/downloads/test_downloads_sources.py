"""The table of sources: complete, and consistent with the datasets and the official splits."""

from __future__ import annotations

import json
from pathlib import Path

from dassl_lite.data import DATASET_REGISTRY, FolderDataset
from dassl_lite.downloads import SOURCES
from dassl_lite.engine.plugins import load_plugins


def test_table_covers_fifteen_datasets_and_names_each_file_once() -> None:
    assert len(SOURCES) == 15
    folders = [source.folder for source in SOURCES.values()]
    assert len(set(folders)) == 15
    for source in SOURCES.values():
        names = [file.name for file in source.files]
        assert len(set(names)) == len(names)
        for file in source.files:
            kind, _, digest = file.digest.partition(":")
            assert len(digest) == {"": 0, "md5": 32, "sha256": 64}[kind]
            assert all(url.startswith(("https://", "http://", "drive:")) for url in file.urls)
            if not file.urls and not file.optional:
                assert source.manual
                assert file.digest


def test_table_puts_files_where_the_datasets_look() -> None:
    load_plugins()
    for name, source in SOURCES.items():
        dataset = DATASET_REGISTRY.get(name)
        assert issubclass(dataset, FolderDataset)
        assert source.folder == dataset.dataset_dir
        results = [file.result for file in source.files]
        if dataset.image_dir:
            assert any(result.split("/")[0] == dataset.image_dir for result in results), name
        if dataset.split_file:
            assert dataset.split_file in results


def test_table_agrees_with_the_official_splits(shared: Path) -> None:
    for path in sorted((shared / "data/splits").glob("split_zhou_*.json")):
        source = SOURCES[path.stem.removeprefix("split_zhou_")]
        content = json.loads(path.read_text())
        assert tuple(len(content[part]) for part in ("train", "val", "test")) == source.images
        assert len({row[1] for row in content["train"]}) == source.classes
