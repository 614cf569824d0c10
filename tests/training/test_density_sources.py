"""Runs whose weights come from other sources than the paper's: they resume to the last bit, and their cards say so."""

import json
import signal
from pathlib import Path

import pytest
import torch
from background import QUIET, RUN, SMALL, VIT, count_steps, finish, kill, wait_for
from learned_sources import save_superpoint
from runs import log_of
from safetensors.torch import load_file

SOBEL = ["--keypoint_detector", "sobel", "--keypoint_detector_args", '{"size": 5}']
CASES = {
    "sobel, map": (SOBEL, "mean gradient magnitude in it"),
    "sobel, online": ([*SOBEL, "--keypoint_source", "online"], "mean gradient magnitude in it"),
    "superpoint, map": ([], "density of SuperPoint keypoints in it"),
    "superpoint, online": (
        ["--keypoint_source", "online", "--force_online", "true"],
        "density of SuperPoint keypoints in it",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_run_of_another_source_goes_on_and_says_what_made_its_weights(start, tmp_path, case):
    arguments, words = CASES[case]
    if "superpoint" in case:
        model = save_superpoint(tmp_path / "secret" / "superpoint")
        given = json.dumps({"model": model})
        arguments = ["--keypoint_detector", "superpoint", "--keypoint_detector_args", given, *arguments]
    arguments = [*VIT, *SMALL, *RUN, *QUIET, "--max_steps", "20", "--save_steps", "100", *arguments]
    whole, stopped, log = tmp_path / "whole", tmp_path / "stopped", tmp_path / "stopped.log"
    finish(start(whole, *arguments), whole)
    process = start(stopped, *arguments)
    wait_for(lambda: count_steps(log) > 3, process)
    kill(process, signal.SIGTERM)
    assert process.exitcode == 128 + signal.SIGTERM
    finish(start(stopped, *arguments, "--resume_from_checkpoint", "auto"), stopped)
    assert "Resuming from" in log.read_text()

    first, second = load_file(whole / "model.safetensors"), load_file(stopped / "model.safetensors")
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    assert all(entry["loss"] > 1.05 * entry["masked_l1"] for entry in log_of(whole) if "loss" in entry)
    card = (whole / "README.md").read_text()
    assert words in " ".join(card.split())
    if "superpoint" in case:
        assert "academic or non-profit noncommercial research use only" in " ".join(card.split())
        check_that_nothing_says_where_it_is(whole, model)


def check_that_nothing_says_where_it_is(output_dir, model):
    """Files that are published name the weights by their digest; the log names the license."""
    files = [path for path in output_dir.rglob("*") if path.suffix in (".json", ".md", ".yaml")]
    assert {"README.md", "config.json", "settings.yaml", "run_settings.json"} <= {file.name for file in files}
    assert not [file.name for file in files if "secret" in file.read_text()]
    kamim = json.loads((output_dir / "config.json").read_text())["kamim"]
    assert json.loads(kamim["keypoint_detector_args"]) == {"model": "local:superpoint"}
    digest = kamim["keypoint_detector_weights"]
    assert digest.startswith("sha256:") and digest in (output_dir / "README.md").read_text()
    log = Path(f"{output_dir}.log").read_text()
    assert f"Density source superpoint: a model ({digest}) on cpu; its license: academic" in log
