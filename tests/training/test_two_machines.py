"""Two machines, as two network namespaces that share a folder: one is killed, both start again and go on."""

import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import psutil
import pytest
import torch
from runs import MASKED, QUIET, ROOT, VIT, curve, processes_of
from safetensors.torch import load_file

pytestmark = pytest.mark.slow

ACCELERATE = [str(Path(sys.executable).parent / "accelerate"), "launch", "--multi_gpu"]
CONFIG = str(ROOT / "configs" / "accelerate" / "two_machines.yaml")
STEPS = ["--max_train_samples", "24", "--max_eval_samples", "8", "--max_steps", "24"]
STEPS += ["--per_device_train_batch_size", "4", "--save_steps", "2", "--save_total_limit", "20"]
ADDRESSES = ("10.83.77.1", "10.83.77.2")
INTERFACE = "kamim"


def ip(*words):
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@pytest.fixture
def namespaces():
    """Two network namespaces with a cable between them, each with one address; gone after the test."""
    names = [f"kamim{number}-{uuid.uuid4().hex[:6]}" for number in range(2)]
    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", INTERFACE, "netns", names[0], "type", "veth", "peer", "name", INTERFACE, "netns", names[1])
        for name, address in zip(names, ADDRESSES, strict=True):
            ip("-n", name, "address", "add", f"{address}/24", "dev", INTERFACE)
            for link in (INTERFACE, "lo"):
                ip("-n", name, "link", "set", link, "up")
    except (OSError, subprocess.CalledProcessError) as error:
        delete(names)
        pytest.skip(f"network namespaces are not permitted here: {getattr(error, 'stderr', '') or error}")
    yield names
    delete(names)


def delete(names):
    for name in names:
        subprocess.run(["ip", "netns", "delete", name], capture_output=True)


class Machine:
    """What runs in a namespace: a launcher and its processes, with their output in a file."""

    def __init__(self, namespace, rank, logs, *arguments):
        self.log = logs / f"machine-{rank}.log"
        launcher = [*ACCELERATE, "--config_file", CONFIG, "--machine_rank", str(rank), "--num_processes", "2"]
        launcher += ["--main_process_ip", ADDRESSES[0]]
        command = ["ip", "netns", "exec", namespace, *launcher, "run_mim.py", *arguments]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": INTERFACE}
        with self.log.open("a") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)

    def kill(self):
        """SIGKILL to the launcher and to all it started, as when the power fails."""
        try:
            launcher = psutil.Process(self.process.pid)
            processes = [launcher, *launcher.children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        for process in processes:
            try:
                process.send_signal(signal.SIGKILL)
            except psutil.NoSuchProcess:
                continue
        self.process.wait()

    def wait(self, seconds):
        return self.process.wait(timeout=seconds)

    @property
    def output(self):
        return self.log.read_text()


@pytest.fixture
def start(namespaces, tmp_path):
    """Callable from the run's arguments to two machines that train together."""
    started = []

    def start(output_dir, *arguments):
        logs = tmp_path / f"logs-{len(started)}"
        logs.mkdir()
        arguments = [*VIT, *MASKED, *QUIET, *STEPS, *arguments, "--output_dir", str(output_dir)]
        machines = [Machine(namespace, rank, logs, *arguments) for rank, namespace in enumerate(namespaces)]
        started.extend(machines)
        return machines

    yield start
    for machine in started:
        machine.kill()


def finish(machines):
    for machine in machines:
        assert machine.wait(300) == 0, machine.output[-4000:]


def wait_for(path, machines):
    deadline = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < deadline and machines[0].process.poll() is None, machines[0].output[-4000:]
        time.sleep(0.02)


def last_checkpoint(output_dir):
    return max(output_dir.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))


@pytest.mark.parametrize("killed", [0, 1], ids=["the first", "the second"])
def test_a_machine_is_killed_and_the_job_goes_on_bit_by_bit(start, tmp_path, killed):
    finish(start(tmp_path / "whole"))
    whole = last_checkpoint(tmp_path / "whole")
    assert whole.name == "checkpoint-24" and processes_of(whole) == 2

    broken = tmp_path / "broken"
    machines = start(broken)
    wait_for(broken / "checkpoint-6", machines)
    machines[killed].kill()
    assert machines[1 - killed].wait(120) != 0
    checkpoint = last_checkpoint(broken)
    assert checkpoint.name != "checkpoint-24"
    machines[1 - killed].kill()

    finish(start(broken, "--resume_from_checkpoint", str(checkpoint)))
    expected, found = (load_file(folder / "model.safetensors") for folder in (tmp_path / "whole", broken))
    assert expected.keys() == found.keys()
    assert [key for key in expected if not torch.equal(expected[key], found[key])] == []
    assert curve(broken) == curve(tmp_path / "whole")
    print(f"killed at {checkpoint.name}, resumed to 24 steps")
