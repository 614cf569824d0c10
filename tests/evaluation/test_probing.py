"""Probes and nearest neighbors on features where the answer is known, and features of any encoder."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from transformers import (
    Dinov2Config,
    Dinov2Model,
    SwinConfig,
    SwinModel,
    TimmWrapperConfig,
    TimmWrapperModel,
    ViTConfig,
    ViTMAEConfig,
    ViTMAEModel,
    ViTModel,
)

from modeling_kamim.errors import InputError
from modeling_kamim.evaluation.neighbors import nearest_neighbors
from modeling_kamim.evaluation.probing import LinearProbe, fit, probe, split_by_class
from modeling_kamim.models.backbone import Backbone, load_backbone

FEW_EPOCHS = LinearProbe(num_epochs=40)


def clusters(spread, num_images=600, num_classes=5, dimension=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(num_classes, dimension, generator=generator) * spread
    labels = torch.randint(num_classes, (num_images,), generator=generator)
    return centres[labels] + torch.randn(num_images, dimension, generator=generator), labels


def accuracy(scores, labels):
    return (scores.argmax(1) == labels).float().mean().item()


def test_separable_clusters_are_told_apart_wholly():
    features, labels = clusters(spread=20)
    result = probe(FEW_EPOCHS, features[:400, None], labels[:400], features[400:, None], 5)
    assert accuracy(result.logits[0], labels[400:]) == 1.0
    assert accuracy(nearest_neighbors(features[:400], labels[:400], features[400:], 5), labels[400:]) == 1.0


def test_shuffled_labels_give_chance():
    features, labels = clusters(spread=20, num_images=3000)
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))]
    result = probe(FEW_EPOCHS, features[:1500, None], labels[:1500], features[1500:, None], 5)
    assert accuracy(result.logits[0], labels[1500:]) == pytest.approx(0.2, abs=0.04)
    votes = nearest_neighbors(features[:1500], labels[:1500], features[1500:], 5)
    assert accuracy(votes, labels[1500:]) == pytest.approx(0.2, abs=0.04)


def test_probe_agrees_with_scikit_learns_logistic_regression():
    features, labels = clusters(spread=0.5, num_images=6000)
    result = probe(LinearProbe(), features[:3000, None], labels[:3000], features[3000:, None], 5)
    scaler = StandardScaler().fit(features[:3000])
    reference = LogisticRegression(max_iter=1000).fit(scaler.transform(features[:3000]), labels[:3000])
    expected = reference.score(scaler.transform(features[3000:]), labels[3000:])
    assert 0.5 < expected < 0.95
    assert accuracy(result.logits[0], labels[3000:]) == pytest.approx(expected, abs=0.01)


def test_heads_trained_side_by_side_are_those_trained_alone():
    features, labels = clusters(spread=1)
    rates = torch.tensor([1e-3, 1e-1, 1e-2])
    recipe = LinearProbe(num_epochs=3)
    together = fit(recipe, features, labels, 5, rates, "")(features)
    for place in range(3):
        alone = fit(recipe, features, labels, 5, rates[place, None], "")(features)[:, 0]
        torch.testing.assert_close(together[:, place], alone, rtol=1e-3, atol=1e-4)


@given(st.integers(2, 6), st.integers(3, 70), st.integers(0, 99))
def test_a_layer_scores_the_same_bit_by_bit_alone_and_among_others(num_layers, dimension, seed):
    features, labels = clusters(spread=0.3, num_images=120, dimension=num_layers * dimension, seed=seed)
    layers = features.unflatten(1, (num_layers, dimension))
    recipe = LinearProbe(num_epochs=3, batch_size=32, seed=seed)
    together = probe(recipe, layers[:80], labels[:80], layers[80:], 5)
    for layer in range(num_layers):
        own = layers[:, [layer]]
        alone = probe(recipe, own[:80], labels[:80], own[80:], 5)
        assert torch.equal(together.logits[layer], alone.logits[0])
        assert together.learning_rates[layer] == alone.learning_rates[0]
        votes = nearest_neighbors(layers[:80, layer], labels[:80], layers[80:, layer], 5)
        assert torch.equal(votes, nearest_neighbors(own[:80, 0], labels[:80], own[80:, 0], 5))


def test_the_scale_of_features_does_not_matter():
    features, labels = clusters(1.0)
    recipe = LinearProbe(num_epochs=5)
    expected = fit(recipe, features, labels, 5, torch.tensor([0.01]), "whole")
    for scale in (1e-3, 30.0):
        found = fit(recipe, scale * features, labels, 5, torch.tensor([0.01]), "scaled")
        torch.testing.assert_close(found(scale * features), expected(features), atol=1e-3, rtol=1e-3)


def test_layers_padded_with_zeros_score_as_without():
    features, labels = clusters(spread=1)
    padded = torch.nn.functional.pad(features, (0, 7))
    plain = probe(FEW_EPOCHS, features[:400, None], labels[:400], features[400:, None], 5)
    wide = probe(FEW_EPOCHS, padded[:400, None], labels[:400], padded[400:, None], 5)
    torch.testing.assert_close(wide.logits, plain.logits, rtol=1e-3, atol=1e-3)


@given(st.integers(1, 40), st.integers(1, 30), st.integers(0, 99))
def test_neighbors_equal_scikit_learns(num_neighbors, num_images, seed):
    features, labels = clusters(spread=1, num_images=num_images + 10, seed=seed)
    k = min(num_neighbors, num_images)
    weights = lambda distance: np.exp((1 - distance**2 / 2 - 1) / 0.07)  # noqa: E731 (cosine of unit vectors)
    unit = torch.nn.functional.normalize(features, dim=1).double().numpy()
    reference = KNeighborsClassifier(k, weights=weights).fit(unit[:num_images], labels[:num_images])
    votes = nearest_neighbors(features[:num_images], labels[:num_images], features[num_images:], 5, num_neighbors)
    shares = (votes / votes.sum(1, keepdim=True))[:, torch.from_numpy(reference.classes_)]
    np.testing.assert_allclose(shares.numpy(), reference.predict_proba(unit[num_images:]), atol=1e-4)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.floats(0.05, 0.5), st.integers(0, 9))
def test_the_held_out_part_has_a_share_of_every_class(labels, share, seed):
    labels = torch.tensor(labels)
    kept, held_out = split_by_class(labels, share, seed)
    assert sorted([*kept.tolist(), *held_out.tolist()]) == list(range(len(labels)))
    for label, count in zip(*labels.unique(return_counts=True), strict=True):
        expected = min(int(count) - 1, max(1, round(share * int(count))))
        assert (labels[held_out] == label).sum() == expected


SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 64,
    "patch_size": 16,
}


def encoders():
    yield "vit", lambda: ViTModel(ViTConfig(**SHAPE)), 3
    yield "vit_mae", lambda: ViTMAEModel(ViTMAEConfig(**SHAPE)), 3
    small = {key: value for key, value in SHAPE.items() if key != "intermediate_size"}
    yield "dinov2", lambda: Dinov2Model(Dinov2Config(**small)), 3
    swin = {"image_size": 64, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4}
    yield "swin", lambda: SwinModel(SwinConfig(**swin)), 3


@pytest.mark.parametrize(("build", "num_layers"), [pytest.param(b, n, id=name) for name, b, n in encoders()])
def test_any_encoder_gives_features_of_every_layer(tmp_path, build, num_layers):
    model = build().eval()
    model.save_pretrained(tmp_path)
    backbone = load_backbone(str(tmp_path), "vit", "tiny", None, "mean").eval()
    pixels = torch.randn(2, 3, 64, 64)
    features = backbone(pixels)
    assert features.shape == (2, num_layers, 32)
    assert backbone.image_size == 64
    torch.testing.assert_close(backbone(pixels), features)  # nothing is drawn, also by a masked autoencoder
    if model.config.model_type == "vit":
        hidden = model(pixels, output_hidden_states=True)
        torch.testing.assert_close(features[:, 0], hidden.hidden_states[1][:, 1:].mean(1))
        torch.testing.assert_close(features[:, -1], hidden.last_hidden_state[:, 1:].mean(1))


def test_timm_models_give_features(tmp_path):
    pytest.importorskip("timm")
    config = TimmWrapperConfig(architecture="vit_tiny_patch16_224", model_args={"img_size": 64}, do_pooling=False)
    features = Backbone(TimmWrapperModel(config).eval())(torch.randn(1, 3, 64, 64))
    assert features.shape == (1, 13, 192)
    config.model_args["img_size"] = (32, 64)
    backbone, pixels = Backbone(TimmWrapperModel(config).eval()), torch.randn(1, 3, 32, 64)
    tokens = backbone.model(pixels).last_hidden_state
    assert tokens.shape[1] == 1 + 2 * 4
    torch.testing.assert_close(backbone(pixels)[:, -1], tokens[:, 1:].mean(dim=1))


def test_cls_is_read_where_there_is_one():
    model = ViTModel(ViTConfig(**SHAPE)).eval()
    pixels = torch.randn(2, 3, 64, 64)
    expected = model(pixels).last_hidden_state[:, 0]
    torch.testing.assert_close(Backbone(model, "cls")(pixels)[:, -1], expected)
    swin = SwinModel(SwinConfig(image_size=64, embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=4)).eval()
    with pytest.raises(InputError, match="no CLS token"):
        Backbone(swin, "cls")(pixels)
    with pytest.raises(InputError, match="pooling is 'max'"):
        Backbone(model, "max")
