"""Resume a run: find its last whole checkpoint, and compare the settings."""

import dataclasses
import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerState, TrainingArguments

from ..errors import InputError
from ..files import json_values
from ..privacy import public_settings
from .arguments import RecipeArguments
from .integrity import faults
from .run_directory import checkpoints, is_own

logger = logging.getLogger(__name__)
SETTINGS_FILE = "run_settings.json"
CONTENT = "train_content"  # fingerprint of the training images
# What may differ between a run and its continuation; a setting that is not named here must be the same.
_MAY_DIFFER = {
    "where results go and under which name": r"output_dir|run_name|project|trackio_\w+|hub_\w+|push_to_hub|report_to",
    "what is logged and kept": r"logging_\w+|log_\w+|disable_tqdm|save_(total_limit|only_model|on_each_node)"
    r"|skip_memory_metrics|include_num_input_tokens_seen|debug|do_\w+|probe_\w+",
    "how the run goes on": r"resume_from_checkpoint|force_(resume|online)|restore_callback_states_from_checkpoint"
    r"|seeds",
    "names of the data; their content is compared": r"dataset_name|dataset_config_name|num_proc|bad_images"
    r"|trust_data_files",
    "what they come to is compared": r"precision|attention|global_batch_size",
    "how processes meet": r"local_rank|ddp_(backend|timeout)|fsdp\w*|deepspeed",
    "workers, whose samples depend on none of it": r"dataloader_(num_workers|pin_memory|persistent_workers"
    r"|prefetch_factor|multiprocessing_context)",
    "the machine; equal up to rounding": r"use_cpu|torch_compile\w*|torch_empty_cache_steps|enable_jit_checkpoint"
    r"|(activation|gradient)_checkpointing\w*|ddp_(find_unused_parameters|bucket_cap_mb|static_graph)",
    "what is done with a step that has no finite numbers": r"nonfinite",
}
_HARMLESS = re.compile("|".join(_MAY_DIFFER.values()))
_SCORING = re.compile(  # may differ where no score decides which weights are kept, or the learning rate
    r"eval_\w+|\w+_eval_\w+|prediction_loss_only|include_for_metrics|validation_split|metric_for_best_model"
    r"|greater_is_better|save_(strategy|steps)"
)
# How a step's images are cut into batches; may differ where no random number is drawn for a batch. Swin draws for drop
# path, and classifiers draw to mix images.
_BATCHING = re.compile(r"per_device_train_batch_size|gradient_accumulation_steps")
_MAY_GROW = ("max_steps", "num_train_epochs")  # the trainer says what the schedule becomes


def find_checkpoint(args: TrainingArguments) -> str | None:
    """Return the checkpoint that `args.resume_from_checkpoint` means; None to begin anew.

    "auto" means the last whole checkpoint of the run that has the output directory. Checkpoints of other runs, and
    those that are not whole, are passed over, and the log says why.

    Raises:
        InputError: if what is named is not the directory of a whole checkpoint.
    """
    wanted, output_dir = args.resume_from_checkpoint, Path(args.output_dir)
    if args.save_only_model:
        logger.warning("The checkpoints of this run hold the weights alone (--save_only_model): it cannot be resumed")
    if wanted is None:
        earlier = next((path for path in reversed(checkpoints(output_dir)) if not faults(path)), None)
        if earlier is not None:
            logger.warning(
                "%s holds checkpoints of an earlier run, which this one overwrites where it saves the same step; "
                "to go on with that run: --resume_from_checkpoint %s",
                *(output_dir, earlier),
            )
        return None
    if wanted == "auto":
        return _last_whole(output_dir)
    reasons = faults(Path(wanted))
    if reasons:
        raise InputError(
            f"resume_from_checkpoint is {wanted!r}, which {', '.join(reasons)}; give a checkpoint-N directory of "
            "a run (saved without --save_only_model), or auto for the last whole one of the output directory"
        )
    logger.info("Resuming from %s", wanted)
    return wanted


def _last_whole(output_dir: Path) -> str | None:
    for checkpoint in reversed(checkpoints(output_dir)):
        reasons = faults(checkpoint)
        if not reasons and is_own(output_dir, checkpoint):
            logger.info("Resuming from %s", checkpoint)
            return str(checkpoint)
        why = ", ".join(reasons) or "is of another run than the last one here; name it to go on with it"
        logger.warning("Passed over: %s %s", checkpoint, why)
    logger.info("Resuming from nothing: there is no checkpoint yet, starting anew")
    return None


