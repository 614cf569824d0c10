"""`kamim analyze` and the encoders under it, on tiny checkpoints with random weights."""

import csv
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import tiny_config
from transformers import SwinConfig, ViTConfig, ViTMAEConfig, ViTMAEModel, ViTModel

from modeling_kamim import KamimForMaskedImageModeling
from modeling_kamim.analysis.attention import uniform_attention_distance
from modeling_kamim.analysis.encoders import AnalysisRefused, Encoder, load_decoder, load_encoder, random_encoder
from modeling_kamim.analysis.measures import (
    AttentionMeasure,
    FourierMeasure,
    KeypointSettings,
    LossShareMeasure,
    RankMeasure,
    Reconstructor,
)
from modeling_kamim.analysis.options import ANALYSES, AnalysisArguments
from modeling_kamim.analysis.tokens import pca
from modeling_kamim.commands import analyze as run_analysis
from modeling_kamim.errors import InputError
from modeling_kamim.models.families import FAMILIES, encoder_stride
from modeling_kamim.models.processor import image_processor
from modeling_kamim.models.sizes import image_size_of
from modeling_kamim.objective.keypoints import KeypointDetector

CPU = torch.device("cpu")
KAMIM = {"weighting": "keypoint", "weight_patch_size": 8, "temperature": 0.5, "mask_patch_size": 16, "mask_ratio": 0.5}
VIT = {"hidden_size": 12, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 16}
COLUMNS = {
    "attention_distance": "model layer head distance std uniform_distance relative_to_uniform image_size token_size "
    "windows num_images",
    "nmi": "model layer head nmi std uniform_nmi entropy prefix_share num_images",
    "fourier": "model layer frequency_pi cycles_per_pixel log_amplitude relative_log_amplitude std num_images",
    "cka": "model layer other_model other_layer cka",
    "rank": "model layer features rankme rankme_centered dimension num_rows",
    "loss_share": "model loss_weighting quantile num_quantiles share std mean_weight num_images",
    "tokens_tsne": "model layer image class stage x y",
    "tokens_pca_one": "model layer image class stage x y",
    "tokens_pca_two": "model layer image class stage x y",
    "tokens_pca_many": "model layer image class stage x y",
    "attention_maps": "model layer image query_row query_column key_row key_column attention times_uniform",
    "reconstruction": "model image masked_l1 mean_weight",
    "keypoint_weights": "detector weight_patch_size temperature mean_weight median_weight weight_95th_percentile "
    "max_weight",
}
FIGURES = {*COLUMNS, "keypoints"}


def save(config, directory):
    torch.manual_seed(1)
    KamimForMaskedImageModeling.from_config(config).save_pretrained(directory)
    image_processor(image_size_of(config)).save_pretrained(directory)
    return str(directory)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A ViT at 32 px, a ViT at 64 px with larger patches, a Swin at 64 px, and a ViT without decoder."""
    root = tmp_path_factory.mktemp("checkpoints")
    small = ViTConfig(image_size=32, patch_size=8, encoder_stride=8, kamim=KAMIM, **VIT)
    large = ViTConfig(image_size=64, patch_size=16, encoder_stride=16, **VIT)
    swin = SwinConfig(
        image_size=64, patch_size=4, encoder_stride=8, embed_dim=8, depths=[2, 2], num_heads=[1, 2], window_size=4
    )
    ViTModel(small).save_pretrained(root / "encoder")
    return {
        "small": save(small, root / "small"),
        "large": save(large, root / "large"),
        "swin": save(swin, root / "swin"),
        "encoder": str(root / "encoder"),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three classes of 7 images."""
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for name in ("red", "green", "blue"):
        (root / "train" / name).mkdir(parents=True)
        for number in range(7):
            pixels = rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((80, 64)).save(root / "train" / name / f"{number}.png")
    return root


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 255, (48, 40, 3), dtype=np.uint8) for _ in range(7)]


