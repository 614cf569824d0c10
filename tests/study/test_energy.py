"""Energy from the counters of processors and GPUs, with every answer of the machine faked."""

import sys
from types import SimpleNamespace

import pytest

from modeling_kamim.study import energy
from modeling_kamim.study.energy import EnergyMeter


@pytest.fixture
def packages(monkeypatch, tmp_path):
    """Set the counters of processor packages, in joules; None takes a package away."""
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)

    def tell(**joules):
        for name, value in joules.items():
            zone = tmp_path / name.replace("_", ":").replace("rapl", "intel-rapl")
            zone.mkdir(exist_ok=True)
            (zone / "energy_uj").write_text(str(int(value * 1e6)))
            (zone / "max_energy_range_uj").write_text(str(int(1000 * 1e6)))

    return tell


@pytest.fixture
def gpus(monkeypatch):
    """Set the counters of GPUs, in joules, and count how often NVIDIA's library is opened."""
    found = SimpleNamespace(joules=[], opened=0)

    class NVMLError(Exception):
        pass

    def count():
        if not found.joules:
            raise NVMLError
        return len(found.joules)

    def opened():
        found.opened += 1

    library = SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=opened,
        nvmlDeviceGetCount=count,
        nvmlDeviceGetHandleByIndex=int,
        nvmlDeviceGetTotalEnergyConsumption=lambda gpu: found.joules[gpu] * 1e3,
    )
    monkeypatch.setitem(sys.modules, "pynvml", library)
    energy._nvml.cache_clear()
    yield found
    energy._nvml.cache_clear()


def test_packages_and_gpus_are_added_up(packages, gpus):
    packages(rapl_0=10, rapl_1=20, rapl_0_1=5)  # the last is a part of the first
    gpus.joules = [100, 200]
    meter = EnergyMeter()
    packages(rapl_0=40, rapl_1=30, rapl_0_1=25)
    gpus.joules = [400, 240]
    assert meter.kilowatt_hours() == pytest.approx((30 + 10 + 300 + 40) / 3.6e6)
    assert meter.kilowatt_hours() == pytest.approx(380 / 3.6e6)
    assert gpus.opened == 1


def test_a_counter_that_started_again_goes_on(packages, gpus):
    packages(rapl_0=990)
    meter = EnergyMeter()
    packages(rapl_0=15)
    assert meter.kilowatt_hours() == pytest.approx(25 / 3.6e6)


def test_a_machine_without_counters_has_no_energy(packages, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    energy._nvml.cache_clear()
    assert EnergyMeter().kilowatt_hours() is None
    energy._nvml.cache_clear()
