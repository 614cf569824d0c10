"""The table of reconstruction scores in a report."""

from collections.abc import Iterable, Mapping
from typing import Any

from ...hub.markup import MISSING
from ..results import is_number
from .entries import Entry
from .tables import Cell, Table

# Columns, the score that each shows, and its digits
SCORES = (
    ("masked PSNR", "masked_psnr", 2),
    ("masked SSIM", "masked_ssim", 3),
    ("fill PSNR", "baseline_psnr", 2),
    ("fill SSIM", "baseline_ssim", 3),
    ("paper's PSNR", "paper_psnr_pooled", 2),
    ("paper's SSIM", "paper_ssim", 3),
)
LEGEND = (
    "Reconstructions: PSNR in dB, behind ± the standard error over images. masked: the masked pixels alone; fill: the "
    "same of the mean color of the visible pixels (of a model of normalized pixels, of each patch's mean, which it is "
    "given), which a model has to beat; paper's: all pixels, normalized, as in section 4.7 of arXiv:2407.13873."
)


def is_reconstruction(row: Mapping[str, Any]) -> bool:
    """Return whether a row of results.json holds scores of reconstructions."""
    return row.get("mode") == "reconstruction"


def reconstruction_table(rows: Iterable[Mapping[str, Any]]) -> Table:
    """Return a table with a line for each row, the best of each data set first."""
    ordered = sorted(rows, key=lambda row: (str(row["provenance"].get("dataset")), -row["masked_psnr"]["mean"]))
    header = ("model", "method", "data", "masked", *(column for column, _, _ in SCORES), "images")
    return Table("Reconstructions", header, [_cells(Entry(dict(row))) for row in ordered], num_labels=3)


def _cells(entry: Entry) -> list[Cell]:
    row = entry.row
    scores = [_score(row.get(key), digits) for _, key, digits in SCORES]
    data = str(entry.origin.get("dataset"))
    share, images = f"{row['mask_ratio']:.0%}", entry.shown("num_images")
    return list(map(Cell, (entry.model, entry.described_method, data, share, *scores, images)))


def _score(score: Any, digits: int) -> str:
    mean, error = (score.get(key) if isinstance(score, dict) else None for key in ("mean", "standard_error"))
    if not is_number(mean):
        return MISSING
    return f"{mean:.{digits}f}" + (f" ± {error:.{digits}f}" if is_number(error) else "")
