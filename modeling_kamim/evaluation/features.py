"""Features of frozen encoders: of any pretrained encoder and each of its layers, computed once for a whole data set."""

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.data import DataLoader, default_collate
from tqdm import tqdm
from transformers import AutoConfig, AutoModel, PreTrainedModel, SwinForImageClassification

from ..classifier import KamimViTForImageClassification
from ..errors import InputError
from ..modeling_kamim import build_config, load_whole, loading_failure
from ..trainer import PixelTrainer
from .protocols import PROBED_BLOCK

POOLINGS = ("mean", "cls")


class Backbone(nn.Module):
    """Callable from pixels to the pooled features of every layer of an encoder.

    Layers are the outputs of the blocks (of Swin and convolutional networks: of the stages), as they are, and at last
    "final": the output of the encoder, behind its own LayerNorm. Features of narrower layers are padded with zeros.

    Args:
        model: an encoder of transformers that returns `hidden_states` and `last_hidden_state`.
        pooling: "mean" over the patch tokens (CLS and registers dropped), as in the paper, or the "cls" token.
    """

    def __init__(self, model: PreTrainedModel, pooling: str = "mean"):
        super().__init__()
        if pooling not in POOLINGS:
            raise InputError(f"pooling is {pooling!r}; allowed: {', '.join(POOLINGS)}")
        self.model = model
        self.pooling = pooling

    @property
    def image_size(self) -> int:
        """Side of the input in pixels."""
        size = getattr(self.model.config, "image_size", None)
        if size is None and self.model.config.model_type == "timm_wrapper":
            size = self.model.config.pretrained_cfg.get("input_size", (3, 224, 224))[-1]
        return (size if isinstance(size, int) else max(size)) if size else 224

    def default_layer(self, layer: int | None) -> int:
        """Place in the result of a block, counted from 1; block 8 of a ViT or the final output where None.

        Raises:
            InputError: if there is no such block.
        """
        depth = getattr(self.model.config, "num_hidden_layers", 0)
        if layer is not None and not 1 <= layer <= depth:
            raise InputError(f"layer is {layer}; the encoder has blocks 1 to {depth}")
        if layer is None:
            layer = PROBED_BLOCK if depth > PROBED_BLOCK else depth
        return layer - 1 if layer < depth else -1

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """`(batch_size, layers, dimension)` for normalised pixels `(batch_size, channels, height, width)`."""
        outputs = self.model(pixel_values, output_hidden_states=True)
        is_timm = self.model.config.model_type == "timm_wrapper"
        blocks = outputs.hidden_states[0 if is_timm else 1 :]  # the others begin with the embeddings
        pooled = [self._pool(layer) for layer in (*blocks, outputs.last_hidden_state)]
        width = max(features.shape[1] for features in pooled)
        return torch.stack([nn.functional.pad(features, (0, width - features.shape[1])) for features in pooled], dim=1)

    def _pool(self, layer: torch.Tensor) -> torch.Tensor:
        if layer.ndim == 4:
            if self.pooling == "cls":
                raise InputError(f"{self.model.config.model_type} gives maps without a CLS token; use --pooling mean")
            return layer.mean(dim=(2, 3))
        num_prefix_tokens = layer.shape[1] - math.isqrt(layer.shape[1]) ** 2
        if self.pooling == "mean":
            return layer[:, num_prefix_tokens:].mean(dim=1)
        if num_prefix_tokens == 0:
            raise InputError(f"{self.model.config.model_type} has no CLS token; use --pooling mean")
        return layer[:, 0]


def load_backbone(
    name_or_path: str | None, model_type: str, model_size: str, image_size: int | None, pooling: str
) -> Backbone:
    """Backbone of a checkpoint, or with random weights of one of this package's sizes.

    Args:
        name_or_path: directory or Hub id of an encoder (ViT, Swin, DINOv2, ViT-MAE, timm, ...); None for random
            weights.
        model_type, model_size, image_size: of the random weights; a given image_size must be the checkpoint's.

    Raises:
        InputError: if it cannot be loaded, or its weights are not finite.
    """
    if name_or_path is None:
        return Backbone(AutoModel.from_config(build_config(model_type, model_size, image_size or 192)), pooling)
    try:
        config = AutoConfig.from_pretrained(name_or_path, trust_remote_code=False)
    except (OSError, ValueError, ImportError) as error:
        raise InputError(f"cannot load {name_or_path!r}: {loading_failure(error)}") from error
    # A masked autoencoder drops tokens at random unless it is told not to.
    settings = {"mask_ratio": 0.0} if config.model_type == "vit_mae" else {}
    model, _ = load_whole(AutoModel, name_or_path, may_be_new=("pooler",), **settings)  # no pooler is read
    backbone = Backbone(model, pooling)
    if image_size not in (None, backbone.image_size):
        raise InputError(f"image_size is {image_size}, the checkpoint's is {backbone.image_size}; they must agree")
    return backbone


@dataclass(frozen=True)
class FeatureDataset(torch.utils.data.Dataset):
    """Features and labels of the images of a data set, in memory.

    Args:
        features: `(num_images, ...)`, float32.
        labels: `(num_images,)`, int64.
        content: what tells the images from others; features themselves differ in rounding between machines.
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
        """logits `(batch_size, num_labels)` for features `(batch_size, dimension)`."""
        return {"logits": self.head(self.norm(features))}


class PooledFeatures(nn.Module):
    """What a classifier does up to its head: `(batch_size, dimension)` features for normalised pixels.

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
    """Loader of a data set in order, shared by the processes; the Trainer's own are cached, whatever the data set."""
    loader = DataLoader(
        dataset,
        batch_size=trainer.args.eval_batch_size,
        num_workers=trainer.args.dataloader_num_workers,
        collate_fn=default_collate,
    )
    return trainer.accelerator.prepare_data_loader(loader)


@torch.no_grad()
def extract_features(
    trainer: PixelTrainer, encoder: nn.Module, dataset: torch.utils.data.Dataset, description: str
) -> FeatureDataset:
    """Features of a whole data set, over all processes and in the trainer's precision.

    Args:
        trainer: for its loader, device, precision and normalisation.
        encoder: from normalised pixels to features.
        dataset: without augmentation; its samples hold pixel_values and labels.
        description: shown by the progress bar.

    Raises:
        InputError: if a feature is not finite.
    """
    encoder = encoder.to(trainer.args.device).eval()
    features, labels = [], []
    loader = evaluation_loader(trainer, dataset)
    for batch in tqdm(loader, desc=description, unit="batch", disable=not trainer.is_local_process_zero()):
        batch = trainer._prepare_inputs(batch)
        with trainer.accelerator.autocast():
            pooled = encoder(batch["pixel_values"])
        pooled, classes = trainer.accelerator.gather_for_metrics((pooled.float(), batch["labels"]))
        features.append(pooled.cpu())
        labels.append(classes.cpu())
    content = getattr(dataset, "content", "")
    return FeatureDataset(check_finite_features(torch.cat(features)), torch.cat(labels), content)


def check_finite_features(features: torch.Tensor) -> torch.Tensor:
    """The features `(num_images, ...)` as they are.

    Raises:
        InputError: if there is NaN or infinity in them, which every classifier would take for some class.
    """
    is_bad = ~torch.isfinite(features).flatten(1).all(dim=1)
    if is_bad.any():
        raise InputError(
            f"the features of {int(is_bad.sum())} of {len(features)} images are NaN or infinite, the first of them "
            f"image {int(is_bad.nonzero()[0])}; try --precision fp32, and look at the checkpoint"
        )
    return features
