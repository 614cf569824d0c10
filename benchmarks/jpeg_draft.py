"""What `--jpeg_draft true` saves with large photographs, and what it changes.

    python benchmarks/jpeg_draft.py [--dataset_name path/to/photographs] [--num_images 32] [--rounds 5]

Photographs are enlarged to the given lengths of the longer side and saved as JPEGs of quality 90. Samples are made of
the same images both ways in turns, on one core; times are medians. Compared are the whole images at `--image_size`: the
mean difference of their levels, and Pearson's r of the FAST densities of their cells if keypoints were looked for in
them (they are not: the option takes densities of the images as they are).
"""

import argparse
import statistics
import time
from dataclasses import replace
from random import Random

import cv2
import numpy as np
import simplejpeg
import torch
from input_pipeline import encoded_images
from tqdm import tqdm

from modeling_kamim import KeypointDetector
from modeling_kamim.commands.endings import run
from modeling_kamim.data.decoding import decode_image
from modeling_kamim.data.samples import MaskedImageTransform
from modeling_kamim.data.views import RandomView
from modeling_kamim.objective.density import cell_density
from modeling_kamim.objective.keypoints import keypoint_image

QUALITY, CELL = 90, 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_name", help="as for kamim pretrain; the embedded photographs where not given")
    parser.add_argument("--sides", type=int, nargs="+", default=[500, 1024, 2048, 4096], help="longer sides in pixels")
    parser.add_argument("--num_images", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--image_size", type=int, default=192)
    args = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)

    encoded = encoded_images(args.dataset_name, args.num_images)
    photographs = [decode_image({"bytes": data, "path": None}) for data in encoded]
    full = MaskedImageTransform("image", args.image_size, 16, 32, 0.6, CELL, RandomView())
    draft = replace(full, jpeg_draft=True)
    print(f"{len(photographs)} images, {args.image_size} px, {args.rounds} rounds, one core\n")
    print("| longer side | ms an image | with jpeg_draft | times as fast | decoded | levels apart | r of FAST cells |")
    print("|---|---|---|---|---|---|---|")
    ratios = {}
    for side in args.sides:
        images = [{"image": {"bytes": enlarged(photograph, side), "path": None}} for photograph in photographs]
        times = measure((full, draft), images, args.rounds)
        slow, fast = (statistics.median(row) for row in times)
        ratios[side] = statistics.median(a / b for a, b in zip(*times, strict=True))
        levels, correlation = differences(full, draft, images)
        decoded = draft.decode(images[0]["image"]).shape
        print(
            f"| {side} | {slow:.2f} | {fast:.2f} | {ratios[side]:.2f} | {decoded[1]} x {decoded[0]} | {levels:.1f} | "
            f"{correlation:.2f} |"
        )
    print("\nRATIO " + " ".join(f"jpeg_draft_{side}={value:.3f}" for side, value in ratios.items()))


def enlarged(pixels: np.ndarray, side: int) -> bytes:
    zoom = side / max(pixels.shape[:2])
    return simplejpeg.encode_jpeg(cv2.resize(pixels, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_CUBIC), QUALITY)


def measure(transforms: tuple[MaskedImageTransform, ...], images: list[dict], rounds: int) -> list[list[float]]:
    """Milliseconds an image of each transform, of each round."""
    times: list[list[float]] = [[] for _ in transforms]
    for number in tqdm(range(rounds + 1), desc="rounds", leave=False):
        for own, transform in zip(times, transforms, strict=True):
            start = time.perf_counter()
            for index, row in enumerate(images):
                transform(row, Random(index))
            if number:  # the first warms up
                own.append((time.perf_counter() - start) / len(images) * 1e3)
    return times


def differences(full: MaskedImageTransform, draft: MaskedImageTransform, images: list[dict]) -> tuple[float, float]:
    """Mean difference in levels, and Pearson's r of the densities of all cells."""
    detector, levels, densities = KeypointDetector(), [], []
    for row in images:
        shown = []
        for transform in (full, draft):
            image = transform.decode(row["image"])
            shown.append(
                replace(transform, random_view=None).draw_view(image, Random(0)).of_image(image, full.image_size)
            )
        levels.append(np.abs(shown[0].astype(int) - shown[1]).mean())
        densities.append([cell_density(detector(keypoint_image(pixels)), CELL).ravel() for pixels in shown])
    return float(np.mean(levels)), float(np.corrcoef(*np.concatenate(densities, axis=1))[0, 1])


if __name__ == "__main__":
    run(main)
