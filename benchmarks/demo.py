"""How long a change of a setting takes in the tabs of the demo, from the setting to the page, without the browser.

    python benchmarks/demo.py [--checkpoint outputs/quickstart/kamim] [--rounds 20]

Photographs are the demo's examples, at the size at which it keeps them; the aim is 150 ms.
"""

import argparse
import functools
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from modeling_kamim.commands.endings import run
from modeling_kamim.demo.app import EXAMPLES
from modeling_kamim.demo.checkpoints import load_models
from modeling_kamim.demo.focus_view import THRESHOLDS, FocusSettings, focus_page
from modeling_kamim.demo.masked_view import masked_page
from modeling_kamim.demo.neighbor_view import Gallery, neighbor_page
from modeling_kamim.demo.patch_view import patch_page
from modeling_kamim.demo.uploads import shrunk

AIM = 150  # ms


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", nargs="+", default=[], help="models of the other three tabs")
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()
    photographs = [shrunk(photograph()) for photograph in EXAMPLES.values()]
    slowest = 0.0
    for name, draw in pages(args.checkpoint).items():
        times = [milliseconds(draw, photographs[turn % len(photographs)]) for turn in range(args.rounds + 1)][1:]
        slowest = max(slowest, statistics.median(times))
        print(f"{name:<24} median {statistics.median(times):6.1f} ms, largest {max(times):6.1f} ms")
    print(f"RATIO slowest_vs_aim={slowest / AIM:.3f}")


def pages(checkpoints: list[str]) -> dict[str, Callable[[np.ndarray], str]]:
    """Return what each tab does for a photograph."""
    found: dict[str, Callable[[np.ndarray], str]] = {
        f"where it looks, {name}": functools.partial(focus_page, settings=FocusSettings(name, usual))
        for name, (*_, usual) in THRESHOLDS.items()
    }
    models = load_models(checkpoints, torch.device("cpu"))
    if models:
        gallery = Gallery(models)
        found["reconstruct"] = lambda photograph: masked_page(models, photograph, 0.6, 1, 0)
        found["what a patch knows"] = lambda photograph: patch_page(models, photograph, (0.5, 0.5), 99)
        found["neighbors"] = lambda photograph: neighbor_page(gallery, models, photograph, 0.25, 6)
    return found


def milliseconds(draw: Callable[[np.ndarray], str], photograph: np.ndarray) -> float:
    """Return how long a page takes."""
    start = time.perf_counter()
    draw(photograph)
    return 1000 * (time.perf_counter() - start)


if __name__ == "__main__":
    run(main)
