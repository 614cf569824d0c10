"""What may be published of names, settings and texts: no local paths, no access tokens."""

import os
import re
from typing import Any

from huggingface_hub import get_token

EMBEDDED_PHOTOGRAPHS = "embedded photographs"
HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_PATH_KEYS = {"dataset_name", "_name_or_path", "model_name_or_path", "best_model_checkpoint", "output_dir"}
_LOCAL_PATH = re.compile(r"[/~\\]|[A-Za-z]:[/\\]")
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{8,}")


def public_name(name: str) -> str:
    """A Hub id as it is; of anything that is, or looks like, a local path "local:" and the last part of it."""
    if name == EMBEDDED_PHOTOGRAPHS or re.fullmatch(r"local:[^/\\]*", name):
        return name
    path = os.path.abspath(os.path.expanduser(name))
    if HUB_ID.fullmatch(name) and not os.path.exists(path):
        return name
    *parents, folder = [part for part in re.split(r"[/\\]", path) if part] or [""]
    is_home = path == os.path.expanduser("~") or parents in (["home"], ["Users"]) or folder.startswith("~")
    return f"local:{'home' if is_home else folder}"


def public_settings(value: Any, key: str = "") -> Any:
    """JSON-like settings in which the names of data sets and models, and all local paths, are public names."""
    if isinstance(value, dict):
        return {name: public_settings(item, name) for name, item in value.items()}
    if isinstance(value, list):
        return [public_settings(item, key) for item in value]
    if isinstance(value, str) and value and (key in _PATH_KEYS or _LOCAL_PATH.match(value)):
        return public_name(value)
    return value


def holds_token(text: str) -> bool:
    """Whether a text holds an access token of the Hub: one that looks like it, or the one in use."""
    token = get_token()
    return bool(_TOKEN.search(text) or (token and token in text))


def without_tokens(text: str) -> str:
    """The text with the access tokens of the Hub blotted out."""
    token = get_token()
    text = _TOKEN.sub("hf_***", text)
    return text.replace(token, "hf_***") if token else text
