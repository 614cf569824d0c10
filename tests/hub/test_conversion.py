"""Files in the layouts of the original code bases, converted: the same outputs, or a refusal that says why."""

import argparse
import errno
import json
import os
import subprocess
import sys
import time
from functools import partial

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoImageProcessor, AutoModel, SwinConfig, ViTConfig
from transformers import SwinForMaskedImageModeling as Swin
from transformers import ViTForMaskedImageModeling as ViT

from modeling_kamim import KamimForMaskedImageModeling
from modeling_kamim.commands import convert as script
from modeling_kamim.errors import InputError
from modeling_kamim.evaluation.classifiers import build_classifier
from modeling_kamim.evaluation.settings import ClassificationArguments
from modeling_kamim.hub.conversion import convert_checkpoint

VIT = {"image_size": 32, "patch_size": 8, "encoder_stride": 8, "hidden_size": 192, "num_hidden_layers": 2}
VIT |= {"num_attention_heads": 3, "intermediate_size": 96}
SWIN = {"image_size": 24, "patch_size": 4, "encoder_stride": 8, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4]}
SWIN |= {"window_size": 3}

# Names in transformers 4.38.1, checked against it by the slow test.
BLOCK_4 = ["attention.output.dense", "intermediate.dense", "output.dense", "layernorm_before", "layernorm_after"]
VIT_4 = ["vit.embeddings.patch_embeddings.projection", "vit.layernorm", "decoder.0"]
VIT_4 += [
    f"vit.encoder.layer.{block}.{name}"
    for block in range(2)
    for name in [*BLOCK_4, *(f"attention.attention.{part}" for part in ("query", "key", "value"))]
]
SWIN_4 = ["swin.embeddings.patch_embeddings.projection", "swin.embeddings.norm", "swin.layernorm", "decoder.0"]
SWIN_4 += ["swin.encoder.layers.0.downsample.norm"]
SWIN_BLOCKS_4 = [f"swin.encoder.layers.{stage}.blocks.{block}" for stage in range(2) for block in range(2)]
SWIN_4 += [
    f"{block}.{name}"
    for block in SWIN_BLOCKS_4
    for name in [*BLOCK_4, *(f"attention.self.{part}" for part in ("query", "key", "value"))]
]
KEYS_4 = {
    "vit": {f"{name}.{parameter}" for name in VIT_4 for parameter in ("weight", "bias")}
    | {f"vit.embeddings.{name}" for name in ("cls_token", "mask_token", "position_embeddings")},
    "swin": {f"{name}.{parameter}" for name in SWIN_4 for parameter in ("weight", "bias")}
    | {"swin.embeddings.mask_token", "swin.encoder.layers.0.downsample.reduction.weight"}
    | {
        f"{block}.attention.self.relative_position_{name}"
        for block in SWIN_BLOCKS_4
        for name in ("bias_table", "index")
    },
}


def perturb(model):
    """Away from the zeros and ones of the initial biases, norms and tokens."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def save(checkpoint, tmp_path):
    torch.save(checkpoint, tmp_path / "file.pth")
    return tmp_path / "file.pth"


def converted(source, checkpoint, tmp_path, **settings):
    return convert_checkpoint(source, save(checkpoint, tmp_path), tmp_path / "out", **settings)


def assert_close(actual, expected):
    assert actual.shape == expected.shape
    assert torch.allclose(actual, expected, atol=1e-5), (actual - expected).abs().max()


def batch(config):
    """Pixels and a mask of about half of the patches."""
    pixels = torch.randn(2, 3, config.image_size, config.image_size)
    return pixels, torch.rand(2, (config.image_size // config.patch_size) ** 2) < 0.5


def reconstruct(model, pixels, mask):
    with torch.no_grad():
        return model(pixels, bool_masked_pos=mask).reconstruction


def encode(directory, pixels):
    with torch.no_grad():
        return AutoModel.from_pretrained(directory).eval()(pixels, output_hidden_states=True)


# ---------------------------------------------------------------------------------------------------- KAMIM's authors


def kamim_file(model_type, tmp_path):
    """A model of today's transformers, and its state dict under the names of transformers 4.38."""
    model = perturb(ViT(ViTConfig(**VIT)) if model_type == "vit" else Swin(SwinConfig(**SWIN)))
    model.save_pretrained(tmp_path / "saved")
    state = load_file(tmp_path / "saved" / "model.safetensors")
    if model_type == "swin":
        index = torch.arange(81).reshape(9, 9)
        state |= {f"{block}.attention.self.relative_position_index": index for block in SWIN_BLOCKS_4}
    assert set(state) == KEYS_4[model_type]
    return model, state


