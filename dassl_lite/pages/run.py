"""The page of a run: curves, confusions, per-class accuracy, calibration, mistakes, and a projection of its features.

The run's outputs are computed as in tools/eval.py (`run_outputs`), on cached features; the curves are read from its
TensorBoard files.

Shapes: N images, K classes, D feature width.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from yacs.config import CfgNode

from dassl_lite.classifier.report import interval
from dassl_lite.config.check import leaves
from dassl_lite.data.feature_files import FeatureDataset
from dassl_lite.engine.build import default_recipe, make_config, with_backbone_inputs
from dassl_lite.engine.commands.evaluate import RunOutputs, config_for, run_outputs, stored_config
from dassl_lite.engine.files.results import main_metric, read_results
from dassl_lite.engine.plugins import load_plugins
from dassl_lite.pages.base import Chart, Column, DataTable, Fact, Gallery, GalleryImage, Page, Row, Section, Text, plain
from dassl_lite.pages.confusion import confusion_parts
from dassl_lite.pages.curves import read_curves
from dassl_lite.pages.plane import plane_section
from dassl_lite.pages.thumbnails import Thumbnails

SHOWN = 12  # images in a gallery
LIKELIEST = 3  # classes below an image
BINS = 15  # of the reliability diagram, as for the calibration error
NO_IMAGES = "The run's dataset contains only features, so no images are shown."


def run_page(folder: Path) -> Page:
    """The page of the run in ``folder``, which is evaluated for the page.

    Raises:
        UserError: there is no run, or it cannot be evaluated.
    """
    outputs = outputs_of(folder)
    results = read_results(folder) or {}
    thumbnails = Thumbnails(outputs)
    build = multi_label_sections if outputs.trainer.is_multi_label else single_label_sections
    sections = [*build(outputs, thumbnails), *plane_section(outputs, outcome_names(outputs))]
    if (curves := curve_section(folder, results)) is not None:
        sections.insert(1, curves)
    sections.append(reproduce_section(stored_config(folder)))
    return Page(
        title=f"{outputs.trainer.method_label} on {results.get('dataset', outputs.trainer.cfg.DATASET.NAME)}",
        subtitle=_subtitle(outputs, results),
        sections=sections,
        facts=_facts(outputs, results),
        images=thumbnails.addresses,
        notes=_notes(outputs, results),
    )


def outputs_of(folder: Path) -> RunOutputs:
    """The outputs of the run in a folder on its own dataset."""
    load_plugins()
    return run_outputs(config_for(stored_config(folder), None, {}), folder)


def outcome_names(outputs: RunOutputs) -> list[str]:
    """Names (K,) of the classes, as spelled in the dataset."""
    by_label: Mapping[int, str] = outputs.trainer.lab2cname
    return [str(by_label.get(label, label)) for label in range(outputs.logits.shape[1])]


# ---- header and footer ----------------------------------------------------------------------------------------------


def _subtitle(outputs: RunOutputs, results: Mapping[str, Any]) -> str:
    cfg = outputs.trainer.cfg
    shots = cfg.DATASET.NUM_SHOTS
    parts = [
        f"{shots} shots per class" if shots > 0 else "all training images",
        f"backbone {results.get('backbone', cfg.MODEL.BACKBONE.NAME)}",
        f"seed {cfg.SEED}",
        f"{len(outputs.logits):,} {outputs.split} images of {outputs.logits.shape[1]:,} classes",
    ]
    if finished := str(results.get("finished", ""))[:10]:
        parts.append(f"finished {finished}")
    return ", ".join(parts)


def _facts(outputs: RunOutputs, results: Mapping[str, Any]) -> list[Fact]:
    metrics = (results.get("metrics") or {}).get(outputs.split) or outputs.metrics
    name = main_metric(metrics) or next(iter(metrics))
    about = ""
    if name == "accuracy":
        right = int((outputs.logits.argmax(1) == outputs.labels).sum())
        about = "95 % interval {:.1f} to {:.1f}".format(*interval(right, len(outputs.labels)))
    facts = [Fact(f"{outputs.split} {name}", f"{metrics[name]:.2f} %", about)]
    before = results.get(f"zero_shot_{name}")
    if isinstance(before, float):
        facts.append(Fact("zero-shot CLIP", f"{before:.2f} %", f"gain {metrics[name] - before:+.2f}"))
    labels = {"macro_f1": "macro-F1", "micro_f1": "micro-F1", "ece": "calibration error (ECE)"}
    facts += [Fact(text, f"{metrics[key]:.2f} %") for key, text in labels.items() if key in metrics]
    if "trainable_parameters" in results:
        facts.append(Fact("trained parameters", f"{results['trainable_parameters']:,}"))
    if isinstance(seconds := (results.get("seconds") or {}).get("train"), int | float):
        facts.append(Fact("training", f"{seconds:.1f} s"))
    return facts


def _notes(outputs: RunOutputs, results: Mapping[str, Any]) -> list[str]:
    notes = []
    if tuned := results.get("tuned_on"):
        note = "No hyper-parameter or epoch was chosen on a split." if tuned == "nothing" else f"Tuned on: {tuned}."
        notes.append(note)
    if digest := results.get("fewshot_digest"):
        notes.append(f"Digest of the few-shot training images: {digest[:16]}.")
    if results.get("selected_on_test"):
        notes.append("The epoch was selected on test images: the accuracy is not on unseen images.")
    stored = (results.get("metrics") or {}).get(outputs.split) or {}
    for name, value in outputs.metrics.items():
        if name in stored and abs(stored[name] - value) > 0.005:
            notes.append(
                f"Evaluated again for this page, {name} is {value:.2f} %, but the run recorded {stored[name]:.2f} %: "
                "the data, the weights or the machine differ."
            )
            break
    if not outputs.items or isinstance(outputs.trainer.dm.dataset, FeatureDataset):
        notes.append(NO_IMAGES)
    return notes


# ---- sections -------------------------------------------------------------------------------------------------------


def curve_section(folder: Path, results: Mapping[str, Any]) -> Section | None:
    """Loss, learning rate and accuracy over the training steps; None if the run recorded none."""
    curves = read_curves(folder / "tensorboard")
    wanted = {"train/loss": "Loss", "train/lr": "Learning rate", "train/acc": "Accuracy of batches, %"}
    charts = [_curve(title, *curves[tag]) for tag, title in wanted.items() if tag in curves]
    epochs = [entry for entry in results.get("history") or [] if entry.get("split") == "val"]
    if len(epochs) > 1 and (name := main_metric(epochs[0])):
        x, y = [entry["epoch"] for entry in epochs], [entry[name] for entry in epochs]
        charts.append(_curve(f"Validation {name}, %", x, y, "epoch"))
    if not charts:
        return None
    return Section("Training", [Row(charts)], "Values per step; in long runs, consecutive steps are averaged.")


def _curve(title: str, x: Any, y: Any, unit: str = "step") -> Chart:
    line = {"type": "scatter", "mode": "lines", "x": np.asarray(x), "y": np.asarray(y), "line": {"width": 1.8}}
    layout = {"xaxis": {"title": {"text": unit}}, "yaxis": {"rangemode": "tozero"}, "hovermode": "x"}
    return Chart({"data": [{**line, "name": plain(title)}], "layout": layout}, height=240, title=title)


def single_label_sections(outputs: RunOutputs, thumbnails: Thumbnails) -> list[Section]:
    """The sections for images of one class each."""
    names = outcome_names(outputs)
    truth = outputs.labels.numpy()
    probabilities = outputs.logits.double().softmax(1)
    predicted = outputs.logits.argmax(1).numpy()
    confidence = probabilities.max(1).values.numpy()
    counts = np.zeros((len(names), len(names)), dtype=np.int64)
    inside = truth < len(names)  # a label beyond the classes counts as a mistake but has no row
    np.add.at(counts, (truth[inside], predicted[inside]), 1)
    before = _zero_shot_predictions(outputs)
    galleries = [
        Gallery(
            [_gallery_image(outputs, thumbnails, names, probabilities[n], int(n)) for n in order[:SHOWN]],
            title,
            "The three most likely classes with their probability in %; the true class is green.",
        )
        for title, order in {
            "Most confident mistakes": _first(predicted != truth, -confidence),
            "Least confident correct predictions": _first(predicted == truth, confidence),
        }.items()
        if len(order)
    ]
    about = "Rows are true classes and columns predicted ones, ordered so that confused classes are neighbours. "
    about += "Drag to zoom in, double-click to reset."
    return [
        Section("Classes", [_class_table(names, counts, _right_by_class(before, truth, len(names)))], "Worst first."),
        Section("Confusions", confusion_parts(outputs, counts, names, predicted, thumbnails), about),
        Section("Calibration", [reliability(confidence, predicted == truth)]),
        *([Section("Example images", galleries)] if galleries else []),
    ]


def _first(chosen: NDArray[np.bool_], key: NDArray[Any]) -> NDArray[np.int64]:
    """Indices of the chosen images, in ascending order of ``key``."""
    numbers = np.flatnonzero(chosen)
    return numbers[np.argsort(key[numbers], kind="stable")]


def _gallery_image(
    outputs: RunOutputs, thumbnails: Thumbnails, names: Sequence[str], shares: torch.Tensor, image: int
) -> GalleryImage:
    values, classes = shares.topk(min(LIKELIEST, len(names)))
    truth = int(outputs.labels[image]) if outputs.labels.dim() == 1 else -1
    title = names[truth] if 0 <= truth < len(names) else thumbnails.classes_of(image, names)
    scores = [(names[label], float(value)) for value, label in zip(values, classes.tolist(), strict=True)]
    right = next((place for place, label in enumerate(classes.tolist()) if label == truth), None)
    return GalleryImage(thumbnails.of(image), title, scores, thumbnails.name_of(image), right)


def _zero_shot_predictions(outputs: RunOutputs) -> NDArray[np.int64] | None:
    """Zero-shot CLIP's predictions (N,); None if they cannot be computed from the available features."""
    from dassl_lite.pages.plane import plain_features, prototypes_before

    weights, features = prototypes_before(outputs), plain_features(outputs)
    if weights is None or features is None or weights.shape[1] != features.shape[1]:
        return None
    return (torch.nn.functional.normalize(features, dim=-1) @ weights.t()).argmax(1).numpy()


