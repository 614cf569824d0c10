"""Settings of an evaluation: checkpoint, protocol, training of the head."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ..errors import InputError
from ..limits import check_ranges, written_size
from ..models.families import FAMILIES
from ..training.arguments import OWN_SCHEDULE, RecipeArguments
from .protocols import PAPER_TRAINING, PROTOCOLS, Protocol


@dataclass
class OnlineProbeArguments:
    """Scores of the features while they are learned; needs labels."""

    _argument_group_name = "online probe"

    probe_every: str | None = field(
        default=None,
        metadata={
            "help": "Log a linear probe and nearest neighbors every N optimizer steps, or every 'epoch'; the training "
            "does not change by it."
        },
    )
    probe_images: int = field(
        default=1000,
        metadata={
            "help": "Images that the probe is trained on, and at most as many to score it; many classes need more."
        },
    )
    label_column: str | None = field(default=None, metadata={"help": "Column of the classes; found where not given."})

    def __post_init__(self):
        check_ranges(self)
        self.probe_steps(1)

    def probe_steps(self, steps_per_epoch: int) -> int | None:
        """Return the optimizer steps between two scores; None for no scores."""
        if self.probe_every in (None, "epoch"):
            return steps_per_epoch if self.probe_every else None
        if not self.probe_every.isdigit() or int(self.probe_every) < 1:
            raise InputError(f'probe_every is {self.probe_every!r}; give a number of steps from 1, or "epoch"')
        return int(self.probe_every)


@dataclass
class ClassificationArguments:
    """Which checkpoint, and how it is evaluated."""

    _argument_group_name = "model and evaluation"

    mode: Literal["linear_probe", "finetune", "reconstruction"] = field(
        default="linear_probe",
        metadata={
            "help": "Train one linear layer on frozen features, or the whole model; or score a pretrained model's "
            "reconstructions (PSNR, SSIM)."
        },
    )
    protocol: Literal["paper", "paper_layernorm", "mae", "cached", "knn"] = field(
        default="paper",
        metadata={
            "help": "paper: the paper's linear probe; paper_layernorm: with its LayerNorm (Table 5); mae: MAE's linear "
            "probe (BatchNorm, crop and flip, LARS, last block, without a last batch that is smaller); cached: on "
            "features computed once, several learning rates side by side, and nearest neighbors; knn: nearest "
            "neighbors alone. Each brings its learning rate, weight decay and length."
        },
    )
    model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "KAMIM, ViT or Swin checkpoint (cached and knn: any encoder of transformers or timm); without it "
            "the weights are random."
        },
    )
    model_type: str = field(default="vit", metadata={"choices": list(FAMILIES), "help": "For random weights."})
    model_size: str = field(default="base", metadata={"help": "For random weights: tiny, small, base, large, ..."})
    config_overrides: str | None = field(
        default=None,
        metadata={"help": 'Config keys of random weights, as "patch_size=8,num_hidden_layers=6".'},
    )
    image_size: list[int] | None = field(
        default=None,
        metadata={
            "help": "Side of the input in pixels, or its height and width; the checkpoint's where not given (random: "
            "192). Fine-tuning takes another one than the checkpoint's and interpolates its positions."
        },
    )
    layer: int | None = field(
        default=None,
        metadata={
            "help": "ViT block whose tokens are read, from 1; default 8 for the paper's probe, the last for the others."
        },
    )
    probe_layers: Literal["default", "all"] = field(
        default="default", metadata={"help": "Protocols cached and knn: read one layer, or every layer."}
    )
    pooling: Literal["mean", "cls"] = field(
        default="mean",
        metadata={"help": "Protocols cached and knn: mean of the patch tokens (the paper's), or the CLS token."},
    )
    layer_norm: bool = field(default=False, metadata={"help": "LayerNorm before the linear layer (Table 5; ViT)."})
    label_column: str | None = field(default=None, metadata={"help": "Column of the classes; found where not given."})
    validation_fraction: float = field(
        default=0.1, metadata={"help": "Share of the training images to hold out where there is no validation split."}
    )
    low_shot: float | None = field(
        default=None,
        metadata={"help": "Train on this share of the labels, equally many of every class (0.01 and 0.1 are usual)."},
    )
    seeds: list[int] = field(
        default_factory=list,
        metadata={"help": "Repeat for these seeds; results.json has a row for each, the report means."},
    )
    augmentation: Literal["auto", "none", "paper", "strong", "crop_flip"] = field(
        default="auto",
        metadata={
            "help": "auto: the protocol's. paper: TrivialAugmentWide, RandomErasing, CutMix or MixUp (section 4.1.1); "
            "strong: close to SimMIM's fine-tuning; crop_flip: MAE's linear probe; none: a plain resize."
        },
    )
    cache_features: bool = field(
        default=True,
        metadata={"help": "Run a frozen encoder once instead of every epoch, where there is no augmentation."},
    )
    layer_decay: float = field(
        default=1.0, metadata={"help": "Fine-tuning: learning rate of a block as a share of the next one's, in (0, 1]."}
    )
    drop_path: float | None = field(
        default=None,
        metadata={
            "help": "Fine-tuning: stochastic depth of the last block, rising evenly to it from 0 in the first; where "
            "not given that of a Swin's checkpoint, none for ViT."
        },
    )
    ema_decay: float | None = field(
        default=None, metadata={"help": "Fine-tuning: evaluate and save averaged weights, for example 0.9999."}
    )
    compare_with: list[str] = field(
        default_factory=list, metadata={"help": "Reconstruction: further checkpoints, scored and drawn in rows."}
    )
    report: list[str] = field(
        default_factory=list,
        metadata={"help": "Only gather the results.json below these folders into report.md and report.tex."},
    )

    def __post_init__(self):
        check_ranges(self)
        if self.image_size is not None:
            self.image_size = written_size(self.image_size)  # type: ignore[assignment]
        if self.mode != "linear_probe" and self.protocol != "paper":
            raise InputError(f"protocol is {self.protocol}; it is for --mode linear_probe, not for {self.mode}")
        if self.mode != "finetune" and (self.layer_decay != 1.0 or self.ema_decay or self.drop_path):
            raise InputError("layer_decay, ema_decay and drop_path are for --mode finetune")
        if self.augmentation == "auto":
            self.augmentation = self.recipe.augmentation

    @property
    def protocol_name(self) -> str:
        """Of the row of `PROTOCOLS`."""
        return "finetune" if self.mode == "finetune" else self.protocol

    @property
    def recipe(self) -> Protocol:
        """What the protocol settles."""
        return PROTOCOLS[self.protocol_name]

    @property
    def has_several_seeds(self) -> bool:
        return len(self.seeds) > 1

    @property
    def trains_on_features(self) -> bool:
        """Whether the encoder's features never change, so that the head is trained on features computed once."""
        return self.cache_features and self.mode == "linear_probe" and self.augmentation == "none"

    @property
    def pooled_norm(self) -> str:
        """Norm between features and linear layer: "none", "layernorm" or "batchnorm"."""
        norm = self.recipe.pooled_norm
        return "layernorm" if norm == "none" and self.layer_norm else norm


