"""Gaussian discriminant analysis in closed form: one mean per class and a shared covariance.

    score_k(q) = q . P mu_k - log K - mu_k . P mu_k / 2

P is the precision, the inverse of the covariance. A fit is computed in float64.

Shapes: M rows, N images, V views of an image (M = V * N), K classes, D feature width, E dimensions removed at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# A class without images is described by rows near its name and copies of the name's feature: how many (the authors').
NEIGHBOURS, COPIES = 64, 16
_CHUNK = 2**24  # numbers in the means of all classes, for all images left out at a time
_RTOL = torch.finfo(torch.float32).eps  # the authors invert in float32: what vanishes there counts as zero


@dataclass(frozen=True)
class Discriminant:
    """A linear classifier: ``weight`` (K, D) and ``bias`` (K,), from ``means`` (K, D) and ``precision`` (D, D)."""

    means: Tensor
    precision: Tensor

    @property
    def weight(self) -> Tensor:
        return self.means @ self.precision

    @property
    def bias(self) -> Tensor:
        return -(self.weight * self.means).sum(dim=1) / 2 - torch.tensor(float(len(self.means))).log()


def fit(rows: Tensor, labels: Tensor, text: Tensor, *, per_class: bool = False) -> Discriminant:
    """The discriminant of labelled rows (M, D) of length 1.

    Args:
        labels: (M,).
        text: class names' features (K, D) of length 1, for a class without rows.
        per_class: invert the mean of the classes' own covariances, as the authors do for base classes, and not their
            pooled covariance with its trace added to the diagonal.
    """
    rows, means = rows.double(), class_means(rows, labels, text)
    centred = rows - means[labels]
    if per_class:
        present = [centred[labels == label] for label in labels.unique()]
        covariances = [part.t() @ part / (len(part) - 1) for part in present if len(part) > 1]
        covariance = torch.stack(covariances).mean(dim=0) if covariances else torch.zeros_like(rows.t() @ rows)
        return Discriminant(means, _inverse(covariance))
    return Discriminant(means, _shrunk_precision(centred.t() @ centred, len(rows)))


def class_means(rows: Tensor, labels: Tensor, text: Tensor) -> Tensor:
    """Means (K, D) of the classes' rows; for a class without rows, the mean of the rows around its name."""
    rows, text = rows.double(), text.double()
    counts = labels.bincount(minlength=len(text))
    means = rows.new_zeros(len(text), rows.shape[1]).index_add(0, labels, rows) / counts.clamp(min=1)[:, None]
    for label in (counts == 0).nonzero().flatten():
        means[label] = _around(text[label], rows).mean(dim=0)
    return means


def fit_names(text: Tensor, rows: Tensor) -> Discriminant:
    """The discriminant of classes without images, from features (K, D) of their names and rows (M, D) of others."""
    text, rows = text.double(), rows.double()
    means, precisions = [], []
    for name in text:
        near = _around(name, rows)
        means.append(near.mean(dim=0))
        apart = near - name
        precisions.append(_shrunk_precision(apart.t() @ apart, min(NEIGHBOURS, len(rows))))
    return Discriminant(torch.stack(means), torch.stack(precisions).mean(dim=0))


def leave_one_out(views: Tensor, labels: Tensor, text: Tensor) -> Tensor:
    """Scores (N, K) of every image under a `fit` to all the others, without fitting N times.

    Leaving an image out changes the pooled scatter by a matrix of rank V + 1 and the shrinkage by a number, so each
    inverse follows from one eigendecomposition. A class's only image leaves it without a mean: its row is NaN.

    Args:
        views: features (V, N, D) of length 1, at least two images; computed in their dtype.
        labels: (N,).
        text: as for `fit`.
    """
    count, images, width = views.shape
    means = class_means(views.flatten(0, 1), labels.repeat(count), text).to(views)
    sizes = labels.bincount(minlength=len(text))
    centred = views - means[labels]
    scatter = torch.einsum("vnd,vne->de", centred, centred)
    values, basis = torch.linalg.eigh(scatter)
    turned_means, queries = means @ basis, F.normalize(views.mean(dim=0), dim=1) @ basis
    log_classes = torch.tensor(float(len(text))).log().item()
    scores = []
    for part in torch.arange(images, device=labels.device).split(max(1, _CHUNK // means.numel())):
        rest = (count * (sizes[labels[part]] - 1)).clamp(min=1).to(views)  # rows of its class without this image
        middle = centred[:, part].mean(dim=0)
        lost = torch.cat([centred[:, part], (count / rest.sqrt())[:, None] * middle[None]])  # (E, B, D)
        degrees = count * (images - 1) - 1
        shrinkage = (values.sum() - lost.square().sum(dim=(0, 2))) / max(degrees, 1)
        inverse = 1 / (values.clamp(min=0) + shrinkage.clamp(min=1e-12)[:, None])  # (B, D), diagonal in this basis
        lost = (lost @ basis).transpose(0, 1)  # (B, E, D)
        own = turned_means[labels[part]] - (count / rest)[:, None] * (middle @ basis)
        left = lost * inverse[:, None]
        inner = torch.eye(lost.shape[1]).to(lost) - left @ lost.transpose(1, 2)

        candidates = turned_means.expand(len(part), -1, -1).clone()
        candidates[torch.arange(len(part)), labels[part]] = own
        query, scaled = queries[part], candidates * inverse[:, None]
        changed = torch.linalg.solve(inner, left @ candidates.transpose(1, 2))  # (B, E, K)
        found = torch.einsum("bkd,bd->bk", scaled, query) + torch.einsum("bek,bed,bd->bk", changed, left, query)
        found -= ((scaled * candidates).sum(dim=2) + (left @ candidates.transpose(1, 2) * changed).sum(dim=1)) / 2
        found = width * found - log_classes
        found[sizes[labels[part]] == 1] = torch.nan
        scores.append(found)
    return torch.cat(scores)


def _around(name: Tensor, rows: Tensor) -> Tensor:
    """The rows nearest to a class name, and copies of the name's own feature."""
    near = (rows @ name).topk(min(NEIGHBOURS, len(rows))).indices
    return torch.cat([rows[near], name.expand(COPIES, -1)])


def _shrunk_precision(scatter: Tensor, rows: int) -> Tensor:
    """D (scatter + trace(scatter) / (rows - 1) I)^-1; 0 if the scatter is 0."""
    diagonal = scatter.diagonal().sum() / max(rows - 1, 1)
    return len(scatter) * _inverse(scatter + diagonal * torch.eye(len(scatter)).to(scatter))


def _inverse(matrix: Tensor) -> Tensor:
    return torch.linalg.pinv(matrix, rtol=len(matrix) * _RTOL, hermitian=True)
