import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainingArguments, ViTConfig

from modeling_kamim import KamimForMaskedImageModeling
from modeling_kamim.evaluation import image_processor
from modeling_kamim.trainer import MaskedImageTrainer


@pytest.fixture
def tiny_vit_config():
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    return ViTConfig(image_size=32, patch_size=16, encoder_stride=16, **shape)


class Samples(torch.utils.data.Dataset):
    """Random images with random masks of a constant count."""

    def __init__(self, count=16, size=32):
        generator = torch.Generator().manual_seed(0)
        self.pixels = torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)
        self.masks = torch.stack([torch.randperm(4, generator=generator) < 2 for _ in range(count)])
        self.weights = 1 + torch.rand(count, 4, 4, generator=generator) * 10

    def __len__(self):
        return len(self.pixels)

    def __getitem__(self, index):
        return {
            "pixel_values": self.pixels[index],
            "bool_masked_pos": self.masks[index],
            "keypoint_weights": self.weights[index],
        }


def build_trainer(config, output_dir, **kwargs):
    torch.manual_seed(0)
    model = KamimForMaskedImageModeling.from_config(config)
    arguments = {"max_steps": 4, "logging_steps": 1, "per_device_train_batch_size": 8, **kwargs}
    args = TrainingArguments(
        str(output_dir), use_cpu=True, remove_unused_columns=False, disable_tqdm=True, report_to=[], **arguments
    )
    return MaskedImageTrainer(
        model=model,
        args=args,
        train_dataset=Samples(),
        eval_dataset=Samples(6),
        processing_class=image_processor(32),
        compute_metrics=lambda prediction: {"masked_l1": float(prediction.predictions.mean())},
    )


def curve(trainer, key):
    return [entry[key] for entry in trainer.state.log_history if "loss" in entry]


def test_pixels_are_normalised_on_the_device(tiny_vit_config, tmp_path):
    trainer = build_trainer(tiny_vit_config, tmp_path)
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
