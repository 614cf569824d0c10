"""Training steps, beside those of a user of transformers' own example.

    python benchmarks/train_step.py [--model_type vit] [--model_size tiny] [--batch_size 16] [--rounds 15] [--compile]

A step is forward, backward, clipping and AdamW on a batch that is already there; steps of all variants are interleaved,
and ratios are medians over rounds. "HF" is transformers' model for masked image modeling. This package's steps begin
with uint8 pixels and keypoint densities, and turn them into normalized pixels and weights. "recommended" is what
`--precision auto --attention auto` choose on this machine. For a masked autoencoder (vit_mae, 75% masked) SimMIM with
the same encoder is timed too. `--profile` prints where the time of a step goes.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm
from transformers import SwinForMaskedImageModeling, ViTForMaskedImageModeling, ViTMAEForPreTraining
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from modeling_kamim import CellWeighting, KamimForMaskedImageModeling, KeypointDetector, build_config
from modeling_kamim.commands.endings import run
from modeling_kamim.data.stored_density import DensityDetector
from modeling_kamim.objective.density import resample_density
from modeling_kamim.training.arguments import PretrainingArguments

HF_MODELS = {
    "vit": ViTForMaskedImageModeling,
    "swin": SwinForMaskedImageModeling,
    "vit_mae": ViTMAEForPreTraining,
}
CELL = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_type", choices=tuple(HF_MODELS), default="vit")
    parser.add_argument("--model_size", choices=("tiny", "small", "base"), default="tiny")
    parser.add_argument("--image_size", type=int, default=192)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--compile", action="store_true", help="also with torch.compile (a minute more)")
    parser.add_argument("--profile", action="store_true", help="print the costliest operations of a step")
    args = parser.parse_args()

    recommended = PretrainingArguments(report_to="none")
    device = recommended.device
    batch = random_batch(args, device)
    variants = build_variants(args, recommended, batch)
    times = measure(variants, args.rounds, device)
    report(args, variants, times, matmul_rate(device))
    if args.profile:
        for variant in variants:
            with profile(activities=[ProfilerActivity.CPU]) as profiler:
                variant.step()
            print(f"\n{variant.name}\n{profiler.key_averages().table(sort_by='self_cpu_time_total', row_limit=15)}")


@dataclass
class Variant:
    """A model with its optimizer: `step` trains it once."""

    name: str
    precision: str
    attention: str
    flops: float
    step: Callable[[], None]


def build_variants(
    args: argparse.Namespace, recommended: PretrainingArguments, batch: dict[str, torch.Tensor]
) -> list[Variant]:
    def variant(
        name: str,
        is_kamim: bool,
        weighted: bool,
        precision: str,
        attention: str,
        compiled: bool = False,
        model_type: str = args.model_type,
    ):
        torch.manual_seed(0)
        config = build_config(model_type, args.model_size, args.image_size)
        config.norm_pix_loss = model_type == "vit_mae"  # what vit_mae learns here; transformers' class reads this key
        build = KamimForMaskedImageModeling.from_config if is_kamim else HF_MODELS[model_type]._from_config
        model = build(config, attn_implementation=attention).to(recommended.device).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=8e-4, weight_decay=0.05, fused=True)
        forward = torch.compile(model) if compiled else model
        inputs = (lambda: device_work(batch, weighted)) if is_kamim else (lambda: hf_inputs(batch, model_type))
        step = Step(model, forward, optimizer, inputs, precision == "bf16")
        return Variant(name, precision, attention, count_flops(args, model_type), step)

    chosen = "bf16" if recommended.bf16 else "fp32"
    attention = recommended.attn_implementation
    variants = [
        variant("HF", False, False, "fp32", "sdpa"),
        variant("KAMIM", True, True, "fp32", "sdpa"),
        variant("SimMIM, this package", True, False, "fp32", "sdpa"),
        variant("KAMIM, recommended", True, True, chosen, attention),
    ]
    if chosen == "bf16":
        variants.insert(1, variant("HF", False, False, "bf16", "sdpa"))
        variants.insert(3, variant("KAMIM", True, True, "bf16", "sdpa"))
    if args.model_type == "vit_mae":
        variants.append(variant("SimMIM, equal encoder", True, False, chosen, attention, model_type="vit"))
    if args.compile:
        variants.append(variant("KAMIM, recommended, compiled", True, True, chosen, attention, compiled=True))
    return variants


class Step:
    """One training step."""

    def __init__(self, model, forward, optimizer, inputs: Callable[[], dict[str, torch.Tensor]], bf16: bool):
        self.model, self.forward, self.optimizer, self.inputs, self.bf16 = model, forward, optimizer, inputs, bf16

    def __call__(self) -> None:
        inputs = self.inputs()
        with torch.autocast(inputs["pixel_values"].device.type, torch.bfloat16, enabled=self.bf16):
            loss = self.forward(**inputs).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


def random_batch(args: argparse.Namespace, device: torch.device) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    size, patch = args.image_size, 4 if args.model_type == "swin" else 16
    blocks = torch.rand(args.batch_size, (size // 32) ** 2, generator=generator).argsort(1).argsort(1)
    mask = (blocks < round(mask_ratio(args.model_type) * blocks.shape[1])).unflatten(1, (size // 32, size // 32))
    mask = mask.repeat_interleave(32 // patch, 1).repeat_interleave(32 // patch, 2).flatten(1)
    pixels = torch.randint(0, 256, (args.batch_size, 3, size, size), dtype=torch.uint8, generator=generator)
    grid = DensityDetector(KeypointDetector(), size).grid
    density = torch.randint(0, 256, (args.batch_size, grid, grid), dtype=torch.uint8, generator=generator)
    crop_box = torch.tensor([0.1, 0.95, 0.9, 0.05]).repeat(args.batch_size, 1)
    batch = {"pixel_values": pixels, "bool_masked_pos": mask, "keypoint_density": density, "crop_box": crop_box}
    return {name: tensor.to(device) for name, tensor in batch.items()}


def mask_ratio(model_type: str) -> float:
    return 0.75 if model_type == "vit_mae" else 0.6


def normalize(pixels: torch.Tensor) -> torch.Tensor:
    mean = torch.tensor(IMAGENET_DEFAULT_MEAN, device=pixels.device).view(1, 3, 1, 1)
    std = torch.tensor(IMAGENET_DEFAULT_STD, device=pixels.device).view(1, 3, 1, 1)
    return (pixels.float() / 255 - mean) / std


def hf_inputs(batch: dict[str, torch.Tensor], model_type: str) -> dict[str, torch.Tensor]:
    if "normalized" not in batch:
        batch["normalized"] = normalize(batch["pixel_values"])
    if model_type == "vit_mae":  # draws its mask
        return {"pixel_values": batch["normalized"]}
    return {"pixel_values": batch["normalized"], "bool_masked_pos": batch["bool_masked_pos"]}


def device_work(batch: dict[str, torch.Tensor], weighted: bool) -> dict[str, torch.Tensor]:
    """What the trainer does on the device before the model: normalize, and for KAMIM densities to weights."""
    inputs = {"pixel_values": normalize(batch["pixel_values"]), "bool_masked_pos": batch["bool_masked_pos"]}
    if weighted:
        cells = batch["pixel_values"].shape[-1] // CELL
        density = resample_density(batch["keypoint_density"].float() / 255, batch["crop_box"], cells)
        inputs["keypoint_weights"] = CellWeighting()(density)
    return inputs


def measure(variants: list[Variant], rounds: int, device: torch.device) -> np.ndarray:
    """(variants, rounds) seconds of a step, interleaved."""
    times = np.zeros((len(variants), rounds))
    for number in tqdm(range(-2, rounds), desc="rounds"):
        for row, variant in enumerate(variants):
            start = time.perf_counter()
            variant.step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if number >= 0:  # the first two warm up
                times[row, number] = time.perf_counter() - start
    return times


def matmul_rate(device: torch.device) -> dict[str, float]:
    """Measured floating point operations per second of large matrix products, the ceiling of any step."""
    rates = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        size = 4096 if device.type == "cuda" else 1024
        a = torch.randn(size, size, device=device, dtype=dtype)
        seconds = []
        for _ in range(5):
            start = time.perf_counter()
            a @ a
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
        rates[name] = 2 * size**3 / min(seconds)
    return rates


def count_flops(args: argparse.Namespace, model_type: str) -> float:
    """Floating point operations of the matrix products of a training step (three times those of the forward pass)."""
    from torch.utils.flop_counter import FlopCounterMode

    config = build_config(model_type, args.model_size, args.image_size)
    model = KamimForMaskedImageModeling.from_config(config, attn_implementation="eager")
    num_patches = (args.image_size // config.patch_size) ** 2
    mask = torch.arange(num_patches)[None] < num_patches * 3 // 4  # a quarter is what vit_mae's encoder sees
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, args.image_size, args.image_size), mask)
    return 3.0 * counter.get_total_flops() * args.batch_size


def report(args: argparse.Namespace, variants: list[Variant], times: np.ndarray, rates: dict[str, float]) -> None:
    print(
        f"{args.model_type}-{args.model_size}, {args.image_size} px, batch {args.batch_size}, {times.shape[1]} rounds"
    )
    print(", ".join(f"{name} matrix products: {rate / 1e9:.0f} GFLOP/s" for name, rate in rates.items()), "\n")
    print("| step | precision | attention | ms | images/s | share of matrix rate | time, relative to HF |")
    print("|---|---|---|---|---|---|---|")
    for variant, own in zip(variants, times, strict=True):
        seconds = np.median(own)
        print(
            f"| {variant.name} | {variant.precision} | {variant.attention} | {seconds * 1e3:.1f} | "
            f"{args.batch_size / seconds:.1f} | {variant.flops / seconds / rates[variant.precision]:.2f} | "
            f"{np.median(own / times[0]):.3f} |"
        )
    own_times = {variant.name: own for variant, own in reversed(list(zip(variants, times, strict=True)))}  # fp32's
    ratios = {
        "kamim_vs_hf_equal_settings": np.median(own_times["KAMIM"] / times[0]),
        "kamim_vs_simmim": np.median(own_times["KAMIM"] / own_times["SimMIM, this package"]),
        "recommended_vs_hf_default": np.median(times[0] / own_times["KAMIM, recommended"]),
    }
    compiled, simmim = own_times.get("KAMIM, recommended, compiled"), own_times.get("SimMIM, equal encoder")
    if compiled is not None:
        ratios["compiled_vs_hf_default"] = np.median(times[0] / compiled)
    if simmim is not None:
        ratios["mae_vs_simmim_time"] = np.median(own_times["KAMIM, recommended"] / simmim)
    print("\nRATIO " + " ".join(f"{name}={ratio:.3f}" for name, ratio in ratios.items()))


if __name__ == "__main__":
    run(main)
