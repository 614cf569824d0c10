"""Classifiers: what they read, how they are saved and loaded, and how they are built on a checkpoint."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from tiny_models import tiny_swin, tiny_vit
from torch import nn
from transformers import (
    BertConfig,
    SwinForImageClassification,
    SwinModel,
    ViTForImageClassification,
    ViTModel,
)

from modeling_kamim import KamimForMaskedImageModeling, KamimViTClassifierConfig, KamimViTForImageClassification
from modeling_kamim.errors import InputError
from modeling_kamim.evaluation.classifiers import build_classifier, classifier_config
from modeling_kamim.evaluation.settings import ClassificationArguments

NAMES = ["cat", "dog", "owl"]


def vit_config(num_hidden_layers=3):
    return tiny_vit(num_hidden_layers=num_hidden_layers, hidden_dropout_prob=0.1, kamim={"temperature": 0.25})


SWIN = tiny_swin(drop_path_rate=0.2, hidden_dropout_prob=0.1)


def save(config, path):
    """A KAMIM checkpoint whose parameters are all away from their initial zeros and ones."""
    model = KamimForMaskedImageModeling.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    torch.manual_seed(1)
    return save(vit_config(), tmp_path_factory.mktemp("vit"))


@pytest.fixture(scope="module")
def deep_vit(tmp_path_factory):
    torch.manual_seed(2)
    return save(vit_config(12), tmp_path_factory.mktemp("deep_vit"))


@pytest.fixture(scope="module")
def swin(tmp_path_factory):
    torch.manual_seed(3)
    return save(SWIN, tmp_path_factory.mktemp("swin"))


def build(**arguments):
    return build_classifier(ClassificationArguments(**arguments), NAMES)


def trainable(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("layer", [1, 2, 3])
def test_logits_are_a_linear_layer_on_the_mean_patch_token(vit, layer, layer_norm):
    model = build(model_name_or_path=vit, layer=layer, layer_norm=layer_norm).eval()
    full = ViTModel.from_pretrained(vit, add_pooling_layer=False).eval()
    pixels = torch.randn(4, 3, 32, 32)
    if layer_norm:
        nn.init.normal_(model.norm.weight)
        nn.init.normal_(model.norm.bias)
    with torch.no_grad():
        logits = model(pixels).logits
        tokens = full(pixels, output_hidden_states=True).hidden_states[layer]
        if layer == 3:
            tokens = full.layernorm(tokens)
            assert torch.allclose(tokens, full(pixels).last_hidden_state, atol=1e-6)
        features = tokens[:, 1:].mean(dim=1)  # without CLS
        if layer_norm:
            centered = features - features.mean(dim=1, keepdim=True)
            scaled = centered / (features.var(dim=1, unbiased=False, keepdim=True) + 1e-6).sqrt()
            features = scaled * model.norm.weight + model.norm.bias
        expected = features @ model.head.weight.T + model.head.bias
    assert logits.shape == (4, 3)
    assert torch.allclose(logits, expected, atol=1e-5)


def test_loss_is_the_cross_entropy_of_hard_and_soft_labels(vit):
    model = build(model_name_or_path=vit).eval()
    pixels, hard = torch.randn(4, 3, 32, 32), torch.tensor([0, 2, 1, 1])
    soft = torch.rand(4, 3).softmax(dim=1)
    with torch.no_grad():
        log_probabilities = model(pixels).logits.log_softmax(dim=1)
        assert model(pixels).loss is None
        assert torch.allclose(model(pixels, labels=hard).loss, -log_probabilities[range(4), hard].mean())
        assert torch.allclose(model(pixels, labels=soft).loss, -(soft * log_probabilities).sum(dim=1).mean())
        assert torch.allclose(
            model(pixels, labels=nn.functional.one_hot(hard, 3).float()).loss, model(pixels, labels=hard).loss
        )


def test_head_is_not_zero_and_gets_gradients(vit):
    model = build(model_name_or_path=vit, mode="finetune")
    model(torch.randn(4, 3, 32, 32), labels=torch.tensor([0, 2, 1, 1])).loss.backward()
    silent = {
        name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()
    }
    assert silent <= {"encoder.embeddings.mask_token"}


@pytest.mark.parametrize("settings", [{"layer": 2}, {"mode": "finetune"}, {"layer": 2, "layer_norm": True}])
def test_encoder_is_the_checkpoints(vit, settings):
    model = build(model_name_or_path=vit, **settings)
    expected = KamimForMaskedImageModeling.from_pretrained(vit).base_model.state_dict()
    state = model.encoder.state_dict()
    assert len(state) > 20
    for key, tensor in state.items():
        assert torch.equal(tensor, expected[key]), key
    unread = {key for key in expected if key.startswith("layers.2.") or key.startswith("layernorm.")}
    left_out = set(expected) - set(state) - {"embeddings.mask_token"}
    assert left_out == (set() if settings.get("mode") == "finetune" else unread)


def test_swin_encoder_is_the_checkpoints(swin):
    model = build(model_name_or_path=swin)
    assert type(model) is SwinForImageClassification
    expected = KamimForMaskedImageModeling.from_pretrained(swin).base_model.state_dict()
    for key, tensor in model.swin.state_dict().items():
        assert torch.equal(tensor, expected[key]), key


def test_swin_logits_are_a_linear_layer_on_the_mean_of_the_last_stage(swin):
    model = build(model_name_or_path=swin).eval()
    full = SwinModel.from_pretrained(swin, add_pooling_layer=False).eval()
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        features = full(pixels).last_hidden_state.mean(dim=1)
        expected = features @ model.classifier.weight.T + model.classifier.bias
        assert torch.allclose(model(pixels).logits, expected, atol=1e-5)


def test_an_hf_classifier_serves_as_a_checkpoint(tmp_path):
    source = ViTForImageClassification(vit_config())
    source.save_pretrained(tmp_path)
    model = build(model_name_or_path=str(tmp_path), mode="finetune")
    expected = source.vit.state_dict()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in model.encoder.state_dict().items())


def test_class_names_are_saved(vit, tmp_path):
    build(model_name_or_path=vit).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["id2label"] == {"0": "cat", "1": "dog", "2": "owl"}
    assert config["label2id"] == {"cat": 0, "dog": 1, "owl": 2}
    assert config["model_type"] == "kamim_vit_classifier"


def test_default_layers(vit, deep_vit):
    def read(**arguments):
        config = classifier_config(ClassificationArguments(**arguments))
        return config.num_hidden_layers, config.final_layernorm

    assert read(model_name_or_path=deep_vit) == (8, False)
    assert read(model_name_or_path=deep_vit, mode="finetune") == (12, True)
    assert read(model_name_or_path=deep_vit, layer=12) == (12, True)
    assert read(model_name_or_path=deep_vit, mode="finetune", layer=5) == (5, False)
    assert read(model_name_or_path=vit) == (3, True)  # no eighth block: the last
    assert read(model_type="vit", model_size="tiny") == (8, False)


def test_linear_probe_trains_the_head_only(vit):
    probe = build(model_name_or_path=vit, layer=2)
    assert trainable(probe) == {"head.weight", "head.bias"}
    assert trainable(build(model_name_or_path=vit, layer=2, layer_norm=True)) == {
        "head.weight",
        "head.bias",
        "norm.weight",
        "norm.bias",
    }
    pixels = torch.randn(2, 3, 32, 32)
    assert torch.equal(probe.train()(pixels).logits, probe(pixels).logits)  # no dropout in the frozen encoder


def test_finetuning_trains_everything_and_keeps_the_dropouts(vit, swin):
    model = build(model_name_or_path=vit, mode="finetune")
    assert trainable(model) == {name for name, _ in model.named_parameters()}
    assert model.config.hidden_dropout_prob == 0.1
    assert classifier_config(ClassificationArguments(model_name_or_path=swin, mode="finetune")).drop_path_rate == 0.2


def test_swin_probe_is_frozen_without_drop_path(swin):
    model = build(model_name_or_path=swin)
    assert trainable(model) == {"classifier.weight", "classifier.bias"}
    assert model.config.drop_path_rate == model.config.hidden_dropout_prob == 0.0
    pixels = torch.randn(4, 3, 32, 32)
    assert torch.equal(model.train()(pixels).logits, model(pixels).logits)


def test_random_weights_without_a_checkpoint():
    model = build(model_type="vit", model_size="tiny", image_size=32, layer=1)
    assert model.config.image_size == 32 and model.config.hidden_size == 192
    assert model(torch.randn(1, 3, 32, 32)).logits.shape == (1, 3)


def test_impossible_settings_are_refused(vit, swin, tmp_path):
    with pytest.raises(InputError, match="layer is 4.*3 blocks"):
        build(model_name_or_path=vit, layer=4)
    for settings in ({"layer": 1}, {"layer_norm": True}):
        with pytest.raises(InputError, match="ViT.*Swin"):
            build(model_name_or_path=swin, **settings)
    for checkpoint in (vit, swin):
        with pytest.raises(InputError, match="image_size is 64.*32"):
            build(model_name_or_path=checkpoint, image_size=64)
    with pytest.raises(InputError, match="cannot load"):
        build(model_name_or_path=str(tmp_path / "nowhere"))


def test_other_architectures_are_refused(tmp_path):
    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(InputError, match="'bert'.*ViT, ViT-MAE and Swin"):
        build(model_name_or_path=str(tmp_path))


def test_a_saved_classifier_is_no_pretraining_checkpoint(vit, tmp_path):
    build(model_name_or_path=vit).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="kamim_vit_classifier"):
        build(model_name_or_path=str(tmp_path))


def test_a_checkpoint_without_all_of_the_encoder_is_refused(vit, tmp_path):
    model = KamimForMaskedImageModeling.from_pretrained(vit)
    state = {key: tensor for key, tensor in model.state_dict().items() if "layers.1." not in key}
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(InputError, match="lacks weights.*layers.1."):
        build(model_name_or_path=str(tmp_path))


@pytest.mark.parametrize("settings", [{"layer": 2}, {"mode": "finetune"}, {"layer": 3, "layer_norm": True}])
def test_save_and_load(vit, tmp_path, settings):
    model = build(model_name_or_path=vit, **settings).eval()
    model.save_pretrained(tmp_path)
    loaded, info = KamimViTForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert isinstance(loaded.config, KamimViTClassifierConfig)
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded(pixels).logits, model(pixels).logits)


@pytest.mark.parametrize("settings", [{"layer": 2}, {"mode": "finetune"}, {"layer": 3, "layer_norm": True}])
def test_never_loads_silently_as_a_cls_classifier(vit, tmp_path, settings):
    build(model_name_or_path=vit, **settings).save_pretrained(tmp_path)
    with pytest.raises((RuntimeError, ValueError), match="mismatched"):
        ViTForImageClassification.from_pretrained(tmp_path)


WITHOUT_THE_PACKAGE = """
import sys
import numpy as np
import torch
from transformers import AutoModelForImageClassification

