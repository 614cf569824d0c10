"""Masked image modeling with keypoint weights on HuggingFace's ViT and Swin (arXiv:2407.13873).

The checkpoints are plain ViT and Swin checkpoints: `model_type` stays "vit" or "swin", KAMIM's settings are an extra
key of the config, and `AutoModel.from_pretrained` needs nothing of this package.
"""

import math
from dataclasses import dataclass

import torch
from transformers import (
    AutoConfig,
    PreTrainedConfig,
    PreTrainedModel,
    SwinForMaskedImageModeling,
    ViTForMaskedImageModeling,
)
from transformers import initialization as init
from transformers.modeling_outputs import MaskedImageModelingOutput
from transformers.utils import can_return_tuple

from ..errors import InputError
from ..objective.losses import masked_l1


@dataclass
class KamimMaskedImageModelingOutput(MaskedImageModelingOutput):
    """`MaskedImageModelingOutput` plus the loss without weights.

    Args:
        masked_l1: scalar, the mean absolute error over masked pixels; comparable between weightings.
    """

    masked_l1: torch.Tensor | None = None


class KamimForMaskedImageModeling(PreTrainedModel):
    """What KAMIM's ViT and Swin share, and the way to get either: `from_config` and `from_pretrained`."""

    num_prefix_tokens: int

    @classmethod
    def from_config(cls, config: PreTrainedConfig, **kwargs) -> "KamimForMaskedImageModeling":
        """Randomly initialized model for a `ViTConfig` or `SwinConfig`.

        Raises:
            InputError: for a config of another `model_type`.
        """
        return _architecture(config)._from_config(config, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """Model from a directory or Hub id of a ViT or Swin checkpoint; arguments as in transformers.

        Weights are read from safetensors alone, unless `use_safetensors` says otherwise.

        Raises:
            InputError: for a checkpoint of another `model_type`.
        """
        kwargs = {"use_safetensors": True, **kwargs}
        if cls is not KamimForMaskedImageModeling:
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        config = kwargs.get("config")
        if not isinstance(config, PreTrainedConfig):
            hub_kwargs = {key: kwargs[key] for key in ("revision", "token", "cache_dir", "subfolder") if key in kwargs}
            config = AutoConfig.from_pretrained(pretrained_model_name_or_path, trust_remote_code=False, **hub_kwargs)
        return _architecture(config).from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        bool_masked_pos: torch.Tensor | None = None,
        keypoint_weights: torch.Tensor | None = None,
        **kwargs,
    ) -> KamimMaskedImageModelingOutput:
        """Reconstruct the masked pixels (Eq. 3; without weights Eq. 1, which is SimMIM).

        Args:
            pixel_values: `(batch_size, channels, height, width)`, normalized.
            bool_masked_pos: `(batch_size, num_patches)`, True where masked; without it there is no loss.
            keypoint_weights: `(batch_size, rows, columns)`, float; cells of any size that divides the image.
            **kwargs: of the ViT or Swin encoder, for example `output_hidden_states`.
        """
        outputs = self.base_model(pixel_values, bool_masked_pos=bool_masked_pos, **kwargs)
        tokens = outputs.last_hidden_state[:, self.num_prefix_tokens :]
        side = math.isqrt(tokens.shape[1])
        reconstruction = self.decoder(tokens.transpose(1, 2).unflatten(2, (side, side)))

        loss = unweighted = None
        if bool_masked_pos is not None:
            if reconstruction.shape != pixel_values.shape:
                raise ValueError(
                    f"the reconstruction is {tuple(reconstruction.shape)} for pixel_values "
                    f"{tuple(pixel_values.shape)}: encoder_stride {self.config.encoder_stride} does not fit the encoder"
                )
            mask_side = math.isqrt(bool_masked_pos.shape[1])
            mask = bool_masked_pos.unflatten(1, (mask_side, mask_side))
            loss, unweighted = masked_l1(reconstruction, pixel_values, mask, keypoint_weights)
        return KamimMaskedImageModelingOutput(
            loss=loss,
            reconstruction=reconstruction,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            masked_l1=unweighted,
        )


class KamimViTForMaskedImageModeling(KamimForMaskedImageModeling, ViTForMaskedImageModeling):
    """KAMIM on transformers' `ViTForMaskedImageModeling`."""

    num_prefix_tokens = 1  # CLS


class KamimSwinForMaskedImageModeling(KamimForMaskedImageModeling, SwinForMaskedImageModeling):
    """KAMIM on transformers' `SwinForMaskedImageModeling`; the mask token starts from N(0, 0.02), as in SimMIM's code.

    That of transformers starts at zero, where the layer norms, with no position embeddings before them, multiply its
    gradient by 1e5 and more.
    """

    num_prefix_tokens = 0

    def initialize_weights(self) -> None:
        super().initialize_weights()
        init.trunc_normal_(self.base_model.embeddings.mask_token, std=0.02)  # not if it was loaded


_ARCHITECTURES = {"vit": KamimViTForMaskedImageModeling, "swin": KamimSwinForMaskedImageModeling}


def _architecture(config: PreTrainedConfig) -> type[KamimForMaskedImageModeling]:
    if config.model_type not in _ARCHITECTURES:
        raise InputError(f"model_type is {config.model_type!r}; KAMIM pretrains: {', '.join(_ARCHITECTURES)}")
    return _ARCHITECTURES[config.model_type]
