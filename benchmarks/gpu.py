"""Pretraining on a GPU: images per second, MFU, memory and waiting time, with synthetic and with real data.

    kamim prepare path/to/photographs path/to/prepared
    python benchmarks/gpu.py --dataset_name path/to/prepared [--models vit-base swin-tiny] [--compile]

"synthetic" trains on one batch that is already on the device; "data" reads the data set through the loader with
`--num_workers` processes, repeated as often as needed, with stored FAST densities (detected first where the data set
has none). "loader" is the input path alone. MFU is the matrix products of a step over the measured rate of large bf16
matrix products (fp32 on a CPU without bf16). Runs on a CPU too, to try it out.
"""

import argparse
import os
import time
from collections.abc import Iterator

import cv2
import torch
from torch.utils.data import DataLoader
from train_step import Step, count_flops, device_work, matmul_rate, random_batch

from modeling_kamim import KamimForMaskedImageModeling, KeypointDetector, build_config
from modeling_kamim.commands.endings import run
from modeling_kamim.data.attach_density import prepare_images
from modeling_kamim.data.loading import choose_splits, find_image_column, keep_encoded, load_images
from modeling_kamim.data.samples import MaskedImageTransform, SampleDataset
from modeling_kamim.data.stored_density import DensityDetector
from modeling_kamim.data.views import RandomView
from modeling_kamim.training.arguments import PretrainingArguments

MODELS = ("vit-tiny", "vit-small", "vit-base", "swin-tiny", "swin-base")
WARM_UP = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_name", help="prepared data set; the embedded photographs where not given")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--image_size", type=int, default=192)
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--num_workers", type=int, default=max(1, (os.cpu_count() or 2) - 1))
    parser.add_argument("--compile", action="store_true", help="with torch.compile")
    args = parser.parse_args()
    cv2.setNumThreads(1)
    recommended = PretrainingArguments(report_to="none")
    device = recommended.device
    rate = matmul_rate(device)["bf16" if recommended.bf16 else "fp32"]
    print(f"{torch.cuda.get_device_name() if device.type == 'cuda' else 'CPU'}, {recommended.describe_speed()}")
    print(f"large matrix products: {rate / 1e12:.1f} TFLOP/s; {args.num_workers} loader workers\n")
    print("| model | data | images/s | MFU | memory, GB | waiting for data |\n|---|---|---|---|---|---|")
    for name in args.models:
        args.model_type, args.model_size = name.split("-")
        for data in ("synthetic", "data"):
            step, set_batch = build_step(args, recommended)
            batches = synthetic(args, device) if data == "synthetic" else loaded(args, device)
            images_per_second, waiting = train(step, set_batch, batches, args, device)
            mfu = count_flops(args, args.model_type) / args.batch_size * images_per_second / rate
            memory = torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else float("nan")
            print(
                f"| {name} | {data} | {images_per_second:.0f} | {mfu:.2f} | {memory:.1f} | {waiting:.1%} |", flush=True
            )
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
    print(f"| none | loader | {loader_rate(args, device):.0f} | | | |")


def build_step(args: argparse.Namespace, recommended: PretrainingArguments):
    torch.manual_seed(0)
    config = build_config(args.model_type, args.model_size, args.image_size)
    attention = recommended.attn_implementation
    model = KamimForMaskedImageModeling.from_config(config, attn_implementation=attention).to(recommended.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=8e-4, weight_decay=0.05, fused=True)
    current: dict[str, torch.Tensor] = {}
    forward = torch.compile(model) if args.compile else model
    step = Step(model.train(), forward, optimizer, lambda: device_work(current, True), recommended.bf16)
    return step, current.update


def synthetic(args: argparse.Namespace, device: torch.device) -> Iterator[dict[str, torch.Tensor]]:
    batch = random_batch(args, device)
    while True:
        yield batch


def loaded(args: argparse.Namespace, device: torch.device) -> Iterator[dict[str, torch.Tensor]]:
    dataset, _ = choose_splits(load_images(args.dataset_name))
    column = find_image_column(dataset)
    density = DensityDetector(KeypointDetector(), args.image_size)
    dataset, _ = prepare_images(keep_encoded(dataset, column), column, density, num_proc=args.num_workers)
    needed = (args.steps + WARM_UP + 2) * args.batch_size
    dataset = dataset.select_columns([column, density.column]).select([i % len(dataset) for i in range(needed)])
    patch = build_config(args.model_type, args.model_size, args.image_size).patch_size
    transform = MaskedImageTransform(column, args.image_size, patch, 32, 0.6, 8, RandomView(), densities=density)
    loader = DataLoader(
        SampleDataset(dataset, transform, seed=0),
        batch_size=args.batch_size,
        num_workers=args.num_workers,
        prefetch_factor=4 if args.num_workers else None,
        pin_memory=device.type == "cuda",
    )
    for batch in loader:
        yield {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


def train(step: Step, set_batch, batches: Iterator, args: argparse.Namespace, device: torch.device):
    """Images per second and the share of the time that the loader was waited for."""
    waiting = 0.0
    start = time.perf_counter()
    for number in range(-WARM_UP, args.steps):
        if number == 0:
            synchronize(device)
            waiting, start = 0.0, time.perf_counter()
        asked = time.perf_counter()
        set_batch(next(batches))
        waiting += time.perf_counter() - asked
        step()
    synchronize(device)
    elapsed = time.perf_counter() - start
    return args.steps * args.batch_size / elapsed, waiting / elapsed


def loader_rate(args: argparse.Namespace, device: torch.device) -> float:
    """Images per second of the input path alone."""
    batches = loaded(args, device)
    for _ in range(WARM_UP):
        next(batches)
    start = time.perf_counter()
    for _ in range(args.steps):
        next(batches)
    synchronize(device)
    return args.steps * args.batch_size / (time.perf_counter() - start)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    run(main)
