"""Scores of reconstructions: against scikit-image, by hand, and of whole models."""

import json
import math

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from tiny_models import tiny_swin, tiny_vit
from torch.utils.data import default_collate
from transformers import TrainingArguments

from modeling_kamim import KamimForMaskedImageModeling, masked_loss
from modeling_kamim.errors import InputError
from modeling_kamim.evaluation.charts import comparison_figure
from modeling_kamim.evaluation.density_error import cell_errors, density_error
from modeling_kamim.evaluation.reconstruction import (
    MAX_PSNR,
    normalized_range,
    pixel_mask,
    score_images,
    score_reconstructions,
    summarize,
)
from modeling_kamim.models.processor import image_processor
from modeling_kamim.objective.weighting import CellWeighting
from modeling_kamim.training.trainer import MaskedImageTrainer

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
NAMES = {"paper_mse", "paper_psnr", "paper_ssim", "masked_psnr", "masked_ssim", "baseline_psnr", "baseline_ssim"}
CHECKERBOARD = torch.tensor([[1, 0, 0, 1]]).bool()  # patches of 16 x 16 px of an image of 32 x 32 px
VIT, SWIN = tiny_vit(hidden_dropout_prob=0.1), tiny_swin()


def normalize(images):
    """`(batch_size, height, width, 3)` arrays in [0, 1] to what a model sees."""
    return torch.from_numpy((np.asarray(images) - MEAN) / STD).permute(0, 3, 1, 2).float()


def ssim(first, second, data_range):
    """Mean and map of SSIM of two images `(height, width, 3)`, as Wang et al. define it."""
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "full": True}
    return structural_similarity(first, second, data_range=data_range, channel_axis=-1, **settings)


def score(pixel_values, reconstruction, mask=CHECKERBOARD):
    return score_images(reconstruction, pixel_values, mask.expand(len(pixel_values), -1), MEAN, STD)


@pytest.fixture
def images(photographs):
    """Two crops of photographs, `(2, 32, 32, 3)` in [0, 1]."""
    return np.stack([photographs[0][40:72, 40:72], photographs[3][10:42, 30:62]]) / 255


@pytest.fixture
def reconstruction(images):
    """Normalized images with noise, some of it beyond black and white."""
    pixel_values = normalize(images)
    return pixel_values + 0.7 * torch.randn(pixel_values.shape)


def test_the_papers_scores_are_those_of_scikit_image_on_normalized_pixels(images, reconstruction):
    pixel_values = normalize(images)
    scores = score(pixel_values, reconstruction)
    data_range = (1 - 0.406) / 0.225 + 0.485 / 0.229
    for i in range(2):
        target, output = (x[i].permute(1, 2, 0).double().numpy() for x in (pixel_values, reconstruction))
        psnr = peak_signal_noise_ratio(target, output, data_range=data_range)
        assert scores["paper_psnr"][i] == pytest.approx(psnr, rel=1e-9)
        assert scores["paper_ssim"][i] == pytest.approx(ssim(target, output, data_range)[0], rel=1e-9)
        assert scores["paper_mse"][i] == pytest.approx(np.mean((target - output) ** 2) / data_range**2, rel=1e-9)


def test_masked_scores_are_those_of_scikit_image_on_the_pasted_image(images, reconstruction):
    scores = score(normalize(images), reconstruction)
    mask = np.zeros((32, 32), bool)
    mask[:16, :16] = mask[16:, 16:] = True
    for i in range(2):
        output = (reconstruction[i].permute(1, 2, 0).double().numpy() * STD + MEAN).clip(0, 1)
        pasted = np.where(mask[..., None], output, images[i])
        psnr = peak_signal_noise_ratio(images[i][mask], output[mask], data_range=1.0)
        assert scores["masked_psnr"][i] == pytest.approx(psnr, rel=1e-6)
        assert scores["masked_ssim"][i] == pytest.approx(ssim(images[i], pasted, 1.0)[1][mask].mean(), rel=1e-5)


def test_the_baseline_is_the_mean_color_of_the_visible_pixels(images, reconstruction):
    pixel_values = normalize(images)
    scores = score(pixel_values, reconstruction)
    for i in range(2):
        image = images[i].copy()
        visible = np.concatenate([image[:16, 16:].reshape(-1, 3), image[16:, :16].reshape(-1, 3)])
        image[:16, :16] = image[16:, 16:] = visible.mean(axis=0)
        error = (images[i] - image) ** 2
        assert scores["baseline_psnr"][i] == pytest.approx(-10 * math.log10(2 * error.mean()), rel=1e-6)
        similarity = ssim(images[i], image, 1.0)[1]
        found = (similarity[:16, :16].mean() + similarity[16:, 16:].mean()) / 2
        assert scores["baseline_ssim"][i] == pytest.approx(found, rel=1e-5)
    other = score(pixel_values, torch.zeros_like(pixel_values))
    assert np.array_equal(other["baseline_psnr"], scores["baseline_psnr"])


