"""Energy that a machine has used, where it tells: by Linux's RAPL counters of processors, and NVIDIA's of GPUs."""

from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

POWERCAP = Path("/sys/class/powercap")
JOULES_PER_KILOWATT_HOUR = 3.6e6


class EnergyMeter:
    """Adds up the energy of all processor packages and GPUs since it was made.

    Counters of packages start again at 0; read it at least every few minutes.
    """

    def __init__(self) -> None:
        self._last = _joules()
        self._used = 0.0

    def kilowatt_hours(self) -> float | None:
        """Return the energy since the meter was made; None where the machine has no counter that may be read."""
        now, ranges = _joules(), _ranges()
        for name, joules in now.items():
            difference = joules - self._last.get(name, joules)
            self._used += difference if difference >= 0 else difference + ranges.get(name, 0.0)
        self._last = now
        return self._used / JOULES_PER_KILOWATT_HOUR if now else None


def _joules() -> dict[str, float]:
    return {**_read("energy_uj"), **_gpu_joules()}


def _ranges() -> dict[str, float]:
    return _read("max_energy_range_uj")


def _read(file: str) -> dict[str, float]:
    """Return a number of each package, in joules; their parts, as intel-rapl:0:1, are in it already."""
    found = {}
    for zone in POWERCAP.glob("*-rapl:*"):
        if zone.name.count(":") == 1:
            with suppress(OSError, ValueError):
                found[zone.name] = int((zone / file).read_text()) / 1e6
    return found


def _gpu_joules() -> Mapping[str, float]:
    nvml = _nvml()
    if nvml is None:
        return {}
    try:
        gpus = map(nvml.nvmlDeviceGetHandleByIndex, range(nvml.nvmlDeviceGetCount()))
        return {f"gpu{n}": nvml.nvmlDeviceGetTotalEnergyConsumption(gpu) / 1e3 for n, gpu in enumerate(gpus)}
    except nvml.NVMLError:  # no counter
        return {}


@cache
def _nvml() -> Any | None:
    """Return NVIDIA's library, which comes along where CUDA's tools are installed; None without it or a driver."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return pynvml
