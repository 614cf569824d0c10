"""`kamim embed`: the numbers of AutoModel, in files that go on where they stopped, by one process or several."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import cv2
import datasets
import numpy as np
import pytest
import torch
from huggingface_hub import DatasetCard
from PIL import Image
from tiny_models import tiny_config
from transformers import (
    AutoImageProcessor,
    AutoModel,
    BertConfig,
    CLIPConfig,
    ConvNextConfig,
    ResNetConfig,
    TimmWrapperConfig,
    ViTImageProcessor,
)

from modeling_kamim.api.groups import EMBEDDING_ARGUMENTS
from modeling_kamim.commands import embed as script
from modeling_kamim.commands.parser import parse
from modeling_kamim.commands.spelling import known_options
from modeling_kamim.errors import InputError
from modeling_kamim.evaluation.embedding import Embedder, embed, load_embedder
from modeling_kamim.models.backbone import random_model

ROOT = Path(__file__).parents[2]
SIZE = 32
CLIP_PART = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
CONFIGS = {
    **{name: lambda name=name: tiny_config(name, SIZE) for name in ("vit", "swin", "vit_mae", "dinov2_with_registers")},
    "resnet": lambda: ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"),
    "convnext": lambda: ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, image_size=SIZE),
    "clip": lambda: CLIPConfig(
        text_config={**CLIP_PART, "vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2},
        vision_config={**CLIP_PART, "image_size": SIZE, "patch_size": 8},
    ),
}
SIZES = {"resnet": 224}  # its config has none
PREFIX = {"vit": 1, "vit_mae": 1, "dinov2_with_registers": 4, "clip": 1, "swin": 0}


def save_checkpoint(folder, config, size=SIZE, **settings):
    """Random weights and a processor with uncommon numbers."""
    torch.manual_seed(len(config.model_type))
    random_model(config).save_pretrained(folder)
    sides = {"height": size, "width": size}
    numbers = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.25, 0.3], **settings}
    ViTImageProcessor(size=sides, **numbers).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("models") / "vit", tiny_config("vit", SIZE))


def rows_of(images):
    """A data set of PNG files in memory."""
    files = [io.BytesIO() for _ in images]
    for file, image in zip(files, images, strict=True):
        Image.fromarray(image).save(file, "PNG")
    encoded = [{"bytes": file.getvalue(), "path": f"{number}.png"} for number, file in enumerate(files)]
    return datasets.Dataset.from_dict({"image": encoded}, features=datasets.Features({"image": datasets.Image()}))


def random_images(count, height=SIZE, width=SIZE):
    return list(np.random.default_rng(0).integers(0, 256, (count, height, width, 3), np.uint8))


def by_hand(checkpoint, pixel_values, prefix):
    """Patch tokens `(images, patches, dimension)` of every block, and at last of the output, by transformers alone."""
    model = AutoModel.from_pretrained(checkpoint).eval()
    model = getattr(model, "vision_model", model)
    settings = {"output_hidden_states": True}
    if model.config.model_type == "vit_mae":  # keep every patch, in its order
        model.config.mask_ratio = 0.0
        patches = (model.config.image_size // model.config.patch_size) ** 2
        settings["noise"] = torch.arange(patches).repeat(len(pixel_values), 1)
    with torch.no_grad():
        outputs = model(pixel_values, **settings)
    layers = [*outputs.hidden_states[1:], outputs.last_hidden_state]
    return [x.flatten(2).transpose(1, 2) if x.ndim == 4 else x[:, prefix:] for x in layers]


def assert_equal(found, expected):
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_numbers_of_automodel(tmp_path, name):
    """On images of the model's size, with the checkpoint's own processor; pooled, per patch, and of every block."""
    size, prefix = SIZES.get(name, SIZE), PREFIX.get(name, 0)
    checkpoint = save_checkpoint(tmp_path, CONFIGS[name](), size)
    images = random_images(3, size, size)
    processor = AutoImageProcessor.from_pretrained(checkpoint)
    expected = by_hand(checkpoint, processor(images, return_tensors="pt").pixel_values, prefix)
    rows = rows_of(images)
    found = embed(load_embedder(checkpoint, device="cpu", batch_size=2), rows)
    assert_equal(found.features["features"], expected[-1].mean(1))
    assert found.ids == [f"{number}.png" for number in range(3)] and found.labels is None
    everything = embed(load_embedder(checkpoint, "all", "patches", "cpu", batch_size=2), rows).features
    assert list(everything) == [*(f"block_{number}" for number in range(1, len(expected))), "final"]
    for part, layer in zip(everything.values(), expected, strict=True):
        assert_equal(part, layer)


def test_one_block_all_patches_or_the_cls_token(vit):
    images = random_images(3)
    pixel_values = AutoImageProcessor.from_pretrained(vit)(images, return_tensors="pt").pixel_values
    first, last, final = by_hand(vit, pixel_values, prefix=0)

    def features(*settings):
        return embed(load_embedder(vit, *settings, device="cpu"), rows_of(images)).features["features"]

    assert_equal(features(1), first[:, 1:].mean(1))
    assert_equal(features(2), final[:, 1:].mean(1))  # the last block stands for the output, as in evaluation
    assert_equal(features("final", "patches"), final[:, 1:])
    assert_equal(features(None, "cls"), final[:, 0])
    assert_equal(features("1", "cls"), first[:, 0])


def test_timm_models(tmp_path):
    pytest.importorskip("timm")
    from transformers import TimmWrapperImageProcessor, TimmWrapperModel

    pretrained = {"input_size": [3, SIZE, SIZE], "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3], "crop_pct": 1.0}
    config = TimmWrapperConfig(architecture="resnet10t", pretrained_cfg=pretrained, do_pooling=False)
    model = TimmWrapperModel(config).eval()
    model.save_pretrained(tmp_path)
    TimmWrapperImageProcessor(pretrained, architecture="resnet10t").save_pretrained(tmp_path)
    images = random_images(3)
    pixels = AutoImageProcessor.from_pretrained(tmp_path)([Image.fromarray(image) for image in images]).pixel_values
    with torch.no_grad():
        expected = model.timm_model.forward_features(pixels).mean((2, 3))
    found = embed(load_embedder(str(tmp_path), device="cpu"), rows_of(images))
    assert_equal(found.features["features"], expected)


def test_other_sizes_are_resized_as_in_evaluation(vit):
    images = [*random_images(2, 50, 70), *random_images(2, 20, 40)]
    small = np.stack([cv2.resize(image, (SIZE, SIZE), interpolation=cv2.INTER_LINEAR) for image in images])
    mean, std = np.array([0.4, 0.5, 0.6], np.float32), np.array([0.2, 0.25, 0.3], np.float32)
    pixel_values = torch.tensor((small / np.float32(255) - mean) / std).permute(0, 3, 1, 2)
    expected = by_hand(vit, pixel_values, prefix=1)[-1].mean(1)
    for workers in (0, 1):
        found = embed(load_embedder(vit, device="cpu", batch_size=3, num_workers=workers), rows_of(images))
        assert_equal(found.features["features"], expected)


def test_a_processor_that_does_not_normalize(tmp_path):
    checkpoint = save_checkpoint(tmp_path, tiny_config("vit", SIZE), do_normalize=False)
    images = random_images(2)
    pixel_values = AutoImageProcessor.from_pretrained(checkpoint)(images, return_tensors="pt").pixel_values
    found = embed(load_embedder(checkpoint, device="cpu"), rows_of(images)).features["features"]
    assert_equal(found, by_hand(checkpoint, pixel_values, prefix=1)[-1].mean(1))


def test_bf16_is_near(vit):
    rows = rows_of(random_images(2))
    exact, near = (
        embed(load_embedder(vit, device="cpu", precision=p), rows).features["features"] for p in ("fp32", "bf16")
    )
    assert 0 < np.abs(near - exact).max() < 0.05 and near.dtype == np.float32


@pytest.mark.parametrize(
    ("config", "settings", "message"),
    [
        ("resnet", {"pooling": "cls"}, "resnet gives maps without a CLS token; use --pooling mean"),
        ("swin", {"pooling": "cls"}, "swin has no CLS token"),
        ("vit", {"layer": 3}, "layer is 3; the encoder has blocks 1 to 2"),
        ("vit", {"layer": "last"}, "layer is 'last'; give the number of a block, from 1, final or all"),
        ("vit", {"layer": 0}, "layer is 0; it must be at least 1"),
        ("vit", {"precision": "fp16"}, "precision is fp16, which needs a GPU"),
        ("vit", {"batch_size": 0}, "batch_size is 0"),
        ("bert", {}, "is a bert, which reads no images; give an encoder of images"),
    ],
)
def test_what_an_encoder_cannot_give_is_refused_at_once(tmp_path, config, settings, message):
    bert = BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=50)
    checkpoint = save_checkpoint(tmp_path, bert if config == "bert" else CONFIGS[config]())
    with pytest.raises(InputError, match=message):
        load_embedder(checkpoint, device="cpu", **settings)


# The command


@pytest.fixture(autouse=True)
def datasets_settings(monkeypatch, tmp_path):
    """A cache for each test, and the progress bars that the script turns off."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    yield
    datasets.enable_progress_bars()


