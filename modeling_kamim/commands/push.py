"""Publish a checkpoint on the Hub: weights, config, image processor, card, results and pictures, nothing private.

kamim push outputs/mim --repo user/kamim-vit-b
kamim push outputs/mim --repo user/kamim-vit-b --results outputs/evaluation --private true
"""

import logging
import os
import sys
from pathlib import Path

from huggingface_hub import ModelCard

from ..errors import InputError
from ..evaluation.results import checkpoint_rows
from ..hub.cards import ask_about_card, complete_card
from ..hub.publishing import HubArguments, Publisher, PublishError, PushArguments, published_files
from ..training.run_directory import left_by_others
from ..training.signals import resume_command
from .endings import run
from .parser import parse
from .program import program, show_log

logger = logging.getLogger(__name__)


def main() -> None:
    args, hub = parse((PushArguments, HubArguments), None, __doc__, positional=("directory",))
    show_log()
    directory = Path(args.directory)
    publisher = Publisher(args.repo, hub.token, hub.private, hub.revision)
    files = published_files(directory, left_by_others(directory))

    card_file = directory / "README.md"
    if not card_file.is_file():
        raise InputError(f"{directory} has no README.md; a checkpoint on the Hub needs a card")
    rows = checkpoint_rows([directory, *map(Path, args.results)], directory)
    card = complete_card(ModelCard.load(card_file), rows, args.repo, hub.license)
    logger.info("%d result(s) of these weights go into the card", len(rows))
    files["README.md"] = str(card).encode()
    ask_about_card(card)
    try:
        size = sum(os.path.getsize(file) if isinstance(file, Path) else len(file) for file in files.values())
        logger.info("Publishing %d files (%.1f MB) as %s", len(files), size / 1e6, publisher.repo_id)
        address = publisher.push(files, args.commit_message)
    except PublishError as error:
        command = resume_command([*program(), *sys.argv[1:]], checkpoint=None)
        raise InputError(f"not published: {error}. Repeat it: {command}") from error
    logger.info("Published: %s", address)


if __name__ == "__main__":
    run(main)
