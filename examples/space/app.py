"""The demo as a Space: the package lies beside this file, and CHECKPOINTS names models on the Hub."""

import os

from modeling_kamim.commands.analyze import choose_device
from modeling_kamim.demo.checkpoints import load_models
from modeling_kamim.demo.serving import serve

serve(load_models(os.environ.get("CHECKPOINTS", "").split(), choose_device("auto")), host="0.0.0.0", port=7860)
