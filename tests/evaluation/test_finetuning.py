"""Fine-tuning: rates of the layers, drop path, averaged weights, and checkpoints of another resolution."""

import dataclasses
import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    SwinConfig,
    SwinForImageClassification,
    SwinModel,
    TrainerCallback,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

from modeling_kamim import (
    KamimForMaskedImageModeling,
    KamimViTClassifierConfig,
    KamimViTForImageClassification,
    build_config,
)
from modeling_kamim.errors import InputError
from modeling_kamim.evaluation.finetuning import ExponentialMovingAverage, add_drop_path, parameter_groups
from modeling_kamim.models.positions import resized_state_dict
from modeling_kamim.models.processor import image_processor
from modeling_kamim.training.trainer import ClassificationTrainer

VIT = {
    "image_size": 24,
    "patch_size": 4,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
SWIN = {
    "image_size": 24,
    "patch_size": 2,
    "embed_dim": 8,
    "depths": [2, 1],
    "num_heads": [2, 2],
    "window_size": 6,
    "encoder_stride": 4,
}


def vit(**settings):
    return KamimViTForImageClassification(KamimViTClassifierConfig(**{**VIT, "pooled_norm": "layernorm", **settings}))


def swin(**settings):
    return SwinForImageClassification(SwinConfig(**{**SWIN, "use_absolute_embeddings": True, **settings}))


# Layer-wise learning rates


def rates(model, groups):
    """Rate and weight decay of every trainable parameter, each in exactly one group."""
    names = {id(parameter): name for name, parameter in model.named_parameters() if parameter.requires_grad}
    found = [
        (names[id(parameter)], group["lr"], group["weight_decay"]) for group in groups for parameter in group["params"]
    ]
    assert sorted(name for name, _, _ in found) == sorted(names.values())
    return {name: (rate, weight_decay) for name, rate, weight_decay in found}


# With decay 1/2: 1/2 ** (L + 1 - layer), where L is 3 for both.
VIT_RATES = {
    "encoder.embeddings.cls_token": (1 / 16, 0),
    "encoder.embeddings.position_embeddings": (1 / 16, 0),
    "encoder.embeddings.patch_embeddings.projection.weight": (1 / 16, 0.05),
    "encoder.embeddings.patch_embeddings.projection.bias": (1 / 16, 0),
    "encoder.layers.0.attention.q_proj.weight": (1 / 8, 0.05),
    "encoder.layers.0.attention.q_proj.bias": (1 / 8, 0),
    "encoder.layers.1.layernorm_before.weight": (1 / 4, 0),
    "encoder.layers.2.mlp.fc2.weight": (1 / 2, 0.05),
    "encoder.layernorm.weight": (1, 0),
    "norm.bias": (1, 0),
    "head.weight": (1, 0.05),
    "head.bias": (1, 0),
}
SWIN_RATES = {
    "swin.embeddings.position_embeddings": (1 / 16, 0),
    "swin.embeddings.patch_embeddings.projection.weight": (1 / 16, 0.05),
    "swin.embeddings.norm.weight": (1 / 16, 0),
    "swin.encoder.layers.0.blocks.0.mlp.fc1.weight": (1 / 8, 0.05),
    "swin.encoder.layers.0.blocks.1.mlp.fc1.weight": (1 / 4, 0.05),
    "swin.encoder.layers.0.downsample.reduction.weight": (1 / 4, 0.05),
    "swin.encoder.layers.0.downsample.norm.weight": (1 / 4, 0),
    "swin.encoder.layers.1.blocks.0.mlp.fc1.weight": (1 / 2, 0.05),
    "swin.encoder.layers.1.blocks.0.attention.relative_position_bias.relative_position_bias_table": (1 / 2, 0),
    "swin.layernorm.weight": (1, 0),
    "classifier.weight": (1, 0.05),
    "classifier.bias": (1, 0),
}


@pytest.mark.parametrize(("build", "expected"), [(vit, VIT_RATES), (swin, SWIN_RATES)], ids=["vit", "swin"])
def test_rates_by_hand(build, expected):
    model = build()
    groups = parameter_groups(model, 2e-3, 0.05, 0.5)
    found = rates(model, groups)
    for name, (scale, weight_decay) in expected.items():
        assert found[name] == pytest.approx((2e-3 * scale, weight_decay)), name
    assert len(groups) == 10  # five layers, with and without weight decay
    assert [group["lr"] for group in groups] == sorted((group["lr"] for group in groups), reverse=True)


@pytest.mark.parametrize("build", [vit, swin])
def test_without_layer_decay_there_are_two_plain_groups(build):
    model = build()
    groups = parameter_groups(model, 2e-3, 0.05, 1.0)
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [(2e-3, 0.05), (2e-3, 0.0)]
    undecayed = {name for name, (_, weight_decay) in rates(model, groups).items() if weight_decay == 0}
    words = ("cls_token", "position_embeddings", "relative_position_bias_table")
    shapes = {name: parameter.ndim for name, parameter in model.named_parameters()}
    assert undecayed == {name for name, ndim in shapes.items() if ndim == 1 or any(word in name for word in words)}


@pytest.mark.parametrize("build", [vit, swin])
def test_frozen_parameters_are_left_out(build):
    model = build()
    model.base_model.requires_grad_(False)
    found = rates(model, parameter_groups(model, 1.0, 0.1, 0.5))
    assert found and set(found.values()) == {(1.0, 0.1), (1.0, 0.0)}


def test_rates_of_the_paper_s_depths():
    """The embeddings of ViT-B have 0.65 ** 13 of the rate, those of Swin-B, of 24 blocks, 0.9 ** 25."""
    with torch.device("meta"):
        vit_base = KamimViTForImageClassification(
            KamimViTClassifierConfig.from_dict({**build_config("vit", "base").to_dict(), "model_type": "x"})
        )
        swin_base = SwinForImageClassification(build_config("swin", "base"))
    for model, layer_decay, depth in ((vit_base, 0.65, 13), (swin_base, 0.9, 25)):
        groups = parameter_groups(model, 1.0, 0.05, layer_decay)
        assert groups[0]["lr"] == 1.0 and groups[-1]["lr"] == pytest.approx(layer_decay**depth)
        assert len({group["lr"] for group in groups}) == depth + 1


@pytest.mark.parametrize("layer_decay", [0.0, -0.5, 1.01, math.nan])
def test_impossible_layer_decay_is_refused(layer_decay):
    with pytest.raises(InputError, match="layer_decay is .*\\(0, 1\\]"):
        parameter_groups(vit(), 1.0, 0.05, layer_decay)


def test_unknown_models_have_no_layers():
    model = ViTForImageClassification(ViTConfig(**VIT))
    with pytest.raises(InputError, match="layer_decay is below 1 for a ViTForImageClassification"):
        parameter_groups(model, 1.0, 0.05, 0.5)
    assert len(parameter_groups(model, 1.0, 0.05, 1.0)) == 2


# Drop path


def test_drop_path_leaves_out_branches_of_single_images():
    model = vit(num_hidden_layers=2, hidden_dropout_prob=0.0)
    plain = model.encoder(images := torch.randn(64, 3, 24, 24), output_hidden_states=True)
    add_drop_path(model.encoder, 0.5)
    torch.testing.assert_close(model.eval().encoder(images).last_hidden_state, plain.last_hidden_state)
    tokens = model.train().encoder(images, output_hidden_states=True).hidden_states
    torch.testing.assert_close(tokens[1], plain.hidden_states[1])  # the first block keeps all

    block, possible = model.encoder.layers[1], []
    for attention in (0, 2):
        for mlp in (0, 2):  # 1 / (1 - 0.5) where it is kept
            middle = tokens[1] + attention * block.attention(block.layernorm_before(tokens[1]))[0]
            possible.append(middle + mlp * block.mlp(block.layernorm_after(middle)))
    distances = (torch.stack(possible) - tokens[2]).abs().amax(dim=(2, 3))
    assert distances.amin(dim=0).max() < 1e-5
    assert (distances.argmin(dim=0).bincount(minlength=4) > 4).all()  # 16 expected of each


@pytest.mark.parametrize("depth", [1, 2, 12])
def test_drop_path_rises_as_in_timm_and_is_not_saved(depth):
    timm = pytest.importorskip("timm")
    model = vit(num_hidden_layers=depth)
    names = list(model.state_dict())
    add_drop_path(model.encoder, 0.3)
    reference = timm.models.VisionTransformer(embed_dim=16, num_heads=2, depth=depth, drop_path_rate=0.3)
    expected = [getattr(block.drop_path1, "drop_prob", 0.0) for block in reference.blocks]
    assert [block.dropout[1].p for block in model.encoder.layers] == pytest.approx(expected)
    assert list(model.state_dict()) == names


# Averaged weights


class Samples(torch.utils.data.Dataset):
    """Random images of three classes."""

    def __len__(self):
        return 16

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        pixels = torch.randint(0, 256, (3, 24, 24), generator=generator, dtype=torch.uint8)
        return {"pixel_values": pixels, "labels": index % 3}


class Weights(TrainerCallback):
    """The weights at the start and after every step."""

    def __init__(self):
        self.steps = []

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.steps.append(copy_of(model))

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.steps.append(copy_of(model))


def copy_of(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def build_trainer(output_dir, decay=0.7, model=None, layer_decay=0.5, **kwargs):
    torch.manual_seed(0)
    model = model or vit(num_labels=3, hidden_dropout_prob=0.1)
    settings = {"max_steps": 6, "learning_rate": 0.05, "save_steps": 2, "logging_steps": 1, **kwargs}
    args = TrainingArguments(
        str(output_dir),
        use_cpu=True,
        remove_unused_columns=False,
        disable_tqdm=True,
        report_to=[],
        per_device_train_batch_size=4,
        label_names=["labels"],
        **settings,
    )
    groups = parameter_groups(model, args.learning_rate, 0.05, layer_decay)
    ema = ExponentialMovingAverage(decay)
    trainer = ClassificationTrainer(
        model=model,
        args=args,
        train_dataset=Samples(),
        eval_dataset=Samples(),
        processing_class=image_processor(24),
        callbacks=[ema],
        optimizer_cls_and_kwargs=(torch.optim.AdamW, {"params": groups, "lr": args.learning_rate}),
    )
    return trainer, ema


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


def test_average_is_the_recursion_by_hand(tmp_path):
    trainer, ema = build_trainer(tmp_path, decay=0.7, gradient_accumulation_steps=2)
    weights = Weights()
    trainer.add_callback(weights)
    trainer.train()
    assert len(weights.steps) == 7
    expected = weights.steps[0]
    for step in weights.steps[1:]:
        expected = {name: 0.7 * expected[name] + 0.3 * step[name] for name in expected}
    moved = 0
    for name, average in ema.average.items():
        torch.testing.assert_close(average, expected[name], rtol=1e-5, atol=1e-6)
        moved += not torch.allclose(average, weights.steps[-1][name], atol=1e-3)
    assert ema.average.keys() == expected.keys() and moved > 20


def test_a_resumed_average_is_bit_identical(tmp_path):
    whole, _ = build_trainer(tmp_path / "whole")
    whole.train()
    half, _ = build_trainer(tmp_path / "half")
    half.add_callback(_StopAfter(4))
    half.train()
    checkpoint = str(tmp_path / "half" / "checkpoint-4")
    resumed, ema = build_trainer(tmp_path / "half", resume_from_checkpoint=checkpoint)
    resumed.train(resume_from_checkpoint=checkpoint)
    for file in ("ema.safetensors", "model.safetensors"):
        expected = load_file(tmp_path / "whole" / "checkpoint-6" / file)
        assert_same(load_file(tmp_path / "half" / "checkpoint-6" / file), expected)
    assert_same(ema.average, load_file(tmp_path / "whole" / "checkpoint-6" / "ema.safetensors"))


class _StopAfter(TrainerCallback):
    def __init__(self, steps):
        self.steps = steps

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == self.steps


def test_a_checkpoint_without_its_average_is_refused(tmp_path):
    trainer, _ = build_trainer(tmp_path, max_steps=2)
    trainer.train()
    checkpoint = tmp_path / "checkpoint-2"
    file = checkpoint / "ema.safetensors"
    average = load_file(file)

    def resume(**arguments):
        build_trainer(tmp_path, **arguments)[0].train(resume_from_checkpoint=str(checkpoint))

    resume()  # it has all of its steps, and the average is where they are
    save_file({**average, "head.bias": torch.zeros(4)}, file)
    with pytest.raises(InputError, match="average of another model"):
        resume(resume_from_checkpoint=str(checkpoint))
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(InputError, match="holds no ema.safetensors that can be read"):
        resume(resume_from_checkpoint=str(checkpoint))
    file.unlink()
    with pytest.raises(InputError, match="checkpoint-2 holds no ema.safetensors"):
        resume(resume_from_checkpoint=str(checkpoint))


def test_a_second_training_begins_a_new_average(tmp_path):
    trainer, ema = build_trainer(tmp_path, max_steps=1)
    trainer.train()
    start = copy_of(trainer.model)
    trainer.train()
    expected = {name: 0.7 * start[name] + 0.3 * now for name, now in copy_of(trainer.model).items()}
    for name, average in ema.average.items():
        torch.testing.assert_close(average, expected[name], rtol=1e-5, atol=1e-6)


def test_the_average_is_put_in_and_taken_out(tmp_path):
    trainer, ema = build_trainer(tmp_path)
    trainer.train()
    own = copy_of(trainer.model)
    loss = trainer.evaluate()["eval_loss"]
    with ema.applied(trainer.model):
        assert_same(copy_of(trainer.model), ema.average)
        averaged_loss = trainer.evaluate()["eval_loss"]
        trainer.save_model(str(tmp_path / "end"))
    assert_same(copy_of(trainer.model), own)
    assert trainer.evaluate()["eval_loss"] == loss != averaged_loss
    saved = KamimViTForImageClassification.from_pretrained(tmp_path / "end")
    assert_same(copy_of(saved), ema.average)
    with pytest.raises(RuntimeError, match="in between"), ema.applied(trainer.model):
        raise RuntimeError("in between")
    assert_same(copy_of(trainer.model), own)


def test_only_trained_parameters_are_averaged(tmp_path):
    model = vit(num_labels=3)
    model.base_model.requires_grad_(False)
    trainer, ema = build_trainer(tmp_path, model=model, layer_decay=1.0)
    encoder = copy_of(model.base_model)
    trainer.train()
    assert ema.average.keys() == {"norm.weight", "norm.bias", "head.weight", "head.bias"}
    with ema.applied(model):
        assert_same(copy_of(model.base_model), encoder)
        assert torch.equal(model.head.weight, ema.average["head.weight"])


def test_the_average_of_bfloat16_weights_is_float32(tmp_path):
    """Steps of 0.01% of a difference are lost in bfloat16, which has 8 bits."""
    model = vit(num_labels=3)
    ema = ExponentialMovingAverage(0.9999)
    args = TrainingArguments(str(tmp_path), use_cpu=True)
    trainer_state = dataclasses.make_dataclass("State", ["global_step"])(0)
    model.to(torch.bfloat16)
    nn.init.zeros_(model.head.weight)
    ema.on_train_begin(args, trainer_state, None, model=model)
    nn.init.ones_(model.head.weight)
    for _ in range(100):
        ema.on_optimizer_step(args, trainer_state, None, model=model)
    average = ema.average["head.weight"]
    torch.testing.assert_close(average, torch.full_like(average, 1 - 0.9999**100), rtol=1e-3, atol=0)
    with ema.applied(model):
        assert model.head.weight.dtype == torch.bfloat16
        assert torch.equal(model.head.weight, average.bfloat16())


def test_there_is_no_average_before_training():
    with pytest.raises(ValueError, match="no average"), ExponentialMovingAverage(0.9).applied(vit()):
        pass


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.1, 1.5, math.nan])
def test_impossible_ema_decay_is_refused(decay):
    with pytest.raises(InputError, match="ema_decay is .*between 0 and 1"):
        ExponentialMovingAverage(decay)