MAE_BATCH_SIZE = 256  # to which base learning rates belong


@dataclass
class ProbingArguments(RecipeArguments):
    """The paper's linear probing and fine-tuning (section 4.1): lr 5e-3, cosine to 2.5e-6, no clipping.

    What a protocol settles is None until `__post_init__`, which takes the paper's; `follow` takes another protocol's.
    """

    schedule_ends = PAPER_TRAINING["lr_scheduler_kwargs"]
    metrics = ("loss", "top1", "top5")

    output_dir: str = field(default="outputs/classification", metadata={"help": "Where checkpoints and results go."})
    learning_rate: float = field(  # type: ignore[assignment]
        default=None,
        metadata={
            "help": "Peak learning rate; where not given the protocol's: 5e-3, MAE's 0.1 for every 256 images per step."
        },
    )
    weight_decay: float = field(  # type: ignore[assignment]
        default=None, metadata={"help": "Where not given the protocol's: 0.05, MAE's 0."}
    )
    num_train_epochs: float = field(  # type: ignore[assignment]
        default=None,
        metadata={"help": "Passes over the training images; where not given the protocol's: 100, MAE's 90."},
    )
    warmup_steps: float = field(  # type: ignore[assignment]
        default=None,
        metadata={
            "help": "Linear warm-up: steps, or below 1 a share of all steps; where not given the protocol's: 0.1, "
            "MAE's 10 of 90."
        },
    )
    max_grad_norm: float = field(default=0.0, metadata={"help": "Clip gradients at this norm; 0 turns it off."})

    def __post_init__(self):
        self._left_open = [name for name in PAPER_TRAINING if getattr(self, name) is None]
        if str(self.lr_scheduler_type) != OWN_SCHEDULE and self.lr_scheduler_kwargs is None:
            self._left_open.remove("lr_scheduler_kwargs")  # another schedule does not know ours
        self.follow(PAPER_TRAINING)
        if self.max_steps == 0:
            raise InputError("max_steps is 0, and a classifier must be trained; leave it out for num_train_epochs")
        super().__post_init__()
        self.label_names = ["labels"]

    def follow(self, training: Mapping[str, Any]) -> None:
        """Take the settings of a protocol for what was not given.

        Args:
            training: of a `Protocol`.
        """
        settings = dict(training)
        if "base_learning_rate" in settings:
            settings["learning_rate"] = settings.pop("base_learning_rate") * self.total_batch_size / MAE_BATCH_SIZE
        for name in self._left_open:
            setattr(self, name, settings[name])
