"""Features of a frozen encoder, computed once, and the head that is trained on them."""

import torch
from torch import nn
from tqdm import tqdm
from transformers import PreTrainedModel, SwinForImageClassification

from .classifier import KamimViTForImageClassification
from .data import SampleDataset
from .trainer import PixelTrainer


class FeatureDataset(torch.utils.data.Dataset):
    """Features and labels of the images of a data set, in memory.

    Args:
        features: `(num_images, dimension)`, float32.
        labels: `(num_images,)`, int64.
    """

    def __init__(self, features: torch.Tensor, labels: torch.Tensor):
        self.features = features
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"features": self.features[index], "labels": self.labels[index]}


class ClassificationHead(nn.Module):
    """What a classifier does behind its pooled features; shares its parameters, so that training it trains them.

    Args:
        classifier: of `build_classifier`.
    """

    def __init__(self, classifier: PreTrainedModel):
        super().__init__()
        if isinstance(classifier, SwinForImageClassification):
            self.norm, self.head = nn.Identity(), classifier.classifier
        else:
            self.norm, self.head = classifier.norm, classifier.head

    def forward(self, features: torch.Tensor) -> dict[str, torch.Tensor]:
        """logits `(batch_size, num_labels)` for features `(batch_size, dimension)`."""
        return {"logits": self.head(self.norm(features))}


def pooled_features(classifier: PreTrainedModel, pixel_values: torch.Tensor) -> torch.Tensor:
    """`(batch_size, dimension)` features that the head of a classifier reads, for normalised pixels."""
    if isinstance(classifier, KamimViTForImageClassification):
        return classifier.pooled_features(pixel_values)
    return classifier.swin(pixel_values).pooler_output


@torch.no_grad()
def extract_features(trainer: PixelTrainer, dataset: SampleDataset, description: str) -> FeatureDataset:
    """Features of a whole data set, over all processes and in the trainer's precision.

    Args:
        trainer: of a classifier, for its loader, device, precision and normalisation.
        dataset: without augmentation.
        description: shown by the progress bar.
    """
    model = trainer.model.to(trainer.args.device).eval()
    features, labels = [], []
    loader = trainer.get_eval_dataloader(dataset)
    for batch in tqdm(loader, desc=description, unit="batch", disable=not trainer.is_local_process_zero()):
        batch = trainer._prepare_inputs(batch)
        with trainer.compute_loss_context_manager():
            pooled = pooled_features(model, batch["pixel_values"])
        pooled, classes = trainer.accelerator.gather_for_metrics((pooled.float(), batch["labels"]))
        features.append(pooled.cpu())
        labels.append(classes.cpu())
    return FeatureDataset(torch.cat(features), torch.cat(labels))
