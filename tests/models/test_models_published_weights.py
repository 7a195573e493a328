"""Published weights: found on this machine, downloaded with their digest checked, or reported in one line."""

from __future__ import annotations

import hashlib
import json
import threading
from pathlib import Path
from typing import Any

import open_clip
import pytest
import requests
import torch
from download_server import Server
from safetensors.torch import load_file

from dassl_lite.downloads.fetch import DownloadError, Patience, lock_for
from dassl_lite.models import names, openai_format, published_weights
from dassl_lite.models.clip import load_clip, preprocessing
from dassl_lite.models.published_weights import locate
from dassl_lite.utils.errors import UserError

CONTENT = bytes(range(256)) * 40
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder where weights are looked for first, in an empty home and with an empty hub cache."""
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setenv("DASSL_LITE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(published_weights, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(published_weights, "try_to_load_from_cache", lambda *args: None)
    monkeypatch.setattr(published_weights, "HF_HUB_OFFLINE", False)
    return tmp_path / "cache" / "clip"


@pytest.fixture
def requested(monkeypatch: pytest.MonkeyPatch, cache: Path) -> list[str]:
    """No network: the URLs that were requested in vain."""
    urls: list[str] = []

    def unreachable(session: requests.Session, method: str, url: str, **kwargs: Any) -> Any:
        assert kwargs["timeout"] == (10, 10)
        urls.append(url)
        raise requests.ConnectionError(OSError(101, "Network is unreachable"))

    monkeypatch.setattr(requests.Session, "request", unreachable)
    monkeypatch.setattr(published_weights, "hf_hub_download", lambda *args: pytest.fail("its retries take long"))
    return urls


@pytest.fixture
def published(cache: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of weights on the loopback server that has their digest in it, as OpenAI's have."""
    url = server.url(f"openaipublic/{SHA256}/RN50.pt")
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda architecture, tag: {"url": url})
    monkeypatch.setattr(published_weights, "PATIENCE", Patience(read=2.0, tries=3, pause=0.0, retry_unreachable=False))
    return url


def path_of(url: str) -> str:
    return url.split("/", 3)[3]


def test_downloaded_weights_are_kept_for_the_next_time(published: str, server: Server, cache: Path) -> None:
    page = server.add(path_of(published), CONTENT)
    assert locate("RN50", "openai") == locate("RN50", "openai") == cache / "RN50.pt"
    assert (cache / "RN50.pt").read_bytes() == CONTENT
    assert [path.name for path in cache.iterdir()] == ["RN50.pt"]
    assert len(page.asked) == 1


def test_interrupted_download_of_weights_resumes_in_the_same_call(published: str, server: Server, cache: Path) -> None:
    page = server.add(path_of(published), CONTENT, cuts=[1000, 500])
    assert locate("RN50", "openai").read_bytes() == CONTENT
    assert page.asked == ["", "bytes=1000-", "bytes=1500-"]


def test_interrupted_download_of_weights_resumes_in_the_next_call(published: str, server: Server, cache: Path) -> None:
    page = server.add(path_of(published), CONTENT, cuts=[1000, 0, 0, 0])
    with pytest.raises(UserError, match=r"\(the connection was closed; the 1,000 bytes received are kept\)") as caught:
        locate("RN50", "openai")
    assert f"put it at {cache / 'RN50.pt'}" in str(caught.value)
    assert not (cache / "RN50.pt").exists()
    page.cuts.clear()
    assert locate("RN50", "openai").read_bytes() == CONTENT
    assert page.asked[-1] == "bytes=1000-"


def test_downloaded_weights_with_a_wrong_digest_are_refused_in_one_line(
    published: str, server: Server, cache: Path
) -> None:
    server.add(path_of(published), CONTENT[::-1])
    with pytest.raises(UserError, match=r"RN50\.pt is not the file published at .*: try again$") as caught:
        locate("RN50", "openai")
    assert "\n" not in str(caught.value)
    assert list(cache.iterdir()) == []


