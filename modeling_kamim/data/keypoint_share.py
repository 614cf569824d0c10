"""Images in which no keypoint is found: their share of a data set, and a warning where it is large.

All weights of such an image are 1. On a data set of them, KAMIM trains as SimMIM does.
"""

import logging
from collections.abc import Iterable

from .decoding import BadImageError
from .fingerprint import sampled
from .samples import MaskedImageTransform, SampleDataset
from .stored_density import DensityFormat

logger = logging.getLogger(__name__)
TOLERATED = 0.05  # share of the images
NUM_STORED, NUM_DETECTED = 2000, 256  # images of the sample, with stored and with detected densities


def warn_without_keypoints(has_keypoints: Iterable[bool], of_what: str) -> None:
    """Log a warning if too many images have no keypoints.

    Args:
        has_keypoints: whether each image of a sample has any.
        of_what: for example "training images".
    """
    found = list(has_keypoints)
    if found and found.count(False) > TOLERATED * len(found):
        logger.warning("%s", describe_share(found.count(False), len(found), of_what))


def describe_share(number: int, total: int, of_what: str) -> str:
    """Return one line: how many images of a sample have no keypoints, what follows, and what to do."""
    return (
        f"{number / total:.0%} of {total:,} {of_what} have no keypoints: all of their weights are 1, as in SimMIM. "
        "Check these images, the detector (--keypoint_detector; FAST finds more with --keypoint_detector_args "
        "'{\"threshold\": 5}') and, for images of more than 8 bits, the range that scales them"
    )


def check_samples(samples: SampleDataset) -> None:
    """Warn if too many of a sample of a run's training images have no keypoints.

    Args:
        samples: their transform is a `MaskedImageTransform` ; one without detector and stored densities is passed over.
    """
    transform: MaskedImageTransform = samples.transform  # type: ignore[assignment]
    densities = transform.densities
    if transform.detector is None and densities is None:  # detected later, on the device
        return
    if densities:
        chosen = samples.rows.select(sampled(len(samples), NUM_STORED))[densities.column]
        found = [has_keypoints(stored, densities.format) for stored in chosen]
    else:
        found = _detected(samples)
    warn_without_keypoints(found, "training images that were looked at")


def has_keypoints(stored: bytes, form: DensityFormat) -> bool:
    """Return whether a stored density has keypoints; True for a damaged one, an error elsewhere."""
    try:
        return bool(form.decode(stored).any())
    except ValueError:
        return True


def _detected(samples: SampleDataset) -> list[bool]:
    found = []
    for index in sampled(len(samples), NUM_DETECTED):
        try:
            found.append(bool(samples[index]["keypoint_density"].any()))
        except BadImageError:  # it stops the training, or was left out before
            continue
    return found
