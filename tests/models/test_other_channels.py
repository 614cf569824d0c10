"""Warm starts for images of other channels: the features of the old model, through another first layer."""

import pytest
import torch
from tiny_models import tiny_config
from transformers import AutoModel

from modeling_kamim.models.families import FAMILIES
from modeling_kamim.models.masked_image_modeling import KamimForMaskedImageModeling
from modeling_kamim.models.warm_start import config_to_pretrain, warm_start


def features(model, pixels):
    with torch.no_grad():
        return model.eval()(pixels).last_hidden_state


@pytest.mark.parametrize("model_type", FAMILIES)
@pytest.mark.parametrize("channels", [1, 6, 4])
def test_features_stay_those_of_the_repeated_channels(model_type, channels, tmp_path):
    torch.manual_seed(0)
    model = KamimForMaskedImageModeling.from_config(tiny_config(model_type))
    model.save_pretrained(tmp_path)
    config = config_to_pretrain(str(tmp_path), num_channels=channels)
    assert config.num_channels == channels
    start = warm_start(str(tmp_path), config)
    many = torch.randn(2, channels, 32, 32)
    if channels == 1:  # gray as RGB
        rgb = many.expand(-1, 3, -1, -1)
    elif channels == 6:  # R, G, B, R, G, B, times 3/6
        rgb = (many[:, :3] + many[:, 3:]) / 2
    else:  # R, G, B, R, times 3/4
        rgb = 0.75 * torch.cat([many[:, :1] + many[:, 3:], many[:, 1:3]], dim=1)
    expected, found = features(model.base_model, rgb), features(start.model.base_model, many)
    assert torch.allclose(expected, found, rtol=1e-3, atol=1e-4)
    how = "summed over the channels" if channels == 1 else "repeated over the channels and scaled"
    assert (
        f"the first layer {how} (from 3 channels)" in start.summary and "decoder (" in start.summary.split("new: ")[1]
    )
    assert start.model(many, torch.rand(2, num_patches(config)).argsort(1) < 2).reconstruction.shape[1] == channels


def num_patches(config):
    return (config.image_size // config.patch_size) ** 2


def test_an_encoder_is_resized_and_adapted_at_once(tmp_path):
    AutoModel.from_config(tiny_config("vit")).save_pretrained(tmp_path)
    start = warm_start(str(tmp_path), config_to_pretrain(str(tmp_path), 64, 6))
    assert "resized from 32 to 64 px, the first layer repeated" in start.summary
    assert start.model(torch.randn(1, 6, 64, 64), torch.arange(64)[None] < 3).reconstruction.shape == (1, 6, 64, 64)
