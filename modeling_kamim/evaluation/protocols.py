"""The protocols of evaluation, one row each, with their default settings."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

PROBED_BLOCK = 8
PAPER_TRAINING: Mapping[str, Any] = {
    "learning_rate": 5e-3,
    "weight_decay": 0.05,
    "num_train_epochs": 100,
    "warmup_steps": 0.1,
    "lr_scheduler_kwargs": {"min_lr": 2.5e-6, "warmup_lr_rate": 1e-6 / 5e-3},
}
# Table 10 of arXiv:2111.06377; the rate is for 256 images
MAE_TRAINING: Mapping[str, Any] = {
    "base_learning_rate": 0.1,
    "weight_decay": 0.0,
    "num_train_epochs": 90,
    "warmup_steps": 10 / 90,
    "lr_scheduler_kwargs": {"min_lr": 0.0, "warmup_lr_rate": 0.0},
}


@dataclass(frozen=True)
class Protocol:
    """How an encoder is evaluated.

    Args:
        title: in reports.
        layer: ViT block whose tokens are read, from 1; the last one for None, or where the encoder has fewer.
        augmentation: of the training images.
        pooled_norm: between features and linear layer.
        optimizer: "lars"; None for that of `--optim`.
        training: settings of `ProbingArguments` for what is not given there. `base_learning_rate` stands for
            `learning_rate`, for 256 images a step: the rate is multiplied by images per step / 256.
        is_cached: whether features are computed once, by any encoder, and nothing is saved but results.
        has_head: whether a linear layer is trained.
    """

    title: str
    layer: int | None = PROBED_BLOCK
    augmentation: Literal["none", "paper", "crop_flip"] = "paper"
    pooled_norm: Literal["none", "layernorm", "batchnorm"] = "none"
    optimizer: Literal["lars"] | None = None
    training: Mapping[str, Any] = field(default_factory=lambda: PAPER_TRAINING)
    is_cached: bool = False
    has_head: bool = True


PROTOCOLS = {
    "paper": Protocol("linear probe (paper)"),
    "paper_layernorm": Protocol("linear probe (paper, LayerNorm)", pooled_norm="layernorm"),
    "mae": Protocol("linear probe (MAE)", None, "crop_flip", "batchnorm", "lars", MAE_TRAINING),
    "cached": Protocol("linear probe (cached)", augmentation="none", is_cached=True),
    "knn": Protocol("k-NN", augmentation="none", is_cached=True, has_head=False),
    "finetune": Protocol("fine-tuning", layer=None),
}
