"""Python reads this file at its start where the folder is on PYTHONPATH: the CPU then answers KAMIM_TEST_BF16.

"on" or "off" is what torch says when it is asked whether this CPU computes in bf16, and what is measured of it, in the
tests' own process and in those that they start. `make test-hardware` uses it.
"""

import importlib.abc
import importlib.machinery
import os
import sys

ANSWER = {"on": True, "off": False}.get(os.environ.get("KAMIM_TEST_BF16", ""))
ANSWERS = {
    "torch.cpu": {"_is_avx512_bf16_supported": ANSWER, "_is_amx_tile_supported": ANSWER},
    "modeling_kamim.training.matrix_speed": {"bf16_speedup": 2.0 if ANSWER else 0.05},
}


class _AnswerAfterImport(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name not in ANSWERS:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            for function, answer in ANSWERS[name].items():
                setattr(module, function, lambda answer=answer: answer)

        spec.loader.exec_module = exec_module
        return spec


if ANSWER is not None:
    sys.meta_path.insert(0, _AnswerAfterImport())
