"""Check optimizer, schedule, trackers, metric and loader settings before a training."""

import importlib.util
import math
from collections.abc import Sequence

import torch
from torch import nn
from transformers import Trainer, TrainingArguments, get_scheduler
from transformers.integrations import get_available_reporting_integrations
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.trainer_utils import SchedulerType

from ..errors import InputError, on_one_line
from ..limits import LEARNING_RATE

_REFUSALS = (ValueError, TypeError, ArithmeticError, LookupError, AttributeError, RuntimeError)
PICTURE_TRACKERS = ("tensorboard", "trackio", "wandb")
_TRACKER_PACKAGES = {"azure_ml": "azureml", "flyte": "flytekit"}  # the others have the names that transformers uses
_OF_A_MODEL = ("galore", "apollo", "lomo", "adalomo")  # optimizers that cannot be made without the model
_WITHOUT_PARAMETERS = (SchedulerType.CONSTANT, SchedulerType.CONSTANT_WITH_WARMUP)
_PROBED_STEPS = 1000  # length of a trial schedule where the real one is not known yet


def check_recipe(args: TrainingArguments, metrics: Sequence[str]) -> None:
    """Check before the work what transformers would find out in the midst of it; nothing is trained or written.

    Args:
        args: of the run.
        metrics: names of the scores of an evaluation, without "eval_".

    Raises:
        InputError: for the first setting that cannot work.
    """
    _check_loader(args)
    _check_trackers(args.report_to)
    best = args.metric_for_best_model
    if best is not None and best.removeprefix("eval_") not in metrics:
        raise InputError(f"metric_for_best_model is {best!r}; allowed: {', '.join(metrics)}")
    _check_optimizer(args)
    _check_schedule(args)
    if args.max_steps > 0:
        _check_warmup(args, args.max_steps)


def check_steps(args: TrainingArguments, num_images: int) -> None:
    """Check that a training on so many images takes a step, and that its warm-up ends.

    Raises:
        InputError: if there is no whole batch and `dataloader_drop_last` drops the others, or the warm-up has more
            steps than the training.
    """
    if _num_batches(args, num_images) == 0:
        at_a_time = args.train_batch_size * args.world_size
        raise InputError(
            f"there are {num_images} training images, fewer than the {at_a_time} of a batch "
            f"(per_device_train_batch_size {args.per_device_train_batch_size} on {args.world_size} process(es)), and "
            "incomplete batches are dropped: nothing would be trained; give a smaller per_device_train_batch_size"
        )
    if args.max_steps < 0:
        _check_warmup(args, num_steps(args, num_images))


def num_steps(args: TrainingArguments, num_images: int) -> int:
    """Return the number of optimizer steps of a training on so many images."""
    if args.max_steps >= 0:
        return args.max_steps
    steps_per_epoch = math.ceil(_num_batches(args, num_images) / args.gradient_accumulation_steps)
    return math.ceil(args.num_train_epochs * steps_per_epoch)


def _num_batches(args: TrainingArguments, num_images: int) -> int:
    batches = num_images / (args.train_batch_size * args.world_size)
    return math.floor(batches) if args.dataloader_drop_last else math.ceil(batches)


def check_evaluation(args: TrainingArguments, has_validation: bool) -> None:
    """Raise InputError if evaluations are asked for during the training, and there are no images for them."""
    wanted = {"eval_strategy": args.eval_strategy.value != "no", "eval_on_start": args.eval_on_start}
    for name, is_wanted in wanted.items():
        if is_wanted and not has_validation:
            raise InputError(
                f"{name} is {getattr(getattr(args, name), 'value', True)}, but the data set has no validation split; "
                f"name one with --validation_split, or leave out {name}"
            )


def _check_warmup(args: TrainingArguments, steps: int) -> None:
    warmup = args.get_warmup_steps(steps)
    if warmup > steps:
        raise InputError(
            f"warmup_steps is {args.warmup_steps}, more than the {steps} step(s) of the run; give fewer, or a share of "
            "the steps below 1"
        )


