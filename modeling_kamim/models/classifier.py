"""ViT classifier of the paper's evaluation: mean of the patch tokens of one block, then one linear layer.

This file is saved beside such checkpoints and loaded with `trust_remote_code=True`, so it imports nothing of its
package. (Swin needs no class of its own: transformers' `SwinForImageClassification` is the paper's classifier.)
"""

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForImageClassification, ViTConfig, ViTModel
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.models.vit.modeling_vit import ViTPreTrainedModel
from transformers.utils import can_return_tuple


class KamimViTClassifierConfig(ViTConfig):
    """`ViTConfig` of the encoder up to the block that is read.

    Args:
        final_layernorm: whether the encoder's own last LayerNorm is applied (True where the last block is read, for
            the final hidden state; False where an inner block is read, as in the paper's probe of block 8).
        pooled_norm: what the pooled features pass before the linear layer: "none", "layernorm" (the paper's Table 5) or
            "batchnorm" (without parameters, as in MAE's linear probe).
    """

    model_type = "kamim_vit_classifier"

    final_layernorm: bool = True
    pooled_norm: str = "none"


class KamimViTForImageClassification(ViTPreTrainedModel):
    """Mean of the patch tokens (CLS dropped), an optional norm, one linear layer.

    `ViTForImageClassification` reads the CLS token and would give other predictions from the same encoder. The empty
    `classifier.bias` makes it refuse these weights (size mismatch) instead of loading a part of them.
    """

    config_class = KamimViTClassifierConfig
    config: KamimViTClassifierConfig
    base_model_prefix = "encoder"

    def __init__(self, config: KamimViTClassifierConfig):
        super().__init__(config)
        self.encoder = ViTModel(config, add_pooling_layer=False)
        if not config.final_layernorm:
            self.encoder.layernorm = nn.Identity()
        self.norm = {
            "none": nn.Identity(),
            "layernorm": nn.LayerNorm(config.hidden_size, eps=1e-6),
            "batchnorm": nn.BatchNorm1d(config.hidden_size, affine=False, eps=1e-6),
        }[config.pooled_norm]
        self.head = nn.Linear(config.hidden_size, config.num_labels)
        self.classifier = nn.Module()
        self.classifier.register_buffer("bias", torch.zeros(0))
        self.post_init()

    @can_return_tuple
    def forward(
        self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None, **kwargs
    ) -> ImageClassifierOutput:
        """Class scores.

        Args:
            pixel_values: `(batch_size, channels, height, width)`, normalized.
            labels: `(batch_size,)` class indices, or `(batch_size, num_labels)` probabilities.

        Returns:
            logits `(batch_size, num_labels)`, and the mean cross-entropy where labels are given.
        """
        outputs = self.encoder(pixel_values, **kwargs)
        logits = self.head(self.norm(self._pool(outputs.last_hidden_state)))
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return ImageClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )

    def pooled_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """`(batch_size, hidden_size)` means of the patch tokens, which `norm` and `head` read."""
        return self._pool(self.encoder(pixel_values).last_hidden_state)

    @staticmethod
    def _pool(tokens: torch.Tensor) -> torch.Tensor:
        return tokens[:, 1:].mean(dim=1)


AutoConfig.register(KamimViTClassifierConfig.model_type, KamimViTClassifierConfig)
AutoModelForImageClassification.register(KamimViTClassifierConfig, KamimViTForImageClassification)
KamimViTClassifierConfig.register_for_auto_class()
KamimViTForImageClassification.register_for_auto_class("AutoModelForImageClassification")