@pytest.mark.parametrize("model_type, container", [("vit", "plain"), ("vit", "module"), ("swin", "model_state_dict")])
def test_kamim(model_type, container, tmp_path):
    original, state = kamim_file(model_type, tmp_path)
    if container == "model_state_dict":
        state = {"epoch": 99, "model_state_dict": state, "optim_state_dict": {"state": {0: torch.ones(2)}}}
    elif container == "module":
        state = {f"module.{key}": tensor for key, tensor in state.items()}
    conversion = converted("kamim", state, tmp_path)
    for key, value in (VIT if model_type == "vit" else SWIN).items():
        assert getattr(conversion.model.config, key) == value, key
    pixels, mask = batch(original.config)
    loaded = KamimForMaskedImageModeling.from_pretrained(tmp_path / "out").eval()
    expected = reconstruct(original, pixels, mask)
    assert_close(reconstruct(conversion.model, pixels, mask), expected)
    assert_close(reconstruct(loaded, pixels, mask), expected)
    with torch.no_grad():
        features = original.base_model(pixels).last_hidden_state
    assert_close(encode(tmp_path / "out", pixels).last_hidden_state, features)


def test_image_size_and_heads_of_a_swin(tmp_path):
    state = kamim_file("swin", tmp_path)[1]
    with pytest.raises(InputError, match="image_size is 30"):
        converted("kamim", state, tmp_path, image_size=30)
    with pytest.raises(InputError, match="whose files tell the heads"):
        converted("kamim", state, tmp_path, num_heads=2)
    conversion = converted("kamim", state, tmp_path, image_size=48)
    assert conversion.model.config.image_size == 48
    assert conversion.notes == ["The file does not tell the image size: 48 px was asked for"]


def test_output_directory_serves_the_evaluation(tmp_path):
    converted("kamim", kamim_file("vit", tmp_path)[1], tmp_path)
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {"config.json", "model.safetensors", "preprocessor_config.json", "README.md"}
    card = (tmp_path / "out" / "README.md").read_text()
    assert "license: other" in card and "file.pth" in card and str(tmp_path) not in card
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    assert processor.size["height"] == 32 and processor.image_mean[0] == pytest.approx(0.485)
    classifier = build_classifier(ClassificationArguments(model_name_or_path=str(tmp_path / "out")))
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        tokens = classifier.eval().encoder(pixels).last_hidden_state
    assert_close(tokens, encode(tmp_path / "out", pixels).last_hidden_state)


# ------------------------------------------------------------------------------------------------------------- SimMIM


def simmim_file(sizes, window=3):
    """timm's Swin, and its state dict in the layout of Microsoft's code: merging closes a stage, buffers are saved."""
    model = perturb(
        timm.create_model(
            "swin_tiny_patch4_window7_224", num_classes=0, window_size=window, drop_path_rate=0.0, **sizes
        )
    )
    state = {}
    for key, tensor in model.state_dict().items():
        stage, rest = key.split(".")[1], key.split(".")[2:]
        key = f"layers.{int(stage) - 1}.{'.'.join(rest)}" if "downsample" in key else key
        state[f"encoder.{key}"] = tensor
    for name, module in model.named_modules():
        if hasattr(module, "relative_position_index"):
            state[f"encoder.{name}.relative_position_index"] = module.relative_position_index
        if getattr(module, "attn_mask", None) is not None:
            state[f"encoder.{name}.attn_mask"] = module.attn_mask
    state["encoder.mask_token"] = torch.randn(1, 1, model.patch_embed.proj.out_channels)
    decoder = nn.Sequential(nn.Conv2d(model.num_features, 8**2 * 3, 1), nn.PixelShuffle(8))
    return model, decoder, state | {f"decoder.{key}": tensor for key, tensor in decoder.state_dict().items()}


