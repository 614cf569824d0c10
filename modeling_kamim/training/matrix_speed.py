"""How fast this CPU multiplies matrices in bfloat16: having units for it does not say so."""

import time
from functools import cache

import torch


@cache
def bf16_speedup() -> float:
    """Return `measured_bf16_speedup`, measured once in a process."""
    return measured_bf16_speedup()


def measured_bf16_speedup(size: int = 512, repeats: int = 7) -> float:
    """Measure how many times as fast as in float32 this CPU multiplies matrices in bfloat16, in some 50 ms.

    CPUs with AVX-512 BF16 differ: AMD's are about twice as fast in it, Intel's without AMX half as fast.

    Args:
        size: rows and columns of the matrices.
        repeats: products of each type, in turns; the fastest counts.
    """
    matrices = {dtype: torch.ones(size, size, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)}
    seconds = dict.fromkeys(matrices, float("inf"))
    for _ in range(repeats):
        for dtype, matrix in matrices.items():
            start = time.perf_counter()
            matrix @ matrix
            seconds[dtype] = min(seconds[dtype], time.perf_counter() - start)
    return seconds[torch.float32] / seconds[torch.bfloat16]
