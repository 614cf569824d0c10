"""Evaluate a checkpoint by classification: load, train or fit, score, write results."""

import contextlib
import copy
import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import datasets
import torch
from huggingface_hub import ModelCard
from torch import nn
from transformers import AutoConfig, PreTrainedConfig, set_seed

from ..data.attach_density import choose_pixel_range, prepare_images
from ..data.augmentation import ClassificationTransform, MixingCollator
from ..data.bad_images import list_bad_images
from ..data.loading import DataArguments, keep_encoded, load_labelled_images, low_shot, subsample
from ..data.samples import SampleDataset
from ..errors import InputError
from ..hub.cards import classifier_card
from ..models.backbone import load_backbone
from ..models.pixel_range import PixelRange
from ..models.processor import image_processor, keep_pixel_range, pixel_range_of
from ..privacy import EMBEDDED_PHOTOGRAPHS, public_name
from ..training.checkpoint_page import CheckpointPage
from ..training.figures import save_figure
from ..training.recipe import check_steps
from ..training.resume import find_checkpoint, run_settings
from ..training.trainer import ClassificationTrainer
from .charts import confusion_figure, depth_figure
from .classifiers import build_classifier, classifier_config, encoder_config
from .features import ClassificationHead, FeatureDataset, PooledFeatures, extract_features
from .finetuning import ExponentialMovingAverage, check_sharding, parameter_groups
from .lars import lars, lars_groups
from .metrics import TrainerMetrics, best_classes, classification_metrics
from .neighbors import nearest_neighbors
from .probing import LinearProbe, probe
from .protocols import PROBED_BLOCK
from .results import checkpoint_rows, provenance, summarize_seeds, weights_sha256, write_results
from .settings import ClassificationArguments, ProbingArguments

logger = logging.getLogger(__name__)
NUM_NEIGHBORS, KNN_TEMPERATURE = 20, 0.07
CHANCE_MARGIN = 0.98  # of the loss of guessing, from which on a probe has hardly learned


