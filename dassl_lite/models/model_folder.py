"""A model in a folder, or in a repository on the Hugging Face hub: a description beside its weights.

open_clip's have `open_clip_config.json`; those of transformers have `config.json` and `preprocessor_config.json`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from dassl_lite.models import openai_format, published_weights, transformers_format, weights_file
from dassl_lite.models.names import BackboneName
from dassl_lite.models.preprocessing import Preprocessing, described_by_open_clip, described_by_transformers
from dassl_lite.models.settings import CONFIG_FILE
from dassl_lite.models.tokenizer import Tokenizer, is_clips_own, tokenizer_of
from dassl_lite.models.transformers_format import TransformersModel
from dassl_lite.utils.errors import UserError, refusing_misfits, shown
from dassl_lite.utils.files import read_json

TRANSFORMERS_CONFIG, IMAGE_CONFIG = "config.json", "preprocessor_config.json"
# Names of the weights, the best first: safetensors before pickles.
_OPEN_CLIP_WEIGHTS = tuple(f"{name}{end}" for end in (".safetensors", ".bin") for name in (
    "open_clip_model", "open_clip_pytorch_model"
))  # fmt: skip
_TRANSFORMERS_WEIGHTS = tuple(
    name for stem in ("model.safetensors", "pytorch_model.bin") for name in (stem, stem + weights_file.INDEX_SUFFIX)
)
# Options that a description may pass to the tokenizer. Others could run code (trust_remote_code).
_TOKENIZER_SETTINGS = {"clean", "strip_sep_token", "language"}


class Find(Protocol):
    """Finds a file by name; returns None if there is none."""

    def __call__(self, name: str) -> Path | None: ...


@dataclass(frozen=True)
class ModelFolder:
    """A described model.

    Attributes:
        name: for messages.
        preprocessing: how it expects its images.
        open_clip: its description for open_clip's factory; None for one of transformers'.
        transformers: its description for `transformers_format`; None for one of open_clip's.
        find: function that finds its files.
        repository: the folder, or ORG/REPO on the hub.
        given: the file of weights, if one was named.
    """

    name: str
    preprocessing: Preprocessing
    open_clip: Mapping[str, Any] | None
    transformers: TransformersModel | None
    find: Find
    repository: str
    given: Path | None = None

    def weights(self) -> Path:
        """The file of weights, downloaded if it is on the hub. Raises UserError if there is none."""
        if self.given is not None:
            return self.given
        known: Sequence[str] = _OPEN_CLIP_WEIGHTS if self.transformers is None else _TRANSFORMERS_WEIGHTS
        for name in known:
            path = self.find(name)
            if path is not None:
                if name.endswith(weights_file.INDEX_SUFFIX):
                    self._find_parts(path)
                return path
        raise UserError(f"backbone '{self.name}' has no weights: none of {', '.join(known)} is there")

    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer. Raises UserError if it has none, or needs transformers without having it."""
        if self.transformers is None:
            assert self.open_clip is not None
            text = self.open_clip["text_cfg"]
            # as open_clip does: a local folder's own tokenizer, but for a repository the one that it names
            is_local = Path(self.repository).is_dir() and bool(text.get("hf_tokenizer_name")) and self._has_tokenizer()
            local = self.repository if is_local else ""
            return tokenizer_of(text, "", self.name, local)
        text = self.transformers.text
        if self.transformers.kind == "clip" and self._has_clips_words(text["vocab_size"]):
            return Tokenizer(text["context_length"])
        if not self._has_tokenizer():
            raise UserError(
                f"backbone '{self.name}' has no tokenizer: its files are not beside its {TRANSFORMERS_CONFIG}"
            )
        return tokenizer_of(text, "", self.name, self.repository)

    def _has_tokenizer(self) -> bool:
        return any(self.find(name) is not None for name in ("tokenizer_config.json", "tokenizer.json"))

    def _has_clips_words(self, count: int) -> bool:
        """Whether the tokenizer is OpenAI's; a model with the same vocabulary size and no tokenizer files uses it."""
        with refusing_misfits(f"backbone '{self.name}': its tokenizer cannot be read"):
            if (plain := self.find("vocab.json")) is not None:
                return is_clips_own(read_json(plain))
            if (fast := self.find("tokenizer.json")) is not None:
                return is_clips_own(read_json(fast)["model"]["vocab"])
        return count == openai_format.VOCABULARY

    def _find_parts(self, index: Path) -> None:
        """Download the parts that an index names."""
        with refusing_misfits(f"{index} is not an index of weights"):
            names = {str(name) for name in read_json(index)["weight_map"].values()}
        for name in sorted(names):
            if self.find(name) is None:
                raise UserError(f"backbone '{self.name}' lacks {name}, which {index.name} names")


