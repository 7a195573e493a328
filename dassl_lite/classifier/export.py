"""Export a fitted classifier to a file that other programs run: ONNX, torch's ExportedProgram, or plain weights.

The file takes pictures as bytes, already resized and cropped, and gives probabilities. The trainer's own code is
traced, except that a head that is linear in the features becomes a matrix, and LoRA is merged into the weights.
Everything is float32 on the CPU. The file is kept only if its probabilities match the trainer's.

Shapes: B pictures of H x W pixels, K classes, D feature width.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

import dassl_lite
from dassl_lite.classifier import classify
from dassl_lite.classifier.images import decoded, is_path
from dassl_lite.classifier.predicting import encoder_of, logits_of, probabilities_of
from dassl_lite.data.transforms import build_transform, describe
from dassl_lite.data.transforms.build import RESIZE_MODES
from dassl_lite.data.transforms.pixels import split
from dassl_lite.engine.methods.feature_trainer import FeatureTrainer
from dassl_lite.models.heads import LinearForm
from dassl_lite.models.lora import merge_lora
from dassl_lite.utils.errors import NO_ROOM, UserError, unknown
from dassl_lite.utils.files import can_be_path
from dassl_lite.utils.lazy import optional_module

FILES = {"onnx": "model.onnx", "torch": "model.pt2", "npz": "classifier.npz"}  # format -> file name
FORMATS = tuple(FILES)
SCRIPT = "classify.py"
METADATA = "metadata.json"  # inside an ExportedProgram
FORMAT_VERSION = 1
MOST_PICTURES = 128  # to compare an export on
MOST_DIFFERENCE = 1e-3  # of any probability
_BATCH = 32
_DRAWN = 16  # pictures of noise, used if there are no others

Answers = Callable[[Tensor], NDArray[Any]]  # pictures (B, H, W, 3), uint8, to probabilities (B, K)


class Agreement(NamedTuple):
    """How an exported file compares with the original classifier.

    Attributes:
        form: "linear" if the head is one matrix, else "traced".
        pictures: number of pictures compared; 0 if only noise was.
        difference: largest difference of a probability.
        agreement: percent of the pictures with the same top class; ties count as the same.
        megabytes: size of the export.
    """

    form: str
    pictures: int
    difference: float
    agreement: float
    megabytes: float


@dataclass
class Source:
    """What is exported.

    Attributes:
        trainer: a trainer in float32 on the CPU, ready to predict. LoRA gets merged into it: don't use it afterwards.
        labels: labels of the K classes.
        temperature: divides the logits.
        template: prompt template of the class names.
    """

    trainer: Any
    labels: Sequence[Any]
    temperature: float
    template: str

    @property
    def method(self) -> str:
        return str(self.trainer.cfg.TRAINER.NAME)

    def linear(self) -> LinearForm | None:
        """The head as a matrix, if it is one, with the temperature folded in."""
        head = self.trainer.linear_head() if isinstance(self.trainer, FeatureTrainer) else None
        if head is None:
            return None
        bias = None if head.bias is None else head.bias / self.temperature
        return head._replace(scale=head.scale / self.temperature, bias=bias)

    def about(self, form: str) -> dict[str, str]:
        """The file's metadata; lists and numbers as JSON."""
        node, meta = self.trainer.cfg.INPUT, self.trainer.checkpoint_meta()
        return {
            "format_version": json.dumps(FORMAT_VERSION),
            "dassl_lite": dassl_lite.__version__,
            "classes": json.dumps([str(label) for label in self.labels]),
            "multi_label": json.dumps(bool(getattr(self.trainer, "is_multi_label", False))),
            "size": json.dumps(list(node.SIZE)),
            "resize": node.RESIZE_MODE or RESIZE_MODES[0],
            "interpolation": node.INTERPOLATION,
            "fill": json.dumps(list(node.FILL_COLOR) or [0, 0, 0]),
            "method": self.method,
            "form": form,
            "template": self.template,
            "backbone": str(meta.get("backbone", self.trainer.cfg.MODEL.BACKBONE.NAME)),
            "backbone_digest": str(meta.get("backbone_digest", "")),
        }


