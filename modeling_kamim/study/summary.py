"""What the replicates of a study come to: means and deviations of each arm, and paired differences of two."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ..evaluation.metrics import unpack_hits
from .records import Record, best_layer, last_layers

NUM_RESAMPLES = 4000
KNN = "k-NN"
LAST = "{}, last layer"


@dataclass(frozen=True)
class Score:
    """An accuracy of a replicate.

    Args:
        top1: in [0, 1].
        hits: `(num_images,)` bool, which validation images are right; None where it is not known.
        layer: that was read.
    """

    top1: float
    hits: np.ndarray | None
    layer: str

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "Score":
        hits = unpack_hits(row["hits"], row["num_validation_images"]) if "hits" in row else None
        return cls(row["top1"], hits, str(row.get("layer")))


def scores(record: Record) -> dict[str, Score]:
    """Return the accuracies of a replicate by their names: of each protocol, and of k-NN on the encoder's output.

    Where a protocol reads all layers, its accuracy is that of the layer whose probe is best on held-out training
    images, and beside it stands that of the last layer. The validation images choose nothing.
    """
    found: dict[str, Score] = {}
    for name, evaluation in record.found["evaluations"].items():
        rows = [row for row in evaluation["rows"] if "top1" in row]
        last = {row["protocol"]: Score.of(row) for row in last_layers(rows)}
        neighbors = last.pop("knn", None)
        best = best_layer(rows) if len({row.get("layer") for row in rows}) > 1 else None
        for head in last.values():
            found |= {name: head} if best is None else {name: Score.of(best), LAST.format(name): head}
        if neighbors is not None:
            found[KNN] = neighbors
    return found


@dataclass(frozen=True)
class Arm:
    """The replicates of an arm that have results."""

    name: str
    records: Sequence[Record]

    @cached_property
    def scores(self) -> dict[str, list[float]]:
        """Accuracies of the replicates by their names."""
        found: dict[str, list[float]] = {}
        for record in self.records:
            for name, score in scores(record).items():
                found.setdefault(name, []).append(score.top1)
        return found

    def pretraining(self, key: str) -> list[Any]:
        """Return what `records.read_pretraining` has for a key, of the replicates that have it."""
        found = [record.found.get("pretraining", {}).get(key) for record in self.records]
        return [value for value in found if value is not None]

    def reconstruction(self, key: str) -> list[Any]:
        """Return what the reconstructions of a replicate have for a key."""
        rows = [row for record in self.records for e in record.found["evaluations"].values() for row in e["rows"]]
        return [row[key] for row in rows if key in row]

    @property
    def is_random(self) -> bool:
        """Whether its weights are the starting weights, of no training step."""
        steps = self.pretraining("steps")
        return bool(steps) and not any(steps)

    @property
    def target(self) -> str:
        """Of the pretraining: errors of arms with different targets do not compare."""
        settings = self.records[0].found.get("settings", {})
        is_mae = settings.get("model_type") == "vit_mae"
        return settings.get("target") or ("normalized_pixels" if is_mae else "pixels")


def arms_of(records: Iterable[Record]) -> dict[str, Arm]:
    """Return the arms that have results, by name, in the order of their first replicates."""
    found: dict[str, list[Record]] = {}
    for record in records:
        if "pretraining" in record.found or record.found["evaluations"]:
            found.setdefault(record.replicate.arm, []).append(record)
    return {name: Arm(name, members) for name, members in found.items()}


@dataclass(frozen=True)
class Difference:
    """How much better one arm is than another by a score.

    Args:
        arm, other: which arms.
        score: its name.
        points: mean over seeds of the difference of top-1, in points of percent.
        interval: its 95% bootstrap interval.
        seeds: that both arms have.
    """

    arm: str
    other: str
    score: str
    points: float
    interval: tuple[float, float]
    seeds: Sequence[int]

    @property
    def is_told(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.interval[0] > 0 or self.interval[1] < 0


def differences(arm: Arm, other: Arm) -> list[Difference]:
    """Return the differences of two arms by each score, over the seeds and validation images that they share."""
    of_seed = [{record.replicate.seed: scores(record) for record in a.records} for a in (arm, other)]
    found = []
    for name in {name: None for members in of_seed[0].values() for name in members}:
        pairs = {
            seed: (mine[name].hits, of_seed[1][seed][name].hits)
            for seed, mine in of_seed[0].items()
            if name in mine and name in of_seed[1].get(seed, {})
        }
        hits = [
            np.subtract(first, second, dtype=float)
            for first, second in pairs.values()
            if first is not None and second is not None and len(first) == len(second)
        ]
        if hits and len(hits) == len(pairs):
            changes = 100 * np.stack(hits)
            interval = bootstrap(changes)
            found.append(Difference(arm.name, other.name, name, float(changes.mean()), interval, list(pairs)))
    return found


def bootstrap(changes: np.ndarray) -> tuple[float, float]:
    """Return the 95% percentile interval of a mean over seeds and images; both are drawn with replacement.

    With few seeds the draws among them are few too, and the interval is a rough one.

    Args:
        changes: `(seeds, images)`, paired differences.
    """
    rng = np.random.default_rng(0)
    num_seeds, num_images = changes.shape
    of_seeds = rng.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), NUM_RESAMPLES) / num_seeds
    means = np.empty(NUM_RESAMPLES)
    for place, weights in enumerate(of_seeds):
        drawn = rng.integers(num_images, size=num_images)
        means[place] = (weights @ changes).take(drawn).mean()
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def mean_and_deviation(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Return mean and standard deviation (ddof=1) of a few numbers; None for what there are too few of."""
    mean = statistics.fmean(values) if values else None
    return mean, statistics.stdev(values) if len(values) > 1 else None
