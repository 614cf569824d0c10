"""SuperPoint's keypoints (arXiv:1712.07629), by transformers."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from ...errors import InputError
from .strength import gray
from .weights import as_batch, check_threshold, device, model_digest, model_folder, model_settings

_KEYPOINT_SIZE = 8.0  # pixels; drawing does not read it


@dataclass(frozen=True)
class SuperPoint:
    """Callable from images of one size to their keypoints; no descriptors are computed.

    Args:
        model: directory or Hub id of a `SuperPointForKeypointDetection`.
        threshold: least score of a keypoint, in [0, 1); the model's where None.

    Raises:
        InputError: for other parameters, or where there is no such model.
    """

    model: str = "magic-leap-community/superpoint"
    threshold: float | None = None

    def __post_init__(self):
        if self.threshold is not None:
            check_threshold("superpoint", self.threshold)
        kind = model_settings(self._folder).get("model_type")
        if kind != "superpoint":
            raise InputError(f"model of superpoint is {self.model!r}, of the type {kind!r}; give one of superpoint")

    @cached_property
    def _folder(self) -> Path:
        return model_folder("superpoint", self.model)

    @cached_property
    def digest(self) -> str:
        """Of the weights."""
        return model_digest(self._folder)

    @cached_property
    def _network(self) -> Any:
        from transformers import SuperPointForKeypointDetection

        given = {} if self.threshold is None else {"keypoint_threshold": self.threshold}
        network = SuperPointForKeypointDetection.from_pretrained(
            self._folder, use_safetensors=True, dtype=torch.float32, **given
        )
        return network.eval().to(device())

    @torch.inference_mode()
    def __call__(self, images: Sequence[np.ndarray]) -> list[list[cv2.KeyPoint]]:
        """Return the keypoints of each image `(height, width, 3)`, uint8."""
        features = self._network.encoder(as_batch([gray(image) for image in images]))[0]
        # The decoder reads the first image of a batch alone.
        found = [self._network.keypoint_decoder(feature[None])[0].tolist() for feature in features]
        return [[cv2.KeyPoint(x, y, _KEYPOINT_SIZE) for x, y in points] for points in found]
