"""Score an encoder by features that are computed once: nearest neighbors, and linear probes."""

from typing import Any

import torch
from torch import nn
from transformers import BaseImageProcessor

from ..data.augmentation import ClassificationTransform
from ..data.samples import SampleDataset
from ..models.backbone import load_backbone
from ..training.trainer import ClassificationTrainer
from .features import FeatureDataset, extract_features
from .metrics import best_classes, classification_metrics
from .neighbors import NUM_NEIGHBORS, nearest_neighbors
from .probing import LinearProbe, probe
from .protocols import PROBED_BLOCK
from .settings import ClassificationArguments, ProbingArguments


class CachedEvaluation:
    """The protocols cached and knn, of one layer of any encoder or of all.

    Args:
        class_args: which encoder, and which of its layers.

    Raises:
        InputError: if the encoder cannot be loaded, or has no such layer.
    """

    trainer = None  # no classifier is trained that could be published

    def __init__(self, class_args: ClassificationArguments):
        self.class_args = class_args
        self.backbone = load_backbone(
            class_args.model_name_or_path,
            class_args.model_type,
            class_args.model_size,
            class_args.image_size,
            class_args.pooling,
            class_args.config_overrides,
        )
        self.encoder_config, self.image_size = self.backbone.model.config, self.backbone.image_size
        self._place = self.backbone.place_of(class_args.layer, PROBED_BLOCK)
        self._features: dict[str, FeatureDataset] = {}

    def rows(
        self,
        train_dataset: SampleDataset,
        eval_dataset: SampleDataset,
        args: ProbingArguments,
        processor: BaseImageProcessor,
        class_names: list[str],
    ) -> list[dict[str, Any]]:
        """Return a row for each layer and protocol."""
        trainer = ClassificationTrainer(model=self.backbone, args=args, processing_class=processor)
        train = self._features_of(train_dataset, trainer, "Features of the training images")
        validation = self._features_of(eval_dataset, trainer, "Features of the validation images")
        names = [*map(str, range(1, train.features.shape[1])), "final"]
        layers = [self._place] if self.class_args.probe_layers == "default" else list(range(len(names)))
        features, queries = train.features[:, layers], validation.features[:, layers]
        num_classes = len(class_names)

        def row(protocol: str, place: int, scores: torch.Tensor, **facts: Any) -> dict[str, Any]:
            facts |= {"layer": names[layers[place]], "pooling": self.class_args.pooling, "layer_norm": False}
            found = classification_metrics(best_classes(scores).numpy(), validation.labels.numpy(), num_classes)
            return {"protocol": protocol, **facts, **found}

        neighbors: dict[str, Any] = {"optimizer": None, "learning_rate": None, "num_neighbors": NUM_NEIGHBORS}
        if self.class_args.low_shot is None:
            neighbors["seed"] = None  # nothing is drawn
        probed = None
        if self.class_args.recipe.has_head:
            probed = probe(LinearProbe(seed=args.seed), features, train.labels, queries, num_classes)
        rows = []
        for place in range(len(layers)):
            if probed is not None:
                logits, rate = probed.logits[place], probed.learning_rates[place]
                loss = nn.functional.cross_entropy(logits, validation.labels).item()
                facts = {"optimizer": "adam", "learning_rate": "chosen", "chosen_learning_rate": rate, "loss": loss}
                held_out = probed.held_out_accuracy[place].max().item()  # NaN where no class has an image to spare
                rows.append(row("cached", place, logits, held_out_top1=held_out, **facts))
            votes = nearest_neighbors(features[:, place], train.labels, queries[:, place], num_classes)
            rows.append(row("knn", place, votes, **neighbors))
        return rows

    def _features_of(self, samples: SampleDataset, trainer: ClassificationTrainer, description: str) -> FeatureDataset:
        """Return features of every layer; those of the same plain images are not computed again for another seed."""
        transform = samples.transform
        if not isinstance(transform, ClassificationTransform) or transform.augmentation != "none":
            return extract_features(trainer, self.backbone, samples, description)
        images = samples.rows._fingerprint
        if images not in self._features:
            self._features[images] = extract_features(trainer, self.backbone, samples, description)
        return self._features[images]
