"""CoOp in plain torch and open_clip, without dassl_lite.

    python examples/plain_coop.py --images FOLDER [--backbone ViT-B-16-quickgelu:openai]

FOLDER holds {train,test}/<class>/*. tests/examples checks that losses and logits equal those of

    python tools/train.py --trainer CoOp --data FOLDER DATASET.FEATURES.VIEWS 0 DATALOADER.NUM_WORKERS 0

Paper: Learning to Prompt for Vision-Language Models, https://arxiv.org/abs/2109.01134
Shapes: B images, K classes, M context vectors, L tokens of a prompt, W token width, D feature width.
"""

import math
import random
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from plain_clip import load_clip, load_images, parse_args, predict
from torch import Tensor, nn

BATCH_SIZE, LR, MOMENTUM, WEIGHT_DECAY, WARMUP_LR = 32, 2e-3, 0.9, 5e-4, 1e-5  # of the authors' repository
N_CTX, STD = 16, 0.02  # M, and the standard deviation of the vectors that training starts from


class CoOp(nn.Module):
    """Logits of image features: prompts ``t_k = [v_1] ... [v_M] [class k].`` whose context v is learned."""

    def __init__(self, model: Any, classnames: list[str], n_ctx: int = N_CTX):
        super().__init__()
        texts = [f"{'X ' * n_ctx}{name.replace('_', ' ')}." for name in classnames]  # v replaces the embeddings of X
        tokens = open_clip.tokenize(texts).to(model.logit_scale.device)  # (K, L)
        embedded = model.token_embedding(tokens)  # (K, L, W)
        self.start, self.rest = embedded[:, :1], embedded[:, 1 + n_ctx :]  # [start], and [class] [.] [end] [padding]
        self.end = tokens.argmax(dim=-1)  # where each prompt ends: the end token has the largest id
        self.v = nn.Parameter(torch.empty(n_ctx, embedded.shape[-1]).normal_(std=STD).to(embedded))  # (M, W), learned
        self.clip, self.scale = [model], model.logit_scale.exp()  # in a list, so its weights are not registered here

    def text_features(self) -> Tensor:
        """g(t), (K, D): CLIP's text encoder, with prompts in place of token embeddings."""
        (model,), classes = self.clip, len(self.end)
        prompts = torch.cat([self.start, self.v.expand(classes, -1, -1), self.rest], dim=1)  # (K, L, W)
        states = model.transformer(prompts + model.positional_embedding, attn_mask=model.attn_mask)
        return model.ln_final(states)[torch.arange(classes), self.end] @ model.text_projection

    def forward(self, image_features: Tensor) -> Tensor:
        """(B, D) to (B, K): p(y = k | image) is the softmax of ``scale * cos(image, g(t_k))``."""
        return self.scale * F.normalize(image_features, dim=-1) @ F.normalize(self.text_features(), dim=-1).T


def learning_rate(epoch: int, epochs: int) -> float:
    """One warm-up epoch at a constant rate, then half a cosine that starts counting after it."""
    return WARMUP_LR if epoch == 0 else LR * (1 + math.cos(math.pi * (epoch - 1) / epochs)) / 2


def train(model: Any, head: nn.Module, loader: Any, epochs: int) -> list[float]:
    """Minimise the cross-entropy over v alone, back through the text encoder; returns the loss of every batch."""
    optimizer = torch.optim.SGD(head.parameters(), lr=LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
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
    random.seed(args.seed)  # draws the shots; torch's draws batches and augmentations, and v
    torch.manual_seed(args.seed)
    train_loader, test_loader, classnames = load_images(args.images, model, args.shots, BATCH_SIZE)
    head = CoOp(model, classnames)
    epochs = args.epochs or (50 if args.shots == 1 else 100 if args.shots <= 4 else 200)
    losses = train(model, head, train_loader, epochs)
    logits, labels = predict(model, head, test_loader)
    accuracy = 100 * (logits.argmax(dim=1) == labels).float().mean().item()
    print(f"loss {losses[0]:.4f} -> {losses[-1]:.4f}, test accuracy {accuracy:.2f}%")
    return losses, logits, labels


if __name__ == "__main__":
    run()