def test_scores_of_two_colors_by_hand():
    image = np.full((1, 32, 32, 3), 0.25)
    image[:, :, 16:] = 0.75
    left = torch.tensor([[1, 0, 1, 0]]).bool()
    scores = score(normalize(image), normalize(np.full((1, 32, 32, 3), 0.35)), left)
    assert scores["masked_psnr"][0] == pytest.approx(20, rel=1e-5)  # off by 0.1
    assert scores["baseline_psnr"][0] == pytest.approx(20 * math.log10(2), rel=1e-5)  # off by 0.5


def test_masked_scores_ignore_what_is_reconstructed_of_visible_pixels(images, reconstruction):
    pixel_values = normalize(images)
    visible = ~pixel_mask(CHECKERBOARD, 32, 32)[:, None]
    other = torch.where(visible, torch.randn_like(reconstruction), reconstruction)
    before, after = score(pixel_values, reconstruction), score(pixel_values, other)
    for name in NAMES:
        assert np.array_equal(before[name], after[name]) != name.startswith("paper")


def test_a_perfect_reconstruction_has_finite_scores(images):
    pixel_values = normalize(images)
    scores = score(pixel_values, pixel_values.clone())
    for name in ("paper", "masked"):
        assert scores[f"{name}_psnr"].tolist() == [MAX_PSNR] * 2
        assert scores[f"{name}_ssim"].tolist() == pytest.approx([1.0] * 2)
    summary = summarize(scores)
    assert summary["paper_psnr_pooled"] == {"mean": pytest.approx(MAX_PSNR), "standard_error": 0.0}
    assert summary["masked_psnr"] == {"mean": MAX_PSNR, "standard_error": 0.0}
    assert "Infinity" not in json.dumps(summary)


def test_round_off_is_no_error(images):
    pixel_values = normalize(images)
    scores = score(pixel_values, pixel_values * (1 + 1e-7))
    assert scores["masked_psnr"].tolist() == [MAX_PSNR] * 2


def test_the_baseline_of_a_plain_image_is_perfect():
    pixel_values = normalize(np.full((1, 32, 32, 3), 0.3))
    scores = score(pixel_values, torch.zeros_like(pixel_values))
    assert scores["baseline_psnr"] == [MAX_PSNR]
    assert scores["baseline_ssim"] == pytest.approx([1.0])


@pytest.mark.parametrize("masked", [True, False])
def test_an_image_needs_masked_and_visible_pixels(images, reconstruction, masked):
    mask = torch.stack([CHECKERBOARD[0], torch.full((4,), masked)])
    with pytest.raises(InputError, match="mask_ratio"):
        score_images(reconstruction, normalize(images), mask, MEAN, STD)


def test_masks_of_small_and_large_patches_are_the_same_pixels():
    small = CHECKERBOARD.unflatten(1, (2, 2)).repeat_interleave(4, 1).repeat_interleave(4, 2).flatten(1)
    assert torch.equal(pixel_mask(small, 32, 32), pixel_mask(CHECKERBOARD, 32, 32))
    assert pixel_mask(CHECKERBOARD, 32, 32)[0].nonzero()[[0, -1]].tolist() == [[0, 0], [31, 31]]
    assert pixel_mask(CHECKERBOARD, 32, 32).sum() == 512


def test_the_data_range_is_that_of_normalized_black_and_white():
    assert normalized_range([0.5] * 3, [0.5] * 3) == 2
    assert normalized_range(MEAN, STD) == pytest.approx(4.758, abs=1e-3)


def test_the_summary_by_hand():
    scores = {name: np.array([1.0, 2.0, 6.0]) for name in NAMES} | {"paper_mse": np.array([0.1, 0.2, 0.3])}
    summary = summarize(scores)
    assert summary["num_images"] == 3
    assert summary.keys() == NAMES - {"paper_mse"} | {"num_images", "paper_psnr_pooled"}
    assert summary["masked_ssim"] == pytest.approx({"mean": 3.0, "standard_error": math.sqrt(7 / 3)})
    assert summary["paper_psnr_pooled"]["mean"] == pytest.approx(-10 * math.log10(0.2))
    standard_error, step = 0.1 / math.sqrt(3), 1e-6
    slope = 10 * (math.log10(0.2 + step) - math.log10(0.2)) / step
    assert summary["paper_psnr_pooled"]["standard_error"] == pytest.approx(slope * standard_error, rel=1e-4)


