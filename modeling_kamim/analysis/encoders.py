"""Run encoders for analysis: tokens of every layer, attention maps, and tokens around self-attention."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from ..data.samples import channels_first
from ..data.views import View
from ..errors import InputError, first_line
from ..limits import ImageSize, height_and_width, size_in_words
from ..models.backbone import input_channels, load_backbone, prefix_length, random_model, with_all_patches
from ..models.loading import load_pretrained_model, quiet_loading
from ..models.masked_image_modeling import KamimForMaskedImageModeling
from ..models.pixel_range import PixelRange
from ..models.processor import image_processor, pixel_range_of
from ..models.sizes import token_grid
from .attention import patch_attention

_NOT_ARCHITECTURE = frozenset(
    ("_name_or_path", "architectures", "transformers_version", "dtype", "kamim", "id2label", "label2id", "problem_type")
)


class AnalysisRefused(Exception):
    """An analysis that this model does not allow; the message is the reason, written into the report."""


@dataclass(frozen=True)
class LayerAttention:
    """Attention among the patch tokens of a layer.

    Args:
        weights: `(batch_size * windows, heads, patches, patches)`, float32, rows sum to 1; the windows of an image
            follow each other.
        prefix_share: `(batch_size * windows, heads)`, share of a patch's attention on CLS and registers.
        windows: of an image; 1 where attention is global.
        grid: rows and columns of the tokens of a window.
        token_size: side of a token in pixels.
    """

    weights: torch.Tensor
    prefix_share: torch.Tensor
    windows: int
    grid: tuple[int, int]
    token_size: float

    def per_image(self, values: torch.Tensor) -> torch.Tensor:
        """Return the mean over each image's windows: `(batch_size, heads)` for `(batch_size * windows, heads)`."""
        return values.unflatten(0, (-1, self.windows)).mean(dim=1)


@dataclass(frozen=True)
class EncoderOutputs:
    """What an encoder gave for a batch.

    Args:
        layers: patch tokens `(batch_size, num_patches, dimension)` of each layer; of Swin, of each stage.
        first_layer: number of the first of them, 0 where it is the embeddings.
        final: patch tokens behind the encoder's own LayerNorm.
        attentions: as the encoder's attention modules gave them, CLS included; None where they were not asked for.
        transforms: patch tokens that enter each self-attention, and those that leave it, the residual not added.
    """

    layers: list[torch.Tensor]
    first_layer: int
    final: torch.Tensor
    attentions: list[torch.Tensor] | None
    transforms: list[tuple[torch.Tensor, torch.Tensor]]

    def without_attention(self) -> "EncoderOutputs":
        """Return the tokens of the layers alone: attention maps are by far the largest part."""
        return replace(self, attentions=None, transforms=[])


