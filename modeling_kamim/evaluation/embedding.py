"""Embed images: the features of any encoder, of one layer or of each, as one would compute them by hand."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import datasets
import numpy as np
import torch
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import BaseImageProcessor

from ..data.augmentation import ClassificationTransform
from ..data.decoding import BadImageError
from ..data.loading import keep_encoded
from ..data.row_ids import RowIds
from ..data.samples import SampleDataset
from ..errors import InputError, first_line, is_out_of_memory
from ..limits import check_choice, check_range, check_ranges
from ..models.backbone import Backbone, input_channels, load_backbone
from ..models.pixel_range import PixelRange
from ..models.processor import image_processor, pixel_range_of
from ..training.batches import normalize
from ..training.hardware import find_hardware
from .features import check_finite_features

FINAL, ALL = "final", "all"  # layers: the output of the encoder, and every one
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class EncoderArguments:
    """Which encoder, and which of its features."""

    _argument_group_name = "embedding"

    model_name_or_path: str = field(
        metadata={"help": "Encoder: directory or Hub id of any checkpoint of transformers or timm that reads images."}
    )
    layer: str = field(
        default=FINAL,
        metadata={
            "help": f"Block whose output is read, from 1 (of Swin and convolutional networks: a stage); {FINAL}, the "
            f"output of the encoder, for which the last block stands, too; or {ALL}: a column for each block."
        },
    )
    pooling: Literal["mean", "cls", "patches"] = field(
        default="mean", metadata={"help": "Mean of the patch tokens, the CLS token, or every patch token."}
    )
    label_column: str | None = field(default=None, metadata={"help": "Column of the classes; found where not given."})
    batch_size: int = field(default=64, metadata={"help": "Images that the encoder sees at once, in each process."})
    precision: Literal["fp32", "auto", "bf16", "fp16"] = field(
        default="fp32",
        metadata={"help": "fp32 gives the numbers of AutoModel; auto is the fastest that the device computes in."},
    )
    bad_images: Literal["raise", "skip"] = field(
        default="raise",
        metadata={"help": "An image that cannot be decoded: stop and name it (raise), or leave it out (skip)."},
    )
    use_cpu: bool = field(default=False, metadata={"help": "Do not look for an accelerator."})

    def __post_init__(self):
        check_ranges(self)
        self.layer = str(check_layer(self.layer))

    def encoder(self) -> dict[str, Any]:
        """Return the arguments of `load_embedder` that these are, without the device."""
        return {
            "name_or_path": self.model_name_or_path,
            "layer": self.layer,
            "pooling": self.pooling,
            "precision": self.precision,
            "batch_size": self.batch_size,
        }


@dataclass(frozen=True)
class FeatureBatch:
    """Features of some images.

    Args:
        rows: numbers of the images in their data set, `(batch_size,)`.
        features: from the names of `Embedder.shapes` to `(batch_size, *shape)`, float32.
        bad_images: a line for each image of the batch that could not be decoded and is left out.
    """

    rows: list[int]
    features: dict[str, np.ndarray]
    bad_images: list[str]


@dataclass(frozen=True)
class Embeddings:
    """Features of a data set, in memory.

    Args:
        features: from "features" (of every layer: "block_1" ... "final") to `(num_images, dimension)`, or with the
            pooling "patches" to `(num_images, patches, dimension)`; float32.
        ids: of the images, see `RowIds`.
        labels: as the data set has them; None where it has none.
        bad_images: a line for each image that could not be decoded and is left out.
    """

    features: dict[str, np.ndarray]
    ids: list[str]
    labels: list[Any] | None
    bad_images: list[str]


def check_layer(layer: int | str | None) -> int | str:
    """Return a layer as `Embedder` takes it: the number of a block, "final" (also for None) or "all".

    Raises:
        InputError: for anything else.
    """
    if layer is None or layer in (FINAL, ALL):
        return layer or FINAL
    if not str(layer).isdecimal():
        raise InputError(f"layer is {layer!r}; give the number of a block, from 1, {FINAL} or {ALL}")
    check_range("layer", int(layer))
    return int(layer)


class Embedder:
    """Callable from the rows of a data set to the features of their images, batch by batch.

    Images are decoded, resized (bilinear, without antialias, as in evaluation) and normalized as the checkpoint's
    processor says. The features are those of `Backbone`.

    Args:
        backbone: of `load_backbone`; its pooling is "mean", "cls" or "patches".
        processor: of `image_processor`, for mean, std and pixel range.
        layer: "final", the output of the encoder; a block from 1 (of Swin and convolutional networks: a stage), of
            which the last stands for "final", too; or "all".
        device: where the encoder runs; it is moved there.
        precision: "fp32", or the faster "bf16" and "fp16".
        batch_size: images that the encoder sees at once.
        num_workers: processes that decode images meanwhile; 0 decodes between the batches.
        pixel_range: by which images of more than 8 bits are scaled, where the processor holds none.

    Raises:
        InputError: for another layer or precision, or if the encoder gives no such features.
    """

    def __init__(
        self,
        backbone: Backbone,
        processor: BaseImageProcessor,
        layer: int | str | None = FINAL,
        device: torch.device | str = "cpu",
        precision: str = "fp32",
        batch_size: int = 64,
        num_workers: int = 0,
        pixel_range: PixelRange | None = None,
    ):
        check_choice("precision", precision, PRECISIONS)
        check_range("batch_size", batch_size)
        self.device = torch.device(device)
        self.backbone = backbone.to(self.device).eval()
        self.processor, self.precision = processor, precision
        self.pixel_range = pixel_range_of(processor) or pixel_range
        self.batch_size, self.num_workers = batch_size, num_workers
        self.layer = check_layer(layer)
        self.num_channels = input_channels(backbone.model.config)
        self._place: int | None = -1
        self.shapes = self._choose_layers()

    def _choose_layers(self) -> dict[str, tuple[int, ...]]:
        """Choose the layers that are read; return the shape of an image's features by the name of their column."""
        if self.layer == FINAL:
            return {"features": self._shapes(-1)[0]}
        shapes = self._shapes(None)
        depth = len(shapes) - 1
        if self.layer == ALL:
            self._place = None
            return dict(zip([*(f"block_{number}" for number in range(1, depth + 1)), FINAL], shapes, strict=True))
        if int(self.layer) > depth:
            raise InputError(f"layer is {self.layer}; the encoder has blocks 1 to {depth}")
        self._place = int(self.layer) - 1 if int(self.layer) < depth else -1
        return {"features": shapes[self._place]}

    def _shapes(self, place: int | None) -> list[tuple[int, ...]]:
        """Return the shapes of an image's features, by running the encoder on a black one."""
        size, config = self.backbone.image_size, self.backbone.model.config
        height, width = (size, size) if isinstance(size, int) else size
        black = torch.zeros(1, self.num_channels, height, width)
        try:
            return [tuple(found.shape[1:]) for found in self._forward(black, place)]
        except InputError:
            raise
        except Exception as error:  # foreign architectures raise nearly anything
            if is_out_of_memory(error):
                raise
            reason = f"{config.model_type} gives no features of this kind ({first_line(error)})"
            raise InputError(f"{reason}; try --layer {FINAL} --pooling mean, or another encoder") from error

    def _forward(self, pixels: torch.Tensor, place: int | None) -> list[torch.Tensor]:
        dtype = PRECISIONS[self.precision]
        pixels = normalize(pixels.to(self.device, non_blocking=True), self.processor)
        with torch.inference_mode(), torch.autocast(self.device.type, dtype, enabled=dtype is not None):
            return [found.float() for found in self.backbone.layers(pixels, place)]

    def batches_of(self, start: int, stop: int) -> list[range]:
        """Return the rows from `start` to `stop` in batches."""
        return [range(first, min(first + self.batch_size, stop)) for first in range(start, stop, self.batch_size)]

    def __call__(
        self,
        rows: datasets.Dataset,
        image_column: str,
        batches: Sequence[range] | None = None,
        skip_bad_images: bool = False,
    ) -> Iterator[FeatureBatch]:
        """Yield the features of a data set, batch by batch, in order.

        Args:
            rows: with an `image_column` of `datasets.Image(decode=False)`.
            batches: numbers of rows that are embedded together; all rows where None.
            skip_bad_images: leave out images that cannot be decoded instead of raising.

        Raises:
            BadImageError: for the first bad image, unless they are skipped.
            InputError: if a feature is not finite.
        """
        batches = self.batches_of(0, len(rows)) if batches is None else batches
        size = self.backbone.image_size
        transform = ClassificationTransform(image_column, None, size, "none", self.pixel_range, self.num_channels)
        loader = DataLoader(
            _Samples(rows.select_columns([image_column]), transform, skip_bad_images),
            batch_sampler=batches,  # type: ignore[arg-type]
            num_workers=min(self.num_workers, len(batches)),
            collate_fn=_collate,
            pin_memory=self.device.type == "cuda",
        )
        for numbers, pixels, bad_images in loader:
            yield FeatureBatch(numbers, self._features(pixels, numbers), bad_images)

    def _features(self, pixels: torch.Tensor | None, numbers: Sequence[int]) -> dict[str, np.ndarray]:
        if pixels is None:
            return {name: np.empty((0, *shape), np.float32) for name, shape in self.shapes.items()}
        layers = self._forward(pixels, self._place)
        found = (check_finite_features(layer.cpu(), numbers).numpy() for layer in layers)
        return dict(zip(self.shapes, found, strict=True))


