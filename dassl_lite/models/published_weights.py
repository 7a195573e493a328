"""Find published CLIP weights on this machine, or download them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import filelock
from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.constants import ENDPOINT, HF_HUB_CACHE, HF_HUB_OFFLINE
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from dassl_lite.downloads.fetch import (
    DownloadError,
    Part,
    Patience,
    WrongFileError,
    check_digest,
    check_reachable,
    compare_digest,
    fetch,
    hasher_of,
    lock_for,
)
from dassl_lite.models import weights_file
from dassl_lite.models.weights_file import WeightsFile
from dassl_lite.utils.errors import UserError
from dassl_lite.utils.files import cache_root
from dassl_lite.utils.logger import get_logger

logger = get_logger(__name__)

# Without a network the error should come at once, so only a server that has responded is tried again.
PATIENCE = Patience(connect=10, read=10, tries=3, retry_unreachable=False)
# open_clip's names for the file in a hub repository, the safer format first.
_HUB_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")


_UNUSABLE = "delete it to download it again"


def locate(architecture: str, tag: str) -> Path:
    """The file with open_clip's published weights `architecture:tag`, downloaded if it is not on this machine yet.

    For a file already here, `read` or `check` compares the digest.

    Raises:
        UserError: neither found nor downloaded (says where it looked, where the file is published and where to put
            it).
    """
    import open_clip

    published = open_clip.get_pretrained_cfg(architecture, tag)
    url, hub = published.get("url", ""), published.get("hf_hub", "")
    places = [folder / url.rsplit("/", 1)[-1] for folder in _folders()] if url else []
    for path in places:
        if path.is_file():
            return path
    for repository, filename in _hub_files(hub):
        found = try_to_load_from_cache(repository, filename)
        if isinstance(found, str):
            return Path(found)
    problems = []
    for address, download in _downloads(url, places, hub):
        try:
            return download()
        except DownloadError as error:
            problems.append(f"{address} ({error.reason})")
        except UserError:  # downloaded, but wrong
            raise
        except (OSError, ValueError) as error:
            problems.append(f"{address} ({_one_line(error)})")
    looked = [*map(str, places), *([HF_HUB_CACHE] if hub else [])]
    remedy = f"put it at {places[0]}" if places else f"name it {architecture}@{tag}:/path/to/file"
    raise UserError(
        f"no weights for {architecture}:{tag}: not found in {', '.join(looked)}, and not downloaded from "
        f"{'; '.join(problems)}. Download the file elsewhere and {remedy}; 'demo' needs no file"
    )


def read(path: Path, architecture: str, tag: str) -> WeightsFile:
    """The content of the file from `locate`; it is read only once, digest included.

    Raises:
        UserError: it is broken or has a wrong digest.
    """
    url = _address_of(path, architecture, tag)
    if not (digest := _published_digest(url)):
        return weights_file.read(path)
    hasher = hasher_of(digest)
    try:
        content = weights_file.read(path, hasher)
    except UserError:
        _check(path, url, _UNUSABLE)  # raises if this is another file
        raise
    _check(path, url, _UNUSABLE, hasher)
    return content


def check(path: Path, architecture: str, tag: str) -> Path:
    """The file from `locate`, if its digest is right; otherwise raises a UserError."""
    _check(path, _address_of(path, architecture, tag), _UNUSABLE)
    return path


def _address_of(path: Path, architecture: str, tag: str) -> str:
    """The URL of a file from `locate`; "" for a file from the hub, whose client has checked it."""
    import open_clip

    url = str(open_clip.get_pretrained_cfg(architecture, tag).get("url", ""))
    return url if path.name == url.rsplit("/", 1)[-1] else ""


def locate_url(url: str) -> Path:
    """The file published at `url`, by its name in the folders of weights, else downloaded.

    Raises:
        UserError: neither found nor downloaded, or found with a wrong digest.
    """
    places = [folder / url.rsplit("/", 1)[-1] for folder in _folders()]
    for path in places:
        if path.is_file():
            _check(path, url, _UNUSABLE)
            return path
    try:
        return _download(url, places[0])
    except DownloadError as error:
        raise UserError(
            f"no weights: not found in {', '.join(map(str, places))}, and not downloaded from {url} ({error.reason}). "
            f"Download the file elsewhere and put it at {places[0]}; --backbone demo needs no file"
        ) from error


def hub_file(name: str, filename: str) -> Path | None:
    """A file of the repository "hf-hub:ORG/REPO", downloaded if it is not on this machine; None if there is none.

    Raises:
        UserError: it is not here, and the hub is unreachable or does not give it.
    """
    repository = name.removeprefix("hf-hub:")
    if (cached := hub_cached(name, filename)) is not None:
        return cached
    try:
        return _download_from_hub(repository, filename)
    except EntryNotFoundError as error:
        if isinstance(error, LocalEntryNotFoundError):  # not known here, and the hub was not asked
            raise _unavailable(name, filename, error) from error
        return None
    except DownloadError as error:
        if "answered 404" in error.reason:
            return None
        raise _unavailable(name, filename, error) from error
    except (OSError, ValueError) as error:
        raise _unavailable(name, filename, error) from error


def hub_cached(name: str, filename: str) -> Path | None:
    """A file of a hub repository if it is on this machine."""
    try:
        cached = try_to_load_from_cache(name.removeprefix("hf-hub:"), filename)
    except ValueError as error:  # a name that no repository has
        raise UserError(f"backbone '{name}': {_one_line(error)}") from error
    return Path(cached) if isinstance(cached, str) else None


def check_hub(repository: str, filename: str) -> None:
    """Fail fast where another library's client would keep trying to download a file that is not on this machine.

    Raises:
        UserError: the hub is unreachable, or does not give the file.
    """
    if HF_HUB_OFFLINE or hub_cached(repository, filename) is not None:
        return
    try:
        check_reachable(_hub_url(repository, filename), PATIENCE)
    except DownloadError as error:
        raise UserError(
            f"{repository} is not in {HF_HUB_CACHE}, and {_hub_url(repository, filename)} gives nothing "
            f"({error.reason}); download it elsewhere (hf download) and copy that folder"
        ) from error


def _unavailable(name: str, filename: str, error: Exception) -> UserError:
    repository = name.removeprefix("hf-hub:")
    reason = error.reason if isinstance(error, DownloadError) else _one_line(error)
    return UserError(
        f"backbone '{name}': no model in {HF_HUB_CACHE}, and none downloaded from {_hub_url(repository, filename)} "
        f"({reason}); download the repository elsewhere (hf download) and copy that folder, or name a folder or file"
    )


def _folders() -> list[Path]:
    """Where to look for weights by file name: our cache, then the one of OpenAI's package and open_clip."""
    return [cache_root() / "clip", Path.home() / ".cache" / "clip"]


