"""Samples and batches of linear probing and fine-tuning."""

import random
from random import Random

import cv2
import numpy as np
import pytest
import torch

from modeling_kamim.augmentation import ClassificationTransform, MixingCollator


def row(image, label=1):
    return {"image": {"bytes": cv2.imencode(".png", image[..., ::-1])[1].tobytes(), "path": None}, "label": label}


def rng(seed=0):
    return Random(seed)


AUGMENT = ClassificationTransform("image", "label", 48, augment=True)
PLAIN = ClassificationTransform("image", "label", 48, augment=False)


@pytest.fixture
def samples(photographs):
    return [AUGMENT(row(image, label), rng(label)) for label, image in enumerate(photographs)]


def global_state():
    return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()


def test_sample_depends_on_its_generator_alone(photographs):
    draw = []
    for global_seed, seed in [(1, 5), (2, 5), (1, 6)]:
        torch.manual_seed(global_seed)
        np.random.seed(global_seed)
        random.seed(global_seed)
        draw.append(AUGMENT(row(photographs[0]), rng(seed)))
    assert torch.equal(draw[0]["pixel_values"], draw[1]["pixel_values"])
    assert draw[0]["mixing_seed"] == draw[1]["mixing_seed"]
    assert not torch.equal(draw[0]["pixel_values"], draw[2]["pixel_values"])
    assert draw[0]["mixing_seed"] != draw[2]["mixing_seed"]


def test_batch_depends_on_its_samples_alone(samples):
    collate = MixingCollator(6)
    torch.manual_seed(1)
    first = collate(samples)
    torch.manual_seed(2)
    second = collate(samples)
    assert all(torch.equal(first[key], second[key]) for key in first)
    other = collate([{**sample, "mixing_seed": sample["mixing_seed"] + 1} for sample in samples])
    assert not torch.equal(first["pixel_values"], other["pixel_values"])


def test_global_randomness_is_neither_read_nor_moved(photographs, samples):
    before = global_state()
    AUGMENT(row(photographs[0]), rng(3))
    MixingCollator(6)(samples)
    assert global_state() == before


def test_augmented_sample(samples):
    for label, sample in enumerate(samples):
        assert sample["pixel_values"].shape == (3, 48, 48) and sample["pixel_values"].dtype == torch.uint8
        assert sample["labels"] == label


def test_augmentation_changes_and_erases(photographs):
    """Over many draws most differ from the plain resize, and about half have an erased, constant rectangle."""
    image = row(np.clip(photographs[0], 1, 255))
    plain = PLAIN(image, rng())["pixel_values"]
    drawn = [AUGMENT(image, rng(seed))["pixel_values"] for seed in range(200)]
    assert sum(not torch.equal(pixels, plain) for pixels in drawn) > 150
    assert len({pixels.numpy().tobytes() for pixels in drawn}) > 150
    boxes = [(pixels == 0).all(dim=0) for pixels in drawn]
    erased = [box for box in boxes if box.sum() >= 0.02 * 48**2]
    assert 60 < len(erased) < 160


@pytest.mark.parametrize("size", [32, 48, 200])
def test_validation_is_opencvs_bilinear_resize(photographs, size):
    for image in photographs:
        sample = ClassificationTransform("image", "label", size, augment=False)(row(image, 3), rng())
        expected = cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR)
        assert sample.keys() == {"labels", "pixel_values"} and sample["labels"] == 3
        assert sample["pixel_values"].dtype == torch.uint8
        assert np.array_equal(sample["pixel_values"].permute(1, 2, 0).numpy(), expected)


def test_mixed_labels_are_probabilities(samples):
    collate = MixingCollator(6)
    for seed in range(20):
        batch = collate([{**sample, "mixing_seed": seed} for sample in samples])
        assert batch.keys() == {"pixel_values", "labels"}
        assert batch["labels"].shape == (6, 6) and batch["labels"].dtype == torch.float32
        assert torch.allclose(batch["labels"].sum(dim=1), torch.ones(6), atol=1e-6)
        assert (batch["labels"] >= 0).all() and (batch["labels"].count_nonzero(dim=1) <= 2).all()
        assert batch["pixel_values"].shape == (6, 3, 48, 48) and batch["pixel_values"].dtype == torch.float32
        assert 0 <= batch["pixel_values"].min() and batch["pixel_values"].max() <= 255


def test_mixed_labels_say_how_the_pixels_were_mixed():
    """Flat images, one level a class: the mean level of a mixed image is the level that its label expects."""
    levels = torch.tensor([0.0, 60.0, 120.0, 240.0])
    samples = [
        {"pixel_values": torch.full((3, 32, 32), int(level), dtype=torch.uint8), "labels": label, "mixing_seed": 0}
        for label, level in enumerate(levels)
    ]
    kinds = set()
    for seed in range(40):
        batch = MixingCollator(4)([{**sample, "mixing_seed": seed} for sample in samples])
        means = batch["pixel_values"].mean(dim=(1, 2, 3))
        assert torch.allclose(means, batch["labels"] @ levels, atol=0.02)
        if batch["labels"].max(dim=1).values.min() < 0.95:
            kinds.add("cutmix" if len(batch["pixel_values"][1].unique()) > 1 else "mixup")
    assert kinds == {"cutmix", "mixup"}


def test_validation_batches_pass_through(photographs):
    samples = [PLAIN(row(image, label), rng()) for label, image in enumerate(photographs)]
    batch = MixingCollator(6)(samples)
    assert batch["labels"].tolist() == list(range(6)) and batch["labels"].dtype == torch.int64
    assert batch["pixel_values"].dtype == torch.uint8
    assert torch.equal(batch["pixel_values"], torch.stack([sample["pixel_values"] for sample in samples]))
