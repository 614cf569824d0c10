"""How much memory a training takes, with and without activation checkpointing, and the commands that read large sets.

    python benchmarks/memory.py [--dataset_name path/to/photographs] [--batch_size 32] [--sizes 1000 10000 100000]

Memory is the largest sum of the resident sets of a command's processes, sampled 50 times a second. Larger sets are the
given one, repeated, at 64 px; mapped pages of a data set count too, which the system takes back when it needs them.
"""

import argparse
import tempfile
from pathlib import Path

from estimate import kamim, short_run
from tqdm import tqdm

from modeling_kamim.commands.endings import run
from modeling_kamim.data.loading import choose_splits, load_images, subsample

SMALL = {"model_type": "vit", "model_size": "tiny", "image_size": 64, "patch_size": 8}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_name", help="as for kamim pretrain; the embedded photographs where not given")
    parser.add_argument("--model_size", default="base", help="of the ViT that is trained at 192 px")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--sizes", type=int, nargs="*", default=[1000, 10000, 100000], help="images of the commands")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        images, _ = choose_splits(load_images(args.dataset_name))
        subsample(images, args.batch_size * 8, seed=0).save_to_disk(f"{folder}/few")
        ratio = training(args, f"{folder}/few")
        print("\n| command | images | memory, GB |\n|---|---|---|")
        kamim("pretrain", dataset_name=f"{folder}/few", output_dir=f"{folder}/model", max_steps=0, **SMALL)
        for count in tqdm(args.sizes, desc="sizes"):
            repeated = f"{folder}/{count}"
            images.select([row % len(images) for row in range(count)]).to_parquet(f"{repeated}/train.parquet")
            for name, memory in commands(folder, repeated).items():
                print(f"| {name} | {count:,} | {memory / 1e9:.2f} |", flush=True)
    print(f"\nRATIO {ratio}")


def training(args: argparse.Namespace, images: str) -> str:
    """Print the rows of a training, and return their ratios."""
    print(f"ViT-{args.model_size}, 192 px, batch {args.batch_size}\n")
    print("| gradient_checkpointing | images/s | memory, GB |\n|---|---|---|")
    settings = {"model_size": args.model_size, "per_device_train_batch_size": args.batch_size, "weighting": "none"}
    found = {}
    for is_on in (False, True):
        speed, memory = found[is_on] = short_run(images, {**settings, "gradient_checkpointing": is_on}, args.steps)
        print(f"| {str(is_on).lower()} | {speed:.2f} | {memory / 1e9:.2f} |", flush=True)
    speed, memory = (found[True][which] / found[False][which] for which in (0, 1))
    return f"checkpointing_speed={speed:.3f} checkpointing_memory={memory:.3f}"


def commands(folder: str, images: str) -> dict[str, int]:
    """Return the bytes of each command that reads a data set."""
    model, output = f"{folder}/model", Path(tempfile.mkdtemp(dir=folder))
    data = {"dataset_name": images}
    return {
        "prepare": kamim("prepare", **data, output_dir=output / "prepared", image_size=64),
        "embed": kamim("embed", **data, model_name_or_path=model, output_dir=output / "features"),
        "analyze": kamim("analyze", **data, models=f"kamim={model}", output_dir=output / "figures"),
    }


if __name__ == "__main__":
    run(main)
