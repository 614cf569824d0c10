"""Attention of an encoder's last block as a density source, the idea of AttG (arXiv:2402.15172)."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from ...errors import InputError, first_line
from ...limits import height_and_width
from .strength import check_percentile, scaled
from .weights import as_batch, device, model_digest, model_folder, model_settings

_IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


@dataclass(frozen=True)
class Attention:
    """Callable from images of one size to the attention that their patches get, mean over the heads, see `scaled`.

    It is that of CLS where the encoder has one, else the mean over all patches.

    Args:
        model: directory or Hub id of an encoder, as ViT, DeiT, DINOv2 or ViT-MAE.
        percentile: of the image that becomes 1, in (0, 100].

    Raises:
        InputError: for other parameters, where there is no such model, or it has no global attention.
    """

    model: str = ""
    percentile: float = 95.0

    def __post_init__(self):
        check_percentile("attention", self.percentile)
        config = model_settings(self._folder)
        sides = [config.get(name) for name in ("image_size", "patch_size", "num_attention_heads")]
        if None in sides or {"depths", "window_size"} & config.keys():
            raise self._unfit(f"a {config.get('model_type')}, without attention among all patches")
        if config.get("num_channels", 3) != 3:
            raise self._unfit(f"an encoder of {config['num_channels']} channels, and not of RGB")

    def _unfit(self, what: str) -> InputError:
        return InputError(f"model of attention is {self.model!r}: {what}; give a ViT, DeiT, DINOv2 or ViT-MAE")

    @cached_property
    def _folder(self) -> Path:
        return model_folder("attention", self.model)

    @cached_property
    def digest(self) -> str:
        """Of the weights."""
        return model_digest(self._folder)

    @cached_property
    def _encoder(self) -> Any:
        from transformers import AutoModel

        given: dict[str, Any] = {"use_safetensors": True, "trust_remote_code": False, "dtype": torch.float32}
        if model_settings(self._folder)["model_type"] == "vit_mae":
            given["mask_ratio"] = 0.0  # it would drop three quarters of the patches
        try:
            encoder, info = AutoModel.from_pretrained(
                self._folder, attn_implementation="eager", output_loading_info=True, **given
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise self._unfit(f"it cannot be loaded ({first_line(error)})") from error
        if missing := [name for name in sorted(info["missing_keys"]) if "pooler" not in name]:
            raise self._unfit(f"it lacks weights ({missing[0]})")
        return encoder.eval().to(device())

    def __call__(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return the map `(height, width)`, float32 in [0, 1], of each image `(height, width, 3)`, uint8."""
        height, width = images[0].shape[:2]
        shares = self._shares(self._last_attention(images)).float().cpu().numpy()
        return [scaled(cv2.resize(share, (width, height)), self.percentile) for share in shares]

    @torch.inference_mode()
    def _last_attention(self, images: Sequence[np.ndarray]) -> torch.Tensor:
        """Return the attention of the last block, `(batch_size, heads, tokens, tokens)`."""
        encoder, (height, width) = self._encoder, height_and_width(self._encoder.config.image_size)
        normal = {**_IMAGENET, **model_settings(self._folder, "preprocessor_config.json")}
        mean, std = (torch.tensor(normal[key], device=device()).view(-1, 1, 1) for key in _IMAGENET)
        pixels = (as_batch([cv2.resize(image, (width, height)) for image in images]) - mean) / std
        order = {}
        if encoder.config.model_type == "vit_mae":  # it shuffles the patches by these numbers
            order["noise"] = torch.arange(self._num_patches, device=device()).repeat(len(images), 1)
        attentions = encoder(pixel_values=pixels, output_attentions=True, **order).attentions
        if not attentions or attentions[-1].shape[-1] < self._num_patches or len(attentions[-1]) != len(images):
            raise self._unfit("it gives no attention among all patches")
        return attentions[-1]

    def _shares(self, attention: torch.Tensor) -> torch.Tensor:
        """Return the attention on each patch, `(batch_size, rows, columns)`."""
        prefix = attention.shape[-1] - self._num_patches
        on_patches = attention.mean(1)[..., prefix:]
        return (on_patches[:, 0] if prefix else on_patches.mean(1)).unflatten(1, self._grid)

    @property
    def _grid(self) -> tuple[int, int]:
        config = self._encoder.config
        sides = zip(height_and_width(config.image_size), height_and_width(config.patch_size), strict=True)
        rows, columns = (side // patch for side, patch in sides)
        return rows, columns

    @property
    def _num_patches(self) -> int:
        rows, columns = self._grid
        return rows * columns
