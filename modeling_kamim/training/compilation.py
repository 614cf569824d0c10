"""Whether torch.compile pays, where its results are kept, and what it cost."""

import importlib.util
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub.constants import HF_HOME
from transformers import TrainerCallback

from .arguments import RecipeArguments
from .forecast import in_words
from .recipe import num_steps

logger = logging.getLogger(__name__)
LEAST_STEPS = 2_000  # a step saved a tenth of a second at most where it was measured, and compiling took a minute
_CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"


def settle_compilation(args: RecipeArguments, num_images: int | None) -> None:
    """Decide `--torch_compile auto` for a training of so many images; None for a stream, whose steps are given."""
    if args.compilation_is_open and compiling_pays(num_steps(args, num_images or 0), args.device.type, args.bf16):
        args.torch_compile, args.torch_compile_backend = True, args.torch_compile_backend or "inductor"
    args.compilation_is_open = False


def compiling_pays(steps: int, device: str, bf16: bool) -> bool:
    """Return whether a training of so many steps is likely to be shorter with torch.compile.

    On a CPU in fp32 it is not: compiled steps are no faster there (docs/performance.md).
    """
    can_be_faster = device == "cuda" or (device == "cpu" and bf16)
    return steps >= LEAST_STEPS and can_be_faster and has_compiler(device)


def has_compiler(device: str) -> bool:
    """Return whether torch.compile finds what makes code for a device: Triton on a GPU, a C++ compiler on a CPU."""
    if device == "cuda":
        return importlib.util.find_spec("triton") is not None
    return shutil.which(os.environ.get("CXX", "g++")) is not None


def keep_compiled_code() -> Path:
    """Let torch.compile keep its code beside the Hub's cache, not in a folder that a restart empties; return where.

    Another directory that the environment names (TORCHINDUCTOR_CACHE_DIR) stays.
    """
    folder = Path(os.environ.get(_CACHE_VARIABLE, ""))
    if not folder.name or folder.parent == Path(tempfile.gettempdir()) and folder.name.startswith("torchinductor_"):
        folder = Path(HF_HOME) / "kamim_torch_compile"
        os.environ[_CACHE_VARIABLE] = str(folder)
    return folder


class CompilationCost(TrainerCallback):
    """Log how long compiling took: what the first step took longer than the second.

    Args:
        folder: of the code, see `keep_compiled_code`.
        clock: seconds.
    """

    def __init__(self, folder: Path, clock: Callable[[], float] = time.perf_counter):
        self.folder, self.clock = folder, clock
        self.seconds: list[float] = []
        self.start = 0.0

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self.start = self.clock()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """After the second step, log the difference."""
        if len(self.seconds) == 2:
            return
        self.seconds.append(self.clock() - self.start)
        if len(self.seconds) == 2:
            cost = max(0.0, self.seconds[0] - self.seconds[1])
            logger.info("torch.compile took %s; its code is kept in %s", in_words(cost), self.folder)