def test_one_image_has_no_standard_error(images, reconstruction):
    summary = summarize(score(normalize(images)[:1], reconstruction[:1]))
    errors = {value["standard_error"] for name, value in summary.items() if name != "num_images"}
    assert errors == {None}


class Samples(torch.utils.data.Dataset):
    """Crops of a photograph with random masks of half of the patches, and random densities."""

    def __init__(self, photograph, patches_per_side, count=7):
        generator = torch.Generator().manual_seed(0)
        pixels = torch.from_numpy(photograph.copy()).permute(2, 0, 1)
        self.pixels = [pixels[:, 10 * i : 10 * i + 32, 12 * i : 12 * i + 32].contiguous() for i in range(count)]
        blocks = torch.stack([torch.randperm(4, generator=generator) < 2 for _ in range(count)]).unflatten(1, (2, 2))
        cells = patches_per_side // 2
        self.masks = blocks.repeat_interleave(cells, 1).repeat_interleave(cells, 2).flatten(1)
        self.densities = torch.rand(count, 4, 4, generator=generator)

    def __len__(self):
        return len(self.pixels)

    def __getitem__(self, index):
        sample = {"pixel_values": self.pixels[index], "bool_masked_pos": self.masks[index]}
        return {**sample, "keypoint_density": self.densities[index]}


def build_trainer(config, output_dir, dataset, **kwargs):
    model = KamimForMaskedImageModeling.from_config(config)
    args = TrainingArguments(
        str(output_dir),
        use_cpu=True,
        remove_unused_columns=False,
        disable_tqdm=True,
        report_to=[],
        save_strategy="no",
        **kwargs,
    )
    return MaskedImageTrainer(
        model=model,
        args=args,
        train_dataset=dataset,
        data_collator=default_collate,
        processing_class=image_processor(32),
        weighting=CellWeighting(),
        num_cells=4,
    )


def scores_of(trainer, dataset):
    batches = (trainer._prepare_inputs(batch) for batch in trainer.get_eval_dataloader(dataset))
    return score_reconstructions(trainer.model, batches, MEAN, STD, trainer.accelerator.gather_for_metrics)


@pytest.mark.parametrize(("config", "patches_per_side"), [(VIT, 4), (SWIN, 8)], ids=["vit", "swin"])
def test_a_model_is_scored_over_a_data_set(tmp_path, astronaut, config, patches_per_side):
    dataset = Samples(astronaut, patches_per_side)
    trainer = build_trainer(config, tmp_path, dataset, per_device_eval_batch_size=3)
    summary = scores_of(trainer, dataset)

    batch = trainer._prepare_inputs(default_collate([dataset[i] for i in range(7)]))
    with torch.no_grad():
        reconstruction = trainer.model.eval()(**batch).reconstruction
    expected = summarize(score_images(reconstruction, batch["pixel_values"], batch["bool_masked_pos"], MEAN, STD))
    assert summary["num_images"] == 7
    for name in summary.keys() - {"num_images"}:
        assert summary[name] == pytest.approx(expected[name], rel=1e-4), name
    assert summary["paper_psnr_pooled"]["mean"] <= summary["paper_psnr"]["mean"]
    assert json.loads(json.dumps(summary)) == summary


@pytest.mark.parametrize(("config", "patches_per_side"), [(VIT, 4), (SWIN, 8)], ids=["vit", "swin"])
def test_training_raises_the_scores(tmp_path, astronaut, config, patches_per_side):
    dataset = Samples(astronaut, patches_per_side)
    sizes = {"per_device_train_batch_size": 7, "max_steps": 30, "learning_rate": 5e-3}
    trainer = build_trainer(config, tmp_path, dataset, **sizes)
    before = scores_of(trainer, dataset)
    trainer.train()
    after = scores_of(trainer, dataset)
    assert after["masked_psnr"]["mean"] > before["masked_psnr"]["mean"] + 0.5
    assert after["baseline_psnr"] == before["baseline_psnr"]


def test_scores_of_all_processes_are_gathered(tmp_path, astronaut):
    dataset = Samples(astronaut, 4, count=3)
    trainer = build_trainer(VIT, tmp_path, dataset)
    batch = trainer._prepare_inputs(default_collate([dataset[i] for i in range(3)]))
    summary = score_reconstructions(trainer.model, [batch], MEAN, STD, lambda scores: scores.repeat(2, 1))
    assert summary["num_images"] == 6


def test_no_images_are_an_input_error():
    with pytest.raises(InputError, match="no images"):
        score_reconstructions(KamimForMaskedImageModeling.from_config(VIT), [], MEAN, STD)


