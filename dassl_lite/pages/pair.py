"""The page of two runs: the images they predict differently, class by class, and whether that may be chance.

Shapes: N images common to both runs, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dassl_lite.data.images import count_images
from dassl_lite.engine.commands.evaluate import RunOutputs
from dassl_lite.pages.base import Chart, Column, DataTable, Fact, Gallery, GalleryImage, Page, Section, plain
from dassl_lite.pages.run import SHOWN, outcome_names, outputs_of
from dassl_lite.pages.thumbnails import Thumbnails
from dassl_lite.utils.errors import UserError

LEVEL = 0.05  # significance level of the test
BARS = 30  # classes in the chart: those that change most
ROWS = 2000  # rows in the table of images


def mcnemar(lost: int, gained: int) -> float:
    """The two-sided p-value of McNemar's exact test.

    The null hypothesis is that each classifier is right on half of the images on which exactly one is right. Without
    such images, the p-value is 1.

    Args:
        lost, gained: number of images that only the first, and only the second, gets right.
    """
    from scipy.stats import binomtest

    return float(binomtest(gained, lost + gained, 0.5).pvalue) if lost + gained else 1.0


@dataclass(frozen=True)
class Changes:
    """The predictions of two runs on the same images.

    Attributes:
        names: names (K,) of the classes, in the first run's order.
        truth: true labels (N,), in that class order.
        predicted: predicted labels (N,) of each run, in that class order.
        confidence: confidence (N,) of each run.
        rows: indices (N,) of the images in each run.
    """

    names: list[str]
    truth: NDArray[np.int64]
    predicted: tuple[NDArray[np.int64], NDArray[np.int64]]
    confidence: tuple[NDArray[np.float64], NDArray[np.float64]]
    rows: tuple[NDArray[np.int64], NDArray[np.int64]]

    @property
    def lost(self) -> NDArray[np.bool_]:
        """Mask of images that are right in the first run and wrong in the second."""
        return (self.predicted[0] == self.truth) & (self.predicted[1] != self.truth)

    @property
    def gained(self) -> NDArray[np.bool_]:
        """Mask of images that are wrong in the first run and right in the second."""
        return (self.predicted[0] != self.truth) & (self.predicted[1] == self.truth)


def changes(first: RunOutputs, second: RunOutputs) -> Changes:
    """Match the images of two runs by their paths, and their classes by name.

    Raises:
        UserError: they have no images in common, different classes, or images with several classes.
    """
    for run in (first, second):
        if run.labels.dim() != 1:
            raise UserError("runs on multi-label data cannot be compared image by image: make a page of each")
    names, others = outcome_names(first), outcome_names(second)
    if sorted(names) != sorted(others) or len(set(names)) != len(names):
        if names != others:
            raise UserError(
                f"the runs have different classes ({len(names)} and {len(others)}), so they cannot be compared"
            )
        to_first = np.arange(len(names))
    else:
        place = {name: label for label, name in enumerate(names)}
        to_first = np.array([place[name] for name in others])
    rows = _common(first, second)
    truth = first.labels.numpy()[rows[0]]
    if not np.array_equal(truth, to_first[second.labels.numpy()[rows[1]]]):
        raise UserError("the runs have different labels for the same images, so they cannot be compared")
    predicted = [run.logits.argmax(1).numpy()[row] for run, row in zip((first, second), rows, strict=True)]
    confidence = [run.logits.double().softmax(1).max(1).values.numpy() for run in (first, second)]
    return Changes(
        names=names,
        truth=truth,
        predicted=(predicted[0], to_first[predicted[1]]),
        confidence=(confidence[0][rows[0]], confidence[1][rows[1]]),
        rows=rows,
    )


def _common(first: RunOutputs, second: RunOutputs) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices of the common images in each run."""
    places = {item.impath: row for row, item in enumerate(second.items)}
    both = [(row, places[item.impath]) for row, item in enumerate(first.items) if item.impath in places]
    if not both:
        raise UserError("the runs have no test image in common, so nothing can be compared")
    pairs = np.array(both, dtype=np.int64)
    return pairs[:, 0], pairs[:, 1]


