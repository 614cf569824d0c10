import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForImageClassification

from modeling_kamim.commands import evaluate as run_classification
from modeling_kamim.commands import pretrain as run_mim
from modeling_kamim.errors import InputError

QUIET = ["--use_cpu", "--disable_tqdm", "true", "--max_train_samples", "32", "--max_eval_samples", "30"]


def run(script, monkeypatch, output_dir, *arguments):
    monkeypatch.setattr(sys, "argv", ["script.py", *arguments, *QUIET, "--output_dir", str(output_dir)])
    script.main()
    return output_dir


@pytest.fixture(scope="module", params=["vit", "swin"])
def checkpoint(request, tmp_path_factory):
    model = {
        "vit": ["--model_type", "vit", "--image_size", "32", "--mask_patch_size", "16"],
        "swin": ["--model_type", "swin", "--image_size", "96"],
    }[request.param]
    with pytest.MonkeyPatch.context() as monkeypatch:
        sizes = ["--model_size", "tiny", "--max_steps", "1", "--per_device_train_batch_size", "2"]
        return run(run_mim, monkeypatch, tmp_path_factory.mktemp(request.param), *model, *sizes)


@pytest.fixture
def color_folder(tmp_path):
    """Two classes that differ in color, each in its own folder; training and validation images."""
    rng = np.random.default_rng(0)
    for split in ("train", "validation"):
        for name, channel in (("red", 0), ("blue", 2)):
            folder = tmp_path / "colors" / split / name
            folder.mkdir(parents=True)
            for number in range(8):
                pixels = rng.integers(0, 60, (40, 50, 3), dtype=np.uint8)
                pixels[..., channel] += 180
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return tmp_path / "colors"


@pytest.mark.parametrize("mode", ["linear_probe", "finetune"])
def test_results_and_checkpoint(monkeypatch, tmp_path, checkpoint, mode):
    sizes = ["--max_steps", "2", "--per_device_train_batch_size", "8"]
    output = run(
        run_classification, monkeypatch, tmp_path, "--mode", mode, "--model_name_or_path", str(checkpoint), *sizes
    )
    results = json.loads((output / "results.json").read_text())
    is_vit = "vit" in checkpoint.name
    assert results["mode"] == mode
    assert results["layer"] == ((8 if mode == "linear_probe" else 12) if is_vit else "last stage")
    assert 0 <= results["top1"] <= results["top5"] <= 1
    assert results["num_classes"] == 15
    model = AutoModelForImageClassification.from_pretrained(output)
    assert model.config.id2label[0] == "astronaut"

    before, after = load_file(checkpoint / "model.safetensors"), load_file(output / "model.safetensors")
    old_name = "vit.embeddings.cls_token" if is_vit else "swin.embeddings.norm.weight"
    new_name = "encoder.embeddings.cls_token" if is_vit else old_name
    assert torch.equal(before[old_name], after[new_name]) == (mode == "linear_probe")


def test_a_probe_tells_two_colors_apart(monkeypatch, tmp_path, color_folder):
    sizes = ["--num_train_epochs", "30", "--per_device_train_batch_size", "8", "--augmentation", "none"]
    model = ["--model_size", "tiny", "--image_size", "32"]
    output = run(run_classification, monkeypatch, tmp_path, "--dataset_name", str(color_folder), *model, *sizes)
    assert json.loads((output / "results.json").read_text())["top1"] == 1.0


def test_a_probe_on_cached_features_is_the_probe_of_forward_passes(monkeypatch, tmp_path, checkpoint):
    sizes = ["--num_train_epochs", "2", "--per_device_train_batch_size", "16", "--augmentation", "none"]
    sizes += ["--model_name_or_path", str(checkpoint), "--max_train_samples", "64", "--precision", "fp32"]
    cached = run(run_classification, monkeypatch, tmp_path / "cached", *sizes)
    forward = run(run_classification, monkeypatch, tmp_path / "forward", *sizes, "--cache_features", "false")
    expected, found = load_file(forward / "model.safetensors"), load_file(cached / "model.safetensors")
    assert expected.keys() == found.keys()
    for key in expected:
        torch.testing.assert_close(found[key], expected[key], rtol=1e-4, atol=1e-6)
    results = [json.loads((output / "results.json").read_text()) for output in (cached, forward)]
    assert results[0]["top1"] == results[1]["top1"]


