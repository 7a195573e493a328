"""Writes feature files: a frozen CLIP's features of a dataset's images and class names.

A single file is assembled in memory, through the feature cache. A folder of shards is written in pieces, by any number
of processes, bypassing the cache: see :mod:`dassl_lite.data.feature_files.pieces`.

Shapes: K classes, D feature width.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import shutil
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import dassl_lite
from dassl_lite.data import IMAGENET_TEMPLATES_SELECT, DataManager, Datum, describe, is_random
from dassl_lite.data.feature_cache.store import warn_of_skipped
from dassl_lite.data.feature_files import FeatureFile, FeaturePart
from dassl_lite.data.feature_files.arrays import Array
from dassl_lite.data.feature_files.file import write_classes
from dassl_lite.data.feature_files.folder import MANIFEST, is_folder, shard_name, write_manifest, write_shard
from dassl_lite.data.feature_files.pieces import UNDER_WAY, Done, Piece, extract_piece, files_of, rows_of_a_piece
from dassl_lite.data.loaders import label_tensor
from dassl_lite.engine.methods.backbone import reports_wrong_size
from dassl_lite.engine.methods.feature_source import FeatureSource
from dassl_lite.models.clip import CLIPBackbone, load_clip
from dassl_lite.models.prompts import fill_templates, text_features
from dassl_lite.utils import devices
from dassl_lite.utils.errors import UserError
from dassl_lite.utils.files import digest_of, read_json, write_json


@dataclass(frozen=True)
class FeatureExport:
    """Exports a dataset's images and prompts as a feature file; features that are not cached are extracted.

    Attributes:
        data: dataset and transforms.
        dataset: dataset name stored in the file, "" for none.
        features: source of image features.
        clip: the frozen CLIP.
        template: the dataset's own prompt template.
        text_cache: cache folder for text features, or None.
        views: number of augmented views of the training images; 0 stores only the unaugmented one.
        states: also store the states before the image encoder's projection, and the projection.
        half: store float16 whatever the encoder's dtype.
        provenance: further provenance to store in the file, as plain values.
    """

    data: DataManager
    dataset: str
    features: FeatureSource
    clip: CLIPBackbone
    template: str
    text_cache: Path | None
    views: int
    half: bool
    states: bool
    provenance: dict[str, Any]

    def file(self) -> FeatureFile:
        """The content of the feature file.

        Raises:
            UserError: the dataset has no test images.
        """
        return dataclasses.replace(self.frame(), parts={split.part: self._part_of(split) for split in self.splits()})

    def frame(self) -> FeatureFile:
        """The content of the feature file without image features."""
        dataset, clip = self.data.dataset, self.clip
        templates = tuple(dict.fromkeys((self.template, *dataset.ensemble_templates, *IMAGENET_TEMPLATES_SELECT)))
        provenance = {
            "made_by": f"dassl-lite {dassl_lite.__version__}, tools/extract.py",
            "torch": torch.__version__,
            "fewshot_digest": dataset.fewshot_digest,
            "views": self.views,
            "views_seed": self.features.seed,
            "half": self.half,
            **self.provenance,
        }
        projection = clip.image_projection if self.states else None
        return FeatureFile(
            parts={},
            classnames=dataset.classes.names,
            classids=dataset.classes.ids,
            text_weights=np.stack([self._text(template) for template in templates]),
            templates=templates,
            ensemble_templates=tuple(dataset.ensemble_templates),
            logit_scale=clip.logit_scale.exp().item(),
            projection=self._array(projection.weight.detach().cpu().contiguous()) if projection else None,
            projection_bias=None
            if projection is None or projection.bias is None
            else self._array(projection.bias.detach().cpu()),
            logit_bias=None if clip.logit_bias is None else clip.logit_bias.item(),
            dataset=self.dataset,
            backbone=clip.name,
            backbone_digest=clip.digest,
            precision=clip.precision,
            transform=describe(self.data.tfm_test),
            train_transform=describe(self.data.tfm_train),
            provenance=(json.dumps(provenance, sort_keys=True),),
        )

    def splits(self) -> list[ExportedSplit]:
        """The splits to store.

        Raises:
            UserError: the dataset has no test images.
        """
        dataset = self.data.dataset
        if not dataset.test:
            raise UserError(f"dataset {type(dataset).__name__} has no test images, which a feature file must have")
        tested = {item.impath for item in dataset.test}
        splits = []
        if dataset.train_x and not getattr(dataset, "test_only", False):  # if test_only, these are test images
            is_augmented = bool(self.views) and is_random(self.data.tfm_train)
            splits.append(ExportedSplit("train", dataset.train_x, self.views if is_augmented else 0))
        if dataset.val and not tested & {item.impath for item in dataset.val}:  # ImageNet validates on test images
            splits.append(ExportedSplit("val", dataset.val, 0))
        return [*splits, ExportedSplit("test", dataset.test, 0)]

    def _part_of(self, split: ExportedSplit) -> FeaturePart:
        plain = self._part(split.items)
        if not split.views:
            return plain
        augmented = self._part(split.items, self.data.tfm_train, split.views)
        plain_states = None if plain.states is None else plain.states[0]
        return FeaturePart(augmented.views, augmented.labels, plain.views[0], augmented.states, plain_states)

    def _part(self, items: Sequence[Datum], transform: Any = None, views: int = 1) -> FeaturePart:
        """Features of ``items`` except unreadable images; by default with the test transform."""
        before = None
        if self.states:  # fetched first, because this pass gives both
            states = self.features.fetch(items, transform or self.data.tfm_test, views, states=True)
            before = self._array(states.tensor[:, states.kept].cpu())
        features = self.features.fetch(items, transform or self.data.tfm_test, views)
        labels = self.labels(items)[features.kept.numpy()]
        return FeaturePart(self._array(features.tensor[:, features.kept].cpu()), labels, states=before)

    def labels(self, items: Sequence[Datum]) -> Array:
        """Labels: int64 (N,), or bool (N, K) for images with several classes."""
        dataset = self.data.dataset
        return label_tensor(items, dataset.num_classes if dataset.multi_label else 0).numpy()

    @torch.no_grad()
    def _text(self, template: str) -> Array:
        """Text features (K, D), not normalised."""
        prompts = fill_templates(self.data.dataset.classnames, [template])
        return self._array(text_features(self.clip, prompts, self.text_cache).cpu())

    def _array(self, tensor: torch.Tensor) -> Array:
        return stored_array(tensor, half=self.half)


def stored_array(tensor: torch.Tensor, *, half: bool) -> Array:
    """Convert to NumPy: in the encoder's dtype if NumPy has it (it lacks bfloat16), or in float16 if ``half``."""
    if half:
        return tensor.half().numpy()
    return (tensor if tensor.dtype in (torch.float16, torch.float32, torch.float64) else tensor.float()).numpy()


