"""Finding published weights on this machine, or fetching them."""

from __future__ import annotations

import hashlib
import json
import logging
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import open_clip
from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.constants import HF_HUB_CACHE
from tqdm import tqdm

from dassl_lite.utils.errors import UserError
from dassl_lite.utils.files import atomic_path, cache_root

logger = logging.getLogger(__name__)

# open_clip's names for the file in a hub repository, the safer one first.
_HUB_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
_TIMEOUT = 10  # seconds without an answer after which a server counts as out of reach
_BLOCK = 1 << 20  # bytes


def locate(architecture: str, tag: str) -> Path:
    """The file with open_clip's published weights `architecture:tag`; fetched if it is not here yet.

    Raises:
        UserError: neither here nor within reach: says where was looked, where it is and where to put it.
    """
    published = open_clip.get_pretrained_cfg(architecture, tag)
    url, hub = published.get("url", ""), published.get("hf_hub", "")
    folders = [cache_root() / "clip", Path.home() / ".cache" / "clip"]
    name = url.rsplit("/", 1)[-1]
    for path in [folder / name for folder in folders] if name else []:
        if path.is_file():
            _check_digest(path, url)
            return path
    for repository, filename in _hub_files(hub):
        found = try_to_load_from_cache(repository, filename)
        if isinstance(found, str):
            return Path(found)
    problems = []
    if url:
        try:
            return _download(url, folders[0] / name)
        except OSError as error:
            problems.append(f"{url} ({_reason(error)})")
    for repository, filename in _hub_files(hub):
        try:
            return Path(hf_hub_download(repository, filename))
        except (OSError, ValueError, RuntimeError) as error:
            problems.append(f"{_hub_url(repository, filename)} ({_reason(error)})")
    looked = [*(str(folder / name) for folder in folders if name), *([f"{HF_HUB_CACHE}"] if hub else [])]
    put = str(folders[0] / name) if name else f"a file of your own and name it {architecture}:FILE"
    raise UserError(
        f"no weights for {architecture}:{tag}: not in {', '.join(looked)}; not fetched from {'; '.join(problems)}. "
        f"Fetch the file elsewhere and put it at {put}, or use MODEL.BACKBONE.NAME demo"
    )


def hub_config(name: str) -> dict[str, Any]:
    """A hub repository's description of its model. Raises UserError if it is out of reach or no open_clip model."""
    repository = name.removeprefix("hf-hub:")
    try:
        with open(hf_hub_download(repository, "open_clip_config.json"), encoding="utf-8") as file:
            config = json.load(file)
        config["model_cfg"]["vision_cfg"]["image_size"]
    except (OSError, ValueError, RuntimeError, LookupError, TypeError) as error:
        raise UserError(
            f"backbone '{name}': no open_clip model in {HF_HUB_CACHE}, nor fetched from "
            f"{_hub_url(repository, 'open_clip_config.json')} ({_reason(error)}); "
            "fetch the repository where there is a network (hf download) and copy that folder, or name a file"
        ) from error
    return config


def _hub_files(hub: str) -> Iterator[tuple[str, str]]:
    """(repository, file) for open_clip's "org/repository/file", with its own file names if none is given."""
    if hub:
        repository, _, filename = hub.rpartition("/")
        for name in [filename] if filename else _HUB_FILES:
            yield repository, name


def _hub_url(repository: str, filename: str) -> str:
    return f"https://huggingface.co/{repository}/resolve/main/{filename}"


def _reason(error: Exception) -> str:
    """The cause of a failed download, in a few words."""
    if isinstance(error, urllib.error.URLError) and not isinstance(error, urllib.error.HTTPError):
        return str(error.reason)
    return " ".join(str(error).split())[:100] or type(error).__name__


def _download(url: str, path: Path) -> Path:
    """Fetch a file whole or not at all, with its digest checked. Raises OSError if it is out of reach."""
    logger.info("Fetching %s to %s", url, path)
    with urllib.request.urlopen(url, timeout=_TIMEOUT) as answer, atomic_path(path) as temporary:
        total = int(answer.headers.get("Content-Length") or 0) or None
        with temporary.open("wb") as file, tqdm(total=total, unit="B", unit_scale=True, desc=path.name) as bar:
            while block := answer.read(_BLOCK):
                bar.update(file.write(block))
        _check_digest(temporary, url)
    return path


def _check_digest(path: Path, url: str) -> None:
    """Compare a file with the sha256, whole or in its first digits, that its publisher wrote into the URL."""
    if "openaipublic" in url:
        expected = url.split("/")[-2]
    elif "mlfoundations" in url:
        expected = url.rsplit("-", 1)[-1].split(".")[0]
    else:
        return
    sha256 = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            sha256.update(block)
    if not sha256.hexdigest().startswith(expected):
        raise UserError(
            f"{path} is not the file published at {url} (its sha256 starts with {sha256.hexdigest()[:8]}, "
            f"not {expected[:8]}): delete it, and it is fetched again"
        )