def _check_loader(args: TrainingArguments) -> None:
    for name in ("dataloader_prefetch_factor", "dataloader_persistent_workers"):
        if getattr(args, name) and not args.dataloader_num_workers:
            raise InputError(
                f"{name} is {getattr(args, name)}, which needs workers; give --dataloader_num_workers 1 or more, or "
                f"leave out {name}"
            )


def _check_trackers(names: Sequence[str]) -> None:
    for name in names:
        if name not in INTEGRATION_TO_CALLBACK:
            raise InputError(
                f"report_to has {name!r}; allowed: none, all, {', '.join(sorted(INTEGRATION_TO_CALLBACK))}"
            )
        package = _TRACKER_PACKAGES.get(name, name)
        if name not in get_available_reporting_integrations() and importlib.util.find_spec(package) is None:
            raise InputError(
                f"report_to has {name!r}, which is not installed; run: pip install {package.replace('_', '-')}"
            )


def check_image_log(steps: int, report_to: Sequence[str]) -> None:
    """Check `log_images_every`; raise InputError unless a tracker of the run takes pictures."""
    if steps < 1:
        raise InputError(f"log_images_every is {steps}; it must be 1 or more")
    if not set(PICTURE_TRACKERS) & set(report_to):
        raise InputError(
            f"log_images_every needs a tracker that takes pictures, and report_to is {' '.join(report_to) or 'none'}; "
            f"give --report_to {' or '.join(PICTURE_TRACKERS)}"
        )


def _check_optimizer(args: TrainingArguments) -> None:
    """Make the optimizer, for a parameter that belongs to no model."""
    name = args.optim.value
    try:
        make, settings = Trainer.get_optimizer_cls_and_kwargs(args)
        make([nn.Parameter(torch.zeros(2, 2))], **settings)
    except ImportError as error:
        raise InputError(f"optim is {name!r}, which is not installed: {on_one_line(error)}") from error
    except _REFUSALS as error:
        if name.startswith(_OF_A_MODEL):
            return
        given = f" with optim_args {args.optim_args!r}" if args.optim_args else ""
        raise InputError(f"optim is {name!r}{given}, which cannot be used: {on_one_line(error)}") from error


def _check_schedule(args: TrainingArguments) -> None:
    """Make the schedule, and ask it for learning rates."""
    steps, parameters = args.max_steps if args.max_steps > 0 else _PROBED_STEPS, args.lr_scheduler_kwargs
    given = f"lr_scheduler_kwargs is {parameters!r} for lr_scheduler_type {args.lr_scheduler_type.value!r}"
    if parameters and args.lr_scheduler_type in _WITHOUT_PARAMETERS:
        raise InputError(f"{given}, which takes none; leave them out")
    values = parameters.values() if isinstance(parameters, dict) else ()
    if not all(0 <= value < math.inf for value in values if isinstance(value, int | float)):  # else the rate may be 0
        raise InputError(f"{given}; its numbers must be finite and not negative")
    warmup = min(args.get_warmup_steps(steps), steps)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=args.learning_rate)
    try:
        schedule = get_scheduler(args.lr_scheduler_type, optimizer, warmup, steps, parameters)
        shares = getattr(schedule, "lr_lambdas", [])
        rates = [args.learning_rate * share(step) for share in shares for step in (0, warmup, steps // 2, steps - 1)]
        bad = [rate for rate in rates if not LEARNING_RATE.holds(rate)]
    except _REFUSALS as error:
        raise InputError(
            f"{given} and learning_rate {args.learning_rate}, which makes no schedule: {on_one_line(error)}"
        ) from error
    if bad:
        raise InputError(f"{given}, which gives a learning rate of {bad[0]}; it must be {LEARNING_RATE.words}")
