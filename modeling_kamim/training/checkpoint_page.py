"""Write README.md and settings.yaml of an output directory."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from transformers import TrainingArguments

from ..files import write_text
from ..hub.cards import Run, ask_about_card, complete_card


class CheckpointPage:
    """README.md (the card) and settings.yaml of a run.

    Args:
        settings: YAML of the settings that were given, fit to be published.
        training_args: of the run.
        dataset: public name of the data set.
    """

    def __init__(self, settings: str, training_args: TrainingArguments, dataset: str):
        self.args = training_args
        self.output_dir = Path(training_args.output_dir)
        title = Path(training_args.hub_model_id or self.output_dir.absolute()).name
        self.run = Run(title, dataset, settings, training_args.hub_license)

    def ask_hub(self, card: ModelCard) -> None:
        """Raise InputError if the run is to be published and the Hub refuses the card; called before the training."""
        if self.args.push_to_hub and self.args.process_index == 0:
            ask_about_card(card)

    def write(self, card: ModelCard, rows: Sequence[Mapping[str, Any]] = (), repo_id: str | None = None) -> None:
        """Write both files, in the process that saves.

        Args:
            card: of the run, without results.
            rows: results of this checkpoint, as in results.json.
            repo_id: name of the repository, in place of "path/to/this/directory".
        """
        if self.args.should_save:
            self.output_dir.mkdir(parents=True, exist_ok=True)
            write_text(self.output_dir / "README.md", str(complete_card(card, rows, repo_id)))
            write_text(self.output_dir / "settings.yaml", self.run.settings)
