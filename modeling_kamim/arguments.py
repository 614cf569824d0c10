"""Command line and YAML: the YAML file sets the defaults, the command line wins, unknown keys are errors."""

import argparse
import difflib
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import yaml
from transformers import HfArgumentParser, TrainingArguments

from .density import DensityDetector, detection_side
from .errors import InputError
from .keypoints import KeypointDetector
from .privacy import public_settings, without_tokens
from .views import RandomView
from .weighting import CellWeighting

PAPER_BATCH_SIZE = 2048
STREAM_EVAL_SAMPLES = 1000


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

    def __post_init__(self):
        for name in ("max_train_samples", "max_eval_samples", "num_proc"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} is {value}; it must be at least 1")


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
        if self.shuffle_buffer < 1:
            raise InputError(f"shuffle_buffer is {self.shuffle_buffer}; it must be at least 1")


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
        if not 0 < self.mask_ratio < 1:
            raise InputError(f"mask_ratio is {self.mask_ratio}; it must be between 0 and 1, both excluded")
        token = 16 if self.model_type == "vit" else 4
        _check_divides("mask_patch_size", self.mask_patch_size, "image_size", self.image_size)
        _check_divides("weight_patch_size", self.weight_patch_size, "image_size", self.image_size)
        _check_divides(f"the {self.model_type} patch size", token, "mask_patch_size", self.mask_patch_size)
        self.cell_weighting(), self.detector(), self.random_view()

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
            parameters = json.loads(self.keypoint_detector_args or "{}")
        except json.JSONDecodeError as error:
            raise InputError(f"keypoint_detector_args is {self.keypoint_detector_args!r}, not JSON: {error}") from None
        if not isinstance(parameters, dict):
            raise InputError(f"keypoint_detector_args is {self.keypoint_detector_args!r}; give a JSON object")
        return KeypointDetector(self.keypoint_detector, self.keypoint_footprint, parameters)

    def densities(self) -> DensityDetector:
        """The detector of whole images that these arguments describe."""
        return DensityDetector(self.detector(), detection_side(self.image_size, self.crop_min_scale))

    def random_view(self) -> RandomView:
        """The crop and flips that these arguments describe."""
        return RandomView(self.crop_min_scale, (3 / 4, 4 / 3), self.horizontal_flip, self.vertical_flip)


@dataclass
class PreparationArguments:
    """Which images, and how they are prepared."""

    _argument_group_name = "preparation"

    dataset_name: str = field(
        metadata={"help": "Hub id, folder of images, folder or file of Parquet, or directory saved by `datasets`."}
    )
    output_dir: str = field(metadata={"help": "Folder of the prepared data set."})
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of a Hub data set."})
    image_column: str | None = field(default=None, metadata={"help": "Column of the images; found where not given."})
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
    num_proc: int | None = field(default=None, metadata={"help": "Processes (local engine)."})
    engine: Literal["local", "ray"] = field(
        default="local",
        metadata={"help": "Processes of this machine, or Ray Data on the cluster that RAY_ADDRESS names."},
    )
    push_to_hub: bool = field(default=False, metadata={"help": "Publish the prepared data set as --repo."})
    repo: str | None = field(default=None, metadata={"help": "Repository on the Hub: user/name, or name for your own."})
    private: bool | None = field(
        default=None, metadata={"help": "Make a new repository private; your account's default where not given."}
    )
    revision: str | None = field(default=None, metadata={"help": "Branch, made where it does not exist; main."})
    token: str | None = field(
        default=None, metadata={"help": "Access token; that of `hf auth login`, or HF_TOKEN, where not given."}
    )
    license: str | None = field(
        default=None, metadata={"help": "Licence of the images by its id on the Hub: that of the source."}
    )

    def __post_init__(self):
        if self.push_to_hub and self.repo is None:
            raise InputError("--push_to_hub needs --repo user/name")
        for name in ("image_size", "rows_per_shard", "num_proc"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} is {value}; it must be at least 1")
        if not 1 <= self.quality <= 100:
            raise InputError(f"quality is {self.quality}; it must be between 1 and 100")
        RandomView(self.crop_min_scale)
        self.densities()

    def densities(self) -> tuple[DensityDetector, ...]:
        """The detectors of whole images that these arguments describe."""
        side = detection_side(self.image_size, self.crop_min_scale)
        names = dict.fromkeys(self.keypoint_detector)
        return tuple(DensityDetector(KeypointDetector(name, self.keypoint_footprint), side) for name in names)


