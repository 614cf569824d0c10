"""Compute the numbers behind the figures over batches of images, in constant memory.

A measure is fed by `update` and gives `rows`: dictionaries, one for each line of its CSV file.
"""

import json
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

import cv2
import numpy as np
import torch

from ..errors import InputError
from ..evaluation.density_error import cell_errors
from ..limits import height_and_width, scaled_size, size_in_words
from ..objective.density import grid_density
from ..objective.keypoints import KeypointDetector, keypoint_image
from ..objective.masking import block_mask
from ..objective.weighting import keypoint_weights
from .attention import attention_distance, attention_entropy, normalized_mutual_information, uniform_attention_distance
from .encoders import AnalysisRefused, Encoder, EncoderOutputs, load_decoder
from .fourier import diagonal_frequencies, log_amplitude
from .loss_share import NUM_QUANTILES, loss_shares
from .moments import RunningMoments
from .similarity import GramAccumulator, MinibatchCka, effective_rank

logger = logging.getLogger(__name__)
Row = dict[str, Any]


class AttentionMeasure:
    """Attention distance and normalized mutual information of every layer and head of an encoder."""

    def __init__(self, encoder: Encoder):
        self.encoder = encoder
        self._moments: defaultdict[str, list[RunningMoments]] = defaultdict(list)
        self._geometry: list[tuple[tuple[int, int], float, int]] = []

    def update(self, outputs: EncoderOutputs, batch_size: int) -> None:
        """Add a batch.

        Raises:
            AnalysisRefused: if the encoder gives no attention maps over a grid.
        """
        for index in range(len(self.encoder.attention_maps(outputs))):
            layer = self.encoder.layer_attention(outputs, index, batch_size)
            if len(self._geometry) == index:
                self._geometry.append((layer.grid, layer.token_size, layer.windows))
            measured = {
                "distance": attention_distance(layer.weights, layer.grid, layer.token_size),
                "nmi": normalized_mutual_information(layer.weights),
                "entropy": attention_entropy(layer.weights),
                "prefix_share": layer.prefix_share,
            }
            for name, values in measured.items():
                if len(self._moments[name]) == index:
                    self._moments[name].append(RunningMoments())
                heads = layer.per_image(values)
                self._moments[name][index].update(torch.cat([heads, heads.mean(dim=1, keepdim=True)], dim=1))

    def distance_rows(self) -> list[Row]:
        """Return a row for each layer and head, and one with head "mean"; distances in pixels of the model's input."""
        rows: list[Row] = []
        layers = zip(self._moments["distance"], self._geometry, strict=True)
        for layer, (moments, (grid, token_size, windows)) in enumerate(layers, 1):
            uniform = uniform_attention_distance(grid, token_size)
            rows += [
                {
                    "model": self.encoder.name,
                    "layer": layer,
                    "head": head,
                    "distance": distance,
                    "std": std,
                    "uniform_distance": uniform,
                    "relative_to_uniform": distance / uniform if uniform else float("nan"),
                    "image_size": size_in_words(self.encoder.image_size),
                    "token_size": token_size,
                    "windows": windows,
                    "num_images": moments.count,
                }
                for head, distance, std in _heads(moments)
            ]
        return rows

    def nmi_rows(self) -> list[Row]:
        """Return a row for each layer and head, and one with head "mean"."""
        layers = zip(*(self._moments[name] for name in ("nmi", "entropy", "prefix_share")), strict=True)
        return [
            {
                "model": self.encoder.name,
                "layer": layer,
                "head": head,
                "nmi": nmi,
                "std": std,
                "uniform_nmi": 0.0,
                "entropy": entropy,
                "prefix_share": share,
                "num_images": moments[0].count,
            }
            for layer, moments in enumerate(layers, 1)
            for (head, nmi, std), (_, entropy, _), (_, share, _) in zip(*map(_heads, moments), strict=True)
        ]


def _heads(moments: RunningMoments) -> list[tuple[int | str, float, float]]:
    """Return head, mean and standard deviation over images; last that of the mean over the heads."""
    names = [*range(1, len(moments.mean)), "mean"]
    return [(name, float(mean), float(std)) for name, mean, std in zip(names, moments.mean, moments.std, strict=True)]


class FourierMeasure:
    """Log amplitudes of the token maps of every layer of an encoder."""

    def __init__(self, encoder: Encoder):
        self.encoder = encoder
        self._moments: dict[int, tuple[int, RunningMoments, RunningMoments]] = {}  # tokens on the shorter side

    def update(self, outputs: EncoderOutputs, batch_size: int) -> None:
        """Add a batch.

        Raises:
            AnalysisRefused: if the tokens are no grid over the image.
        """
        for layer, tokens in enumerate(outputs.layers, outputs.first_layer):
            tokens = self.encoder.token_map(tokens)
            if layer not in self._moments:
                self._moments[layer] = (min(tokens.shape[2:]), RunningMoments(), RunningMoments())
            amplitude = log_amplitude(tokens)
            self._moments[layer][1].update(amplitude)
            self._moments[layer][2].update(amplitude - amplitude[:, :1])

    def rows(self) -> list[Row]:
        """Return a row for each layer and frequency."""
        shorter = min(height_and_width(self.encoder.image_size))
        return [
            {
                "model": self.encoder.name,
                "layer": layer,
                "frequency_pi": float(frequency),
                "cycles_per_pixel": float(frequency) / 2 * side / shorter,
                "log_amplitude": amplitude,
                "relative_log_amplitude": relative_mean,
                "std": std,
                "num_images": absolute.count,
            }
            for layer, (side, absolute, relative) in self._moments.items()
            for frequency, amplitude, relative_mean, std in zip(
                diagonal_frequencies(side).tolist(), absolute.mean, relative.mean, relative.std, strict=True
            )
        ]


