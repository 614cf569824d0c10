"""Embedding a data set beside the bare model on ready tensors: what decoding, loading and writing cost.

    python benchmarks/embed.py [--dataset_name path/to/photographs] [--model_type vit] [--num_images 256] [--rounds 5]

Both run the same encoder with random weights, in batches of the same size, in fp32, with the same number of threads;
rounds are interleaved, and medians are reported. "embed" is all of `kamim embed` but loading the model: it decodes,
resizes, normalizes, runs the encoder, and writes Parquet. `--num_workers` processes decode meanwhile: on a CPU they
take time of the cores that compute, so the default is one worker and one thread, for two cores. `in_process` compares
the CPU time of the process that runs the encoder alone, which other work on the machine changes little.
"""

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import cv2
import datasets
import numpy as np
import torch
from tqdm import tqdm

from modeling_kamim.commands.endings import run
from modeling_kamim.data.loading import choose_splits, find_image_column, keep_encoded, load_images, subsample
from modeling_kamim.data.row_ids import RowIds
from modeling_kamim.data.shards import Shard
from modeling_kamim.evaluation.embedding import Embedder
from modeling_kamim.evaluation.embedding_shards import EmbeddingWriter
from modeling_kamim.models.backbone import load_backbone
from modeling_kamim.models.processor import image_processor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_name", help="as for kamim embed; the embedded photographs where not given")
    parser.add_argument("--model_type", default="vit")
    parser.add_argument("--model_size", default="small")
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--pooling", choices=("mean", "patches"), default="mean")
    parser.add_argument("--num_images", type=int, default=256, help="images a round")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--num_workers", type=int, default=1, help="processes that decode")
    parser.add_argument("--threads", type=int, default=1, help="of the encoder, in both")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(args.threads)

    dataset, _ = choose_splits(load_images(args.dataset_name))
    column = find_image_column(dataset)
    rows = subsample(keep_encoded(dataset, column).select_columns([column]), args.num_images, seed=0)
    backbone = load_backbone(None, args.model_type, args.model_size, args.image_size, args.pooling)
    processor = image_processor(args.image_size)
    embedder = Embedder(backbone, processor, batch_size=args.batch_size, num_workers=args.num_workers)
    with tempfile.TemporaryDirectory() as folder:
        seconds = measure(embedder, rows, column, Path(folder), args.rounds)
    report(args, seconds, len(rows))


def measure(
    embedder: Embedder, rows: datasets.Dataset, column: str, folder: Path, rounds: int
) -> dict[str, np.ndarray]:
    """Seconds of every round, interleaved: on the wall, and of this process's CPU time."""
    writer = EmbeddingWriter(column, None, {"train": RowIds("train")})
    shard = Shard("train", rows, 0, len(rows), folder / "none.parquet")
    size = embedder.backbone.image_size
    ready = [torch.randn(len(part), 3, size, size) for part in embedder.batches_of(0, len(rows))]
    seconds: dict[str, list[tuple[float, float]]] = {"bare model": [], "embed": []}

    def run_model() -> None:
        with torch.inference_mode():
            for pixels in ready:
                embedder.backbone.model(pixels)

    def embed() -> None:
        writer([replace(shard, file=folder / f"{len(seconds['embed'])}.parquet")], embedder)

    for _ in tqdm(range(rounds + 1), desc="rounds"):
        for name, work in (("bare model", run_model), ("embed", embed)):
            wall, cpu = time.perf_counter(), time.process_time()
            work()
            seconds[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return {name: np.array(values[1:]) for name, values in seconds.items()}  # the first warms up


def report(args: argparse.Namespace, seconds: dict[str, np.ndarray], num_images: int) -> None:
    print(
        f"{args.model_type}-{args.model_size}, {args.image_size} px, {num_images} images in batches of "
        f"{args.batch_size}, {args.pooling}, {args.threads} thread(s), {args.num_workers} worker(s), "
        f"{args.rounds} rounds\n"
    )
    print("| what | images/s |")
    print("|---|---|")
    for name, values in seconds.items():
        print(f"| {name} | {num_images / np.median(values[:, 0]):.1f} |")
    ratio, in_process = np.median(seconds["bare model"] / seconds["embed"], axis=0)
    print(f"\nRATIO embed_vs_model={ratio:.3f} in_process={in_process:.3f}")


if __name__ == "__main__":
    run(main)
