"""TwoStage (2SFS): first the layer norms of both of CLIP's encoders, then a classifier on the encoders thus adapted.

Paper: Rethinking Few-Shot Adaptation of Vision-Language Models in Two Stages, https://arxiv.org/abs/2503.11609

    logits = exp(logit_scale) * normalise(image) @ normalise(w).T
    stage 1: w_k is the text feature of class k; the norms of both encoders are trained
    stage 2: w_k is learned, from the text features that stage 1 has led to; the encoders are frozen

Each stage has its own optimiser and schedule, and starts with an epoch's first batch. A class that was not trained gets
the text feature of its name from the adapted encoder. STAGE1_SHARE 1 tunes the norms (or the biases: PEFT bitfit), and
no classifier.

Recipe (the authors' repository): 300 steps per shot, 60 % of them in stage 1; AdamW, lr 2e-4, weight decay 1e-2, batch
32, cosine down to 1e-6 after every step. Trained are the norms inside of the blocks, as in their code, which freezes
ln_pre, ln_post and ln_final again after it has chosen them; OUTER_NORMS trains these too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from dassl_lite.engine import TRAINER_REGISTRY, FeatureTrainer, idle_if, key, number, one_of
from dassl_lite.engine.methods.shared_keys import STEP_KEYS, TEXT_ENCODER_KEYS, class_prompts
from dassl_lite.engine.parallel import distributed
from dassl_lite.models.encoders import ENCODERS, choose_encoders, name_of, require_same_settings
from dassl_lite.models.heads import CosineHead
from dassl_lite.models.tuned_parameters import KINDS, Place, TunedParameters, count_blocks, places
from dassl_lite.utils import UserError, get_logger

logger = get_logger(__name__)


class TwoStageHead(CosineHead):
    """Cosine logits against the class prompts' features, in stage 2 against a classifier that started from them.

    Args:
        tuned: parameters of the encoders that stage 1 trains.
        encode: gives the class prompts' features (K, D) with the encoders as they are now.
        scale: exp(logit_scale), a scalar.
        classifier: (K, D), any values; None without a stage 2.
        settings: config keys that say what is tuned, with their values.

    Attributes:
        stage: 1 or 2, part of its state.
    """

    through_encoder = True
    stage: torch.Tensor
    classifies = False  # whether it is in stage 2

    def __init__(
        self,
        tuned: TunedParameters,
        encode: Callable[[], torch.Tensor],
        scale: torch.Tensor,
        classifier: torch.Tensor | None,
        settings: dict[str, Any],
    ) -> None:
        super().__init__(scale)
        self.tuned, self._encode, self.settings = tuned, encode, settings
        self.classifier = None if classifier is None else nn.Parameter(classifier)
        self.class_rows = () if classifier is None else ("classifier",)
        self.register_buffer("stage", torch.tensor(1))
        self.register_load_state_dict_post_hook(lambda head, keys: head.enter(int(head.stage)))

    @property
    def meta(self) -> dict[str, Any]:
        """What a checkpoint stores about its weights."""
        return {"two_stage": self.settings}

    def prepare_to_load(self, weights: Mapping[str, torch.Tensor], meta: Mapping[str, Any], path: Path) -> None:
        require_same_settings(meta.get("two_stage"), self.settings, path, "TRAINER.TwoStage")

    def enter(self, stage: int) -> None:
        """Enter a stage: train its parameters from now on."""
        self.stage.fill_(stage)
        self.classifies = stage > 1 and self.classifier is not None
        self.tuned.requires_grad_(not self.classifies)
        if self.classifier is not None:
            self.classifier.requires_grad_(self.classifies)

    @torch.no_grad()
    def start_classifier(self) -> None:
        """Set the classifier to the class prompts' features."""
        if self.classifier is not None:
            self.classifier.copy_(F.normalize(self._encode().float(), dim=-1))

    def class_prototypes(self) -> torch.Tensor:
        return self._encode() if self.classifier is None or not self.classifies else self.classifier


