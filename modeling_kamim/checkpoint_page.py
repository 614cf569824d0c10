"""The files of an output directory that tell what is in it: README.md and settings.yaml."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from transformers import TrainingArguments

from .command_line import given_settings
from .errors import InputError
from .model_card import Run, ask_about_card, complete_card


class CheckpointPage:
    """README.md and settings.yaml of a run; begun before the training, so that what the Hub would refuse fails at once.

    Args:
        argument_types: that the script parses.
        training_args: of the run.
        dataset: public name of the data set.

    Raises:
        InputError: if nothing can be written into the output directory.
    """

    def __init__(self, argument_types: Sequence[type], training_args: TrainingArguments, dataset: str):
        self.args = training_args
        self.output_dir = Path(training_args.output_dir)
        title = training_args.hub_model_id or self.output_dir.absolute().name
        self.run = Run(title, dataset, given_settings(argument_types), training_args.hub_license)
        if training_args.should_save:
            check_writable(self.output_dir)

    def begin(self, card: ModelCard) -> None:
        """Write the page of a run that begins; asks the Hub about its metadata where the run is published.

        Raises:
            InputError: if the Hub does not take them.
        """
        if not self.args.should_save:
            return
        if self.args.push_to_hub and self.args.process_index == 0:
            ask_about_card(card)
        self.write(card)

    def write(self, card: ModelCard, rows: Sequence[Mapping[str, Any]] = (), repo_id: str | None = None) -> None:
        """Write both files.

        Args:
            rows: results of this checkpoint, as in results.json.
            repo_id: of the repository, put in place of "path/to/this/directory".
        """
        if self.args.should_save:
            self.output_dir.mkdir(parents=True, exist_ok=True)
            complete_card(card, rows, repo_id).save(self.output_dir / "README.md")
            (self.output_dir / "settings.yaml").write_text(self.run.settings, encoding="utf-8")


def check_writable(output_dir: Path) -> None:
    """Raise InputError unless files can be written into `output_dir`, which is made."""
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output_dir) as file:
            file.write(b"0")
    except OSError as error:
        raise InputError(f"output_dir is {output_dir}, where nothing can be written ({error}); give another") from error