def test_the_schedule_scales_every_rate_and_the_full_one_is_logged(tmp_path):
    trainer, _ = build_trainer(
        tmp_path,
        lr_scheduler_type="cosine_warmup_with_min_lr",
        lr_scheduler_kwargs={"min_lr": 0.005, "warmup_lr_rate": 0.1},
        warmup_steps=2,
        learning_rate=0.05,
    )
    trainer.train()
    logged = [entry["learning_rate"] for entry in trainer.state.log_history if "loss" in entry]
    assert [*logged[:2], logged[-1]] == pytest.approx([0.005, 0.05, 0.005])
    rates = trainer.lr_scheduler.get_last_lr()
    assert rates[::2] == rates[1::2] == pytest.approx([rates[0] * 0.5**power for power in range(5)])


# Another resolution


def position_embeddings(state):
    return state["embeddings.position_embeddings"]


def with_embeddings(state, grid):
    """`state` with `(side, side, channels)` position embeddings behind those of CLS."""
    old = position_embeddings(state)
    patches = grid.reshape(1, -1, old.shape[2])
    return {
        **state,
        "embeddings.position_embeddings": torch.cat([old[:, : old.shape[1] - patches.shape[1]], patches], 1),
    }


@pytest.fixture
def vit_model():
    return ViTModel(ViTConfig(**VIT), add_pooling_layer=False).eval()


