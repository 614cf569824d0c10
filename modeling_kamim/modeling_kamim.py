"""Masked image modelling with keypoint weights on HuggingFace's ViT and Swin (arXiv:2407.13873).

The checkpoints are plain ViT and Swin checkpoints: `model_type` stays "vit" or "swin", KAMIM's settings are an extra
key of the config, and `AutoModel.from_pretrained` needs nothing of this package.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    PreTrainedConfig,
    PreTrainedModel,
    SwinConfig,
    SwinForMaskedImageModeling,
    ViTConfig,
    ViTForMaskedImageModeling,
)
from transformers import initialization as init
from transformers.modeling_outputs import MaskedImageModelingOutput
from transformers.utils import can_return_tuple
from transformers.utils import logging as transformers_logging

from .errors import InputError, first_line
from .finite import check_finite_weights
from .losses import masked_l1

MODEL_SIZES: dict[str, dict[str, dict[str, Any]]] = {
    # DeiT's T, S and B (arXiv:2012.12877)
    "vit": {
        "tiny": {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768},
        "small": {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536},
        "base": {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072},
    },
    "swin": {
        "tiny": {"embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24]},
        "base": {"embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32]},
    },
}


@dataclass
class KamimMaskedImageModelingOutput(MaskedImageModelingOutput):
    """`MaskedImageModelingOutput` plus the loss without weights.

    Args:
        masked_l1: scalar, the mean absolute error over masked pixels; comparable between weightings.
    """

    masked_l1: torch.Tensor | None = None


class KamimForMaskedImageModeling(PreTrainedModel):
    """What KAMIM's ViT and Swin share, and the way to get either: `from_config` and `from_pretrained`."""

    num_prefix_tokens: int

    @classmethod
    def from_config(cls, config: PreTrainedConfig, **kwargs) -> "KamimForMaskedImageModeling":
        """Randomly initialised model for a `ViTConfig` or `SwinConfig`.

        Raises:
            InputError: for a config of another `model_type`.
        """
        return _architecture(config)._from_config(config, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """Model from a directory or Hub id of a ViT or Swin checkpoint; arguments as in transformers.

        Weights are read from safetensors alone, unless `use_safetensors` says otherwise.

        Raises:
            InputError: for a checkpoint of another `model_type`.
        """
        kwargs = {"use_safetensors": True, **kwargs}
        if cls is not KamimForMaskedImageModeling:
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        config = kwargs.get("config")
        if not isinstance(config, PreTrainedConfig):
            hub_kwargs = {key: kwargs[key] for key in ("revision", "token", "cache_dir", "subfolder") if key in kwargs}
            config = AutoConfig.from_pretrained(pretrained_model_name_or_path, trust_remote_code=False, **hub_kwargs)
        return _architecture(config).from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        bool_masked_pos: torch.Tensor | None = None,
        keypoint_weights: torch.Tensor | None = None,
        **kwargs,
    ) -> KamimMaskedImageModelingOutput:
        """Reconstruct the masked pixels (Eq. 3; without weights Eq. 1, which is SimMIM).

        Args:
            pixel_values: `(batch_size, channels, height, width)`, normalised.
            bool_masked_pos: `(batch_size, num_patches)`, True where masked; without it there is no loss.
            keypoint_weights: `(batch_size, rows, columns)`, float; cells of any size that divides the image.
            **kwargs: of the ViT or Swin encoder, for example `output_hidden_states`.
        """
        outputs = self.base_model(pixel_values, bool_masked_pos=bool_masked_pos, **kwargs)
        tokens = outputs.last_hidden_state[:, self.num_prefix_tokens :]
        side = math.isqrt(tokens.shape[1])
        reconstruction = self.decoder(tokens.transpose(1, 2).unflatten(2, (side, side)))

        loss = unweighted = None
        if bool_masked_pos is not None:
            if reconstruction.shape != pixel_values.shape:
                raise ValueError(
                    f"the reconstruction is {tuple(reconstruction.shape)} for pixel_values "
                    f"{tuple(pixel_values.shape)}: encoder_stride {self.config.encoder_stride} does not fit the encoder"
                )
            mask_side = math.isqrt(bool_masked_pos.shape[1])
            mask = bool_masked_pos.unflatten(1, (mask_side, mask_side))
            loss, unweighted = masked_l1(reconstruction, pixel_values, mask, keypoint_weights)
        return KamimMaskedImageModelingOutput(
            loss=loss,
            reconstruction=reconstruction,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            masked_l1=unweighted,
        )


class KamimViTForMaskedImageModeling(KamimForMaskedImageModeling, ViTForMaskedImageModeling):
    """KAMIM on transformers' `ViTForMaskedImageModeling`."""

    num_prefix_tokens = 1  # CLS


class KamimSwinForMaskedImageModeling(KamimForMaskedImageModeling, SwinForMaskedImageModeling):
    """KAMIM on transformers' `SwinForMaskedImageModeling`; the mask token starts from N(0, 0.02), as in SimMIM's code.

    That of transformers starts at zero, where the layer norms, with no position embeddings before them, multiply its
    gradient by 1e5 and more.
    """

    num_prefix_tokens = 0

    def initialize_weights(self) -> None:
        super().initialize_weights()
        init.trunc_normal_(self.base_model.embeddings.mask_token, std=0.02)  # not if it was loaded


