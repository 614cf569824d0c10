"""Tables as Markdown and LaTeX."""

from collections.abc import Sequence
from dataclasses import dataclass

from ...hub.markup import latex, markdown

WIDE = 9  # columns that a page of LaTeX does not hold at full size


@dataclass(frozen=True)
class Cell:
    """Text of a table, without markup."""

    text: str
    bold: bool = False


@dataclass(frozen=True)
class Table:
    """A table.

    Args:
        title: above the table, without markup.
        header: titles of the columns.
        rows: as many cells in each as there are columns.
        num_labels: so many columns at the left hold words, the others figures.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    num_labels: int

    def to_markdown(self) -> str:
        rule = ["---"] * self.num_labels + ["---:"] * (len(self.header) - self.num_labels)
        cells = [[f"**{markdown(c.text)}**" if c.bold else markdown(c.text) for c in row] for row in self.rows]
        lines = ["| " + " | ".join(line) + " |" for line in (map(markdown, self.header), rule, *cells)]
        return "\n".join([f"## {markdown(self.title)}", "", *lines, ""])

    def to_latex(self) -> str:
        columns = "l" * self.num_labels + "r" * (len(self.header) - self.num_labels)
        cells = [[rf"\textbf{{{latex(c.text)}}}" if c.bold else latex(c.text) for c in row] for row in self.rows]
        header, *lines = (" & ".join(line) + r" \\" for line in (map(latex, self.header), *cells))
        body = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", header, r"\midrule", *lines, r"\bottomrule"]
        body.append(r"\end{tabular}")
        if len(self.header) >= WIDE:
            body = [r"\resizebox{\linewidth}{!}{%", *body, "}"]
        caption = rf"\caption{{{latex(self.title)}}}"
        return "\n".join([r"\begin{table}", r"\centering\footnotesize", caption, *body, r"\end{table}", ""])
