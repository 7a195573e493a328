"""The data part of the reference's end-to-end run: log lines, files and images (golden/e2e_taskres)."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from golden_pets import draw_pets

from dassl_lite.config import get_cfg_default
from dassl_lite.config.load import merge_options
from dassl_lite.data import DATASET_REGISTRY, DataManager, FolderDataset
from dassl_lite.utils.seeding import set_random_seed


class GoldenPets(FolderDataset):
    dataset_dir = "oxford_pets"
    split_file = "split_zhou_OxfordPets.json"


@pytest.fixture
def golden_pets() -> Iterator[None]:
    held = DATASET_REGISTRY._table.get("OxfordPets")
    DATASET_REGISTRY.register(GoldenPets, name="OxfordPets", force=True)
    yield
    del DATASET_REGISTRY._table["OxfordPets"]
    if held is not None:
        DATASET_REGISTRY.register(held, name="OxfordPets", force=True)


def config(root: Path, options: list[str]) -> Any:
    cfg = get_cfg_default()
    cfg.DATASET.NAME, cfg.DATASET.ROOT, cfg.INPUT.INTERPOLATION = "OxfordPets", str(root), "bicubic"
    merge_options(cfg, [*options, "DATALOADER.NUM_WORKERS", "0"], allow_new_keys=True)
    cfg.INPUT.PIXEL_MEAN = [0.48145466, 0.4578275, 0.40821073]
    cfg.INPUT.PIXEL_STD = [0.26862954, 0.26130258, 0.27577711]
    return cfg


def test_the_log_the_files_and_the_images_equal_the_reference_run(
    golden: Any, golden_pets: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spec, run = golden.json("e2e_taskres")["dataset"], golden.json("e2e_taskres")["last_step"]
    draw_pets(spec, tmp_path)
    set_random_seed(1)
    with caplog.at_level(logging.INFO):
        manager = DataManager(config(tmp_path, run["opts"]))
    logged = "\n".join(caplog.messages).replace(str(tmp_path), "<root>").splitlines()
    start = run["log"].index("Loading dataset: OxfordPets")
    # One word differs, as our draws are JSON.
    expected = [line.replace("seed_1.pkl", "seed_1.json") for line in run["log"][start : start + len(logged)]]
    assert logged == expected
    assert run["log"][start + len(logged)].startswith("Loading CLIP")

    assert [Path(item.impath).name for item in manager.dataset.train_x] == run["train_files"]
    assert [Path(item.impath).name for item in manager.dataset.val or []] == run["val_files"]
    wrapper = manager.train_loader_x.dataset
    for step in run["steps"]:
        items = [wrapper[index] for index in step["index"]]
        assert [Path(item["impath"]).name for item in items] == step["files"]
        assert [item["label"] for item in items] == step["label"]
        total = sum(float(item["img"].double().sum()) for item in items)
        assert total == pytest.approx(step["img_sum"], rel=1e-5)
