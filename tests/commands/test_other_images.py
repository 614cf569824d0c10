"""From pretraining to the probe on images that are not 8-bit RGB: 16-bit gray TIFF, 6 channels as files and columns."""

import json
import sys

import datasets
import numpy as np
import pytest
import tifffile
import torch
from transformers import AutoImageProcessor, AutoModel

from modeling_kamim.commands.analyze import main as analyze
from modeling_kamim.commands.evaluate import main as evaluate
from modeling_kamim.commands.export import main as export
from modeling_kamim.commands.prepare import main as prepare
from modeling_kamim.commands.pretrain import main as pretrain
from modeling_kamim.commands.reconstruct import main as reconstruct
from modeling_kamim.data.decoding import decode_image
from modeling_kamim.data.samples import channels_first
from modeling_kamim.errors import InputError
from modeling_kamim.models.processor import image_processor, pixel_range_of
from modeling_kamim.training.batches import normalize

TINY = ["--model_type", "vit", "--image_size", "32", "--patch_size", "8", "--mask_patch_size", "16"]
TINY += ["--config_overrides", "hidden_size=32,num_hidden_layers=2,num_attention_heads=2,intermediate_size=64"]
QUICK = ["--use_cpu", "--disable_tqdm", "true", "--precision", "fp32", "--per_device_train_batch_size", "4"]
UNITS = np.array([1.0, 1e-3, 5e4, 255.0, 7.0, 0.2], np.float32)[:, None, None]


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    yield
    datasets.enable_progress_bars()


