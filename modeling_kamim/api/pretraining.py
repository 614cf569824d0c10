"""The steps of a pretraining, from its settings to its checkpoint, pictures and card."""

import dataclasses
import logging
import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import torch
from datasets import Dataset
from torch.utils.data import default_collate
from transformers import ViTImageProcessor, set_seed

from ..data.attach_density import prepare_images
from ..data.augmentation import ClassificationTransform
from ..data.keypoint_share import check_samples
from ..data.loading import DataArguments, keep_encoded, load_labelled_images, subsample
from ..data.normalization import fit_processor
from ..data.samples import SampleDataset
from ..data.streaming.stream import StreamingArguments
from ..evaluation.online_probe import OnlineProbe
from ..evaluation.results import checkpoint_rows
from ..evaluation.settings import OnlineProbeArguments
from ..hub.cards import pretraining_card
from ..models.families import family_of
from ..models.masked_image_modeling import KamimForMaskedImageModeling
from ..models.processor import image_processor, pixel_range_of
from ..models.sizes import image_size_of, patch_grid
from ..models.warm_start import warm_start
from ..objective.targets import TARGETS
from ..privacy import public_dataset, public_name, public_settings
from ..training.arguments import PAPER_BATCH_SIZE, KamimArguments, PretrainingArguments
from ..training.checkpoint_page import CheckpointPage
from ..training.compilation import settle_compilation
from ..training.forecast import tell_duration
from ..training.launch import check_launch
from ..training.resume import find_checkpoint, run_settings, save_settings
from ..training.run_directory import claimed, step_of
from ..training.selection import Hardness, SampleSelection, SelectedSampler
from ..training.sources import Source, open_source
from ..training.trackers import CardLog, ImageLog
from ..training.trainer import MaskedImageTrainer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)
CONFIG_KEYS = (
    "method",
    "weighting",
    "temperature",
    "temperature_schedule",
    "temperature_end",
    "weight_norm",
    "weight_patch_size",
    "keypoint_detector",
    "keypoint_detector_args",
    "keypoint_channel",
    "keypoint_image_size",
    "keypoint_footprint",
    "keypoint_source",
    "mask_patch_size",
    "mask_ratio",
    "masking",
    "target",
    "loss",
    "loss_predictor",
    "selection",
    "selection_ratio",
    "selection_every",
)


def run_pretraining(
    data_args: DataArguments,
    kamim_args: KamimArguments,
    stream_args: StreamingArguments,
    probe_args: OnlineProbeArguments,
    training_args: PretrainingArguments,
    settings: str,
) -> None:
    """Pretrain a model, score it, and write checkpoint, pictures and card into the output directory.

    Args:
        settings: text of settings.yaml, see `settings_text`.

    Raises:
        InputError: if a setting, the data or the checkpoint to go on with cannot be used.
        StoppedError: if the training ended early.
    """
    cv2.setNumThreads(1)
    check_launch(training_args)
    with claimed(training_args):
        _pretrain(data_args, kamim_args, stream_args, probe_args, training_args, settings)


def _pretrain(
    data_args: DataArguments,
    kamim_args: KamimArguments,
    stream_args: StreamingArguments,
    probe_args: OnlineProbeArguments,
    training_args: PretrainingArguments,
    settings: str,
) -> None:
    set_seed(training_args.seed)
    kamim_args.check_device(training_args.device.type)
    checkpoint = find_checkpoint(training_args)
    shuffle_buffer = stream_args.shuffle_buffer if stream_args.streaming else None
    source = open_source(data_args, kamim_args, training_args, shuffle_buffer, probe_args.probe_every)

    dataset = public_dataset(data_args.dataset_name)
    model = build_model(kamim_args, dataset, training_args.attn_implementation)
    processor = image_processor(
        kamim_args.image_size,
        checkpoint or kamim_args.model_name_or_path,
        kamim_args.num_channels,
        kamim_args.image_mean,
        kamim_args.image_std,
    )
    page = CheckpointPage(settings, training_args, dataset)
    card = partial(pretraining_card, page.run, model.config, processor=processor)
    page.ask_hub(card())

    shown = make_samples(source, kamim_args, model.config.patch_size, processor)
    rule, num_images = kamim_args.selection_rule(), source.num_images
    num_selected = rule.count(num_images) if rule and num_images else num_images
    settle_compilation(training_args, num_selected)
    describe_run(kamim_args, training_args, model, source.num_images)
    first_step = step_of(Path(checkpoint)) if checkpoint else 0
    tell_duration(model, training_args, num_selected, first_step, kamim_args.hard_patches() is not None)

    groups = (data_args, kamim_args, stream_args, probe_args, training_args)
    compared = run_settings(*groups, num_train_images=source.num_images, **weights_of_source(kamim_args))
    trainer = build_trainer(source, kamim_args, model, processor, compared)
    steps = probe_args.probe_steps(math.ceil((num_selected or 0) / training_args.total_batch_size))
    if steps:
        trainer.add_callback(online_probe(trainer, data_args, probe_args, steps))
    if training_args.log_images_every:
        draw = partial(draw_reconstructions, dataset=shown, trainer=trainer)
        trainer.add_callback(ImageLog(trainer, draw, training_args.log_images_every))
    trainer.add_callback(CardLog(trainer, card().content))
    page.write(card())
    train_and_score(trainer, checkpoint)
    if rule is not None and num_images:
        seen = trainer.state.global_step * training_args.total_batch_size
        logger.info("effective_epochs: %.2f (%d images were read, of %d)", seen / num_images, seen, num_images)

    if training_args.should_save:
        draw_pictures(trainer, shown)
        output_dir, log = Path(training_args.output_dir), trainer.state.log_history
        rows = checkpoint_rows([output_dir], output_dir)
        page.write(card(log, training_args.total_batch_size), rows, trainer.hub_model_id)
        logger.info("Checkpoint, results and README.md are in %s", output_dir)
    if training_args.push_to_hub:
        trainer.push_to_hub()


