"""Evaluate a checkpoint by classification: load the images, score each seed, write results."""

import copy
import logging
import time
from pathlib import Path
from typing import Any

import datasets
from transformers import set_seed

from ..data.attach_density import prepare_images
from ..data.augmentation import ClassificationTransform, check_augmentation
from ..data.bad_images import list_bad_images
from ..data.loading import DataArguments, keep_encoded, load_labelled_images, low_shot, subsample
from ..data.normalization import fit_processor
from ..data.samples import SampleDataset
from ..errors import InputError
from ..models.backbone import input_channels
from ..models.processor import image_processor
from ..training.compilation import settle_compilation
from ..training.recipe import check_steps
from ..training.resume import find_checkpoint
from ..training.trainer import ClassificationTrainer
from .cached_evaluation import CachedEvaluation
from .finetuning import check_sharding
from .outcome import write_outcome
from .results import provenance
from .settings import ClassificationArguments, ProbingArguments
from .trained_evaluation import TrainedEvaluation

logger = logging.getLogger(__name__)


class Evaluation:
    """One evaluation; `run` does it for a seed.

    Args:
        data_args, class_args, training_args: what is evaluated, and how.
        settings: YAML of what was given, for the page of the classifier.

    Raises:
        InputError: if the settings do not go together, or checkpoint or images cannot be loaded.
    """

    def __init__(
        self,
        data_args: DataArguments,
        class_args: ClassificationArguments,
        training_args: ProbingArguments,
        settings: str,
    ):
        self.data_args, self.class_args, self.training_args = data_args, class_args, training_args
        is_probe, is_cached = class_args.mode == "linear_probe", class_args.recipe.is_cached
        check_sharding(training_args, class_args.ema_decay, class_args.layer_decay, is_probe)
        training_args.follow(class_args.recipe.training)
        if training_args.push_to_hub and (is_cached or class_args.has_several_seeds):
            raise InputError(
                "--push_to_hub publishes one trained classifier; not for --protocol cached or knn, or --seeds"
            )
        resume_from = training_args.resume_from_checkpoint
        if class_args.has_several_seeds and resume_from not in (None, "auto"):
            raise InputError(
                f"resume_from_checkpoint is {resume_from!r}, and each of the --seeds has checkpoints of its own; give "
                "auto"
            )
        checkpoint = None if class_args.has_several_seeds else find_checkpoint(training_args)
        self.method: CachedEvaluation | TrainedEvaluation
        if is_cached:
            self.method = CachedEvaluation(class_args)
        else:
            self.method = TrainedEvaluation(data_args, class_args, training_args, settings, checkpoint)
        self.num_channels = input_channels(self.method.encoder_config)
        check_augmentation(class_args.augmentation, self.num_channels)
        self.images = load_labelled_images(
            data_args, class_args.label_column, class_args.validation_fraction, training_args.seed
        )
        self.processor = image_processor(self.method.image_size, class_args.model_name_or_path, self.num_channels)
        column = self.images.image_column
        with training_args.main_process_first(desc="measuring pixels"):
            train = keep_encoded(self.images.train, column)
            self.pixel_range = fit_processor(self.processor, train, column, self.num_channels, data_args.num_proc)
        self.bad_images: list[str] = []
        num_classes = self.images.classes.num_classes
        logger.info(
            "%s (%s) of %s; %d classes, chance is %.1f%%",
            *(class_args.mode, class_args.protocol, class_args.model_name_or_path or "random weights"),
            *(num_classes, 100 / num_classes),
        )
        logger.info("Speed: %s", training_args.describe_speed())

    @property
    def trainer(self) -> ClassificationTrainer | None:
        """Of the classifier that was trained last; None where none was."""
        return self.method.trainer

    def run(self, seed: int) -> list[dict[str, Any]]:
        """Evaluate with a seed, and return its rows of results."""
        set_seed(seed)
        train = self.images.train
        if self.class_args.low_shot is not None:
            train = low_shot(train, self.images.label_column, self.class_args.low_shot, seed)
        if not self.class_args.recipe.is_cached:
            num_images = min(len(train), self.data_args.max_train_samples or len(train))
            check_steps(self.training_args, num_images)
            settle_compilation(self.training_args, num_images)
        train_dataset = self.samples(train, self.data_args.max_train_samples, self.class_args.augmentation, seed)
        eval_dataset = self.samples(self.images.validation, self.data_args.max_eval_samples, "none", seed)
        output_dir = Path(self.training_args.output_dir)
        list_bad_images(self.bad_images, output_dir, self.training_args.should_save)
        logger.info("%d training and %d validation images, seed %d", len(train_dataset), len(eval_dataset), seed)

        args = copy.copy(self.training_args)
        args.seed = seed
        if self.class_args.has_several_seeds:
            args.output_dir = str(output_dir / f"seed-{seed}")
        start = time.perf_counter()
        rows = self.method.rows(train_dataset, eval_dataset, args, self.processor, self.images.classes.names)
        common = {
            "mode": self.class_args.mode,
            "augmentation": self.class_args.augmentation,
            "low_shot": self.class_args.low_shot,
            "seed": seed,
            "num_train_images": len(train_dataset),
            "num_validation_images": len(eval_dataset),
            "wall_time": time.perf_counter() - start,
        }
        return [{**common, **row} for row in rows]

    def samples(self, images: datasets.Dataset, max_samples: int | None, augmentation: str, seed: int) -> SampleDataset:
        """Return training or validation samples of labelled images."""
        column, labels = self.images.image_column, self.images.label_column
        images = keep_encoded(subsample(images, max_samples, self.training_args.seed), column)
        skip = self.data_args.bad_images == "skip"
        with self.training_args.main_process_first(desc="preparing the images"):
            images, bad = prepare_images(
                images, column, None, skip, self.data_args.num_proc, num_channels=self.num_channels
            )
        self.bad_images = sorted({*self.bad_images, *bad})
        transform = ClassificationTransform(
            column, labels, self.method.image_size, augmentation, self.pixel_range, self.num_channels
        )
        return SampleDataset(images.select_columns([column, labels]), transform, seed)

    def save(self, rows: list[dict[str, Any]]) -> None:
        """Write results.json, pictures and the page of the classifier; log the figures."""
        output_dir = Path(self.training_args.output_dir)
        origin = provenance(
            self.data_args.dataset_name,
            self.images.train,
            self.images.validation,
            self.class_args.model_name_or_path,
            self.method.encoder_config,
            self.training_args.device,
        )
        num_classes = self.images.classes.num_classes
        shared = {"provenance": origin, "num_classes": num_classes, "chance": 1 / num_classes}
        shared["image_size"] = self.method.image_size
        draws_depth = self.class_args.recipe.is_cached and self.class_args.probe_layers == "all"
        write_outcome(rows, shared, self.images.classes.names, output_dir, draws_depth)
        if isinstance(self.method, TrainedEvaluation):
            self.method.write_page(output_dir)
