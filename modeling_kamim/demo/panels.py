"""Pictures in a page: labeled panels, heat maps and histograms as HTML with everything inside, no file behind it."""

import base64
import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

SIDE = 336  # of a panel in pixels
_HEAT = cv2.COLORMAP_MAGMA
_QUALITY = 90  # of JPEG
_GRADIENT = "linear-gradient(90deg,#000004,#3b0f70,#8c2981,#de4968,#fe9f6d,#fcfdbf)"  # magma


@dataclass(frozen=True)
class Panel:
    """A picture with its title.

    Args:
        title: above it.
        pixels: `(height, width, 3)`, uint8 RGB.
        note: below it, a sentence; "" for none. It is also what a screen reader says of the picture.
        scale: least and largest value of a heat map, as words; None for no scale.
    """

    title: str
    pixels: np.ndarray
    note: str = ""
    scale: tuple[str, str] | None = None

    def html(self) -> str:
        """Return the panel as a figure."""
        title, note = html.escape(self.title), html.escape(self.note)
        parts = [f"<figcaption>{title}</figcaption>", f'<img src="{_data_uri(self.pixels)}" alt="{title}. {note}">']
        if self.scale:
            low, high = map(html.escape, self.scale)
            bar = f'<i style="background:{_GRADIENT}"></i>'
            parts.append(f'<div class="kamim-scale"><span>{low}</span>{bar}<span>{high}</span></div>')
        if note:
            parts.append(f"<p>{note}</p>")
        return f"<figure>{''.join(parts)}</figure>"


CSS = """
.kamim-panels {display: grid; grid-template-columns: repeat(auto-fit, minmax(min(45%, 160px), 1fr));
  gap: 14px; margin: 6px 0 18px;}
.kamim-panels figure, .kamim-histogram {margin: 0; min-width: 0;}
.kamim-panels figure {max-width: 300px;}
.kamim-panels figcaption, .kamim-histogram figcaption {font-weight: 600; margin-bottom: 4px;}
.kamim-panels img {width: 100%; border-radius: 6px; display: block;}
.kamim-panels p, .kamim-said {margin: 4px 0 0; font-size: 0.9em;}
.kamim-scale {display: flex; align-items: center; gap: 6px; font-size: 0.85em; margin-top: 4px;}
.kamim-scale i {flex: 1; height: 8px; border-radius: 4px;}
.kamim-histogram svg {width: 100%; max-width: 560px; height: auto; color: inherit;}
"""


def section(panels: Iterable[Panel], heading: str = "", said: str = "") -> str:
    """Return panels side by side, as many as fit, under a heading and a sentence, both plain text."""
    title = f"<h3>{html.escape(heading)}</h3>" if heading else ""
    sentence = f'<p class="kamim-said">{html.escape(said)}</p>' if said else ""
    return f'{title}{sentence}<div class="kamim-panels">{"".join(panel.html() for panel in panels)}</div>'


def enlarged(pixels: np.ndarray, smooth: bool = True) -> np.ndarray:
    """Return an image whose longer side is `SIDE` px; not `smooth` keeps its pixels or cells as squares."""
    scale = SIDE / max(pixels.shape[:2])
    height, width = (max(1, round(side * scale)) for side in pixels.shape[:2])
    how = cv2.INTER_NEAREST if not smooth else cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return cv2.resize(np.ascontiguousarray(pixels), (width, height), interpolation=how)


def heat(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return `(rows, columns, 3)`, uint8 RGB, from dark (`low` and less) to bright (`high` and more)."""
    share = (np.asarray(values, np.float64) - low) / max(high - low, 1e-12)
    levels = (share.clip(0, 1) * 255).round().astype(np.uint8)
    return cv2.cvtColor(cv2.applyColorMap(levels, _HEAT), cv2.COLOR_BGR2RGB)


def over(photograph: np.ndarray, colors: np.ndarray, opacity: float = 0.6) -> np.ndarray:
    """Return the colors of cells laid over a photograph in gray, both at the size of a panel."""
    ground = enlarged(photograph)
    gray = cv2.cvtColor(cv2.cvtColor(ground, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    cells = cv2.resize(colors, gray.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    return cv2.addWeighted(cells, opacity, gray, 1 - opacity, 0)


def marked(pixels: np.ndarray, grid: tuple[int, int], cell: tuple[int, int]) -> np.ndarray:
    """Return a picture with a white and black frame around a cell of its grid.

    Args:
        grid: rows and columns.
        cell: row and column.
    """
    height, width = pixels.shape[:2]
    top, bottom = (round((cell[0] + end) * height / grid[0]) for end in (0, 1))
    left, right = (round((cell[1] + end) * width / grid[1]) for end in (0, 1))
    framed = pixels.copy()
    for color, thickness in (((0, 0, 0), 4), ((255, 255, 255), 2)):
        cv2.rectangle(framed, (left, top), (right - 1, bottom - 1), color, thickness)
    return framed


def histogram(title: str, edges: Sequence[float], counts: Sequence[int], unit: str) -> str:
    """Return a histogram over bins of equal width on the page, as SVG in the page's own text color.

    Args:
        edges: of the bins, one more than counts; they are written below the first, the middle and the last bin.
        unit: of the counts, as "cells".
    """
    width, height, base = 560, 150, 122
    most, bar = max(max(counts), 1), width / len(counts)
    bars = "".join(
        f'<rect x="{index * bar + 1:.1f}" y="{base - 110 * count / most:.1f}" width="{bar - 2:.1f}" '
        f'height="{110 * count / most:.1f}" fill="#de4968"><title>{edges[index]:.3g} to {edges[index + 1]:.3g}: '
        f"{count:,} {unit}</title></rect>"
        for index, count in enumerate(counts)
    )
    places = [(0, "start"), (len(counts) // 2, "middle"), (len(counts), "end")]
    ticks = "".join(
        f'<text x="{index * bar:.1f}" y="{base + 18}" text-anchor="{anchor}" fill="currentColor" font-size="13">'
        f"{edges[index]:.3g}</text>"
        for index, anchor in places
    )
    line = f'<line x1="0" x2="{width}" y1="{base}" y2="{base}" stroke="currentColor"/>'
    label = f"{html.escape(title)}; at most {max(counts):,} {unit} in a bin"
    picture = f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{label}">{bars}{line}{ticks}</svg>'
    return f'<figure class="kamim-histogram"><figcaption>{html.escape(title)}</figcaption>{picture}</figure>'


def _data_uri(pixels: np.ndarray) -> str:
    bgr = cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2BGR)
    encoded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])[1]
    return f"data:image/jpeg;base64,{base64.b64encode(encoded.tobytes()).decode()}"