def _right_by_class(
    predicted: NDArray[np.int64] | None, truth: NDArray[np.int64], classes: int
) -> NDArray[np.int64] | None:
    """Number (K,) of correct predictions per class; None without predictions."""
    return None if predicted is None else np.bincount(truth[predicted == truth], minlength=classes)


def _class_table(names: Sequence[str], counts: NDArray[np.int64], before: NDArray[np.int64] | None) -> DataTable:
    totals, right, predicted = counts.sum(1), counts.diagonal(), counts.sum(0)
    columns = [
        Column("class"),
        Column("images"),
        Column("correct", about="images predicted as their true class"),
        Column("accuracy %", 1, bar=100, about="correct / images: the recall of the class"),
        *(
            [Column("zero-shot %", 1, bar=100, about="accuracy of CLIP before adaptation")]
            if before is not None
            else []
        ),
        *([Column("gain", 1)] if before is not None else []),
        Column("precision %", 1, bar=100, about="share of the images predicted as the class that belong to it"),
        Column("most often confused with"),
    ]
    rows = []
    for label in np.argsort(right / np.maximum(totals, 1), kind="stable").tolist():
        total = int(totals[label])
        if not total:
            continue
        accuracy = 100 * int(right[label]) / total
        row: list[Any] = [names[label], total, int(right[label]), accuracy]
        if before is not None:
            earlier = 100 * int(before[label]) / total
            row += [earlier, accuracy - earlier]
        others = counts[label].copy()
        others[label] = 0
        most = int(others.argmax())
        row.append(100 * int(right[label]) / int(predicted[label]) if predicted[label] else None)
        row.append(f"{names[most]} ({int(others[most])})" if others[most] else "")
        rows.append(row)
    return DataTable(columns, rows, name="per-class", page=15)