def run(monkeypatch, output_dir, *arguments):
    fixed = ["--output_dir", str(output_dir), "--device", "cpu", "--batch_size", "8", "--dpi", "40"]
    monkeypatch.setattr(sys, "argv", ["kamim analyze", *arguments, *fixed])
    run_analysis.main()


def read(file):
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_every_table_and_figure_of_models_of_other_sizes(monkeypatch, tmp_path, checkpoints, folder):
    # t-SNE takes seconds, and has its own test
    monkeypatch.setattr("modeling_kamim.analysis.pictures.tsne", lambda tokens, seed: pca(tokens)[0])
    models = ["--models", *(f"{name}={checkpoints[name]}" for name in ("small", "large", "swin")), "random"]
    run(monkeypatch, tmp_path, *models, "--dataset_name", str(folder), "--num_images", "20", "--formats", "png")
    for name, columns in COLUMNS.items():
        rows = read(tmp_path / f"{name}.csv")
        assert list(rows[0]) == columns.split(), name
    for name in FIGURES:
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert min(picture.size) > 50
            assert len(np.unique(np.asarray(picture.convert("L")))) > 5, name

    everyone = {"small", "large", "swin", "random"}
    references = {"random (large)", "random (swin)"}  # of their own architectures
    for name in ("attention_distance", "nmi", "fourier", "cka", "rank"):
        assert {row["model"] for row in read(tmp_path / f"{name}.csv")} == everyone | references, name
    for name in ("tokens_tsne", "tokens_pca_many"):
        assert {row["model"] for row in read(tmp_path / f"{name}.csv")} == everyone, name
    # Swin's 2 windows a side have no maps over the image
    assert {row["model"] for row in read(tmp_path / "attention_maps.csv")} == everyone - {"swin"}
    assert {row["model"] for row in read(tmp_path / "loss_share.csv")} == {"small", "large", "swin"}
    distances = read(tmp_path / "attention_distance.csv")
    sizes = {row["model"]: (row["image_size"], row["token_size"]) for row in distances if row["layer"] == "1"}
    for name, size in {"small": ("32", "8"), "large": ("64", "16"), "swin": ("64", "4")}.items():
        assert sizes[name] == sizes["random" if name == "small" else f"random ({name})"] == size
    assert all(row["num_images"] == "20" for row in distances)
    report = (tmp_path / "report.md").read_text()
    assert "Refused: swin: its last layer attends within 4 windows of 4 x 4 tokens" in report
    assert "**collapsed**" in report
    assert str(tmp_path) not in report and str(folder) not in report
    assert all(f"({name}.png)" in report for name in FIGURES)


def test_a_refused_analysis_does_not_stop_the_others(monkeypatch, tmp_path, checkpoints):
    arguments = ["--models", f"plain={checkpoints['encoder']}", "--num_images", "6"]
    run(monkeypatch, tmp_path, *arguments, "--analyses", "loss_share", "reconstruction", "pca", "rank")
    report = (tmp_path / "report.md").read_text()
    assert report.count("Refused: plain: its checkpoint holds no decoder") == 2
    assert r"Refused: tokens\_pca\_many: 3 classes of 6/6/4 images are needed" in report
    assert (tmp_path / "rank.png").is_file() and (tmp_path / "tokens_pca_one.png").is_file()
    assert (tmp_path / "rank.pdf").read_bytes().startswith(b"%PDF")
    assert not (tmp_path / "loss_share.csv").exists()
    # random weights are a reference line unless they are declined
    assert {row["model"] for row in read(tmp_path / "rank.csv")} == {"plain", "random"}


