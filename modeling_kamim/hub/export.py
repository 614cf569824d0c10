"""Export ViT and Swin checkpoints to other libraries: as a state dict of timm, and as an ONNX graph."""

import importlib.util
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModel, PreTrainedModel, SwinConfig, ViTConfig

from ..errors import InputError
from ..models.loading import load_config, load_whole
from ..models.processor import image_processor
from ..models.sizes import image_sides, image_size_of
from ..privacy import public_name
from .conversion import check_output_dir, parameter_names, written_whole
from .markup import markdown

_TITLES = {"timm": "timm", "onnx": "ONNX"}
FORMATS = tuple(_TITLES)
ONNX_FILE_LIMIT = 2**31  # bytes, of protobuf
TOLERANCE = {"timm": 1e-5, "onnx": 1e-4}


@dataclass(frozen=True)
class Export:
    """An exported encoder.

    Args:
        file: what was written, beside a README.md with the usage.
        usage: Python that loads it.
        difference: largest difference from `last_hidden_state` of the checkpoint, on random pixels.
    """

    file: Path
    usage: str
    difference: float


def export_checkpoint(name_or_path: str, output_dir: Path, file_format: str) -> Export:
    """Write the encoder of a checkpoint for another library, and compare the two on random pixels.

    Args:
        name_or_path: directory or Hub id of a ViT or Swin checkpoint; its decoder and mask token are left out.
        output_dir: empty or not there.
        file_format: "timm" (model.safetensors) or "onnx" (model.onnx, any batch size).

    Raises:
        InputError: for another format or architecture, one that timm does not have, a directory that holds files, or
            a library that is not installed.
        RuntimeError: if the exported encoder gives other features.
    """
    if file_format not in FORMATS:
        raise InputError(f"format is {file_format!r}; allowed: {', '.join(FORMATS)}")
    check_output_dir(output_dir)
    _check_installed({"timm": ("timm",), "onnx": ("onnx", "onnxscript", "onnxruntime")}[file_format], file_format)
    model = _load_encoder(name_or_path)
    pixels = torch.randn(2, model.config.num_channels, *image_sides(model.config))
    with torch.no_grad():
        expected = model(pixels).last_hidden_state
    with written_whole(output_dir) as unfinished:
        export = _export_timm if file_format == "timm" else _export_onnx
        file, usage, features = export(model, pixels, unfinished)
        difference = (features - expected).abs().max().item()
        if not difference <= TOLERANCE[file_format] * max(1.0, expected.abs().max().item()):
            raise RuntimeError(f"{file.name} gives other features than {name_or_path}: they differ by {difference:.1e}")
        text = _readme(name_or_path, model.config, file_format, usage, difference)
        (unfinished / "README.md").write_text(text, encoding="utf-8")
    return Export(output_dir / file.name, usage, difference)


def _check_installed(packages: tuple[str, ...], extra: str) -> None:
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise InputError(
            f"{' and '.join(missing)} not installed, which format {extra} needs; run: "
            f'pip install "modeling-kamim[{extra}]" (in a clone of this repository: pip install -e ".[{extra}]")'
        )


def _load_encoder(name_or_path: str) -> PreTrainedModel:
    model_type = load_config(name_or_path).model_type
    if model_type not in ("vit", "swin"):
        raise InputError(f"{name_or_path} is a {model_type!r} checkpoint; give a ViT or Swin")
    model, _ = load_whole(AutoModel, name_or_path, add_pooling_layer=False, dtype=torch.float32)
    return model.eval()


def _export_timm(model: PreTrainedModel, pixels: torch.Tensor, output_dir: Path) -> tuple[Path, str, torch.Tensor]:
    import timm

    name, arguments = timm_arguments(model.config)
    norm_layer = partial(nn.LayerNorm, eps=model.config.layer_norm_eps)
    encoder: Any = timm.create_model(name, norm_layer=norm_layer, **arguments).eval()
    state = timm_state_dict(model)
    encoder.load_state_dict(state, strict=True)
    file = output_dir / "model.safetensors"
    save_file(state, file)
    with torch.no_grad():
        features = encoder.forward_features(pixels)
    shape = "(batch_size, 1 + num_patches, channels)"
    if features.ndim == 4:
        shape = "(batch_size, height, width, channels)"
        features = features.flatten(1, 2)
    return file, _timm_usage(name, arguments, model.config.layer_norm_eps, shape), features