def reliability(confidence: NDArray[Any], right: NDArray[np.bool_]) -> Chart:
    """Accuracy by confidence in bins of equal width, and the number of images per bin."""
    bins = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    number = np.bincount(bins, minlength=BINS)
    filled = number > 0
    accuracy = np.bincount(bins, right, BINS)[filled] / number[filled]
    mean = np.bincount(bins, confidence, BINS)[filled] / number[filled]
    middle = (np.arange(BINS)[filled] + 0.5) / BINS
    common = {"width": 0.9 / BINS, "customdata": np.stack([mean, number[filled]], 1).tolist()}
    hover = "confidence %{customdata[0]:.3f}<br>accuracy %{y:.3f}<br>%{customdata[1]} images<extra></extra>"
    bars = {
        **{"type": "bar", "name": "accuracy", "x": middle, "y": accuracy, **common},
        "hovertemplate": hover,
    }
    share = {
        **{"type": "bar", "name": "images", "x": middle, "y": number[filled], "yaxis": "y2", "width": 0.9 / BINS},
        **{"marker": {"color": "#8a8f98"}, "hovertemplate": "%{y} images<extra></extra>"},
    }
    diagonal = {"type": "scatter", "mode": "lines", "name": "calibrated", "x": [0, 1], "y": [0, 1], "hoverinfo": "skip"}
    layout = {
        "xaxis": {"range": [0, 1], "title": {"text": "confidence"}, "anchor": "y2"},
        "yaxis": {"range": [0, 1], "domain": [0.3, 1], "title": {"text": "accuracy"}},
        "yaxis2": {"domain": [0, 0.22], "title": {"text": "images"}, "nticks": 3},
    }
    error = float(np.sum(number[filled] * np.abs(accuracy - mean)) / len(confidence))
    caption = f"Below the line the run is overconfident, above it underconfident. ECE is {100 * error:.2f} %, the mean "
    caption += "distance from the line."
    data = [bars, share, {**diagonal, "line": {"dash": "dot", "color": "ink", "width": 1.5}}]
    return Chart({"data": data, "layout": layout}, caption, height=420)


