"""Arguments of the scripts, as dataclasses of which `command_line.parse` makes options."""

import json
from dataclasses import dataclass, field
from typing import Literal

from .density import DensityDetector
from .errors import InputError
from .evaluation.protocols import PROTOCOLS, Protocol
from .keypoints import KeypointDetector
from .limits import check_ranges
from .masking import num_masked_blocks
from .modeling_kamim import build_config
from .run_directory import check_output_dir
from .training_arguments import PretrainingArguments, ProbingArguments
from .views import RandomView
from .weighting import CellWeighting

STREAM_EVAL_SAMPLES = 1000
TRUST_HELP = (
    "Read files outside of the data set's folder, too, and addresses, where its README.md or its rows name them; only "
    "if you trust whoever wrote these. Without it such a data set is refused."
)


@dataclass
class DataArguments:
    """Which images."""

    _argument_group_name = "data"

    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "Hub id, folder of images, folder or file of Parquet, or directory saved by `datasets`; "
            "without it the embedded photographs are used."
        },
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of a Hub data set."})
    train_split: str = field(default="train", metadata={"help": "Split to train on."})
    validation_split: str | None = field(
        default=None, metadata={"help": "Split to evaluate on; found by its usual names where not given."}
    )
    image_column: str | None = field(default=None, metadata={"help": "Column of the images; found where not given."})
    max_train_samples: int | None = field(
        default=None, metadata={"help": "Use only N training images, drawn at random."}
    )
    max_eval_samples: int | None = field(
        default=None, metadata={"help": "Use only N validation images, drawn at random."}
    )
    bad_images: Literal["raise", "skip"] = field(
        default="raise",
        metadata={
            "help": "An image that cannot be decoded: stop and name it, or check all images once before training, "
            "leave out and list the bad ones."
        },
    )
    num_proc: int | None = field(default=None, metadata={"help": "Processes of the cached preparation steps."})
    trust_data_files: bool = field(default=False, metadata={"help": TRUST_HELP})

    def __post_init__(self):
        check_ranges(self)


@dataclass
class StreamingArguments:
    """Training without a copy of the data."""

    _argument_group_name = "streaming"

    streaming: bool = field(
        default=False,
        metadata={
            "help": "Read Parquet files (a file, a folder, a Hub id) while training, without a copy or a first pass; "
            f"needs --max_steps, detects keypoints online, evaluates {STREAM_EVAL_SAMPLES} images where "
            "max_eval_samples is not given."
        },
    )
    shuffle_buffer: int = field(
        default=1000,
        metadata={
            "help": "Streaming: rows that a reader (a worker of a process) shuffles together, in memory as they are "
            "encoded, and twice as many while it reads on; at least a row group. Files and row groups are shuffled too."
        },
    )

    def __post_init__(self):
        check_ranges(self)


