"""Evaluation of a checkpoint, or of random weights: linear probes, nearest neighbours, fine-tuning, reconstructions.

python run_classification.py --mode linear_probe --model_name_or_path outputs/mim
python run_classification.py --protocol cached --probe_layers all --model_name_or_path outputs/mim
accelerate launch run_classification.py --mode finetune --model_name_or_path outputs/mim --dataset_name uoft-cs/cifar10
python run_classification.py --mode reconstruction --model_name_or_path outputs/mim
python run_classification.py --report outputs --output_dir outputs/report
"""

import contextlib
import copy
import logging
import time
from pathlib import Path
from typing import Any

import cv2
import datasets
import torch
from huggingface_hub import ModelCard
from torch import nn
from torch.utils.data import Dataset, default_collate
from tqdm import tqdm
from transformers import AutoConfig, PreTrainedConfig, set_seed

from modeling_kamim import KamimForMaskedImageModeling
from modeling_kamim.arguments import (
    CLASSIFICATION_ARGUMENTS,
    ClassificationArguments,
    DataArguments,
    ProbingArguments,
    parse,
)
from modeling_kamim.augmentation import ClassificationTransform, MixingCollator
from modeling_kamim.checkpoint_page import CheckpointPage
from modeling_kamim.data import (
    SampleDataset,
    choose_splits,
    find_image_column,
    keep_encoded,
    load_images,
    load_labelled_images,
    low_shot,
    report_bad_images,
    subsample,
)
from modeling_kamim.errors import InputError, run
from modeling_kamim.evaluation.classifiers import build_classifier, classifier_config, encoder_config
from modeling_kamim.evaluation.features import (
    ClassificationHead,
    FeatureDataset,
    PooledFeatures,
    evaluation_loader,
    extract_features,
    load_backbone,
)
from modeling_kamim.evaluation.finetuning import ExponentialMovingAverage, check_sharding, parameter_groups
from modeling_kamim.evaluation.metrics import TrainerMetrics, best_classes, classification_metrics
from modeling_kamim.evaluation.probing import LinearProbe, nearest_neighbours, probe
from modeling_kamim.evaluation.reconstruction import PAPER_MASK_RATIO, score_reconstructions
from modeling_kamim.evaluation.report import build_report, write_report
from modeling_kamim.evaluation.results import checkpoint_rows, provenance, summarise_seeds, write_results
from modeling_kamim.figures import comparison_figure, confusion_figure, depth_figure
from modeling_kamim.map_steps import prepare_images
from modeling_kamim.model_card import classifier_card
from modeling_kamim.modeling_kamim import loading_failure, quiet_loading
from modeling_kamim.privacy import EMBEDDED_PHOTOGRAPHS, public_name
from modeling_kamim.processes import check_launch
from modeling_kamim.processor import image_processor
from modeling_kamim.resume import find_checkpoint, run_settings
from modeling_kamim.trainer import ClassificationTrainer, MaskedImageTrainer
from modeling_kamim.transforms import MaskedImageTransform

logger = logging.getLogger("run_classification")

NUM_NEIGHBOURS, KNN_TEMPERATURE = 20, 0.07


def main() -> None:
    data_args, class_args, training_args = parse(CLASSIFICATION_ARGUMENTS, None, __doc__)
    logging.basicConfig(
        level=logging.INFO if training_args.process_index == 0 else logging.ERROR, format="%(name)s: %(message)s"
    )
    output_dir = Path(training_args.output_dir)
    if class_args.report:
        write_report(build_report([Path(folder) for folder in class_args.report]), output_dir)
        logger.info("report.md and report.tex are in %s", output_dir)
        return
    check_launch(training_args)
    cv2.setNumThreads(1)
    set_seed(training_args.seed)
    if class_args.mode == "reconstruction":
        score_models(data_args, class_args, training_args)
        return
    evaluation = Evaluation(data_args, class_args, training_args)
    rows = [row for seed in class_args.seeds or [training_args.seed] for row in evaluation.run(seed)]
    if training_args.should_save:
        save_results(rows, evaluation, output_dir)
    if training_args.push_to_hub:
        evaluation.trainer.push_to_hub()


