"""Auto: several cheap methods as one, whose settings and weights are chosen from the training images alone.

    p(k | f) = sum over methods i of w_i * softmax(tau_i * logits_i(f))_k

Every method is fitted to all training images but one fold and predicts that fold, in turn for up to FOLDS folds. These
held-out predictions determine

1. for a method with several settings, the setting with the lowest log loss,
2. for each method, the temperature tau with the lowest log loss,
3. the weights w with the highest likelihood (stacking). Each method is also credited with an equal share of CREDIT
   times as many images: with CREDIT 1, the weights are halfway between equal and maximum-likelihood weights, which is
   safer than either if there are few images.

Then the methods are fitted to all training images. A class's only image is never held out: without it, no method could
learn that class. With one shot, only zero-shot CLIP can be evaluated, since it learns nothing: it gets (right + 1) /
(wrong + 1) times the weight of each other method, counted on the shots; tau is 1, and the first settings are used.
Validation and test images are never used.

The rule is ours and does not follow a paper. Methods run with their own trainers and default recipes, with their own
closed-form leave-one-out (GDA, ProKeR). Keys that you set in a method's node apply (TRAINER.TaskRes.RESIDUAL_SCALE 1).
"""

from __future__ import annotations

import logging
import math
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tabulate import tabulate
from torch import Tensor, nn
from yacs.config import CfgNode

from dassl_lite.config import to_dict
from dassl_lite.data.fewshot import folds_of
from dassl_lite.engine import TRAINER_REGISTRY, FeatureTrainer, key, number, some_of
from dassl_lite.engine.build import default_recipe, make_config, set_by_user
from dassl_lite.engine.methods.feature_source import FeatureSet
from dassl_lite.engine.methods.shared_keys import VIEW_KEYS
from dassl_lite.engine.methods.side_run import side_run_class
from dassl_lite.models.blend import Blend, calibrate, stack
from dassl_lite.trainers.clap import CLAP
from dassl_lite.trainers.gda import GDA
from dassl_lite.trainers.lp_plus_plus import LPPlusPlus
from dassl_lite.trainers.proker import ProKeR
from dassl_lite.trainers.taskres import TaskRes
from dassl_lite.trainers.tip_adapter import TipAdapter
from dassl_lite.trainers.zero_shot import ZeroshotCLIP
from dassl_lite.utils import UserError, get_logger
from dassl_lite.utils.logger import ROOT_NAME

logger = get_logger(__name__)

KINDS: tuple[type[FeatureTrainer], ...] = (ZeroshotCLIP, CLAP, GDA, ProKeR, LPPlusPlus, TaskRes, TipAdapter)
METHODS = {kind.__name__: kind for kind in KINDS}
# Settings that are compared, of methods that cannot choose their own without validation images.
ALPHAS_AND_BETAS = ((1.0, 5.5), (1.0, 1.0), (3.0, 2.0), (3.0, 5.5), (10.0, 5.5))
SETTINGS = {"TipAdapter": [{"ALPHA": alpha, "BETA": beta, "SEARCH": False} for alpha, beta in ALPHAS_AND_BETAS]}


@dataclass
class Candidate:
    """A method with settings, and its results.

    Attributes:
        name, settings, cfg: for its runs.
        held_out: logits (N, K) of the images, each from a fit without it.
        accuracy, log_loss: on those, in percent and with the temperature; NaN if there are none.
    """

    name: str
    settings: dict[str, Any]
    cfg: CfgNode
    held_out: Tensor
    temperature: float = 1.0
    log_loss: float = math.nan
    accuracy: float = math.nan
    weight: float = 0.0

    @property
    def keys(self) -> dict[str, Any]:
        """All keys of its method."""
        return to_dict(self.cfg.TRAINER[METHODS[self.name].node_name()])

    @property
    def row(self) -> dict[str, Any]:
        """As plain values for a file."""
        names = ("accuracy", "log_loss", "temperature", "weight")
        values = {name: getattr(self, name) for name in names}
        found = {name: None if math.isnan(value) else value for name, value in values.items()}
        return {"method": self.name, "settings": self.settings, **found}


def _value(cfg: CfgNode, key: str) -> Any:
    """The value of a dotted key."""
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


@contextmanager
def _silent(least: int = logging.WARNING) -> Iterator[None]:
    """A context that only logs this level and above, because side runs repeat each other's messages."""
    root = logging.getLogger(ROOT_NAME)
    before = root.level
    root.setLevel(max(before, least))
    try:
        yield
    finally:
        root.setLevel(before)