@pytest.fixture
def photos(tmp_path):
    """Class folders: 7 images to train on, 2 for validation."""
    images = random_images(9, 40, 36)
    for number, image in enumerate(images):
        split = "train" if number < 7 else "validation"
        file = tmp_path / "photos" / split / ("cat" if number % 2 else "astronaut") / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(file)
    return tmp_path / "photos"


SETTINGS = ["--use_cpu", "--rows_per_shard", "3", "--batch_size", "2"]
SHARDS = [f"train-0000{number}-of-00003.parquet" for number in range(3)] + ["validation-00000-of-00001.parquet"]


def run_embed(monkeypatch, checkpoint, images, output_dir, *arguments):
    """Run the command, with three images in a shard."""
    monkeypatch.setattr(sys, "argv", ["kamim embed", checkpoint, str(images), str(output_dir), *SETTINGS, *arguments])
    script.main()
    return output_dir


def shards(output_dir):
    return {file.name: file.read_bytes() for file in sorted((output_dir / "data").glob("[!.]*"))}


def test_a_data_set_of_features(monkeypatch, tmp_path, vit, photos):
    output = run_embed(monkeypatch, vit, photos, tmp_path / "features")
    assert list(shards(output)) == SHARDS
    found, source = datasets.load_dataset(str(output)), datasets.load_dataset(str(photos))
    for split, rows in found.items():
        expected = embed(load_embedder(vit, device="cpu"), source[split])
        assert_equal(rows.with_format("numpy")["features"][:], torch.tensor(expected.features["features"]))
        assert rows["label"][:] == source[split]["label"][:]
        assert rows.features["label"].names == ["astronaut", "cat"]
    assert found["train"]["id"][:2] == ["train/astronaut/0.png", "train/astronaut/2.png"]
    texts = [(output / name).read_text() for name in ("README.md", "embedding.json")]
    assert not [text for text in (*texts, *map(repr, shards(output).values())) if str(tmp_path) in text]
    assert "Features of 9 images of a local data set (photos), from a local checkpoint (vit) (vit)" in texts[0]
    assert json.loads(texts[1])["image_mean"] == [0.4, 0.5, 0.6]


