"""Command line and YAML: the YAML file sets the defaults, the command line wins, unknown keys are errors."""

import argparse
import dataclasses
import datetime
import itertools
import json
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser, TrainingArguments

from ..api.keywords import refusals
from ..errors import InputError, did_you_mean, on_one_line
from ..training.arguments import PretrainingArguments, RecipeArguments
from ..training.settings_file import settings_text
from .configs import config_file
from .program import program


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
        positional: names of arguments whose values may be given first, without their names, in place of a YAML file.

    Raises:
        InputError: for a missing or malformed file, an unknown key (with the nearest known one), or a value that is
            not allowed.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    given = list(argv)
    parser = _Parser(
        argument_types,
        prog=" ".join(program()),
        usage=f"%(prog)s {' '.join(map(str.upper, positional)) or '[config.yaml]'} [--key value ...]",
        description=description,
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
    )
    parser.answer_help(argv)
    if argv and argv[0].endswith((".yaml", ".yml")):
        argv = parser.yaml_to_argv(Path(argv[0])) + argv[1:]
    for name in positional:
        if argv and not argv[0].startswith("-"):
            argv = [*argv[1:], f"--{name}", argv[0]]
    with refusals(" (see --help)"):
        known = parser.parse_args_into_dataclasses(argv, return_remaining_strings=True, look_for_args_file=False)
    *parsed, unknown = known
    if unknown:
        raise InputError(f"unknown argument {unknown[0]!r}{parser.suggestion(unknown[0])}")
    for group in parsed:
        if isinstance(group, TrainingArguments):
            group._command = [*program(), *given]  # for the command that goes on with an interrupted run
    return tuple(parsed)


def given_settings(argument_types: Sequence[type], argv: Sequence[str] | None = None) -> str:
    """Return settings.yaml of what a YAML file and the command line give, see `settings_text`."""
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = _Parser(argument_types, allow_abbrev=False)
    for action in parser._actions:
        action.default, action.required = argparse.SUPPRESS, False
    file, from_file, words = [], [], argv
    if argv and argv[0].endswith((".yaml", ".yml")):
        file, from_file, words = [_public_file(argv[0])], parser.yaml_to_argv(Path(argv[0])), argv[1:]
    given, _ = parser.parse_known_args([*from_file, *words])
    typed = {word.split("=")[0].removeprefix("--") for word in words if word.startswith("--")}
    return settings_text([*program(), *file], vars(given), typed)


def changed(group: Any, *names: str) -> dict[str, Any]:
    """Return those of some arguments of a dataclass that are not its defaults."""
    defaults = {field.name: field.default for field in dataclasses.fields(group)}
    return {name: getattr(group, name) for name in names if getattr(group, name) != defaults[name]}


def command(*words: str | Path, **options: Any) -> str:
    """Return a command line for a shell: the program and what stands before its options, then the options."""
    given = ([f"--{key}", *map(str, value if isinstance(value, list) else [value])] for key, value in options.items())
    return shlex.join([*map(str, words), *itertools.chain.from_iterable(given)])


def _public_file(file: str) -> str:
    return Path(file).name if Path(file).is_absolute() or ".." in Path(file).parts else file


_MOST_ITEMS = 200  # of a mapping in a YAML file
_MOST_BYTES = 50_000  # of a YAML file
_MOST_KEYS = 1000  # of a mapping with those that `<<` merges into it
_MOST_MERGES = 500  # in a YAML file, of one mapping into another
_MOST_LEVELS = 100  # of lists and mappings in each other


# Settings of transformers that --help shows, beside those that have a default or a text of this package
_OFTEN_SET = re.compile(
    r"seed|data_seed|bf16|fp16|use_cpu|torch_compile|max_steps|dataloader_num_workers|report_to|run_name"
    r"|gradient_(accumulation_steps|checkpointing)|(eval|save)_(steps|strategy)|resume_from_checkpoint"
    r"|load_best_model_at_end|metric_for_best_model|push_to_hub|hub_(model_id|strategy|token)"
)
_OWN_SETTINGS = {*RecipeArguments.__annotations__, *PretrainingArguments.__annotations__}
_SELDOM_SET = {
    field.name for field in dataclasses.fields(TrainingArguments) if not _OFTEN_SET.fullmatch(field.name)
} - _OWN_SETTINGS


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Show one spelling of each argument, and its default; the description stays as it is written."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings or action.choices is not None or isinstance(action, argparse._HelpAction):
            return super()._format_action_invocation(action).split(", --")[0]
        value = "N" if action.type is int else "X" if action.type is float else "TEXT" if action.nargs != 0 else ""
        more = " ..." if action.nargs in ("+", "*") else ""
        return f"{action.option_strings[0]} {value}{more}".strip()

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.required:
            return f"{action.help} (required)"
        return action.help if action.default in (None, []) else super()._get_help_string(action)


