"""What `kamim check` estimates of a pretraining, beside a short real one.

    python benchmarks/estimate.py [--dataset_name path/to/photographs] [--models vit-tiny] [--image_sizes 96 192]

Both are processes of their own, as a user starts them, in turns; numbers are medians over the rounds. Speed is that of
the log after the first step, memory the largest resident set of the process (not its children), by looking every 20 ms.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from tqdm import tqdm

from modeling_kamim.commands.endings import run
from modeling_kamim.data.loading import choose_splits, load_images, subsample

MODELS = ("vit-tiny", "vit-small", "swin-tiny")
IMAGE_SIZES = (96, 128, 192)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_name", help="as for kamim pretrain; the embedded photographs where not given")
    parser.add_argument("--models", nargs="+", default=MODELS, help="type and size, as vit-tiny")
    parser.add_argument("--image_sizes", type=int, nargs="+", default=IMAGE_SIZES)
    parser.add_argument("--num_images", type=int, default=96)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=6, help="of the real training")
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()

    print("| model | px | estimate, images/s | run | ratio | estimate, GB | run | ratio |\n" + "|---" * 8 + "|")
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        images, _ = choose_splits(load_images(args.dataset_name))
        subsample(images, args.num_images, seed=0).save_to_disk(f"{folder}/images")
        cases = [(model, size) for model in args.models for size in args.image_sizes]
        for model, size in tqdm(cases, desc="models"):
            settings = {"per_device_train_batch_size": args.batch_size, "image_size": size}
            settings["model_type"], settings["model_size"] = model.split("-")
            pairs = [
                (estimate(folder, settings), short_run(f"{folder}/images", settings, args.steps))
                for _ in range(args.rounds)
            ]
            (speed, real_speed), (memory, real_memory) = (
                [statistics.median(pair[which][number] for pair in pairs) for which in (0, 1)] for number in (0, 1)
            )
            print(
                f"| {model} | {size} | {speed:.1f} | {real_speed:.1f} | {speed / real_speed:.2f} | "
                f"{memory / 1e9:.2f} | {real_memory / 1e9:.2f} | {memory / real_memory:.2f} |",
                flush=True,
            )
            name = f"{model.replace('-', '_')}_{size}"
            ratios += [f"estimate_vs_run_{name}_images_per_second={speed / real_speed:.3f}"]
            ratios += [f"estimate_vs_run_{name}_memory={memory / real_memory:.3f}"]
    print("\nRATIO " + " ".join(ratios))


def estimate(folder: str, settings: dict[str, object]) -> tuple[float, int]:
    """Images per second and bytes, by `kamim check`."""
    kamim("check", dataset_name=f"{folder}/images", json=f"{folder}/facts.json", **settings)
    found = json.loads(Path(f"{folder}/facts.json").read_text(encoding="utf-8"))["estimate"]
    return found["images_per_second"], found["memory"]


def short_run(images: str, settings: dict[str, object], steps: int) -> tuple[float, int]:
    """Images per second and bytes, of `kamim pretrain`."""
    with tempfile.TemporaryDirectory() as output:
        once = {"max_steps": steps, "logging_steps": 1, "save_strategy": "no", "output_dir": output}
        memory = kamim("pretrain", dataset_name=images, **once, **settings)
        state = json.loads(Path(output, "trainer_state.json").read_text(encoding="utf-8"))
    speeds = [entry["images_per_second"] for entry in state["log_history"] if "images_per_second" in entry]
    return statistics.median(speeds[1:]), memory


def kamim(command: str, **options: object) -> int:
    """Run a command, and return the largest sum of the resident sets of its processes, in bytes."""
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    started = subprocess.Popen(
        [sys.executable, "-m", "modeling_kamim", command, *words], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    process, largest = psutil.Process(started.pid), 0
    while started.poll() is None:
        try:
            own = [process, *process.children(recursive=True)]
            largest = max(largest, sum(each.memory_info().rss for each in own))
        except psutil.NoSuchProcess:
            pass
        time.sleep(0.02)
    if started.wait():
        raise RuntimeError(f"kamim {command} {' '.join(words)} ended with status {started.returncode}")
    return largest


if __name__ == "__main__":
    run(main)
