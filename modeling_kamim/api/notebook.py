"""What the functions return: figures that were written, with pictures where a notebook shows them."""

import base64
import html
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from datasets import ClassLabel

from ..errors import InputError
from ..evaluation.embedding import Embeddings
from ..evaluation.results import result_rows, summarize_seeds


@dataclass(frozen=True)
class Outcome:
    """What a function has written into a directory; stands for the path of this directory.

    Args:
        output_dir: the directory.
    """

    output_dir: Path
    pictures: ClassVar[tuple[str, ...]] = ()

    def __fspath__(self) -> str:
        return os.fspath(self.output_dir)

    def _repr_html_(self) -> str:
        files = [self.output_dir / name for name in self.pictures]
        images = (f'<img alt="{file.stem}" src="{_as_url(file)}">' for file in files if file.is_file())
        return "<br>".join([f"<pre>{html.escape(repr(self))}</pre>", *images])


def _as_url(picture: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"


@dataclass(frozen=True, repr=False)
class Pretraining(Outcome):
    """A pretrained checkpoint: `AutoModel.from_pretrained`, `evaluate` and `embed` take it as they take its path.

    Args:
        log: what was logged, a dictionary for each time, as in transformers' `TrainerState.log_history`.
        metrics: of the whole training and, with the prefix `eval_`, on the validation images.
    """

    log: list[dict[str, float]] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    pictures = ("training_curves.png", "reconstructions.png")

    def __str__(self) -> str:  # transformers takes the text of what it is given for the path
        return os.fspath(self.output_dir)

    @classmethod
    def read(cls, output_dir: Path) -> "Pretraining":
        """Return the outcome that `kamim pretrain` has left in a directory."""
        log = json.loads((output_dir / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
        metrics = json.loads((output_dir / "all_results.json").read_text(encoding="utf-8"))
        return cls(output_dir, log, metrics)

    def __repr__(self) -> str:
        facts = {"steps": max((entry["step"] for entry in self.log), default=0), **self.metrics}
        names = ("steps", "train_loss", "eval_loss", "eval_masked_l1")
        told = ", ".join(f"{name} {facts[name]:.4g}" for name in names if name in facts)
        return f"Pretraining in {self.output_dir}: {told}"


@dataclass(frozen=True, repr=False)
class Scores(Outcome):
    """Results of an evaluation, as in its results.json.

    Args:
        rows: a dictionary for each protocol, layer and seed.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    pictures = ("confusion.png", "depth.png", "reconstructions.png")

    @classmethod
    def read(cls, output_dir: Path) -> "Scores":
        """Return the results that `kamim evaluate` has left in a directory."""
        return cls(output_dir, result_rows(json.loads((output_dir / "results.json").read_text(encoding="utf-8"))))

    @property
    def best(self) -> dict[str, Any]:
        """The row with the highest top-1 accuracy; of reconstructions the one with the highest PSNR."""
        return max(self.rows, key=lambda row: float(row["top1"] if "top1" in row else row["masked_psnr"]["mean"]))

    def __repr__(self) -> str:
        lines = self._accuracies() if "top1" in self.rows[0] else map(_reconstruction, self.rows)
        return "\n  ".join([f"Scores in {self.output_dir}:", *lines])

    def _accuracies(self) -> list[str]:
        summary = summarize_seeds(self.rows)
        lines = [
            f"{row['protocol']}, layer {row['layer']}: top-1 {row['top1']:.1%}, top-5 {row['top5']:.1%}"
            for row in summary
        ]
        return [*lines, f"{summary[0]['num_validation_images']} images, chance {summary[0]['chance']:.1%}"]


def _reconstruction(row: dict[str, Any]) -> str:
    psnr, ssim, filled = (row[name]["mean"] for name in ("masked_psnr", "masked_ssim", "baseline_psnr"))
    name = row["provenance"]["checkpoint"]
    return f"{name}: PSNR {psnr:.2f} dB, SSIM {ssim:.3f} of masked pixels (a plain fill: {filled:.2f} dB)"


@dataclass(frozen=True, repr=False)
class EmbeddedImages:
    """Features of images.

    Args:
        features: `(num_images, dimension)`, or `(num_images, patches, dimension)` of all patches, float32; of all
            layers a dictionary of such arrays, "block_1" to "final".
        ids: names of the images: their paths in the folder, their ids in the data set, or "SPLIT/NUMBER".
        labels: names of their classes; None where there are none.
        bad_images: a line for each image that could not be decoded and is left out.
    """

    features: np.ndarray | dict[str, np.ndarray]
    ids: list[str]
    labels: list[Any] | None
    bad_images: list[str]

    @classmethod
    def join(cls, parts: Sequence[Embeddings], classes: Any = None) -> "EmbeddedImages":
        """Return the features of several splits, one after the other.

        Args:
            classes: feature of the labels; a `ClassLabel` gives their names.
        """
        features: Any = {name: np.concatenate([part.features[name] for part in parts]) for name in parts[0].features}
        labels = None if parts[0].labels is None else [label for part in parts for label in part.labels or ()]
        if labels is not None and isinstance(classes, ClassLabel):
            labels = [None if label in (None, -1) else classes.int2str(label) for label in labels]
        return cls(
            features["features"] if list(features) == ["features"] else features,
            [name for part in parts for name in part.ids],
            labels,
            [line for part in parts for line in part.bad_images],
        )

    def __len__(self) -> int:
        return len(self.ids)

    def nearest(self, query: int | np.ndarray, count: int = 5) -> list[tuple[int, float]]:
        """Return the nearest images, the nearest first: their numbers, and their cosine similarities, in [-1, 1].

        Args:
            query: number of an image, which is not among the result, or its features, `(dimension,)`.
            count: how many, at most.

        Raises:
            InputError: unless there is one feature for each image.
        """
        if isinstance(self.features, dict) or self.features.ndim != 2:
            raise InputError('neighbors need one feature for each image: one layer, and pooling "mean" or "cls"')
        directions = self.features / np.linalg.norm(self.features, axis=1, keepdims=True).clip(1e-12)
        is_number = isinstance(query, int | np.integer)
        target = directions[query] if is_number else query / max(float(np.linalg.norm(query)), 1e-12)
        similarities = directions @ target
        order = [int(place) for place in np.argsort(-similarities, kind="stable") if not is_number or place != query]
        return [(place, float(similarities[place])) for place in order[:count]]

    def __repr__(self) -> str:
        parts = self.features if isinstance(self.features, dict) else {"features": self.features}
        shapes = ", ".join(f"{name} {part.shape}" for name, part in parts.items())
        named = "no labels" if self.labels is None else f"{len(set(self.labels))} classes"
        return f"EmbeddedImages: {len(self):,} images, {named}; {shapes}"
