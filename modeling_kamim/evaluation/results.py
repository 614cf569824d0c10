"""Write and read results.json: what an evaluation measured, and where its figures come from.

A result is one flat dictionary; None where a field does not apply:

- protocol ("paper", "cached", "knn", "finetune", ...), mode, layer, pooling, layer_norm, augmentation, optimizer,
  learning_rate, seed: what was done
- num_train_images, num_validation_images, num_classes, image_size: on what
- top1, top5, top1_interval, loss, per_class, confusion, wall_time (seconds), chosen_learning_rate, held_out_top1 (of
  the chosen rate, on training images that were held out), hits (see `metrics.pack_hits`): what came out; accuracies
  in [0, 1]
- provenance: what `provenance` gives
- rows: for several layers or seeds, one such dictionary for each protocol, layer and seed; what all of them share
  stands beside `rows`
"""

import hashlib
import json
import logging
import os
import platform
import re
import statistics
import subprocess
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cv2
import datasets
import torch
import transformers
from huggingface_hub import try_to_load_from_cache
from transformers import AutoModel, PreTrainedConfig

from .. import __version__
from ..errors import first_line
from ..files import json_values, write_text
from ..models.families import model_depth
from ..privacy import HUB_ID, public_dataset, public_name, public_settings
from ..training.run_directory import left_by_others

logger = logging.getLogger(__name__)
MEASURED = frozenset(
    ("top1", "top5", "top1_interval", "loss", "per_class", "confusion", "hits", "wall_time")
    + ("chosen_learning_rate", "held_out_top1")
)
AVERAGED = ("top1", "top5", "loss")
SCORES = ("masked_psnr", "masked_ssim", "baseline_psnr", "baseline_ssim")


def provenance(
    dataset_name: str | None,
    train_images: datasets.Dataset | None,
    validation_images: datasets.Dataset | None,
    checkpoint: str | None,
    config: PreTrainedConfig,
    device: torch.device,
) -> dict[str, Any]:
    """Return where a result comes from; without paths, names of users or machines.

    Args:
        dataset_name: as given; None for the embedded photographs.
        train_images, validation_images: as loaded; fingerprints of drawn images would depend on the seed.
        checkpoint: as given, directory or Hub id; None for random weights.
        config: of the whole encoder, not of a classifier that reads its first blocks.
        device: of the evaluation.
    """
    return {
        "dataset": public_dataset(dataset_name),
        "train_fingerprint": getattr(train_images, "_fingerprint", None),
        "validation_fingerprint": getattr(validation_images, "_fingerprint", None),
        "checkpoint": None if checkpoint is None else public_name(checkpoint),
        "checkpoint_sha256": None if checkpoint is None else weights_sha256(Path(checkpoint).expanduser()),
        "checkpoint_commit": None if checkpoint is None else hub_commit(checkpoint, config),
        "model": model_figures(config),
        "kamim": public_settings(getattr(config, "kamim", None)),
        "versions": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "datasets": datasets.__version__,
            "opencv": cv2.__version__,
            "modeling_kamim": __version__,
            "python": platform.python_version(),
        },
        "git_commit": source_commit(Path(__file__).parents[1] / "__init__.py"),
        "device": device_name(device),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def weights_sha256(directory: Path) -> str | None:
    """Return the hexadecimal SHA-256 of `model.safetensors`, or of its parts in order; None if it is not there."""
    whole = directory / "model.safetensors"
    files = [whole] if whole.is_file() else sorted(directory.glob("model-*-of-*.safetensors"))
    if not files:
        return None
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            hashlib.file_digest(stream, lambda: digest)
    return digest.hexdigest()


def hub_commit(checkpoint: str, config: PreTrainedConfig) -> str | None:
    """Return the commit of a checkpoint of the Hub; None where it is not from there, or cannot be told."""
    commit = getattr(config, "_commit_hash", None)  # transformers set it up to some 5.x
    if commit or os.path.isdir(os.path.expanduser(checkpoint)) or not HUB_ID.fullmatch(checkpoint):
        return commit
    cached = try_to_load_from_cache(checkpoint, "config.json")
    return Path(cached).parent.name if isinstance(cached, str) else None


