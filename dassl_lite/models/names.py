"""Parse a backbone's name: which architecture, which weights, and where they come from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

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
    "Or an open_clip name with a tag (ViT-B-16:laion2b_s34b_b88k), hf-hub:ORG/REPO, random:ARCHITECTURE, or a file or "
    "folder of weights."
)
SCRATCH = "scratch"  # in place of a tag: open_clip's defaults, for a model trained from scratch

Kind = Literal["file", "tag", "checkpoint", "folder", "hub", "random"]


@dataclass(frozen=True)
class BackboneName:
    """A parsed backbone name.

    Attributes:
        text: the name as the user wrote it.
        kind: "file" (in OpenAI's layout; the shapes of the tensors give the architecture), "tag" (an open_clip
            architecture with published weights), "checkpoint" (an open_clip architecture with a local file), "folder"
            (with weights and a description of the model), "hub" (such a folder on the Hugging Face hub) or "random"
            (an architecture with random weights).
        architecture: open_clip's name for it, or the repository for "hub"; "" for "file" and "folder".
        tag: name of the published weights, for "tag"; for a file, of those whose preprocessing and activation it has.
        path: the file, for "file" and "checkpoint"; the folder.
        seed: seed of the weights, for "random".
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
        """The same name, with the path at which its weights were found."""
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
    architecture, like, rest = _split(text)
    if text.startswith("openai:"):
        return BackboneName(text, "file", tag="openai", path=_existing(rest))
    if architecture not in architectures():
        folder = Path(text.removeprefix("local-dir:")).expanduser()
        if folder.is_dir():
            return BackboneName(text, "folder", path=folder)
        if text.endswith(_FILE_SUFFIXES) and not (rest and not Path(text).exists()):
            return BackboneName(text, "file", path=_existing(text))
        raise unknown("backbone", architecture if rest else text, [DEMO, *OPENAI_NAMES], _HINT)
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if like or (rest.endswith(_FILE_SUFFIXES) and not open_clip.is_pretrained_cfg(architecture, rest)):
        if like and like != SCRATCH and not open_clip.is_pretrained_cfg(architecture, like):
            raise unknown(
                f"weights for backbone {architecture}:", like, tags, f"Or {SCRATCH}, for a training of yours."
            )
        return BackboneName(text, "checkpoint", architecture, _cleaned(like), path=_existing(rest))
    if open_clip.is_pretrained_cfg(architecture, rest):
        return BackboneName(text, "tag", architecture, _cleaned(rest))
    if not rest and "openai" in tags:  # OpenAI's names, written with a dash
        return BackboneName(text, "tag", architecture, "openai")
    raise unknown(f"weights for backbone {architecture}:", rest, tags, f"Or a file: {architecture}:/path/to/file.pt.")


def _cleaned(tag: str) -> str:
    return tag.lower().replace("-", "_")


def is_local(text: str) -> bool:
    """Whether a name refers to a CLIP on this machine and means nothing elsewhere: a file, demo, random:..."""
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


def _split(text: str) -> tuple[str, str, str]:
    """(architecture, tag, rest) of `ARCHITECTURE`, `ARCHITECTURE:REST` or `ARCHITECTURE@TAG:FILE`."""
    head, _, rest = text.partition(":")
    tag = ""
    if head not in OPENAI_NAMES and "@" in head and rest:
        head, _, tag = head.rpartition("@")
    return OPENAI_NAMES.get(head, head), tag, rest


def architectures() -> frozenset[str]:
    """The architectures that open_clip knows."""
    import open_clip

    return frozenset(open_clip.list_models())


def _existing(text: str) -> Path:
    path = Path(text).expanduser()
    if not path.is_file():
        raise UserError(f"no weights file {path}: MODEL.BACKBONE.NAME must be a model's name or an existing file")
    return path
