"""Load checkpoints: all weights, finite, from safetensors, without code of the repository."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from safetensors import SafetensorError
from transformers import AutoConfig, PreTrainedConfig
from transformers.utils import logging as transformers_logging

from ..errors import InputError, first_line
from .finite import check_finite_weights
from .masked_image_modeling import KamimForMaskedImageModeling

# For `from_pretrained`: no pickles, and no question whether code of the repository may run
SAFE_LOADING = {"use_safetensors": True, "trust_remote_code": False}


def loading_failure(error: Exception) -> str:
    """Why transformers could not load a checkpoint with `SAFE_LOADING`, in one line."""
    reason = first_line(error)
    if "model.safetensors" not in reason:
        return reason
    return (
        f"{reason.split(' and thus')[0].rstrip('. ')}; weights are read from safetensors alone, and pytorch_model.bin "
        "is a pickle: load it with transformers and save it with save_pretrained, if you trust it"
    )


def load_config(name_or_path: str) -> PreTrainedConfig:
    """The config of a checkpoint, directory or Hub id.

    Raises:
        InputError: if it cannot be loaded.
    """
    try:
        return AutoConfig.from_pretrained(name_or_path, trust_remote_code=False)
    except (OSError, ValueError, ImportError) as error:
        raise InputError(f"cannot load {name_or_path!r}: {loading_failure(error)}") from error


def load_whole(model_class: Any, name_or_path: str, may_be_new: tuple[str, ...] = (), **settings: Any) -> Any:
    """A pretrained model by `model_class.from_pretrained`, in which no weight is random that should not be.

    Args:
        model_class: of transformers, `AutoModel` too.
        name_or_path: directory or Hub id.
        may_be_new: parts of the names of weights that the checkpoint may lack.
        **settings: of `from_pretrained`, over those of `SAFE_LOADING`.

    Returns:
        The model, and transformers' report: `missing_keys`, which are random now, and `unexpected_keys`, which are left
        out, both sorted.

    Raises:
        InputError: if it cannot be loaded, lacks other weights, or has them in other shapes.
    """
    settings = {**SAFE_LOADING, "output_loading_info": True, "ignore_mismatched_sizes": True, **settings}
    try:
        with quiet_loading():  # what the checkpoint has beside the model is left out on purpose
            model, info = model_class.from_pretrained(name_or_path, **settings)
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        raise InputError(f"cannot load {str(name_or_path)!r}: {loading_failure(error)}") from error
    unfit = unfit_weights(info, may_be_new)
    if unfit:
        raise InputError(f"{name_or_path} {' and '.join(unfit)}; give a whole checkpoint of a {type(model).__name__}")
    check_finite_weights(model, name_or_path)
    return model, {key: sorted(info[key]) for key in ("missing_keys", "unexpected_keys")}


def unfit_weights(info: Mapping[str, Any], may_be_new: tuple[str, ...] = (), may_hold_more: bool = True) -> list[str]:
    """What does not fit between a checkpoint and a model, as words behind the checkpoint's name.

    Args:
        info: of `from_pretrained` with `output_loading_info` and `ignore_mismatched_sizes`.
        may_be_new: parts of the names of weights that the checkpoint may lack.
        may_hold_more: whether the checkpoint may have weights that the model does not.
    """
    missing = [name for name in info["missing_keys"] if not any(part in name for part in may_be_new)]
    shapes = [f"{name}: {tuple(saved)} for {tuple(own)}" for name, saved, own in info["mismatched_keys"]]
    more = [] if may_hold_more else info["unexpected_keys"]
    found = {"lacks weights": missing, "has weights of other shapes": shapes, "has weights of another model": more}
    return [f"{what} ({_first_of(names)})" for what, names in found.items() if names]


def _first_of(names: Iterable[str]) -> str:
    first, *others = sorted(names)
    return f"{first} and {len(others)} more" if others else first


def load_pretrained_model(name_or_path: str) -> KamimForMaskedImageModeling:
    """A pretrained model with the decoder that it was pretrained with.

    Raises:
        InputError: if it cannot be loaded, or holds an encoder alone.
    """
    model, info = load_whole(KamimForMaskedImageModeling, name_or_path, may_be_new=("decoder", "mask_token"))
    if info["missing_keys"]:
        raise InputError(
            f"{name_or_path} holds no decoder of masked image modeling ({_first_of(info['missing_keys'])})"
        )
    return model


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Load a checkpoint without transformers' report of missing and unexpected weights."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
