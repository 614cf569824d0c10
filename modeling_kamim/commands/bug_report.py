"""One line for a bug report: versions, and the command without secrets."""

import importlib.metadata
import platform
import shlex
import sys
from collections.abc import Sequence

from .. import __version__
from ..privacy import without_tokens
from .program import program

_PACKAGES = ("torch", "transformers", "datasets", "accelerate", "huggingface_hub", "opencv-python", "numpy")
_SECRET = ("--token", "--hub_token")


def bug_report(argv: Sequence[str] | None = None) -> str:
    """Return one line: versions, and the command (`argv`, by default `sys.argv`) without access tokens."""
    argv = list(sys.argv if argv is None else argv)
    versions = [f"modeling_kamim {__version__}", f"Python {platform.python_version()}", sys.platform]
    versions += [f"{name} {_version(name)}" for name in _PACKAGES]
    command = without_tokens(shlex.join([*program(argv), *_without_secrets(argv[1:])]))
    return f"{', '.join(versions)}; command: {' '.join(command.split())}"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "?"


def _without_secrets(words: Sequence[str]) -> list[str]:
    kept = []
    for before, word in zip(["", *words], words, strict=False):
        name, separator, _ = word.partition("=")
        is_given = name in _SECRET and separator
        kept.append("***" if before in _SECRET else f"{name}=***" if is_given else word)
    return kept