SWIN_SIZES = {"img_size": 48, "embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4)}


def test_simmim_swin(tmp_path):
    original, decoder, state = simmim_file(SWIN_SIZES)
    assert "encoder.layers.0.downsample.reduction.weight" in state
    assert "encoder.layers.0.blocks.1.attn_mask" in state
    conversion = converted("simmim", {"model": state, "epoch": 99, "max_accuracy": 0.0}, tmp_path)
    config = conversion.model.config
    assert (config.image_size, config.window_size, config.encoder_stride) == (48, 3, 8)
    assert (config.embed_dim, list(config.depths), list(config.num_heads)) == (16, [2, 2], [2, 4])
    assert config.layer_norm_eps == 1e-5

    pixels, mask = batch(config)
    with torch.no_grad():
        embedded = original.patch_embed(pixels)  # (batch_size, 12, 12, channels)
        embedded = torch.where(mask.unflatten(1, (12, 12)).unsqueeze(-1), state["encoder.mask_token"], embedded)
        reconstruction = decoder(original.norm(original.layers(embedded)).permute(0, 3, 1, 2))
        features = original.forward_features(pixels).flatten(1, 2)
    loaded = KamimForMaskedImageModeling.from_pretrained(tmp_path / "out").eval()
    assert_close(reconstruct(loaded, pixels, mask), reconstruction)
    assert_close(encode(tmp_path / "out", pixels).last_hidden_state, features)


def test_simmim_swin_that_was_finetuned(tmp_path):
    original, _, state = simmim_file(SWIN_SIZES)
    state = {key.removeprefix("encoder."): value for key, value in state.items() if "decoder" not in key}
    del state["mask_token"]
    conversion = converted("simmim", {"model": state | {"head.weight": torch.ones(5, 32)}}, tmp_path)
    assert "`head` (1)" in " ".join(conversion.notes)
    pixels = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        features = original.forward_features(pixels).flatten(1, 2)
    assert_close(encode(tmp_path / "out", pixels).last_hidden_state, features)


def test_simmim_swin_with_a_smaller_last_window_is_refused(tmp_path):
    _, _, state = simmim_file(SWIN_SIZES | {"img_size": 32}, window=8)  # 8 tokens a side, then 4: SimMIM's Swin-L
    with pytest.raises(InputError, match=r"windows of \[8, 4\] tokens"):
        converted("simmim", {"model": state}, tmp_path)


def simmim_vit(shared):
    """timm's BEiT has the layout of SimMIM's own ViT; `shared` as pretrained, else as fine-tuned."""
    model = timm.models.beit.Beit(
        img_size=32,
        patch_size=8,
        num_classes=0 if shared else 5,
        global_pool="avg",
        embed_dim=32,
        depth=3,
        num_heads=4,
        init_values=0.1,
        norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
        use_abs_pos_emb=False,
        use_rel_pos_bias=not shared,
        use_shared_rel_pos_bias=shared,
    )
    return perturb(model).eval()


def test_simmim_vit(tmp_path):
    original = simmim_vit(shared=True)
    encoder = {f"encoder.{key}": tensor for key, tensor in original.state_dict().items()}
    state = {key.replace("fc_norm", "norm"): tensor for key, tensor in encoder.items()}
    state["encoder.mask_token"] = torch.randn(1, 1, 32)
    state |= {"decoder.0.weight": torch.randn(192, 32, 1, 1), "decoder.0.bias": torch.randn(192)}
    conversion = converted("simmim", {"model": state}, tmp_path)
    model = conversion.model
    assert model.config.model_type == "beit" and model.config.use_shared_relative_position_bias
    assert (model.config.num_attention_heads, model.config.image_size, model.config.use_mean_pooling) == (4, 32, True)
    pixels = torch.randn(2, 3, 32, 32)
    encoder = AutoModel.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        tokens = original.forward_features(pixels)
        outputs = encoder(pixels)
        reconstruction = model(pixels).reconstruction
        decoded = torch.nn.functional.linear(original.fc_norm(tokens[:, 1:]), state["decoder.0.weight"][:, :, 0, 0])
        decoded = (decoded + state["decoder.0.bias"]).transpose(1, 2).unflatten(2, (4, 4))
    assert_close(outputs.last_hidden_state, tokens)
    assert_close(outputs.pooler_output, original.forward_head(tokens, pre_logits=True))
    assert_close(reconstruction, torch.nn.functional.pixel_shuffle(decoded, 8))
    assert torch.equal(model.mask_token, state["encoder.mask_token"])


def test_simmim_vit_that_was_finetuned(tmp_path):
    original = simmim_vit(shared=False)
    converted("simmim", {"model": original.state_dict()}, tmp_path)
    pixels = torch.randn(2, 3, 32, 32)
    encoder = AutoModel.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        assert_close(encoder(pixels).pooler_output, original.forward_head(original.forward_features(pixels), True))
    assert "`head` (2)" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("settings", [{"num_heads": 2}, {"image_size": 64}])
def test_what_a_simmim_vit_tells_itself_cannot_be_asked_for(settings, tmp_path):
    with pytest.raises(InputError, match="but the relative positions in the file are of"):
        converted("simmim", {"model": simmim_vit(shared=True).state_dict()}, tmp_path, **settings)


# ------------------------------------------------------------------------------------------------- MAE and MoCo v3


def timm_vit(num_heads=3, **settings):
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 192, "depth": 2, "mlp_ratio": 0.5}
    return perturb(timm.create_model("vit_tiny_patch16_224", num_heads=num_heads, **sizes | settings))