def export(folder: Path, kind: str, source: Callable[[], Source], pictures: Callable[[], Sequence[Any]]) -> Agreement:
    """Write a folder with the file and, for ONNX, a script that uses it; it appears only once the file is verified.

    Args:
        folder: a new or empty folder.
        kind: one of `FORMATS`.
        source: returns what to export; called after the other arguments have been checked.
        pictures: returns paths, PIL images or arrays to compare on; if none, noise is used.

    Raises:
        UserError: the folder cannot be written, the method cannot be exported to this format, or the file's
            predictions differ.
    """
    require(folder, kind)
    folder, made = Path(os.path.abspath(folder.expanduser())), source()
    with tempfile.TemporaryDirectory(prefix="dassl-lite-") as scratch, torch.no_grad():
        model = Exportable(made)
        shown = _Pictures(made.trainer, pictures(), Path(scratch))
        wanted = shown.probabilities(made)
        if isinstance(made.trainer, FeatureTrainer) and kind != "npz":
            merge_lora(made.trainer.clip.model)
        with _new_folder(folder) as place:
            write = {"onnx": _write_onnx, "torch": _write_torch, "npz": _write_npz}[kind]
            found = shown.answers(write(place / FILES[kind], model, made))
            if kind == "onnx":
                shutil.copyfile(classify.__file__, place / SCRIPT)
                shown.check_script(made.about(model.form))
            difference, agreement = _compared(wanted, found)
            if not difference <= MOST_DIFFERENCE:
                raise UserError(
                    f"the export of {made.method} is not kept: its probabilities differ by up to {difference:.2g} from "
                    f"the classifier's, and the top class agrees on {agreement:.1f} % of the pictures"
                )
            size = sum(file.stat().st_size for file in place.iterdir()) / 1e6
    return Agreement(model.form, shown.count, difference, agreement, size)


def require(folder: Path, kind: str) -> None:
    """Raise a UserError for a folder that cannot be written, an unknown format, or missing libraries."""
    if kind not in FORMATS:
        raise unknown("format", kind, FORMATS)
    if kind == "onnx":
        for name in ("onnxruntime", "onnx", "onnxscript"):
            optional_module(name, "onnx", "ONNX export")
    if not can_be_path(str(folder)):
        raise UserError(f"'{folder}' cannot be written: it is not a path")
    try:
        place = folder.expanduser()
        taken = os.path.lexists(place) and not (place.is_dir() and not any(place.iterdir()))
        above = next(parent for parent in Path(os.path.abspath(place)).parents if parent.exists())
        reason = "" if above.is_dir() else f"'{above}' is not a folder"
        if not reason and not os.access(above, os.W_OK | os.X_OK):
            reason = f"no permission to write to '{above}'"
    except (OSError, RuntimeError) as error:  # an invalid path, or an unknown ~user
        taken, reason = False, getattr(error, "strerror", None) or str(error)
    if taken:
        raise UserError(f"'{folder}' exists already; name a new folder, or remove it")
    if reason:
        raise UserError(f"'{folder}' cannot be written: {reason}")


