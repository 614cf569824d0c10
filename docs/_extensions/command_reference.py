"""Write commands.md from the parsers of the commands themselves, before the pages are read."""

import argparse
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from sphinx.application import Sphinx

from modeling_kamim.commands.main import COMMANDS

HEAD = """# Commands

Made from the commands' own parsers. Those that read a YAML file take its keys by the same names, and also all of
transformers' `TrainingArguments` where they train (`--help-all`).
"""


class _Found(BaseException):
    """Carries a parser out of the command that made it."""


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("builder-inited", lambda app: write_page(Path(app.srcdir) / "commands.md"))
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def write_page(file: Path) -> None:
    """Write the page, if it has changed."""
    text = "\n".join([HEAD, *(line for name in COMMANDS for line in command_lines(name))]) + "\n"
    if not file.exists() or file.read_text(encoding="utf-8") != text:
        file.write_text(text, encoding="utf-8")


def command_lines(name: str) -> Iterator[str]:
    """Yield the section of a command in Markdown."""
    parser = parser_of(name)
    title, _, rest = (parser.description or "").strip().partition("\n")
    yield f"## kamim {name}\n\n{title}\n"
    if rest.strip():
        yield f"```text\n{rest.strip()}\n```\n"
    for group in parser._action_groups:
        actions = [action for action in group._group_actions if _is_shown(action)]
        if actions:
            yield f"**{(group.title or '').capitalize()}**\n"
            yield from (f"{_spelling(action)}\n: {_meaning(parser, action)}\n" for action in actions)


def parser_of(name: str) -> argparse.ArgumentParser:
    """Return the parser that a command makes for `--help`."""

    def carry_out(parser: argparse.ArgumentParser, file: object = None) -> None:
        raise _Found(parser)

    command = importlib.import_module(f"modeling_kamim.commands.{name}")
    with (
        mock.patch.object(argparse.ArgumentParser, "print_help", carry_out),
        mock.patch.object(sys, "argv", [f"kamim {name}", "--help"]),
    ):
        try:
            command.main()
        except _Found as found:
            return found.args[0]
    raise AssertionError(f"kamim {name} --help prints no help")


def _is_shown(action: argparse.Action) -> bool:
    return action.help != argparse.SUPPRESS and not isinstance(action, argparse._HelpAction)


def _spelling(action: argparse.Action) -> str:
    name = action.option_strings[0] if action.option_strings else str(action.metavar or action.dest)
    if action.choices is not None:
        return f"`{name}` {' | '.join(f'`{choice}`' for choice in action.choices)}"
    return f"`{name}`"


def _meaning(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    text = parser._get_formatter()._expand_help(action) if action.help else "."
    return " ".join(text.split()).replace("<", "\\<").replace("*", "\\*").replace("`", "\\`").replace("$", "\\$")
