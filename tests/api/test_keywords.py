"""Keywords have the types of the command line."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from modeling_kamim.api.groups import CLASSIFICATION_ARGUMENTS, PRETRAINING_ARGUMENTS
from modeling_kamim.api.keywords import checked_settings, make_settings
from modeling_kamim.errors import InputError

GROUPS = {"pretrain": PRETRAINING_ARGUMENTS, "evaluate": CLASSIFICATION_ARGUMENTS}


def default(field):
    return field.default_factory() if field.default is dataclasses.MISSING else field.default


@pytest.mark.parametrize("name", GROUPS)
def test_every_default_is_allowed(name):
    given = {field.name: default(field) for kind in GROUPS[name] for field in dataclasses.fields(kind) if field.init}
    checked = checked_settings(GROUPS[name], given)
    assert checked == {key: value for key, value in given.items() if value is not None}
    assert [type(group) for group in make_settings(GROUPS[name], {"use_cpu": True})] == list(GROUPS[name])


@pytest.mark.parametrize(
    ("given", "checked"),
    [
        ({"num_train_epochs": 3}, {"num_train_epochs": 3.0}),
        ({"max_steps": np.int64(3)}, {"max_steps": 3}),
        ({"learning_rate": np.float32(0.5)}, {"learning_rate": 0.5}),
        ({"output_dir": Path("outputs") / "mine"}, {"output_dir": "outputs/mine"}),
        ({"lr_scheduler_kwargs": {"min_lr": 1e-6}}, {"lr_scheduler_kwargs": {"min_lr": 1e-6}}),
        ({"temperature": None}, {}),
    ],
)
def test_what_python_means(given, checked):
    found = checked_settings(PRETRAINING_ARGUMENTS, given)
    assert found == checked
    assert [type(value) for value in found.values()] == [type(value) for value in checked.values()]


def test_a_number_is_a_list_of_it():
    assert checked_settings(CLASSIFICATION_ARGUMENTS, {"seeds": 3})["seeds"] == [3]
    assert checked_settings(CLASSIFICATION_ARGUMENTS, {"seeds": (1, 2)})["seeds"] == [1, 2]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"temprature": 1.0}, "unknown setting 'temprature'; did you mean 'temperature'?"),
        ({"temperature": "0.25"}, "temperature is '0.25'; it must be float"),
        ({"max_steps": 3.5}, "max_steps is 3.5; it must be int"),
        ({"max_steps": True}, "max_steps is True; it must be int"),
        ({"use_cpu": "yes"}, "use_cpu is 'yes'; it must be bool"),
        ({"target": "edges"}, "target is 'edges'; allowed: pixels, normalized_pixels"),
        ({"model_type": "resnet"}, "model_type is 'resnet'; allowed: vit"),
    ],
)
def test_wrong_keywords(given, message):
    with pytest.raises(InputError) as error:
        checked_settings(PRETRAINING_ARGUMENTS, given)
    assert str(error.value).startswith(message)
