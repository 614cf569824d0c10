"""How long until the features are useful: minutes until a linear probe is 10 points above random weights.

    python benchmarks/time_to_probe.py --dataset_name path/to/imagenette224 [--minutes 30] [--rounds 3]
    python benchmarks/time_to_probe.py --dataset_name path/to/imagenette224 --hf_examples path/to/image-pretraining \\
        --hf_python path/to/other/environment/bin/python

Each contender starts from nothing (no prepared data, no caches) in turns with the others, and saves checkpoints while
it trains. Then `kamim evaluate --protocol cached --probe_layers all` scores them, and bisection finds the first that is
good enough; the time of a checkpoint is when it was written. All have an encoder of 3M parameters, images of 64 px and
patches of 8 px; ours are trained to the end of their recipe.

    kamim_mae    configs/laptop/kamim_vit_mae__64px.yaml
    mae          the same without weights
    mae_small    the same without weights, in batches of 32, for half the images
    hf_simmim    transformers' run_mim.py with its own defaults, its sizes alone given
    hf_mae       transformers' run_mae.py by the recipe of its page

The last two need --hf_examples, a copy of examples/pytorch/image-pretraining of transformers, and --hf_python, an
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

from tqdm import tqdm

from modeling_kamim.study.records import best_layer

POINTS = 10  # above random weights, in percent
CONFIG = "kamim_vit_mae__64px.yaml"
OURS = ("kamim_mae", "mae", "mae_small")
HF_BATCH = 8  # transformers' default
SAVED = "0.04"  # share of a training between two checkpoints
SIZES = "hidden_size=192,num_hidden_layers=6,num_attention_heads=3,intermediate_size=768"
DECODER = "decoder_hidden_size=192,decoder_num_hidden_layers=2,decoder_num_attention_heads=3,"
DECODER += "decoder_intermediate_size=768"
PROCESSOR = {
    "image_processor_type": "ViTImageProcessor",
    "size": {"height": 64, "width": 64},
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_name", required=True, help="folder of Parquet files or images, with labels")
    parser.add_argument("--minutes", type=float, default=30, help="longest training of a contender")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--hf_images", type=int, default=192_000, help="that transformers' two are planned for")
    parser.add_argument("--hf_examples", type=Path, help="folder with transformers' run_mim.py and run_mae.py")
    parser.add_argument("--hf_python", default=sys.executable, help="Python of an environment that they run in")
    args = parser.parse_args()

    found: dict[str, list[float | None]] = {name: [] for name in contenders(args, Path())}
    with tempfile.TemporaryDirectory() as folder:
        target = random_accuracy(args.dataset_name, Path(folder)) + POINTS / 100
        print(f"target: {target:.1%}")
        for number in range(args.rounds):
            for name in found:
                output_dir = Path(folder) / f"{name}_{number}"
                seconds = train(name, contenders(args, output_dir)[name], output_dir, args.minutes)
                found[name].append(minutes_until(target, seconds, args.dataset_name))
                shutil.rmtree(output_dir, ignore_errors=True)
    report(found, args.minutes)


def contenders(args: argparse.Namespace, output_dir: Path) -> dict[str, list[str]]:
    """Return the command of each contender."""
    data = ["--dataset_name", args.dataset_name, "--output_dir", str(output_dir)]
    ours = [*data, "--save_steps", SAVED, "--save_total_limit", "0", "--disable_tqdm", "true"]
    kamim = [sys.executable, "-m", "modeling_kamim", "pretrain", CONFIG, *ours]
    plain = [*kamim, "--weighting", "none"]
    small = ["--per_device_train_batch_size", "32", "--learning_rate", "5e-4", "--max_steps", "3000"]
    commands = {"kamim_mae": kamim, "mae": plain, "mae_small": [*plain, *small]}
    if args.hf_examples is None:
        return commands
    every = ["--max_steps", str(args.hf_images // HF_BATCH), "--save_steps", SAVED]
    own = [*data, *every, "--do_train", "--remove_unused_columns", "False", "--disable_tqdm", "True"]
    own += ["--report_to", "none", "--image_processor_name", str(output_dir.parent)]
    mim = ["--model_type", "vit", "--image_size", "64", "--patch_size", "8", "--encoder_stride", "8"]
    mim += ["--mask_patch_size", "16", "--config_overrides", SIZES]
    mae = ["--mask_ratio", "0.75", "--norm_pix_loss", "True", "--base_learning_rate", "1.5e-4"]
    mae += ["--weight_decay", "0.05", "--lr_scheduler_type", "cosine", "--warmup_ratio", "0.05"]
    mae += ["--config_overrides", f"image_size=64,patch_size=8,{SIZES},{DECODER}"]
    commands["hf_simmim"] = [args.hf_python, str(args.hf_examples / "run_mim.py"), *own, *mim]
    commands["hf_mae"] = [args.hf_python, str(args.hf_examples / "run_mae.py"), *own, *mae]
    return commands


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
    whole = [file.parent for file in output_dir.glob("checkpoint-*/trainer_state.json")]
    return {folder: (folder / "trainer_state.json").stat().st_mtime - wall for folder in whole}


def minutes_until(target: float, seconds: dict[Path, float], dataset: str) -> float | None:
    """Return the minutes until the first checkpoint above the target, by bisection; None if the last one is below."""
    checkpoints = sorted(seconds, key=seconds.__getitem__)
    if not checkpoints or accuracy(dataset, checkpoints[-1]) < target:
        return None
    low, high = 0, len(checkpoints) - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if accuracy(dataset, checkpoints[middle]) >= target else (middle + 1, high)
    return seconds[checkpoints[high]] / 60


def random_accuracy(dataset: str, folder: Path) -> float:
    """Return the accuracy of the weights that our training begins with."""
    output_dir = folder / "random"
    words = [CONFIG, "--max_steps", "0", "--weighting", "none", "--dataset_name", dataset]
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


def report(found: dict[str, list[float | None]], limit: float) -> None:
    print(f"\n| contender | minutes until {POINTS} points above random weights, each round | median |\n|---|---|---|")
    medians = {}
    for name, times in found.items():
        # A round that did not get there counts as longer than any that did
        medians[name] = statistics.median(limit if minutes is None else minutes for minutes in times)
        shown = [f"not in {limit:g}" if minutes is None else f"{minutes:.1f}" for minutes in times]
        print(f"| {name} | {', '.join(shown)} | {'at least ' * (None in times)}{medians[name]:.1f} |")
    ours = min(OURS, key=medians.__getitem__)
    if None in found[ours]:
        raise SystemExit(f"no ratio: none of ours was there in {limit:g} minutes in every round; give more --minutes")
    others = {name: medians[name] for name in ("hf_simmim", "hf_mae") if name in medians}
    ratios = " ".join(f"ours_vs_{name}={medians[ours] / minutes:.3f}" for name, minutes in others.items())
    late = [name for name in others if None in found[name]]
    print(f"\nRATIO ours_minutes={medians[ours]:.2f} {ratios}".rstrip())
    if late:
        print(f"at most that against {' and '.join(late)}, not there in {limit:g} minutes")


if __name__ == "__main__":
    main()