def _unless_adapted(encoder: str) -> Callable[[Any], str]:
    """``idle`` of a key of an encoder, "text" or "vision", that has no effect if stage 1 leaves it alone."""
    return lambda run: "" if encoder in ENCODERS[run.head.settings["ENCODER"]] else f"the {encoder} encoder is frozen"


@TRAINER_REGISTRY.register()
class TwoStage(FeatureTrainer):
    """Layer norms (or biases) of CLIP's encoders, then a classifier on them."""

    model_name = "two_stage"
    through_encoder = True
    head: TwoStageHead
    keys = (
        *TEXT_ENCODER_KEYS,
        *STEP_KEYS,
        key(
            "ENCODER", "auto", one_of(*ENCODERS, "auto"), "both | text | vision | auto: those with blocks of such norms"
        ),
        key("PEFT", "ln", one_of(*KINDS), "what stage 1 trains: ln, the layer norms | bitfit, the biases"),
        key(
            "OUTER_NORMS",
            False,
            None,
            "with PEFT ln: also train the norms before and behind the blocks (ln_pre, ln_post, ln_final)",
            idle_if("PEFT", "bitfit"),
        ),
        key(
            "TEXT_START",
            0,
            number(at_least=0, at_most=1000),
            "first block of the text encoder to train, from 0",
            _unless_adapted("text"),
        ),
        key(
            "VISION_START",
            0,
            number(at_least=0, at_most=1000),
            "first block of the image encoder to train, from 0",
            _unless_adapted("vision"),
        ),
        key(
            "STAGE1_SHARE", 0.6, number(at_least=0, at_most=1), "share of the steps in stage 1; 1: there is no stage 2"
        ),
    )

    # ---- length ---------------------------------------------------------------------------------------------------

    def stage_steps(self) -> tuple[int, int]:
        """Number of steps of each stage."""
        total = self.steps_to_train()
        first = int(total * self.method_cfg.STAGE1_SHARE)
        return first, total - first

    def stage_epochs(self) -> tuple[int, int]:
        """Number of epochs of each stage; the last one may be incomplete."""
        first, second = (math.ceil(steps / self.epoch_steps) for steps in self.stage_steps())
        return first, second

    def schedule_steps(self) -> int:
        return self.stage_steps()[self.head.classifies]

    def steps_left(self) -> int:
        done = self.epoch - (self.stage_epochs()[0] if self.head.classifies else 0)
        return self.schedule_steps() - done * self.epoch_steps

    # ---- building -------------------------------------------------------------------------------------------------

    def epochs_to_train(self) -> int:
        return sum(self.stage_epochs())

    def build_head(self) -> nn.Module:
        found = self._places()
        tuned = TunedParameters(place for own in found.values() for place in own)
        trained = sum(parameter.numel() for parameter in tuned.parameters())
        logger.info(f"Stage 1 trains {trained:,} numbers of {' and '.join(found)}; steps: {self.stage_steps()}")
        self.tunes_images = "vision" in found
        classifier = torch.zeros(self.num_classes, self.clip.embed_dim) if self.stage_steps()[1] else None
        scale = self.clip.logit_scale.detach().float().exp()
        settings = {name: self.method_cfg[name] for name in ("PEFT", "OUTER_NORMS", "TEXT_START", "VISION_START")}
        settings = {"ENCODER": name_of(found), **settings}
        head = TwoStageHead(tuned, class_prompts(self, "text" in found), scale, classifier, settings)
        head.enter(1 if self.stage_steps()[0] else 2)
        with self.autocast():
            head.to(self.device).start_classifier()
        return head

    def _places(self) -> dict[str, list[Place]]:
        """The parameters of each encoder that stage 1 trains."""
        node = self.method_cfg
        what = {"ln": "layer norms", "bitfit": "biases"}[node.PEFT]
        found = places(self.clip.model, node.PEFT)
        deep = {encoder: count_blocks(own) for encoder, own in found.items()}
        chosen = choose_encoders(
            {encoder: own if deep[encoder] else [] for encoder, own in found.items()},
            node.ENCODER,
            self.clip.name,
            method="TwoStage",
            needs=f"blocks with {what}",
            key="TRAINER.TwoStage.ENCODER",
        )
        wanted: dict[str, list[Place]] = {}
        for encoder, own in chosen.items():
            start = node[f"{encoder.upper()}_START"]
            if start >= deep[encoder]:
                raise UserError(
                    f"TRAINER.TwoStage.{encoder.upper()}_START {start} is out of range: the {encoder} encoder of "
                    f"backbone {self.clip.name} has blocks 0 to {deep[encoder] - 1}"
                )
            outer = node.OUTER_NORMS or node.PEFT == "bitfit"
            wanted[encoder] = [place for place in own if place.block >= start and (place.inside or outer)]
        return wanted

    def _load_init_weights(self, path: Path) -> None:
        super()._load_init_weights(path)
        self.head.enter(1 if self.stage_steps()[0] else 2)

    def _use_features(self) -> None:
        """In stage 2, images are encoded once per view, as for any method with a frozen encoder. Only this run has this
        encoder, so nothing is stored on disk."""
        if self.tunes_images:
            self.features.folder = None
        loaders = self.train_loader_x, self.val_loader, self.test_loader
        self._images = vars(self).get("_images", loaders)
        self.train_loader_x, self.val_loader, self.test_loader = self._images
        super()._use_features()

    def features_kept(self) -> str:
        return "run" if self.stage_steps()[1] else super().features_kept()

    @property
    def changes_images(self) -> bool:
        return self.tunes_images

    # ---- training -------------------------------------------------------------------------------------------------

    def method_state(self) -> dict[str, Any]:
        return {"stage": 2 if self.head.classifies else 1}

    def restore_method_state(self, state: Mapping[str, Any]) -> None:
        self._encoders_changed()  # restored from the resumed run

    def enter_epoch(self) -> None:
        if self.epoch == self.stage_epochs()[0] and not self.head.classifies:
            self._start_second_stage()

    def _start_second_stage(self) -> None:
        logger.info(f"Stage 2: a classifier on the encoders as they are now, {self.stage_steps()[1]} steps")
        with self.autocast():
            self.head.start_classifier()
        self.head.enter(2)
        for group in self.optim.param_groups:  # it has no state for the classifier yet
            group["lr"] = group["initial_lr"]
        self.sched = self._scheds[self.model_name] = self.build_schedule()
        self._encoders_changed()
        distributed.same_random_states()  # for the order of features, which processes do not share

    def _encoders_changed(self) -> None:
        """Forget features that were computed before."""
        if self.tunes_images:
            self._use_features()

    @contextmanager
    def _original_encoders(self) -> Iterator[None]:
        loaders = self.val_loader, self.test_loader
        if self.tunes_images:
            _, self.val_loader, self.test_loader = self._images
        try:
            with self.head.tuned.holding():
                yield
        finally:
            self.val_loader, self.test_loader = loaders

    def zero_shot(self, split: str | None = None) -> float | None:
        with self._original_encoders():
            return super().zero_shot(split)

    # ---- files ----------------------------------------------------------------------------------------------------

    def load_model(self, directory: str | Path, epoch: int | None = None) -> None:
        super().load_model(directory, epoch)
        self._encoders_changed()

    def adapt_state_dict(
        self, model: nn.Module, weights: dict[str, torch.Tensor], meta: dict[str, Any], path: Path
    ) -> dict[str, torch.Tensor]:
        """A class that the checkpoint lacks gets the text feature that its encoder gives the class's name."""
        tuned = {name.removeprefix("tuned."): value for name, value in weights.items() if name.startswith("tuned.")}
        if meta.get("classnames") != self.classnames and self.head.tuned.fits(tuned):
            with self.head.tuned.holding(tuned), self.autocast():
                self.head.start_classifier()
        return super().adapt_state_dict(model, weights, meta, path)
