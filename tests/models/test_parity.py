"""Same weights, two implementations: transformers' own masked image modeling, and processes without this package."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny_models import tiny_swin, tiny_vit
from transformers import (
    AutoImageProcessor,
    AutoModel,
    SwinForMaskedImageModeling,
    ViTForMaskedImageModeling,
)

from modeling_kamim import KamimForMaskedImageModeling
from modeling_kamim.models.processor import image_processor

KAMIM = {"weighting": "keypoint", "temperature": 0.25, "weight_patch_size": 8}
CONFIGS = {
    "vit": tiny_vit(image_size=48, kamim=KAMIM),
    "swin": tiny_swin(image_size=48, window_size=3, drop_path_rate=0.0, kamim=KAMIM),
}
STOCK = {"vit": ViTForMaskedImageModeling, "swin": SwinForMaskedImageModeling}
both = pytest.mark.parametrize("model_type", CONFIGS)


@pytest.fixture
def pair(model_type):
    """KAMIM's model and transformers' own, with the same weights."""
    kamim = KamimForMaskedImageModeling.from_config(CONFIGS[model_type])
    with torch.no_grad():  # away from the zeros of the initial biases and mask token
        for parameter in kamim.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    stock = STOCK[model_type](CONFIGS[model_type])
    stock.load_state_dict(kamim.state_dict(), strict=True)
    return kamim.train(), stock.train()


def batch(config):
    tokens = (config.image_size // config.patch_size) ** 2
    mask = torch.rand(3, tokens) < 0.6
    return torch.randn(3, 3, config.image_size, config.image_size), mask


@both
def test_reconstruction_loss_and_hidden_states(model_type, pair):
    kamim, stock = pair
    pixels, mask = batch(kamim.config)
    with torch.no_grad():
        ours = kamim(pixels, mask, output_hidden_states=True)
        theirs = stock(pixels, bool_masked_pos=mask, output_hidden_states=True)
    assert ours.loss.item() == pytest.approx(theirs.loss.item(), rel=1e-6)
    assert torch.allclose(ours.reconstruction, theirs.reconstruction, atol=1e-6)
    assert len(ours.hidden_states) == len(theirs.hidden_states) >= 3
    for mine, other in zip(ours.hidden_states, theirs.hidden_states, strict=True):
        assert torch.allclose(mine, other, atol=1e-6)


@both
@pytest.mark.parametrize("cells", [1, 3, 6, 8, 12, 48])
def test_weights_of_one_are_simmim(model_type, pair, cells):
    kamim, stock = pair
    pixels, mask = batch(kamim.config)
    ours = kamim(pixels, mask, torch.ones(3, cells, cells))
    theirs = stock(pixels, bool_masked_pos=mask)
    assert ours.loss.item() == pytest.approx(theirs.loss.item(), rel=1e-6)
    assert ours.masked_l1.item() == pytest.approx(theirs.loss.item(), rel=1e-6)


@both
def test_gradients(model_type, pair):
    kamim, stock = pair
    pixels, mask = batch(kamim.config)
    kamim(pixels, mask, torch.ones(3, 6, 6)).loss.backward()
    stock(pixels, bool_masked_pos=mask).loss.backward()
    theirs = dict(stock.named_parameters())
    for name, parameter in kamim.named_parameters():
        assert parameter.grad is not None, name
        assert torch.allclose(parameter.grad, theirs[name].grad, rtol=1e-4, atol=1e-7), name


@both
def test_attentions(model_type, pair):
    kamim, stock = (model.eval() for model in pair)
    pixels, mask = batch(kamim.config)
    for model in (kamim, stock):
        model.set_attn_implementation("eager")
    with torch.no_grad():
        ours = kamim(pixels, mask, output_attentions=True).attentions
        theirs = stock(pixels, bool_masked_pos=mask, output_attentions=True).attentions
    assert len(ours) == len(theirs) > 0
    assert all(torch.allclose(mine, other, atol=1e-6) for mine, other in zip(ours, theirs, strict=True))


@both
def test_checkpoints_are_plain_and_go_both_ways(model_type, pair, tmp_path):
    kamim, _ = pair
    kamim.save_pretrained(tmp_path / "kamim")
    config = json.loads((tmp_path / "kamim" / "config.json").read_text())
    assert config["model_type"] == model_type and config["kamim"] == KAMIM
    assert "auto_map" not in config

    stock, info = STOCK[model_type].from_pretrained(tmp_path / "kamim", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    stock.save_pretrained(tmp_path / "stock")
    files = [load_file(tmp_path / name / "model.safetensors") for name in ("kamim", "stock")]
    assert files[0].keys() == files[1].keys()
    assert all(torch.equal(files[0][key], files[1][key]) for key in files[0])

    back, info = KamimForMaskedImageModeling.from_pretrained(tmp_path / "stock", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    expected = kamim.state_dict()
    for model in (stock, back):
        state = model.state_dict()
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[key], expected[key]) for key in expected)


WITHOUT_THE_PACKAGE = """
import sys
import numpy as np
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoModelForMaskedImageModeling, pipeline

