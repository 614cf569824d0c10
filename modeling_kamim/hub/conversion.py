"""Checkpoints of other code bases (KAMIM's authors, SimMIM, MAE, MoCo v3) as directories that transformers loads.

Architecture and size are read from the shapes of the tensors. Names are translated to those of transformers 4, which
`from_pretrained` of every version reads and `save_pretrained` of every version writes.
"""

import argparse
import itertools
import math
import pickle
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard, ModelCardData
from transformers import (
    BeitConfig,
    BeitModel,
    PreTrainedConfig,
    PreTrainedModel,
    SwinConfig,
    SwinForMaskedImageModeling,
    SwinModel,
    ViTConfig,
    ViTForMaskedImageModeling,
    ViTModel,
)

from ..errors import InputError, first_line
from ..models.families import FAMILIES
from ..models.finite import nonfinite_names
from ..models.loading import quiet_loading
from ..models.masked_image_modeling import model_class
from ..models.processor import image_processor
from ..models.sizes import check_image_size

StateDict = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Source:
    """A code base whose checkpoints can be converted.

    Args:
        method: what the encoder was pretrained with, and the paper.
        repository: of the authors, on GitHub.
        published: where the files are.
        license: identifier for the model card; "other" where none is stated.
        license_note: what is known of the license of the files.
        vit_layer_norm_eps: of the authors' ViT; it is not in the files.
        num_heads: hidden size to heads of the authors' ViT, where they differ from DeiT's and from heads 64 wide.
    """

    method: str
    repository: str
    published: str
    license: str
    license_note: str
    vit_layer_norm_eps: float
    num_heads: Mapping[int, int] = field(default_factory=dict)


SOURCES = {
    "kamim": Source(
        "KAMIM or SimMIM by KAMIM's authors ([arXiv:2407.13873](https://arxiv.org/abs/2407.13873))",
        "madhava20217/KAMIM",
        "the table in the README of github.com/madhava20217/KAMIM links to them on Google Drive",
        "other",
        "the authors' repository states no license",
        vit_layer_norm_eps=1e-12,
    ),
    "simmim": Source(
        "SimMIM ([arXiv:2111.09886](https://arxiv.org/abs/2111.09886))",
        "microsoft/SimMIM",
        "the tables in the README of github.com/microsoft/SimMIM link to them on Google Drive",
        "mit",
        "the authors' repository is under the MIT license",
        vit_layer_norm_eps=1e-6,
    ),
    "mae": Source(
        "MAE ([arXiv:2111.06377](https://arxiv.org/abs/2111.06377))",
        "facebookresearch/mae",
        "the README and FINETUNE.md of github.com/facebookresearch/mae link to them on dl.fbaipublicfiles.com",
        "cc-by-nc-4.0",
        "the authors' repository is under CC BY-NC 4.0: no commercial use",
        vit_layer_norm_eps=1e-6,
        num_heads={1280: 16},
    ),
    "mocov3": Source(
        "MoCo v3 ([arXiv:2104.02057](https://arxiv.org/abs/2104.02057))",
        "facebookresearch/moco-v3",
        "CONFIG.md of github.com/facebookresearch/moco-v3 links to them on dl.fbaipublicfiles.com",
        "cc-by-nc-4.0",
        "the authors' repository is under CC BY-NC 4.0: no commercial use",
        vit_layer_norm_eps=1e-6,
        num_heads={384: 12, 1280: 16},  # their ViT-S has 12 heads, 32 wide
    ),
}


@dataclass
class Weights:
    """Tensors of a file under transformers' names.

    Args:
        model_type: "vit", "swin" or "beit".
        encoder: under the names of transformers 4's `ViTModel`, `SwinModel` and `BeitModel`.
        decoder: `decoder.0.weight` and `decoder.0.bias`, or empty.
        left_out: names in the file of the tensors that are not converted.
        notes: sentences for the user and the model card.
        image_size: side in pixels where the file tells it otherwise than by position embeddings.
    """

    model_type: str
    encoder: StateDict
    decoder: StateDict = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    image_size: int | None = None


