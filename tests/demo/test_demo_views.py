"""What the tabs of the demo show, without a browser."""

import base64
import re

import cv2
import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from tiny_models import tiny_vit
from transformers import ViTModel

from modeling_kamim import KamimForMaskedImageModeling, keypoint_weights
from modeling_kamim.demo.checkpoints import load_models
from modeling_kamim.demo.focus_view import THRESHOLDS, FocusSettings, focus, focus_page
from modeling_kamim.demo.masked_view import block_sizes, fill, masked_page
from modeling_kamim.demo.neighbor_view import Gallery, mean_tokens, middle_square, neighbor_page
from modeling_kamim.demo.panels import Panel, heat, histogram, marked, section
from modeling_kamim.demo.patch_view import component_colors, look, patch_page
from modeling_kamim.demo.uploads import LONGEST_SIDE, MAX_BYTES, read_photograph
from modeling_kamim.errors import InputError
from modeling_kamim.models.processor import image_processor
from modeling_kamim.objective.sources.table import SOURCES

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def photograph():
    return skimage.data.chelsea()


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """KAMIM on ViT in RGB and in gray, and a plain encoder without a decoder."""
    folder = tmp_path_factory.mktemp("models")
    for name, channels in (("kamim", 3), ("gray", 1)):
        KamimForMaskedImageModeling.from_config(tiny_vit(num_channels=channels)).save_pretrained(folder / name)
        image_processor(32, None, channels, [0.5] * channels, [0.5] * channels).save_pretrained(folder / name)
    ViTModel(tiny_vit()).save_pretrained(folder / "plain")
    image_processor(32).save_pretrained(folder / "plain")
    return load_models([str(folder / name) for name in ("kamim", "gray", "plain")], CPU)


def pictures(page):
    """The pictures in a page."""
    found = re.findall(r"data:image/jpeg;base64,([^\"]+)", page)
    return [cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR) for data in found]


@pytest.mark.parametrize("detector", THRESHOLDS)
def test_the_weights_are_those_of_equation_2(photograph, detector):
    threshold = THRESHOLDS[detector][4]
    found = focus(photograph, FocusSettings(detector, threshold, image_size=128, cell_size=16, temperature=0.5))
    assert found.view.shape == (128, 128, 3) and found.density.shape == found.weights.shape == (8, 8)
    assert 0 <= found.density.min() and found.density.max() <= 1 and found.map.mean() > 0.01
    assert (found.points is None) == (SOURCES[detector].gives == "map")
    np.testing.assert_allclose(found.density, found.map.reshape(8, 16, 8, 16).mean((1, 3)), atol=1e-5)
    np.testing.assert_array_equal(found.weights, keypoint_weights(torch.from_numpy(found.density), 0.5))
    page = focus_page(photograph, FocusSettings(detector, threshold))
    assert len(pictures(page)) == 3 and "<svg" in page


@pytest.mark.parametrize("detector", [name for name, row in THRESHOLDS.items() if row[0] != "size"])
def test_a_higher_threshold_finds_less(photograph, detector):
    _, low, high, _, usual = THRESHOLDS[detector]
    found = [focus(photograph, FocusSettings(detector, value)).map.mean() for value in (low, usual, high)]
    assert found[0] >= found[1] > found[2]


def test_a_high_temperature_flattens_the_weights(photograph):
    shares = [focus(photograph, FocusSettings(temperature=t)).top_share for t in (0.1, 0.25, 1.0)]
    assert shares[0] > shares[1] > shares[2] > 0.1
    assert focus(photograph, FocusSettings(norm="mean")).weights.mean() == pytest.approx(1, rel=1e-5)


def test_a_photograph_without_keypoints_has_equal_weights():
    blank = np.full((90, 120, 3), 128, np.uint8)
    found = focus(blank, FocusSettings())
    assert found.top_share == pytest.approx(0.1) and len(found.points) == 0
    assert "0 found" in focus_page(blank, FocusSettings())