def of(backbone: BackboneName) -> ModelFolder:
    """The model in a backbone's folder or repository; only the descriptions are read.

    Raises:
        UserError: it is unreachable, has no description, or one of an unsupported model.
    """
    if backbone.kind == "hub":
        repository = backbone.architecture.removeprefix("hf-hub:")
        return _described(backbone.text, partial(published_weights.hub_file, backbone.text), repository, None)
    folder, given = backbone.file, None
    if folder.is_file():
        folder, given = folder.parent, folder
    return _described(backbone.text, partial(_in_folder, folder), str(folder), given)


def is_described(file: Path) -> bool:
    """Whether a description of the model stands beside a file of weights, which does not describe itself."""
    if any(key in weights_file.metadata_of(file) for key in openai_format.METADATA):
        return False
    return (file.parent / CONFIG_FILE).is_file() or _is_transformers(file.parent / TRANSFORMERS_CONFIG)


def _is_transformers(config: Path) -> bool:
    try:
        return config.is_file() and read_json(config).get("model_type") in transformers_format.KINDS
    except (OSError, ValueError, AttributeError):
        return False  # a description of something else


def _in_folder(folder: Path, name: str) -> Path | None:
    path = folder / name
    return path if path.is_file() else None


def _described(name: str, find: Find, repository: str, given: Path | None) -> ModelFolder:
    open_clips = None if _is_cached_for_transformers(name) else find(CONFIG_FILE)
    theirs = None if open_clips and not _has_both(open_clips, given) else find(TRANSFORMERS_CONFIG)
    if theirs is not None and (open_clips is None or _is_of_transformers(given)):
        return _of_transformers(name, theirs, find, repository, given)
    if open_clips is None:
        raise UserError(
            f"backbone '{name}' has neither open_clip's {CONFIG_FILE} nor the {TRANSFORMERS_CONFIG} of transformers"
        )
    with refusing_misfits(f"backbone '{name}': its {CONFIG_FILE} describes no open_clip model"):
        config = read_json(open_clips)
        model, preprocess = config["model_cfg"], config.get("preprocess_cfg") or {}
        size = model["vision_cfg"].get("image_size", 224)
        for part in ("vision_cfg", "text_cfg"):
            openai_format.check_sizes(model[part], f"{part}.")
        if unsafe := set(model["text_cfg"].get("tokenizer_kwargs") or {}) - _TOKENIZER_SETTINGS:
            raise UserError(f"backbone '{name}': the tokenizer's setting {shown(sorted(unsafe)[0])} is not supported")
        own = described_by_open_clip(preprocess, size, name)
        return ModelFolder(name, own, model, None, find, repository, given)


def _is_cached_for_transformers(name: str) -> bool:
    """Whether transformers has downloaded a repository and open_clip has not, so that the hub need not be asked."""
    if not name.startswith("hf-hub:") or published_weights.hub_cached(name, CONFIG_FILE) is not None:
        return False
    config = published_weights.hub_cached(name, TRANSFORMERS_CONFIG)
    return config is not None and _is_transformers(config)


def _has_both(open_clips: Path, given: Path | None) -> bool:
    return given is not None and _is_transformers(open_clips.parent / TRANSFORMERS_CONFIG)


def _is_of_transformers(given: Path | None) -> bool:
    return given is not None and openai_format.TRANSFORMERS_KEY in weights_file.outline(given).tensors


def _of_transformers(name: str, config: Path, find: Find, repository: str, given: Path | None) -> ModelFolder:
    with refusing_misfits(f"backbone '{name}': its {config.name} describes no CLIP or SigLIP"):
        model = transformers_format.described(read_json(config), name)
        images = find(IMAGE_CONFIG)
        described = read_json(images) if images is not None else {}
        own = described_by_transformers({**model.images, **_given(described)}, model.image_size, name)
    return ModelFolder(name, own, None, model, find, repository, given)


def _given(images: Mapping[str, Any]) -> dict[str, Any]:
    """Drop a mean and standard deviation that are null: image processors then use their defaults."""
    return {key: value for key, value in images.items() if value is not None or key not in ("image_mean", "image_std")}
