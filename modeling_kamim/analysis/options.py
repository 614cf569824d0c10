"""Settings of `kamim analyze`."""

from dataclasses import dataclass, field
from typing import Literal

from ..data.loading import TRUST_HELP
from ..errors import InputError
from ..files import check_output_dir
from ..limits import check_ranges

RANDOM = "random"
ANALYSES: dict[str, str] = {
    "attention": "attention distance and normalized mutual information by layer and head (Figs. 6 and 7)",
    "fourier": "relative log amplitude by layer and frequency (Fig. 4)",
    "cka": "linear CKA between layers and models",
    "rank": "effective rank (RankMe) by layer",
    "loss_share": "share of the masked loss by weight",
    "tsne": "tokens by t-SNE (Fig. 3)",
    "pca": "tokens before and after self-attention (Figs. 8 to 10)",
    "attention_maps": "attention of a marked token (Fig. 5)",
    "reconstruction": "reconstructions and weights (Fig. 2)",
    "keypoints": "keypoints, densities and weights",
}


@dataclass
class AnalysisArguments:
    """Which models, which images, which analyses."""

    _argument_group_name = "analysis"

    models: list[str] = field(
        metadata={
            "help": "NAME=CHECKPOINT ..., the checkpoint being a directory or Hub id of KAMIM, ViT, Swin or another "
            "encoder of transformers; 'random' stands for the first one's architecture with random weights, drawn in "
            "every figure."
        }
    )
    output_dir: str = field(default="figures", metadata={"help": "Where figures, CSV files and report.md go."})
    analyses: list[str] = field(
        default_factory=lambda: list(ANALYSES),
        metadata={"help": f"Which of: {', '.join(ANALYSES)}; all where not given."},
    )
    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "Hub id, folder of images, folder or file of Parquet, or directory saved by `datasets`; "
            "without it the embedded photographs are used."
        },
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of a Hub data set."})
    split: str | None = field(default=None, metadata={"help": "Split to look at; validation, or else train."})
    image_column: str | None = field(default=None, metadata={"help": "Column of the images; found where not given."})
    label_column: str | None = field(default=None, metadata={"help": "Column of the classes; found where not given."})
    bad_images: Literal["raise", "skip"] = field(
        default="raise",
        metadata={"help": "An image that cannot be decoded: stop and name it, or leave it out."},
    )
    trust_data_files: bool = field(default=False, metadata={"help": TRUST_HELP})
    num_images: int = field(default=256, metadata={"help": "Images behind the numbers, drawn at random."})
    batch_size: int = field(default=16, metadata={"help": "Images at a time; the numbers do not depend on it."})
    random_reference: bool = field(
        default=True,
        metadata={"help": "Random weights of each model's architecture as reference lines."},
    )
    formats: list[str] = field(
        default_factory=lambda: ["png", "pdf"], metadata={"help": "File formats of the figures: png, pdf, svg."}
    )
    dpi: int = field(default=130, metadata={"help": "Resolution of the PNG figures."})
    device: str = field(default="auto", metadata={"help": "auto (a GPU if there is one), cpu, cuda, cuda:1, mps."})
    seed: int = field(default=42, metadata={"help": "Of the drawn images, masks, random weights and t-SNE."})

    def __post_init__(self):
        check_output_dir(self.output_dir)
        check_ranges(self)
        _check_names("analyses", self.analyses, tuple(ANALYSES))
        _check_names("formats", self.formats, ("png", "pdf", "svg"))
        self.named_models()

    def named_models(self) -> dict[str, str | None]:
        """Return a dictionary from a model's name to its checkpoint; None for random weights.

        Raises:
            InputError: if two models have one name, or there is none with a checkpoint.
        """
        named: dict[str, str | None] = {}
        for model in self.models:
            name, separator, checkpoint = model.partition("=")
            if not separator:
                name, checkpoint = model.rstrip("/").rsplit("/", 1)[-1], model
            if not name or not checkpoint:
                raise InputError(f"models has {model!r}; give NAME=CHECKPOINT, for example kamim=outputs/mim")
            if name in named:
                raise InputError(f"two models are called {name!r}; give each its own: a=CHECKPOINT b=CHECKPOINT")
            if (name == RANDOM) != (model == RANDOM):
                raise InputError(f"models has {model!r}; the name {RANDOM!r} is that of random weights")
            named[name] = None if model == RANDOM else checkpoint
        if not any(named.values()):
            raise InputError("models names no checkpoint; give at least one, for example kamim=outputs/mim")
        return named


def _check_names(argument: str, given: list[str], allowed: tuple[str, ...]) -> None:
    unknown = [name for name in given if name not in allowed]
    if unknown or not given:
        raise InputError(f"{argument} has {', '.join(unknown) or 'no names'}; allowed: {', '.join(allowed)}")
