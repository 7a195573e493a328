"""Finding published weights on this machine, or fetching them."""

from __future__ import annotations

import hashlib
import logging
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import open_clip
from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.constants import ENDPOINT, HF_HUB_CACHE, HF_HUB_OFFLINE
from tqdm import tqdm

from dassl_lite.utils.errors import UserError
from dassl_lite.utils.files import atomic_path, cache_root, read_json

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
    own = [folder / url.rsplit("/", 1)[-1] for folder in _folders()] if url else []
    for path in own:
        if path.is_file():
            _check_digest(path, url)
            return path
    for repository, filename in _hub_files(hub):
        found = try_to_load_from_cache(repository, filename)
        if isinstance(found, str):
            return Path(found)
    problems = []
    for address, fetch in _sources(url, own, hub):
        try:
            return fetch()
        except UserError:  # it came, and is wrong
            raise
        except (OSError, ValueError) as error:
            problems.append(f"{address} ({_reason(error)})")
    looked = [*map(str, own), *([HF_HUB_CACHE] if hub else [])]
    put = f"put it at {own[0]}" if own else f"name it {architecture}:/path/to/file"
    raise UserError(
        f"no weights for {architecture}:{tag}: not in {', '.join(looked)}; not fetched from {'; '.join(problems)}. "
        f"Fetch it elsewhere and {put}; 'demo' needs no file"
    )


def _folders() -> list[Path]:
    """Where weights are looked for by their file's name; the first is ours, the second OpenAI's and open_clip's."""
    return [cache_root() / "clip", Path.home() / ".cache" / "clip"]


def _sources(url: str, own: list[Path], hub: str) -> Iterator[tuple[str, Callable[[], Path]]]:
    """(address, function that fetches from it) in the order in which to try them."""
    if url:
        yield url, partial(_download, url, own[0])
    for repository, filename in _hub_files(hub):
        yield _hub_url(repository, filename), partial(_fetch_from_hub, repository, filename)


def _fetch_from_hub(repository: str, filename: str) -> Path:
    """Through the hub's own client and into its cache. Raises OSError or ValueError if it is out of reach.

    The client tries again for 20 s and logs each time before it gives up, so one short request goes first.
    """
    if HF_HUB_OFFLINE:
        return Path(hf_hub_download(repository, filename))
    request = urllib.request.Request(_hub_url(repository, filename), method="HEAD")
    with urllib.request.urlopen(request, timeout=_TIMEOUT):
        return Path(hf_hub_download(repository, filename))


def hub_config(name: str) -> dict[str, Any]:
    """A hub repository's description of its model. Raises UserError if it is out of reach or no open_clip model."""
    repository = name.removeprefix("hf-hub:")
    try:
        cached = try_to_load_from_cache(repository, "open_clip_config.json")
        path = cached if isinstance(cached, str) else _fetch_from_hub(repository, "open_clip_config.json")
        config = read_json(path)
        config["model_cfg"]["vision_cfg"]["image_size"]
    except (OSError, ValueError, LookupError, TypeError) as error:
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
    return f"{ENDPOINT}/{repository}/resolve/main/{filename}"


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
        _check_digest(temporary, url, path)
    return path


def _check_digest(path: Path, url: str, final: Path | None = None) -> None:
    """Compare a file with the sha256, whole or in its first digits, that its publisher wrote into the URL; an
    error names `final` if the file is only on its way there."""
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
            f"{final or path} is not the file published at {url} (its sha256 starts with {sha256.hexdigest()[:8]}, "
            f"not {expected[:8]}): " + ("try again" if final else "delete it, and it is fetched again")
        )
