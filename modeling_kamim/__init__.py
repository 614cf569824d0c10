"""KAMIM: keypoint-aware masked image modeling on HuggingFace (arXiv:2407.13873)."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api.functions import embed as embed
    from .api.functions import evaluate as evaluate
    from .api.functions import pretrain as pretrain
    from .data.photographs import load_photographs as load_photographs
    from .models.classifier import KamimViTClassifierConfig as KamimViTClassifierConfig
    from .models.classifier import KamimViTForImageClassification as KamimViTForImageClassification
    from .models.masked_image_modeling import KamimForMaskedImageModeling as KamimForMaskedImageModeling
    from .models.masked_image_modeling import KamimMaskedImageModelingOutput as KamimMaskedImageModelingOutput
    from .models.masked_image_modeling import KamimSwinForMaskedImageModeling as KamimSwinForMaskedImageModeling
    from .models.masked_image_modeling import KamimViTForMaskedImageModeling as KamimViTForMaskedImageModeling
    from .models.sizes import build_config as build_config
    from .objective.density import cell_density as cell_density
    from .objective.keypoints import KeypointDetector as KeypointDetector
    from .objective.losses import masked_loss as masked_loss
    from .objective.masking import block_mask as block_mask
    from .objective.weighting import CellWeighting as CellWeighting
    from .objective.weighting import keypoint_weights as keypoint_weights

__version__ = "0.1.0"

_MODULES = {
    "CellWeighting": "objective.weighting",
    "KamimForMaskedImageModeling": "models.masked_image_modeling",
    "KamimMaskedImageModelingOutput": "models.masked_image_modeling",
    "KamimSwinForMaskedImageModeling": "models.masked_image_modeling",
    "KamimViTClassifierConfig": "models.classifier",
    "KamimViTForImageClassification": "models.classifier",
    "KamimViTForMaskedImageModeling": "models.masked_image_modeling",
    "KeypointDetector": "objective.keypoints",
    "block_mask": "objective.masking",
    "build_config": "models.sizes",
    "cell_density": "objective.density",
    "embed": "api.functions",
    "evaluate": "api.functions",
    "load_photographs": "data.photographs",
    "keypoint_weights": "objective.weighting",
    "masked_loss": "objective.losses",
    "pretrain": "api.functions",
}
__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
