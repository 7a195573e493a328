"""tools/serve.py: the page in a real browser, the sessions behind it, and mistakes on the command line."""

from __future__ import annotations

import csv
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dassl_lite import FewShotClassifier
from dassl_lite.engine.commands.cli import run_tool
from dassl_lite.tools import serve
from dassl_lite.tools._serve import look
from dassl_lite.tools._serve import session as sessions
from dassl_lite.tools._serve.session import Session, Visitors, csv_of

REPOSITORY = Path(__file__).resolve().parents[2]
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking")
WAIT = 120_000  # milliseconds, on a machine that does other things
CLASSES = ("striped heart", "checkered heart", "solid drop")


def picture(path: Path, seed: int = 0) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier; zero-shot, which takes no time."""
    folder = tmp_path_factory.mktemp("serve") / "clf"
    FewShotClassifier(classes=list(CLASSES), options={"DATALOADER.NUM_WORKERS": 0}).save(folder)
    return folder


# ---- sessions, without a browser ------------------------------------------------------------------------------------


@pytest.fixture
def session(saved: Path, tmp_path: Path) -> Iterator[Session]:
    made = Session(FewShotClassifier.load(saved), tmp_path)
    yield made
    made.close()


def uploaded(tmp_path: Path, *names: str) -> list[str]:
    """Files as Gradio leaves them: each in a folder of its own."""
    files = []
    for number, name in enumerate(names):
        folder = tmp_path / "uploads" / str(number)
        folder.mkdir(parents=True)
        files.append(str(picture(folder / name, number)))
    return files


def test_a_file_that_is_no_picture_is_named_and_the_rest_goes_on(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = uploaded(tmp_path, "a.png", "notes.png", "large.png", "wide.png", "b.jpg", "many.png")
    Path(files[1]).write_text("no picture")
    Path(files[2]).write_bytes(b"\0" * 5000)
    Image.new("RGB", (30, 2001)).save(files[3])
    monkeypatch.setattr(sessions, "MOST_BYTES", 4999)
    monkeypatch.setattr(sessions, "MOST_PIXELS", 60_000)
    monkeypatch.setattr(sessions, "MOST_AT_ONCE", 5)
    found = session.predict([*files[:4], files[0].replace("a.png", "gone.png"), files[4]])
    assert [one.name for one in found.pictures] == ["a.png"]
    assert [line.partition(":")[0] for line in found.refused] == [
        *("notes.png", "large.png", "wide.png", "gone.png", "b.jpg")
    ]
    assert "more than 5 pictures" in found.refused[-1]


def test_answers_are_those_of_the_classifier_and_nothing_stays_on_disk(session: Session, tmp_path: Path) -> None:
    files = uploaded(tmp_path, "a.png", "b.png")
    expected = FewShotClassifier.predict_proba(session.classifier, [np.array(Image.open(file)) for file in files])
    found = session.predict(files)
    for row, one in zip(expected, found.found, strict=True):
        np.testing.assert_allclose(one.probabilities, np.sort(row)[::-1], rtol=1e-5)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert list((tmp_path / "uploads").iterdir()) == []


def test_a_class_less_likely_than_the_slider_says_is_unknown_and_keeps_its_bars(
    session: Session, tmp_path: Path
) -> None:
    found = session.predict(uploaded(tmp_path, "a<b>.png"))
    assert found.rows(0)[0][1].labels[0] in CLASSES
    (_, unknown), *_ = rows = found.rows(1.0)
    assert set(unknown.labels) == {None}
    page = look.answers(rows, [one.labels for one in found.found], [])
    assert "(unknown)" in page
    assert page.count("dl-track") == 3
    assert "<b>" not in page
    table = list(csv.DictReader(csv_of(rows).splitlines()))
    assert (table[0]["image"], table[0]["class"]) == ("a<b>.png", "")


def test_a_session_is_of_one_browser_tab_and_ends_with_it(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "MOST_SESSIONS", 2)
    visitors = Visitors(lambda: Session(None, tmp_path))
    first, second = visitors.of("one"), visitors.of("two")
    assert first is not second
    assert visitors.of("one") is first
    visitors.of("three")  # one too many: the second was idle longest
    assert (first.folder.exists(), second.folder.exists()) == (True, False)
    visitors.forget("one")
    assert visitors.of("one") is not first
    visitors.close()
    assert list(tmp_path.iterdir()) == []


# ---- the command line -----------------------------------------------------------------------------------------------


def told(capsys: pytest.CaptureFixture[str]) -> str:
    *before, last = capsys.readouterr().err.splitlines()
    assert all(line.startswith("Warning: ") for line in before)
    return str(last)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--model-dir", "no-such"], "no folder 'no-such'"),
        (["--port", "70000"], "0 to 65535"),
        (["--host", "no host"], "--host 'no host' is no address"),
        (["--host", "192.0.2.1"], "not an address of this machine"),
        (["--device", "tpu"], "tpu"),
    ],
)
def test_a_mistake_is_told_in_one_line(
    saved: Path, capsys: pytest.CaptureFixture[str], words: list[str], text: str
) -> None:
    given = {"--model-dir": str(saved), "--port": "0", words[0]: words[1]}
    assert run_tool(serve.main, [word for pair in given.items() for word in pair]) == 2
    assert text in told(capsys)


def test_a_port_that_is_taken_is_told_in_one_line(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert run_tool(serve.main, ["--model-dir", str(saved), "--port", str(port)]) == 2
    assert f"port {port} is taken" in told(capsys)


def test_without_gradio_the_extra_is_named(
    saved: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert run_tool(serve.main, ["--model-dir", str(saved), "--port", "0"]) == 2
    assert 'pip install "dassl-lite[serve]"' in told(capsys)


# ---- in a browser ---------------------------------------------------------------------------------------------------


@dataclass
class Server:
    """A process of tools/serve.py."""

    process: subprocess.Popen[str]
    address: str
    temporary: Path

    def end(self) -> int:
        """Ask it to end, as a scheduler does."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