def test_mae_pretrained(tmp_path):
    original = timm_vit(num_classes=0)
    decoder = {"mask_token": torch.ones(1, 1, 16), "decoder_pos_embed": torch.ones(1, 17, 16)}
    decoder |= {"decoder_blocks.0.attn.qkv.weight": torch.ones(48, 16), "decoder_pred.bias": torch.ones(3)}
    file = {"model": original.state_dict() | decoder, "args": argparse.Namespace(lr=1e-3, device="cuda"), "epoch": 799}
    conversion = converted("mae", file, tmp_path)
    assert conversion.model.config.layer_norm_eps == 1e-6
    assert conversion.model.config.num_attention_heads == 3
    left_out = " ".join(conversion.notes)
    assert all(
        f"`{part}`" in left_out for part in ("mask_token", "decoder_pos_embed", "decoder_blocks", "decoder_pred")
    )
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert_close(encode(tmp_path / "out", pixels).last_hidden_state, original.forward_features(pixels))
    card = (tmp_path / "out" / "README.md").read_text()
    assert "license: cc-by-nc-4.0" in card and "decoder_blocks" in card


def test_mae_finetuned_on_the_mean_of_the_tokens(tmp_path):
    original = timm_vit(num_classes=5, global_pool="avg")
    assert "norm.weight" not in original.state_dict()
    conversion = converted("mae", {"model": original.state_dict()}, tmp_path)
    assert "fc_norm" in conversion.notes[0] and "`head` (2)" in conversion.notes[1]
    pixels = torch.randn(2, 3, 32, 32)
    encoder = AutoModel.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        features = encoder.layernorm(encoder(pixels, output_hidden_states=True).hidden_states[-1][:, 1:].mean(1))
        assert_close(features, original.forward_head(original.forward_features(pixels), pre_logits=True))


