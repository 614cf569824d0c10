"""XFeat's keypoints (arXiv:2404.19174), by kornia."""

import importlib.util
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from ...errors import InputError, first_line
from .weights import as_batch, check_threshold, device, digest

_KEYPOINT_SIZE = 8.0  # pixels; drawing does not read it


@dataclass(frozen=True)
class XFeat:
    """Callable from images of one size to their keypoints.

    Args:
        weights: file of XFeat's weights, as its authors publish them (xfeat.pt), or the same as safetensors.
        threshold: least score of a keypoint, in [0, 1).
        max_keypoints: of an image, at least 1; the best.

    Raises:
        InputError: for other parameters, or where kornia or the file is missing.
    """

    weights: str = ""
    threshold: float = 0.05
    max_keypoints: int = 4096

    def __post_init__(self):
        check_threshold("xfeat", self.threshold)
        if not isinstance(self.max_keypoints, int) or isinstance(self.max_keypoints, bool) or self.max_keypoints < 1:
            raise InputError(f"max_keypoints of xfeat is {self.max_keypoints!r}; give a whole number from 1")
        if not isinstance(self.weights, str) or not self._file.is_file():
            raise InputError(
                f"weights of xfeat is {self.weights!r}, and no file; give --keypoint_detector_args "
                '\'{"weights": "path/to/xfeat.pt"}\''
            )
        if importlib.util.find_spec("kornia") is None:
            raise InputError("keypoint_detector xfeat needs kornia; run: pip install 'modeling-kamim[learned]'")

    @property
    def _file(self) -> Path:
        return Path(self.weights).expanduser()

    @cached_property
    def digest(self) -> str:
        """Of the weights."""
        return digest([self._file])

    @cached_property
    def _network(self) -> Any:
        from kornia.feature import XFeat as Network

        network = Network(self.max_keypoints, self.threshold)
        try:
            network.net.load_state_dict(self._state())
        except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
            raise InputError(
                f"weights of xfeat is {self.weights!r}, which is damaged or of another model: {first_line(error)}"
            ) from error
        return network.eval().to(device())

    def _state(self) -> dict[str, torch.Tensor]:
        if self._file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(self._file)
        return torch.load(self._file, map_location="cpu", weights_only=True)

    def __call__(self, images: Sequence[np.ndarray]) -> list[list[cv2.KeyPoint]]:
        """Return the keypoints of each image `(height, width, 3)`, uint8."""
        found = self._network.detectAndCompute(as_batch(images))
        return [[cv2.KeyPoint(x, y, _KEYPOINT_SIZE) for x, y in one["keypoints"].tolist()] for one in found]
