"""Tables of all results below some folders, as Markdown and LaTeX, also in the layouts of the paper's tables."""

import json
import logging
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from matplotlib.figure import Figure

from ..errors import InputError
from ..figures import depth_figure
from .features import PROBED_BLOCK
from .paper import (
    ARCHITECTURES,
    NO_DETECTOR_ROW,
    PAPER_DATA,
    PAPER_DATA_SETS,
    PAPER_IMAGE_SIZE,
    PAPER_KAMIM,
    PAPER_MASK,
    PAPER_MODEL,
    PAPER_TABLES,
    SIMMIM_ROW,
    Figures,
    Key,
)
from .results import AVERAGED, MEASURED, result_rows, summarise_seeds
from .tables import MISSING, Cell, Table, markdown

logger = logging.getLogger(__name__)
Item = TypeVar("Item")

PROTOCOLS = {
    "paper": "linear probe (paper)",
    "paper_layernorm": "linear probe (paper, LayerNorm)",
    "mae": "linear probe (MAE)",
    "cached": "linear probe (cached)",
    "knn": "k-NN",
    "finetune": "fine-tuning",
}
# In the layouts of the paper's tables
KINDS = {"paper": "LP", "paper_layernorm": "LP", "finetune": "FT", "cached": "cached-LP"}
NOT_SHOWN = {"provenance", "seed", "seeds", "num_seeds", "time", "device", "kamim", "versions", "model"}
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
        rows: of `summarise_seeds`, in the order of the first table.
        tables: all results, accuracy by depth, then the layouts of the paper for which there are results.
        notes: what a reader has to know, without markup.
        figures: accuracy by depth, by file name.
    """

    rows: list[dict[str, Any]]
    tables: list[Table]
    notes: list[str]
    figures: dict[str, Figure]

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
    entries = sorted((Entry(row) for row in summarise_seeds(rows)), key=Entry.order)
    layouts = [table for layout in LAYOUTS for table in layout.tables(entries)]
    probed = _probed_by_depth(entries)
    by_depth = [_depth_table(data, runs) for data, runs in probed.items()]
    figures = {f"depth_{number}.png": _depth_figure(runs) for number, runs in enumerate(probed.values(), 1)}
    main = _main_table(_without_inner_layers(entries, probed))
    legends = [LEGEND, *([DEPTH_LEGEND] if by_depth else []), *([LAYOUT_LEGEND] if layouts else [])]
    notes = [*legends, *_fingerprint_notes(entries)]
    return Report([entry.row for entry in entries], [main, *by_depth, *layouts], notes, figures)


def write_report(report: Report, output_dir: Path) -> None:
    """Write report.md, its pictures, and report.tex (tables for `\\input`; they need booktabs and graphicx)."""
    output_dir.mkdir(parents=True, exist_ok=True)
    (output_dir / "report.md").write_text(report.to_markdown(), encoding="utf-8")
    (output_dir / "report.tex").write_text(report.to_latex(), encoding="utf-8")
    for name, figure in report.figures.items():
        figure.savefig(output_dir / name, dpi=100)


def _find(paths: Iterable[Path]) -> list[Path]:
    files: dict[Path, Path] = {}
    for path in paths:
        if not path.exists():
            raise InputError(f"there is no folder {path}; give folders with results.json of evaluations")
        found = [path] if path.is_file() else sorted(path.rglob("results.json"))
        files.update({file.resolve(): file for file in found})
    return list(files.values())


def read_rows(file: Path) -> list[dict[str, Any]]:
    """The rows of a results.json, without classes and confusion; what is no result is left out with a warning.

    Scores of reconstructions are left out without one: they are results, but not of these tables.
    """
    try:
        results = json.loads(file.read_text(encoding="utf-8"))
        rows = result_rows(results)
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        logger.warning("%s is left out, it is unreadable or no result: %s", file, error)
        return []
    rows = [row for row in rows if row.get("mode") != "reconstruction"]
    kept = [row for row in rows if _is_result(row)]
    if len(kept) < len(rows):
        reason = "they need protocol, top1 in [0, 1] and provenance"
        logger.warning("%s: %d of %d results are left out: %s", file, len(rows) - len(kept), len(rows), reason)
    return [{key: value for key, value in row.items() if key not in ("per_class", "confusion")} for row in kept]


def _is_result(row: dict[str, Any]) -> bool:
    is_measured = all(row.get(name) is None or _is_number(row[name]) for name in AVERAGED)
    is_described = isinstance(row.get("protocol"), str) and isinstance(row.get("provenance"), dict)
    return is_measured and is_described and row.get("top1") is not None and 0 <= row["top1"] <= 1


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e100


@dataclass(frozen=True)
class Entry:
    """What the tables show of a row of `summarise_seeds`."""

    row: dict[str, Any]

    def shown(self, name: str) -> str:
        return _show(self.row.get(name))

    @property
    def origin(self) -> dict[str, Any]:
        return self.row["provenance"]

    @property
    def kamim(self) -> dict[str, Any]:
        return _mapping(self.origin.get("kamim"))

    @property
    def figures(self) -> dict[str, Any]:
        return _mapping(self.origin.get("model"))

    @property
    def architecture(self) -> str:
        """As the paper names it, or type, width, depth and patch size."""
        kind, *sizes = (_show(self.figures.get(key)) for key in ("model_type", "hidden_size", "depth", "patch_size"))
        name = "{} {}x{}/{}".format(kind, *sizes)
        return ARCHITECTURES.get(name, name)

    @property
    def parameters(self) -> str:
        """Millions."""
        parameters = self.figures.get("parameters")
        return f"{parameters / 1e6:.1f}M" if parameters is not None and _is_number(parameters) else MISSING

    @property
    def model(self) -> str:
        checkpoint = self.origin.get("checkpoint")
        return f"random weights ({self.architecture})" if checkpoint is None else _show(checkpoint)

    @property
    def method(self) -> str:
        weighting = self.kamim.get("weighting")
        if weighting is None:
            return "none" if self.origin.get("checkpoint") is None else MISSING
        return {"none": "SimMIM", "keypoint": "KAMIM"}.get(_show(weighting), f"KAMIM-{_show(weighting)}")

    @property
    def detector(self) -> str:
        return _show(self.kamim.get("keypoint_detector")).upper()

    @property
    def cell(self) -> Key:
        """w_ps and T."""
        return (_show(self.kamim.get("weight_patch_size")), _show(self.kamim.get("temperature")))

    @property
    def described_method(self) -> str:
        if not self.method.startswith("KAMIM"):
            return self.method
        extras = [_show(self.kamim.get("keypoint_source"))]
        extras += ["points"] * (self.kamim.get("keypoint_footprint") == "point")
        extras += ["mean weight 1"] * (self.kamim.get("weight_norm") == "mean")
        return f"{self.method} ({self.detector}, w_ps {self.cell[0]}, T {self.cell[1]}, {', '.join(extras)})"

    @property
    def deviations(self) -> set[str]:
        """The settings of the weights that are not the paper's; SimMIM has none."""
        return set() if self.method == "SimMIM" else self._differs(PAPER_KAMIM)

    def _differs(self, settings: Mapping[str, Any]) -> set[str]:
        return {key for key, value in settings.items() if _show(self.kamim.get(key)) != _show(value)}

    def suits(self, *free: str) -> bool:
        """Whether this is SimMIM or KAMIM as in the paper's tables, but for some settings."""
        settings = self.deviations | ({"layer_norm"} if self.row.get("layer_norm") else set())
        return self.method in ("SimMIM", "KAMIM") and self.kind is not None and settings <= set(free)

    @property
    def reads_papers_layer(self) -> bool:
        """Whether the layer is the one that the paper's evaluation reads."""
        depth = self.figures.get("depth")
        last = {"final", "last stage", _show(depth), MISSING}
        reads_last = self.row["protocol"] == "finetune" or self.figures.get("model_type") == "swin"
        reads_last |= isinstance(depth, int) and depth <= PROBED_BLOCK
        return self.shown("layer") in (last if reads_last else {str(PROBED_BLOCK)})

    @property
    def kind(self) -> str | None:
        """Of `KINDS`, where layer and pooling are the paper's."""
        is_papers = self.reads_papers_layer and self.shown("pooling") in ("mean", MISSING)
        return KINDS.get(self.row["protocol"]) if is_papers else None

    @property
    def pooling(self) -> str:
        return f"{self.shown('pooling')} + LayerNorm" if self.row.get("layer_norm") else self.shown("pooling")

    @property
    def images(self) -> str:
        return f"{_count(self.row.get('num_train_images'))} / {_count(self.row.get('num_validation_images'))}"

    @property
    def paper_data(self) -> str | None:
        """The paper's data set of which these are all the images."""
        name = _paper_name(_show(self.origin.get("dataset")))
        sizes = [self.row.get(key) for key in ("num_classes", "num_train_images", "num_validation_images")]
        return name if name and sizes == list(PAPER_DATA_SETS[name][1]) else None

    @property
    def pretrained_on(self) -> str | None:
        """Where it is known."""
        name = self.kamim.get("dataset_name")
        return None if name is None else _paper_name(_show(name)) or _show(name)

    @property
    def data(self) -> str:
        """Data set, and that of pretraining where it is known to be another."""
        name = _show(self.origin.get("dataset"))
        other = self.pretrained_on not in (None, name, _paper_name(name))
        return f"{self.paper_data or name} ({self.pretrained_on} PT)" if other else self.paper_data or name

    @property
    def is_comparable(self) -> bool:
        """Whether data, pretraining data, masks and image size are known to be ones of the paper's."""
        is_papers_size = self.row.get("image_size") == PAPER_IMAGE_SIZE and not self._differs(PAPER_MASK)
        return self.paper_data is not None and self.pretrained_on is not None and is_papers_size

    @property
    def top1(self) -> str:
        """Percent, with the deviation where there are several seeds."""
        return _percent(self.row["top1"], self.row["top1_std"])

    @property
    def top1_with_interval(self) -> str:
        interval = self.row.get("top1_interval")
        if not (isinstance(interval, list) and len(interval) == 2 and all(map(_is_number, interval))):
            return self.top1
        return f"{self.top1} [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"

    @property
    def top5(self) -> str:
        return _percent(self.row["top5"], self.row["top5_std"])

    @property
    def seeds(self) -> str:
        seeds = self.row["seeds"]
        return ", ".join(map(_show, seeds)) if len(seeds) <= 5 else f"{len(seeds)} seeds"

    @property
    def labels(self) -> Key:
        """What the first table shows of the settings."""
        data, protocol = _show(self.origin.get("dataset")), self.shown("protocol")
        protocol = PROTOCOLS.get(protocol, protocol)
        return (self.model, self.described_method, data, protocol, self.shown("layer"), self.pooling)

    @property
    def run(self) -> Key:
        """Equal for the layers of one evaluation."""
        settings = _flat_settings(self.row)
        hidden = ("layer", "num_seeds", "learning_rate")
        return (
            *self.labels[:4],
            self.pooling,
            self.images,
            *(f"{k}={v}" for k, v in settings.items() if k not in hidden),
        )

    @property
    def contest(self) -> Key:
        """Equal for results whose top-1 may be compared."""
        return (*self.labels[2:5], self.images)

    def order(self) -> tuple:
        """Sorting key: of equal data, protocol and layer the best comes first."""
        _, _, data, protocol, layer, _ = self.labels
        known = list(PROTOCOLS.values())
        rank = known.index(protocol) if protocol in known else len(known)
        return (data, rank, protocol, _natural(layer), self.images, -self.row["top1"], self.labels)


