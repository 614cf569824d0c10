"""Masked image modeling with keypoint weights on HuggingFace's vision transformers (arXiv:2407.13873).

The checkpoints are those of their family: `model_type` stays "vit", "swin", "dinov2", ..., KAMIM's settings are an
extra key of the config, and `AutoModel.from_pretrained` needs nothing of this package.
"""

import re
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel, ViTMAEForPreTraining, ViTMAEModel
from transformers import initialization as init
from transformers.modeling_outputs import MaskedImageModelingOutput, ModelOutput
from transformers.models.vit_mae.modeling_vit_mae import ViTMAEDecoder
from transformers.utils import can_return_tuple

from ..objective.losses import masked_loss
from ..objective.ranking import on_grid, patch_losses, ranking_loss
from ..objective.targets import TARGETS
from .families import Family, encoder_stride, family_of
from .loss_predictor import PREFIX, LossPredictor
from .positions import mae_positions
from .sizes import image_sides, patch_grid


@dataclass
class KamimMaskedImageModelingOutput(MaskedImageModelingOutput):
    """`MaskedImageModelingOutput` plus the error without weights.

    Args:
        masked_l1: scalar, the mean absolute error over the masked pixels of the target; comparable between weightings.
        patch_losses: `(batch_size, num_patches)`, the error of each patch of the decoder, masked or not.
        predicted_losses: like `patch_losses`, the scores of the loss predictor; None without one.
        ranking_accuracy: scalar, share of the pairs of masked patches that the scores have in the right order.
    """

    masked_l1: torch.Tensor | None = None
    patch_losses: torch.Tensor | None = None
    predicted_losses: torch.Tensor | None = None
    ranking_accuracy: torch.Tensor | None = None


