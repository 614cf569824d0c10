"""The cached `datasets.map` steps before training: the range of deep images, keypoint densities, bad images."""

import logging
from collections.abc import Callable, Iterator
from typing import Any

import cv2
import datasets
import numpy as np

from .density import DensityDetector, density_label
from .errors import InputError
from .images import DECODER_VERSION, BadImageError, decode_image, is_deep_image, read_deep_pixels, system_fault
from .pixel_range import EIGHT_BITS, PERCENTILES, PixelRange, fits_in_8_bits

logger = logging.getLogger(__name__)

NUM_HEADERS = 2000  # images that are opened to see whether any is deep
NUM_MEASURED = 1000  # deep images whose pixels make the range
PIXELS_OF_AN_IMAGE = 4096
ALIKE = 0.5  # overlap of two ranges


def choose_pixel_range(
    dataset: datasets.Dataset, image_column: str, saved: PixelRange | None = None, num_proc: int | None = None
) -> PixelRange | None:
    """The range by which images of more than 8 bits are scaled: a checkpoint's, or else the data set's; told in the log.

    Args:
        dataset: training rows with an `image_column` of `datasets.Image(decode=False)`.
        saved: range that a checkpoint was trained with.
        num_proc: processes.

    Returns:
        The range; None where no image is deep and nothing is saved.
    """
    measured = measure_pixel_range(dataset, image_column, num_proc)
    if measured is None:
        return saved
    if saved is None:
        logger.info("Images deeper than 8 bits are scaled: %s becomes 0 to 255, by the pixels of this data set", measured)
        return measured
    logger.info("Images deeper than 8 bits are scaled: %s becomes 0 to 255, as the checkpoint was trained", saved)
    if saved.overlap(measured) < ALIKE:
        logger.warning(
            "The pixels of this data set lie from %s, the checkpoint was trained with %s: it sees images darker, "
            "brighter or flatter than those it knows; convert them to 8 bits where that is not wanted",
            *(measured, saved),
        )
    return saved


def measure_pixel_range(
    dataset: datasets.Dataset, image_column: str, num_proc: int | None = None
) -> PixelRange | None:
    """Range of the pixels of a data set's images of more than 8 bits, from a fixed sample; cached by `datasets`.

    Args:
        dataset: rows with an `image_column` of `datasets.Image(decode=False)`.
        num_proc: processes.

    Returns:
        The 0.1 and 99.9 percentiles of the pixels of at most 1,000 deep images; 0 to 255 where they are integers that
        fit in 8 bits; None if no image among 2,000 is deep.
    """
    rows = np.random.default_rng(0).permutation(len(dataset))[:NUM_HEADERS]
    encoded = dataset.select_columns([image_column])
    deep = [row for row in rows.tolist() if is_deep_image(encoded[row][image_column])][:NUM_MEASURED]
    if not deep:
        return None
    features = datasets.Features({"pixels": datasets.List(datasets.Value("float64")), "fits": datasets.Value("bool")})
    found = _map_images(
        encoded.select(sorted(deep)), _pixels_batch, image_column, {}, features, True, num_proc, "Measuring pixels"
    )
    if all(found["fits"]):
        return EIGHT_BITS
    low, high = np.percentile(np.concatenate(found.with_format("numpy")["pixels"][:]), PERCENTILES)
    return PixelRange(float(low), float(high))


def prepare_images(
    dataset: datasets.Dataset,
    image_column: str,
    densities: DensityDetector | None = None,
    skip_bad_images: bool = False,
    num_proc: int | None = None,
    pixel_range: PixelRange | None = None,
) -> tuple[datasets.Dataset, list[str]]:
    """Attach keypoint densities that are asked for and not there yet; leave out bad images if they are to be skipped.

    Returns:
        The data set, and a line for each image left out.

    Raises:
        InputError: if no image is left.
    """
    bad: list[str] = []
    if densities is not None and not has_densities(dataset, densities):
        dataset, bad = attach_keypoint_density(dataset, densities, image_column, skip_bad_images, num_proc, pixel_range)
    elif skip_bad_images:
        dataset, bad = drop_bad_images(dataset, find_bad_images(dataset, image_column, num_proc))
    if len(dataset) == 0:
        raise InputError(f"none of the {len(bad)} images can be decoded; the first: {bad[0]}")
    return dataset, bad


