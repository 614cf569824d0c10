"""Classification metrics as `evaluate` metrics, without a download."""

import base64

import datasets
import evaluate
import numpy as np
import torch
from transformers import EvalPrediction

from ..errors import StoppedError

TOP_K = 5
NUM_RESAMPLES = 1000


class ClassificationMetrics(evaluate.Metric):
    """Accuracy, over all images and by class.

    `compute(predictions, references, num_classes)`: predictions `(num_images, k)` class indices, best first;
    references `(num_images,)`. Returns, all accuracies in [0, 1]: `top1`, `top5` (of no more classes than there are),
    `top1_interval` (bootstrap 95% interval over images), `per_class` (a list; NaN for a class without images) and
    `confusion` (`confusion[i][j]` images of class i were taken for class j), and `hits`: which images are right, in
    their order (see `pack_hits`).
    """

    def _info(self):
        return evaluate.MetricInfo(
            description="Top-1 and top-5 accuracy with a bootstrap interval, accuracy by class, confusion matrix.",
            citation="",
            features=datasets.Features(
                {"predictions": datasets.Sequence(datasets.Value("int64")), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions, references, num_classes):
        predictions, references = np.asarray(predictions), np.asarray(references)
        hits = predictions == references[:, None]
        confusion = np.zeros((num_classes, num_classes), np.int64)
        np.add.at(confusion, (references, predictions[:, 0]), 1)
        with np.errstate(invalid="ignore"):
            per_class = confusion.diagonal() / confusion.sum(axis=1)
        return {
            "top1": float(hits[:, 0].mean()),
            "top5": float(hits[:, :TOP_K].any(axis=1).mean()),
            "top1_interval": bootstrap_interval(hits[:, 0]),
            "per_class": per_class.tolist(),
            "confusion": confusion.tolist(),
            "hits": pack_hits(hits[:, 0]),
        }


def pack_hits(hits: np.ndarray) -> str:
    """Return `(num_images,)` bools as base64 of their bits, so that results can be compared image by image."""
    return base64.b64encode(np.packbits(hits).tobytes()).decode("ascii")


def unpack_hits(packed: str, num_images: int) -> np.ndarray:
    """Return the `(num_images,)` bools of `pack_hits`.

    Raises:
        ValueError: if there are not so many.
    """
    bits = np.frombuffer(base64.b64decode(packed), np.uint8)
    if len(bits) != -(-num_images // 8):
        raise ValueError(f"{len(bits)} bytes do not hold the hits of {num_images} images")
    return np.unpackbits(bits, count=num_images).astype(bool)


def bootstrap_interval(hits: np.ndarray) -> list[float]:
    """Return the ends of the 95% percentile bootstrap interval of the mean of `hits`, `(num_images,)`, bool."""
    # A resample of 0s and 1s has a binomial number of 1s: the same distribution as drawing images with replacement.
    counts = np.random.default_rng(0).binomial(len(hits), hits.mean(), NUM_RESAMPLES)
    return np.quantile(counts / len(hits), [0.025, 0.975]).tolist()


def best_classes(logits: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
    """Return the best classes, `(batch_size, k)`, int64, best first: all that an evaluation keeps of the logits.

    Raises:
        StoppedError: if a logit is not finite: its class would be chance.
    """
    if not torch.isfinite(logits).all():
        raise StoppedError(
            "the scores of the classes are NaN or infinite; try --precision fp32 or a smaller --learning_rate"
        )
    return logits.topk(min(TOP_K, logits.shape[1]), dim=1).indices


def classification_metrics(predictions: np.ndarray, references: np.ndarray, num_classes: int) -> dict:
    """Return what `ClassificationMetrics` computes."""
    result = ClassificationMetrics().compute(predictions=predictions, references=references, num_classes=num_classes)
    assert result is not None
    return result


class TrainerMetrics:
    """`compute_metrics` of a `Trainer` whose `preprocess_logits_for_metrics` is `best_classes`.

    It gives the trainer `top1` and `top5`, and keeps the rest of the last evaluation in `latest`.

    Args:
        num_classes: of the data set.
    """

    def __init__(self, num_classes: int):
        self.num_classes = num_classes
        self.latest: dict = {}

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        self.latest = classification_metrics(prediction.predictions, prediction.label_ids, self.num_classes)
        return {name: self.latest[name] for name in ("top1", "top5")}
