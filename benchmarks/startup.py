"""How long until the first step: imports, data, model, first step; on the embedded photographs and on a folder.

    python benchmarks/startup.py [--rounds 5] [--num_files 10000]

Every figure is the median of processes of their own, in turns, with warm caches: one round before is not counted.
The folder holds JPEGs of 64 px in ten classes, and SimMIM is trained on it, for which nothing is detected.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

IMPORTS = {
    "import torch": "import torch",
    "import transformers' model and Trainer": "from transformers import ViTForMaskedImageModeling, Trainer",
    "import all of kamim pretrain": "import modeling_kamim.commands.pretrain",
}
RUN = ["--model_type", "vit", "--model_size", "tiny", "--image_size", "96", "--max_steps", "2", "--save_strategy", "no"]
RUN += ["--disable_tqdm", "true", "--per_device_train_batch_size", "32", "--max_eval_samples", "8"]
MARKS = {  # from a line of the log to what has been done when it is there
    "data and keypoints": "on {} images",
    "model and estimate": "images take about",
    "first step": "'loss'",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="processes for each figure")
    parser.add_argument("--num_files", type=int, default=10_000, help="files in the folder")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        images = make_folder(Path(folder) / "images", args.num_files)
        runs = {
            "embedded photographs, KAMIM": ([], 1120),
            f"folder of {args.num_files:,} files, SimMIM": (
                ["--dataset_name", str(images), "--weighting", "none"],
                args.num_files,
            ),
        }
        imports: dict[str, list[float]] = {name: [] for name in IMPORTS}
        starts: dict[str, list[dict[str, float]]] = {name: [] for name in runs}
        for round_number in tqdm(range(args.rounds + 1), desc="Rounds"):
            for name, code in IMPORTS.items():
                seconds = timed([sys.executable, "-c", code])
                imports[name] += [seconds] * (round_number > 0)
            for name, (argv, count) in runs.items():
                marks = first_step([*argv, "--output_dir", f"{folder}/run"], count)
                starts[name] += [marks] * (round_number > 0)

    medians = {name: statistics.median(seconds) for name, seconds in imports.items()}
    print("\n| imports | seconds |\n|---|---|")
    for name, seconds in medians.items():
        print(f"| {name} | {seconds:.2f} |")
    print(f"\n| seconds until | {' | '.join(MARKS)} |\n|---|{'---|' * len(MARKS)}")
    for name, found in starts.items():
        print(f"| {name} | {' | '.join(f'{statistics.median(one[mark] for one in found):.2f}' for mark in MARKS)} |")
    ratio = medians["import all of kamim pretrain"] / medians["import torch"]
    beside = medians["import all of kamim pretrain"] / medians["import transformers' model and Trainer"]
    steps = [statistics.median(one["first step"] for one in found) for found in starts.values()]
    print(
        f"\nRATIO import_vs_torch={ratio:.3f} import_vs_transformers={beside:.3f} first_step_s={steps[0]:.2f} "
        f"first_step_folder_s={steps[1]:.2f}"
    )


def make_folder(folder: Path, num_files: int) -> Path:
    """Write JPEGs of noise into ten folders of classes."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    for number in range(num_files):
        file = folder / f"class_{number % 10}" / f"{number}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.roll(noise, number, axis=0)).save(file)
    return folder


def timed(command: list[str]) -> float:
    """Return the seconds that a process takes."""
    start = time.perf_counter()
    subprocess.run(command, check=True)
    return time.perf_counter() - start


def first_step(argv: list[str], num_images: int) -> dict[str, float]:
    """Start a training, return the seconds until each of `MARKS`, and end it."""
    start, seconds = time.perf_counter(), dict[str, float]()
    process = subprocess.Popen(
        [sys.executable, "-m", "modeling_kamim", "pretrain", *RUN, *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    lines = []
    for line in process.stdout or ():
        lines.append(line)
        for mark, words in MARKS.items():
            if words.format(num_images) in line:
                seconds.setdefault(mark, time.perf_counter() - start)
        if "first step" in seconds:
            break
    process.kill()
    process.wait()
    if len(seconds) < len(MARKS):
        raise SystemExit(f"the training took no step: {json.dumps(lines[-5:])}")
    return seconds


if __name__ == "__main__":
    main()
