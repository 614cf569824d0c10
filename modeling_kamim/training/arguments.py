"""Settings of a pretraining: model, objective, and transformers' `TrainingArguments` with the paper's recipe."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from accelerate.utils import parse_flag_from_env
from transformers import PreTrainedConfig, TrainingArguments
from transformers.hf_argparser import HfArg

from ..data.samples import MaskedImageTransform
from ..data.stored_density import DensityDetector
from ..data.views import RandomView, crop_ratios
from ..errors import InputError
from ..files import check_output_dir
from ..limits import (
    ImageSize,
    check_range,
    check_ranges,
    height_and_width,
    scaled_size,
    size_in_words,
    written_size,
)
from ..models.families import FAMILIES, encoder_stride, family_of
from ..models.sizes import build_config, image_size_of
from ..models.warm_start import config_to_pretrain
from ..objective.keypoints import KeypointDetector, detector_parameters
from ..objective.masking import num_masked_blocks
from ..objective.selection_rule import SelectionRule
from ..objective.sources.table import SOURCES, sources_in_words
from ..objective.weighting import CellWeighting, method_name, needs_keypoints
from .batches import OnlineDensity
from .hard_patches import HardPatches
from .hardware import Hardware, find_hardware
from .recipe import check_image_log, check_recipe


@dataclass
class KamimArguments:
    """Model, mask and keypoint weights; what is None becomes the checkpoint's or the family's."""

    _argument_group_name = "model and objective"

    model_name_or_path: str | None = HfArg(
        default=None,
        help="Checkpoint to start from, a directory or Hub id: an encoder, a masked image model or a classifier. "
        "Without it the weights are random.",
    )
    config_name: str | None = HfArg(
        default=None, help="Directory or Hub id of a config, for random weights, in place of type and size."
    )
    config_overrides: str | None = HfArg(
        default=None, help='Config keys over those of type and size, as "hidden_size=192,num_hidden_layers=6".'
    )
    model_type: str = HfArg(
        default=None, metadata={"choices": list(FAMILIES)}, help="Architecture (docs/families.md); vit."
    )
    model_size: str = HfArg(
        default=None, help="Size of random weights: tiny, small, base, large, ... (docs/families.md); base."
    )
    initialization: Literal["transformers", "mae"] = HfArg(
        default="transformers",
        help="Random weights: as transformers draws them, or as MAE's code (Xavier, sine-cosine positions), which "
        "learns faster in short runs.",
    )
    image_size: list[int] = HfArg(
        default=None, help="Side of the input in pixels, or its height and width; the checkpoint's, or 192."
    )
    patch_size: int | None = HfArg(default=None, help="Side of a patch of random weights in pixels; the family's.")
    num_channels: int = HfArg(
        default=None, help="Channels of the images, 1 for gray; the checkpoint's, or 3 (docs/images.md)."
    )
    image_mean: list[float] | None = HfArg(
        default=None,
        help="Mean of each channel in units of [0, 1]; the checkpoint's, for RGB ImageNet's, or measured.",
    )
    image_std: list[float] | None = HfArg(default=None, help="Standard deviation of each channel, as image_mean.")
    mask_patch_size: int = HfArg(
        default=None, help="Side of a masked block in pixels; 32 (vit_mae: a patch), or the nearest that fits."
    )
    mask_ratio: float = HfArg(default=None, help="Share of blocks to mask, in (0, 1); 0.6 (vit_mae: 0.75).")
    target: Literal["pixels", "normalized_pixels", "low_pass", "normalized_low_pass"] = HfArg(
        default=None,
        help="Predict pixels, their low frequencies (as PixMIM), or either normalized in each patch (vit_mae's "
        "default: normalized_pixels).",
    )
    loss: Literal["l1", "mse"] = HfArg(default=None, help="Absolute error, or squared (vit_mae's default).")
    weighting: Literal["keypoint", "none", "constant", "shuffled", "inverse", "predicted_loss"] = HfArg(
        default="keypoint",
        help="keypoint is KAMIM, none is SimMIM; predicted_loss weights by what the loss predictor expects; the others "
        "are controls (see docs/method.md).",
    )
    keypoint_detector: str = HfArg(
        default="fast",
        metadata={"choices": list(SOURCES)},
        help=f"Source of the density. {sources_in_words()}. See docs/method.md.",
    )
    keypoint_detector_args: str | None = HfArg(
        default=None, help="Parameters of the source as JSON, for example '{\"threshold\": 20}'."
    )
    keypoint_footprint: Literal["circle", "point"] = HfArg(
        default="circle", help="Draw a keypoint as a ring of radius 3 px, or as one pixel."
    )
    keypoint_source: Literal["map", "online"] = HfArg(
        default="map", help="Detect once on the whole image (cached), or on every crop (exactly the paper, slower)."
    )
    force_online: bool = HfArg(
        default=False, help="Detect online with a learned source although there is no GPU, which is slow."
    )
    keypoint_image_size: int | None = HfArg(
        default=None,
        help="Longer side of an average crop in pixels at which keypoints are detected (map); image_size where not "
        "given. Detectors find little in small images: 192 is the paper's.",
    )
    keypoint_channel: int | None = HfArg(
        default=None, help="Channel, from 0, in which keypoints are detected; RGB as it is, of others the mean."
    )
    weight_patch_size: int = HfArg(
        default=None, help="Side of a weight cell (w_ps) in pixels; 8, or the largest below that divides the image."
    )
    temperature: float = HfArg(default=0.25, help="T of Eq. 2; smaller means stronger weights.")
    temperature_schedule: Literal["constant", "linear", "cosine"] = HfArg(
        default="constant", help="How T moves from temperature to temperature_end during the training."
    )
    temperature_end: float | None = HfArg(default=None, help="T at the last step of a linear or cosine schedule.")
    weight_norm: Literal["none", "mean"] = HfArg(
        default="none", help="mean divides the weights of an image by their mean."
    )
    loss_predictor: bool = HfArg(
        default=False,
        help="Train a small head that predicts which patches have large errors (Hard Patches Mining). What needs it "
        "turns it on.",
    )
    masking: Literal["random", "easy_to_hard"] = HfArg(
        default="random", help="Mask random blocks, or more and more of those with the largest predicted errors."
    )
    selection: Literal["patch_aware", "random", "reversed"] = HfArg(
        default="patch_aware",
        help="Which share of the images is trained on (selection_ratio): those with the hardest patches, any, or those "
        "with the easiest.",
    )
    selection_ratio: float = HfArg(default=1.0, help="Share of the images to train on, in (0, 1]; 1 is all of them.")
    selection_every: int = HfArg(default=1, help="Epochs from one selection to the next.")
    crop_min_scale: float = HfArg(default=0.67, help="Least area of the random crop, in (0, 1].")
    horizontal_flip: float = HfArg(default=0.5, help="Probability of a horizontal flip.")
    vertical_flip: float = HfArg(default=0.5, help="Probability of a vertical flip.")
    jpeg_draft: bool = HfArg(
        default=False,
        help="Decode JPEGs at 1/2 to 1/8 of their size where crops stay as large as image_size: faster for photographs "
        "of 1,000 px and more, with smoother pixels (docs/performance.md).",
    )

    def __post_init__(self):
        check_ranges(self)
        if self.image_size is not None:
            self.image_size = written_size(self.image_size)  # type: ignore[assignment]
        if self.model_name_or_path is None and self.config_name is None:
            self.model_size = self.model_size or "base"
        config = self.model_config()
        family, patch_size = family_of(config), config.patch_size
        self.model_type = config.model_type
        self.image_size = image_size_of(config)  # type: ignore[assignment]
        self.num_channels = config.num_channels
        self._check_channels()
        sides = height_and_width(self.image_size)
        if self.mask_patch_size is None:
            most = patch_size if family.drops_masked else min(32, *(side // 2 for side in sides))
            self.mask_patch_size = largest_divisor(math.gcd(*sides), most, patch_size)
        if self.weight_patch_size is None:
            self.weight_patch_size = largest_divisor(math.gcd(*sides), 8)
        self.mask_ratio = self.mask_ratio or family.mask_ratio
        self.target, self.loss = self.target or family.target, self.loss or family.loss
        if self.keypoint_source == "online" and self.keypoint_image_size not in (None, max(sides)):
            raise InputError(
                f"keypoint_image_size is {self.keypoint_image_size}, and keypoint_source is online, which detects on "
                f"crops of image_size {size_in_words(sides)}; leave it out, or take --keypoint_source map"
            )
        if self.jpeg_draft and self.needs_keypoints and self.keypoint_source == "online":
            raise InputError(
                "jpeg_draft is true, and keypoint_source is online, which would find other keypoints in smaller "
                "images; take --keypoint_source map, or leave out jpeg_draft"
            )
        _check_divides("mask_patch_size", self.mask_patch_size, "image_size", self.image_size)
        _check_divides("weight_patch_size", self.weight_patch_size, "image_size", self.image_size)
        _check_divides(f"the {self.model_type} patch size", patch_size, "mask_patch_size", self.mask_patch_size)
        blocks = math.prod(side // self.mask_patch_size for side in sides)
        if num_masked_blocks(blocks, self.mask_ratio) >= blocks:
            raise InputError(
                f"mask_ratio is {self.mask_ratio}, which masks all of the {blocks} block(s) of mask_patch_size "
                f"{self.mask_patch_size} in image_size {size_in_words(sides)}; one at least must stay visible: give a "
                "smaller ratio or smaller blocks"
            )
        self.cell_weighting(), self.detector(), self.random_view()
        if self.needs_keypoints and self.keypoint_source == "map":
            self.densities().check_cells(self.weight_patch_size, self.image_size)
        self._set_loss_predictor(encoder_stride(config))

    def _set_loss_predictor(self, stride: int) -> None:
        rule = self.selection_rule()
        self.loss_predictor |= self.hard_patches() is not None or (rule is not None and rule.name != "random")
        if self.loss_predictor and self.mask_patch_size % stride:
            raise InputError(
                f"mask_patch_size is {self.mask_patch_size}, and the loss predictor tells patches of {stride} px "
                f"apart; give a multiple of {stride}"
            )

    def _check_channels(self) -> None:
        check_range("num_channels", self.num_channels)
        if self.keypoint_channel is not None and self.keypoint_channel >= self.num_channels:
            raise InputError(
                f"keypoint_channel is {self.keypoint_channel}, and the images have the channels 0 to "
                f"{self.num_channels - 1}"
            )
        if (self.image_mean is None) != (self.image_std is None):
            raise InputError("image_mean and image_std belong together; give both or neither")
        for name in ("image_mean", "image_std"):
            numbers = getattr(self, name)
            if numbers is not None and len(numbers) not in (1, self.num_channels):
                raise InputError(
                    f"{name} has {len(numbers)} numbers; give {self.num_channels}, one for each channel, or one for all"
                )

    @property
    def needs_keypoints(self) -> bool:
        """Whether the weights are made of the densities of keypoints."""
        return needs_keypoints(self.weighting)

    @property
    def method(self) -> str:
        """Name of the method in lower case, see `method_name`."""
        return method_name(self.weighting, family_of(self.model_type).drops_masked).lower()

    def model_config(self, **settings: Any) -> PreTrainedConfig:
        """Return the config of the model that these arguments describe, with further keys.

        Raises:
            InputError: if there is none, or the arguments contradict it or each other.
        """
        source = self.model_name_or_path or self.config_name
        if source is None:
            sizes = {"patch_size": self.patch_size, "num_channels": self.num_channels}
            given = {**{key: value for key, value in sizes.items() if value is not None}, **settings}
            if self.initialization == "mae":
                given["mae_init"] = True
            return build_config(
                self.model_type or "vit", self.model_size, self.image_size or 192, self.config_overrides, **given
            )
        name = "model_name_or_path" if self.model_name_or_path else "config_name"
        others = {"config_name": self.config_name if self.model_name_or_path else None}
        others |= {"initialization": None if self.initialization == "transformers" else self.initialization}
        others |= {"config_overrides": self.config_overrides, "model_size": self.model_size}
        for other, value in others.items():
            if value is not None:
                raise InputError(f"{other} is {value!r}, and {name} is {source!r}; leave out one of them")
        config = config_to_pretrain(source, self.image_size, self.num_channels)
        for key in ("model_type", "patch_size"):
            if getattr(self, key) not in (None, getattr(config, key)):
                raise InputError(
                    f"{key} is {getattr(self, key)!r}, that of {source} is {getattr(config, key)!r}; leave {key} out"
                )
        config.update(settings)
        return config

    def transform(self, image_column: str, patch_size: int) -> MaskedImageTransform:
        """Return the callable that makes a sample of the training from a row of images."""
        is_weighted, is_online = self.needs_keypoints, self.keypoint_source == "online"
        return MaskedImageTransform(
            image_column=image_column,
            image_size=self.image_size,
            patch_size=patch_size,
            mask_patch_size=self.mask_patch_size,
            mask_ratio=self.mask_ratio,
            weight_patch_size=self.weight_patch_size,
            random_view=self.random_view(),
            detector=self.detector() if is_weighted and is_online and not self.detector().is_learned else None,
            densities=self.densities() if is_weighted and not is_online else None,
            shuffle_cells=self.weighting == "shuffled",
            order_blocks=self.masking == "easy_to_hard",
            num_channels=self.num_channels,
            keypoint_channel=self.keypoint_channel,
            jpeg_draft=self.jpeg_draft,
        )

    def cell_weighting(self) -> CellWeighting | None:
        """Return the weighting that these arguments describe; None for SimMIM."""
        if self.weighting == "none":
            return None
        schedule = self.temperature_schedule, self.temperature_end
        return CellWeighting(self.weighting, self.temperature, self.weight_norm, *schedule)

    def detector(self) -> KeypointDetector:
        """Return the detector that these arguments describe.

        Raises:
            InputError: if `keypoint_detector_args` is no JSON object, or the detector does not take them.
        """
        return KeypointDetector(
            self.keypoint_detector, self.keypoint_footprint, detector_parameters(self.keypoint_detector_args)
        )

    def online_density(self) -> OnlineDensity | None:
        """Return what detects on the pixels of a batch; None where the loader or the map step does."""
        detector = self.detector()
        if not self.needs_keypoints or self.keypoint_source != "online" or not detector.is_learned:
            return None
        return OnlineDensity(detector, self.weight_patch_size, self.keypoint_channel)

    def check_device(self, device: str) -> None:
        """Raise InputError if a model would detect on every crop, and there is no GPU for it."""
        if self.online_density() is not None and device != "cuda" and not self.force_online:
            raise InputError(
                f"keypoint_source is online, and keypoint_detector {self.keypoint_detector} is a model, which is slow "
                "without a GPU; take --keypoint_source map, or --force_online true"
            )

    def densities(self) -> DensityDetector:
        """Return the detector of whole images that these arguments describe."""
        return DensityDetector(
            self.detector(),
            scaled_size(self.image_size, self.keypoint_image_size),
            self.crop_min_scale,
            channel=self.keypoint_channel,
            num_channels=self.num_channels,
        )

    def random_view(self) -> RandomView:
        """Return the crop and flips that these arguments describe."""
        return RandomView(self.crop_min_scale, crop_ratios(self.image_size), self.horizontal_flip, self.vertical_flip)

    def hard_patches(self) -> HardPatches | None:
        """Return what puts weights or masks where errors are expected; None where these arguments ask for neither."""
        has_weights, has_masks = self.weighting == "predicted_loss", self.masking == "easy_to_hard"
        if not has_weights and not has_masks:
            return None
        cells, blocks = self.num_cells if has_weights else None, self.num_blocks if has_masks else None
        return HardPatches(cells, blocks, self.mask_ratio)

    def selection_rule(self) -> SelectionRule | None:
        """Return the rule by which a share of the images is trained on; None for all of them."""
        if self.selection_ratio == 1:
            return None
        return SelectionRule(self.selection, self.selection_ratio, self.selection_every)

    @property
    def num_blocks(self) -> tuple[int, int]:
        """Rows and columns of masked blocks."""
        height, width = height_and_width(self.image_size)
        return height // self.mask_patch_size, width // self.mask_patch_size

    @property
    def num_cells(self) -> tuple[int, int]:
        """Rows and columns of the weight cells."""
        height, width = height_and_width(self.image_size)
        return height // self.weight_patch_size, width // self.weight_patch_size


def largest_divisor(whole: int, most: int, of: int = 1) -> int:
    """Return the largest divisor of `whole` up to `most` that is a multiple of `of`; `of` where there is none."""
    return next((part for part in range(most - most % of, of, -of) if whole % part == 0), of)


def _check_divides(part_name: str, part: int, whole_name: str, whole: ImageSize) -> None:
    if part < 1 or any(side < 1 or side % part for side in height_and_width(whole)):
        words = size_in_words(whole)
        raise InputError(f"{part_name} is {part} and {whole_name} is {words}; the first must divide the second")


PAPER_BATCH_SIZE = 2048
OWN_SCHEDULE = "cosine_warmup_with_min_lr"


@dataclass
class RecipeArguments(TrainingArguments):
    """transformers' `TrainingArguments` with the paper's schedule; precision and attention adapt to the machine."""

    _argument_group_name = "training (all of transformers' TrainingArguments)"
    schedule_ends: ClassVar[dict[str, float]]
    metrics: ClassVar[tuple[str, ...]]  # of evaluations during the training

    per_device_train_batch_size: int = HfArg(default=32, help="Images on a device at a time.")
    per_device_eval_batch_size: int = HfArg(default=32, help="Images on a device in evaluation.")
    global_batch_size: int | None = HfArg(
        default=None,
        help="Images per optimizer step over all devices: gradient_accumulation_steps follows from it and "
        f"per_device_train_batch_size. The paper's is {PAPER_BATCH_SIZE}.",
    )
    precision: Literal["auto", "bf16", "fp16", "fp32"] = HfArg(
        default="auto", help="auto: bf16 where the hardware is faster in it, else fp16 (CUDA) or fp32."
    )
    attention: Literal["auto", "sdpa", "eager"] = HfArg(
        default="auto", help="auto: eager for bf16 on a CPU, where the backward of sdpa is slow, else sdpa."
    )
    torch_compile: Literal["auto", "true", "false", True, False] = HfArg(  # type: ignore[assignment]
        default=False,
        metadata={"nargs": "?", "const": True, "metavar": "auto|true|false"},
        help="Compile the model: a minute before the first step, less for each. auto: in trainings of 2,000 steps "
        "and more, on a GPU, or on a CPU in bf16.",
    )
    num_train_epochs: float = HfArg(default=100, help="Passes over the training images.")
    weight_decay: float = HfArg(default=0.05, help="AdamW's weight decay.")
    warmup_steps: float = HfArg(default=0.1, help="Linear warm-up: steps, or below 1 a share of all steps.")
    lr_scheduler_type: str = HfArg(default=OWN_SCHEDULE, help="Schedule, by its name in transformers.")
    lr_scheduler_kwargs: dict | str | None = HfArg(
        default=None, help="Parameters of the schedule as JSON; the paper's for its schedule."
    )
    logging_first_step: bool = HfArg(default=True, help="Log the first step too.")
    logging_steps: float = HfArg(default=10, help="Log every N steps.")
    save_total_limit: int | None = HfArg(default=2, help="Number of checkpoints to keep.")
    remove_unused_columns: bool = HfArg(default=False, help="Must stay false: samples are made of these columns.")
    nonfinite: Literal["raise", "skip"] = HfArg(
        default="raise",
        help="A loss or gradient that is not finite: stop before the weights take it in, or leave the step out; "
        "a file names the images.",
    )
    force_resume: bool = HfArg(
        default=False, help="Go on with a checkpoint although settings differ that change the result."
    )
    hub_license: str | None = HfArg(
        default=None, help="License of the published weights, by its id on the Hub, for example apache-2.0."
    )
    disable_tqdm: bool | None = HfArg(default=False, help="No progress bars.")

    def __post_init__(self):
        check_output_dir(self.output_dir)
        check_ranges(self)
        self._is_cpu_asked_for = self.use_cpu or parse_flag_from_env("ACCELERATE_USE_CPU")
        hardware = find_hardware(self._is_cpu_asked_for)
        self.use_cpu: bool = hardware.device == "cpu"  # else transformers refuses bf16 without an accelerator
        self._set_precision(hardware)
        self.compilation_is_open = self.torch_compile == "auto"
        self.torch_compile: bool = self.torch_compile in ("true", True)
        if self.lr_scheduler_kwargs is None and str(self.lr_scheduler_type) == OWN_SCHEDULE:
            self.lr_scheduler_kwargs = dict(self.schedule_ends)
        super().__post_init__()
        if self.device.type == "cpu":
            self.dataloader_pin_memory = False
        if self.global_batch_size is not None:
            self.gradient_accumulation_steps = self._accumulation_steps()
        check_recipe(self, self.metrics)

    def _set_precision(self, hardware: Hardware) -> None:
        """Make `bf16` and `fp16` what `precision` says, and the other way round."""
        asked_for = [name for name in ("bf16", "fp16") if getattr(self, name)]
        if len(asked_for) == 2 or (asked_for and self.precision not in ("auto", *asked_for)):
            given = [f"--{name} true" for name in asked_for]
            if self.precision != "auto":
                given.insert(0, f"--precision {self.precision}")
            raise InputError(f"{' and '.join(given)} contradict each other; give --precision alone")
        self._is_precision_chosen = self.precision == "auto" and not asked_for
        precision = hardware.choose((*asked_for, self.precision)[0])
        self.bf16: bool = precision == "bf16"
        self.fp16: bool = precision == "fp16"

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
        """The attention to use on this device, by its name in transformers."""
        if self.attention != "auto":
            return self.attention
        return "eager" if self.bf16 and self.device.type == "cpu" else "sdpa"

    def describe_speed(self) -> str:
        """Return the settings that decide the speed, and why they were chosen, as a sentence for the log."""
        precision = "bf16" if self.bf16 else "fp16" if self.fp16 else "fp32"
        reasons = {"bf16": "hardware that is faster in it", "fp16": "a GPU without bf16"}
        reason = reasons.get(precision, "hardware that is not faster in bf16")
        chosen = f"chosen for {reason}" if self._is_precision_chosen else "as asked for"
        attention = "chosen for precision and device" if self.attention == "auto" else "as asked for"
        compiled = "torch.compile" if self.torch_compile else "not compiled (--torch_compile true)"
        if self.compilation_is_open:
            compiled = "torch.compile where it pays"
        optimizer = getattr(self.optim, "value", self.optim)
        device = self.device.type
        if device == "cpu":
            device = f"the CPU ({'as asked for' if self._is_cpu_asked_for else 'no accelerator found'})"
        attention = f"{self.attn_implementation} attention ({attention})"
        return f"on {device}: {precision} ({chosen}), {attention}, {optimizer}, {compiled}"

    @property
    def total_batch_size(self) -> int:
        """Images per optimizer step over all devices."""
        return self.train_batch_size * self.world_size * self.gradient_accumulation_steps


@dataclass
class PretrainingArguments(RecipeArguments):
    """The paper's pretraining (section 4.1): lr 8e-4, warm-up from 1e-6 over 10%, cosine to 1e-5, clipping at 1."""

    schedule_ends = {"min_lr": 1e-5, "warmup_lr_rate": 1e-6 / 8e-4}
    metrics = ("loss", "masked_l1")

    output_dir: str = HfArg(default="outputs/mim", help="Where checkpoints and results go.")
    learning_rate: float = HfArg(default=8e-4, help="Peak learning rate.")
    max_steps: int = HfArg(
        default=-1, help="Optimizer steps, in place of num_train_epochs; 0 saves the starting weights as they are."
    )
    max_grad_norm: float = HfArg(default=1.0, help="Clip gradients at this norm; 0 turns it off.")
    log_images_every: int | None = HfArg(
        default=None,
        help="Optimizer steps from one picture of reconstructions and weights to the next, in TensorBoard, Trackio or "
        "Weights & Biases (--report_to).",
    )

    def __post_init__(self):
        if self.greater_is_better is None and str(self.metric_for_best_model).endswith("masked_l1"):
            self.greater_is_better: bool | None = False  # transformers knows this of names that end in "loss" alone
        super().__post_init__()
        if self.log_images_every is not None:
            check_image_log(self.log_images_every, self.report_to)
