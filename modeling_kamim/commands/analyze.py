"""Show what models learned: the paper's analyses (section 5 and appendix) and more, of several models side by side.

kamim analyze --models kamim=outputs/mim --output_dir figures
kamim analyze --models kamim=DIR simmim=DIR mocov3=DIR random --dataset_name path/to/images
kamim analyze --models kamim=DIR --analyses attention fourier --num_images 1000

The output directory gets report.md, every figure as PNG and PDF, and every number behind them as CSV.
"""

import logging
import time
from pathlib import Path

import cv2
import torch

from ..analysis.encoders import Encoder, load_encoder, random_encoder, shared_channels
from ..analysis.findings import write_report
from ..analysis.gallery import AnalysisImages, load_analysis_images
from ..analysis.options import RANDOM, AnalysisArguments
from ..analysis.pipeline import AnalysisRun
from ..analysis.tokens import check_scikit_learn
from ..data.bad_images import list_bad_images
from ..errors import InputError, first_line
from ..evaluation.results import device_name
from ..limits import size_in_words
from ..privacy import public_dataset, public_name
from ..training.run_directory import check_reports
from .endings import run
from .parser import parse
from .program import show_log

logger = logging.getLogger(__name__)


def main() -> None:
    (args,) = parse((AnalysisArguments,), None, __doc__)
    show_log()
    logging.getLogger("httpx").setLevel(logging.WARNING)
    cv2.setNumThreads(1)
    if {"tsne", "pca"} & set(args.analyses):
        check_scikit_learn()
    check_reports(Path(args.output_dir) / "report.md")
    start = time.perf_counter()

    device = choose_device(args.device)
    encoders, references = load_encoders(args, device)
    ranges = [encoder.pixel_range for encoder in encoders if encoder.pixel_range]
    images, bad = load_analysis_images(args, ranges, shared_channels(encoders))
    list_bad_images(bad, Path(args.output_dir), should_save=True)
    logger.info("%s on %d images", ", ".join(encoder.name for encoder in encoders), len(images))

    sections = AnalysisRun(args, encoders, references, images).run()
    seconds = time.perf_counter() - start
    write_report(Path(args.output_dir) / "report.md", sections, facts(args, encoders, references, images, seconds))
    logger.info("report.md, figures and tables are in %s (%.0f s)", args.output_dir, seconds)


def choose_device(name: str) -> torch.device:
    """Return the device that is named, or for "auto" a GPU if there is one.

    Raises:
        InputError: if torch does not know it, or cannot use it here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"device is {name!r}: {first_line(error)}; give auto, cpu, cuda, cuda:N or mps") from error
    return device


def load_encoders(args: AnalysisArguments, device: torch.device) -> tuple[list[Encoder], dict[str, Encoder]]:
    """Load the named models, in their order; make a reference for each name: its architecture with random weights."""
    named = args.named_models()
    loaded = {name: load_encoder(name, path, device) for name, path in named.items() if path is not None}
    random: dict[str, Encoder] = {}  # by architecture
    for name, encoder in loaded.items() if RANDOM in named or args.random_reference else ():
        if encoder.architecture not in random:
            title = f"{RANDOM} ({name})" if random else RANDOM
            random[encoder.architecture] = random_encoder(title, encoder, args.seed)
    references = {name: random[loaded[name].architecture] for name in loaded} if args.random_reference else {}
    if RANDOM in named:
        loaded[RANDOM] = next(iter(random.values()))
    return [loaded[name] for name in named], references


def facts(
    args: AnalysisArguments,
    encoders: list[Encoder],
    references: dict[str, Encoder],
    images: AnalysisImages,
    seconds: float,
) -> list[str]:
    """Return the first lines of the report, without local paths: models, images, time."""
    models = [f"{encoder.name} ({describe(encoder)})" for encoder in encoders]
    lines = [f"Models: {'; '.join(models)}."]
    for reference in dict.fromkeys(references.values()):
        alike = ", ".join(name for name, random in references.items() if random is reference)
        lines.append(f"Reference {reference.name}: random weights of the architecture of {alike} (seed {args.seed}).")
    data = public_dataset(args.dataset_name)
    lines.append(f"Images: {len(images)} of {data}, split {images.split}, drawn with seed {args.seed}.")
    threads = torch.get_num_threads()
    lines.append(f"Time: {seconds:.0f} s on {device_name(encoders[0].device)}, {threads} CPU thread(s).")
    return lines


def describe(encoder: Encoder) -> str:
    """Return checkpoint, architecture and input of an encoder, in words."""
    source = "random weights" if encoder.checkpoint is None else public_name(encoder.checkpoint)
    patch_size = getattr(encoder.config, "patch_size", None)
    patches = f", patches of {patch_size} px" if isinstance(patch_size, int) else ""
    return f"{source}, {encoder.config.model_type} at {size_in_words(encoder.image_size)} px{patches}"


if __name__ == "__main__":
    run(main)
