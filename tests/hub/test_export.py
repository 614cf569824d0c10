"""Exports give the features of the checkpoint, in the library itself and by the code of their README."""

import sys

import numpy as np
import onnxruntime
import pytest
import timm
import torch
from transformers import AutoModel, SwinConfig, ViTConfig

from modeling_kamim import KamimForMaskedImageModeling, KamimViTClassifierConfig, KamimViTForImageClassification
from modeling_kamim.commands import export as script
from modeling_kamim.errors import InputError
from modeling_kamim.hub import export
from modeling_kamim.hub.export import export_checkpoint, timm_arguments
from modeling_kamim.models.processor import image_processor
from modeling_kamim.models.sizes import image_sides

VIT = {"image_size": 32, "patch_size": 8, "encoder_stride": 8, "hidden_size": 48, "num_hidden_layers": 2}
VIT |= {"num_attention_heads": 3, "intermediate_size": 96}
SWIN = {"image_size": 48, "patch_size": 4, "encoder_stride": 8, "embed_dim": 16, "depths": [2, 1], "num_heads": [2, 4]}
SWIN |= {"window_size": 3}
KAMIM = {"weighting": "keypoint", "temperature": 0.25}
CONFIGS = {
    "vit": ViTConfig(**VIT, kamim=KAMIM),
    "vit without qkv bias, eps 1e-6": ViTConfig(**VIT, qkv_bias=False, layer_norm_eps=1e-6),
    "swin": SwinConfig(**SWIN, kamim=KAMIM),
    "vit of rectangles": ViTConfig(**VIT | {"image_size": [32, 48]}, kamim=KAMIM),
}
# the exporter takes seconds for every block; of Swin's, the second has shifted windows
ONNX_CONFIGS = {
    "vit of rectangles": ViTConfig(**VIT | {"num_hidden_layers": 1, "image_size": [32, 48]}, kamim=KAMIM),
    "swin": SwinConfig(**SWIN | {"depths": [2], "num_heads": [2]}, kamim=KAMIM),
}


def saved(config, directory):
    """A pretrained model away from the zeros and ones of its initial biases and norms, saved."""
    model = KamimForMaskedImageModeling.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(directory)
    image_processor(config.image_size).save_pretrained(directory)
    return directory


def features(directory, pixels):
    with torch.no_grad():
        return AutoModel.from_pretrained(directory).eval()(pixels).last_hidden_state


def pixels_of(directory, batch_size=3):
    return torch.randn(batch_size, 3, *image_sides(AutoModel.from_pretrained(directory).config))


def run_usage(exported, pixels, monkeypatch):
    """What the code of the README computes, run in the directory of the export."""
    monkeypatch.chdir(exported.file.parent)
    names = {"pixel_values": pixels}
    with torch.no_grad():
        exec(exported.usage, names)
    assert exported.usage in (exported.file.parent / "README.md").read_text()
    return torch.as_tensor(names["features"])


@pytest.mark.parametrize("name", CONFIGS)
def test_timm(name, tmp_path, monkeypatch):
    checkpoint = saved(CONFIGS[name], tmp_path / "checkpoint")
    exported = export_checkpoint(str(checkpoint), tmp_path / "out", "timm")
    assert exported.difference < 1e-5
    assert exported.file.name == "model.safetensors"
    pixels = pixels_of(checkpoint)
    expected = features(checkpoint, pixels)
    actual = run_usage(exported, pixels, monkeypatch).reshape(expected.shape)
    assert torch.allclose(actual, expected, atol=1e-5), (actual - expected).abs().max()


@pytest.mark.parametrize("name", ONNX_CONFIGS)
def test_onnx_takes_any_batch_size(name, tmp_path):
    checkpoint = saved(ONNX_CONFIGS[name], tmp_path / "checkpoint")
    exported = export_checkpoint(str(checkpoint), tmp_path / "out", "onnx")
    assert exported.difference < 1e-4
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"model.onnx", "README.md"}
    session = onnxruntime.InferenceSession(exported.file)
    for batch_size in (1, 5):
        pixels = pixels_of(checkpoint, batch_size)
        (actual,) = session.run(["last_hidden_state"], {"pixel_values": pixels.numpy()})
        np.testing.assert_allclose(actual, features(checkpoint, pixels), atol=1e-4)


