"""Samples and batches of linear probing and fine-tuning."""

import random
from random import Random

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from modeling_kamim.data.augmentation import _DISTORTIONS, AUGMENTATIONS, ClassificationTransform, MixingCollator
from modeling_kamim.data.views import RandomView
from modeling_kamim.errors import InputError


def row(image, label=1):
    return {"image": {"bytes": cv2.imencode(".png", image[..., ::-1])[1].tobytes(), "path": None}, "label": label}


def rng(seed=0):
    return Random(seed)


AUGMENT = ClassificationTransform("image", "label", 48, "paper")
PLAIN = ClassificationTransform("image", "label", 48, "none")
STRONG = ClassificationTransform("image", "label", 48, "strong")
CROP_FLIP = ClassificationTransform("image", "label", 48, "crop_flip")
MIXED = pytest.mark.parametrize("transform", [AUGMENT, STRONG], ids=["paper", "strong"])


@pytest.fixture
def samples(photographs):
    return [AUGMENT(row(image, label), rng(label)) for label, image in enumerate(photographs)]


def global_state():
    return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()


@MIXED
def test_sample_depends_on_its_generator_alone(photographs, transform):
    draw = []
    for global_seed, seed in [(1, 5), (2, 5), (1, 6)]:
        torch.manual_seed(global_seed)
        np.random.seed(global_seed)
        random.seed(global_seed)
        draw.append(transform(row(photographs[0]), rng(seed)))
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


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
def test_global_randomness_is_neither_read_nor_moved(photographs, samples, augmentation):
    before = global_state()
    ClassificationTransform("image", "label", 48, augmentation)(row(photographs[0]), rng(3))
    MixingCollator(6)(samples)
    assert global_state() == before


@pytest.mark.parametrize("transform", [AUGMENT, STRONG, CROP_FLIP], ids=["paper", "strong", "crop_flip"])
def test_augmented_sample(photographs, transform):
    for label, image in enumerate(photographs):
        sample = transform(row(image, label), rng(label))
        assert sample.keys() - {"mixing_seed"} == {"pixel_values", "labels"}
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


def torchvision_s(transform, pixels, generator):
    """`transform` of `pixels` with the randomness that a sample draws next from its generator."""
    torch.manual_seed(generator.getrandbits(62))
    return transform(Image.fromarray(pixels))


def test_paper_s_sample_by_hand(photographs):
    transform = v2.Compose([v2.TrivialAugmentWide(), v2.PILToTensor(), v2.RandomErasing(0.5, (0.02, 0.33), (0.3, 3.3))])
    for seed, image in enumerate(5 * photographs):
        sample, generator = AUGMENT(row(image), rng(seed)), rng(seed)
        plain = cv2.resize(image, (48, 48), interpolation=cv2.INTER_LINEAR)
        assert torch.equal(sample["pixel_values"], torchvision_s(transform, plain, generator))
        assert sample["mixing_seed"] == generator.getrandbits(62)


def test_strong_sample_by_hand(photographs):
    """Crop and flip, then torchvision's RandAugment; where nothing is erased."""
    transform, erased = v2.Compose([v2.RandAugment(num_ops=2, magnitude=9), v2.PILToTensor()]), 0
    for seed, image in enumerate(10 * photographs):
        sample, generator = STRONG(row(image), rng(seed)), rng(seed)
        view = RandomView(0.08, (3 / 4, 4 / 3), 0.5, 0.0)(*image.shape[:2], generator)
        found, expected = sample["pixel_values"], torchvision_s(transform, view.of_image(image, 48), generator)
        assert sample["mixing_seed"] == generator.getrandbits(62)
        differing = (found != expected).any(dim=0)
        erased += bool(differing.any())
        assert not differing.any() or 0.015 * 48**2 < differing.sum() < 0.35 * 48**2
    assert 5 < erased < 27  # a quarter of 60


def test_crop_flip_sample_by_hand(photographs):
    flips, areas = set(), []
    for seed, image in enumerate(30 * photographs):
        sample = CROP_FLIP(row(image), rng(seed))
        view = RandomView(0.08, (3 / 4, 4 / 3), 0.5, 0.0)(*image.shape[:2], rng(seed))
        assert np.array_equal(sample["pixel_values"].permute(1, 2, 0).numpy(), view.of_image(image, 48))
        assert sample.keys() == {"labels", "pixel_values"} and not view.vertical_flip
        flips.add(view.horizontal_flip)
        areas.append(view.height * view.width / image[..., 0].size)
    assert flips == {False, True}
    assert 0.06 < min(areas) < 0.15 and 0.9 < max(areas) <= 1