def _main_table(entries: Sequence[Entry]) -> Table:
    contests = _grouped(entries, lambda entry: entry.contest)
    best = {key: max(entry.row["top1"] for entry in group) for key, group in contests.items() if len(group) > 1}
    alike = _grouped(entries, lambda entry: (*entry.labels, entry.images))
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
    """For each data set the models and protocols of several layers, each a list by layer."""
    runs = _grouped(entries, lambda entry: (entry.labels[2], entry.run))
    deep = [run for run in runs.values() if len({entry.shown("layer") for entry in run}) > 1]
    return _grouped(deep, lambda run: run[0].labels[2])


def _without_inner_layers(entries: Sequence[Entry], probed: Mapping[str, list[list[Entry]]]) -> list[Entry]:
    """Of models probed by depth the paper's layer alone, where it is among them."""
    runs = [run for of_data in probed.values() for run in of_data if any(entry.reads_papers_layer for entry in run)]
    inner = {id(entry) for run in runs for entry in run if not entry.reads_papers_layer}
    return [entry for entry in entries if id(entry) not in inner]


def _depth_table(data: str, runs: Sequence[Sequence[Entry]]) -> Table:
    layers = sorted({entry.shown("layer") for run in runs for entry in run}, key=_natural)
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
    """The first settings that tell an entry from others that look the same in the table."""
    own, *others = (_flat_settings(other.row) for other in (entry, *alike))
    keys = [key for key in own if any(other.get(key) != own[key] for other in others)]
    return "; ".join(f"{key} {own[key]}" for key in keys[:NUM_DIFFERENCES])


