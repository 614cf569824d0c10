"""Write cards: the README.md of a pretrained encoder, a classifier, a prepared data set, and of features."""

import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCard, DatasetCardData, EvalResult, ModelCard, ModelCardData
from transformers import PreTrainedConfig

from .. import __version__
from ..errors import InputError
from ..limits import height_and_width, size_in_words
from ..models.classifier import KamimViTClassifierConfig
from ..models.families import FAMILIES, family_of, model_depth
from ..models.sizes import image_sides, image_size_of
from ..objective.masking import num_masked_blocks
from ..objective.sources.table import SOURCES
from ..objective.targets import TARGETS
from ..objective.weighting import needs_keypoints
from ..privacy import HUB_ID, public_name
from .markup import MISSING, markdown, one_line

logger = logging.getLogger(__name__)
TEMPLATES = Path(__file__).parent / "templates"
PLACE = "path/to/this/directory"  # where a card says how to load, until it is published
_RESULTS = re.compile(r"(^<!-- results -->\n).*?(^<!-- /results -->$)", re.DOTALL | re.MULTILINE)
_TAGS = ["kamim", "masked-image-modeling", "self-supervised-learning"]


@dataclass(frozen=True)
class Run:
    """What a card says of a run.

    Args:
        title: name of the repository or directory.
        dataset: public name of the data set.
        settings: YAML of what was given, with public names; what is left out has its default.
        license: id of a license as the Hub names it; None where the user named none.
    """

    title: str
    dataset: str
    settings: str
    license: str | None = None


