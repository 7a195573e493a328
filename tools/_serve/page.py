"""The widgets of the page, in Gradio; every one of them asks the visitor's `Session`."""

from __future__ import annotations

from typing import Any

import gradio as gr
from fastapi import FastAPI, Request, Response

from dassl_lite.tools._serve import look
from dassl_lite.tools._serve.session import LIMITS, MOST_UPLOAD, Session, Visitors

TITLE = "dassl-lite"
FORGOTTEN = (60, 600)  # how often, and after how many seconds, uploads that no session took are removed


class Page:
    """The page, and the application that serves it.

    Args:
        visitors: the sessions.
        about: a line on the classifier.
    """

    def __init__(self, visitors: Visitors, about: str) -> None:
        self.visitors = visitors
        with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=FORGOTTEN) as self.blocks:
            gr.Markdown(f"# What do the pictures show?\n{about}")
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

        theme = gr.themes.Default(primary_hue="indigo", font=look.FONTS, font_mono=look.MONO)
        return gr.mount_gradio_app(
            app,
            self.blocks,
            path="",
            theme=theme,
            css=look.STYLE,
            max_file_size=MOST_UPLOAD,
            footer_links=[],
            run_history=False,
            show_error=True,
            ssr_mode=False,
            mcp_server=False,
            enable_monitoring=False,
            pwa=False,
        )

    def session(self, request: gr.Request) -> Session:
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
        shown = gr.HTML(elem_id="answers", padding=False)
        files.upload(self.predict, [files, below], [files, shown], api_visibility="private")
        below.change(self.again, below, shown, api_visibility="private")

    def predict(self, files: list[str] | None, below: float, request: gr.Request) -> tuple[None, str]:
        session = self.session(request)
        with session.lock:
            session.predict(files or [])
            return None, self._answers(session, below)

    def again(self, below: float, request: gr.Request) -> str:
        session = self.session(request)
        with session.lock:
            return self._answers(session, below)

    def _answers(self, session: Session, below: float) -> str:
        found = session.answers
        return look.answers(found.rows(below), [one.labels for one in found.found], found.refused)
