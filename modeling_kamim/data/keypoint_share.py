"""Images in which no keypoint is found: their share of a data set, and a warning where it is large.

All weights of such an image are 1. A data set of them trains as SimMIM does, whatever the settings say.
"""

import logging
from collections.abc import Iterable

import datasets

from .decoding import BadImageError
from .fingerprint import sampled
from .samples import SampleDataset
from .stored_density import DensityFormat

logger = logging.getLogger(__name__)
TOLERATED = 0.05  # share of the images
NUM_STORED, NUM_DETECTED = 2000, 256  # images that are looked at


def warn_without_keypoints(has_keypoints: Iterable[bool], of_what: str) -> None:
    """Log a warning if too many images have no keypoints.

    Args:
        has_keypoints: of each image that was looked at.
        of_what: for example "training images".
    """
    found = list(has_keypoints)
    if found and found.count(False) > TOLERATED * len(found):
        logger.warning("%s", describe_share(found.count(False), len(found), of_what))


def describe_share(number: int, total: int, of_what: str) -> str:
    """How many of the images that were looked at have no keypoints, what follows and what to do, in a line."""
    return (
        f"{number / total:.0%} of {total:,} {of_what} have no keypoints: all of their weights are 1, as in SimMIM. "
        "Look at these images, at the detector (--keypoint_detector; FAST finds more with --keypoint_detector_args "
        "'{\"threshold\": 5}') and, for images of more than 8 bits, at the range that they are scaled by"
    )


def check_samples(samples: SampleDataset) -> None:
    """Warn if too many of a run's training images have no keypoints, by a sample of them.

    Args:
        samples: whose transform is a `MaskedImageTransform` with a detector or stored densities.
    """
    densities = samples.transform.densities  # type: ignore[attr-defined]
    found = _stored(samples.rows, densities.format) if densities else _detected(samples)
    warn_without_keypoints(found, "training images that were looked at")


def _stored(rows: datasets.Dataset, form: DensityFormat) -> list[bool]:
    chosen = rows.select(sampled(len(rows), NUM_STORED))[form.column]
    return [has_keypoints(stored, form) for stored in chosen]


def has_keypoints(stored: bytes, form: DensityFormat) -> bool:
    """Whether a stored density has any; True for what is no such density, which whoever reads it tells."""
    try:
        return bool(form.decode(stored).any())
    except ValueError:
        return True


def _detected(samples: SampleDataset) -> list[bool]:
    found = []
    for index in sampled(len(samples), NUM_DETECTED):
        try:
            found.append(bool(samples[index]["keypoint_density"].any()))
        except BadImageError:  # stops the training, or was left out before it
            continue
    return found
