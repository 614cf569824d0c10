"""KAMIM: keypoint-aware masked image modelling on HuggingFace (arXiv:2407.13873)."""

from .classifier import KamimViTClassifierConfig, KamimViTForImageClassification
from .keypoints import KeypointDetector
from .losses import masked_l1
from .masking import block_mask
from .modeling_kamim import (
    KamimForMaskedImageModeling,
    KamimMaskedImageModelingOutput,
    KamimSwinForMaskedImageModeling,
    KamimViTForMaskedImageModeling,
    build_config,
)
from .weighting import CellWeighting, cell_density, keypoint_weights

__version__ = "0.1.0"

__all__ = [
    "CellWeighting",
    "KamimForMaskedImageModeling",
    "KamimMaskedImageModelingOutput",
    "KamimSwinForMaskedImageModeling",
    "KamimViTClassifierConfig",
    "KamimViTForImageClassification",
    "KamimViTForMaskedImageModeling",
    "KeypointDetector",
    "block_mask",
    "build_config",
    "cell_density",
    "keypoint_weights",
    "masked_l1",
]
