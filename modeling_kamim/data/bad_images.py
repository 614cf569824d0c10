"""List the images that a run left out."""

import logging
from collections.abc import Sequence
from pathlib import Path

logger = logging.getLogger(__name__)

BAD_IMAGES_FILE = "bad_images.txt"


def list_bad_images(lines: Sequence[str], output_dir: Path, should_save: bool = True) -> None:
    """Write `output_dir/bad_images.txt`, a line for each image, in place of an earlier list, and log it."""
    if lines and should_save:
        (output_dir / BAD_IMAGES_FILE).unlink(missing_ok=True)
        add_bad_images(lines, output_dir)


def add_bad_images(lines: Sequence[str], output_dir: Path, should_save: bool = True) -> None:
    """Add to `output_dir/bad_images.txt` the lines that it lacks, and log it."""
    if not (lines and should_save):
        return
    file = output_dir / BAD_IMAGES_FILE
    listed = set(file.read_text(encoding="utf-8").splitlines()) if file.is_file() else set()
    new = [line for line in lines if line not in listed]
    if new:
        output_dir.mkdir(parents=True, exist_ok=True)
        with file.open("a", encoding="utf-8") as out:
            out.write("".join(f"{line}\n" for line in new))
        logger.warning("Left out %d image(s) that cannot be decoded; they are listed in %s", len(new), file)
