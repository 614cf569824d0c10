"""`kamim demo`: what it says before it serves, and the app without a browser."""

import configparser
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from modeling_kamim.commands import demo
from modeling_kamim.errors import InputError

gradio = pytest.importorskip("gradio")
ROOT = Path(__file__).parents[2]


def call(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["kamim demo", *words])
    demo.main()


@pytest.fixture
def served(monkeypatch):
    """What would be served, in place of serving it."""
    calls = []
    monkeypatch.setattr("modeling_kamim.demo.serving.serve", lambda *given: calls.append(given))
    return calls


def test_contradictions_and_missing_parts_are_one_line(monkeypatch, tmp_path):
    with pytest.raises(InputError, match="--checkpoint and --without_model exclude each other"):
        call(monkeypatch, "--without_model", "--checkpoint", "a")
    with pytest.raises(InputError, match="device is 'tpu'"):
        call(monkeypatch, "--device", "tpu")
    with pytest.raises(InputError, match="nowhere"):
        call(monkeypatch, "--checkpoint", str(tmp_path / "nowhere"), "--device", "cpu")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r'the demo needs gradio: pip install "modeling-kamim\[demo\]"'):
        call(monkeypatch)


def test_without_a_checkpoint_the_quickstart_is_trained_once(monkeypatch, tmp_path, served):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("modeling_kamim.demo.checkpoints.load_models", lambda names, device: list(names))
    trained = []

    def run(words, check):
        trained.append(words[1:])
        file = Path("outputs/quickstart/kamim/model.safetensors")
        file.parent.mkdir(parents=True)
        file.touch()
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(subprocess, "run", run)
    call(monkeypatch, "--device", "cpu", "--port", "7999")
    call(monkeypatch, "--device", "cpu")
    call(monkeypatch, "--device", "cpu", "--without_model")
    recipe = ["-m", "modeling_kamim.commands.pretrain", "configs/quickstart/pretrain.yaml"]
    assert trained == [[*recipe, "--resume_from_checkpoint", "auto"]]
    shown = str(Path("outputs/quickstart/kamim"))
    assert served == [([shown], "127.0.0.1", 7999), ([shown], "127.0.0.1", None), ([], "127.0.0.1", None)]


def test_a_training_that_fails_is_told(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(subprocess, "run", lambda words, check: SimpleNamespace(returncode=3))
    with pytest.raises(InputError, match="ended with status 3; give --checkpoint, or --without_model"):
        call(monkeypatch, "--device", "cpu")


def test_the_app_keeps_to_itself():
    """Nothing is measured or called by name from outside, and there is no way to a file but an upload."""
    from modeling_kamim.demo.app import build_app

    app = build_app([])
    assert app.analytics_enabled is False and app.delete_cache == (600, 3600)
    assert all(dependency["api_visibility"] == "private" for dependency in app.config["dependencies"])
    said = [part["props"]["value"] for part in app.config["components"] if part["type"] == "markdown"]
    assert sum("kamim demo --checkpoint" in text for text in said) == 3
    assert not list(Path(demo.__file__).parents[1].joinpath("demo").glob("*.pyi"))


def test_errors_are_told_in_a_sentence():
    from modeling_kamim.demo.app import _told

    def fails(photograph, error):
        raise error

    with pytest.raises(gradio.Error, match="The file is empty."):
        _told(fails)("photograph", InputError("the file is empty"))
    with pytest.raises(gradio.Error, match="This did not work") as told:
        _told(fails)("photograph", RuntimeError("/home/someone/secret"))
    assert "secret" not in str(told.value)
    assert _told(fails)(None, RuntimeError()) is None


def test_the_space_has_what_the_package_needs(monkeypatch):
    space = ROOT / "examples" / "space"
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    needed = [line for line in config["options"]["install_requires"].split("\n") if line and not line.startswith("#")]
    assert (space / "requirements.txt").read_text().split("\n")[:-1] == needed
    front, text = (space / "README.md").read_text().split("---")[1:]
    card = yaml.safe_load(front)
    assert card["sdk"] == "gradio" and card["app_file"] == "app.py" and "CHECKPOINTS" in text
    extra = config["options.extras_require"]["demo"].strip()
    assert extra == f"gradio>={card['sdk_version'].removesuffix('.0')}"

    calls = []
    monkeypatch.setattr("modeling_kamim.demo.serving.serve", lambda *models, **where: calls.append((models, where)))
    monkeypatch.setattr("modeling_kamim.demo.checkpoints.load_models", lambda names, device: names)
    monkeypatch.setenv("CHECKPOINTS", "user/a user/b")
    runpy.run_path(str(space / "app.py"))
    assert calls == [((["user/a", "user/b"],), {"host": "0.0.0.0", "port": 7860})]
