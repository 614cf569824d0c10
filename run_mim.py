"""Pretrain a ViT or Swin by masked image modelling with keypoint weights (KAMIM), or without (SimMIM).

accelerate launch run_mim.py --model_type vit
python run_mim.py configs/quickstart/pretrain.yaml --temperature 0.5
python run_mim.py --model_type swin --model_size tiny --dataset_name path/to/images --weighting none
"""

import dataclasses
import logging
import math
from functools import partial
from pathlib import Path

import cv2
import torch
from datasets import Dataset
from matplotlib.figure import Figure
from torch.utils.data import default_collate
from transformers import set_seed

from modeling_kamim import KamimForMaskedImageModeling, build_config
from modeling_kamim.arguments import (
    PRETRAINING_ARGUMENTS,
    DataArguments,
    KamimArguments,
    OnlineProbeArguments,
    StreamingArguments,
)
from modeling_kamim.augmentation import ClassificationTransform
from modeling_kamim.checkpoint_page import CheckpointPage
from modeling_kamim.command_line import changed, command, parse
from modeling_kamim.data import (
    SampleDataset,
    choose_splits,
    find_image_column,
    keep_encoded,
    load_images,
    load_labelled_images,
    report_bad_images,
    subsample,
)
from modeling_kamim.errors import run
from modeling_kamim.evaluation.online_probe import OnlineProbe
from modeling_kamim.evaluation.results import checkpoint_rows
from modeling_kamim.figures import curves_figure, reconstruction_figure, save_figure
from modeling_kamim.forecast import tell_duration
from modeling_kamim.keypoint_share import NUM_DETECTED, check_samples
from modeling_kamim.map_steps import choose_pixel_range, prepare_images
from modeling_kamim.model_card import pretraining_card
from modeling_kamim.pixel_range import PixelRange
from modeling_kamim.privacy import EMBEDDED_PHOTOGRAPHS, public_name
from modeling_kamim.processes import check_launch
from modeling_kamim.processor import image_processor, keep_pixel_range, pixel_range_of
from modeling_kamim.recipe_checks import check_evaluation, check_steps
from modeling_kamim.resume import find_checkpoint, run_settings
from modeling_kamim.run_directory import claimed, step_of
from modeling_kamim.stream_reader import take_rows
from modeling_kamim.streaming import SampleStream, StreamTrainer, list_bad_images, open_stream
from modeling_kamim.trainer import MaskedImageTrainer
from modeling_kamim.training_arguments import PAPER_BATCH_SIZE, PretrainingArguments
from modeling_kamim.transforms import MaskedImageTransform

logger = logging.getLogger("run_mim")

CONFIG_KEYS = (
    "weighting",
    "temperature",
    "weight_norm",
    "weight_patch_size",
    "keypoint_detector",
    "keypoint_detector_args",
    "keypoint_footprint",
    "keypoint_source",
    "mask_patch_size",
    "mask_ratio",
)
SOURCE = ("dataset_name", "dataset_config_name", "train_split", "validation_split", "image_column", "trust_data_files")


def main() -> None:
    arguments = parse(PRETRAINING_ARGUMENTS, None, __doc__)
    *_, training_args = arguments
    logging.basicConfig(
        level=logging.INFO if training_args.process_index == 0 else logging.ERROR, format="%(name)s: %(message)s"
    )
    cv2.setNumThreads(1)
    check_launch(training_args)
    with claimed(training_args):
        pretrain(*arguments)


