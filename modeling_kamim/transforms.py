"""The `datasets.map` step that attaches keypoint densities, and the samples that training sees.

Crop, flips, mask and weights of a sample depend on its random generator alone, and image and density always share
one `View`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import datasets
import numpy as np
import torch

from .errors import InputError
from .images import DECODER_VERSION, BadImageError, decode_image
from .keypoints import KEYPOINTS_VERSION, KeypointDetector
from .masking import block_mask
from .weighting import CellWeighting, cell_density, resample_density

DENSITY_COLUMN = "keypoint_density"
DENSITY_GRID = 64


@dataclass(frozen=True)
class View:
    """A crop of an image and its flips.

    Args:
        top, left, height, width: the crop in pixels of the image.
        image_height, image_width: size of the image in pixels.
        horizontal_flip, vertical_flip: applied after the crop.
    """

    top: int
    left: int
    height: int
    width: int
    image_height: int
    image_width: int
    horizontal_flip: bool = False
    vertical_flip: bool = False

    @classmethod
    def whole(cls, height: int, width: int) -> "View":
        """The view that shows all of an image."""
        return cls(0, 0, height, width, height, width)

    def of_image(self, image: np.ndarray, size: int) -> np.ndarray:
        """`(size, size, 3)` pixels of the view, resized bilinearly without antialias as in the released code."""
        crop = image[self.top : self.top + self.height, self.left : self.left + self.width]
        return self._flip(cv2.resize(crop, (size, size), interpolation=cv2.INTER_LINEAR))

    def of_density(self, density: np.ndarray, num_cells: int) -> np.ndarray:
        """`(num_cells, num_cells)` density of the view from a density grid of the whole image."""
        bottom, right = self.top + self.height, self.left + self.width
        box = (
            self.top / self.image_height,
            self.left / self.image_width,
            bottom / self.image_height,
            right / self.image_width,
        )
        return self._flip(resample_density(density, box, num_cells))

    def _flip(self, array: np.ndarray) -> np.ndarray:
        if self.horizontal_flip:
            array = array[:, ::-1]
        if self.vertical_flip:
            array = array[::-1]
        return np.ascontiguousarray(array)


@dataclass(frozen=True)
class RandomView:
    """Random resized crop and flips (section 4.1.1); the crop follows torchvision's `RandomResizedCrop`.

    Args:
        min_scale: least area of the crop as a share of the image, in (0, 1]; at most all of it.
        ratio: range of the crop's width / height.
        horizontal_flip, vertical_flip: probabilities.
    """

    min_scale: float = 0.67
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    horizontal_flip: float = 0.5
    vertical_flip: float = 0.5

    def __post_init__(self):
        if not 0 < self.min_scale <= 1:
            raise InputError(f"crop_min_scale is {self.min_scale}; it must be in (0, 1]")
        for name in ("horizontal_flip", "vertical_flip"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} is {getattr(self, name)}; it is a probability, in [0, 1]")

    def __call__(self, height: int, width: int, rng: np.random.Generator) -> View:
        """Draw a view of an image of `height` x `width` pixels."""
        box = self._draw_box(height, width, rng)
        flips = rng.random(2) < (self.horizontal_flip, self.vertical_flip)
        return View(*box, height, width, bool(flips[0]), bool(flips[1]))

    def _draw_box(self, height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
        for _ in range(10):
            area = height * width * rng.uniform(self.min_scale, 1.0)
            ratio = np.exp(rng.uniform(*np.log(self.ratio)))
            crop_width, crop_height = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
            if 0 < crop_width <= width and 0 < crop_height <= height:
                top = int(rng.integers(height - crop_height + 1))
                left = int(rng.integers(width - crop_width + 1))
                return top, left, crop_height, crop_width
        crop_width = min(width, round(height * self.ratio[1]))
        crop_height = min(height, round(width / self.ratio[0]))
        return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


@dataclass(frozen=True)
class MaskedImageTransform:
    """From a row of a data set to a sample of masked image modelling.

    Args:
        image_column: column of the image, as `datasets.Image(decode=False)`.
        image_size: side of the result in pixels.
        patch_size: side of a token of the model in pixels.
        mask_patch_size, mask_ratio: of the block mask.
        weight_patch_size: side of a weight cell (w_ps) in pixels.
        random_view: crop and flips; None shows the whole image.
        weighting: None for SimMIM, which has no weights.
        detector: run on the finished crop ("online"); None reads the attached density ("map").
    """

    image_column: str
    image_size: int
    patch_size: int
    mask_patch_size: int
    mask_ratio: float
    weight_patch_size: int
    random_view: RandomView | None
    weighting: CellWeighting | None
    detector: KeypointDetector | None

    def __call__(self, row: dict[str, Any], rng: np.random.Generator) -> dict[str, torch.Tensor]:
        """Draw one sample.

        Returns:
            pixel_values `(3, image_size, image_size)` uint8; bool_masked_pos `(num_patches,)` bool; and with a
            weighting keypoint_weights `(image_size / weight_patch_size,) * 2` float32.
        """
        image = decode_image(row[self.image_column])
        height, width = image.shape[:2]
        view = self.random_view(height, width, rng) if self.random_view else View.whole(height, width)
        pixels = view.of_image(image, self.image_size)
        mask = block_mask(self.image_size, self.mask_patch_size, self.patch_size, self.mask_ratio, rng)
        sample = {
            "pixel_values": torch.from_numpy(pixels).permute(2, 0, 1).contiguous(),
            "bool_masked_pos": torch.from_numpy(mask),
        }
        if self.weighting is not None:
            if self.detector is not None:
                density = cell_density(self.detector(pixels), self.weight_patch_size)
            else:
                grid = decode_density(row[DENSITY_COLUMN])
                density = view.of_density(grid, self.image_size // self.weight_patch_size)
            sample["keypoint_weights"] = torch.from_numpy(self.weighting(density, rng))
        return sample


def density_grid(image: np.ndarray, detector: KeypointDetector, short_side: int) -> np.ndarray:
    """Keypoint density of a whole image, detected at about the scale of the crops.

    Args:
        image: `(height, width, 3)`, uint8.
        short_side: pixels of the short side at detection.

    Returns:
        `(64, 64)`, uint8: 255 times the density in each of 64 x 64 equal parts of the image.
    """
    height, width = image.shape[:2]
    scale = short_side / min(height, width)
    long_side = max(height, width)
    if long_side * scale > 8 * short_side:  # a strip: keep the detector's work bounded
        scale = 8 * short_side / long_side
    size = (max(DENSITY_GRID, round(width * scale)), max(DENSITY_GRID, round(height * scale)))
    keypoints = detector(cv2.resize(image, size, interpolation=cv2.INTER_LINEAR))
    return cv2.resize(keypoints * np.uint8(255), (DENSITY_GRID, DENSITY_GRID), interpolation=cv2.INTER_AREA)


def detection_side(image_size: int, min_scale: float) -> int:
    """Short side at which an average crop, of `min_scale` to all of the area, has `image_size` pixels a side."""
    return round(image_size / ((min_scale + 1) / 2) ** 0.5)


def decode_density(png: dict[str, Any]) -> np.ndarray:
    """`(64, 64)` float32 density in [0, 1] from the attached column."""
    grid = cv2.imdecode(np.frombuffer(png["bytes"], np.uint8), cv2.IMREAD_GRAYSCALE)
    assert grid is not None, "a density that this package did not write"
    return grid.astype(np.float32) / np.float32(255)


def prepare_images(
    dataset: datasets.Dataset,
    image_column: str,
    image_size: int,
    detector: KeypointDetector | None = None,
    min_scale: float = 0.67,
    skip_bad_images: bool = False,
    num_proc: int | None = None,
) -> tuple[datasets.Dataset, list[str]]:
    """The cached steps before training: attach keypoint densities where there is a detector, leave out bad images.

    Returns:
        The data set, and a line for each image left out.

    Raises:
        InputError: if no image is left.
    """
    bad: list[str] = []
    if detector is not None:
        dataset, bad = attach_keypoint_density(
            dataset, detector, image_column, image_size, min_scale, skip_bad_images, num_proc
        )
    elif skip_bad_images:
        dataset, bad = drop_bad_images(dataset, find_bad_images(dataset, image_column, num_proc))
    if len(dataset) == 0:
        raise InputError(f"none of the {len(bad)} images can be decoded; the first: {bad[0]}")
    return dataset, bad


def attach_keypoint_density(
    dataset: datasets.Dataset,
    detector: KeypointDetector,
    image_column: str,
    image_size: int,
    min_scale: float = 0.67,
    skip_bad_images: bool = False,
    num_proc: int | None = None,
) -> tuple[datasets.Dataset, list[str]]:
    """Attach the column `keypoint_density` with `datasets.map`; `datasets` caches it by the arguments given here.

    Temperature, cell size, weighting and norm are applied later, so they can change on one cache. The grid is a gray
    PNG of 64 x 64: small, lossless, and seen as a picture in data set viewers.

    Args:
        dataset: rows with an `image_column` of `datasets.Image(decode=False)`.
        image_size, min_scale: of the crops, see `detection_side`.
        skip_bad_images: leave out images that cannot be decoded instead of raising.
        num_proc: processes.

    Returns:
        The data set with its new column, without the bad images; and a line for each bad image.

    Raises:
        BadImageError: for the first bad image, unless they are skipped.
    """
    short_side = detection_side(image_size, min_scale)
    settings = {"detector": detector, "short_side": short_side, "keypoints_version": KEYPOINTS_VERSION}
    features = datasets.Features({DENSITY_COLUMN: datasets.Image(decode=False), "error": datasets.Value("string")})
    found = _map_images(
        dataset, _density_batch, image_column, settings, features, skip_bad_images, num_proc, "Detecting keypoints"
    )
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
    detector: KeypointDetector,
    short_side: int,
    keypoints_version: int,
    decoder_version: int,
) -> dict[str, list]:
    cv2.setNumThreads(1)
    columns: dict[str, list] = {DENSITY_COLUMN: [], "error": []}
    for image, error in _decode_rows(rows, indices, image_column, skip_bad_images):
        grid = np.zeros((DENSITY_GRID, DENSITY_GRID), np.uint8)
        if image is not None:
            grid = density_grid(image, detector, short_side)
        columns[DENSITY_COLUMN].append({"bytes": cv2.imencode(".png", grid)[1].tobytes(), "path": None})
        columns["error"].append(error)
    return columns


def _check_batch(
    rows: dict[str, list], indices: list[int], image_column: str, skip_bad_images: bool, decoder_version: int
) -> dict[str, list]:
    return {"error": [error for _, error in _decode_rows(rows, indices, image_column, skip_bad_images)]}


def _decode_rows(rows: dict[str, list], indices: list[int], image_column: str, skip_bad_images: bool):
    for source, index in zip(rows[image_column], indices, strict=True):
        try:
            yield decode_image(source, name=f"the image in row {index}"), None
        except BadImageError as error:
            if not skip_bad_images:
                raise
            yield None, str(error).split(";")[0]
