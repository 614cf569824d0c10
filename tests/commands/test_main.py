"""`kamim`: what it lists, what it says of typing mistakes, and that neither waits for torch."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from modeling_kamim import __version__
from modeling_kamim.api.groups import CLASSIFICATION_ARGUMENTS, PREPARATION_ARGUMENTS, PRETRAINING_ARGUMENTS
from modeling_kamim.commands.check import CHECK_ARGUMENTS
from modeling_kamim.commands.configs import config_file, packaged
from modeling_kamim.commands.configs import main as configs_main
from modeling_kamim.commands.main import COMMANDS, dispatch, usage
from modeling_kamim.commands.parser import parse
from modeling_kamim.commands.program import program
from modeling_kamim.commands.spelling import known_options
from modeling_kamim.errors import InputError

ROOT = Path(__file__).parents[2]
LIGHT = (
    "; heavy = {'torch', 'transformers', 'datasets', 'cv2', 'matplotlib'} & set(sys.modules); assert not heavy, heavy"
)


def kamim(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["kamim", *words])
    dispatch()


def python(code, **kwargs):
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, **kwargs)


def test_help_lists_every_command_on_a_screen(monkeypatch, capsys):
    kamim(monkeypatch, "--help")
    text = capsys.readouterr().out
    assert text.strip() == usage() and len(text.splitlines()) < 40 and max(map(len, text.splitlines())) <= 100
    modules = {file.stem for file in (ROOT / "modeling_kamim" / "commands").glob("*.py")}
    assert set(COMMANDS) <= modules and all(f"  {name} " in text for name in COMMANDS)
    kamim(monkeypatch, "--version")
    assert capsys.readouterr().out.strip() == f"kamim {__version__}"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["pertrain"], "no command 'pertrain'; did you mean 'pretrain'"),
        (["pretrain", "--modle_type", "vit"], "unknown argument '--modle_type'; did you mean 'model_type'"),
        (["evaluate", "--num-train-epoch=3"], "did you mean 'num_train_epochs'"),
    ],
)
def test_typing_mistakes_are_told_with_the_nearest_name(monkeypatch, words, message):
    with pytest.raises(InputError, match=message):
        kamim(monkeypatch, *words)


@pytest.mark.parametrize(
    "kinds", [PRETRAINING_ARGUMENTS, CLASSIFICATION_ARGUMENTS, PREPARATION_ARGUMENTS, CHECK_ARGUMENTS]
)
def test_every_option_is_known_by_its_spelling(monkeypatch, capsys, kinds):
    monkeypatch.setattr(sys, "argv", ["kamim pretrain"])
    with pytest.raises(SystemExit):
        parse(kinds, ["--help-all"])
    shown = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("  --")]
    assert len(shown) > 8 and {name[2:].removeprefix("no_").strip(",") for name in shown} <= known_options()


def test_help_shows_what_people_set_and_help_all_the_rest(monkeypatch, capsys):
    texts = {}
    for flag in ("--help", "--help-all"):
        with pytest.raises(SystemExit) as end:
            kamim(monkeypatch, "pretrain", flag)
        assert end.value.code in (None, 0)
        texts[flag] = capsys.readouterr().out
    few, every = (
        set(word for word in text.split() if word.startswith("--")) - {"--help-all"} for text in texts.values()
    )
    assert {"--temperature", "--learning_rate", "--max_steps", "--precision", "--output_dir"} <= few < every
    assert len(texts["--help"].splitlines()) < 0.5 * len(texts["--help-all"].splitlines())
    assert "--help-all lists them" in texts["--help"] and "--adam_beta1" in every - few


def test_nothing_heavy_is_imported_for_help_and_mistakes():
    assert python(f"import sys, modeling_kamim{LIGHT}").returncode == 0
    for words in ("'--help'", "'pretrain', '--modle_type'", "'configs'"):
        start = f"import sys; sys.argv = ['kamim', {words}]\nfrom modeling_kamim.commands import main\n"
        finished = python(f"{start}try:\n    main.main()\nexcept SystemExit:\n    pass\nimport sys{LIGHT}")
        assert finished.returncode == 0, finished.stderr


@pytest.mark.parametrize(
    ("argv0", "expected"),
    [
        ("kamim push", ["kamim", "push"]),
        ("/opt/venv/bin/kamim", ["kamim"]),
        ("/site-packages/modeling_kamim/commands/pretrain.py", ["kamim", "pretrain"]),
        ("/home/alice/run_mim.py", ["python", "run_mim.py"]),
    ],
)
def test_the_program_is_named_as_it_was_called(argv0, expected):
    assert program([argv0, "--seed", "1"]) == expected


def test_configs_are_found_from_everywhere_and_copied_once(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    kamim(monkeypatch, "configs")
    names = capsys.readouterr().out.split()
    assert {file.relative_to(packaged()).as_posix() for file in packaged().rglob("*.yaml")} == set(names)
    assert config_file(Path("configs/quickstart/pretrain.yaml")).is_file()
    kamim(monkeypatch, "configs", "quickstart/pretrain.yaml")
    assert yaml.safe_load(Path("pretrain.yaml").read_text())["model_type"] == "vit_mae"
    with pytest.raises(InputError, match="is there already"):
        configs_main()
    with pytest.raises(InputError, match="did you mean 'quickstart/pretrain.yaml'"):
        kamim(monkeypatch, "configs", "quickstart/pretrian.yaml")


@pytest.mark.slow
def test_the_wheel_works_in_an_empty_environment_and_folder(tmp_path):
    """Only the packages that it needs come from this environment."""
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path)]
    subprocess.run([*build, str(ROOT)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"modeling_kamim/py.typed", "modeling_kamim/hub/templates/pretrained.md"} <= names
    assert "modeling_kamim/configs/quickstart/pretrain.yaml" in names and not any("tests" in name for name in names)
    place, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--target", str(place), str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    environment = {"PYTHONPATH": str(place), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    small = ["--model_size", "tiny", "--max_steps", "2", "--use_cpu", "true"]
    for words in (
        ["pretrain", *small],
        ["configs"],
        ["pretrain", "quickstart/pretrain.yaml", *small, "--output_dir", "b"],
    ):
        command = [sys.executable, "-P", str(place / "bin" / "kamim"), *words]
        finished = subprocess.run(command, cwd=empty, env=environment, capture_output=True, text=True)
        assert finished.returncode == 0, finished.stderr[-2000:]
    assert (empty / "outputs" / "mim" / "model.safetensors").is_file() and (empty / "b" / "README.md").is_file()
