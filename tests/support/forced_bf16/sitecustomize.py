"""Python reads this file at its start where the folder is on PYTHONPATH: torch then answers KAMIM_TEST_BF16.

"on" or "off" is what torch says when it is asked whether this CPU computes in bf16, in the tests' own process and in
those that they start. `make test-hardware` uses it.
"""

import importlib.abc
import importlib.machinery
import os
import sys

ANSWER = {"on": True, "off": False}.get(os.environ.get("KAMIM_TEST_BF16", ""))


class _AnswerAfterImport(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "torch.cpu":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            module._is_avx512_bf16_supported = module._is_amx_tile_supported = lambda: ANSWER

        spec.loader.exec_module = exec_module
        return spec


if ANSWER is not None:
    sys.meta_path.insert(0, _AnswerAfterImport())
