"""Score the features during pretraining: a linear probe and nearest neighbors every few steps."""

import torch
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedModel

from ..errors import InputError
from ..models.backbone import Backbone
from ..training.interlude import Interlude
from ..training.trainer import PixelTrainer
from .features import FeatureDataset, check_finite_features, evaluation_loader, feature_batches
from .neighbors import nearest_neighbors
from .probing import LinearProbe, probe
from .protocols import PROBED_BLOCK

RECIPE = LinearProbe(learning_rates=(1e-3, 1e-2), num_epochs=20)


class OnlineProbe(Interlude):
    """Logs `probe_top1` and `knn_top1`, in [0, 1], of a labelled data set while a model is pretrained.

    They are scored with the weights of that step: before the first, every `probe_steps` optimizer steps, and after the
    last one. The training is the same without the probe, see `Interlude`. Processes share the images, and then all
    train the same small probe.

    Features are the means of the patch tokens, of ViT of one block (the last one behind the encoder's LayerNorm), of
    Swin of the last stage: those of `kamim evaluate --mode linear_probe`.

    Args:
        trainer: of the pretraining; add the probe with `trainer.add_callback`.
        train_dataset: the probe's training images, without augmentation: samples with pixel_values, uint8, and labels.
        validation_dataset: images to score, like `train_dataset`.
        num_classes: of the labels.
        probe_steps: optimizer steps from one score to the next.
        layer: block of a ViT, from 1; by default block 8, or the last one of a shallower model.
        recipe: of the linear probe.

    Raises:
        InputError: if there are no images, or a number is out of range.
    """

    def __init__(
        self,
        trainer: PixelTrainer,
        train_dataset: Dataset,
        validation_dataset: Dataset,
        num_classes: int,
        probe_steps: int,
        layer: int | None = None,
        recipe: LinearProbe = RECIPE,
    ):
        super().__init__(trainer, probe_steps, "probe_steps")
        self.num_classes = num_classes
        self.layer = layer_index(_unwrapped(trainer), layer)
        self.recipe = recipe
        if 0 in (len(train_dataset), len(validation_dataset)):  # type: ignore[arg-type]
            raise InputError("the online probe has no images; it needs training and validation images with labels")
        self._loaders = [evaluation_loader(trainer, dataset) for dataset in (train_dataset, validation_dataset)]

    def act(self, model: PreTrainedModel, step: int) -> None:
        self.trainer.log(self.score())

    def score(self) -> dict[str, float]:
        """Return `probe_top1` and `knn_top1` of the model as it is now, in [0, 1]."""
        backbone = Backbone(_unwrapped(self.trainer).base_model).eval()
        train, validation = (self._features(backbone, loader) for loader in self._loaders)
        logits = probe(self.recipe, train.features, train.labels, validation.features, self.num_classes).logits[0]
        features, queries = train.features[:, 0], validation.features[:, 0]
        votes = nearest_neighbors(features, train.labels, queries, self.num_classes)
        hits = {"probe_top1": logits.argmax(dim=1), "knn_top1": votes.argmax(dim=1)}
        return {name: (found == validation.labels).float().mean().item() for name, found in hits.items()}

    def _features(self, backbone: Backbone, loader: DataLoader) -> FeatureDataset:
        """Return features `(num_images, 1, dimension)` of all processes' images, on the device."""
        batches = feature_batches(self.trainer, lambda pixels: backbone(pixels)[:, self.layer, None], loader)
        features, labels = zip(*batches, strict=True)
        return FeatureDataset(check_finite_features(torch.cat(features)), torch.cat(labels))


def layer_index(model: PreTrainedModel, layer: int | None) -> int:
    """Return where a `Backbone` has the features of a block of a ViT, from 1, or of the last stage of a Swin.

    Raises:
        InputError: if the model has no such block.
    """
    if model.config.model_type == "swin":
        if layer is not None:
            raise InputError(f"layer is {layer}, but layers are for ViT; of Swin the last stage is read")
        return -1
    return Backbone(model.base_model).place_of(layer, PROBED_BLOCK)


def _unwrapped(trainer: PixelTrainer) -> PreTrainedModel:
    return trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
