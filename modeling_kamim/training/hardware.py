"""Device and precision of this machine; `python -m modeling_kamim.training.hardware` prints them."""

from dataclasses import dataclass

import torch

from ..errors import InputError
from .matrix_speed import bf16_speedup

LEAST_SPEEDUP = 1.2  # of matrix products in bf16; below it, casting costs more than they save


@dataclass(frozen=True)
class Hardware:
    """The device that a process trains on.

    Args:
        device: its type as torch names it: "cuda", "mps", "xpu", ..., or "cpu".
        bf16: whether it computes in bfloat16 without emulation, and in that faster than in float32.
    """

    device: str
    bf16: bool

    @property
    def precision(self) -> str:
        """The fastest of "bf16", "fp16" and "fp32" that it computes in."""
        if self.bf16:
            return "bf16"
        return "fp16" if self.device == "cuda" else "fp32"

    def choose(self, precision: str) -> str:
        """Return the precision that is asked for, the fastest for "auto"; raise InputError for fp16 on a CPU."""
        if precision == "fp16" and self.device == "cpu":
            raise InputError("precision is fp16, which needs a GPU; on the CPU give bf16, fp32 or auto")
        return self.precision if precision == "auto" else precision


def find_hardware(use_cpu: bool = False) -> Hardware:
    """Return the accelerator that torch can use, or the CPU where there is none.

    Args:
        use_cpu: do not look for an accelerator.
    """
    accelerator = None if use_cpu or not torch.accelerator.is_available() else torch.accelerator.current_accelerator()
    if accelerator is None:
        has_units = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return Hardware("cpu", has_units and bf16_speedup() >= LEAST_SPEEDUP)
    is_cuda = accelerator.type == "cuda"
    return Hardware(accelerator.type, is_cuda and torch.cuda.is_bf16_supported(including_emulation=False))


if __name__ == "__main__":
    hardware = find_hardware()
    print(f"device: {hardware.device}")
    print(f"bf16 faster than fp32: {hardware.bf16} (so --precision auto is {hardware.precision})")
    print(f"CPU: {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads")
    print(f"AVX-512 BF16: {torch.cpu._is_avx512_bf16_supported()}, AMX: {torch.cpu._is_amx_tile_supported()}")
    print(f"matrix products in bf16: {bf16_speedup():.2f} times as fast as in fp32")
