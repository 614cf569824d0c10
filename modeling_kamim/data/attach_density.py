"""The cached `datasets.map` steps before training: the range of deep images, keypoint densities, bad images."""

import logging
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, TypeVar

import cv2
import datasets
import numpy as np

from ..errors import InputError
from ..models.pixel_range import EIGHT_BITS, PixelRange, fits_in_8_bits, one_range, sample_pixels
from .decoding import (
    DECODER_VERSION,
    BadImageError,
    OtherChannelsError,
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
PIXELS_OF_AN_IMAGE = 4096  # that are sampled
ALIKE = 0.5  # least overlap of two ranges that are no surprise
PLACE_COLUMN = "place"  # text: where each row of a data set that was drawn from another comes from
Result = TypeVar("Result")


def choose_pixel_range(
    dataset: datasets.Dataset,
    image_column: str,
    saved: PixelRange | None = None,
    num_proc: int | None = None,
    num_channels: int = 3,
) -> PixelRange | None:
    """Return the range that scales images of more than 8 bits: a checkpoint's, or else the data set's. Log it.

    Args:
        dataset: training rows with an `image_column` of `datasets.Image(decode=False)`.
        saved: range that a checkpoint was trained with.
        num_channels: that the model takes.

    Returns:
        The range; None where no image is deep and nothing is saved.

    Raises:
        InputError: if the first image has other channels than the model takes.
    """
    _check_first_image(dataset, image_column, num_channels)
    measured = measure_pixel_range(dataset, image_column, num_proc, num_channels)
    if measured is None:
        return saved
    if saved is None:
        logger.info("Images of more than 8 bits are scaled: %s becomes 0 to 255 (the range of this data set)", measured)
        return measured
    logger.info("Images of more than 8 bits are scaled: %s becomes 0 to 255, as the checkpoint was trained", saved)
    if saved.overlap(measured) < ALIKE:
        logger.warning(
            "The pixels of this data set lie from %s, those that the checkpoint was trained on from %s: to it these "
            "images are darker, brighter or flatter; convert them to 8 bits if that is not wanted",
            *(measured, saved),
        )
    return saved


def _check_first_image(dataset: datasets.Dataset, image_column: str, num_channels: int) -> None:
    try:
        decode_image(dataset.select_columns([image_column])[0][image_column], "the first image", None, num_channels)
    except OtherChannelsError as error:
        raise InputError(error.finding) from None
    except BadImageError:
        pass  # later steps stop at it, or leave it out


def measure_pixel_range(
    dataset: datasets.Dataset, image_column: str, num_proc: int | None = None, num_channels: int = 3
) -> PixelRange | None:
    """Measure the range of the pixels in images of more than 8 bits, on a sample that depends on the data alone.

    Args:
        dataset: rows with an `image_column` of `datasets.Image(decode=False)`.

    Returns:
        The 0.1 and 99.9 percentiles of the pixels of at most 1,000 deep images, for each channel if they are neither
        gray nor RGB; 0 to 255 where all of them are integers that fit in 8 bits; None if no image among 2,000 is deep.
    """
    rows = np.random.default_rng(0).permutation(len(dataset))[:NUM_HEADERS]
    encoded = dataset.select_columns([image_column])
    deep = [row for row in rows.tolist() if is_deep_image(encoded[row][image_column])][:NUM_MEASURED]
    if not deep:
        return None
    columns = {"pixels": datasets.List(datasets.Value("float64")), "fits": datasets.Value("bool")}
    chosen = encoded.select(sorted(deep))
    settings = {"num_channels": num_channels, "decoder_version": DECODER_VERSION}
    found = map_images(chosen, _pixels_batch, image_column, columns, settings, num_proc, "Measuring pixels")
    if len(found) == 0:  # all of them are bad: the step that decodes every image will say so
        return None
    if all(found["fits"]):
        return EIGHT_BITS
    sample = np.concatenate(found.with_format("numpy")["pixels"][:])
    return PixelRange.of_sample(sample if one_range(num_channels) else sample.reshape(-1, num_channels))


def prepare_images(
    dataset: datasets.Dataset,
    image_column: str,
    densities: DensityDetector | None = None,
    skip_bad_images: bool = False,
    num_proc: int | None = None,
    pixel_range: PixelRange | None = None,
    num_channels: int = 3,
) -> tuple[datasets.Dataset, list[str]]:
    """Attach the keypoint densities that a run needs and the data set lacks; leave out bad images if asked to.

    An image is bad if it cannot be decoded, or its stored density cannot be used.

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
        errors = find_bad_images(dataset, image_column, num_proc, num_channels)
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
    """Return the error of each row with a bad density; None, with a warning, where stored ones cannot serve the run."""
    try:
        return find_bad_densities(dataset, densities, image_column)
    except OtherDensitiesError as difference:
        if stored_columns(dataset.column_names):
            logger.warning(
                "This run cannot use the stored keypoint densities: %s. Keypoints are detected anew on all %d images, "
                "in a step that is cached",
                *(difference, len(dataset)),
            )
        return None


def find_bad_densities(
    dataset: datasets.Dataset, densities: DensityDetector, image_column: str
) -> dict[int, BadImageError]:
    """Check the label and the length of every stored density, such as `kamim prepare` writes.

    Returns:
        The error of each row whose density is damaged or missing.

    Raises:
        OtherDensitiesError: if the data set holds no densities, or any of other settings.
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
    error = bad_density(dataset[row][image_column], "an image", reason)
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
    """Detect keypoints on every image and attach their densities as the column `densities.column`; cached.

    Temperature, cell size, weighting and norm are applied later, so one cache serves them all.

    Args:
        dataset: rows with an `image_column` of `datasets.Image(decode=False)`.
        skip_bad_images: leave out images that cannot be decoded instead of raising.
        pixel_range: by which images of more than 8 bits are scaled; None for each image's own.

    Returns:
        The data set with its new column, without the bad images; and a line for each bad image.

    Raises:
        BadImageError: for the first bad image, unless they are skipped.
    """
    columns = {densities.column: datasets.Value("binary"), "error": datasets.Value("string")}
    settings = {
        "skip_bad_images": skip_bad_images,
        "decoder_version": DECODER_VERSION,
        "densities": densities,
        "pixel_range": pixel_range,
    }
    num_proc = densities.detector.processes(num_proc)
    found = map_images(dataset, _density_batch, image_column, columns, settings, num_proc, "Detecting keypoints")
    if densities.column in dataset.column_names:
        dataset = dataset.remove_columns(densities.column)
    dataset = datasets.concatenate_datasets([dataset, found.remove_columns("error")], axis=1)
    return drop_bad_images(dataset, found["error"])


def find_bad_images(
    dataset: datasets.Dataset, image_column: str, num_proc: int | None = None, num_channels: int = 3
) -> list[str | None]:
    """Decode every image, and return None for a good one, what is wrong for a bad one; cached."""
    columns = {"error": datasets.Value("string")}
    settings = {"num_channels": num_channels, "decoder_version": DECODER_VERSION}
    checked = map_images(dataset, _check_batch, image_column, columns, settings, num_proc, "Checking images")
    return list(checked["error"])


def drop_bad_images(dataset: datasets.Dataset, errors: list[str | None]) -> tuple[datasets.Dataset, list[str]]:
    """Return the rows whose error is None, and the errors of the others."""
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
    """Yield (result, None) for every good image, and (None, what is wrong) for a bad one.

    Args:
        sources: images, as `datasets.Image(decode=False)` gives them.
        indices: their rows, to name images that have no name.
        work: from an image and its name to a result; decodes it.

    Raises:
        BadImageError: for the first bad image, unless they are skipped.
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


def map_images(
    dataset: datasets.Dataset,
    function: Callable,
    image_column: str,
    columns: Mapping[str, Any],
    settings: Mapping[str, Any],
    num_proc: int | None,
    description: str,
    **options: Any,
) -> datasets.Dataset:
    """Return the columns that a function makes of batches of images; cached by the function and its settings.

    Args:
        columns: features of the result.
        settings: further arguments of the function.
        options: of `datasets.Dataset.map`.
    """
    return dataset.select_columns([image_column]).map(
        function,
        batched=True,
        batch_size=100,
        with_indices=True,
        fn_kwargs={"image_column": image_column, **settings},
        remove_columns=[image_column],
        features=datasets.Features(columns),
        num_proc=num_proc,
        desc=description,
        **options,
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

    def begin(source: dict[str, Any], name: str) -> Any:
        return densities.begin(decode_image(source, name, pixel_range, densities.num_channels))

    found = list(process_rows(rows[image_column], indices, skip_bad_images, begin))
    stored = iter(densities.finish([begun for begun, _ in found if begun is not None]))
    column = [None if begun is None else next(stored) for begun, _ in found]
    return {densities.column: column, "error": [error for _, error in found]}


def _check_batch(
    rows: dict[str, list], indices: list[int], image_column: str, num_channels: int, decoder_version: int
) -> dict[str, list]:
    decode = partial(decode_image, num_channels=num_channels)
    return {"error": [error for _, error in process_rows(rows[image_column], indices, True, decode)]}


def _pixels_batch(
    rows: dict[str, list], indices: list[int], image_column: str, num_channels: int, decoder_version: int
) -> dict[str, list]:
    def sample(source: dict[str, Any], name: str) -> tuple[list[float], bool] | None:
        pixels = read_deep_pixels(source, name, num_channels)
        if pixels is None:
            return None
        return sample_pixels(pixels, PIXELS_OF_AN_IMAGE).ravel().tolist(), fits_in_8_bits(pixels)

    found = process_rows(rows[image_column], indices, True, sample)
    sampled = [result for result, _ in found if result is not None]
    return {"pixels": [pixels for pixels, _ in sampled], "fits": [fits for _, fits in sampled]}
