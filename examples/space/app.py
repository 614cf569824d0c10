"""The demo as a Space: the package lies beside this file, and CHECKPOINTS names models on the Hub."""

import os

import torch

from modeling_kamim.demo.checkpoints import load_models
from modeling_kamim.demo.serving import serve

device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
serve(load_models(os.environ.get("CHECKPOINTS", "").split(), device), host="0.0.0.0", port=7860)
