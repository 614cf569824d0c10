"""Try a pretraining on this machine before it starts: how fast it is, how long it takes, what memory it needs.

The steps are those of the real model, batches and optimizer on real samples, a few of them, in a process of its own:
its memory is that of a training, and if it is too large, that process alone ends.
"""

import multiprocessing
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import cv2
import datasets
import psutil
import torch
from torch.utils.data import default_collate
from tqdm import tqdm
from transformers import PreTrainedConfig, Trainer
from transformers.hf_argparser import HfArg

from ..data.decoding import BadImageError, decode_image
from ..data.fingerprint import sampled
from ..data.samples import MaskedImageTransform, SampleDataset
from ..data.stored_density import density_label
from ..errors import InputError, first_line, is_out_of_memory
from ..limits import check_ranges
from ..models.masked_image_modeling import KamimForMaskedImageModeling
from ..models.pixel_range import PixelRange
from ..models.processor import image_processor
from ..models.sizes import image_size_of
from .arguments import KamimArguments, PretrainingArguments
from .batches import prepare_batch, weigh
from .forecast import in_words, time_steps

NUM_SAMPLES = 64  # images that are read
_STEP_SECONDS = 3.0  # of the largest batch that is tried, unless the whole one is faster
_TIMED_STEPS = 2
_WATCH_SECONDS = 0.005
_BYTES_PER_PARAMETER = 16  # weight, gradient, and AdamW's two means, in 32 bits


@dataclass
class TrialArguments:
    """The training that is tried, where a model is given: as for `kamim pretrain`."""

    _argument_group_name = "estimate of a pretraining (give a model)"

    per_device_train_batch_size: int = HfArg(default=32, help="Images on a device at a time.")
    num_train_epochs: float = HfArg(default=100, help="Passes over the training images.")
    dataloader_num_workers: int = HfArg(default=0, help="Processes that load images; 0 is the training itself.")
    precision: Literal["auto", "bf16", "fp16", "fp32"] = HfArg(default="auto", help="As for kamim pretrain.")
    attention: Literal["auto", "sdpa", "eager"] = HfArg(default="auto", help="As for kamim pretrain.")
    use_cpu: bool = HfArg(default=False, help="Do not use an accelerator.")

    def __post_init__(self):
        check_ranges(self)

    def training_args(self) -> PretrainingArguments:
        """Return the arguments of such a pretraining.

        Raises:
            InputError: if they cannot be used on this machine.
        """
        return PretrainingArguments(report_to="none", **asdict(self))


@dataclass
class TriedModelArguments(KamimArguments):
    """Model and objective; without a model, no pretraining is tried."""

    def __post_init__(self):
        self.is_model_given = any((self.model_name_or_path, self.config_name, self.model_type, self.model_size))
        super().__post_init__()


@dataclass(frozen=True)
class Trial:
    """What a few steps took.

    Args:
        model: its name.
        num_parameters: of the model with its decoder.
        device, speed: the device's type, and what decides the speed, as a sentence.
        batch_size, tried_batch_size: images of a step, and of the largest step that was tried.
        step_seconds: of a step of `batch_size` images, without loading them.
        sample_seconds: to load an image and make a sample of it, in one process.
        keypoint_seconds: to detect the keypoints of a whole image; 0 where that is not needed.
        memory, available: bytes that such steps need at their peak, and of the machine or the accelerator.
        num_threads, num_cores: of a step, and of the machine.
        num_workers: of the loader.
    """

    model: str
    num_parameters: int
    device: str
    speed: str
    batch_size: int
    tried_batch_size: int
    step_seconds: float
    sample_seconds: float
    keypoint_seconds: float
    memory: int
    available: int
    num_threads: int
    num_cores: int
    num_workers: int

    @property
    def images_per_second(self) -> float:
        """Of a training, by what binds it: the steps, the loader, or the cores that both share."""
        step = self.step_seconds / self.batch_size
        if self.num_workers == 0:
            return 1 / (step + self.sample_seconds)
        bounds = [step, self.sample_seconds / self.num_workers]
        if self.device == "cpu":
            bounds.append((step * self.num_threads + self.sample_seconds) / self.num_cores)
        return 1 / max(bounds)

    def seconds(self, num_images: int, epochs: float) -> float:
        """Return how long a training takes, with the detection of keypoints before it."""
        return num_images * (epochs / self.images_per_second + self.keypoint_seconds)

    def report(self, num_images: int, epochs: float) -> str:
        """Return speed, duration and memory of a training, as a text of several lines."""
        loader = f"{self.num_workers} worker(s)" if self.num_workers else "the same process"
        tried = "" if self.tried_batch_size == self.batch_size else f" (tried with {self.tried_batch_size})"
        steps = f"{self.batch_size / self.step_seconds:,.1f} images/s in steps of {self.batch_size:,}{tried}"
        loading = f"{max(self.num_workers, 1) / self.sample_seconds:,.0f} images/s by {loader}"
        lines = [
            f"Pretraining {self.model} ({self.num_parameters / 1e6:,.1f}M parameters) {self.speed}:",
            f"  speed: {self.images_per_second:,.1f} images/s; the model {steps}, the loader {loading}",
            f"  {epochs:g} epoch(s) of {num_images:,} images: about {in_words(self.seconds(num_images, epochs))}, "
            f"{in_words(num_images / self.images_per_second)} each, without evaluations",
            f"  memory: about {self.memory / 1e9:,.1f} of {self.available / 1e9:,.1f} GB",
        ]
        if self.keypoint_seconds:
            lines[2] += f"; once, to detect keypoints: {in_words(num_images * self.keypoint_seconds)}"
        if self.memory > self.available:
            lines[3] += ": too much; give a smaller --per_device_train_batch_size"
        return "\n".join(lines)

    def facts(self, num_images: int, epochs: float) -> dict[str, Any]:
        """Return everything for a JSON file."""
        derived = {"images_per_second": self.images_per_second, "seconds": self.seconds(num_images, epochs)}
        return {**asdict(self), **derived, "num_images": num_images, "epochs": epochs}


