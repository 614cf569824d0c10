"""All families: checkpoints for transformers, gradients, parity with transformers' losses, warm starts."""

import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from tiny_models import tiny_config
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    ViTMAEConfig,
    ViTMAEForPreTraining,
)
from transformers.models.vit_mae.modeling_vit_mae import build_2d_sinusoidal_position_embedding

from modeling_kamim import KamimForMaskedImageModeling, KamimViTClassifierConfig, KamimViTForImageClassification
from modeling_kamim.errors import InputError
from modeling_kamim.models.backbone import Backbone, load_backbone
from modeling_kamim.models.families import FAMILIES, encoder_stride, num_prefix_tokens
from modeling_kamim.models.masked_image_modeling import keep_visible, model_class
from modeling_kamim.models.positions import mae_positions
from modeling_kamim.models.processor import image_processor
from modeling_kamim.models.sizes import build_config, image_sides, image_size_of, patch_grid, token_grid
from modeling_kamim.models.warm_start import config_to_pretrain, warm_start
from modeling_kamim.objective.targets import patch_statistics

every_family = pytest.mark.parametrize("model_type", FAMILIES)
RECONSTRUCTS = [name for name, family in FAMILIES.items() if family.extends.endswith("ForMaskedImageModeling")]
RECTANGLES = [name for name, family in FAMILIES.items() if family.rectangles]
CLASSIFIED = [name for name in FAMILIES if name not in ("dinov3_vit", "vit_mae")]


def perturbed(model):
    """Away from zeros: biases, tokens and tables are random, too."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model.eval()


def batch(config, num_images=2, ratio=0.5):
    num_patches = math.prod(patch_grid(config))
    mask = torch.zeros(num_images, num_patches, dtype=torch.bool)
    for row in mask:
        row[torch.randperm(num_patches)[: int(ratio * num_patches)]] = True
    return torch.randn(num_images, 3, *image_sides(config)), mask


LOAD = """
import json, sys
import numpy as np
import torch
from transformers import AutoModel
for name in json.loads(sys.argv[2]):
    directory = sys.argv[1] + "/" + name
    pixels = torch.from_numpy(np.load(directory + "/pixels.npy"))
    settings = {"mask_ratio": 0.0} if "vit_mae" in name else {}
    model, report = AutoModel.from_pretrained(directory, output_loading_info=True, **settings)
    computed = ("pooler", "relative_position_index", "relative_coords_table")
    missing = [key for key in report["missing_keys"] if not any(part in key for part in computed)]
    assert not missing and not report["mismatched_keys"], (name, report)
    places = {"noise": torch.arange(pixels[0, 0].numel() / 64)[None].repeat(2, 1)} if "vit_mae" in name else {}
    with torch.no_grad():
        np.save(directory + "/features.npy", model.eval()(pixels, **places).last_hidden_state.numpy())
