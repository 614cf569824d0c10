import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from modeling_kamim.commands import pretrain as run_mim
from modeling_kamim.errors import InputError

ROOT = Path(__file__).parents[2]
TINY_VIT = ["--model_type", "vit", "--model_size", "tiny", "--image_size", "32", "--mask_patch_size", "16"]
TINY_SWIN = ["--model_type", "swin", "--model_size", "tiny", "--image_size", "96"]
QUIET = ["--use_cpu", "--disable_tqdm", "true", "--logging_steps", "1", "--max_eval_samples", "8"]


def pretrain(monkeypatch, output_dir, *arguments):
    monkeypatch.setattr(sys, "argv", ["run_mim.py", *arguments, *QUIET, "--output_dir", str(output_dir)])
    run_mim.main()
    return output_dir


def losses(output_dir, key="masked_l1"):
    log = json.loads((output_dir / "trainer_state.json").read_text())["log_history"]
    return [entry[key] for entry in log if "loss" in entry]


@pytest.mark.parametrize("source", ["map", "online"])
@pytest.mark.parametrize(("model", "steps", "batch"), [(TINY_VIT, 20, 8), (TINY_SWIN, 8, 4)], ids=["vit", "swin"])
def test_a_real_run_learns_and_leaves_a_checkpoint(monkeypatch, tmp_path, model, steps, batch, source):
    sizes = ["--max_steps", str(steps), "--per_device_train_batch_size", str(batch), "--learning_rate", "1e-3"]
    pretrain(monkeypatch, tmp_path, *model, *sizes, "--keypoint_source", source, "--eval_on_start", "true")

    before, after = evaluations(tmp_path)  # on the same images and masks
    assert after < 0.98 * before
    expected = "config.json model.safetensors preprocessor_config.json train_results.json README.md reconstructions.png"
    assert set(expected.split()) <= {file.name for file in tmp_path.iterdir()}
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == model[1]
    assert config["kamim"]["keypoint_source"] == source
    assert min(losses(tmp_path, "loss")) > min(losses(tmp_path))  # W >= 1: the weighted loss is the larger one
    assert {"grad_norm", "clipped_steps", "images_per_second", "data_wait"} <= set(last_log(tmp_path))


def evaluations(output_dir):
    log = json.loads((output_dir / "trainer_state.json").read_text())["log_history"]
    return [entry["eval_masked_l1"] for entry in log if "eval_masked_l1" in entry]


def last_log(output_dir):
    log = json.loads((output_dir / "trainer_state.json").read_text())["log_history"]
    return [entry for entry in log if "loss" in entry][-1]


def test_simmim_has_no_weights(monkeypatch, tmp_path):
    sizes = ["--max_steps", "2", "--per_device_train_batch_size", "4"]
    pretrain(monkeypatch, tmp_path, *TINY_VIT, *sizes, "--weighting", "none")
    assert losses(tmp_path, "loss") == pytest.approx(losses(tmp_path), rel=1e-6)


@pytest.mark.parametrize("model", [TINY_VIT, TINY_SWIN], ids=["vit", "swin"])
def test_a_resumed_run_ends_with_the_weights_of_one_that_was_not(monkeypatch, tmp_path, model):
    sizes = ["--max_steps", "4", "--save_steps", "2", "--per_device_train_batch_size", "4", "--save_total_limit", "4"]
    sizes += ["--max_train_samples", "12", "--save_strategy", "steps"]  # step 3 ends an epoch, step 2 is inside one
    whole = pretrain(monkeypatch, tmp_path / "whole", *model, *sizes)
    checkpoint = whole / "checkpoint-2"
    resumed = pretrain(monkeypatch, tmp_path / "resumed", *model, *sizes, "--resume_from_checkpoint", str(checkpoint))

    expected, found = load_file(whole / "model.safetensors"), load_file(resumed / "model.safetensors")
    assert expected.keys() == found.keys()
    assert [key for key in expected if not torch.equal(expected[key], found[key])] == []
    before = load_file(checkpoint / "model.safetensors")
    assert not torch.equal(before["decoder.0.weight"], found["decoder.0.weight"])


def make_folder(folder, photographs, count=6):
    folder.mkdir(parents=True)
    modes = ["RGB", "L", "RGBA", "P", "CMYK", "I;16"]
    for number in range(count):
        mode = modes[number % len(modes)]
        image = Image.fromarray(photographs[number % len(photographs)])
        image = Image.new("I;16", image.size, 3000) if mode == "I;16" else image.convert(mode)
        image.save(folder / f"{number}.{'jpg' if mode in ('RGB', 'L', 'CMYK') else 'png'}")
    return folder


def test_a_flat_folder_of_any_images_trains_without_validation(monkeypatch, tmp_path, photographs):
    folder = make_folder(tmp_path / "images", photographs)
    sizes = ["--max_steps", "2", "--per_device_train_batch_size", "3", "--dataset_name", str(folder)]
    output = pretrain(monkeypatch, tmp_path / "out", *TINY_VIT, *sizes)
    assert not (output / "eval_results.json").exists()
    assert str(tmp_path) not in (output / "README.md").read_text()


@pytest.mark.parametrize("source", ["map", "online"])
def test_a_broken_image_is_named_or_left_out_and_listed(monkeypatch, tmp_path, photographs, source):
    folder = make_folder(tmp_path / "images", photographs)
    (folder / "broken.png").write_bytes((folder / "2.png").read_bytes()[:200])
    arguments = [*TINY_VIT, "--dataset_name", str(folder), "--num_train_epochs", "1", "--keypoint_source", source]
    arguments += ["--per_device_train_batch_size", "2"]
    with pytest.raises(InputError, match=r"broken\.png"):
        pretrain(monkeypatch, tmp_path / "raise", *arguments)

    output = pretrain(monkeypatch, tmp_path / "skip", *arguments, "--bad_images", "skip")
    lines = (output / "bad_images.txt").read_text().splitlines()
    assert len(lines) == 1
    assert "broken.png" in lines[0]
    assert len(losses(output)) == 3  # 6 good images in batches of 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--temperature", "0"], "temperature is 0.0"),
        (["--mask_ratio", "1.5"], "mask_ratio is 1.5"),
        (["--keypoint_detector", "surf"], "'fast', 'sift', 'orb'"),
        (["--image_size", "100"], "image_size is 100"),
        (["--weight_patch_size", "5"], "weight_patch_size is 5"),
        (["--mask_patch_size", "8"], "mask_patch_size is 8"),
        (["--model_type", "swin", "--model_size", "huge"], "model_size is 'huge'"),
        (["--dataset_name", "./nowhere"], "nowhere"),
        (["--temprature", "1"], "did you mean 'temperature'"),
        (["--resume_from_checkpoint", "nowhere"], "resume_from_checkpoint is 'nowhere'"),
        (["--global_batch_size", "100"], "must be a multiple of 32"),
    ],
)
def test_bad_settings_stop_before_any_work(monkeypatch, tmp_path, arguments, message):
    with pytest.raises(InputError, match=message):
        pretrain(monkeypatch, tmp_path / "out", "--model_size", "tiny", *arguments)
    assert not (tmp_path / "out").exists()


def test_an_input_error_is_one_line_and_exit_status_2():
    command = [sys.executable, "run_mim.py", "--temperature", "-1"]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert finished.returncode == 2
    assert finished.stderr.strip().splitlines()[-1].startswith("run_mim.py: error: temperature is -1.0")
    assert "Traceback" not in finished.stderr