class ExportedSplit(NamedTuple):
    """A split to store: its name, its images and the number of augmented views; 0 for the unaugmented view only."""

    part: str
    items: Sequence[Datum]
    views: int


# ---- in pieces, by several processes ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Encoding:
    """The settings with which a process encodes a piece.

    Attributes:
        folder: absolute path of the folder for the shards.
        backbone, digest, precision: the CLIP; the digest is compared with that of the weights on the process's machine.
        use_cuda: USE_CUDA.
        states, half: what to store; see `FeatureExport`.
        batch_size, num_workers, skip: see `extract_piece`.
    """

    folder: Path
    backbone: str
    digest: str
    precision: str
    use_cuda: bool
    states: bool
    half: bool
    batch_size: int
    num_workers: int
    skip: bool


_loaded: dict[tuple[str, str, bool], CLIPBackbone] = {}  # the backbone last used by this process


def encode_piece(piece: Piece, encoding: Encoding) -> Done:
    """Write the shards of a piece; may be called in any process.

    Raises:
        UserError: an image cannot be read, the folder cannot be written, or the backbone has different weights here.
    """
    device = devices.pick(encoding.use_cuda)
    key = encoding.backbone, encoding.precision, encoding.use_cuda
    if key not in _loaded:
        devices.set_arithmetic()
        _loaded.clear()
        _loaded[key] = load_clip(encoding.backbone, precision=encoding.precision, device=device).eval()
    clip = _loaded[key]
    if clip.digest != encoding.digest:
        raise UserError(f"backbone {encoding.backbone} has different weights here than where the command was started")
    encode = clip.encode_image_states if encoding.states else clip.encode_image

    def encoded(images: torch.Tensor) -> Any:
        mixed = torch.autocast(device.type, devices.autocast_type(device)) if encoding.precision == "amp" else None
        with mixed or nullcontext(), reports_wrong_size(clip, encoding.backbone, images):
            return encode(images)

    try:
        return extract_piece(
            piece,
            encoding.folder,
            encoded,
            functools.partial(stored_array, half=encoding.half),
            device=device,
            batch_size=encoding.batch_size,
            num_workers=encoding.num_workers,
            skip=encoding.skip,
        )
    except OSError as error:
        raise UserError(f"cannot write features to {encoding.folder}: {error.strerror or error}") from None


