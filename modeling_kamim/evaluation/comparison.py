"""Score and draw reconstructions of one or several models on the same images and masks."""

import logging
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import torch
from matplotlib.figure import Figure
from torch.utils.data import default_collate
from tqdm import tqdm

from ..data.attach_density import prepare_images
from ..data.loading import DataArguments, choose_splits, find_image_column, keep_encoded, subsample
from ..data.normalization import fit_processor
from ..data.samples import MaskedImageTransform, SampleDataset
from ..data.stored_density import DensityDetector
from ..errors import InputError
from ..hub.cards import baseline_name
from ..limits import scaled_size, size_in_words
from ..models.loading import load_pretrained_model
from ..models.masked_image_modeling import KamimForMaskedImageModeling
from ..models.processor import image_processor
from ..models.sizes import image_sides, image_size_of, patch_grid
from ..objective.keypoints import KeypointDetector
from ..privacy import public_name
from ..training.batches import prepare_batch
from ..training.figures import save_figure
from ..training.trainer import MaskedImageTrainer
from .charts import comparison_figure
from .density_error import density_error
from .features import evaluation_loader
from .reconstruction import PAPER_MASK_RATIO, score_reconstructions
from .results import provenance, write_results
from .settings import ClassificationArguments, ProbingArguments

logger = logging.getLogger(__name__)
NUM_SHOWN = 6


def compare_reconstructions(
    data_args: DataArguments, class_args: ClassificationArguments, training_args: ProbingArguments
) -> None:
    """Write results.json, with PSNR and SSIM of each model, and reconstructions.png.

    Raises:
        InputError: if no model is named, one cannot be loaded, or their image sizes or channels differ.
    """
    names = [name for name in (class_args.model_name_or_path, *class_args.compare_with) if name]
    if not names:
        raise InputError("reconstructions need --model_name_or_path, a checkpoint of kamim pretrain")
    models = [load_pretrained_model(name) for name in names]
    sizes = sorted({image_sides(model.config) for model in models})
    if len(sizes) > 1:
        words = ", ".join(map(size_in_words, sizes))
        raise InputError(f"the models have image sizes of {words} px; compare models of one size")
    channels = {model.config.num_channels for model in models}
    if len(channels) > 1:
        raise InputError(f"the models take {sorted(channels)} channels; compare models of the same channels")
    images, column = _images(data_args, training_args.seed)
    scored = [
        _ScoredModel(name, model, images, column, training_args) for name, model in zip(names, models, strict=True)
    ]
    rows = []
    for model in scored:
        origin = provenance(data_args.dataset_name, None, images, model.name, model.model.config, training_args.device)
        rows.append({"mode": "reconstruction", "mask_ratio": PAPER_MASK_RATIO, **model.score(), "provenance": origin})
    if training_args.should_save:
        output_dir = Path(training_args.output_dir)
        write_results(output_dir / "results.json", {"rows": rows})
        save_figure(partial(_draw, scored), output_dir / "reconstructions.png")
        logger.info("results.json and reconstructions.png are in %s", output_dir)


def _images(data_args: DataArguments, seed: int) -> tuple[datasets.Dataset, str]:
    """Return validation images, or training images where there are none, and the name of their column."""
    train, validation = choose_splits(data_args.load(), data_args.train_split, data_args.validation_split)
    images = validation if validation is not None else train
    column = find_image_column(images, data_args.image_column)
    return keep_encoded(subsample(images, data_args.max_eval_samples, seed), column), column


class _ScoredModel:
    """A model and the images that it is to reconstruct."""

    def __init__(
        self,
        name: str,
        model: KamimForMaskedImageModeling,
        images: datasets.Dataset,
        column: str,
        args: ProbingArguments,
    ):
        self.name, self.model = name, model.to(args.device)
        config, size = model.config, image_size_of(model.config)
        channels, kamim = config.num_channels, getattr(config, "kamim", None) or {}
        mask_patch_size = kamim.get("mask_patch_size", 32)
        self.processor = image_processor(size, name, channels)
        # the same for all methods, so that their errors compare
        densities = DensityDetector(
            KeypointDetector(), scaled_size(size, kamim.get("keypoint_image_size")), num_channels=channels
        )
        transform = MaskedImageTransform(
            column,
            size,
            config.patch_size,
            mask_patch_size,
            PAPER_MASK_RATIO,
            mask_patch_size,
            random_view=None,
            densities=densities,
            pixel_range=fit_processor(self.processor, images, column, channels),
            num_channels=channels,
        )
        with args.main_process_first(desc="detecting keypoints"):
            images, _ = prepare_images(
                images, column, densities, pixel_range=transform.pixel_range, num_channels=channels
            )
        self.samples = SampleDataset(images.select_columns(list(transform.columns)), transform, args.seed)
        self.trainer = MaskedImageTrainer(
            model=model, args=args, processing_class=self.processor, data_collator=default_collate
        )

    def prepare(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return prepare_batch(batch, self.processor, self.trainer.args.device)

    def score(self) -> dict[str, Any]:
        loader = evaluation_loader(self.trainer, self.samples)

        def batches() -> Iterator[dict[str, torch.Tensor]]:
            return map(self.prepare, tqdm(loader, desc=public_name(self.name)))

        gather = self.trainer.accelerator.gather_for_metrics
        mean, std = self.processor.image_mean, self.processor.image_std
        scores = score_reconstructions(self.model, batches(), mean, std, gather)
        scores["masked_l1_by_density"] = density_error(self.model, batches(), gather)
        logger.info(
            "%s: masked pixels %.2f dB, SSIM %.3f (%s has %.2f dB, %.3f)",
            *(public_name(self.name), scores["masked_psnr"]["mean"], scores["masked_ssim"]["mean"]),
            *(baseline_name(self.model.objective), scores["baseline_psnr"]["mean"], scores["baseline_ssim"]["mean"]),
        )
        return scores

    @torch.no_grad()
    def reconstruct(self) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Return a few images with their masks, and the model's reconstructions."""
        places = [len(self.samples) * number // NUM_SHOWN for number in range(NUM_SHOWN)]
        batch = self.prepare(default_collate([self.samples[place] for place in places]))
        seen = {name: batch[name] for name in ("pixel_values", "bool_masked_pos")}
        return batch, self.model(**seen).reconstruction


def _draw(models: list[_ScoredModel]) -> Figure:
    shown = {public_name(model.name): model.reconstruct() for model in models}
    batch, _ = next(iter(shown.values()))
    first = models[0]
    return comparison_figure(
        batch["pixel_values"].cpu(),
        batch["bool_masked_pos"].unflatten(1, patch_grid(first.model.config)).cpu(),
        {name: reconstruction.cpu() for name, (_, reconstruction) in shown.items()},
        first.processor.image_mean,
        first.processor.image_std,
    )
