"""Prepare a data set for fast training: smaller images with keypoint densities, in sharded Parquet.

`Preparation` is a pure function from rows to rows; `ShardJob` writes one file of them. An engine runs the jobs: in
processes of this machine, or through Ray Data on many machines.
"""

import multiprocessing
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePath
from typing import Any, Literal

import cv2
import datasets
import numpy as np
import pyarrow.parquet as pq
from tqdm import tqdm

from .. import files
from ..errors import InputError
from ..hub.cards import prepared_dataset_card
from ..limits import ImageSize, check_ranges, height_and_width, scaled_size, written_size
from ..models.pixel_range import PixelRange
from ..objective.keypoints import KEYPOINTS_VERSION, KeypointDetector, detector_parameters
from ..objective.sources.table import sources_in_words
from .arrays import NPY, encode_npy
from .attach_density import process_rows
from .decoding import DECODER_VERSION, decode_image, encode_png, is_deep_image, read_deep_pixels, read_image
from .fingerprint import sampled
from .keypoint_share import NUM_STORED, has_keypoints, warn_without_keypoints
from .shards import check_settings, finish_shards, keep_bad_images, keep_settings, rows_identity, run_on_ray, shards_of
from .stored_density import DensityDetector, DensityFormat, stored_columns


@dataclass
class PreparationArguments:
    """How the images are prepared."""

    _argument_group_name = "preparation"

    output_dir: str = field(metadata={"help": "Folder of the prepared data set."})
    image_size: list[int] = field(
        default=192,  # type: ignore[arg-type]
        metadata={
            "help": "Side of the model's input in pixels, or its height and width; 192. Images are shrunk to 4/3 of it."
        },
    )
    quality: int = field(default=90, metadata={"help": "JPEG quality of the shrunk images, 1 to 100."})
    keypoint_detector: list[str] = field(
        default_factory=lambda: ["fast"],
        metadata={
            "help": f"One or several sources of densities. {sources_in_words()}. none stores images alone, in half the "
            "room."
        },
    )
    keypoint_detector_args: str | None = field(
        default=None,
        metadata={"help": "Parameters of the one source that is given as JSON, for example '{\"threshold\": 20}'."},
    )
    keypoint_footprint: Literal["circle", "point"] = field(
        default="circle", metadata={"help": "Draw a keypoint as a ring of radius 3 px, or as one pixel."}
    )
    num_channels: int = field(
        default=3, metadata={"help": "Channels of the images: 3, also for gray that a model of RGB is to see, 1, ..."}
    )
    keypoint_image_size: int | None = field(
        default=None,
        metadata={
            "help": "Longer side of an average crop in pixels at which keypoints are detected; image_size where not "
            "given."
        },
    )
    keypoint_channel: int | None = field(
        default=None,
        metadata={"help": "Channel, from 0, in which keypoints are detected; RGB as it is, of others the mean."},
    )
    crop_min_scale: float = field(
        default=0.67, metadata={"help": "Least area of the training's crops, a share; sets the scale of detection."}
    )
    bad_images: Literal["raise", "skip"] = field(
        default="raise",
        metadata={"help": "An image that cannot be decoded: stop and name it (raise), or leave it out (skip)."},
    )
    rows_per_shard: int = field(default=4096, metadata={"help": "Images in a Parquet file."})
    engine: Literal["local", "ray"] = field(
        default="local",
        metadata={"help": "Processes of this machine, or Ray Data on the cluster that RAY_ADDRESS names."},
    )
    push_to_hub: bool = field(default=False, metadata={"help": "Publish the prepared data set as --repo."})
    repo: str | None = field(default=None, metadata={"help": "Repository on the Hub: user/name, or name for your own."})

    def __post_init__(self):
        files.check_output_dir(self.output_dir)
        if self.push_to_hub and self.repo is None:
            raise InputError("--push_to_hub needs --repo user/name")
        self.image_size = written_size(self.image_size or 192)  # type: ignore[assignment]
        check_ranges(self)
        self.densities()

    def densities(self) -> tuple[DensityDetector, ...]:
        """Return the density detectors that these arguments describe."""
        if self.keypoint_detector == ["none"]:
            return ()
        names = list(dict.fromkeys(self.keypoint_detector))
        parameters = detector_parameters(self.keypoint_detector_args)
        if parameters and len(names) > 1:
            raise InputError(
                f"keypoint_detector_args is {self.keypoint_detector_args!r}, and keypoint_detector has {len(names)} "
                "sources; give one source, and prepare once more for the others"
            )
        detectors = [KeypointDetector(name, self.keypoint_footprint, parameters) for name in names]
        scale = scaled_size(self.image_size, self.keypoint_image_size), self.crop_min_scale
        channels = (self.keypoint_channel, self.num_channels)
        return tuple(DensityDetector(detector, *scale, KEYPOINTS_VERSION, *channels) for detector in detectors)


