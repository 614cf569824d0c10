"""Weight distributions by density source and footprint, and how well cached densities stand in for online ones.

    python benchmarks/weights.py --dataset_name path/to/photographs [--num_images 200] [--image_size 192 [256]] \
        [--weight_patch_size 2 8 16 32] [--keypoint_detector fast sobel attention] [--keypoint_footprint circle] \
        [--keypoint_detector_args '{"attention": {"model": "path/to/encoder"}}']

Prints how many images were used and one Markdown table. Times are of one thread, and of the device for learned sources.
"""

import argparse
import time
from collections.abc import Sequence
from random import Random

import cv2
import numpy as np
import torch

from modeling_kamim import CellWeighting, KeypointDetector, cell_density
from modeling_kamim.commands.endings import run
from modeling_kamim.data.decoding import decode_image
from modeling_kamim.data.loading import choose_splits, find_image_column, keep_encoded, load_images, subsample
from modeling_kamim.data.stored_density import DensityDetector
from modeling_kamim.data.views import RandomView, crop_ratios
from modeling_kamim.limits import ImageSize, size_in_words, written_size
from modeling_kamim.objective.density import resample_density
from modeling_kamim.objective.keypoints import FOOTPRINTS, detector_parameters
from modeling_kamim.objective.sources.table import PAPER_DETECTORS, SOURCES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_name", help="as for kamim pretrain; the embedded photographs where not given")
    parser.add_argument("--num_images", type=int, default=200)
    parser.add_argument("--image_size", type=int, nargs="+", default=[192])
    parser.add_argument("--weight_patch_size", type=int, nargs="+", default=[8])
    parser.add_argument("--keypoint_detector", choices=SOURCES, nargs="+", default=list(PAPER_DETECTORS))
    parser.add_argument("--keypoint_detector_args", help="JSON: parameters by source")
    parser.add_argument("--keypoint_footprint", choices=FOOTPRINTS, nargs="+", default=list(FOOTPRINTS))
    args = parser.parse_args()

    dataset, _ = choose_splits(load_images(args.dataset_name))
    column = find_image_column(dataset)
    dataset = keep_encoded(dataset, column)
    dataset = subsample(dataset, args.num_images, seed=0)
    images = [decode_image(row[column]) for row in dataset]
    size = size_in_words(args.image_size)
    central = share_of_central_crops(images, written_size(args.image_size))
    print(f"{len(images)} images at {size} px, {central:.0%} of their crops are the largest central ones.")
    print("T = 0.25; time of a crop; r of densities with those of FAST rings; map beside online: r, ratio of mean W\n")
    print(
        "| source | footprint | ms | time / FAST | keypoints | w_ps | W mean | W 95% | W max | r, FAST | r, density "
        "| r, W | map / online |"
    )
    print("|" + 13 * "---|")
    parameters = detector_parameters(args.keypoint_detector_args)
    benchmark = Benchmark(images, written_size(args.image_size), args.weight_patch_size)
    for name in args.keypoint_detector:
        footprints = args.keypoint_footprint if SOURCES[name].gives == "keypoints" else FOOTPRINTS[:1]
        for footprint in footprints:
            benchmark.measure(KeypointDetector(name, footprint, parameters.get(name, {})))


class Benchmark:
    """Random crops of images, with the maps and the time of FAST rings."""

    def __init__(self, images: list[np.ndarray], image_size: ImageSize, cells: list[int]):
        self.images, self.image_size, self.cells = images, image_size, cells
        self.view, rng = RandomView(ratio=crop_ratios(image_size)), Random(0)
        self.views = [self.view(*image.shape[:2], rng) for image in images]
        self.crops = [view.of_image(image, image_size) for view, image in zip(self.views, images, strict=True)]
        self.fast, self.fast_seconds = self._maps(KeypointDetector())

    def _maps(self, detector: KeypointDetector) -> tuple[list[np.ndarray], float]:
        """Return the maps of the crops, and the seconds that one takes, in the fastest of three rounds."""
        detector.maps(self.crops[:2])
        seconds = []
        for _ in range(3):
            start = time.perf_counter()
            maps = detector.maps(self.crops)
            seconds.append((time.perf_counter() - start) / len(maps))
        return maps, min(seconds)

    def measure(self, detector: KeypointDetector) -> None:
        """Print a row for each size of cells."""
        maps, seconds = self._maps(detector)
        densities = DensityDetector(detector, self.image_size, self.view.min_scale)
        made = densities.finish([densities.begin(image) for image in self.images])
        stored = [densities.format.decode(density) for density in made]
        whole = torch.from_numpy(np.stack(stored) / np.float32(255))
        crop_box = torch.tensor([view.crop_box() for view in self.views])
        footprint, count = "-", "-"
        if detector.source.gives == "keypoints":
            footprint = detector.footprint
            count = f"{np.mean([len(detector.detect(crop)) for crop in self.crops]):.0f}"
        ratio = seconds / self.fast_seconds
        for cell in self.cells:
            online, fast = of_cells(maps, cell), of_cells(self.fast, cell)
            start = f"{detector.name} | {footprint} | {1000 * seconds:.2f} | {ratio:.1f} | {count} | {cell}"
            mapped = resample_density(whole, crop_box, online.shape[1:])
            print(f"| {start} | {compare(online, mapped, fast)} |", flush=True)


def of_cells(maps: Sequence[np.ndarray], cell: int) -> torch.Tensor:
    return torch.from_numpy(np.stack([cell_density(found, cell) for found in maps]))


def share_of_central_crops(images: list[np.ndarray], image_size: ImageSize, draws: int = 20) -> float:
    """How often no crop of the shape that is wanted fits into an image."""
    view, rng = RandomView(ratio=crop_ratios(image_size)), Random(0)
    crops = [view(*image.shape[:2], rng) for image in images for _ in range(draws)]
    margins = [(c.image_height - c.height, c.top, c.image_width - c.width, c.left) for c in crops]
    return np.mean(
        [0 in (down, across) and down // 2 == top and across // 2 == left for down, top, across, left in margins]
    )


def compare(online: torch.Tensor, mapped: torch.Tensor, fast: torch.Tensor) -> str:
    weights, mapped_weights = (CellWeighting()(density).numpy() for density in (online, mapped))
    agreement = (pearson(online, fast), pearson(online, mapped), pearson(weights, mapped_weights))
    numbers = " | ".join(f"{r:.2f}" for r in (*agreement, mapped_weights.mean() / weights.mean()))
    return f"{weights.mean():.2f} | {np.percentile(weights, 95):.1f} | {weights.max():.1f} | {numbers}"


def pearson(first: torch.Tensor | np.ndarray, second: torch.Tensor | np.ndarray) -> float:
    return float(np.corrcoef(np.asarray(first).ravel(), np.asarray(second).ravel())[0, 1])


if __name__ == "__main__":
    cv2.setNumThreads(1)
    run(main)
