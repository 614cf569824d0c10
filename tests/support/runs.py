"""Settings of short runs, and what they leave behind."""

import json
from pathlib import Path


def log_of(output_dir):
    return json.loads((output_dir / "trainer_state.json").read_text())["log_history"]


ROOT = Path(__file__).parents[2]
VIT = ["--model_type", "vit", "--model_size", "tiny", "--image_size", "32"]
MASKED = ["--mask_patch_size", "16"]
QUIET = ["--use_cpu", "--disable_tqdm", "true", "--precision", "fp32", "--logging_steps", "1"]


def curve(output_dir, key="loss"):
    return [entry[key] for entry in log_of(output_dir) if "loss" in entry]


def processes_of(checkpoint):
    """Every process leaves the state of its generator, named by its rank where there are several."""
    files = {file.name for file in checkpoint.glob("rng_state*.pth")}
    return 1 if files == {"rng_state.pth"} else len(files)
