"""Check the processes that a launcher started, and agree on numbers between them."""

import os

import torch
from accelerate.utils import parse_flag_from_env, reduce
from transformers import TrainingArguments

from ..errors import InputError

_RANKS = ("LOCAL_RANK", "RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
_COMMANDS = (
    "launch with `accelerate launch --multi_gpu --num_processes N SCRIPT` or `torchrun --nproc_per_node N SCRIPT`, on "
    "CPUs too"
)


def check_launch(args: TrainingArguments) -> None:
    """Stop a launch that would train with fewer processes than asked for, or without the shards asked for.

    `accelerate launch --num_processes 2` starts one process where --cpu or a MULTI_CPU config is given, or where there
    are fewer than two GPUs: it leaves MASTER_ADDR in the environment, but no rank.

    Raises:
        InputError: if processes are missing or do not find each other, FSDP would leave no model.safetensors (FSDP2's
            default), or FSDP or DeepSpeed is to run on CPUs, where accelerate ignores it.
    """
    check_processes(args.world_size)
    if _saves_shards(args):
        raise InputError("FSDP would save no model.safetensors; set fsdp_state_dict_type: FULL_STATE_DICT")
    if is_sharded(args) and args.device.type == "cpu":
        raise InputError("FSDP and DeepSpeed need GPUs: accelerate ignores them on CPUs; launch without them")


def check_processes(world_size: int) -> None:
    """Raise InputError where a launcher started fewer processes than asked for, or they do not find each other.

    Args:
        world_size: number of processes that found each other.
    """
    started = int(os.environ.get("WORLD_SIZE", "1")) if "LOCAL_RANK" in os.environ else 1
    if started != world_size:
        raise InputError(f"{started} processes were started, and each would work alone; {_COMMANDS}")
    by_accelerate = {"ACCELERATE_MIXED_PRECISION", "MASTER_ADDR"} <= os.environ.keys()
    if world_size == 1 and by_accelerate and not any(rank in os.environ for rank in _RANKS):
        raise InputError(
            f"accelerate launch was asked for several processes and started one; {_COMMANDS}. Where one is what you "
            "want, give --num_processes 1, and unset MASTER_ADDR"
        )


def largest_of_processes(number: int, args: TrainingArguments) -> int:
    """Return the largest of the numbers that the processes of a run have; every one of them must call this."""
    if args.world_size == 1:  # a GPU need not be waited for
        return number
    return int(reduce(torch.tensor(number, device=args.device), "max"))


def is_sharded(args: TrainingArguments) -> bool:
    """Return whether FSDP or DeepSpeed is asked for, by argument or by accelerate's config."""
    by_launcher = map(parse_flag_from_env, ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"))
    return bool(args.fsdp or args.deepspeed) or any(by_launcher)


def is_fsdp1(args: TrainingArguments) -> bool:
    """Return whether FSDP1 is asked for, which flattens parameters, and which transformers no longer supports."""
    by_argument = bool(args.fsdp) and (args.fsdp_plugin_args or {}).get("fsdp_version") == 1
    return by_argument or (parse_flag_from_env("ACCELERATE_USE_FSDP") and os.environ.get("FSDP_VERSION", "1") == "1")


def _saves_shards(args: TrainingArguments) -> bool:
    if args.fsdp:
        kind = (args.fsdp_plugin_args or {}).get("state_dict_type")
    elif parse_flag_from_env("ACCELERATE_USE_FSDP"):
        default = "FULL_STATE_DICT" if is_fsdp1(args) else "SHARDED_STATE_DICT"
        kind = os.environ.get("FSDP_STATE_DICT_TYPE", default)
    else:
        return False
    return kind != "FULL_STATE_DICT"