_ARCHITECTURES = {"vit": KamimViTForMaskedImageModeling, "swin": KamimSwinForMaskedImageModeling}


def _architecture(config: PreTrainedConfig) -> type[KamimForMaskedImageModeling]:
    if config.model_type not in _ARCHITECTURES:
        raise InputError(f"model_type is {config.model_type!r}; KAMIM pretrains: {', '.join(_ARCHITECTURES)}")
    return _ARCHITECTURES[config.model_type]


def build_config(model_type: str, model_size: str, image_size: int = 192, **kwargs) -> ViTConfig | SwinConfig:
    """Config of the paper's models: ViT with 16 px patches; Swin with a last stage of one window, 6 tokens at 192 px.

    Args:
        model_type: "vit" or "swin".
        model_size: "tiny", "small" or "base"; Swin has no "small" here.
        image_size: side of the input in pixels; a multiple of 16 (ViT) or 32 (Swin), or of what the patches make of it.
        **kwargs: further config keys, for example `patch_size=8` or `kamim={...}`; `encoder_stride` and Swin's
            `window_size` follow from patches and depths where they are not among them.

    Raises:
        InputError: for an unknown type or size, or an image size that the architecture cannot take.
    """
    if model_type not in MODEL_SIZES:
        raise InputError(f"model_type is {model_type!r}; allowed: {', '.join(MODEL_SIZES)}")
    if model_size not in MODEL_SIZES[model_type]:
        raise InputError(
            f"model_size is {model_size!r}; allowed for {model_type}: {', '.join(MODEL_SIZES[model_type])}"
        )
    patch_size = kwargs.get("patch_size", {"vit": 16, "swin": 4}[model_type])
    if patch_size < 1:
        raise InputError(f"patch_size is {patch_size}; it must be at least 1 pixel")
    settings = {"image_size": image_size, "patch_size": patch_size, **MODEL_SIZES[model_type][model_size], **kwargs}
    if model_type == "vit":
        config = ViTConfig(**{"encoder_stride": patch_size, "num_hidden_layers": 12, **settings})
    else:
        stride = settings.setdefault("encoder_stride", patch_size * 2 ** (len(settings["depths"]) - 1))
        config = SwinConfig(**{"window_size": max(1, image_size // stride), **settings})
    check_image_size(config)
    return config


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


def load_whole(model_class: Any, name_or_path: str, may_be_new: tuple[str, ...] = (), **settings: Any) -> Any:
    """A pretrained model by `model_class.from_pretrained`, in which no weight is random that should not be.

    Args:
        model_class: of transformers, `AutoModel` too.
        name_or_path: directory or Hub id.
        may_be_new: parts of the names of weights that the checkpoint may lack.
        **settings: of `from_pretrained`, over those of `SAFE_LOADING`.

    Returns:
        The model, and the names of the weights that the checkpoint lacks, which are random.

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
    return model, sorted(info["missing_keys"])


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
    model, new = load_whole(KamimForMaskedImageModeling, name_or_path, may_be_new=("decoder", "mask_token"))
    if new:
        raise InputError(f"{name_or_path} holds no decoder of masked image modelling ({_first_of(new)})")
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


def check_image_size(config: ViTConfig | SwinConfig) -> None:
    """Raise InputError unless every patch, and for Swin every window of every stage, fits `config.image_size`.

    Also where a single image would take more than this machine's memory.
    """
    stride = config.encoder_stride if config.model_type == "swin" else config.patch_size
    if config.image_size <= 0 or config.image_size % stride:
        raise InputError(
            f"image_size is {config.image_size}; it must be a multiple of {stride} for {config.model_type}"
        )
    if config.model_type == "swin":
        sides = [config.image_size // config.patch_size // 2**stage for stage in range(len(config.depths))]
        if any(side % config.window_size for side in sides):
            unit = config.encoder_stride * config.window_size
            raise InputError(
                f"image_size is {config.image_size}; stages of {sides} tokens a side cannot be cut into windows of "
                f"{config.window_size}: use a multiple of {unit}"
            )
    needed, memory = least_memory(config), psutil.virtual_memory().total
    if needed > memory:
        raise InputError(
            f"image_size is {config.image_size}: training on one image takes at least {needed / 1e9:,.0f} GB, and "
            f"this machine has {memory / 1e9:,.0f} GB: give a smaller image_size"
        )


def least_memory(config: ViTConfig | SwinConfig) -> int:
    """Bytes that training on one image takes at the least, whatever the precision and the attention.

    Counted are the pixels, 16 values of 16 bits for each channel of a token in each block (of Swin: of the first
    stage), and the attention map of one head.
    """
    tokens = (config.image_size // config.patch_size) ** 2
    is_swin = config.model_type == "swin"
    channels, depth = (
        (config.embed_dim, config.depths[0]) if is_swin else (config.hidden_size, config.num_hidden_layers)
    )
    attended = config.window_size**2 if is_swin else tokens
    pixels = config.num_channels * config.image_size**2
    return 4 * pixels + 2 * (16 * tokens * channels * depth + tokens * attended)