def model_figures(config: PreTrainedConfig) -> dict[str, Any]:
    """Return `model_type, hidden_size, depth, patch_size, parameters` (without the pooler's); None if unknown."""
    return {
        "model_type": config.model_type,
        "hidden_size": getattr(config, "hidden_size", None),
        "depth": model_depth(config),
        "patch_size": getattr(config, "patch_size", None),
        "parameters": _num_parameters(config),
    }


def _num_parameters(config: PreTrainedConfig) -> int | None:
    try:
        with torch.device("meta"):
            model = AutoModel.from_config(config)
    except Exception:  # whatever a foreign architecture raises must not end an evaluation
        return None
    return sum(parameter.numel() for name, parameter in model.named_parameters() if not name.startswith("pooler."))


def source_commit(file: Path) -> str | None:
    """Return `git describe --always --dirty` of the checkout that tracks a file; None without git or a checkout."""
    git = ["git", "--no-optional-locks", "-C", str(file.parent)]
    try:
        for arguments in (["ls-files", "--error-unmatch", file.name], ["describe", "--always", "--dirty"]):
            done = subprocess.run([*git, *arguments], check=True, capture_output=True, text=True, timeout=30)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def device_name(device: torch.device) -> str:
    """Return the model of the GPU or of the CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    try:
        models = re.findall(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        models = []
    return models[0].strip() if models else platform.processor() or platform.machine()


def write_results(file: Path, results: Mapping[str, Any]) -> None:
    """Write sorted, indented JSON, whole or not at all; NaN and infinities become null.

    Args:
        file: its folder is made.
        results: a result; NumPy's and PyTorch's numbers and arrays are allowed.
    """
    text = _to_json(json_values(results)) + "\n"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, text)


def _to_json(value: Any, indent: str = "\n") -> str:
    """Return JSON whose lists of numbers are single lines: a row of a confusion matrix is one line."""
    inner = indent + "  "
    if isinstance(value, dict) and value:
        items = [f"{json.dumps(key)}: {_to_json(value[key], inner)}" for key in sorted(value)]
        return "{" + inner + f",{inner}".join(items) + indent + "}"
    if isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        return "[" + inner + f",{inner}".join(_to_json(item, inner) for item in value) + indent + "]"
    return json.dumps(value, allow_nan=False)


def result_rows(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of a result, each with what all of them share; a result without rows is one row."""
    shared = {key: value for key, value in results.items() if key != "rows"}
    return [{**shared, **row} for row in results.get("rows") or [{}]]


def read_results(file: Path) -> list[dict[str, Any]]:
    """Return the rows of a results.json; rows that this package did not write are left out with a warning."""
    found = _read_json(file)
    try:
        rows = result_rows(found)
    except TypeError:  # its "rows" are none
        rows = [{}]
    kept = [row for row in rows if _is_accuracy(row) or _is_reconstruction(row)]
    if found and len(kept) < len(rows):
        reason = "they need protocol, top1 in [0, 1] and provenance, or the scores of reconstructions"
        logger.warning("%s: %d of %d results are left out: %s", file, len(rows) - len(kept), len(rows), reason)
    return kept


def _read_json(file: Path) -> dict[str, Any]:
    """Return a JSON object; an empty one, with a warning, where the file holds none."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return json_values(found)
        reason = f"it holds a {type(found).__name__}"
    except (OSError, ValueError, RecursionError) as error:
        reason = first_line(error)
    logger.warning("%s is left out, it is unreadable or no result: %s", file, reason)
    return {}


def _is_accuracy(row: Mapping[str, Any]) -> bool:
    is_measured = all(row.get(name) is None or is_number(row[name]) for name in AVERAGED)
    is_described = isinstance(row.get("protocol"), str) and isinstance(row.get("provenance"), dict)
    return is_measured and is_described and row.get("top1") is not None and 0 <= row["top1"] <= 1


def _is_reconstruction(row: Mapping[str, Any]) -> bool:
    means = [row[name].get("mean") for name in SCORES if isinstance(row.get(name), dict)]
    is_measured = len(means) == len(SCORES) and all(map(is_number, [*means, row.get("mask_ratio")]))
    return is_measured and "top1" not in row and isinstance(row.get("provenance"), dict)


def is_number(value: Any) -> bool:
    """Return whether a value of a results.json can be an accuracy, a loss or a count."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e100


