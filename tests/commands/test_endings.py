"""Every end of a script is one line; a traceback is shown of a bug alone."""

import errno
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from modeling_kamim import __version__
from modeling_kamim.commands.endings import run
from modeling_kamim.data.decoding import BadImageError
from modeling_kamim.errors import InputError, StoppedError

ROOT = Path(__file__).parents[2]
TOKEN = "hf_" + "averyprivatetoken"


def end_of(error, monkeypatch, capsys, argv=("script.py",)):
    """Exit status, and what is written, of a script whose `main` raises."""

    def main():
        raise error

    monkeypatch.setattr(sys, "argv", list(argv))
    with pytest.raises(SystemExit) as end:
        run(main)
    return end.value.code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (InputError("a is 1;\nit must be 2"), 2, "error: a is 1; it must be 2"),
        (StoppedError("a signal", 143), 143, "stopped: a signal"),
        (KeyboardInterrupt(), 130, "stopped: interrupted"),
        (MemoryError(), 1, "error: out of memory"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate\nmuch"), 1, "error: out of memory (CUDA"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
            1,
            "error: out of memory",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device", "a/b"),
            1,
            "error: [Errno 28] No space left on device: 'a/b'",
        ),
        (PermissionError(errno.EACCES, "Permission denied", "a/b"), 1, "error: [Errno 13] Permission denied: 'a/b'"),
    ],
)
def test_what_is_no_bug_ends_with_one_line(error, status, line, monkeypatch, capsys):
    code, text = end_of(error, monkeypatch, capsys)
    assert code == status and text.startswith(f"script.py: {line}") and text.count("\n") == 1


@pytest.mark.parametrize(
    "error", [ValueError("odd"), RuntimeError("odd"), KeyError("odd"), OSError(errno.EEXIST, "odd")]
)
def test_a_bug_shows_its_traceback_and_what_to_report(error, monkeypatch, capsys):
    argv = ["/home/x/script.py", "--hub_token", "secret", "--token=secret", "--name", TOKEN, "--temperature", "1"]
    code, text = end_of(error, monkeypatch, capsys, argv)
    *trace, last = text.splitlines()
    assert code == 1 and trace[0].startswith("Traceback") and "odd" in trace[-1]
    assert last.startswith(f"script.py: bug: this {type(error).__name__} is a fault of the program")
    assert f"modeling_kamim {__version__}" in last and f"torch {torch.__version__.split('+')[0]}" in last
    assert last.endswith("command: python script.py --hub_token '***' '--token=***' --name hf_*** --temperature 1")


def test_a_closed_pipe_ends_with_one_line():
    code = (
        "import sys; sys.argv = ['script.py']\n"
        "from modeling_kamim.commands.endings import run\n"
        "run(lambda: [print('line ' * 1000, flush=True) for _ in range(1000)])"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT)
    process.stdout.readline()
    process.stdout.close()
    text = process.stderr.read().decode()
    process.stderr.close()
    assert process.wait() == 1
    assert text == "script.py: stopped: the reader of the output is gone (broken pipe)\n"


class Broken(Dataset):
    def __init__(self, error):
        self.error = error

    def __len__(self):
        return 2

    def __getitem__(self, index):
        try:
            raise KeyError("the cause")
        except KeyError as error:
            raise self.error from error


@pytest.mark.parametrize("kind", [InputError, StoppedError, BadImageError])
@pytest.mark.parametrize("message", ["row 3 is broken; mend it", "two\nlines", "modeling_kamim.errors.InputError: a"])
def test_an_error_of_a_worker_is_the_same_line(kind, message):
    errors = []
    for workers in (0, 1):
        with pytest.raises(kind) as error:
            list(DataLoader(Broken(kind(message)), num_workers=workers))
        errors.append(str(error.value))
    assert errors == [message, message]


def test_every_command_and_script_ends_by_run():
    files = [*ROOT.glob("*.py"), *(ROOT / "modeling_kamim" / "commands").glob("*.py")]
    scripts = [file for file in files if "__main__" in file.read_text()]
    assert len(scripts) >= 13
    for file in scripts:
        assert re.search(r'if __name__ == "__main__":\n    run\(main\)\n$', file.read_text()), file.name
