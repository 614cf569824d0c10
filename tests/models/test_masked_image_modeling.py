"""The models: sizes, factories, outputs, gradients, refusals."""

import pytest
import torch
from tiny_models import tiny_config, tiny_swin, tiny_vit
from transformers import BertConfig
from transformers.modeling_outputs import MaskedImageModelingOutput

from modeling_kamim import (
    KamimForMaskedImageModeling,
    KamimMaskedImageModelingOutput,
    KamimSwinForMaskedImageModeling,
    KamimViTForMaskedImageModeling,
    build_config,
)
from modeling_kamim.errors import InputError
from modeling_kamim.models.families import FAMILIES
from modeling_kamim.models.positions import mae_positions
from modeling_kamim.models.sizes import check_image_size, patch_grid

CONFIGS = {"vit": tiny_vit(kamim={"temperature": 0.25}), "swin": tiny_swin(kamim={"temperature": 0.25})}
CLASSES = {"vit": KamimViTForMaskedImageModeling, "swin": KamimSwinForMaskedImageModeling}


def batch(config, cells=4):
    tokens = (config.image_size // config.patch_size) ** 2
    mask = torch.rand(2, tokens) < 0.6
    mask[:, 0] = True
    return {
        "pixel_values": torch.randn(2, 3, config.image_size, config.image_size),
        "bool_masked_pos": mask,
        "keypoint_weights": 1 + torch.rand(2, cells, cells),
    }


@pytest.mark.parametrize(
    "model_type, size, millions",
    [
        ("vit", "tiny", 5.5),
        ("vit", "small", 21.6),
        ("vit", "base", 85.7),
        ("swin", "tiny", 27.5),
        ("swin", "base", 86.7),
    ],
)
def test_encoders_have_the_papers_parameter_counts(model_type, size, millions):
    with torch.device("meta"):
        model = KamimForMaskedImageModeling.from_config(build_config(model_type, size))
    count = sum(parameter.numel() for parameter in model.base_model.parameters())
    assert abs(count / 1e6 - millions) < 0.1  # the paper cuts off or rounds: ViT-B has 85.76M


@pytest.mark.parametrize("model_type", CONFIGS)
def test_factories_choose_the_class(model_type, tmp_path):
    model = KamimForMaskedImageModeling.from_config(CONFIGS[model_type])
    assert type(model) is CLASSES[model_type]
    model.save_pretrained(tmp_path)
    for factory in (KamimForMaskedImageModeling, CLASSES[model_type]):
        loaded = factory.from_pretrained(tmp_path)
        assert type(loaded) is CLASSES[model_type]
        assert loaded.config.kamim == {"temperature": 0.25}
        state = loaded.state_dict()
        assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())
    given = KamimForMaskedImageModeling.from_pretrained(tmp_path, config=model.config)
    assert type(given) is CLASSES[model_type]


@pytest.mark.parametrize(
    ("model_type", "image_size", "settings"),
    [
        ("vit", 96, {"patch_size": 8}),
        ("vit", 64, {"patch_size": 32, "num_hidden_layers": 2}),
        ("swin", 128, {"patch_size": 2}),
        ("swin", 64, {"depths": [2, 2], "num_heads": [3, 6], "window_size": 4}),
        ("swin", 64, {"patch_size": 8, "depths": [1, 1, 1], "num_heads": [3, 6, 12]}),
    ],
)
def test_a_model_of_other_patches_and_depths_reconstructs_its_images(model_type, image_size, settings):
    config = build_config(model_type, "tiny", image_size, **settings)
    assert {key: getattr(config, key) for key in settings} == settings
    model = KamimForMaskedImageModeling.from_config(config)
    inputs = batch(config)
    assert model(**inputs).reconstruction.shape == inputs["pixel_values"].shape


@pytest.mark.parametrize("model_type", ["vit", "swin"])
def test_patches_of_no_pixel_are_refused(model_type):
    with pytest.raises(InputError, match="patch_size is 0"):
        build_config(model_type, "tiny", 96, patch_size=0)


def test_build_config_passes_settings_through():
    vit = build_config("vit", "tiny", 64, kamim={"temperature": 0.5}, num_channels=1)
    assert (vit.model_type, vit.image_size, vit.patch_size, vit.encoder_stride) == ("vit", 64, 16, 16)
    assert vit.kamim == {"temperature": 0.5} and vit.num_channels == 1
    swin = build_config("swin", "tiny", 192)
    assert (swin.model_type, swin.patch_size, swin.encoder_stride, swin.window_size) == ("swin", 4, 32, 6)


