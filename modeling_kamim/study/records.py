"""What a study keeps of each replicate: a small JSON file with its settings, its curve, its scores and its cost."""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..evaluation.results import read_results, write_results
from ..privacy import public_settings
from ..training.overview import median_speed
from ..training.resume import SETTINGS_FILE
from .plan import Replicate, Run

_OF_THE_PLACE = ("dataset_name", "output_dir", "model_name_or_path", "num_proc", "use_cpu")
_CURVES = ("masked_l1", "probe_top1", "knn_top1")
_MOST_POINTS = 60  # of a curve
_LEFT_OUT = ("per_class", "confusion", "provenance", "wall_time", "top1_interval")
_IN_SETTINGS = ("augmentation", "image_size", "layer_norm", "learning_rate", "low_shot", "mode", "optimizer", "pooling")
_ORIGIN = ("device", "git_commit", "time", "versions")


class Record:
    """The results of a replicate, in a file of a study's `results_dir`.

    Args:
        results_dir: of the study.
        replicate: whose results these are.

    Raises:
        InputError: if the file is of other settings than the study's, or no record.
    """

    def __init__(self, results_dir: Path, replicate: Replicate):
        self.replicate = replicate
        self.file = results_dir / "runs" / f"{replicate.arm}__seed-{replicate.seed}.json"
        self.found: dict[str, Any] = {"arm": replicate.arm, "seed": replicate.seed, "evaluations": {}}
        if self.file.is_file():
            self.found |= self._read()

    def _read(self) -> dict[str, Any]:
        try:
            found = json.loads(self.file.read_text(encoding="utf-8"))
            kept = {name: found[name] for name in ("settings", "pretraining") if name in found}
            evaluations = {name: (e["settings"], e["rows"]) for name, e in found["evaluations"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{self.file} is no record of a study ({error}); move it away") from error
        planned = self.replicate.pretraining
        if planned is not None and "settings" in kept:
            self._check("settings", kept["settings"], planned)
        for name, (settings, _) in evaluations.items():
            if name in self.replicate.evaluations:
                self._check(f"settings of {name}", settings, self.replicate.evaluations[name])
        return found

    def _check(self, what: str, recorded: Mapping[str, Any], planned: Run) -> None:
        now = planned_settings(planned)
        if recorded != now:
            differing = sorted(key for key in recorded.keys() | now.keys() if recorded.get(key) != now.get(key))
            words = "; ".join(f"{key} {recorded.get(key)!r}, now {now.get(key)!r}" for key in differing)
            raise InputError(
                f"{self.file} was recorded with other {what} than the study has now ({words}); give the arm or the "
                "protocol a new name, or delete the file to run it again"
            )

    @property
    def missing(self) -> list[str]:
        """ "pretraining" where it is not recorded, and the names of protocols that are not."""
        names = [name for name in self.replicate.evaluations if name not in self.found["evaluations"]]
        is_open = self.replicate.pretraining is not None and "pretraining" not in self.found
        return ["pretraining", *names] if is_open else names

    def keep_pretraining(self, run: Run, kilowatt_hours: float | None) -> None:
        """Read what a pretraining wrote, and save the record."""
        self.found |= {"settings": planned_settings(run), "pretraining": read_pretraining(run.output_dir)}
        self.found["pretraining"]["kilowatt_hours"] = kilowatt_hours
        self.save()

    def keep_evaluation(self, name: str, run: Run) -> None:
        """Read what an evaluation wrote, and save the record."""
        rows = read_results(run.output_dir / "results.json")
        if not rows:
            raise InputError(f"{run.output_dir} has no results.json with scores; look at the log of the run")
        origin = {key: rows[0]["provenance"].get(key) for key in _ORIGIN}
        found = {"settings": planned_settings(run), "origin": origin, "rows": short_rows(rows)}
        self.found["evaluations"][name] = found
        self.save()

    def save(self) -> None:
        write_results(self.file, self.found)


def planned_settings(run: Run) -> dict[str, Any]:
    """Return what decides the result of a run, fit to be published."""
    settings = {key: value for key, value in run.settings.items() if key not in _OF_THE_PLACE}
    return json.loads(json.dumps(public_settings(settings)))


def read_pretraining(output_dir: Path) -> dict[str, Any]:
    """Return steps, images seen, curves, final scores and cost of a pretraining.

    Curves are lists of [images seen, value]; `images_per_second` is that of `median_speed`.
    """
    state = json.loads((output_dir / "trainer_state.json").read_text(encoding="utf-8"))
    settings = json.loads((output_dir / SETTINGS_FILE).read_text(encoding="utf-8"))
    log, per_step = state["log_history"], settings["images_per_step"]
    curves = {name: [[e["step"] * per_step, e[name]] for e in log if name in e] for name in _CURVES}
    clipped = [entry["clipped_steps"] for entry in log if entry.get("clipped_steps") is not None]
    scores = output_dir / "eval_results.json"
    metrics = json.loads(scores.read_text(encoding="utf-8")) if scores.is_file() else {}
    images, speed = state["global_step"] * per_step, median_speed(log)
    return {
        "steps": state["global_step"],
        "images_seen": images,
        "curves": {name: _thinned(curve) for name, curve in curves.items() if curve},
        "validation_masked_l1": metrics.get("eval_masked_l1"),
        "images_per_second": speed,
        "hours": None if not speed else images / speed / 3600,
        "clipped_steps": statistics.fmean(clipped) if clipped else None,
        "precision": "bf16" if settings.get("bf16") else "fp16" if settings.get("fp16") else "fp32",
        "num_train_images": settings.get("num_train_images"),
    }


def _thinned(curve: Sequence[Any]) -> list[Any]:
    """Return at most `_MOST_POINTS` points of a curve, the first and the last among them."""
    count = min(len(curve), _MOST_POINTS)
    return [curve[round(place * (len(curve) - 1) / max(1, count - 1))] for place in range(count)]


def short_rows(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return rows of results without what a study does not compare; hits only of those layers that it reads."""
    read = {id(row) for row in (best_layer(rows), *last_layers(rows)) if row is not None}
    left_out = (*_LEFT_OUT, *_IN_SETTINGS)
    return [
        {key: value for key, value in row.items() if key not in left_out and (key != "hits" or id(row) in read)}
        for row in rows
    ]


def best_layer(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Return the row of the layer whose probe is best on held-out training images; None where none were."""
    held_out = [row for row in rows if row.get("held_out_top1") is not None]
    return max(held_out, key=lambda row: row["held_out_top1"], default=None)


def last_layers(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the last row of each protocol that has accuracies: of the encoder's output."""
    return list({row["protocol"]: row for row in rows if "top1" in row}.values())