def pretrain(
    data_args: DataArguments,
    kamim_args: KamimArguments,
    stream_args: StreamingArguments,
    probe_args: OnlineProbeArguments,
    training_args: PretrainingArguments,
) -> None:
    set_seed(training_args.seed)
    output_dir = Path(training_args.output_dir)
    stream = open_stream(data_args, kamim_args, probe_args, training_args) if stream_args.streaming else None

    # Model
    kamim = {key: getattr(kamim_args, key) for key in CONFIG_KEYS}
    kamim["dataset_name"] = public_name(data_args.dataset_name) if data_args.dataset_name else EMBEDDED_PHOTOGRAPHS
    config = build_config(kamim_args.model_type, kamim_args.model_size, kamim_args.image_size, kamim=kamim)
    model = KamimForMaskedImageModeling.from_config(config, attn_implementation=training_args.attn_implementation)
    checkpoint = find_checkpoint(training_args)
    processor = image_processor(config.image_size, checkpoint)

    # Data
    images = stream or load_images(
        data_args.dataset_name, data_args.dataset_config_name, data_args.image_column, data_args.trust_data_files
    )
    train_images, validation_images = choose_splits(images, data_args.train_split, data_args.validation_split)
    check_evaluation(training_args, validation_images is not None)
    if not stream:
        check_steps(training_args, min(len(train_images), data_args.max_train_samples or len(train_images)))
    page = CheckpointPage(PRETRAINING_ARGUMENTS, training_args, kamim["dataset_name"])
    page.ask_hub(pretraining_card(page.run, config))
    image_column = find_image_column(train_images, data_args.image_column)
    weighting = kamim_args.cell_weighting()
    densities = kamim_args.densities() if weighting and kamim_args.keypoint_source == "map" else None
    transform = MaskedImageTransform(
        image_column=image_column,
        image_size=config.image_size,
        patch_size=config.patch_size,
        mask_patch_size=kamim_args.mask_patch_size,
        mask_ratio=kamim_args.mask_ratio,
        weight_patch_size=kamim_args.weight_patch_size,
        random_view=kamim_args.random_view(),
        detector=kamim_args.detector() if weighting and not densities else None,
        densities=densities,
        shuffle_cells=kamim_args.weighting == "shuffled",
    )
    known = take_rows(train_images, NUM_DETECTED, transform.columns, seed=0) if stream else train_images
    known = keep_encoded(known, image_column)
    with training_args.main_process_first(desc="measuring pixels"):
        pixel_range = choose_pixel_range(known, image_column, pixel_range_of(processor), data_args.num_proc)
    transform = dataclasses.replace(transform, pixel_range=pixel_range)
    keep_pixel_range(processor, pixel_range)

    bad_images: list[str] = []

    def prepare(split: Dataset, max_samples: int | None, transform: MaskedImageTransform) -> SampleDataset:
        if stream:
            split = take_rows(split, max_samples, transform.columns, training_args.seed)
        split = keep_encoded(subsample(split, max_samples, training_args.seed), image_column)
        with training_args.main_process_first(desc="preparing the images"):
            split, bad = prepare_images(
                split, image_column, densities, data_args.bad_images == "skip", data_args.num_proc, pixel_range
            )
        bad_images.extend(bad)
        split = split.select_columns(list(transform.columns))
        return SampleDataset(split, transform, training_args.seed)

    train_dataset: SampleDataset | SampleStream
    if stream:
        train_dataset = SampleStream.of_process(
            train_images, transform, training_args, stream_args.shuffle_buffer, data_args.bad_images == "skip"
        )
    else:
        train_dataset = prepare(train_images, data_args.max_train_samples, transform)
    num_images = None if stream else len(train_dataset)
    if weighting and training_args.process_index == 0:
        check_samples(SampleDataset(known, transform, training_args.seed) if stream else train_dataset)
    eval_dataset = None
    if validation_images is not None:
        eval_transform = dataclasses.replace(transform, random_view=None)
        eval_dataset = prepare(validation_images, data_args.max_eval_samples, eval_transform)
    (list_bad_images if stream else report_bad_images)(bad_images, output_dir, training_args.should_save)
    shown = eval_dataset or (prepare(train_images, 4, transform) if stream else train_dataset)

    # Training
    describe_run(kamim_args, training_args, model, num_images)
    tell_duration(model, training_args, num_images, step_of(Path(checkpoint)) if checkpoint else 0)
    trainer = (StreamTrainer if stream else MaskedImageTrainer)(
        model=model,
        args=training_args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        data_collator=default_collate,
        processing_class=processor,
        weighting=weighting,
        num_cells=config.image_size // kamim_args.weight_patch_size,
        run_settings=run_settings(
            data_args, kamim_args, stream_args, probe_args, training_args, num_train_images=num_images
        ),
        compute_metrics=lambda prediction: {"masked_l1": float(prediction.predictions.mean())},
    )
    if probe_args.probe_every:
        steps_per_epoch = math.ceil(num_images / training_args.total_batch_size)
        steps = probe_args.probe_steps(steps_per_epoch)
        trainer.add_callback(online_probe(trainer, data_args, probe_args, config.image_size, steps, pixel_range))
    page.write(pretraining_card(page.run, config))
    result = trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model()
    trainer.log_metrics("train", result.metrics)
    trainer.save_metrics("train", result.metrics)

    # Evaluation
    if eval_dataset is not None:
        metrics = trainer.evaluate()
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)
    trainer.save_state()

    # Checkpoint page
    if training_args.should_save:
        log = trainer.state.log_history
        if trainer.is_fsdp_enabled:  # in a forward pass of its own this process would wait for the others' shards
            model = KamimForMaskedImageModeling.from_pretrained(output_dir).to(training_args.device)
        save_figure(partial(draw_reconstructions, model, shown, trainer), output_dir / "reconstructions.png", dpi=80)
        save_figure(partial(curves_figure, log), output_dir / "training_curves.png")
        card = pretraining_card(page.run, config, log, training_args.total_batch_size)
        page.write(card, checkpoint_rows([output_dir], output_dir), trainer.hub_model_id)
        logger.info("Checkpoint, results and README.md are in %s", output_dir)
        probe = command("python", "run_classification.py", model_name_or_path=output_dir, **changed(data_args, *SOURCE))
        logger.info("Next: %s", probe)
    if training_args.push_to_hub:
        trainer.push_to_hub()


