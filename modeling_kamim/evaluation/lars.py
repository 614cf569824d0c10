"""LARS (arXiv:1708.03888), the optimizer of MAE's linear probe."""

from typing import Any

import torch
from torch import nn

from ..errors import InputError


def lars(learning_rate: float) -> tuple[type[torch.optim.Optimizer], dict[str, Any]]:
    """Return timm's LARS and its settings, those of MAE's linear probe.

    Raises:
        InputError: if timm is not installed.
    """
    try:
        from timm.optim import Lars
    except ImportError as error:
        raise InputError(
            "timm is not installed, whose LARS trains --protocol mae; run: pip install 'modeling-kamim[timm]'"
        ) from error
    return Lars, {"lr": learning_rate, "momentum": 0.9, "trust_coeff": 0.001}


def lars_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return parameter groups for timm's LARS: it adapts the rates of matrices, not of vectors, as MAE's code does.

    Without `always_adapt` timm's LARS is plain SGD where there is no weight decay.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay, "always_adapt": True},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0, "always_adapt": False},
    ]