def build_model(kamim_args: KamimArguments, dataset: str, attention: str) -> KamimForMaskedImageModeling:
    """Return the model, of a checkpoint or random; its config tells the objective and the data set's public name."""
    base = kamim_args.model_name_or_path
    kamim = public_settings({key: getattr(kamim_args, key) for key in CONFIG_KEYS}) | weights_of_source(kamim_args)
    kamim |= {"dataset_name": dataset, "base_model": public_name(base) if base else None}
    config = kamim_args.model_config(kamim=kamim)
    if family_of(config).drops_masked:  # for transformers' own class
        config.mask_ratio, config.norm_pix_loss = kamim_args.mask_ratio, TARGETS[kamim_args.target].is_normalized
    if base is None:
        model = KamimForMaskedImageModeling.from_config(config, attn_implementation=attention)
    else:
        start = warm_start(base, config, attention)
        logger.info("Warm start: %s", start.summary)
        model = start.model
    if kamim_args.loss_predictor:
        model.add_loss_predictor()
    return model


def weights_of_source(kamim_args: KamimArguments) -> dict[str, str]:
    """Return the digest of a learned source's weights, as a setting; nothing for others, and for SimMIM."""
    digest = kamim_args.detector().digest if kamim_args.needs_keypoints else ""
    return {"keypoint_detector_weights": digest} if digest else {}


def make_samples(
    source: Source, kamim_args: KamimArguments, patch_size: int, processor: ViTImageProcessor
) -> SampleDataset:
    """Make the samples of a source, and return those for the picture; the processor gets what is measured."""
    transform = kamim_args.transform(source.image_column, patch_size)
    with source.args.main_process_first(desc="measuring pixels"):
        images, num_proc = source.known(transform.columns), source.data_args.num_proc
        pixel_range = fit_processor(processor, images, source.image_column, kamim_args.num_channels, num_proc)
    transform = dataclasses.replace(transform, pixel_range=pixel_range)
    source.make_samples(transform)
    if kamim_args.needs_keypoints and source.args.process_index == 0:
        check_samples(source.known_samples(transform))
    source.list_bad_images()
    return source.shown(transform)


def build_trainer(
    source: Source,
    kamim_args: KamimArguments,
    model: KamimForMaskedImageModeling,
    processor: ViTImageProcessor,
    settings: dict[str, Any],
) -> MaskedImageTrainer:
    """Return the trainer of the samples of a source; `settings` are compared on resuming."""
    rule, samples = kamim_args.selection_rule(), source.train_samples
    sampler = SelectedSampler(samples, rule, source.args.seed) if rule else None
    trainer = source.trainer_class(
        model=model,
        args=source.args,
        train_dataset=source.train_samples,
        eval_dataset=source.eval_samples,
        data_collator=default_collate,
        processing_class=processor,
        weighting=kamim_args.cell_weighting(),
        num_cells=kamim_args.num_cells,
        hard_patches=kamim_args.hard_patches(),
        sampler=sampler,
        online=kamim_args.online_density(),
        run_settings=settings,
        compute_metrics=lambda prediction: {"masked_l1": float(prediction.predictions.mean())},
    )
    if sampler is not None:
        whole = SampleDataset(samples.rows, samples.transform.whole_image(), source.args.seed)
        hardness = Hardness(kamim_args.num_blocks, kamim_args.mask_ratio)
        trainer.add_callback(SampleSelection(trainer, sampler, whole, hardness))
    return trainer


