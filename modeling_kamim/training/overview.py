"""Pretrainings below a folder: how far each is, what it has reached, and which command goes on with it."""

import json
import re
import shlex
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..models.families import FAMILIES
from ..objective.weighting import method_name
from .resume import SETTINGS_FILE
from .run_directory import PAGE_FILES, RUN_FILE, checkpoints, is_own, is_running, left_by_others

_STATE_FILE = "trainer_state.json"
_PRETRAININGS = ("# kamim pretrain", "# python run_mim.py")  # how their settings.yaml begins
_NOT_PUBLIC = re.compile(r"^# (\w+): .* \(on the machine of the run; give your own\)$", re.MULTILINE)


@dataclass(frozen=True)
class PretrainingRun:
    """A pretraining in its output directory.

    Args:
        output_dir: of the run.
        state: "running", "finished", "stopped" (a checkpoint is there) or "nothing saved".
        settings: as they were saved; empty where nothing is.
        log: of the trainer, up to the last checkpoint or the end.
        step, num_steps: done by then, and planned; 0 where nothing is saved.
    """

    output_dir: Path
    state: str
    settings: Mapping[str, Any]
    log: tuple[Mapping[str, Any], ...]
    step: int
    num_steps: int

    @property
    def method(self) -> str:
        """See `method_name`, and the architecture."""
        weighting, family = self.settings.get("weighting"), self.settings.get("model_type")
        if weighting is None:
            return "?"
        drops_masked = family in FAMILIES and FAMILIES[family].drops_masked
        return f"{method_name(weighting, drops_masked)}, {family} {self.settings.get('model_size')}"

    @property
    def images_seen(self) -> int:
        """Images of all steps so far."""
        return self.step * int(self.settings.get("images_per_step") or 0)

    @property
    def images_per_second(self) -> float | None:
        """See `median_speed`."""
        return median_speed(self.log)

    def last(self, key: str) -> float | None:
        """Return the last value of a key in the log, such as probe_top1; None where there is none."""
        return next((entry[key] for entry in reversed(self.log) if entry.get(key) is not None), None)

    @property
    def command(self) -> str | None:
        """The command that goes on with the run, or starts it again; None where it runs or is finished."""
        if self.state in ("running", "finished"):
            return None
        file = self.output_dir / PAGE_FILES[1]
        words = ["kamim", "pretrain", str(file)]
        for key in _NOT_PUBLIC.findall(file.read_text(encoding="utf-8")):
            words += [f"--{key}", "path/to/images" if key == "dataset_name" else "YOUR_OWN"]
        words += ["--output_dir", str(self.output_dir)]
        return shlex.join([*words, *(["--resume_from_checkpoint", "auto"] if self.state == "stopped" else [])])


def median_speed(log: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the median of the images per second logged, but for the first; None where none was."""
    speeds = [entry["images_per_second"] for entry in log if entry.get("images_per_second") is not None]
    return statistics.median(speeds[1:] or speeds) if speeds else None


def pretrainings(folder: Path) -> Iterator[PretrainingRun]:
    """Yield the pretrainings in a folder and below it, in the order of their paths."""
    for file in sorted(folder.rglob(RUN_FILE)):
        settings = file.with_name(PAGE_FILES[1])
        if settings.is_file() and settings.read_text(encoding="utf-8").startswith(_PRETRAININGS):
            yield _read(file.parent)


def _read(output_dir: Path) -> PretrainingRun:
    saved = [checkpoint for checkpoint in checkpoints(output_dir) if is_own(output_dir, checkpoint)]
    own = [name for name in (_STATE_FILE, SETTINGS_FILE) if (output_dir / name).is_file()]
    is_saved = len(own) == 2 and not left_by_others(output_dir) & set(own)
    place = output_dir if is_saved else saved[-1] if saved else None
    trainer = _json(place / _STATE_FILE) if place else {}
    step, num_steps = (int(trainer.get(key) or 0) for key in ("global_step", "max_steps"))
    if is_running(output_dir):
        state = "running"
    elif is_saved and step >= num_steps:
        state = "finished"
    else:
        state = "stopped" if saved else "nothing saved"
    settings = _json(place / SETTINGS_FILE) if place else {}
    return PretrainingRun(output_dir, state, settings, tuple(trainer.get("log_history") or ()), step, num_steps)


def _json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
