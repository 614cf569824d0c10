"""The page: a photograph on the left, four tabs on the right; every change of a setting redraws its tab."""

import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import skimage.color
import skimage.data

from ..errors import InputError
from ..models.families import model_depth
from .checkpoints import DemoModel
from .focus_view import CELL_SIZES, IMAGE_SIZES, KNOBS, THRESHOLDS, FocusSettings, focus_page
from .masked_view import masked_page
from .neighbor_view import Gallery, neighbor_page
from .patch_view import patch_page
from .uploads import read_photograph

logger = logging.getLogger(__name__)
EXAMPLES: dict[str, Callable[[], np.ndarray]] = {
    "astronaut": skimage.data.astronaut,
    "cat": skimage.data.chelsea,
    "coffee": skimage.data.coffee,
    "coins": lambda: skimage.color.gray2rgb(skimage.data.coins()),
    "motorcycle": lambda: skimage.data.stereo_motorcycle()[0],
    "rocket": skimage.data.rocket,
}
FORGET_SECONDS = 3600  # what was uploaded, and pages that nobody uses
WAITING = 20  # requests in the queue
NO_MODEL = """A model is needed here. Train a small one, which takes two minutes, or name your own:

    kamim pretrain configs/quickstart/pretrain.yaml
    kamim demo --checkpoint outputs/quickstart/kamim"""
_QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}


@dataclass(frozen=True)
class Drawing:
    """How a tab is drawn: `draw(photograph, *values of the controls)` returns its page."""

    draw: Callable[..., str]
    controls: Sequence[Any]  # components that have a change event
    output: gr.HTML

    def redraw_with(self, photograph: gr.State) -> None:
        """Redraw when a control changes; of many changes the last one counts."""
        for control in self.controls:
            control.change(*self.call(photograph), trigger_mode="always_last", **_QUIET)

    def call(self, photograph: gr.State) -> tuple[Callable[..., str], list[Any], gr.HTML]:
        """Return function, inputs and output of an event."""
        return _told(self.draw), [photograph, *self.controls], self.output


def build_app(models: Sequence[DemoModel]) -> gr.Blocks:
    """Return the app.

    Args:
        models: in the order in which they are shown; without any, three tabs say how to get one.
    """
    with gr.Blocks(title="KAMIM", delete_cache=(600, FORGET_SECONDS), analytics_enabled=False) as app:
        gr.Markdown("# KAMIM: look into masked image modeling\nChoose a photograph, then turn the knobs of a tab.")
        photograph = gr.State(None, time_to_live=FORGET_SECONDS)
        with gr.Row():
            with gr.Column(scale=1, min_width=260):
                upload = gr.Image(
                    label="Photograph: upload, paste or take one",
                    sources=["upload", "clipboard", "webcam"],
                    height=280,
                    buttons=[],
                    elem_id="photograph",
                )
                # gradio itself would decode the upload, and fail without a word on what is wrong
                upload.preprocess = _path_of_upload  # type: ignore[method-assign]
                example = gr.Radio(list(EXAMPLES), label="Or an example", elem_id="example")
            with gr.Column(scale=3, min_width=300), gr.Tabs():
                drawings = [drawing for title in TABS if (drawing := _tab(title, models, upload)) is not None]
        loaded = upload.change(_told(_read), upload, photograph, **_QUIET)
        example.change(_example, example, upload, **_QUIET)
        app.load(lambda: next(iter(EXAMPLES)), None, example, **_QUIET)
        for drawing in drawings:
            drawing.redraw_with(photograph)
            loaded.success(*drawing.call(photograph), **_QUIET)
    return app.queue(max_size=WAITING, default_concurrency_limit=2)


def _tab(title: str, models: Sequence[DemoModel], upload: gr.Image) -> Drawing | None:
    """Make a tab; without a model only the first one can be drawn, and the others say how to get a model."""
    with gr.Tab(title):
        if models or TABS[title] is _focus_tab:
            return TABS[title](models, upload)
        gr.Markdown(NO_MODEL)
        return None


def _focus_tab(models: Sequence[DemoModel], upload: gr.Image) -> Drawing:
    detector = gr.Radio(list(THRESHOLDS), value="fast", label="What the loss follows", elem_id="detector")
    with gr.Row():
        threshold = _threshold("fast")
        temperature = gr.Slider(0.05, 1, 0.25, step=0.05, label="Temperature T", elem_id="temperature")
    with gr.Row():
        footprint = gr.Radio(["circle", "point"], value="circle", label="Footprint", elem_id="footprint")
        cell_size = gr.Radio(list(CELL_SIZES), value=8, label="Cell w_ps, px", elem_id="cell_size")
        image_size = gr.Radio(list(IMAGE_SIZES), value=192, label="Seen at, px", elem_id="image_size")
        norm = gr.Radio(["none", "mean"], value="none", label="Weights divided by", elem_id="norm")
    output = gr.HTML(elem_id="focus")
    detector.change(_threshold, detector, threshold, **_QUIET)

    def draw(photograph: np.ndarray, *values: Any) -> str:
        return focus_page(photograph, FocusSettings(*values))

    return Drawing(draw, [detector, threshold, footprint, image_size, cell_size, temperature, norm], output)


