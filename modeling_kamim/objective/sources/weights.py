"""What the learned sources share: where their weights are, which they are, and the device that they run on."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...errors import InputError, first_line
from ...privacy import HUB_ID

_DIGITS = 16  # of a digest


def device() -> torch.device:
    """Return the GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def model_folder(source: str, model: Any) -> Path:
    """Return the folder of a model with `model.safetensors` (or its parts) and `config.json`; fetch it from the Hub.

    Args:
        source: its name, for messages.
        model: directory or Hub id.

    Raises:
        InputError: if there is none, or it cannot be fetched.
    """
    if not model or not isinstance(model, str):
        raise InputError(
            f"keypoint_detector {source} needs a model; give --keypoint_detector_args "
            f'\'{{"model": "directory or Hub id"}}\', and not {model!r}'
        )
    folder = Path(model).expanduser()
    if not folder.is_dir():
        folder = _fetched(source, model)
    if not (folder / "config.json").is_file() or not any(folder.glob("model*.safetensors")):
        raise InputError(
            f"model of {source} is {model!r}, which lacks config.json or model.safetensors; weights are read from "
            "safetensors alone: give a directory that save_pretrained wrote"
        )
    return folder


def _fetched(source: str, model: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        if not HUB_ID.fullmatch(model):
            raise FileNotFoundError("no such directory, and no Hub id")
        return Path(snapshot_download(model, allow_patterns=["*.json", "model*.safetensors"]))
    except (OSError, ValueError) as error:
        raise InputError(
            f"model of {source} is {model!r}, which cannot be loaded ({first_line(error)}); give a directory, or a Hub "
            "id that is reached or in the cache"
        ) from error


def model_settings(folder: Path, name: str = "config.json") -> dict[str, Any]:
    """Return the settings in a JSON file of a model; none where there is no file."""
    file = folder / name
    try:
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except ValueError as error:
        raise InputError(f"{file} is not JSON: {first_line(error)}") from error


def model_digest(folder: Path) -> str:
    """Return the digest of a model: of its weights, and of the settings by which they are used."""
    settings = [file for name in ("config.json", "preprocessor_config.json") if (file := folder / name).is_file()]
    return digest([*settings, *sorted(folder.glob("model*.safetensors"))])


def digest(files: Iterable[Path]) -> str:
    """Return "sha256:" and the first digits of the SHA-256 of the contents of files, in their order."""
    hashed = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            hashed.update(hashlib.file_digest(file, "sha256").digest())
    return f"sha256:{hashed.hexdigest()[:_DIGITS]}"


def check_threshold(source: str, threshold: Any) -> None:
    """Raise InputError unless the least score of a source's keypoints is a number in [0, 1)."""
    if not isinstance(threshold, int | float) or isinstance(threshold, bool) or not 0 <= threshold < 1:
        raise InputError(f"threshold of {source} is {threshold!r}; give a number from 0 and below 1")


def as_batch(images: Sequence[np.ndarray]) -> torch.Tensor:
    """Return images of one size, `(height, width)` or `(height, width, channels)`, uint8, as a batch on the device.

    Returns:
        `(batch_size, channels, height, width)`, float32 in [0, 1].
    """
    pixels = torch.from_numpy(np.stack(images)).to(device())
    return (pixels[:, None] if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2)).float() / 255
