"""Start pretraining from a checkpoint: an encoder, a masked image model or a classifier of one of the families."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedConfig, ViTConfig

from ..errors import InputError
from ..limits import ImageSize, size_in_words
from ..privacy import HUB_ID
from .classifier import KamimViTClassifierConfig
from .families import encoder_stride, family_of
from .loading import load_config, load_whole
from .masked_image_modeling import KamimForMaskedImageModeling, model_class, usable_attention
from .positions import resized_config, resized_state_dict
from .sizes import check_image_size, image_size_of, plain_sizes

_CHANNEL_CHANGE = ("the first layer repeated over the channels and scaled", "the first layer summed over the channels")
_MAY_BE_NEW = ("decoder", "mask_token", "pooler")


@dataclass(frozen=True)
class WarmStart:
    """A model with the weights of a checkpoint.

    Args:
        model: with float32 weights.
        summary: what was loaded, what is new, what was left out; one line.
    """

    model: KamimForMaskedImageModeling
    summary: str


def config_to_pretrain(
    name_or_path: str, image_size: ImageSize | None = None, num_channels: int | None = None
) -> PreTrainedConfig:
    """Config of a checkpoint for pretraining: without labels, with a mask token and the decoder's stride.

    Args:
        name_or_path: directory or Hub id.
        image_size: of the input in pixels; the checkpoint's where None.
        num_channels: of the input; the checkpoint's where None.

    Raises:
        InputError: if there is no config of one of the families, or the image size does not fit it.
    """
    if not os.path.isdir(name_or_path) and not HUB_ID.fullmatch(name_or_path):
        raise InputError(f"{name_or_path!r} is no directory, and no id of the Hub (user/name); give one of them")
    config = _to_pretrain(load_config(name_or_path), name_or_path)
    if image_size is not None and image_size != image_size_of(config):
        config = resized_config(config, image_size)
        check_image_size(config)
    config.num_channels = num_channels or config.num_channels
    return config


def _to_pretrain(config: PreTrainedConfig, name_or_path: str) -> PreTrainedConfig:
    """The config of a checkpoint as pretraining needs it, at its own image size."""
    if isinstance(config, KamimViTClassifierConfig):
        if not config.final_layernorm:
            raise InputError(
                f"{name_or_path} is a classifier on the first {config.num_hidden_layers} blocks of an encoder; give "
                "the encoder itself"
            )
        config = vit_config(config)
    if "use_mask_token" in family_of(config).settings:
        config.use_mask_token = True
    plain_sizes(config)
    check_image_size(config)
    if hasattr(config, "encoder_stride"):
        config.encoder_stride = encoder_stride(config)
    config.num_labels = 2  # transformers' default, which is not saved
    return config


def vit_config(config: PreTrainedConfig) -> ViTConfig:
    """The `ViTConfig` with the settings of a config of another type of the same encoder (a classifier, a ViT-MAE)."""
    known = ViTConfig().to_dict().keys() - {"model_type", "architectures", "id2label", "label2id"}
    return ViTConfig(**{key: value for key, value in config.to_dict().items() if key in known | {"kamim"}})


def warm_start(name_or_path: str, config: PreTrainedConfig, attn_implementation: str | None = None) -> WarmStart:
    """Load a checkpoint into the pretraining model of its family.

    Position embeddings and tables are interpolated where `config` has another image size. What the checkpoint lacks
    (the decoder, a mask token, BEiT's last LayerNorm) is new. A mask token of zeros, as many are published with, starts
    from N(0, 0.02). Where `config` has other channels, `adapted_to_channels` makes the first layer, and the decoder is
    new.

    Args:
        name_or_path: directory or Hub id.
        config: of `config_to_pretrain`, with KAMIM's settings.
        attn_implementation: as in transformers.

    Raises:
        InputError: if other weights are missing, or weights are not finite or have other shapes.
    """
    saved = load_config(name_or_path)
    is_classifier, old_config = isinstance(saved, KamimViTClassifierConfig), _to_pretrain(saved, name_or_path)
    old_size, new_size = image_size_of(old_config), image_size_of(config)
    is_resized, has_other_channels = old_size != new_size, old_config.num_channels != config.num_channels
    model, info = load_whole(
        model_class(config.model_type),
        name_or_path,
        _MAY_BE_NEW,
        config=old_config if is_resized or has_other_channels else config,
        dtype=torch.float32,
        attn_implementation=usable_attention(config.model_type, attn_implementation),
        key_mapping={r"^encoder\.": "vit."} if is_classifier else None,
    )
    changes, new = "", {*info["missing_keys"]}
    if is_resized or has_other_channels:
        weights = model.state_dict()
        if is_resized:
            changes += f", resized from {size_in_words(old_size)} to {size_in_words(new_size)} px"
            weights = resized_state_dict(weights, old_config, config)
        model = KamimForMaskedImageModeling.from_config(config, attn_implementation=attn_implementation)
        if has_other_channels:
            changes += f", {_CHANNEL_CHANGE[config.num_channels == 1]} (from {old_config.num_channels} channels)"
            weights, dropped = adapted_to_channels(weights, model.state_dict())
            new |= dropped
        model.load_state_dict(weights, strict=not has_other_channels)
    zero_tokens: set[str] = set()
    if not model.mask_token.any():
        nn.init.trunc_normal_(model.mask_token, std=0.02)
        zero_tokens = {name for name, parameter in model.named_parameters() if parameter is model.mask_token} - new
        new |= zero_tokens
    loaded = len(model.state_dict()) - len(new - zero_tokens)
    summary = (
        f"{loaded} tensors of {name_or_path} ({config.model_type}) loaded{changes}; new: {_parts(new)}; left out: "
        f"{_parts(info['unexpected_keys'])}"
    )
    return WarmStart(model, summary)


def adapted_to_channels(
    weights: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], set[str]]:
    """Return the weights of a model for images of other channels, and the names of those that do not fit it.

    The first layer sums its weights over the channels for gray; for C channels it repeats those of the c old ones in
    their order, times c / C, so that features keep their scale. What predicts pixels does not fit.

    Args:
        weights: of the old model.
        wanted: of the new one; their shapes tell its channels.
    """
    adapted = {}
    for name, weight in weights.items():
        shape = wanted[name].shape
        if weight.shape == shape:
            adapted[name] = weight
        elif weight.ndim == 4 and weight.shape[2:] == shape[2:] and weight.shape[0] == shape[0]:
            old, new = weight.shape[1], shape[1]
            order = torch.arange(new) % old
            adapted[name] = weight.sum(1, keepdim=True) if new == 1 else weight[:, order] * (old / new)
    return adapted, {*weights} - {*adapted}


def _parts(names: Iterable[str]) -> str:
    """The parts of a model that weights belong to, with their numbers."""
    parts = ["mask_token" if "mask_token" in name else name.removeprefix("vit.").split(".")[0] for name in names]
    return ", ".join(f"{part} ({count})" for part, count in sorted(Counter(parts).items())) or "none"