def checkpoint_rows(folders: Iterable[Path], checkpoint: Path) -> list[dict[str, Any]]:
    """Return the rows of every results.json below some folders that were measured on a checkpoint's weights.

    In its own directory are a classifier's results (whose provenance is that of the encoder it began with), and the
    masked L1 of pretraining's validation images.
    """
    weights = weights_sha256(checkpoint)
    files = {file.resolve(): file for folder in folders for file in sorted(folder.rglob("results.json"))}
    rows: list[dict[str, Any]] = []
    foreign = left_by_others(checkpoint)
    for file in files:
        is_own = file.parent == checkpoint.resolve()
        if is_own and file.name in foreign:
            continue
        found = read_results(file)
        rows += [row for row in found if is_own or _origin(row).get("checkpoint_sha256") == weights]
    return [*rows, *([] if "eval_results.json" in foreign else _pretraining_rows(checkpoint))]


def _pretraining_rows(checkpoint: Path) -> list[dict[str, Any]]:
    config, evaluation = checkpoint / "config.json", checkpoint / "eval_results.json"
    if not (config.is_file() and evaluation.is_file()):
        return []
    kamim, masked_l1 = _read_json(config).get("kamim") or {}, _read_json(evaluation).get("eval_masked_l1")
    if not is_number(masked_l1):
        return []
    return [{"masked_l1": masked_l1, "provenance": {"dataset": public_name(kamim.get("dataset_name") or "unknown")}}]


def summarize_seeds(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Merge rows that differ only in their seed and in what was measured, in the order of their first.

    top1, top5 and loss become means, beside their standard deviations (ddof=1) top1_std, top5_std and loss_std; None
    where one of the values or, for the deviation, a second seed is missing. num_seeds and seeds are added. What cannot
    be averaged (interval, classes, confusion) is left out for several seeds. Where a seed was run again with the same
    settings, only the latest run counts.
    """
    groups: dict[str, dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        group, seed = groups.setdefault(_settings(row), {}), json.dumps(row.get("seed"))
        if seed not in group or _time(row) >= _time(group[seed]):
            group[seed] = row
    return [_summarize(list(group.values())) for group in groups.values()]


def _origin(row: Mapping[str, Any]) -> Mapping[str, Any]:
    return row.get("provenance") or {}


def _time(row: Mapping[str, Any]) -> str:
    return str(_origin(row).get("time"))


def _settings(row: Mapping[str, Any]) -> str:
    origin = {key: value for key, value in _origin(row).items() if key not in ("time", "device")}
    settings = {key: value for key, value in row.items() if key not in MEASURED and key != "seed"}
    return json.dumps({**settings, "provenance": origin}, sort_keys=True, default=str)


def _summarize(group: list[Mapping[str, Any]]) -> dict[str, Any]:
    row = dict(group[0]) if len(group) == 1 else {k: v for k, v in group[0].items() if k not in MEASURED}
    for name in AVERAGED:
        values = [member[name] for member in group if member.get(name) is not None]
        is_complete = len(values) == len(group)
        row[name] = statistics.fmean(values) if is_complete else None
        row[f"{name}_std"] = statistics.stdev(values) if is_complete and len(values) > 1 else None
    row["num_seeds"], row["seeds"] = len(group), [member.get("seed") for member in group]
    row["seed"] = row["seeds"][0] if len(group) == 1 else None
    return row