class _Samples(SampleDataset):
    """Pixels of the rows of a data set; of a bad image that is skipped, what is wrong."""

    def __init__(self, rows: datasets.Dataset, transform: ClassificationTransform, skip_bad_images: bool):
        super().__init__(rows, transform, seed=0)
        self.skip_bad_images = skip_bad_images

    def _sample(self, row: dict[str, Any], epoch: int, index: int) -> Any:
        try:
            return super()._sample(row, epoch, index)
        except BadImageError as error:
            if not self.skip_bad_images:
                raise
            return {"bad_image": error.finding}


def _collate(samples: list[dict[str, Any]]) -> tuple[list[int], torch.Tensor | None, list[str]]:
    """Return the numbers of the good images, their pixels (None where there are none), and a line for each bad one."""
    good = [sample for sample in samples if "bad_image" not in sample]
    pixels = torch.stack([sample["pixel_values"] for sample in good]) if good else None
    bad_images = [sample["bad_image"] for sample in samples if "bad_image" in sample]
    return [sample["sample_index"] for sample in good], pixels, bad_images


def load_embedder(
    name_or_path: str,
    layer: int | str | None = FINAL,
    pooling: str = "mean",
    device: torch.device | str | None = None,
    precision: str = "fp32",
    **settings: Any,
) -> Embedder:
    """Load an encoder of transformers or timm, with the normalization that is saved with it.

    Args:
        name_or_path: directory or Hub id.
        layer, precision: see `Embedder`; "auto" is the fastest precision that the device computes in.
        pooling: "mean" of the patch tokens, the "cls" token, or all "patches".
        device: the accelerator where None, or the CPU where there is none.
        settings: of `Embedder`.

    Raises:
        InputError: if it cannot be loaded, or gives no such features.
    """
    layer = check_layer(layer)
    hardware = find_hardware(use_cpu=device is not None and torch.device(device).type == "cpu")
    precision = hardware.choose(precision)
    backbone = load_backbone(name_or_path, "vit", "base", None, pooling)
    processor = image_processor(backbone.image_size, name_or_path, input_channels(backbone.model.config))
    return Embedder(backbone, processor, layer, hardware.device if device is None else device, precision, **settings)