def has_densities(dataset: datasets.Dataset, densities: DensityDetector) -> bool:
    """Whether the data set already holds these very densities, as one that `prepare_dataset.py` wrote may."""
    if dataset.features.get(densities.column) != datasets.Value("binary") or len(dataset) == 0:
        return False
    found = density_label(dataset[0][densities.column])
    if found != densities.label:
        logger.info("The data set holds keypoint densities of %s; this run needs %s", found, densities.label)
    return found == densities.label


def attach_keypoint_density(
    dataset: datasets.Dataset,
    densities: DensityDetector,
    image_column: str,
    skip_bad_images: bool = False,
    num_proc: int | None = None,
    pixel_range: PixelRange | None = None,
) -> tuple[datasets.Dataset, list[str]]:
    """Attach the column `densities.column` with `datasets.map`; `datasets` caches it by the arguments given here.

    Temperature, cell size, weighting and norm are applied later, so they can change on one cache.

    Args:
        dataset: rows with an `image_column` of `datasets.Image(decode=False)`.
        skip_bad_images: leave out images that cannot be decoded instead of raising.
        num_proc: processes.
        pixel_range: by which images of more than 8 bits are scaled; None for each image's own.

    Returns:
        The data set with its new column, without the bad images; and a line for each bad image.

    Raises:
        BadImageError: for the first bad image, unless they are skipped.
    """
    features = datasets.Features({densities.column: datasets.Value("binary"), "error": datasets.Value("string")})
    found = _map_images(
        dataset,
        _density_batch,
        image_column,
        {"densities": densities, "pixel_range": pixel_range},
        features,
        skip_bad_images,
        num_proc,
        "Detecting keypoints",
    )
    if densities.column in dataset.column_names:
        dataset = dataset.remove_columns(densities.column)
    dataset = datasets.concatenate_datasets([dataset, found.remove_columns("error")], axis=1)
    return drop_bad_images(dataset, found["error"])


def find_bad_images(dataset: datasets.Dataset, image_column: str, num_proc: int | None = None) -> list[str | None]:
    """Decode every image once (cached by `datasets`): None for a good one, what is wrong for a bad one."""
    features = datasets.Features({"error": datasets.Value("string")})
    checked = _map_images(dataset, _check_batch, image_column, {}, features, True, num_proc, "Checking images")
    return list(checked["error"])


def drop_bad_images(dataset: datasets.Dataset, errors: list[str | None]) -> tuple[datasets.Dataset, list[str]]:
    """The rows whose error is None, and the errors of the others."""
    bad = [error for error in errors if error is not None]
    if not bad:
        return dataset, []
    return dataset.select([row for row, error in enumerate(errors) if error is None]), bad


def decode_rows(
    sources: list[dict[str, Any]],
    indices: list[int],
    skip_bad_images: bool,
    decode: Callable[[dict[str, Any], str], Any] = decode_image,
) -> Iterator[tuple[np.ndarray | None, str | None]]:
    """(image, None) of every good image; of a bad one (None, what is wrong), or its BadImageError unless skipped.

    Args:
        sources, indices: images, and their rows, to name those that have no name.
        decode: from source and name to what is taken for the image.
    """
    for source, index in zip(sources, indices, strict=True):
        try:
            yield decode(source, f"the image in row {index}"), None
        except BadImageError as error:
            if not skip_bad_images:
                raise
            yield None, error.finding


def _map_images(
    dataset: datasets.Dataset,
    function: Callable,
    image_column: str,
    settings: dict[str, Any],
    features: datasets.Features,
    skip_bad_images: bool,
    num_proc: int | None,
    description: str,
) -> datasets.Dataset:
    return dataset.select_columns([image_column]).map(
        function,
        batched=True,
        batch_size=100,
        with_indices=True,
        fn_kwargs={
            "image_column": image_column,
            "skip_bad_images": skip_bad_images,
            "decoder_version": DECODER_VERSION,
            **settings,
        },
        remove_columns=[image_column],
        features=features,
        num_proc=num_proc,
        desc=description,
    )


def _density_batch(
    rows: dict[str, list],
    indices: list[int],
    image_column: str,
    skip_bad_images: bool,
    densities: DensityDetector,
    decoder_version: int,
) -> dict[str, list]:
    cv2.setNumThreads(1)
    columns: dict[str, list] = {densities.column: [], "error": []}
    for image, error in decode_rows(rows[image_column], indices, skip_bad_images):
        columns[densities.column].append(None if image is None else densities(image))
        columns["error"].append(error)
    return columns


def _check_batch(
    rows: dict[str, list], indices: list[int], image_column: str, skip_bad_images: bool, decoder_version: int
) -> dict[str, list]:
    return {"error": [error for _, error in decode_rows(rows[image_column], indices, skip_bad_images)]}
