"""Compute features of frozen encoders once for a whole data set."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.data import DataLoader, default_collate
from tqdm import tqdm
from transformers import PreTrainedModel, SwinForImageClassification

from ..errors import InputError
from ..models.classifier import KamimViTForImageClassification
from ..training.batches import prepare_batch
from ..training.trainer import PixelTrainer


@dataclass(frozen=True)
class FeatureDataset(torch.utils.data.Dataset):
    """Features and labels of the images of a data set, in memory.

    Args:
        features: `(num_images, ...)`, float32.
        labels: `(num_images,)`, int64.
        content: identifies the images; the features themselves differ in rounding between machines.
    """

    features: torch.Tensor
    labels: torch.Tensor
    content: str = ""

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
        """Return logits `(batch_size, num_labels)` for features `(batch_size, dimension)`."""
        return {"logits": self.head(self.norm(features))}


class PooledFeatures(nn.Module):
    """What a classifier does up to its head: `(batch_size, dimension)` features for normalized pixels.

    Args:
        classifier: of `build_classifier`.
    """

    def __init__(self, classifier: PreTrainedModel):
        super().__init__()
        self.classifier = classifier

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        if isinstance(self.classifier, KamimViTForImageClassification):
            return self.classifier.pooled_features(pixel_values)
        return self.classifier.swin(pixel_values).pooler_output


def evaluation_loader(trainer: PixelTrainer, dataset: torch.utils.data.Dataset) -> DataLoader:
    """Return a loader of a data set in order, shared by the processes. Trainer would give its loader of another one."""
    loader = DataLoader(
        dataset,
        batch_size=trainer.args.eval_batch_size,
        num_workers=trainer.args.dataloader_num_workers,
        collate_fn=default_collate,
    )
    return trainer.accelerator.prepare_data_loader(loader)


@torch.no_grad()
def feature_batches(
    trainer: PixelTrainer, encoder: Callable[[torch.Tensor], torch.Tensor], batches: Iterable[dict[str, torch.Tensor]]
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield features, float32, and labels of the same batch of every process, on the device.

    Args:
        trainer: for its device, precision and normalization.
        encoder: from normalized pixels to features.
        batches: of `evaluation_loader`, with pixel_values and labels.
    """
    for batch in batches:
        batch = prepare_batch(batch, trainer.processing_class, trainer.args.device)
        with trainer.accelerator.autocast():
            features = encoder(batch["pixel_values"])
        yield trainer.accelerator.gather_for_metrics((features.float(), batch["labels"]))


def extract_features(
    trainer: PixelTrainer, encoder: nn.Module, dataset: torch.utils.data.Dataset, description: str
) -> FeatureDataset:
    """Return features of a whole data set, over all processes and in the trainer's precision.

    Args:
        trainer: for its loader, device, precision and normalization.
        encoder: from normalized pixels to features.
        dataset: without augmentation; its samples hold pixel_values and labels.
        description: shown by the progress bar.

    Raises:
        InputError: if a feature is not finite.
    """
    encoder = encoder.to(trainer.args.device).eval()
    loader = evaluation_loader(trainer, dataset)
    batches = tqdm(loader, desc=description, unit="batch", disable=not trainer.is_local_process_zero())
    found = ((part.cpu(), classes.cpu()) for part, classes in feature_batches(trainer, encoder, batches))
    features, labels = zip(*found, strict=True)
    content = getattr(dataset, "content", "")
    return FeatureDataset(check_finite_features(torch.cat(features)), torch.cat(labels), content)


def check_finite_features(features: torch.Tensor, rows: Sequence[int] | None = None) -> torch.Tensor:
    """Return the features `(num_images, ...)` as they are.

    Args:
        rows: numbers of the images in their data set, for the message; from 0 where None.

    Raises:
        InputError: if there is NaN or infinity in them, which every classifier would take for some class.
    """
    is_bad = ~torch.isfinite(features).flatten(1).all(dim=1)
    if is_bad.any():
        first = int(is_bad.nonzero()[0])
        raise InputError(
            f"the features of {int(is_bad.sum())} of {len(features)} images are NaN or infinite, the first of them "
            f"image {first if rows is None else rows[first]}; try --precision fp32, and look at the checkpoint"
        )
    return features
