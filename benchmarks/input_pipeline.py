"""From encoded images to batches on one core, beside what people use today.

    python benchmarks/input_pipeline.py [--dataset_name path/to/photographs] [--num_images 128] [--rounds 9]

Every pipeline turns the same images into training samples at `--image_size`; rounds are interleaved and medians are
reported. "reference" is what a script does without this package: Pillow, torchvision v2, OpenCV's detector and
drawKeypoints, float pixels; "HF example" is transformers' run_mim.py, which has no keypoints. "online", "map" and
"prepared" are this package's: keypoints found on every crop, found once, and found once on images that were made
smaller (kamim prepare). Of "map" and "prepared" the device computes the weights from densities; that part is timed
apart, on this core, as "weights". This package's pipelines read
through `datasets`, as training does; the others get bytes in memory.
"""

import argparse
import io
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import cv2
import datasets
import numpy as np
import torch
import torchvision.transforms as T
from PIL import Image
from torch.utils.data import default_collate
from torchvision.transforms import v2
from tqdm import tqdm

from modeling_kamim import CellWeighting, KeypointDetector
from modeling_kamim.commands.endings import run
from modeling_kamim.data.attach_density import attach_keypoint_density
from modeling_kamim.data.decoding import read_image
from modeling_kamim.data.loading import choose_splits, find_image_column, keep_encoded, load_images, subsample
from modeling_kamim.data.preparation import Preparation
from modeling_kamim.data.samples import MaskedImageTransform, SampleDataset
from modeling_kamim.data.stored_density import DensityDetector
from modeling_kamim.data.views import RandomView
from modeling_kamim.objective.density import resample_density

DETECTORS = ("fast", "sift", "orb")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CELL, TEMPERATURE, BATCH_SIZE = 8, 0.25, 32
REPEATS = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_name", help="as for kamim pretrain; the embedded photographs where not given")
    parser.add_argument("--num_images", type=int, default=128, help="images a round")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--image_size", type=int, default=192)
    args = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)

    images = encoded_images(args.dataset_name, args.num_images)
    with tempfile.TemporaryDirectory() as folder:
        pipelines = build_pipelines(images, args.image_size, Path(folder))
        times = measure(pipelines, args.rounds, len(images))
    report(times, pipelines, len(images))


def encoded_images(dataset_name: str | None, count: int) -> list[bytes]:
    """Encoded images of a data set, drawn at random."""
    dataset, _ = choose_splits(load_images(dataset_name))
    column = find_image_column(dataset)
    rows = subsample(keep_encoded(dataset, column).select_columns([column]), count, seed=0)
    return [read_image(row[column]) for row in rows]


@dataclass
class Pipeline:
    """A way to samples: `run` makes all of them once."""

    name: str
    keypoints: str
    run: Callable[[], object]