assert not any(name.startswith("modeling_kamim") for name in sys.modules)
"""


def check_transformers_alone(folder, program=LOAD, **settings):
    """Compare the features of all families with those in a process without this package."""
    configs = {name: tiny_config(name) for name in FAMILIES}
    configs |= {f"rectangles of {name}": tiny_config(name, [32, 48]) for name in RECTANGLES}
    models = {name: perturbed(KamimForMaskedImageModeling.from_config(config)) for name, config in configs.items()}
    images = {name: torch.randn(2, 3, *image_sides(config)) for name, config in configs.items()}
    for name, model in models.items():
        model.save_pretrained(folder / name)
        np.save(folder / name / "pixels.npy", images[name].numpy())
        assert AutoConfig.from_pretrained(folder / name).model_type == model.config.model_type
    command = [sys.executable, "-c", program, str(folder), json.dumps(list(models))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=folder, **settings)
    assert done.returncode == 0, done.stderr
    for name, model in models.items():
        with torch.no_grad():
            features = model.base_model(images[name]).last_hidden_state
        found = torch.from_numpy(np.load(folder / name / "features.npy"))
        torch.testing.assert_close(found, features, atol=1e-5, rtol=1e-5)


def test_transformers_alone_loads_every_encoder_with_equal_features(tmp_path):
    check_transformers_alone(tmp_path)


@pytest.mark.slow
def test_transformers_4_57_loads_every_encoder_with_equal_features(tmp_path, install_beside):
    packages = install_beside("transformers==4.57.1", "tokenizers==0.22.1", "huggingface_hub==0.36.0")
    version = "import transformers; assert transformers.__version__ == '4.57.1', transformers.__version__\n"
    check_transformers_alone(tmp_path, version + LOAD, env={**os.environ, "PYTHONPATH": str(packages)})


@every_family
def test_gradients_are_of_ordinary_size_and_reach_every_parameter(model_type):
    model = KamimForMaskedImageModeling.from_config(tiny_config(model_type))
    pixels, mask = batch(model.config, 4)
    model(pixels, mask, 1 + torch.rand(4, 4, 4)).loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert all(gradient is not None and gradient.any() for gradient in gradients.values())
    assert 0 < model.mask_token.grad.norm() < 10
    assert torch.nn.utils.get_total_norm(list(gradients.values())) < 100


@every_family
def test_tokens_are_those_of_the_patches(model_type):
    config = tiny_config(model_type)
    model = KamimForMaskedImageModeling.from_config(config).eval()
    pixels, mask = batch(config)
    with torch.no_grad():
        tokens = model.base_model(pixels).last_hidden_state
        outputs = model(pixels, mask)
    assert tokens.shape[1] - num_prefix_tokens(config) == (32 // encoder_stride(config)) ** 2
    assert outputs.reconstruction.shape == pixels.shape
    assert outputs.loss > 0 and outputs.masked_l1 > 0


@every_family
def test_masked_pixels_do_not_leak(model_type):
    config = tiny_config(model_type, kamim={"target": "pixels"})
    model = perturbed(KamimForMaskedImageModeling.from_config(config))
    pixels, mask = batch(config)
    side = 32 // config.patch_size
    covered = mask.view(2, 1, side, side).repeat_interleave(32 // side, 2).repeat_interleave(32 // side, 3)
    with torch.no_grad():
        given, hidden = (model(images, mask).reconstruction for images in (pixels, pixels.masked_fill(covered, 3.0)))
    torch.testing.assert_close(given, hidden)


@pytest.mark.parametrize("model_type", RECONSTRUCTS)
def test_without_weights_it_is_transformers_own_loss(model_type):
    config = tiny_config(model_type)
    model = perturbed(KamimForMaskedImageModeling.from_config(config))
    stock = getattr(transformers, FAMILIES[model_type].extends)(config).eval()
    stock.load_state_dict(model.state_dict())
    pixels, mask = batch(config)
    with torch.no_grad():
        ours, theirs = model(pixels, mask), stock(pixels, bool_masked_pos=mask)
    assert ours.loss.item() == pytest.approx(theirs.loss.item(), rel=1e-5)
    torch.testing.assert_close(ours.reconstruction, theirs.reconstruction)


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.75])
def test_without_weights_it_is_transformers_mae(normalized, ratio):
    target = "normalized_pixels" if normalized else "pixels"
    config = tiny_config("vit_mae", kamim={"target": target}, norm_pix_loss=normalized, mask_ratio=ratio)
    model = perturbed(KamimForMaskedImageModeling.from_config(config))
    stock = ViTMAEForPreTraining(config).eval()
    stock.load_state_dict(model.state_dict())
    pixels, mask = batch(config, ratio=ratio)
    with torch.no_grad():
        ours = model(pixels, mask)
        theirs = stock(pixels, noise=mask + torch.rand(mask.shape) / 2)
    assert torch.equal(theirs.mask.bool(), mask)
    assert ours.loss.item() == pytest.approx(theirs.loss.item(), rel=1e-6)


def test_weights_of_a_mae_multiply_the_squared_error_of_their_cells():
    config = tiny_config("vit_mae")
    model = perturbed(KamimForMaskedImageModeling.from_config(config))
    pixels, mask = batch(config)
    weights = 1 + torch.rand(2, 8, 8)  # four cells in a patch of 8 px
    with torch.no_grad():
        outputs = model(pixels, mask, weights)
        mean, deviation = patch_statistics(pixels, 8)
    assert torch.equal(mean[..., :8, :8].flatten(), mean[..., :1, :1].expand(-1, -1, 8, 8).flatten())
    patch = pixels[0, :, :8, :8]
    assert mean[0, 0, 0, 0].item() == pytest.approx(patch.mean().item(), abs=1e-6)
    assert deviation[0, 0, 0, 0].item() == pytest.approx((patch.var() + 1e-6).sqrt().item(), rel=1e-5)
    error = ((outputs.reconstruction - pixels) / deviation) ** 2
    covered = mask.view(2, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    weighted = error * covered * weights[:, None].repeat_interleave(4, 2).repeat_interleave(4, 3)
    assert outputs.loss.item() == pytest.approx((weighted.sum() / covered.sum() / 3).item(), rel=1e-4)


def test_a_mae_sees_the_visible_patches_alone_and_in_their_order():
    tokens = torch.arange(12.0).view(2, 6, 1)
    mask = torch.tensor([[1, 0, 0, 1, 0, 1], [0, 0, 1, 1, 1, 0]], dtype=torch.bool)
    visible, told, restore = keep_visible(tokens, mask)
    assert visible[..., 0].tolist() == [[1, 2, 4], [6, 7, 11]]
    assert torch.equal(told.bool(), mask)
    filled = torch.cat([visible, torch.full((2, 3, 1), -1.0)], dim=1).gather(1, restore[..., None])
    assert torch.equal(filled[..., 0], torch.where(mask, -1.0, tokens[..., 0]))
    assert torch.equal(keep_visible(tokens)[0], tokens)
    with pytest.raises(ValueError, match="equally many"):
        keep_visible(tokens, torch.tensor([[1, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0]], dtype=torch.bool))


@pytest.mark.parametrize(("side", "width"), [(2, 8), (4, 32), (14, 768)])
def test_positions_of_mae(side, width):
    stock = build_2d_sinusoidal_position_embedding(height=side, width=side, embed_dim=width, cls_token=True)
    stock = torch.cat([stock[..., width // 2 :], stock[..., : width // 2]], dim=-1)  # as ViTMAEEmbeddings does
    torch.testing.assert_close(mae_positions(side, width)[0].float(), stock.float().view(-1, width))
    model = KamimForMaskedImageModeling.from_config(tiny_config("vit_mae"))
    for positions in (model.vit.embeddings.position_embeddings, model.decoder.decoder_pos_embed):
        torch.testing.assert_close(positions, mae_positions(4, positions.shape[-1]).float())
        assert not positions.requires_grad


@pytest.mark.parametrize(("grid", "width"), [((3, 5), 8), ((8, 4), 32), ((12, 16), 768)])
def test_positions_of_mae_over_a_rectangle(grid, width):
    stock = build_2d_sinusoidal_position_embedding(height=grid[0], width=grid[1], embed_dim=width, cls_token=True)
    stock = torch.cat([stock[..., width // 2 :], stock[..., : width // 2]], dim=-1)
    torch.testing.assert_close(mae_positions(grid, width)[0].float(), stock.float().view(-1, width))
    model = KamimForMaskedImageModeling.from_config(tiny_config("vit_mae", [32, 48]))
    for positions in (model.vit.embeddings.position_embeddings, model.decoder.decoder_pos_embed):
        torch.testing.assert_close(positions, mae_positions((4, 6), positions.shape[-1]).float())


def test_simmims_vit_starts_as_its_authors_do():
    config = build_config("beit", "simmim_vit", 32, config_overrides="hidden_size=64,num_hidden_layers=4")
    model = KamimForMaskedImageModeling.from_config(config)
    for number, block in enumerate(model.beit.layers, start=1):
        assert block.attention.q_proj.weight.abs().max() <= 0.02
        for layer in (block.attention.o_proj, block.mlp.fc2):
            assert 0.9 < layer.weight.abs().max() * (2 * number) ** 0.5 / 0.02 <= 1
        assert (block.lambda_1 == 0.1).all()
    assert model.beit.embeddings.position_embeddings is None and model.config.drop_path_rate == 0.1


# ------------------------------------------------------------------------------------------------------ Warm start


def features(model, pixels):
    with torch.no_grad():
        return Backbone(model).eval()(pixels)


def features_of(model, pixels):
    with torch.no_grad():
        return model.base_model.eval()(pixels).last_hidden_state


@every_family
def test_a_warm_start_has_the_features_of_its_checkpoint(model_type, tmp_path):
    perturbed(AutoModel.from_config(tiny_config(model_type))).save_pretrained(tmp_path)
    start = warm_start(str(tmp_path), config_to_pretrain(str(tmp_path)))
    pixels = torch.randn(2, 3, 32, 32)
    expected = features(load_backbone(str(tmp_path), "vit", "base", None, "mean").model, pixels)
    torch.testing.assert_close(features(start.model.base_model, pixels), expected)
    assert start.model.mask_token.any()
    assert "new: decoder" in start.summary


@pytest.mark.parametrize("model_type", CLASSIFIED)
def test_a_warm_start_from_a_classifier(model_type, tmp_path):
    config = tiny_config(model_type, num_labels=7, architectures=[])
    classifier = perturbed(AutoModelForImageClassification.from_config(config))
    classifier.save_pretrained(tmp_path)
    start = warm_start(str(tmp_path), config_to_pretrain(str(tmp_path)))
    assert "left out: classifier (2)" in start.summary and start.model.config.num_labels == 2
    pixels = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(features(start.model.base_model, pixels), features(classifier.base_model, pixels))


@every_family
def test_a_warm_start_from_pretraining_keeps_decoder_and_mask_token(model_type, tmp_path):
    model = perturbed(KamimForMaskedImageModeling.from_config(tiny_config(model_type)))
    model.save_pretrained(tmp_path)
    start = warm_start(str(tmp_path), config_to_pretrain(str(tmp_path)))
    state = start.model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert start.summary.endswith("new: none; left out: none")


def test_a_warm_start_from_a_classifier_of_this_package(tmp_path):
    left = ("model_type", "id2label", "label2id")
    settings = {key: value for key, value in tiny_config("vit", num_labels=3).to_dict().items() if key not in left}
    classifier = perturbed(KamimViTForImageClassification(KamimViTClassifierConfig(**settings)))
    classifier.save_pretrained(tmp_path / "whole")
    config = config_to_pretrain(str(tmp_path / "whole"))
    start = warm_start(str(tmp_path / "whole"), config)
    assert start.model.config.model_type == "vit"
    pixels = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(features(start.model.base_model, pixels), features(classifier.encoder, pixels))
    inner = KamimViTClassifierConfig(**settings, final_layernorm=False)
    KamimViTForImageClassification(inner).save_pretrained(tmp_path / "inner")
    with pytest.raises(InputError, match="first 2 blocks.*give the encoder itself"):
        config_to_pretrain(str(tmp_path / "inner"))


@pytest.mark.parametrize("model_type", ["vit", "deit", "dinov2", "dinov2_with_registers", "vit_mae"])
def test_another_image_size_has_transformers_interpolated_positions(model_type, tmp_path):
    stock = perturbed(AutoModel.from_config(tiny_config(model_type, 32)))
    stock.save_pretrained(tmp_path)
    start = warm_start(str(tmp_path), config_to_pretrain(str(tmp_path), 64))
    pixels = torch.randn(2, 3, 64, 64)
    settings = {} if "dinov2" in model_type else {"interpolate_pos_encoding": True}
    if model_type == "vit_mae":
        stock.embeddings.random_masking = keep_visible
    with torch.no_grad():
        expected = stock(pixels, **settings).last_hidden_state
        found = start.model.base_model.eval()(pixels).last_hidden_state
    torch.testing.assert_close(found, expected)
    assert "resized from 32 to 64 px" in start.summary


@every_family
def test_the_attention_of_a_gpu_is_taken_where_transformers_has_it(model_type, tmp_path):
    config = tiny_config(model_type)
    model = KamimForMaskedImageModeling.from_config(config, attn_implementation="sdpa")
    expected = "eager" if model_type in ("swinv2", "focalnet") else "sdpa"
    assert model.config._attn_implementation == expected
    model.save_pretrained(tmp_path)
    for size in (32, 64):
        start = warm_start(str(tmp_path), config_to_pretrain(str(tmp_path), size), "sdpa")
        assert start.model.config._attn_implementation == expected


@every_family
def test_another_image_size_trains(model_type, tmp_path):
    perturbed(AutoModel.from_config(tiny_config(model_type, 32))).save_pretrained(tmp_path)
    start = warm_start(str(tmp_path), config_to_pretrain(str(tmp_path), 64))
    assert start.model.config.image_size == 64
    assert start.model(*batch(start.model.config)).loss.isfinite()


@pytest.mark.parametrize("model_type", RECTANGLES)
def test_rectangles_are_trained_on_their_masked_pixels_alone(model_type):
    config = tiny_config(model_type, [32, 48], kamim={"target": "pixels"})
    model = perturbed(KamimForMaskedImageModeling.from_config(config))
    pixels, mask = batch(config)
    weights = 1 + torch.rand(2, 4, 6)
    outputs = model(pixels, mask, weights)
    outputs.loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters() if p.requires_grad)
    rows, columns = patch_grid(config)
    covered = np.kron(mask.view(2, rows, columns).numpy(), np.ones((1, 32 // rows, 48 // columns)))[:, None]
    error = (outputs.reconstruction.detach() - pixels).numpy()
    error = abs(error) if FAMILIES[model_type].loss == "l1" else error**2
    expected = (error * covered * np.kron(weights.numpy(), np.ones((1, 8, 8)))[:, None]).sum() / covered.sum() / 3
    assert outputs.loss.item() == pytest.approx(expected, rel=1e-4)
    with torch.no_grad():
        hidden = model(pixels.masked_fill(torch.from_numpy(covered).bool(), 3.0), mask).reconstruction
    torch.testing.assert_close(hidden, outputs.reconstruction)


@pytest.mark.parametrize("model_type", ["vit", "deit", "dinov2", "dinov2_with_registers", "vit_mae"])
def test_a_square_becomes_a_rectangle_by_transformers_interpolation(model_type, tmp_path):
    stock = perturbed(AutoModel.from_config(tiny_config(model_type, 32)))
    stock.save_pretrained(tmp_path)
    start = warm_start(str(tmp_path), config_to_pretrain(str(tmp_path), [64, 48]))
    pixels = torch.randn(2, 3, 64, 48)
    settings = {} if "dinov2" in model_type else {"interpolate_pos_encoding": True}
    if model_type == "vit_mae":
        stock.embeddings.random_masking = keep_visible
    with torch.no_grad():
        expected = stock(pixels, **settings).last_hidden_state
    torch.testing.assert_close(features_of(start.model, pixels), expected)
    assert image_size_of(start.model.config) == [64, 48]
    assert "resized from 32 to 64 x 48 px" in start.summary


@pytest.mark.parametrize("model_type", RECTANGLES)
def test_a_rectangle_becomes_a_square_and_another_rectangle(model_type, tmp_path):
    model = perturbed(KamimForMaskedImageModeling.from_config(tiny_config(model_type, [32, 64])))
    model.save_pretrained(tmp_path)
    for size in (32, [64, 32], [64, 96]):
        start = warm_start(str(tmp_path), config_to_pretrain(str(tmp_path), size))
        assert start.summary.endswith("new: none; left out: none") and "resized from 32 x 64 to" in start.summary
        assert start.model(*batch(start.model.config)).loss.isfinite()
        positions = dict(start.model.named_parameters())
        for name, old in model.named_parameters():
            if name.endswith(("position_embeddings", "decoder_pos_embed")) and "dinov2" not in model_type:
                prefix, sides = num_prefix_tokens(model.config), image_sides(start.model.config)
                maps = old[0, prefix:].T.reshape(1, -1, 4, 8)
                grid = torch.nn.functional.interpolate(maps, [side // 8 for side in sides], mode="bicubic")
                torch.testing.assert_close(positions[name][0, prefix:], grid[0].flatten(1).T)
    again = warm_start(str(tmp_path), config_to_pretrain(str(tmp_path)))
    assert "resized" not in again.summary and image_size_of(again.model.config) == [32, 64]
    state = again.model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("model_type", sorted(FAMILIES.keys() - RECTANGLES))
def test_families_of_squares_name_those_of_rectangles(model_type):
    with pytest.raises(InputError, match=f"32 x 48, and {model_type} takes squares alone.*one of vit, deit, swinv2"):
        tiny_config(model_type, [32, 48])


@pytest.mark.parametrize(
    ("size", "message"),
    [([32, 44], "32 x 44; it must be a multiple of 8"), ([32, 48, 64], "one number"), ([], "one number")],
)
def test_rectangles_that_are_none(size, message):
    with pytest.raises(InputError, match=message):
        tiny_config("vit", size)


def test_windows_cut_rectangles_evenly():
    assert tiny_config("swinv2", [64, 96]).window_size == 4  # 8 x 12 tokens in the last stage
    assert tiny_config("swinv2", 64).window_size == 8
    with pytest.raises(InputError, match="windows of one token.*sides that 16 divides"):
        tiny_config("swinv2", [64, 72])
    with pytest.raises(InputError, match=r"stages of \[16, 8\] and \[24, 12\] tokens.*windows of 8"):
        tiny_config("swinv2", [64, 96], window_size=8)


def test_the_processor_of_a_rectangle(tmp_path):
    image_processor([48, 64]).save_pretrained(tmp_path)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    image = np.random.default_rng(0).integers(0, 256, (30, 50, 3), np.uint8)
    assert processor(image, return_tensors="pt").pixel_values.shape == (1, 3, 48, 64)


@pytest.mark.parametrize(
    ("sides", "num_tokens", "grid"),
    [
        ((192, 192), 144, (12, 12)),
        ((192, 192), 145, (12, 12)),
        ((192, 256), 192, (12, 16)),
        ((192, 256), 197, (12, 16)),
        ((256, 192), 48 + 4, (8, 6)),
        ((64, 128), 8, (2, 4)),
        ((64, 128), 1, (0, 0)),
    ],
)
def test_grids_of_tokens_have_the_shape_of_the_image(sides, num_tokens, grid):
    assert token_grid(sides, num_tokens) == grid


def test_a_table_of_relative_positions_keeps_the_biases_of_cls(tmp_path):
    config = tiny_config("beit", use_shared_relative_position_bias=True)
    stock = perturbed(AutoModel.from_config(config))
    stock.save_pretrained(tmp_path)
    model = warm_start(str(tmp_path), config_to_pretrain(str(tmp_path), 64)).model
    old, new = (m.shared_position_bias.relative_position_bias_table for m in (stock, model.beit))
    assert len(old) == 7**2 + 3 and len(new) == 15**2 + 3
    assert torch.equal(new[-3:], old[-3:])
    torch.testing.assert_close(new[15 * 7 + 7], old[7 * 3 + 3])  # the same place


def test_a_mask_token_of_zeros_gets_a_start(tmp_path):
    model = KamimForMaskedImageModeling.from_config(tiny_config("dinov3_vit"))
    torch.nn.init.zeros_(model.mask_token)
    model.save_pretrained(tmp_path)
    start = warm_start(str(tmp_path), config_to_pretrain(str(tmp_path)))
    assert 0.01 < start.model.mask_token.std() < 0.03 and "mask_token (1)" in start.summary


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda state: state.pop("encoder.layer.0.norm1.weight"), "lacks weights"),
        (lambda state: state["embeddings.cls_token"].fill_(float("nan")), "NaN or infinite"),
    ],
)
def test_a_checkpoint_with_gaps_is_no_start(spoil, message, tmp_path):
    model = AutoModel.from_config(tiny_config("dinov2"))
    state = model.state_dict()
    spoil(state)
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(InputError, match=message):
        warm_start(str(tmp_path), config_to_pretrain(str(tmp_path)))


def test_a_path_that_is_not_there():
    with pytest.raises(InputError, match="'path/to/it' is no directory, and no id of the Hub"):
        config_to_pretrain("path/to/it")


def test_patches_that_are_rectangles_and_other_types_are_refused(tmp_path):
    config = tiny_config("vit")
    config.patch_size = [8, 16]
    config.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="patches must be squares"):
        config_to_pretrain(str(tmp_path))
    transformers.BertConfig().save_pretrained(tmp_path)
    with pytest.raises(InputError, match="'bert'.*vit_mae"):
        config_to_pretrain(str(tmp_path))


@pytest.mark.parametrize(
    ("text", "message"),
    [("hidden=8", "hidden"), ("hidden_size=x", "hidden_size"), ("hidden_size", "config_overrides")],
)
def test_overrides_that_are_none(text, message):
    with pytest.raises(InputError, match=message):
        build_config("vit", "tiny", 64, config_overrides=text)


def test_names_of_the_classes():
    assert model_class("dinov3_vit").__name__ == "KamimDINOv3ViTForMaskedImageModeling"
    assert model_class("vit_mae").__name__ == "KamimViTMAEForMaskedImageModeling"
    assert issubclass(model_class("vit_mae"), ViTMAEForPreTraining)
    assert ViTMAEConfig.model_type in FAMILIES


def test_saved_names_are_those_of_transformers(tmp_path):
    KamimForMaskedImageModeling.from_config(tiny_config("beit")).save_pretrained(tmp_path)
    names = load_file(tmp_path / "model.safetensors")
    assert "beit.encoder.layer.0.attention.attention.query.weight" in names  # of transformers 4, which 5 writes
