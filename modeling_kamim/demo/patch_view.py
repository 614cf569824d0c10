"""What a patch knows: who is like it, what the model tells apart, and where the patch looks."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from ..analysis.encoders import AnalysisRefused
from .checkpoints import DemoModel
from .panels import Panel, enlarged, heat, marked, over, section


@dataclass(frozen=True)
class PatchView:
    """What an encoder makes of one patch of a photograph.

    Args:
        patch: row and column.
        similarity: `(rows, columns)`, cosine similarity of all patches to it, in [-1, 1]; its own is 1.
        colors: `(rows, columns, 3)`, uint8: the three principal components of the tokens as red, green and blue.
        attention: `(rows, columns)`, what the patch attends to in a block, sums to 1; None where there is no map.
        block: number of the block, from 1.
        refusal: why there is no map.
    """

    patch: tuple[int, int]
    similarity: np.ndarray
    colors: np.ndarray
    attention: np.ndarray | None
    block: int
    refusal: str = ""


def look(model: DemoModel, photograph: np.ndarray, point: tuple[float, float], block: int) -> PatchView:
    """Return similarity, principal components and attention around one patch.

    Args:
        photograph: `(height, width, 3)`, uint8.
        point: of the patch, its distance from the top and the left as shares of the photograph, in [0, 1).
        block: whose attention is read, from 1; the last one where there are fewer.

    Raises:
        AnalysisRefused: if the encoder's tokens are no grid over the image.
    """
    encoder = model.encoder
    outputs = encoder([model.seen(photograph)], attention=True)
    tokens = encoder.token_map(outputs.final.float())[0].permute(1, 2, 0).cpu()  # (rows, columns, dimension)
    rows, columns = tokens.shape[:2]
    patch = min(int(point[0] * rows), rows - 1), min(int(point[1] * columns), columns - 1)
    similarity = F.cosine_similarity(tokens, tokens[patch], dim=-1).clamp(-1, 1).numpy()
    attention, refusal = None, ""
    try:
        block = min(block, len(encoder.attention_maps(outputs)))
        layer = encoder.layer_attention(outputs, block - 1, 1)
        if layer.windows > 1:
            raise AnalysisRefused("its attention is within windows")
        index = int(patch[0] / rows * layer.grid[0]) * layer.grid[1] + int(patch[1] / columns * layer.grid[1])
        attention = layer.weights.mean(dim=1)[0, index].unflatten(0, layer.grid).cpu().numpy()
    except AnalysisRefused as reason:
        refusal = str(reason)
    return PatchView(patch, similarity, component_colors(tokens), attention, block, refusal)


def component_colors(tokens: torch.Tensor) -> np.ndarray:
    """Return the three principal components of tokens `(rows, columns, dimension)` as `(rows, columns, 3)` uint8.

    Each component is stretched from its 2nd to its 98th percentile; its sign is that of its largest value.
    """
    flat = tokens.flatten(0, 1)
    centered = (flat - flat.mean(dim=0)).double()
    scores = centered @ torch.linalg.svd(centered, full_matrices=False).Vh[:3].T
    scores = scores * scores.gather(0, scores.abs().argmax(dim=0, keepdim=True)).sign()
    low, high = scores.quantile(0.02, dim=0), scores.quantile(0.98, dim=0)
    levels = ((scores - low) / (high - low).clamp(min=1e-9)).clamp(0, 1) * 255
    colors = torch.full((len(flat), 3), 128.0, dtype=torch.float64)  # gray where there are fewer than three components
    colors[:, : levels.shape[1]] = levels
    return colors.round().to(torch.uint8).unflatten(0, tokens.shape[:2]).numpy()


def patch_page(models: Sequence[DemoModel], photograph: np.ndarray, point: tuple[float, float], block: int) -> str:
    """Return the tab's page: for each model the chosen patch, similarities, components and attention."""
    sections = []
    for model in models:
        found = look(model, photograph, point, block)
        grid = found.similarity.shape
        seen = model.seen(photograph)
        seen = seen if seen.shape[2] == 3 else cv2.cvtColor(seen, cv2.COLOR_GRAY2RGB)
        low = float(found.similarity.min())
        similar = over(seen, heat(found.similarity, low, 1))
        where = f"row {found.patch[0] + 1}, column {found.patch[1] + 1} of {grid[0]} x {grid[1]}"
        panels = [
            Panel("The patch", marked(enlarged(seen), grid, found.patch), where),
            Panel("Similarity", marked(similar, grid, found.patch), "patches like it", (f"cosine {low:.2f}", "1")),
            Panel("Components", enlarged(found.colors, smooth=False), "what is told apart"),
        ]
        said = f"No map of its attention: {found.refusal}." if found.attention is None else ""
        if found.attention is not None:
            high = float(found.attention.max())
            attended = marked(over(seen, heat(found.attention, 0, high)), grid, found.patch)
            times = f"{high * found.attention.size:.1f} times uniform"
            panels.append(
                Panel(f"Attention, block {found.block}", attended, "where it looks, mean of the heads", ("0", times))
            )
        sections.append(section(panels, model.name, said))
    return "".join(sections)
