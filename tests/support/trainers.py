"""Trainers of tiny models on random images."""

import torch
from tiny_models import tiny_vit
from transformers import AutoModel, TrainingArguments

from modeling_kamim import KamimForMaskedImageModeling
from modeling_kamim.models.processor import image_processor
from modeling_kamim.objective.weighting import CellWeighting
from modeling_kamim.training.trainer import MaskedImageTrainer

PAPER = CellWeighting()


class Samples(torch.utils.data.Dataset):
    """Random images with random densities, and random masks of a constant count."""

    def __init__(self, count=16, size=32):
        generator = torch.Generator().manual_seed(0)
        self.pixels = torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)
        self.masks = torch.stack([torch.randperm(4, generator=generator) < 2 for _ in range(count)])
        self.densities = torch.rand(count, 4, 4, generator=generator)

    def __len__(self):
        return len(self.pixels)

    def __getitem__(self, index):
        return {
            "pixel_values": self.pixels[index],
            "bool_masked_pos": self.masks[index],
            "keypoint_density": self.densities[index],
        }


def build_trainer(config, output_dir, weighting=PAPER, train_dataset=None, **kwargs):
    torch.manual_seed(0)
    model = KamimForMaskedImageModeling.from_config(config)
    arguments = {"max_steps": 4, "logging_steps": 1, "per_device_train_batch_size": 8, **kwargs}
    args = TrainingArguments(
        str(output_dir), use_cpu=True, remove_unused_columns=False, disable_tqdm=True, report_to=[], **arguments
    )
    return MaskedImageTrainer(
        model=model,
        args=args,
        train_dataset=train_dataset or Samples(),
        eval_dataset=Samples(6),
        processing_class=image_processor(32),
        weighting=weighting,
        num_cells=4,
        compute_metrics=lambda prediction: {"masked_l1": float(prediction.predictions.mean())},
    )


def trainer(output_dir, **arguments):
    settings = {"max_steps": 3, "save_steps": 1, "save_total_limit": 2, "per_device_train_batch_size": 4, **arguments}
    args = TrainingArguments(
        str(output_dir), use_cpu=True, remove_unused_columns=False, disable_tqdm=True, report_to=[], **settings
    )
    return MaskedImageTrainer(
        model=KamimForMaskedImageModeling.from_config(tiny_vit(patch_size=16, encoder_stride=16)),
        args=args,
        train_dataset=Samples(),
        eval_dataset=Samples(8),
        processing_class=image_processor(32),
        weighting=CellWeighting(),
        num_cells=4,
    )


def is_whole(checkpoint):
    AutoModel.from_pretrained(checkpoint)
    files = {"optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "preprocessor_config.json"}
    return files <= {file.name for file in checkpoint.iterdir()}
