"""Open a page in the browser: where the loss looks, what models fill in, what their patches know, and neighbors.

kamim demo
kamim demo --checkpoint outputs/kamim outputs/simmim
kamim demo --checkpoint user/kamim-vit-b --device cuda

Several checkpoints are shown side by side. Without one, the quickstart's model is shown; where it is not there
(outputs/quickstart/kamim), it is trained first, in about two minutes. It comes with: pip install "modeling-kamim[demo]"
"""

import importlib.util
import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from ..errors import InputError
from .analyze import choose_device
from .endings import run
from .program import plain_parser, show_log

logger = logging.getLogger(__name__)
QUICKSTART, RECIPE = Path("outputs/quickstart/kamim"), "configs/quickstart/pretrain.yaml"


def main() -> None:
    parser = plain_parser(__doc__)
    parser.add_argument(
        "--checkpoint", nargs="+", default=[], metavar="DIR_OR_HUB_ID", help="encoders, of KAMIM or of transformers"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at; 0.0.0.0 for other machines")
    parser.add_argument("--port", type=int, help="the first free one from 7860 where not given")
    parser.add_argument("--device", default="auto", help="auto (a GPU if there is one), cpu, cuda, cuda:1, mps")
    parser.add_argument("--without_model", action="store_true", help="show where the loss looks, and train nothing")
    args = parser.parse_args()
    show_log()
    if importlib.util.find_spec("gradio") is None:
        raise InputError('the demo needs gradio: pip install "modeling-kamim[demo]"')
    if args.without_model and args.checkpoint:
        raise InputError("--checkpoint and --without_model exclude each other; give one of them")
    device = choose_device(args.device)
    checkpoints = args.checkpoint or ([] if args.without_model else [quickstart_model()])
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    with tempfile.TemporaryDirectory(prefix="kamim-demo-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # of uploads; gradio reads it when it is imported
        from ..demo.checkpoints import load_models
        from ..demo.serving import serve

        serve(load_models(checkpoints, device), args.host, args.port)


def quickstart_model() -> str:
    """Return the directory of the quickstart's model, which is trained first where it is not there.

    Raises:
        InputError: if the training fails.
    """
    if not (QUICKSTART / "model.safetensors").is_file():
        logger.info("No --checkpoint is given: training the quickstart's model first (--without_model opens at once)")
        words = ["-m", f"{__package__}.pretrain", RECIPE, "--resume_from_checkpoint", "auto"]
        if status := subprocess.run([sys.executable, *words], check=False).returncode:
            raise InputError(f"the training ended with status {status}; give --checkpoint, or --without_model")
    logger.info("Showing %s; --checkpoint names others", QUICKSTART)
    return str(QUICKSTART)


if __name__ == "__main__":
    run(main)
