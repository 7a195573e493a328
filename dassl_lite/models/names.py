"""Parse a backbone's name: which architecture, which weights, and where they come from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import open_clip

from dassl_lite.utils.errors import UserError, unknown

# OpenAI's names, and open_clip's for the same architectures.
OPENAI_NAMES = {
    "RN50": "RN50",
    "RN101": "RN101",
    "RN50x4": "RN50x4",
    "RN50x16": "RN50x16",
    "RN50x64": "RN50x64",
    "ViT-B/32": "ViT-B-32",
    "ViT-B/16": "ViT-B-16",
    "ViT-L/14": "ViT-L-14",
    "ViT-L/14@336px": "ViT-L-14-336",
}
DEMO = "demo"
DEMO_FILE = Path(__file__).parent / "weights" / "demo.safetensors"
_FILE_SUFFIXES = (".pt", ".pth", ".tar", ".bin", ".safetensors")
_HINT = (
    "Or an open_clip name with a tag (ViT-B-16:laion2b_s34b_b88k), hf-hub:ORG/REPO, random:ARCHITECTURE, or a file of "
    "weights."
)

Kind = Literal["file", "tag", "checkpoint", "hub", "random"]


@dataclass(frozen=True)
class BackboneName:
    """A parsed backbone name.

    Attributes:
        text: the name as the user wrote it.
        kind: "file" (in OpenAI's layout; the shapes of the tensors give the architecture), "tag" (an open_clip
            architecture with published weights), "checkpoint" (an open_clip architecture with a local file), "hub" (a
            repository on the Hugging Face hub) or "random" (an architecture with random weights).
        architecture: open_clip's name for it, or the repository for "hub"; "" for "file".
        tag: name of the published weights, for "tag".
        path: the file, for "file" and "checkpoint".
        seed: of the weights, for "random".
    """

    text: str
    kind: Kind
    architecture: str = ""
    tag: str = ""
    path: Path | None = None
    seed: int = 0

    @property
    def file(self) -> Path:
        """The path, for a kind that has one."""
        assert self.path is not None, self
        return self.path

    def at(self, path: Path) -> BackboneName:
        """The same name, with the file where its weights were found."""
        return replace(self, path=path)


def parse(text: str) -> BackboneName:
    """Parse a backbone's name. Raises UserError for an unknown one, with the choices and the most similar."""
    if text == DEMO:
        return BackboneName(text, "file", path=DEMO_FILE)
    if text.startswith("random:"):
        return _parse_random(text)
    if text.startswith("hf-hub:"):
        return BackboneName(text, "hub", architecture=text)
    if text in OPENAI_NAMES:
        return BackboneName(text, "tag", OPENAI_NAMES[text], "openai")
    if text.endswith(_FILE_SUFFIXES) and _split(text)[0] not in architectures():
        return BackboneName(text, "file", path=_existing(text))
    architecture, tag = _split(text)
    if architecture not in architectures():
        raise unknown("backbone", text, [DEMO, *OPENAI_NAMES], _HINT)
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if open_clip.is_pretrained_cfg(architecture, tag):
        return BackboneName(text, "tag", architecture, tag.lower().replace("-", "_"))
    if not tag and "openai" in tags:  # OpenAI's names, written with a dash
        return BackboneName(text, "tag", architecture, "openai")
    if tag.endswith(_FILE_SUFFIXES):
        return BackboneName(text, "checkpoint", architecture, path=_existing(tag))
    raise unknown(f"weights for backbone {architecture}:", tag, tags, f"Or a file: {architecture}:/path/to/file.pt.")


def is_local(text: str) -> bool:
    """Whether a name is of a CLIP that is made or lies on this machine, unknown elsewhere: a file, demo, random:..."""
    try:
        return parse(text).kind in ("file", "random")
    except UserError:
        return False


def _parse_random(text: str) -> BackboneName:
    """`random:ARCHITECTURE` or `random:ARCHITECTURE:SEED`."""
    architecture, _, seed = text.removeprefix("random:").partition(":")
    architecture = OPENAI_NAMES.get(architecture, architecture)
    if architecture not in architectures():
        raise unknown("architecture", architecture, OPENAI_NAMES, "Or any architecture of open_clip.")
    if seed and not seed.isdecimal():
        raise UserError(f"backbone '{text}': the seed '{seed}' is not a number")
    return BackboneName(text, "random", architecture, seed=int(seed or 0))


def _split(text: str) -> tuple[str, str]:
    architecture, _, tag = text.partition(":")
    return OPENAI_NAMES.get(architecture, architecture), tag


def architectures() -> frozenset[str]:
    """The architectures that open_clip knows."""
    return frozenset(open_clip.list_models())


def _existing(text: str) -> Path:
    path = Path(text).expanduser()
    if not path.is_file():
        raise UserError(f"no weights file {path}: MODEL.BACKBONE.NAME must be a model's name or an existing file")
    return path
