"""A classifier's folder, ready for the Hugging Face Hub: the head, what it is as JSON, and a model card.

    model.safetensors   tensors of the head
    config.json         everything else, with a digest of both
    README.md           the card; may be edited

Nothing in it is executed: only tensors and plain values are read, and checked before use.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

import dassl_lite
from dassl_lite.classifier.content import MULTI_LABEL, Content
from dassl_lite.classifier.report import Calibration, most_confused
from dassl_lite.engine.files.run_folder import SAVED_CONFIG, SAVED_FORMAT, holds_run, holds_saved_classifier
from dassl_lite.utils.errors import NO_ROOM, MissingFileError, UserError, printable, refusing_misfits, shown
from dassl_lite.utils.files import atomic_path, can_be_path, digest_of, open_file, read_json, write_json

CONFIG, WEIGHTS, CARD = SAVED_CONFIG, "model.safetensors", "README.md"
FORMAT = SAVED_FORMAT
VERSION = 1  # format version
MOST_BYTES = 2 << 30  # largest total size of the head's tensors


@dataclass
class Described:
    """What a classifier's folder stores besides its content, as plain values.

    Attributes:
        params: the parameters of `FewShotClassifier`.
        labels: (K,) labels of the classes.
        temperature: divides the logits for probabilities.
        report: metrics on labelled images, or None.
        calibration: the result of `calibrate`, or None.
        shots: number of training images of each class; empty if unknown.
    """

    params: dict[str, Any]
    labels: list[Any]
    temperature: float = 1.0
    report: dict[str, Any] | None = None
    calibration: dict[str, Any] | None = None
    shots: list[int] = field(default_factory=list)


def place_of(folder: Any) -> Path:
    """The path of a classifier's folder.

    Raises:
        UserError: it is not a path.
    """
    if not isinstance(folder, str | os.PathLike) or not os.fspath(folder) or not can_be_path(os.fspath(folder)):
        raise UserError(f"{shown(folder)} is not the path of a folder")
    return Path(os.path.expanduser(folder))


def holds_classifier(folder: Path) -> bool:
    """Whether a folder was written by `write`, rather than by a run."""
    return (folder / CONFIG).is_file() or (folder / WEIGHTS).is_file()


def write(folder: Path, content: Content, described: Described) -> None:
    """Write the folder.

    Raises:
        UserError: it holds a run or unrelated files of these names, or cannot be written.
    """
    if holds_run(folder):
        raise UserError(f"'{folder}' contains a run of tools/train.py; choose another folder")
    if not holds_saved_classifier(folder):
        for name in (CONFIG, WEIGHTS, CARD):
            if os.path.lexists(folder / name):
                raise UserError(f"'{folder / name}' is not a classifier's; choose another folder")
    values = {
        "format": FORMAT,
        "format_version": VERSION,
        "library_name": "dassl-lite",
        "version": dassl_lite.__version__,
        **content.plain(),
        **asdict(described),
    }
    weights = save_tensors(content.tensors)
    values["digest"] = _digest(values, weights)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(folder / WEIGHTS) as temporary:
            temporary.write_bytes(weights)
        write_json(values, folder / CONFIG, indent=2)
        with atomic_path(folder / CARD) as temporary:
            temporary.write_text(card(content, described), encoding="utf-8")
    except OSError as error:
        remedy = "; free some space" if error.errno in NO_ROOM else ""
        raise UserError(f"'{folder}' cannot be written: {error.strerror or error}{remedy}") from None


def read(folder: Path) -> tuple[Content, Described]:
    """Read the folder.

    Raises:
        UserError: a file is missing, has another format version, was modified, or does not fit.
    """
    path = folder / CONFIG
    try:
        values = read_json(path)
        with open_file(folder / WEIGHTS, MOST_BYTES) as file:
            weights = file.read()
    except FileNotFoundError as error:
        raise MissingFileError(f"'{folder}' is not a whole classifier: it lacks {Path(error.filename).name}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"'{folder}' cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise UserError(f"'{path}' is not a classifier's, which FewShotClassifier.save writes")
    if values.get("format_version") != VERSION:
        found, version = shown(values.get("format_version")), shown(values.get("version"))
        raise UserError(
            f"'{path}' is of format {found}, of dassl-lite {version}; this is {dassl_lite.__version__}, which reads "
            f"format {VERSION}: save it again, or use that version"
        )
    if values.get("digest") != _digest(values, weights):
        raise UserError(f"'{folder}' was changed or damaged since it was saved: {CONFIG} and {WEIGHTS} do not agree")
    with refusing_misfits(f"'{folder}' does not hold a classifier"):
        try:
            tensors = load_tensors(weights)
        except SafetensorError as error:
            raise UserError(f"'{folder / WEIGHTS}' does not hold tensors: {error}") from None
        try:
            content = Content.of_plain(values, tensors)
        except UserError as error:
            raise UserError(f"'{path}': {error}") from None
        described = Described(**{name: values[name] for name in Described.__dataclass_fields__})
        described.temperature = float(described.temperature)
        _check(described, content, path)
    return content, described


def _check(described: Described, content: Content, path: Path) -> None:
    """Raise a UserError, or one of `MISFITS`, for values that `write` would never write."""
    labels = described.labels
    if len(labels) != len(content.classes):
        raise UserError(f"'{path}' has {len(labels)} labels for {len(content.classes)} classes")
    plain = isinstance(labels, list) and all(isinstance(label, str | int | float) for label in labels)
    if not plain or len({type(label) for label in labels}) > 1 or len(set(labels)) < len(labels):
        raise UserError(f"'{path}' has labels {shown(labels)}; they are all text or all numbers, each another")
    if not (described.temperature > 0 and math.isfinite(described.temperature)):
        raise UserError(f"'{path}' has temperature {described.temperature}; it is above 0")
    if not isinstance(described.params, dict) or not isinstance(described.shots, list):
        raise UserError(f"'{path}' does not say how the classifier was made")
    if described.calibration is not None:
        Calibration(**described.calibration)
    card(content, described)  # only the card uses the rest, so rendering it is the check


def _digest(values: Mapping[str, Any], weights: bytes) -> str:
    plain = json.loads(json.dumps({key: value for key, value in values.items() if key != "digest"}))
    return digest_of({"config": plain, "weights": hashlib.sha256(weights).hexdigest()})


# ---- the hub --------------------------------------------------------------------------------------------------------


def fetched(name: str, **options: Any) -> Path:
    """The folder of a classifier: as given, or fetched from the Hugging Face Hub.

    Raises:
        UserError: it is neither a folder nor a repository that can be reached.
    """
    if os.path.isdir(place := os.path.expanduser(name)):
        return Path(place)
    if name.count("/") != 1 or name[0] in "./~":
        raise MissingFileError(f"there is no folder '{name}', and repositories of the hub are called org/name")
    with _telling(name):
        return _hub_model(None).from_pretrained(name, **options).folder


def pushed(save: Callable[[Path], Any], name: str, **options: Any) -> str:
    """Save to a hub repository; returns the URL of the commit.

    Args:
        save: function that writes the folder.
    """
    with _telling(name):
        return str(_hub_model(save)().push_to_hub(name, **options))


def _hub_model(save: Callable[[Path], Any] | None) -> Any:
    """A subclass of huggingface_hub's mixin that reads and writes our folder."""
    from huggingface_hub import ModelHubMixin, snapshot_download

    class HubClassifier(ModelHubMixin, library_name="dassl-lite"):
        def __init__(self) -> None:
            self.folder = Path()

        def _save_pretrained(self, save_directory: Path) -> None:
            assert save is not None, "made for reading"
            save(save_directory)

        @classmethod
        def _from_pretrained(cls, *, model_id: str, **options: Any) -> Any:
            known = ("revision", "cache_dir", "force_download", "local_files_only", "token")
            classifier = cls()
            classifier.folder = Path(
                snapshot_download(
                    model_id,
                    allow_patterns=[CONFIG, WEIGHTS, CARD],
                    **{key: options[key] for key in known if key in options},
                )
            )
            return classifier

    return HubClassifier


