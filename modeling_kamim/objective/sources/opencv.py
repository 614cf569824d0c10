"""Keypoints of OpenCV's detectors."""

from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np

from ...errors import InputError

FindKeypoints = Callable[[np.ndarray], Sequence[cv2.KeyPoint]]


def opencv_detector(name: str, **fixed: Any) -> Callable[..., FindKeypoints]:
    """Return what makes the detector of a class of cv2 from its parameters.

    OpenCV gets the RGB array as it is, as in the released code. OpenCV expects BGR, so its own gray conversion swaps
    the weights of red and blue.

    Args:
        name: of the class, with a factory `create`.
        **fixed: parameters that the user does not choose.
    """

    def make(**parameters: Any) -> FindKeypoints:
        kind = getattr(cv2, name, None)
        if kind is None:
            raise InputError(
                f"OpenCV {cv2.__version__} has no {name}; take another --keypoint_detector, or an older OpenCV: "
                'pip install "opencv-python<5"'
            )
        detector = kind.create(**fixed, **parameters)
        return lambda image: detector.detect(image, None)

    return make
