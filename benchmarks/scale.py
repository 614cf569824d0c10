"""On paper: how long a pretraining takes on 1, 8 and 64 GPUs, and what binds there.

    python benchmarks/scale.py [--model vit-base] [--tflops 989] [--mfu 0.4] [--core_images 1080] [--link_gb 50]

Nothing is measured here. A step takes as long as the slowest of three, which are taken to overlap: the products of the
model at a share (`--mfu`) of a GPU's peak, the loader's cores, and sending all gradients once around a ring. Rates of
cores are those of benchmarks/input_pipeline.py, sizes and times of `kamim prepare` those of docs/performance.md. The
peak is that of an H100 in bf16, without sparsity; the share is an assumption until benchmarks/gpu.py has been run.
"""

import argparse

from train_step import count_flops

from modeling_kamim import build_config
from modeling_kamim.commands.endings import run
from modeling_kamim.models.masked_image_modeling import KamimForMaskedImageModeling

DATA = {"ImageNet-1k": (1.28e6, 100), "ImageNet-22k": (14.2e6, 100), "a billion images": (1e9, 1)}
NUM_GPUS = (1, 8, 64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit-base", help="type and size, as vit_mae-large")
    parser.add_argument("--image_size", type=int, default=192)
    parser.add_argument("--global_batch_size", type=int, default=2048)
    parser.add_argument("--tflops", type=float, default=989, help="peak of a GPU")
    parser.add_argument("--mfu", type=float, default=0.4, help="share of the peak that a step reaches; assumed")
    parser.add_argument("--cores", type=int, default=16, help="for each GPU")
    parser.add_argument("--core_images", type=float, default=1080, help="prepared images/s of a core")
    parser.add_argument("--prepare_ms", type=float, default=4.5, help="of `kamim prepare`, an image and core")
    parser.add_argument("--image_kb", type=float, default=33, help="a prepared image with its density")
    parser.add_argument("--link_gb", type=float, default=50, help="gigabytes/s between two GPUs of a ring")
    args = parser.parse_args()

    args.model_type, _, args.model_size = args.model.rpartition("-")
    args.batch_size = 1
    flops = count_flops(args, args.model_type)
    config = build_config(args.model_type, args.model_size, args.image_size)
    parameters = sum(p.numel() for p in KamimForMaskedImageModeling.from_config(config).parameters())
    gpu_images = args.mfu * args.tflops * 1e12 / flops
    print(
        f"{args.model}, {args.image_size} px: {parameters / 1e6:.0f}M parameters, {flops / 1e9:.0f} GFLOP an image and "
        f"step; at {args.mfu:.0%} of {args.tflops:g} TFLOP/s {gpu_images:,.0f} images/s a GPU, which takes "
        f"{gpu_images / args.core_images:.1f} cores and {gpu_images * args.image_kb / 1e3:,.0f} MB/s"
    )
    print(f"a checkpoint: {12 * parameters / 1e9:.1f} GB (weights and AdamW's moments, fp32)\n")
    print("| data | passes | prepared | core-hours to prepare | GPUs | hours | GPU-hours | what binds | read, GB/s |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, (images, passes) in DATA.items():
        size, preparing = images * args.image_kb / 1e6, images * args.prepare_ms / 3.6e6
        for count in NUM_GPUS:
            share = args.global_batch_size / count
            seconds = {
                "the model": share / gpu_images,
                "the loader": share / (args.cores * args.core_images),
                "the network": 2 * 4 * parameters * (count - 1) / count / (args.link_gb * 1e9),
            }
            binding = max(seconds, key=seconds.__getitem__)
            hours = images * passes / args.global_batch_size * seconds[binding] / 3600
            rate = args.global_batch_size / seconds[binding] * args.image_kb / 1e6
            cost = f"{count} | {hours:,.1f} | {hours * count:,.0f} | {binding} | {rate:.1f}"
            print(f"| {name} | {passes} | {size:,.0f} GB | {preparing:,.0f} | {cost} |")


if __name__ == "__main__":
    run(main)
