"""`kamim COMMAND ...`: one command for everything; each part is imported when it is called."""

import importlib
import sys

from .. import __version__
from ..errors import InputError, did_you_mean
from .endings import run
from .spelling import check_options

COMMANDS = {
    "pretrain": "pretrain a vision transformer, from random weights or a checkpoint",
    "evaluate": "score a checkpoint: linear probes, nearest neighbors, fine-tuning",
    "reconstruct": "score and draw what checkpoints fill into masked images",
    "report": "gather results of evaluations in tables and pictures",
    "analyze": "look at attention, frequencies, tokens and similarities of encoders",
    "demo": "open a page in the browser: weights, reconstructions, patches, neighbors",
    "embed": "write the features that an encoder has of a data set",
    "prepare": "make a data set ready for fast training, once",
    "check": "say what a data set needs, and how long pretraining on it takes",
    "push": "publish a checkpoint on the Hub",
    "convert": "read checkpoints of KAMIM's authors, SimMIM, MAE and MoCo v3",
    "export": "write an encoder for timm or ONNX",
    "runs": "list pretrainings: how far they are, and how to go on with them",
    "study": "run arms with seeds and probes, and report their differences",
    "configs": "list the recipes that come with this package, or copy one",
}
# these check their few options themselves, quickly
_OWN_OPTIONS = ("report", "runs", "study", "demo", "convert", "export", "configs")


def main() -> None:
    """Run the command that `sys.argv` names; an error ends the process with one line and an exit status."""
    sys.argv[0] = "kamim"
    run(dispatch)


def dispatch() -> None:
    """Run the command that `sys.argv` names.

    Raises:
        InputError: if there is no such command.
    """
    name, *rest = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(usage())
    elif name == "--version":
        print(f"kamim {__version__}")
    elif name in COMMANDS:
        sys.argv = [f"kamim {name}", *rest]
        if name not in _OWN_OPTIONS:
            check_options(rest)
        importlib.import_module(f"{__package__}.{name}").main()
    else:
        advice = did_you_mean(name, COMMANDS) or ";"
        raise InputError(f"there is no command {name!r}{advice} commands: {', '.join(COMMANDS)}")


def usage() -> str:
    """Return what `kamim --help` prints."""
    width = max(map(len, COMMANDS))
    lines = "\n".join(f"  {name:<{width}}  {what}" for name, what in COMMANDS.items())
    return f"""usage: kamim COMMAND [config.yaml] [--key value ...]

KAMIM {__version__}: keypoint-aware masked image modeling on vision transformers of HuggingFace.

commands:
{lines}

`kamim COMMAND --help` lists what a command takes. To try it out, on embedded photographs:
  kamim pretrain --model_size tiny --max_steps 3 --use_cpu
On several GPUs or machines:
  accelerate launch -m modeling_kamim.commands.pretrain --model_type vit"""