@dataclass(frozen=True)
class Conversion:
    """A converted checkpoint.

    Args:
        model: `ViTForMaskedImageModeling`, `SwinForMaskedImageModeling` or `KamimBeitForMaskedImageModeling` where the
            file holds their decoder, else `ViTModel` (without pooler), `SwinModel` or `BeitModel`.
        notes: what the user should know: what was left out, what was concluded.
    """

    model: PreTrainedModel
    notes: list[str]


def convert_checkpoint(
    source: str, file: Path, output_dir: Path, num_heads: int | None = None, image_size: int | None = None
) -> Conversion:
    """Write `output_dir` with model.safetensors, config.json, preprocessor_config.json and README.md.

    Args:
        source: a key of `SOURCES`.
        file: of that source, on this machine.
        output_dir: empty or not there.
        num_heads: of a ViT, over what its hidden size suggests.
        image_size: side of the input of a Swin in pixels, where the file does not hold it.

    Raises:
        InputError: if the file is not there, cannot be read without running code, does not belong to the source,
            cannot be expressed by transformers' ViT, Swin or BEiT, or holds weights that are no finite floating-point
            numbers; if output_dir holds files. Nothing is written then.
    """
    if source not in SOURCES:
        raise InputError(f"source is {source!r}; allowed: {', '.join(SOURCES)}")
    if image_size is not None and image_size < 1:
        raise InputError(f"image_size is {image_size}; it must be at least 1")
    check_output_dir(output_dir)
    state = load_state_dict(file, source)
    try:
        weights = _READERS[source](state)
        config = {"vit": _vit_config, "swin": _swin_config, "beit": _beit_config}[weights.model_type]
        model = _build(weights, config(weights, source, num_heads, image_size), source)
    except InputError:
        raise
    except (ValueError, TypeError, LookupError, ArithmeticError, RuntimeError) as error:
        raise InputError(f"shapes in the file are those of no model: {first_line(error)}; {_WRONG_SOURCE}") from error
    notes = _notes(weights, model.config, num_heads, image_size)
    with written_whole(output_dir) as unfinished:
        model.save_pretrained(unfinished)
        image_processor(model.config.image_size).save_pretrained(unfinished)
        _card(source, file, output_dir, model, notes).save(unfinished / "README.md")
    return Conversion(model, notes)


def check_output_dir(output_dir: Path) -> None:
    """Raise InputError unless `output_dir` is an empty directory or is not there."""
    if output_dir.is_file() or (output_dir.is_dir() and any(output_dir.iterdir())):
        raise InputError(f"the output {output_dir} exists and is not an empty directory; name another or empty it")


@contextmanager
def written_whole(output_dir: Path) -> Iterator[Path]:
    """A folder to write into, whose files come into `output_dir` at the end; after an error nothing is left of them.

    Args:
        output_dir: an empty directory, or not there; its parents are made.
    """
    beside = next(folder for folder in (output_dir, *output_dir.absolute().parents) if folder.is_dir())
    with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=beside) as folder:
        yield Path(folder)
        output_dir.mkdir(parents=True, exist_ok=True)
        for file in Path(folder).iterdir():
            file.replace(output_dir / file.name)


def load_state_dict(file: Path, source: str) -> StateDict:
    """The state dict of a `.pth` file, without a "module." prefix; nothing of the file is run.

    Raises:
        InputError: if there is no such file, or it holds anything but tensors in plain containers.
    """
    if not file.is_file():
        raise InputError(
            f"there is no file {file}; give a file on this machine. The authors publish theirs on the web: "
            f"{SOURCES[source].published}"
        )
    checkpoint = _load(file)
    for key in ("model_state_dict", "state_dict", "model"):
        if isinstance(checkpoint, dict) and isinstance(checkpoint.get(key), dict):
            checkpoint = checkpoint[key]
            break
    if not isinstance(checkpoint, dict) or not any(torch.is_tensor(value) for value in checkpoint.values()):
        held = ", ".join(map(str, checkpoint)) if isinstance(checkpoint, dict) else type(checkpoint).__name__
        raise InputError(
            f"{file} holds no state dict ({held}); allowed: one as it is, or under model_state_dict, "
            "state_dict or model"
        )
    tensors = {key: value for key, value in checkpoint.items() if torch.is_tensor(value)}
    return {key.removeprefix("module."): value for key, value in tensors.items()}