def build_pipelines(images: list[bytes], size: int, folder: Path) -> list[Pipeline]:
    def reference(name: str | None) -> Callable[[], object]:
        transform = ReferencePipeline(size, name)
        return lambda: batches([transform(image) for image in images])

    def samples(rows: datasets.Dataset, transform: MaskedImageTransform) -> Callable[[], object]:
        samples = SampleDataset(rows, transform, seed=0)
        parts = [list(range(len(rows)))[i : i + BATCH_SIZE] for i in range(0, len(rows), BATCH_SIZE)]
        return lambda: [default_collate(samples.__getitems__(part)) for part in parts]

    detectors = {name: KeypointDetector(name) for name in DETECTORS}
    densities = tuple(DensityDetector(detector, size) for detector in detectors.values())
    features = datasets.Features({"image": datasets.Image(decode=False)})
    rows = datasets.Dataset.from_dict({"image": [{"bytes": i, "path": None} for i in images]}, features=features)
    mapped = rows
    for density in densities:
        mapped, _ = attach_keypoint_density(mapped, density, "image")
    mapped = on_disk(mapped, folder / "map")
    preparation = Preparation("image", size, densities)
    columns, _ = preparation(rows[:], list(range(len(rows))))
    prepared = datasets.Dataset.from_dict(columns, features=preparation.features(features))
    prepared = keep_encoded(on_disk(prepared, folder / "prepared"), "image")
    simmim = MaskedImageTransform("image", size, 16, 32, 0.6, CELL, RandomView())

    pipelines = [Pipeline("reference", "none", reference(None))]
    pipelines += [Pipeline("reference", name, reference(name)) for name in DETECTORS]
    hf = HFExample(size)
    pipelines += [Pipeline("HF example", "none", lambda: batches([hf(image) for image in images]))]
    raw = mapped.select_columns(["image"])
    pipelines += [Pipeline("online", "none", samples(raw, simmim))]
    pipelines += [Pipeline("online", n, samples(raw, replace(simmim, detector=d))) for n, d in detectors.items()]
    for source, table in (("map", mapped), ("prepared", prepared)):
        pipelines += [Pipeline(source, "none", samples(table.select_columns(["image"]), simmim))]
        for density in densities:
            columns = table.select_columns(["image", density.column])
            transform = replace(simmim, densities=density)
            pipelines += [Pipeline(source, density.detector.name, samples(columns, transform))]
    pipelines += [Pipeline("weights", "any", weights_of(prepared, densities[0], len(images), size // CELL))]
    return pipelines


def on_disk(rows: datasets.Dataset, folder: Path) -> datasets.Dataset:
    """The rows memory-mapped from a file, as training reads them."""
    rows.save_to_disk(folder)
    return datasets.load_from_disk(str(folder))


def weights_of(rows: datasets.Dataset, density: DensityDetector, count: int, num_cells: int) -> Callable[[], object]:
    transform = MaskedImageTransform("image", 192, 16, 32, 0.6, CELL, RandomView(), densities=density)
    batch = default_collate([transform(row, Random(0)) for row in rows.select(range(min(BATCH_SIZE, count)))])
    weighting = CellWeighting(temperature=TEMPERATURE)

    def compute() -> None:
        for _ in range(count // len(batch["crop_box"])):
            weighting(resample_density(batch["keypoint_density"].float() / 255, batch["crop_box"], num_cells))

    return compute


def batches(samples: list[dict[str, torch.Tensor]]) -> list[dict[str, torch.Tensor]]:
    return [default_collate(samples[i : i + BATCH_SIZE]) for i in range(0, len(samples), BATCH_SIZE)]


class ReferencePipeline:
    """Pillow, torchvision v2, an OpenCV detector and drawKeypoints, float pixels."""

    def __init__(self, size: int, detector: str | None):
        self.size = size
        self.geometry = v2.Compose(
            [
                v2.RandomResizedCrop(size, scale=(0.67, 1.0)),
                v2.RandomHorizontalFlip(),
                v2.RandomVerticalFlip(),
            ]
        )
        self.normalize = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])
        factories = {"fast": cv2.FastFeatureDetector.create, "sift": cv2.SIFT.create, "orb": cv2.ORB.create}
        self.detector = factories[detector]() if detector else None

    def __call__(self, data: bytes) -> dict[str, torch.Tensor]:
        image = self.geometry(Image.open(io.BytesIO(data)).convert("RGB"))
        sample = {"pixel_values": self.normalize(image), "bool_masked_pos": random_blocks(self.size)}
        if self.detector is not None:
            keypoints = self.detector.detect(np.asarray(image), None)
            canvas = np.zeros((self.size, self.size, 3), np.uint8)
            drawn = cv2.drawKeypoints(canvas, keypoints, None, color=(255, 255, 255))
            keypoint_map = torch.from_numpy((drawn[..., 0] > 0).astype(np.float32))
            density = torch.nn.functional.avg_pool2d(keypoint_map[None, None], CELL)[0, 0]
            weights = torch.exp((density / TEMPERATURE).clamp(-20, 20))
            sample["keypoint_weights"] = weights / weights.min()
        return sample


class HFExample:
    """The transforms of transformers' examples/pytorch/image-pretraining/run_mim.py."""

    def __init__(self, size: int):
        self.size = size
        self.transforms = T.Compose(
            [
                T.Lambda(lambda image: image.convert("RGB") if image.mode != "RGB" else image),
                T.RandomResizedCrop(size, scale=(0.67, 1.0), ratio=(3 / 4, 4 / 3)),
                T.RandomHorizontalFlip(),
                T.ToTensor(),
                T.Normalize(mean=MEAN, std=STD),
            ]
        )

    def __call__(self, data: bytes) -> dict[str, torch.Tensor]:
        pixels = self.transforms(Image.open(io.BytesIO(data)))
        return {"pixel_values": pixels, "bool_masked_pos": random_blocks(self.size)}


def random_blocks(size: int) -> torch.Tensor:
    blocks = np.zeros((size // 32) ** 2, int)
    blocks[np.random.permutation(blocks.size)[: int(np.ceil(blocks.size * 0.6))]] = 1
    mask = blocks.reshape(size // 32, size // 32).repeat(2, axis=0).repeat(2, axis=1)
    return torch.tensor(mask.flatten())


def measure(pipelines: list[Pipeline], rounds: int, num_images: int) -> dict[tuple[str, str], np.ndarray]:
    """Milliseconds per image of every round, interleaved; the fastest pipelines run several times a round."""
    times: dict[tuple[str, str], list[float]] = {(p.name, p.keypoints): [] for p in pipelines}
    prepared = [pipeline for pipeline in pipelines if pipeline.name == "prepared"]
    others = [pipeline for pipeline in pipelines if pipeline.name != "prepared"]
    for number in tqdm(range(rounds + 1), desc="rounds"):
        seconds = dict.fromkeys(times, 0.0)
        for pipeline in others + prepared * REPEATS:
            start = time.perf_counter()
            pipeline.run()
            seconds[pipeline.name, pipeline.keypoints] += time.perf_counter() - start
        if number:  # the first warms up
            for key, total in seconds.items():
                times[key].append(total / (REPEATS if key[0] == "prepared" else 1) / num_images * 1e3)
    return {key: np.array(values) for key, values in times.items()}


def report(times: dict[tuple[str, str], np.ndarray], pipelines: list[Pipeline], num_images: int) -> None:
    reference, example = times["reference", "fast"], times["HF example", "none"]
    print(f"{num_images} images, {len(reference)} rounds, one core\n")
    print("| pipeline | keypoints | ms per image | images/s | times as fast as reference FAST | as HF example |")
    print("|---|---|---|---|---|---|")
    for pipeline in pipelines:
        own = times[pipeline.name, pipeline.keypoints]
        print(
            f"| {pipeline.name} | {pipeline.keypoints} | {np.median(own):.3f} | {1e3 / np.median(own):.0f} | "
            f"{ratio(reference, own):.2f} | {ratio(example, own):.2f} |"
        )
    ratios = {
        "online_fast_vs_reference": ratio(reference, times["online", "fast"]),
        "online_fast_vs_hf": ratio(example, times["online", "fast"]),
        "prepared_vs_reference": ratio(reference, times["prepared", "fast"]),
        "prepared_images_per_s": 1e3 / np.median(times["prepared", "fast"]),
        **{f"kamim_vs_simmim_{name}": ratio(times["prepared", name], times["prepared", "none"]) for name in DETECTORS},
    }
    print("\nRATIO " + " ".join(f"{name}={value:.3f}" for name, value in ratios.items()))


def ratio(slow: np.ndarray, fast: np.ndarray) -> float:
    """Median over rounds of the ratio within a round, which cancels the machine's drifts."""
    return float(np.median(slow / fast))


if __name__ == "__main__":
    run(main)
