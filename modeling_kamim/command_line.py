"""Command line and YAML: the YAML file sets the defaults, the command line wins, unknown keys are errors."""

import argparse
import difflib
import json
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser

from .errors import InputError, on_one_line
from .images import printable
from .privacy import public_settings, without_tokens


def parse(
    argument_types: Sequence[type],
    argv: Sequence[str] | None = None,
    description: str = "",
    positional: Sequence[str] = (),
) -> tuple[Any, ...]:
    """Parse `[config.yaml] [--key value ...]` into dataclasses.

    Args:
        argument_types: dataclasses, as for `HfArgumentParser`.
        argv: the command line without the program; `sys.argv` where None.
        description: shown by `--help`.
        positional: arguments that may be given first, without their names, in place of a YAML file.

    Raises:
        InputError: for a missing or malformed file, an unknown key (with the nearest known one), or a value that is
            not allowed.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = _Parser(
        argument_types,
        usage=f"%(prog)s {' '.join(map(str.upper, positional)) or '[config.yaml]'} [--key value ...]",
        description=description,
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
    )
    if argv and argv[0].endswith((".yaml", ".yml")):
        argv = parser.yaml_to_argv(Path(argv[0])) + argv[1:]
    for name in positional:
        if argv and not argv[0].startswith("-"):
            argv = [*argv[1:], f"--{name}", argv[0]]
    try:
        known = parser.parse_args_into_dataclasses(argv, return_remaining_strings=True, look_for_args_file=False)
    except InputError:
        raise
    except _REFUSALS as error:  # of a value that a dataclass, transformers' above all, does not take
        raise InputError(f"{on_one_line(error)} (see --help)") from error
    *parsed, unknown = known
    if unknown:
        raise InputError(f"unknown argument {unknown[0]!r}{parser.suggestion(unknown[0])}")
    return tuple(parsed)


_REFUSALS = (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, ImportError, RecursionError)
_NOT_OF_THE_RUN = re.compile(
    r"output_dir|push_to_hub|resume_from_checkpoint|num_proc|report_to|disable_tqdm|run_name|project|(hub|trackio)_\w*"
)


def given_settings(argument_types: Sequence[type], argv: Sequence[str] | None = None) -> str:
    """YAML of the settings that a YAML file and the command line give, to be published and to be run again.

    Local paths become "local:" and their last part, addresses lose user, password and query. What names a place instead
    of the training (output_dir, run_name, what begins with hub_, ...) is left out. A comment with the command is first.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = _Parser(argument_types, allow_abbrev=False)
    has_file = bool(argv) and argv[0].endswith((".yaml", ".yml"))
    for action in parser._actions:
        action.default, action.required = argparse.SUPPRESS, False
    given, _ = parser.parse_known_args([*(parser.yaml_to_argv(Path(argv[0])) if has_file else []), *argv[has_file:]])
    settings = {key: value for key, value in vars(given).items() if not _NOT_OF_THE_RUN.fullmatch(key)}
    typed = {key for key in settings if any(word.split("=")[0] == f"--{key}" for word in argv)}
    options = [f"--{key} {_as_typed(public_settings(settings[key], key))}" for key in settings if key in typed]
    command = " ".join(["python", Path(sys.argv[0]).name, *([_public_file(argv[0])] if has_file else []), *options])
    body = yaml.safe_dump(public_settings(settings), sort_keys=False) if settings else ""
    comment = "".join(f"# {printable(line)}\n" for line in without_tokens(command).splitlines())
    return f"{comment}{without_tokens(body)}"


def _as_typed(value: Any) -> str:
    return shlex.join(map(str, value if isinstance(value, list) else [value]))


def _public_file(file: str) -> str:
    return Path(file).name if Path(file).is_absolute() or ".." in Path(file).parts else file


_MOST_ITEMS = 200  # of a mapping in a YAML file


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults beside the arguments that have one; the description as it is written."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.required:
            return f"{action.help} (required)"
        return action.help if action.default in (None, []) else super()._get_help_string(action)


class _Parser(HfArgumentParser):
    def error(self, message: str):
        raise InputError(f"{message} (see --help)")

    def suggestion(self, key: str) -> str:
        keys = [action.dest for action in self._actions]
        nearest = difflib.get_close_matches(key.lstrip("-").split("=")[0], keys, n=1)
        return f"; did you mean {nearest[0]!r}?" if nearest else ""

    def yaml_to_argv(self, path: Path) -> list[str]:
        argv: list[str] = []
        for key, value in read_yaml(path).items():
            if key not in {action.dest for action in self._actions} - {"help"}:
                raise InputError(f"unknown key {key!r} in {path}{self.suggestion(str(key))}")
            if value is None:
                continue
            values = value if isinstance(value, list) else [value]
            try:
                argv += [f"--{key}", *map(_as_word, values)]
            except TypeError as error:
                raise InputError(f"{key} in {path}: {error}; give a value, a list of values, or a mapping") from None
        return argv


def _as_word(value: Any) -> str:
    """A YAML value as a word of the command line; a mapping becomes JSON."""
    if isinstance(value, list | set | bytes):
        raise TypeError(f"a {type(value).__name__} where a value is expected")
    if not isinstance(value, dict):
        return str(value)
    items: list[Any] = [value]
    for item in items:  # grows meanwhile; aliases can make it endless
        if len(items) > _MOST_ITEMS:
            raise TypeError(f"more than {_MOST_ITEMS} items")
        items += item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()
    return json.dumps(value)


def read_yaml(path: Path) -> dict[str, Any]:
    """The keys of a YAML file.

    Raises:
        InputError: if there is no such file, or it is not a flat mapping.
    """
    if not path.is_file():
        raise InputError(f"there is no config file {path}")
    try:
        keys = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except Exception as error:  # on wrong dates, numbers and tags PyYAML raises nearly anything
        raise InputError(f"{path} is not valid YAML: {on_one_line(error)}") from None
    if not isinstance(keys, dict):
        raise InputError(f"{path} must hold 'key: value' lines")
    return keys