def started(temporary: Path, *words: str) -> Server:
    environment = {**os.environ, "TMPDIR": str(temporary)}
    command = [sys.executable, str(REPOSITORY / "tools" / "serve.py"), "--port", "0", *words]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    address = re.search(r"http://\S+", line)
    assert address, line
    return Server(process, address[0], temporary)


@dataclass
class Tab:
    """A page of a browser, and what went wrong on it."""

    page: Any
    faults: list[str] = field(default_factory=list)

    def text(self) -> str:
        return str(self.page.inner_text("body"))

    def upload(self, where: str, *files: Path) -> None:
        self.page.set_input_files(f"{where} input[type=file]", [str(file) for file in files])


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    pytest.importorskip("gradio", reason="gradio is not installed")
    if BROWSER is None:
        pytest.skip("there is no Chromium")
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=BROWSER, args=QUIET)
        yield found
        found.close()


@pytest.fixture
def open_tab(browser: Any) -> Iterator[Any]:
    """``open_tab(address)``: a tab of a browser of its own; in the end nothing may have gone wrong on it."""
    tabs: list[tuple[Any, Tab]] = []

    def open_one(address: str, **options: Any) -> Tab:
        context = browser.new_context(**options)
        context.set_default_timeout(WAIT)
        tab = Tab(context.new_page())
        tab.page.on("console", lambda one: tab.faults.append(one.text) if one.type == "error" else None)
        tab.page.on("pageerror", lambda error: tab.faults.append(str(error)))
        ours = (address, "data:", "blob:")
        tab.page.on("request", lambda one: None if one.url.startswith(ours) else tab.faults.append(one.url))
        tabs.append((context, tab))
        tab.page.goto(address)
        return tab

    yield open_one
    for context, tab in tabs:
        context.close()
        assert tab.faults == []


@pytest.fixture(scope="module")
def of_a_run(browser: Any, saved: Path) -> Iterator[Server]:
    """A server with a classifier; in the end it has left nothing on disk."""
    with tempfile.TemporaryDirectory() as temporary:
        server = started(Path(temporary), "--model-dir", str(saved))
        yield server
        assert server.end() == 130
        assert os.listdir(temporary) == []


@pytest.mark.slow
def test_dropped_pictures_are_classified_and_the_table_is_downloaded(
    of_a_run: Server, open_tab: Any, tmp_path: Path
) -> None:
    tab = open_tab(of_a_run.address)
    wrong = tmp_path / "notes.txt"
    wrong.write_text("no picture")
    tab.upload("#try", picture(tmp_path / "a.png", 1), wrong, picture(tmp_path / "b.png", 2))
    tab.page.wait_for_selector(".dl-card")
    assert tab.page.locator(".dl-card").count() == 2
    assert "notes.txt: not an image" in tab.text()
    tab.page.fill("#below input[type=number]", "1")
    tab.page.keyboard.press("Enter")
    tab.page.wait_for_selector(".dl-unknown")
    with tab.page.expect_download() as download:
        tab.page.click("text=Download CSV")
    rows = list(csv.DictReader(Path(download.value.path()).read_text().splitlines()))
    assert [(row["image"], row["class"]) for row in rows] == [("a.png", ""), ("b.png", "")]
    tab.page.reload()
    tab.page.wait_for_selector("#try input[type=file]", state="attached")
    assert tab.page.locator(".dl-card").count() == 0
