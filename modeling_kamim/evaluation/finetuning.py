"""Fine-tuning beyond the paper's recipe: learning rates by layer, drop path, averaged weights, another resolution."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torchvision.ops import StochasticDepth
from transformers import SwinForImageClassification, TrainingArguments, ViTModel

from ..errors import InputError
from ..models.classifier import KamimViTForImageClassification
from ..training.checkpointing import StatefulCallback
from ..training.launch import is_fsdp1, is_sharded

EMA_FILE = "ema.safetensors"
_NEVER_DECAYED = ("bias", "cls_token", "mask_token", "position_embeddings", "relative_position_bias_table")


def check_sharding(
    args: TrainingArguments, ema_decay: float | None = None, layer_decay: float = 1.0, is_linear_probe: bool = False
) -> None:
    """Stop what FSDP and DeepSpeed cannot do: they hold parameters or optimizer states in shards.

    Raises:
        InputError: for an average of the weights, a linear probe, or layer-wise rates of flattened parameters.
    """
    if not is_sharded(args):
        return
    if ema_decay:
        raise InputError(f"ema_decay is {ema_decay}, which FSDP and DeepSpeed do not allow; use DDP, or leave it out")
    if is_linear_probe:
        raise InputError("a linear probe trains one linear layer; use DDP or one process, not FSDP or DeepSpeed")
    if layer_decay < 1 and is_fsdp1(args):
        raise InputError(f"layer_decay is {layer_decay}, which the first FSDP does not allow; set fsdp_version: 2")


def parameter_groups(
    model: nn.Module, learning_rate: float, weight_decay: float, layer_decay: float = 1.0
) -> list[dict[str, Any]]:
    """Return parameter groups of an optimizer, with a learning rate that falls from the head to the embeddings.

    The rate is `learning_rate * layer_decay ** (L + 1 - layer)`: layer 0 are the embeddings, 1 to L the blocks (of Swin
    those of all stages, a stage's downsampling with its last block), L + 1 norm and head, as in the code of BEiT
    (arXiv:2106.08254) and SimMIM (`optimizer.py`). Biases, other vectors, tokens, position embeddings and tables of
    relative position biases are not decayed. Frozen parameters are left out.

    Args:
        model: the classifier; where `layer_decay` is 1 any model.
        layer_decay: in (0, 1]; with 1 there are two plain groups, with and without weight decay.

    Returns:
        groups of params, lr and weight_decay, from the highest rate (which `Trainer` logs) to the lowest.

    Raises:
        InputError: for another `layer_decay`, or one below 1 for a model whose layers are not known.
    """
    if not 0 < layer_decay <= 1:
        raise InputError(f"layer_decay is {layer_decay}; it must be in (0, 1], where 1 is the same rate everywhere")
    layers = _layers(model) if layer_decay < 1 else []
    layer_of = {
        id(parameter): layer
        for layer, modules in enumerate(layers)
        for module in modules
        for parameter in module.parameters()
    }
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            rate = learning_rate * layer_decay ** (len(layers) - layer_of.get(id(parameter), len(layers)))
            is_decayed = parameter.ndim > 1 and not name.endswith(_NEVER_DECAYED)
            groups.setdefault((rate, is_decayed), []).append(parameter)
    return [
        {"params": parameters, "lr": rate, "weight_decay": weight_decay if is_decayed else 0.0}
        for (rate, is_decayed), parameters in sorted(groups.items(), key=lambda item: item[0], reverse=True)
    ]


def _layers(model: nn.Module) -> list[list[nn.Module]]:
    """Return embeddings and blocks; the rest of the classifier is the layer behind them."""
    if isinstance(model, KamimViTForImageClassification):
        return [[model.encoder.embeddings], *([block] for block in model.encoder.layers)]
    if not isinstance(model, SwinForImageClassification):
        raise InputError(
            f"layer_decay is below 1 for a {type(model).__name__}; it must be 1, or the model a ViT or Swin"
        )
    layers = [[model.swin.embeddings]]
    for stage in model.swin.encoder.layers:
        layers += [[block] for block in stage.blocks]
        if stage.downsample is not None:
            layers[-1].append(stage.downsample)
    return layers


def add_drop_path(encoder: ViTModel, rate: float) -> None:
    """Give a ViT stochastic depth (arXiv:1603.09382), which transformers has for Swin alone.

    While it trains, attention and MLP of a block are left out, each on its own and for some of the images, and scaled
    by 1 / (1 - probability) for the others. The probability rises evenly from 0 in the first block to `rate` in the
    last, as in Swin and timm. Parameters and config stay as they are: a saved model is a plain ViT.

    Args:
        rate: in [0, 1).
    """
    probabilities = torch.linspace(0, rate, len(encoder.layers)).tolist()
    for block, probability in zip(encoder.layers, probabilities, strict=True):
        block.dropout = nn.Sequential(block.dropout, StochasticDepth(probability, mode="row"))


class ExponentialMovingAverage(StatefulCallback):
    """Average of the trained parameters over the steps: a0 = w0, then a = decay * a + (1 - decay) * w (Polyak).

    It looks back over about 1 / (1 - decay) steps and is of use in runs several times as long. It is kept in float32
    on the parameters' devices, saved as `ema.safetensors` in every checkpoint, and read back where a run resumes from
    `args.resume_from_checkpoint`. FSDP and DeepSpeed, whose parameters are shards, are refused.

    Args:
        decay: share of the average that a step keeps, in (0, 1).
    """

    def __init__(self, decay: float):
        if not 0 < decay < 1:
            raise InputError(f"ema_decay is {decay}; it must be between 0 and 1, both excluded")
        self.decay = decay
        self.average: dict[str, torch.Tensor] = {}
        self._update = get_ema_multi_avg_fn(decay)

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        check_sharding(args, ema_decay=self.decay)
        self.average = {
            name: parameter.detach().to(torch.float32, copy=True) for name, parameter in _trained(model).items()
        }
        if state.global_step > 0:
            self.load(args.resume_from_checkpoint)

    def on_optimizer_step(self, args, state, control, model=None, **kwargs):
        trained = _trained(model)
        current = [trained[name].detach().float() for name in self.average]
        self._update(list(self.average.values()), current, None)

    def save(self, checkpoint: Path) -> None:
        """Write the average into a checkpoint directory."""
        save_file({name: average.contiguous() for name, average in self.average.items()}, checkpoint / EMA_FILE)

    def load(self, checkpoint: str | Path | None) -> None:
        """Take over the average that is saved in a checkpoint directory; training must have begun.

        Raises:
            InputError: if there is none, or it is that of another model.
        """
        if checkpoint is None:
            raise InputError("the run resumes without resume_from_checkpoint; the average is read from there")
        try:
            saved = load_file(Path(checkpoint) / EMA_FILE)
        except (OSError, SafetensorError) as error:
            raise InputError(
                f"{checkpoint} holds no {EMA_FILE} that can be read: it was saved without ema_decay or not to its end; "
                "resume from another checkpoint, or without ema_decay"
            ) from error
        shapes = {name: average.shape for name, average in self.average.items()}
        if shapes != {name: average.shape for name, average in saved.items()}:
            raise InputError(f"{EMA_FILE} in {checkpoint} is the average of another model")
        for name, average in self.average.items():
            average.copy_(saved[name])

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Put the average in the place of the trained parameters, and these back at the end, bit by bit.

        Args:
            model: the model that is trained, as `Trainer.model` holds it.

        Raises:
            ValueError: if there is no average of this model's parameters, as before training.
        """
        trained = _trained(model)
        if trained.keys() != self.average.keys():
            raise ValueError(f"there is no average of this {type(model).__name__}; it is made while the model trains")
        current = {name: parameter.detach().clone() for name, parameter in trained.items()}
        _assign(trained, self.average)
        try:
            yield
        finally:
            _assign(trained, current)


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


@torch.no_grad()
def _assign(parameters: Mapping[str, nn.Parameter], values: Mapping[str, torch.Tensor]) -> None:
    for name, parameter in parameters.items():
        parameter.copy_(values[name])
