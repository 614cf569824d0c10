"""Pretrain a small ViT with KAMIM on embedded photographs, probe it beside random weights, and say what came out.

make quickstart
python examples/quickstart.py
"""

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OUTPUT = Path("outputs/quickstart")
PRETRAINED, PROBE, RANDOM_PROBE = OUTPUT / "kamim", OUTPUT / "probe", OUTPUT / "probe_random"
PROBE_CONFIG = "configs/quickstart/linear_probe.yaml"


def main() -> None:
    start = time.perf_counter()
    run("run_mim.py", "configs/quickstart/pretrain.yaml", "--output_dir", PRETRAINED)
    run("run_classification.py", PROBE_CONFIG, "--model_name_or_path", PRETRAINED, "--output_dir", PROBE)
    random_weights = ("--model_type", "vit", "--model_size", "tiny", "--image_size", "96")
    run("run_classification.py", PROBE_CONFIG, *random_weights, "--output_dir", RANDOM_PROBE)
    summarize(time.perf_counter() - start)


def run(script: str, *arguments: str | Path) -> None:
    command = [script, *map(str, arguments)]
    print(f"\n$ python {shlex.join(command)}", flush=True)
    environment = {"TRANSFORMERS_VERBOSITY": "error", **os.environ}
    finished = subprocess.run([sys.executable, *command], cwd=ROOT, env=environment)
    if finished.returncode:
        sys.exit(f"quickstart: {script} failed; its error is above")


def summarize(seconds: float) -> None:
    log = [entry for entry in read(PRETRAINED / "trainer_state.json")["log_history"] if "loss" in entry]
    first, last = log[0], log[-1]
    probe, random_probe = read(PROBE / "results.json"), read(RANDOM_PROBE / "results.json")
    checkpoint = (ROOT / PRETRAINED).resolve()
    print(
        f"""
Done in {seconds:.0f} s.

Checkpoint        {checkpoint}
                  (AutoModel.from_pretrained loads it, without this package)
Weighted loss     {first["loss"]:.2f} at the start, {last["loss"]:.2f} at the end of {last["step"]} steps
Masked L1         {first["masked_l1"]:.3f} at the start, {last["masked_l1"]:.3f} at the end
Linear probe      {probe["top1"]:.1%} top-1 after KAMIM, {random_probe["top1"]:.1%} on random weights,
                  {probe["chance"]:.1%} is chance
                  (tiles of 15 photographs differ in color and texture, which random weights pass on; a few hundred
                  steps on a thousand tiles show the path, not the method)
Reconstructions   {checkpoint / "reconstructions.png"}

Next, on your own images (a folder, or the id of a data set on the Hub):
  {sys.executable} run_mim.py --model_type vit --model_size tiny --dataset_name path/to/images
"""
    )


def read(file: Path) -> dict:
    return json.loads((ROOT / file).read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
