"""What a run does where the disk is full or cannot be written, and what it leaves behind."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from background import QUIET, SMALL, VIT
from trainers import is_whole, trainer
from transformers import TrainerCallback

from modeling_kamim.commands import pretrain as run_mim
from modeling_kamim.errors import InputError

CHECKPOINT = 68  # megabytes: weights, and two moments of each


@pytest.fixture
def small_disk(tmp_path):
    """Callable that mounts a file system of some megabytes; skipped where that is not allowed."""
    mounted = []

    def mount(megabytes):
        folder = tmp_path / "disk"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip("mounting a small file system is not allowed here")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "--lazy", str(folder)])


@pytest.mark.slow
@pytest.mark.parametrize(("room", "status"), [(1.5, 0), (1.1, 1)], ids=["the model fits", "the model does not fit"])
def test_a_full_disk_leaves_the_last_checkpoint_whole(start, small_disk, tmp_path, room, status):
    output_dir = small_disk(int(room * CHECKPOINT)) / "run"
    steps = ["--max_steps", "4", "--save_steps", "2", "--per_device_train_batch_size", "4"]
    log = tmp_path / "log"
    process = start(output_dir, *VIT, *SMALL, *steps, *QUIET, log=log)
    process.join(120)
    text = log.read_text()
    assert process.exitcode == status, text[-2000:]
    assert "Checkpoint of step 4 NOT saved, training on" in text and "Traceback" not in text
    assert [path.name for path in output_dir.glob("checkpoint-*")] == ["checkpoint-2"]
    assert is_whole(output_dir / "checkpoint-2")
    if status:
        assert "the trained model cannot be written" in text and "--resume_from_checkpoint auto" in text
        assert not (output_dir / "model.safetensors").exists()


def test_an_output_directory_that_cannot_be_written_is_refused_before_anything(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    argv = ["run_mim.py", *VIT, *SMALL, *QUIET, "--max_steps", "1", "--output_dir", str(tmp_path / "file" / "run")]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(InputError, match="nothing can be written"):
        run_mim.main()


class Resources(TrainerCallback):
    """Memory in megabytes, and open files, at the end of each epoch."""

    def __init__(self):
        self.memory, self.files = [], []

    def on_epoch_end(self, args, state, control, **kwargs):
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        self.memory.append(resident / 1e6)
        self.files.append(len(os.listdir("/proc/self/fd")))


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_memory_files_and_processes_stay_as_they_are_over_50_epochs(tmp_path, workers):
    settings = {"max_steps": -1, "num_train_epochs": 50, "save_strategy": "no", "dataloader_num_workers": workers}
    resources = Resources()
    trained = trainer(tmp_path, **settings)
    trained.add_callback(resources)
    before = len(os.listdir("/proc/self/fd"))
    trained.train()
    assert resources.memory[-1] - resources.memory[9] < 10
    assert max(resources.files[10:]) <= max(resources.files[:10])
    assert len(os.listdir("/proc/self/fd")) <= before + 1
    children = [file.read_text().split() for file in Path("/proc/self/task").glob("*/children")]
    names = [
        Path(f"/proc/{child}/comm").read_text().strip()
        for child in sum(children, [])
        if Path(f"/proc/{child}").exists()
    ]
    assert not [name for name in names if name.startswith("pt_data_worker")]