def _flat_settings(row: Mapping[str, Any]) -> dict[str, str]:
    """Every setting of a row and its provenance as text, those of the evaluation first."""
    origin = row["provenance"]
    settings = {**row, **_mapping(origin.get("kamim")), **origin, **_mapping(origin.get("versions"))}
    measured = {*MEASURED, *(f"{name}_std" for name in AVERAGED)}
    return {key: _show(value) for key, value in settings.items() if key not in NOT_SHOWN | measured}


def _fingerprint_notes(entries: Sequence[Entry]) -> Iterator[str]:
    for (name, images), group in _grouped(entries, lambda entry: (entry.labels[2], entry.images)).items():
        fingerprints = {_show(entry.origin.get("validation_fingerprint")) for entry in group}
        if len(fingerprints) > 1:
            yield (
                f"Results on {name} ({images} images) come from {len(fingerprints)} loadings of it with different "
                "fingerprints; they may not be of the same images."
            )


@dataclass(frozen=True)
class Layout:
    """A table of the paper as a form for other results.

    Args:
        number: of the paper's table.
        corner: titles of the columns that label the rows.
        title: of an entry; one table is made for each title.
        place: row and column of an entry, None where it does not belong into the table.
        is_worthwhile: whether rows and columns of this kind make a table.
        is_papers: whether the paper's figures are about the entry's data and model.
        row_order: sorting key of rows; without it they come as in the paper.
        last_column: title and text, from an entry of the row.
    """

    number: int
    corner: Key
    title: Callable[[Entry], str]
    place: Callable[[Entry], tuple[Key, str] | None]
    is_worthwhile: Callable[[set[Key], set[str]], bool]
    is_papers: Callable[[Entry], bool]
    row_order: Callable[[Key], Any] | None = None
    last_column: tuple[str, Callable[[Entry], str]] | None = None

    def tables(self, entries: Iterable[Entry]) -> Iterator[Table]:
        placed = [entry for entry in entries if self.place(entry) is not None]
        for title, group in _grouped(placed, self.title).items():
            cells = _grouped(group, self.place)
            rows, columns = {row for row, _ in cells}, {column for _, column in cells}
            if self.is_worthwhile(rows, columns):
                yield self._table(title, cells, rows, columns)

    def _table(self, title: str, cells: dict[tuple[Key, str], list[Entry]], rows: set[Key], columns: set[str]) -> Table:
        paper = PAPER_TABLES[self.number]
        papers = {
            place: _percent(paper[place] / 100)
            for place, entries in cells.items()
            if place in paper and any(entry.is_comparable and self.is_papers(entry) for entry in entries)
        }
        texts = {place: " / ".join(entry.top1 for entry in entries) for place, entries in cells.items()}
        header, lines = list(self.corner), {row: list(row) for row in _sorted(rows, paper, 0, self.row_order)}
        for column in _sorted(columns, paper, 1):
            shown = [(column, texts)]
            if any(place[1] == column for place in papers):
                shown.append((f"{column} (paper)", papers))
            for name, figures in shown:
                header.append(name)
                for row, line in lines.items():
                    line.append(figures.get((row, column), MISSING))
        if self.last_column:
            header.append(self.last_column[0])
            for (row, _), entries in cells.items():
                lines[row][len(header) - 1 :] = [self.last_column[1](entries[0])]
        title = f"{title}, in the layout of the paper's Table {self.number}"
        return Table(title, header, [list(map(Cell, line)) for line in lines.values()], len(self.corner))