def _load(file: Path) -> Any:
    # Training scripts leave their command line in the file. A Namespace is only a holder of attributes: making one
    # calls no code of the file, and what it holds is checked as everything else is.
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        unknown = re.search(r"GLOBAL (\S+)", str(error))
        if unknown is None:
            raise InputError(_not_a_checkpoint(file, error)) from error
        raise InputError(
            f"{file} holds an object of {unknown[1]}, and reading that could run code; only tensors, plain containers "
            "and argparse.Namespace are read. If you trust the file, save its tensors alone: "
            "torch.save(torch.load(FILE, weights_only=False)['model'], NEW_FILE)"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, AttributeError) as error:
        raise InputError(_not_a_checkpoint(file, error)) from error


def _not_a_checkpoint(file: Path, error: Exception) -> str:
    with file.open("rb") as stream:
        is_web_page = stream.read(1) == b"<"
    reason = "it is a web page, as Google Drive sends before a large file" if is_web_page else first_line(error)
    return f"{file} is not a file of torch.save, or it is damaged ({reason}); download it again"


def parameter_names(
    model_type: str, depths: Sequence[int], merging_in_next_stage: bool = False
) -> dict[str, tuple[str, ...]]:
    """timm's name of each parameter of an encoder to transformers' (three for the fused query, key and value).

    Args:
        model_type: "vit", "swin" or "beit".
        depths: blocks of each stage; a ViT or BEiT has one stage.
        merging_in_next_stage: True where Swin's patch merging opens the next stage (timm since 0.9), False where it
            closes a stage (Microsoft's, and transformers').
    """
    names = {"cls_token": "embeddings.cls_token", "pos_embed": "embeddings.position_embeddings"}
    modules = {"patch_embed.proj": "embeddings.patch_embeddings.projection", "norm": "layernorm"}
    blocks = {f"blocks.{block}": f"encoder.layer.{block}" for block in range(depths[0])}
    attention = "attention.attention"
    if model_type == "swin":
        names, blocks, attention = {"mask_token": "embeddings.mask_token"}, {}, "attention.self"
        modules["patch_embed.norm"] = "embeddings.norm"
        for stage, depth in enumerate(depths):
            blocks |= {f"layers.{stage}.blocks.{b}": f"encoder.layers.{stage}.blocks.{b}" for b in range(depth)}
        for stage in range(len(depths) - 1):
            merging = f"layers.{stage + merging_in_next_stage}.downsample"
            modules[f"{merging}.norm"] = f"encoder.layers.{stage}.downsample.norm"
            names[f"{merging}.reduction.weight"] = f"encoder.layers.{stage}.downsample.reduction.weight"
        table = "relative_position_bias_table"
        names |= {f"{timm}.attn.{table}": f"{ours}.{attention}.{table}" for timm, ours in blocks.items()}
    if model_type == "beit":
        names["mask_token"], table = "embeddings.mask_token", "relative_position_bias.relative_position_bias_table"
        names["rel_pos_bias.relative_position_bias_table"] = f"encoder.{table}"
        modules |= {"norm": "pooler.layernorm", "fc_norm": "pooler.layernorm"}
        for timm, ours in blocks.items():
            names |= {f"{timm}.gamma_{part}": f"{ours}.lambda_{part}" for part in (1, 2)}
            names |= {f"{timm}.attn.q_bias": f"{ours}.{attention}.query.bias"}
            names |= {f"{timm}.attn.v_bias": f"{ours}.{attention}.value.bias"}
            names |= {f"{timm}.attn.relative_position_bias_table": f"{ours}.{attention}.{table}"}
    for timm, ours in blocks.items():
        modules |= {f"{timm}.{theirs}": f"{ours}.{module}" for theirs, module in _BLOCK_MODULES.items()}
    parameters = ("weight", "bias")
    names |= {f"{timm}.{p}": f"{ours}.{p}" for timm, ours in modules.items() for p in parameters}
    fused = {
        f"{timm}.attn.qkv.{p}": tuple(f"{ours}.{attention}.{part}.{p}" for part in ("query", "key", "value"))
        for timm, ours in blocks.items()
        for p in parameters
    }
    return {timm: (ours,) for timm, ours in names.items()} | fused


