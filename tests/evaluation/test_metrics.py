"""Metrics against scikit-learn, and the image processor."""

import logging

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, confusion_matrix, top_k_accuracy_score
from transformers import EvalPrediction

from modeling_kamim.evaluation.metrics import TrainerMetrics, best_classes, bootstrap_interval, classification_metrics
from modeling_kamim.models.processor import image_processor


def scores(num_images, num_classes, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(num_images, num_classes, generator=generator)
    return logits, torch.randint(num_classes, (num_images,), generator=generator)


@pytest.mark.parametrize("num_classes", [2, 3, 4, 5, 6, 20])
@pytest.mark.parametrize("num_images", [1, 50])
def test_metric_equals_scikit_learn(num_images, num_classes):
    logits, labels = scores(num_images, num_classes, seed=num_classes)
    result = classification_metrics(best_classes(logits).numpy(), labels.numpy(), num_classes)
    assert np.array_equal(
        result["confusion"], confusion_matrix(labels, logits.argmax(dim=1), labels=range(num_classes))
    )
    assert result["top1_interval"][0] <= result["top1"] <= result["top1_interval"][1]
    assert result["top1"] == pytest.approx(accuracy_score(labels, logits.argmax(dim=1)))
    if num_classes > 5:
        expected = top_k_accuracy_score(labels, logits.numpy(), k=5, labels=range(num_classes))
        assert result["top5"] == pytest.approx(expected)
    else:
        assert result["top5"] == 1.0


def test_metric_by_hand():
    predictions = [[3, 1, 0, 2, 4], [0, 1, 2, 3, 4], [1, 2, 3, 4, 5], [6, 1, 2, 3, 4]]
    metrics = TrainerMetrics(num_classes=7)
    prediction = EvalPrediction(predictions=np.array(predictions), label_ids=np.array([3, 4, 0, 1]))
    assert metrics(prediction) == {"top1": 0.25, "top5": 0.75}
    per_class = metrics.latest["per_class"]
    assert [per_class[label] for label in (0, 1, 3, 4)] == [0.0, 0.0, 1.0, 0.0]
    assert np.isnan([per_class[label] for label in (2, 5, 6)]).all()


@pytest.mark.parametrize(("num_images", "accuracy"), [(100, 0.5), (2000, 0.9)])
def test_bootstrap_interval_has_the_width_of_the_standard_error(num_images, accuracy):
    hits = np.arange(num_images) < accuracy * num_images
    low, high = bootstrap_interval(hits)
    width = 2 * 1.96 * (accuracy * (1 - accuracy) / num_images) ** 0.5
    assert low < accuracy < high
    assert high - low == pytest.approx(width, rel=0.15)
    assert bootstrap_interval(np.ones(10, bool)) == [1.0, 1.0]


@given(st.integers(1, 12), st.integers(1, 9), st.integers(0, 999))
def test_best_classes_are_in_order(num_images, num_classes, seed):
    logits, labels = scores(num_images, num_classes, seed)
    expected = np.argsort(-logits.numpy(), axis=1)[:, :5]
    assert np.array_equal(best_classes(logits, labels).numpy(), expected)


def test_processor_resizes_and_normalizes_by_imagenet(photographs):
    processor = image_processor(48)
    pixels = processor(photographs[1], return_tensors="pt").pixel_values
    assert pixels.shape == (1, 3, 48, 48)
    assert np.allclose(processor.image_mean, [0.485, 0.456, 0.406])
    assert np.allclose(processor.image_std, [0.229, 0.224, 0.225])
    flat = processor(np.full((20, 30, 3), 51, np.uint8), return_tensors="pt").pixel_values
    for channel in range(3):
        expected = (51 / 255 - processor.image_mean[channel]) / processor.image_std[channel]
        assert torch.allclose(flat[0, channel], torch.tensor(expected), atol=1e-4)


def test_processor_keeps_the_checkpoints_mean_and_std(tmp_path):
    saved = image_processor(32)
    saved.image_mean, saved.image_std = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
    saved.save_pretrained(tmp_path)
    processor = image_processor(64, str(tmp_path))
    assert tuple(processor.image_mean) == (0.1, 0.2, 0.3) and tuple(processor.image_std) == (0.4, 0.5, 0.6)
    assert processor.size["height"] == processor.size["width"] == 64


def test_checkpoint_without_processor_means_imagenet_and_a_warning(tmp_path, caplog):
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with caplog.at_level(logging.WARNING):
        processor = image_processor(64, str(tmp_path))
    assert np.allclose(processor.image_mean, [0.485, 0.456, 0.406])
    assert f"No image processor of {tmp_path}" in caplog.text