def mocov3_file(original):
    others = timm_vit(num_classes=0).state_dict()
    state = {f"module.base_encoder.{key}": tensor for key, tensor in original.state_dict().items()}
    state |= {f"module.momentum_encoder.{key}": tensor for key, tensor in others.items()}
    state |= {"module.base_encoder.head.0.weight": torch.ones(4, 192), "module.predictor.0.weight": torch.ones(4, 4)}
    return {"epoch": 300, "arch": "vit_small", "state_dict": state, "optimizer": {"param_groups": [{"lr": 0.1}]}}


def test_mocov3(tmp_path):
    original = timm_vit(num_classes=0)
    conversion = converted("mocov3", mocov3_file(original), tmp_path)
    left_out = " ".join(conversion.notes)
    assert all(f"`{part}`" in left_out for part in ("momentum_encoder", "predictor", "base_encoder"))
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert_close(encode(tmp_path / "out", pixels).last_hidden_state, original.forward_features(pixels))


@pytest.mark.parametrize(
    "source, hidden_size, asked, heads",
    [
        ("mae", 384, None, 6),
        ("mocov3", 384, None, 12),
        ("mae", 1280, None, 16),
        ("mae", 128, None, 2),
        ("mae", 128, 8, 8),
    ],
)
def test_heads_of_a_vit(source, hidden_size, asked, heads, tmp_path):
    original = timm_vit(heads, embed_dim=hidden_size, depth=1, mlp_ratio=0.1, num_classes=0)
    file = {"model": {f"module.{key}": tensor for key, tensor in original.state_dict().items()}}
    conversion = converted(source, file, tmp_path, num_heads=asked)
    assert conversion.model.config.num_attention_heads == heads
    pixels = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert_close(conversion.model(pixels).last_hidden_state, original.forward_features(pixels))


def test_heads_that_nothing_tells(tmp_path):
    state = timm_vit(2, embed_dim=96, depth=1, num_classes=0).state_dict()
    with pytest.raises(InputError, match="divisor of the hidden size 96 with --num_heads"):
        converted("mae", {"model": state}, tmp_path)
    with pytest.raises(InputError, match="num_heads is 5"):
        converted("mae", {"model": state}, tmp_path, num_heads=5)


# ----------------------------------------------------------------------------------------------------------- refusals


class Harmful:
    def __reduce__(self):
        return os.system, ("exit 1",)


@pytest.mark.parametrize("place", ["args", "model"])
def test_objects_in_a_pickle_are_refused(place, tmp_path):
    file = {"model": timm_vit(num_classes=0).state_dict()} | {place: Harmful()}
    with pytest.raises(InputError, match="holds an object of (posix|nt).system, and reading that could run code"):
        converted("mae", file, tmp_path)
    with pytest.raises(InputError, match="pathlib"):
        converted("mae", {"args": argparse.Namespace(output_dir=tmp_path)}, tmp_path)


def test_files_that_are_no_checkpoint(tmp_path):
    file = tmp_path / "file.pth"
    file.write_text("<!DOCTYPE html><title>Google Drive - Virus scan warning</title>")
    with pytest.raises(InputError, match="web page"):
        convert_checkpoint("kamim", file, tmp_path / "out")
    file.write_bytes(b"")
    with pytest.raises(InputError, match="damaged"):
        convert_checkpoint("kamim", file, tmp_path / "out")
    with pytest.raises(InputError, match=r"no state dict \(epoch\)"):
        converted("kamim", {"epoch": 3}, tmp_path)
    with pytest.raises(InputError, match="no state dict"):
        converted("kamim", [torch.ones(2)], tmp_path)


def test_missing_and_unexpected_keys_are_listed(tmp_path):
    state = timm_vit(num_classes=0).state_dict()
    with pytest.raises(InputError, match="unexpected keys: reg_token, dist_token"):
        converted("mae", state | {"reg_token": torch.ones(1), "dist_token": torch.ones(1)}, tmp_path)
    del state["blocks.1.norm2.bias"]
    with pytest.raises(InputError, match=r"missing keys: layers.1.layernorm_after.bias"):
        converted("mae", state, tmp_path)
    del state["patch_embed.proj.weight"]
    with pytest.raises(InputError, match="missing key: embeddings.patch_embeddings.projection.weight"):
        converted("mae", state, tmp_path)
    state = kamim_file("vit", tmp_path)[1]
    with pytest.raises(InputError, match="unexpected keys: .*vit.pooler.dense.weight"):
        converted("kamim", state | {"vit.pooler.dense.weight": torch.ones(2, 2)}, tmp_path)
    with pytest.raises(InputError, match="unexpected keys: .*vit.embeddings.cls_token.* and 21 more"):
        converted("mae", state, tmp_path)
    assert not (tmp_path / "out").exists()


