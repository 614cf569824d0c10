"""Pretrain a small ViT with KAMIM on embedded photographs, score it beside random weights, and say what came out.

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
CONFIGS = Path("configs/quickstart")
PRETRAINED, RANDOM = OUTPUT / "kamim", OUTPUT / "random"


def main() -> None:
    start = time.perf_counter()
    run("run_mim.py", CONFIGS / "pretrain.yaml", "--output_dir", PRETRAINED)
    run("run_mim.py", CONFIGS / "pretrain.yaml", "--max_steps", "0", "--output_dir", RANDOM)
    for model in (PRETRAINED, RANDOM):
        evaluate("probe.yaml", model, model / "probe")
    evaluate("reconstruction.yaml", PRETRAINED, PRETRAINED / "reconstruction")
    summary = summarize(time.perf_counter() - start)
    (ROOT / OUTPUT / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    print(report(summary))


def run(script: str, *arguments: str | Path) -> None:
    command = [script, *map(str, arguments)]
    print(f"\n$ python {shlex.join(command)}", flush=True)
    environment = {"TRANSFORMERS_VERBOSITY": "error", **os.environ}
    finished = subprocess.run([sys.executable, *command], cwd=ROOT, env=environment)
    if finished.returncode:
        sys.exit(f"quickstart: {script} failed; its error is above")


def evaluate(config: str, model: Path, output_dir: Path) -> None:
    run("run_classification.py", CONFIGS / config, "--model_name_or_path", model, "--output_dir", output_dir)


def summarize(seconds: float) -> dict[str, float | int]:
    log = [entry for entry in read(PRETRAINED / "trainer_state.json")["log_history"] if "loss" in entry]
    results, random_results = (read(model / "probe" / "results.json") for model in (PRETRAINED, RANDOM))
    scores, random_scores = (
        {row["protocol"]: row["top1"] for row in found["rows"]} for found in (results, random_results)
    )
    filled = read(PRETRAINED / "reconstruction" / "results.json")["rows"][0]
    settings = read(PRETRAINED / "run_settings.json")
    return {
        "probe_top1": scores["cached"],
        "random_top1": random_scores["cached"],
        "knn_top1": scores["knn"],
        "random_knn_top1": random_scores["knn"],
        "chance": results["chance"],
        "masked_psnr": filled["masked_psnr"]["mean"],
        "baseline_psnr": filled["baseline_psnr"]["mean"],
        "first_masked_l1": log[0]["masked_l1"],
        "last_masked_l1": log[-1]["masked_l1"],
        "steps": log[-1]["step"],
        "images_seen": log[-1]["step"] * settings["images_per_step"],
        "bf16": settings["bf16"],
        "seconds": round(seconds, 1),
    }


def report(summary: dict[str, float | int]) -> str:
    checkpoint = (ROOT / PRETRAINED).resolve()
    return f"""
Done in {summary["seconds"]:.0f} s; the figures are in {ROOT / OUTPUT / "summary.json"}

Checkpoint        {checkpoint}
                  (AutoModel.from_pretrained loads it, without this package)
Masked L1         {summary["first_masked_l1"]:.3f}, and after {summary["steps"]} steps {summary["last_masked_l1"]:.3f}
Reconstructions   {summary["masked_psnr"]:.1f} dB on unseen tiles; the mean gray has {summary["baseline_psnr"]:.1f} dB
                  {checkpoint / "reconstructions.png"}
Linear probe      {summary["probe_top1"]:.1%} top-1 after KAMIM, {summary["random_top1"]:.1%} on random weights,
                  {summary["chance"]:.1%} is chance (which of 15 photographs is a gray tile from?)

Next, on your own images (a folder, or the id of a data set on the Hub):
  {sys.executable} run_mim.py --model_type vit --model_size tiny --dataset_name path/to/images
"""


def read(file: Path) -> dict:
    return json.loads((ROOT / file).read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
