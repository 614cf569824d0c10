"""Export the encoder of a ViT or Swin checkpoint to timm or ONNX.

kamim export outputs/mim outputs/mim_timm --format timm
kamim export outputs/mim outputs/mim_onnx --format onnx

The features of the exported encoder are compared with those of the checkpoint. The README.md beside the file holds the
code that loads it. The libraries come with: pip install "modeling-kamim[timm,onnx]"
"""

import logging
from pathlib import Path

from ..hub.export import FORMATS, export_checkpoint
from .endings import run
from .program import plain_parser, show_log

logger = logging.getLogger(__name__)


def main() -> None:
    parser = plain_parser(__doc__)
    parser.add_argument("name_or_path", metavar="DIR", help="directory or Hub id of a ViT or Swin checkpoint")
    parser.add_argument("output_dir", type=Path, metavar="OUT", help="directory to write; empty or not there yet")
    parser.add_argument("--format", choices=FORMATS, required=True, help="timm: safetensors; onnx: any batch size")
    args = parser.parse_args()
    show_log()
    for library in ("onnx_ir", "onnxscript"):
        logging.getLogger(library).setLevel(logging.WARNING)

    export = export_checkpoint(args.name_or_path, args.output_dir, args.format)
    logger.info("The features differ by %.1e at most, on random pixels", export.difference)
    logger.info("The encoder is in %s; README.md beside it says how to load it:", export.file)
    print(export.usage, end="")


if __name__ == "__main__":
    run(main)