def test_erased_pixels_of_strong_are_noise_like_imagenet(photographs):
    """On flat images only the noise has many levels; a quarter of the samples have it."""
    image, count = row(np.full((64, 64, 3), 200, np.uint8)), 400
    drawn = [STRONG(image, rng(seed))["pixel_values"] for seed in range(count)]
    noisy = [pixels for pixels in drawn if len(pixels.unique()) > 40]
    assert 0.18 * count < len(noisy) < 0.32 * count
    torch.manual_seed(0)
    erase = _DISTORTIONS["strong"].transforms[-1]
    pixels = torch.full((3, 400, 400), 250, dtype=torch.uint8)
    erased = next(found for found in (erase(pixels) for _ in range(100)) if not torch.equal(found, pixels))
    rows, columns = (erased != pixels).any(dim=0).nonzero().T
    box = erased[:, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] / 255
    assert 0.02 * 400**2 < box[0].numel() < 0.33 * 400**2 and len(rows) > 0.99 * box[0].numel()
    assert torch.allclose(box.mean(dim=(1, 2)), torch.tensor([0.485, 0.456, 0.406]), atol=0.02)
    assert torch.allclose(box.std(dim=(1, 2)), torch.tensor([0.229, 0.224, 0.225]), atol=0.03)


@pytest.mark.parametrize("augmentation", ["weak", "", True, None])
def test_unknown_augmentations_are_refused(augmentation):
    with pytest.raises(InputError, match="augmentation is .*; allowed: none, paper, strong, crop_flip"):
        ClassificationTransform("image", "label", 48, augmentation)
    with pytest.raises(InputError, match="augmentation is .*; allowed: none, paper, strong, crop_flip"):
        MixingCollator(6, augmentation)


@pytest.mark.parametrize("size", [32, 48, 200])
def test_validation_is_opencvs_bilinear_resize(photographs, size):
    for image in photographs:
        sample = ClassificationTransform("image", "label", size, "none")(row(image, 3), rng())
        expected = cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR)
        assert sample.keys() == {"labels", "pixel_values"} and sample["labels"] == 3
        assert sample["pixel_values"].dtype == torch.uint8
        assert np.array_equal(sample["pixel_values"].permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("augmentation", ["paper", "strong"])
def test_mixed_labels_are_probabilities(photographs, augmentation):
    transform = ClassificationTransform("image", "label", 48, augmentation)
    samples = [transform(row(image, label), rng(label)) for label, image in enumerate(photographs)]
    collate = MixingCollator(6, augmentation)
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


def test_strong_mixes_up_less_evenly():
    """Beta(0.8, 0.8), SimMIM's; CutMix stays uniform."""
    samples = [
        {"pixel_values": torch.full((3, 8, 8), level, dtype=torch.uint8), "labels": label, "mixing_seed": 0}
        for label, level in enumerate((0, 240))
    ]
    paper, strong = MixingCollator(2), MixingCollator(2, "strong")
    assert [mix.alpha for mix in strong.mix.transforms] == [1.0, 0.8]
    assert [mix.alpha for mix in paper.mix.transforms] == [1.0, 1.0]
    differing = 0
    for seed in range(40):
        seeded = [{**sample, "mixing_seed": seed} for sample in samples]
        batches = strong(seeded), paper(seeded)
        assert torch.allclose(batches[0]["labels"].sum(dim=1), torch.ones(2))
        differing += not torch.equal(batches[0]["labels"], batches[1]["labels"])
    assert 10 < differing < 30  # CutMix, which is the same in both, in half of them


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
@pytest.mark.parametrize("transform", [PLAIN, CROP_FLIP], ids=["none", "crop_flip"])
def test_batches_that_are_not_mixed_pass_through(photographs, transform, augmentation):
    samples = [transform(row(image, label), rng()) for label, image in enumerate(photographs)]
    batch = MixingCollator(6, augmentation)(samples)
    assert batch["labels"].tolist() == list(range(6)) and batch["labels"].dtype == torch.int64
    assert batch["pixel_values"].dtype == torch.uint8
    assert torch.equal(batch["pixel_values"], torch.stack([sample["pixel_values"] for sample in samples]))