@TRAINER_REGISTRY.register()
class Auto(FeatureTrainer):
    """The weighted mean of several cheap methods, chosen from the training images alone."""

    trains = False
    takes_init_weights = False
    model_name = "auto"
    head: Blend
    choice: Sequence[Candidate] = ()
    keys = (
        key("METHODS", list(METHODS), some_of(*METHODS), "methods that are compared and averaged"),
        key("FOLDS", 5, number(at_least=2, at_most=1000), "most parts that the training images are split into"),
        key(
            "CREDIT",
            1.0,
            number(above=0, at_most=1e6),
            "images that all methods are credited with, for each image left out; the more, the more equal the weights",
        ),
        *VIEW_KEYS,
    )

    def build_head(self) -> nn.Module:
        self.zero_shot_weights()  # errors in the texts are raised before any method runs
        self._recipes: dict[str, tuple[CfgNode, dict[str, Any]]] = {}
        return Blend()

    def side_cfg(self, name: str, values: Mapping[str, Any], folder: str | Path) -> CfgNode:
        """The config of a method's side run on this run's data: its default recipe with these values of its
        own keys, and those that the user has set."""
        node = METHODS[name].node_name()
        recipe, users = self._recipe(name, node)
        cfg = recipe.clone()
        cfg.defrost()
        cfg.OUTPUT_DIR = str(folder)
        for word, value in {**values, "PREC": self.method_cfg.PREC, **users}.items():
            cfg.TRAINER[node][word] = value
        cfg.freeze()
        return cfg

    def _recipe(self, name: str, node: str) -> tuple[CfgNode, dict[str, Any]]:
        """A method's recipe on this run's data, and the values of its keys that the user has set; read once."""
        if name not in self._recipes:
            own, start = self.cfg, f"TRAINER.{node}."
            users = {one.removeprefix(start): _value(own, one) for one in set_by_user(own) if one.startswith(start)}
            shots = {"DATASET": {"NUM_SHOTS": own.DATASET.NUM_SHOTS}}  # a recipe may set its length by them
            cfg = make_config(trainer=name, base=to_dict(own), method_file=default_recipe(name), flags=shots)
            cfg.defrost()
            cfg.INPUT, cfg.VERBOSE, cfg.TEST.FINAL_MODEL = own.INPUT.clone(), False, "last_step"
            self._recipes[name] = cfg, users
        return self._recipes[name]

    @torch.no_grad()
    def fit(self) -> None:
        """Compare the methods on folds of the training images, then fit those with a weight to all of them."""
        node, cfg = self.method_cfg, self.cfg
        data = self.training_set(augmented=True, views=node.AUGMENT_EPOCH)
        fold = folds_of(data.labels, node.FOLDS, max(cfg.SEED, 0))
        with tempfile.TemporaryDirectory() as scratch:
            self.choice = [
                Candidate(name, settings, self.side_cfg(name, settings, scratch), torch.empty(0))
                for name in dict.fromkeys(node.METHODS)
                for settings in SETTINGS.get(name, [{}])
            ]
            self._leave_out(data, fold)
        chosen = self._choose(data.labels[fold >= 0])
        self._weigh(chosen, data, fold)
        self._tell(int(fold.max()) + 1, int((fold >= 0).sum()))
        heads = [self._fitted(one, data, self.output_dir) for one in chosen]
        about = [
            {"method": one.name, "keys": to_dict(one.cfg.TRAINER[METHODS[one.name].node_name()])} for one in chosen
        ]
        values = torch.tensor([[one.weight, one.temperature] for one in chosen])
        self.head.fill(heads, about, *values.unbind(dim=1))
        self.head.to(self.device)

    def _fitted(self, one: Candidate, data: FeatureSet, folder: str | Path = "") -> nn.Module:
        """The head of a candidate, fitted to these images; a folder given here has its files."""
        cfg = self.side_cfg(one.name, one.settings, folder) if folder else one.cfg
        with torch.enable_grad():
            head: nn.Module = side_run_class(METHODS[one.name])(self, cfg, data).fitted().head
        return head.requires_grad_(False)

    def _says(self, head: nn.Module, features: Tensor) -> Tensor:
        """Logits (N, K), as in a test."""
        with self.autocast():
            logits: Tensor = head(features)
        return logits.float()

    @staticmethod
    def queries(data: FeatureSet) -> Tensor:
        """Features (N, D) that methods predict on: the means over views."""
        return F.normalize(data.views, dim=-1).mean(dim=0)

    def _leave_out(self, data: FeatureSet, fold: Tensor) -> None:
        """Set each candidate's held-out logits, fold by fold, from a fit to the other folds."""
        queries, folds, start = self.queries(data), int(fold.max()) + 1, time.perf_counter()
        for one in self.choice:
            one.held_out = queries.new_zeros(len(queries), self.num_classes)
        for turn in range(folds):
            out = fold == turn
            rest = FeatureSet(data.views[:, ~out], data.labels[~out])
            with _silent():
                for one in self.choice:
                    one.held_out[out] = self._says(self._fitted(one, rest), queries[out])
            if turn == 0:
                left = folds * (time.perf_counter() - start)
                logger.info(f"Auto compares {len(self.choice)} candidates on {folds} folds: {left:.0f} s to go")
        for one in self.choice:
            one.held_out = one.held_out[fold >= 0]

    def _choose(self, labels: Tensor) -> list[Candidate]:
        """Measure the candidates on the images left out, with labels (N,), and pick one of each method."""
        if len(labels):
            self.tuned_on = "cross_validation"
        for one in self.choice if len(labels) else ():
            one.temperature, one.log_loss = calibrate(one.held_out, labels)
            one.accuracy = 100 * (one.held_out.argmax(dim=1) == labels).double().mean().item()
        best: dict[str, Candidate] = {}  # the first one on a tie
        for one in self.choice:
            if one.name not in best or one.log_loss < best[one.name].log_loss:
                best[one.name] = one
        return list(best.values())

    def _weigh(self, chosen: Sequence[Candidate], data: FeatureSet, fold: Tensor) -> None:
        """Set the weights of the candidates that were chosen."""
        labels = data.labels[fold >= 0]
        credit = self.method_cfg.CREDIT * len(labels) / len(chosen) if len(labels) else 1.0
        credits = torch.full((len(chosen),), credit, device=labels.device)
        for row, one in enumerate(chosen):
            if one.name == "ZeroshotCLIP" and not len(labels):
                logits = self._says(self._fitted(one, data), self.queries(data))
                right = int((logits.argmax(dim=1) == data.labels).sum())
                one.accuracy = 100 * right / len(logits)
                credits[row] = (right + 1) / (len(logits) - right + 1)
        own = [(one.temperature * one.held_out).softmax(dim=1).gather(1, labels[:, None])[:, 0] for one in chosen]
        for one, weight in zip(chosen, stack(torch.stack(own), credits).tolist(), strict=True):
            one.weight = weight

    def _tell(self, folds: int, images: int) -> None:
        """Log the choice as a table, and keep it in a file."""
        how = f"on {images} images, left out in {folds} folds" if images else "no class has a second image to leave out"
        values = [[one.accuracy, one.log_loss, one.temperature, one.weight] for one in self.choice]
        rows = [
            [one.name, " ".join(f"{name} {value:g}" for name, value in one.settings.items() if name != "SEARCH"), *own]
            for one, own in zip(self.choice, values, strict=True)
        ]
        headers = ["method", "settings", "accuracy %", "log loss", "temperature", "weight"]
        table = tabulate(rows, headers, floatfmt=("", "", ".2f", ".3f", "g", ".3f"))
        logger.info(f"Auto's choice ({how}):\n{table}")
        self.write_found(self.explanation(), "choice.json")

    def explanation(self) -> list[dict[str, Any]]:
        """One row per candidate, as plain values."""
        return [one.row for one in self.choice]

    def method_results(self) -> dict[str, Any]:
        return {"choice": self.explanation()}

    def adapt_state_dict(
        self, model: nn.Module, weights: dict[str, Tensor], meta: dict[str, Any], path: Path
    ) -> dict[str, Tensor]:
        """Make the checkpoint's members, and have each fit its own weights to this run's classes.

        Raises:
            UserError: the checkpoint does not say which members it has.
        """
        heads, about = [], _members(meta, path)
        picked = {name: value for name, value in weights.items() if not name.startswith("members.")}
        for row, member in enumerate(about):
            run = side_run_class(METHODS[member["method"]])(self, self.side_cfg(member["method"], member["keys"], ""))
            prefix = f"members.{row}."
            own = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
            with _silent(logging.ERROR if self.class_match else logging.INFO):  # already reported by the first one
                own = run.adapt_state_dict(run.head, own, meta, path)
            self.class_match = run.class_match or self.class_match
            picked |= {prefix + key: value for key, value in own.items()}
            heads.append(run.head)
        self.head.fill(heads, about, torch.zeros(len(heads)), torch.zeros(len(heads)))
        self.head.to(self.device).requires_grad_(False)
        return picked


def _members(meta: Mapping[str, Any], path: Path) -> list[dict[str, Any]]:
    """What a checkpoint says about its members: method and keys of each."""
    found = meta.get("members")
    if isinstance(found, list) and found and all(isinstance(one, dict) for one in found):
        known = [one.get("method") in list(METHODS) and isinstance(one.get("keys"), dict) for one in found]
        if all(known):
            return found
    raise UserError(f"{path} does not say which methods it is the mean of")