def test_the_snippet_of_the_card_runs(monkeypatch, tmp_path, vit, photos):
    output = run_embed(monkeypatch, vit, photos, tmp_path / "features", "--pooling", "patches", "--layer", "1")
    snippet = (output / "README.md").read_text().split("```python\n")[1].split("```")[0]
    names = {}
    exec(snippet.replace("path/to/this/directory", str(output)), names)
    assert names["features"].shape == (7, 16, 32) and names["features"].dtype == torch.float32
    assert "(images, 16, 32)" in snippet


def test_a_column_for_each_block_in_half_precision(monkeypatch, tmp_path, photos):
    checkpoint = save_checkpoint(tmp_path / "swin", tiny_config("swin", SIZE))
    output = run_embed(monkeypatch, checkpoint, photos, tmp_path / "out", "--layer", "all", "--dtype", "float16")
    rows = datasets.load_dataset(str(output), split="train")
    expected = embed(load_embedder(checkpoint, "all", device="cpu"), datasets.load_dataset(str(photos), split="train"))
    assert rows.column_names == ["id", "label", "block_1", "block_2", "final"]
    for name, features in expected.features.items():
        assert rows.features[name] == datasets.List(datasets.Value("float16"), length=features.shape[1])
        np.testing.assert_allclose(np.array(rows[name][:]), features, atol=2e-3)


def test_images_without_labels_and_of_16_bits(monkeypatch, tmp_path, vit):
    (tmp_path / "flat").mkdir()
    for number in range(3):
        deep = np.random.default_rng(number).integers(0, 4096, (40, 40)).astype(np.uint16)
        Image.fromarray(deep).save(tmp_path / "flat" / f"{number}.png")
    output = run_embed(monkeypatch, vit, tmp_path / "flat", tmp_path / "out")
    rows = datasets.load_dataset(str(output), split="train")
    assert rows.column_names == ["id", "features"] and rows["id"][:] == ["0.png", "1.png", "2.png"]
    assert "0 to 255" in (output / "README.md").read_text()
    with pytest.raises(InputError, match="no column 'kind' for --label_column"):
        run_embed(monkeypatch, vit, tmp_path / "flat", tmp_path / "other", "--label_column", "kind")
    assert not (tmp_path / "other").exists()


