"""Settings that weights were trained with but do not show: image preprocessing and activation.

Published weights have it in open_clip's list. A file of weights may say it, in its metadata or in the
`open_clip_config.json` beside it; otherwise the published weights of its architecture do, if they agree. If they do
not, the user is asked: nothing is guessed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from dassl_lite.models import openai_format, weights_file
from dassl_lite.models.names import OPENAI_NAMES, SCRATCH, BackboneName
from dassl_lite.models.weights_file import WeightsFile
from dassl_lite.utils.errors import UserError, refusing_misfits
from dassl_lite.utils.files import read_json

Settings = Mapping[str, Any]  # open_clip's names: quick_gelu, mean, std, interpolation, resize_mode, fill_color

CONFIG_FILE = "open_clip_config.json"
# Settings in which published weights of one architecture may differ, and their names for a user.
_TOLD = {
    "quick_gelu": "activation",
    "mean": "mean",
    "std": "standard deviation",
    "interpolation": "interpolation",
    "resize_mode": "way of resizing",
}
_SAID_BY_FILES = (*_TOLD, "fill_color")


def of_published(architecture: str, tag: str) -> Settings:
    """Settings of published weights; an unknown tag gives only the architecture's activation."""
    import open_clip

    own = bool(open_clip.get_model_config(architecture).get("quick_gelu"))
    published = open_clip.get_pretrained_cfg(architecture, tag)
    return {**published, "quick_gelu": own or bool(published.get("quick_gelu"))}


def of_random(architecture: str) -> Settings:
    """Settings of random weights: those that all published ones share, so that timings use real image sizes."""
    every = _of_all_published(architecture)
    return {key: every[0][key] for key in _TOLD if every and key not in _differing(every)} | {
        "quick_gelu": of_published(architecture, "")["quick_gelu"]
    }


def of_checkpoint(backbone: BackboneName) -> Settings:
    """Settings of a file with a named architecture, `ARCHITECTURE:FILE` or `ARCHITECTURE@TAG:FILE`.

    Raises:
        UserError: the published weights of the architecture differ in what the file does not say.
    """
    architecture, file = backbone.architecture, backbone.file
    if backbone.tag:
        return of_published(architecture, "" if backbone.tag == SCRATCH else backbone.tag)
    said = _said_by(file, architecture)
    every = _of_all_published(architecture)
    if not every:
        return {**of_published(architecture, ""), **said}
    unknown = [key for key in _differing(every) if key not in said]
    trained = of_published(architecture, "")["quick_gelu"]  # trained by open_clip from scratch
    may_be_other = "quick_gelu" not in (*said, *unknown) and every[0]["quick_gelu"] != trained
    may_be_openais = bool(unknown) and architecture in OPENAI_NAMES.values()
    if may_be_openais or may_be_other:
        is_openais, is_training = _made_by(file, file.stat().st_mtime_ns)
        if may_be_openais and is_openais:
            return {**of_published(architecture, "openai"), **said}
        unknown += ["quick_gelu"] if may_be_other and is_training else []
    if unknown:
        raise UserError(
            f"backbone '{backbone.text}': models of {architecture} differ in their {_names(unknown)}, and the file "
            f"does not say what it has. Say whose it is: {_choices(architecture, unknown, file)}; or "
            f"{architecture}@{SCRATCH}:{file} for a training of your own from scratch ({_activation(architecture)})"
        )
    return {**every[0], **said}


@lru_cache(maxsize=8)
def _made_by(file: Path, mtime: int) -> tuple[bool, bool]:
    """Whether OpenAI's package wrote a file, and whether a training script did."""
    content = weights_file.outline(file)
    return content.is_openais, content.training