class ExportInPieces:
    """An export as a folder of shards.

    Args:
        export: what to export.
        encoding: the settings of encoding, including the folder.
        rows: approximate number of images per piece; 0 chooses it automatically.
    """

    def __init__(self, export: FeatureExport, encoding: Encoding, rows: int = 0) -> None:
        self.export, self.encoding, self.folder = export, encoding, encoding.folder
        self._wanted = rows
        self._plan: dict[str, Any] = {"dataset": export.dataset, "arrays": {}}  # must be equal to resume
        self._splits = export.splits()
        self.pieces: list[Piece] = []
        test, train = export.data.tfm_test, export.data.tfm_train
        for split in self._splits:
            if split.views:
                self._cut(split, "plain_", test, 1)
            self._cut(split, "", train if split.views else test, split.views or 1)

    def _cut(self, split: ExportedSplit, kind: str, transform: Any, views: int) -> None:
        """Split an array into pieces and add them."""
        step = rows_of_a_piece(len(split.items), views, self.encoding.batch_size, self._wanted)
        arrays = [f"{split.part}_{kind}features", *([f"{split.part}_{kind}states"] if self.export.states else [])]
        source = self.export.features
        settings = [source.digest, describe(transform), views, source.seed, self.export.half, self.encoding.batch_size]
        self._plan["arrays"][arrays[0]] = [arrays, step, *settings]
        for number, start in enumerate(range(0, len(split.items), step)):
            paths = tuple(item.impath for item in split.items[start : start + step])
            identity = digest_of([arrays, settings])
            self.pieces.append(Piece(tuple(arrays), number, paths, transform, views, source.seed, identity))

    def prepare(self, *, overwrite: bool) -> None:
        """Create the folder, or resume the same extraction in it.

        Raises:
            UserError: the folder contains something else.
        """
        prepare_folder(self.folder, self._plan, overwrite=overwrite)

    def finish(self, results: Iterable[Done]) -> None:
        """Write the folder's other files once all pieces are done."""
        errors = {done.piece: done.errors for done in results}
        manifest: dict[str, list[str]] = {}
        skipped: dict[str, str] = {}
        for split in self._splits:
            kept: dict[str, Array] = {}
            for piece in self.pieces:
                if not piece.arrays[0].startswith(f"{split.part}_"):
                    continue
                of_piece = np.array(
                    [number not in errors[piece.name] for number in range(len(piece.paths))], dtype=bool
                )
                skipped |= {piece.paths[number]: error for number, error in errors[piece.name].items()}
                kept.setdefault(piece.arrays[0], np.empty(0, bool))
                kept[piece.arrays[0]] = np.concatenate([kept[piece.arrays[0]], of_piece])
                for array, file in zip(piece.arrays, files_of(piece), strict=True):
                    manifest.setdefault(array, [])
                    if of_piece.any():
                        self._check_exists(file)
                        manifest[array].append(file)
            self._check_kept(split, kept, skipped)
            labels = self.export.labels(split.items)[next(iter(kept.values()))]
            manifest[f"{split.part}_labels"] = self._write_labels(split.part, labels)
        if skipped:
            warn_of_skipped(skipped)
        write_classes(self.export.frame(), self.folder)
        _remove_others(self.folder, manifest)
        write_manifest(self.folder, manifest)
        shutil.rmtree(self.folder / UNDER_WAY)

    def _check_exists(self, file: str) -> None:
        if not (self.folder / file).is_file():
            raise UserError(
                f"a process has written {file}, but it is not in {self.folder} here: the folder must be accessible to "
                "all machines"
            )

    def _check_kept(self, split: ExportedSplit, kept: dict[str, Array], skipped: dict[str, str]) -> None:
        masks = list(kept.values())
        if any(not np.array_equal(masks[0], other) for other in masks[1:]):
            raise UserError(
                f"some images of {split.part} are readable with one transform only: {next(iter(skipped.values()))}"
            )
        if not masks[0].any():
            raise UserError(f"no image of {split.part} can be read: {next(iter(skipped.values()))}")

    def _write_labels(self, part: str, labels: Array) -> list[str]:
        stored = labels.astype(np.uint8) if labels.ndim == 2 else labels
        write_shard(self.folder / shard_name(f"{part}_labels", 0), stored)
        return [shard_name(f"{part}_labels", 0)]


_PLAN = "plan.json"


def prepare_folder(folder: Path, plan: dict[str, Any], *, overwrite: bool) -> None:
    """Create a folder for an extraction, or resume one that has begun with the same plan.

    Raises:
        UserError: the folder is complete, or contains another extraction or other files.
    """
    try:
        begun = read_json(folder / UNDER_WAY / _PLAN)
    except (OSError, ValueError):
        begun = None
    ours = begun is not None or is_folder(folder)
    if ours and overwrite and begun != plan:
        (folder / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(folder / UNDER_WAY, ignore_errors=True)
        _remove_others(folder, {})
    elif begun is not None and begun != plan:
        raise UserError(
            f"--output {folder} holds another unfinished extraction, with other images, another backbone or other "
            "settings; choose another folder, or add --overwrite to replace it"
        )
    elif begun is None and is_folder(folder):
        raise UserError(f"--output {folder} already exists; choose another, or add --overwrite to replace it")
    elif begun is None and folder.is_dir() and any(path.name != UNDER_WAY for path in folder.iterdir()):
        raise UserError(f"--output {folder} is a folder that contains other files; choose another")
    try:
        write_json(plan, folder / UNDER_WAY / _PLAN)
    except OSError as error:
        raise UserError(f"--output {folder} cannot be written: {error.strerror or error}") from None


def _remove_others(folder: Path, manifest: dict[str, list[str]]) -> None:
    """Delete shards that are not in ``manifest``."""
    wanted = {file for files in manifest.values() for file in files}
    pattern = re.compile(r"(train|val|test)_[a-z_]+-\d{5,}\.npy")
    for path in folder.iterdir():
        if pattern.fullmatch(path.name) and path.name not in wanted:
            path.unlink()
