"""Images under analysis, decoded on demand."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import datasets
import numpy as np

from ..data.attach_density import choose_pixel_range, prepare_images
from ..data.decoding import decode_image
from ..data.labels import check_labels
from ..data.loading import choose_splits, encode_labels, find_image_column, find_label_column, keep_encoded, load_images
from ..data.loading import subsample as draw
from ..errors import InputError
from ..models.pixel_range import PixelRange
from .encoders import AnalysisRefused
from .options import AnalysisArguments

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class AnalysisImages:
    """Images in a fixed order, and their classes where there are any.

    Args:
        rows: with the images still encoded.
        column: of the images.
        classes: of each image, or None.
        split: that they were drawn from.
        pixel_range: by which images of more than 8 bits are scaled; None for each image's own.
        num_channels: that the models take.
    """

    rows: datasets.Dataset
    column: str
    classes: list[str] | None
    split: str
    pixel_range: PixelRange | None = None
    num_channels: int = 3

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> np.ndarray:
        """Return an image `(height, width, num_channels)`, uint8, or float32 in [0, 255] with a pixel range."""
        return decode_image(self.rows[index][self.column], f"image {index}", self.pixel_range, self.num_channels)

    def take(self, indices: Sequence[int]) -> list[np.ndarray]:
        """Return several images."""
        return [self[index] for index in indices]

    def batches(self, batch_size: int) -> Iterator[tuple[int, list[np.ndarray]]]:
        """Yield the number of the first image, and the images, of each batch."""
        for start in range(0, len(self), batch_size):
            yield start, self.take(range(start, min(start + batch_size, len(self))))

    def of_classes(self, counts: Sequence[int]) -> list[int]:
        """Return numbers of images of several classes; classes and images in the order in which they appear.

        Args:
            counts: how many images of each class; a class that has fewer is passed over.

        Raises:
            AnalysisRefused: if the images have no classes, or too few of them have enough images.
        """
        if self.classes is None:
            raise AnalysisRefused("the images have no classes; name their column with --label_column")
        members: dict[str, list[int]] = {}
        for index, name in enumerate(self.classes):
            members.setdefault(name, []).append(index)
        chosen: list[int] = []
        left = list(members.values())
        for count in counts:
            group = next((group for group in left if len(group) >= count), None)
            if group is None:
                raise AnalysisRefused(
                    f"{len(counts)} classes of {'/'.join(map(str, counts))} images are needed, and these "
                    f"{len(self)} images do not have them; give more --num_images"
                )
            left.remove(group)
            chosen += group[:count]
        return chosen

    def name_of(self, index: int) -> str:
        """Return the class of an image, or its number where there are no classes."""
        return f"image {index}" if self.classes is None else self.classes[index]


def load_analysis_images(
    args: AnalysisArguments, saved_ranges: Sequence[PixelRange] = (), num_channels: int = 3
) -> tuple[AnalysisImages, list[str]]:
    """Draw the images that the command line asks for.

    Args:
        saved_ranges: by which the models' images of more than 8 bits were scaled; all models see the images by the
            first.
        num_channels: that the models take.

    Returns:
        The images, and a line for each that was left out because it cannot be decoded.

    Raises:
        InputError: if they cannot be loaded, or a named split or column is absent.
    """
    loaded = load_images(args.dataset_name, args.dataset_config_name, args.image_column, args.trust_data_files)
    first = args.split or ("train" if "train" in loaded else next(iter(loaded)))
    train, validation = choose_splits(loaded, first)
    rows = train if args.split or validation is None else validation
    column = find_image_column(rows, args.image_column)
    classes = _find_classes(rows, args.label_column)
    if classes is not None and not _hides_labels(rows, classes):
        rows = encode_labels(rows, classes)
    rows = keep_encoded(draw(rows, args.num_images, args.seed), column)
    pixel_range = choose_pixel_range(rows, column, saved_ranges[0] if saved_ranges else None, None, num_channels)
    if len(set(saved_ranges)) > 1:
        ranges = " and ".join(map(str, saved_ranges))
        logger.warning("The models scaled images of more than 8 bits by %s; here all of them see the first", ranges)
    skip = args.bad_images == "skip"
    rows, bad = prepare_images(rows, column, skip_bad_images=skip, num_channels=num_channels)
    names = None
    if classes is not None and isinstance(rows.features[classes], datasets.ClassLabel):
        feature = rows.features[classes]
        names = ["unknown" if label in (None, -1) else feature.int2str(label) for label in rows[classes]]
    rows, split = rows.select_columns([column]), str(rows.split or first)
    return AnalysisImages(rows, column, names, split, pixel_range, num_channels), bad


def _find_classes(rows: datasets.Dataset, column: str | None) -> str | None:
    try:
        found = find_label_column(rows, column)
        if not _hides_labels(rows, found):
            check_labels(rows, found)
        return found
    except InputError:
        if column is not None:
            raise
        return None


def _hides_labels(rows: datasets.Dataset, column: str) -> bool:
    """Return whether some images have no code (None or -1) in a `ClassLabel` column."""
    return isinstance(rows.features[column], datasets.ClassLabel) and not {None, -1}.isdisjoint(rows[column])
