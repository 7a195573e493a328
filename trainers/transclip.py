"""TransCLIP (transductive): all test images are classified together, around the class names and the shots.

Paper: Boosting Vision-Language Models with Transduction, https://arxiv.org/abs/2406.01837

The test images are seen before they are classified, without their labels, so the accuracy is not comparable with that
of a method that takes one image at a time; every table says (transductive). `dassl_lite.models.transduction` has the
formula; TEST.TRANSDUCTIVE applies it after any other method. The predictions are those of zero-shot CLIP, with exponent
1 without and 0.5 with shots. A single batch that is given to the model has zero-shot logits.

Recipe (the authors' repository): no augmentation (of several views of a shot the mean is taken). The weight of the
shots is the first of 0.002, 0.01, 0.02, 0.2 that is most accurate on the validation images, each of which has the class
of the test image nearest to it; without any: GAMMA. The authors' code pairs neighbours and labels of the shots wrongly,
and starts each weight where the one before ended: AS_AUTHORS. They use the first template only; here the ensemble is
averaged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dassl_lite.engine import TRAINER_REGISTRY, FeatureTrainer, idle_if, key, number
from dassl_lite.models.heads import FixedPrototypes
from dassl_lite.models.transduction import Mixture, log_shares
from dassl_lite.utils import get_logger

logger = get_logger(__name__)

GAMMAS = (0.002, 0.01, 0.02, 0.2)
TRUST = 0.5  # exponent of the predictions where there are shots


class ClassNamesAndShots(FixedPrototypes):
    """Zero-shot logits, and the labelled images, none until `keep` or until a checkpoint is loaded.

    Args:
        prototypes: (K, D), of any length.
        scale: exp(logit_scale).
    """

    class_rows: Mapping[str, int] = {"targets": 1}
    support: Tensor  # (S, D)
    targets: Tensor  # (S, K), one-hot
    gamma: Tensor

    def __init__(self, prototypes: Tensor, scale: Tensor | float) -> None:
        super().__init__(prototypes, scale)
        self.register_buffer("support", prototypes.new_zeros(0, prototypes.shape[1]))
        self.register_buffer("targets", prototypes.new_zeros(0, len(prototypes)))
        self.register_buffer("gamma", torch.tensor(0.0))

    def prepare_to_load(self, weights: Mapping[str, Tensor], meta: Mapping[str, Any], path: Path) -> None:
        """Allocate room for the checkpoint's images; they carry no information about classes that it lacks."""
        count = len(weights["support"]) if "support" in weights else 0
        self.keep(
            self.support.new_zeros(count, self.support.shape[1]), self.targets.new_zeros(count, self.targets.shape[1])
        )

    def keep(self, support: Tensor, targets: Tensor) -> None:
        self.support, self.targets = support.to(self.prototypes), targets.to(self.prototypes)


@TRAINER_REGISTRY.register()
class TransCLIP(FeatureTrainer):
    """Test images are classified together, unlabelled (transductive); nothing is trained."""

    trains = False
    takes_ensemble = True
    takes_init_weights = False
    is_transductive = True
    model_name = "transclip"
    head: ClassNamesAndShots
    keys = (
        key("SUPPORT", True, None, "use the training images; False: class names and test images only"),
        key(
            "GAMMA",
            GAMMAS[0],
            number(at_least=0, at_most=1e6),
            "weight of the training images if it is not searched",
            lambda run: idle_if("SUPPORT", False)(run) or ("SEARCH is True" if run.searches else ""),
        ),
        key("SEARCH", True, None, f"select it on the validation set, among {GAMMAS}", idle_if("SUPPORT", False)),
        key("AS_AUTHORS", False, None, "repeat the mistakes of the authors' code", idle_if("SUPPORT", False)),
    )

    @property
    def searches(self) -> bool:
        return bool(self.method_cfg.SUPPORT and self.method_cfg.SEARCH and self.has_selection_set)

    @property
    def method_label(self) -> str:
        return f"{self.cfg.TRAINER.NAME} (transductive)"

    def needs_training_images(self) -> bool:
        return bool(self.method_cfg.SUPPORT)

    def build_head(self) -> nn.Module:
        return ClassNamesAndShots(self.zero_shot_weights(), self.clip.logit_scale.exp())

    @torch.no_grad()
    def fit(self) -> None:
        """Keep the training images, and choose their weight."""
        if not self.method_cfg.SUPPORT:
            return
        shots, head = self.training_set(augmented=True), self.head
        head.keep(F.normalize(shots.views, dim=-1).mean(dim=0), F.one_hot(shots.labels, self.num_classes))
        head.gamma.fill_(self.method_cfg.GAMMA)
        loader = self.val_loader if self.cfg.TEST.SPLIT == "val" else self.test_loader
        if self.searches and loader is not None:
            batches = [self.parse_batch_test(batch)[0] for batch in loader]
            self.search(torch.cat([self.embed(images) for images in batches]))

    def search(self, features: Tensor) -> None:
        """Choose gamma on the validation images; a file keeps their accuracies."""
        val = self.selection_set()
        assert val is not None, "searches says so"
        logits = torch.cat([self.model_inference(part) for part in features.split(256)])
        queries, images = F.normalize(val.features, dim=-1), F.normalize(features, dim=-1)
        nearest = torch.cat([(part @ images.t()).argmax(dim=1) for part in queries.split(256)])
        found = self.shares(features, logits, GAMMAS)
        correct = [(one[nearest].argmax(dim=1) == val.labels).double().mean().item() for one in found]
        best = max(correct)
        self.head.gamma.fill_(GAMMAS[correct.index(best)])
        logger.info(f"gamma {self.head.gamma.item():g}, chosen on the *val* set: accuracy {100 * best:.2f}%")
        tried = {"gamma": GAMMAS[correct.index(best)], "gammas": GAMMAS, "accuracies": [100 * one for one in correct]}
        self.write_found(tried, "search.json")

    @torch.no_grad()
    def transduce(self, features: Tensor, logits: Tensor) -> Tensor:
        gamma = self.head.gamma.item()
        before = [one for one in GAMMAS if one < 0.99 * gamma] if self.method_cfg.AS_AUTHORS and self.searches else []
        return log_shares(self.shares(features, logits, (*before, gamma))[-1])

    def shares(self, features: Tensor, logits: Tensor, gammas: Sequence[float]) -> list[Tensor]:
        """The shares (n, K) of the images with each weight of the labelled ones."""
        head, as_authors = self.head, self.method_cfg.AS_AUTHORS
        known = head.targets.any(dim=1)  # of a class of this dataset
        support, targets = head.support[known], head.targets[known]
        trust = TRUST if len(support) else 1.0
        mixture = Mixture(features, logits, support, targets, trust=trust, as_authors=as_authors)
        found = []
        for gamma in gammas:
            if not as_authors:
                mixture.start()
            found.append(mixture.fit(gamma))
        return found
