"""tools/serve.py: the page in a real browser, the sessions behind it, and errors on the command line."""

from __future__ import annotations

import contextlib
import csv
import io
import os
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from browser import PHONE, Opened
from PIL import Image

from dassl_lite import FewShotClassifier
from dassl_lite.classifier.export import Agreement
from dassl_lite.engine.commands.cli import run_tool
from dassl_lite.tools import serve
from dassl_lite.tools._serve import look
from dassl_lite.tools._serve import session as sessions
from dassl_lite.tools._serve.session import Session, Teaching, Visitors, csv_of
from dassl_lite.utils.errors import UserError
from dassl_lite.utils.files import cache_root

REPOSITORY = Path(__file__).resolve().parents[2]
DROP = "#try input[type=file]"
WAIT = 120_000  # milliseconds; generous for a busy machine
CLASSES = ("striped heart", "checkered heart", "solid drop")


def draw_image(path: Path, seed: int = 0) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved zero-shot classifier, which needs no training."""
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
    """Files as Gradio stores uploads, each in its own folder."""
    files = []
    for number, name in enumerate(names):
        folder = tmp_path / "uploads" / str(number)
        folder.mkdir(parents=True)
        files.append(str(draw_image(folder / name, number)))
    return files


def test_a_file_that_is_not_an_image_is_named_and_the_rest_is_classified(
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
    assert [picture.name for picture in found.pictures] == ["a.png"]
    assert [line.partition(":")[0] for line in found.refused] == [
        *("notes.png", "large.png", "wide.png", "gone.png", "b.jpg")
    ]
    assert "more than 5 pictures" in found.refused[-1]


def test_a_session_answers_like_the_classifier_and_leaves_nothing_on_disk(session: Session, tmp_path: Path) -> None:
    files = uploaded(tmp_path, "a.png", "b.png")
    expected = FewShotClassifier.predict_proba(session.classifier, [np.array(Image.open(file)) for file in files])
    found = session.predict(files)
    for row, prediction in zip(expected, found.found, strict=True):
        np.testing.assert_allclose(prediction.probabilities, np.sort(row)[::-1], rtol=1e-5)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert list((tmp_path / "uploads").iterdir()) == []


def test_a_class_below_the_threshold_is_unknown_but_keeps_its_bars(session: Session, tmp_path: Path) -> None:
    found = session.predict(uploaded(tmp_path, "a<b>.png"))
    assert found.rows(0)[0][1].labels[0] in CLASSES
    (_, unknown), *_ = rows = found.rows(1.0)
    assert set(unknown.labels) == {None}
    page = look.answers(rows, [prediction.labels for prediction in found.found], [])
    assert "(unknown)" in page
    assert page.count("dl-track") == 3
    assert "<b>" not in page
    table = list(csv.DictReader(csv_of(rows).splitlines()))
    assert (table[0]["image"], table[0]["class"]) == ("a<b>.png", "")


def test_a_session_belongs_to_one_browser_tab_and_ends_with_it(
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


# ---- teaching, without a browser ------------------------------------------------------------------------------------


@pytest.fixture
def lesson(tmp_path: Path) -> Iterator[Teaching]:
    made = Teaching(None, None, tmp_path)
    yield made
    made.close()


@pytest.mark.slow
def test_teaching_is_evaluated_on_held_out_images_and_leaves_no_trace(lesson: Teaching, tmp_path: Path) -> None:
    before = sorted(cache_root().rglob("*"))
    lesson.load_example()
    found = lesson.train()
    assert lesson.classifier is not None
    paths = [str(picture.path) for pictures in lesson.classes.values() for picture in pictures]
    labels = [name for name, pictures in lesson.classes.items() for _ in pictures]
    assert found.zero_shot < found.trained <= 100
    assert (found.pictures, found.singly) == (24, True)
    with zipfile.ZipFile(io.BytesIO(lesson.zipped())) as archive:
        assert str(tmp_path) not in archive.read("classifier/config.json").decode()
        assert "each left out of the fit in turn" in archive.read("classifier/README.md").decode()
    assert sorted(cache_root().rglob("*")) == before
    alone = FewShotClassifier(classes=list(lesson.classes)).predict_proba(map(str, paths)).argmax(axis=1)
    right = np.mean([list(lesson.classes)[row] == label for row, label in zip(alone, labels, strict=True)])
    assert found.zero_shot == pytest.approx(100 * right)
    lesson.close()
    assert list(tmp_path.iterdir()) == []


LOADED = """
import sys
from pathlib import Path
from dassl_lite.tools import serve
start, _ = serve.sessions(serve.make_parser().parse_args([]), Path(sys.argv[1]))
serve.rehearse(start)
before = set(sys.modules)
lesson = start()
lesson.load_example()
lesson.train()
lesson.close()
print(sorted(set(sys.modules) - before))
"""


@pytest.mark.slow
def test_the_first_visitors_training_loads_no_library(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", LOADED, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    assert list(tmp_path.iterdir()) == []


def test_an_invalid_class_is_refused(lesson: Teaching, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "MOST_CLASSES", 2)
    monkeypatch.setattr(sessions, "MOST_TAUGHT", 3)

    def refused(call: Callable[..., Any], *arguments: Any) -> str:
        with pytest.raises(UserError) as caught:
            call(*arguments)
        return str(caught.value)

    assert "name the class" in refused(lesson.add_class, "  ")
    assert "60 characters" in refused(lesson.add_class, "x" * 61)
    lesson.add_class(" a  cat ")
    assert list(lesson.classes) == ["a cat"]
    assert "a cat already" in refused(lesson.add_class, "A cat") or "A cat already" in refused(
        lesson.add_class, "A cat"
    )
    assert "two classes or more" in refused(lesson.train)
    lesson.add_class("dog")
    assert "2 classes, the most" in refused(lesson.add_class, "cow")
    assert "a cat needs two pictures" in refused(lesson.train)
    assert "nothing has been taught" in refused(lesson.predict, [])
    assert "no class cow" in refused(lesson.add_pictures, "cow", [])
    files = uploaded(tmp_path, *("a.png", "b.png", "c.png", "d.png"))
    assert lesson.add_pictures("dog", files) == ["d.png: more than 3 pictures in all"]
    lesson.remove_class("dog")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_onnx_is_exported_from_the_latest_training_and_served_only_with_its_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def export(_: object, folder: Path, kind: str) -> Agreement:
        folder.mkdir()
        (folder / "model.onnx").write_text(kind)
        return Agreement("traced", 24, 1e-7, 100.0, 1.25)

    monkeypatch.setattr(FewShotClassifier, "export", export)
    with contextlib.closing(Visitors(lambda: Teaching(None, None, tmp_path))) as visitors:
        session, other = visitors.of("one"), visitors.of("other")
        assert isinstance(session, Teaching)
        with pytest.raises(UserError, match="nothing has been taught yet"):
            session.export()
        session.classifier = FewShotClassifier(classes=list(CLASSES))
        exported = session.export()
        page = look.exported(exported)
        assert f'href="exported/{exported.token}"' in page
        assert "1.2 MB. Compared on 24 pictures: the likeliest class is the same on 100 %" in page
        with zipfile.ZipFile(exported.path) as archive:
            assert archive.read("onnx/model.onnx") == b"onnx"
        assert visitors.export(exported.token) == exported.path
        assert [visitors.export(token) for token in ("", "None", "one", exported.token[:-1])] == [None] * 4
        again = session.export()
        assert (visitors.export(exported.token), visitors.export(again.token)) == (None, again.path)
        session.add_class("new")  # the export so far has other classes
        assert (visitors.export(again.token), list(session.folder.iterdir()), list(other.folder.iterdir())) == (
            None,
            [],
            [],
        )


# ---- the command line -----------------------------------------------------------------------------------------------


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    *before, last = capsys.readouterr().err.splitlines()
    assert all(line.startswith("Warning: ") for line in before)
    return str(last)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--model-dir", "no-such"], "no folder 'no-such'"),
        (["--model-dir", ""], "--model-dir is empty"),
        (["--port", "70000"], "0 to 65535"),
        (["--host", "no host"], "--host 'no host' is not an address"),
        (["--host", "192.0.2.1"], "not an address of this machine"),
        (["--device", "tpu"], "tpu"),
    ],
)
def test_a_user_error_prints_one_line(
    saved: Path, capsys: pytest.CaptureFixture[str], words: list[str], text: str
) -> None:
    given = {"--model-dir": str(saved), "--port": "0", words[0]: words[1]}
    assert run_tool(serve.main, [word for pair in given.items() for word in pair]) == 2
    assert text in error_line(capsys)


def test_a_port_in_use_prints_one_line(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert run_tool(serve.main, ["--model-dir", str(saved), "--port", str(port)]) == 2
    assert f"port {port} is taken" in error_line(capsys)


def test_without_gradio_the_extra_is_named(
    saved: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert run_tool(serve.main, ["--model-dir", str(saved), "--port", "0"]) == 2
    assert 'pip install "dassl-lite[serve]"' in error_line(capsys)


# ---- in a browser ---------------------------------------------------------------------------------------------------


def started(temporary: Path, *words: str) -> tuple[subprocess.Popen[str], str]:
    """A process of tools/serve.py, and its address."""
    environment = {**os.environ, "TMPDIR": str(temporary)}
    environment.pop("PYTHONUNBUFFERED", None)  # a pipe is buffered, as for most users
    command = [sys.executable, str(REPOSITORY / "tools" / "serve.py"), "--port", "0", *words]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    if not select.select([process.stdout], [], [], WAIT / 1000)[0]:
        process.kill()
        pytest.fail("the server does not print its address")
    line = process.stdout.readline()
    address = re.search(r"http://\S+", line)
    assert address, line
    return process, address[0]


class Server(NamedTuple):
    """The address of a server and its folder for temporary files."""

    address: str
    temporary: Path

    def wait_for_visitors(self, count: int) -> None:
        """Wait until this many sessions are left."""
        end = time.monotonic() + WAIT / 1000
        while len(list(self.temporary.glob("*/visitor-*"))) != count:
            assert time.monotonic() < end, os.listdir(self.temporary)
            time.sleep(0.05)


@contextmanager
def serving(end_signal: signal.Signals, *words: str) -> Iterator[Server]:
    """Start a server; on exit, check that it left nothing on disk."""
    with tempfile.TemporaryDirectory() as temporary:
        process, address = started(Path(temporary), *words)
        try:
            yield Server(address, Path(temporary))
            process.send_signal(end_signal)
            assert process.wait(60) == 130
            assert os.listdir(temporary) == []
        finally:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def classifier_server(browser: Any, saved: Path) -> Iterator[Server]:
    """A server for a fitted classifier."""
    pytest.importorskip("gradio", reason="needs gradio: the extra serve")
    with serving(signal.SIGTERM, "--model-dir", str(saved)) as server:
        yield server


@pytest.fixture(scope="module")
def teaching_server(browser: Any) -> Iterator[Server]:
    """A server without a classifier, for teaching."""
    pytest.importorskip("gradio", reason="needs gradio: the extra serve")
    with serving(signal.SIGINT) as server:
        yield server


@pytest.fixture
def open_tab(browser: Any) -> Iterator[Callable[..., Any]]:
    """``open_tab(server)``: a tab in its own browser; on exit, checks that no tab failed or contacted other hosts."""
    tabs: list[tuple[Any, Opened]] = []

    def open_one(server: Server, size: tuple[int, int] = (1280, 900), **options: Any) -> Any:
        context = browser.new_context(viewport={"width": size[0], "height": size[1]}, **options)
        context.set_default_timeout(WAIT)
        tab, ours = Opened(context.new_page()), (server.address, "data:", "blob:")
        tab.page.on("console", lambda message: tab.complaints.append(message.text) if message.type == "error" else None)
        tab.page.on("pageerror", lambda error: tab.complaints.append(str(error)))
        tab.page.on(
            "request", lambda request: None if request.url.startswith(ours) else tab.requests.append(request.url)
        )
        tabs.append((context, tab))
        tab.page.goto(server.address)
        tab.page.wait_for_selector(DROP, state="attached")
        return tab.page

    yield open_one
    for context, tab in tabs:
        context.close()
        assert (tab.complaints, tab.requests) == ([], [])


def upload(page: Any, where: str, *files: Path) -> None:
    page.set_input_files(f"{where} input[type=file]", [str(file) for file in files])


def labels_of(page: Any) -> list[str]:
    return [str(label) for label in page.locator(".dl-card .dl-label").all_inner_texts()]


def printed_by_the_script(script: Path, pictures: list[Path]) -> list[str]:
    """The most likely class of each image, as printed by the script beside an ONNX file."""
    words = [sys.executable, str(script), *map(str, pictures)]
    lines = subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()
    return [line.split("  ")[1] for line in lines[::3]]


@pytest.mark.slow
def test_dropped_images_are_classified_and_the_table_is_downloaded(
    classifier_server: Server, open_tab: Callable[..., Any], tmp_path: Path
) -> None:
    page = open_tab(classifier_server)
    (wrong := tmp_path / "notes.txt").write_text("no picture")
    upload(page, "#try", draw_image(tmp_path / "a.png", 1), wrong, draw_image(tmp_path / "b.png", 2))
    page.wait_for_selector(".dl-card")
    assert set(labels_of(page)) <= set(CLASSES)
    assert "notes.txt: not an image" in page.inner_text("body")
    page.fill("#below input[type=number]", "1")
    page.keyboard.press("Enter")
    page.wait_for_selector(".dl-unknown")
    assert labels_of(page) == ["(unknown)", "(unknown)"]
    with page.expect_download() as download:
        page.click("text=Download CSV")
    rows = list(csv.DictReader(Path(download.value.path()).read_text().splitlines()))
    assert [(row["image"], row["class"]) for row in rows] == [("a.png", ""), ("b.png", "")]


@pytest.mark.slow
def test_three_classes_are_taught_tried_extended_and_downloaded(
    teaching_server: Server, open_tab: Callable[..., Any], tmp_path: Path
) -> None:
    page, drawn, new = open_tab(teaching_server), sessions.drawn_example(), []
    (wrong := tmp_path / "notes.txt").write_text("no picture")
    page.click("#name input, #name textarea")
    for number, (name, images) in enumerate(drawn.items()):
        page.keyboard.type(name)
        page.keyboard.press("Enter")
        page.wait_for_selector(f".dl-class >> nth={number}")
        files = [tmp_path / f"{name} {row}.png" for row in range(8)]
        for file, image in zip(files, images, strict=True):
            image.save(file)
        upload(page, f".dl-class >> nth={number} >> ", *files[:7], *([wrong] if number == 1 else []))
        page.wait_for_selector(f".dl-thumbs >> nth={number}")
        assert ("notes.txt: not an image" in page.inner_text("body")) == (number == 1)
        new.append(files[7])
        page.click("#name input, #name textarea")
    assert page.locator(".dl-thumbs img").count() == 21
    page.click("button:text-is('Train')")
    shown = page.wait_for_selector(".dl-lesson").inner_text()
    assert "Class names alone (zero-shot)" in shown
    assert "21 pictures, each left out in turn" in shown
    upload(page, "#try", *new)
    page.wait_for_selector(".dl-card")
    found = labels_of(page)
    with page.expect_download() as download:
        page.click("text=Download classifier")
    with zipfile.ZipFile(download.value.path()) as archive:
        archive.extractall(tmp_path)
    assert FewShotClassifier.load(tmp_path / "classifier").predict(list(map(str, new))).tolist() == found
    page.click("text=Make ONNX")
    page.wait_for_selector("text=Compared on 21 pictures: the likeliest class is the same on 100 %")
    with page.expect_download() as download:
        page.click("text=Download ONNX")
    with zipfile.ZipFile(download.value.path()) as archive:
        archive.extractall(tmp_path)
    assert printed_by_the_script(tmp_path / "onnx" / "classify.py", new) == found
    address = page.get_attribute("text=Download ONNX", "href")
    assert page.request.get(f"{teaching_server.address}/{address[:-1]}").status == 404
    page.click("#name input, #name textarea")
    page.keyboard.type("solid drop")
    page.click("text=Add class")
    page.wait_for_selector(".dl-class >> nth=3")
    page.wait_for_selector(".dl-lesson", state="detached")
    page.wait_for_selector("text=Make ONNX", state="hidden")
    assert page.locator("text=Download ONNX").count() == 0
    assert page.request.get(f"{teaching_server.address}/{address}").status == 404
    page.click("button:text-is('Train')")
    page.wait_for_selector("text=solid drop needs two pictures or more.")


@pytest.mark.slow
def test_a_visitor_never_sees_anothers_images_and_a_reload_starts_over(
    teaching_server: Server, open_tab: Callable[..., Any], tmp_path: Path
) -> None:
    first, second = open_tab(teaching_server), open_tab(teaching_server)
    first.click("text=Load example")
    first.wait_for_selector(".dl-thumbs >> nth=2")
    second.click("#name input, #name textarea")
    second.keyboard.type("mine")
    second.click("text=Add class")
    second.wait_for_selector(".dl-class")
    assert second.locator(".dl-class").count() == 1
    assert second.locator(".dl-thumbs").count() == 0
    first.reload()
    first.wait_for_selector(DROP, state="attached")
    first.click("#name input, #name textarea")
    first.keyboard.type("again")
    first.click("text=Add class")
    first.wait_for_selector(".dl-class")
    assert [first.locator(selector).count() for selector in (".dl-class", ".dl-thumbs", ".dl-lesson")] == [1, 0, 0]
    for page in (first, second):
        page.close()
    teaching_server.wait_for_visitors(0)  # their files are gone while the server keeps running


@pytest.mark.slow
def test_the_example_is_taught_on_a_phone_in_dark_mode(teaching_server: Server, open_tab: Callable[..., Any]) -> None:
    page = open_tab(teaching_server, PHONE, color_scheme="dark")
    page.click("text=Load example")
    page.wait_for_selector(".dl-thumbs >> nth=2")
    page.click("button:text-is('Train')")
    assert "24 pictures" in page.wait_for_selector(".dl-lesson").inner_text()
    assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
    red, green, blue = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3)")
    assert max(map(int, (red, green, blue))) < 60
