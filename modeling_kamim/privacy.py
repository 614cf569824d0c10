"""Remove local paths, passwords and access tokens from what is published."""

import json
import os
import re
from typing import Any

from huggingface_hub import get_token

EMBEDDED_PHOTOGRAPHS = "embedded photographs"
HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_PATH_KEYS = {"dataset_name", "_name_or_path", "model_name_or_path", "best_model_checkpoint", "output_dir"}
_DETECTOR_ARGS = "keypoint_detector_args"  # JSON, or a mapping
_PLACES_OF_WEIGHTS = {"model", "weights"}  # in it
_LOCAL_PATH = re.compile(r"[/\\]|~(?:[/\\A-Za-z_]|$)|[A-Za-z]:[/\\]|\.\.[/\\]")
_WORD = r"[^\s\"'`,;<>|()\[\]{}]"
# An address; or a path in a text: absolute, in a home or drive, or with "..". Blanks may stand in it before a slash.
# Fractions, Hub ids and other relative paths do not match.
_PRIVATE = re.compile(
    rf"""(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*://)(?P<address>[^\s"'<>`]*)
    |(?<![\w./\\)\]}}<*~-])(?P<path>
        (?:~(?:[A-Za-z_][\w.-]*)?[/\\]|/(?=[\w.~@])|(?:[\w.-]+[/\\])*\.\.[/\\]|[A-Za-z]:[/\\]|\\\\(?=\w))
        {_WORD}*(?:[ ]+[^\s"'`,;<>|()\[\]{{}}/\\]+[/\\]{_WORD}*)*
    )""",
    re.VERBOSE,
)
_USER = re.compile(r"\A(?:[^/\s?#@:]*:\S*@|[^/\s?#]*@)")
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{8,}")


def public_name(name: str) -> str:
    """Return a Hub id as it is; for what is, or looks like, a local path, "local:" and its last part."""
    if name == EMBEDDED_PHOTOGRAPHS or re.fullmatch(r"local:[^/\\]*", name):
        return _plain(name)
    if "://" in name:
        name = public_text(name)
    path = os.path.abspath(os.path.expanduser(name))
    if HUB_ID.fullmatch(name) and not os.path.exists(path):
        return name
    *parents, folder = [part for part in re.split(r"[/\\]", path) if part] or [""]
    is_users = parents in (["home"], ["Users"]) or re.search(r"/[A-Za-z]:/Users$", "/" + "/".join(parents))
    is_home = is_users or path == os.path.expanduser("~") or folder.startswith("~")
    return f"local:{'home' if is_home else _plain(folder)}"


def public_dataset(name: str | None) -> str:
    """The public name of a data set as it is given; None stands for the embedded photographs."""
    return public_name(name) if name else EMBEDDED_PHOTOGRAPHS


def _plain(name: str) -> str:
    return "".join(character if character.isprintable() else "_" for character in name)


def public_text(text: str, key: str = "") -> str:
    """Return a text, or JSON, with public names for local paths, and addresses without user, password and query.

    Args:
        key: of the text, where it stands in a mapping.
    """
    if text.lstrip()[:1] in ("{", "["):
        try:
            value = json.loads(text)
            public = public_settings(value, key)
            return text if public == value else json.dumps(public)
        except (ValueError, RecursionError):
            pass
    return _PRIVATE.sub(lambda found: public_name(found["path"]) if found["path"] else _public_address(found), text)


def _public_address(found: re.Match[str]) -> str:
    scheme, address = found["scheme"], found["address"]
    if scheme == "file://":
        return public_name(f"/{address}")
    place, *query = re.split("[?#]", _USER.sub("***@", address), maxsplit=1)
    return f"{scheme}{place}" + "?***" * bool(query)


def public_settings(value: Any, key: str = "") -> Any:
    """Return JSON-like settings with public names for data sets, models and all local paths.

    Addresses lose user, password and query.

    Args:
        key: of the value, where it stands in a mapping.
    """
    if isinstance(value, dict):
        places = _PLACES_OF_WEIGHTS if key == _DETECTOR_ARGS else set()
        return {
            public_settings(name): public_settings(item, "model_name_or_path" if name in places else name)
            for name, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [public_settings(item, key) for item in value]
    if not isinstance(value, str) or not value:
        return value
    return public_name(value) if key in _PATH_KEYS or _LOCAL_PATH.match(value) else public_text(value, key)


def holds_token(text: str) -> bool:
    """Return whether a text holds an access token of the Hub: one that looks like it, or the one in use."""
    return without_tokens(text) != text


def without_tokens(text: str) -> str:
    """Return the text with "hf_***" for each access token of the Hub."""
    token = get_token()
    text = text.replace(token, "hf_***") if token else text
    return _TOKEN.sub("hf_***", text)