pixels = torch.from_numpy(np.load("pixels.npy"))
try:
    AutoModelForImageClassification.from_pretrained("classifier")
except Exception as error:
    assert "trust_remote_code" in str(error), repr(error)
else:
    raise SystemExit("loaded without trust_remote_code")
for name in ("classifier", "with_layernorm"):
    model = AutoModelForImageClassification.from_pretrained(name, trust_remote_code=True).eval()
    with torch.no_grad():
        np.save(f"{name}.npy", model(pixels).logits.numpy())
    assert model.config.id2label[2] == "owl"
assert "modeling_kamim" not in sys.modules
"""


def test_a_process_without_the_package(vit, tmp_path):
    """Refused without trust_remote_code; with it the same logits."""
    pixels = torch.randn(2, 3, 32, 32)
    np.save(tmp_path / "pixels.npy", pixels.numpy())
    models = {
        "classifier": build(model_name_or_path=vit, layer=2).eval(),
        "with_layernorm": build(model_name_or_path=vit, layer=3, layer_norm=True).eval(),
    }
    for name, model in models.items():
        model.save_pretrained(tmp_path / name)
    done = subprocess.run(
        [sys.executable, "-I", "-c", WITHOUT_THE_PACKAGE],
        cwd=tmp_path,
        env={**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_MODULES_CACHE": str(tmp_path / "home" / "modules")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for name, model in models.items():
        with torch.no_grad():
            assert np.allclose(np.load(tmp_path / f"{name}.npy"), model(pixels).logits, atol=1e-6)