def multi_label_sections(outputs: RunOutputs, thumbnails: Thumbnails) -> list[Section]:
    """The sections for images with several classes each."""
    names, rows = outcome_names(outputs), getattr(outputs.trainer.evaluator, "per_class", [])
    columns = [Column("class"), Column("images"), Column("average precision %", 1, bar=100)]
    worst = sorted(rows, key=lambda row: (row["ap"] is None, row["ap"]))
    table = DataTable(
        columns, [[row["classname"], row["total"], row["ap"]] for row in worst], name="per-class", page=15
    )
    targets, scores = outputs.labels.bool(), outputs.logits.double().sigmoid()
    extremes = {
        "Most likely classes that the image does not have": scores.masked_fill(targets, -1).max(1).values.numpy(),
        "Least likely classes that the image has": 1 - scores.masked_fill(~targets, 2).min(1).values.numpy(),
    }
    galleries = [
        Gallery(
            [_gallery_image(outputs, thumbnails, names, scores[n], int(n)) for n in _first(value >= 0, -value)[:SHOWN]],
            title,
            "The three most likely classes, with the sigmoid of their logit in %.",
        )
        for title, value in extremes.items()
    ]
    about = "Worst first. Images have several classes, so there is no confusion matrix and no reliability diagram."
    return [Section("Classes", [table], about), Section("Example images", galleries)]


# ---- how to reproduce it --------------------------------------------------------------------------------------------


def reproduce_section(config: Mapping[str, Any]) -> Section:
    """The command that reproduces a run, and its config; ``config`` is nested plain values."""
    text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True, default_flow_style=None, width=100)
    parts = [Text(command_of(config), code=True), Text(text, code=True, label="The full config")]
    return Section("How to reproduce it", parts)


# Keys that do not affect the result, or that have a flag.
_OMITTED = ("OUTPUT_DIR", "RESUME", "TRAINER.NAME", "VERSION")
_FLAGS = {"SEED": "--seed", "DATASET.NUM_SHOTS": "--shots", "MODEL.BACKBONE.NAME": "--backbone"}


def command_of(config: Mapping[str, Any]) -> str:
    """A command line that trains with this config (nested plain values).

    It has flags, then KEY VALUE pairs for other keys that differ from the method's recipe.
    """
    name = config["TRAINER"]["NAME"]
    wanted = leaves(_as_nodes(config))
    flags = [word for key, flag in _FLAGS.items() for word in (flag, str(wanted[key]))]
    chosen = ["DATASET.NAME", wanted["DATASET.NAME"]]
    chosen += [word for key in _FLAGS for word in (key, _as_option(wanted[key]))]
    # Keys determined by the recipe, the backbone and the number of shots can be omitted.
    implied = leaves(with_backbone_inputs(make_config(trainer=name, method_file=default_recipe(name), options=chosen)))
    options = [
        word
        for key, value in wanted.items()
        if key not in _OMITTED and key in implied and _plain(implied[key]) != _plain(value)
        for word in (key, _as_option(value))
    ]
    words = ["dassl-lite", "train", "--trainer", name, *flags, "DATASET.NAME", wanted["DATASET.NAME"], *options]
    return " ".join(shlex.quote(word) for word in words)


def _as_nodes(config: Mapping[str, Any]) -> CfgNode:
    nodes = CfgNode(new_allowed=True)
    for key, value in config.items():
        nodes[key] = _as_nodes(value) if isinstance(value, Mapping) else value
    return nodes


def _plain(value: Any) -> Any:
    return list(map(_plain, value)) if isinstance(value, list | tuple) else value


def _as_option(value: Any) -> str:
    """Format a value for the command line: text unchanged, unless it would be parsed as a number or the like."""
    if not isinstance(value, str):
        return repr(value)
    try:
        return value if isinstance(yaml.safe_load(value), str) else repr(value)
    except yaml.YAMLError:
        return value
