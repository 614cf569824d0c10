"""How time and memory grow: workers of the loader, images of the map step, epochs, processes that train.

    python benchmarks/growth.py [--dataset_name path/to/photographs] [--sizes 1000 10000] [--epochs 50]

Larger sets are the given one, repeated. Memory is the largest resident set of a process of its own for each line.
"""

import argparse
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2
import datasets
import torch
from torch.utils.data import DataLoader

from modeling_kamim import KeypointDetector
from modeling_kamim.commands.endings import run
from modeling_kamim.data.attach_density import attach_keypoint_density
from modeling_kamim.data.loading import choose_splits, find_image_column, keep_encoded, load_images
from modeling_kamim.data.samples import MaskedImageTransform, SampleDataset
from modeling_kamim.data.stored_density import DensityDetector
from modeling_kamim.data.views import RandomView

ROOT = Path(__file__).resolve().parent.parent
SIZE, CELL = 192, 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_name", help="as for kamim pretrain; the embedded photographs where not given")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 10000], help="images of the map step")
    parser.add_argument("--epochs", type=int, default=50, help="epochs of the memory check")
    parser.add_argument("--steps", type=int, default=8, help="training steps of each process count")
    args = parser.parse_args()

    print("| loader workers | images/s | relative to 1 |\n|---|---|---|")
    rates = {workers: in_process(loader_rate, args.dataset_name, workers) for workers in (0, 1, 2)}
    for workers, rate in rates.items():
        print(f"| {workers} | {rate:.0f} | {rate / rates[1]:.2f} |", flush=True)

    print("\n| images in the map step | processes | seconds | ms per image | memory, MB |\n|---|---|---|---|---|")
    for count in args.sizes:
        for num_proc in (1, 2):
            seconds, memory = in_process(map_step, args.dataset_name, count, num_proc)
            print(f"| {count} | {num_proc} | {seconds:.1f} | {1e3 * seconds / count:.2f} | {memory:.0f} |", flush=True)

    memory = in_process(memory_over_epochs, args.dataset_name, args.epochs)
    shown = [memory[0], memory[len(memory) // 2], memory[-1]]
    print(f"\nmemory after epoch 1, {len(memory) // 2 + 1}, {len(memory)}: {', '.join(f'{m:.0f}' for m in shown)} MB")

    print("\n| training processes | threads each | images/s |\n|---|---|---|")
    for processes in (1, 2):
        threads = max(1, (os.cpu_count() or 1) // processes)
        print(f"| {processes} | {threads} | {training_rate(processes, threads, args.steps):.1f} |", flush=True)


def in_process(function: Callable, *arguments):
    """The result of a function in a new process, so that lines do not share memory or caches."""
    with tempfile.TemporaryDirectory() as cache:
        os.environ["HF_DATASETS_CACHE"] = cache
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            return pool.submit(function, *arguments).result()


def load(name: str | None, count: int | None = None) -> tuple[datasets.Dataset, str]:
    datasets.disable_progress_bars()
    cv2.setNumThreads(1)
    dataset, _ = choose_splits(load_images(name))
    column = find_image_column(dataset)
    dataset = keep_encoded(dataset.select_columns([column]), column)
    return (dataset.select([row % len(dataset) for row in range(count)]) if count else dataset), column


def densities() -> DensityDetector:
    return DensityDetector(KeypointDetector(), SIZE)


def samples(dataset: datasets.Dataset, column: str, detector: KeypointDetector | None) -> SampleDataset:
    transform = MaskedImageTransform(column, SIZE, 16, 32, 0.6, CELL, RandomView(), detector=detector)
    return SampleDataset(dataset, transform, seed=0)


def loader_rate(name: str | None, workers: int) -> float:
    torch.set_num_threads(1)
    dataset, column = load(name, 1536)
    loader = DataLoader(samples(dataset, column, KeypointDetector()), batch_size=32, num_workers=workers)
    batches = iter(loader)
    for _ in range(8):
        next(batches)
    start = time.perf_counter()
    for _ in range(len(loader) - 8):
        next(batches)
    return 32 * (len(loader) - 8) / (time.perf_counter() - start)


def map_step(name: str | None, count: int, num_proc: int) -> tuple[float, float]:
    dataset, column = load(name, count)
    start = time.perf_counter()
    attach_keypoint_density(dataset, densities(), column, num_proc=num_proc)
    return time.perf_counter() - start, peak_memory(resource.RUSAGE_CHILDREN if num_proc > 1 else resource.RUSAGE_SELF)


def peak_memory(who: int) -> float:
    return resource.getrusage(who).ru_maxrss / 1e3


def memory_over_epochs(name: str | None, epochs: int) -> list[float]:
    dataset, column = load(name, 64)
    dataset, _ = attach_keypoint_density(dataset, densities(), column)
    data = samples(dataset, column, KeypointDetector())
    memory = []
    for epoch in range(epochs):
        data.draw_for_epoch(epoch)
        for _ in DataLoader(data, batch_size=32):
            pass
        memory.append(resident_memory())
    return memory


def resident_memory() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def training_rate(processes: int, threads: int, steps: int) -> float:
    """Images per second of run_mim.py on the embedded photographs, with a global batch of 32."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes), "run_mim.py"]
        command += ["--model_size", "tiny", "--image_size", str(SIZE), "--max_steps", str(2 * steps), "--use_cpu"]
        command += ["--per_device_train_batch_size", str(32 // processes), "--logging_steps", str(steps)]
        command += ["--logging_first_step", "false", "--max_eval_samples", "2", "--output_dir", folder]
        command += ["--disable_tqdm", "true", "--weighting", "none", "--ddp_find_unused_parameters", "false"]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_DATASETS_CACHE": folder}
        finished = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        if finished.returncode:
            raise RuntimeError(f"training with {processes} processes failed:\n{finished.stderr[-2000:]}")
        log = json.loads((Path(folder) / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
        return [entry["images_per_second"] for entry in log if "loss" in entry][-1]


if __name__ == "__main__":
    run(main)
