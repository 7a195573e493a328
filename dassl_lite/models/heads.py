"""The head that most methods share: cosine logits of image features against one prototype per class.

The sigmoid loss (LOSS sigmoid) separates each class from its absence, as in SigLIP (https://arxiv.org/abs/2303.15343):

    p_k = sigmoid(factor * logit_k + bias),   loss = -sum_k log p_k if the image has class k, else log (1 - p_k)

Factor and bias are two learned numbers. A SigLIP brings its own bias along (logit_bias), with factor 1. The logits of a
CLIP that was trained with a softmax are all positive, around 25, and mean something only against each other: there,
training starts from the two numbers that fit its own images best (Platt scaling).

Shapes: B images, K classes, D feature width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_PROBES = 64  # number of features that a head is probed with
_ROUNDING = 1e-4  # tolerated error of a logit, relative to the largest

MOST = 5.0  # limit on the magnitude of the log factor in Platt scaling


class CosineHead(nn.Module):
    """Image features (B, D) to logits (B, K); CLIP's own classifier, with room for what a method learns.

        logits = scale * normalise(adapt(image_features)) @ normalise(class_prototypes()).T

    A method overrides `class_prototypes`, and `adapt` if it changes the image features too.

    Args:
        scale: exp(logit_scale), a scalar.

    Attributes:
        calibration: (2,) logarithm of the sigmoid's factor, and its bias; None unless `calibrate` was called.
    """

    scale: Tensor
    optional_state = ("calibration",)  # without it, classes have the same order
    calibration: nn.Parameter | None
    _evaluating = False
    _kept: Tensor | None = None

    def __init__(self, scale: Tensor | float) -> None:
        super().__init__()
        self.register_buffer("scale", torch.as_tensor(scale).detach().float(), persistent=False)
        self.register_parameter("calibration", None)

    def class_prototypes(self) -> Tensor:
        """One row per class (K, D), of any length and dtype."""
        raise NotImplementedError(f"{type(self).__name__} does not define class_prototypes()")

    def adapt(self, image_features: Tensor) -> Tensor:
        """The image features (B, D) that are compared with the prototypes; unchanged unless overridden."""
        return image_features

    def forward(self, image_features: Tensor) -> Tensor:
        """Logits (B, K) for image features (B, D)."""
        image_features = F.normalize(self.adapt(image_features), dim=-1)
        logits = self.scale * image_features @ F.normalize(self.class_features(), dim=-1).t()
        return logits if self.calibration is None else self.calibration[0].exp() * logits + self.calibration[1]

    def calibrate(self, log_factor: float = 0.0, bias: float = 0.0) -> None:
        """Switch to sigmoid logits, with a learned factor and bias that start from these values."""
        self.calibration = nn.Parameter(torch.tensor([log_factor, bias], device=self.scale.device))

    def class_features(self) -> Tensor:
        """The prototypes (K, D) in float32; computed once within `evaluating`."""
        if self._kept is not None:
            return self._kept
        features = self.class_prototypes().float()
        if self._evaluating:
            object.__setattr__(self, "_kept", features)  # a module would register a parameter again
        return features

    @property
    def is_linear(self) -> bool:
        """Whether logits are linear in the normalised image features; see `linear_form`."""
        kind = type(self)
        return kind.adapt is CosineHead.adapt and kind.forward is CosineHead.forward

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """A context in which no parameter changes, so the prototypes are computed once for all batches."""
        self._evaluating = True
        try:
            yield
        finally:
            self._evaluating, self._kept = False, None


class FixedPrototypes(CosineHead):
    """Cosine logits against prototypes that are not learned: zero-shot CLIP.

    Args:
        prototypes: (K, D), of any length.
        scale: exp(logit_scale), a scalar.
    """

    prototypes: Tensor

    def __init__(self, prototypes: Tensor, scale: Tensor | float) -> None:
        super().__init__(scale)
        self.register_buffer("prototypes", F.normalize(prototypes, dim=-1), persistent=False)

    def class_prototypes(self) -> Tensor:
        return self.prototypes


class LinearForm(NamedTuple):
    """A linear head's function as plain tensors.

        logits = scale * f @ weight.T + bias,   f: image features (B, D), of length 1 if `normalises`

    Attributes:
        weight: (K, D) float32.
        scale: factor on the products.
        bias: (K,) float32; None if there is none.
        normalises: whether features are brought to length 1 first.
    """

    weight: Tensor
    scale: float
    bias: Tensor | None
    normalises: bool

    def __call__(self, image_features: Tensor) -> Tensor:
        """Logits (B, K) for image features (B, D)."""
        features = F.normalize(image_features, dim=-1) if self.normalises else image_features
        logits = self.scale * features @ self.weight.t()
        return logits if self.bias is None else logits + self.bias


@torch.no_grad()
def linear_form(head: nn.Module, width: int) -> LinearForm | None:
    """A head as a matrix, computed from its outputs; None if it is not linear or its ``is_linear`` is not true.

    Args:
        head: in eval mode; takes features (B, D).
        width: D.
    """
    if not getattr(head, "is_linear", isinstance(head, nn.Linear)):
        return None
    like = next((tensor for tensor in (*head.parameters(), *head.buffers()) if tensor.is_floating_point()), None)
    device = torch.device("cpu") if like is None else like.device
    axes, drawn = torch.eye(width, device=device), torch.Generator().manual_seed(0)
    with head.evaluating() if hasattr(head, "evaluating") else nullcontext():  # type: ignore[operator]
        ahead, behind = head(axes).float(), head(-axes).float()
        weight, bias = (ahead - behind).t() / 2, ((ahead + behind) / 2).mean(dim=0)
        noise = torch.randn(_PROBES, width, generator=drawn).to(device) / width**0.5
        near_classes = F.normalize(weight, dim=-1)[torch.arange(_PROBES) % len(weight)]  # where image features lie
        probes = torch.cat([noise, near_classes + noise])
        wanted, doubled = head(probes).float(), head(2 * probes).float()
    most = _ROUNDING * max(1.0, wanted.abs().max().item())
    scale = float(getattr(head, "scale", 1.0))
    found = LinearForm(
        (weight / scale).contiguous(),
        scale,
        bias if bias.abs().max() > 1e-6 * most else None,
        normalises=bool((wanted - doubled).abs().max() <= most),
    )
    return found if (found(probes) - wanted).abs().max() <= most else None


def class_targets(labels: Tensor, classes: int) -> Tensor:
    """Bool (B, K), true for the classes of each image, from labels (B,) or already in this form."""
    return labels.bool() if labels.dim() == 2 else F.one_hot(labels, classes).bool()


def sigmoid_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy, summed over classes and averaged over images, a scalar.

    Args:
        logits: (B, K).
        labels: (B,), or bool (B, K), true for the classes of each image.
    """
    targets = class_targets(labels, logits.shape[1]).to(logits.dtype)
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="sum") / len(logits)


def platt_scaling(logits: Tensor, targets: Tensor) -> tuple[float, float]:
    """Logarithm of the factor, and the bias, that minimise the sigmoid loss of the logits.

    Args:
        logits: (N, K).
        targets: bool (N, K).
    """
    logits, targets = logits.double(), targets.double()
    mean = logits.mean()
    found = torch.zeros(2, dtype=torch.float64, device=logits.device, requires_grad=True)
    optim = torch.optim.LBFGS([found], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optim.zero_grad()
        # In a bounded range: uninformative logits would get a factor of 0, which lets no gradient through.
        log_factor = MOST * (found[0] / MOST).tanh()
        loss = F.binary_cross_entropy_with_logits(log_factor.exp() * (logits - mean) + found[1], targets)
        loss.backward()
        return loss

    with torch.enable_grad():
        optim.step(closure)
    log_factor = MOST * (found[0] / MOST).tanh().item()
    return log_factor, found[1].item() - math.exp(log_factor) * mean.item()
