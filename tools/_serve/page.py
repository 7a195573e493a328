"""The page's Gradio widgets; each of them calls the visitor's `Session`."""

from __future__ import annotations

from typing import Any

import gradio as gr
from fastapi import FastAPI, Request, Response
from fastapi.responses import FileResponse

from dassl_lite.tools._serve import look
from dassl_lite.tools._serve.session import LIMITS, MOST_TAUGHT, MOST_UPLOAD, Session, Teaching, Visitors
from dassl_lite.utils import UserError
from dassl_lite.utils.errors import printable

TITLE = "dassl-lite"
FORGOTTEN = (60, 600)  # every how many seconds, and from what age, Gradio removes uploads
PRIVATE: dict[str, Any] = {"api_visibility": "private"}


class Page:
    """The page, and the application that serves it.

    Args:
        visitors: the sessions.
        about: a line about the classifier or the backbone.
        teaches: whether visitors teach their own classifier.
        has_example: whether there are example pictures for teaching.
    """

    def __init__(self, visitors: Visitors, about: str, *, teaches: bool = False, has_example: bool = False) -> None:
        self.visitors = visitors
        title = "Teach a classifier" if teaches else "What do the pictures show?"
        with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=FORGOTTEN) as self.blocks:
            gr.Markdown(f"# {title}\n{about}")
            if teaches:
                self._teach(has_example)
                gr.Markdown("## 3. Try it")
            self._try()
            self.blocks.unload(self.forget)

    def app(self) -> FastAPI:
        """The web application."""
        app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

        @app.middleware("http")
        async def guard(request: Request, proceed: Any) -> Response:
            response: Response = await proceed(request)
            response.headers["Content-Security-Policy"] = look.POLICY
            response.headers["Referrer-Policy"] = "no-referrer"
            return response

        @app.get(f"/{look.EXPORTS}/{{token}}")
        def exported(token: str) -> Response:
            path = self.visitors.export(token)
            return Response(status_code=404) if path is None else FileResponse(path, filename="classifier-onnx.zip")

        theme = gr.themes.Default(primary_hue="indigo", font=look.FONTS, font_mono=look.MONO).set(
            body_text_color_subdued="*neutral_600",
            body_text_color_subdued_dark="*neutral_300",
            block_info_text_color="*neutral_600",
        )
        return gr.mount_gradio_app(
            app,
            self.blocks,
            path="",
            theme=theme,
            css=look.STYLE,
            max_file_size=MOST_UPLOAD,
            footer_links=[],
            run_history=False,
            show_error=False,  # unforeseen errors may quote paths; user errors are shown as warnings
            ssr_mode=False,
            mcp_server=False,
            enable_monitoring=False,
            pwa=False,
        )

    def session(self, request: gr.Request) -> Any:
        """The visitor's session."""
        if not request.session_hash:
            raise gr.Error("open the page in a browser")
        return self.visitors.of(request.session_hash)

    def forget(self, request: gr.Request) -> None:
        if request.session_hash:
            self.visitors.forget(request.session_hash)

    # ---- what pictures show ---------------------------------------------------------------------------------------

    def _try(self) -> None:
        files = gr.File(label="Pictures", file_count="multiple", height=150, elem_id="try")
        gr.HTML(f'<p class="dl-note">{LIMITS} They are forgotten when this page is closed.</p>', padding=False)
        below = gr.Slider(
            0, 1, 0, step=0.05, label="Unknown below", info="No class where the probability is lower", elem_id="below"
        )
        shown = gr.HTML(elem_id="answers", elem_classes="dl-html", padding=False)
        files.upload(self.predict, [files, below], [files, shown], **PRIVATE)
        below.change(self.again, below, shown, show_progress="hidden", **PRIVATE)

    def predict(self, files: list[str] | None, below: float, request: gr.Request) -> tuple[None, str]:
        session = self.session(request)
        with session.lock:
            try:
                session.predict(files or [])
            except UserError as error:
                gr.Warning(sentence(error))
            return None, self._answers(session, below)

    def again(self, below: float, request: gr.Request) -> str:
        session = self.session(request)
        with session.lock:
            return self._answers(session, below)

    def _answers(self, session: Session, below: float) -> str:
        current = session.answers
        return look.answers(current.rows(below), [prediction.labels for prediction in current.found], current.refused)

    # ---- teaching -------------------------------------------------------------------------------------------------

    def _teach(self, has_example: bool) -> None:
        changes = gr.State(0)  # counts changes to the classes, each of which renders them again
        gr.Markdown(f"## 1. Classes\nA few pictures of each are enough; at most {MOST_TAUGHT} in all.")
        with gr.Row(equal_height=True):
            name = gr.Textbox(
                show_label=False, placeholder="Name of a class", scale=5, elem_id="name", min_width=200, container=False
            )
            add = gr.Button("Add class", scale=1, min_width=120, size="md")
            example = gr.Button("Load example", scale=1, min_width=140, size="md", visible=has_example)
        refused = gr.HTML(elem_id="refused", elem_classes="dl-html", padding=False)

        def classes(_: int, request: gr.Request) -> None:
            session = self.session(request)
            with gr.Row(elem_classes="dl-classes"):
                for class_name in list(session.classes):
                    self._card(session, class_name, changes, refused)

        gr.render(inputs=changes, triggers=[changes.change])(classes)

        with gr.Accordion("Take pictures with the camera", open=False):
            target = gr.Dropdown([], label="Class", interactive=True)
            camera = gr.Image(sources=["webcam"], type="filepath", show_label=False, height=260)
        gr.Markdown("## 2. Train")
        train = gr.Button("Train", variant="primary")
        lesson = gr.HTML(elem_id="lesson", elem_classes="dl-html", padding=False)
        onnx = gr.Button("Make ONNX", size="sm", visible=False, elem_id="make-onnx")
        export = gr.HTML(elem_id="onnx", elem_classes="dl-html", padding=False)

        gr.on([add.click, name.submit], self.add_class, [name, changes], [name, changes], **PRIVATE)
        example.click(self.load_example, changes, changes, **PRIVATE)
        camera.input(self.take_picture, [camera, target, changes], [camera, changes, refused], **PRIVATE)
        changes.change(self.choices, target, [target, lesson, onnx, export], **PRIVATE)
        train.click(self.train, None, [lesson, onnx, export], **PRIVATE)
        onnx.click(self.export, None, export, **PRIVATE)

    def _card(self, session: Teaching, name: str, changes: Any, refused: Any) -> None:
        """The card of a class: its pictures, a drop area for more, and a button to remove it."""

        def add(files: list[str] | None, count: int, request: gr.Request) -> tuple[int, str]:
            return self.add_pictures(name, files or [], count, request)

        def remove(count: int, request: gr.Request) -> int:
            own = self.session(request)
            with own.lock:
                own.remove_class(name)
            return count + 1

        pictures = session.classes[name]
        with gr.Column(elem_classes="dl-class"):
            count = f"{len(pictures)} picture{'' if len(pictures) == 1 else 's'}"
            gr.HTML(f'<div class="dl-title">{look.text(name)}<span>{count}</span></div>', padding=False)
            gr.HTML(look.thumbnails(pictures), padding=False)
            files = gr.File(show_label=False, file_count="multiple", height=110, elem_classes="dl-drop")
            button = gr.Button("Remove", size="sm")
        files.upload(add, [files, changes], [changes, refused], **PRIVATE)
        button.click(remove, changes, changes, **PRIVATE)

    def add_class(self, name: str, count: int, request: gr.Request) -> tuple[str, int]:
        session = self.session(request)
        with session.lock:
            try:
                session.add_class(name)
            except UserError as error:
                gr.Warning(sentence(error))
                return name, count
        return "", count + 1

    def load_example(self, count: int, request: gr.Request) -> int:
        session = self.session(request)
        with session.lock:
            session.load_example()
        return count + 1

    def add_pictures(self, name: str, files: list[str], count: int, request: gr.Request) -> tuple[int, str]:
        session = self.session(request)
        with session.lock:
            try:
                refused = session.add_pictures(name, files)
            except UserError as error:
                refused = [sentence(error)]
        return count + 1, look.refusals(refused)

    def take_picture(
        self, file: str | None, name: str | None, count: int, request: gr.Request
    ) -> tuple[None, int, str]:
        if not file or not name:
            gr.Warning("Name a class first." if file else "There are no images.")
            return None, count, ""
        return None, *self.add_pictures(name, [file], count, request)

    def choices(self, chosen: str | None, request: gr.Request) -> tuple[Any, str, Any, str]:
        """Update the camera's classes, and clear the results of training, which were for the old classes."""
        names = list(self.session(request).classes)
        chosen = chosen if chosen in names else next(iter(names), None)
        return gr.Dropdown([(printable(name), name) for name in names], value=chosen), "", gr.Button(visible=False), ""

    def train(self, request: gr.Request) -> tuple[str, Any, str]:
        session = self.session(request)
        with session.lock:
            try:
                return look.lesson(session.train(), session.zipped()), gr.Button(visible=True), ""
            except UserError as error:
                gr.Warning(sentence(error))
                return "", gr.Button(visible=False), ""

    def export(self, request: gr.Request) -> str:
        session = self.session(request)
        with session.lock:
            try:
                return look.exported(session.export())
            except UserError as error:
                gr.Warning(sentence(error))
                return ""


def sentence(error: UserError) -> str:
    """An error as a sentence, without markup."""
    message = printable(error)
    return look.text(message[:1].upper() + message[1:] + ("" if message.endswith(".") else "."))
