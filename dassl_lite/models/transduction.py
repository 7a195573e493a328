"""TransCLIP's mixture: unlabelled test images are classified together.

Paper: Boosting Vision-Language Models with Transduction, https://arxiv.org/abs/2406.01837

Each class is a Gaussian around a mean mu_k, all with one diagonal covariance. Image i has shares z_i in
the K classes. They start at a prediction p_i and are improved in turn with the Gaussians:

    z_i = normalise(p_i^lambda * exp((loglik_i + NEIGHBOURHOOD * sum_j w_ij z_j) / TEMPERATURE)),   REPEATS times
    mu = normalise(z.T q / n + r * y.T s),   r = gamma * TEMPERATURE / S
    variance: the same average over the squared distances to the means

q (n, D) are the images, s (S, D) labelled ones with labels y (S, K), all of length 1; w_ij is the cosine of an image
and one of its `NEIGHBOURS` nearest, in both directions, so that labels spread. Nothing of size n x n is kept.

Shapes: n images, S labelled images, K classes, D feature width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

ITERATIONS, REPEATS, NEIGHBOURS = 10, 5, 3
TEMPERATURE = 50.0
NEIGHBOURHOOD = TEMPERATURE / 6
START_ROWS = 8  # number of most probable images that a class's mean starts from
_BYTES = 64 << 20  # number of cosines in memory at a time
_LEAST_VARIANCE = 1e-12


class Mixture:
    """The shares and the Gaussians; `fit` improves them.

    Args:
        images: q (n, D), of any length.
        logits: (n, K), a prediction: p is their softmax.
        support: s (S, D), of any length; None if there are no labelled images.
        targets: y (S, K), one-hot.
        trust: lambda, the exponent of the predictions.
        as_authors: repeat what the authors' code does by mistake: labelled images get the neighbours of the last
            images, the first images those of the labelled ones, whose nearest is left out as if it were they.

    Attributes:
        shares: z (n, K).
        means: (K, D), of length 1.
        variance: (D,).
    """

    def __init__(
        self,
        images: Tensor,
        logits: Tensor,
        support: Tensor | None = None,
        targets: Tensor | None = None,
        *,
        trust: float = 1.0,
        as_authors: bool = False,
    ) -> None:
        self.images, logits = F.normalize(images.float(), dim=-1), logits.float()
        self.support = self.images[:0] if support is None else F.normalize(support.float(), dim=-1)
        self.targets = logits[:0] if targets is None else targets.float()
        self.predictions, self._prior = logits.softmax(dim=1), trust * logits.log_softmax(dim=1)
        self._squares = _exact(self.images.square().mean(dim=0)), _exact(self.support.square().sum(dim=0))
        self.neighbours, self.weights = self._nearest(as_authors)
        self.start()

    def start(self) -> None:
        """Reset the shares to the predictions, and the means to those of the labelled or the most probable images."""
        self.shares = self.predictions.clone()
        top, rows = self.shares.topk(min(START_ROWS, len(self.shares)), dim=0)  # (8, K)
        means = torch.einsum("rk,rkd->kd", top, self.images[rows])
        labelled = self.targets.sum(dim=0) > 0
        self.means = F.normalize(torch.where(labelled[:, None], self.targets.t() @ self.support, means), dim=-1)
        self.variance = torch.full_like(self.images[0], 1 / self.images.shape[1])

    def fit(self, gamma: float = 0.0) -> Tensor:
        """The shares (n, K) after all iterations.

        Args:
            gamma: weight of the labelled images.
        """
        for _ in range(ITERATIONS):
            self.assign()
            self.estimate(gamma)
        self.assign()
        return self.shares

    def assign(self) -> None:
        """Update the shares."""
        log_likelihood = self.log_likelihood()
        for _ in range(REPEATS):
            scores = log_likelihood + NEIGHBOURHOOD * self.spread()
            self.shares = (self._prior + scores / TEMPERATURE).softmax(dim=1)

    def estimate(self, gamma: float) -> None:
        """Means and variance of the shares and of the labelled images."""
        count, weight = len(self.images), gamma * TEMPERATURE / max(len(self.support), 1)
        sums = self.shares.t() @ self.images / count + weight * self.targets.t() @ self.support
        self.means = F.normalize(sums, dim=-1)
        # A difference between larger numbers, so it is computed in double precision.
        (squares, of_support), means = self._squares, _exact(self.means)
        masses = _exact(self.shares.mean(dim=0)) + weight * _exact(self.targets.sum(dim=0))
        distances = squares + weight * of_support - 2 * (means * _exact(sums)).sum(dim=0)
        distances += (masses[:, None] * means.square()).sum(dim=0)
        self.variance = (distances / masses.sum()).clamp(min=_LEAST_VARIANCE).to(self.images)

    def log_likelihood(self) -> Tensor:
        """Log-likelihood of each image in each class (n, K), up to terms that all classes share."""
        precision = 1 / self.variance
        scaled = self.means * precision
        squares = self.images.square() @ precision
        return self.images @ scaled.t() - (squares[:, None] + (scaled * self.means).sum(dim=1)) / 2

    def spread(self) -> Tensor:
        """(n, K): the shares and labels of each image's neighbours, and of those whose neighbour it is, weighted."""
        given = torch.cat([self.shares, self.targets])
        found = torch.zeros_like(self.shares)
        for rows, weights in zip(self.neighbours.t(), self.weights.t(), strict=True):
            found.index_add_(0, rows, weights[:, None] * given)
            found += weights[: len(found), None] * self.shares[rows[: len(found)]]
        return found

    def _nearest(self, as_authors: bool) -> tuple[Tensor, Tensor]:
        """The nearest images of each image, then of each labelled one: their rows (n + S, 3), and the cosines."""
        count = len(self.images)
        kept = min(NEIGHBOURS, max(count - 1, 0))
        asked = torch.cat([self.support, self.images] if as_authors else [self.images, self.support])
        rows, weights = [], []
        step = max(1, _BYTES // (4 * count))
        for start in range(0, len(asked), step):
            cosines = asked[start : start + step] @ self.images.t()
            at = torch.arange(start, start + len(cosines), device=cosines.device)
            if not as_authors:  # an image is not its own neighbour
                of_image = at < count
                cosines[of_image.nonzero().squeeze(1), at[of_image]] = -torch.inf
                value, row = cosines.topk(kept, dim=1)
            else:
                value, row = (found[:, 1:] for found in cosines.topk(min(kept + 1, count), dim=1))
            rows.append(row)
            weights.append(value)
        return torch.cat(rows), torch.cat(weights)


def log_shares(shares: Tensor) -> Tensor:
    """Logits (n, K) whose softmax is the shares."""
    return shares.clamp(min=torch.finfo(shares.dtype).tiny).log()


def _exact(tensor: Tensor) -> Tensor:
    """Convert to double precision, on the CPU because not every device has it."""
    return tensor.cpu().double()
