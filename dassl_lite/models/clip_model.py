"""CLIP's image encoder with a linear layer, as a plain module.

    model = CLIPModel("RN50")                      # one logit, for example real against generated images
    logits = model(images)                         # (B, 1)
    features = model(images, return_feature=True)  # (B, 1024)

Shapes: B images, D width of the features, K outputs.
"""

from __future__ import annotations

from torch import Tensor, nn

from dassl_lite.models.clip import load_clip


class CLIPModel(nn.Module):
    """A plain network, ``fc(features)``: CLIP's image encoder without normalisation, and a linear layer.

    Unlike a `CLIPBackbone` it has no text encoder and is a complete classifier. The encoder is frozen and stays in eval
    mode, so that its batch statistics do not drift; ``model.visual.requires_grad_(True)`` unfreezes it.

    Args:
        name: backbone, as `dassl_lite.models.clip.load_clip` takes it.
        num_classes: K, outputs of the layer.
        precision, device: for the encoder, as `load_clip` takes them; the layer is in float32.

    Attributes:
        visual: the image encoder, (B, 3, H, W) -> (B, D).
        fc: the layer, D -> K.
        preprocessing: size, mean, std and interpolation of the images that it takes.
        dtype: dtype of the encoder.
    """

    def __init__(self, name: str, num_classes: int = 1, precision: str = "fp32", device: str = "cpu") -> None:
        super().__init__()
        clip = load_clip(name, precision=precision, device=device)
        self.visual, self.preprocessing, self.dtype = clip.visual, clip.preprocessing, clip.dtype
        self.fc = nn.Linear(clip.embed_dim, num_classes, device=device)

    def forward(self, x: Tensor, return_feature: bool = False) -> Tensor:
        """Outputs (B, K) for images (B, 3, H, W), or their features (B, D); float32."""
        features = self.visual(x.to(self.fc.weight.device, self.dtype)).float()
        return features if return_feature else self.fc(features)

    def train(self, mode: bool = True) -> CLIPModel:
        super().train(mode)
        self.visual.eval()
        return self
