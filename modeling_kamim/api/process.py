"""Leave a process as it was: its random numbers, environment and threads."""

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager

import cv2
import numpy as np
import torch
from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars


@contextmanager
def undisturbed() -> Iterator[None]:
    """Put back, after the block, the global random generators, environment variables and OpenCV's threads."""
    python, numpy, threads = random.getstate(), np.random.get_state(), cv2.getNumThreads()
    environment, hides_bars = dict(os.environ), are_progress_bars_disabled()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
            cv2.setNumThreads(threads)
            _restore(environment)
            (disable_progress_bars if hides_bars else enable_progress_bars)()


def _restore(environment: dict[str, str]) -> None:
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    os.environ.update(environment)
