"""The `datasets.map` steps before training: range of deep images, keypoint densities, bad images. All are cached."""

import logging
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import cv2
import datasets
import numpy as np

from ..errors import InputError
from ..models.pixel_range import EIGHT_BITS, PERCENTILES, PixelRange, fits_in_8_bits, sample_pixels
from .decoding import (
    DECODER_VERSION,
    BadImageError,
    bad_density,
    decode_image,
    is_deep_image,
    read_deep_pixels,
    system_fault,
)
from .stored_density import DensityDetector, OtherDensitiesError, check_column, density_label, stored_columns

logger = logging.getLogger(__name__)
NUM_HEADERS = 2000  # images that are opened to see whether any is deep
NUM_MEASURED = 1000  # deep images whose pixels make the range
PIXELS_OF_AN_IMAGE = 4096
ALIKE = 0.5  # overlap of two ranges
PLACE_COLUMN = "place"  # of a data set that was drawn from another: where each row comes from, as text
Result = TypeVar("Result")


def choose_pixel_range(
    dataset: datasets.Dataset, image_column: str, saved: PixelRange | None = None, num_proc: int | None = None
) -> PixelRange | None:
    """The range by which images of more than 8 bits are scaled: a checkpoint's, or the data set's; the log tells it.

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
        logger.info("Images of more than 8 bits are scaled: %s becomes 0 to 255 (the range of this data set)", measured)
        return measured
    logger.info("Images of more than 8 bits are scaled: %s becomes 0 to 255, as the checkpoint was trained", saved)
    if saved.overlap(measured) < ALIKE:
        logger.warning(
            "The pixels of this data set lie from %s, those that the checkpoint was trained on from %s: it sees them "
            "darker, brighter or flatter than what it knows; convert the images to 8 bits where that is not wanted",
            *(measured, saved),
        )
    return saved


def measure_pixel_range(dataset: datasets.Dataset, image_column: str, num_proc: int | None = None) -> PixelRange | None:
    """Range of the pixels in images of more than 8 bits, by a sample that depends on the data alone; cached.

    Args:
        dataset: rows with an `image_column` of `datasets.Image(decode=False)`.
        num_proc: processes.

    Returns:
        The 0.1 and 99.9 percentiles of the pixels of at most 1,000 deep images; 0 to 255 where all of them are
        integers that fit in 8 bits; None if no image among 2,000 is deep.
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
    if len(found) == 0:  # all of them are bad: what decodes every image says so
        return None
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

    An image whose stored density cannot be used is a bad one.

    Returns:
        The data set, and a line for each image left out.

    Raises:
        BadImageError: for the first bad image that is found, unless they are skipped.
        InputError: if no image is left.
    """
    bad: list[str] = []
    bad_densities = _stored_densities(dataset, densities, image_column) if densities else {}
    if densities is not None and bad_densities is None:
        dataset, bad = attach_keypoint_density(dataset, densities, image_column, skip_bad_images, num_proc, pixel_range)
    elif skip_bad_images:
        errors = find_bad_images(dataset, image_column, num_proc)
        for row, error in (bad_densities or {}).items():
            errors[row] = errors[row] or error.finding
        dataset, bad = drop_bad_images(dataset, errors)
    elif bad_densities:
        raise next(iter(bad_densities.values()))
    if len(dataset) == 0:
        raise InputError(f"none of the {len(bad)} images can be decoded; the first: {bad[0]}")
    return dataset, bad


def _stored_densities(
    dataset: datasets.Dataset, densities: DensityDetector, image_column: str
) -> dict[int, BadImageError] | None:
    """Row to error of the bad ones; None where keypoints are to be detected, which is said where it surprises."""
    try:
        return find_bad_densities(dataset, densities, image_column)
    except OtherDensitiesError as difference:
        if stored_columns(dataset.column_names):
            logger.warning(
                "The stored keypoint densities do not serve this run: %s. Keypoints are detected anew on all %d "
                "images, in a step that is cached",
                *(difference, len(dataset)),
            )
        return None


def find_bad_densities(
    dataset: datasets.Dataset, densities: DensityDetector, image_column: str
) -> dict[int, BadImageError]:
    """Look at the label and the length of every stored density, as `kamim prepare` may have written them.

    Returns:
        Row to error, of those that are damaged or missing.

    Raises:
        OtherDensitiesError: if the data set does not hold these very densities, or other ones beside them.
    """
    check_column(dataset.features, densities)
    form, bad, start = densities.format, {}, 0
    for table in dataset.select_columns([densities.column]).with_format("arrow").iter(1000):
        column = table[densities.column]
        for place in np.flatnonzero(~form.is_in(column)):
            row, stored = start + int(place), column[int(place)].as_py()
            if density_label(stored):
                raise OtherDensitiesError(f"{_place(dataset, row)}: {form.difference(stored)}")
            bad[row] = form.difference(stored)
        start += len(column)
    if len(bad) == len(dataset):
        raise OtherDensitiesError(f"{densities.column} holds no keypoint densities")
    return {row: _density_error(dataset, row, image_column, reason) for row, reason in bad.items()}


def _density_error(dataset: datasets.Dataset, row: int, image_column: str, reason: str) -> BadImageError:
    error = bad_density(dataset[row][image_column], "an image", ValueError(reason))
    return BadImageError(f"{_place(dataset, row)}: {error}", reason)


def _place(dataset: datasets.Dataset, row: int) -> str:
    if PLACE_COLUMN in dataset.column_names:
        return dataset[row][PLACE_COLUMN]
    return f"row {row if dataset._indices is None else dataset._indices.column(0)[row]}"


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


def process_rows(
    sources: list[dict[str, Any]],
    indices: list[int],
    skip_bad_images: bool,
    work: Callable[[dict[str, Any], str], Result],
) -> Iterator[tuple[Result | None, str | None]]:
    """(result, None) of every good image; of a bad one (None, what is wrong), or its BadImageError unless skipped.

    Args:
        sources, indices: images, and their rows, to name those that have no name.
        work: from an image and its name to a result; decodes it.

    Raises:
        UnreadImageError: if the system fails, which is no fault of the image.
    """
    for source, index in zip(sources, indices, strict=True):
        name = f"the image in row {index}"
        try:
            yield work(source, name), None
        except BadImageError as error:
            if not skip_bad_images:
                raise
            yield None, error.finding
        except Exception as error:
            if fault := system_fault(error, source, name):
                raise fault from error
            raise


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
    pixel_range: PixelRange | None,
    decoder_version: int,
) -> dict[str, list]:
    cv2.setNumThreads(1)

    def detect(source: dict[str, Any], name: str) -> bytes:
        return densities(decode_image(source, name, pixel_range))

    found = list(process_rows(rows[image_column], indices, skip_bad_images, detect))
    return {densities.column: [density for density, _ in found], "error": [error for _, error in found]}


def _check_batch(
    rows: dict[str, list], indices: list[int], image_column: str, skip_bad_images: bool, decoder_version: int
) -> dict[str, list]:
    return {"error": [error for _, error in process_rows(rows[image_column], indices, skip_bad_images, decode_image)]}


def _pixels_batch(
    rows: dict[str, list], indices: list[int], image_column: str, skip_bad_images: bool, decoder_version: int
) -> dict[str, list]:
    def sample(source: dict[str, Any], name: str) -> tuple[list[float], bool] | None:
        pixels = read_deep_pixels(source, name)
        if pixels is None:
            return None
        return sample_pixels(pixels, PIXELS_OF_AN_IMAGE).tolist(), fits_in_8_bits(pixels)

    found = process_rows(rows[image_column], indices, skip_bad_images, sample)
    sampled = [result for result, _ in found if result is not None]
    return {"pixels": [pixels for pixels, _ in sampled], "fits": [fits for _, fits in sampled]}