@pytest.mark.parametrize("num_images", [1, 5])
def test_the_picture_shows_every_model_beside_its_whole_name(images, reconstruction, num_images):
    pixel_values = normalize(images)[:1].expand(num_images, -1, -1, -1)
    masks = CHECKERBOARD.unflatten(1, (2, 2)).expand(num_images, -1, -1)
    names = ["SimMIM", "KAMIM, ViT-B, 100 epochs at a temperature of 0.25"]
    outputs = {name: reconstruction[:1].expand(num_images, -1, -1, -1) for name in names}
    figure = comparison_figure(pixel_values, masks, outputs, MEAN, STD)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()

    labels = [axis.yaxis.label for axis in figure.axes if axis.get_ylabel()]
    assert [label.get_text().replace("\n", " ") for label in labels] == ["original", "masked", *names]
    assert len(figure.axes) == 4 * num_images
    boxes = [label.get_window_extent(canvas.get_renderer()) for label in labels]
    assert min(box.x0 for box in boxes) >= 0
    assert max(box.x1 for box in boxes) < min(axis.get_window_extent().x0 for axis in figure.axes)
    assert all(upper.y0 > lower.y1 for upper, lower in zip(boxes, boxes[1:], strict=False))


def test_the_picture_pastes_visible_pixels(images, reconstruction):
    pixel_values = normalize(images)
    masks = CHECKERBOARD.unflatten(1, (2, 2)).expand(2, -1, -1)
    figure = comparison_figure(pixel_values, masks, {"KAMIM": reconstruction}, MEAN, STD)
    original, masked, pasted = (figure.axes[row * 2].images[0].get_array() for row in range(3))
    assert np.allclose(original, images[0], atol=1e-6)
    assert np.all(masked[:16, :16] == 0.5)
    assert np.array_equal(pasted[:16, 16:], original[:16, 16:])
    output = (reconstruction[0].permute(1, 2, 0).numpy() * STD + MEAN).clip(0, 1)
    assert np.allclose(pasted[:16, :16], output[:16, :16], atol=1e-6)


@pytest.mark.parametrize("target", ["pixels", "normalized_pixels"])
def test_the_error_by_density_is_that_of_the_masked_patches_in_their_order(target):
    torch.manual_seed(0)
    model = KamimForMaskedImageModeling.from_config(tiny_vit(kamim={"target": target}))
    pixels, mask = torch.randn(6, 3, 32, 32), torch.rand(6, 16) < 0.6
    density = torch.randint(0, 256, (6, 4, 4), dtype=torch.uint8)
    box = torch.tensor([0.0, 0, 1, 1]).expand(6, 4)
    batch = {"pixel_values": pixels, "bool_masked_pos": mask, "keypoint_density": density, "crop_box": box}
    parts = [{name: tensor[rows] for name, tensor in batch.items()} for rows in (slice(0, 4), slice(4, 6))]
    found = density_error(model, parts)

    with torch.no_grad():
        output = model(pixel_values=pixels, bool_masked_pos=mask)
    filled, patches = (
        x.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 1, 4, 5).reshape(6, 16, -1)
        for x in (output.reconstruction, pixels)
    )
    errors = (filled - patches).abs()
    if target == "normalized_pixels":
        errors = errors / (patches.var(2, keepdim=True) + 1e-6).sqrt()
    errors = errors.mean(2)[mask]
    order = density.flatten(1)[mask].argsort(stable=True)
    quarters = np.array_split(errors[order].numpy(), 4)
    assert found["l1"] == pytest.approx([quarter.mean() for quarter in quarters], rel=1e-4)
    assert found["density"] == sorted(found["density"]) and len(found["density"]) == 4
    whole = np.average(found["l1"], weights=[len(quarter) for quarter in quarters])
    assert whole == pytest.approx(output.masked_l1.item(), rel=1e-4)


def test_cell_errors_are_those_of_the_loss():
    target, output = torch.randn(2, 3, 32, 48), torch.randn(2, 3, 32, 48)
    mask, weights = torch.rand(2, 2, 3) < 0.5, 1 + torch.rand(2, 4, 6)
    mask[0, 0, 0] = True
    errors, masked, cells = cell_errors(output, target, mask, weights)
    assert errors.shape == masked.shape == cells.shape == (2, 24)
    weighted, plain = masked_loss(output, target, mask, weights)
    torch.testing.assert_close(errors[masked].mean(), plain)
    torch.testing.assert_close((errors * cells)[masked].mean(), weighted)


def test_no_images_have_no_error_by_density():
    with pytest.raises(InputError, match="no images"):
        density_error(KamimForMaskedImageModeling.from_config(VIT), [])
