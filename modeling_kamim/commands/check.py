"""Say what a data set needs before training: bad images, copies, pixels, keypoints, and how long it takes.

kamim check path/to/images --num_proc 8
kamim check path/to/images --output bad_images.txt --json facts.json
kamim check path/to/images --model_size small --num_train_epochs 100
kamim check ILSVRC/imagenet-1k --num_proc 16

Every image is decoded as training decodes it, and stored keypoint densities are checked. `kamim pretrain --bad_images
skip` leaves bad images out. Keypoint weights are measured on 128 training images, and settings are advised.
With a model (--model_type, --model_size, --config_name or --model_name_or_path), images per second, hours and memory of
a pretraining on this machine are estimated from a few steps; what is not given is as for `kamim pretrain`.
A data set whose metadata name files outside its folder is not read; these files are listed (see --trust_data_files).
Exit status: 0 if all images are good, 1 if some are bad or outside, 2 for wrong use.
"""

import json
import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets

from ..data.check import CheckArguments, DatasetCheck, check_dataset, files_not_read, training_rows
from ..data.loading import SourceArguments, load_source
from ..data.trust import OutsideError, link_findings
from ..data.weight_advice import WeightSettings, advise
from ..errors import InputError
from ..files import json_values, write_text
from ..training.arguments import KamimArguments
from ..training.forecast import LONG
from ..training.trial import TrialArguments, TriedModelArguments, check_memory, try_pretraining
from .endings import run
from .parser import command, parse
from .program import show_log

logger = logging.getLogger(__name__)
LAPTOP_CONFIG = "vit_mae__64px.yaml"
CHECK_ARGUMENTS = (SourceArguments, CheckArguments, TriedModelArguments, TrialArguments)


def main() -> None:
    source, args, kamim_args, trial_args = parse(CHECK_ARGUMENTS, None, __doc__, positional=("dataset_name",))
    show_log()
    for name in ("output", "json"):
        if Path(getattr(args, name) or "file").is_dir():
            raise InputError(f"{name} is {getattr(args, name)}, a folder; give a file")
    if kamim_args.is_model_given:
        trial_args.training_args()
        check_memory(kamim_args)

    try:
        images, image_column = load_source(source)
    except OutsideError as error:
        check, facts = DatasetCheck(outside=error.findings), {}
        print(check.report())
    else:
        check = _check(source, images, image_column)
        print(check.report())
        if check.num_channels != 3:
            kamim_args.num_channels = check.num_channels
        facts = _weights(check, source, kamim_args, training_rows(images), image_column)
        facts |= _estimate(check, source, kamim_args, trial_args, training_rows(images), image_column)

    if args.output is not None:
        _write(args.output, check.bad_images())
        logger.info("The bad images are listed in %s", args.output)
    if args.json is not None:
        _write(args.json, json.dumps(json_values({"images": check.facts(), **facts}), indent=2) + "\n")
    if check.num_bad or check.outside:
        sys.exit(1)


def _check(source: SourceArguments, images: datasets.DatasetDict, image_column: str) -> DatasetCheck:
    check = check_dataset(images, image_column, source.num_proc)
    if _is_folder_of_images(source.dataset_name, images, image_column):
        check.not_read = files_not_read(Path(source.dataset_name).expanduser(), images, image_column)
    check.links = link_findings(images, image_column, source.dataset_name)
    return check


def _weights(
    check: DatasetCheck, source: SourceArguments, kamim_args: KamimArguments, rows: datasets.Dataset, image_column: str
) -> dict[str, Any]:
    """Print weights and advice, and return their facts; nothing for SimMIM and where there is no good image."""
    if not kamim_args.needs_keypoints:
        return {}
    given = WeightSettings(kamim_args.detector(), kamim_args.weight_patch_size, kamim_args.temperature)
    if given.detector.notice:
        logger.info("%s", given.detector.notice)
    transform = kamim_args.transform(image_column, patch_size=1)
    advice = advise(rows, given, replace(transform, pixel_range=check.pixel_range), source.num_proc)
    if advice is None:
        return {}
    print(advice.report())
    return {"weights": advice.facts()}


def _estimate(
    check: DatasetCheck,
    source: SourceArguments,
    kamim_args: TriedModelArguments,
    trial_args: TrialArguments,
    rows: datasets.Dataset,
    image_column: str,
) -> dict[str, Any]:
    """Print speed, duration and memory of a pretraining, or how to ask for them, and return the facts."""
    if not kamim_args.is_model_given:
        asked = command("kamim", "check", source.dataset_name, model_size="base")
        print(f"Images per second, hours and memory of a pretraining on this machine: {asked}")
        return {}
    try:
        trial = try_pretraining(kamim_args, trial_args, rows, image_column, check.pixel_range)
    except InputError as error:
        print(f"Pretraining cannot be tried: {error}")
        return {}
    print(trial.report(len(rows), trial_args.num_train_epochs))
    if trial.seconds(len(rows), trial_args.num_train_epochs) > LONG and trial.device == "cpu":
        shorter = command("kamim", "pretrain", LAPTOP_CONFIG, dataset_name=source.dataset_name)
        print(f"A first encoder of these images in minutes, on a CPU: {shorter}")
    return {"estimate": trial.facts(len(rows), trial_args.num_train_epochs)}


def _write(file: str, text: str) -> None:
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    write_text(Path(file), text)


def _is_folder_of_images(name: str, images: datasets.DatasetDict, image_column: str) -> bool:
    first = next(iter(images.values()))[0][image_column]
    return Path(name).expanduser().is_dir() and bool(first) and first["bytes"] is None


if __name__ == "__main__":
    run(main)