_BLOCK_MODULES = {
    "norm1": "layernorm_before",
    "attn.proj": "attention.output.dense",
    "norm2": "layernorm_after",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}


def _read_kamim(state: StateDict) -> Weights:
    """`ViTForMaskedImageModeling` or `SwinForMaskedImageModeling` of transformers 4."""
    model_type = "swin" if any(key.startswith("swin.") for key in state) else "vit"
    prefix = f"{model_type}."
    state = {key: tensor for key, tensor in state.items() if not key.endswith("relative_position_index")}
    encoder = {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}
    decoder = {key: tensor for key, tensor in state.items() if not key.startswith(prefix)}
    return Weights(model_type, encoder, decoder)


def _read_simmim(state: StateDict) -> Weights:
    """Microsoft's Swin or ViT, pretrained (`encoder.*` and `decoder.*`) or fine-tuned (neither prefix, and a head)."""
    decoder = {key: tensor for key, tensor in state.items() if key.startswith("decoder.")}
    state = {key.removeprefix("encoder."): tensor for key, tensor in state.items() if key not in decoder}
    if any(key.startswith("blocks.") for key in state):
        # a BEiT: relative positions, layer scale, no key biases; transformers has its last LayerNorm in the pooler
        state = {key: tensor for key, tensor in state.items() if not key.endswith("relative_position_index")}
        weights = _from_timm("beit", state, left_out=r"head\.")
        weights.decoder = decoder
        return weights
    masks = state.get("layers.0.blocks.1.attn_mask")
    state = {key: tensor for key, tensor in state.items() if not key.endswith(("attn_mask", "relative_position_index"))}
    weights = _from_timm("swin", state, left_out=r"head\.")
    if masks is not None:  # one for each window of the first stage: (num_windows, tokens, tokens)
        side = math.isqrt(masks.shape[0]) * math.isqrt(masks.shape[1])
        weights.image_size = side * _require(weights.encoder, _PROJECTION).shape[-1]
    weights.decoder = decoder
    return weights


def _read_mae(state: StateDict) -> Weights:
    """timm's ViT of MAE: pretrained (with MAE's decoder), fine-tuned or linearly probed (with a head)."""
    notes = []
    if "norm.weight" not in state and "fc_norm.weight" in state:
        # a classifier on the mean of the patch tokens normalizes that mean and has no norm of the tokens
        state = {re.sub(r"^fc_norm\.", "norm.", key): tensor for key, tensor in state.items()}
        notes.append(
            "The file is a classifier without a LayerNorm of the tokens: `layernorm` holds its LayerNorm of their mean "
            "(`fc_norm`), and its features are `model.layernorm(hidden_states[-1][:, 1:].mean(1))`, not "
            "`last_hidden_state`"
        )
    weights = _from_timm("vit", state, left_out=r"(decoder_|mask_token$|head\.|fc_norm\.)")
    return Weights("vit", weights.encoder, left_out=weights.left_out, notes=notes)


def _read_mocov3(state: StateDict) -> Weights:
    """timm's ViT of MoCo v3, of both encoders the one trained by gradients, as its authors evaluate it."""
    prefix = "base_encoder." if any(key.startswith("base_encoder.") for key in state) else ""
    encoder = {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}
    weights = _from_timm("vit", encoder, left_out=r"head\.")
    others = [key for key in state if not key.startswith(prefix)]
    weights.left_out = [prefix + key for key in weights.left_out] + others
    return weights


_READERS: dict[str, Callable[[StateDict], Weights]] = {
    "kamim": _read_kamim,
    "simmim": _read_simmim,
    "mae": _read_mae,
    "mocov3": _read_mocov3,
}


