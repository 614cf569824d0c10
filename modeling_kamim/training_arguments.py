"""transformers' `TrainingArguments` with the paper's recipes as defaults."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from transformers import TrainingArguments

from .errors import InputError
from .evaluation.protocols import PAPER_TRAINING
from .hardware import Hardware, find_hardware
from .limits import check_ranges
from .processes import is_on
from .recipe_checks import check_recipe
from .run_directory import check_output_dir

PAPER_BATCH_SIZE = 2048
OWN_SCHEDULE = "cosine_warmup_with_min_lr"
MAE_BATCH_SIZE = 256  # to which base learning rates belong


@dataclass
class _RecipeArguments(TrainingArguments):
    """transformers' `TrainingArguments` with the paper's schedule, and two settings that adapt to the machine."""

    _argument_group_name = "training (all of transformers' TrainingArguments)"
    schedule_ends: ClassVar[dict[str, float]]
    metrics: ClassVar[tuple[str, ...]]  # of an evaluation while it trains

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
    lr_scheduler_type: str = field(default=OWN_SCHEDULE, metadata={"help": "Schedule, by its name in transformers."})
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
        check_output_dir(self.output_dir)
        check_ranges(self)
        self._is_cpu_asked_for = self.use_cpu or is_on("ACCELERATE_USE_CPU")
        hardware = find_hardware(self._is_cpu_asked_for)
        self.use_cpu: bool = hardware.device == "cpu"  # or transformers refuses bf16 where there is no accelerator
        self._set_precision(hardware)
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
        precision = hardware.precision if self._is_precision_chosen else (*asked_for, self.precision)[0]
        if precision == "fp16" and hardware.device == "cpu":
            raise InputError("precision is fp16, which needs a GPU; on the CPU give bf16, fp32 or auto")
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
        """The attention that `attention` means on this device, as transformers names it."""
        if self.attention != "auto":
            return self.attention
        return "eager" if self.bf16 and self.device.type == "cpu" else "sdpa"

    def describe_speed(self) -> str:
        """The settings that decide the speed, and what chose them."""
        precision = "bf16" if self.bf16 else "fp16" if self.fp16 else "fp32"
        chosen = f"chosen for {_PRECISION_REASONS[precision]}" if self._is_precision_chosen else "as asked for"
        attention = "chosen for precision and device" if self.attention == "auto" else "as asked for"
        compiled = "torch.compile" if self.torch_compile else "not compiled (--torch_compile true)"
        optimizer = getattr(self.optim, "value", self.optim)
        device = self.device.type
        if device == "cpu":
            device = f"the CPU ({'as asked for' if self._is_cpu_asked_for else 'no accelerator found'})"
        attention = f"{self.attn_implementation} attention ({attention})"
        return f"on {device}: {precision} ({chosen}), {attention}, {optimizer}, {compiled}"

    @property
    def total_batch_size(self) -> int:
        """Images per optimiser step over all devices."""
        return self.train_batch_size * self.world_size * self.gradient_accumulation_steps


@dataclass
class PretrainingArguments(_RecipeArguments):
    """The paper's pretraining (section 4.1): lr 8e-4, warm-up from 1e-6 over 10%, cosine to 1e-5, clipping at 1."""

    schedule_ends = {"min_lr": 1e-5, "warmup_lr_rate": 1e-6 / 8e-4}
    metrics = ("loss", "masked_l1")

    output_dir: str = field(default="outputs/mim", metadata={"help": "Where checkpoints and results go."})
    learning_rate: float = field(default=8e-4, metadata={"help": "Peak learning rate."})
    max_grad_norm: float = field(default=1.0, metadata={"help": "Clip gradients at this norm; 0 turns it off."})

    def __post_init__(self):
        if self.greater_is_better is None and str(self.metric_for_best_model).endswith("masked_l1"):
            self.greater_is_better: bool | None = False  # transformers knows this of names in "loss" alone
        super().__post_init__()


@dataclass
class ProbingArguments(_RecipeArguments):
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


_PRECISION_REASONS = {
    "bf16": "hardware that computes in it",
    "fp16": "a GPU without bf16",
    "fp32": "hardware without bf16 units",
}
