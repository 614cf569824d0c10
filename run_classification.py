"""Linear probing or fine-tuning of a KAMIM, ViT or Swin checkpoint, or of random weights, by the paper's recipe.

python run_classification.py --mode linear_probe --model_name_or_path outputs/mim
accelerate launch run_classification.py --mode finetune --model_name_or_path outputs/mim --dataset_name uoft-cs/cifar10
python run_classification.py configs/quickstart/linear_probe.yaml --model_name_or_path outputs/quickstart/kamim
"""

import json
import logging
from pathlib import Path

import cv2
import datasets
from torch import nn
from torch.utils.data import Dataset
from transformers import set_seed

from modeling_kamim.arguments import ClassificationArguments, DataArguments, ProbingArguments, parse
from modeling_kamim.augmentation import ClassificationTransform, MixingCollator
from modeling_kamim.data import (
    SampleDataset,
    choose_splits,
    encode_labels,
    find_image_column,
    find_label_column,
    hold_out,
    keep_encoded,
    load_images,
    report_bad_images,
    subsample,
)
from modeling_kamim.errors import InputError, run
from modeling_kamim.evaluation.classifiers import build_classifier, classifier_config
from modeling_kamim.evaluation.features import ClassificationHead, PooledFeatures, extract_features
from modeling_kamim.evaluation.metrics import TrainerMetrics, best_classes
from modeling_kamim.map_steps import prepare_images
from modeling_kamim.processor import image_processor
from modeling_kamim.trainer import ClassificationTrainer, find_checkpoint

logger = logging.getLogger("run_classification")


def main() -> None:
    data_args, class_args, training_args = parse(
        (DataArguments, ClassificationArguments, ProbingArguments), None, __doc__
    )
    logging.basicConfig(
        level=logging.INFO if training_args.process_index == 0 else logging.ERROR, format="%(name)s: %(message)s"
    )
    cv2.setNumThreads(1)
    set_seed(training_args.seed)
    output_dir = Path(training_args.output_dir)
    config = classifier_config(class_args)
    checkpoint = find_checkpoint(training_args)

    # Data
    images = load_images(data_args.dataset_name, data_args.dataset_config_name)
    train_images, validation_images = choose_splits(images, data_args.train_split, data_args.validation_split)
    image_column = find_image_column(train_images, data_args.image_column)
    label_column = find_label_column(train_images, class_args.label_column)
    train_images = encode_labels(train_images, label_column)
    classes = train_images.features[label_column]
    if classes.num_classes < 2:
        raise InputError(f"column {label_column!r} has {classes.num_classes} class; classification needs 2 or more")
    if validation_images is None:
        logger.warning("No validation split: holding out %.0f%% of train", 100 * class_args.validation_fraction)
        train_images, validation_images = hold_out(
            train_images, label_column, class_args.validation_fraction, training_args.seed
        )
    else:
        validation_images = encode_labels(validation_images, label_column, classes)

    bad_images: list[str] = []

    def prepare(split: datasets.Dataset, max_samples: int | None, augment: bool) -> SampleDataset:
        split = keep_encoded(subsample(split, max_samples, training_args.seed), image_column)
        with training_args.main_process_first(desc="preparing the images"):
            split, bad = prepare_images(
                split, image_column, skip_bad_images=data_args.bad_images == "skip", num_proc=data_args.num_proc
            )
        bad_images.extend(bad)
        split = split.select_columns([image_column, label_column])
        transform = ClassificationTransform(image_column, label_column, config.image_size, augment)
        return SampleDataset(split, transform, training_args.seed)

    augment = class_args.augmentation == "paper"
    train_dataset = prepare(train_images, data_args.max_train_samples, augment)
    eval_dataset = prepare(validation_images, data_args.max_eval_samples, augment=False)
    report_bad_images(bad_images, output_dir, training_args.should_save)

    # Model
    model = build_classifier(class_args, classes.names, training_args.attn_implementation)
    processor = image_processor(config.image_size, class_args.model_name_or_path)
    logger.info(
        "%s of %s on %d images of %d classes, chance is %.1f%%",
        *(class_args.mode, class_args.model_name_or_path or "random weights", len(train_dataset)),
        *(classes.num_classes, 100 / classes.num_classes),
    )
    logger.info("Speed: %s", training_args.describe_speed())

    # Training
    def build_trainer(model: nn.Module, train_dataset: Dataset, eval_dataset: Dataset) -> ClassificationTrainer:
        return ClassificationTrainer(
            model=model,
            args=training_args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            data_collator=MixingCollator(classes.num_classes),
            processing_class=processor,
            compute_metrics=TrainerMetrics(classes.num_classes),
            preprocess_logits_for_metrics=best_classes,
        )

    trainer = build_trainer(model, train_dataset, eval_dataset)
    if class_args.trains_on_features:
        train_features = extract_features(
            trainer, PooledFeatures(model), train_dataset, "Features of the training images"
        )
        eval_features = extract_features(
            trainer, PooledFeatures(model), eval_dataset, "Features of the validation images"
        )
        trainer = build_trainer(ClassificationHead(model), train_features, eval_features)
    result = trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model()
    if class_args.trains_on_features and training_args.should_save:
        model.save_pretrained(output_dir)  # over the head alone
    trainer.save_metrics("train", result.metrics)

    # Evaluation
    metrics = trainer.evaluate()
    trainer.log_metrics("eval", metrics)
    trainer.save_state()
    if training_args.should_save:
        results = {
            "top1": metrics["eval_top1"],
            "top5": metrics["eval_top5"],
            "mode": class_args.mode,
            "layer": getattr(config, "num_hidden_layers", None) if config.model_type != "swin" else "last stage",
            "layer_norm": class_args.layer_norm,
            "model_name_or_path": class_args.model_name_or_path,
            "dataset_name": data_args.dataset_name,
            "num_classes": classes.num_classes,
            "chance": 1 / classes.num_classes,
            "num_train_images": len(train_dataset),
            "num_validation_images": len(eval_dataset),
            "image_size": config.image_size,
            "augmentation": class_args.augmentation,
            "num_train_epochs": trainer.state.epoch,
            "global_batch_size": training_args.total_batch_size,
            "learning_rate": training_args.learning_rate,
            "seed": training_args.seed,
            "train_runtime": result.metrics["train_runtime"],
        }
        (output_dir / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        logger.info(
            "top-1 %.2f%%, top-5 %.2f%% on %d images; results.json and the classifier are in %s",
            *(100 * results["top1"], 100 * results["top5"], len(eval_dataset), output_dir),
        )


if __name__ == "__main__":
    run(main)
