"""settings.yaml of a run: the settings that were given, fit to be published and to be run again."""

import re
import shlex
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import yaml

from ..limits import written_size
from ..privacy import public_settings, without_tokens

_NOT_OF_THE_RUN = re.compile(
    r"output_dir|push_to_hub|resume_from_checkpoint|num_proc|report_to|disable_tqdm|run_name|project|(hub|trackio)_\w*"
)


def settings_text(start: Sequence[str], given: Mapping[str, Any], as_options: Collection[str]) -> str:
    """Return YAML of settings; its first line is a comment with the command.

    Settings of the place, not of the training (output_dir, hub_..., ...), are left out. So are values that cannot be
    published as they are, such as local paths; a comment has their key and public name.

    Args:
        start: words that start the command.
        given: settings by their names.
        as_options: names of those that the command shows.
    """
    settings = {key: value for key, value in given.items() if not _NOT_OF_THE_RUN.fullmatch(key)}
    if "image_size" in settings:
        settings["image_size"] = written_size(settings["image_size"])
    public = {key: public_settings(value, key) for key, value in settings.items()}
    options = [f"--{key} {_as_typed(value)}" for key, value in public.items() if key in as_options]
    lines = [f"# {' '.join([*map(_shell_word, start), *options])}\n"]
    for key, value in public.items():
        if value != settings[key]:
            lines.append(f"# {key}: {_as_typed(value)} (on the machine of the run; give your own)\n")
    kept = {key: value for key, value in settings.items() if public[key] == value}
    return without_tokens("".join(lines) + (yaml.safe_dump(kept, sort_keys=False) if kept else ""))


def _as_typed(value: Any) -> str:
    return " ".join(_shell_word(str(word)) for word in (value if isinstance(value, list) else [value]))


def _shell_word(word: str) -> str:
    """Return a word as it is typed in a shell, on one line: in bash's $'...' where a character cannot be printed."""
    if word.isprintable():
        return shlex.quote(word)
    escaped = (f"\\{c}" if c in "\\'" else c if c.isprintable() else f"\\U{ord(c):08x}" for c in word)
    return f"$'{''.join(escaped)}'"
