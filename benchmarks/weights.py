"""Weight distributions by detector and footprint, and how well cached densities stand in for online ones.

    python benchmarks/weights.py --dataset_name path/to/photographs [--num_images 200] [--image_size 192]

Prints how many images were used and one Markdown table.
"""

import argparse
from random import Random

import cv2
import numpy as np
import torch

from modeling_kamim import CellWeighting, KeypointDetector, cell_density
from modeling_kamim.data import choose_splits, find_image_column, keep_encoded, load_images, subsample
from modeling_kamim.density import density_grid, detection_side
from modeling_kamim.errors import run
from modeling_kamim.images import decode_image
from modeling_kamim.keypoints import DETECTORS, FOOTPRINTS
from modeling_kamim.views import RandomView
from modeling_kamim.weighting import resample_density

CELL = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_name", help="as for run_mim.py; the embedded photographs where not given")
    parser.add_argument("--num_images", type=int, default=200)
    parser.add_argument("--image_size", type=int, default=192)
    args = parser.parse_args()

    dataset, _ = choose_splits(load_images(args.dataset_name))
    column = find_image_column(dataset)
    dataset = keep_encoded(dataset, column)
    dataset = subsample(dataset, args.num_images, seed=0)
    images = [decode_image(row[column]) for row in dataset]
    print(f"{len(images)} images at {args.image_size} px, cells of {CELL} px, T = 0.25\n")
    print("| detector | footprint | keypoints | W mean | W 95% | W max | r map-online, density | r map-online, W |")
    print("|---|---|---|---|---|---|---|---|")
    for name in DETECTORS:
        for footprint in FOOTPRINTS:
            print(measure(KeypointDetector(name, footprint), images, args.image_size))


def measure(detector: KeypointDetector, images: list[np.ndarray], image_size: int) -> str:
    weighting, views, rng = CellWeighting(), RandomView(), Random(0)
    counts, online, grids, boxes = [], [], [], []
    for image in images:
        view = views(*image.shape[:2], rng)
        crop = view.of_image(image, image_size)
        counts.append(len(detector.detect(crop)))
        online.append(cell_density(detector(crop), CELL))
        grids.append(density_grid(image, detector, detection_side(image_size, views.min_scale)) / np.float32(255))
        boxes.append(view.crop_box())
    mapped = resample_density(torch.from_numpy(np.stack(grids)), torch.tensor(boxes), image_size // CELL)
    weights = weighting(torch.from_numpy(np.stack(online))).numpy()
    mapped_weights = weighting(mapped).numpy()
    density_r = np.corrcoef(np.ravel(online), mapped.numpy().ravel())[0, 1]
    weight_r = np.corrcoef(weights.ravel(), mapped_weights.ravel())[0, 1]
    return (
        f"| {detector.name} | {detector.footprint} | {np.mean(counts):.0f} | {weights.mean():.2f} | "
        f"{np.percentile(weights, 95):.1f} | {weights.max():.1f} | {density_r:.2f} | {weight_r:.2f} |"
    )


if __name__ == "__main__":
    cv2.setNumThreads(1)
    run(main)