def of_openais_layout(backbone: BackboneName, content: WeightsFile) -> Settings:
    """Settings of a file in OpenAI's layout with no architecture named. open_clip's own CLIP has the same tensor names.

    Raises:
        UserError: nothing shows that OpenAI's package wrote it.
    """
    said = _said_in(content.metadata, str(backbone.file))
    ours = any(key in content.metadata for key in openai_format.METADATA)
    if backbone.tag == "openai" or ours or content.is_openais:
        return {"quick_gelu": True, **said}
    if "quick_gelu" in said:
        return said
    fitting = openai_format.named(openai_format.architecture_of(content.tensors, {}, str(backbone.file)))
    named = f"{fitting}@TAG:{backbone.file} (or @{SCRATCH}), or " if fitting else ""
    beside = "" if fitting else f"; or put the model's {CONFIG_FILE} beside it"
    raise UserError(
        f"backbone '{backbone.text}' does not say its activation and preprocessing: OpenAI's models and those that "
        f"open_clip trains have the same layout. Say which it is: {named}openai:{backbone.file} for a model of "
        f"OpenAI's or trained from one (QuickGELU){beside}"
    )


def _of_all_published(architecture: str) -> list[Settings]:
    import open_clip

    return [of_published(architecture, tag) for tag in open_clip.list_pretrained_tags_by_model(architecture)]


def _differing(every: Sequence[Settings]) -> list[str]:
    return [key for key in _TOLD if len({repr(one.get(key)) for one in every}) > 1]


def _said_by(file: Path, architecture: str) -> dict[str, Any]:
    """The settings in a weights file's metadata, else in the description beside it."""
    import open_clip

    said = _said_in(weights_file.metadata_of(file), str(file))
    beside = file.parent / CONFIG_FILE
    if not beside.is_file():
        return said
    with refusing_misfits(f"{beside} does not describe a model of open_clip's"):
        config = read_json(beside)
        model, preprocess = config["model_cfg"], config.get("preprocess_cfg") or {}
        own = open_clip.get_model_config(architecture)
        if any(model[part] != own[part] for part in ("embed_dim", "vision_cfg")):
            raise UserError(f"{beside} describes another architecture than {architecture}: name the folder, or move it")
        found = {key: preprocess[key] for key in _SAID_BY_FILES if preprocess.get(key) is not None}
        return {**found, "quick_gelu": bool(model.get("quick_gelu")), **said}


def _said_in(metadata: Mapping[str, str], source: str) -> dict[str, Any]:
    """The settings in a safetensors file's metadata, where numbers are written as JSON."""
    said: dict[str, Any] = {key: metadata[key] for key in _SAID_BY_FILES if key in metadata}
    with refusing_misfits(f"{source}: its metadata describe no preprocessing"):
        for key in ("mean", "std", "fill_color"):
            if key in said:
                said[key] = json.loads(said[key])
        if "quick_gelu" in said:
            said["quick_gelu"] = bool(int(said["quick_gelu"]))
    return said


def _names(keys: Sequence[str]) -> str:
    named = [_TOLD[key] for key in keys]
    return ", ".join(named[:-1]) + (" and " if named[:-1] else "") + named[-1]


def _choices(architecture: str, keys: Sequence[str], file: Path) -> str:
    """One example tag for each combination of the settings in which the tags differ."""
    import open_clip

    groups: dict[str, list[str]] = {}
    for tag in open_clip.list_pretrained_tags_by_model(architecture):
        settings = of_published(architecture, tag)
        groups.setdefault(", ".join(_shown(key, settings) for key in keys), []).append(tag)
    more = {kind: f" or {tags[1]}" + (", ..." if tags[2:] else "") if tags[1:] else "" for kind, tags in groups.items()}
    return "; ".join(f"{architecture}@{tags[0]}:{file}{more[kind]} ({kind})" for kind, tags in groups.items())


def _shown(key: str, settings: Settings) -> str:
    if key == "quick_gelu":
        return "QuickGELU" if settings[key] else "GELU"
    value = settings.get(key)
    return str(value) if isinstance(value, str) else f"{_TOLD[key]} {value[0]:.2g}" if value else str(value)


def _activation(architecture: str) -> str:
    return _shown("quick_gelu", of_published(architecture, ""))