@contextlib.contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder beside ``folder``, renamed to it at the end, or removed if anything fails."""
    place = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        place.mkdir(parents=True)
        yield place
        place.rename(folder)
    except UserError:
        raise
    except OSError as error:
        remedy = "; free some space" if error.errno in NO_ROOM else ""
        raise UserError(f"'{folder}' cannot be written: {error.strerror or error}{remedy}") from None
    finally:
        shutil.rmtree(place, ignore_errors=True)


# ---- what is exported -----------------------------------------------------------------------------------------------


class Exportable(nn.Module):
    """A classifier from pictures (B, H, W, 3), uint8, to probabilities (B, K), float32.

    Attributes:
        form: "linear" or "traced".
    """

    mean: Tensor
    std: Tensor
    weight: Tensor | None
    bias: Tensor | None

    def __init__(self, made: Source) -> None:
        super().__init__()
        trainer, linear = made.trainer, made.linear()
        mean, std = _normalisation(trainer)
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(-1, 1, 1))
        self.form, self.normalises = "linear" if linear else "traced", bool(linear and linear.normalises)
        self.register_buffer("weight", (linear.scale * linear.weight).t().contiguous() if linear else None)
        self.register_buffer("bias", linear.bias if linear else None)
        self._encode, self._trainer = encoder_of(trainer), trainer
        self._temperature = made.temperature

    def forward(self, image: Tensor) -> Tensor:
        features = self._encode((image.permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std).float()
        if self.weight is None:
            logits = self._trainer.model_inference(features) if isinstance(self._trainer, FeatureTrainer) else features
            return probabilities_of(self._trainer, logits, self._temperature)
        features = nn.functional.normalize(features, dim=-1) if self.normalises else features
        logits = features @ self.weight
        return probabilities_of(self._trainer, logits if self.bias is None else logits + self.bias)


def _normalisation(trainer: Any) -> tuple[Any, Any]:
    """Mean and standard deviation with which the trainer normalises pictures.

    Raises:
        UserError: its preprocessing is not the one that INPUT describes.
    """
    cfg, transform = trainer.cfg, trainer.dm.tfm_test
    parts = split(transform)
    usual = None if cfg.INPUT.NO_TRANSFORM else build_transform(cfg, is_train=False)
    if parts is None or usual is None or describe(usual) != describe(transform):
        raise UserError(
            f"{cfg.TRAINER.NAME} cannot be exported: its pictures take other steps than a resize, a crop and a "
            "normalisation"
        )
    last = parts[1].steps[-1]
    return getattr(last, "mean", (0.0,) * 3), getattr(last, "std", (1.0,) * 3)


# ---- the pictures that it is compared on ----------------------------------------------------------------------------


class _Pictures:
    """Pictures as the file takes them.

    Args:
        trainer: its transform is applied to them.
        items: images, of which up to `MOST_PICTURES` are chosen, evenly spread; unreadable ones are left out.
        scratch: folder for images that are in memory.

    Attributes:
        count: number of pictures; 0 if noise is used.
    """

    def __init__(self, trainer: Any, items: Sequence[Any], scratch: Path) -> None:
        self.trainer = trainer
        step = -(-len(items) // MOST_PICTURES) or 1
        kept = [picture for item in items[::step] if (picture := self._read(item, scratch)) is not None]
        self.count = len(kept)
        if not kept:
            height, width = trainer.cfg.INPUT.SIZE
            draw = np.random.default_rng(0)
            noise = [draw.integers(0, 256, (height + n, width + 7 * n, 3), np.uint8) for n in range(_DRAWN)]
            kept = [picture for array in noise if (picture := self._read(array, scratch)) is not None]
        self.paths, self.images, self.bytes = zip(*kept, strict=True)

    def _read(self, item: Any, scratch: Path) -> tuple[str, Image.Image, Tensor] | None:
        """The picture's file, the picture, and its bytes (H, W, 3); None if it cannot be read."""
        try:
            image = decoded(item)
        except UserError:
            return None
        path = os.path.expanduser(item) if is_path(item) else str(scratch / f"{len(os.listdir(scratch))}.png")
        if not is_path(item):
            image.save(path)
        parts = split(self.trainer.dm.tfm_test)
        return None if parts is None else (path, image, parts[0](image))

    def probabilities(self, made: Source) -> NDArray[Any]:
        """The trainer's probabilities (N, K)."""
        encode, transform = encoder_of(self.trainer), self.trainer.dm.tfm_test
        batches = []
        for start in range(0, len(self.images), _BATCH):
            features = encode(torch.stack([transform(image) for image in self.images[start : start + _BATCH]]))
            logits = logits_of(self.trainer, features.float(), len(made.labels))
            batches.append(probabilities_of(self.trainer, logits, made.temperature).numpy())
        return np.concatenate(batches)

    def answers(self, ask: Answers) -> NDArray[Any]:
        """The file's probabilities (N, K); the first picture alone, then several at once, to test both batch sizes."""
        stacked = torch.stack(self.bytes)
        return np.concatenate([ask(part) for part in (stacked[:1], *stacked[1:].split(_BATCH)) if len(part)])

    def check_script(self, about: dict[str, str]) -> None:
        """Raise a UserError if the script's preprocessing gives different bytes than the trainer's transform."""
        for path, expected in zip(self.paths, self.bytes, strict=True):
            try:
                same = np.array_equal(classify.pixels(path, about), expected.numpy())
            except (ValueError, OSError):  # a picture that the script reports as unreadable
                continue
            if not same:
                raise UserError(f"the export is not kept: {SCRIPT} makes other pixels of '{path}' than the classifier")


