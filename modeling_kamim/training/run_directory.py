"""The output directory of a run: its lock, its identity, and which files in it are its own.

A run that begins anew gets an identity, which `kamim_run.json` holds in the directory and in each of its checkpoints. A
resumed run keeps that of its checkpoint. What has another one was left by another run.
"""

import json
import logging
import os
import re
import socket
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

from transformers import TrainingArguments

from ..errors import InputError
from ..files import write_text

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


logger = logging.getLogger(__name__)
RUN_FILE = "kamim_run.json"
LOCK_FILE = ".lock"
PAGE_FILES = ("README.md", "settings.yaml")
WRITTEN_HERE = "Written by modeling-kamim"  # words in every report, by which it is known
_SIGNS_OF_A_CARD = ("<!-- results -->", "modeling-kamim")
_held: set[Path] = set()  # directories that this process has locked


@contextmanager
def claimed(args: TrainingArguments) -> Iterator[None]:
    """Keep the output directory for this run alone inside the block; only the process that saves looks after it.

    A directory that was made for it is removed if nothing was written into it.

    Raises:
        InputError: if another run is writing there, nothing can be written there, or the README.md or settings.yaml
            in it is the user's own.
    """
    if not args.should_save:
        yield
        return
    output_dir = Path(args.output_dir)
    made = [folder for folder in (output_dir, *output_dir.parents) if not os.path.exists(folder)]
    try:
        check_page(output_dir)
        check_writable(output_dir)
        with _locked(output_dir):
            yield
    finally:
        for folder in made:
            with suppress(OSError):  # where there is something in it
                folder.rmdir()


def check_page(output_dir: Path) -> None:
    """Raise InputError if a directory holds a README.md or settings.yaml that no run of this package has written."""
    card, settings = (_text(output_dir / name) for name in PAGE_FILES)
    is_card = card is not None and all(sign in card for sign in _SIGNS_OF_A_CARD)
    if card is not None and not is_card:
        raise _not_ours(output_dir / "README.md")
    if settings is not None and not is_card and not settings.startswith(("# python ", "# kamim ")):
        raise _not_ours(output_dir / "settings.yaml")


def check_reports(*files: Path) -> None:
    """Raise InputError if one of these reports, which are about to be written, would overwrite a file of the user."""
    for file in files:
        text = _text(file)
        if text is not None and WRITTEN_HERE not in text:
            raise _not_ours(file)


def _text(file: Path) -> str | None:
    """Return what a file holds; "" where it cannot be read, None where there is none."""
    try:
        return file.read_text(encoding="utf-8", errors="replace") if os.path.exists(file) else None
    except OSError:
        return ""


def _not_ours(file: Path) -> InputError:
    return InputError(
        f"output_dir is {file.parent}, and modeling-kamim has not written the {file.name} in it, which would be "
        "overwritten; give another directory, or move the file away"
    )


def check_writable(output_dir: Path) -> None:
    """Make a directory; raise InputError unless files can be written into it."""
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output_dir) as file:
            file.write(b"0")
    except OSError as error:
        raise InputError(f"output_dir is {output_dir}, where nothing can be written ({error}); give another") from error


@contextmanager
def _locked(output_dir: Path) -> Iterator[None]:
    """Refuse other runs inside the block, those of this process too.

    The lock is a POSIX record lock: it ends with the process, however that ends, and workers do not inherit it.
    """
    file = output_dir.resolve() / LOCK_FILE
    if file.parent in _held:
        raise _in_use(output_dir, "this process")
    with _open_lock(file, output_dir) as stream:
        stream.truncate(0)
        stream.write(f"process {os.getpid()} on {socket.gethostname()}")
        stream.flush()
        _held.add(file.parent)
        try:
            yield
        finally:
            _held.remove(file.parent)
            with suppress(OSError):
                file.unlink()


def _open_lock(file: Path, output_dir: Path) -> IO[str]:
    """Return the lock file, open and locked; where the file system has no locks, warn and return it open."""
    while True:
        try:
            stream = file.open("a+", encoding="utf-8")
        except OSError as error:
            raise InputError(f"{file} cannot be opened ({error}); give another output_dir, or delete it") from error
        try:
            if fcntl is None:
                raise OSError("this system has none")
            fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            stream.seek(0)
            holder = stream.read() or "another process"
            stream.close()
            raise _in_use(output_dir, holder) from error
        except OSError as error:
            logger.warning("%s cannot be locked (%s): start no second run in it", output_dir, error)
            return stream
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(stream.fileno()), file.stat()):
                return stream
        stream.close()  # the run that had the lock has just ended and removed the file


