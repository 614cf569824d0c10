"""Weight distributions by detector and footprint, and how well cached densities stand in for online ones.

    python benchmarks/weights.py --dataset_name path/to/photographs [--num_images 200] [--image_size 192 [256]] \
        [--weight_patch_size 2 8 16 32] [--keypoint_detector fast]

Prints how many images were used and one Markdown table.
"""

import argparse
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
from modeling_kamim.objective.keypoints import DETECTORS, FOOTPRINTS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_name", help="as for kamim pretrain; the embedded photographs where not given")
    parser.add_argument("--num_images", type=int, default=200)
    parser.add_argument("--image_size", type=int, nargs="+", default=[192])
    parser.add_argument("--weight_patch_size", type=int, nargs="+", default=[8])
    parser.add_argument("--keypoint_detector", choices=DETECTORS, nargs="+", default=list(DETECTORS))
    args = parser.parse_args()

    dataset, _ = choose_splits(load_images(args.dataset_name))
    column = find_image_column(dataset)
    dataset = keep_encoded(dataset, column)
    dataset = subsample(dataset, args.num_images, seed=0)
    images = [decode_image(row[column]) for row in dataset]
    size = size_in_words(args.image_size)
    central = share_of_central_crops(images, written_size(args.image_size))
    print(f"{len(images)} images at {size} px, {central:.0%} of their crops are the largest central ones.")
    print("T = 0.25; map beside online: r, and ratio of mean W\n")
    print("| detector | footprint | keypoints | w_ps | W mean | W 95% | W max | r, density | r, W | map / online |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name in args.keypoint_detector:
        for footprint in FOOTPRINTS:
            measure(KeypointDetector(name, footprint), images, written_size(args.image_size), args.weight_patch_size)


def measure(detector: KeypointDetector, images: list[np.ndarray], image_size: ImageSize, cells: list[int]) -> None:
    views, rng = RandomView(ratio=crop_ratios(image_size)), Random(0)
    densities = DensityDetector(detector, image_size, views.min_scale)
    counts, maps, stored, boxes = [], [], [], []
    for image in images:
        view = views(*image.shape[:2], rng)
        crop = view.of_image(image, image_size)
        counts.append(len(detector.detect(crop)))
        maps.append(detector(crop))
        stored.append(densities.density(image) / np.float32(255))
        boxes.append(view.crop_box())
    whole, crop_box = torch.from_numpy(np.stack(stored)), torch.tensor(boxes)
    for cell in cells:
        online = torch.from_numpy(np.stack([cell_density(keypoint_map, cell) for keypoint_map in maps]))
        numbers = compare(online, resample_density(whole, crop_box, online.shape[1:]))
        print(f"| {detector.name} | {detector.footprint} | {np.mean(counts):.0f} | {cell} | {numbers} |")


def share_of_central_crops(images: list[np.ndarray], image_size: ImageSize, draws: int = 20) -> float:
    """How often no crop of the shape that is wanted fits into an image."""
    view, rng = RandomView(ratio=crop_ratios(image_size)), Random(0)
    crops = [view(*image.shape[:2], rng) for image in images for _ in range(draws)]
    margins = [(c.image_height - c.height, c.top, c.image_width - c.width, c.left) for c in crops]
    return np.mean(
        [0 in (down, across) and down // 2 == top and across // 2 == left for down, top, across, left in margins]
    )


def compare(online: torch.Tensor, mapped: torch.Tensor) -> str:
    weights, mapped_weights = (CellWeighting()(density).numpy() for density in (online, mapped))
    density_r = np.corrcoef(online.numpy().ravel(), mapped.numpy().ravel())[0, 1]
    weight_r = np.corrcoef(weights.ravel(), mapped_weights.ravel())[0, 1]
    return (
        f"{weights.mean():.2f} | {np.percentile(weights, 95):.1f} | {weights.max():.1f} | {density_r:.2f} | "
        f"{weight_r:.2f} | {mapped_weights.mean() / weights.mean():.2f}"
    )


if __name__ == "__main__":
    cv2.setNumThreads(1)
    run(main)