SETTINGS_FILE = "preparation.json"
PUBLISHED = (SETTINGS_FILE, "data/*.parquet")  # and the card
BATCH_SIZE = 100
JPEG_LIMIT = 65_500  # pixels of a side
_SHARDS_LOOKED_AT = 8  # in search of images without keypoints


@dataclass(frozen=True)
class Preparation:
    """Callable from a batch of rows to the rows that training reads: smaller images, with their keypoint densities.

    An image whose sides both exceed 4/3 of the model's input is shrunk (by area averages) until one of them does not.
    Gray and RGB of 8 bits become a JPEG, or a PNG if a side is too long for JPEG, those of 16 bits a PNG, and all
    others a NumPy file, in the units of the source: integers of 8 and 16 bits keep their type, others become float32.
    A smaller image keeps its bytes.
    Keypoints are detected before shrinking: the densities are those of the `datasets.map` step.

    Args:
        image_column: column of the image, as `datasets.Image(decode=False)`; the other columns are passed on.
        image_size: of the model's input in pixels.
        densities: detectors; may be empty.
        quality: of the JPEGs, 1 to 100.
        skip_bad_images: leave out images that cannot be decoded instead of raising.
        pixel_range: by which images of more than 8 bits are scaled for the detectors; None for each image's own.
        num_channels: that a model takes.
    """

    image_column: str
    image_size: ImageSize
    densities: tuple[DensityDetector, ...]
    quality: int = 90
    skip_bad_images: bool = False
    pixel_range: PixelRange | None = None
    num_channels: int = 3

    @property
    def least_sides(self) -> tuple[int, int]:
        """Height and width in pixels below which no image is shrunk, large enough that few crops are enlarged."""
        height, width = height_and_width(self.image_size)
        return round(height * 4 / 3), round(width * 4 / 3)

    def features(self, features: datasets.Features) -> datasets.Features:
        """Return the features of the result for the features of the rows."""
        columns = _without_densities(features)
        columns[self.image_column] = datasets.Image()
        columns |= {density.column: datasets.Value("binary") for density in self.densities}
        return datasets.Features(columns)

    def __call__(self, rows: dict[str, list], indices: list[int]) -> tuple[dict[str, list], list[str]]:
        """Prepare a batch.

        Args:
            rows: columns of the batch.
            indices: numbers of its rows, to name images that have no name.

        Returns:
            Columns of the prepared rows, and a line for each bad image that was left out.

        Raises:
            BadImageError: for the first bad image, unless they are skipped.
        """
        found = list(process_rows(rows[self.image_column], indices, self.skip_bad_images, self._prepare))
        kept = [place for place, (prepared, _) in enumerate(found) if prepared is not None]
        columns = {name: [values[place] for place in kept] for name, values in _without_densities(rows).items()}
        made = [prepared for prepared, _ in found if prepared is not None]
        columns[self.image_column] = [prepared[self.image_column] for prepared in made]
        for density in self.densities:
            columns[density.column] = density.finish([prepared[density.column] for prepared in made])
        return columns, [error for _, error in found if error is not None]

    def _prepare(self, source: dict[str, Any], name: str) -> dict[str, Any]:
        """Return the columns that are made here, of one image; and densities that are begun."""
        image = decode_image(source, name, self.pixel_range, self.num_channels)
        begun = {density.column: density.begin(image) for density in self.densities}
        stored = read_deep_pixels(source, name, self.num_channels) if is_deep_image(source) else None
        if stored is None:
            stored = np.rint(image).astype(np.uint8) if image.dtype != np.uint8 else image
        return {self.image_column: self._shrink(stored, source), **begun}

    def _shrink(self, image: np.ndarray, source: dict[str, Any]) -> dict[str, Any]:
        height, width = image.shape[:2]
        least_height, least_width = self.least_sides
        scale = max(least_height / height, least_width / width)
        if scale < 1:
            size = (max(1, round(width * scale)), max(1, round(height * scale)))
            data, suffix = self._encode(_area_averages(image, size))
        else:
            data, suffix = read_image(source), None
        path = PurePath(source["path"]) if source.get("path") else None
        return {"bytes": data, "path": path and (path.name if suffix is None else path.stem + suffix)}

    def _encode(self, image: np.ndarray) -> tuple[bytes, str]:
        if image.dtype not in (np.uint8, np.uint16) or image.shape[2] not in (1, 3):
            return encode_npy(image), NPY
        if image.dtype == np.uint8 and max(image.shape) > JPEG_LIMIT:
            return encode_png(image), ".png"
        suffix, settings = ".png", []
        if image.dtype == np.uint8:
            suffix, settings = ".jpg", [cv2.IMWRITE_JPEG_QUALITY, self.quality]
        if image.shape[2] == 3:
            image = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
        return cv2.imencode(suffix, image, settings)[1].tobytes(), suffix


