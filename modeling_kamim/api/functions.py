"""`pretrain`, `evaluate` and `embed`: the commands as functions, for notebooks and scripts."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2

from ..data.loading import keep_splits_encoded, load_source
from ..data.photographs import load_photographs
from ..evaluation.embedding import embed as run_embedding
from ..evaluation.embedding import load_embedder
from ..models.families import FAMILIES
from ..training.settings_file import settings_text
from .encoding import choose_ids, choose_labels, scale_pixels
from .groups import CLASSIFICATION_ARGUMENTS, ENCODING_ARGUMENTS, PRETRAINING_ARGUMENTS
from .images import NAME, Images, splits_of, take_images
from .keywords import checked_settings, make_settings
from .notebook import EmbeddedImages, Pretraining, Scores
from .pretraining import run_pretraining
from .process import undisturbed
from .scoring import run_evaluation

Checkpoint = str | os.PathLike | None


def pretrain(
    images: Images | None = None,
    model: Checkpoint = "vit-small",
    output_dir: str | os.PathLike = "outputs/mim",
    **settings: Any,
) -> Pretraining:
    """Pretrain a vision transformer on images, with keypoint weights or without; what `kamim pretrain` does.

    Args:
        images: a path, the id of a data set on the Hub, a `datasets.Dataset` or `DatasetDict`, or a list of PIL images
            or arrays; None for the embedded photographs.
        model: type and size of random weights, as "vit-small" or "swin-tiny"; or a checkpoint to start from, a
            directory or Hub id.
        output_dir: where checkpoint, pictures and card go.
        **settings: of `kamim pretrain`, by their names there (`kamim pretrain --help`).

    Raises:
        InputError: if a setting, the images or the checkpoint cannot be used.
        StoppedError: if the training ended early.
    """
    given = {**_model_settings(model, settings), "output_dir": output_dir, **settings}
    with undisturbed():
        checked = checked_settings(PRETRAINING_ARGUMENTS, given)
        data_args, kamim_args, stream_args, probe_args, training_args = make_settings(PRETRAINING_ARGUMENTS, checked)
        data_args = take_images(images, data_args)
        text = _settings_text("pretrain", data_args.dataset_name, checked)
        run_pretraining(data_args, kamim_args, stream_args, probe_args, training_args, text)
    return Pretraining.read(Path(output_dir))


def evaluate(checkpoint: Checkpoint, images: Images | None = None, protocol: str = "paper", **settings: Any) -> Scores:
    """Score a checkpoint on labeled images; what `kamim evaluate` does.

    Args:
        checkpoint: directory or Hub id; None for random weights.
        images: as for `pretrain`; a list needs labels: `{"image": [...], "label": [...]}`.
        protocol: "paper", "paper_layernorm", "mae", "cached" or "knn"; "finetune" or "reconstruction" for these modes.
        **settings: of `kamim evaluate`, by their names there, `output_dir` among them.

    Raises:
        InputError: if a setting, the images or the checkpoint cannot be used.
        StoppedError: if a training ended early.
    """
    how = {"mode": protocol} if protocol in ("finetune", "reconstruction") else {"protocol": protocol}
    given = {"model_name_or_path": checkpoint, **how, **settings}
    with undisturbed():
        checked = checked_settings(CLASSIFICATION_ARGUMENTS, given)
        data_args, class_args, training_args = make_settings(CLASSIFICATION_ARGUMENTS, checked)
        data_args = take_images(images, data_args)
        text = _settings_text("evaluate", data_args.dataset_name, checked)
        run_evaluation(data_args, class_args, training_args, text)
    return Scores.read(Path(training_args.output_dir))


def embed(
    checkpoint: str | os.PathLike,
    images: Images | None = None,
    layer: int | str | None = None,
    pooling: str = "mean",
    **settings: Any,
) -> EmbeddedImages:
    """Compute the features that an encoder has of images, in memory; `kamim embed` writes those of large sets.

    Args:
        checkpoint: directory or Hub id of any encoder of transformers or timm.
        images: as for `pretrain`; all splits are read.
        layer: block from 1, or "all"; the output of the encoder where None.
        pooling: "mean" of the patch tokens, the "cls" token, or all "patches".
        **settings: of `kamim embed`, by their names there; the default precision is fp32, of which the numbers are
            those of `AutoModel`.

    Raises:
        InputError: if a setting, the images or the checkpoint cannot be used.
    """
    name = None if images is None or not isinstance(images, str | os.PathLike) else os.fspath(images)
    given = {"model_name_or_path": checkpoint, "layer": None if layer is None else str(layer), "pooling": pooling}
    with undisturbed():
        checked = checked_settings(ENCODING_ARGUMENTS, {**given, "dataset_name": name or NAME, **settings})
        source, args = make_settings(ENCODING_ARGUMENTS, checked)
        cv2.setNumThreads(1)
        embedder = load_embedder(**args.encoder(), device="cpu" if args.use_cpu else None)
        splits = load_photographs() if images is None else None if name else splits_of(images)
        rows, column = load_source(source) if splits is None else keep_splits_encoded(splits, source.image_column)
        scale_pixels(embedder, rows, column, source.num_proc)
        labels, ids = choose_labels(rows, args.label_column), choose_ids(rows, column, name)
        skip = args.bad_images == "skip"
        parts = [run_embedding(embedder, rows[split], column, labels, ids[split], skip) for split in rows]
    classes = rows[next(iter(rows))].features[labels] if labels else None
    return EmbeddedImages.join(parts, classes)


def _model_settings(model: Checkpoint, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that a name such as "vit-small", or a checkpoint, stands for."""
    if model is None or settings.keys() & {"config_name", "model_name_or_path", "model_type", "model_size"}:
        return {}
    family, _, size = os.fspath(model).rpartition("-")
    if family in FAMILIES and not Path(model).exists():
        return {"model_type": family, "model_size": size}
    return {"model_name_or_path": model}


def _settings_text(command: str, dataset_name: str | None, checked: dict[str, Any]) -> str:
    """Return settings.yaml; the command in it does the same."""
    given = {} if dataset_name is None else {"dataset_name": dataset_name}
    given |= checked
    return settings_text(["kamim", command], given, given)
