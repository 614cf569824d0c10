"""Write a data set as sharded Parquet, so that an interrupted command goes on where it stopped.

Each file is written whole or not at all. The folder keeps the settings that its files were made with: the same command
again writes the missing files alone, another one is refused.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
from tqdm import tqdm

from .. import files
from ..errors import InputError
from .decoding import BadImageError


@dataclass(frozen=True)
class Shard:
    """The rows `start` to `stop` of a split, and the Parquet file that is made of them."""

    split: str
    rows: datasets.Dataset
    start: int
    stop: int
    file: Path

    def __len__(self) -> int:
        return self.stop - self.start


def shards_of(dataset: Mapping[str, datasets.Dataset], output_dir: Path, rows_per_shard: int) -> Iterator[Shard]:
    """Yield the shards of every split: `output_dir/data/SPLIT-NUMBER-of-NUMBER.parquet`."""
    folder = (output_dir / "data").resolve()
    for split, rows in dataset.items():
        starts = range(0, len(rows), rows_per_shard)
        for number, start in enumerate(starts):
            file = folder / f"{split}-{number:05d}-of-{len(starts):05d}.parquet"
            yield Shard(split, rows, start, min(start + rows_per_shard, len(rows)), file)


def rows_identity(dataset: Mapping[str, datasets.Dataset]) -> dict[str, dict[str, Any]]:
    """Return what tells the rows of a data set from others, split by split, for `check_settings`."""
    return {split: {"rows": len(rows), "fingerprint": rows._fingerprint} for split, rows in dataset.items()}


def check_settings(output_dir: Path, settings_file: str, settings: Mapping[str, Any]) -> None:
    """Raise InputError unless `output_dir` is empty, not there yet, or was begun with the same settings."""
    file = output_dir / settings_file
    if not file.exists():
        if output_dir.exists() and any(output_dir.iterdir()):
            raise InputError(f"{output_dir} holds other files; give a folder that is empty or not there yet")
        return
    earlier = json.loads(file.read_text(encoding="utf-8"))
    differing = [key for key in settings if earlier.get(key) != settings[key]]
    if differing:
        raise InputError(
            f"{output_dir} was made with other settings (different: {', '.join(differing)}; see {file}); "
            "give another folder, or delete this one"
        )


def keep_settings(output_dir: Path, settings_file: str, settings: Mapping[str, Any]) -> None:
    """Make the folder, and write the settings of its files into it."""
    (output_dir / "data").mkdir(parents=True, exist_ok=True)
    files.write_text(output_dir / settings_file, json.dumps(settings, indent=2) + "\n")


def bad_images_file(shard: Path) -> Path:
    """Return the file that lists the images a shard left out: hidden, or `datasets` would read it as a shard."""
    return shard.with_name(f".{shard.stem}.bad_images.txt")


def keep_bad_images(shard: Path, lines: Sequence[str]) -> None:
    """Write the list of the images that a shard left out, where there are any."""
    if lines:
        files.write_text(bad_images_file(shard), "".join(f"{line}\n" for line in lines))


def finish_shards(output_dir: Path, shards: Iterable[Path]) -> tuple[dict[str, int], list[str]]:
    """Remove what interrupted calls left behind, and count what was written.

    Returns:
        `num_rows, num_bytes, num_bad`, and a line for each bad image that was left out.

    Raises:
        InputError: if no image is left.
    """
    for unfinished in output_dir.rglob(".*.unfinished"):
        unfinished.unlink()
    shards = list(shards)
    lists = filter(Path.exists, map(bad_images_file, shards))
    bad = [line for file in lists for line in file.read_text(encoding="utf-8").splitlines()]
    statistics = {
        "num_rows": sum(pq.read_metadata(shard).num_rows for shard in shards),
        "num_bytes": sum(shard.stat().st_size for shard in shards),
        "num_bad": len(bad),
    }
    if bad and not statistics["num_rows"]:
        raise InputError(f"none of the {len(bad)} images can be decoded; the first: {bad[0]}")
    return statistics, bad


def run_on_ray(jobs: Sequence[Callable[[], int]], bar: tqdm, use_gpus: bool = False) -> None:
    """Run jobs through Ray Data on the cluster that `ray.init` finds; all nodes must see the data and the folder.

    Args:
        jobs: each writes a file, and returns the number of its images.
        bar: of the images.
        use_gpus: give each job a GPU, where the cluster has any.

    Raises:
        InputError: if Ray is not installed.
        BadImageError: for the first bad image, unless the jobs skip them.
    """
    try:
        import ray
    except ImportError:
        raise InputError("--engine ray needs Ray: pip install 'modeling-kamim[ray]'") from None
    if not jobs:
        return
    shared = ray.put(jobs)

    def run(row: dict[str, int]) -> dict[str, Any]:
        try:
            return {"rows": ray.get(shared)[row["job"]](), "error": ""}
        except BadImageError as error:  # Ray would raise another exception
            return {"rows": 0, "error": str(error)}

    numbers = ray.data.from_items([{"job": number} for number in range(len(jobs))], override_num_blocks=len(jobs))
    gpus = {"num_gpus": 1} if use_gpus and ray.cluster_resources().get("GPU") else {}
    for row in numbers.map(run, **gpus).iter_rows():
        if row["error"]:
            raise BadImageError(row["error"])
        bar.update(row["rows"])