class RankMeasure:
    """RankMe of every layer of an encoder: of the images' mean patch tokens, and of all patch tokens."""

    def __init__(self, encoder: Encoder):
        self.encoder = encoder
        self._grams: defaultdict[tuple[int | str, str], GramAccumulator] = defaultdict(GramAccumulator)

    def update(self, outputs: EncoderOutputs, batch_size: int) -> None:
        """Add a batch."""
        for layer, tokens in _named_layers(outputs):
            self._grams[layer, "images"].update(tokens.mean(dim=1))
            self._grams[layer, "tokens"].update(tokens.flatten(0, 1))

    def rows(self) -> list[Row]:
        """Return a row for each layer and kind of features."""
        rows: list[Row] = []
        for (layer, features), gram in self._grams.items():
            values = gram.singular_values()
            limit = min(gram.num_rows, len(values))
            rows.append(
                {
                    "model": self.encoder.name,
                    "layer": layer,
                    "features": features,
                    "rankme": effective_rank(values[:limit]),
                    "rankme_centered": effective_rank(gram.singular_values(centered=True)[:limit]),
                    "dimension": len(values),
                    "num_rows": gram.num_rows,
                }
            )
        return rows


class CkaMeasure:
    """Linear CKA between the mean patch tokens of all layers of all encoders."""

    def __init__(self) -> None:
        self._cka = MinibatchCka()
        self._names: list[tuple[str, int | str]] = []
        self._num_images = 0

    def update(self, outputs: Mapping[str, EncoderOutputs]) -> None:
        """Add a batch of the same images, by the encoders' names."""
        features = {
            (name, layer): tokens.mean(dim=1)
            for name, output in outputs.items()
            for layer, tokens in _named_layers(output)
        }
        self._names = list(features)
        self._num_images += len(features[self._names[0]])
        self._cka.update(list(features.values()))

    def rows(self) -> list[Row]:
        """Return a row for each pair of layers.

        Raises:
            AnalysisRefused: for fewer than 4 images.
        """
        if self._num_images < 4:
            raise AnalysisRefused(f"CKA needs at least 4 images, not {self._num_images}")
        matrix = self._cka.result()
        return [
            {"model": a, "layer": i, "other_model": b, "other_layer": j, "cka": float(matrix[row, column])}
            for row, (a, i) in enumerate(self._names)
            for column, (b, j) in enumerate(self._names)
        ]


def _named_layers(outputs: EncoderOutputs) -> list[tuple[int | str, torch.Tensor]]:
    return [*enumerate(outputs.layers, outputs.first_layer), ("final", outputs.final)]


