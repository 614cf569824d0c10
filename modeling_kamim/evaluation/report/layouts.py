"""The layouts of the paper's Tables 1 to 5, filled with other results."""

from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from ...hub.markup import MISSING
from .entries import KINDS, Entry, grouped, natural_order, percent
from .paper import NO_DETECTOR_ROW, PAPER_DATA, PAPER_MODEL, PAPER_TABLES, SIMMIM_ROW, Figures, Key
from .tables import Cell, Table


@dataclass(frozen=True)
class Layout:
    """A table of the paper as a form for other results.

    Args:
        number: of the paper's table.
        corner: titles of the columns that label the rows.
        title: of an entry; one table is made for each title.
        row, column: of an entry.
        free: settings of an entry that may differ from the paper's.
        kinds: of the entries that belong into the table.
        is_worthwhile: whether rows and columns of this kind make a table.
        is_papers: whether the paper's figures are about the entry's data and model.
        row_order: sorting key of rows; without it they come as in the paper.
        last_column: title and text, from an entry of the row.
    """

    number: int
    corner: Key
    title: Callable[[Entry], str]
    row: Callable[[Entry], Key]
    column: Callable[[Entry], str]
    is_worthwhile: Callable[[set[Key], set[str]], bool]
    is_papers: Callable[[Entry], bool]
    free: Key = ()
    kinds: Container[str | None] = tuple(KINDS.values())
    row_order: Callable[[Key], Any] | None = None
    last_column: tuple[str, Callable[[Entry], str]] | None = None

    def tables(self, entries: Iterable[Entry]) -> Iterator[Table]:
        placed = [entry for entry in entries if entry.suits(*self.free) and entry.kind in self.kinds]
        for title, group in grouped(placed, self.title).items():
            cells = grouped(group, lambda entry: (self.row(entry), self.column(entry)))
            rows, columns = {row for row, _ in cells}, {column for _, column in cells}
            if self.is_worthwhile(rows, columns):
                yield self._table(title, cells, rows, columns)

    def _table(self, title: str, cells: dict[tuple[Key, str], list[Entry]], rows: set[Key], columns: set[str]) -> Table:
        paper = PAPER_TABLES[self.number]
        papers = {
            place: percent(paper[place] / 100)
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
    """Return rows (part 0) or columns (1) in the given order, or in the paper's with others behind."""
    known = list(dict.fromkeys(place[part] for place in paper))
    return sorted(labels, key=order or (lambda label: (known.index(label) if label in known else len(known), label)))


def _title(entry: Entry) -> str:
    return f"{entry.architecture} on {entry.data} at {entry.image_size} px"


def _is_papers(entry: Entry) -> bool:
    return entry.architecture == PAPER_MODEL and entry.data == PAPER_DATA


LAYOUTS = (
    Layout(
        number=1,
        corner=("model",),
        title=lambda entry: f"{entry.data} at {entry.image_size} px",
        row=lambda entry: (entry.architecture,),
        column=lambda entry: f"{entry.method} {entry.kind}",
        is_worthwhile=lambda rows, columns: True,
        is_papers=lambda entry: entry.data == PAPER_DATA,
        last_column=("parameters", lambda entry: entry.parameters),
    ),
    Layout(
        number=2,
        corner=("w_ps", "T"),
        title=_title,
        row=lambda entry: SIMMIM_ROW if entry.method == "SimMIM" else entry.cell,
        column=lambda entry: str(entry.kind),
        free=("weight_patch_size", "temperature"),
        is_worthwhile=lambda rows, columns: len(rows - {SIMMIM_ROW}) > 1,
        is_papers=_is_papers,
        row_order=lambda row: [natural_order(label) for label in row],
    ),
    Layout(
        number=3,
        corner=("method",),
        title=lambda entry: f"{entry.architecture} at {entry.image_size} px",
        row=lambda entry: (entry.method,),
        column=lambda entry: f"{entry.data} {entry.kind}",
        is_worthwhile=lambda rows, columns: len({column.rsplit(maxsplit=1)[0] for column in columns}) > 1,
        is_papers=lambda entry: entry.architecture == PAPER_MODEL,
    ),
    Layout(
        number=4,
        corner=("detector",),
        title=_title,
        row=lambda entry: NO_DETECTOR_ROW if entry.method == "SimMIM" else (entry.detector,),
        column=lambda entry: str(entry.kind),
        free=("keypoint_detector",),
        is_worthwhile=lambda rows, columns: len(rows - {NO_DETECTOR_ROW}) > 1,
        is_papers=_is_papers,
    ),
    Layout(
        number=5,
        corner=("",),
        title=_title,
        row=lambda entry: ("with LayerNorm",) if entry.row.get("layer_norm") else ("without LayerNorm",),
        column=lambda entry: f"{entry.method} LP",
        free=("layer_norm",),
        kinds=("LP",),
        is_worthwhile=lambda rows, columns: ("with LayerNorm",) in rows,
        is_papers=_is_papers,
    ),
)
