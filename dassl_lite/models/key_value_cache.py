"""Tip-Adapter's head: zero-shot logits plus the logits of a cache of labelled images.

    logits = scale * f @ W.T + alpha * exp(-beta * (1 - f @ keys.T)) @ values

Shapes: B images, N cache entries, K classes, D feature width, V views.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dassl_lite.utils.errors import UserError

_CHUNK = 256  # images processed at a time in a search
_IN_CACHE = 2**18  # numbers that fit in a core's cache between two operations
_MOST_TURNS = 64
_FEW = 64  # number of logits up to which argmax is as fast


class KeyValueCache(nn.Module):
    """A cache of keys and values, empty until `fill` or until a checkpoint is loaded.

    Args:
        text_features: W (K, D), of length 1.
        scale: exp(logit_scale), a scalar.
        trainable: whether the keys are trained.

    Attributes:
        keys, values: (N, D), of length 1 before training, and (N, K), one-hot.
        alpha: weight of the cache.
        beta: its sharpness: how fast an entry's vote falls with its distance.
    """

    class_rows: Mapping[str, int] = {"values": 1, "text_features": 0}
    text_features: Tensor
    values: Tensor
    alpha: Tensor
    beta: Tensor

    def __init__(self, text_features: Tensor, scale: float, trainable: bool = False) -> None:
        super().__init__()
        self.scale = scale
        self.keys = nn.Parameter(text_features.new_zeros(0, text_features.shape[1]), requires_grad=trainable)
        self.register_buffer("values", text_features.new_zeros(0, len(text_features)))
        self.register_buffer("text_features", text_features)
        self.register_buffer("alpha", torch.tensor(1.0))
        self.register_buffer("beta", torch.tensor(1.0))

    def prepare_to_load(self, weights: Mapping[str, Tensor], meta: Mapping[str, Any], path: Path) -> None:
        """Make room for as many entries as a checkpoint has: it may come from another dataset, with other shots.

        The parameter object stays the same, so an optimiser still holds it.
        """
        entries = len(weights["keys"]) if "keys" in weights else 0
        self.keys.data = self.keys.new_zeros(entries, self.keys.shape[1])
        self.values = self.values.new_zeros(entries, self.values.shape[1])

    def fill(self, views: Tensor, labels: Tensor) -> None:
        """One entry per image: the mean over views of its features (V, N, D), and its label (N,)."""
        self.keys.data = F.normalize(views.mean(dim=0), dim=-1).to(self.keys)
        self.values = F.one_hot(labels, self.values.shape[1]).to(self.values)

    def set_alpha_beta(self, alpha: float, beta: float) -> None:
        """Set alpha and beta."""
        self.alpha.fill_(alpha)
        self.beta.fill_(beta)

    def forward(self, image_features: Tensor) -> Tensor:
        """Logits (B, K) for image features (B, D).

        Raises:
            UserError: the cache is empty.
        """
        if not len(self.keys):
            raise UserError("the cache is empty: it needs shots (DATASET.NUM_SHOTS 1 or more) or a checkpoint")
        zero_shot, affinity = self._similarities(image_features)
        return zero_shot + self.alpha * self._vote(affinity, self.beta)

    def accuracies(self, image_features: Tensor, labels: Tensor, betas: Tensor, alphas: Tensor) -> Tensor:
        """Accuracy in percent for every beta (rows) with every alpha (columns)."""
        by_class = _SumsByClass.of(self.values)
        chunks = zip(image_features.split(_CHUNK), labels.split(_CHUNK), strict=True)
        with _one_thread_each(labels.device) as apply:
            counts = apply(lambda chunk: self._correct(chunk[0], chunk[1], betas, alphas, by_class), chunks)
            return 100 * torch.stack(list(counts)).sum(dim=0) / len(labels)

    @torch.no_grad()
    def _correct(
        self, image_features: Tensor, labels: Tensor, betas: Tensor, alphas: Tensor, by_class: _SumsByClass | None
    ) -> Tensor:
        """How many of B images are classified correctly, float64, for every beta (rows) with every alpha (columns).

        Takes N exponentials and a few times A K operations per image and beta.
        """
        correct = torch.zeros(len(betas), len(alphas), device=labels.device, dtype=torch.float64)
        zero_shot, affinity = self._similarities(image_features)
        distance = 1 - (affinity if by_class is None else affinity[:, by_class.order])
        rows = len(labels) if labels.is_cuda else max(1, _IN_CACHE // max(1, len(self.keys)))
        for near, far, own in zip(zero_shot.split(rows), distance.split(rows), labels.split(rows), strict=True):
            closeness, logits = torch.empty_like(far), near.new_empty(len(alphas), *near.shape)
            for row, beta in enumerate(betas.tolist()):
                torch.mul(far, -beta, out=closeness).exp_()
                vote = closeness @ self.values if by_class is None else by_class(closeness)
                torch.mul(alphas.to(near)[:, None, None], vote, out=logits).add_(near)
                correct[row] += _is_highest(logits, own).sum(dim=-1)
        return correct

    def _similarities(self, image_features: Tensor) -> tuple[Tensor, Tensor]:
        """Zero-shot logits (B, K) and cosines with the keys (B, N)."""
        features = F.normalize(image_features, dim=-1)
        return self.scale * features @ self.text_features.t(), features @ self.keys.t()

    def _vote(self, affinity: Tensor, beta: Tensor) -> Tensor:
        """Logits of the cache, before alpha (B, K)."""
        return torch.exp(-beta * (1 - affinity)) @ self.values


@contextmanager
def _one_thread_each(device: torch.device) -> Iterator[Callable[..., Iterator[Tensor]]]:
    """``map`` in as many threads as torch has, with each operation in a single thread.

    Threads that split many small operations between them mostly wait for each other.
    """
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads == 1:
        yield map
        return
    torch.set_num_threads(1)  # also applies to the threads started below
    try:
        with ThreadPoolExecutor(threads) as pool:
            yield pool.map
    finally:
        torch.set_num_threads(threads)


class _SumsByClass:
    """``x @ values`` for one-hot values (N, K), as sums over the entries of each class.

    Entries are taken in turns: the first of every class, then the second of every class that has one, and so on. So the
    entries of a turn are contiguous, and a turn is added to the one before without indexing. A class of more
    than ``_MOST_TURNS`` entries counts as several.

    Args:
        labels: (N,), the column of the 1 in each row; -1 for a row of zeros.
        classes: K.

    Attributes:
        order: (M,), the entries that have a class, in turns.
    """

    def __init__(self, labels: Tensor, classes: int) -> None:
        self.classes = classes
        entries = labels.argsort(stable=True)[int((labels < 0).sum()) :]
        counts = torch.bincount(labels[entries], minlength=classes)
        starts = counts.cumsum(0) - counts
        position = torch.arange(len(entries), device=labels.device) - starts[labels[entries]]  # within its class
        turn = position % _MOST_TURNS
        groups, group, sizes = torch.unique(
            labels[entries] * (len(entries) + 1) + position // _MOST_TURNS, return_inverse=True, return_counts=True
        )
        largest_first = sizes.argsort(descending=True, stable=True)
        rank = largest_first.argsort()
        self.order = entries[(turn * len(groups) + rank[group]).argsort()]
        self.lengths = torch.bincount(turn).tolist()  # groups that have an entry in each turn: the first ones
        owner = (groups // (len(entries) + 1))[largest_first]
        every = torch.arange(classes, device=labels.device)
        self.owner = None if torch.equal(owner, every) else owner  # class of each group, if they are not the classes

    @classmethod
    def of(cls, values: Tensor) -> _SumsByClass | None:
        """For values (N, K) whose rows are one-hot or zeros; None for others."""
        ones = values == 1
        if not torch.equal(ones.to(values), values) or (ones.sum(dim=1) > 1).any() or not ones.any():
            return None
        return cls(torch.where(ones.any(dim=1), ones.int().argmax(dim=1), -1), values.shape[1])

    def __call__(self, x: Tensor) -> Tensor:
        """(B, K) for x (B, M), whose columns are in ``order``."""
        groups = self.lengths[0]
        whole = sum(length == groups for length in self.lengths)
        sums = x[:, : whole * groups].view(len(x), whole, groups).sum(dim=1)
        start = whole * groups
        for length in self.lengths[whole:]:
            sums[:, :length] += x[:, start : start + length]
            start += length
        if self.owner is None:
            return sums
        return sums.new_zeros(len(x), self.classes).index_add_(1, self.owner, sums)


def _is_highest(logits: Tensor, labels: Tensor) -> Tensor:
    """Whether the label's logit is the first of the highest: (A, B) for logits (A, B, K) and labels (B,).

    On a CPU, argmax of many takes ten times as long as a maximum, so it is used only to break ties.
    """
    if logits.is_cuda or logits.shape[-1] < _FEW:
        return logits.argmax(dim=-1) == labels
    index = labels.expand(len(logits), -1)[..., None]
    label_logits = logits.gather(-1, index)
    others = logits.scatter_(-1, index, -torch.inf).amax(dim=-1, keepdim=True)
    higher = label_logits > others
    if not (equal := ~(higher | (label_logits < others))).any():
        return higher[..., 0]
    logits.scatter_(-1, index, label_logits)
    return torch.where(equal, logits.argmax(dim=-1, keepdim=True) == index, higher)[..., 0]
