"""Contrastive pre-training of the demo model; deterministic for a fixed number of threads and kind of processor.

Each picture is compared with all captions of its batch, and its positives are all captions that are true of it, not
just its own: the loss is the cross-entropy in both directions against a target that is uniform over the pictures that
a caption is true of. This learns shapes and digits faster than positives with exactly the same content (450 steps
each).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np
import torch
import torch.nn.functional as F
from open_clip.model import CLIP
from torch import Tensor, nn

from dassl_lite.datasets._drawn.scene import COLOUR_NAMES, FILL_NAMES
from dassl_lite.datasets._drawn.shapes import SEEN_NAMES
from dassl_lite.tools._demo import model as demo
from dassl_lite.tools._demo.captions import DIGIT_NAMES, NOT_NAMED, caption
from dassl_lite.tools._demo.pictures import DIGIT, SHAPE, Pictures, pretraining_pictures
from dassl_lite.utils import get_logger

logger = get_logger(__name__)


@dataclass(frozen=True)
class Recipe:
    pictures: int = 40_000
    steps: int = 3_000
    batch_size: int = 128
    warmup: int = 60  # steps of linear warm-up, before a half cosine to zero
    lr: float = 2e-3
    weight_decay: float = 0.05
    zoomed: float = 0.5  # probability that a picture is cropped and enlarged
    closest: float = 0.6  # smallest side of a crop, as a share of the picture's
    text_length: float = 0.5  # of text features; longer hurts TaskRes at 16 shots, shorter at 1 (validation pictures)
    seed: int = 0
    report_every: int = 250
    held_out: int = 2_000  # pictures for the accuracies in the reports

    def as_json(self) -> str:
        return json.dumps(asdict(self))


def pretrain(recipe: Recipe) -> tuple[CLIP, demo.Vocabulary]:
    """Draw the pictures, train, and return the model in evaluation mode with its vocabulary."""
    rng = np.random.default_rng([recipe.seed, 13])
    logger.info(f"drawing {recipe.pictures} pictures")
    pictures = pretraining_pictures(recipe.pictures, rng)
    held_out = pretraining_pictures(recipe.held_out, np.random.default_rng([recipe.seed, 99]))
    vocabulary = demo.Vocabulary()
    model = demo.build_model(vocabulary, recipe.seed)
    model.visual.to(memory_format=torch.channels_last)
    optimiser = _optimiser(model, recipe)
    total = 0.0
    for step, rows in enumerate(_batches(len(pictures), recipe, rng)):
        model.train()
        loss = _step(model, vocabulary, pictures, rows, optimiser, _learning_rate(step, recipe), rng, recipe)
        total += loss
        if (step + 1) % recipe.report_every == 0 or step + 1 == recipe.steps:
            steps = (step % recipe.report_every) + 1
            judgement = _judge(model, vocabulary, held_out)
            logger.info(f"step {step + 1}/{recipe.steps}  loss {total / steps:.3f}  {judgement}")
            total = 0.0
    set_text_length(model, vocabulary, recipe.text_length)
    return model.eval(), vocabulary


@torch.no_grad()
def set_text_length(model: CLIP, vocabulary: demo.Vocabulary, length: float) -> None:
    """Scale the text projection so that text features have this norm on average.

    The loss depends on directions only and leaves the norm free. TaskRes' recipe does not: it moves the un-normalised
    feature in steps of a fixed size, which would hardly change the features of this small, briefly trained model.
    """
    prompts = [f"a photo of a {fill} {shape}." for fill in FILL_NAMES for shape in SEEN_NAMES]
    features = demo.encode_text(model.eval(), vocabulary(prompts))
    model.text_projection.mul_(length / features.norm(dim=-1).mean())


def _batches(count: int, recipe: Recipe, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """``recipe.steps`` random batches of row numbers (B,); every picture comes once before any comes again."""
    order = rng.permutation(count)
    for _ in range(recipe.steps):
        if len(order) < recipe.batch_size:
            order = np.concatenate([order, rng.permutation(count)])
        yield order[: recipe.batch_size]
        order = order[recipe.batch_size :]


def _optimiser(model: CLIP, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW; no weight decay for gains, biases (one axis) and embeddings."""
    decayed = [p for name, p in model.named_parameters() if p.ndim >= 2 and "embedding" not in name]
    free = [p for name, p in model.named_parameters() if p.ndim < 2 or "embedding" in name]
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": free, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.98), eps=1e-6)


