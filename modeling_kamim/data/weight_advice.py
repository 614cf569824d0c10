"""Keypoint weights of a data set before training: how much they differ, and which settings to take.

The paper's settings fit photographs. Elsewhere the weights may be flat, so that KAMIM trains nearly as SimMIM does,
saturated, so that most cells have the largest weight, or concentrated, so that a few cells have nearly all of it.
"""

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from random import Random
from typing import Any

import cv2
import datasets
import numpy as np
import torch

from ..limits import ImageSize, height_and_width, size_in_words
from ..objective.density import grid_density
from ..objective.keypoints import KeypointDetector, keypoint_image
from ..objective.sources.table import PAPER_DETECTORS
from ..objective.weighting import keypoint_weights
from .attach_density import map_images, process_rows
from .decoding import decode_image
from .fingerprint import sampled
from .samples import MaskedImageTransform

NUM_IMAGES = 128  # of the sample
FLAT = 0.95  # effective cells from which on the weights are flat, as a share
CONCENTRATED = 0.1  # effective cells up to which they are concentrated
SATURATED = 0.5  # share of the cells at the top from which on they are saturated
_TOP = 0.9  # of the largest weight of an image
_TEMPERATURES = (0.1, 0.25, 0.5, 1.0)  # of table 2 of the paper
_THRESHOLDS = (5, 20, 40)  # of FAST, whose default is 10


@dataclass(frozen=True)
class WeightSettings:
    """What decides the weights of an image (Eq. 2 of arXiv:2407.13873)."""

    detector: KeypointDetector
    weight_patch_size: int
    temperature: float

    @property
    def options(self) -> str:
        """The options of `kamim pretrain` that give these settings."""
        given = f"--keypoint_detector {self.detector.name}"
        if self.detector.parameters:
            given += f" --keypoint_detector_args {shlex.quote(json.dumps(dict(self.detector.parameters)))}"
        return f"{given} --weight_patch_size {self.weight_patch_size} --temperature {self.temperature:g}"


@dataclass(frozen=True)
class WeightStatistics:
    """Weights of a sample of images.

    Args:
        without: share of the images without keypoints.
        cells_with: share of the cells with a keypoint.
        mean, percentile_95: of the weights of all images; at least 1.
        effective: (sum W)^2 / (n sum W^2) of the n cells, of the median image; 1 where all are equal, 1 / n where one
            has all.
        at_top: share of the cells with at least 0.9 of the largest weight, of the median image.
    """

    without: float
    cells_with: float
    mean: float
    percentile_95: float
    effective: float
    at_top: float

    @classmethod
    def of(cls, density: np.ndarray, temperature: float) -> "WeightStatistics":
        """Return the statistics of `(images, rows, columns)` densities in [0, 1]."""
        weights = keypoint_weights(torch.from_numpy(density), temperature).flatten(1).double().numpy()
        effective = weights.sum(1) ** 2 / (weights**2).sum(1) / weights.shape[1]
        at_top = (weights >= _TOP * weights.max(1, keepdims=True)).mean(1)
        has_any = density.any(axis=(1, 2))
        of_all = (1 - has_any.mean(), (density > 0).mean(), weights.mean(), np.percentile(weights, 95))
        return cls(*map(float, (*of_all, np.median(effective), np.median(at_top))))

    @property
    def fault(self) -> str:
        """What is wrong with the weights, for a sentence; empty where nothing is."""
        if self.without > 0.5:
            return "most images have no keypoints"
        if self.at_top > SATURATED:
            return f"the weights are saturated: {self.at_top:.0%} of the cells of an image have its largest weight"
        if self.effective > FLAT:
            return "the weights are flat: nearly equal in all cells, as in SimMIM"
        if self.effective < CONCENTRATED:
            return f"the weights are concentrated: as if {self.effective:.0%} of the cells had all of the loss"
        return ""


