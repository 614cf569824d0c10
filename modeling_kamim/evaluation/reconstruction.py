"""Scores of reconstructions: PSNR and SSIM as the paper computes them, and of the masked pixels alone.

Three groups, all of the same reconstructions:

- `paper_*` (arXiv:2407.13873, section 4.7, which masks 0.4 of the image): all pixels of the model's output, also the
  visible ones, for which it was never trained, against the normalized image. The data range is that of all normalized
  pixels there can be (4.76 with ImageNet's mean and std). torchmetrics, which gave the paper's numbers, takes
  the range from the targets of the whole data set (PSNR: this range, as soon as they hold black and white) or of a
  batch (SSIM: at most this range, if the outputs stay in it).
- `masked_*`: images in [0, 1]; the output, clipped to that range, fills the masked pixels of the original. PSNR of the
  masked pixels; SSIM is the mean of the SSIM map over the masked pixels, the visible ones being context.
- `baseline_*`: like `masked_*`, with the mean color of an image's visible pixels as its reconstruction. A model that
  does not beat it has learned nothing of use here.

A model of normalized pixels is given mean and deviation of each patch: its `baseline_*` fills each patch with
that mean, and none of its scores compares with those of a model of pixels.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from skimage.metrics import mean_squared_error, peak_signal_noise_ratio, structural_similarity

from ..errors import InputError
from ..models.masked_image_modeling import KamimForMaskedImageModeling
from ..models.sizes import token_grid
from ..objective.masking import upsample

PAPER_MASK_RATIO = 0.4
MAX_PSNR = 100.0  # dB; an error of 1e-5 of the data range. Rounding to 8 bits alone leaves 59 dB.


@torch.no_grad()
def score_reconstructions(
    model: KamimForMaskedImageModeling,
    batches: Iterable[dict[str, Any]],
    mean: Sequence[float],
    std: Sequence[float],
    gather: Callable[[torch.Tensor], torch.Tensor] = lambda scores: scores,
) -> dict[str, Any]:
    """Return scores of a model over a data set; of a batch only the scores are kept.

    Args:
        model: put into evaluation mode.
        batches: of `prepare_batch`: pixel_values, normalized, and bool_masked_pos.
        mean, std: of the normalization, for each channel.
        gather: from the `(batch_size, scores)` of this process to those of all, `accelerator.gather_for_metrics`.

    Returns:
        What `summarize` returns.
    """
    model.eval()
    names: list[str] = []
    parts = []
    for batch in batches:
        pixel_values, mask = batch["pixel_values"], batch["bool_masked_pos"]
        reconstruction = model(pixel_values=pixel_values, bool_masked_pos=mask).reconstruction
        scores = score_images(reconstruction, pixel_values, mask, mean, std, _patch_means(model, pixel_values))
        names = list(scores)
        rows = torch.tensor(np.stack(list(scores.values()), axis=1), dtype=torch.float32, device=pixel_values.device)
        parts.append(gather(rows).cpu())
    if not parts:
        raise InputError("there are no images to score reconstructions on")
    return summarize(dict(zip(names, torch.cat(parts).double().numpy().T, strict=True)))


def _patch_means(model: KamimForMaskedImageModeling, pixel_values: torch.Tensor) -> torch.Tensor | None:
    """Return what a model of a normalized target is given of each patch, its mean; None for others."""
    statistics = model.target(pixel_values)[1]
    return None if statistics is None else statistics[0].expand_as(pixel_values)


def summarize(scores: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return means over images, ready for JSON.

    Args:
        scores: of `score_images`, `(num_images,)` each.

    Returns:
        `num_images`, and for each score `{"mean", "standard_error"}`, the latter None for a single image. Also
        `paper_psnr_pooled`, the PSNR of the mean squared error over all images: what torchmetrics calls PSNR, and so
        the figure to hold beside the paper's. The mean of the images' own PSNR, `paper_psnr`, is the larger of the two.
    """
    num_images = len(scores["paper_mse"])
    means = {name: _mean(values) for name, values in scores.items() if name != "paper_mse"}
    return {"num_images": num_images, "paper_psnr_pooled": _pooled_psnr(**_mean(scores["paper_mse"])), **means}


