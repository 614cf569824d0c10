"""Classifiers on a pretrained encoder (arXiv:2407.13873, section 4.1)."""

from typing import Any

from transformers import (
    PreTrainedModel,
    SwinConfig,
    SwinForImageClassification,
    SwinModel,
    ViTConfig,
    ViTMAEModel,
    ViTModel,
)

from ..errors import InputError
from ..limits import size_in_words
from ..models.classifier import KamimViTClassifierConfig, KamimViTForImageClassification
from ..models.loading import load_config, load_whole
from ..models.positions import resized_config, resized_state_dict
from ..models.sizes import build_config, check_image_size, plain_sizes
from ..models.warm_start import vit_config
from .finetuning import add_drop_path
from .settings import ClassificationArguments

ENCODERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "vit": (ViTModel, {"add_pooling_layer": False}),
    "vit_mae": (ViTMAEModel, {}),
    "swin": (SwinModel, {"add_pooling_layer": False}),
}


def build_classifier(
    args: ClassificationArguments, class_names: list[str] | None = None, attn_implementation: str = "sdpa"
) -> PreTrainedModel:
    """Return the encoder of a checkpoint (or random weights) under a new linear layer.

    ViT: mean of the patch tokens of `args.layer`; later blocks are not loaded. The last block is read behind the
    encoder's own LayerNorm, inner blocks as they are. Swin: mean of the last stage's tokens. For a linear probe the
    encoder is frozen and its dropouts are off.

    Raises:
        InputError: if the checkpoint is not a ViT or Swin, or does not fit `args.image_size` or `args.layer`.
    """
    config = classifier_config(args)
    if class_names is not None:
        config.id2label = dict(enumerate(class_names))
        config.label2id = {name: index for index, name in enumerate(class_names)}
    if isinstance(config, SwinConfig):
        model = SwinForImageClassification._from_config(config, attn_implementation=attn_implementation)
        encoder = model.swin
    else:
        model = KamimViTForImageClassification._from_config(config, attn_implementation=attn_implementation)
        encoder = model.encoder
        if args.drop_path:
            add_drop_path(encoder, args.drop_path)
    if args.model_name_or_path is not None:
        _load_encoder(encoder, args.model_name_or_path)
    if args.mode == "linear_probe":
        encoder.requires_grad_(False)
    return model


def classifier_config(args: ClassificationArguments) -> KamimViTClassifierConfig | SwinConfig:
    """Return the config of the classifier that `args` describe; for the errors see `build_classifier`."""
    config = encoder_config(args)
    if args.drop_path is not None and isinstance(config, SwinConfig):
        config.drop_path_rate = args.drop_path
    if args.mode == "linear_probe":
        for dropout in ("hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate"):
            if hasattr(config, dropout):
                setattr(config, dropout, 0.0)
    if isinstance(config, SwinConfig):
        if args.layer is not None or args.pooled_norm != "none":
            raise InputError("layer and layer_norm are for ViT; of Swin the last stage is read, behind its LayerNorm")
        return config
    depth = config.num_hidden_layers
    layer = min(args.recipe.layer or depth, depth) if args.layer is None else args.layer
    if layer > depth:
        raise InputError(f"layer is {layer}; the encoder has {depth} blocks")
    settings = {key: value for key, value in config.to_dict().items() if key not in ("model_type", "architectures")}
    settings |= {"num_hidden_layers": layer, "final_layernorm": layer == depth, "pooled_norm": args.pooled_norm}
    return KamimViTClassifierConfig(**settings)


def encoder_config(args: ClassificationArguments) -> ViTConfig | SwinConfig:
    """Return the config of the whole encoder that `args` name, at the image size that they ask for."""
    if args.model_name_or_path is None:
        config = build_config(args.model_type, args.model_size, args.image_size or 192, args.config_overrides)
    else:
        config = load_config(args.model_name_or_path)
    if config.model_type not in ENCODERS:
        raise InputError(
            f"{args.model_name_or_path or 'the encoder'} is a {config.model_type!r}; the protocols that train a "
            "classifier are for ViT, ViT-MAE and Swin: give one of them, or --protocol cached or knn, which read any "
            "encoder"
        )
    if config.model_type == "vit_mae":  # an encoder of all patches is a ViT
        config = vit_config(config)
    plain_sizes(config)
    if args.image_size not in (None, config.image_size):
        if args.mode != "finetune":
            given, own = map(size_in_words, (args.image_size, config.image_size))
            raise InputError(f"image_size is {given}, the checkpoint's is {own}; they must agree")
        config = resized_config(config, args.image_size)
    check_image_size(config)
    return config


def _load_encoder(encoder: ViTModel | SwinModel, checkpoint: str) -> None:
    encoder_class, settings = ENCODERS[load_config(checkpoint).model_type]
    loaded, _ = load_whole(encoder_class, checkpoint, **settings)
    weights = resized_state_dict(loaded.state_dict(), loaded.config, encoder.config)
    read = encoder.state_dict()
    encoder.load_state_dict({key: value for key, value in weights.items() if key in read})