def pretraining_card(
    run: Run,
    config: PreTrainedConfig,
    log: Sequence[Mapping[str, Any]] = (),
    batch_size: int | None = None,
    processor: Any = None,
) -> ModelCard:
    """Return the card of a pretrained encoder; without a log, the card of a run that has not begun.

    Args:
        config: of the model, with the objective's settings in `config.kamim`.
        log: `trainer.state.log_history`; its largest step is the length of the training.
        batch_size: images per optimizer step over all devices.
        processor: of the images, for its mean, std and pixel range where the images are not plain RGB.
    """
    losses = [entry for entry in log if entry.get("loss") is not None]
    num_steps = max((entry["step"] for entry in log), default=0)
    weighting, base = config.kamim["weighting"], config.kamim.get("base_model")
    drops_masked = family_of(config).drops_masked
    unweighted = "MAE's objective" if drops_masked else "SimMIM's objective"
    method = {"keypoint": "KAMIM", "none": unweighted}.get(weighting, f"{weighting} weights, a control")
    num_blocks = math.prod(side // config.kamim["mask_patch_size"] for side in image_sides(config))
    return _card(
        "pretrained.md",
        run,
        ModelCardData(
            pipeline_tag="image-feature-extraction",
            tags=_TAGS,
            base_model=_hub_id(base),
            **_metadata(run),
        ),
        architecture=_architecture(config),
        method=method,
        base=_name(base, "checkpoint") if base else None,
        drops_masked=drops_masked,
        has_pooler=config.model_type in ("vit", "deit"),
        image_size=size_in_words(image_size_of(config)),
        extent=f", for {num_steps} steps of {batch_size} images" if num_steps else "",
        num_blocks=num_blocks,
        num_masked=num_masked_blocks(num_blocks, config.kamim["mask_ratio"]),
        target=TARGETS[config.kamim.get("target") or "pixels"].words,
        is_kamim=needs_keypoints(weighting),
        selection=_selection(config.kamim),
        kamim=config.kamim,
        source=SOURCES[config.kamim.get("keypoint_detector", "fast")],
        layout=_layout(config),
        num_channels=config.num_channels,
        mean=list(getattr(processor, "image_mean", None) or []),
        std=list(getattr(processor, "image_std", None) or []),
        is_deep=getattr(processor, "pixel_range", None) is not None,
        curves=bool(losses),
        losses=_loss_table(losses),
    )


def _selection(kamim: Mapping[str, Any]) -> str:
    """Which share of the images a training read, in words; "" for all of them."""
    ratio, every = kamim.get("selection_ratio") or 1, kamim.get("selection_every")
    if ratio == 1:
        return ""
    how = {
        "patch_aware": "those with the hardest patches, scored",
        "reversed": "those with the easiest patches, scored",
        "random": "drawn at random",
    }[kamim["selection"]]
    return f"{ratio:.0%} of the images, {how} every {f'{every} epochs' if every != 1 else 'epoch'}"


def classifier_card(run: Run, config: PreTrainedConfig, mode: str, encoder: str | None) -> ModelCard:
    """Return the card of a linear probe or a fine-tuned model.

    Args:
        config: of the classifier.
        mode: "linear_probe" or "finetune".
        encoder: public name of the checkpoint that it began with; None for random weights.
    """
    metadata = ModelCardData(
        pipeline_tag="image-classification",
        tags=["kamim", mode.replace("_", "-")],
        base_model=_hub_id(encoder),
        **_metadata(run),
    )
    return _card(
        "classifier.md",
        run,
        metadata,
        architecture=_architecture(config),
        head="a linear layer on its frozen features" if mode == "linear_probe" else "all weights fine-tuned",
        num_classes=config.num_labels,
        image_size=size_in_words(image_size_of(config)),
        layout=_layout(config),
        encoder=_name(encoder, "checkpoint") if encoder else "random weights: a baseline",
        trust=", trust_remote_code=True" if config.model_type == KamimViTClassifierConfig.model_type else "",
    )


def published_dataset_card(card: DatasetCard, repo_id: str) -> DatasetCard:
    """Return the card of a prepared data set with the name of its repository."""
    return DatasetCard(card.content.replace(PLACE, repo_id))


def complete_card(
    card: ModelCard, rows: Sequence[Mapping[str, Any]], repo_id: str | None = None, license: str | None = None
) -> ModelCard:
    """Return the card with results, as a table and for the Hub's index, and with the name of its repository.

    What else is written in the card stays; a card without a place for results gets the index alone.

    Args:
        rows: results of this checkpoint, as in results.json; the Hub gets those of accuracies and reconstructions.
        repo_id: put in place of "path/to/this/directory"; not where None.
        license: id of a license as the Hub names it; the card's where None.
    """
    text = _RESULTS.sub(lambda found: found[1] + _result_table(rows) + found[2], card.content)
    completed = ModelCard(text.replace(PLACE, repo_id) if repo_id else text)
    metadata: Any = completed.data
    if rows:
        metadata.eval_results = [result for row in rows for result in _eval_results(row)]
        metadata.model_name = metadata.model_name or (repo_id or "model").split("/")[-1]
    if license is not None:
        metadata.license = license
    return completed


def ask_about_card(card: ModelCard | DatasetCard) -> None:
    """Ask the Hub whether it would take the card's metadata; where it cannot be asked, only a warning.

    Raises:
        InputError: if it would not.
    """
    try:
        card.validate()
    except ValueError as error:
        raise InputError(f"the Hub does not take the metadata of the card: {error}") from error
    except Exception as error:  # of the network
        logger.warning("The Hub could not be asked about the card: %s", error)


def prepared_dataset_card(
    directory: Path,
    source: str,
    preparation: Any,
    statistics: Mapping[str, int],
    license: str | None = None,
) -> DatasetCard:
    """Return the card of a prepared data set.

    Args:
        directory: of the data set; only its name is published.
        source: name of the source; a path on this machine is not published.
        preparation: a `Preparation`.
        statistics: `num_rows, num_bytes, num_bad`.
        license: of the images, by its id on the Hub.
    """
    metadata = DatasetCardData(
        license=license,
        task_categories=["image-feature-extraction", "image-classification"],
        tags=["kamim", "masked-image-modeling", "keypoints"],
    )
    densities = preparation.densities
    return DatasetCard.from_template(
        metadata,
        template_path=str(TEMPLATES / "prepared_dataset.md"),
        title=markdown(directory.name),
        source="A local data set" if Path(source).expanduser().exists() else source,
        image_size=size_in_words(preparation.image_size),
        sides=" ".join(map(str, dict.fromkeys(height_and_width(preparation.image_size)))),
        num_rows=statistics["num_rows"],
        least_size=size_in_words(preparation.least_sides),
        quality=preparation.quality,
        kilobytes=statistics["num_bytes"] / max(1, statistics["num_rows"]) / 1000,
        num_bad=statistics["num_bad"],
        pixel_range=preparation.pixel_range,
        num_channels=preparation.num_channels,
        column=densities[0].column if densities else None,
        labels="\n".join(density.label for density in densities),
        restricted={d.detector.name: d.detector.source.license for d in densities if d.detector.source.license},
    )


def embeddings_card(
    directory: Path, settings: Mapping[str, Any], statistics: Mapping[str, int], license: str | None = None
) -> DatasetCard:
    """Return the card of the features of a data set.

    Args:
        directory: of the features; only its name is published.
        settings: of `evaluation.embedding_shards`, with public names.
        statistics: `num_rows, num_bytes, num_bad`.
        license: of the images, by its id on the Hub.
    """
    pooling = {
        "mean": "Mean of the patch tokens (CLS and registers left out), or of the map of a convolutional network.",
        "cls": "CLS token.",
        "patches": "Every patch token, row by row from the upper left (CLS and registers left out).",
    }[settings["pooling"]]
    layer = settings["layer"]
    block = "output of the encoder" if layer == "final" else f"block {layer}"
    columns = [
        (name, tuple(shape), block if name == "features" else name.replace("_", " "))
        for name, shape in settings["shapes"].items()
    ]
    source = _hub_id(settings["dataset"])
    known = ("model_type", "image_size", "dtype", "precision", "pixel_range", "weights")
    values: dict[str, Any] = {**statistics, **{key: settings[key] for key in known}}
    return DatasetCard.from_template(
        DatasetCardData(
            license=license,
            task_categories=["image-feature-extraction"],
            tags=["kamim", "embeddings"],
            source_datasets=[source] if source else None,
        ),
        template_path=str(TEMPLATES / "embeddings.md"),
        title=markdown(directory.name),
        version=__version__,
        source=_name(settings["dataset"], "data set"),
        encoder=_name(settings["encoder"], "checkpoint"),
        columns=columns,
        pooling=pooling,
        split=next(iter(settings["splits"])),
        has_labels=settings["label_column"] is not None,
        mean=", ".join(f"{number:.4g}" for number in settings["image_mean"]),
        std=", ".join(f"{number:.4g}" for number in settings["image_std"]),
        **values,
    )


def _card(template: str, run: Run, metadata: ModelCardData, **values: Any) -> ModelCard:
    return ModelCard.from_template(
        metadata,
        template_path=str(TEMPLATES / template),
        title=markdown(run.title),
        dataset=_name(run.dataset, "data set"),
        settings=run.settings.strip(),
        fence="`" * max(3, 1 + max(map(len, re.findall("`+", run.settings)), default=0)),
        version=__version__,
        **values,
    )


def _metadata(run: Run) -> dict[str, Any]:
    dataset = _hub_id(run.dataset)
    return {
        "library_name": "transformers",
        "license": run.license,
        "datasets": [dataset] if dataset else None,
        "model_name": one_line(run.title.split("/")[-1]),
    }


def _hub_id(name: str | None) -> str | None:
    """A public name where it is an id of the Hub, else None."""
    return name if name is not None and HUB_ID.fullmatch(name) else None


def _name(name: str, kind: str) -> str:
    if name.startswith("local:"):
        return f"a local {kind} ({markdown(name.removeprefix('local:'))})"
    return name if " " in name else f"[{name}](https://huggingface.co/{'datasets/' * (kind == 'data set')}{name})"


def _architecture(config: PreTrainedConfig) -> str:
    title = FAMILIES[config.model_type].title if config.model_type in FAMILIES else "ViT"
    width = getattr(config, "embed_dim", None) or config.hidden_size
    return f"A {title} (width {width}, {model_depth(config)} blocks, {config.patch_size} px patches)"


def _layout(config: PreTrainedConfig) -> str:
    """What transformers' processors have to be told of arrays that are neither gray nor RGB."""
    return "" if config.num_channels in (1, 3) else ', input_data_format="channels_last"'


def _loss_table(losses: Sequence[Mapping[str, Any]]) -> str:
    if not losses:
        return ""
    titles = {"loss": "weighted loss", "masked_l1": "masked L1 (comparable between weightings)"}
    first, last = losses[0], losses[-1]
    known = [key for key in titles if None not in (first.get(key), last.get(key))]
    rows = [f"| {titles[key]} | {first[key]:.4f} | {last[key]:.4f} |" for key in known]
    return "\n".join([f"| | step {first['step']} | step {last['step']} |", "|---|---|---|", *rows, ""])


def _result_table(rows: Sequence[Mapping[str, Any]]) -> str:
    accuracies = [row for row in rows if "top1" in row]
    lines = []
    if accuracies:
        lines += ["| protocol | layer | data | top-1 | top-5 | 95% interval | seed |", "|---|---|---|---|---|---|---|"]
        lines += [
            f"| {' | '.join(map(markdown, (row['protocol'], _layer(row), _data(row))))} | {_share(row['top1'])} | "
            f"{_share(row.get('top5'))} | {_interval(row)} | {markdown(str(row.get('seed')))} |"
            for row in accuracies
        ]
    for row in rows:
        if "masked_l1" in row:
            lines.append(f"\nMasked L1 on the validation images of {markdown(_data(row))}: {row['masked_l1']:.4f}.")
        if "masked_psnr" in row:
            scores = ("masked_psnr", "masked_ssim", "baseline_psnr", "baseline_ssim")
            psnr, ssim, fill_psnr, fill_ssim = (row[score]["mean"] for score in scores)
            lines.append(
                f"\nReconstructions of {markdown(_data(row))} ({row['mask_ratio']:.0%} masked): masked pixels "
                f"{psnr:.2f} dB (SSIM {ssim:.3f}); {baseline_name(row['provenance'].get('kamim'))} has "
                f"{fill_psnr:.2f} dB ({fill_ssim:.3f})."
            )
    return "\n".join([*lines, ""]) if lines else "None yet.\n"


def baseline_name(kamim: Mapping[str, Any] | None) -> str:
    """What the masked pixels are filled with beside a reconstruction, by the settings of the pretraining."""
    if TARGETS[(kamim or {}).get("target") or "pixels"].is_normalized:
        return "the mean of each patch, which the model is given,"
    return "the mean color of the visible pixels"


def _data(row: Mapping[str, Any]) -> str:
    share = f", {row['low_shot']:.0%} of labels" if isinstance(row.get("low_shot"), float) else ""
    return _dataset(row).removeprefix("local:") + share


def _dataset(row: Mapping[str, Any]) -> str:
    return public_name(str(row["provenance"].get("dataset") or "unknown"))


def _share(value: Any) -> str:
    return f"{value:.2%}" if isinstance(value, int | float) else MISSING


def _interval(row: Mapping[str, Any]) -> str:
    interval = row.get("top1_interval")
    return " to ".join(map(_share, interval)) if isinstance(interval, list) else ""


def _layer(row: Mapping[str, Any]) -> str:
    return str(row["layer"]) if row.get("layer") is not None else ""


def _eval_results(row: Mapping[str, Any]) -> list[EvalResult]:
    dataset = _dataset(row)
    shared: dict[str, Any] = {
        "dataset_type": dataset.removeprefix("local:").replace(" ", "-"),
        "dataset_name": _data(row),
        "dataset_split": "validation",
    }
    if "top1" in row:
        protocol = row["protocol"] + (f", layer {_layer(row)}" if _layer(row) else "")
        task, seed = "image-classification", row.get("seed")
        metrics = [
            ("accuracy", f"{name} ({protocol}, seed {seed})", row[key])
            for key, name in (("top1", "top-1"), ("top5", "top-5"))
            if row.get(key) is not None
        ]
    else:
        task = "image-feature-extraction"
        metrics = [("masked_l1", "masked L1", row["masked_l1"])] if "masked_l1" in row else []
        if "masked_psnr" in row:
            share = f"{row['mask_ratio']:.0%} masked"
            metrics += [("psnr", f"PSNR of masked pixels, dB ({share})", row["masked_psnr"]["mean"])]
            metrics += [("ssim", f"SSIM of masked pixels ({share})", row["masked_ssim"]["mean"])]
    return [
        EvalResult(task, metric_type=kind, metric_name=name, metric_value=round(value, 4), **shared)
        for kind, name, value in metrics
    ]
