"""Encoders of transformers and timm, as features of every layer."""

from collections.abc import Sequence

import torch
from torch import nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

from ..errors import InputError
from ..limits import ImageSize, height_and_width, size_in_words, written_size
from .families import FAMILIES, num_prefix_tokens
from .loading import load_whole
from .masked_image_modeling import KamimForMaskedImageModeling, keep_visible
from .sizes import build_config, image_size_of, token_grid

POOLINGS = ("mean", "cls", "patches")


class Backbone(nn.Module):
    """Callable from pixels to the pooled features of every layer of an encoder.

    Layers are the outputs of the blocks (of Swin and convolutional networks: of the stages), as they are, and at last
    "final": the output of the encoder, behind its own LayerNorm. Features of narrower layers are padded with zeros.

    Args:
        model: an encoder of transformers that returns `hidden_states` and `last_hidden_state`.
        pooling: "mean" over the patch tokens (CLS and registers dropped), as in the paper, the "cls" token, or all
            "patches" (of `layers` alone).
    """

    def __init__(self, model: PreTrainedModel, pooling: str = "mean"):
        super().__init__()
        if pooling not in POOLINGS:
            raise InputError(f"pooling is {pooling!r}; allowed: {', '.join(POOLINGS)}")
        self.model = with_all_patches(model)
        self.pooling = pooling

    @property
    def image_size(self) -> ImageSize:
        """Size of the input in pixels: one number for a square, else [height, width]."""
        config = self.model.config
        if config.model_type == "timm_wrapper":
            return written_size((config.pretrained_cfg or {}).get("input_size", (3, 224, 224))[1:])
        return image_size_of(config) if getattr(config, "image_size", None) else 224

    def place_of(self, layer: int | None, default: int) -> int:
        """Place of a block in the result.

        Args:
            layer: its number, from 1; None for the default.
            default: read where no layer is named; of an encoder without so many blocks the final output.

        Raises:
            InputError: if there is no such block.
        """
        depth = getattr(self.model.config, "num_hidden_layers", 0)
        if layer is not None and not 1 <= layer <= depth:
            raise InputError(f"layer is {layer}; the encoder has blocks 1 to {depth}")
        if layer is None:
            layer = min(default, depth)
        return layer - 1 if layer < depth else -1

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """`(batch_size, layers, dimension)` for normalized pixels `(batch_size, channels, height, width)`."""
        pooled = self.layers(pixel_values)
        width = max(features.shape[1] for features in pooled)
        return torch.stack([nn.functional.pad(features, (0, width - features.shape[1])) for features in pooled], dim=1)

    def layers(self, pixel_values: torch.Tensor, place: int | None = None) -> list[torch.Tensor]:
        """Features of every layer, each as wide as it is.

        Args:
            pixel_values: normalized, `(batch_size, channels, height, width)`.
            place: of the only layer to give, as in the result; -1 for the final output. All where None.

        Returns:
            `(batch_size, dimension)` each; `(batch_size, patches, dimension)` where the pooling is "patches".
        """
        outputs, sides = self.model(pixel_values, output_hidden_states=place != -1), pixel_values.shape[2:]
        if place == -1:
            return [self._pool(outputs.last_hidden_state, sides)]
        is_timm = self.model.config.model_type == "timm_wrapper"
        blocks = outputs.hidden_states[0 if is_timm else 1 :]  # the others begin with the embeddings
        found = (*blocks, outputs.last_hidden_state)
        return [self._pool(layer, sides) for layer in (found if place is None else (found[place],))]

    def _pool(self, layer: torch.Tensor, sides: Sequence[int]) -> torch.Tensor:
        if layer.ndim == 4:
            if self.pooling == "patches":
                return layer.flatten(2).transpose(1, 2)
            if self.pooling == "cls":
                raise InputError(f"{self.model.config.model_type} gives maps without a CLS token; use --pooling mean")
            return layer.mean(dim=(2, 3))
        prefix = prefix_length(self.model.config, layer.shape[1], sides)
        if self.pooling == "mean":
            return layer[:, prefix:].mean(dim=1)
        if self.pooling == "patches":
            return layer[:, prefix:]
        if prefix == 0:
            raise InputError(f"{self.model.config.model_type} has no CLS token; use --pooling mean")
        return layer[:, 0]


def input_channels(config: PreTrainedConfig) -> int:
    """Channels of the images that an encoder of transformers or timm takes."""
    if config.model_type == "timm_wrapper":
        return config.pretrained_cfg.get("input_size", (3,))[0]
    return getattr(config, "num_channels", None) or 3


def prefix_length(config: PreTrainedConfig, num_tokens: int, image_size: int | Sequence[int]) -> int:
    """CLS and registers among the tokens of an encoder: its family's, or of another what the patches leave.

    Args:
        num_tokens: of an output.
        image_size: of the input. Where the config tells no size of patches, or there are fewer tokens, they are the
            largest square ones that cover it.
    """
    if config.model_type in FAMILIES:
        return num_prefix_tokens(config)
    sides, patch_size = height_and_width(image_size), getattr(config, "patch_size", None)
    if isinstance(patch_size, int):
        num_patches = (sides[0] // patch_size) * (sides[1] // patch_size)
        if num_patches <= num_tokens:
            return num_tokens - num_patches
    rows, columns = token_grid(sides, num_tokens)
    return num_tokens - rows * columns


def random_model(config: PreTrainedConfig) -> PreTrainedModel:
    """Return an encoder with random weights."""
    if config.model_type == "vit_mae":  # that of transformers has no positions
        return KamimForMaskedImageModeling.from_config(config).base_model
    return AutoModel.from_config(config)


def with_all_patches(model: PreTrainedModel) -> PreTrainedModel:
    """Have a masked autoencoder keep all patches in their order, which it would shuffle and drop; returns the model."""
    if model.config.model_type == "vit_mae":
        model.embeddings.random_masking = keep_visible
    return model


def load_backbone(
    name_or_path: str | None,
    model_type: str,
    model_size: str,
    image_size: ImageSize | None,
    pooling: str,
    config_overrides: str | None = None,
) -> Backbone:
    """Backbone of a checkpoint, or with random weights of one of this package's sizes.

    Args:
        name_or_path: directory or Hub id of an encoder (ViT, Swin, DINOv2, ViT-MAE, timm, ...); None for random
            weights.
        model_type, model_size, config_overrides: of the random weights.
        image_size: of the random weights; a given one must be the checkpoint's.
        pooling: see `Backbone`.

    Raises:
        InputError: if it cannot be loaded, or its weights are not finite.
    """
    if name_or_path is None:
        random_config = build_config(model_type, model_size, image_size or 192, config_overrides)
        return Backbone(random_model(random_config), pooling)
    model, _ = load_whole(AutoModel, name_or_path, may_be_new=("pooler",))  # no pooler is read
    if model.main_input_name != "pixel_values":
        if not hasattr(model, "vision_model"):  # CLIP, SigLIP and others of images and texts have one
            kind = model.config.model_type
            raise InputError(f"{name_or_path} is a {kind}, which reads no images; give an encoder of images")
        model = model.vision_model
    backbone = Backbone(model, pooling)
    if image_size not in (None, backbone.image_size):
        given, own = map(size_in_words, (image_size, backbone.image_size))
        raise InputError(f"image_size is {given}, the checkpoint's is {own}; they must agree")
    return backbone
