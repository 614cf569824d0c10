"""Train a classifier on an encoder with HF Trainer, score it and save it."""

import contextlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from torch import nn
from transformers import AutoConfig, BaseImageProcessor, PreTrainedConfig

from ..data.augmentation import MixingCollator
from ..data.loading import DataArguments
from ..data.samples import SampleDataset
from ..errors import InputError
from ..hub.cards import classifier_card
from ..privacy import public_dataset, public_name
from ..training.checkpoint_page import CheckpointPage
from ..training.resume import find_checkpoint, run_settings
from ..training.trainer import ClassificationTrainer
from .classifiers import build_classifier, classifier_config, encoder_config
from .features import ClassificationHead, PooledFeatures, extract_features
from .finetuning import ExponentialMovingAverage, parameter_groups
from .lars import lars, lars_groups
from .metrics import TrainerMetrics, best_classes
from .results import checkpoint_rows, weights_sha256
from .settings import ClassificationArguments, ProbingArguments


class TrainedEvaluation:
    """Linear probes of a ViT or Swin by HF Trainer, and fine-tuning.

    Args:
        data_args, class_args, training_args: what is evaluated, and how.
        settings: YAML of what was given, for the page of the classifier.
        checkpoint: to resume from; of several seeds each finds its own.

    Raises:
        InputError: if the checkpoint does not allow what is asked for, or a package is not installed.
    """

    def __init__(
        self,
        data_args: DataArguments,
        class_args: ClassificationArguments,
        training_args: ProbingArguments,
        settings: str,
        checkpoint: str | None,
    ):
        self.data_args, self.class_args, self.checkpoint = data_args, class_args, checkpoint
        self.encoder_config, self.config = encoder_config(class_args), classifier_config(class_args)
        self.image_size, name = self.encoder_config.image_size, class_args.model_name_or_path
        self.encoder_name = public_name(name) if name else None
        self.encoder_sha256 = weights_sha256(Path(name).expanduser()) if name else None  # None for weights of the Hub
        self.optimizer = None
        self.parameter_groups: Callable[[nn.Module], list[dict[str, Any]]] | None = None
        if class_args.recipe.optimizer == "lars":
            self.optimizer = lars(training_args.learning_rate)
            self.parameter_groups = partial(lars_groups, weight_decay=training_args.weight_decay)
        elif class_args.layer_decay < 1:
            rates = (training_args.learning_rate, training_args.weight_decay, class_args.layer_decay)
            self.parameter_groups = lambda model: parameter_groups(model, *rates)
        if class_args.recipe.pooled_norm == "batchnorm":
            _drop_incomplete_batches(training_args)
        self.page = CheckpointPage(settings, training_args, public_dataset(data_args.dataset_name))
        self.trainer: ClassificationTrainer | None = None

    def rows(
        self,
        train_dataset: SampleDataset,
        eval_dataset: SampleDataset,
        args: ProbingArguments,
        processor: BaseImageProcessor,
        class_names: list[str],
    ) -> list[dict[str, Any]]:
        """Train and save a classifier, and return its row of results."""
        class_args, num_classes = self.class_args, len(class_names)
        model = build_classifier(class_args, class_names, args.attn_implementation)
        if not class_args.has_several_seeds:
            self.page.ask_hub(self._card(model.config))
        average = ExponentialMovingAverage(class_args.ema_decay) if class_args.ema_decay else None
        build = partial(
            ClassificationTrainer,
            args=args,
            data_collator=MixingCollator(num_classes, class_args.augmentation),
            processing_class=processor,
            compute_metrics=TrainerMetrics(num_classes),
            preprocess_logits_for_metrics=best_classes,
            parameter_groups=self.parameter_groups,
            run_settings=run_settings(
                *(self.data_args, class_args, args),
                num_train_images=len(train_dataset),
                encoder_sha256=self.encoder_sha256,
            ),
            callbacks=[average] if average else None,
            optimizer_cls_and_kwargs=self.optimizer,
        )
        trainer = build(model=model, train_dataset=train_dataset, eval_dataset=eval_dataset)
        if class_args.trains_on_features:
            encoder, head = PooledFeatures(model), ClassificationHead(model)
            train_features = extract_features(trainer, encoder, train_dataset, "Features of the training images")
            eval_features = extract_features(trainer, encoder, eval_dataset, "Features of the validation images")
            trainer = build(model=head, train_dataset=train_features, eval_dataset=eval_features)
        if not class_args.has_several_seeds:
            self.page.write(self._card(model.config))
        loss = self._train(trainer, average)
        if class_args.trains_on_features and args.should_save:
            model.save_pretrained(args.output_dir)  # over the head alone
        self.trainer = trainer
        return [self._row(trainer, loss)]

    def _train(self, trainer: ClassificationTrainer, average: ExponentialMovingAverage | None) -> float:
        """Train, save and evaluate a classifier, and return its loss on the validation images."""
        checkpoint = find_checkpoint(trainer.args) if self.class_args.has_several_seeds else self.checkpoint
        result = trainer.train(resume_from_checkpoint=checkpoint)
        with average.applied(trainer.model) if average else contextlib.nullcontext():
            trainer.save_model()
            evaluation = trainer.evaluate()
        trainer.save_metrics("train", result.metrics)
        trainer.log_metrics("eval", evaluation)
        trainer.save_state()
        return evaluation["eval_loss"]

    def _row(self, trainer: ClassificationTrainer, loss: float) -> dict[str, Any]:
        class_args, args = self.class_args, trainer.args
        is_swin = self.config.model_type == "swin"
        return {
            "protocol": class_args.protocol_name,
            "layer": "last stage" if is_swin else self.config.num_hidden_layers,
            "pooling": "mean",
            "layer_norm": class_args.pooled_norm == "layernorm",
            "optimizer": class_args.recipe.optimizer or str(args.optim.value),
            "learning_rate": args.learning_rate,
            "global_batch_size": args.total_batch_size,
            "num_train_epochs": trainer.state.epoch,
            "layer_decay": class_args.layer_decay,
            "drop_path": class_args.drop_path,
            "ema_decay": class_args.ema_decay,
            "loss": loss,
            **trainer.compute_metrics.latest,
        }

    def _card(self, config: PreTrainedConfig) -> ModelCard:
        """Return the card of the classifier, without results."""
        return classifier_card(self.page.run, config, self.class_args.mode, self.encoder_name)

    def write_page(self, output_dir: Path) -> None:
        """Write the card of the classifier with its results."""
        if self.trainer is not None and not self.class_args.has_several_seeds:
            rows = checkpoint_rows([output_dir], output_dir)
            self.page.write(self._card(AutoConfig.from_pretrained(output_dir)), rows, self.trainer.hub_model_id)


def _drop_incomplete_batches(args: ProbingArguments) -> None:
    """Leave out a last batch that is smaller, as MAE's code does: few images give BatchNorm poor statistics."""
    if args.per_device_train_batch_size < 2:
        raise InputError(
            f"per_device_train_batch_size is {args.per_device_train_batch_size}; protocol mae has a BatchNorm, which "
            "needs batches of at least 2 images"
        )
    args.dataloader_drop_last = True