def test_shapes_that_contradict_each_other(tmp_path):
    state = timm_vit(num_classes=0).state_dict()
    with pytest.raises(InputError, match="contradict|mismatched"):
        converted("mae", state | {"blocks.1.norm2.bias": torch.ones(5)}, tmp_path)


KINDS = ["boolean", "complex", "integer", "sparse", "NaN", "infinite", "empty", "flat", "a number"]


def spoilt(kind, tensor):
    return {
        "boolean": tensor > 0,
        "complex": tensor.to(torch.complex64),
        "integer": tensor.to(torch.int32),
        "sparse": tensor.to_sparse(),
        "NaN": torch.full_like(tensor, torch.nan),
        "infinite": torch.full_like(tensor, torch.inf),
        "empty": tensor[:0],
        "flat": tensor.flatten(),
        "a number": torch.tensor(1.0),
    }[kind]


@pytest.mark.parametrize(("kind", "source"), zip(KINDS, 3 * ["kamim vit", "kamim swin", "mae"], strict=True))
def test_weights_that_are_none_are_refused_and_nothing_is_written(kind, source, tmp_path):
    source, _, model_type = source.partition(" ")
    state = timm_vit().state_dict() if source == "mae" else kamim_file(model_type, tmp_path)[1]
    names = [name for name, tensor in state.items() if tensor.ndim > 1 and tensor.is_floating_point()]
    name = names[KINDS.index(kind) % len(names)]
    with pytest.raises(InputError) as error:
        converted(source, {**state, name: spoilt(kind, state[name])}, tmp_path)
    assert "\n" not in str(error.value)
    assert {path.name for path in tmp_path.iterdir()} <= {"file.pth", "saved"}


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("mae", "blocks.99999999.norm1.weight"),
        ("mae", f"blocks.{'9' * 5000}.norm1.weight"),
        ("simmim", "layers.99999999.blocks.0.norm1.weight"),
        ("simmim", "layers.0.blocks.99999999.norm1.weight"),
        ("kamim", "vit.encoder.layer.99999999.layernorm_before.weight"),
    ],
)
def test_absurd_numbers_of_blocks_are_refused_at_once(source, name, tmp_path):
    states = {
        "mae": lambda: timm_vit().state_dict(),
        "simmim": lambda: {"patch_embed.proj.weight": torch.ones(8, 3, 4, 4)},
        "kamim": lambda: kamim_file("vit", tmp_path)[1],
    }
    file = save({**states[source](), name: torch.ones(1)}, tmp_path)
    start = time.process_time()
    with pytest.raises(InputError, match="the number 9999999"):
        convert_checkpoint(source, file, tmp_path / "out")
    assert time.process_time() - start < 5 and not (tmp_path / "out").exists()


def test_a_file_without_blocks_is_refused(tmp_path):
    _, state = kamim_file("vit", tmp_path)
    state = {name: tensor for name, tensor in state.items() if ".layer." not in name}
    with pytest.raises(InputError, match="no model"):
        converted("kamim", state, tmp_path)


