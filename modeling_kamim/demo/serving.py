"""Serve the app: limits of uploads, and nothing of this machine in what the page shows."""

from collections.abc import Sequence

import gradio as gr

from .app import build_app
from .checkpoints import DemoModel
from .panels import CSS
from .uploads import MAX_BYTES


def serve(models: Sequence[DemoModel], host: str = "127.0.0.1", port: int | None = None, wait: bool = True) -> str:
    """Serve the app, until it is interrupted; return its address.

    Args:
        models: to show.
        host: address to listen at.
        port: None for the first free one from 7860.
        wait: until Ctrl-C; otherwise return at once, and serve as long as the process lives.
    """
    app = build_app(models)
    _, local, _ = app.launch(
        server_name=host,
        server_port=port,
        prevent_thread_lock=not wait,
        share=False,
        show_error=False,  # what a user may know comes as gr.Error
        max_file_size=MAX_BYTES,
        enable_monitoring=False,
        ssr_mode=False,
        footer_links=[],
        theme=gr.themes.Default(),
        css=CSS,
    )
    return local