def test_accumulation_gives_the_losses_of_one_large_batch(monkeypatch, tmp_path):
    """8 x 1 and 2 x 4 without mixing (mixing is drawn for each batch)."""
    model = ["--model_size", "tiny", "--image_size", "32", "--augmentation", "none", "--logging_steps", "1"]
    model += ["--precision", "fp32"]
    curves = []
    for batch in (8, 2):
        sizes = ["--max_steps", "4", "--per_device_train_batch_size", str(batch), "--global_batch_size", "8"]
        output = run(run_classification, monkeypatch, tmp_path / str(batch), *model, *sizes)
        log = json.loads((output / "trainer_state.json").read_text())["log_history"]
        curves.append([(entry["loss"], entry["grad_norm"]) for entry in log if "loss" in entry])
    torch.testing.assert_close(torch.tensor(curves[0]), torch.tensor(curves[1]), rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--layer", "13"], "layer is 13; the encoder has 12 blocks"),
        (["--layer", "0"], "layer is 0"),
        (["--model_type", "swin", "--layer", "3"], "layer and layer_norm are for ViT"),
        (["--model_name_or_path", "./nowhere"], "nowhere"),
        (["--label_column", "species"], "there is no column 'species'"),
        (["--mode", "probe"], "'linear_probe', 'finetune'"),
    ],
)
def test_bad_settings_stop_before_any_work(monkeypatch, tmp_path, arguments, message):
    with pytest.raises(InputError, match=message):
        run(run_classification, monkeypatch, tmp_path / "out", "--model_size", "tiny", *arguments)
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_of_another_size_is_refused(monkeypatch, tmp_path, checkpoint):
    with pytest.raises(InputError, match="image_size is 64"):
        arguments = ["--model_name_or_path", str(checkpoint), "--image_size", "64"]
        run(run_classification, monkeypatch, tmp_path / "out", *arguments)


def test_cached_probes_of_every_layer_and_seed_are_rows(monkeypatch, tmp_path, checkpoint):
    sizes = ["--protocol", "cached", "--probe_layers", "all", "--seeds", "0", "1", "--low_shot", "0.02"]
    output = run(run_classification, monkeypatch, tmp_path, "--model_name_or_path", str(checkpoint), *sizes)
    results = json.loads((output / "results.json").read_text())
    layers = [*map(str, range(1, 13)), "final"] if "vit" in checkpoint.name else ["1", "2", "3", "4", "final"]
    for protocol in ("cached", "knn"):
        for seed in (0, 1):
            rows = [row for row in results["rows"] if (row["protocol"], row["seed"]) == (protocol, seed)]
            assert [row["layer"] for row in rows] == layers
            assert all(0 <= row["top1"] <= row["top5"] <= 1 and row["num_train_images"] == 15 for row in rows)
    assert results["provenance"]["checkpoint"] == f"local:{checkpoint.name}"
    assert len(results["provenance"]["checkpoint_sha256"]) == 64
    assert str(tmp_path.parent) not in (output / "results.json").read_text()
    assert (output / "depth.png").exists() and (output / "confusion.png").exists()

    report = run(run_classification, monkeypatch, tmp_path / "report", "--report", str(output))
    assert "k-NN" in (report / "report.md").read_text()
    assert r"\toprule" in (report / "report.tex").read_text()