@pytest.mark.parametrize("is_there", [True, False])
def test_a_conversion_that_fails_while_it_writes_leaves_nothing(is_there, tmp_path, monkeypatch):
    output_dir = tmp_path / "new" / "out"
    if is_there:
        output_dir.mkdir(parents=True)

    def no_room(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("modeling_kamim.hub.conversion._card", no_room)
    file = save(kamim_file("vit", tmp_path)[1], tmp_path)
    with pytest.raises(OSError):
        convert_checkpoint("kamim", file, output_dir)
    assert list(output_dir.iterdir()) == [] if is_there else not (tmp_path / "new").exists()
    assert {path.name for path in tmp_path.iterdir()} <= {"file.pth", "saved", "new"}


def test_paths(tmp_path):
    for source, place in {"kamim": "Google Drive", "mae": "dl.fbaipublicfiles.com"}.items():
        with pytest.raises(InputError, match=f"there is no file .*{place}"):
            convert_checkpoint(source, tmp_path / "https://example.org/file.pth", tmp_path / "out")
    file = save(timm_vit(num_classes=0).state_dict(), tmp_path)
    with pytest.raises(InputError, match="is not an empty directory"):
        convert_checkpoint("mae", file, tmp_path)
    with pytest.raises(InputError, match="allowed: kamim, simmim, mae, mocov3"):
        convert_checkpoint("dino", file, tmp_path / "out")
    with pytest.raises(InputError, match="position embeddings are of 32 px"):
        convert_checkpoint("mae", file, tmp_path / "out", image_size=64)


def test_script(tmp_path, monkeypatch, caplog):
    file = save(timm_vit(6, num_classes=0).state_dict(), tmp_path)
    arguments = ["--source", "mae", "--num_heads", "6", str(file), str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["kamim convert", *arguments])
    with caplog.at_level("INFO"):
        script.main()
    assert "ViTModel of" in caplog.text and "at 32 px" in caplog.text and "CC BY-NC 4.0" in caplog.text
    assert AutoModel.from_pretrained(tmp_path / "out").config.num_attention_heads == 6


# ------------------------------------------------------------------------------------------------ transformers 4.38.1

OLD_PACKAGES = ["transformers==4.38.1", "tokenizers==0.15.2", "huggingface_hub==0.36.0"]
OLD_PROGRAM = """
import json, sys, torch, transformers
assert transformers.__version__ == "4.38.1", transformers.__version__
folder, config = sys.argv[1], json.loads(sys.argv[2])
torch.manual_seed(0)
kinds = {"vit": (transformers.ViTConfig, transformers.ViTForMaskedImageModeling),
         "swin": (transformers.SwinConfig, transformers.SwinForMaskedImageModeling)}
Config, Model = kinds[sys.argv[3]]
model = Model(Config(**config)).eval()
with torch.no_grad():
    for parameter in model.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))
    pixels = torch.randn(2, 3, config["image_size"], config["image_size"])
    mask = torch.rand(2, (config["image_size"] // config["patch_size"]) ** 2) < 0.5
    outputs = {"pixels": pixels, "mask": mask, "features": model.base_model(pixels).last_hidden_state,
               "reconstruction": model(pixels, bool_masked_pos=mask).reconstruction}
torch.save({"epoch": 109, "model_state_dict": model.state_dict()}, f"{folder}/file.pth")
torch.save(outputs, f"{folder}/outputs.pth")
"""


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["vit", "swin"])
def test_file_and_outputs_of_transformers_4_38_1(model_type, install_beside, tmp_path):
    config = VIT if model_type == "vit" else SWIN
    program = [sys.executable, "-c", OLD_PROGRAM, str(tmp_path), json.dumps(config), model_type]
    environment = os.environ | {"PYTHONPATH": str(install_beside(*OLD_PACKAGES))}
    ran = subprocess.run(program, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    file = torch.load(tmp_path / "file.pth", weights_only=True)
    assert set(file["model_state_dict"]) == KEYS_4[model_type]
    convert_checkpoint("kamim", tmp_path / "file.pth", tmp_path / "out")
    old = torch.load(tmp_path / "outputs.pth", weights_only=True)
    loaded = KamimForMaskedImageModeling.from_pretrained(tmp_path / "out").eval()
    assert_close(reconstruct(loaded, old["pixels"], old["mask"]), old["reconstruction"])
    assert_close(encode(tmp_path / "out", old["pixels"]).last_hidden_state, old["features"])
