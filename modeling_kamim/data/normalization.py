"""What an image processor needs of the training images: range of deep images, mean and standard deviation."""

import logging

import datasets
import numpy as np
from transformers import BaseImageProcessor

from ..errors import InputError
from ..models.pixel_range import PixelRange
from ..models.processor import keep_pixel_range, pixel_range_of
from .attach_density import choose_pixel_range, map_images, process_rows
from .decoding import DECODER_VERSION, decode_image

logger = logging.getLogger(__name__)
NUM_IMAGES = 1000  # whose pixels are measured
_LEAST_STD = 1e-6  # below it a channel is constant, and is not divided


def fit_processor(
    processor: BaseImageProcessor,
    dataset: datasets.Dataset,
    image_column: str,
    num_channels: int = 3,
    num_proc: int | None = None,
) -> PixelRange | None:
    """Have a processor hold the pixel range of a data set, and where it has none mean and standard deviation. Log it.

    Args:
        processor: of `image_processor`; what it holds is kept.
        dataset: training rows with an `image_column` of `datasets.Image(decode=False)`.
        num_channels: that the model takes.

    Returns:
        The range by which images of more than 8 bits are scaled; None where there are none.

    Raises:
        InputError: if the first image has other channels than the model takes.
    """
    pixel_range = choose_pixel_range(dataset, image_column, pixel_range_of(processor), num_proc, num_channels)
    keep_pixel_range(processor, pixel_range)
    if processor.image_mean is None:
        mean, std = measure_normalization(dataset, image_column, num_channels, pixel_range, num_proc)
        logger.info("Measured on the training images, in units of [0, 1]: mean %s, std %s", mean, std)
        processor.image_mean, processor.image_std = mean, std
    return pixel_range


def measure_normalization(
    dataset: datasets.Dataset,
    image_column: str,
    num_channels: int,
    pixel_range: PixelRange | None = None,
    num_proc: int | None = None,
) -> tuple[list[float], list[float]]:
    """Measure the mean and the standard deviation of each channel on at most 1,000 images, each with equal weight.

    Args:
        dataset: rows with an `image_column` of `datasets.Image(decode=False)`.
        num_channels: that the model takes.
        pixel_range: by which images of more than 8 bits are scaled.

    Returns:
        Means in [0, 1], and deviations above 0 (1 for a constant channel), four significant digits each.

    Raises:
        InputError: if none of these images can be decoded.
    """
    rows = np.random.default_rng(0).permutation(len(dataset))[:NUM_IMAGES]
    columns = {name: datasets.List(datasets.Value("float64")) for name in ("mean", "square")}
    settings = {"pixel_range": pixel_range, "num_channels": num_channels, "decoder_version": DECODER_VERSION}
    chosen, what = dataset.select(sorted(rows.tolist())), "Measuring mean and std"
    found = map_images(chosen, _moments_batch, image_column, columns, settings, num_proc, what)
    if len(found) == 0:
        raise InputError(f"none of the {len(chosen):,} images that were looked at can be decoded")
    means, squares = (np.array(found[name]).mean(axis=0) for name in columns)
    deviations = np.sqrt(np.maximum(squares - means**2, 0.0))
    deviations[deviations < _LEAST_STD] = 1.0
    return _rounded(means), _rounded(deviations)


def _rounded(numbers: np.ndarray) -> list[float]:
    return [float(f"{number:.4g}") for number in numbers]


def _moments_batch(
    rows: dict[str, list],
    indices: list[int],
    image_column: str,
    pixel_range: PixelRange | None,
    num_channels: int,
    decoder_version: int,
) -> dict[str, list]:
    def moments(source: dict | None, name: str) -> tuple[list[float], list[float]]:
        pixels = decode_image(source, name, pixel_range, num_channels).reshape(-1, num_channels) / np.float64(255)
        return pixels.mean(axis=0).tolist(), (pixels**2).mean(axis=0).tolist()

    found = [result for result, _ in process_rows(rows[image_column], indices, True, moments) if result is not None]
    return {"mean": [mean for mean, _ in found], "square": [square for _, square in found]}