def scene(seed, block=4):
    """Squares, `(32, 32)`, in [0, 1]."""
    return np.random.default_rng(seed).random((32 // block, 32 // block)).repeat(block, 0).repeat(block, 1)


def bands(seed):
    return np.stack([scene(10 * seed + channel) for channel in range(6)]).astype(np.float32) * UNITS


def write(folder, suffix, save):
    for seed in range(16):
        path = folder / ("train" if seed < 12 else "validation") / ("cat" if seed % 2 else "dog") / f"{seed}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        save(path, seed)
    return folder


def write_bands(folder):
    return write(folder, ".npy", lambda path, seed: np.save(path, bands(seed)))


def command(monkeypatch, main, output_dir, *arguments):
    monkeypatch.setattr(sys, "argv", ["kamim", *map(str, arguments), "--output_dir", str(output_dir)])
    main()
    return output_dir


def trained(monkeypatch, data, output_dir, *arguments):
    settings = [*TINY, *QUICK, "--dataset_name", data, "--max_steps", "2", *arguments]
    return command(monkeypatch, pretrain, output_dir, *settings)


def evaluated(monkeypatch, data, checkpoint, output_dir, *arguments):
    settings = [*QUICK, "--dataset_name", data, "--model_name_or_path", checkpoint, *arguments]
    assert (command(monkeypatch, evaluate, output_dir, *settings) / "results.json").is_file()


def reconstructed(monkeypatch, data, checkpoint, output_dir):
    settings = ["--model_name_or_path", checkpoint, "--dataset_name", data, "--use_cpu"]
    assert (command(monkeypatch, reconstruct, output_dir, *settings) / "reconstructions.png").is_file()


def write_deep(path, seed):
    tifffile.imwrite(path, (1000 + 3000 * scene(seed)).astype("uint16"))


def test_gray_of_16_bits_is_trained_without_rgb(monkeypatch, tmp_path):
    deep = write(
        tmp_path / "deep",
        ".tif",
        lambda path, seed: tifffile.imwrite(path, (1000 + 3000 * scene(seed)).astype("uint16")),
    )
    run = trained(monkeypatch, deep, tmp_path / "run", "--num_channels", "1")
    config = json.loads((run / "config.json").read_text())
    processor = AutoImageProcessor.from_pretrained(run)
    assert config["num_channels"] == 1 and len(processor.image_mean) == 1
    assert pixel_range_of(processor).low == pytest.approx(1000, abs=60)
    evaluated(monkeypatch, deep, run, tmp_path / "knn", "--protocol", "knn")
    reconstructed(monkeypatch, deep, run, tmp_path / "rec")


def test_six_channels_from_pretraining_to_every_score(monkeypatch, tmp_path, caplog):
    caplog.set_level("INFO")
    data = write_bands(tmp_path / "bands")
    with pytest.raises(InputError, match=r"\.npy has 6 channels, the model takes 3: give --num_channels 6$"):
        trained(monkeypatch, data, tmp_path / "refused")
    run = trained(monkeypatch, data, tmp_path / "run", "--num_channels", "6", "--probe_every", "1")
    assert "Measured on the training images" in caplog.text and "no keypoints" not in caplog.text
    log = json.loads((run / "trainer_state.json").read_text())["log_history"]
    assert any("probe_top1" in entry for entry in log) and (run / "reconstructions.png").is_file()
    card = (run / "README.md").read_text()
    assert 'input_data_format="channels_last"' in card and "(height, width, 6)" in card and "pixel_range" in card

    kinds = {"mae": ["--protocol", "mae"], "finetune": ["--mode", "finetune", "--augmentation", "crop_flip"]}
    for name, kind in kinds.items():
        evaluated(monkeypatch, data, run, tmp_path / name, *kind, "--num_train_epochs", "1")
    with pytest.raises(InputError, match="augmentation is paper.*6 channel"):
        evaluated(monkeypatch, data, run, tmp_path / "paper")
    random = [*QUICK, "--dataset_name", data, "--protocol", "knn", "--model_size", "tiny", "--image_size", "32"]
    command(monkeypatch, evaluate, tmp_path / "random", *random, "--config_overrides", "num_channels=6")
    reconstructed(monkeypatch, data, run, tmp_path / "rec")
    pictures = ["--models", f"six={run}", "random", "--analyses", "reconstruction", "keypoints", "attention_maps"]
    settings = ["--dataset_name", data, "--num_images", "4", "--device", "cpu"]
    report = command(monkeypatch, analyze, tmp_path / "analysis", *pictures, *settings) / "report.md"
    assert "reconstruction.png" in report.read_text() and "could not" not in report.read_text()


def test_plain_transformers_gives_the_same_features(monkeypatch, tmp_path):
    data = write_bands(tmp_path / "bands")
    run = trained(monkeypatch, data, tmp_path / "run", "--num_channels", "6")
    ours = image_processor(32, str(run), 6)
    source = {"bytes": None, "path": str(data / "train" / "dog" / "0.npy")}
    pixels = channels_first(decode_image(source, "", pixel_range_of(ours), 6))
    model = AutoModel.from_pretrained(run).eval()

    processor = AutoImageProcessor.from_pretrained(run)
    image = np.load(source["path"]).transpose(1, 2, 0)
    low, high = np.array(processor.pixel_range)  # as the card says
    image = 255 * ((image - low) / (high - low)).clip(0, 1)
    inputs = processor(image, input_data_format="channels_last", return_tensors="pt")
    with torch.no_grad():
        expected = model(normalize(pixels[None], ours)).last_hidden_state
        found = model(inputs.pixel_values.float()).last_hidden_state
    assert torch.allclose(expected, found, atol=1e-3)


def test_a_channel_of_the_keypoints_and_given_moments(monkeypatch, tmp_path):
    data = write_bands(tmp_path / "bands")
    moments = ["--image_mean", *("0.4",) * 6, "--image_std", *("0.3",) * 6]
    losses = []
    for channel in ([], ["--keypoint_channel", "4"]):
        settings = ["--num_channels", "6", *channel, *moments, "--keypoint_source", "online"]
        run = trained(monkeypatch, data, tmp_path / f"run{len(channel)}", *settings)
        losses.append(json.loads((run / "trainer_state.json").read_text())["log_history"][0])
    processor = AutoImageProcessor.from_pretrained(run)
    assert list(processor.image_mean) == [0.4] * 6 and list(processor.image_std) == [0.3] * 6
    assert json.loads((run / "config.json").read_text())["kamim"]["keypoint_channel"] == 4
    assert losses[0]["masked_l1"] == losses[1]["masked_l1"] and losses[0]["loss"] != losses[1]["loss"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num_channels", "0"], "num_channels is 0"),
        (["--num_channels", "512"], "num_channels is 512.*511"),
        (["--keypoint_channel", "3"], "keypoint_channel is 3.*0 to 2"),
        (["--image_mean", "0.5"], "belong together"),
        (["--image_mean", "0.5", "0.5", "--image_std", "1"], "image_mean has 2 numbers; give 3"),
        (["--image_mean", "0.5", "--image_std", "0"], "image_std is 0"),
    ],
)
def test_wrong_settings_are_told_before_any_work(monkeypatch, tmp_path, arguments, message):
    with pytest.raises(InputError, match=message):
        trained(monkeypatch, tmp_path / "nowhere", tmp_path / "run", *arguments)


def test_prepared_and_streamed_channels_train_as_the_files_do(monkeypatch, tmp_path):
    data = write_bands(tmp_path / "bands")
    small = tmp_path / "small"
    monkeypatch.setattr(sys, "argv", ["kamim", str(data), str(small), "--image_size", "16", "--num_channels", "6"])
    prepare()
    assert "The images have 6 channels." in (small / "README.md").read_text()
    stream = ["--streaming", "true", "--num_channels", "6"]
    for name, settings in {"mapped": ["--num_channels", "6"], "streamed": stream}.items():
        run = trained(monkeypatch, small, tmp_path / name, *settings, "--image_size", "16", "--mask_patch_size", "8")
        assert np.allclose(pixel_range_of(AutoImageProcessor.from_pretrained(run)).high, UNITS.ravel(), rtol=0.15)

    feature = datasets.Features({"image": datasets.Array3D((6, 32, 32), "float32")})
    (tmp_path / "arrays").mkdir()
    column = datasets.Dataset.from_dict({"image": [bands(seed) for seed in range(12)]}, features=feature)
    column.to_parquet(tmp_path / "arrays" / "train.parquet")
    run = trained(monkeypatch, tmp_path / "arrays", tmp_path / "column", *stream)
    assert len(AutoImageProcessor.from_pretrained(run).image_mean) == 6


def test_a_warm_start_goes_from_rgb_to_six_channels(monkeypatch, tmp_path, caplog):
    caplog.set_level("INFO")
    rgb = trained(monkeypatch, write_rgb(tmp_path / "rgb"), tmp_path / "rgb-run")
    settings = ["--model_name_or_path", rgb, "--num_channels", "6", *QUICK, "--max_steps", "1"]
    data = write_bands(tmp_path / "bands")
    run = command(monkeypatch, pretrain, tmp_path / "six", *settings, "--dataset_name", data)
    assert "the first layer repeated over the channels and scaled (from 3 channels)" in caplog.text
    assert len(AutoImageProcessor.from_pretrained(run).image_mean) == 6
    pytest.importorskip("timm")
    monkeypatch.setattr(sys, "argv", ["kamim", "--format", "timm", str(run), str(tmp_path / "timm")])
    export()
    assert "`(batch_size, 6, 32, 32)`" in (tmp_path / "timm" / "README.md").read_text()


def write_rgb(folder):
    return write(folder, ".npy", lambda path, seed: np.save(path, (255 * bands(seed)[:3] / UNITS[:3]).astype(np.uint8)))