@dataclass
class KamimArguments:
    """Model, mask and keypoint weights."""

    _argument_group_name = "model and objective"

    model_type: Literal["vit", "swin"] = field(default="vit", metadata={"help": "Architecture."})
    model_size: Literal["tiny", "small", "base"] = field(
        default="base", metadata={"help": "Size of the model; Swin has tiny and base."}
    )
    image_size: int = field(default=192, metadata={"help": "Side of the input in pixels."})
    mask_patch_size: int = field(default=32, metadata={"help": "Side of a masked block in pixels."})
    mask_ratio: float = field(default=0.6, metadata={"help": "Share of blocks to mask, in (0, 1)."})
    weighting: Literal["keypoint", "none", "constant", "shuffled", "inverse"] = field(
        default="keypoint",
        metadata={"help": "keypoint is KAMIM, none is SimMIM; the others are controls (see docs/method.md)."},
    )
    keypoint_detector: Literal["fast", "sift", "orb"] = field(default="fast", metadata={"help": "OpenCV detector."})
    keypoint_detector_args: str | None = field(
        default=None, metadata={"help": "Parameters of the detector as JSON, for example '{\"threshold\": 20}'."}
    )
    keypoint_footprint: Literal["circle", "point"] = field(
        default="circle", metadata={"help": "Draw a keypoint as a ring of radius 3 px, or as one pixel."}
    )
    keypoint_source: Literal["map", "online"] = field(
        default="map",
        metadata={"help": "Detect once on the whole image (cached), or on every crop (exactly the paper, slower)."},
    )
    weight_patch_size: int = field(default=8, metadata={"help": "Side of a weight cell (w_ps) in pixels."})
    temperature: float = field(default=0.25, metadata={"help": "T of Eq. 2; smaller means stronger weights."})
    weight_norm: Literal["none", "mean"] = field(
        default="none", metadata={"help": "mean divides the weights of an image by their mean."}
    )
    crop_min_scale: float = field(default=0.67, metadata={"help": "Least area of the random crop, in (0, 1]."})
    horizontal_flip: float = field(default=0.5, metadata={"help": "Probability of a horizontal flip."})
    vertical_flip: float = field(default=0.5, metadata={"help": "Probability of a vertical flip."})

    def __post_init__(self):
        check_ranges(self)
        token = 16 if self.model_type == "vit" else 4
        _check_divides("mask_patch_size", self.mask_patch_size, "image_size", self.image_size)
        _check_divides("weight_patch_size", self.weight_patch_size, "image_size", self.image_size)
        _check_divides(f"the {self.model_type} patch size", token, "mask_patch_size", self.mask_patch_size)
        blocks = (self.image_size // self.mask_patch_size) ** 2
        if num_masked_blocks(blocks, self.mask_ratio) >= blocks:
            raise InputError(
                f"mask_ratio is {self.mask_ratio}, which masks all of the {blocks} block(s) of mask_patch_size "
                f"{self.mask_patch_size} in image_size {self.image_size}; one at least must stay visible: give a "
                "smaller ratio or smaller blocks"
            )
        build_config(self.model_type, self.model_size, self.image_size)
        self.cell_weighting(), self.detector(), self.random_view()
        if self.weighting != "none" and self.keypoint_source == "map":
            self.densities().check_cells(self.weight_patch_size)

    @property
    def method(self) -> str:
        """Name of the method: "simmim", "kamim", or "kamim-" and the name of a control weighting."""
        return {"none": "simmim", "keypoint": "kamim"}.get(self.weighting, f"kamim-{self.weighting}")

    def cell_weighting(self) -> CellWeighting | None:
        """The weighting that these arguments describe; None for SimMIM."""
        if self.weighting == "none":
            return None
        return CellWeighting(self.weighting, self.temperature, self.weight_norm)

    def detector(self) -> KeypointDetector:
        """The detector that these arguments describe."""
        try:
            parameters = json.loads(self.keypoint_detector_args or "{}", parse_constant=_refuse_constant)
        except ValueError as error:
            raise InputError(f"keypoint_detector_args is {self.keypoint_detector_args!r}, not JSON: {error}") from None
        if not isinstance(parameters, dict):
            raise InputError(f"keypoint_detector_args is {self.keypoint_detector_args!r}; give a JSON object")
        return KeypointDetector(self.keypoint_detector, self.keypoint_footprint, parameters)

    def densities(self) -> DensityDetector:
        """The detector of whole images that these arguments describe."""
        return DensityDetector(self.detector(), self.image_size, self.crop_min_scale)

    def random_view(self) -> RandomView:
        """The crop and flips that these arguments describe."""
        return RandomView(self.crop_min_scale, (3 / 4, 4 / 3), self.horizontal_flip, self.vertical_flip)


@dataclass
class SourceArguments:
    """Which images are read, all splits of them."""

    _argument_group_name = "source"

    dataset_name: str = field(
        metadata={"help": "Hub id, folder of images, folder or file of Parquet, or directory saved by `datasets`."}
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of a Hub data set."})
    image_column: str | None = field(default=None, metadata={"help": "Column of the images; found where not given."})
    num_proc: int | None = field(default=None, metadata={"help": "Processes of this machine."})
    trust_data_files: bool = field(default=False, metadata={"help": TRUST_HELP})

    def __post_init__(self):
        check_ranges(self)


@dataclass
class PreparationArguments:
    """How the images are prepared."""

    _argument_group_name = "preparation"

    output_dir: str = field(metadata={"help": "Folder of the prepared data set."})
    image_size: int = field(
        default=192,
        metadata={"help": "Side of the model's input in pixels; images are shrunk to a short side of 4/3 of it."},
    )
    quality: int = field(default=90, metadata={"help": "JPEG quality of the shrunk images, 1 to 100."})
    keypoint_detector: list[str] = field(
        default_factory=lambda: ["fast"], metadata={"help": "One or several of fast, sift and orb."}
    )
    keypoint_footprint: Literal["circle", "point"] = field(
        default="circle", metadata={"help": "Draw a keypoint as a ring of radius 3 px, or as one pixel."}
    )
    crop_min_scale: float = field(
        default=0.67, metadata={"help": "Least area of the training's crops; sets the scale of detection."}
    )
    bad_images: Literal["raise", "skip"] = field(
        default="raise",
        metadata={"help": "An image that cannot be decoded: stop and name it, or leave it out and list it."},
    )
    rows_per_shard: int = field(default=4096, metadata={"help": "Images in a Parquet file."})
    engine: Literal["local", "ray"] = field(
        default="local",
        metadata={"help": "Processes of this machine, or Ray Data on the cluster that RAY_ADDRESS names."},
    )
    push_to_hub: bool = field(default=False, metadata={"help": "Publish the prepared data set as --repo."})
    repo: str | None = field(default=None, metadata={"help": "Repository on the Hub: user/name, or name for your own."})

    def __post_init__(self):
        check_output_dir(self.output_dir)
        if self.push_to_hub and self.repo is None:
            raise InputError("--push_to_hub needs --repo user/name")
        check_ranges(self)
        self.densities()

    def densities(self) -> tuple[DensityDetector, ...]:
        """The detectors of whole images that these arguments describe."""
        detectors = [KeypointDetector(name, self.keypoint_footprint) for name in dict.fromkeys(self.keypoint_detector)]
        return tuple(DensityDetector(detector, self.image_size, self.crop_min_scale) for detector in detectors)


@dataclass
class CheckArguments:
    """What the check leaves behind."""

    _argument_group_name = "check"

    output: str | None = field(default=None, metadata={"help": "Text file to write, with a line for each bad image."})


@dataclass
class PushArguments:
    """What is published."""

    _argument_group_name = "publishing"

    directory: str = field(
        metadata={"help": "Output directory of a run, a checkpoint in it, or a converted checkpoint."}
    )
    repo: str = field(metadata={"help": "Repository on the Hub: user/name, or name for your own."})
    results: list[str] = field(
        default_factory=list,
        metadata={"help": "Folders with results.json of evaluations; those of these very weights go into the card."},
    )
    commit_message: str = field(default="Upload checkpoint", metadata={"help": "Title of the commit."})


@dataclass
class HubArguments:
    """How a repository is made and written."""

    _argument_group_name = "Hub"

    private: bool | None = field(
        default=None, metadata={"help": "Make a new repository private; your account's default where not given."}
    )
    revision: str | None = field(default=None, metadata={"help": "Branch, made where it does not exist; main."})
    token: str | None = field(
        default=None, metadata={"help": "Access token; that of `hf auth login`, or HF_TOKEN, where not given."}
    )
    license: str | None = field(
        default=None,
        metadata={"help": "Licence by its id on the Hub, for example apache-2.0; of a data set that of its source."},
    )


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number of JSON")


def _check_divides(part_name: str, part: int, whole_name: str, whole: int) -> None:
    if part < 1 or whole < 1 or whole % part:
        raise InputError(f"{part_name} is {part} and {whole_name} is {whole}; the first must divide the second")


@dataclass
class OnlineProbeArguments:
    """Scores of the features while they are learnt; needs labels."""

    _argument_group_name = "online probe"

    probe_every: str | None = field(
        default=None,
        metadata={
            "help": "Log a linear probe and nearest neighbours every N optimiser steps, or every 'epoch'; the training "
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
        """Optimiser steps between two scores; None where there are none."""
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
            "help": "Linear probe: the paper's; with its LayerNorm (Table 5); MAE's (BatchNorm, crop and flip, LARS, "
            "last block, without a last batch that is smaller); on features computed once, several learning rates side "
            "by side, with nearest neighbours (cached); or nearest neighbours alone (knn). Each brings its learning "
            "rate, weight decay and length."
        },
    )
    model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "KAMIM, ViT or Swin checkpoint (cached and knn: any encoder of transformers or timm); without it "
            "the weights are random."
        },
    )
    model_type: Literal["vit", "swin"] = field(default="vit", metadata={"help": "For random weights."})
    model_size: Literal["tiny", "small", "base"] = field(default="base", metadata={"help": "For random weights."})
    image_size: int | None = field(
        default=None,
        metadata={
            "help": "Side of the input in pixels; the checkpoint's where not given (random: 192). Fine-tuning takes "
            "another one than the checkpoint's and interpolates its positions."
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
        default_factory=list, metadata={"help": "Repeat for these seeds; results.json holds mean and deviation too."}
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
    def trains_on_features(self) -> bool:
        """Whether the encoder's features never change, so that the head is trained on features computed once."""
        return self.cache_features and self.mode == "linear_probe" and self.augmentation == "none"

    @property
    def pooled_norm(self) -> str:
        """Norm between features and linear layer: "none", "layernorm" or "batchnorm"."""
        norm = self.recipe.pooled_norm
        return "layernorm" if norm == "none" and self.layer_norm else norm


PRETRAINING_ARGUMENTS = (DataArguments, KamimArguments, StreamingArguments, OnlineProbeArguments, PretrainingArguments)
CLASSIFICATION_ARGUMENTS = (DataArguments, ClassificationArguments, ProbingArguments)
PREPARATION_ARGUMENTS = (SourceArguments, PreparationArguments, HubArguments)
SCRIPT_ARGUMENTS: dict[str, tuple[type, ...]] = {
    "run_mim.py": PRETRAINING_ARGUMENTS,
    "run_classification.py": CLASSIFICATION_ARGUMENTS,
}
