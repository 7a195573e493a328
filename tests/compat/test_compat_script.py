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


COPIED_DEFAULTS = """
import sys
from dassl.config import clean_cfg, get_cfg_default
from dassl.data import DataManager
from dassl.data.transforms import build_transform
from dassl.engine import build_trainer
from dassl.evaluation import build_evaluator
from dassl.optim import build_lr_scheduler, build_optimizer
from yacs.config import CfgNode as CN
import torch
import third_party
import third_party_parts

_C = CN()  # a fork's own defaults.py
_C.VERSION, _C.OUTPUT_DIR, _C.RESUME, _C.SEED, _C.USE_CUDA, _C.VERBOSE = 1, sys.argv[2], "", 1, False, True
_C.INPUT = CN({"SIZE": (16, 16), "INTERPOLATION": "bilinear", "TRANSFORMS": ("normalize",), "NO_TRANSFORM": False})
_C.INPUT.PIXEL_MEAN, _C.INPUT.PIXEL_STD = [0.5, 0.5, 0.5], [0.2, 0.2, 0.2]
_C.DATASET = CN({"ROOT": sys.argv[1], "NAME": "PaperColours", "NUM_SHOTS": 4, "SOURCE_DOMAINS": ()})
_C.DATALOADER = CN({"NUM_WORKERS": 0, "K_TRANSFORMS": 1})
_C.DATALOADER.TRAIN_X = CN({"SAMPLER": "RandomSampler", "BATCH_SIZE": 4, "N_DOMAIN": 0})
_C.DATALOADER.TRAIN_U = CN({"SAME_AS_X": True})
_C.DATALOADER.TEST = CN({"SAMPLER": "SequentialSampler", "BATCH_SIZE": 8})
_C.MODEL = CN({"INIT_WEIGHTS": "", "BACKBONE": {"NAME": "paper_net", "PRETRAINED": False}})
_C.OPTIM = CN({"NAME": "adam", "LR": 0.01, "MAX_EPOCH": 2, "LR_SCHEDULER": "cosine", "STEPSIZE": (-1,), "GAMMA": 0.1})
_C.TRAIN = CN({"CHECKPOINT_FREQ": -1, "PRINT_FREQ": 5})
_C.TEST = CN({"EVALUATOR": "Classification", "NO_TEST": False, "SPLIT": "test"})
_C.TRAINER = CN({"NAME": "PaperTwoModels", "PAPERTWOMODELS": {"WIDTH": 16}})
cfg = _C.clone()
cfg.freeze()
build_trainer(cfg).train()
assert len(DataManager(cfg).train_loader_x) == 3
assert build_transform(cfg, is_train=False)
assert build_evaluator(cfg, lab2cname={0: "a"})
net = torch.nn.Linear(2, 2)
assert build_lr_scheduler(build_optimizer(net, cfg.OPTIM), cfg.OPTIM)
assert "TEMPLATE" not in cfg.DATASET
"""


@pytest.mark.slow
def test_a_config_from_a_copy_of_dassls_defaults_is_enough(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "copied.py").write_text(COPIED_DEFAULTS)
    monkeypatch.syspath_prepend(Path(__file__).parent)
    kept = dict(TRAINER_REGISTRY._table)
    for name in ("third_party", "third_party_parts"):
        monkeypatch.setitem(sys.modules, name, sys.modules.get(f"dassl_lite_plugin_{name}"))
        if sys.modules[name] is None:
            del sys.modules[name]
    monkeypatch.setattr(sys, "argv", ["copied.py", str(root), str(tmp_path / "run")])
    runpy.run_path(str(tmp_path / "copied.py"), run_name="__main__")
    TRAINER_REGISTRY._table = kept
    saved = sorted(path.name for path in (tmp_path / "run" / "F").glob("model*"))
    assert saved == ["model.pth.tar-2"]  # CHECKPOINT_FREQ -1: the last epoch only


@pytest.mark.slow
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
