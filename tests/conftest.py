"""Offline, few threads, and every cache in a temporary directory; set before anything of HuggingFace is imported."""

import os
import secrets
import subprocess
import sys
import tempfile
from pathlib import Path

_THREADS = "1" if "PYTEST_XDIST_WORKER" in os.environ else "2"
_HOME = tempfile.TemporaryDirectory(prefix="kamim_tests_", ignore_cleanup_errors=True)
os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    HF_HOME=_HOME.name,
    HF_HUB_CACHE=f"{_HOME.name}/hub",
    HF_DATASETS_CACHE=f"{_HOME.name}/datasets",
    HF_EVALUATE_CACHE=f"{_HOME.name}/evaluate",
    HF_METRICS_CACHE=f"{_HOME.name}/metrics",
    HF_MODULES_CACHE=f"{_HOME.name}/modules",
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    HYPOTHESIS_STORAGE_DIRECTORY=f"{_HOME.name}/hypothesis",
    TOKENIZERS_PARALLELISM="false",
    OMP_NUM_THREADS=_THREADS,
)

import cv2  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
import skimage.data  # noqa: E402
import torch  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402
from loopback_hub import LoopbackHub  # noqa: E402
from PIL import Image  # noqa: E402

from modeling_kamim.training.hardware import find_hardware  # noqa: E402

torch.set_num_threads(int(_THREADS))
cv2.setNumThreads(1)
settings.register_profile(
    "kamim",
    deadline=None,
    max_examples=30,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("kamim")


def pytest_report_header() -> str:
    """What the CPU answers, or is made to answer (`make test-hardware`)."""
    found = find_hardware(use_cpu=True)
    return f"CPU: bf16 {found.bf16}, so --precision auto is {found.precision}"


def _photograph(file: str) -> np.ndarray:
    with Image.open(Path(skimage.data.__file__).with_name(file)) as image:
        return np.array(image.convert("RGB"))


@pytest.fixture(scope="session")
def astronaut() -> np.ndarray:
    """A photograph of 512 x 512 pixels."""
    return _photograph("astronaut.png")


@pytest.fixture(scope="session")
def photographs(astronaut) -> list[np.ndarray]:
    """Six crops of photographs, RGB uint8, of several shapes."""
    cat, coffee = _photograph("chelsea.png"), _photograph("coffee.png")
    return [
        astronaut[:128, 150:278],
        astronaut[100:192, 200:310],
        astronaut[300:364, 0:160],
        cat[110:220, 90:230],
        coffee[100:228, 200:296],
        coffee[230:330, 150:270],
    ]


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub of this test's own, to which this process is connected; others by `hub.environment()`."""
    with LoopbackHub(tmp_path / "hub") as hub:
        hub.connect(monkeypatch)
        yield hub


@pytest.fixture(scope="session")
def start():
    """Callable that starts run_mim.py in the background; see background.py."""
    from background import starter

    return starter()


@pytest.fixture(scope="session")
def install_beside(tmp_path_factory):
    """Callable from requirements to a folder with these packages alone, to go before this environment's others."""

    def install(*requirements: str) -> Path:
        folder = tmp_path_factory.mktemp("packages")
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), *requirements]
        installed = subprocess.run(pip, capture_output=True, text=True)
        if installed.returncode:
            pytest.skip(f"pip cannot download {requirements}: {installed.stderr.strip().splitlines()[-1]}")
        return folder

    return install


@pytest.fixture(scope="session")
def ray():
    """Ray that keeps its only token and its logs in a temporary directory, and reports to nobody."""
    with (
        tempfile.TemporaryDirectory(prefix="ray_", ignore_cleanup_errors=True) as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        token = Path(folder, "token")
        token.write_text(secrets.token_hex(32))
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
        patch.setenv("RAY_TMPDIR", folder)  # of a short name: it holds sockets
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        yield pytest.importorskip("ray")


@pytest.fixture(autouse=True)
def seeded():
    """The same random weights and inputs in every run, whatever ran before."""
    torch.manual_seed(0)
    np.random.seed(0)