def timm_state_dict(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Return the parameters of a `ViTModel` or `SwinModel` under the names of timm (since 0.9), float32."""
    with tempfile.TemporaryDirectory() as folder:  # save_pretrained writes names that no version changes
        model.save_pretrained(folder)
        state = load_file(Path(folder, "model.safetensors"))
    config = model.config
    depths = [config.num_hidden_layers] if config.model_type == "vit" else config.depths
    names = parameter_names(config.model_type, depths, merging_in_next_stage=True)
    return {timm: torch.cat([state[name] for name in ours]) for timm, ours in names.items() if ours[0] in state}


def timm_arguments(config: ViTConfig | SwinConfig) -> tuple[str, dict[str, Any]]:
    """Return name and keyword arguments for `timm.create_model`, without `norm_layer`.

    Raises:
        InputError: for a setting that timm's models do not have.
    """
    if config.hidden_act != "gelu":
        raise InputError(f"hidden_act is {config.hidden_act!r}; only 'gelu' is exported to timm")
    size = image_size_of(config)
    common = {"img_size": size if isinstance(size, int) else tuple(size), "num_classes": 0}
    if not config.qkv_bias:
        common["qkv_bias"] = False
    if config.num_channels != 3:
        common["in_chans"] = config.num_channels
    describe: Callable[[Any], tuple[str, dict[str, Any], dict[str, Any]]]
    describe = _describe_vit if config.model_type == "vit" else _describe_swin
    name, named, wanted = describe(config)
    return name, common | {key: value for key, value in wanted.items() if named.get(key) != value}


_VITS = {  # embed_dim: (name, depth, heads)
    192: ("vit_tiny_patch16_224", 12, 3),
    384: ("vit_small_patch16_224", 12, 6),
    768: ("vit_base_patch16_224", 12, 12),
    1024: ("vit_large_patch16_224", 24, 16),
}
_SWINS = {  # embed_dim, depths: name
    (96, (2, 2, 6, 2)): "swin_tiny_patch4_window7_224",
    (96, (2, 2, 18, 2)): "swin_small_patch4_window7_224",
    (128, (2, 2, 18, 2)): "swin_base_patch4_window7_224",
    (192, (2, 2, 18, 2)): "swin_large_patch4_window7_224",
}


def _describe_vit(config: ViTConfig) -> tuple[str, dict[str, Any], dict[str, Any]]:
    width = config.hidden_size if config.hidden_size in _VITS else 768
    name, depth, heads = _VITS[width]
    named = {"patch_size": 16, "embed_dim": width, "depth": depth, "num_heads": heads, "mlp_ratio": 4.0}
    wanted = {
        "patch_size": config.patch_size,
        "embed_dim": config.hidden_size,
        "depth": config.num_hidden_layers,
        "num_heads": config.num_attention_heads,
        "mlp_ratio": config.intermediate_size / config.hidden_size,
    }
    return name, named, wanted


def _describe_swin(config: SwinConfig) -> tuple[str, dict[str, Any], dict[str, Any]]:
    if config.use_absolute_embeddings:
        raise InputError("the checkpoint has absolute position embeddings, which timm's Swin does not have")
    if config.layer_norm_eps != 1e-5:
        raise InputError(
            f"layer_norm_eps is {config.layer_norm_eps}: transformers' Swin uses it in its blocks and 1e-5 in its "
            "patch merging, and timm's Swin has one eps for all; only 1e-5 is exported"
        )
    width, depths = config.embed_dim, tuple(config.depths)
    width, depths = (width, depths) if (width, depths) in _SWINS else (96, (2, 2, 6, 2))
    heads = tuple(width // 32 * 2**stage for stage in range(4))
    named = {"patch_size": 4, "window_size": 7, "embed_dim": width, "depths": depths, "num_heads": heads}
    wanted = {
        "patch_size": config.patch_size,
        "window_size": config.window_size,
        "embed_dim": config.embed_dim,
        "depths": tuple(config.depths),
        "num_heads": tuple(config.num_heads),
        "mlp_ratio": float(config.mlp_ratio),
    }
    return _SWINS[width, depths], named | {"mlp_ratio": 4.0}, wanted


def _timm_usage(name: str, arguments: dict[str, Any], layer_norm_eps: float, shape: str) -> str:
    settings = "".join(f"    {key}={value!r},\n" for key, value in arguments.items())
    return (
        "from functools import partial\n\nimport timm\nimport torch\nfrom safetensors.torch import load_file\n\n"
        f'model = timm.create_model(\n    "{name}",\n{settings}'
        f"    norm_layer=partial(torch.nn.LayerNorm, eps={layer_norm_eps!r}),\n)\n"
        'model.load_state_dict(load_file("model.safetensors"), strict=True)\n'
        f"features = model.eval().forward_features(pixel_values)  # {shape}\n"
    )


class _LastHiddenState(nn.Module):
    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.model(pixel_values).last_hidden_state


def _export_onnx(model: PreTrainedModel, pixels: torch.Tensor, output_dir: Path) -> tuple[Path, str, torch.Tensor]:
    import onnxruntime

    file = output_dir / "model.onnx"
    model.set_attn_implementation("eager")  # Swin's sdpa leaves a layout that the exporter cannot reshape
    size = sum(parameter.nbytes for parameter in model.parameters())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on operators that this graph does not use
        torch.onnx.export(
            _LastHiddenState(model).eval(),
            (pixels,),
            file,
            dynamo=True,
            input_names=["pixel_values"],
            output_names=["last_hidden_state"],
            dynamic_shapes={"pixel_values": {0: torch.export.Dim("batch_size")}},
            external_data=size >= ONNX_FILE_LIMIT,
            verbose=False,
        )
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    features = [session.run(None, {"pixel_values": image.numpy()})[0] for image in pixels.split(1)]
    return file, _ONNX_USAGE, torch.cat([torch.from_numpy(feature) for feature in features])


_ONNX_USAGE = """import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
(features,) = session.run(["last_hidden_state"], {"pixel_values": pixel_values})
"""


def _readme(name_or_path: str, config: ViTConfig | SwinConfig, file_format: str, usage: str, difference: float) -> str:
    processor = image_processor(image_size_of(config), name_or_path)
    shape = f"`(batch_size, {', '.join(map(str, (config.num_channels, *image_sides(config))))})`"
    return f"""# {markdown(public_name(name_or_path).removeprefix("local:"))} for {_TITLES[file_format]}

The encoder of a checkpoint of transformers, without decoder, mask token and pooler. `pixel_values` are normalized
(mean {processor.image_mean}, std {processor.image_std}), {shape}, float32.

```python
{usage}```

The features are those of `last_hidden_state`; on random pixels they differed by {difference:.1e} at most.
"""