def is_running(output_dir: Path) -> bool:
    """Return whether a run, of this process or another one of this machine, is writing into a directory."""
    file = output_dir.resolve() / LOCK_FILE
    if file.parent in _held:
        return True
    if fcntl is None or not file.exists():
        return False
    try:
        with file.open("r+", encoding="utf-8") as stream:
            fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return True
    except OSError:  # gone meanwhile, or a file system without locks
        return False
    return False


def _in_use(output_dir: Path, holder: str) -> InputError:
    return InputError(
        f"output_dir is {output_dir}, where {holder} is writing; wait for its end, or give another directory"
    )


def begin_run(output_dir: Path, checkpoint: str | None = None) -> None:
    """Write the identity of a run that begins: its checkpoint's, or a new one.

    Note beside it which files another run has left in the directory, so that they are not taken for this one's.

    Args:
        output_dir: of the run; it is made.
        checkpoint: to go on with; None to begin anew.
    """
    is_own = checkpoint is not None and identity(Path(checkpoint)) == _directory_identity(output_dir)
    if is_own and (output_dir / RUN_FILE).exists():
        return
    output_dir.mkdir(parents=True, exist_ok=True)
    run = {
        "run": uuid4().hex if checkpoint is None else identity(Path(checkpoint)),
        "left_by_others": {} if is_own else _files(output_dir),
    }
    write_text(output_dir / RUN_FILE, json.dumps(run, indent=2) + "\n")


def _files(output_dir: Path) -> dict[str, list[int]]:
    """Return size and time of each file by its name, without the files that a run writes when it begins."""
    files = [file for file in output_dir.iterdir() if file.is_file()]
    return {file.name: _stamp(file) for file in files if file.name not in (*PAGE_FILES, RUN_FILE, LOCK_FILE)}


def _stamp(file: Path) -> list[int]:
    stat = file.stat()
    return [stat.st_size, stat.st_mtime_ns]


def left_by_others(directory: Path) -> set[str]:
    """Return names of files that were in a directory before its run began, and that the run has not written since."""
    noted = _run(directory).get("left_by_others", {})
    return {name for name, stamp in noted.items() if (directory / name).is_file() and _stamp(directory / name) == stamp}


def sign(output_dir: Path, checkpoint: Path) -> None:
    """Write the identity of the run of `output_dir` into a checkpoint, with the names of all files in it."""
    files = sorted(file.name for file in checkpoint.iterdir() if file.is_file() and file.name != RUN_FILE)
    run = {"run": _directory_identity(output_dir), "files": files}
    write_text(checkpoint / RUN_FILE, json.dumps(run, indent=2) + "\n")


def signed_files(checkpoint: Path) -> list[str]:
    """Return the names of the files that a checkpoint was saved with; none where it does not tell."""
    return _run(checkpoint).get("files", [])


def identity(checkpoint: Path) -> str | None:
    """Return the identity of the run that saved a checkpoint; None where it does not tell."""
    return _run(checkpoint).get("run")


def is_own(output_dir: Path, checkpoint: Path) -> bool:
    """Return whether a checkpoint is there, and the run that has a directory saved it."""
    return checkpoint.is_dir() and identity(checkpoint) == _directory_identity(output_dir)


def checkpoints(output_dir: Path) -> list[Path]:
    """Return the checkpoints in a directory in the order of their steps, of whatever run, whole or not."""
    numbered = [path for path in output_dir.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted((path for path in numbered if path.is_dir()), key=step_of)


def step_of(checkpoint: Path) -> int:
    """Return the step that a checkpoint was saved at."""
    return int(checkpoint.name.rpartition("-")[2])


def _directory_identity(output_dir: Path) -> str | None:
    """Return the identity of the run that has a directory; where it does not tell, that of its last checkpoint."""
    run, saved = _run(output_dir), checkpoints(output_dir)
    return run["run"] if "run" in run else identity(saved[-1]) if saved else None


def _run(folder: Path) -> Mapping[str, Any]:
    try:
        run = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return run if isinstance(run, dict) else {}