@pytest.mark.parametrize("which", [0, 1])
def test_visible_patches_stay_and_the_others_are_the_model_s(models, photograph, which):
    model = models[which]
    found = fill(model, photograph, 0.5, 16, seed=3)
    assert found.mask.shape == (4, 4) and found.mask.mean() == 0.5
    is_masked = np.kron(found.mask, np.ones((8, 8), bool))
    np.testing.assert_array_equal(found.filled[~is_masked], found.original[~is_masked])
    assert (found.masked[is_masked] == 0.5).all()
    difference = np.abs(found.filled - found.original).mean(axis=2)
    assert found.error == pytest.approx(difference[is_masked].mean(), rel=1e-5)
    assert (found.errors[~found.mask] == 0).all()
    np.testing.assert_array_equal(found.mask, fill(model, photograph, 0.5, 16, seed=3).mask)
    assert (found.mask != fill(model, photograph, 0.5, 16, seed=4).mask).any()


def test_what_cannot_be_filled_in_is_told(models, photograph):
    assert block_sizes(models[0]) == [8, 16]
    with pytest.raises(InputError, match="blocks of 12 px do not fit kamim; give one of 8, 16"):
        fill(models[0], photograph, 0.5, 12, 0)
    with pytest.raises(InputError, match="mask_ratio"):
        fill(models[0], photograph, 1.5, 8, 0)
    with pytest.raises(InputError, match="plain cannot fill in"):
        fill(models[2], photograph, 0.5, 8, 0)
    page = masked_page(models, photograph, 0.6, 4, 0)
    assert len(pictures(page)) == 8 and "It cannot fill in" in page


@pytest.mark.parametrize("point", [(0.0, 0.0), (0.4, 0.9), (1.0, 1.0)])
def test_a_patch_is_most_like_itself(models, photograph, point):
    found = look(models[0], photograph, point, block=1)
    assert found.patch == tuple(min(3, int(4 * part)) for part in point)
    assert found.similarity[found.patch] == pytest.approx(1, abs=1e-5)
    assert found.similarity.max() == pytest.approx(1, abs=1e-5) and found.similarity.min() >= -1
    assert found.attention.shape == (4, 4) and found.attention.sum() == pytest.approx(1, abs=1e-4)


def test_similarities_and_attention_are_those_of_the_encoder(models, photograph):
    model = models[2]
    outputs = model.encoder([model.seen(photograph)], attention=True)
    tokens = outputs.final[0]
    expected = torch.nn.functional.cosine_similarity(tokens, tokens[6], dim=-1).view(4, 4)
    found = look(model, photograph, (0.3, 0.6), block=99)  # row 1, column 2
    np.testing.assert_allclose(found.similarity, expected, atol=1e-5)
    last = outputs.attentions[-1][0].mean(dim=0)[7, 1:]  # behind CLS
    np.testing.assert_allclose(found.attention.ravel(), last / last.sum(), atol=1e-5)
    assert found.block == len(outputs.attentions)


def test_component_colors_are_principal_components():
    decomposition = pytest.importorskip("sklearn.decomposition")
    tokens = torch.randn(5, 7, 16, generator=torch.Generator().manual_seed(0)) * torch.linspace(4, 0.1, 16)
    colors = component_colors(tokens).reshape(-1, 3).astype(float)
    scores = decomposition.PCA(3, svd_solver="full").fit_transform(tokens.flatten(0, 1).numpy())
    for channel in range(3):
        assert abs(np.corrcoef(colors[:, channel], scores[:, channel])[0, 1]) > 0.98
    assert component_colors(torch.ones(2, 2, 8)).shape == (2, 2, 3)


def test_a_page_has_all_models(models, photograph):
    page = patch_page(models, photograph, (0.5, 0.5), 1)
    assert len(pictures(page)) == 12
    assert [name for name in ("kamim", "gray", "plain") if f"<h3>{name}</h3>" in page] == ["kamim", "gray", "plain"]


def test_a_tile_is_its_own_nearest_neighbor(models):
    gallery = Gallery(models[:2])
    assert len(gallery.tiles) == len(gallery.names) and len(set(gallery.names)) == 15
    for index in (0, 17, 60):
        for model in models[:2]:
            (nearest, similarity), (_, second) = gallery.nearest(model, gallery.tiles[index], 2)
            assert nearest == index and similarity == pytest.approx(1, abs=1e-4) and second <= similarity
    page = neighbor_page(gallery, models[:2], gallery.tiles[0], 1.0, 3)
    assert len(pictures(page)) == 7 and page.count(f"<figcaption>1. {gallery.names[0]}<") == 2
    tokens = mean_tokens(models[0], gallery.tiles[:20])
    torch.testing.assert_close(tokens[3:4], mean_tokens(models[0], [gallery.tiles[3]]), atol=1e-5, rtol=1e-4)


