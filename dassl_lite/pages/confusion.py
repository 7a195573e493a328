"""The confusion matrix of a run, in an order that shows which classes are mixed up.

Shapes: N images, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dassl_lite.engine.commands.evaluate import Answers
from dassl_lite.pages.base import Card, Chart, Column, DataTable, plain
from dassl_lite.pages.pictures import Thumbnails

MOST_CLASSES = 1000  # of the matrix; of more, those with the most mistakes
NAMED = 60  # classes that axes have room to name
CELLS, PER_CELL = 400, 3  # confusions that show which images they are, and of each how many
PAIRS = 200  # in the table
_EXACT = 400  # classes up to which the best order of the leaves is looked for


def clustered_order(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """(K,) an order of the classes in which those that are confused with each other are neighbours.

    The leaves of a hierarchical clustering (average linkage) whose similarity is the share of the images of the one
    class that are taken for the other, and of the other for the one, averaged.

    Args:
        counts: (K, K) images, true by predicted class.
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
    found: Answers,
    counts: NDArray[np.int64],
    names: Sequence[str],
    predicted: NDArray[np.int64],
    pictures: Thumbnails,
) -> list[Any]:
    """The matrix, and the table of what is mixed up most often.

    Args:
        counts: (K, K) images, true by predicted class.
        predicted: (N,).
    """
    order, notes = clustered_order(counts), []
    if len(order) > MOST_CLASSES:
        mistakes = counts.sum(1) + counts.sum(0) - 2 * counts.diagonal()
        most = set(np.argsort(-mistakes, kind="stable")[:MOST_CLASSES].tolist())
        order = np.array([label for label in order.tolist() if label in most])
        notes.append(f"Of {len(counts):,} classes, the {MOST_CLASSES:,} with the most mistakes.")
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
    truth = found.labels.numpy()
    cards = {}
    for row, column in cells[:CELLS]:
        images = np.flatnonzero((truth == order[row]) & (predicted == order[column]))[:PER_CELL].tolist()
        cards[f"{row},{column}"] = Card((), [(pictures.of(image), pictures.name_of(image)) for image in images])
    height = 420 + 10 * min(len(order), 48)
    matrix = Chart({"data": [heat], "layout": layout}, " ".join(notes), height, cards, square=True)
    return [matrix, _pairs(counts, names)]


def _largest(counts: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Cells beside the diagonal that are not empty, the largest first."""
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
    columns = [Column("true class"), Column("taken for"), Column("images"), Column("of the class %", 1, bar=100)]
    return DataTable(columns, rows, "What is mixed up most often", page=10, name="confusions-table")
