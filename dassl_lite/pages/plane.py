"""A 2-D projection of a run's image features, with the class prototypes before and after adaptation.

Shapes: N images, K classes, D feature width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dassl_lite.engine.commands.evaluate import RunOutputs
from dassl_lite.engine.methods.feature_trainer import FeatureTrainer
from dassl_lite.models.heads import CosineHead
from dassl_lite.pages.base import COLOURS, Chart, Row, Section, plain
from dassl_lite.utils.errors import UserError

CLASSES = 20  # maximum number of classes shown: those with the most mistakes
IMAGES = 600  # maximum number of images shown


def plain_features(outputs: RunOutputs) -> Tensor | None:
    """CLIP's image features (N, D), if the run is on features; else None."""
    if outputs.features is None or not isinstance(outputs.trainer, FeatureTrainer):
        return None
    features = outputs.features
    if outputs.trainer.takes_states:
        with torch.no_grad():
            features = outputs.trainer.clip.image_projection(features.to(outputs.trainer.device)).float().cpu()
    return features


def prototypes_before(outputs: RunOutputs) -> Tensor | None:
    """Zero-shot CLIP's normalised text features (K, D); None for a feature file without them."""
    trainer = outputs.trainer
    if not isinstance(trainer, FeatureTrainer):
        return None
    try:
        return trainer.plain_prototypes().cpu()
    except UserError:  # a feature file without text features, or without this template's
        return None


@torch.no_grad()
def prototypes_after(outputs: RunOutputs) -> Tensor | None:
    """The method's final normalised prototypes (K, D); None if its head has none."""
    head = getattr(outputs.trainer, "head", None)
    if not isinstance(head, CosineHead):
        return None
    return F.normalize(head.class_features().float(), dim=-1).cpu()


@torch.no_grad()
def _head_features(outputs: RunOutputs) -> Tensor | None:
    """Normalised features (N, D), as the head compares them with prototypes."""
    head = getattr(outputs.trainer, "head", None)
    if outputs.features is not None and isinstance(head, CosineHead):
        return F.normalize(head.adapt(outputs.features.to(outputs.trainer.device)).float(), dim=-1).cpu()
    features = plain_features(outputs)
    return None if features is None else F.normalize(features, dim=-1)