def check_memory(kamim_args: KamimArguments) -> None:
    """Raise InputError if the weights of a model, with what training adds to each, are more than the whole memory."""
    with torch.device("meta"):
        model = KamimForMaskedImageModeling.from_config(kamim_args.model_config())
    num_parameters, memory = model.num_parameters(), psutil.virtual_memory().total
    if _BYTES_PER_PARAMETER * num_parameters > memory:
        needed = _BYTES_PER_PARAMETER * num_parameters / 1e9
        raise InputError(
            f"a model of {num_parameters / 1e6:,.0f}M parameters needs {needed:,.0f} GB for weights, gradients and "
            f"AdamW, and this machine has {memory / 1e9:,.0f} GB; give a smaller model"
        )


def try_pretraining(
    kamim_args: KamimArguments,
    trial_args: TrialArguments,
    rows: datasets.Dataset,
    image_column: str,
    pixel_range: PixelRange | None = None,
) -> Trial:
    """Try a few steps of a pretraining, in a process of its own.

    Args:
        rows: training rows with an `image_column` of `datasets.Image(decode=False)`.
        pixel_range: by which images of more than 8 bits are scaled.

    Raises:
        InputError: if no image can be decoded, or the memory does not suffice for one.
    """
    chosen = rows.select(sampled(len(rows), NUM_SAMPLES)).to_list()
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(_try, kamim_args, trial_args, chosen, image_column, pixel_range).result()
        except BrokenProcessPool:
            reason = "the system ended the process that tried it, most likely for lack of memory"
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            reason = f"not even one image fits into the memory ({first_line(error)})"
    raise InputError(f"{reason}; give a smaller model, image_size or per_device_train_batch_size")


def _try(
    kamim_args: KamimArguments,
    trial_args: TrialArguments,
    rows: list[dict[str, Any]],
    image_column: str,
    pixel_range: PixelRange | None,
) -> Trial:
    cv2.setNumThreads(1)
    args = trial_args.training_args()
    config = kamim_args.model_config(kamim={"target": kamim_args.target, "loss": kamim_args.loss})
    transform = replace(kamim_args.transform(image_column, config.patch_size), pixel_range=pixel_range)
    rows, keypoint_seconds = _prepared(rows, transform)
    samples = SampleDataset(datasets.Dataset.from_list(rows), transform, args.seed)
    steps = _Steps(kamim_args, args, config, samples.__getitems__(list(range(len(rows)))))

    whole = args.per_device_train_batch_size
    first_seconds, first_memory = steps.measure(1)
    tried = min(whole, max(2, int(_STEP_SECONDS / first_seconds)))
    seconds, memory = first_seconds, first_memory
    while tried > 1:
        try:
            seconds, memory = steps.measure(tried)
            break
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            tried //= 2
    more = (whole - tried) / max(tried - 1, 1)  # a step takes and needs as much for each further image
    sample_seconds = time_steps(lambda: default_collate(samples.__getitems__(list(range(len(rows))))), 3) / len(rows)
    return Trial(
        model="-".join(filter(None, (kamim_args.model_type, kamim_args.model_size))),
        num_parameters=steps.model.num_parameters(),
        device=args.device.type,
        speed=args.describe_speed(),
        batch_size=whole,
        tried_batch_size=tried,
        step_seconds=seconds + more * max(seconds - first_seconds, 0.0),
        sample_seconds=sample_seconds,
        keypoint_seconds=keypoint_seconds,
        memory=memory + round(more * max(memory - first_memory, 0)),
        available=steps.available,
        num_threads=torch.get_num_threads(),
        num_cores=num_cores(),
        num_workers=args.dataloader_num_workers,
    )


