"""Check the images of a data set before training: list those that cannot be decoded, and what else could matter.

kamim check path/to/images --num_proc 8
kamim check path/to/images --output bad_images.txt
kamim check ILSVRC/imagenet-1k --num_proc 16

Every image is decoded as training decodes it, and stored keypoint densities are checked. `kamim pretrain --bad_images
skip` leaves bad images out.
A data set whose metadata name files outside its folder is not read; these files are listed (see --trust_data_files).
Exit status: 0 if all images are good, 1 if some are bad or outside, 2 for wrong use.
"""

import logging
import sys
from pathlib import Path

import datasets

from ..data.check import CheckArguments, DatasetCheck, check_dataset, files_not_read
from ..data.loading import SourceArguments, load_source
from ..data.trust import OutsideError, link_findings
from ..errors import InputError
from .endings import run
from .parser import parse
from .program import show_log

logger = logging.getLogger(__name__)


def main() -> None:
    source, args = parse((SourceArguments, CheckArguments), None, __doc__, positional=("dataset_name",))
    show_log()
    output = Path(args.output) if args.output else None
    if output is not None and output.is_dir():
        raise InputError(f"output is {args.output}, a folder; give a file")

    check = _check(source)

    print(check.report())
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(check.bad_images(), encoding="utf-8")
        logger.info("The bad images are listed in %s", output)
    if check.num_bad or check.outside:
        sys.exit(1)


def _check(source: SourceArguments) -> DatasetCheck:
    try:
        images, image_column = load_source(source)
    except OutsideError as error:
        return DatasetCheck(outside=error.findings)
    check = check_dataset(images, image_column, source.num_proc)
    if _is_folder_of_images(source.dataset_name, images, image_column):
        check.not_read = files_not_read(Path(source.dataset_name).expanduser(), images, image_column)
    check.links = link_findings(images, image_column, source.dataset_name)
    return check


def _is_folder_of_images(name: str, images: datasets.DatasetDict, image_column: str) -> bool:
    first = next(iter(images.values()))[0][image_column]
    return Path(name).expanduser().is_dir() and bool(first) and first["bytes"] is None


if __name__ == "__main__":
    run(main)
