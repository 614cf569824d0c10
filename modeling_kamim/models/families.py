"""The architectures that can be pretrained: a row for each `model_type` of transformers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from transformers import PreTrainedConfig

from ..errors import InputError

Sizes = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Family:
    """What masked image modeling has to know of an architecture.

    Args:
        title: its name in texts.
        extends: class of transformers that the pretraining model extends: the one that reconstructs pixels, or, where
            there is none, the base class of the family.
        encoder: class of transformers under SimMIM's decoder, where `extends` has no decoder.
        sizes: name of a size to config keys.
        settings: config keys of all sizes, for random weights.
        num_prefix_tokens: from a config to the number of tokens before those of the patches (CLS, registers).
        patch_size: of random weights, in pixels.
        stages: config key with the blocks of each stage, where stages halve the grid of tokens; None for one grid.
        drops_masked: whether the encoder sees the visible tokens alone (MAE), not mask tokens (SimMIM).
        starts_from_zeros: whether CLS, mask token and positions start at transformers' zeros, else from N(0, 0.02).
            Where a LayerNorm meets a token of zeros, its gradient is multiplied by 1e5 and more.
        rectangles: whether images may have two sides.
        any_input: whether the encoder takes inputs of any size, whatever its config says: its positions are rotary, or
            those of a square that transformers interpolates at each pass. The config's `image_size` is a square then.
        mask_ratio, target, loss: defaults of the objective.
    """

    title: str
    extends: str
    sizes: Sizes
    encoder: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    num_prefix_tokens: Callable[[Any], int] = lambda config: 0
    patch_size: int = 16
    stages: str | None = None
    drops_masked: bool = False
    starts_from_zeros: bool = False
    rectangles: bool = False
    any_input: bool = False
    mask_ratio: float = 0.6
    target: str = "pixels"  # of `TARGETS`
    loss: Literal["l1", "mse"] = "l1"


def _transformer(width: int, heads: int, depth: int = 12, mlp: str = "intermediate_size") -> dict[str, Any]:
    """Config keys of a ViT whose MLPs are 4 times as wide."""
    ratio = 4 if mlp == "mlp_ratio" else 4 * width
    return {"hidden_size": width, "num_attention_heads": heads, "num_hidden_layers": depth, mlp: ratio}


def _mae(encoder: dict[str, Any], width: int, heads: int, depth: int) -> dict[str, Any]:
    decoder = _transformer(width, heads, depth)
    return {**encoder, **{f"decoder_{key}": value for key, value in decoder.items()}}


def _stages(width: int, depths: list[int], heads: list[int]) -> dict[str, Any]:
    return {"embed_dim": width, "depths": depths, "num_heads": heads}


def _with_registers(config: Any) -> int:
    return 1 + config.num_register_tokens


def _cls(config: Any) -> int:
    return 1


# DeiT's T, S and B (arXiv:2012.12877), ViT's L and H (arXiv:2010.11929)
_VIT = {
    "tiny": _transformer(192, 3),
    "small": _transformer(384, 6),
    "base": _transformer(768, 12),
    "large": _transformer(1024, 16, 24),
    "huge": _transformer(1280, 16, 32),
}
_DINOV2 = {
    "small": _transformer(384, 6, mlp="mlp_ratio"),
    "base": _transformer(768, 12, mlp="mlp_ratio"),
    "large": _transformer(1024, 16, 24, mlp="mlp_ratio"),
}
_SWIN = {
    "tiny": _stages(96, [2, 2, 6, 2], [3, 6, 12, 24]),
    "small": _stages(96, [2, 2, 18, 2], [3, 6, 12, 24]),
    "base": _stages(128, [2, 2, 18, 2], [4, 8, 16, 32]),
    "large": _stages(192, [2, 2, 18, 2], [6, 12, 24, 48]),
}
# arXiv:2111.09886, configs/vit_base__800ep of its code; drop path there is 0.1
_SIMMIM_VIT = {
    **_transformer(768, 12),
    "use_shared_relative_position_bias": True,
    "layer_scale_init_value": 0.1,
    "layer_norm_eps": 1e-6,
    "drop_path_rate": 0.1,
    "simmim_init": True,
}

FAMILIES = {
    "vit": Family(  # positions are added to the zeros, as in the paper's code
        "ViT", "ViTForMaskedImageModeling", _VIT, num_prefix_tokens=_cls, starts_from_zeros=True, rectangles=True
    ),
    "deit": Family(
        "DeiT",
        "DeiTForMaskedImageModeling",
        {size: _VIT[size] for size in ("tiny", "small", "base")},
        num_prefix_tokens=lambda config: 2,
        rectangles=True,
    ),
    "swin": Family("Swin", "SwinForMaskedImageModeling", _SWIN, patch_size=4, stages="depths"),
    "swinv2": Family("SwinV2", "Swinv2ForMaskedImageModeling", _SWIN, patch_size=4, stages="depths", rectangles=True),
    "focalnet": Family(
        "FocalNet",
        "FocalNetForMaskedImageModeling",
        {size: {key: keys[key] for key in ("embed_dim", "depths")} for size, keys in _SWIN.items() if size != "large"},
        patch_size=4,
        stages="depths",
    ),
    "beit": Family(
        "BEiT",
        "BeitPreTrainedModel",
        {size: _VIT[size] for size in ("base", "large")} | {"simmim_vit": _SIMMIM_VIT},
        encoder="BeitModel",
        settings={"use_mask_token": True},
        num_prefix_tokens=_cls,
    ),
    "dinov2": Family(
        "DINOv2",
        "Dinov2PreTrainedModel",
        _DINOV2,
        encoder="Dinov2Model",
        settings={"use_mask_token": True},
        num_prefix_tokens=_cls,
        patch_size=14,
        rectangles=True,
        any_input=True,
    ),
    "dinov2_with_registers": Family(
        "DINOv2 with registers",
        "Dinov2WithRegistersPreTrainedModel",
        _DINOV2,
        encoder="Dinov2WithRegistersModel",
        settings={"num_register_tokens": 4},
        num_prefix_tokens=_with_registers,
        patch_size=14,
        rectangles=True,
        any_input=True,
    ),
    "dinov3_vit": Family(
        "DINOv3",
        "DINOv3ViTPreTrainedModel",
        {size: _VIT[size] for size in ("small", "base", "large")},
        encoder="DINOv3ViTModel",
        settings={"num_register_tokens": 4},
        num_prefix_tokens=_with_registers,
        rectangles=True,
        any_input=True,
    ),
    "vit_mae": Family(
        "ViT-MAE",
        "ViTMAEForPreTraining",
        {
            "tiny": _mae(_VIT["tiny"], 192, 3, 2),
            "small": _mae(_VIT["small"], 256, 8, 4),
            **{size: _mae(_VIT[size], 512, 16, 8) for size in ("base", "large", "huge")},
        },
        settings={"layer_norm_eps": 1e-6},
        num_prefix_tokens=_cls,
        drops_masked=True,
        rectangles=True,
        mask_ratio=0.75,
        target="normalized_pixels",
        loss="mse",
    ),
}


def family_of(config: PreTrainedConfig | str) -> Family:
    """The row of a config or a `model_type`.

    Raises:
        InputError: for a `model_type` without a row.
    """
    model_type = config if isinstance(config, str) else config.model_type
    if model_type not in FAMILIES:
        raise InputError(f"model_type is {model_type!r}; KAMIM pretrains: {', '.join(FAMILIES)}")
    return FAMILIES[model_type]


def num_prefix_tokens(config: PreTrainedConfig) -> int:
    """Tokens before those of the patches."""
    return family_of(config).num_prefix_tokens(config)


def encoder_stride(config: PreTrainedConfig) -> int:
    """Pixels on a side of what one token of the encoder's output covers, and the decoder predicts."""
    stages = family_of(config).stages
    return config.patch_size * 2 ** (len(getattr(config, stages)) - 1) if stages else config.patch_size


def model_depth(config: PreTrainedConfig) -> int | None:
    """Number of blocks; None where the config does not tell."""
    depths = getattr(config, "depths", None)
    return sum(depths) if depths else getattr(config, "num_hidden_layers", None)
