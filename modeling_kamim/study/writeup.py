"""The report of a study: report.md, summary.json and pictures, from the records alone."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from ..evaluation.results import write_results
from ..files import write_text
from ..hub.markup import MISSING, markdown
from ..training.figures import save_figure
from ..training.run_directory import WRITTEN_HERE, check_reports
from .diagrams import CURVES, density_figure, learning_figure, scores_figure
from .plan import Study
from .records import Record
from .summary import Arm, Difference, arms_of, differences, mean_and_deviation

logger = logging.getLogger(__name__)
PICTURES = {
    "learning.png": "Accuracy over images seen, by the probe during the training (last layer, fewer images).",
    "scores.png": "Accuracy of each arm: points are seeds, the bar is their mean, the dashed line random weights.",
    "density.png": "Error of the masked patches where keypoints are few, and where they are many.",
}
DIFFERENCES = "In points of top-1, with the 95% bootstrap interval; bold where it leaves 0 out."


def write_report(study: Study, records: Iterable[Record]) -> Path:
    """Write the report of a study into its `results_dir`, and return it.

    summary.json is written first: what is drawn after it cannot cost a number.
    """
    arms, folder = arms_of(records), study.results_dir
    report = folder / "report.md"
    check_reports(report)
    compared = compared_pairs(study, arms)
    figures = {"arms": [summary(arm) for arm in arms.values()], "differences": [asdict(found) for found in compared]}
    write_results(folder / "summary.json", figures)
    names = score_names(arms)
    curves = [found for arm in arms.values() for found in arm.pretraining("curves")]
    drawings = {  # whether there is something to draw, and how
        "learning.png": (any(found.keys() & CURVES.keys() for found in curves), partial(learning_figure, arms)),
        "scores.png": (bool(names), partial(scores_figure, arms, names)),
        "density.png": (
            any(arm.reconstruction("masked_l1_by_density") for arm in arms.values()),
            partial(density_figure, arms),
        ),
    }
    drawn = [name for name, (has_data, draw) in drawings.items() if has_data and save_figure(draw, folder / name)]
    write_text(report, "\n".join(report_lines(study, arms, compared, drawn)) + "\n")
    return report


def compared_pairs(study: Study, arms: Mapping[str, Arm]) -> list[Difference]:
    """Return the differences of a study's pairs whose arms have results."""
    pairs = [(arms[first], arms[second]) for first, second in study.pairs if {first, second} <= arms.keys()]
    return [difference for pair in pairs for difference in differences(*pair)]


def score_names(arms: Mapping[str, Arm]) -> list[str]:
    """Return the names of the scores, in the order in which arms have them."""
    return list({name: None for arm in arms.values() for name in arm.scores})


def summary(arm: Arm) -> dict[str, Any]:
    """Return the figures of an arm: mean, deviation and values of everything, seeds in their order."""
    keys = ("steps", "images_seen", "validation_masked_l1", "clipped_steps", "images_per_second", "hours")
    measured: dict[str, Sequence[Any]] = {key: arm.pretraining(key) for key in (*keys, "kilowatt_hours")}
    measured |= {"masked_l1_by_density": [found["l1"] for found in arm.reconstruction("masked_l1_by_density")]}
    for key in ("masked_psnr", "baseline_psnr"):
        measured[key] = [found["mean"] for found in arm.reconstruction(key)]
    return {
        "arm": arm.name,
        "seeds": [record.replicate.seed for record in arm.records],
        "target": arm.target,
        "top1": {name: _figures(values) for name, values in arm.scores.items()},
        **measured,
    }


def _figures(values: Sequence[float]) -> dict[str, Any]:
    mean, deviation = mean_and_deviation(values)
    return {"mean": mean, "deviation": deviation, "values": list(values)}


def report_lines(
    study: Study, arms: Mapping[str, Arm], compared: Sequence[Difference], drawn: Sequence[str]
) -> list[str]:
    """Return report.md."""
    lines = [f"# Study {markdown(study.name)}", "", f"{WRITTEN_HERE}: `kamim study`.", ""]
    for title, key in (("Question", "question"), ("What would count", "criterion")):
        if study.keys.get(key):
            lines += [f"**{title}.** {' '.join(str(study.keys[key]).split())}", ""]
    lines += [*table_lines(arms), ""]
    if compared:
        lines += ["## Differences", "", DIFFERENCES, "", *difference_lines(compared), ""]
    for name in drawn:
        lines += [f"![{PICTURES[name]}]({name})", "", f"*{PICTURES[name]}*", ""]
    return lines[:-1]


def table_lines(arms: Mapping[str, Arm]) -> list[str]:
    """Return the table of the arms as Markdown."""
    if not arms:
        return ["Nothing has been run yet."]
    names = score_names(arms)
    header = ["arm", "seeds", "images seen", *(f"{name}, top-1 %" for name in names), "masked L1", "clipped steps"]
    header += ["images/s", "hours"] + ["kWh"] * any(arm.pretraining("kilowatt_hours") for arm in arms.values())
    rows = []
    for arm in arms.values():
        found = arm.scores
        row = [markdown(arm.name), str(len(arm.records)), _number(arm.pretraining("images_seen"), "{:,.0f}")]
        row += [_percent(found.get(name, [])) for name in names]
        row += [_number(arm.pretraining("validation_masked_l1"), "{:.4f}")]
        row += [_number([100 * share for share in arm.pretraining("clipped_steps")], "{:.0f}%")]
        row += [_number(arm.pretraining("images_per_second"), "{:.0f}"), _number(arm.pretraining("hours"), "{:.2f}")]
        row += [_number(arm.pretraining("kilowatt_hours"), "{:.3f}")] * ("kWh" in header)
        rows.append(row)
    return _markdown_table(header, rows)


def difference_lines(compared: Sequence[Difference]) -> list[str]:
    """Return the table of paired differences as Markdown, a row for each pair."""
    names = list({difference.score: None for difference in compared})
    pairs: dict[str, dict[str, Difference]] = {}
    for difference in compared:
        pair = f"{markdown(difference.arm)} − {markdown(difference.other)}"
        pairs.setdefault(pair, {})[difference.score] = difference
    rows = []
    for pair, found in pairs.items():
        seeds = max((difference.seeds for difference in found.values()), key=len)
        cells = [_points(found[name], seeds) if name in found else MISSING for name in names]
        rows.append([pair, *cells, ", ".join(map(str, seeds))])
    return _markdown_table(["pair", *names, "seeds"], rows)


def _points(difference: Difference, seeds: Sequence[int]) -> str:
    low, high = difference.interval
    told = f"{difference.points:+.1f} [{low:+.1f}, {high:+.1f}]"
    told = f"**{told}**" if difference.is_told else told
    if list(difference.seeds) == list(seeds):
        return told
    return f"{told} (of seed {', '.join(map(str, difference.seeds))})"


def _markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)]


def _percent(values: Sequence[float]) -> str:
    mean, deviation = mean_and_deviation(values)
    if mean is None:
        return MISSING
    return f"{100 * mean:.1f}" + (f" ± {100 * deviation:.1f}" if deviation is not None else "")


def _number(values: Sequence[float], form: str) -> str:
    mean, _ = mean_and_deviation(values)
    return MISSING if mean is None else form.format(mean)
