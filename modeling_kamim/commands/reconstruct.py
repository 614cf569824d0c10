"""Score and draw what checkpoints fill into masked images: PSNR and SSIM, compared with the mean color.

kamim reconstruct --model_name_or_path outputs/mim --dataset_name path/to/images
kamim reconstruct --model_name_or_path outputs/mim --compare_with outputs/other
"""

import sys

from . import evaluate
from .endings import run


def main() -> None:
    """As `kamim evaluate --mode reconstruction`."""
    evaluate.main([*sys.argv[1:], "--mode", "reconstruction"], __doc__)


if __name__ == "__main__":
    run(main)