@contextlib.contextmanager
def _telling(name: str) -> Iterator[None]:
    """Turn huggingface_hub's exceptions into one-line errors."""
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"'{name}' is not a folder, and the Hugging Face Hub does not provide or accept it: {reason}"
        ) from error


# ---- the card -------------------------------------------------------------------------------------------------------


def card(content: Content, described: Described) -> str:
    """The model card, in Markdown with the hub's header."""
    names = [printable(name).replace("|", "\\|") for name in map(str, described.labels)]
    backbone = content.plain()["backbone"]
    lines = [
        *_header(content, described, backbone),
        "",
        f"# {len(names)} classes of images, by {content.method} on {backbone}",
        "",
        f"A few-shot classifier made with dassl-lite {dassl_lite.__version__}: this head, on the image encoder of CLIP "
        f"`{printable(backbone)}`. It distinguishes these classes and knows no others:",
        "",
        ", ".join(names[:200]) + (" ..." if len(names) > 200 else ""),
        "",
        "## Use",
        "",
        "```python",
        "from dassl_lite import FewShotClassifier",
        "",
        'clf = FewShotClassifier.from_pretrained("ORG/NAME")  # or the path of this folder',
        'clf.predict(["new.jpg"])',
        "```",
        "",
        f"The backbone's weights are not here: they are found or fetched, and have to be those of digest "
        f"`{content.meta.get('backbone_digest', '')[:16]}`.",
        "",
        "## Data",
        "",
        *_data(content, described, names),
        "",
        "## Results",
        "",
        *_results(described),
        "",
        "## Limits",
        "",
        _limits(content),
        "",
        "## Licence",
        "",
        "- of this classifier: TO BE FILLED IN",
        "- of the training images: TO BE FILLED IN",
        f"- of the backbone `{printable(backbone)}`: see its publisher",
        "",
    ]
    return "\n".join(lines)