def embed(
    embedder: Embedder,
    rows: datasets.Dataset,
    image_column: str = "image",
    label_column: str | None = None,
    ids: RowIds | None = None,
    skip_bad_images: bool = False,
) -> Embeddings:
    """Embed a data set in memory, with a progress bar.

    Args:
        rows: with images in their `image_column`, of any features that `datasets.Image` can take.
        label_column: column that is kept as `labels`.
        ids: names of the rows; `RowIds.choose` where None.

    Raises:
        BadImageError: for the first bad image, unless they are skipped.
        InputError: if the column holds no images, or a feature is not finite.
    """
    rows = keep_encoded(rows, image_column)
    ids = RowIds.choose("train", rows, image_column) if ids is None else ids
    found = []
    with tqdm(total=len(rows), unit=" images", desc="Embedding") as bar:
        for batch in embedder(rows, image_column, skip_bad_images=skip_bad_images):
            found.append(batch)
            bar.update(len(batch.rows) + len(batch.bad_images))
    numbers = [number for batch in found for number in batch.rows]
    names = ids(rows, 0, len(rows))
    labels = None if label_column is None else rows[label_column][:]
    empty = {name: np.empty((0, *shape), np.float32) for name, shape in embedder.shapes.items()}
    return Embeddings(
        {name: np.concatenate([none, *(batch.features[name] for batch in found)]) for name, none in empty.items()},
        [names[number] for number in numbers],
        None if labels is None else [labels[number] for number in numbers],
        [line for batch in found for line in batch.bad_images],
    )