def verdict(comparison: Changes, titles: Sequence[str]) -> str:
    """A few sentences on what the two accuracies allow one to conclude."""
    lost, gained, total = int(comparison.lost.sum()), int(comparison.gained.sum()), len(comparison.truth)
    p = mcnemar(lost, gained)
    if not lost + gained:
        right = int((comparison.predicted[0] == comparison.truth).sum())
        return f"Both runs get the same {right:,} of {total:,} images right."
    text = f"{titles[1]} gets {count_images(gained)} right that {titles[0]} gets wrong, and {lost:,} wrong that the "
    text += f"other gets right: {100 * (gained - lost) / total:+.2f} points of accuracy. "
    text += f"By McNemar's exact test on these {lost + gained:,} images, the difference "
    text += "is significant" if p < LEVEL else "may be chance"
    return text + f" (p {'< 0.0001' if p < 1e-4 else f'= {p:.4f}'}, level {LEVEL})."


def pair_page(first_folder: Path, second_folder: Path) -> Page:
    """The page of two runs on the same images, which are evaluated for the page.

    Raises:
        UserError: a run is missing or cannot be evaluated, or the runs cannot be compared.
    """
    first = outputs_of(first_folder)
    second = outputs_of(second_folder)
    comparison = changes(first, second)
    titles = [str(run.trainer.method_label) for run in (first, second)]
    if titles[0] == titles[1]:
        titles = [
            f"{title} ({folder.name})" for title, folder in zip(titles, (first_folder, second_folder), strict=True)
        ]
    if titles[0] == titles[1]:
        titles = [f"{title}, {which}" for title, which in zip(titles, ("first", "second"), strict=True)]
    right = [100 * float((labels == comparison.truth).mean()) for labels in comparison.predicted]
    both_wrong = int(
        (
            (comparison.predicted[0] != comparison.truth)
            & (comparison.predicted[1] != comparison.truth)
            & (comparison.predicted[0] != comparison.predicted[1])
        ).sum()
    )
    thumbnails = Thumbnails(second)
    sections = [
        Section("Class by class", [_bars(comparison), _classes(comparison, titles)], verdict(comparison, titles)),
        Section("Example images", _galleries(comparison, titles, thumbnails)),
        Section(
            "Images",
            [_images(comparison, titles, thumbnails)],
            "All images that one run gets right and the other wrong.",
        ),
    ]
    return Page(
        title=f"{titles[0]} and {titles[1]}",
        subtitle=f"{len(comparison.truth):,} {first.split} images of {len(comparison.names):,} classes",
        sections=[section for section in sections if section.parts],
        facts=[
            *(Fact(f"accuracy of {title}", f"{value:.2f} %") for title, value in zip(titles, right, strict=True)),
            Fact("wrong, then right", f"{int(comparison.gained.sum()):,}", "images"),
            Fact("right, then wrong", f"{int(comparison.lost.sum()):,}", "images"),
            Fact("wrong in different ways", f"{both_wrong:,}", "images"),
            Fact(
                "p-value",
                f"{mcnemar(int(comparison.lost.sum()), int(comparison.gained.sum())):.2g}",
                "McNemar's exact test",
            ),
        ],
        images=thumbnails.addresses,
    )


def _by_class(comparison: Changes, chosen: NDArray[np.bool_]) -> NDArray[np.int64]:
    return np.bincount(comparison.truth[chosen], minlength=len(comparison.names))