def _from_timm(model_type: str, state: StateDict, left_out: str) -> Weights:
    """Weights of a state dict with timm's names; `left_out` is a pattern for what stays behind."""
    dropped = [key for key in state if re.match(left_out, key)]
    pattern = r"blocks\.(\d+)\." if model_type != "swin" else r"layers\.(\d+)\.blocks\.(\d+)\."
    depths = _depths(state, pattern)
    names = parameter_names(model_type, depths) if depths else {}
    unexpected = [key for key in state if key not in names and key not in dropped]
    if unexpected:
        raise InputError(f"unexpected keys: {_listed(unexpected)}; {_WRONG_SOURCE}")
    encoder: StateDict = {}
    for key, tensor in state.items():
        if key not in dropped:
            encoder |= zip(names[key], tensor.chunk(len(names[key])), strict=True)
    return Weights(model_type, encoder, left_out=dropped)


def _depths(keys: Iterable[str], pattern: str) -> list[int]:
    """Blocks of each stage; the pattern's last group is the number of a block, one before it that of its stage.

    Raises:
        InputError: if a number is larger than that of the blocks there are.
    """
    numbers = {match.groups() for key in keys if (match := re.match(pattern, key))}
    for number in itertools.chain.from_iterable(numbers):
        if len(number) > 4 or int(number) >= len(numbers):
            raise InputError(f"there are {len(numbers)} block(s), one with the number {number[:20]}; {_WRONG_SOURCE}")
    deepest: Counter[int] = Counter()
    for *stages, block in (map(int, group) for group in numbers):
        stage = stages[0] if stages else 0
        deepest[stage] = max(deepest[stage], block + 1)
    return [deepest[stage] for stage in range(max(deepest, default=-1) + 1)]


_PROJECTION = "embeddings.patch_embeddings.projection.weight"
_WRONG_SOURCE = "the file is of another source or of another model"


def _vit_config(weights: Weights, source: str, num_heads: int | None, image_size: int | None) -> ViTConfig:
    encoder = weights.encoder
    hidden_size, num_channels, patch_size = _require(encoder, _PROJECTION).shape[:3]
    positions = _require(encoder, "embeddings.position_embeddings").shape[1] - 1
    side = math.isqrt(positions)
    if side**2 != positions:
        raise InputError(f"the position embeddings are of {positions} patches; only square images can be converted")
    if image_size not in (None, side * patch_size):
        raise InputError(f"image_size is {image_size}, but the position embeddings are of {side * patch_size} px")
    return ViTConfig(
        hidden_size=hidden_size,
        num_hidden_layers=_depths(encoder, r"encoder\.layer\.(\d+)\.")[0],
        num_attention_heads=_num_heads(source, hidden_size, num_heads),
        intermediate_size=_require(encoder, "encoder.layer.0.intermediate.dense.weight").shape[0],
        image_size=side * patch_size,
        patch_size=patch_size,
        num_channels=num_channels,
        qkv_bias="encoder.layer.0.attention.attention.query.bias" in encoder,
        encoder_stride=_encoder_stride(weights.decoder, num_channels) or patch_size,
        layer_norm_eps=SOURCES[source].vit_layer_norm_eps,
        hidden_act="gelu",
    )


def _num_heads(source: str, hidden_size: int, num_heads: int | None) -> int:
    """Heads of a ViT, which no shape tells: as asked for, else the authors', else DeiT's, else heads 64 wide."""
    known = {size["hidden_size"]: size["num_attention_heads"] for size in FAMILIES["vit"].sizes.values()}
    known |= SOURCES[source].num_heads
    heads = num_heads or known.get(hidden_size) or hidden_size // 64
    if heads < 1 or hidden_size % heads or (num_heads is None and hidden_size not in known and hidden_size % 64):
        asked = f"num_heads is {num_heads}" if num_heads else "the file does not tell the number of heads"
        raise InputError(f"{asked}; give a divisor of the hidden size {hidden_size} with --num_heads")
    return heads


