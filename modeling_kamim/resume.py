"""Going on with a run: its last whole checkpoint, and whether the settings are still those that it was made with."""

import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from .errors import InputError
from .privacy import public_settings

logger = logging.getLogger(__name__)

SETTINGS_FILE = "run_settings.json"
_NEEDED = ("config.json", "scheduler.pt", "trainer_state.json")
_OPTIMIZERS = ("optimizer.pt", "optimizer.bin")  # the second of FSDP
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
# What may differ between a run and its continuation without a change of the trained weights
_HARMLESS = re.compile(
    r"(output_dir|dataset_name|dataset_config_name|num_proc|bad_images|force_resume|global_batch_size"
    r"|per_device_\w*|gradient_accumulation_steps|dataloader_\w*|logging_\w*|log_\w*|eval_\w*|save_\w*|hub_\w*|push_\w*"
    r"|report_to|project|trackio_\w*|run_name|disable_tqdm|do_\w*|load_best_model_at_end|metric_for_best_model"
    r"|greater_is_better|probe_\w*|label_column|max_eval_samples|validation_split|ddp_\w*|use_cpu|torch_compile\w*"
    r"|trust_data_files|resume_from_checkpoint|ignore_data_skip|restore_callback_states_from_checkpoint|skip_memory_metrics"
    r"|torch_empty_cache_steps|include_\w*|prediction_loss_only|local_rank|debug|nonfinite|enable_jit_checkpoint"
    r"|accelerator_config|parallelism_config|fsdp\w*|deepspeed|average_tokens_across_devices|label_names)"
)


def find_checkpoint(args: TrainingArguments) -> str | None:
    """The checkpoint of `args.resume_from_checkpoint`, checked before any work starts.

    "auto" is the last whole checkpoint of the output directory, or None where there is none.

    Raises:
        InputError: if it is not the directory of a whole checkpoint.
    """
    wanted, output_dir = args.resume_from_checkpoint, Path(args.output_dir)
    found = whole_checkpoints(output_dir)
    if wanted is None:
        if found:
            logger.warning(
                "%s holds checkpoints of an earlier run, which this one overwrites as it goes; "
                "--resume_from_checkpoint auto goes on with %s",
                *(output_dir, found[-1].name),
            )
        return None
    if wanted == "auto":
        logger.info("Resuming from %s", found[-1] if found else "nothing: there is no checkpoint yet, starting anew")
        return str(found[-1]) if found else None
    missing = missing_files(Path(wanted))
    if missing:
        raise InputError(
            f"resume_from_checkpoint is {wanted!r}, which lacks {', '.join(missing)}; give a checkpoint-N directory of "
            "a run (saved without --save_only_model), or auto for the last whole one of the output directory"
        )
    logger.info("Resuming from %s", wanted)
    return wanted


def whole_checkpoints(output_dir: Path) -> list[Path]:
    """The checkpoints of an output directory that lack nothing, by their steps."""
    numbered = {
        int(path.name.rpartition("-")[2]): path for path in output_dir.glob("checkpoint-*") if _is_numbered(path)
    }
    return [path for _, path in sorted(numbered.items()) if not missing_files(path)]


def _is_numbered(path: Path) -> bool:
    return re.fullmatch(r"checkpoint-\d+", path.name) is not None


def missing_files(checkpoint: Path) -> list[str]:
    """Names of what resuming needs and a directory lacks."""
    missing = [name for name in _NEEDED if not (checkpoint / name).is_file()]
    for names in (_OPTIMIZERS, _WEIGHTS):
        if not any((checkpoint / name).is_file() for name in names):
            missing.append(names[0])
    if not any(checkpoint.glob("rng_state*.pth")):
        missing.append("rng_state.pth")
    return missing


def run_settings(*arguments: Any, **facts: Any) -> dict[str, Any]:
    """Everything that decides what a run does, as JSON with public names.

    Args:
        arguments: the parsed dataclasses of a script; `TrainingArguments` among them.
        facts: that the arguments do not tell, such as the number of training images.
    """
    settings: dict[str, Any] = {}
    for group in arguments:
        is_training = isinstance(group, TrainingArguments)
        settings |= group.to_dict() if is_training else vars(group)
        if is_training:
            settings["images_per_step"] = group.total_batch_size  # type: ignore[attr-defined]
    return json.loads(json.dumps(public_settings({**settings, **facts}), default=str))


def check_settings(checkpoint: str, settings: Mapping[str, Any], force: bool) -> None:
    """Compare the settings of a run with those of the checkpoint that it goes on with; the log lists the differences.

    Args:
        checkpoint: its directory.
        settings: of `run_settings`.
        force: go on even where the result changes.

    Raises:
        InputError: if one of them changes the result, unless forced.
    """
    file = Path(checkpoint) / SETTINGS_FILE
    if not file.is_file():
        logger.warning("%s does not tell its settings (%s): not compared", checkpoint, SETTINGS_FILE)
        return
    saved = json.loads(file.read_text(encoding="utf-8"))
    differing = [name for name in settings if name in saved and saved[name] != settings[name]]
    lines = {name: f"{name}: {saved[name]!r} in the checkpoint, {settings[name]!r} now" for name in differing}
    changing = [line for name, line in lines.items() if not _HARMLESS.fullmatch(name)]
    for line in lines.values():
        logger.warning("Differs from the checkpoint: %s", line)
    if changing and not force:
        raise InputError(
            f"the settings differ from those of {checkpoint} and would change the result: {'; '.join(changing)}. "
            "Give the same settings, or --force_resume true"
        )