def score_images(
    reconstruction: torch.Tensor,
    pixel_values: torch.Tensor,
    bool_masked_pos: torch.Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    baseline: torch.Tensor | None = None,
) -> dict[str, np.ndarray]:
    """Return scores of every image of a batch.

    Args:
        reconstruction: `(batch_size, channels, height, width)`, a model's output.
        pixel_values: like `reconstruction`, normalized.
        bool_masked_pos: `(batch_size, num_patches)`, True where masked.
        mean, std: of the normalization, for each channel.
        baseline: like `reconstruction`, scored beside it; the mean color of an image's visible pixels where None.

    Returns:
        `paper_mse`, `paper_psnr`, `paper_ssim`, `masked_psnr`, `masked_ssim`, `baseline_psnr`, `baseline_ssim`, each
        `(batch_size,)` float64. PSNR in dB, at most `MAX_PSNR`; SSIM in [-1, 1]; `paper_mse` in units of the data
        range squared.

    Raises:
        InputError: if an image is masked wholly or not at all.
    """
    masks = pixel_mask(bool_masked_pos, *pixel_values.shape[2:]).cpu().numpy()
    if (masks.all(axis=(1, 2)) | ~masks.any(axis=(1, 2))).any():
        raise InputError("an image is masked wholly or not at all; choose another mask_ratio or mask_patch_size")
    targets, outputs = (images.detach().double().cpu().numpy() for images in (pixel_values, reconstruction))
    data_range = normalized_range(mean, std)
    fillings = [None] * len(masks) if baseline is None else list(baseline.detach().double().cpu().numpy())
    rows = [
        {
            **paper_scores(target / data_range, output / data_range),
            **masked_scores(
                _unnormalize(target, mean, std),
                _unnormalize(output, mean, std),
                mask,
                None if filling is None else _unnormalize(filling, mean, std),
            ),
        }
        for target, output, mask, filling in zip(targets, outputs, masks, fillings, strict=True)
    ]
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def paper_scores(target: np.ndarray, output: np.ndarray) -> dict[str, float]:
    """Return squared error, PSNR and SSIM over all pixels of an image.

    scikit-image leaves the outermost 5 px out of the mean of SSIM, where its window reaches over the edge.

    Args:
        target: `(channels, height, width)`, float, in units of the data range.
        output: like `target`.
    """
    return {
        "paper_mse": float(mean_squared_error(target, output)),
        "paper_psnr": _psnr(target, output),
        "paper_ssim": float(_ssim(target, output)[0]),
    }


def masked_scores(
    original: np.ndarray, filled: np.ndarray, mask: np.ndarray, baseline: np.ndarray | None = None
) -> dict[str, float]:
    """Return PSNR and SSIM over an image's masked pixels, of a reconstruction and of a baseline.

    Args:
        original: `(channels, height, width)`, float, in [0, 1].
        filled: like `original`; read where masked.
        mask: `(height, width)`, bool, True where masked; neither all True nor all False.
        baseline: like `original`; the mean color of the visible pixels where None.
    """
    if baseline is None:
        baseline = original[:, ~mask].mean(axis=1)[:, None, None]
    scores = {}
    for name, filling in (("masked", filled), ("baseline", baseline)):
        pasted = np.where(mask, filling, original)
        scores[f"{name}_psnr"] = _psnr(original[:, mask], pasted[:, mask])
        scores[f"{name}_ssim"] = float(_ssim(original, pasted)[1][:, mask].mean())
    return scores


def pixel_mask(bool_masked_pos: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Return a mask of pixels `(batch_size, height, width)`, bool, for masked patches `(batch_size, num_patches)`."""
    grid = token_grid((height, width), bool_masked_pos.shape[1])
    return upsample(bool_masked_pos.bool().unflatten(1, grid), height, width)


def normalized_range(mean: Sequence[float], std: Sequence[float]) -> float:
    """Return the largest minus the smallest value that pixels in [0, 1] can take when they are normalized."""
    low, high = -np.asarray(mean) / std, (1 - np.asarray(mean)) / std
    return float(high.max() - low.min())


def _unnormalize(image: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    return (image * np.reshape(std, (-1, 1, 1)) + np.reshape(mean, (-1, 1, 1))).clip(0, 1)


def _psnr(target: np.ndarray, output: np.ndarray) -> float:
    with np.errstate(divide="ignore"):  # infinite for equal images
        return min(float(peak_signal_noise_ratio(target, output, data_range=1.0)), MAX_PSNR)


def _ssim(target: np.ndarray, output: np.ndarray) -> tuple[float, np.ndarray]:
    """Return SSIM of two images `(channels, height, width)` of data range 1, and its map, of their shape."""
    return structural_similarity(
        target,
        output,
        data_range=1.0,
        channel_axis=0,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        full=True,
    )


def _mean(values: np.ndarray) -> dict[str, Any]:
    error = float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None
    return {"mean": float(values.mean()), "standard_error": error}


def _pooled_psnr(mean: float, standard_error: float | None) -> dict[str, Any]:
    """Return PSNR of a mean squared error, and its standard error, to first order in that of the squared error."""
    mean = max(mean, 10 ** (-MAX_PSNR / 10))
    error = None if standard_error is None else 10 / math.log(10) * standard_error / mean
    return {"mean": -10 * math.log10(mean), "standard_error": error}