def test_an_interrupted_run_goes_on_and_leaves_the_same_bytes(monkeypatch, tmp_path, vit, photos):
    whole = shards(run_embed(monkeypatch, vit, photos, tmp_path / "whole"))
    output, forward, calls = tmp_path / "out", Embedder._features, []

    def interrupted(self, pixels, numbers):
        if len(calls) == 3:  # in the middle of the second shard
            raise KeyboardInterrupt
        calls.append(numbers)
        return forward(self, pixels, numbers)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Embedder, "_features", interrupted)
        run_embed(patch, vit, photos, output)
    assert list(shards(output)) == SHARDS[:1] and not (output / "README.md").exists()
    written = (output / "data" / SHARDS[0]).stat().st_mtime_ns
    run_embed(monkeypatch, vit, photos, output)
    assert shards(output) == whole and (output / "data" / SHARDS[0]).stat().st_mtime_ns == written
    assert not list(output.rglob("*.unfinished"))


@pytest.mark.parametrize(
    ("arguments", "differing"),
    [
        (["--pooling", "cls"], "pooling"),
        (["--layer", "1"], "layer"),
        (["--layer", "all", "--dtype", "float16"], "layer, shapes, dtype"),
        (["--precision", "bf16"], "precision"),
        (["--bad_images", "skip"], "skip_bad_images"),
        (["--rows_per_shard", "4"], "rows_per_shard"),
    ],
)
def test_other_settings_are_refused(monkeypatch, tmp_path, vit, photos, arguments, differing):
    output = run_embed(monkeypatch, vit, photos, tmp_path / "out")
    before = shards(output)
    with pytest.raises(InputError, match=rf"different: {differing};.*another folder"):
        run_embed(monkeypatch, vit, photos, output, *arguments)
    assert shards(output) == before


def test_another_encoder_and_other_images_are_refused(monkeypatch, tmp_path, vit, photos):
    output = run_embed(monkeypatch, vit, photos, tmp_path / "out")
    other = save_checkpoint(tmp_path / "vit", tiny_config("vit", SIZE, hidden_size=32, layer_norm_eps=1e-3))
    run_embed(monkeypatch, vit, photos, output, "--batch_size", "5")  # changes nothing but rounding
    with pytest.raises(InputError, match="different: weights;"):
        torch.manual_seed(1)
        random_model(tiny_config("vit", SIZE)).save_pretrained(other)
        run_embed(monkeypatch, other, photos, output)
    Image.fromarray(random_images(1)[0]).save(photos / "train" / "cat" / "new.png")
    with pytest.raises(InputError, match="different: splits;"):
        run_embed(monkeypatch, vit, photos, output)
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="holds other files"):
        run_embed(monkeypatch, vit, photos, tmp_path / "used")


def test_bad_images_stop_the_run_or_are_left_out_and_listed(monkeypatch, tmp_path, vit, photos):
    for number in (0, 2, 4):  # the whole first shard
        (photos / "train" / "astronaut" / f"{number}.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"cannot decode .*astronaut/0\.png.*--bad_images skip"):
        run_embed(monkeypatch, vit, photos, tmp_path / "raise", "--num_proc", "1")
    output = run_embed(monkeypatch, vit, photos, tmp_path / "out", "--bad_images", "skip")
    assert len((output / "bad_images.txt").read_text().splitlines()) == 3
    rows = datasets.load_dataset(str(output))["train"]
    assert rows["id"][:2] == ["train/astronaut/6.png", "train/cat/1.png"] and len(rows) == 4
    assert "3 images could not be decoded" in (output / "README.md").read_text()
    for file in photos.rglob("*.png"):
        file.write_bytes(b"no image")
    with pytest.raises(InputError, match="none of the 9 images can be decoded"):
        run_embed(monkeypatch, vit, photos, tmp_path / "none", "--bad_images", "skip")


def test_features_that_are_not_finite_are_an_error(vit):
    embedder = load_embedder(vit, device="cpu", batch_size=2)
    with torch.no_grad():
        embedder.backbone.model.layernorm.bias.fill_(torch.nan)
    with pytest.raises(InputError, match="features of 2 of 2 images are NaN or infinite, the first of them image 0"):
        embed(embedder, rows_of(random_images(3)))


def test_options_are_known_by_their_spelling(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["kamim embed"])
    with pytest.raises(SystemExit):
        parse(EMBEDDING_ARGUMENTS, ["--help-all"])
    shown = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("  --")]
    assert {name[2:].removeprefix("no_").strip(",") for name in shown} <= known_options()
    for words, message in (
        (["m", "d"], "output_dir"),
        (["m", "d", ""], "output_dir is ''"),
        ([], "model_name_or_path"),
    ):
        with pytest.raises(InputError, match=message):
            parse(EMBEDDING_ARGUMENTS, words, positional=("model_name_or_path", "dataset_name", "output_dir"))


