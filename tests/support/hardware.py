"""Machines that tests pretend to run on: torch answers as it does there."""

from dataclasses import dataclass

import torch
from transformers.utils import import_utils as transformers_imports


@dataclass(frozen=True)
class Machine:
    """What torch answers on a machine, and what a run there has to choose."""

    avx512_bf16: bool = False
    amx: bool = False
    bf16_speedup: float = 0.05
    accelerator: str | None = None
    accelerator_bf16: bool = False
    precision: str = "fp32"
    attention: str = "sdpa"


MACHINES = {
    "AVX2 CPU": Machine(),
    "AVX-512 BF16 CPU": Machine(avx512_bf16=True, bf16_speedup=1.8, precision="bf16", attention="eager"),
    "slow AVX-512 BF16 CPU": Machine(avx512_bf16=True, bf16_speedup=0.6),
    "AMX CPU": Machine(avx512_bf16=True, amx=True, bf16_speedup=5, precision="bf16", attention="eager"),
    "CUDA with bf16": Machine(amx=True, accelerator="cuda", accelerator_bf16=True, precision="bf16"),
    "CUDA without bf16": Machine(amx=True, accelerator="cuda", precision="fp16"),
    "MPS": Machine(accelerator="mps", precision="fp32"),
}
CPUS = [name for name, machine in MACHINES.items() if machine.accelerator is None]
_CACHED_ANSWERS = (
    transformers_imports.is_torch_cuda_available,
    transformers_imports.is_torch_mps_available,
    transformers_imports.is_torch_bf16_gpu_available,
    transformers_imports.is_torch_tf32_available,
)


def forget_answers() -> None:
    """Let transformers ask torch again."""
    for answer in _CACHED_ANSWERS:
        answer.cache_clear()


def pretend(monkeypatch, machine: Machine) -> None:
    """Let torch answer as on `machine`; undone with the monkeypatch, after which `forget_answers` is due."""
    device = None if machine.accelerator is None else torch.device(machine.accelerator)
    is_cuda, is_mps = machine.accelerator == "cuda", machine.accelerator == "mps"
    answers = {
        "torch.cpu._is_avx512_bf16_supported": machine.avx512_bf16,
        "torch.cpu._is_amx_tile_supported": machine.amx,
        "modeling_kamim.training.hardware.bf16_speedup": machine.bf16_speedup,
        "torch.accelerator.is_available": device is not None,
        "torch.accelerator.current_accelerator": device,
        "torch.cuda.is_available": is_cuda,
        "torch.cuda.device_count": int(is_cuda),
        "torch.cuda.set_device": None,
        "torch.cuda.current_device": 0,
        "torch.backends.mps.is_available": is_mps,
        "torch.backends.mps.is_built": is_mps,
        "torch.backends.mps.is_macos_or_newer": is_mps,
    }
    for name, answer in answers.items():
        monkeypatch.setattr(name, lambda *args, answer=answer, **kwargs: answer)
    monkeypatch.setattr(
        "torch.cuda.is_bf16_supported", lambda including_emulation=True: machine.accelerator_bf16 or including_emulation
    )
    forget_answers()
