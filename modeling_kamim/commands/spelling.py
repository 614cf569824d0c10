"""Check the names of options without importing torch, so that typing mistakes are reported at once."""

import ast
import importlib.util
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from ..errors import InputError, did_you_mean


def check_options(argv: Sequence[str]) -> None:
    """Raise InputError for an option that no command has, with the nearest name; the parser checks the rest later."""
    for word in argv:
        name = word[2:].split("=")[0].replace("-", "_")
        if word.startswith("--") and name.removeprefix("no_") not in known_options():
            raise InputError(f"unknown argument {word!r}{did_you_mean(name, known_options())}")


@cache
def known_options() -> frozenset[str]:
    """Return the fields of all dataclasses of settings, of this package and of transformers."""
    files = list(Path(__file__).parent.parent.rglob("*.py"))
    transformers = importlib.util.find_spec("transformers")
    if transformers is not None and transformers.origin:
        files.append(Path(transformers.origin).with_name("training_args.py"))
    return frozenset(("help", "help_all")).union(*map(_fields, files))


def _fields(file: Path) -> set[str]:
    text = file.read_text(encoding="utf-8")
    if "Arguments" not in text:
        return set()
    classes = [node for node in ast.parse(text).body if isinstance(node, ast.ClassDef)]
    return {
        statement.target.id
        for node in classes
        if node.name.endswith("Arguments")
        for statement in node.body
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
    }
