"""Write the tables of all results below some folders, as Markdown and LaTeX."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ...errors import InputError
from ...files import write_text
from ...hub.markup import MISSING, markdown
from ...training.figures import save_figure
from ...training.run_directory import WRITTEN_HERE, check_reports
from ..charts import depth_figure
from ..results import read_results, summarize_seeds
from .entries import Entry, grouped, natural_order
from .layouts import LAYOUTS
from .reconstructions import LEGEND as RECONSTRUCTION_LEGEND
from .reconstructions import is_reconstruction, reconstruction_table
from .tables import Cell, Table

logger = logging.getLogger(__name__)
MAIN_COLUMNS = ("model", "method", "data", "protocol", "layer", "pooling", "top-1", "top-5", "seeds", "images")
NUM_DIFFERENCES = 3  # that are named for results that look the same
LEGEND = (
    "Top-1 and top-5 in percent. In brackets: bootstrap 95% interval over validation images; behind ±: standard "
    "deviation over seeds. Bold: best top-1 on the same images by the same protocol and layer. Images: training / "
    "validation."
)
DEPTH_LEGEND = (
    "Accuracy by depth: top-1 in percent by layer (final: the encoder's output behind its LayerNorm), the best of each "
    "row in bold. Of these runs the first table shows only the layer that the paper's evaluation reads."
)
LAYOUT_LEGEND = (
    "LP: the paper's linear probe of its layer (ViT: block 8; Swin: last stage); cached-LP: the same layer, probed on "
    "features computed once; FT: fine-tuned. Several figures in one cell: results that differ in a setting that only "
    "the first table shows. Columns titled (paper) repeat the figures of arXiv:2407.13873 where data, pretraining "
    "data, masks, model and image size are the paper's; they were not measured here."
)


@dataclass(frozen=True)
class Report:
    """All results, one row for each setting.

    Args:
        rows: of `summarize_seeds`, in the order of the first table.
        tables: all results, accuracy by depth, then the layouts of the paper for which there are results, and
            reconstructions.
        notes: what a reader has to know, without markup.
        figures: what draws accuracy by depth, by file name.
    """

    rows: list[dict[str, Any]]
    tables: list[Table]
    notes: list[str]
    figures: Mapping[str, Callable[[], Figure]]

    def to_markdown(self) -> str:
        pictures = (f"![accuracy by depth]({name})\n" for name in self.figures)
        notes = (f"{markdown(note)}\n" for note in self.notes)
        return "\n".join(["# Results", "", *notes, *map(Table.to_markdown, self.tables), *pictures])

    def to_latex(self) -> str:
        comments = [r"% \usepackage{booktabs,graphicx}", *(f"% {' '.join(note.split())}" for note in self.notes), ""]
        return "\n".join([*comments, *map(Table.to_latex, self.tables)])


def build_report(paths: Iterable[str | Path]) -> Report:
    """Gather every results.json below some folders; files that are not this package's are left out with a warning.

    Raises:
        InputError: if a folder does not exist, or there are no results in any.
    """
    folders = [Path(path) for path in paths]
    rows = [row for file in _find(folders) for row in read_rows(file)]
    if not rows:
        raise InputError(f"no results in {', '.join(map(str, folders))}; give folders with results.json of evaluations")
    scored = [row for row in rows if is_reconstruction(row)]
    measured = summarize_seeds(row for row in rows if not is_reconstruction(row))
    entries = sorted(map(Entry, measured), key=Entry.order)
    layouts = [table for layout in LAYOUTS for table in layout.tables(entries)]
    probed = _probed_by_depth(entries)
    by_depth = [_depth_table(data, runs) for data, runs in probed.items()]
    figures = {f"depth_{number}.png": partial(_depth_figure, runs) for number, runs in enumerate(probed.values(), 1)}
    main = [_main_table(_without_inner_layers(entries, probed))] if entries else []
    reconstructions = [reconstruction_table(scored)] if scored else []
    legends = {LEGEND: main, DEPTH_LEGEND: by_depth, LAYOUT_LEGEND: layouts, RECONSTRUCTION_LEGEND: reconstructions}
    notes = [*(legend for legend, tables in legends.items() if tables), *_fingerprint_notes(entries)]
    tables = [*main, *by_depth, *layouts, *reconstructions]
    return Report([entry.row for entry in entries], tables, notes, figures)


def write_report(report: Report, output_dir: Path) -> None:
    """Write report.md, its pictures, and report.tex (tables for `\\input`; they need booktabs and graphicx).

    Raises:
        InputError: if one of the two is there and not of this package.
    """
    check_reports(output_dir / "report.md", output_dir / "report.tex")
    output_dir.mkdir(parents=True, exist_ok=True)
    figures = {name: draw for name, draw in report.figures.items() if save_figure(draw, output_dir / name)}
    report = replace(report, figures=figures)
    write_text(output_dir / "report.md", f"{report.to_markdown()}\n<!-- {WRITTEN_HERE} -->\n")
    write_text(output_dir / "report.tex", f"{report.to_latex()}\n% {WRITTEN_HERE}\n")


def _find(paths: Iterable[Path]) -> list[Path]:
    files: dict[Path, Path] = {}
    for path in paths:
        if not path.exists():
            raise InputError(f"there is no folder {path}; give folders with results.json of evaluations")
        found = [path] if path.is_file() else sorted(path.rglob("results.json"))
        files.update({file.resolve(): file for file in found})
    return list(files.values())


def read_rows(file: Path) -> list[dict[str, Any]]:
    """Return the rows of a results.json, without classes and confusion."""
    rows = read_results(file)
    return [{key: value for key, value in row.items() if key not in ("per_class", "confusion", "hits")} for row in rows]


def _main_table(entries: Sequence[Entry]) -> Table:
    contests = grouped(entries, lambda entry: entry.contest)
    best = {key: max(entry.row["top1"] for entry in group) for key, group in contests.items() if len(group) > 1}
    alike = grouped(entries, lambda entry: (*entry.labels, entry.images))
    rows = []
    for entry in entries:
        model, method, data, protocol, *labels = entry.labels
        difference = _difference(entry, alike[*entry.labels, entry.images])
        protocol += f"; {difference}" if difference else ""
        top1 = Cell(entry.top1_with_interval, bold=best.get(entry.contest) == entry.row["top1"])
        others = (entry.top5, entry.seeds, entry.images)
        rows.append([*map(Cell, (model, method, data, protocol, *labels)), top1, *map(Cell, others)])
    return Table("All results", MAIN_COLUMNS, rows, num_labels=6)


def _probed_by_depth(entries: Sequence[Entry]) -> dict[str, list[list[Entry]]]:
    """Return, for each data set, the runs of several layers, each a list by layer."""
    runs = grouped(entries, lambda entry: (entry.labels[2], entry.run))
    deep = [run for run in runs.values() if len({entry.shown("layer") for entry in run}) > 1]
    return grouped(deep, lambda run: run[0].labels[2])


def _without_inner_layers(entries: Sequence[Entry], probed: Mapping[str, list[list[Entry]]]) -> list[Entry]:
    """Leave out layers other than the paper's, where the paper's was probed too."""
    runs = [run for of_data in probed.values() for run in of_data if any(entry.reads_papers_layer for entry in run)]
    inner = {id(entry) for run in runs for entry in run if not entry.reads_papers_layer}
    return [entry for entry in entries if id(entry) not in inner]


def _depth_table(data: str, runs: Sequence[Sequence[Entry]]) -> Table:
    layers = sorted({entry.shown("layer") for run in runs for entry in run}, key=natural_order)
    rows = []
    for run in runs:
        model, method, _, protocol, _, pooling = run[0].labels
        found = {entry.shown("layer"): entry for entry in run}
        best = max(entry.row["top1"] for entry in run)
        figures = [
            Cell(found[layer].top1, bold=found[layer].row["top1"] == best) if layer in found else Cell(MISSING)
            for layer in layers
        ]
        rows.append([*map(Cell, (model, method, protocol, pooling)), *figures])
    return Table(f"{data}: accuracy by depth", ("model", "method", "protocol", "pooling", *layers), rows, num_labels=4)


def _depth_figure(runs: Sequence[Sequence[Entry]]) -> Figure:
    series = {
        f"{run[0].model}, {run[0].labels[3]}": (
            [entry.shown("layer") for entry in run],
            [entry.row["top1"] for entry in run],
        )
        for run in runs
    }
    return depth_figure(series, chance=runs[0][0].row.get("chance") or 0.0)


def _difference(entry: Entry, alike: Sequence[Entry]) -> str:
    """Return the first settings that tell an entry from others that look the same in the table."""
    own, *others = (other.settings for other in (entry, *alike))
    keys = [key for key in own if any(other.get(key) != own[key] for other in others)]
    return "; ".join(f"{key} {own[key]}" for key in keys[:NUM_DIFFERENCES])


def _fingerprint_notes(entries: Sequence[Entry]) -> Iterator[str]:
    for (name, images), group in grouped(entries, lambda entry: (entry.labels[2], entry.images)).items():
        fingerprints = {entry.fingerprint for entry in group}
        if len(fingerprints) > 1:
            yield (
                f"Results on {name} ({images} images) come from {len(fingerprints)} loadings of it with different "
                "fingerprints; they may not be of the same images."
            )
