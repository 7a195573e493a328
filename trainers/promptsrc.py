"""PromptSRC: deep prompts that are held to the frozen CLIP, and averaged over the epochs.

Paper: Self-regulating Prompts, https://arxiv.org/abs/2307.06948. The model is IVLP's.

    loss = CE(logits, y) + w_T mean|t - t'| + w_I mean|f - f'| + sum p' (log p' - log p) / (B K)

f and t are the normalised features of images and prompts, f' those of the frozen image encoder for the same images, t'
the mean over 60 templates of frozen text features, normalised; p and p' softmax the logits of f, t and of f', t'. After
the last epoch every learned tensor is the mean over epochs e = 1 .. E, weighted by a Gaussian of e (GPA_MEAN, GPA_STD).
Recipe (the authors' repository): ViT-B/16, 4 + 4 tokens in 9 blocks, w_T 25, w_I 10; SGD, lr 2.5e-3, batch 4, the first
epoch at 1e-5. Base to new: 20 epochs, Gaussian (15, 1); few shots: 50, (30, 30); across datasets: depth 3, 20, (6, 10).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dassl_lite.data import IMAGENET_TEMPLATES_60
from dassl_lite.engine import TRAINER_REGISTRY, key, number
from dassl_lite.trainers.ivlp import IVLP, prompt_keys, unprompted

POSITIVE = number(at_least=0, at_most=1e6)


def epoch_weights(epochs: int, mean: float, std: float) -> Tensor:
    """The weights (E,) of epochs 1 .. E, a Gaussian that adds up to 1, in float64."""
    e = torch.arange(1, epochs + 1, dtype=torch.float64)
    return (-0.5 * ((e - mean) / std) ** 2).softmax(dim=0)


@TRAINER_REGISTRY.register()
class PromptSRC(IVLP):
    """Deep prompts of both encoders, regulated by the frozen ones and averaged over epochs."""

    config_node = "PROMPTSRC"
    keys = (
        *prompt_keys(4, 9),
        key("TEXT_LOSS_WEIGHT", 25.0, POSITIVE, "w_T, of the distance to the frozen text features"),
        key("IMAGE_LOSS_WEIGHT", 10.0, POSITIVE, "w_I, of the distance to the frozen image features", unprompted),
        key("GPA_MEAN", 15.0, number(at_least=-1e6, at_most=1e6), "epoch, from 1, that weighs most in the average"),
        key("GPA_STD", 1.0, number(above=0, at_most=1e6), "epochs by which the weight falls off"),
    )

    def templates(self) -> list[str]:
        return list(IMAGENET_TEMPLATES_60)

    @cached_property
    def teacher_text(self) -> Tensor:
        """t' (K, D), of length 1."""
        return F.normalize(self.text_rows().float().means(), dim=-1).to(self.device)

    def forward_backward(self, batch: dict[str, Any]) -> dict[str, float | Tensor]:
        self.taught = self.teacher_image(batch)
        with self.head.evaluating():  # logits and distance come from the same text features
            return super().forward_backward(batch)

    @torch.no_grad()
    def teacher_image(self, batch: dict[str, Any]) -> Tensor:
        """f' (B, D), of length 1, of the images of a batch."""
        with self.clip.images.unprompted():
            return F.normalize(self.parse_batch_train(batch)[0], dim=-1)

    def batch_loss(self, image_features: Tensor, logits: Tensor, label: Tensor) -> Tensor:
        node, text = self.method_cfg, F.normalize(self.head.class_features(), dim=-1)
        taught = (self.head.scale * self.taught @ self.teacher_text.t()).float().log_softmax(dim=-1)
        image = F.normalize(image_features, dim=-1)
        return (
            self.loss(logits, label)
            + node.TEXT_LOSS_WEIGHT * F.l1_loss(text, self.teacher_text)
            + node.IMAGE_LOSS_WEIGHT * F.l1_loss(image, self.taught)
            + (taught.exp() * (taught - logits.log_softmax(dim=-1))).mean()
        )

    total = 0.0  # weights of the epochs so far

    @cached_property
    def sums(self) -> dict[str, Tensor]:
        """The learned tensors of the epochs so far, weighed and added up."""
        return {}

    def run_epoch(self) -> None:
        super().run_epoch()
        node = self.method_cfg
        weight = epoch_weights(self.max_epoch, node.GPA_MEAN, node.GPA_STD)[self.epoch].item()
        for name, tensor in self._learned().items():
            self.sums[name] = self.sums.get(name, 0.0) + weight * tensor
        self.total += weight
        if self.epoch + 1 == self.max_epoch:
            self._put(self.sums)

    @contextmanager
    def deployed(self) -> Iterator[None]:
        """Use the average so far to select and save an epoch."""
        before = self._learned()
        if self.total > 0:
            self._put({name: tensor / self.total for name, tensor in self.sums.items()})
        try:
            yield
        finally:
            self._put(before)

    def _learned(self) -> dict[str, Tensor]:
        """Copies of the learned tensors, in float64 on the CPU: the first epochs may weigh next to nothing."""
        return {name: tensor.detach().cpu().double() for name, tensor in self.head.named_parameters()}

    def _put(self, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in self.head.named_parameters():
            tensor.data.copy_(tensors[name])

    def method_state(self) -> dict[str, Any]:
        return {"total": self.total, "sums": self.sums}

    def restore_method_state(self, state: Mapping[str, Any]) -> None:
        self.total = float(state["total"])
        own = self._learned()
        sums = {name: state["sums"][name].cpu() for name in own}
        if other := [name for name, tensor in own.items() if sums[name].shape != tensor.shape]:
            raise ValueError(f"the average over epochs has other shapes than this run, first of {other[0]}")
        self.sums.update(sums)
