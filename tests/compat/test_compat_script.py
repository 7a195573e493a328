"""A paper's own train.py, unmodified, after ``import dassl_lite.compat``: the reference's script in its essentials."""

from __future__ import annotations

import logging
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from recipe import RECIPE

from dassl_lite.engine import TRAINER_REGISTRY

SCRIPT = """
import argparse
import torch
from dassl.config import clean_cfg, get_cfg_default
from dassl.engine import build_trainer
from dassl.utils import collect_env_info, set_random_seed, setup_logger
from yacs.config import CfgNode as CN

import third_party
import third_party_parts

def main(args):
    cfg = get_cfg_default()
    cfg.TRAINER.PAPERTWOMODELS = CN()
    cfg.TRAINER.PAPERTWOMODELS.WIDTH = 16
    cfg.merge_from_file(args.config_file)
    cfg.DATASET.ROOT = args.root
    cfg.OUTPUT_DIR = args.output_dir
    cfg.TRAINER.NAME = args.trainer
    cfg.merge_from_list(args.opts)
    clean_cfg(cfg, args.trainer)
    cfg.freeze()
    if cfg.SEED >= 0:
        set_random_seed(cfg.SEED)
    setup_logger(cfg.OUTPUT_DIR)
    print(cfg)
    print(collect_env_info())
    trainer = build_trainer(cfg)
    if args.eval_only:
        trainer.load_model(args.model_dir, epoch=args.load_epoch)
        trainer.test()
        return
    if not args.no_train:
        trainer.train()

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for name in ("root", "output-dir", "config-file", "trainer", "model-dir"):
        parser.add_argument("--" + name, type=str, default="")
    parser.add_argument("--load-epoch", type=int)
    parser.add_argument("--eval-only", action="store_true")
    parser.add_argument("--no-train", action="store_true")
    parser.add_argument("opts", default=None, nargs=argparse.REMAINDER)
    main(parser.parse_args())
"""


def test_a_papers_own_script_trains_and_evaluates(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    (tmp_path / "train.py").write_text(SCRIPT)
    recipe = {**RECIPE, "TRAINER": {"PAPERTWOMODELS": {"WIDTH": 8}}}
    recipe["OPTIM"] = {**RECIPE["OPTIM"], "WARMUP_TYPE": "constant", "WARMUP_CONS_LR": "1e-5"}  # as yaml reads 1e-5
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    monkeypatch.syspath_prepend(Path(__file__).parent)
    kept = dict(TRAINER_REGISTRY._table)
    for name in ("third_party", "third_party_parts"):
        monkeypatch.setitem(sys.modules, name, sys.modules.get(f"dassl_lite_plugin_{name}"))
        if sys.modules[name] is None:
            del sys.modules[name]
    flags = ["--root", str(root), "--config-file", str(tmp_path / "recipe.yaml"), "--trainer", "PaperTwoModels"]
    more = ["--eval-only", "--model-dir", str(tmp_path / "run"), "--load-epoch", "4"]
    for output, extra in (("run", []), ("evaluated", more)):
        arguments = [*flags, "--output-dir", str(tmp_path / output), *extra, "DATASET.NUM_SHOTS", "4"]
        monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
        runpy.run_path(str(tmp_path / "train.py"), run_name="__main__")
    TRAINER_REGISTRY._table = kept
    logs = [(tmp_path / output / "log.txt").read_text().splitlines() for output in ("run", "evaluated")]
    accuracies = [[line for line in log if line.startswith("* accuracy")] for log in logs]
    assert len(accuracies[0]) == 1
    assert accuracies[0] == accuracies[1]
    for handler in logging.getLogger("dassl_lite").handlers:
        handler.close()