def test_ray_must_be_installed(monkeypatch, tmp_path, vit, photos):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match="--engine ray needs Ray: pip install"):
        run_embed(monkeypatch, vit, photos, tmp_path / "out", "--engine", "ray")


def test_features_are_published_and_loaded_by_name(monkeypatch, tmp_path, vit, photos, hub):
    push = ["--push_to_hub", "--repo", "user/features", "--license", "mit", "--token", hub.token]
    with monkeypatch.context() as patch, pytest.raises(InputError, match="does not take the metadata"):
        patch.setattr(DatasetCard, "validate", Mock(side_effect=ValueError("license")))
        run_embed(patch, vit, photos, tmp_path / "out", *push)
    assert not (tmp_path / "out").exists()
    output = run_embed(monkeypatch, vit, photos, tmp_path / "out", *push)
    files = hub.files("user/features", repo_type="dataset")
    assert {f"data/{name}" for name in SHARDS} | {"README.md", "embedding.json"} <= files.keys()
    assert 'load_dataset("user/features", split="train")' in files["README.md"].decode()
    assert not [name for name, content in files.items() if str(tmp_path).encode() in content]
    assert {name.removeprefix("data/"): files[name] for name in files if name.startswith("data/")} == shards(output)
    with pytest.raises(InputError, match="--push_to_hub needs --repo"):
        run_embed(monkeypatch, vit, photos, tmp_path / "other", "--push_to_hub")


# Several processes


TORCHRUN = [str(Path(sys.executable).parent / "torchrun"), "--standalone", "--nproc_per_node", "2"]
ACCELERATE = [str(Path(sys.executable).parent / "accelerate"), "launch", "--num_machines", "1", "--multi_gpu"]
ACCELERATE += ["--num_processes", "2", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]


def launch(command, *arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    finished = subprocess.run([*command, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr[-3000:]
    return finished.stderr


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [TORCHRUN, ACCELERATE], ids=["torchrun", "accelerate"])
def test_two_processes_write_the_bytes_of_one(tmp_path, vit, photos, launcher):
    command = ["-m", "modeling_kamim.commands.embed", vit, str(photos)]
    launch([sys.executable], *command, str(tmp_path / "one"), *SETTINGS)
    log = launch(launcher, *command, str(tmp_path / "two"), *SETTINGS)
    assert "Embedding (1 of 2 processes)" in log
    assert shards(tmp_path / "two") == shards(tmp_path / "one") and len(shards(tmp_path / "one")) == 4
    texts = [(tmp_path / name / "README.md").read_text() for name in ("one", "two")]
    assert texts[0].replace("# one", "# two") == texts[1]


@pytest.mark.slow
def test_ray_writes_the_bytes_of_one_process(monkeypatch, tmp_path, photos, ray):
    monkeypatch.chdir(tmp_path)
    save_checkpoint(tmp_path / "vit", tiny_config("vit", SIZE))
    (photos / "train" / "astronaut" / "0.png").write_bytes(b"no image")
    ray.init(num_cpus=2, object_store_memory=100 * 2**20, include_dashboard=False)
    try:
        cluster = run_embed(monkeypatch, "vit", photos, tmp_path / "ray", "--engine", "ray", "--bad_images", "skip")
        with pytest.raises(InputError, match=r"cannot decode .*0\.png"):
            run_embed(monkeypatch, "vit", photos, tmp_path / "bad", "--engine", "ray")
    finally:
        ray.shutdown()
    local = run_embed(monkeypatch, "vit", photos, tmp_path / "local", "--bad_images", "skip")
    found, expected = (datasets.load_dataset(str(folder))["train"].with_format("numpy") for folder in (cluster, local))
    assert list(found["id"]) == list(expected["id"]) and len(found) == 6
    np.testing.assert_allclose(found["features"][:], expected["features"][:], rtol=0, atol=1e-6)
    assert (cluster / "bad_images.txt").read_text() == (local / "bad_images.txt").read_text()