def _compared(wanted: NDArray[Any], found: NDArray[Any]) -> tuple[float, float]:
    """The largest difference, and the percentage of rows with the same or an equally likely top class."""
    rows = np.arange(len(wanted))
    behind = wanted.max(axis=1) - wanted[rows, found.argmax(axis=1)]
    return float(np.abs(wanted - found).max()), 100.0 * float((behind <= 1e-6).mean())


# ---- the formats ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _tracing(made: Source) -> Iterator[None]:
    """A context that silences torch, and turns its errors into one line."""
    fast, level = torch.backends.mha.get_fastpath_enabled(), logging.root.manager.disable
    try:
        torch.backends.mha.set_fastpath_enabled(False)  # its operators cannot be exported
        logging.disable(logging.WARNING)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (UserError, MemoryError, OSError):
        raise
    except Exception as error:  # torch raises many kinds
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{made.method} cannot be exported: {type(error).__name__}: {reason}") from error
    finally:
        logging.disable(level)
        torch.backends.mha.set_fastpath_enabled(fast)


def _traced(model: Exportable, made: Source) -> Any:
    """An ExportedProgram for any number of pictures."""
    height, width = made.trainer.cfg.INPUT.SIZE
    example = torch.zeros(2, height, width, 3, dtype=torch.uint8)
    return torch.export.export(
        model.eval(), (example,), dynamic_shapes=({0: torch.export.Dim("pictures")},), strict=False
    )


def _write_torch(path: Path, model: Exportable, made: Source) -> Answers:
    about = json.dumps(made.about(model.form))
    with _tracing(made):
        torch.export.save(_traced(model, made), path, extra_files={METADATA: about})
        program = torch.export.load(path).module()
    return lambda pictures: program(pictures).numpy()


def _write_onnx(path: Path, model: Exportable, made: Source) -> Answers:
    runtime = optional_module("onnxruntime", "onnx", "ONNX export")
    with _tracing(made):
        program = torch.onnx.export(
            _traced(model, made), input_names=["image"], output_names=["probabilities"], dynamo=True, verbose=False
        )
        assert program is not None, "with dynamo"
        program.model.metadata_props.update(made.about(model.form))
        program.save(path)
        session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda pictures: session.run(None, {"image": pictures.numpy()})[0]


def _write_npz(path: Path, model: Exportable, made: Source) -> Answers:
    """Write weights (K, D), for features that are computed elsewhere."""
    trainer, form, method = made.trainer, made.linear(), made.method
    if form is None:
        raise UserError(
            f"the classifier of {method} is not linear in the image features, so it has no weights (K, D); use the "
            "format onnx or torch"
        )
    if trainer.changes_images:
        raise UserError(
            f"{method} changes the image encoder, so its weights fit no other features; use the format onnx or torch"
        )
    half = trainer.half_logit / made.temperature if trainer.is_multi_label else 0.0
    bias = form.bias if form.bias is not None or not half else torch.zeros(len(form.weight))
    arrays = {
        "weights": form.weight.numpy(),
        "logit_scale": np.float32(form.scale),
        "normalise": np.bool_(form.normalises),
        "class_names": np.array([str(label) for label in made.labels]),
        "metadata": np.array(json.dumps(made.about("linear"))),
        **({} if bias is None else {"bias": (bias - half).numpy()}),
    }
    np.savez(path, **arrays)

    def ask(pictures: Tensor) -> NDArray[Any]:
        images = (pictures.permute(0, 3, 1, 2).float() / 255 - model.mean) / model.std
        return from_weights(path, encoder_of(trainer)(images).float().numpy())

    return ask


def from_weights(path: Path, features: NDArray[Any]) -> NDArray[Any]:
    """Probabilities (N, K) of image features (N, D), from an exported ``classifier.npz``."""
    with np.load(path) as file:
        if file["normalise"]:
            features = features / np.linalg.norm(features, axis=1, keepdims=True)
        logits = file["logit_scale"] * features @ file["weights"].T + file.get("bias", 0)
        if json.loads(json.loads(str(file["metadata"]))["multi_label"]):
            return 1 / (1 + np.exp(-logits))
    likely = np.exp(logits - logits.max(axis=1, keepdims=True))
    return likely / likely.sum(axis=1, keepdims=True)