@pytest.mark.parametrize(
    "config, name, arguments",
    [
        (ViTConfig(image_size=192), "vit_base_patch16_224", {"img_size": 192}),
        (
            ViTConfig(hidden_size=192, num_attention_heads=3, intermediate_size=768),
            "vit_tiny_patch16_224",
            {"img_size": 224},
        ),
        (
            ViTConfig(hidden_size=384, num_attention_heads=12, intermediate_size=1536),
            "vit_small_patch16_224",
            {"img_size": 224, "num_heads": 12},
        ),
        (SwinConfig(), "swin_tiny_patch4_window7_224", {"img_size": 224}),
        (
            SwinConfig(image_size=192, window_size=6, embed_dim=128, depths=[2, 2, 18, 2], num_heads=[4, 8, 16, 32]),
            "swin_base_patch4_window7_224",
            {"img_size": 192, "window_size": 6},
        ),
    ],
)
def test_name_and_arguments_of_the_usual_sizes(config, name, arguments):
    assert timm_arguments(config) == (name, arguments | {"num_classes": 0})


@pytest.mark.parametrize(
    "config, reason",
    [
        (SwinConfig(use_absolute_embeddings=True), "absolute position embeddings"),
        (SwinConfig(layer_norm_eps=1e-6), "one eps for all"),
        (ViTConfig(hidden_act="relu"), "hidden_act is 'relu'"),
    ],
)
def test_what_timm_does_not_have(config, reason):
    with pytest.raises(InputError, match=reason):
        timm_arguments(config)


def test_refusals(tmp_path, monkeypatch):
    vit = saved(CONFIGS["vit"], tmp_path / "vit")
    with pytest.raises(InputError, match="not an empty directory"):
        export_checkpoint(str(vit), vit, "timm")
    with pytest.raises(InputError, match="allowed: timm, onnx"):
        export_checkpoint(str(vit), tmp_path / "out", "tflite")
    with pytest.raises(InputError, match="cannot load"):
        export_checkpoint(str(tmp_path / "nothing"), tmp_path / "out", "timm")
    settings = VIT | {"num_labels": 2}
    KamimViTForImageClassification(KamimViTClassifierConfig(**settings)).save_pretrained(tmp_path / "classifier")
    with pytest.raises(InputError, match="classifier is a 'kamim_vit_classifier' checkpoint; give a ViT or Swin"):
        export_checkpoint(str(tmp_path / "classifier"), tmp_path / "out", "timm")
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"onnx and onnxscript and onnxruntime not installed.*modeling-kamim\[onnx\]"):
        export_checkpoint(str(vit), tmp_path / "out", "onnx")
    assert not (tmp_path / "out").exists()


def test_other_features_are_an_error(tmp_path, monkeypatch):
    vit = saved(CONFIGS["vit"], tmp_path / "vit")
    monkeypatch.setattr(timm.models.VisionTransformer, "forward_features", lambda self, x: torch.zeros(2, 17, 48))
    with pytest.raises(RuntimeError, match="other features"):
        export_checkpoint(str(vit), tmp_path / "out", "timm")


def test_an_export_that_fails_leaves_nothing(tmp_path, monkeypatch):
    directory = saved(CONFIGS["vit"], tmp_path / "checkpoint")
    monkeypatch.setattr(export, "TOLERANCE", {"timm": -1.0})
    with pytest.raises(RuntimeError, match="other features"):
        export_checkpoint(str(directory), tmp_path / "out", "timm")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_script(tmp_path, monkeypatch, capsys):
    vit = saved(CONFIGS["vit"], tmp_path / "vit")
    monkeypatch.setattr(sys, "argv", ["kamim export", str(vit), str(tmp_path / "out"), "--format", "timm"])
    script.main()
    assert "timm.create_model(" in capsys.readouterr().out


def test_the_title_names_the_checkpoint(tmp_path):
    pytest.importorskip("timm")
    export = export_checkpoint(str(saved(CONFIGS["vit"], tmp_path / "my_run")), tmp_path / "timm", "timm")
    assert (export.file.parent / "README.md").read_text().startswith("# my\\_run for timm\n")