def _header(content: Content, described: Described, backbone: str) -> list[str]:
    lines = ["---", "library_name: dassl-lite", "pipeline_tag: image-classification", "license: other"]
    lines += ["tags:", "- few-shot", "- clip", f"- {content.method}", f"base_model_name: {json.dumps(backbone)}"]
    if described.report:
        lines += ["metrics:", "- accuracy"]
    return [*lines, "---"]


def _limits(content: Content) -> str:
    if content.meta.get(MULTI_LABEL):
        answer = "An image may show several of the classes, or none: each has a probability of its own."
    else:
        answer = (
            "Every image is given one of the classes, also one that shows none of them; `unknown_below` answers None "
            "where the probability is low."
        )
    return f"{answer} Results on images that were taken in other ways may differ."


def _data(content: Content, described: Described, names: list[str]) -> list[str]:
    shots, seed = described.shots, content.config.get("SEED")
    lines = [f"- prompt: `{printable(content.template)}`"]
    if content.descriptions:
        lines.append(
            f"- {sum(map(len, content.descriptions)):,} sentences that describe the classes, in place of prompts"
        )
    if shots:
        spread = f"{min(shots)}" if min(shots) == max(shots) else f"{min(shots)} to {max(shots)}"
        lines.append(f"- {sum(shots):,} training images, {spread} per class, drawn with seed {seed}")
        few = [f"{name} ({count})" for name, count in zip(names, shots, strict=True) if count < max(shots)]
        if few:
            lines.append(f"- fewer than the others have: {', '.join(few[:10])}{' ...' if len(few) > 10 else ''}")
    else:
        lines.append("- no training images: zero-shot, or not recorded")
    return lines


def _results(described: Described) -> list[str]:
    lines: list[str] = []
    report = described.report
    if not report:
        lines.append("Not evaluated; `evaluate` on labelled images, then `save` again, fills this in.")
    else:
        low, high = report["interval"]
        lines += [f"On {report['images']:,} {report['on']}:", "", "| metric | % |", "|---|---|"]
        lines.append(f"| accuracy (95 % interval) | {report['accuracy']:.2f} ({low:.2f} to {high:.2f}) |")
        if "zero_shot_accuracy" in report:
            lines.append(f"| accuracy of zero-shot CLIP | {report['zero_shot_accuracy']:.2f} |")
        for name, text in (("macro_f1", "macro F1"), ("ece", "calibration error (ECE)")):
            if name in report:
                lines.append(f"| {text} | {report[name]:.2f} |")
        worst = sorted(report["per_class"], key=lambda row: row["accuracy"])[:10]
        lines += ["", "The classes with the lowest accuracy:", "", "| class | images | accuracy % |", "|---|---|---|"]
        lines += [f"| {_cell(row['label'])} | {row['images']} | {row['accuracy']:.1f} |" for row in worst]
        if pairs := most_confused(report, described.labels):
            lines += ["", "What is mixed up most often:", "", "| true class | predicted | images |", "|---|---|---|"]
            lines += [f"| {_cell(true)} | {_cell(predicted)} | {count} |" for true, predicted, count in pairs]
    lines.append("")
    if (fit := described.calibration) is not None:
        lines.append(
            f"Probabilities are calibrated: temperature {fit['temperature']:.3f}, chosen on {fit['images']:,} "
            f"{fit['chosen_on']}; ECE {fit['ece_before']:.2f} % before, {fit['ece_after']:.2f} % after, on the "
            f"{fit['measured_on']}."
        )
    elif described.temperature != 1:
        lines.append(
            f"Logits are divided by a temperature of {described.temperature:.3f}, chosen before classes were added or "
            "removed (`calibrate`)."
        )
    else:
        lines.append("Probabilities are not calibrated (`calibrate`).")
    return lines


def _cell(value: Any) -> str:
    return printable(value).replace("|", "\\|")