def _bars(comparison: Changes) -> Chart:
    gained, lost = _by_class(comparison, comparison.gained), _by_class(comparison, comparison.lost)
    changed = np.flatnonzero(gained + lost)
    most = changed[np.argsort(-(gained + lost)[changed], kind="stable")[:BARS]]
    most = most[np.argsort((gained - lost)[most], kind="stable")]
    labels = [plain(comparison.names[label]) for label in most.tolist()]
    shared = {"type": "bar", "orientation": "h", "y": list(range(len(most))), "text": labels, "textposition": "none"}
    data = [
        {**shared, "name": "wrong, then right", "x": gained[most], "marker": {"color": "#1a9e77"}},
        {**shared, "name": "right, then wrong", "x": -lost[most], "marker": {"color": "#e8820c"}},
    ]
    for trace, values in zip(data, (gained, lost), strict=True):
        trace |= {"customdata": values[most].tolist(), "hovertemplate": "%{text}: %{customdata} images"}
    layout = {
        "barmode": "relative",
        "xaxis": {"title": {"text": "images"}, "zeroline": True},
        "yaxis": {"tickmode": "array", "tickvals": list(range(len(most))), "ticktext": labels, "showgrid": False},
    }
    caption = f"The {len(most)} classes that change most." if len(most) < len(changed) else ""
    return Chart({"data": data, "layout": layout}, caption, height=120 + 18 * len(most))


def _classes(comparison: Changes, titles: Sequence[str]) -> DataTable:
    totals = np.bincount(comparison.truth, minlength=len(comparison.names))
    gained, lost = _by_class(comparison, comparison.gained), _by_class(comparison, comparison.lost)
    right = [_by_class(comparison, labels == comparison.truth) for labels in comparison.predicted]
    columns = [
        *(Column("class"), Column("images")),
        *(Column(f"{title} %", 1, bar=100) for title in titles),
        *(Column("difference", 1), Column("wrong, then right"), Column("right, then wrong")),
    ]
    rows = []
    for label in np.argsort(gained - lost, kind="stable").tolist():
        if total := int(totals[label]):
            shares = [100 * int(counts[label]) / total for counts in right]
            row = [comparison.names[label], total, *shares, shares[1] - shares[0]]
            rows.append([*row, int(gained[label]), int(lost[label])])
    return DataTable(columns, rows, page=15, name="by-class")


def _order(comparison: Changes, chosen: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Indices of the chosen images, in descending confidence of the second run."""
    numbers = np.flatnonzero(chosen)
    return numbers[np.argsort(-comparison.confidence[1][numbers], kind="stable")]


def _galleries(comparison: Changes, titles: Sequence[str], thumbnails: Thumbnails) -> list[Gallery]:
    galleries = []
    for title, chosen in (("Right, then wrong", comparison.lost), ("Wrong, then right", comparison.gained)):
        images = [
            _gallery_image(comparison, titles, thumbnails, int(image)) for image in _order(comparison, chosen)[:SHOWN]
        ]
        about = f"Predictions of {titles[0]} (top) and {titles[1]} (bottom), with probability in %; correct is green."
        if images:
            galleries.append(Gallery(images, title, about))
    return galleries


def _gallery_image(comparison: Changes, titles: Sequence[str], thumbnails: Thumbnails, image: int) -> GalleryImage:
    row, truth = int(comparison.rows[1][image]), int(comparison.truth[image])
    labels = [int(labels[image]) for labels in comparison.predicted]
    scores = [
        (comparison.names[label], float(values[image]))
        for label, values in zip(labels, comparison.confidence, strict=True)
    ]
    return GalleryImage(
        thumbnails.of(row), comparison.names[truth], scores, thumbnails.name_of(row), labels.index(truth)
    )


def _images(comparison: Changes, titles: Sequence[str], thumbnails: Thumbnails) -> DataTable:
    columns = [Column("image"), Column("change"), Column("true class"), *(Column(title) for title in titles)]
    rows: list[list[Any]] = []
    for change, chosen in (("right, then wrong", comparison.lost), ("wrong, then right", comparison.gained)):
        for image in _order(comparison, chosen)[:ROWS].tolist():
            predicted = [comparison.names[labels[image]] for labels in comparison.predicted]
            name = thumbnails.name_of(int(comparison.rows[1][image]))
            rows.append([name, change, comparison.names[comparison.truth[image]], *predicted])
    return DataTable(columns, rows, page=15, name="changed-images")
