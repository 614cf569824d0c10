"""Linear probing: reading block 8 against all 12 blocks, and training on cached features against forward passes.

    python benchmarks/probe.py [--dataset_name path/to/labelled/images] [--num_images 256] [--rounds 5]

Both compare epochs of this package's own trainer on the same images without augmentation, interleaved. The epoch on
cached features leaves out the one pass that computes them; that pass takes as long as one epoch of forward passes.
"""

import argparse
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from tqdm import tqdm
from transformers import PrinterCallback

from modeling_kamim.commands.endings import run
from modeling_kamim.data.augmentation import ClassificationTransform, MixingCollator
from modeling_kamim.data.loading import (
    choose_splits,
    encode_labels,
    find_image_column,
    find_label_column,
    keep_encoded,
    load_images,
    subsample,
)
from modeling_kamim.data.samples import SampleDataset
from modeling_kamim.evaluation.classifiers import build_classifier
from modeling_kamim.evaluation.features import ClassificationHead, PooledFeatures, extract_features
from modeling_kamim.evaluation.settings import ClassificationArguments, ProbingArguments
from modeling_kamim.models.processor import image_processor
from modeling_kamim.training.trainer import ClassificationTrainer

CACHED_EPOCHS = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_name", help="as for kamim evaluate; the embedded photographs where not given")
    parser.add_argument("--model_size", choices=("tiny", "small", "base"), default="tiny")
    parser.add_argument("--image_size", type=int, default=192)
    parser.add_argument("--num_images", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    cv2.setNumThreads(1)

    dataset, _ = choose_splits(load_images(args.dataset_name))
    image_column, label_column = find_image_column(dataset), find_label_column(dataset)
    dataset = subsample(keep_encoded(encode_labels(dataset, label_column), image_column), args.num_images, seed=0)
    num_classes = dataset.features[label_column].num_classes
    transform = ClassificationTransform(image_column, label_column, args.image_size, augmentation="none")
    samples = SampleDataset(dataset.select_columns([image_column, label_column]), transform, seed=0)

    with tempfile.TemporaryDirectory() as folder:

        def trainer(model: torch.nn.Module, data: torch.utils.data.Dataset, epochs: int) -> ClassificationTrainer:
            settings = {"num_train_epochs": epochs, "disable_tqdm": True, "report_to": "none", "save_strategy": "no"}
            trainer = ClassificationTrainer(
                model=model,
                args=ProbingArguments(output_dir=str(Path(folder)), logging_first_step=False, **settings),
                train_dataset=data,
                data_collator=MixingCollator(num_classes),
                processing_class=image_processor(args.image_size),
            )
            trainer.remove_callback(PrinterCallback)
            return trainer

        def classifier(layer: int) -> torch.nn.Module:
            settings = ClassificationArguments(model_size=args.model_size, image_size=args.image_size, layer=layer)
            return build_classifier(settings, [str(label) for label in range(num_classes)])

        whole, block_8, cached_model = classifier(12), classifier(8), classifier(8)
        features = extract_features(
            trainer(cached_model, samples, 1), PooledFeatures(cached_model), samples, "Extracting features"
        )
        seconds: dict[str, list[float]] = {"all 12 blocks": [], "block 8": [], "cached features": []}
        for number in tqdm(range(args.rounds + 1), desc="rounds"):
            durations = [
                timed(trainer(whole, samples, 1)),
                timed(trainer(block_8, samples, 1)),
                timed(trainer(ClassificationHead(cached_model), features, CACHED_EPOCHS)) / CACHED_EPOCHS,
            ]
            if number:  # the first warms up
                for name, duration in zip(seconds, durations, strict=True):
                    seconds[name].append(duration)
    report(args, seconds, len(dataset))


def timed(trainer: ClassificationTrainer) -> float:
    start = time.perf_counter()
    trainer.train()
    return time.perf_counter() - start


def report(args: argparse.Namespace, seconds: dict[str, list[float]], num_images: int) -> None:
    print(f"ViT-{args.model_size}, {args.image_size} px, {num_images} images, {args.rounds} rounds\n")
    print("| probe | seconds per epoch | images/s |")
    print("|---|---|---|")
    for name, durations in seconds.items():
        print(f"| {name} | {np.median(durations):.3f} | {num_images / np.median(durations):.0f} |")
    whole, block_8, cached = (np.array(durations) for durations in seconds.values())
    print(
        f"\nRATIO layer8_vs_full={np.median(whole / block_8):.3f} cached_vs_forward={np.median(block_8 / cached):.1f}"
    )


if __name__ == "__main__":
    run(main)