def _threshold(detector: str) -> gr.Slider:
    name, low, high, step, usual = THRESHOLDS[detector]
    label, info = f"{detector.upper()}'s {name}", KNOBS.get(name, "more: fewer keypoints")
    return gr.Slider(low, high, usual, step=step, label=label, info=info, elem_id="threshold")


def _masked_tab(models: Sequence[DemoModel], upload: gr.Image) -> Drawing:
    with gr.Row():
        ratio = gr.Slider(0.1, 0.9, 0.6, step=0.05, label="Masked share", elem_id="mask_ratio")
        patches = gr.Radio([1, 2, 4], value=1, label="Masked blocks, patches wide", elem_id="block")
        seed = gr.Slider(0, 99, 0, step=1, label="Seed of the mask", elem_id="seed")
    output = gr.HTML(elem_id="masked")
    return Drawing(functools.partial(_masked, models), [ratio, patches, seed], output)


def _masked(models: Sequence[DemoModel], photograph: np.ndarray, ratio: float, patches: int, seed: int) -> str:
    return masked_page(models, photograph, ratio, patches, int(seed))


def _patch_tab(models: Sequence[DemoModel], upload: gr.Image) -> Drawing:
    gr.Markdown("Click into the photograph, or move the sliders.")
    with gr.Row():
        down = gr.Slider(0, 100, 50, step=1, label="Patch: % from the top", elem_id="down")
        right = gr.Slider(0, 100, 50, step=1, label="Patch: % from the left", elem_id="right")
        deepest = max(model_depth(model.encoder.config) or 1 for model in models)
        block = gr.Slider(1, deepest, deepest, step=1, label="Block of the attention", elem_id="attention_block")
    output = gr.HTML(elem_id="patch")
    upload.select(_clicked, upload, [down, right], **_QUIET)
    return Drawing(functools.partial(_patch, models), [down, right, block], output)


def _patch(models: Sequence[DemoModel], photograph: np.ndarray, down: float, right: float, block: int) -> str:
    return patch_page(models, photograph, (down / 100, right / 100), int(block))


def _clicked(file: str, event: gr.SelectData) -> tuple[int, int]:
    """Return how far from the top and the left of the photograph a click was, in percent."""
    x, y = event.index
    height, width = read_photograph(Path(file)).shape[:2]
    return min(100, round(100 * y / height)), min(100, round(100 * x / width))


def _neighbor_tab(models: Sequence[DemoModel], upload: gr.Image) -> Drawing:
    with gr.Row():
        share = gr.Slider(10, 100, 25, step=5, label="Middle of the photograph, %", elem_id="share")
        number = gr.Slider(2, 12, 6, step=1, label="How many", elem_id="number")
    output = gr.HTML(elem_id="neighbors")
    gallery = Gallery(models)

    def draw(photograph: np.ndarray, share: float, number: int) -> str:
        return neighbor_page(gallery, models, photograph, share / 100, int(number))

    return Drawing(draw, [share, number], output)


TABS: dict[str, Callable[[Sequence[DemoModel], gr.Image], Drawing]] = {
    "Where the loss looks": _focus_tab,
    "Reconstruct": _masked_tab,
    "What a patch knows": _patch_tab,
    "Neighbors": _neighbor_tab,
}


def _path_of_upload(payload: Any) -> str | None:
    return None if payload is None else payload.path


def _read(file: str | None) -> np.ndarray | None:
    return None if file is None else read_photograph(Path(file))


def _example(name: str) -> np.ndarray:
    return EXAMPLES[name]()


def _told(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that draws nothing without a photograph, and shows the user what is wrong in one sentence."""

    @functools.wraps(function)
    def call(photograph: Any, *values: Any) -> Any:
        if photograph is None:
            return None
        try:
            return function(photograph, *values)
        except InputError as error:
            raise gr.Error(f"{str(error)[:1].upper()}{str(error)[1:]}.", print_exception=False) from None
        except Exception:
            logger.exception("the demo failed")
            raise gr.Error("This did not work; try another photograph or setting.", print_exception=False) from None

    return call
