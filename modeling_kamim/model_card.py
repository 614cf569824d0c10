"""The README.md of a checkpoint, and that of a prepared data set."""

from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCard, DatasetCardData, ModelCard, ModelCardData

_PRETRAINED = """
# {title}

{architecture} encoder, pretrained with {method} ([arXiv:2407.13873](https://arxiv.org/abs/2407.13873)) on {dataset}
at {image_size} px for {steps} steps of {batch_size} images.

```python
from transformers import AutoImageProcessor, AutoModel

processor = AutoImageProcessor.from_pretrained("path/to/this/directory")
model = AutoModel.from_pretrained("path/to/this/directory")
features = model(**processor(image, return_tensors="pt")).last_hidden_state
```

Use `last_hidden_state`: the pooler of `AutoModel` is not part of this checkpoint and starts at random.
The processor resizes with antialias, pretraining resized without; see `docs/method.md` of the training code.

{losses}![original, masked, reconstruction, weights](reconstructions.png)

The settings of the objective are under `kamim` in `config.json`, those of the run in `trainer_state.json`.
"""


def pretraining_card(directory: Path, dataset: str, log: list[dict], values: dict) -> ModelCard:
    """Card of a pretrained encoder.

    Args:
        directory: of the checkpoint; only its name is published.
        dataset: name of the data set; a path on this machine is not published.
        log: `trainer.state.log_history`.
        values: `architecture, method, image_size, steps, batch_size` for the text.
    """
    metadata = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-feature-extraction",
        tags=["kamim", "masked-image-modeling", "self-supervised-learning"],
    )
    text = _PRETRAINED.format(
        title=directory.name,
        dataset="a local data set" if Path(dataset).expanduser().exists() else dataset,
        losses=_loss_table([entry for entry in log if "loss" in entry]),
        **values,
    )
    return ModelCard(f"---\n{metadata.to_yaml()}\n---\n{text}")


_PREPARED = """
# {title}

{source}, prepared for masked image modelling at {image_size} px: {num_rows} images whose short side is at most
{short_side} px{quality}, {kilobytes:.1f} kB an image with everything beside it.{left_out}

The images and labels are those of the source, and its terms apply to them.

```python
from datasets import load_dataset

dataset = load_dataset("path/to/this/directory")
```

{densities}To pretrain on it: `python run_mim.py --dataset_name path/to/this/directory --image_size {image_size}`.
Training on it sees pixels that were shrunk and compressed once more; to reproduce a published evaluation to the last
digit, evaluate on the source.
"""

_DENSITIES = """Keypoint densities of the whole images, one column for each detector, are 64 x 64 gray pictures (binary
PGM; `dataset.cast_column("{column}", datasets.Image())` shows them). What was detected, at which size, is the comment
line of every picture:

```
{labels}
```

"""


def prepared_dataset_card(directory: Path, source: str, preparation: Any, statistics: dict[str, Any]) -> DatasetCard:
    """Card of a prepared data set.

    Args:
        directory: of the data set; only its name is published.
        source: name of the source; a path on this machine is not published.
        preparation: a `Preparation`.
        statistics: `num_rows, num_bytes, num_bad`.
    """
    metadata = DatasetCardData(
        task_categories=["image-feature-extraction", "image-classification"],
        tags=["kamim", "masked-image-modeling", "keypoints"],
    )
    densities = preparation.densities
    text = _PREPARED.format(
        title=directory.name,
        source="A local data set" if Path(source).expanduser().exists() else source,
        image_size=preparation.image_size,
        num_rows=statistics["num_rows"],
        short_side=preparation.short_side,
        quality=f" (larger ones were shrunk by area averages, JPEG quality {preparation.quality})",
        kilobytes=statistics["num_bytes"] / max(1, statistics["num_rows"]) / 1000,
        left_out=f" {statistics['num_bad']} images could not be decoded and are left out."
        * bool(statistics["num_bad"]),
        densities=_DENSITIES.format(column=densities[0].column, labels="\n".join(d.label for d in densities))
        if densities
        else "",
    )
    return DatasetCard(f"---\n{metadata.to_yaml()}\n---\n{text}")


def _loss_table(losses: list[dict]) -> str:
    if not losses:
        return ""
    rows = {"weighted loss": "loss", "masked L1 (comparable between weightings)": "masked_l1"}
    lines = [f"| {title} | {losses[0][key]:.4f} | {losses[-1][key]:.4f} |" for title, key in rows.items()]
    return "\n".join(["| | start | end |", "|---|---|---|", *lines, "", ""])
