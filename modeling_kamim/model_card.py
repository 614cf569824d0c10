"""The README.md of a checkpoint."""

from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

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
        dataset="a local data set" if Path(dataset).exists() else dataset,
        losses=_loss_table([entry for entry in log if "loss" in entry]),
        **values,
    )
    return ModelCard(f"---\n{metadata.to_yaml()}\n---\n{text}")


def _loss_table(losses: list[dict]) -> str:
    if not losses:
        return ""
    rows = {"weighted loss": "loss", "masked L1 (comparable between weightings)": "masked_l1"}
    lines = [f"| {title} | {losses[0][key]:.4f} | {losses[-1][key]:.4f} |" for title, key in rows.items()]
    return "\n".join(["| | start | end |", "|---|---|---|", *lines, "", ""])