def _area_averages(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return an image shrunk to (width, height); OpenCV averages areas of up to 4 channels, and of these types."""
    if image.dtype not in (np.uint8, np.uint16):
        image = image.astype(np.float32)
    if image.shape[2] in (3, 4):
        return cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    planes = [cv2.resize(plane, size, interpolation=cv2.INTER_AREA) for plane in cv2.split(image)]
    return np.stack(planes, axis=2)


def _without_densities(columns: Mapping[str, Any]) -> dict[str, Any]:
    densities = stored_columns(columns)
    return {name: column for name, column in columns.items() if name not in densities}


@dataclass(frozen=True)
class ShardJob:
    """Callable that prepares the rows `start` to `stop` of a data set and writes them to `file`, whole or not at all.

    Args:
        rows: the data set, of images as `datasets.Image(decode=False)`.
        start, stop: the rows of this shard.
        preparation: is applied to them.
        file: Parquet file to write; a hidden text file beside it lists the images that were left out.
    """

    rows: datasets.Dataset
    start: int
    stop: int
    preparation: Preparation
    file: Path

    def __call__(self, report: Callable[[int], object] = lambda count: None) -> int:
        """Write the shard unless it exists; return its number of rows.

        Args:
            report: gets the number of rows that were done since its last call.
        """
        if self.file.exists():
            return len(self)
        cv2.setNumThreads(1)
        tables, bad = [], []
        for start in range(self.start, self.stop, BATCH_SIZE):
            indices = list(range(start, min(start + BATCH_SIZE, self.stop)))
            columns, errors = self.preparation(self.rows[indices], indices)
            tables.append(self._table(columns))
            bad += errors
            report(len(indices))
        keep_bad_images(self.file, bad)
        shard = datasets.concatenate_datasets(tables)
        files.write(self.file, lambda file: shard.to_parquet(file))
        return len(self)

    def __len__(self) -> int:
        return self.stop - self.start

    def _table(self, columns: dict[str, list]) -> datasets.Dataset:
        # Were the image column given as `Image`, `datasets` would read a file of the image's name here.
        image_column = self.preparation.image_column
        features = self.preparation.features(self.rows.features)
        plain = {**features, image_column: {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}}
        table = datasets.Dataset.from_dict(columns, features=datasets.Features(plain))
        return table.cast_column(image_column, features[image_column])


def prepare_dataset(
    dataset: datasets.DatasetDict,
    output_dir: Path,
    preparation: Preparation,
    name: str,
    rows_per_shard: int = 4096,
    num_proc: int = 1,
    engine: str = "local",
    license: str | None = None,
) -> list[str]:
    """Write a prepared data set; keep the shards of an interrupted call, and write the others.

    Writes `output_dir/data/SPLIT-NUMBER-of-NUMBER.parquet`, README.md (the data card), and `preparation.json`.

    Args:
        dataset: splits of images as `datasets.Image(decode=False)`.
        output_dir: may exist if its `preparation.json` has the same settings.
        name: of the data set, for the card.
        rows_per_shard: rows of a file.
        num_proc: processes of the local engine.
        engine: "local", or "ray": the cluster that `ray.init` finds; all nodes must see the data and `output_dir`.
        license: of the images, by its id on the Hub, for the card.

    Returns:
        A line for each bad image left out.

    Raises:
        InputError: if `output_dir` holds something else, no image is left, or Ray is asked for and not installed.
        BadImageError: for the first bad image, unless they are skipped.
    """
    settings = _settings(dataset, preparation, rows_per_shard)
    check_settings(output_dir, SETTINGS_FILE, settings)
    keep_settings(output_dir, SETTINGS_FILE, settings)
    shards = shards_of(dataset, output_dir, rows_per_shard)
    jobs = [ShardJob(shard.rows, shard.start, shard.stop, preparation, shard.file) for shard in shards]
    pending = [job for job in jobs if not job.file.exists()]
    done = sum(map(len, jobs)) - sum(map(len, pending))
    with tqdm(total=sum(map(len, dataset.values())), initial=done, unit=" images", desc="Preparing") as bar:
        ENGINES[engine](pending, num_proc, bar)
    statistics, bad = finish_shards(output_dir, (job.file for job in jobs))
    for density in preparation.densities:
        warn_without_keypoints(_have_keypoints(jobs, density.format), f"images ({density.detector.name})")
    card = prepared_dataset_card(output_dir, name, preparation, statistics, license)
    card.save(output_dir / "README.md")
    return bad


def _settings(dataset: datasets.DatasetDict, preparation: Preparation, rows_per_shard: int) -> dict[str, Any]:
    return {
        **asdict(preparation),
        "densities": [density.label for density in preparation.densities],
        "splits": rows_identity(dataset),
        "rows_per_shard": rows_per_shard,
        "decoder_version": DECODER_VERSION,
    }


def _run_locally(jobs: list[ShardJob], num_proc: int, bar: tqdm) -> None:
    if num_proc == 1:
        for job in jobs:
            job(bar.update)
        return
    context = multiprocessing.get_context("spawn")
    counter = context.Value("q", 0)
    start = bar.n
    with ProcessPoolExecutor(num_proc, context, _share_counter, (counter,)) as pool:
        waiting = {pool.submit(_run_and_count, job) for job in jobs}
        try:
            while waiting:
                done, waiting = wait(waiting, timeout=0.5, return_when=FIRST_EXCEPTION)
                for future in done:
                    future.result()
                bar.update(start + counter.value - bar.n)
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


_counter: Any = None  # rows done, shared by the processes of a pool


def _share_counter(counter: Any) -> None:
    global _counter
    _counter = counter
    datasets.disable_progress_bars()


def _run_and_count(job: ShardJob) -> int:
    def report(count: int) -> None:
        with _counter.get_lock():
            _counter.value += count

    return job(report)


def _run_on_ray(jobs: list[ShardJob], num_proc: int, bar: tqdm) -> None:
    run_on_ray(jobs, bar)


ENGINES: dict[str, Callable[[list[ShardJob], int, tqdm], None]] = {"local": _run_locally, "ray": _run_on_ray}


def _have_keypoints(jobs: list[ShardJob], form: DensityFormat) -> Iterator[bool]:
    """Yield, for a sample of the images, whether they have keypoints."""
    for place in sampled(len(jobs), _SHARDS_LOOKED_AT):
        column = pq.read_table(jobs[place].file, columns=[form.column])[form.column]
        for row in sampled(len(column), NUM_STORED // _SHARDS_LOOKED_AT):
            yield has_keypoints(column[row].as_py(), form)