class Evaluation:
    """One evaluation; `run` does it for a seed.

    Args:
        data_args, class_args, training_args: what is evaluated, and how.
        settings: YAML of what was given, for the page of the classifier.
    """

    def __init__(
        self,
        data_args: DataArguments,
        class_args: ClassificationArguments,
        training_args: ProbingArguments,
        settings: str,
    ):
        self.data_args, self.class_args, self.training_args = data_args, class_args, training_args
        is_probe = class_args.mode == "linear_probe"
        check_sharding(training_args, class_args.ema_decay, class_args.layer_decay, is_probe)
        self.protocol = class_args.recipe
        training_args.follow(self.protocol.training)
        self.optimizer = lars(training_args.learning_rate) if self.protocol.optimizer == "lars" else None
        self.is_cached = self.protocol.is_cached
        if self.is_cached:
            self.backbone = load_backbone(
                class_args.model_name_or_path,
                class_args.model_type,
                class_args.model_size,
                class_args.image_size,
                class_args.pooling,
            )
            self.encoder_config, self.image_size = self.backbone.model.config, self.backbone.image_size
            self.backbone.place_of(class_args.layer, PROBED_BLOCK)
        else:
            self.encoder_config = encoder_config(class_args)
            self.config, self.image_size = classifier_config(class_args), self.encoder_config.image_size
        if len(class_args.seeds) > 1 and training_args.resume_from_checkpoint not in (None, "auto"):
            raise InputError(
                f"resume_from_checkpoint is {training_args.resume_from_checkpoint!r}, and each of the --seeds has "
                "checkpoints of its own; give auto"
            )
        self.checkpoint = find_checkpoint(training_args) if len(class_args.seeds) <= 1 else None
        if self.protocol.pooled_norm == "batchnorm":
            _drop_incomplete_batches(training_args)
        self.images = load_labelled_images(
            data_args, class_args.label_column, class_args.validation_fraction, training_args.seed
        )
        self.processor = image_processor(self.image_size, class_args.model_name_or_path)
        self.pixel_range = self.choose_range()
        keep_pixel_range(self.processor, self.pixel_range)
        if training_args.push_to_hub and (self.is_cached or len(class_args.seeds) > 1):
            raise InputError(
                "--push_to_hub publishes one trained classifier; not for --protocol cached or knn, or --seeds"
            )
        dataset = public_name(data_args.dataset_name) if data_args.dataset_name else EMBEDDED_PHOTOGRAPHS
        self.page = CheckpointPage(settings, training_args, dataset)
        self.trainer: ClassificationTrainer | None = None
        self.bad_images: list[str] = []
        self.features: dict[str, FeatureDataset] = {}
        logger.info(
            "%s (%s) of %s; %d classes, chance is %.1f%%",
            *(class_args.mode, class_args.protocol, class_args.model_name_or_path or "random weights"),
            *(self.images.classes.num_classes, 100 / self.images.classes.num_classes),
        )
        logger.info("Speed: %s", training_args.describe_speed())

    @cached_property
    def encoder_sha256(self) -> str | None:
        """What tells the checkpoint's weights from others; None for random ones, and for those of the Hub."""
        name = self.class_args.model_name_or_path
        return weights_sha256(Path(name).expanduser()) if name else None

    def choose_range(self) -> PixelRange | None:
        """The range by which images of more than 8 bits are scaled: the encoder's, or that of the training images."""
        column = self.images.image_column
        with self.training_args.main_process_first(desc="measuring pixels"):
            saved, train = pixel_range_of(self.processor), keep_encoded(self.images.train, column)
            return choose_pixel_range(train, column, saved, self.data_args.num_proc)

    def run(self, seed: int) -> list[dict[str, Any]]:
        """Rows of results for a seed."""
        set_seed(seed)
        train = self.images.train
        if self.class_args.low_shot is not None:
            train = low_shot(train, self.images.label_column, self.class_args.low_shot, seed)
        if not self.is_cached:
            check_steps(self.training_args, min(len(train), self.data_args.max_train_samples or len(train)))
        train_dataset = self.samples(train, self.data_args.max_train_samples, self.class_args.augmentation, seed)
        eval_dataset = self.samples(self.images.validation, self.data_args.max_eval_samples, "none", seed)
        output_dir = Path(self.training_args.output_dir)
        list_bad_images(self.bad_images, output_dir, self.training_args.should_save)
        logger.info("%d training and %d validation images, seed %d", len(train_dataset), len(eval_dataset), seed)

        args = copy.copy(self.training_args)
        args.seed = seed
        if len(self.class_args.seeds) > 1:
            args.output_dir = str(output_dir / f"seed-{seed}")
        start = time.perf_counter()
        evaluate = self.probe_features if self.is_cached else self.train_classifier
        rows = evaluate(train_dataset, eval_dataset, args)
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
        """Training or validation samples of labelled images."""
        column, labels = self.images.image_column, self.images.label_column
        images = keep_encoded(subsample(images, max_samples, self.training_args.seed), column)
        skip = self.data_args.bad_images == "skip"
        with self.training_args.main_process_first(desc="preparing the images"):
            images, bad = prepare_images(images, column, skip_bad_images=skip, num_proc=self.data_args.num_proc)
        self.bad_images = sorted({*self.bad_images, *bad})
        transform = ClassificationTransform(column, labels, self.image_size, augmentation, self.pixel_range)
        return SampleDataset(images.select_columns([column, labels]), transform, seed)

    def train_classifier(
        self, train_dataset: SampleDataset, eval_dataset: SampleDataset, args: ProbingArguments
    ) -> list[dict[str, Any]]:
        """Linear probe or fine-tuning by HF Trainer; saves the classifier."""
        class_args = self.class_args
        model = build_classifier(class_args, self.images.classes.names, args.attn_implementation)
        if len(class_args.seeds) <= 1:
            self.page.ask_hub(self.card(model.config))
        average = ExponentialMovingAverage(class_args.ema_decay) if class_args.ema_decay else None
        trainer = self.build_trainer(model, train_dataset, eval_dataset, args, average)
        if class_args.trains_on_features:
            encoder = PooledFeatures(model)
            train_features = extract_features(trainer, encoder, train_dataset, "Features of the training images")
            eval_features = extract_features(trainer, encoder, eval_dataset, "Features of the validation images")
            trainer = self.build_trainer(ClassificationHead(model), train_features, eval_features, args, average)
        if len(class_args.seeds) <= 1:
            self.page.write(self.card(model.config))
        checkpoint = find_checkpoint(args) if len(class_args.seeds) > 1 else self.checkpoint
        result = trainer.train(resume_from_checkpoint=checkpoint)
        with average.applied(trainer.model) if average else contextlib.nullcontext():
            trainer.save_model()
            evaluation = trainer.evaluate()
        if class_args.trains_on_features and args.should_save:
            model.save_pretrained(args.output_dir)  # over the head alone
        trainer.save_metrics("train", result.metrics)
        trainer.log_metrics("eval", evaluation)
        trainer.save_state()
        self.trainer = trainer
        return [self.classifier_row(trainer, evaluation["eval_loss"])]

    def build_trainer(
        self,
        model: nn.Module,
        train_dataset: SampleDataset | FeatureDataset,
        eval_dataset: SampleDataset | FeatureDataset,
        args: ProbingArguments,
        average: ExponentialMovingAverage | None,
    ) -> ClassificationTrainer:
        """Trainer of a classifier, or of its head on features."""
        class_args, num_classes = self.class_args, self.images.classes.num_classes

        def groups(model: nn.Module) -> list[dict[str, Any]]:
            if self.optimizer is not None:
                return lars_groups(model, args.weight_decay)
            return parameter_groups(model, args.learning_rate, args.weight_decay, class_args.layer_decay)

        return ClassificationTrainer(
            model=model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            data_collator=MixingCollator(num_classes, class_args.augmentation),
            processing_class=self.processor,
            compute_metrics=TrainerMetrics(num_classes),
            preprocess_logits_for_metrics=best_classes,
            parameter_groups=groups if self.optimizer or class_args.layer_decay < 1 else None,
            run_settings=run_settings(
                *(self.data_args, class_args, args),
                num_train_images=len(train_dataset),
                encoder_sha256=self.encoder_sha256,
            ),
            callbacks=[average] if average else None,
            optimizer_cls_and_kwargs=self.optimizer,
        )

    def classifier_row(self, trainer: ClassificationTrainer, loss: float) -> dict[str, Any]:
        """Results of a classifier that was trained and evaluated."""
        class_args, args = self.class_args, trainer.args
        is_swin = self.config.model_type == "swin"
        return {
            "protocol": class_args.protocol_name,
            "layer": "last stage" if is_swin else self.config.num_hidden_layers,
            "pooling": "mean",
            "layer_norm": class_args.pooled_norm == "layernorm",
            "optimizer": self.protocol.optimizer or str(args.optim.value),
            "learning_rate": args.learning_rate,
            "global_batch_size": args.total_batch_size,
            "num_train_epochs": trainer.state.epoch,
            "layer_decay": class_args.layer_decay,
            "drop_path": class_args.drop_path,
            "ema_decay": class_args.ema_decay,
            "loss": loss,
            **trainer.compute_metrics.latest,
        }

    def card(self, config: PreTrainedConfig) -> ModelCard:
        """Card of the classifier, without results."""
        name = self.class_args.model_name_or_path
        return classifier_card(self.page.run, config, self.class_args.mode, public_name(name) if name else None)

    def probe_features(
        self, train_dataset: SampleDataset, eval_dataset: SampleDataset, args: ProbingArguments
    ) -> list[dict[str, Any]]:
        """Nearest neighbors, and for "cached" linear probes, on features computed once, of one layer or of all."""
        trainer = ClassificationTrainer(model=self.backbone, args=args, processing_class=self.processor)
        train = self.features_of(train_dataset, trainer, "Features of the training images")
        validation = self.features_of(eval_dataset, trainer, "Features of the validation images")
        names = [*map(str, range(1, train.features.shape[1])), "final"]
        layers = list(range(len(names)))
        if self.class_args.probe_layers == "default":
            layers = [self.backbone.place_of(self.class_args.layer, PROBED_BLOCK)]
        train, validation = (replace(split, features=split.features[:, layers]) for split in (train, validation))
        rows = [self.neighbors_row(names[layer], train, validation, place) for place, layer in enumerate(layers)]
        if not self.protocol.has_head:
            return rows
        num_classes = self.images.classes.num_classes
        probed = probe(LinearProbe(seed=args.seed), train.features, train.labels, validation.features, num_classes)
        found = zip(layers, probed.logits, probed.learning_rates, strict=True)
        heads = [self.probe_row(names[layer], logits, rate, validation.labels) for layer, logits, rate in found]
        return [row for pair in zip(heads, rows, strict=True) for row in pair]

    def probe_row(self, layer: str, logits: torch.Tensor, learning_rate: float, labels: torch.Tensor) -> dict[str, Any]:
        """Results of the linear probe of a layer."""
        return {
            "protocol": "cached",
            **self.layer_facts(layer),
            "optimizer": "adam",
            "learning_rate": "chosen",
            "chosen_learning_rate": learning_rate,
            "loss": nn.functional.cross_entropy(logits, labels).item(),
            **self.scores(logits, labels),
        }

    def neighbors_row(
        self, layer: str, train: FeatureDataset, validation: FeatureDataset, place: int
    ) -> dict[str, Any]:
        """Results of the nearest neighbors by the features at `place`, those of a layer."""
        votes = nearest_neighbors(
            train.features[:, place],
            train.labels,
            validation.features[:, place],
            self.images.classes.num_classes,
            NUM_NEIGHBORS,
            KNN_TEMPERATURE,
        )
        return {
            "protocol": "knn",
            **self.layer_facts(layer),
            "optimizer": None,
            "learning_rate": None,
            "num_neighbors": NUM_NEIGHBORS,
            **({"seed": None} if self.class_args.low_shot is None else {}),  # nothing is drawn
            **self.scores(votes, validation.labels),
        }

    def layer_facts(self, layer: str) -> dict[str, Any]:
        return {"layer": layer, "pooling": self.class_args.pooling, "layer_norm": False}

    def scores(self, logits: torch.Tensor, labels: torch.Tensor) -> dict[str, Any]:
        num_classes = self.images.classes.num_classes
        return classification_metrics(best_classes(logits).numpy(), labels.numpy(), num_classes)

    def features_of(self, samples: SampleDataset, trainer: ClassificationTrainer, description: str) -> FeatureDataset:
        """Features of every layer; those of the same plain images are not computed again for another seed."""
        transform = samples.transform
        if not isinstance(transform, ClassificationTransform) or transform.augmentation != "none":
            return extract_features(trainer, self.backbone, samples, description)
        images = samples.rows._fingerprint
        if images not in self.features:
            self.features[images] = extract_features(trainer, self.backbone, samples, description)
        return self.features[images]

    def save(self, rows: list[dict[str, Any]]) -> None:
        """Write results.json, pictures and the page of the classifier; log the figures."""
        output_dir = Path(self.training_args.output_dir)
        shared = self.shared_facts()
        best = max(rows, key=lambda row: row["top1"])
        rows = [row if row is best else {**row, "confusion": None} for row in rows]  # 1,000 classes are megabytes
        results = {**shared, **rows[0]} if len(rows) == 1 else {**shared, "rows": rows}
        write_results(output_dir / "results.json", results)
        title = f"{best['protocol']}, layer {best['layer']}, top-1 {best['top1']:.1%}"
        confusion = partial(confusion_figure, best["confusion"], self.images.classes.names, title)
        save_figure(confusion, output_dir / "confusion.png")
        if self.trainer is not None and len(rows) == 1:
            card = self.card(AutoConfig.from_pretrained(output_dir))
            self.page.write(card, checkpoint_rows([output_dir], output_dir), self.trainer.hub_model_id)
        summary = summarize_seeds([{**shared, **row} for row in rows])
        if self.class_args.probe_layers == "all" and self.is_cached:
            draw_depth(summary, shared["chance"], output_dir / "depth.png")
        for row in summary:
            log_row(row)
            if row["protocol"] != "knn" and is_at_chance(row, shared["num_classes"]):
                logger.warning("%s", chance_advice(row, shared["num_classes"]))
        logger.info("results.json and pictures are in %s", output_dir)

    def shared_facts(self) -> dict[str, Any]:
        """What all rows of results have in common."""
        origin = provenance(
            self.data_args.dataset_name,
            self.images.train,
            self.images.validation,
            self.class_args.model_name_or_path,
            self.encoder_config,
            self.training_args.device,
        )
        num_classes = self.images.classes.num_classes
        return {
            "provenance": origin,
            "num_classes": num_classes,
            "chance": 1 / num_classes,
            "image_size": self.image_size,
        }