class Evaluation:
    """One evaluation as the command line asks for it; `run` does it for a seed."""

    def __init__(self, data_args: DataArguments, class_args: ClassificationArguments, training_args: ProbingArguments):
        self.data_args, self.class_args, self.training_args = data_args, class_args, training_args
        is_probe = class_args.mode == "linear_probe"
        check_sharding(training_args, class_args.ema_decay, class_args.layer_decay, is_probe)
        self.is_cached = class_args.mode == "linear_probe" and class_args.protocol == "cached"
        if self.is_cached:
            self.backbone = load_backbone(
                class_args.model_name_or_path,
                class_args.model_type,
                class_args.model_size,
                class_args.image_size,
                class_args.pooling,
            )
            self.encoder_config, self.image_size = self.backbone.model.config, self.backbone.image_size
            self.backbone.default_layer(class_args.layer)
        else:
            self.encoder_config = encoder_config(class_args)
            self.config, self.image_size = classifier_config(class_args), self.encoder_config.image_size
        self.checkpoint = find_checkpoint(training_args)
        self.images = load_labelled_images(
            data_args, class_args.label_column, class_args.validation_fraction, training_args.seed
        )
        self.processor = image_processor(self.image_size, class_args.model_name_or_path)
        if training_args.push_to_hub and (self.is_cached or len(class_args.seeds) > 1):
            raise InputError("--push_to_hub publishes one trained classifier; not for --protocol cached or --seeds")
        dataset = public_name(data_args.dataset_name) if data_args.dataset_name else EMBEDDED_PHOTOGRAPHS
        self.page = CheckpointPage(CLASSIFICATION_ARGUMENTS, training_args, dataset)
        self.trainer: ClassificationTrainer | None = None
        self.bad_images: list[str] = []
        self.features: dict[str, FeatureDataset] = {}
        logger.info(
            "%s (%s) of %s; %d classes, chance is %.1f%%",
            *(class_args.mode, class_args.protocol, class_args.model_name_or_path or "random weights"),
            *(self.images.classes.num_classes, 100 / self.images.classes.num_classes),
        )
        logger.info("Speed: %s", training_args.describe_speed())

    def run(self, seed: int) -> list[dict[str, Any]]:
        """Rows of results for a seed."""
        set_seed(seed)
        train = self.images.train
        if self.class_args.low_shot is not None:
            train = low_shot(train, self.images.label_column, self.class_args.low_shot, seed)
        train_dataset = self.samples(train, self.data_args.max_train_samples, self.class_args.augmentation, seed)
        eval_dataset = self.samples(self.images.validation, self.data_args.max_eval_samples, "none", seed)
        output_dir = Path(self.training_args.output_dir)
        report_bad_images(self.bad_images, output_dir, self.training_args.should_save)
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
        transform = ClassificationTransform(column, labels, self.image_size, augmentation)
        return SampleDataset(images.select_columns([column, labels]), transform, seed)

    def train_classifier(
        self, train_dataset: Dataset, eval_dataset: Dataset, args: ProbingArguments
    ) -> list[dict[str, Any]]:
        """Linear probe or fine-tuning by HF Trainer; saves the classifier."""
        class_args, num_classes = self.class_args, self.images.classes.num_classes
        model = build_classifier(class_args, self.images.classes.names, args.attn_implementation)
        if len(class_args.seeds) <= 1:
            self.page.begin(self.card(model.config))
        metrics = TrainerMetrics(num_classes)
        average = ExponentialMovingAverage(class_args.ema_decay) if class_args.ema_decay else None

        def build_trainer(model: nn.Module, train_dataset: Dataset, eval_dataset: Dataset) -> ClassificationTrainer:
            groups = None
            if class_args.layer_decay < 1:
                groups = lambda model: parameter_groups(  # noqa: E731
                    model, args.learning_rate, args.weight_decay, class_args.layer_decay
                )
            return ClassificationTrainer(
                model=model,
                args=args,
                train_dataset=train_dataset,
                eval_dataset=eval_dataset,
                data_collator=MixingCollator(num_classes, class_args.augmentation),
                processing_class=self.processor,
                compute_metrics=metrics,
                preprocess_logits_for_metrics=best_classes,
                parameter_groups=groups,
                run_settings=run_settings(self.data_args, class_args, args, num_train_images=len(train_dataset)),
                callbacks=[average] if average else None,
                optimizer_cls_and_kwargs=lars(args) if class_args.protocol == "mae" else None,
            )

        trainer = build_trainer(model, train_dataset, eval_dataset)
        if class_args.trains_on_features:
            encoder = PooledFeatures(model)
            train_features = extract_features(trainer, encoder, train_dataset, "Features of the training images")
            eval_features = extract_features(trainer, encoder, eval_dataset, "Features of the validation images")
            trainer = build_trainer(ClassificationHead(model), train_features, eval_features)
        result = trainer.train(resume_from_checkpoint=self.checkpoint)
        with average.applied(trainer.model) if average else contextlib.nullcontext():
            trainer.save_model()
            evaluation = trainer.evaluate()
        if class_args.trains_on_features and args.should_save:
            model.save_pretrained(args.output_dir)  # over the head alone
        trainer.save_metrics("train", result.metrics)
        trainer.log_metrics("eval", evaluation)
        trainer.save_state()
        self.trainer = trainer
        row = {
            "protocol": "finetune" if class_args.mode == "finetune" else class_args.protocol,
            "layer": getattr(self.config, "num_hidden_layers", None)
            if self.config.model_type != "swin"
            else "last stage",
            "pooling": "mean",
            "layer_norm": class_args.pooled_norm == "layernorm",
            "optimizer": "lars" if class_args.protocol == "mae" else str(args.optim.value),
            "learning_rate": args.learning_rate,
            "global_batch_size": args.total_batch_size,
            "num_train_epochs": trainer.state.epoch,
            "layer_decay": class_args.layer_decay,
            "ema_decay": class_args.ema_decay,
            "loss": evaluation["eval_loss"],
            **metrics.latest,
        }
        return [row]

    def card(self, config: PreTrainedConfig) -> ModelCard:
        """Card of the classifier, without results."""
        name = self.class_args.model_name_or_path
        return classifier_card(self.page.run, config, self.class_args.mode, public_name(name) if name else None)

    def probe_features(
        self, train_dataset: SampleDataset, eval_dataset: SampleDataset, args: ProbingArguments
    ) -> list[dict[str, Any]]:
        """Linear probes and nearest neighbours on features computed once, of one layer or of all."""
        trainer = ClassificationTrainer(model=self.backbone, args=args, processing_class=self.processor)
        train = self.features_of(train_dataset, trainer, "Features of the training images")
        validation = self.features_of(eval_dataset, trainer, "Features of the validation images")
        names = [*map(str, range(1, train.features.shape[1])), "final"]
        chosen = range(len(names))
        if self.class_args.probe_layers == "default":
            chosen = [self.backbone.default_layer(self.class_args.layer)]
        num_classes = self.images.classes.num_classes
        recipe = LinearProbe(seed=args.seed)
        train_features, features = train.features[:, chosen], validation.features[:, chosen]
        result = probe(recipe, train_features, train.labels, features, num_classes)
        rows = []
        for place, layer in enumerate(chosen):
            votes = nearest_neighbours(
                train_features[:, place],
                train.labels,
                features[:, place],
                num_classes,
                NUM_NEIGHBOURS,
                KNN_TEMPERATURE,
            )
            common = {"layer": names[layer], "pooling": self.class_args.pooling, "layer_norm": False}
            loss = nn.functional.cross_entropy(result.logits[place], validation.labels).item()
            recipes = {
                "cached": {"optimizer": "adam", "learning_rate": "chosen", "loss": loss},
                "knn": {"optimizer": None, "learning_rate": None, "num_neighbours": NUM_NEIGHBOURS},
            }
            if self.class_args.low_shot is None:
                recipes["knn"]["seed"] = None  # nothing is drawn
            recipes["cached"]["chosen_learning_rate"] = result.learning_rates[place]
            for (protocol, settings), scores in zip(recipes.items(), (result.logits[place], votes), strict=True):
                measured = classification_metrics(best_classes(scores).numpy(), validation.labels.numpy(), num_classes)
                rows.append({"protocol": protocol, **common, **settings, **measured})
        return rows

    def features_of(self, samples: SampleDataset, trainer: ClassificationTrainer, description: str) -> FeatureDataset:
        """Features of every layer; those of the same plain images are not computed again for another seed."""
        if samples.transform.augmentation != "none":
            return extract_features(trainer, self.backbone, samples, description)
        images = samples.rows._fingerprint
        if images not in self.features:
            self.features[images] = extract_features(trainer, self.backbone, samples, description)
        return self.features[images]


