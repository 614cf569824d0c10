"""Density sources: from an image to a map in [0, 1], whose means over the cells are the density Omega of Eq. 2.

To add one, write a file beside this one and a row of `SOURCES`; docs/architecture.md shows it on `variance`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from .entropy import Entropy
from .laplacian import Laplacian
from .opencv import opencv_detector
from .saliency import Attention
from .sobel import Sobel
from .superpoint import SuperPoint
from .variance import Variance
from .xfeat import XFeat


@dataclass(frozen=True)
class Source:
    """A row of `SOURCES`.

    Args:
        words: the name of the detector, or what the map shows, for help and cards.
        make: from its parameters to a callable that takes an image `(height, width, 3)`, uint8. A learned one takes a
            list of images of one size, gives a list, and has a `digest` of its weights.
        gives: "keypoints" (`cv2.KeyPoint`), which are drawn with a footprint, or a "map" `(height, width)`, float32 in
            [0, 1].
        weights: the parameter that says where its weights are; "" for a source that is not learned.
        license: what its weights may be used for, where that is restricted.
    """

    words: str
    make: Callable[..., Callable[[Any], Any]]
    gives: Literal["keypoints", "map"]
    weights: str = ""
    license: str = ""

    @property
    def found(self) -> str:
        """What it finds, as in "weights of FAST keypoints"."""
        return f"{self.words} keypoints" if self.gives == "keypoints" else self.words


PAPER_DETECTORS = ("fast", "sift", "orb")  # those of the paper, which are compared with each other
SOURCES: dict[str, Source] = {
    "fast": Source("FAST", opencv_detector("FastFeatureDetector"), "keypoints"),
    "sift": Source("SIFT", opencv_detector("SIFT"), "keypoints"),
    "orb": Source("ORB", opencv_detector("ORB"), "keypoints"),
    "harris": Source("Harris", opencv_detector("GFTTDetector", useHarrisDetector=True), "keypoints"),
    "gftt": Source("Shi-Tomasi", opencv_detector("GFTTDetector", useHarrisDetector=False), "keypoints"),
    "agast": Source("AGAST", opencv_detector("AgastFeatureDetector"), "keypoints"),
    "sobel": Source("gradient magnitude", Sobel, "map"),
    "laplacian": Source("Laplacian magnitude", Laplacian, "map"),
    "variance": Source("local variance", Variance, "map"),
    "entropy": Source("local entropy", Entropy, "map"),
    "superpoint": Source(
        "SuperPoint", SuperPoint, "keypoints", "model", "academic or non-profit noncommercial research use only"
    ),
    "xfeat": Source("XFeat", XFeat, "keypoints", "weights"),
    "attention": Source("attention of an encoder", Attention, "map", "model"),
}


def sources_in_words() -> str:
    """Return names, words and licenses of all sources, for --help."""
    rows = SOURCES.items()
    return "; ".join(f"{name}: {row.found}{f' ({row.license})' if row.license else ''}" for name, row in rows)