def _drop_incomplete_batches(args: ProbingArguments) -> None:
    """As MAE's code does: BatchNorm cannot train on a batch of one image, and a small one gives it poor statistics."""
    if args.per_device_train_batch_size < 2:
        raise InputError(
            f"per_device_train_batch_size is {args.per_device_train_batch_size}; protocol mae has a BatchNorm, which "
            "needs batches of at least 2 images"
        )
    args.dataloader_drop_last = True


def is_at_chance(row: Mapping[str, Any], num_classes: int) -> bool:
    """Whether a classifier is no better than guessing: by its loss, or by the interval of its top-1."""
    low, _ = row.get("top1_interval") or (row["top1"], None)
    return row["loss"] is not None and (row["loss"] >= CHANCE_MARGIN * math.log(num_classes) or low <= 1 / num_classes)


def chance_advice(row: Mapping[str, Any], num_classes: int) -> str:
    """What a classifier that is no better than guessing shows, and what to try."""
    rate = row.get("chosen_learning_rate") or row["learning_rate"]
    return (
        f"{row['protocol']}, layer {row['layer']}, is close to guessing: loss {row['loss']:.3f} (that of guessing is "
        f"{math.log(num_classes):.3f}), top-1 {row['top1']:.2%} ({1 / num_classes:.2%}). Its learning rate was {rate}: "
        "try a larger and a smaller --learning_rate, more --num_train_epochs, or --protocol cached, which chooses its "
        "rate; then another --layer"
    )


def draw_depth(summary: Sequence[Mapping[str, Any]], chance: float, file: Path) -> None:
    """Accuracy by depth of the protocols that read features."""
    series = {
        protocol: ([row["layer"] for row in found], [row["top1"] for row in found])
        for protocol in ("cached", "knn")
        if (found := [row for row in summary if row["protocol"] == protocol])
    }
    save_figure(partial(depth_figure, series, chance), file)


def log_row(row: Mapping[str, Any]) -> None:
    """A summary of results in the log."""
    spread = f" ± {100 * row['top1_std']:.2f} over {row['num_seeds']} seeds" if row["num_seeds"] > 1 else ""
    logger.info(
        "%s, layer %s: top-1 %.2f%%%s, top-5 %.2f%% on %d images",
        *(row["protocol"], row["layer"], 100 * row["top1"], spread, 100 * row["top5"]),
        row["num_validation_images"],
    )
