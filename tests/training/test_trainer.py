"""What the Trainer of masked image modeling does with its batches."""

import dataclasses
import json
from random import Random
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_models import tiny_vit
from trainers import Samples, build_trainer

from modeling_kamim.data.samples import MaskedImageTransform, SampleDataset
from modeling_kamim.data.stored_density import DensityDetector
from modeling_kamim.data.views import RandomView
from modeling_kamim.evaluation.features import extract_features
from modeling_kamim.objective.density import cell_density
from modeling_kamim.objective.keypoints import KeypointDetector
from modeling_kamim.objective.weighting import WEIGHTINGS, CellWeighting
from modeling_kamim.training.run_directory import begin_run, sign
from modeling_kamim.training.trainer import ClassificationTrainer, PixelTrainer


@pytest.fixture
def tiny_vit_config():
    return tiny_vit(patch_size=16, encoder_stride=16)


def curve(trainer, key):
    return [entry[key] for entry in trainer.state.log_history if "loss" in entry]


def test_pixels_are_normalized_on_the_device(tiny_vit_config, tmp_path):
    trainer = build_trainer(tiny_vit_config, tmp_path, weighting=None)
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = (pixels / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    found = trainer._prepare_inputs({"pixel_values": pixels})["pixel_values"]
    torch.testing.assert_close(found, expected)


def test_accumulation_changes_nothing(tiny_vit_config, tmp_path):
    whole = build_trainer(tiny_vit_config, tmp_path / "1")
    parts = build_trainer(tiny_vit_config, tmp_path / "4", per_device_train_batch_size=2, gradient_accumulation_steps=4)
    whole.train(), parts.train()
    for key in ("loss", "grad_norm", "masked_l1"):
        assert curve(parts, key) == pytest.approx(curve(whole, key), rel=1e-5)


def test_the_share_of_clipped_steps_is_counted(tiny_vit_config, tmp_path):
    always = build_trainer(tiny_vit_config, tmp_path / "a", max_grad_norm=1e-3)
    never = build_trainer(tiny_vit_config, tmp_path / "b", max_grad_norm=1e3)
    always.train(), never.train()
    assert curve(always, "clipped_steps") == [1.0] * 4
    assert curve(never, "clipped_steps") == [0.0] * 4
    assert all(0 <= share <= 1 for share in curve(never, "data_wait"))


def test_the_best_model_is_restored_whole(tiny_vit_config, tmp_path):
    """Stock transformers 5.23 leaves the encoder as it was at the last step."""
    trainer = build_trainer(
        tiny_vit_config,
        tmp_path,
        eval_strategy="steps",
        eval_steps=1,
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_masked_l1",
        learning_rate=0.5,
        lr_scheduler_type="constant",
    )
    trainer.train()
    best = trainer.state.best_model_checkpoint
    assert not best.endswith("-4")
    trainer.save_model(str(tmp_path / "end"))
    expected, found = load_file(f"{best}/model.safetensors"), load_file(tmp_path / "end" / "model.safetensors")
    assert [key for key in expected if not torch.equal(expected[key], found[key])] == []


def test_evaluation_reports_the_mean_over_images(tiny_vit_config, tmp_path):
    trainer = build_trainer(tiny_vit_config, tmp_path, per_device_eval_batch_size=6)
    metrics = trainer.evaluate()
    batch = torch.utils.data.default_collate([trainer.eval_dataset[i] for i in range(6)])
    with torch.no_grad():
        outputs = trainer.model.eval()(**trainer._prepare_inputs(batch))
    assert metrics["eval_loss"] == pytest.approx(outputs.loss.item(), rel=1e-5)
    assert metrics["eval_masked_l1"] == pytest.approx(outputs.masked_l1.item(), rel=1e-5)
    assert json.dumps(metrics)


VIEWS = RandomView(0.3)
ONLINE = MaskedImageTransform("image", 32, 16, 16, 0.5, 8, VIEWS, detector=KeypointDetector(), shuffle_cells=True)
DENSITIES = DensityDetector(KeypointDetector(), 64)
MAP = dataclasses.replace(ONLINE, detector=None, densities=DENSITIES)


@pytest.fixture
def rows(photographs):
    """Photographs of several shapes, each with a random density."""
    generator = np.random.default_rng(0)
    return [
        {
            "image": {"bytes": cv2.imencode(".png", image[..., ::-1])[1].tobytes(), "path": None},
            DENSITIES.column: DENSITIES.format.encode(generator.integers(0, 256, (64, 64), dtype=np.uint8)),
        }
        for image in photographs
    ]


def samples_of(transform, rows):
    return [transform(row, Random(seed)) for seed, row in enumerate(rows)]


def prepared(trainer, samples):
    return trainer._prepare_inputs(torch.utils.data.default_collate(samples))


def averages(grid, view, num_cells):
    """Area averages of a density over the cells of a view, by its integral from the corner of the image."""
    integral = np.pad(grid.astype(np.float64) / 255, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    rows, columns = (np.linspace(0, size, 65) for size in (view.image_height, view.image_width))
    tops = np.linspace(view.top, view.top + view.height, num_cells + 1)
    lefts = np.linspace(view.left, view.left + view.width, num_cells + 1)
    integral = np.stack([np.interp(tops, rows, column) for column in integral.T], axis=1)
    integral = np.stack([np.interp(lefts, columns, row) for row in integral])
    scale = 64**2 / (view.image_height * view.image_width)
    cells = np.diff(np.diff(integral, axis=0), axis=1) / (scale * np.outer(np.diff(tops), np.diff(lefts)))
    return cells[:: -1 if view.vertical_flip else 1, :: -1 if view.horizontal_flip else 1]


def weights_by_hand(name, density, order):
    weights = np.exp(density / 0.25 - density.min() / 0.25)
    return {
        "keypoint": weights,
        "constant": np.full_like(weights, weights.mean()),
        "shuffled": weights.ravel()[order].reshape(weights.shape),
        "inverse": weights.max() / weights,
    }[name]


@pytest.mark.parametrize("name", sorted(WEIGHTINGS.keys() - {"predicted_loss"}))  # which is of no keypoints
def test_map_weights_are_those_of_the_part_that_the_sample_shows(tiny_vit_config, tmp_path, rows, photographs, name):
    trainer = build_trainer(tiny_vit_config, tmp_path, CellWeighting(name))
    samples = samples_of(MAP, 4 * rows)
    weights = prepared(trainer, samples)["keypoint_weights"].numpy()
    views = [VIEWS(*image.shape[:2], Random(seed)) for seed, image in enumerate(4 * photographs)]
    assert len({(view.horizontal_flip, view.vertical_flip) for view in views}) == 4
    for found, sample, view in zip(weights, samples, views, strict=True):
        density = averages(sample["keypoint_density"].numpy(), view, 4)
        assert np.allclose(found, weights_by_hand(name, density, sample["cell_order"].numpy()), rtol=1e-4)


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_online_weights_are_those_of_the_finished_crop(tiny_vit_config, tmp_path, rows, name):
    weighting = CellWeighting(name, 0.5, "mean")
    trainer = build_trainer(tiny_vit_config, tmp_path, weighting)
    samples = samples_of(ONLINE, rows)
    for found, sample in zip(prepared(trainer, samples)["keypoint_weights"], samples, strict=True):
        crop = sample["pixel_values"].permute(1, 2, 0).contiguous().numpy()
        density = torch.from_numpy(cell_density(KeypointDetector()(crop), 8))
        assert density.max() > 0
        torch.testing.assert_close(found, weighting(density, sample["cell_order"]))


@pytest.mark.parametrize("transform", [ONLINE, MAP], ids=["online", "map"])
def test_the_model_gets_weights_and_nothing_of_their_making(tiny_vit_config, tmp_path, rows, transform):
    trainer = build_trainer(tiny_vit_config, tmp_path)
    batch = torch.utils.data.default_collate(samples_of(transform, rows))
    columns = set(batch)
    inputs = trainer._prepare_inputs(batch)
    assert inputs.keys() == {"pixel_values", "bool_masked_pos", "keypoint_weights"}
    assert inputs["keypoint_weights"].shape == (6, 4, 4) and inputs["keypoint_weights"].dtype == torch.float32
    assert batch.keys() == columns


def test_simmim_has_no_weights(tiny_vit_config, tmp_path, rows):
    trainer = build_trainer(tiny_vit_config, tmp_path, weighting=None)
    simmim = dataclasses.replace(ONLINE, detector=None, shuffle_cells=False)
    assert prepared(trainer, samples_of(simmim, rows)).keys() == {"pixel_values", "bool_masked_pos"}


@pytest.mark.parametrize("transform", [ONLINE, MAP], ids=["online", "map"])
@pytest.mark.parametrize("name", WEIGHTINGS)
def test_every_weighting_trains(tiny_vit_config, tmp_path, rows, name, transform):
    samples = samples_of(transform, rows)
    trainer = build_trainer(
        tiny_vit_config, tmp_path, CellWeighting(name), samples, max_steps=1, per_device_train_batch_size=6
    )
    trainer.model.eval()
    with torch.no_grad():
        outputs = trainer.model(**prepared(trainer, samples))
    trainer.train()
    assert curve(trainer, "loss") == pytest.approx([outputs.loss.item()], rel=1e-4)
    assert curve(trainer, "masked_l1") == pytest.approx([outputs.masked_l1.item()], rel=1e-4)
    assert outputs.loss > outputs.masked_l1


def test_labels_are_smoothed_in_training_alone():
    class Model(torch.nn.Module):
        def forward(self, pixel_values):
            return {"logits": pixel_values}

    inputs = {"pixel_values": torch.randn(8, 5), "labels": torch.arange(8) % 5}
    trainer = SimpleNamespace(args=SimpleNamespace(label_smoothing_factor=0.3))
    for model, smoothing in ((Model().train(), 0.3), (Model().eval(), 0.0)):
        expected = torch.nn.functional.cross_entropy(*inputs.values(), label_smoothing=smoothing)
        torch.testing.assert_close(ClassificationTrainer.compute_loss(trainer, model, inputs), expected)


@pytest.mark.parametrize(
    ("limit", "best", "kept"), [(2, 1, {1, 4}), (2, 4, {3, 4}), (1, 2, {2, 4}), (3, 1, {1, 3, 4}), (0, 1, {1, 2, 3, 4})]
)
def test_the_best_checkpoint_is_kept(tmp_path, limit, best, kept):
    begin_run(tmp_path)
    for step in (1, 2, 3, 4):
        (tmp_path / f"checkpoint-{step}").mkdir()
        sign(tmp_path, tmp_path / f"checkpoint-{step}")
    state = SimpleNamespace(global_step=4, best_model_checkpoint=str(tmp_path / f"checkpoint-{best}"))
    trainer = SimpleNamespace(args=SimpleNamespace(save_total_limit=limit), state=state)
    PixelTrainer._rotate_checkpoints(trainer, tmp_path)
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {f"checkpoint-{step}" for step in kept}


class Recorder(SampleDataset):
    """Samples that do not depend on the epoch, and what the trainer said of it."""

    def __init__(self):
        self.samples, self.epochs = Samples(), []

    def __len__(self):
        return len(self.samples)

    def __getitems__(self, indices):
        return [self.samples[index] for index in indices]

    def draw_for_epoch(self, epoch):
        self.epochs.append(epoch)


def test_every_epoch_draws_its_own_samples(tmp_path, tiny_vit_config):
    samples = Recorder()
    build_trainer(tiny_vit_config, tmp_path, train_dataset=samples, max_steps=-1, num_train_epochs=3).train()
    assert samples.epochs == [0, 1, 2]


def test_features_are_those_of_an_encoder_that_is_not_trained(tmp_path, tiny_vit_config):
    class Labelled(Samples):
        def __getitem__(self, index):
            return {"pixel_values": super().__getitem__(index)["pixel_values"], "labels": index % 2}

    encoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 4), torch.nn.Dropout(0.5)).train()
    trainer = build_trainer(tiny_vit_config, tmp_path, weighting=None)
    first, second = (extract_features(trainer, encoder, Labelled(6), "features").features for _ in range(2))
    torch.testing.assert_close(first, second, atol=0, rtol=0)
