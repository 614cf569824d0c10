"""Push a training to the Hub; a failed push is reported and never ends the training."""

import logging
from pathlib import Path

from transformers.trainer_utils import HubStrategy

from ..hub.publishing import Publisher, PublishError, checkpoint_files, published_files
from .checkpointing import CheckpointingTrainer
from .run_directory import PAGE_FILES, left_by_others

logger = logging.getLogger(__name__)


class PublishingTrainer(CheckpointingTrainer):
    """Trainer whose `push_to_hub` publishes what `published_files` names, never pickles or the access token.

    A push that fails is reported, and the training goes on.
    """

    def init_hf_repo(self, *args, **kwargs) -> None:
        """Make the repository; where that fails, the first push tries again."""
        if not self.is_world_process_zero():
            return
        settings = self.args
        name = settings.hub_model_id or Path(settings.output_dir).absolute().name
        self.publisher = Publisher(name, settings.hub_token, settings.hub_private_repo, settings.hub_revision)
        try:
            self.publisher.prepare()
        except PublishError as error:
            logger.error("Nothing can be published now, the training goes on: %s", error)
        self.hub_model_id = self.publisher.repo_id
        self.push_in_progress = None

    def push_to_hub(self, commit_message: str | None = "End of training", *args, **kwargs) -> str | None:
        """Publish the output directory as it is, and return the address of the commit; None where it fails.

        A failure is reported with the command that repeats the push.
        """
        if not self.is_world_process_zero():
            return None
        if self.hub_model_id is None:
            self.init_hf_repo()
        output_dir = Path(self.args.output_dir)
        try:
            files = published_files(output_dir, left_by_others(output_dir))
            address = self.publisher.push(files, commit_message or "End of training")
        except PublishError as error:
            command = self.publisher.command(output_dir)
            logger.error("NOT published: %s\nThe checkpoint is whole in %s. Publish it: %s", error, output_dir, command)
            return None
        logger.info("Published: %s", address)
        return address

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        pass  # its files are still aside: see _publish_checkpoint

    def _publish_checkpoint(self, checkpoint: Path) -> None:
        strategy, page = self.args.hub_strategy, Path(self.args.output_dir)
        if not self.is_world_process_zero() or strategy == HubStrategy.END:
            return
        files = published_files(checkpoint)
        files |= {name: (page / name).read_bytes() for name in PAGE_FILES if (page / name).is_file()}
        if strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            folder = "last-checkpoint" if strategy == HubStrategy.CHECKPOINT else checkpoint.name
            files |= checkpoint_files(checkpoint, folder)
        try:
            self.publisher.push_in_background(files, f"Training in progress, step {self.state.global_step}")
        except OSError as error:
            logger.warning("%s is saved, but not published: %s", checkpoint, error)
