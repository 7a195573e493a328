"""TaskRes in plain torch and open_clip, without dassl_lite.

    python examples/plain_taskres.py --images FOLDER [--backbone ViT-B-16-quickgelu:openai]

FOLDER holds {train,test}/<class>/*. tests/examples checks that losses and logits equal those of

    python tools/train.py --trainer TaskRes --data FOLDER DATASET.FEATURES.VIEWS 0 DATALOADER.NUM_WORKERS 0

Paper: Task Residual for Tuning Vision-Language Models, https://arxiv.org/abs/2211.10277
Shapes: B images, K classes, D feature width.
"""

import math
import random
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from plain_clip import load_clip, load_images, parse_args, predict
from torch import Tensor, nn

BATCH_SIZE, LR, WEIGHT_DECAY, WARMUP_LR = 256, 2e-3, 5e-4, 1e-5  # of the authors' repository
ALPHA = 0.5  # the paper's scale of the residual; 1.0 for Flowers102


class TaskRes(nn.Module):
    """Logits of image features: the text-based classifier t and a task residual x, ``t' = t + alpha * x``."""

    def __init__(self, model: Any, classnames: list[str], template: str = "a photo of a {}.", alpha: float = ALPHA):
        super().__init__()
        tokens = open_clip.tokenize([template.format(name) for name in classnames]).to(model.logit_scale.device)
        self.t = model.encode_text(tokens)  # (K, D): what CLIP knows of the classes; frozen, not normalised
        self.x = nn.Parameter(torch.zeros_like(self.t))  # (K, D): what the task adds; all that is learned
        self.alpha, self.scale = alpha, model.logit_scale.exp()

    def forward(self, image_features: Tensor) -> Tensor:
        """(B, D) to (B, K): p(y = k | image) is the softmax of ``scale * cos(image, t'_k)``."""
        adapted = self.t + self.alpha * self.x
        return self.scale * F.normalize(image_features, dim=-1) @ F.normalize(adapted, dim=-1).T


def learning_rate(epoch: int, epochs: int) -> float:
    """One warm-up epoch at a constant rate, then half a cosine that starts counting after it."""
    return WARMUP_LR if epoch == 0 else LR * (1 + math.cos(math.pi * (epoch - 1) / epochs)) / 2


def train(model: Any, head: nn.Module, loader: Any, epochs: int) -> list[float]:
    """Minimise the cross-entropy over x alone; returns the loss of every batch."""
    optimizer = torch.optim.Adam(head.parameters(), lr=LR, weight_decay=WEIGHT_DECAY)
    losses = []
    for epoch in range(epochs):
        optimizer.param_groups[0]["lr"] = learning_rate(epoch, epochs)
        for images, labels in loader:
            image_features = model.encode_image(images)  # frozen: no gradients
            loss = F.cross_entropy(head(image_features), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses


def run(argv: list[str] | None = None) -> tuple[list[float], Tensor, Tensor]:
    """Train and test; returns the losses, the test logits (N, K) and the labels (N,)."""
    args = parse_args(__doc__ or "", argv)
    model = load_clip(args.backbone)
    random.seed(args.seed)  # draws the shots; torch's draws batches and augmentations
    torch.manual_seed(args.seed)
    train_loader, test_loader, classnames = load_images(args.images, model, args.shots, BATCH_SIZE)
    head = TaskRes(model, classnames)
    losses = train(model, head, train_loader, args.epochs or (100 if args.shots <= 4 else 200))
    logits, labels = predict(model, head, test_loader)
    accuracy = 100 * (logits.argmax(dim=1) == labels).float().mean().item()
    print(f"loss {losses[0]:.4f} -> {losses[-1]:.4f}, test accuracy {accuracy:.2f}%")
    return losses, logits, labels


if __name__ == "__main__":
    run()
