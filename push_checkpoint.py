"""Publish a checkpoint on the Hub: weights, config, image processor, card, results and pictures, nothing private.

python push_checkpoint.py outputs/mim --repo user/kamim-vit-b
python push_checkpoint.py outputs/mim --repo user/kamim-vit-b --results outputs/evaluation --private true
"""

import logging
import os
from pathlib import Path

from huggingface_hub import ModelCard

from modeling_kamim.arguments import HubArguments, PushArguments
from modeling_kamim.command_line import parse
from modeling_kamim.errors import InputError, run
from modeling_kamim.evaluation.results import checkpoint_rows
from modeling_kamim.model_card import ask_about_card, complete_card
from modeling_kamim.publishing import Publisher, PublishError, published_files
from modeling_kamim.stopping import resume_command

logger = logging.getLogger("push_checkpoint")


def main() -> None:
    args, hub = parse((PushArguments, HubArguments), None, __doc__, positional=("directory",))
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    directory = Path(args.directory)
    publisher = Publisher(args.repo, hub.token, hub.private, hub.revision)
    files = published_files(directory)

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
        raise InputError(f"not published: {error}. Repeat it: {resume_command(checkpoint=None)}") from error
    logger.info("Published: %s", address)


if __name__ == "__main__":
    run(main)