def test_images_without_classes_and_no_reference(monkeypatch, tmp_path, checkpoints, photographs):
    (tmp_path / "flat").mkdir()
    for number, image in enumerate(photographs):
        Image.fromarray(image).save(tmp_path / "flat" / f"{number}.png")
    arguments = ["--models", f"small={checkpoints['small']}", "--dataset_name", str(tmp_path / "flat")]
    arguments += ["--random_reference", "false", "--formats", "png", "--analyses", "attention", "pca", "tsne"]
    run(monkeypatch, tmp_path / "out", *arguments)
    assert {row["model"] for row in read(tmp_path / "out" / "nmi.csv")} == {"small"}
    assert "the images have no classes" in (tmp_path / "out" / "report.md").read_text()
    assert {row["class"] for row in read(tmp_path / "out" / "tokens_tsne.csv")} == {f"image {i}" for i in range(5)}


@pytest.mark.parametrize("name", ["small", "swin"])
@pytest.mark.parametrize("batches", [[7], [3, 3, 1]])
def test_the_numbers_do_not_depend_on_the_batches(checkpoints, images, name, batches):
    def measured(sizes):
        encoder = load_encoder(name, checkpoints[name], CPU)
        measures = [AttentionMeasure(encoder), FourierMeasure(encoder), RankMeasure(encoder)]
        shares = LossShareMeasure(Reconstructor(encoder, KeypointSettings([encoder]), 0)) if name == "small" else None
        start = 0
        for size in sizes:
            batch = images[start : start + size]
            outputs = encoder(batch, attention=True)
            for measure in measures:
                measure.update(outputs, size)
            if shares:
                shares.update(batch, start)
            start += size
        attention, fourier, rank = measures
        rows = [attention.distance_rows(), attention.nmi_rows(), fourier.rows(), rank.rows()]
        return [row for part in [*rows, shares.rows() if shares else []] for row in part]

    expected, found = measured([2, 5]), measured(batches)
    assert len(expected) == len(found)
    for before, after in zip(expected, found, strict=True):
        names = [key for key, value in before.items() if isinstance(value, str)]
        assert [before.pop(key) for key in names] == [after.pop(key) for key in names]
        assert before == pytest.approx(after, rel=1e-3, abs=1e-5, nan_ok=True)


def test_a_vit_gives_its_standard_outputs_without_cls(checkpoints, images):
    encoder = load_encoder("small", checkpoints["small"], CPU)
    outputs = encoder(images, attention=True)
    with torch.no_grad():
        plain = encoder.model(encoder.pixels(images), output_hidden_states=True, output_attentions=True)
    assert len(outputs.layers) == 4 and outputs.first_layer == 0
    torch.testing.assert_close(outputs.layers[3], plain.hidden_states[3][:, 1:])
    torch.testing.assert_close(outputs.final, plain.last_hidden_state[:, 1:])
    layer = encoder.layer_attention(outputs, 2, len(images))
    kept = plain.attentions[2][:, :, 1:, 1:]
    torch.testing.assert_close(layer.weights, kept / kept.sum(-1, keepdim=True))
    assert (layer.windows, layer.grid, layer.token_size) == (1, (4, 4), 8.0)
    # what enters and leaves a self-attention module
    before, after = outputs.transforms[1]
    assert before.shape == after.shape == (7, 16, 12)
    block = encoder.model.layers[1]
    with torch.no_grad():
        normed = block.layernorm_before(plain.hidden_states[1])
        torch.testing.assert_close(before, normed[:, 1:])
        torch.testing.assert_close(after, block.attention(normed)[0][:, 1:])


def test_swin_gives_every_block_within_windows(checkpoints, images):
    encoder = load_encoder("swin", checkpoints["swin"], CPU)
    outputs = encoder(images, attention=True)
    maps = encoder.attention_maps(outputs)
    assert [tuple(part.shape) for part in maps] == [(7 * 16, 1, 16, 16)] * 2 + [(7 * 4, 2, 16, 16)] * 2
    with torch.no_grad():
        plain = encoder.model(encoder.pixels(images), output_attentions=True)
    torch.testing.assert_close(maps[1], plain.attentions[0])
    torch.testing.assert_close(maps[3], plain.attentions[1])
    assert [encoder.layer_attention(outputs, i, 7).token_size for i in range(4)] == [4, 4, 8, 8]
    measure = AttentionMeasure(encoder)
    measure.update(outputs, 7)
    uniform = [row["uniform_distance"] for row in measure.distance_rows() if row["head"] == "mean"]
    assert uniform == pytest.approx([uniform_attention_distance(4, size) for size in (4, 4, 8, 8)])
    assert outputs.transforms[3][0].shape == (7, 64, 16)