class Encoder:
    """An encoder with its own resolution and normalization.

    Args:
        name: in figures and tables.
        model: an encoder of transformers.
        image_size: of its input in pixels.
        mean, std: of its normalization, for each channel.
        device: where it runs.
        checkpoint: where it came from; None for random weights.
        pixel_range: by which images of more than 8 bits were scaled when it was trained; None if that is not known.
    """

    def __init__(
        self,
        name: str,
        model: PreTrainedModel,
        image_size: ImageSize,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device,
        checkpoint: str | None = None,
        pixel_range: PixelRange | None = None,
    ):
        self.name, self.image_size, self.checkpoint, self.device = name, image_size, checkpoint, device
        self.mean, self.std, self.pixel_range = list(mean), list(std), pixel_range
        self.model = with_all_patches(model.to(device).eval())
        # The other implementations give no maps; where there is no eager one, the analyses of attention are refused
        with quiet_loading(), suppress(ValueError, AttributeError):
            self.model.set_attn_implementation("eager")

    @property
    def config(self) -> Any:
        """Of the encoder."""
        return self.model.config

    @property
    def num_channels(self) -> int:
        """Channels of the images that it takes."""
        return input_channels(self.config)

    @property
    def architecture(self) -> str:
        """Equal for encoders that differ in nothing but their weights."""
        config = {key: value for key, value in self.config.to_dict().items() if key not in _NOT_ARCHITECTURE}
        return json.dumps([config, self.image_size, self.mean, self.std], sort_keys=True, default=str)

    @property
    def has_windows(self) -> bool:
        """Whether attention is within windows, as in Swin."""
        return hasattr(self.config, "window_size") and hasattr(self.config, "depths")

    def view(self, image: np.ndarray) -> np.ndarray:
        """Return an image `(height, width, channels)` at the encoder's size, resized as in evaluation."""
        return View.whole(*image.shape[:2]).of_image(image, self.image_size)

    def pixels(self, images: Sequence[np.ndarray]) -> torch.Tensor:
        """Return normalized pixels `(batch_size, channels, height, width)`, float32, on the device."""
        batch = torch.stack([channels_first(self.view(image)) for image in images]).to(self.device).float() / 255
        mean, std = (torch.tensor(part, device=self.device).view(1, -1, 1, 1) for part in (self.mean, self.std))
        return (batch - mean) / std

    @torch.no_grad()
    def __call__(self, images: Sequence[np.ndarray], attention: bool = False) -> EncoderOutputs:
        """Run the encoder.

        Args:
            images: `(height, width, channels)` each, values 0 to 255, of any size.
            attention: give attention maps and the tokens around self-attention too.
        """
        pixels = self.pixels(images)
        with _recorded(self.model, attention) as recorded:
            outputs = self.model(pixels, output_hidden_states=True, output_attentions=attention)
        maps = getattr(outputs, "attentions", None) or ()
        if self.has_windows:  # the standard outputs hold the last block of each stage alone
            maps = [part for _, _, part in recorded]
        return EncoderOutputs(
            layers=[self._patches(layer) for layer in outputs.hidden_states],
            first_layer=1 if self.config.model_type == "timm_wrapper" else 0,
            final=self._patches(outputs.last_hidden_state),
            attentions=[part for part in maps if part is not None] if attention else None,
            transforms=[self._around_attention(before, after, len(pixels)) for before, after, _ in recorded],
        )

    def layer_attention(self, outputs: EncoderOutputs, index: int, batch_size: int) -> LayerAttention:
        """Return the attention among the patch tokens of one layer.

        Args:
            outputs: of a call with `attention`.
            index: of the layer, from 0.
            batch_size: images in it.

        Raises:
            AnalysisRefused: if the encoder gives no maps, or its tokens are no grid over the image.
        """
        weights = self.attention_maps(outputs)[index]
        windows = len(weights) // batch_size
        prefix = 0 if self.has_windows else prefix_length(self.config, weights.shape[-1], self.image_size)
        patches, prefix_share = patch_attention(weights, prefix)
        height, width = height_and_width(self.image_size)
        rows, columns = token_grid((height, width), windows * patches.shape[-1])
        if rows * columns != windows * patches.shape[-1] or height % rows or width % columns:
            raise AnalysisRefused(
                f"its attention covers {windows} x {patches.shape[-1]} tokens, which are no grid that divides "
                f"{size_in_words(self.image_size)} px (padded windows?)"
            )
        window = token_grid((1, 1), patches.shape[-1]) if windows > 1 else (rows, columns)
        return LayerAttention(patches, prefix_share, windows, window, height / rows)

    def attention_maps(self, outputs: EncoderOutputs) -> list[torch.Tensor]:
        """Return the attention of every layer, CLS included.

        Raises:
            AnalysisRefused: if the encoder gives none.
        """
        if not outputs.attentions or any(part.ndim != 4 for part in outputs.attentions):
            raise AnalysisRefused(f"{self.config.model_type} gives no attention maps through its outputs")
        return outputs.attentions

    def _patches(self, layer: torch.Tensor) -> torch.Tensor:
        if layer.ndim == 4:  # (batch_size, channels, rows, columns)
            return layer.flatten(2).transpose(1, 2)
        return layer[:, prefix_length(self.config, layer.shape[1], self.image_size) :]

    def token_map(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return `(batch_size, dimension, rows, columns)` for the patch tokens of a layer.

        Raises:
            AnalysisRefused: if they are no grid over the image.
        """
        grid = token_grid(height_and_width(self.image_size), tokens.shape[1])
        if grid[0] * grid[1] != tokens.shape[1]:
            raise AnalysisRefused(f"its {tokens.shape[1]} tokens are no grid over the image")
        return tokens.transpose(1, 2).unflatten(2, grid)

    def _around_attention(
        self, before: torch.Tensor, after: torch.Tensor, batch_size: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self.has_windows:  # (batch_size * windows, tokens, dimension)
            return before.reshape(batch_size, -1, before.shape[-1]), after.reshape(batch_size, -1, after.shape[-1])
        return self._patches(before), self._patches(after)


@contextmanager
def _recorded(model: nn.Module, active: bool) -> Iterator[list[tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]]]:
    """Record what enters and leaves every self-attention module while the model runs, and maps that it returns."""
    recorded: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]] = []

    def record(module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        before = args[0] if args else kwargs["hidden_states"]
        after, *rest = output if isinstance(output, tuple) else (output,)
        weights = rest[0] if rest and isinstance(rest[0], torch.Tensor) and rest[0].ndim == 4 else None
        recorded.append((before, after, weights))

    handles = [m.register_forward_hook(record, with_kwargs=True) for m in _attention_modules(model)] if active else []
    try:
        yield recorded
    finally:
        for handle in handles:
            handle.remove()


def _attention_modules(model: nn.Module) -> list[nn.Module]:
    """Return the outermost modules whose class is named after attention, in the order of the blocks."""
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        is_inner = any(name.startswith(f"{outer}.") for outer in found)
        if type(module).__name__.endswith("Attention") and not is_inner:
            found[name] = module
    return list(found.values())


def load_encoder(name: str, checkpoint: str, device: torch.device) -> Encoder:
    """Load a checkpoint, directory or Hub id, with the resolution and normalization that are saved with it.

    Raises:
        InputError: if it cannot be loaded.
    """
    backbone = load_backbone(checkpoint, "vit", "base", None, "mean")
    num_channels = input_channels(backbone.model.config)
    processor = image_processor(backbone.image_size, checkpoint, num_channels)
    if processor.image_mean is None:
        raise InputError(
            f"the image processor of {checkpoint} has no mean and std of {num_channels} channel(s); write image_mean "
            "and image_std into its preprocessor_config.json"
        )
    return Encoder(
        name,
        backbone.model,
        backbone.image_size,
        processor.image_mean,
        processor.image_std,
        device,
        checkpoint,
        pixel_range_of(processor),
    )


def shared_channels(encoders: Sequence[Encoder]) -> int:
    """Return the channels that all encoders take.

    Raises:
        InputError: if they differ.
    """
    channels = sorted({encoder.num_channels for encoder in encoders})
    if len(channels) > 1:
        raise InputError(f"the models take {channels} channels; analyze models of the same channels together")
    return channels[0]


def random_encoder(name: str, like: Encoder, seed: int) -> Encoder:
    """Return an encoder of the same architecture, resolution and normalization with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = random_model(like.config)
    return Encoder(name, model, like.image_size, like.mean, like.std, like.device)


def load_decoder(encoder: Encoder) -> KamimForMaskedImageModeling:
    """Load the checkpoint of an encoder as the model that was pretrained, with its decoder.

    Raises:
        AnalysisRefused: if it has no decoder of masked image modeling.
    """
    if encoder.checkpoint is None:
        raise AnalysisRefused("random weights reconstruct nothing")
    try:
        model = load_pretrained_model(encoder.checkpoint)
    except InputError as error:
        raise AnalysisRefused(first_line(error).replace(encoder.checkpoint, "its checkpoint")) from error
    return model.to(encoder.device).eval()
