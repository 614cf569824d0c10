"""What is published of settings and texts: no local paths, no passwords, no tokens; ordinary texts as they are."""

import json
import re
import sys

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from modeling_kamim.api.groups import PRETRAINING_ARGUMENTS
from modeling_kamim.commands.parser import given_settings
from modeling_kamim.hub.cards import Run, pretraining_card
from modeling_kamim.models.sizes import build_config
from modeling_kamim.privacy import public_settings, public_text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("run of /home/alice/data", "run of local:data"),
        ("run of /home/alice smith/data/x.png", "run of local:x.png"),
        ("logs=/home/alice/logs,k=1", "logs=local:logs,k=1"),
        ("nas:/export/alice/x", "nas:local:x"),
        ("see ~/photos/data, 3/4", "see local:data, 3/4"),
        ("../alice/data", "local:data"),
        ("x ../../alice/data", "x local:data"),
        ("data/../../alice/secret", "local:secret"),
        ("in C:\\Users\\alice", "in local:home"),
        ("on \\\\server\\alice\\x", "on local:x"),
        ("file:///home/alice/x", "local:x"),
        ('{"a": ["/home/alice/x", {"/home/alice/y": 1}]}', '{"a": ["local:x", {"local:y": 1}]}'),
        ("{'a': '/home/alice/x'}", "{'a': 'local:x'}"),
        ("https://alice:pass@host/x?token=abc#part", "https://***@host/x?***"),
        ("push to postgres://alice:p@ss/w@host/db now", "push to postgres://***@host/db now"),
        ("https://token@host/x", "https://***@host/x"),
        ('{"url": "https://host/x?key=alice"}', '{"url": "https://host/x?***"}'),
    ],
)
def test_paths_and_passwords_go_wherever_they_stand(text, expected):
    assert public_settings(text) == expected == public_settings({"run_name": text})["run_name"]
    assert public_settings(expected) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("user/model", "ILSVRC/imagenet-1k", "3/4", "a ratio of 3/4 and/or 1/2", "+/- 3", "2024/05/01", "~3/4 of it"),
        *("w_ps/T", "</b>", "**/*.png", "configs/vit/pretrain.yaml", "https://host/a/b", "hf://datasets/a/b@main/x"),
        *('{"threshold": 20, "rate": "3/4"}', '{ "a":1 }', "[1, 2", "local:data", "adamw_torch", "[0.9,0.95]"),
    ],
)
def test_ordinary_texts_stay_as_they_are(text):
    assert public_settings(text) == text


NAMES = st.from_regex(r"[a-z][a-z0-9_-]{4,9}", fullmatch=True).map(lambda name: f"q{name}")


@given(
    st.lists(NAMES, min_size=1, max_size=4, unique=True),
    st.sampled_from(["/", "~/", "../", "x/../", "C:\\", "file:///"]),
    st.sampled_from(["{}", "a {} b", "k={}", "({})", '["{}"]', "a: '{}'", "{}\n{}", "/x {}"]),
)
def test_of_a_path_in_a_text_the_last_part_is_left(parents, start, text):
    separator = "\\" if start.startswith("C") else "/"
    path = start + separator.join([*parents, "last"])
    text = text.replace("{}", path.replace("\\", "\\\\") if text.startswith("[") else path)
    public = public_text(text)
    assert not any(name in public for name in parents) and "last" in public
    assert public_text(public) == public


@given(st.text(max_size=60))
def test_any_text_is_taken_and_once_is_enough(text):
    assert public_text(public_text(text)) == public_text(text)
    json.dumps(public_settings({"a": [text]}))


def test_settings_and_card_hide_trackers_and_private_places(monkeypatch):
    words = {
        "run_name": "/home/alice/secret run",
        "project": "alice-project",
        "trackio_space_id": "alice/space",
        "keypoint_detector_args": '{"threshold": 20}',
        "lr_scheduler_kwargs": '{"note": "/home/alice/schedule"}',
        "deepspeed": None,
        "dataset_name": "https://alice:pass@host/data?token=alice",
    }
    argv = [word for key, value in words.items() if value for word in (f"--{key}", value)]
    monkeypatch.setattr(sys, "argv", ["/home/alice/run_mim.py"])
    text = given_settings(PRETRAINING_ARGUMENTS, argv)
    card = str(pretraining_card(Run("mine", "local:data", text), build_config("vit", "tiny", kamim=KAMIM)))
    for published in (text, card):
        assert not re.search("alice|pass|secret|/home|run_name", published)
    settings = yaml.safe_load(text)
    assert set(settings) == {"keypoint_detector_args"}
    assert "# dataset_name: " in text and "# lr_scheduler_kwargs: " in text  # comments, to be given anew


KAMIM = {"weighting": "keypoint", "temperature": 0.25, "mask_ratio": 0.6, "mask_patch_size": 32, "weight_patch_size": 8}
KAMIM |= {"keypoint_detector": "fast", "keypoint_source": "map", "weight_norm": "none", "keypoint_footprint": "circle"}


@given(st.text(max_size=40))
def test_settings_of_any_text_are_yaml_in_a_fence_that_holds(text):
    given_text = given_settings(PRETRAINING_ARGUMENTS, ["--image_column", f"x{text}\n```\n# y"])
    assert isinstance(yaml.safe_load(given_text)["image_column"], str)
    card = str(pretraining_card(Run("mine", "local:data", given_text), build_config("vit", "tiny", kamim=KAMIM)))
    body = card.split("\n## ")
    assert sum("Citation" in part.splitlines()[0] for part in body) == 1
    [fence] = re.findall(r"^(`{3,})yaml$", card, re.MULTILINE)
    inside = re.split(rf"\n {{0,3}}{fence}`*\n", card.split(f"{fence}yaml\n")[1])[0]
    assert yaml.safe_load(inside) == yaml.safe_load(given_text)