def score_models(
    data_args: DataArguments, class_args: ClassificationArguments, training_args: ProbingArguments
) -> None:
    """PSNR and SSIM of reconstructions, and a picture of them, of one model or of several."""
    output_dir = Path(training_args.output_dir)
    names = [name for name in (class_args.model_name_or_path, *class_args.compare_with) if name]
    if not names:
        raise InputError("reconstructions need --model_name_or_path, a checkpoint of run_mim.py")
    train, validation = choose_splits(
        load_images(data_args.dataset_name, data_args.dataset_config_name),
        data_args.train_split,
        data_args.validation_split,
    )
    images = validation if validation is not None else train
    column = find_image_column(images, data_args.image_column)
    images = keep_encoded(subsample(images, data_args.max_eval_samples, training_args.seed), column)
    models = [load_pretrained_model(name) for name in names]
    sizes = {model.config.image_size for model in models}
    if len(sizes) > 1:
        raise InputError(f"the models have image sizes {sorted(sizes)}; compare models of one size")
    rows, shown, reconstructions = [], {}, {}
    for name, model in zip(names, models, strict=True):
        config = model.config
        mask_patch_size = (getattr(config, "kamim", None) or {}).get("mask_patch_size", 32)
        transform = MaskedImageTransform(
            column, config.image_size, config.patch_size, mask_patch_size, PAPER_MASK_RATIO, mask_patch_size, None
        )
        samples = SampleDataset(images.select_columns([column]), transform, training_args.seed)
        processor = image_processor(config.image_size, name)
        trainer = MaskedImageTrainer(
            model=model, args=training_args, processing_class=processor, data_collator=default_collate
        )
        batches = map(trainer._prepare_inputs, tqdm(evaluation_loader(trainer, samples), desc=public_name(name)))
        gather = trainer.accelerator.gather_for_metrics
        scores = score_reconstructions(
            model.to(training_args.device), batches, processor.image_mean, processor.image_std, gather
        )
        origin = provenance(data_args.dataset_name, None, images, name, config, training_args.device)
        rows.append({"mode": "reconstruction", "mask_ratio": PAPER_MASK_RATIO, **scores, "provenance": origin})
        shown = trainer._prepare_inputs(default_collate([samples[len(samples) * i // 6] for i in range(6)]))
        with torch.no_grad():
            outputs = model(**shown)
        reconstructions[public_name(name)] = outputs.reconstruction.cpu()
        logger.info(
            "%s: masked pixels %.2f dB, SSIM %.3f (mean of the visible pixels: %.2f dB, %.3f)",
            *(public_name(name), scores["masked_psnr"]["mean"], scores["masked_ssim"]["mean"]),
            *(scores["baseline_psnr"]["mean"], scores["baseline_ssim"]["mean"]),
        )
    if training_args.should_save:
        write_results(output_dir / "results.json", {"rows": rows})
        side = config.image_size // config.patch_size
        comparison_figure(
            shown["pixel_values"].cpu(),
            shown["bool_masked_pos"].unflatten(1, (side, side)).cpu(),
            reconstructions,
            processor.image_mean,
            processor.image_std,
        ).savefig(output_dir / "reconstructions.png", dpi=100)
        logger.info("results.json and reconstructions.png are in %s", output_dir)


def load_pretrained_model(name: str) -> KamimForMaskedImageModeling:
    """A pretrained model with its decoder.

    Raises:
        InputError: if it cannot be loaded, or holds an encoder alone.
    """
    try:
        with quiet_loading():
            model, info = KamimForMaskedImageModeling.from_pretrained(name, output_loading_info=True)
    except OSError as error:
        raise InputError(f"cannot load {name!r}: {loading_failure(error)}") from error
    if info["missing_keys"]:
        raise InputError(f"{name} holds no decoder of masked image modelling; reconstructions need one")
    return model


def lars(args: ProbingArguments) -> tuple[type[torch.optim.Optimizer], dict[str, Any]]:
    """LARS, the optimiser of MAE's linear probe."""
    from timm.optim import Lars

    return Lars, {"lr": args.learning_rate, "momentum": 0.9, "trust_coeff": 0.001}


def save_results(rows: list[dict[str, Any]], evaluation: Evaluation, output_dir: Path) -> None:
    """results.json, pictures, and the figures in the log."""
    images, class_args = evaluation.images, evaluation.class_args
    origin = provenance(
        evaluation.data_args.dataset_name,
        images.train,
        images.validation,
        class_args.model_name_or_path,
        evaluation.encoder_config,
        evaluation.training_args.device,
    )
    shared = {
        "provenance": origin,
        "num_classes": images.classes.num_classes,
        "chance": 1 / images.classes.num_classes,
        "image_size": evaluation.image_size,
    }
    best = max(rows, key=lambda row: row["top1"])
    rows = [row if row is best else {**row, "confusion": None} for row in rows]  # 1,000 classes are megabytes
    results = {**shared, **rows[0]} if len(rows) == 1 else {**shared, "rows": rows}
    write_results(output_dir / "results.json", results)
    if evaluation.trainer is not None and len(rows) == 1:
        card = evaluation.card(AutoConfig.from_pretrained(output_dir))
        evaluation.page.write(card, checkpoint_rows([output_dir], output_dir), evaluation.trainer.hub_model_id)
    confusion_figure(best["confusion"], images.classes.names).savefig(output_dir / "confusion.png", dpi=100)
    summary = summarise_seeds([{**shared, **row} for row in rows])
    if class_args.probe_layers == "all" and evaluation.is_cached:
        series = {
            protocol: ([row["layer"] for row in found], [row["top1"] for row in found])
            for protocol in ("cached", "knn")
            if (found := [row for row in summary if row["protocol"] == protocol])
        }
        depth_figure(series, shared["chance"]).savefig(output_dir / "depth.png", dpi=100)
    for row in summary:
        spread = f" ± {100 * row['top1_std']:.2f} over {row['num_seeds']} seeds" if row["num_seeds"] > 1 else ""
        logger.info(
            "%s, layer %s: top-1 %.2f%%%s, top-5 %.2f%% on %d images",
            *(row["protocol"], row["layer"], 100 * row["top1"], spread, 100 * row["top5"]),
            row["num_validation_images"],
        )
    logger.info("results.json and pictures are in %s", output_dir)


if __name__ == "__main__":
    run(main)