def test_the_cached_probe_of_one_layer_reads_the_papers_block(monkeypatch, tmp_path, checkpoint):
    settings = ["--protocol", "cached", "--model_name_or_path", str(checkpoint)]
    output = run(run_classification, monkeypatch, tmp_path, *settings)
    rows = json.loads((output / "results.json").read_text())["rows"]
    assert [(row["protocol"], row["layer"]) for row in rows] == [
        (protocol, "8" if "vit" in checkpoint.name else "final") for protocol in ("cached", "knn")
    ]


def test_reconstructions_are_scored_and_drawn(monkeypatch, tmp_path, checkpoint):
    models = ["--model_name_or_path", str(checkpoint), "--compare_with", str(checkpoint)]
    output = run(run_classification, monkeypatch, tmp_path, "--mode", "reconstruction", *models)
    first, second = json.loads((output / "results.json").read_text())["rows"]
    assert first["num_images"] == 30
    assert first["masked_psnr"] == second["masked_psnr"]
    assert (output / "reconstructions.png").exists()
    report = run(run_classification, monkeypatch, tmp_path / "report", "--report", str(output))
    for file in ("report.md", "report.tex"):
        assert f"{first['masked_psnr']['mean']:.2f}" in (report / file).read_text()


def test_reconstruction_needs_a_decoder(monkeypatch, tmp_path, checkpoint):
    encoder = tmp_path / "encoder"
    AutoModel.from_pretrained(checkpoint).save_pretrained(encoder)
    with pytest.raises(InputError, match="holds no decoder"):
        run(run_classification, monkeypatch, tmp_path, "--mode", "reconstruction", "--model_name_or_path", str(encoder))


def test_finetuning_at_another_size_with_every_option(monkeypatch, tmp_path, checkpoint):
    settings = ["--mode", "finetune", "--layer_decay", "0.7", "--ema_decay", "0.9", "--drop_path", "0.2"]
    settings += ["--augmentation", "strong", "--label_smoothing_factor", "0.1"]
    settings += ["--max_steps", "2", "--per_device_train_batch_size", "4"]
    size = "48" if "vit" in checkpoint.name else "128"
    output = run(
        run_classification,
        monkeypatch,
        tmp_path,
        "--model_name_or_path",
        str(checkpoint),
        "--image_size",
        size,
        *settings,
    )
    results = json.loads((output / "results.json").read_text())
    assert results["image_size"] == int(size)
    assert [results[name] for name in ("layer_decay", "ema_decay", "drop_path")] == [0.7, 0.9, 0.2]
    model = AutoModelForImageClassification.from_pretrained(output)
    assert model.config.image_size == int(size)


def test_a_block_scores_the_same_alone_and_among_all(monkeypatch, tmp_path, checkpoint):
    if "swin" in checkpoint.name:
        pytest.skip("one architecture is enough")

    def rows(name, *settings):
        settings = ["--model_name_or_path", str(checkpoint), "--low_shot", "0.02", *settings]
        output = run(run_classification, monkeypatch, tmp_path / name, *settings)
        results = json.loads((output / "results.json").read_text())
        measured = ("top1", "top5", "top1_interval", "loss", "chosen_learning_rate")
        return {
            (row["protocol"], row["layer"]): {key: row.get(key) for key in measured}
            for row in results.get("rows") or [results]
        }

    every_layer = rows("all", "--protocol", "cached", "--probe_layers", "all")
    alone, neighbors = rows("cached", "--protocol", "cached"), rows("knn", "--protocol", "knn")
    assert list(alone) == [("cached", "8"), ("knn", "8")] and list(neighbors) == [("knn", "8")]
    assert {key: every_layer[key] for key in alone} == alone
    assert neighbors[("knn", "8")] == alone[("knn", "8")]


@pytest.mark.parametrize("arguments", [[], ["--protocol", "knn"], ["--mode", "finetune"]])
def test_images_without_labels_are_refused_in_a_sentence(monkeypatch, tmp_path, photographs, arguments):
    (tmp_path / "flat").mkdir()
    for number, pixels in enumerate(photographs):
        Image.fromarray(pixels).save(tmp_path / "flat" / f"{number}.png")
    settings = ["--model_size", "tiny", "--dataset_name", str(tmp_path / "flat"), *arguments]
    with pytest.raises(InputError, match="no labels.* folder of its own .*kamim reconstruct needs no labels"):
        run(run_classification, monkeypatch, tmp_path / "out", *settings)


