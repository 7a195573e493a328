"""The confusion matrix of a run, in an order that shows which classes are confused.

Shapes: N images, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dassl_lite.engine.commands.evaluate import RunOutputs
from dassl_lite.pages.base import Card, Chart, Column, DataTable, plain
from dassl_lite.pages.thumbnails import Thumbnails

MAX_CLASSES = 1000  # classes in the matrix; if there are more, those with the most mistakes
NAMED = 60  # maximum number of classes with tick labels
CELLS, PER_CELL = 400, 3  # number of confusions with example images, and of images in each
PAIRS = 200  # rows of the table
_EXACT = 400  # up to this many classes, the order of the leaves is optimised


def clustered_order(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """An order (K,) of the classes in which confused classes are neighbours.

    The order is that of the leaves of a hierarchical clustering (average linkage). The similarity of two classes is the
    share of images of one class that are predicted as the other, averaged over both directions.

    Args:
        counts: (K, K) number of images, true by predicted class.
    """
    if len(counts) < 3:
        return np.arange(len(counts))
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    distances = 1 - (shares + shares.T) / 2
    np.fill_diagonal(distances, 0)
    tree = linkage(squareform(distances, checks=False), "average", optimal_ordering=len(counts) <= _EXACT)
    return leaves_list(tree).astype(np.int64)


def confusion_parts(
    outputs: RunOutputs,
    counts: NDArray[np.int64],
    names: Sequence[str],
    predicted: NDArray[np.int64],
    thumbnails: Thumbnails,
) -> list[Any]:
    """The matrix, and a table of the most frequent confusions.

    Args:
        counts: (K, K) number of images, true by predicted class.
        predicted: predicted labels (N,).
    """
    order, notes = clustered_order(counts), []
    if len(order) > MAX_CLASSES:
        mistakes = counts.sum(1) + counts.sum(0) - 2 * counts.diagonal()
        most = set(np.argsort(-mistakes, kind="stable")[:MAX_CLASSES].tolist())
        order = np.array([label for label in order.tolist() if label in most])
        notes.append(f"Of {len(counts):,} classes, the {MAX_CLASSES:,} with the most mistakes.")
    sorted_counts = counts[np.ix_(order, order)]
    labels = [plain(names[label]) for label in order.tolist()]
    places = list(range(len(order)))
    named = len(order) <= NAMED
    axis = {"tickmode": "array", "tickvals": places, "ticktext": labels, "showgrid": False, "zeroline": False}
    axis |= {"showticklabels": named, "ticks": "", "tickfont": {"size": 10}, "constrain": "domain"}
    heat = {
        "type": "heatmap",
        "z": sorted_counts.astype(np.uint8 if sorted_counts.max(initial=0) < 256 else np.uint16),
        **{"colorscale": "page", "xgap": 1 if named else 0, "ygap": 1 if named else 0, "showscale": False},
        "hovertemplate": "%{z} images<br>true: %{y}<br>predicted: %{x}<extra></extra>",
    }
    layout = {
        "xaxis": {**axis, "tickangle": -60},
        "yaxis": {**axis, "autorange": "reversed", "scaleanchor": "x"},
    }
    cells = _largest(sorted_counts)
    truth = outputs.labels.numpy()
    cards = {}
    for row, column in cells[:CELLS]:
        images = np.flatnonzero((truth == order[row]) & (predicted == order[column]))[:PER_CELL].tolist()
        cards[f"{row},{column}"] = Card((), [(thumbnails.of(image), thumbnails.name_of(image)) for image in images])
    height = 420 + 10 * min(len(order), 48)
    matrix = Chart({"data": [heat], "layout": layout}, " ".join(notes), height, cards, square=True)
    return [matrix, _pairs(counts, names)]


def _largest(counts: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Non-empty off-diagonal cells, largest first."""
    others = counts.copy()
    np.fill_diagonal(others, 0)
    rows, columns = others.nonzero()
    first = np.argsort(-others[rows, columns], kind="stable")
    return list(zip(rows[first].tolist(), columns[first].tolist(), strict=True))


def _pairs(counts: NDArray[np.int64], names: Sequence[str]) -> DataTable:
    totals = counts.sum(1)
    rows = [
        [names[row], names[column], int(counts[row, column]), 100 * int(counts[row, column]) / int(totals[row])]
        for row, column in _largest(counts)[:PAIRS]
    ]
    columns = [Column("true class"), Column("predicted as"), Column("images"), Column("of the class %", 1, bar=100)]
    return DataTable(columns, rows, "Most frequent confusions", page=10, name="confusions-table")
