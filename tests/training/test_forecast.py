"""How long a training will take is told before it starts, by a clock that is faked here."""

import logging
from itertools import count
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import tiny_swin, tiny_vit

from modeling_kamim import KamimForMaskedImageModeling
from modeling_kamim.api.groups import PRETRAINING_ARGUMENTS
from modeling_kamim.commands.parser import parse
from modeling_kamim.training.forecast import TRIAL, in_words, seconds_per_image, tell_duration


@pytest.mark.parametrize("config", [tiny_vit(), tiny_swin()], ids=["vit", "swin"])
@pytest.mark.parametrize("bf16", [False, True])
def test_timing_leaves_model_and_random_numbers_as_they_are(config, bf16):
    model = KamimForMaskedImageModeling.from_config(config)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    assert seconds_per_image(model, bf16, clock=count(0, 3).__next__) == 1.5  # 3 seconds for 2 images
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("words", "passes"),
    [("", 1), ("--loss_predictor true", 1), ("--masking easy_to_hard", 2), ("--weighting predicted_loss", 2)],
)
def test_a_look_of_the_loss_predictor_is_timed(words, passes):
    kamim_args = next(group for group in parse(PRETRAINING_ARGUMENTS, words.split()) if hasattr(group, "hard_patches"))
    model = KamimForMaskedImageModeling.from_config(tiny_vit())
    model.add_loss_predictor()
    calls = []
    model.register_forward_hook(lambda *args: calls.append(torch.is_grad_enabled()))
    seconds_per_image(model, bf16=False, looks_ahead=kamim_args.hard_patches() is not None)
    assert calls == [*[False] * (passes - 1), True] * 2  # a first step that is not timed


def told(monkeypatch, caplog, args, per_image, *more):
    monkeypatch.setattr("modeling_kamim.training.forecast.seconds_per_image", lambda *args: per_image)
    caplog.clear()
    with caplog.at_level(logging.INFO):
        tell_duration(None, args, *more)
    return caplog.records


def arguments(*words):
    *_, args = parse(PRETRAINING_ARGUMENTS, ["--use_cpu", "--precision", "fp32", *words])
    return args


def test_a_long_run_names_a_short_one(monkeypatch, caplog):
    args = arguments("--num_train_epochs", "100", "--per_device_train_batch_size", "32", "--global_batch_size", "64")
    (record,) = told(monkeypatch, caplog, args, 0.5, 1000)  # 16 steps an epoch
    assert record.levelno == logging.WARNING
    assert "1,600 steps of 64 images take about 14 hours on this CPU" in record.message and TRIAL in record.message
    parse(PRETRAINING_ARGUMENTS, TRIAL.split()[2:])
    (record,) = told(monkeypatch, caplog, args, 0.5, 1000, 1599)
    assert record.levelno == logging.INFO and "1 steps of 64 images take about 32 seconds" in record.message


def test_a_stream_tells_its_steps(monkeypatch, caplog):
    (record,) = told(monkeypatch, caplog, arguments("--max_steps", "10"), 0.5, None)
    assert "10 steps of 32 images take about 2.7 minutes" in record.message


@pytest.mark.parametrize("other", [{"device": torch.device("cuda")}, {"process_index": 1}])
def test_only_one_process_on_a_cpu_tells(monkeypatch, caplog, other):
    args = SimpleNamespace(**{"device": torch.device("cpu"), "process_index": 0, **other})
    assert told(monkeypatch, caplog, args, 0.5, 10) == []


@given(st.floats(0, 1e8))
def test_words_are_close_to_the_number(seconds):
    number, unit = in_words(seconds).split()
    size = {"second": 1, "minute": 60, "hour": 3600, "day": 86400}[unit.rstrip("s")]
    assert float(number.replace(",", "")) * size == pytest.approx(seconds, rel=0.06, abs=0.06)
    assert (number == "1") == (not unit.endswith("s"))
