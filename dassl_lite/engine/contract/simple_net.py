"""SimpleNet: a backbone, an optional head and a linear classifier, built from the config's MODEL node."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from yacs.config import CfgNode

from dassl_lite.networks import build_backbone, build_head


class SimpleNet(nn.Module):
    """The default model of a SimpleTrainer (Dassl's contract).

    Args:
        cfg: the run's config.
        model_cfg: its MODEL node, or one like it.
        num_classes: number of classifier outputs; 0 omits the classifier, and the model returns features.
    """

    def __init__(self, cfg: CfgNode, model_cfg: CfgNode, num_classes: int, **kwargs: Any) -> None:
        super().__init__()
        body, head = model_cfg.BACKBONE, model_cfg.HEAD
        self.backbone = build_backbone(body.NAME, verbose=cfg.VERBOSE, pretrained=body.PRETRAINED, **kwargs)
        self._fdim: int = self.backbone.out_features
        self.head: nn.Module | None = None
        if head.NAME and head.HIDDEN_LAYERS:
            self.head = build_head(
                head.NAME,
                verbose=cfg.VERBOSE,
                in_features=self._fdim,
                hidden_layers=head.HIDDEN_LAYERS,
                activation=head.ACTIVATION,
                bn=head.BN,
                dropout=head.DROPOUT,
                **kwargs,
            )
            self._fdim = self.head.out_features  # type: ignore[assignment]  # every head has this attribute
        self.classifier = nn.Linear(self._fdim, num_classes) if num_classes > 0 else None

    @property
    def fdim(self) -> int:
        """Width D of the features."""
        return self._fdim

    def forward(self, x: Tensor, return_feature: bool = False) -> Any:
        """Logits (B, K) for images (B, 3, H, W); with ``return_feature``, the pair (logits, features (B, D))."""
        features = self.backbone(x)
        if self.head is not None:
            features = self.head(features)
        if self.classifier is None:
            return features
        logits = self.classifier(features)
        return (logits, features) if return_feature else logits