for model_type in ("vit", "swin"):
    image = Image.open("image.png")
    pixels = AutoImageProcessor.from_pretrained(model_type)(image, return_tensors="pt").pixel_values
    expected = np.load(f"{model_type}_expected.npz")
    assert np.array_equal(pixels.numpy(), expected["pixels"])
    encoder = AutoModel.from_pretrained(model_type).eval()
    mim = AutoModelForMaskedImageModeling.from_pretrained(model_type).eval()
    mask = torch.from_numpy(expected["mask"])
    with torch.no_grad():
        np.save(f"{model_type}_encoder.npy", encoder(pixels).last_hidden_state.numpy())
        np.save(f"{model_type}_base.npy", mim.base_model(pixels).last_hidden_state.numpy())
        np.save(f"{model_type}_reconstruction.npy", mim(pixels, bool_masked_pos=mask).reconstruction.numpy())
    extract = pipeline("image-feature-extraction", model=model_type)
    np.save(f"{model_type}_pipeline.npy", np.array(extract(image)))
    assert encoder.config.kamim["temperature"] == 0.25
    assert "modeling_kamim" not in sys.modules
try:
    import modeling_kamim
except ModuleNotFoundError:
    print("without the package")
"""


def test_a_process_without_the_package(tmp_path, astronaut):
    """AutoModel, AutoModelForMaskedImageModeling, AutoImageProcessor and a pipeline, as a Hub user runs them."""
    Image.fromarray(astronaut[:100, 150:280]).save(tmp_path / "image.png")
    expected = {}
    for model_type, config in CONFIGS.items():
        directory = tmp_path / model_type
        model = KamimForMaskedImageModeling.from_config(config).eval()
        model.save_pretrained(directory)
        image_processor(config.image_size).save_pretrained(directory)
        image = Image.open(tmp_path / "image.png")
        pixels = AutoImageProcessor.from_pretrained(directory)(image, return_tensors="pt").pixel_values
        assert pixels.shape == (1, 3, 48, 48)
        mask = batch(config)[1][:1]
        with torch.no_grad():
            features = model.base_model(pixels).last_hidden_state.numpy()
            reconstruction = model(pixels, mask).reconstruction.numpy()
            assert np.allclose(AutoModel.from_pretrained(directory)(pixels).last_hidden_state, features, atol=1e-6)
        expected[model_type] = {
            "encoder": features,
            "base": features,
            "pipeline": features,
            "reconstruction": reconstruction,
        }
        np.savez(tmp_path / f"{model_type}_expected.npz", pixels=pixels.numpy(), mask=mask.numpy())
    command = [sys.executable, "-I", "-c", WITHOUT_THE_PACKAGE]  # -I: neither PYTHONPATH nor the current directory
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for model_type, arrays in expected.items():
        for name, array in arrays.items():
            assert np.allclose(np.load(tmp_path / f"{model_type}_{name}.npy"), array, atol=1e-5), (model_type, name)