def test_a_masked_autoencoder_keeps_its_patches_in_order(images):
    config = ViTMAEConfig(image_size=32, patch_size=8, mask_ratio=0.0, **VIT)
    encoder = Encoder("mae", ViTMAEModel(config), 32, [0.5] * 3, [0.5] * 3, CPU)
    first, again = encoder(images), encoder(images)
    torch.testing.assert_close(first.final, again.final)
    embeddings = encoder.model.embeddings
    with torch.no_grad():
        expected = embeddings.patch_embeddings(encoder.pixels(images)) + embeddings.position_embeddings[:, 1:]
    torch.testing.assert_close(first.layers[0], expected)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_patches_and_attention_of_every_family(model_type, images, tmp_path):
    config = tiny_config(model_type, kamim=KAMIM)
    encoder = load_encoder(model_type, save(config, tmp_path), CPU)
    outputs = encoder(images, attention=True)
    assert outputs.final.shape[:2] == (7, (32 // encoder_stride(config)) ** 2)
    assert load_decoder(encoder).config.model_type == model_type
    if model_type == "focalnet":
        with pytest.raises(AnalysisRefused, match="gives no attention maps"):
            encoder.layer_attention(outputs, 0, 7)
    else:
        shares = encoder.layer_attention(outputs, 0, 7).weights.sum(dim=-1)
        torch.testing.assert_close(shares, torch.ones_like(shares))


@pytest.mark.parametrize("model_type", [name for name, family in FAMILIES.items() if family.rectangles])
def test_patches_and_attention_of_rectangles(model_type, images, tmp_path):
    config = tiny_config(model_type, [32, 48], kamim=KAMIM)
    encoder = load_encoder(model_type, save(config, tmp_path), CPU)
    outputs = encoder(images, attention=True)
    stride, patch = encoder_stride(config), config.patch_size
    assert encoder.pixels(images).shape == (7, 3, 32, 48)
    assert encoder.token_map(outputs.final).shape[2:] == (32 // stride, 48 // stride)
    assert encoder.token_map(outputs.layers[0]).shape[2:] == (32 // patch, 48 // patch)
    layer = encoder.layer_attention(outputs, 0, 7)
    assert layer.windows * layer.grid[0] * layer.grid[1] == 32 * 48 / patch**2 and layer.token_size == patch
    measures = [AttentionMeasure(encoder), FourierMeasure(encoder)]
    for measure in measures:
        measure.update(outputs, 7)
    assert {row["image_size"] for row in measures[0].distance_rows()} == {"32 x 48"}
    assert max(row["cycles_per_pixel"] for row in measures[1].rows()) == pytest.approx(0.5 / patch)


def test_tables_and_figures_of_rectangles(monkeypatch, tmp_path, folder):
    model = save(tiny_config("vit", [32, 48], kamim=KAMIM | {"mask_patch_size": 16}), tmp_path / "vit")
    analyses = ["attention", "fourier", "loss_share", "attention_maps", "reconstruction", "keypoints"]
    arguments = ["--models", f"vit={model}", "--dataset_name", str(folder), "--analyses", *analyses]
    run(monkeypatch, tmp_path / "out", *arguments, "--num_images", "8", "--formats", "png")
    drawn = {file.stem for file in (tmp_path / "out").glob("*.png")}
    assert drawn >= {"attention_distance", "nmi", "keypoint_weights", *analyses} - {"attention"}
    maps = read(tmp_path / "out" / "attention_maps.csv")
    of_one = [row for row in maps if row["image"] == maps[0]["image"]]
    assert len(of_one) == 4 * 6 and sum(float(row["attention"]) for row in of_one) == pytest.approx(1)
    report = (tmp_path / "out" / "report.md").read_text()
    assert "vit at 32 x 48 px, patches of 8 px" in report and "efused" not in report


def test_random_weights_are_those_of_the_seed_and_leave_the_others_alone(checkpoints, images):
    encoder = load_encoder("small", checkpoints["small"], CPU)
    before = torch.random.get_rng_state()
    first, second = (random_encoder("random", encoder, 3)(images).final for _ in range(2))
    torch.testing.assert_close(first, second)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not torch.allclose(first, encoder(images).final)


def test_masks_that_do_not_fit_are_refused(checkpoints):
    small, swin = (load_encoder(name, checkpoints[name], CPU) for name in ("small", "swin"))
    settings = KeypointSettings([small])
    assert (settings.temperature, settings.mask_patch_size, settings.detector.name) == (0.5, 16, "fast")
    settings.mask_patch_size = 24
    with pytest.raises(AnalysisRefused, match="mask blocks of 24 px do not fit 64 px"):
        Reconstructor(swin, settings, 0)
    with pytest.raises(AnalysisRefused, match="random weights reconstruct nothing"):
        load_decoder(random_encoder("random", small, 0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models", "random"], "models names no checkpoint"),
        (["--models", "a=x", "a=y"], "two models are called 'a'"),
        (["--models", "=x"], "give NAME=CHECKPOINT"),
        (["--models", "random=x"], "the name 'random' is that of random weights"),
        (
            ["--models", "a=x", "--analyses", "attention", "entropy"],
            "analyses has entropy; allowed: attention, fourier",
        ),
        (["--models", "a=x", "--formats", "gif"], "formats has gif; allowed: png, pdf, svg"),
        (["--models", "a=x", "--num_images", "0"], "num_images is 0"),
        (["--models", "a=./nowhere"], "cannot load './nowhere'"),
        (["--models", "a=x", "--device", "toaster"], "device is 'toaster'"),
        (["--analyses", "attention"], "--models"),
    ],
)
def test_bad_settings_stop_before_any_work(monkeypatch, tmp_path, arguments, message):
    monkeypatch.setattr(sys, "argv", ["kamim analyze", *arguments, "--output_dir", str(tmp_path / "out")])
    with pytest.raises(InputError, match=message):
        run_analysis.main()
    assert not (tmp_path / "out").exists()


def test_without_scikit_learn_the_error_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(InputError, match=r"pip install 'modeling-kamim\[analysis\]'"):
        run(monkeypatch, tmp_path / "out", "--models", "a=x")


def test_models_are_named_or_named_by_their_folder():
    args = AnalysisArguments(models=["kamim=a/b", "outputs/mim/", "random"])
    assert args.named_models() == {"kamim": "a/b", "mim": "outputs/mim/", "random": None}
    assert set(args.analyses) == set(ANALYSES)
    assert args.formats == ["png", "pdf"]


def test_keypoint_settings_are_those_of_any_source_that_is_here(caplog):
    def settings(**kamim):
        return KeypointSettings([SimpleNamespace(config=SimpleNamespace(kamim={"weighting": "keypoint", **kamim}))])

    sobel = settings(keypoint_detector="sobel", keypoint_detector_args='{"size": 5}')
    assert sobel.detector == KeypointDetector("sobel", parameters={"size": 5})
    assert sobel.describe().startswith("SOBEL, w_ps 8") and "FAST, footprint circle" in settings().describe()
    away = settings(keypoint_detector="superpoint", keypoint_detector_args='{"model": "local:superpoint"}')
    assert away.detector == KeypointDetector() and "shown as FAST finds them" in caplog.text