def _prepared(rows: list[dict[str, Any]], transform: MaskedImageTransform) -> tuple[list[dict[str, Any]], float]:
    """Return the good rows with the densities that their samples need, and the seconds to detect each that is missing.

    Raises:
        InputError: if none is good.
    """
    densities, column = transform.densities, transform.image_column
    prepared, seconds = [], []
    for row in rows:
        start = time.perf_counter()
        try:
            image = decode_image(row[column], pixel_range=transform.pixel_range, num_channels=transform.num_channels)
        except BadImageError:
            continue
        kept = {column: row[column]}
        if densities is not None:
            stored = row.get(densities.column)
            if density_label(stored) != densities.label:
                stored = densities(image)
                seconds.append(time.perf_counter() - start)
            kept[densities.column] = stored
        prepared.append(kept)
    if not prepared:
        raise InputError(f"none of the {len(rows)} images that were looked at can be decoded")
    return prepared, sum(seconds) / len(prepared)


class _Steps:
    """Steps of a training on some samples, again and again."""

    def __init__(
        self,
        kamim_args: KamimArguments,
        args: PretrainingArguments,
        config: PreTrainedConfig,
        samples: list[dict[str, torch.Tensor]],
    ):
        self.args, self.samples, self.is_cuda = args, samples, args.device.type == "cuda"
        self.model = KamimForMaskedImageModeling.from_config(config, attn_implementation=args.attn_implementation)
        if kamim_args.loss_predictor:
            self.model.add_loss_predictor()
        self.model.to(args.device).train()
        make, settings = Trainer.get_optimizer_cls_and_kwargs(args, self.model)
        self.optimizer = make(self.model.parameters(), **settings)
        processor = image_processor(image_size_of(config), None, None, [0.5], [0.25])  # any takes as long
        self.inputs = (processor, args.device)
        self.weighting, self.num_cells = kamim_args.cell_weighting(), kamim_args.num_cells
        self.online, self.hard_patches = kamim_args.online_density(), kamim_args.hard_patches()
        gpu = torch.cuda.get_device_properties(args.device).total_memory if self.is_cuda else None
        self.available = gpu or psutil.virtual_memory().total

    def measure(self, batch_size: int) -> tuple[float, int]:
        """Return the seconds of a step, and the bytes of memory at its peak."""
        batch = default_collate([self.samples[number % len(self.samples)] for number in range(batch_size)])
        description = f"Trying steps of {batch_size}"
        with tqdm(total=_TIMED_STEPS + 1, desc=description) as bar, _peak_memory(self.is_cuda) as peak:

            def step() -> None:
                self._step(batch)
                bar.update()

            seconds = time_steps(step, _TIMED_STEPS)
        return seconds, peak[0]

    def _step(self, batch: dict[str, torch.Tensor]) -> None:
        batch = self.online(batch) if self.online else batch
        inputs, args = prepare_batch(batch, *self.inputs), self.args
        precision = torch.float16 if args.fp16 else torch.bfloat16
        with torch.autocast(args.device.type, precision, enabled=args.fp16 or args.bf16):
            if self.hard_patches is not None:
                inputs = self.hard_patches(inputs, self.model, 0.0)
            if self.weighting is not None:
                inputs = weigh(inputs, self.weighting, self.num_cells)
            loss = self.model(**inputs).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), args.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.is_cuda:
            torch.cuda.synchronize()


@contextmanager
def _peak_memory(is_cuda: bool) -> Iterator[list[int]]:
    """Yield a list that holds at the end the most bytes that were taken meanwhile: on the GPU, or by this process."""
    peak = [0]
    if is_cuda:
        torch.cuda.reset_peak_memory_stats()
        yield peak
        peak[0] = torch.cuda.max_memory_reserved()
        return
    process, is_over = psutil.Process(), threading.Event()

    def watch() -> None:
        while not is_over.wait(_WATCH_SECONDS):
            peak[0] = max(peak[0], process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peak
    finally:
        is_over.set()
        watcher.join()
        peak[0] = max(peak[0], process.memory_info().rss)


def num_cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