class KamimForMaskedImageModeling(PreTrainedModel):
    """What the pretraining models of all families share, and the way to get one: `from_config`, `from_pretrained`."""

    family: Family
    loss_predictor: LossPredictor | None  # beside the checkpoint, never in it

    @classmethod
    def from_config(cls, config: PreTrainedConfig, **kwargs) -> "KamimForMaskedImageModeling":
        """Randomly initialized model for a config of one of `families.FAMILIES`.

        Raises:
            InputError: for a config of another `model_type`.
        """
        kwargs["attn_implementation"] = usable_attention(config.model_type, kwargs.get("attn_implementation"))
        return model_class(config.model_type)._from_config(config, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """Model from a directory or Hub id; arguments as in transformers.

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
        return model_class(config.model_type).from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    @property
    def objective(self) -> dict[str, Any]:
        """KAMIM's settings in the config, with the family's `target` and `loss` where they hold none."""
        return {"target": self.family.target, "loss": self.family.loss, **(getattr(self.config, "kamim", None) or {})}

    @property
    def mask_token(self) -> nn.Parameter:
        """`(1, 1, width)`: what stands in the place of masked tokens."""
        return (self.decoder if self.family.drops_masked else self.base_model.embeddings).mask_token

    def initialize_weights(self) -> None:
        super().initialize_weights()
        if getattr(self.config, "mae_init", False):
            self._initialize_as_mae()
        if not self.family.starts_from_zeros:
            for tokens in self.base_model.embeddings.parameters(recurse=False):
                if not tokens.is_meta and not tokens.any():
                    init.trunc_normal_(tokens, std=0.02)  # not if it was loaded

    def _initialize_as_mae(self) -> None:
        """Draw the weights as MAE's code does (arXiv:2111.06377, section A.1): Xavier's uniform ones, patch embeddings
        as a linear layer; sine-cosine positions where the encoder has a position for each patch, which it may train.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                bound = (6 / (module.weight.shape[0] + module.weight[0].numel())) ** 0.5
                init.uniform_(module.weight, -bound, bound)
        positions = getattr(self.base_model.embeddings, "position_embeddings", None)
        if isinstance(positions, nn.Parameter):
            patches = mae_positions(patch_grid(self.config), positions.shape[-1])[:, 1:]
            prefix = torch.zeros(1, positions.shape[1] - patches.shape[1], positions.shape[-1])
            init.copy_(positions, torch.cat([prefix, patches], dim=1).to(positions))

    def post_init(self) -> None:
        self.register_module("loss_predictor", None)
        super().post_init()

    def add_loss_predictor(self) -> None:
        """Give the model a head that predicts which patches have large errors; its loss is then part of `loss`."""
        self.loss_predictor = LossPredictor(self.decoder[0].in_channels)

    @property
    def decoder_grid(self) -> tuple[int, int]:
        """Rows and columns of the patches that the decoder predicts."""
        stride = encoder_stride(self.config)
        height, width = image_sides(self.config)
        return height // stride, width // stride

    def save_pretrained(self, save_directory, *args, state_dict=None, **kwargs):
        """As transformers', with the loss predictor in a file of its own: the checkpoint is one without it."""
        head, own = self.loss_predictor, None
        if head is not None and state_dict is not None:
            own = {name.removeprefix(PREFIX): state_dict[name] for name in state_dict if name.startswith(PREFIX)}
            state_dict = {name: tensor for name, tensor in state_dict.items() if not name.startswith(PREFIX)}
        self.loss_predictor = None
        try:
            super().save_pretrained(save_directory, *args, state_dict=state_dict, **kwargs)
        finally:
            self.loss_predictor = head
        if head is not None and kwargs.get("is_main_process", True):
            head.save(save_directory, own)

    def reconstruct(
        self, pixel_values: torch.Tensor, bool_masked_pos: torch.Tensor | None, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor | None, ModelOutput]:
        """What the decoder makes, `(batch_size, channels, height, width)`, the tokens it reads, the encoder's outputs.

        The tokens are `(batch_size, num_patches, width)`; of a masked autoencoder without a loss predictor they are not
        kept.
        """
        outputs = self.base_model(pixel_values, bool_masked_pos=bool_masked_pos, **kwargs)
        tokens = self.normalized_tokens(outputs.last_hidden_state)[:, self.family.num_prefix_tokens(self.config) :]
        stride = encoder_stride(self.config)
        rows, columns = (side // stride for side in pixel_values.shape[2:])
        return self.decoder(tokens.transpose(1, 2).unflatten(2, (rows, columns))), tokens, outputs

    def target(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor] | None]:
        """What is predicted of images, and mean and deviation of each patch where it is normalized: see `Target`."""
        return TARGETS[self.objective["target"]](pixel_values, encoder_stride(self.config))

    def normalized_tokens(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens behind the encoder's last LayerNorm."""
        return tokens

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        bool_masked_pos: torch.Tensor | None = None,
        keypoint_weights: torch.Tensor | None = None,
        **kwargs,
    ) -> KamimMaskedImageModelingOutput:
        """Reconstruct the masked pixels (Eq. 3; without weights Eq. 1, which is SimMIM, or MAE).

        Args:
            pixel_values: `(batch_size, channels, height, width)`, normalized.
            bool_masked_pos: `(batch_size, num_patches)`, True where masked; without it there is no loss. A ViT-MAE
                needs masks of equally many patches.
            keypoint_weights: `(batch_size, rows, columns)`, float; cells of any size that divides the image.
            **kwargs: of the encoder, for example `output_hidden_states`.

        Returns:
            `reconstruction` in the units of `pixel_values`. Where the target is normalized, mean and deviation of each
            patch, which the model does not predict, are those of the image itself.
        """
        reconstruction, tokens, outputs = self.reconstruct(pixel_values, bool_masked_pos, **kwargs)
        if reconstruction.shape != pixel_values.shape:
            raise ValueError(
                f"the reconstruction is {tuple(reconstruction.shape)} for pixel_values {tuple(pixel_values.shape)}: "
                f"encoder_stride {getattr(self.config, 'encoder_stride', None)} does not fit the encoder"
            )
        target, statistics = self.target(pixel_values)
        loss = unweighted = errors = scores = accuracy = None
        if self.loss_predictor is not None:
            scores = self.loss_predictor(tokens)
            errors = patch_losses(reconstruction.detach(), target, self.decoder_grid, self.objective["loss"])
        if bool_masked_pos is not None:
            mask = bool_masked_pos.unflatten(1, tuple(side // self.config.patch_size for side in target.shape[2:]))
            loss, unweighted = masked_loss(reconstruction, target, mask, keypoint_weights, self.objective["loss"])
            if scores is not None and errors is not None:
                is_masked = on_grid(bool_masked_pos, mask.shape[1:], self.decoder_grid).flatten(1) > 0.5
                ranking, accuracy = ranking_loss(scores, errors, is_masked)
                loss = loss + ranking
        return KamimMaskedImageModelingOutput(
            loss=loss,
            reconstruction=reconstruction if statistics is None else reconstruction * statistics[1] + statistics[0],
            hidden_states=outputs.hidden_states,
            attentions=outputs.get("attentions"),
            masked_l1=unweighted,
            patch_losses=errors,
            predicted_losses=scores,
            ranking_accuracy=accuracy,
        )


class PixelDecoder(KamimForMaskedImageModeling):
    """SimMIM's decoder, one linear layer (arXiv:2111.09886), over encoders that transformers gives none."""

    def __init__(self, config: PreTrainedConfig):
        super().__init__(config)
        setattr(self, self.base_model_prefix, getattr(transformers, str(self.family.encoder))(config))
        outputs = config.num_channels * config.patch_size**2
        self.decoder = nn.Sequential(nn.Conv2d(config.hidden_size, outputs, 1), nn.PixelShuffle(config.patch_size))
        self.post_init()


class BeitPixelDecoder(PixelDecoder):
    """The decoder on BEiT, whose last LayerNorm is in its pooler where it pools means.

    `simmim_init` in the config is the initialization of SimMIM's ViT: weights within one deviation of 0.02, those that
    end a residual branch of block n divided by sqrt(2 n).
    """

    def target(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor] | None]:
        """What is predicted of images, and mean and deviation of each patch where it is normalized: see `Target`."""
        return TARGETS[self.objective["target"]](pixel_values, encoder_stride(self.config))

    def normalized_tokens(self, tokens: torch.Tensor) -> torch.Tensor:
        norm = self.beit.pooler.layernorm
        return tokens if norm is None else norm(tokens)

    def initialize_weights(self) -> None:
        super().initialize_weights()
        if not getattr(self.config, "simmim_init", False):
            return
        for module in self.beit.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                init.trunc_normal_(module.weight, std=0.02, a=-0.02, b=0.02)
        init.trunc_normal_(self.beit.embeddings.cls_token, std=0.02, a=-0.02, b=0.02)
        for number, block in enumerate(self.beit.layers, start=1):
            for layer in (block.attention.o_proj, block.mlp.fc2):
                scale = 1 / (2 * number) ** 0.5
                init.copy_(layer.weight, layer.weight * scale)


class Dinov3PixelDecoder(PixelDecoder):
    """The decoder on DINOv3, saved without a prefix: transformers 4 and 5 expect different ones."""

    def save_pretrained(self, save_directory, *args, state_dict=None, **kwargs):
        state = self.state_dict() if state_dict is None else state_dict
        bare = {re.sub(r"^(model\.){1,2}", "", name): tensor for name, tensor in state.items()}
        super().save_pretrained(save_directory, *args, state_dict=bare, **kwargs)


class MaskedAutoencoder(KamimForMaskedImageModeling):
    """A ViT-MAE (arXiv:2111.06377): the encoder sees the visible patches alone, a small decoder predicts all.

    The masks are those that are given, of any shape, not drawn in the model. The sine-cosine positions, which
    transformers 5 leaves at zero in a new model, are MAE's.
    """

    def __init__(self, config: PreTrainedConfig):
        super(ViTMAEForPreTraining, self).__init__(config)  # its own builds a decoder for squares
        self.vit = ViTMAEModel(config)
        self.vit.embeddings.random_masking = keep_visible
        self.decoder = _AnyGridDecoder(config, num_patches=self.vit.embeddings.patch_embeddings.num_patches)
        self.post_init()

    def initialize_weights(self) -> None:
        super().initialize_weights()
        for positions in (self.vit.embeddings.position_embeddings, self.decoder.decoder_pos_embed):
            init.copy_(positions, mae_positions(patch_grid(self.config), positions.shape[-1]).to(positions))
        init.trunc_normal_(self.mask_token, std=0.02)

    def reconstruct(
        self, pixel_values: torch.Tensor, bool_masked_pos: torch.Tensor | None, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor | None, ModelOutput]:
        outputs = self.vit(pixel_values, noise=bool_masked_pos, **kwargs)
        found = self.decoder(outputs.last_hidden_state, outputs.ids_restore).logits
        patches, tokens = found.tensor_split([self.decoder.decoder_pred.out_features], dim=-1)
        height, width = pixel_values.shape[2:]
        return self.unpatchify(patches, (height, width)), tokens, outputs

    def add_loss_predictor(self) -> None:
        self.decoder.decoder_pred.keeps_tokens = True
        self.loss_predictor = LossPredictor(self.decoder.decoder_pred.in_features)


class _PixelsAndTokens(nn.Linear):
    """The last layer of ViT-MAE's decoder; with `keeps_tokens` what it reads stands behind what it predicts."""

    keeps_tokens = False

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        pixels = super().forward(tokens)
        return torch.cat([pixels, tokens.to(pixels.dtype)], dim=-1) if self.keeps_tokens else pixels


class _AnyGridDecoder(ViTMAEDecoder):
    """ViT-MAE's decoder for a grid of any shape; transformers' begins with the positions of a square."""

    def __init__(self, config: PreTrainedConfig, num_patches: int):
        super().__init__(config, num_patches)
        self.decoder_pred: _PixelsAndTokens = _PixelsAndTokens(
            self.decoder_pred.in_features, self.decoder_pred.out_features
        )

    def initialize_weights(self, num_patches: int) -> None:
        init.normal_(self.mask_token, std=self.config.initializer_range)  # positions are set by the model


def keep_visible(
    sequence: torch.Tensor, noise: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The visible tokens, in their order; stands for ViT-MAE's `random_masking`, which draws the mask itself.

    Args:
        sequence: `(batch_size, num_patches, width)`.
        noise: the mask, `(batch_size, num_patches)`, bool, True where masked; None keeps all.

    Returns:
        visible tokens `(batch_size, num_visible, width)`, the mask in float, and the places that restore the order.

    Raises:
        ValueError: unless all images have equally many masked patches.
    """
    mask = torch.zeros(sequence.shape[:2], device=sequence.device) if noise is None else noise.to(torch.uint8)
    masked = mask.sum(dim=1)
    num_masked = int(masked[0])
    if (masked != num_masked).any():
        raise ValueError("a ViT-MAE needs masks of equally many patches")
    order = mask.argsort(dim=1, stable=True)
    visible = order[:, : sequence.shape[1] - num_masked]
    tokens = sequence.gather(1, visible[..., None].expand(-1, -1, sequence.shape[2]))
    return tokens, mask.float(), order.argsort(dim=1)


@cache
def model_class(model_type: str) -> type[KamimForMaskedImageModeling]:
    """The pretraining model of a `model_type`: `KamimViTForMaskedImageModeling` and its like.

    Raises:
        InputError: for a `model_type` without a family.
    """
    family = family_of(model_type)
    kind = KamimForMaskedImageModeling
    if family.drops_masked:
        kind = MaskedAutoencoder
    elif family.encoder:
        kind = {"beit": BeitPixelDecoder, "dinov3_vit": Dinov3PixelDecoder}.get(model_type, PixelDecoder)
    base = getattr(transformers, family.extends)
    stem = family.extends.removesuffix("ForMaskedImageModeling").removesuffix("ForPreTraining")
    name = f"Kamim{stem.removesuffix('PreTrainedModel')}ForMaskedImageModeling"
    documentation = f"KAMIM on transformers' `{family.encoder or family.extends}`."
    members = {"family": family, "__doc__": documentation, "__module__": __name__, "__qualname__": name}
    made = type(name, (kind, base), members)
    globals()[name] = made  # for pickles
    return made


def usable_attention(model_type: str, wanted: str | None) -> str | None:
    """The implementation of attention that is wanted, or "eager" where transformers has no "sdpa" for the family."""
    return "eager" if wanted == "sdpa" and not model_class(model_type)._supports_sdpa else wanted


KamimViTForMaskedImageModeling = model_class("vit")
KamimSwinForMaskedImageModeling = model_class("swin")
