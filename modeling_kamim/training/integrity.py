"""Check that a checkpoint is whole, by the headers of its files; no tensor is read."""

import json
import zipfile
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import transformers
from safetensors import SafetensorError, safe_open
from transformers import TrainerState

from ..errors import first_line
from ..models.classifier import KamimViTForImageClassification
from ..models.families import FAMILIES
from ..models.loading import quiet_loading, unfit_weights
from ..models.masked_image_modeling import model_class
from .run_directory import signed_files

_NEEDED = ("scheduler.pt", "trainer_state.json")
_OPTIMIZERS = ("optimizer.pt", "optimizer.bin")  # FSDP writes the second
_INDEX = "model.safetensors.index.json"
_WEIGHTS = ("model.safetensors", _INDEX)
_STATE_KEYS = ("epoch", "global_step", "log_history", "max_steps")


def faults(checkpoint: Path) -> list[str]:
    """Return reasons why a run cannot go on with a checkpoint, as words behind its name; none if it is whole.

    It must have all files that it was saved with. JSON must parse, safetensors must have the size that their header
    tells, and PyTorch's files, which are zip archives, a table of contents at their end. The weights must have the
    names and shapes of the model that config.json describes.
    """
    if not checkpoint.is_dir():
        return ["is not a directory"]
    if missing := missing_files(checkpoint):
        return [f"lacks {', '.join(missing)}"]
    broken = [reason for file in sorted(checkpoint.iterdir()) if (reason := _fault_of(file)) is not None]
    return broken or _faults_of_weights(checkpoint)


def missing_files(checkpoint: Path) -> list[str]:
    """Return the names of the files that resuming needs and a checkpoint lacks."""
    signed = signed_files(checkpoint)
    needed = {*_NEEDED, *(signed or ["config.json"]), *_parts(checkpoint / _INDEX)}
    missing = [name for name in sorted(needed) if not (checkpoint / name).is_file()]
    for names in (_OPTIMIZERS, _WEIGHTS):
        if not any((checkpoint / name).is_file() for name in names) and names[0] not in missing:
            missing.append(names[0])
    if not any(checkpoint.glob("rng_state*.pth")) and "rng_state.pth" not in missing:
        missing.append("rng_state.pth")
    return missing


def _parts(index: Path) -> set[str]:
    """Return the files that the index of a model in several files names; none without an index, or a broken one."""
    try:
        return set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return set()


def _fault_of(file: Path) -> str | None:
    check = _CHECKS.get(file.suffix)
    if check is None or not file.is_file():
        return None
    if not file.stat().st_size:
        return f"has an empty {file.name}"
    try:
        check(file)
    except (OSError, ValueError, zipfile.BadZipFile, SafetensorError, RecursionError) as error:
        return f"has a {file.name} that is cut or damaged ({first_line(error)})"
    return None


def _check_json(file: Path) -> None:
    content = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"a {type(content).__name__} where an object is expected")
    needed = {"trainer_state.json": _STATE_KEYS, _INDEX: ("weight_map",)}.get(file.name, ())
    lacking = [key for key in needed if key not in content]
    if lacking:
        raise ValueError(f"it lacks {', '.join(lacking)}")
    if file.name == "trainer_state.json":
        unknown = content.keys() - {field.name for field in fields(TrainerState)}
        if unknown:
            raise ValueError(f"{', '.join(sorted(unknown))}: not of this version of transformers")
        if not isinstance(content["global_step"], int):
            raise ValueError(f"global_step is {content['global_step']!r}")


def _check_safetensors(file: Path) -> None:
    with safe_open(file, framework="pt") as opened:  # compares the offsets in the header with the file's size
        opened.keys()


def _check_zip(file: Path) -> None:
    with zipfile.ZipFile(file) as archive:  # its table of contents is at its end
        if not archive.namelist():
            raise ValueError("there is nothing in it")


_ZIPS: dict[str, Callable[[Path], None]] = dict.fromkeys((".pt", ".pth", ".bin"), _check_zip)
_CHECKS = {".json": _check_json, ".safetensors": _check_safetensors, **_ZIPS}


def _faults_of_weights(checkpoint: Path) -> list[str]:
    file = checkpoint / "config.json"
    if not file.is_file():  # a head without an encoder: the trainer compares it with its own
        return []
    config = json.loads(file.read_text(encoding="utf-8"))
    name = (config.get("architectures") or [None])[0]
    if name is None:
        return ["has a config.json that names no architecture"]
    own: dict[str, Any] = {KamimViTForImageClassification.__name__: KamimViTForImageClassification}
    if config.get("model_type") in FAMILIES:
        pretraining = model_class(config["model_type"])
        own[pretraining.__name__] = pretraining
    saved: Any = own.get(name, getattr(transformers, name, None))
    if saved is None:
        return []  # a class of the user's own, which cannot be found by its name
    try:
        with quiet_loading():
            _, info = saved.from_pretrained(
                checkpoint,
                device_map="meta",
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                use_safetensors=True,
            )
    except Exception as error:  # on a config that is not its own transformers raises nearly anything
        return [f"cannot be loaded ({first_line(error)})"]
    return unfit_weights(info, may_hold_more=False)
