"""Escape names of users for Markdown, LaTeX and matplotlib."""

import re
from textwrap import fill

from ..errors import printable

MISSING = "–"
_LONGEST_LABEL = 80  # characters in a picture
_LATEX = str.maketrans(
    {
        **{character: f"\\{character}" for character in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        "±": r"$\pm$",
        MISSING: "--",
        # behind the end of a line they would belong to it
        "[": "{[}",
        "*": "{*}",
    }
)


def one_line(text: str) -> str:
    """Return the text on one line: white space becomes single blanks, other control characters become escapes."""
    return printable(" ".join(text.split()))


def markdown(text: str) -> str:
    """Return the text on one line, escaped for Markdown, its formulas (`$`) and links too."""
    escaped = re.sub(r"([\\`*_|~$]|\](?=\())", r"\\\1", one_line(text))
    return escaped.replace("&", "&amp;").replace("<", "&lt;")


def latex(text: str) -> str:
    """Return the text on one line, escaped for LaTeX."""
    return one_line(text).translate(_LATEX)


def plot_text(text: str, width: int | None = None) -> str:
    """Return the text escaped for matplotlib, which takes `$` for formulas and leaves `_names` out of legends.

    Args:
        width: characters of a line, where it is to be broken.
    """
    text = one_line(text)
    text = text if len(text) <= _LONGEST_LABEL else f"{text[: _LONGEST_LABEL - 1]}…"
    text = f" {text}" if text.startswith("_") else text
    return (fill(text, width) if width else text).replace("$", r"\$")
