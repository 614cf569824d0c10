"""Runs a script of this package in a launched process, with a change that its command line does not offer.

torchrun --nproc_per_node 2 tests/support/launched.py CHANGE[,CHANGE] run_mim.py ...
"""

import runpy
import sys
import time
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parents[2]


def without_stochastic_depth() -> None:
    """Pretrain a Swin without stochastic depth, which each process draws from a generator of its own."""
    from modeling_kamim.training import arguments

    arguments.build_config = partial(arguments.build_config, drop_path_rate=0.0)


def with_a_late_first_process() -> None:
    """The first process comes to a checkpoint later than the others."""
    from modeling_kamim.training import trainer

    save = trainer.PixelTrainer._save_aside

    def save_late(self, *args, **kwargs):
        if self.args.process_index == 0:
            time.sleep(0.5)
        save(self, *args, **kwargs)

    trainer.PixelTrainer._save_aside = save_late


def with_shards_on_cpus() -> None:
    """FSDP2 on CPUs over gloo: PyTorch can, accelerate turns it on for accelerators alone."""
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType

    from modeling_kamim.commands import pretrain

    begin = AcceleratorState.__init__

    def begin_sharded(self, *args, fsdp_plugin=None, **kwargs):
        begin(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            self.fsdp_plugin = fsdp_plugin
            self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = begin_sharded
    pretrain.check_launch = lambda args: None


CHANGES = {
    change.__name__: change for change in (without_stochastic_depth, with_a_late_first_process, with_shards_on_cpus)
}

if __name__ == "__main__":
    sys.path[:0] = [str(ROOT)]
    _, changes, script, *argv = sys.argv
    for change in changes.split(","):
        CHANGES[change]()
    sys.argv = [str(ROOT / script), *argv]
    runpy.run_path(sys.argv[0], run_name="__main__")
