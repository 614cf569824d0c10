"""Write the features of a data set as sharded Parquet: `kamim embed`."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import groupby, islice
from pathlib import Path
from typing import Any, Literal

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate import PartialState
from tqdm import tqdm

from .. import files
from ..data.decoding import DECODER_VERSION
from ..data.row_ids import RowIds
from ..data.shards import (
    Shard,
    check_settings,
    finish_shards,
    keep_bad_images,
    keep_settings,
    rows_identity,
    run_on_ray,
    shards_of,
)
from ..errors import InputError
from ..files import json_values
from ..hub.cards import ask_about_card, embeddings_card
from ..privacy import public_name
from .embedding import Embedder, EncoderArguments, FeatureBatch, load_embedder
from .results import hub_commit, weights_sha256

SETTINGS_FILE = "embedding.json"
PUBLISHED = (SETTINGS_FILE, "data/*.parquet")  # and the card
_GROUP_BYTES = 2**25  # of features in a row group; they are in memory until it is written
_MOST_WORKERS = 8


@dataclass
class EmbeddingArguments(EncoderArguments):
    """Which encoder, which of its features, and where they go."""

    output_dir: str = field(kw_only=True, metadata={"help": "Folder of the features."})
    dtype: Literal["float32", "float16"] = field(default="float32", metadata={"help": "Of the features in the files."})
    rows_per_shard: int = field(default=4096, metadata={"help": "Images in a Parquet file."})
    engine: Literal["local", "ray"] = field(
        default="local",
        metadata={"help": "The processes that a launcher started, or Ray Data on the cluster that RAY_ADDRESS names."},
    )
    push_to_hub: bool = field(default=False, metadata={"help": "Publish the features as --repo."})
    repo: str | None = field(default=None, metadata={"help": "Repository on the Hub: user/name, or name for your own."})

    def __post_init__(self):
        files.check_output_dir(self.output_dir)
        if self.push_to_hub and self.repo is None:
            raise InputError("--push_to_hub needs --repo user/name")
        super().__post_init__()


@dataclass(frozen=True)
class EmbeddingWriter:
    """Callable that embeds the rows of shards and writes each of them, whole or not at all.

    Args:
        image_column: of the rows.
        label_column: whose values become the column `label`; None for no such column.
        ids: of the rows, for each split.
        dtype: of the features in the files, "float32" or "float16".
        skip_bad_images: leave out images that cannot be decoded instead of raising.
    """

    image_column: str
    label_column: str | None
    ids: Mapping[str, RowIds]
    dtype: str = "float32"
    skip_bad_images: bool = False

    def __call__(
        self, shards: Sequence[Shard], embedder: Embedder, report: Callable[[int], object] = lambda count: None
    ) -> None:
        """Write the shards that are not there yet; images are decoded across the ends of shards.

        Args:
            report: gets the number of rows that were done since its last call.
        """
        pending = [shard for shard in shards if not shard.file.exists()]
        for _, group in groupby(pending, key=lambda shard: shard.split):
            of_split = list(group)
            parts = [embedder.batches_of(shard.start, shard.stop) for shard in of_split]
            every = [batch for part in parts for batch in part]
            batches = embedder(of_split[0].rows, self.image_column, every, self.skip_bad_images)
            for shard, part in zip(of_split, parts, strict=True):
                files.write(shard.file, partial(self._write, shard, embedder, islice(batches, len(part)), report))

    def _write(
        self,
        shard: Shard,
        embedder: Embedder,
        batches: Iterator[FeatureBatch],
        report: Callable[[int], object],
        file: Path,
    ) -> None:
        features = self.features(shard.rows.features, embedder.shapes)
        ids, labels = self.ids[shard.split](shard.rows, shard.start, shard.stop), self._labels(shard)
        group: list[pa.Table] = []
        bad_images: list[str] = []

        def table(batch: FeatureBatch) -> pa.Table:
            places = [row - shard.start for row in batch.rows]
            columns: dict[str, Any] = {"id": [ids[place] for place in places]}
            if labels is not None:
                columns["label"] = [labels[place] for place in places]
            columns |= {name: part.astype(self.dtype) for name, part in batch.features.items()}
            return datasets.Dataset.from_dict(columns, features=features).data.table

        # Features hardly shrink under compression, and hardly ever repeat
        names = ["id", *(["label"] if labels is not None else [])]
        with pq.ParquetWriter(file, features.arrow_schema, compression="none", use_dictionary=names) as writer:
            for batch in batches:
                if batch.rows:  # `datasets` reads no row group without a row
                    group.append(table(batch))
                bad_images += batch.bad_images
                if sum(part.nbytes for part in group) >= _GROUP_BYTES:
                    writer.write_table(pa.concat_tables(group))
                    group = []
                report(len(batch.rows) + len(batch.bad_images))
            if group:
                writer.write_table(pa.concat_tables(group))
        keep_bad_images(shard.file, bad_images)

    def _labels(self, shard: Shard) -> list[Any] | None:
        if self.label_column is None:
            return None
        return shard.rows.select_columns([self.label_column])[shard.start : shard.stop][self.label_column]

    def features(self, rows: datasets.Features, shapes: Mapping[str, tuple[int, ...]]) -> datasets.Features:
        """Return the features of the files.

        Args:
            rows: features of the images' rows.
            shapes: of an `Embedder`.
        """
        columns: dict[str, Any] = {"id": datasets.Value("string")}
        if self.label_column is not None:
            columns["label"] = rows[self.label_column]
        for name, shape in shapes.items():
            if len(shape) == 1:
                columns[name] = datasets.List(datasets.Value(self.dtype), length=shape[0])
            else:
                columns[name] = datasets.Array2D(shape, self.dtype)
        return datasets.Features(columns)


def num_workers(device: torch.device, num_processes: int, num_proc: int | None) -> int:
    """Return the processes that decode images for one process that embeds them.

    Args:
        num_processes: that embed, on this machine.
        num_proc: what the user asked for; chosen where None: a GPU waits for many, beside a CPU's work one is enough.
    """
    if num_proc is not None:
        return num_proc
    spare = max(0, (os.cpu_count() or 1) // num_processes - 1)
    return min(spare, 1 if device.type == "cpu" else _MOST_WORKERS)


def embed_dataset(
    images: datasets.DatasetDict,
    writer: EmbeddingWriter,
    embedder: Embedder,
    args: EmbeddingArguments,
    dataset_name: str,
    state: PartialState,
    license: str | None = None,
) -> list[str]:
    """Write the features of a data set; keep the shards of an interrupted call, and write the others.

    Writes `output_dir/data/SPLIT-NUMBER-of-NUMBER.parquet`, README.md (the data card), and `embedding.json`. The
    processes of a launch share the shards; all of them must see the folder.

    Args:
        images: splits of images as `datasets.Image(decode=False)`.
        dataset_name: as it was given, for the card.
        state: the processes.
        license: of the images, by its id on the Hub, for the card.

    Returns:
        A line for each bad image left out, in the first process.

    Raises:
        InputError: if `output_dir` holds something else, or features of other settings, encoder or images; if the Hub
            would not take the card; if no image is left, or Ray is asked for and not installed.
        BadImageError: for the first bad image, unless they are skipped.
    """
    output_dir = Path(args.output_dir)
    settings = _settings(images, writer, embedder, args, dataset_name)
    check_settings(output_dir, SETTINGS_FILE, settings)
    if args.push_to_hub and state.is_main_process:
        ask_about_card(embeddings_card(output_dir, settings, {"num_rows": 0, "num_bad": 0}, license))
    state.wait_for_everyone()
    if state.is_main_process:
        keep_settings(output_dir, SETTINGS_FILE, settings)
    shards = list(shards_of(images, output_dir, args.rows_per_shard))
    pending = [shard for shard in shards if not shard.file.exists()]
    state.wait_for_everyone()  # a process that is ahead writes files that the others would not count

    own = pending[state.process_index :: state.num_processes]
    done = sum(map(len, shards)) - sum(map(len, pending))
    total, several = done + sum(map(len, own)), state.num_processes > 1
    title = f"Embedding (1 of {state.num_processes} processes)" if several else "Embedding"
    is_hidden = not state.is_main_process
    with tqdm(total=total, initial=done, unit=" images", desc=title, disable=is_hidden) as bar:
        if args.engine == "ray":
            encoder = _encoder_anywhere(args, embedder)
            run_on_ray([partial(_write_anywhere, writer, shard, encoder) for shard in own], bar, not args.use_cpu)
        else:
            writer(own, embedder, bar.update)
    state.wait_for_everyone()
    if not state.is_main_process:
        return []
    statistics, bad_images = finish_shards(output_dir, (shard.file for shard in shards))
    embeddings_card(output_dir, settings, statistics, license).save(output_dir / "README.md")
    return bad_images


def _encoder_anywhere(args: EmbeddingArguments, embedder: Embedder) -> dict[str, Any]:
    """Return the arguments of `load_embedder` for the processes of a cluster, which may start in another folder."""
    folder = Path(args.model_name_or_path).expanduser()
    name = str(folder.resolve()) if folder.is_dir() else args.model_name_or_path
    device = "cpu" if args.use_cpu else None
    return {**args.encoder(), "name_or_path": name, "device": device, "pixel_range": embedder.pixel_range}


@lru_cache(maxsize=1)
def _embedder(**encoder: Any) -> Embedder:
    return load_embedder(**encoder)


def _write_anywhere(writer: EmbeddingWriter, shard: Shard, encoder: Mapping[str, Any]) -> int:
    """Write a shard in a process of a cluster, which loads the encoder once."""
    writer([shard], _embedder(**encoder))
    return len(shard)


def _settings(
    images: datasets.DatasetDict,
    writer: EmbeddingWriter,
    embedder: Embedder,
    args: EmbeddingArguments,
    dataset_name: str,
) -> dict[str, Any]:
    """Return what decides the features, with public names; batches and devices change their rounding alone."""
    name, config = args.model_name_or_path, embedder.backbone.model.config
    return json_values(
        {
            "encoder": public_name(name),
            "model_type": config.model_type,
            "weights": weights_sha256(Path(name).expanduser()) or hub_commit(name, config),
            "layer": embedder.layer,
            "pooling": args.pooling,
            "precision": embedder.precision,
            "shapes": embedder.shapes,
            "dtype": writer.dtype,
            "image_size": embedder.backbone.image_size,
            "image_mean": list(embedder.processor.image_mean),
            "image_std": list(embedder.processor.image_std),
            "pixel_range": embedder.pixel_range and str(embedder.pixel_range),
            "decoder_version": DECODER_VERSION,
            "dataset": public_name(dataset_name),
            "splits": rows_identity(images),
            "ids": {split: ids.column for split, ids in writer.ids.items()},
            "image_column": writer.image_column,
            "label_column": writer.label_column,
            "skip_bad_images": writer.skip_bad_images,
            "rows_per_shard": args.rows_per_shard,
        }
    )
