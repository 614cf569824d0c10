"""How long until the features are useful: minutes until a linear probe is 10 points above random weights.

    python benchmarks/time_to_probe.py --dataset_name path/to/imagenette224 [--minutes 30] [--rounds 3]
    python benchmarks/time_to_probe.py --dataset_name path/to/imagenette224 --hf_examples path/to/image-pretraining \\
        --hf_python path/to/other/environment/bin/python [--hf_rounds 1]

Each contender starts from nothing (no prepared data, no caches) in turns with the others, each round with another seed,
and saves checkpoints while it trains. Then `kamim evaluate --protocol cached --probe_layers all` scores them, and
bisection finds the first that is good enough; the time of a checkpoint is when it was written. All have an encoder of
3M parameters, images of 64 px and patches of 8 px; ours is trained to the end of its recipe.

    ours         configs/laptop/vit_mae__64px.yaml
    hf_simmim    transformers' run_mim.py with its own defaults, its sizes alone given
    hf_mae       transformers' run_mae.py by the recipe of its page, with the decoder of ours
    hf_mae_ours  the same with the batches, steps and rate of ours

All but the first need --hf_examples, a copy of examples/pytorch/image-pretraining of transformers, and --hf_python, an
environment that it runs in (for version 4.51: transformers==4.51.3, datasets<4, accelerate<2).
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from modeling_kamim.commands.configs import config_file
from modeling_kamim.commands.parser import read_yaml
from modeling_kamim.study.records import best_layer

POINTS = 10  # above random weights, in percent
CONFIG = "vit_mae__64px.yaml"
HF_BATCH = 8  # transformers' default
SAVED = "0.04"  # share of a training between two checkpoints
SIZES = "hidden_size=192,num_hidden_layers=6,num_attention_heads=3,intermediate_size=768"
PAGE_RATE = ["--base_learning_rate", "1.5e-4"]  # for 256 images
PROCESSOR = {
    "image_processor_type": "ViTImageProcessor",
    "size": {"height": 64, "width": 64},
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}


class Run(NamedTuple):
    """What a training came to: minutes until the target, or None, and until the last checkpoint, with its accuracy."""

    reached: float | None
    minutes: float
    accuracy: float

    def __str__(self) -> str:
        there = "not there" if self.reached is None else f"there after {self.reached:.1f} minutes"
        return f"{there}; last checkpoint: {self.minutes:.1f} minutes, {self.accuracy:.1%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_name", required=True, help="folder of Parquet files or images, with labels")
    parser.add_argument("--minutes", type=float, default=30, help="longest training of a contender")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--hf_rounds", type=int, help="those of transformers' scripts (as many)")
    parser.add_argument("--hf_images", type=int, default=192_000, help="that transformers' recipes are planned for")
    parser.add_argument("--hf_examples", type=Path, help="folder with transformers' run_mim.py and run_mae.py")
    parser.add_argument("--hf_python", default=sys.executable, help="Python of an environment that they run in")
    args = parser.parse_args()

    found: dict[str, list[Run]] = {name: [] for name in contenders(args, Path(), 0)}
    with tempfile.TemporaryDirectory() as folder:
        target = random_accuracy(args.dataset_name, Path(folder)) + POINTS / 100
        print(f"target: {target:.1%}", flush=True)
        for number in range(args.rounds):
            for name in found if args.hf_rounds is None or number < args.hf_rounds else ["ours"]:
                output_dir = Path(folder) / f"{name}_{number}"
                seconds = train(name, contenders(args, output_dir, number)[name], output_dir, args.minutes)
                run = score(target, seconds, args.dataset_name)
                print(f"round {number}, {name}: {run}", flush=True)
                found[name].append(run)
                shutil.rmtree(output_dir, ignore_errors=True)
    report(found)


def contenders(args: argparse.Namespace, output_dir: Path, seed: int) -> dict[str, list[str]]:
    """Return the command of each contender."""
    every = ["--dataset_name", args.dataset_name, "--output_dir", str(output_dir), "--seed", str(seed)]
    every += ["--save_steps", SAVED, "--disable_tqdm", "true"]
    ours = [sys.executable, "-m", "modeling_kamim", "pretrain", CONFIG, *every, "--save_total_limit", "0"]
    if args.hf_examples is None:
        return {"ours": ours}
    hf = [*every, "--do_train", "--remove_unused_columns", "False", "--report_to", "none"]
    hf += ["--image_processor_name", str(output_dir.parent)]
    planned = ["--max_steps", str(args.hf_images // HF_BATCH)]
    mim = ["--model_type", "vit", "--image_size", "64", "--patch_size", "8", "--encoder_stride", "8"]
    mim += ["--mask_patch_size", "16", "--config_overrides", SIZES]
    mae = ["--mask_ratio", "0.75", "--norm_pix_loss", "True", "--weight_decay", "0.05", "--lr_scheduler_type", "cosine"]
    recipe = read_yaml(config_file(Path(CONFIG)))
    sizes = f"image_size=64,patch_size=8,{SIZES},{recipe['config_overrides']},decoder_num_attention_heads=3"
    mae += ["--warmup_ratio", "0.05", "--config_overrides", sizes]
    settings = [f"--{key}={recipe[key]}" for key in ("max_steps", "per_device_train_batch_size", "adam_beta2")]
    settings.append(f"--base_learning_rate={recipe['learning_rate'] * 256 / recipe['per_device_train_batch_size']}")
    return {
        "ours": ours,
        "hf_simmim": [args.hf_python, str(args.hf_examples / "run_mim.py"), *hf, *planned, *mim],
        "hf_mae": [args.hf_python, str(args.hf_examples / "run_mae.py"), *hf, *planned, *mae, *PAGE_RATE],
        "hf_mae_ours": [args.hf_python, str(args.hf_examples / "run_mae.py"), *hf, *mae, *settings],
    }


def train(name: str, command: Sequence[str], output_dir: Path, minutes: float) -> dict[Path, float]:
    """Train for so many minutes at most, from empty caches; return the checkpoints and the seconds until each."""
    (output_dir.parent / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    caches = output_dir.with_name(f"{output_dir.name}_cache")
    environment = {**os.environ, "HF_DATASETS_CACHE": str(caches), "HF_HUB_OFFLINE": "1"}
    log = output_dir.with_suffix(".log")
    start, wall = time.perf_counter(), time.time()
    with log.open("w") as file, tqdm(total=round(60 * minutes), unit=" s", desc=name, leave=False) as bar:
        process = subprocess.Popen(list(command), stdout=file, stderr=subprocess.STDOUT, env=environment)
        while process.poll() is None and time.perf_counter() - start < 60 * minutes:
            time.sleep(1)
            bar.update(round(time.perf_counter() - start) - bar.n)
    if process.poll() is None:
        process.kill()
        process.wait()
    elif process.returncode:
        raise SystemExit(f"{name} failed: {log.read_text()[-2000:]}")
    shutil.rmtree(caches, ignore_errors=True)
    # The last file of a checkpoint
    whole = [file.parent for file in output_dir.glob("checkpoint-*/trainer_state.json")]
    if not whole:
        raise SystemExit(f"{name} saved nothing in {minutes:g} minutes; give more --minutes")
    return {folder: (folder / "trainer_state.json").stat().st_mtime - wall for folder in whole}


def score(target: float, seconds: dict[Path, float], dataset: str) -> Run:
    """Find the first checkpoint above the target by bisection, if the last one is above it."""
    checkpoints = sorted(seconds, key=seconds.__getitem__)
    minutes, last = seconds[checkpoints[-1]] / 60, accuracy(dataset, checkpoints[-1])
    if last < target:
        return Run(None, minutes, last)
    low, high = 0, len(checkpoints) - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if accuracy(dataset, checkpoints[middle]) >= target else (middle + 1, high)
    return Run(seconds[checkpoints[high]] / 60, minutes, last)


def random_accuracy(dataset: str, folder: Path) -> float:
    """Return the accuracy of the weights that our training begins with."""
    output_dir = folder / "random"
    words = [CONFIG, "--max_steps", "0", "--dataset_name", dataset]
    kamim("pretrain", *words, "--output_dir", str(output_dir))
    return accuracy(dataset, output_dir)


def accuracy(dataset: str, checkpoint: Path) -> float:
    """Return top-1 of the block whose probe is best on held-out training images."""
    output_dir = checkpoint.with_name(f"{checkpoint.name}_probe")
    words = ["--protocol", "cached", "--probe_layers", "all", "--model_name_or_path", str(checkpoint)]
    kamim("evaluate", *words, "--dataset_name", dataset, "--output_dir", str(output_dir))
    row = best_layer(json.loads((output_dir / "results.json").read_text())["rows"])
    shutil.rmtree(output_dir)
    if row is None:
        raise SystemExit("the data set has too few labelled images to hold some out")
    return row["top1"]


def kamim(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "modeling_kamim", *words], check=True, capture_output=True)


def report(found: dict[str, list[Run]]) -> None:
    """Print a table and the ratios; who was not there would need more minutes than until its last checkpoint."""
    print(f"\n| contender | minutes until +{POINTS} points, each round | median | last checkpoint |")
    print("|---|---|---|---|")
    medians, late = {}, []
    for name, runs in found.items():
        medians[name] = statistics.median(run.minutes if run.reached is None else run.reached for run in runs)
        if any(run.reached is None for run in runs):
            late.append(name)
        shown = ", ".join("not there" if run.reached is None else f"{run.reached:.1f}" for run in runs)
        last = ", ".join(f"{run.minutes:.1f} minutes {run.accuracy:.1%}" for run in runs)
        print(f"| {name} | {shown} | {'at least ' * (name in late)}{medians[name]:.1f} | {last} |")
    if "ours" in late:
        raise SystemExit("no ratio: ours was not there in every round")
    others = {name: minutes for name, minutes in medians.items() if name != "ours"}
    ratios = " ".join(f"ours_vs_{name}={medians['ours'] / minutes:.3f}" for name, minutes in others.items())
    print(f"\nRATIO ours_minutes={medians['ours']:.2f} {ratios}".rstrip())
    if late:
        print(f"at most that against {', '.join(late)}: not there at the last checkpoint")


if __name__ == "__main__":
    main()
