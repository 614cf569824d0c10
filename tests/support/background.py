"""Runs of run_mim.py in processes of their own, to be killed."""

import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

import torch

from modeling_kamim.commands import pretrain as run_mim

VIT = ["--model_type", "vit", "--model_size", "tiny", "--image_size", "32", "--mask_patch_size", "16"]
SWIN = ["--model_type", "swin", "--model_size", "tiny", "--image_size", "96"]
SMALL = ["--max_train_samples", "40", "--validation_split", "train", "--max_eval_samples", "4", "--use_cpu"]
RUN = ["--max_steps", "16", "--save_steps", "2", "--per_device_train_batch_size", "4", "--learning_rate", "1e-3"]
QUIET = ["--disable_tqdm", "true", "--logging_steps", "1", "--save_total_limit", "2"]


def work(argv, log):
    """The script in a process of its own group, with everything that it prints in a file."""
    os.setsid()
    multiprocessing.set_start_method("fork", force=True)  # as for the loaders of a run that a shell starts
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    torch.set_num_threads(1)
    sys.argv = ["run_mim.py", *argv]
    run_mim.run(run_mim.main)


def starter():
    """Callable that starts a run in the background.

    The processes start in an instant: their parent has imported the script, and nothing else has happened there.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["modeling_kamim.commands.pretrain"])

    def start(output_dir, *argv, log=None):
        argv = [*argv, "--output_dir", str(output_dir)]
        process = context.Process(target=work, args=(argv, str(log or f"{output_dir}.log")))
        process.start()
        return process

    return start


def finish(process, output_dir):
    process.join(300)
    assert process.exitcode == 0, Path(f"{output_dir}.log").read_text()[-3000:]


def kill(process, number=signal.SIGKILL):
    os.killpg(process.pid, number)
    process.join(60)


def count_steps(log):
    return log.read_text().count("'loss'") if log.exists() else 0


def wait_for(condition, process):
    end = time.monotonic() + 120
    while not condition():
        assert process.is_alive() and time.monotonic() < end
        time.sleep(0.01)