def _downloads(url: str, places: list[Path], hub: str) -> Iterator[tuple[str, Callable[[], Path]]]:
    """(address, function that downloads from it) in the order in which to try them."""
    if url:
        yield url, partial(_download, url, places[0])
    for repository, filename in _hub_files(hub):
        yield _hub_url(repository, filename), partial(_download_from_hub, repository, filename)


def _download(url: str, path: Path) -> Path:
    """Download `url` to `path`. Of several processes that need it at once, one downloads and the others wait.

    Raises:
        DownloadError: it cannot be downloaded; what was received is kept for the next time.
        UserError: the digest is wrong.
    """
    lock = lock_for(path)
    waited = False
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        logger.info(f"Waiting for another process that is downloading {path.name}")
        lock.acquire()
        waited = True
    try:
        if path.is_file():
            return path
        if waited and not Part(path, url).size:  # or each process in turn would wait for an unreachable server
            raise DownloadError(url, "another process has just tried in vain")
        logger.info(f"Downloading {url} to {path}")
        try:
            fetch(url, path, digest=_published_digest(url), patience=PATIENCE)
        except WrongFileError as error:
            raise UserError(f"{path} is not the file published at {url} ({error}): try again") from error
    finally:
        lock.release()
    return path


def _check(path: Path, url: str, remedy: str, hasher: Any = None) -> None:
    """Compare a file with the digest of its address; ``hasher`` has its bytes if it has been read."""
    digest = _published_digest(url)
    try:
        if hasher is None:
            check_digest(path, digest)
        else:
            compare_digest(hasher, digest, path.name)
    except WrongFileError as error:
        raise UserError(f"{path} is not the file published at {url} ({error}): {remedy}") from error


def _published_digest(url: str) -> str:
    """The sha256, whole or its first digits, that OpenAI and open_clip's authors put into the URL; "" for others."""
    if "openaipublic" in url:
        return f"sha256:{url.split('/')[-2]}"
    if "mlfoundations" in url:
        return f"sha256:{url.rsplit('-', 1)[-1].split('.')[0]}"
    return ""


def _download_from_hub(repository: str, filename: str) -> Path:
    """Download with the hub's own client, into its cache.

    Raises:
        DownloadError: the hub is unreachable.
        OSError, ValueError: its client failed.
    """
    if not HF_HUB_OFFLINE:  # the client retries for 20 s before it gives up, and logs each attempt
        check_reachable(_hub_url(repository, filename), PATIENCE)
    return Path(hf_hub_download(repository, filename))


def _hub_files(hub: str) -> Iterator[tuple[str, str]]:
    """(repository, file) for open_clip's "org/repository/file", with its own file names if none is given."""
    if hub:
        repository, _, filename = hub.rpartition("/")
        for name in [filename] if filename else _HUB_FILES:
            yield repository, name


def _hub_url(repository: str, filename: str) -> str:
    return f"{ENDPOINT}/{repository}/resolve/main/{filename}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:100] or type(error).__name__