def test_a_probe_that_only_guesses_says_so(monkeypatch, tmp_path, color_folder, caplog):
    settings = ["--model_size", "tiny", "--image_size", "32", "--dataset_name", str(color_folder)]
    settings += ["--augmentation", "none", "--per_device_train_batch_size", "8", "--num_train_epochs", "30"]
    with caplog.at_level("WARNING"):
        run(run_classification, monkeypatch, tmp_path / "rate", *settings, "--learning_rate", "1e-9")
    (said,) = [message for message in caplog.messages if "close to guessing" in message]
    assert "learning rate was 1e-09" in said and "--learning_rate" in said
    caplog.clear()
    with caplog.at_level("WARNING"):
        run(run_classification, monkeypatch, tmp_path / "good", *settings)
    assert "guessing" not in caplog.text


def test_maes_protocol_trains_by_lars(monkeypatch, tmp_path, checkpoint):
    pytest.importorskip("timm")
    if "swin" in checkpoint.name:
        pytest.skip("BatchNorm before the head is for ViT")
    sizes = ["--protocol", "mae", "--max_steps", "2", "--per_device_train_batch_size", "8"]
    output = run(run_classification, monkeypatch, tmp_path, "--model_name_or_path", str(checkpoint), *sizes)
    results = json.loads((output / "results.json").read_text())
    assert (results["protocol"], results["layer"], results["optimizer"]) == ("mae", 12, "lars")
    assert results["augmentation"] == "crop_flip"
    assert results["learning_rate"] == 0.1 * 8 / 256  # 0.1 for 256 images, as in MAE's code


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--protocol", "mae", "--mode", "finetune"], "protocol is mae"),
        (["--layer_decay", "0.5"], "are for --mode finetune"),
        (["--mode", "finetune", "--layer_decay", "2"], "layer_decay is 2.0"),
        (["--mode", "finetune", "--drop_path", "1"], "drop_path is 1.0"),
        (["--drop_path", "0.1"], "are for --mode finetune"),
        (["--low_shot", "2"], "low_shot is 2.0"),
        (["--mode", "reconstruction"], "need --model_name_or_path"),
        (["--report", "./nowhere"], "nowhere"),
        (["--protocol", "cached", "--layer", "13"], "layer is 13"),
    ],
)
def test_bad_evaluations_stop_before_any_work(monkeypatch, tmp_path, arguments, message):
    with pytest.raises(InputError, match=message):
        run(run_classification, monkeypatch, tmp_path / "out", "--model_size", "tiny", *arguments)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("augmentation", ["auto", "none"])  # without augmentation the head is trained on features
def test_the_protocol_of_mae_with_one_image_left_over(monkeypatch, tmp_path, augmentation):
    arguments = ["--protocol", "mae", "--augmentation", augmentation, "--model_size", "tiny", "--image_size", "32"]
    arguments += [
        "--per_device_train_batch_size",
        "31",
        "--num_train_epochs",
        "2",
        "--per_device_eval_batch_size",
        "29",
    ]
    output = run(run_classification, monkeypatch, tmp_path, *arguments)  # 32 images to train on, 30 to score
    state = json.loads((output / "trainer_state.json").read_text())
    assert state["global_step"] == 2
    results = json.loads((output / "results.json").read_text())
    assert sum(map(sum, results["confusion"])) == results["num_validation_images"] == 30
    with pytest.raises(InputError, match="32 training images, fewer than the 33"):
        run(run_classification, monkeypatch, tmp_path, *arguments, "--per_device_train_batch_size", "33")
    with pytest.raises(InputError, match="BatchNorm"):
        run(run_classification, monkeypatch, tmp_path, *arguments, "--per_device_train_batch_size", "1")