@pytest.fixture
def swin_model():
    model = SwinModel(SwinConfig(**SWIN, use_absolute_embeddings=True), add_pooling_layer=False).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def is_resized(key):
    return key.endswith(("position_embeddings", "relative_position_bias_table"))


def test_equal_sizes_change_nothing(vit_model, swin_model):
    for model in (vit_model, swin_model):
        state = model.state_dict()
        resized = resized_state_dict(state, model.config, model.config)
        assert resized is not state
        assert_same(resized, state)


def test_everything_else_is_unchanged(vit_model, swin_model):
    for model, new_config in (
        (vit_model, ViTConfig(**{**VIT, "image_size": 28})),
        (swin_model, SwinConfig(**{**SWIN, "image_size": 28, "window_size": 7})),
    ):
        state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
        resized = resized_state_dict(model.state_dict(), model.config, new_config)
        assert_same(model.state_dict(), state)
        same = {key for key in state if not is_resized(key)}
        assert_same({key: resized[key] for key in same}, {key: state[key] for key in same})
        assert all(resized[key].shape != state[key].shape for key in state.keys() - same)
        assert len(same) < len(state)


@pytest.mark.parametrize("image_size", [28, 20, 48])
def test_vit_is_transformers_own_interpolation(vit_model, image_size):
    config = ViTConfig(**{**VIT, "image_size": image_size})
    resized = resized_state_dict(vit_model.state_dict(), vit_model.config, config)
    large = ViTModel(config, add_pooling_layer=False).eval()
    large.load_state_dict(resized)
    pixels = torch.randn(2, 3, image_size, image_size)
    with torch.no_grad():
        found = large(pixels).last_hidden_state
        expected = vit_model(pixels, interpolate_pos_encoding=True).last_hidden_state
    assert found.shape == (2, 1 + (image_size // 4) ** 2, 16)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_cls_keeps_its_embedding(vit_model):
    state = vit_model.state_dict()
    resized = resized_state_dict(state, vit_model.config, ViTConfig(**{**VIT, "image_size": 28}))
    assert position_embeddings(resized).shape == (1, 50, 16)
    assert torch.equal(position_embeddings(resized)[:, 0], position_embeddings(state)[:, 0])


def test_a_constant_stays_constant(vit_model, swin_model):
    constant = torch.arange(16.0).expand(6, 6, 16)
    state = with_embeddings(vit_model.state_dict(), constant)
    resized = resized_state_dict(state, vit_model.config, ViTConfig(**{**VIT, "image_size": 28}))
    torch.testing.assert_close(position_embeddings(resized)[0, 1:], torch.arange(16.0).expand(49, 16))

    state = {
        key: torch.tensor([1.5, -2.0]).expand_as(tensor) if "bias_table" in key else tensor
        for key, tensor in swin_model.state_dict().items()
    }
    config = SwinConfig(**{**SWIN, "image_size": 28, "window_size": 7})
    tables = [tensor for key, tensor in resized_state_dict(state, swin_model.config, config).items() if "table" in key]
    assert len(tables) == 3
    for table in tables:
        torch.testing.assert_close(table, torch.tensor([1.5, -2.0]).expand(169, 2))


def ramp(side):
    """Height and width of the cells' middles, in [0, 1]: `(side, side)` each."""
    middles = (torch.arange(side) + 0.5) / side
    return middles[:, None].expand(side, side), middles[None, :].expand(side, side)


def test_a_ramp_stays_a_ramp_away_from_the_border(vit_model):
    """Rows and columns keep their places: one channel rises downwards, another to the right, one on the diagonal."""

    def channels(side):
        down, right = ramp(side)
        return torch.stack([down, right, down + 2 * right, *([torch.zeros(side, side)] * 13)], dim=2)

    state = with_embeddings(vit_model.state_dict(), channels(6))
    resized = resized_state_dict(state, vit_model.config, ViTConfig(**{**VIT, "image_size": 28}))
    found = position_embeddings(resized)[0, 1:].reshape(7, 7, 16)
    torch.testing.assert_close(found[2:5, 2:5], channels(7)[2:5, 2:5], rtol=0, atol=0.03)
    torch.testing.assert_close(found, channels(7), rtol=0, atol=0.1)


def test_swin_tables_are_ramps_of_the_offset(swin_model):
    """An offset of the new window means the same share of the window's extent: from -11/2 to 11/2 and -13/2 to 13/2."""

    def table(window_size):
        down, right = ramp(2 * window_size - 1)
        return torch.stack([(down - 0.5).flatten(), (right - 0.5).flatten()], dim=1)

    state = {key: table(6) if "bias_table" in key else tensor for key, tensor in swin_model.state_dict().items()}
    config = SwinConfig(**{**SWIN, "image_size": 28, "window_size": 7})
    for key, found in resized_state_dict(state, swin_model.config, config).items():
        if "bias_table" in key:
            torch.testing.assert_close(found, table(7), rtol=0, atol=0.03)
            assert found.reshape(13, 13, 2)[6, 6].abs().max() < 1e-6  # the offset 0 stays where it was


def test_resized_swin_runs(swin_model):
    config = SwinConfig(**{**SWIN, "image_size": 28, "window_size": 7, "use_absolute_embeddings": True})
    resized = resized_state_dict(swin_model.state_dict(), swin_model.config, config)
    large = SwinModel(config, add_pooling_layer=False).eval()
    large.load_state_dict(resized)
    with torch.no_grad():
        output = large(torch.randn(2, 3, 28, 28)).last_hidden_state
    assert output.shape == (2, 49, 16) and output.isfinite().all()


def test_swin_of_a_larger_image_and_the_same_window_keeps_its_tables(swin_model):
    config = SwinConfig(**{**SWIN, "image_size": 48, "use_absolute_embeddings": True})
    resized = resized_state_dict(swin_model.state_dict(), swin_model.config, config)
    tables = {key: tensor for key, tensor in swin_model.state_dict().items() if "bias_table" in key}
    assert_same({key: resized[key] for key in tables}, tables)
    large = SwinModel(config, add_pooling_layer=False).eval()
    large.load_state_dict(resized)
    pixels = torch.randn(1, 3, 48, 48)
    with torch.no_grad():
        expected = swin_model(pixels, interpolate_pos_encoding=True).last_hidden_state
        torch.testing.assert_close(large(pixels).last_hidden_state, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("model_type", ["vit", "swin"])
def test_a_checkpoint_starts_a_classifier_of_a_larger_image(model_type, tmp_path):
    """The way of `build_classifier`: load at the checkpoint's own size, resize, load into the classifier's encoder."""
    if model_type == "vit":
        old_config, large = ViTConfig(**VIT, encoder_stride=4), vit(image_size=28)
        encoder, encoder_class = large.encoder, ViTModel
    else:
        old_config, large = SwinConfig(**SWIN), swin(image_size=28, window_size=7, use_absolute_embeddings=False)
        encoder, encoder_class = large.swin, SwinModel
    source = KamimForMaskedImageModeling.from_config(old_config)
    source.save_pretrained(tmp_path)
    loaded = encoder_class.from_pretrained(tmp_path, add_pooling_layer=False)
    encoder.load_state_dict(resized_state_dict(loaded.state_dict(), old_config, encoder.config))
    expected = {key: tensor for key, tensor in source.base_model.state_dict().items() if not is_resized(key)}
    del expected["embeddings.mask_token"]
    assert_same({key: tensor for key, tensor in encoder.state_dict().items() if not is_resized(key)}, expected)
    with torch.no_grad():
        assert large.eval()(torch.randn(2, 3, 28, 28)).logits.isfinite().all()


def test_half_precision_keeps_its_type(vit_model):
    state = {key: tensor.half() for key, tensor in vit_model.state_dict().items()}
    resized = resized_state_dict(state, vit_model.config, ViTConfig(**{**VIT, "image_size": 28}))
    assert {tensor.dtype for tensor in resized.values()} == {torch.float16}