class KeypointSettings:
    """How keypoints become weights: as for the first model that was trained with them, else the paper's defaults.

    Args:
        encoders: read for the settings in their configs.
    """

    def __init__(self, encoders: Sequence[Encoder] = ()):
        stored = [getattr(encoder.config, "kamim", None) or {} for encoder in encoders]
        trained = next((kamim for kamim in stored if kamim.get("weighting", "none") != "none"), {})
        any_kamim = trained or next((kamim for kamim in stored if kamim), {})
        self.detector = _detector_of(trained)
        self.channel: int | None = trained.get("keypoint_channel")
        self.detection_size: int | None = trained.get("keypoint_image_size")
        self.cell_size: int = trained.get("weight_patch_size", 8)
        self.temperature: float = trained.get("temperature", 0.25)
        self.mask_patch_size: int = any_kamim.get("mask_patch_size", 32)
        self.mask_ratio: float = any_kamim.get("mask_ratio", 0.6)

    def weights(self, views: Sequence[np.ndarray]) -> torch.Tensor:
        """Return keypoint weights `(batch_size, rows, columns)`, float32, >= 1, of images at a model's size.

        Raises:
            AnalysisRefused: if the cells do not divide the images.
        """
        sides = views[0].shape[:2]
        if any(side % self.cell_size for side in sides):
            raise AnalysisRefused(f"weight cells of {self.cell_size} px do not divide its {size_in_words(sides)} px")
        densities = [self._density(keypoint_image(view, self.channel)) for view in views]
        return keypoint_weights(torch.from_numpy(np.stack(densities)), self.temperature)

    def _density(self, image: np.ndarray) -> np.ndarray:
        """Return the density in the cells of an image, which is enlarged if keypoints were detected in larger ones."""
        rows, columns = (side // self.cell_size for side in image.shape[:2])
        height, width = height_and_width(scaled_size(image.shape[:2], self.detection_size))
        return grid_density(self.detector(cv2.resize(image, (width, height))), rows, columns)

    def describe(self) -> str:
        """Return the settings in one line."""
        footprint = f", footprint {self.detector.footprint}" if self.detector.source.gives == "keypoints" else ""
        return (
            f"{self.detector.name.upper()}{footprint}, w_ps {self.cell_size}, T {self.temperature:g}; "
            f"masks of {self.mask_patch_size} px blocks, ratio {self.mask_ratio:g}"
        )


def _detector_of(kamim: Mapping[str, Any]) -> KeypointDetector:
    """Return the detector of a checkpoint's settings; FAST where its model is not on this machine."""
    try:
        parameters = json.loads(kamim.get("keypoint_detector_args") or "{}")
        return KeypointDetector(
            kamim.get("keypoint_detector", "fast"), kamim.get("keypoint_footprint", "circle"), parameters
        )
    except InputError as error:
        logger.warning("Keypoints are shown as FAST finds them: %s", error)
        return KeypointDetector()


class Reconstructor:
    """A pretrained model with its decoder, and the masks that it is given.

    Args:
        encoder: whose checkpoint it is.
        settings: for masks and weights.
        seed: of the masks.

    Raises:
        AnalysisRefused: if the checkpoint has no decoder, or the mask does not fit its tokens.
    """

    def __init__(self, encoder: Encoder, settings: KeypointSettings, seed: int):
        self.encoder, self.settings, self.seed = encoder, settings, seed
        self.model = load_decoder(encoder)
        patch_size = self.model.config.patch_size
        sides, block = height_and_width(encoder.image_size), settings.mask_patch_size
        if any(side % block for side in sides) or block % patch_size:
            raise AnalysisRefused(
                f"mask blocks of {block} px do not fit {size_in_words(sides)} px and patches of {patch_size} px"
            )
        self.grid = sides[0] // patch_size, sides[1] // patch_size

    def mask(self, indices: Sequence[int]) -> torch.Tensor:
        """Return masks `(batch_size, rows, columns)`, bool; those of an image follow from its number and the seed."""
        size, settings = self.encoder.image_size, self.settings
        patch_size = self.model.config.patch_size
        masks = [
            block_mask(size, settings.mask_patch_size, patch_size, settings.mask_ratio, Random(self.seed << 64 | index))
            for index in indices
        ]
        return torch.from_numpy(np.stack(masks)).unflatten(1, self.grid)

    @torch.no_grad()
    def __call__(
        self, images: Sequence[np.ndarray], indices: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return pixels and reconstruction `(batch_size, channels, height, width)`, normalized, and the mask (CPU)."""
        pixels, mask = self.encoder.pixels(images), self.mask(indices)
        bool_masked_pos = mask.flatten(1).to(pixels.device)
        output = self.model(pixel_values=pixels, bool_masked_pos=bool_masked_pos)
        return pixels.cpu(), output.reconstruction.float().cpu(), mask


class LossShareMeasure:
    """Share of a model's masked loss in each decile of the keypoint weights, without and with these weights."""

    def __init__(self, reconstructor: Reconstructor):
        self.reconstructor = reconstructor
        self._shares = {"none": RunningMoments(), "keypoint": RunningMoments()}
        self._weights = RunningMoments()

    def update(self, images: Sequence[np.ndarray], first: int) -> None:
        """Add a batch.

        Args:
            images: values 0 to 255.
            first: number of the first of them.

        Raises:
            AnalysisRefused: if the weight cells do not fit the model.
        """
        encoder = self.reconstructor.encoder
        weights = self.reconstructor.settings.weights([encoder.view(image) for image in images])
        pixels, reconstruction, mask = self.reconstructor(images, range(first, first + len(images)))
        errors, masked, cells = cell_errors(reconstruction, pixels, mask, weights)
        for error, is_masked, weight in zip(errors.numpy(), masked.numpy(), cells.numpy(), strict=True):
            error, weight = error[is_masked], weight[is_masked]
            for name, loss in (("none", error), ("keypoint", weight * error)):
                self._shares[name].update(torch.from_numpy(loss_shares(loss, weight))[None])
            # the same quantiles of the weights themselves
            mean_weights = loss_shares(weight, weight) * weight.sum() / len(weight) * NUM_QUANTILES
            self._weights.update(torch.from_numpy(mean_weights)[None])

    def rows(self) -> list[Row]:
        """Return a row for each weighting of the loss and each decile, the least weights first."""
        return [
            {
                "model": self.reconstructor.encoder.name,
                "loss_weighting": name,
                "quantile": quantile + 1,
                "num_quantiles": NUM_QUANTILES,
                "share": share,
                "std": std,
                "mean_weight": mean_weight,
                "num_images": moments.count,
            }
            for name, moments in self._shares.items()
            for quantile, (share, std, mean_weight) in enumerate(
                zip(moments.mean, moments.std, self._weights.mean, strict=True)
            )
        ]