@pytest.mark.parametrize("model_type", CONFIGS)
def test_output(model_type):
    config = CONFIGS[model_type]
    model = KamimForMaskedImageModeling.from_config(config).eval()
    inputs = batch(config)
    with torch.no_grad():
        output = model(**inputs)
        plain = model(**{**inputs, "keypoint_weights": None})
        unmasked = model(inputs["pixel_values"])
        as_tuple = model(**inputs, return_dict=False)
    assert isinstance(output, KamimMaskedImageModelingOutput) and isinstance(output, MaskedImageModelingOutput)
    assert output.reconstruction.shape == inputs["pixel_values"].shape
    assert torch.equal(output.masked_l1, plain.loss) and torch.equal(plain.masked_l1, plain.loss)
    assert output.loss > output.masked_l1
    assert torch.equal(output.reconstruction, plain.reconstruction)
    assert unmasked.loss is None and unmasked.masked_l1 is None
    assert not torch.equal(unmasked.reconstruction, output.reconstruction)
    assert isinstance(as_tuple, tuple) and torch.equal(as_tuple[0], output.loss)


@pytest.mark.parametrize("model_type", CONFIGS)
def test_loss_is_the_weighted_error_of_the_reconstruction(model_type):
    config = CONFIGS[model_type]
    model = KamimForMaskedImageModeling.from_config(config).eval()
    inputs = batch(config, cells=8)
    with torch.no_grad():
        output = model(**inputs)
    side = config.image_size // config.patch_size
    mask = inputs["bool_masked_pos"].view(2, 1, side, side).float()
    mask = mask.repeat_interleave(config.patch_size, 2).repeat_interleave(config.patch_size, 3)
    weights = inputs["keypoint_weights"][:, None].repeat_interleave(4, 2).repeat_interleave(4, 3)
    error = (output.reconstruction - inputs["pixel_values"]).abs()
    assert output.loss.item() == pytest.approx(((error * mask * weights).sum() / mask.sum() / 3).item(), rel=1e-5)
    assert output.masked_l1.item() == pytest.approx(((error * mask).sum() / mask.sum() / 3).item(), rel=1e-5)


@pytest.mark.parametrize("model_type", CONFIGS)
def test_gradients_reach_every_parameter(model_type):
    model = KamimForMaskedImageModeling.from_config(CONFIGS[model_type])
    model(**batch(CONFIGS[model_type])).loss.backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


@pytest.mark.parametrize("image_size", [32, 96, 192])
def test_swin_starts_with_gradients_of_ordinary_size(image_size, tmp_path):
    """With transformers' mask token of zeros their norm is 1e5 at 192 px, and infinite in small models."""
    config = build_config("swin", "tiny", image_size)
    model = KamimForMaskedImageModeling.from_config(config)
    assert 0.015 < model.base_model.embeddings.mask_token.std() < 0.025
    model(**batch(config)).loss.backward()
    assert torch.nn.utils.get_total_norm([parameter.grad for parameter in model.parameters()]) < 100


def test_a_mask_token_that_is_saved_is_kept(tmp_path):
    model = KamimForMaskedImageModeling.from_config(CONFIGS["swin"])
    torch.nn.init.ones_(model.base_model.embeddings.mask_token)
    model.save_pretrained(tmp_path)
    assert (KamimForMaskedImageModeling.from_pretrained(tmp_path).base_model.embeddings.mask_token == 1).all()


@pytest.mark.parametrize("model_type", CONFIGS)
def test_masked_pixels_do_not_leak_into_the_reconstruction(model_type):
    config = CONFIGS[model_type]
    model = KamimForMaskedImageModeling.from_config(config).eval()
    inputs = batch(config)
    side = config.image_size // config.patch_size
    mask = inputs["bool_masked_pos"].view(2, 1, side, side)
    mask = mask.repeat_interleave(config.patch_size, 2).repeat_interleave(config.patch_size, 3)
    hidden = {**inputs, "pixel_values": torch.where(mask, torch.zeros(()), inputs["pixel_values"])}
    with torch.no_grad():
        assert torch.allclose(model(**inputs).reconstruction, model(**hidden).reconstruction, atol=1e-6)


def test_a_wrong_encoder_stride_is_refused_with_its_name():
    config = tiny_vit(encoder_stride=16)
    model = KamimForMaskedImageModeling.from_config(config)
    with pytest.raises(ValueError, match="encoder_stride 16"):
        model(**batch(config))