@dataclass
class CheckArguments:
    """Which images are checked."""

    _argument_group_name = "check"

    dataset_name: str = field(
        metadata={"help": "Hub id, folder of images, folder or file of Parquet, or directory saved by `datasets`."}
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of a Hub data set."})
    image_column: str | None = field(default=None, metadata={"help": "Column of the images; found where not given."})
    num_proc: int | None = field(default=None, metadata={"help": "Processes."})
    output: str | None = field(default=None, metadata={"help": "Text file to write, with a line for each bad image."})

    def __post_init__(self):
        if self.num_proc is not None and self.num_proc < 1:
            raise InputError(f"num_proc is {self.num_proc}; it must be at least 1")


@dataclass
class PushArguments:
    """What is published, and where."""

    _argument_group_name = "publishing"

    directory: str = field(
        metadata={"help": "Output directory of a run, a checkpoint in it, or a converted checkpoint."}
    )
    repo: str = field(metadata={"help": "Repository on the Hub: user/name, or name for your own."})
    private: bool | None = field(
        default=None, metadata={"help": "Make a new repository private; your account's default where not given."}
    )
    revision: str | None = field(default=None, metadata={"help": "Branch, made where it does not exist; main."})
    token: str | None = field(
        default=None, metadata={"help": "Access token; that of `hf auth login`, or HF_TOKEN, where not given."}
    )
    license: str | None = field(
        default=None, metadata={"help": "Licence by its id on the Hub, for example apache-2.0."}
    )
    results: list[str] = field(
        default_factory=list,
        metadata={"help": "Folders with results.json of evaluations; those of these very weights go into the card."},
    )
    commit_message: str = field(default="Upload checkpoint", metadata={"help": "Title of the commit."})


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
        if self.probe_images < 1:
            raise InputError(f"probe_images is {self.probe_images}; it must be at least 1")
        self.probe_steps(1)

    def probe_steps(self, steps_per_epoch: int) -> int | None:
        """Optimiser steps between two scores; None where there are none."""
        if self.probe_every in (None, "epoch"):
            return steps_per_epoch if self.probe_every else None
        if not self.probe_every.isdigit() or int(self.probe_every) < 1:
            raise InputError(f'probe_every is {self.probe_every!r}; give a number of steps from 1, or "epoch"')
        return int(self.probe_every)


_AUGMENTATIONS: dict[str, Literal["none", "paper", "crop_flip"]] = {
    "paper": "paper",
    "paper_layernorm": "paper",
    "mae": "crop_flip",
    "cached": "none",
}


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
    protocol: Literal["paper", "paper_layernorm", "mae", "cached"] = field(
        default="paper",
        metadata={
            "help": "Linear probe: the paper's; with its LayerNorm (Table 5); MAE's (BatchNorm, crop and flip, LARS, "
            "last block); or on features computed once, several learning rates side by side, with nearest neighbours."
        },
    )
    model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "KAMIM, ViT or Swin checkpoint (protocol cached: any encoder of transformers or timm); without it "
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
        default="default", metadata={"help": "Protocol cached: probe one layer, or every layer in the same pass."}
    )
    pooling: Literal["mean", "cls"] = field(
        default="mean", metadata={"help": "Protocol cached: mean of the patch tokens (the paper's), or the CLS token."}
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
        default=None, metadata={"help": "Fine-tuning of Swin: stochastic depth; the checkpoint's where not given."}
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
        if not 0 < self.validation_fraction < 1:
            raise InputError(f"validation_fraction is {self.validation_fraction}; it must be between 0 and 1")
        if self.layer is not None and self.layer < 1:
            raise InputError(f"layer is {self.layer}; blocks are counted from 1")
        if self.low_shot is not None and not 0 < self.low_shot <= 1:
            raise InputError(f"low_shot is {self.low_shot}; it is a share of the training images, in (0, 1]")
        if self.mode != "linear_probe" and self.protocol != "paper":
            raise InputError(f"protocol is {self.protocol}; it is for --mode linear_probe, not for {self.mode}")
        if not 0 < self.layer_decay <= 1:
            raise InputError(f"layer_decay is {self.layer_decay}; it must be in (0, 1], where 1 is no decay")
        if self.mode != "finetune" and (self.layer_decay != 1.0 or self.ema_decay or self.drop_path):
            raise InputError("layer_decay, ema_decay and drop_path are for --mode finetune")
        if self.augmentation == "auto":
            self.augmentation = _AUGMENTATIONS[self.protocol]

    @property
    def trains_on_features(self) -> bool:
        """Whether the encoder's features never change, so that the head is trained on features computed once."""
        return self.cache_features and self.mode == "linear_probe" and self.augmentation == "none"

    @property
    def pooled_norm(self) -> str:
        """Norm between features and linear layer: "none", "layernorm" or "batchnorm"."""
        if self.protocol == "mae":
            return "batchnorm"
        return "layernorm" if self.layer_norm or self.protocol == "paper_layernorm" else "none"


@dataclass
class _RecipeArguments(TrainingArguments):
    """transformers' `TrainingArguments` with the paper's schedule, and two settings that adapt to the machine."""

    _argument_group_name = "training (all of transformers' TrainingArguments)"
    schedule_ends: ClassVar[dict[str, float]]

    per_device_train_batch_size: int = field(default=32, metadata={"help": "Images on a device at a time."})
    per_device_eval_batch_size: int = field(default=32, metadata={"help": "Images on a device in evaluation."})
    global_batch_size: int | None = field(
        default=None,
        metadata={
            "help": "Images per optimiser step over all devices: gradient_accumulation_steps follows from it and "
            f"per_device_train_batch_size. The paper's is {PAPER_BATCH_SIZE}."
        },
    )
    precision: Literal["auto", "bf16", "fp16", "fp32"] = field(
        default="auto", metadata={"help": "auto: bf16 where the hardware computes in it, else fp16 (CUDA) or fp32."}
    )
    attention: Literal["auto", "sdpa", "eager"] = field(
        default="auto",
        metadata={"help": "auto: eager for bf16 on a CPU, where the backward of sdpa is slow, else sdpa."},
    )
    num_train_epochs: float = field(default=100, metadata={"help": "Passes over the training images."})
    weight_decay: float = field(default=0.05, metadata={"help": "AdamW's weight decay."})
    warmup_steps: float = field(
        default=0.1, metadata={"help": "Linear warm-up: steps, or below 1 a share of all steps."}
    )
    lr_scheduler_type: str = field(
        default="cosine_warmup_with_min_lr", metadata={"help": "Schedule, by its name in transformers."}
    )
    lr_scheduler_kwargs: dict | str | None = field(
        default=None, metadata={"help": "Parameters of the schedule as JSON; the paper's for its schedule."}
    )
    logging_first_step: bool = field(default=True, metadata={"help": "Log the first step too."})
    logging_steps: float = field(default=10, metadata={"help": "Log every N steps."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints to keep."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Must stay off here."})
    nonfinite: Literal["raise", "skip"] = field(
        default="raise",
        metadata={
            "help": "A loss or gradient that is not finite: stop before the weights take it in, or leave the step out; "
            "a file names the images."
        },
    )
    force_resume: bool = field(
        default=False, metadata={"help": "Go on with a checkpoint although settings differ that change the result."}
    )
    hub_license: str | None = field(
        default=None,
        metadata={"help": "Licence of the published weights, by its id on the Hub, for example apache-2.0."},
    )
    disable_tqdm: bool | None = field(default=False, metadata={"help": "No progress bars."})

    def __post_init__(self):
        if not (self.bf16 or self.fp16):
            precision = choose_precision(self.use_cpu) if self.precision == "auto" else self.precision
            self.bf16: bool = precision == "bf16"
            self.fp16: bool = precision == "fp16"
        if self.lr_scheduler_kwargs is None and str(self.lr_scheduler_type) == "cosine_warmup_with_min_lr":
            self.lr_scheduler_kwargs = dict(self.schedule_ends)
        super().__post_init__()
        if self.device.type == "cpu":
            self.dataloader_pin_memory = False
        if self.global_batch_size is not None:
            self.gradient_accumulation_steps = self._accumulation_steps()

    def _accumulation_steps(self) -> int:
        at_a_time = self.train_batch_size * self.world_size
        if self.global_batch_size < at_a_time or self.global_batch_size % at_a_time:
            raise InputError(
                f"global_batch_size is {self.global_batch_size}; it must be a multiple of {at_a_time} "
                f"(per_device_train_batch_size {self.per_device_train_batch_size} on {self.world_size} process(es))"
            )
        return self.global_batch_size // at_a_time

    @property
    def attn_implementation(self) -> str:
        """The attention that `attention` means on this device, as transformers names it."""
        if self.attention != "auto":
            return self.attention
        return "eager" if self.bf16 and self.device.type == "cpu" else "sdpa"

    def describe_speed(self) -> str:
        """The settings that decide the speed, and what chose them."""
        precision = "bf16" if self.bf16 else "fp16" if self.fp16 else "fp32"
        chosen = f"chosen for {_PRECISION_REASONS[precision]}" if self.precision == "auto" else "as asked for"
        attention = "chosen for precision and device" if self.attention == "auto" else "as asked for"
        compiled = "torch.compile" if self.torch_compile else "not compiled (--torch_compile true)"
        optimizer = getattr(self.optim, "value", self.optim)
        return f"{precision} ({chosen}), {self.attn_implementation} attention ({attention}), {optimizer}, {compiled}"

    @property
    def total_batch_size(self) -> int:
        """Images per optimiser step over all devices."""
        return self.train_batch_size * self.world_size * self.gradient_accumulation_steps


@dataclass
class PretrainingArguments(_RecipeArguments):
    """The paper's pretraining (section 4.1): lr 8e-4, warm-up from 1e-6 over 10%, cosine to 1e-5, clipping at 1."""

    schedule_ends = {"min_lr": 1e-5, "warmup_lr_rate": 1e-6 / 8e-4}

    output_dir: str = field(default="outputs/mim", metadata={"help": "Where checkpoints and results go."})
    learning_rate: float = field(default=8e-4, metadata={"help": "Peak learning rate."})
    max_grad_norm: float = field(default=1.0, metadata={"help": "Clip gradients at this norm; 0 turns it off."})

    def __post_init__(self):
        if self.greater_is_better is None and str(self.metric_for_best_model).endswith("masked_l1"):
            self.greater_is_better: bool | None = False  # transformers knows this of names in "loss" alone
        super().__post_init__()


@dataclass
class ProbingArguments(_RecipeArguments):
    """The paper's linear probing and fine-tuning (section 4.1): lr 5e-3, cosine to 2.5e-6, no clipping."""

    schedule_ends = {"min_lr": 2.5e-6, "warmup_lr_rate": 1e-6 / 5e-3}

    output_dir: str = field(default="outputs/classification", metadata={"help": "Where checkpoints and results go."})
    learning_rate: float = field(default=5e-3, metadata={"help": "Peak learning rate."})
    max_grad_norm: float = field(default=0.0, metadata={"help": "Clip gradients at this norm; 0 turns it off."})

    def __post_init__(self):
        super().__post_init__()
        self.label_names = ["labels"]


_PRECISION_REASONS = {
    "bf16": "hardware that computes in it",
    "fp16": "a GPU without bf16",
    "fp32": "hardware without bf16 units",
}


def choose_precision(use_cpu: bool = False) -> str:
    """Fastest of "bf16", "fp16" and "fp32" that the hardware computes in without emulation."""
    if torch.cuda.is_available() and not use_cpu:
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if torch.accelerator.is_available() and not use_cpu:
        return "fp32"
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16" if native else "fp32"


PRETRAINING_ARGUMENTS = (DataArguments, KamimArguments, StreamingArguments, OnlineProbeArguments, PretrainingArguments)
CLASSIFICATION_ARGUMENTS = (DataArguments, ClassificationArguments, ProbingArguments)
SCRIPT_ARGUMENTS: dict[str, tuple[type, ...]] = {
    "run_mim.py": PRETRAINING_ARGUMENTS,
    "run_classification.py": CLASSIFICATION_ARGUMENTS,
}


def parse(
    argument_types: Sequence[type],
    argv: Sequence[str] | None = None,
    description: str = "",
    positional: Sequence[str] = (),
) -> tuple[Any, ...]:
    """Parse `[config.yaml] [--key value ...]` into dataclasses.

    Args:
        argument_types: dataclasses, as for `HfArgumentParser`.
        argv: the command line without the program; `sys.argv` where None.
        description: shown by `--help`.
        positional: arguments that may be given first, without their names, in place of a YAML file.

    Raises:
        InputError: for a missing or malformed file, an unknown key (with the nearest known one), or a value that is
            not allowed.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = _Parser(
        argument_types,
        usage=f"%(prog)s {' '.join(map(str.upper, positional)) or '[config.yaml]'} [--key value ...]",
        description=description,
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
    )
    if argv and argv[0].endswith((".yaml", ".yml")):
        argv = parser.yaml_to_argv(Path(argv[0])) + argv[1:]
    for name in positional:
        if argv and not argv[0].startswith("-"):
            argv = [*argv[1:], f"--{name}", argv[0]]
    try:
        known = parser.parse_args_into_dataclasses(argv, return_remaining_strings=True, look_for_args_file=False)
    except InputError:
        raise
    except _REFUSALS as error:  # of a value that a dataclass, transformers' above all, does not take
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{reason} (see --help)") from error
    *parsed, unknown = known
    if unknown:
        raise InputError(f"unknown argument {unknown[0]!r}{parser.suggestion(unknown[0])}")
    return tuple(parsed)


_REFUSALS = (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, ImportError, RecursionError)
_NOT_OF_THE_RUN = ("output_dir", "push_to_hub", "resume_from_checkpoint", "num_proc", "report_to", "disable_tqdm")


def given_settings(argument_types: Sequence[type], argv: Sequence[str] | None = None) -> str:
    """YAML of the settings that a YAML file and the command line give, to be published and to be run again.

    Local paths become "local:" and their last part. What names a place instead of the training (output_dir, what
    begins with hub_, ...) is left out. The first line is a comment with the command.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = _Parser(argument_types, allow_abbrev=False)
    has_file = bool(argv) and argv[0].endswith((".yaml", ".yml"))
    for action in parser._actions:
        action.default, action.required = argparse.SUPPRESS, False
    given, _ = parser.parse_known_args([*(parser.yaml_to_argv(Path(argv[0])) if has_file else []), *argv[has_file:]])
    settings = {
        key: value for key, value in vars(given).items() if key not in _NOT_OF_THE_RUN and not key.startswith("hub_")
    }
    typed = {key for key in settings if any(word.split("=")[0] == f"--{key}" for word in argv)}
    options = [f"--{key} {_as_typed(public_settings(settings[key], key))}" for key in settings if key in typed]
    command = " ".join(["python", Path(sys.argv[0]).name, *([_public_file(argv[0])] if has_file else []), *options])
    body = yaml.safe_dump(public_settings(settings), sort_keys=False) if settings else ""
    return f"# {without_tokens(command)}\n{without_tokens(body)}"


def _as_typed(value: Any) -> str:
    return shlex.join(map(str, value if isinstance(value, list) else [value]))


def _public_file(file: str) -> str:
    return Path(file).name if Path(file).is_absolute() or ".." in Path(file).parts else file


_MOST_ITEMS = 200  # of a mapping in a YAML file


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults beside every argument; the description as it is written."""


class _Parser(HfArgumentParser):
    def error(self, message: str):
        raise InputError(f"{message} (see --help)")

    def suggestion(self, key: str) -> str:
        keys = [action.dest for action in self._actions]
        nearest = difflib.get_close_matches(key.lstrip("-").split("=")[0], keys, n=1)
        return f"; did you mean {nearest[0]!r}?" if nearest else ""

    def yaml_to_argv(self, path: Path) -> list[str]:
        argv: list[str] = []
        for key, value in read_yaml(path).items():
            if key not in {action.dest for action in self._actions} - {"help"}:
                raise InputError(f"unknown key {key!r} in {path}{self.suggestion(str(key))}")
            if value is None:
                continue
            values = value if isinstance(value, list) else [value]
            try:
                argv += [f"--{key}", *map(_as_word, values)]
            except TypeError as error:
                raise InputError(f"{key} in {path}: {error}; give a value, a list of values, or a mapping") from None
        return argv


def _as_word(value: Any) -> str:
    """A YAML value as a word of the command line; a mapping becomes JSON."""
    if isinstance(value, list | set | bytes):
        raise TypeError(f"a {type(value).__name__} where a value is expected")
    if not isinstance(value, dict):
        return str(value)
    items: list[Any] = [value]
    for item in items:  # grows meanwhile; aliases can make it endless
        if len(items) > _MOST_ITEMS:
            raise TypeError(f"more than {_MOST_ITEMS} items")
        items += item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()
    return json.dumps(value)


def read_yaml(path: Path) -> dict[str, Any]:
    """The keys of a YAML file.

    Raises:
        InputError: if there is no such file, or it is not a flat mapping.
    """
    if not path.is_file():
        raise InputError(f"there is no config file {path}")
    try:
        keys = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except Exception as error:  # on wrong dates, numbers and tags PyYAML raises nearly anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path} is not valid YAML: {reason}") from None
    if not isinstance(keys, dict):
        raise InputError(f"{path} must hold 'key: value' lines")
    return keys