def _sorted(labels: Iterable[Any], paper: Figures, part: int, order: Callable[[Any], Any] | None = None) -> list[Any]:
    """Rows (part 0) or columns (1) in the given order or the paper's, others behind."""
    known = list(dict.fromkeys(place[part] for place in paper))
    return sorted(labels, key=order or (lambda label: (known.index(label) if label in known else len(known), label)))


def _place_pair(entry: Entry) -> tuple[Key, str] | None:
    return ((entry.architecture,), f"{entry.method} {entry.kind}") if entry.suits() else None


def _place_cell(entry: Entry) -> tuple[Key, str] | None:
    row = SIMMIM_ROW if entry.method == "SimMIM" else entry.cell
    return (row, str(entry.kind)) if entry.suits("weight_patch_size", "temperature") else None


def _place_data(entry: Entry) -> tuple[Key, str] | None:
    return ((entry.method,), f"{entry.data} {entry.kind}") if entry.suits() else None


def _place_detector(entry: Entry) -> tuple[Key, str] | None:
    row = NO_DETECTOR_ROW if entry.method == "SimMIM" else (entry.detector,)
    return (row, str(entry.kind)) if entry.suits("keypoint_detector") else None


def _place_layer_norm(entry: Entry) -> tuple[Key, str] | None:
    row = ("with LayerNorm",) if entry.row.get("layer_norm") else ("without LayerNorm",)
    return (row, f"{entry.method} LP") if entry.kind == "LP" and entry.suits("layer_norm") else None


