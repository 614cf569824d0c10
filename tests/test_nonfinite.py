"""Losses and gradients that are not finite: the weights never take them in, and the images are named."""

import json
import math

import pytest
import torch
from test_publishing import trainer
from test_trainer import Samples
from transformers import TrainerCallback

from modeling_kamim.errors import StoppedError


class NamedSamples(Samples):
    """Samples with their numbers; those of `broken` have a density that makes the loss NaN."""

    def __init__(self, broken=()):
        super().__init__()
        self.densities[list(broken)] = math.nan

    def __getitem__(self, index):
        return {**super().__getitem__(index), "sample_index": index}


class Weights(TrainerCallback):
    """The weights after each step."""

    def __init__(self):
        self.of_step = []

    def on_step_end(self, args, state, control, model, **kwargs):
        self.of_step.append({name: parameter.detach().clone() for name, parameter in model.named_parameters()})


def broken_trainer(tmp_path, broken=(5,), **settings):
    trained = trainer(tmp_path, max_steps=4, **settings)
    trained.train_dataset = NamedSamples(broken)
    trained.add_callback(weights := Weights())
    return trained, weights.of_step


def equal(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("max_grad_norm", [1.0, 0.0])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_loss_that_is_not_finite_ends_the_run_before_the_weights_take_it_in(tmp_path, max_grad_norm, accumulation):
    settings = {"per_device_train_batch_size": 4 // accumulation, "gradient_accumulation_steps": accumulation}
    trained, weights = broken_trainer(tmp_path, max_grad_norm=max_grad_norm, **settings)
    with pytest.raises(StoppedError, match=r"the loss is .*nan.*names the images.*--nonfinite skip"):
        trained.train()
    (file,) = tmp_path.glob("nonfinite_step_*.json")
    report = json.loads(file.read_text())
    assert report["step"] == trained.state.global_step + 1 == len(weights) + 1
    named = [[sample["index"] for sample in batch] for batch in report["samples"]]
    assert len(named) == accumulation and [5 in batch for batch in named].count(True) == 1
    assert sum(map(len, named)) == 4
    assert all(torch.isfinite(parameter).all() for parameter in trained.model.parameters())


def test_the_step_is_left_out_where_that_is_asked_for(tmp_path, caplog):
    trained, weights = broken_trainer(tmp_path)
    trained.args.nonfinite = "skip"
    trained.train()
    assert trained.state.global_step == 4
    (file,) = tmp_path.glob("nonfinite_step_*.json")
    step = json.loads(file.read_text())["step"]
    same = [equal(before, after) for before, after in zip(weights, weights[1:], strict=False)]
    assert same == [number == step for number in range(2, 5)] or step == 1
    assert all(torch.isfinite(parameter).all() for parameter in trained.model.parameters())
    assert "The step is left out" in caplog.text


def test_a_gradient_that_is_not_finite_ends_the_run_too(tmp_path):
    trained, _ = broken_trainer(tmp_path, broken=())
    next(trained.model.parameters()).register_hook(lambda gradient: gradient * math.inf)
    before = [parameter.detach().clone() for parameter in trained.model.parameters()]
    with pytest.raises(StoppedError, match="gradient's norm"):
        trained.train()
    assert all(map(torch.equal, before, trained.model.parameters()))


def test_finite_numbers_end_nothing(tmp_path):
    trained, _ = broken_trainer(tmp_path, broken=())
    trained.train()
    assert not list(tmp_path.glob("nonfinite*"))
