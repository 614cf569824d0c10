"""The models that the demo shows."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

import cv2
import numpy as np
import torch

from ..analysis.encoders import AnalysisRefused, Encoder, load_decoder, load_encoder
from ..errors import InputError
from ..models.masked_image_modeling import KamimForMaskedImageModeling


@dataclass(frozen=True)
class DemoModel:
    """An encoder, and its decoder where the checkpoint has one.

    Args:
        encoder: takes gray or RGB.
        decoder: None where nothing can be filled in.
        refusal: why there is no decoder.
    """

    encoder: Encoder
    decoder: KamimForMaskedImageModeling | None
    refusal: str = ""

    @property
    def name(self) -> str:
        """As the page calls it."""
        return self.encoder.name

    def seen(self, photograph: np.ndarray) -> np.ndarray:
        """Return a photograph in the channels and at the size that the model takes, `(height, width, channels)`."""
        if self.encoder.num_channels == 1:
            photograph = cv2.cvtColor(photograph, cv2.COLOR_RGB2GRAY)[..., None]
        return self.encoder.view(photograph)


def load_models(checkpoints: Sequence[str], device: torch.device) -> list[DemoModel]:
    """Load checkpoints, directories or Hub ids.

    Raises:
        InputError: if one cannot be loaded, or takes other images than photographs.
    """
    return [_load(name, checkpoint, device) for name, checkpoint in zip(_names(checkpoints), checkpoints, strict=True)]


def _load(name: str, checkpoint: str, device: torch.device) -> DemoModel:
    encoder = load_encoder(name, checkpoint, device)
    if encoder.num_channels not in (1, 3):
        raise InputError(f"{checkpoint} takes {encoder.num_channels} channels; the demo shows photographs, gray or RGB")
    try:
        return DemoModel(encoder, load_decoder(encoder))
    except AnalysisRefused as refusal:
        return DemoModel(encoder, None, str(refusal))


def _names(checkpoints: Sequence[str]) -> list[str]:
    """Return the last parts of paths and ids, and as much before them as tells them apart."""
    parts = [PurePath(checkpoint).parts for checkpoint in checkpoints]
    for length in range(1, max(map(len, parts), default=1) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise InputError("a checkpoint is named twice; name each once")