def test_the_middle_square():
    image = np.arange(100 * 60 * 3, dtype=np.uint8).reshape(100, 60, 3)
    np.testing.assert_array_equal(middle_square(image, 0.5), image[35:65, 15:45])
    assert middle_square(image, 1.0).shape == (60, 60, 3)


def test_names_tell_checkpoints_apart(models, tmp_path):
    for place in ("a/seed-0", "b/seed-0"):
        ViTModel(tiny_vit()).save_pretrained(tmp_path / place)
        image_processor(32).save_pretrained(tmp_path / place)
    loaded = load_models([str(tmp_path / "a/seed-0"), str(tmp_path / "b/seed-0")], CPU)
    assert [model.name for model in loaded] == ["a/seed-0", "b/seed-0"]
    with pytest.raises(InputError, match="named twice"):
        load_models([str(tmp_path / "a/seed-0")] * 2, CPU)
    KamimForMaskedImageModeling.from_config(tiny_vit(num_channels=5)).save_pretrained(tmp_path / "five")
    image_processor(32, None, 5, [0.5] * 5, [0.5] * 5).save_pretrained(tmp_path / "five")
    with pytest.raises(InputError, match="takes 5 channels; the demo shows photographs"):
        load_models([str(tmp_path / "five")], CPU)


def saved(image, file, **options):
    image.save(file, **options)
    return file


def test_photographs_of_all_kinds_become_rgb(photograph, tmp_path):
    image = Image.fromarray(photograph)
    kinds = [("RGB", "jpg"), ("CMYK", "jpg"), ("L", "png"), ("RGBA", "png"), ("P", "gif"), ("RGB", "webp")]
    kinds = [saved(image.convert(mode), tmp_path / f"{mode}.{end}") for mode, end in kinds]
    kinds.append(saved(image, tmp_path / "moving.gif", save_all=True, append_images=[image.rotate(90)]))
    for file in kinds:
        assert read_photograph(file).shape == photograph.shape and read_photograph(file).dtype == np.uint8
    wide = saved(Image.new("RGB", (3000, 60)), tmp_path / "wide.png")
    assert read_photograph(wide).shape == (15, LONGEST_SIDE, 3)


def test_bad_uploads_are_refused_and_nothing_of_the_place_is_told(tmp_path):
    text = tmp_path / "text.png"
    text.write_text("no image")
    cut = saved(Image.fromarray(skimage.data.chelsea()), tmp_path / "cut.png")
    cut.write_bytes(cut.read_bytes()[:5000])
    large = tmp_path / "large.png"
    large.write_bytes(b"\x89PNG" + bytes(MAX_BYTES))
    wide = saved(Image.new("1", (20_000, 4_000)), tmp_path / "wide.png")
    bomb = saved(Image.new("1", (20_000, 20_000)), tmp_path / "bomb.png")
    said = {text: "no image that can be read", cut: "damaged", large: "at most 10 MB"}
    said |= {wide: "20,000 x 4,000 pixels", bomb: "too many pixels; give one of at most 40 million"}
    for file, words in said.items():
        with pytest.raises(InputError, match=words) as error:
            read_photograph(file)
        assert str(tmp_path) not in str(error.value)


def test_what_is_written_in_a_page_is_escaped():
    assert "<script>" not in section([Panel("<script>", np.zeros((4, 4, 3), np.uint8), "<script>")], "<script>", "<b>")
    assert "<b>" not in histogram("<b>", [1, 2, 3], [4, 5], "cells")


def test_heat_and_marks():
    colors = heat(np.array([[0.0, 0.5, 1.0, 9.0]]), 0, 1)[0].astype(int).sum(axis=1)
    assert colors[0] < colors[1] < colors[2] == colors[3]
    framed = marked(np.full((40, 40, 3), 100, np.uint8), (4, 4), (1, 2))
    inside = framed[14:16, 24:26]
    assert (inside == 100).all() and (framed[10:20, 20:30] == 255).any() and (framed[:6] == 100).all()
