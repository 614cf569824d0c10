"""Write what an evaluation gives: results.json, pictures, and lines in the log."""

import logging
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ..training.figures import save_figure
from .charts import confusion_figure, depth_figure
from .results import summarize_seeds, write_results

logger = logging.getLogger(__name__)
CHANCE_MARGIN = 0.98  # of the loss of guessing: a probe that ends above has hardly learned


def write_outcome(
    rows: Sequence[Mapping[str, Any]],
    shared: Mapping[str, Any],
    class_names: Sequence[str],
    output_dir: Path,
    draws_depth: bool,
) -> None:
    """Write results.json and pictures; log the figures.

    Args:
        rows: a result for each protocol, layer and seed.
        shared: what all rows have in common, num_classes and chance among it.
        class_names: written at the axes of confusion.png.
        output_dir: made where it does not exist.
        draws_depth: whether depth.png is drawn.
    """
    best = max(rows, key=lambda row: row["top1"])
    rows = [row if row is best else {**row, "confusion": None} for row in rows]  # 1,000 classes are megabytes
    write_results(output_dir / "results.json", {**shared, **rows[0]} if len(rows) == 1 else {**shared, "rows": rows})
    title = f"{best['protocol']}, layer {best['layer']}, top-1 {best['top1']:.1%}"
    save_figure(partial(confusion_figure, best["confusion"], class_names, title), output_dir / "confusion.png")
    summary = summarize_seeds([{**shared, **row} for row in rows])
    if draws_depth:
        found = {name: [row for row in summary if row["protocol"] == name] for name in ("cached", "knn")}
        series = {name: ([r["layer"] for r in of], [r["top1"] for r in of]) for name, of in found.items() if of}
        save_figure(partial(depth_figure, series, shared["chance"]), output_dir / "depth.png")
    for row in summary:
        spread = f" ± {100 * row['top1_std']:.2f} over {row['num_seeds']} seeds" if row["num_seeds"] > 1 else ""
        logger.info(
            "%s, layer %s: top-1 %.2f%%%s, top-5 %.2f%% on %d images",
            *(row["protocol"], row["layer"], 100 * row["top1"], spread, 100 * row["top5"]),
            row["num_validation_images"],
        )
        if advice := _advice(row, shared["num_classes"]):
            logger.warning("%s", advice)
    logger.info("results.json and pictures are in %s", output_dir)


def _advice(row: Mapping[str, Any], num_classes: int) -> str | None:
    """Return what to try where a classifier is no better than guessing, by its loss or by the interval of its top-1."""
    low, _ = row.get("top1_interval") or (row["top1"], None)
    if row["loss"] is None:  # of the nearest neighbors, which have no settings to change
        return None
    if row["loss"] < CHANCE_MARGIN * math.log(num_classes) and low > 1 / num_classes:
        return None
    rate = row.get("chosen_learning_rate") or row["learning_rate"]
    return (
        f"{row['protocol']}, layer {row['layer']}, is close to guessing: loss {row['loss']:.3f} (that of guessing is "
        f"{math.log(num_classes):.3f}), top-1 {row['top1']:.2%} ({1 / num_classes:.2%}). Its learning rate was {rate}: "
        "try a larger and a smaller --learning_rate, more --num_train_epochs, or --protocol cached, which chooses its "
        "rate; then another --layer"
    )
