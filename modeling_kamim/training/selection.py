"""Train on a share of the images, chosen anew every few epochs by how hard their patches are to fill in."""

import logging
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader, Sampler, Subset, default_collate
from transformers import Trainer

from ..data.samples import SampleDataset
from ..errors import InputError
from ..models.masked_image_modeling import KamimForMaskedImageModeling
from ..models.sizes import patch_grid
from ..objective.ranking import on_grid
from ..objective.selection_rule import SelectionRule, disparity_score
from .batches import prepare_batch
from .checkpointing import StatefulCallback
from .hard_patches import in_evaluation, mask_by_score, predicted_losses

logger = logging.getLogger(__name__)
SELECTION_FILE = "selection.safetensors"


@dataclass(frozen=True)
class Hardness:
    """Callable from a model with a loss predictor and a batch to `disparity_score`, under the hardest masks.

    Args:
        block_grid: rows and columns of masked blocks.
        mask_ratio: of them.
    """

    block_grid: tuple[int, int]
    mask_ratio: float

    def __call__(self, model: KamimForMaskedImageModeling, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return the scores of normalized images: `(batch_size,)`, float32."""
        scores = predicted_losses(model, pixel_values)
        order = torch.arange(math.prod(self.block_grid), device=scores.device).expand(len(scores), -1)
        mask = mask_by_score(model, scores, order, self.block_grid, self.mask_ratio, share=1.0)
        losses = model(pixel_values=pixel_values, bool_masked_pos=mask).patch_losses
        is_masked = on_grid(mask, patch_grid(model.config), model.decoder_grid).flatten(1) > 0.5
        return disparity_score(losses, is_masked)


class SelectedSampler(Sampler[int]):
    """The selected images in a random order, which depends on seed and epoch alone.

    Before the first choice they are a random share of all images, another one in every epoch.

    Args:
        dataset: of the training, for the number of images and the epoch.
        rule: for the count.
        seed: of the run.
    """

    def __init__(self, dataset: SampleDataset, rule: SelectionRule, seed: int):
        self.dataset, self.rule, self.seed = dataset, rule, seed
        self.chosen: torch.Tensor | None = None

    def __len__(self) -> int:
        return self.rule.count(len(self.dataset))

    def __iter__(self) -> Iterator[int]:
        generator = _generator(self.seed, self.dataset.epoch)
        images = torch.arange(len(self.dataset)) if self.chosen is None else self.chosen
        order = torch.randperm(len(images), generator=generator)[: len(self)]
        yield from images[order].tolist()


class SampleSelection(StatefulCallback):
    """Chooses the images before every `rule.every`-th epoch but the first, and saves the choice in checkpoints.

    Args:
        trainer: of the training; add this with `trainer.add_callback`.
        sampler: of the training's images.
        scored: the training's images without random crops and flips, in the same order.
        hardness: scores them.
    """

    def __init__(self, trainer: Trainer, sampler: SelectedSampler, scored: SampleDataset, hardness: Hardness):
        self.trainer, self.sampler, self.scored, self.hardness = trainer, sampler, scored, hardness
        self.epoch = 0  # of the last choice

    def on_train_begin(self, args, state, control, **kwargs):
        if state.global_step > 0:
            self._load(Path(args.resume_from_checkpoint))

    def on_epoch_begin(self, args, state, control, **kwargs):
        epoch, rule = int(state.epoch + 1e-6), self.sampler.rule
        if epoch == self.epoch or epoch % rule.every:
            return
        start = time.perf_counter()
        self.sampler.chosen = rule.choose(self._scores(epoch))
        self.epoch = epoch
        logger.info(
            "Epoch %d goes on with %d of %d images (%s), chosen in %.1f s",
            *(epoch + 1, len(self.sampler), len(self.scored), rule.name, time.perf_counter() - start),
        )

    def _scores(self, epoch: int) -> torch.Tensor:
        """Return the scores of all images, on the CPU; every process scores its part."""
        if self.sampler.rule.name == "random":
            return torch.rand(
                len(self.scored), generator=torch.Generator().manual_seed(self.sampler.seed << 32 | epoch)
            )
        args, accelerator = self.trainer.args, self.trainer.accelerator
        model = accelerator.unwrap_model(self.trainer.model, keep_torch_compile=False)
        rows = range(args.process_index, len(self.scored), args.world_size)
        loader = DataLoader(
            Subset(self.scored, rows),
            batch_size=args.eval_batch_size,
            num_workers=args.dataloader_num_workers,
            collate_fn=default_collate,
            generator=torch.Generator(),
        )
        scores = torch.full((len(self.scored),), -math.inf, device=args.device)
        with in_evaluation(model), torch.no_grad(), accelerator.autocast():
            for batch in loader:
                pixels = prepare_batch(batch, self.trainer.processing_class, args.device)["pixel_values"]
                scores[batch["sample_index"].to(args.device)] = self.hardness(model, pixels)
        return accelerator.reduce(scores.nan_to_num(neginf=0.0), reduction="sum").cpu()

    def save(self, checkpoint: Path) -> None:
        """Write the choice, and the epoch that it was made for, into a checkpoint directory."""
        chosen = self.sampler.chosen
        tensors = {"epoch": torch.tensor(self.epoch)}
        save_file(tensors if chosen is None else {**tensors, "chosen": chosen}, checkpoint / SELECTION_FILE)

    def _load(self, checkpoint: Path) -> None:
        try:
            saved = load_file(checkpoint / SELECTION_FILE)
        except (OSError, SafetensorError) as error:
            raise InputError(
                f"{checkpoint} holds no {SELECTION_FILE} that can be read: it was saved without --selection_ratio, or "
                "not to its end; resume from another checkpoint"
            ) from error
        self.epoch, self.sampler.chosen = int(saved["epoch"]), saved.get("chosen")


def _generator(seed: int, epoch: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed << 32 | epoch)