def online_probe(
    trainer: MaskedImageTrainer,
    data_args: DataArguments,
    args: OnlineProbeArguments,
    image_size: int,
    steps: int,
    pixel_range: PixelRange | None,
) -> OnlineProbe:
    seed = trainer.args.seed
    images = load_labelled_images(data_args, args.label_column, validation_fraction=0.1, seed=seed)
    transform = ClassificationTransform(images.image_column, images.label_column, image_size, "none", pixel_range)

    def samples(split: Dataset) -> SampleDataset:
        split = keep_encoded(subsample(split, args.probe_images, seed), images.image_column)
        with trainer.args.main_process_first(desc="preparing the probe's images"):
            skip = data_args.bad_images == "skip"
            split, _ = prepare_images(split, images.image_column, None, skip, data_args.num_proc)
        return SampleDataset(split.select_columns([images.image_column, images.label_column]), transform, seed)

    return OnlineProbe(trainer, samples(images.train), samples(images.validation), images.classes.num_classes, steps)


def describe_run(
    kamim_args: KamimArguments, training_args: PretrainingArguments, model: torch.nn.Module, num_images: int | None
) -> None:
    size = sum(parameter.numel() for parameter in model.base_model.parameters()) / 1e6
    logger.info(
        "%s of %s-%s (encoder: %.1fM parameters) on %s images, %d process(es)",
        *(kamim_args.method, kamim_args.model_type, kamim_args.model_size),
        *(size, "streamed" if num_images is None else num_images, training_args.world_size),
    )
    logger.info("Speed: %s", training_args.describe_speed())
    logger.info(
        "%d images per step; the paper's learning rate goes with %d (--global_batch_size %d accumulates to it)",
        *(training_args.total_batch_size, PAPER_BATCH_SIZE, PAPER_BATCH_SIZE),
    )


@torch.no_grad()
def draw_reconstructions(
    model: KamimForMaskedImageModeling, dataset: SampleDataset, trainer: MaskedImageTrainer
) -> Figure:
    rows = [int(i * len(dataset) / 4) for i in range(4)] if len(dataset) >= 4 else range(len(dataset))
    batch = trainer._prepare_inputs(default_collate([dataset[row] for row in rows]))
    model.eval()
    reconstruction = model(**batch).reconstruction
    side = model.config.image_size // model.config.patch_size
    weights = batch.get("keypoint_weights", torch.ones(len(rows), 1, 1))
    return reconstruction_figure(
        batch["pixel_values"].cpu(),
        batch["bool_masked_pos"].unflatten(1, (side, side)).cpu(),
        reconstruction.cpu(),
        weights.cpu(),
        trainer.processing_class.image_mean,
        trainer.processing_class.image_std,
    )


if __name__ == "__main__":
    run(main)