def _learning_rate(step: int, recipe: Recipe) -> float:
    rising = min(1.0, (step + 1) / recipe.warmup)
    done = max(0, step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return recipe.lr * rising * (0.5 * (1 + math.cos(math.pi * done)) + 1e-3)


def _step(
    model: CLIP,
    vocabulary: demo.Vocabulary,
    pictures: Pictures,
    rows: np.ndarray,
    optimiser: torch.optim.Optimizer,
    lr: float,
    rng: np.random.Generator,
    recipe: Recipe,
) -> float:
    texts, parts = zip(*[caption(pictures.contents[row], rng) for row in rows], strict=True)
    named = torch.tensor(parts)
    images = _zoom(demo.to_input(torch.from_numpy(pictures.images[rows])), recipe, rng)
    image_features = F.normalize(model.encode_image(images), dim=-1)
    text_features = F.normalize(demo.encode_text(model, vocabulary(texts)), dim=-1)
    contents = torch.from_numpy(pictures.contents[rows])
    true = ((named[None] == NOT_NAMED) | (named[None] == contents[:, None])).all(-1).float()
    loss = contrastive_loss(model.logit_scale.exp() * image_features @ text_features.T, true)
    for group in optimiser.param_groups:
        group["lr"] = lr
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()
    model.logit_scale.data.clamp_(0, math.log(100))
    return loss.item()


def contrastive_loss(logits: Tensor, true: Tensor) -> Tensor:
    """Mean cross-entropy in both directions.

    Args:
        logits: (B pictures, B captions).
        true: (B, B), 1 where a caption is true of a picture, else 0.
    """
    picture_given_caption = true / true.sum(0)
    caption_given_picture = picture_given_caption / picture_given_caption.sum(1, keepdim=True)
    by_caption = -(picture_given_caption * logits.log_softmax(0)).sum(0).mean()
    by_picture = -(caption_given_picture * logits.log_softmax(1)).sum(1).mean()
    return (by_caption + by_picture) / 2


def _zoom(images: Tensor, recipe: Recipe, rng: np.random.Generator) -> Tensor:
    """Crop and enlarge some pictures (B, 3, S, S), so that features are robust to the crops of fine-tuning."""
    count = len(images)
    side = np.where(rng.random(count) < recipe.zoomed, rng.uniform(recipe.closest, 1, count), 1.0)
    shift = rng.uniform(-1, 1, (count, 2)) * (1 - side)[:, None]
    affine = np.zeros((count, 2, 3), np.float32)
    affine[:, 0, 0] = affine[:, 1, 1] = side
    affine[:, :, 2] = shift
    grid = F.affine_grid(torch.from_numpy(affine), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


@torch.no_grad()
def _judge(model: CLIP, vocabulary: demo.Vocabulary, pictures: Pictures) -> str:
    """Zero-shot accuracies on held-out pictures."""
    model.eval()
    features = demo.image_features(model, pictures.images)
    kind, which, fill, colour = torch.from_numpy(pictures.contents).T
    shapes, digits = kind == SHAPE, kind == DIGIT
    both = [f"{f} {s}" for f in FILL_NAMES for s in SEEN_NAMES]
    questions = {
        "shape": (shapes, SEEN_NAMES, which),
        "fill": (shapes, [f"{name} thing" for name in FILL_NAMES], fill),
        "colour": (shapes, [f"{name} thing" for name in COLOUR_NAMES], colour),
        "fill x shape": (shapes, both, fill * len(SEEN_NAMES) + which),
        "digit": (digits, [f"digit {name}" for name in DIGIT_NAMES], which),
    }
    answers = []
    for question, (asked, names, truth) in questions.items():
        texts = demo.text_features(model, vocabulary, [f"a photo of a {name}." for name in names])
        right = (features[asked] @ texts.T).argmax(1) == truth[asked]
        answers.append(f"{question} {100 * right.float().mean().item():.1f}")
    return "  ".join(answers)