@dataclass(frozen=True)
class WeightAdvice:
    """Weights by detector, and the settings to take.

    Args:
        given: settings that were asked for, or the paper's.
        num_images, image_size: of the sample; pixels.
        measured: statistics by detector, in cells of the given size at the given T; first of the given detector.
        advised: the given settings, or the nearest to them whose weights have no fault; None if there are none.
    """

    given: WeightSettings
    num_images: int
    image_size: ImageSize
    measured: Mapping[str, WeightStatistics]
    advised: WeightSettings | None

    @property
    def fault(self) -> str:
        """What is wrong with the weights of the given settings; empty where nothing is."""
        return next(iter(self.measured.values())).fault

    def report(self) -> str:
        """Return a table and a line of advice."""
        lines = [
            f"Keypoint weights of {self.num_images:,} images in random crops of {size_in_words(self.image_size)} px, "
            f"cells of {self.given.weight_patch_size} px, T {self.given.temperature:g}:",
            f"  {'detector':20}{'no keypoints':>13}{'cells with':>12}{'W mean':>9}{'W 95%':>9}{'effective':>11}"
            f"{'at top':>9}",
        ]
        lines += [
            f"  {name:20}{found.without:13.0%}{found.cells_with:12.0%}{found.mean:9.2f}{found.percentile_95:9.1f}"
            f"{found.effective:11.0%}{found.at_top:9.0%}"
            for name, found in self.measured.items()
        ]
        if not self.fault:
            return "\n".join([*lines, f"Advice: these settings are fine: {self.given.options}"])
        means = f"take {self.advised.options}" if self.advised else "nothing that was tried helps: --weighting none"
        return "\n".join([*lines, f"Advice: {self.fault} (with {self.given.options}); {means}"])

    def facts(self) -> dict[str, Any]:
        """Return everything for a JSON file."""
        return {
            "num_images": self.num_images,
            "image_size": self.image_size,
            "given": self.given.options,
            "fault": self.fault or None,
            "advised": self.advised and self.advised.options,
            "measured": {name: asdict(found) for name, found in self.measured.items()},
        }


def advise(
    rows: datasets.Dataset, given: WeightSettings, transform: MaskedImageTransform, num_proc: int | None = None
) -> WeightAdvice | None:
    """Measure the weights of at most 128 images with several detectors, and choose settings.

    Args:
        rows: training rows, with images as `datasets.Image(decode=False)`.
        given: settings to judge, and to stay close to.
        transform: of the training, for its crops.

    Returns:
        The advice; None if no image of the sample can be decoded.
    """
    detectors, column = _detectors(given.detector), transform.image_column
    grid = [side // given.weight_patch_size for side in height_and_width(transform.image_size)]
    settings = {"detectors": detectors, "transform": transform, "grid": grid}
    columns = {name: datasets.List(datasets.Value("float32")) for name in detectors}
    num_proc = given.detector.processes(num_proc)
    chosen, once = rows.select(sampled(len(rows), NUM_IMAGES)), {"load_from_cache_file": False, "keep_in_memory": True}
    mapped = map_images(chosen, _densities_batch, column, columns, settings, num_proc, "Weighing cells", **once)
    found = [row for row in mapped if all(cells is not None for cells in row.values())]
    if not found:
        return None
    densities = {name: np.array([row[name] for row in found], np.float32).reshape(-1, *grid) for name in columns}
    measured = {name: WeightStatistics.of(density, given.temperature) for name, density in densities.items()}
    return WeightAdvice(given, len(found), transform.image_size, measured, _choose(given, detectors, densities))


def _densities_batch(
    rows: dict[str, list],
    indices: list[int],
    image_column: str,
    detectors: Mapping[str, KeypointDetector],
    transform: MaskedImageTransform,
    grid: Sequence[int],
) -> dict[str, list]:
    cv2.setNumThreads(1)

    def detect(source: dict[str, Any], name: str) -> dict[str, np.ndarray]:
        image = decode_image(source, name, transform.pixel_range, transform.num_channels)
        view = transform.draw_view(image, Random(name))
        shown = keypoint_image(view.of_image(image, transform.detection_size), transform.keypoint_channel)
        return {key: grid_density(detector(shown), *grid) for key, detector in detectors.items()}

    found = [densities or {} for densities, _ in process_rows(rows[image_column], indices, True, detect)]
    return {name: [densities[name].ravel() if densities else None for densities in found] for name in detectors}


def _detectors(given: KeypointDetector) -> dict[str, KeypointDetector]:
    """The given detector, FAST with other thresholds, and the other detectors, by their names for the table."""
    fast = [replace(given, name="fast", parameters={"threshold": threshold}) for threshold in _THRESHOLDS]
    others = [replace(given, name=name, parameters={}) for name in PAPER_DETECTORS]
    return {_name(detector): detector for detector in (given, others[0], *fast, *others[1:])}


def _name(detector: KeypointDetector) -> str:
    return ", ".join([detector.name, *(f"{key} {value}" for key, value in detector.parameters.items())])


def _choose(
    given: WeightSettings, detectors: Mapping[str, KeypointDetector], densities: Mapping[str, np.ndarray]
) -> WeightSettings | None:
    """Return the first of the settings without a fault: other temperatures come first, then other detectors."""
    near = sorted({given.temperature, *_TEMPERATURES}, key=lambda t: abs(math.log(t / given.temperature)))
    own = _name(given.detector)
    tried = [(own, temperature) for temperature in near]
    tried += [(name, temperature) for temperature in near for name in detectors if name != own]
    for name, temperature in tried:
        if not WeightStatistics.of(densities[name], temperature).fault:
            return replace(given, detector=detectors[name], temperature=temperature)
    return None
