"""Protocols bring their settings; what the user gives wins."""

import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modeling_kamim.api.groups import CLASSIFICATION_ARGUMENTS
from modeling_kamim.commands.parser import parse
from modeling_kamim.errors import InputError
from modeling_kamim.evaluation.lars import lars, lars_groups
from modeling_kamim.evaluation.protocols import MAE_TRAINING, PAPER_TRAINING, PROTOCOLS
from modeling_kamim.evaluation.settings import ClassificationArguments

ROOT = Path(__file__).parents[2]
GIVEN = {
    "learning_rate": 1.6,
    "weight_decay": 0.3,
    "num_train_epochs": 7.0,
    "warmup_steps": 5.0,
    "lr_scheduler_kwargs": {"min_lr": 0.5},
}


def arguments(*argv):
    """Arguments of an evaluation as `Evaluation` makes them of a command line."""
    _, class_args, training_args = parse(CLASSIFICATION_ARGUMENTS, [*argv, "--use_cpu"])
    training_args.follow(class_args.recipe.training)
    return class_args, training_args


def settings_of(training_args):
    return {name: getattr(training_args, name) for name in PAPER_TRAINING}


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_protocol_brings_its_settings(name):
    argv = ["--mode", "finetune"] if name == "finetune" else ["--protocol", name]
    class_args, training_args = arguments(*argv, "--per_device_train_batch_size", "64")
    row = PROTOCOLS[name]
    assert (class_args.augmentation, class_args.pooled_norm) == (row.augmentation, row.pooled_norm)
    expected = dict(row.training)
    if name == "mae":
        expected["learning_rate"] = expected.pop("base_learning_rate") * 64 / 256
    assert settings_of(training_args) == expected


@given(st.sampled_from(sorted(GIVEN)), st.sampled_from(["paper", "mae"]))
def test_what_the_user_gives_wins(name, protocol):
    value = '{"min_lr": 0.5}' if name == "lr_scheduler_kwargs" else str(GIVEN[name])
    _, training_args = arguments("--protocol", protocol, f"--{name}", value)
    assert getattr(training_args, name) == GIVEN[name]
    _, others = arguments("--protocol", protocol)
    rest = set(GIVEN) - {name}
    assert {key: settings_of(training_args)[key] for key in rest} == {key: settings_of(others)[key] for key in rest}


def test_maes_rate_goes_with_the_images_of_a_step():
    _, training_args = arguments(
        "--protocol", "mae", "--per_device_train_batch_size", "32", "--global_batch_size", "4096"
    )
    assert training_args.learning_rate == pytest.approx(1.6)


def test_another_schedule_does_not_get_the_settings_of_ours():
    for protocol in ("paper", "mae"):
        _, training_args = arguments("--protocol", protocol, "--lr_scheduler_type", "linear")
        assert training_args.lr_scheduler_kwargs is None


def test_maes_config_is_its_protocol():
    file = str(ROOT / "configs" / "evaluation" / "vit_base__in1k__192__mae.yaml")
    _, training_args = arguments(file)
    expected = {**MAE_TRAINING, "learning_rate": 0.1 * 16384 / 256}
    assert expected.pop("base_learning_rate") == 0.1
    found = settings_of(training_args)
    assert found.pop("lr_scheduler_kwargs") == expected.pop("lr_scheduler_kwargs")
    assert found == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(("weight_decay", "scale"), [(0.0, 1e-3), (0.0, 1e3), (0.05, 1.0)])
def test_lars_adapts_the_rate_of_matrices_alone(weight_decay, scale):
    """A step of a matrix is a share of its norm, whatever its gradient; that of a vector follows the gradient."""
    pytest.importorskip("timm")
    model = torch.nn.Linear(6, 3)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer_class, settings = lars(learning_rate=0.5)
    optimizer = optimizer_class(lars_groups(model, weight_decay), **settings)
    for parameter in model.parameters():
        parameter.grad = scale * torch.randn_like(parameter)
    optimizer.step()
    step = (model.weight - before["weight"]).norm() / before["weight"].norm()
    assert step.item() == pytest.approx(0.5 * 0.001, rel=0.1)
    torch.testing.assert_close(model.bias.detach(), before["bias"] - 0.5 * model.bias.grad)


def test_the_protocols_layer_is_the_default():
    from modeling_kamim.evaluation.classifiers import classifier_config

    random = {"model_size": "tiny", "image_size": 32}
    layers = {name: 8 if row.layer else 12 for name, row in PROTOCOLS.items() if not row.is_cached}
    for name, layer in layers.items():
        mode = {"mode": "finetune"} if name == "finetune" else {"protocol": name}
        assert classifier_config(ClassificationArguments(**random, **mode)).num_hidden_layers == layer


def test_without_timm_maes_protocol_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm.optim", None)
    with pytest.raises(InputError, match="timm is not installed.*pip install"):
        lars(0.1)