def test_login_page_in_place_of_weights_is_reported(published: str, server: Server) -> None:
    server.add(path_of(published), b"<html>log in</html>", kind="text/html")
    with pytest.raises(UserError, match=r"RN50\.pt \(the server sent a web page instead of the file\)"):
        locate("RN50", "openai")


@pytest.mark.parametrize("digits", [8, 64])
def test_digest_of_open_clips_urls_may_be_its_first_digits(digits: int, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    path.write_bytes(CONTENT)
    url = f"https://github.com/mlfoundations/open_clip/releases/vit_b_32-laion_avg-{SHA256[:digits]}.pt"
    published_weights._check(path, url, "")
    path.write_bytes(CONTENT[1:])
    with pytest.raises(UserError, match=f"not {SHA256[:digits]}\\): delete it"):
        published_weights._check(path, url, "delete it")


def test_digest_is_known_for_the_urls_of_openai_and_open_clip_only() -> None:
    known = {
        "https://openaipublic.azureedge.net/clip/models/afeb0e10f9/RN50.pt": "sha256:afeb0e10f9",
        "https://github.com/mlfoundations/open_clip/releases/rn50-quickgelu-cc12m-f000538c.pt": "sha256:f000538c",
        "https://docs-assets.developer.apple.com/mobileclip_b.pt": "",
    }
    assert {url: published_weights._published_digest(url) for url in known} == known


@pytest.mark.parametrize("succeeds", [True, False])
def test_process_that_waited_for_another_leaves_the_server_alone(
    published: str, server: Server, cache: Path, caplog: pytest.LogCaptureFixture, succeeds: bool
) -> None:
    page = server.add(path_of(published), CONTENT)
    results: list[Path | str] = []
    caplog.set_level("INFO")

    def download() -> None:
        try:
            results.append(published_weights._download(published, cache / "RN50.pt"))
        except DownloadError as error:
            results.append(error.reason)

    waiting = threading.Thread(target=download)
    with lock_for(cache / "RN50.pt"):  # as the other process does
        waiting.start()
        while "Waiting for another process" not in caplog.text and waiting.is_alive():
            waiting.join(timeout=0.01)
        if succeeds:
            cache.mkdir(parents=True)
            (cache / "RN50.pt").write_bytes(CONTENT)
    waiting.join(timeout=60)
    assert results == [cache / "RN50.pt" if succeeds else "another process has just tried in vain"]
    assert page.asked == []


# --- without a network ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ViT-B/16", "RN50:yfcc15m"])
def test_missing_weights_say_where_they_are_published_and_where_to_put_them(
    name: str, requested: list[str], cache: Path
) -> None:
    with pytest.raises(UserError) as caught:
        load_clip(name)
    message = str(caught.value)
    parsed = names.parse(name)
    url = open_clip.get_pretrained_url(parsed.architecture, parsed.tag)
    assert "\n" not in message
    assert f"{url} (Network is unreachable)" in message
    assert f"put it at {cache / url.rsplit('/', 1)[-1]}" in message
    assert str(cache.parent.parent / ".cache" / "clip") in message
    assert "huggingface.co" in message


def test_unreachable_servers_are_asked_once_each(requested: list[str]) -> None:
    with pytest.raises(UserError, match="no weights for"):
        load_clip("ViT-B/16")
    assert len(requested) == len(set(requested)) == 3  # OpenAI's server, and either format on the hub


def test_weights_that_only_the_hub_has_are_named_by_their_path(requested: list[str]) -> None:
    with pytest.raises(UserError, match=r"huggingface\.co/laion/.*name it ViT-B-16@laion2b_s34b_b88k:/path/to/file"):
        load_clip("ViT-B-16:laion2b_s34b_b88k")


def test_unreachable_hub_repository_is_reported_in_one_line(requested: list[str]) -> None:
    with pytest.raises(UserError, match=r"hf-hub:org/model.*open_clip_config\.json \(Network is unreachable\)"):
        load_clip("hf-hub:org/model")
    with pytest.raises(UserError, match="hf-hub:org/model"):
        preprocessing("hf-hub:org/model")


def test_failure_of_the_hubs_client_is_one_reason_among_the_others(
    cache: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(repository: str, filename: str) -> str:
        raise ValueError("a repository\nthat is gated")

    monkeypatch.setattr(published_weights, "check_reachable", lambda *args: None)
    monkeypatch.setattr(published_weights, "hf_hub_download", fail)
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda architecture, tag: {"hf_hub": "org/model/"})
    with pytest.raises(UserError, match=r"open_clip_model\.safetensors \(a repository that is gated\)"):
        locate("ViT-B-16", "gated")


def test_hub_repository_of_another_library_is_refused(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = cache.parent / "open_clip_config.json"
    config.parent.mkdir(parents=True)
    config.write_text(json.dumps({"model_type": "clip"}))
    monkeypatch.setattr(published_weights, "try_to_load_from_cache", lambda *args: str(config))
    with pytest.raises(UserError, match="no open_clip model"):
        preprocessing("hf-hub:org/model")


# --- files in the cache ----------------------------------------------------------------------------------------------


def test_cached_file_with_a_wrong_digest_is_refused(requested: list[str], cache: Path) -> None:
    cache.mkdir(parents=True)
    (cache / "ViT-B-16.pt").write_bytes(b"not the weights")
    with pytest.raises(UserError, match=r"ViT-B-16\.pt is not the file published at .*delete it"):
        load_clip("ViT-B/16")
    assert requested == []


@pytest.mark.slow
def test_openais_file_in_the_cache_is_loaded_with_its_activation(
    requested: list[str], cache: Path, golden_backbone: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.mkdir(parents=True)
    torch.save(load_file(golden_backbone("rn0")), cache / "RN50.pt")
    monkeypatch.setattr(published_weights, "_check", lambda *args: None)
    clip = load_clip("RN50")
    state = load_clip(str(golden_backbone("rn0"))).model.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in clip.model.state_dict().items())
    assert any(isinstance(module, open_clip.transformer.QuickGELU) for module in clip.modules())


def bytes_read() -> int:
    """By this process so far, from files and whatever else."""
    counts = Path("/proc/self/io")
    if not counts.exists():
        pytest.skip("only Linux counts them")
    return int(counts.read_text(encoding="ascii").split()[1])


@pytest.mark.slow
@pytest.mark.parametrize("is_zip", [True, False])
def test_weights_are_read_once_for_digest_preprocessing_and_values(
    requested: list[str], cache: Path, golden_backbone: Any, monkeypatch: pytest.MonkeyPatch, is_zip: bool
) -> None:
    cache.mkdir(parents=True)
    weights = cache / "RN50.pt"
    state = {**load_file(golden_backbone("rn0")), "input_resolution": torch.tensor(64)}
    torch.save(state, weights, _use_new_zipfile_serialization=is_zip)
    size, digest = weights.stat().st_size, hashlib.sha256(weights.read_bytes()).hexdigest()
    published = {"url": f"https://openaipublic.azureedge.net/clip/models/{digest}/RN50.pt"}
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda architecture, tag: published)
    wanted = load_clip(str(golden_backbone("rn0"))).model.state_dict()
    for name in ("RN50", *([str(weights)] if is_zip else [])):
        before = bytes_read()
        preprocessing(name)
        state = load_clip(name).model.state_dict()
        assert size < bytes_read() - before < 1.2 * size
        assert all(torch.equal(value, wanted[key]) for key, value in state.items())
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=r"RN50\.pt is not the file published at .*delete it"):
        load_clip("RN50")


def test_an_architecture_is_named_after_open_clips_of_the_same_sizes_with_openais_kind_of_text_tower() -> None:
    config = open_clip.get_model_config("ViT-B-32")
    assert openai_format.named(config) == "ViT-B-32"
    assert openai_format._is_like(config, config)
    assert not openai_format._is_like({**config, "custom_text": True}, config)