class _Parser(HfArgumentParser):
    def error(self, message: str):
        raise InputError(f"{message} (see --help)")

    def answer_help(self, argv: Sequence[str]) -> None:
        """Print what `--help` or `--help-all` shows, and end the process; where neither is given, do nothing."""
        if not {"-h", "--help", "--help-all"} & set(argv):
            return
        for action in self._actions:
            if action.dest in _SELDOM_SET and "--help-all" not in argv:
                action.help = argparse.SUPPRESS
                self.epilog = "All of transformers' TrainingArguments work; --help-all lists them."
        self.print_help()
        sys.exit(0)

    def suggestion(self, key: str) -> str:
        """Return the nearest name of an argument, for the end of a message."""
        return did_you_mean(key.lstrip("-").split("=")[0], [action.dest for action in self._actions])

    def yaml_to_argv(self, path: Path) -> list[str]:
        """Return the settings of a YAML file as words of the command line."""
        argv: list[str] = []
        for key, value in read_yaml(path).items():
            if key not in {action.dest for action in self._actions} - {"help"}:
                raise InputError(f"unknown key {key!r} in {path}{self.suggestion(str(key))}")
            if value is None:
                continue
            values = value if isinstance(value, list) else [value]
            try:
                words = [_as_word(value) for value in values]
            except (TypeError, ValueError) as error:
                raise InputError(f"{key} in {path}: {error}; give a value, a list of values, or a mapping") from None
            # a single word may begin with a dash, which only the first form allows
            argv += [f"--{key}={words[0]}"] if len(words) == 1 else [f"--{key}", *words]
        return argv


def _as_word(value: Any) -> str:
    """Return a YAML value as a word of the command line; a mapping becomes JSON."""
    if isinstance(value, str | int | float | datetime.date):
        return str(value)
    if not isinstance(value, dict):
        raise TypeError(f"a {type(value).__name__} where a value is expected")
    items: list[Any] = [value]
    for item in items:  # the list grows meanwhile; aliases can make it endless
        if len(items) > _MOST_ITEMS:
            raise TypeError(f"more than {_MOST_ITEMS} items")
        items += item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()
    return json.dumps(value)


class _SettingsLoader(yaml.SafeLoader):
    """PyYAML's safe loader, with limits on nesting, and on merges (`<<: [*a, *a]`) that make a small file large."""

    num_merges = num_levels = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self.num_levels += 1
        if self.num_levels > _MOST_LEVELS:
            raise yaml.composer.ComposerError(problem=f"more than {_MOST_LEVELS} levels")
        node = super().compose_node(parent, index)
        self.num_levels -= 1
        return node

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        merged = [value for key, value in node.value if key.tag == _MERGE]
        self.num_merges += sum(len(v.value) if isinstance(v, yaml.SequenceNode) else 1 for v in merged)
        if self.num_merges <= _MOST_MERGES:
            super().flatten_mapping(node)
        if self.num_merges > _MOST_MERGES or len(node.value) > _MOST_KEYS:
            raise yaml.constructor.ConstructorError(
                None, None, f"more than {_MOST_MERGES} merges (<<) or {_MOST_KEYS} keys", node.start_mark
            )


_MERGE = "tag:yaml.org,2002:merge"


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the keys of a YAML file with their values.

    Raises:
        InputError: if there is no such file, it is too large, no valid YAML, or not a mapping.
    """
    path = config_file(path)
    if path.stat().st_size > _MOST_BYTES:
        raise InputError(f"{path} has {path.stat().st_size:,} bytes; a config file has at most {_MOST_BYTES:,}")
    try:
        keys = _SettingsLoader(path.read_text(encoding="utf-8")).get_single_data()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except Exception as error:  # on wrong dates, numbers and tags PyYAML raises nearly anything
        raise InputError(f"{path} is not valid YAML: {on_one_line(error)}") from None
    if not isinstance(keys, dict):
        raise InputError(f"{path} must hold 'key: value' lines")
    return keys