def online_probe(
    trainer: MaskedImageTrainer, data_args: DataArguments, args: OnlineProbeArguments, steps: int
) -> OnlineProbe:
    """Return the probe that scores the features every so many optimizer steps, on labelled images of the data set."""
    seed, processor = trainer.args.seed, trainer.processing_class
    images = load_labelled_images(data_args, args.label_column, validation_fraction=0.1, seed=seed)
    columns, size = [images.image_column, images.label_column], image_size_of(trainer.model.config)
    num_channels = trainer.model.config.num_channels
    transform = ClassificationTransform(columns[0], columns[1], size, "none", pixel_range_of(processor), num_channels)

    def samples(split: Dataset) -> SampleDataset:
        split = keep_encoded(subsample(split, args.probe_images, seed), images.image_column)
        with trainer.args.main_process_first(desc="preparing the probe's images"):
            skip = data_args.bad_images == "skip"
            split, _ = prepare_images(
                split, images.image_column, None, skip, data_args.num_proc, num_channels=num_channels
            )
        return SampleDataset(split.select_columns(columns), transform, seed)

    return OnlineProbe(trainer, samples(images.train), samples(images.validation), images.classes.num_classes, steps)


def describe_run(
    kamim_args: KamimArguments,
    training_args: PretrainingArguments,
    model: KamimForMaskedImageModeling,
    num_images: int | None,
) -> None:
    """Log model, method, data and batch, and what decides the speed."""
    size = sum(parameter.numel() for parameter in model.base_model.parameters()) / 1e6
    logger.info(
        "%s of %s (encoder: %.1fM parameters) on %s images, %d process(es)",
        *(kamim_args.method, "-".join(filter(None, (kamim_args.model_type, kamim_args.model_size)))),
        *(size, "streamed" if num_images is None else num_images, training_args.world_size),
    )
    if kamim_args.needs_keypoints and kamim_args.detector().notice:
        logger.info("%s", kamim_args.detector().notice)
    logger.info("Speed: %s", training_args.describe_speed())
    logger.info(
        "%d images per step; the paper's learning rate goes with %d (--global_batch_size %d accumulates to it)",
        *(training_args.total_batch_size, PAPER_BATCH_SIZE, PAPER_BATCH_SIZE),
    )


def train_and_score(trainer: MaskedImageTrainer, checkpoint: str | None) -> None:
    """Train, save the model, evaluate it where there are validation images, and save metrics and state.

    Of 0 steps the starting weights are saved: to what a training is compared.
    """
    if trainer.args.max_steps == 0:
        logger.info("max_steps is 0: saving the starting weights")
    else:
        result = trainer.train(resume_from_checkpoint=checkpoint)
        trainer.log_metrics("train", result.metrics)
        trainer.save_metrics("train", result.metrics)
    trainer.save_model()
    if trainer.eval_dataset is not None:
        metrics = trainer.evaluate()
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)
    trainer.save_state()
    if trainer.args.should_save and trainer.run_settings is not None:
        save_settings(Path(trainer.args.output_dir), trainer.run_settings)


def draw_pictures(trainer: MaskedImageTrainer, shown: SampleDataset) -> None:
    """Write reconstructions.png, of some samples, and the training_curves.png of what was trained."""
    from ..training.figures import curves_figure, save_figure  # Matplotlib takes half a second, which the start lacks

    model, output_dir = trainer.model, Path(trainer.args.output_dir)
    if trainer.is_fsdp_enabled:  # in a forward pass of its own this process would wait for the others' shards
        model = KamimForMaskedImageModeling.from_pretrained(output_dir).to(trainer.args.device)
    save_figure(partial(draw_reconstructions, model, shown, trainer), output_dir / "reconstructions.png", dpi=80)
    if trainer.args.max_steps != 0:
        save_figure(partial(curves_figure, trainer.state.log_history), output_dir / "training_curves.png")


@torch.no_grad()
def draw_reconstructions(
    model: KamimForMaskedImageModeling, dataset: SampleDataset, trainer: MaskedImageTrainer
) -> "Figure":
    """Draw what a model makes of up to 4 samples, and their keypoint weights (all 1 for SimMIM)."""
    from ..training.figures import reconstruction_figure

    num_rows, processor = min(4, len(dataset)), trainer.processing_class
    samples = default_collate([dataset[row * len(dataset) // num_rows] for row in range(num_rows)])
    model.eval()
    batch = trainer.model_inputs(samples)
    reconstruction = model(**batch).reconstruction
    weights = batch.get("keypoint_weights", torch.ones(num_rows, 1, 1))
    return reconstruction_figure(
        batch["pixel_values"].cpu(),
        batch["bool_masked_pos"].unflatten(1, patch_grid(model.config)).cpu(),
        reconstruction.cpu(),
        weights.cpu(),
        processor.image_mean,
        processor.image_std,
    )