def whole_checkpoints(output_dir: Path) -> list[Path]:
    """Return the whole checkpoints of the run that has an output directory, in the order of their steps."""
    return [path for path in checkpoints(output_dir) if is_own(output_dir, path) and not faults(path)]


def read_state(checkpoint: str | Path) -> TrainerState:
    """Return the trainer's state that a checkpoint holds.

    Where the run's directory was moved, its best checkpoint is looked for beside this one.
    """
    checkpoint = Path(checkpoint)
    state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    best = state.best_model_checkpoint
    beside = checkpoint.absolute().parent / Path(best or "").name
    if best and not Path(best).is_dir():
        state.best_model_checkpoint = str(beside) if beside.is_dir() else None
    return state


def run_settings(*arguments: Any, **facts: Any) -> dict[str, Any]:
    """Return all that decides what a run does, as JSON with public names.

    Args:
        *arguments: the parsed dataclasses of a command; `RecipeArguments` among them.
        **facts: what the arguments do not tell, such as the number of training images.
    """
    settings: dict[str, Any] = {}
    for group in arguments:
        if isinstance(group, RecipeArguments):
            settings |= group.to_dict()
            settings |= {"images_per_step": group.total_batch_size, "attn_implementation": group.attn_implementation}
        else:
            settings |= {field.name: getattr(group, field.name) for field in dataclasses.fields(group)}
    return json.loads(json.dumps(public_settings(json_values({**settings, **facts})), default=str))


def save_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Write settings of `run_settings` into a checkpoint or the directory of a run."""
    (folder / SETTINGS_FILE).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def check_settings(checkpoint: str, settings: Mapping[str, Any], force: bool) -> None:
    """Compare the settings of a run with those of the checkpoint that it goes on with, and log all differences.

    Args:
        checkpoint: its directory.
        settings: of `run_settings`.
        force: go on although the result changes.

    Raises:
        InputError: if a difference changes the result, unless `force` is given.
    """
    file = Path(checkpoint) / SETTINGS_FILE
    if not file.is_file():
        logger.warning("%s has no %s: its settings are not compared", checkpoint, SETTINGS_FILE)
        return
    saved = json.loads(file.read_text(encoding="utf-8"))
    untold = sorted(saved.keys() ^ settings.keys())
    if untold:
        logger.warning("Not compared, as only one of %s and this version has them: %s", checkpoint, ", ".join(untold))
    differing = [name for name in settings if name in saved and saved[name] != settings[name]]
    lines = {name: f"{name}: {saved[name]!r} in the checkpoint, {settings[name]!r} now" for name in differing}
    if CONTENT in lines:
        lines[CONTENT] = "the training images are not those that the checkpoint was trained on"
    changing = [line for name, line in lines.items() if not _may_differ(name, saved, settings)]
    for line in lines.values():
        logger.warning("Differs from the checkpoint: %s", line)
    if changing and not force:
        raise InputError(
            f"the settings differ from those of {checkpoint} and would change the result: {'; '.join(changing)}. "
            "Give the same settings, or --force_resume true"
        )


def _may_differ(name: str, saved: Mapping[str, Any], settings: Mapping[str, Any]) -> bool:
    if name == CONTENT:
        return _same_content(saved[name], settings[name])
    if _SCORING.fullmatch(name):
        follows_scores = settings.get("lr_scheduler_type") in ("reduce_lr_on_plateau", "greedy")
        return not (settings.get("load_best_model_at_end") or follows_scores)
    if _BATCHING.fullmatch(name):
        return "mask_ratio" in settings and not _draws_at_random(settings)
    return bool(_HARMLESS.fullmatch(name)) or (name in _MAY_GROW and settings[name] > saved[name] > 0)


def _draws_at_random(settings: Mapping[str, Any]) -> bool:
    """Whether the model may have dropout or drop path, which are drawn for each batch."""
    is_given = any(settings.get(key) for key in ("model_name_or_path", "config_name", "config_overrides"))
    return is_given or settings.get("model_type") not in ("vit", "deit", "vit_mae")


def _same_content(saved: str, now: str) -> bool:
    """Return whether two fingerprints are of the same data, in which bad images may have been mended or damaged."""
    before, after = saved.split(), now.split()
    return len(before) == len(after) and all(a == b or "bad" in (a, b) for a, b in zip(before, after, strict=True))