def test_other_model_types_are_refused(tmp_path):
    bert = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=1, intermediate_size=16, vocab_size=9)
    with pytest.raises(InputError, match="'bert'.*vit, deit, swin"):
        KamimForMaskedImageModeling.from_config(bert)
    bert.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="'bert'.*vit, deit, swin"):
        KamimForMaskedImageModeling.from_pretrained(tmp_path)
    with pytest.raises(InputError, match="'bert'.*vit, deit, swin"):
        KamimForMaskedImageModeling.from_pretrained(tmp_path, config=bert)


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (("bert", "tiny"), ["bert", "vit", "swin"]),
        (("vit", "giant"), ["giant", "tiny", "small", "base", "large", "huge"]),
        (("swin", "huge"), ["huge", "tiny", "small", "base", "large"]),
        (("vit", "tiny", 200), ["200", "16"]),
        (("vit", "tiny", 0), ["0", "16"]),
        (("vit", "tiny", -16), ["-16", "16"]),
        (("swin", "tiny", 200), ["200", "32"]),
        (("swin", "tiny", 0), ["0", "32"]),
    ],
)
def test_impossible_models_are_refused_with_what_is_possible(arguments, expected):
    with pytest.raises(InputError) as error:
        build_config(*arguments)
    assert all(word in str(error.value) for word in expected)


def swin(image_size, window_size):
    """Swin of four stages, as the paper's, of 4 channels."""
    return tiny_swin(
        image_size=image_size,
        encoder_stride=32,
        embed_dim=4,
        depths=[2, 2, 2, 2],
        num_heads=[1, 1, 1, 1],
        window_size=window_size,
    )


def test_swin_windows_that_do_not_fit_are_refused_with_a_size_that_does():
    for image_size in (200, 224, 256):
        with pytest.raises(InputError, match=f"{image_size}.*multiple of"):
            check_image_size(swin(image_size, 6))
    with pytest.raises(InputError, match="windows of 6: use a multiple of 192"):
        check_image_size(swin(224, 6))
    check_image_size(swin(192, 6))
    check_image_size(swin(384, 6))


@pytest.mark.parametrize("image_size", [32, 64, 96, 192, 224, 256])
def test_swin_runs_at_every_size_that_build_config_takes(image_size):
    window_size = build_config("swin", "tiny", image_size).window_size
    if image_size == 192:
        assert window_size == 6
    model = KamimForMaskedImageModeling.from_config(swin(image_size, window_size)).eval()
    with torch.no_grad():
        output = model(
            torch.randn(1, 3, image_size, image_size), torch.ones(1, (image_size // 4) ** 2, dtype=torch.bool)
        )
    assert output.reconstruction.shape == (1, 3, image_size, image_size) and output.loss.isfinite()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["vit", "swin"])
def test_compiles_to_one_graph(name, attention):
    model = KamimForMaskedImageModeling.from_config(CONFIGS[name], attn_implementation=attention).eval()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    inputs = batch(CONFIGS[name])
    expected = model(**inputs).loss
    loss = compiled(**inputs).loss
    loss.backward()
    torch.testing.assert_close(loss, expected)
    assert all(parameter.grad is not None for parameter in model.decoder.parameters())


@pytest.mark.parametrize("model_type", FAMILIES)
def test_maes_initialization_is_xaviers_with_sine_cosine_positions(model_type, tmp_path):
    config = tiny_config(model_type, 64, mae_init=True)
    model = KamimForMaskedImageModeling.from_config(config)
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d) and module.weight.numel() > 500:
            fan_out, fan_in = module.weight.shape[0], module.weight[0].numel()
            bound = (6 / (fan_in + fan_out)) ** 0.5  # torch.nn.init.xavier_uniform_ of the flattened weight
            assert 0.8 * bound < module.weight.abs().max() <= bound, name
            assert module.weight.detach().std() == pytest.approx(bound / 3**0.5, rel=0.15), name
    positions = getattr(model.base_model.embeddings, "position_embeddings", None)
    if isinstance(positions, torch.nn.Parameter):
        patches = mae_positions(patch_grid(config), positions.shape[-1])[:, 1:].float()
        prefix = positions.shape[1] - patches.shape[1]
        assert torch.equal(positions[:, prefix:], patches) and not positions[:, :prefix].any()
    model.save_pretrained(tmp_path)
    loaded = KamimForMaskedImageModeling.from_pretrained(tmp_path)
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), loaded.state_dict().values(), strict=True)
    )
