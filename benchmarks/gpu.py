"""Pretraining on a GPU, in parts of at most `--minutes`: steps beside HF's, training with data, decoding on the GPU.

    kamim prepare path/to/photographs path/to/prepared
    python benchmarks/gpu.py --dataset_name path/to/prepared --photographs path/to/photographs [--compile]
    python benchmarks/gpu.py --dataset_name path/to/prepared --parts training --models swin-base

"steps": what `train_step.py` prints, for each model: HF's step and this package's in fp32 and bf16, what weights cost,
SimMIM beside a masked autoencoder of the same encoder, with `--compile` also compiled.

"training": images per second, MFU, memory and waiting time. "synthetic" trains on one batch that is already on the
device; "data" reads the data set through the loader with `--num_workers` processes, repeated as often as needed, with
stored FAST densities (detected first where the data set has none). "loader" is the input path alone. MFU is the matrix
products of a step over the measured rate of large bf16 matrix products (fp32 on a CPU where bf16 is not faster).

"decode": JPEGs decoded by torchvision on the GPU (nvJPEG), and by one core.

What does not fit into the minutes is named at the end; call again with it. Runs on a CPU too, to try it out.
"""

import argparse
import os
import time
from collections.abc import Iterator

import cv2
import simplejpeg
import torch
from input_pipeline import encoded_images
from torch.utils.data import DataLoader
from torchvision.io import decode_jpeg
from train_step import (
    Step,
    build_variants,
    count_flops,
    device_work,
    mask_ratio,
    matmul_rate,
    measure,
    random_batch,
    report,
)

from modeling_kamim import KamimForMaskedImageModeling, KeypointDetector, build_config
from modeling_kamim.commands.endings import run
from modeling_kamim.data.attach_density import prepare_images
from modeling_kamim.data.loading import choose_splits, find_image_column, keep_encoded, load_images
from modeling_kamim.data.samples import MaskedImageTransform, SampleDataset
from modeling_kamim.data.stored_density import DensityDetector
from modeling_kamim.data.views import RandomView
from modeling_kamim.evaluation.results import device_name
from modeling_kamim.training.arguments import PretrainingArguments

MODELS = tuple(f"{kind}-{size}" for kind in ("vit", "vit_mae", "swin") for size in ("tiny", "small", "base"))
WARM_UP = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_name", help="prepared data set; the embedded photographs where not given")
    parser.add_argument("--photographs", help="JPEGs to decode; dataset_name where not given")
    parser.add_argument("--parts", nargs="+", choices=tuple(PARTS), default=tuple(PARTS))
    parser.add_argument("--models", nargs="+", choices=MODELS, default=("vit-base", "vit_mae-base", "swin-base"))
    parser.add_argument("--minutes", type=float, default=8, help="begin nothing after them")
    parser.add_argument("--image_size", type=int, default=192)
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=10, help="of the steps beside HF's")
    parser.add_argument("--num_workers", type=int, default=max(1, (os.cpu_count() or 2) - 1))
    parser.add_argument("--compile", action="store_true", help="with torch.compile")
    args = parser.parse_args()
    cv2.setNumThreads(1)
    deadline = time.monotonic() + 60 * args.minutes
    recommended = PretrainingArguments(report_to="none")
    print(f"{device_name(recommended.device)}, {recommended.describe_speed()}; {args.num_workers} loader workers")
    left_out = []
    for part in args.parts:
        print(f"\n## {part}\n", flush=True)
        for model in args.models if part != "decode" else ("",):
            if time.monotonic() > deadline:
                left_out.append(f"--parts {part} {model and '--models'} {model}".strip())
                continue
            args.model_type, _, args.model_size = model.rpartition("-")
            PARTS[part](args, recommended)
            if recommended.device.type == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
    print("".join(f"\nleft out for the time: {what}" for what in left_out))


def steps(args: argparse.Namespace, recommended: PretrainingArguments) -> None:
    """Print the steps of a model, beside HF's."""
    variants = build_variants(args, recommended, random_batch(args, recommended.device))
    times = measure(variants, args.rounds, recommended.device)
    report(args, variants, times, matmul_rate(recommended.device))


def training(args: argparse.Namespace, recommended: PretrainingArguments) -> None:
    """Print the training of a model on synthetic and real data."""
    device = recommended.device
    rate = matmul_rate(device)["bf16" if recommended.bf16 else "fp32"]
    print(f"large matrix products: {rate / 1e12:.1f} TFLOP/s\n")
    print("| model | data | images/s | MFU | memory, GB | waiting for data |\n|---|---|---|---|---|---|")
    name = f"{args.model_type}-{args.model_size}"
    flops = count_flops(args, args.model_type) / args.batch_size
    rates = {}
    for data in ("synthetic", "data"):
        step, set_batch = build_step(args, recommended)
        batches = synthetic(args, device) if data == "synthetic" else loaded(args, device)
        rates[data], waiting = train(step, set_batch, batches, args, device)
        mfu = flops * rates[data] / rate
        memory = torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else float("nan")
        print(f"| {name} | {data} | {rates[data]:.0f} | {mfu:.2f} | {memory:.1f} | {waiting:.1%} |", flush=True)
    rates["loader"] = loader_rate(args, device)
    print(f"| none | loader | {rates['loader']:.0f} | | | |")
    ratios = {"data_vs_synthetic": rates["data"] / rates["synthetic"], "mfu": mfu}
    ratios["loader_vs_synthetic"] = rates["loader"] / rates["synthetic"]
    print("\nRATIO " + " ".join(f"{key}_{name.replace('-', '_')}={value:.3f}" for key, value in ratios.items()))


def decode(args: argparse.Namespace, recommended: PretrainingArguments) -> None:
    """Print how fast JPEGs are decoded on the device, a batch at a time, and by one core."""
    encoded = encoded_images(args.photographs or args.dataset_name, args.batch_size)
    jpegs = [data for data in encoded if data.startswith(b"\xff\xd8")]
    if not jpegs:
        print("no JPEGs in the data set")
        return
    tensors = [torch.frombuffer(bytearray(data), dtype=torch.uint8) for data in jpegs]
    ways = {
        recommended.device.type: lambda: decode_jpeg(tensors, device=recommended.device),
        "one core": lambda: [simplejpeg.decode_jpeg(data) for data in jpegs],
    }
    found = {}
    print("| decoded on | images/s |\n|---|---|")
    for name, way in ways.items():
        way()
        start = time.perf_counter()
        for _ in range(5):
            way()
        synchronize(recommended.device)
        found[name] = 5 * len(jpegs) / (time.perf_counter() - start)
        print(f"| {name} | {found[name]:.0f} |", flush=True)
    print(f"\nRATIO decode_device_vs_core={found[recommended.device.type] / found['one core']:.2f}")


PARTS = {"steps": steps, "training": training, "decode": decode}


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
    transform = MaskedImageTransform(
        column, args.image_size, patch, 32, mask_ratio(args.model_type), 8, RandomView(), densities=density
    )
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
