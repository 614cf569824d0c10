"""Convert a published checkpoint to a directory that transformers and this package load.

kamim convert --source kamim checkpoint_final.pth outputs/kamim_vit_base
kamim convert --source simmim simmim_pretrain__swin_base__img192_window6__800ep.pth outputs/simmim
kamim convert --source mae mae_pretrain_vit_base.pth outputs/mae
kamim convert --source mocov3 vit-s-300ep.pth.tar outputs/mocov3
kamim evaluate --mode linear_probe --model_name_or_path outputs/kamim_vit_base

Download the file first, from where its authors publish it. Its size is read from its tensors; nothing in it is run.
"""

import logging
from pathlib import Path

from ..hub.conversion import SOURCES, convert_checkpoint
from .endings import run
from .program import plain_parser, show_log

logger = logging.getLogger(__name__)


def main() -> None:
    parser = plain_parser(__doc__)
    parser.add_argument("file", type=Path, metavar="FILE", help="checkpoint of the source, on this machine")
    parser.add_argument("output_dir", type=Path, metavar="OUT", help="directory to write; empty or not there yet")
    parser.add_argument("--source", choices=SOURCES, required=True, help="whose code the file comes from")
    parser.add_argument(
        "--num_heads",
        type=int,
        help="attention heads of a ViT, which its file does not tell (default: its authors', or else heads 64 wide)",
    )
    parser.add_argument(
        "--image_size",
        type=int,
        help="side of a Swin's input in pixels, where its file does not tell (default: its last stage is one window)",
    )
    args = parser.parse_args()
    show_log()

    conversion = convert_checkpoint(args.source, args.file, args.output_dir, args.num_heads, args.image_size)
    model = conversion.model
    logger.info(
        "%s of %.1fM parameters at %d px",
        *(type(model).__name__, model.num_parameters() / 1e6, model.config.image_size),
    )
    for note in conversion.notes:
        logger.info(note)
    logger.info("The license of the file: %s", SOURCES[args.source].license_note)
    logger.info("The checkpoint and its card are in %s", args.output_dir)


if __name__ == "__main__":
    run(main)