def _swin_config(weights: Weights, source: str, num_heads: int | None, image_size: int | None) -> SwinConfig:
    if num_heads is not None:
        raise InputError(f"num_heads is {num_heads}, but this is a Swin, whose files tell the heads; leave it out")
    encoder = weights.encoder
    embed_dim, num_channels, patch_size = _require(encoder, _PROJECTION).shape[:3]
    depths = _depths(encoder, r"encoder\.layers\.(\d+)\.blocks\.(\d+)\.")
    block = "encoder.layers.{}.blocks.0."
    table = block + "attention.self.relative_position_bias_table"  # ((2 * window - 1) ** 2, heads)
    tables = [_require(encoder, table.format(stage)) for stage in range(len(depths))]
    windows = [(math.isqrt(len(table)) + 1) // 2 for table in tables]
    if len(set(windows)) > 1:
        raise InputError(
            f"the stages have windows of {windows} tokens a side, and transformers' Swin has one window for all "
            "stages: this checkpoint cannot be expressed"
        )
    patch_merging = 2 ** (len(depths) - 1)
    mlp_ratio = _require(encoder, block.format(0) + "intermediate.dense.weight").shape[0] / embed_dim
    config = SwinConfig(
        embed_dim=embed_dim,
        depths=depths,
        num_heads=[table.shape[1] for table in tables],
        window_size=windows[0],
        mlp_ratio=int(mlp_ratio) if mlp_ratio.is_integer() else mlp_ratio,
        image_size=image_size or weights.image_size or windows[0] * patch_merging * patch_size,
        patch_size=patch_size,
        num_channels=num_channels,
        qkv_bias=block.format(0) + "attention.self.query.bias" in encoder,
        encoder_stride=_encoder_stride(weights.decoder, num_channels) or patch_size * patch_merging,
        layer_norm_eps=1e-5,
        hidden_act="gelu",
    )
    check_image_size(config)
    return config


def _beit_config(weights: Weights, source: str, num_heads: int | None, image_size: int | None) -> BeitConfig:
    encoder, shared = weights.encoder, "encoder.relative_position_bias.relative_position_bias_table"
    own = "encoder.layer.0.attention.attention.relative_position_bias.relative_position_bias_table"
    hidden_size, num_channels, patch_size = _require(encoder, _PROJECTION).shape[:3]
    table = _require(encoder, shared if shared in encoder else own)  # ((2 * side - 1) ** 2 + 3, heads)
    side = (math.isqrt(len(table) - 3) + 1) // 2
    for name, given, found in (("num_heads", num_heads, table.shape[1]), ("image_size", image_size, side * patch_size)):
        if given not in (None, found):
            raise InputError(f"{name} is {given}, but the relative positions in the file are of {found}")
    return BeitConfig(
        hidden_size=hidden_size,
        num_hidden_layers=_depths(encoder, r"encoder\.layer\.(\d+)\.")[0],
        num_attention_heads=table.shape[1],
        intermediate_size=_require(encoder, "encoder.layer.0.intermediate.dense.weight").shape[0],
        image_size=side * patch_size,
        patch_size=patch_size,
        num_channels=num_channels,
        use_mask_token="embeddings.mask_token" in encoder,
        use_absolute_position_embeddings="embeddings.position_embeddings" in encoder,
        use_shared_relative_position_bias=shared in encoder,
        use_relative_position_bias=own in encoder,
        use_mean_pooling=True,
        drop_path_rate=0.1,
        layer_norm_eps=SOURCES[source].vit_layer_norm_eps,
    )


def _encoder_stride(decoder: StateDict, num_channels: int) -> int | None:
    weight = decoder.get("decoder.0.weight")  # (stride ** 2 * num_channels, hidden_size, 1, 1)
    return None if weight is None else math.isqrt(weight.shape[0] // num_channels)


def _build(weights: Weights, config: PreTrainedConfig, source: str) -> PreTrainedModel:
    classes: dict[str, tuple[Any, Any]] = {
        "vit": (ViTModel, ViTForMaskedImageModeling),
        "swin": (SwinModel, SwinForMaskedImageModeling),
        "beit": (BeitModel, model_class("beit")),
    }
    encoder_class, pretraining_class = classes[weights.model_type]
    has_pooler = weights.decoder or weights.model_type != "vit"
    settings: dict[str, Any] = {} if has_pooler else {"add_pooling_layer": False}
    prefix = f"{weights.model_type}." if weights.decoder else ""
    state = {prefix + key: tensor for key, tensor in weights.encoder.items()} | weights.decoder
    _check_weights(state)
    # copies, because safetensors does not save parts of one tensor
    state = {key: tensor.detach().to(torch.float32, copy=True) for key, tensor in state.items()}
    try:
        with quiet_loading():
            model, loaded = (pretraining_class if weights.decoder else encoder_class).from_pretrained(
                None, config=config, state_dict=state, output_loading_info=True, **settings
            )
    except RuntimeError as error:
        raise InputError(f"shapes in the file contradict each other: {first_line(error)}") from error
    problems = [
        f"{kind} keys: {_listed(sorted(map(str, loaded[f'{kind}_keys'])))}"
        for kind in ("missing", "unexpected", "mismatched")
        if loaded[f"{kind}_keys"]
    ]
    if problems:
        raise InputError(f"{'; '.join(problems)}; {_WRONG_SOURCE} (--source {source})")
    return model.eval()


def _check_weights(state: StateDict) -> None:
    odd = [
        f"{key} ({tensor.dtype})".replace("torch.", "")
        for key, tensor in state.items()
        if not tensor.is_floating_point() or tensor.layout != torch.strided
    ]
    if odd:
        raise InputError(f"weights must be dense real floating-point numbers; these are not: {_listed(odd, 5)}")
    nonfinite = nonfinite_names(state.items())
    if nonfinite:
        raise InputError(
            f"weights are NaN or infinite in: {_listed(nonfinite, 5)}; the file is damaged, or its training"
        )


def _require(state: StateDict, key: str) -> torch.Tensor:
    if key not in state:
        raise InputError(f"missing key: {key} (the file has {_listed(list(state), 5) or 'none'}); {_WRONG_SOURCE}")
    return state[key]


def _listed(keys: Sequence[str], most: int = 20) -> str:
    return ", ".join(keys[:most]) + f" and {len(keys) - most} more" * (len(keys) > most)


def _notes(weights: Weights, config: PreTrainedConfig, num_heads: int | None, image_size: int | None) -> list[str]:
    notes = list(weights.notes)
    if weights.left_out:
        tensors = Counter(key.split(".")[0] for key in weights.left_out)
        held = ", ".join(f"`{part}` ({count})" for part, count in tensors.items())
        notes.append(f"Left out of the file, with the number of tensors: {held}")
    if weights.model_type == "vit":
        reason = "was asked for" if num_heads else f"is usual for hidden size {config.hidden_size} in this source"
        notes.append(f"The file does not tell the number of heads: {config.num_attention_heads} {reason}")
    elif weights.model_type == "swin" and weights.image_size is None:
        reason = "was asked for" if image_size else "makes the last stage one window"
        notes.append(f"The file does not tell the image size: {config.image_size} px {reason}")
    return notes


_CARD = """
# {title}

{architecture} encoder pretrained with {method},
converted for transformers from `{file}` of [{repository}](https://github.com/{repository}).

```python
from transformers import AutoImageProcessor, AutoModel

processor = AutoImageProcessor.from_pretrained("path/to/this/directory")
model = AutoModel.from_pretrained("path/to/this/directory")
features = model(**processor(image, return_tensors="pt")).last_hidden_state
```

{use}

{notes}

License: {license_note}.
Check it, and what holds for the training data, before you publish or use these weights.
"""


_USE = (
    "Use `last_hidden_state`: a pooler of `AutoModel` is not part of this checkpoint and starts at random.",
    "`pooler_output` is the LayerNorm of the tokens' mean; `last_hidden_state` are the tokens before a LayerNorm.",
)


def _card(source: str, file: Path, output_dir: Path, model: PreTrainedModel, notes: list[str]) -> ModelCard:
    described = SOURCES[source]
    metadata = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-feature-extraction",
        license=described.license,
        tags=["self-supervised-learning", *["masked-image-modeling"] * (source != "mocov3")],
    )
    text = _CARD.format(
        title=output_dir.name,
        architecture=FAMILIES[model.config.model_type].title,
        method=described.method,
        file=file.name,
        repository=described.repository,
        use=_USE[model.config.model_type == "beit"],
        notes="\n".join(f"- {note}." for note in notes),
        license_note=described.license_note,
    )
    return ModelCard(f"---\n{metadata.to_yaml()}\n---\n{text}")