def plane_section(outputs: RunOutputs, names: Sequence[str]) -> list[Section]:
    """The section with the projection; empty for a run that is not on features."""
    features = _head_features(outputs)
    if features is None or len(features) < 4:
        return []
    truth = outputs.labels if outputs.labels.dim() == 1 else outputs.labels.float().argmax(1)
    wrong = outputs.logits.argmax(1) != truth
    classes = _chosen(truth, wrong, len(names))
    images = np.flatnonzero(np.isin(truth.numpy(), classes))
    images = images[:: max(1, -(-len(images) // IMAGES))]
    if len(images) < 4:
        return []
    both = [prototypes_before(outputs), prototypes_after(outputs)]
    prototypes = [None if p is None or p.shape[1] != features.shape[1] else p[classes].numpy() for p in both]
    points = _centred(features[images].numpy(), prototypes)
    numbers = [len(images), *(0 if p is None else len(p) for p in prototypes)]
    ends = np.cumsum(numbers)[:-1]
    charts = []
    for title, flat in (("PCA", _pca(points, len(images))), ("t-SNE", _tsne(points))):
        parts = np.split(flat, ends)
        figure = _figure(parts, truth[images].numpy(), wrong[images].numpy(), classes, names)
        charts.append(Chart(figure, height=520, title=title))
    return [Section("Feature projection", [Row(charts)], _about(outputs, names, classes, prototypes))]


def _about(outputs: RunOutputs, names: Sequence[str], classes: NDArray[np.int64], prototypes: Sequence[Any]) -> str:
    text = f"Image features of {'the' if len(classes) == len(names) else f'the {len(classes)}'} classes"
    text += "" if len(classes) == len(names) else f", of {len(names):,}, with the most mistakes"
    text += "; crosses are mistakes."
    if prototypes[0] is not None and prototypes[1] is not None:
        text += (
            " A line leads from a class's prototype in zero-shot CLIP (hollow) to the one after adaptation (filled)."
        )
    elif prototypes[0] is not None:
        text += " Diamonds are the prototypes of zero-shot CLIP; the method's head has none."
    if any(p is not None for p in prototypes):
        text += " Images and texts are centred separately, because of CLIP's modality gap."
    return text


def _chosen(truth: Tensor, wrong: Tensor, classes: int) -> NDArray[np.int64]:
    """The classes with the most mistakes, in label order."""
    mistakes = torch.bincount(truth[wrong & (truth < classes)], minlength=classes)
    return np.sort(np.argsort(-mistakes.numpy(), kind="stable")[:CLASSES])


def _centred(images: NDArray[Any], prototypes: Sequence[NDArray[Any] | None]) -> NDArray[Any]:
    """Concatenate images and the prototypes before and after, each centred.

    Images are centred at their mean, prototypes at the mean of those before.
    """
    known = [p for p in prototypes if p is not None]
    middle = known[0].mean(0) if known else 0.0
    return np.concatenate([images - images.mean(0), *(p - middle for p in known)])


def _pca(points: NDArray[Any], images: int) -> NDArray[Any]:
    from sklearn.decomposition import PCA

    projected: NDArray[Any] = PCA(2, random_state=0).fit(points[:images]).transform(points)
    return projected


def _tsne(points: NDArray[Any]) -> NDArray[Any]:
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    perplexity = min(30.0, (len(points) - 1) / 3)
    with threadpool_limits(1):  # with so few points, threads would only wait for each other
        projected: NDArray[Any] = TSNE(2, perplexity=perplexity, init="pca", random_state=0).fit_transform(points)
    return projected


def _colour(place: int, number: int) -> str:
    return COLOURS[place] if number <= len(COLOURS) else f"hsl({360 * place // number}, 55%, {48 + 12 * (place % 2)}%)"


def _figure(
    parts: Sequence[NDArray[Any]],
    truth: NDArray[np.int64],
    wrong: NDArray[np.bool_],
    classes: NDArray[np.int64],
    names: Sequence[str],
) -> dict[str, Any]:
    images, before, after = parts
    data: list[dict[str, Any]] = []
    for place, label in enumerate(classes.tolist()):
        mine, colour, name = np.flatnonzero(truth == label), _colour(place, len(classes)), plain(names[label])
        mine = mine[np.argsort(wrong[mine], kind="stable")]  # the legend shows the symbol of the first
        x, y = images[mine].T.astype(np.float32)
        symbols = np.where(wrong[mine], "x-thin-open", "circle").tolist()
        marker = {"color": colour, "size": 5, "symbol": symbols, "opacity": 0.75}
        legend = {"name": name, "legendgroup": str(label)}
        data.append(
            {"type": "scatter", "mode": "markers", "x": x, "y": y, "marker": marker, **legend, "hoverinfo": "name"}
        )
        ends = [part[place] for part in (before, after) if len(part)]
        if ends:
            x, y = np.stack(ends).T.astype(np.float32)
            kinds = ["diamond-open", "diamond"] if len(before) and len(after) else ["diamond"]
            marker = {
                "color": colour,
                "size": [11, 13][: len(ends)],
                "symbol": kinds,
                "line": {"width": 1.5, "color": colour},
            }
            words = ["before", "after"] if len(before) and len(after) else ["before" if len(before) else "after"]
            line = {
                "type": "scatter",
                "mode": "lines+markers",
                "x": x,
                "y": y,
                "marker": marker,
                "showlegend": False,
                **legend,
            }
            line |= {
                "line": {"color": colour, "width": 1.5},
                "text": [f"{name}, {word}" for word in words],
                "hoverinfo": "text",
            }
            data.append(line)
    bare = {"showticklabels": False, "zeroline": False, "ticks": ""}
    layout = {
        "xaxis": bare,
        "yaxis": {**bare, "scaleanchor": "x"},
        "legend": {"font": {"size": 10}, "y": -0.02, "yanchor": "top"},
    }
    layout["margin"] = {"l": 8, "r": 8, "b": 8}
    return {"data": data, "layout": layout}