def _title(entry: Entry) -> str:
    return f"{entry.architecture} on {entry.data} at {entry.shown('image_size')} px"


def _is_papers(entry: Entry) -> bool:
    return entry.architecture == PAPER_MODEL and entry.data == PAPER_DATA


LAYOUTS = (
    Layout(
        number=1,
        corner=("model",),
        title=lambda entry: f"{entry.data} at {entry.shown('image_size')} px",
        place=_place_pair,
        is_worthwhile=lambda rows, columns: True,
        is_papers=lambda entry: entry.data == PAPER_DATA,
        last_column=("parameters", lambda entry: entry.parameters),
    ),
    Layout(
        number=2,
        corner=("w_ps", "T"),
        title=_title,
        place=_place_cell,
        is_worthwhile=lambda rows, columns: len(rows - {SIMMIM_ROW}) > 1,
        is_papers=_is_papers,
        row_order=lambda row: [_natural(label) for label in row],
    ),
    Layout(
        number=3,
        corner=("method",),
        title=lambda entry: f"{entry.architecture} at {entry.shown('image_size')} px",
        place=_place_data,
        is_worthwhile=lambda rows, columns: len({column.rsplit(maxsplit=1)[0] for column in columns}) > 1,
        is_papers=lambda entry: entry.architecture == PAPER_MODEL,
    ),
    Layout(
        number=4,
        corner=("detector",),
        title=_title,
        place=_place_detector,
        is_worthwhile=lambda rows, columns: len(rows - {NO_DETECTOR_ROW}) > 1,
        is_papers=_is_papers,
    ),
    Layout(
        number=5,
        corner=("",),
        title=_title,
        place=_place_layer_norm,
        is_worthwhile=lambda rows, columns: ("with LayerNorm",) in rows,
        is_papers=_is_papers,
    ),
)


def _grouped(items: Iterable[Item], key: Callable[[Item], Any]) -> dict[Any, list[Item]]:
    groups = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return dict(groups)


def _paper_name(name: str) -> str | None:
    """The paper's name of a data set with this public name."""
    plain = re.sub(r"[^a-z0-9]", "", re.split(r"[/:]", name)[-1].lower())
    return next((paper for paper, (names, _) in PAPER_DATA_SETS.items() if plain in names), None)


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _show(value: Any) -> str:
    if value is None:
        return MISSING
    if isinstance(value, float):
        return f"{value:g}"
    text = " ".join(value.split()) if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return text[:8] if re.fullmatch(r"[0-9a-f]{40,}", text) else text or MISSING


def _count(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else _show(value)


def _percent(share: float | None, deviation: float | None = None) -> str:
    if share is None:
        return MISSING
    return f"{100 * share:.2f}" + (f" ± {100 * deviation:.2f}" if deviation is not None else "")


def _natural(text: str) -> tuple[int, float, str]:
    """Numbers by size, then words."""
    is_number = re.fullmatch(r"\d+(\.\d+)?", text)
    return (0, float(text), text) if is_number else (1, 0.0, text)
