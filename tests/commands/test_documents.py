"""README, docs and cards: the Python in them runs, and the commands in them are understood."""

import argparse
import ast
import importlib.util
import re
import shlex
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
from learned_sources import save_encoder, save_superpoint
from nbclient import NotebookClient
from PIL import Image
from tiny_models import tiny_config, tiny_vit
from transformers import HfArgumentParser

from modeling_kamim import KamimForMaskedImageModeling
from modeling_kamim.commands.main import COMMANDS
from modeling_kamim.models.pixel_range import PixelRange
from modeling_kamim.models.processor import image_processor, keep_pixel_range
from modeling_kamim.objective.sources import saliency, superpoint
from modeling_kamim.training import arguments

ROOT = Path(__file__).parents[2]
TEXTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LAUNCHED = r"(?:python|accelerate launch|torchrun)\s[^`\n]*?\w+\.py\b"
STARTS = rf"{LAUNCHED}|kamim [a-z]+\b|accelerate launch [^`\n]*?\.commands\.[a-z]+"
COMMAND = re.compile(rf"^(?:\$ |# +| +)?((?:{STARTS}).*)", re.MULTILINE)
INLINE = re.compile(rf"`((?:{STARTS})\s[^`]+\s[^`]+)`")  # not the bare name of a command, or of an option of it


def named(texts, found):
    """Parameters for pytest: what is found in each text, named by the text and a number."""
    for file in texts:
        for number, item in enumerate(found(file.read_text())):
            yield pytest.param(item, id=f"{file.relative_to(ROOT)}-{number}")


def snippets(text):
    return [body for language, body in BLOCK.findall(text) if language == "python"]


def commands(text):
    """Command lines of the scripts and benchmarks, in blocks and in sentences, those of several lines joined."""
    blocks = "\n".join(body for language, body in BLOCK.findall(text) if language in ("", "bash", "yaml"))
    return lines(blocks) + lines("\n".join(" ".join(found.split()) for found in INLINE.findall(BLOCK.sub("", text))))


def lines(text):
    """The command lines of a text that is nothing but them and sentences, those of several lines joined."""
    found = [command.split("  #")[0] for command in COMMAND.findall(text.replace("\\\n", " "))]
    return [command for command in found if not command.startswith("kamim configs")]


def docstring_lines(code):
    """Those of a script's docstring, with everything that it has in brackets."""
    return [re.sub(r"[\[\]]", "", line) for line in lines(ast.get_docstring(ast.parse(code)) or "")]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working directory with a checkpoint under each of the names that the texts use."""
    config = tiny_vit()
    model = KamimForMaskedImageModeling.from_config(config)
    for name in ("outputs/mine", "user/kamim-vit-t"):
        model.save_pretrained(tmp_path / name)
        image_processor(config.image_size).save_pretrained(tmp_path / name)
    bands = tiny_vit(num_channels=6)
    KamimForMaskedImageModeling.from_config(bands).save_pretrained(tmp_path / "outputs/bands")
    processor = image_processor(bands.image_size, None, 6, [0.5], [0.25])
    keep_pixel_range(processor, PixelRange((0.0,) * 6, (3000.0,) * 6)).save_pretrained(tmp_path / "outputs/bands")
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "path/to/images" / name).mkdir(parents=True)
        for number in range(20):
            pixels = rng.integers(0, 256, (48, 64, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "path/to/images" / name / f"{number}.jpg")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("snippet", named([file for file in TEXTS if "analysis" not in file.parts], snippets))
def test_snippets_run(place, snippet):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8))
    exec(compile(snippet, "snippet", "exec"), {"image": image})


def test_the_notebook_runs_and_is_saved_without_outputs(monkeypatch, tmp_path):
    notebook = nbformat.read(ROOT / "examples" / "kamim.ipynb", as_version=4)
    assert len(notebook.cells) < 15
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    assert "steps = 200" in first.source
    first.source = first.source.replace("steps = 200", "steps = 2")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in data for data in shown) == 2
    assert sum("data:image/png;base64," in data.get("text/html", "") for data in shown) == 1


class Parsed(Exception):
    """Raised when the command line is read, before any work."""


@pytest.fixture
def only_parse(monkeypatch):
    read, read_dataclasses = argparse.ArgumentParser.parse_args, HfArgumentParser.parse_args_into_dataclasses

    def parse_args(*args, **kwargs):
        read(*args, **kwargs)
        raise Parsed

    def parse_args_into_dataclasses(*args, **kwargs):
        *_, unknown = read_dataclasses(*args, **kwargs)
        assert not unknown
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
    monkeypatch.setattr(HfArgumentParser, "parse_args_into_dataclasses", parse_args_into_dataclasses)


SCRIPTS = [*sorted(ROOT.glob("*.py")), *sorted((ROOT / "benchmarks").glob("*.py"))]
SCRIPTS += sorted((ROOT / "modeling_kamim" / "commands").glob("*.py"))
CARDS = sorted((ROOT / "modeling_kamim" / "hub" / "templates").glob("*.md"))


@pytest.mark.parametrize("command", [*named(TEXTS + CARDS, commands), *named(SCRIPTS, docstring_lines)])
def test_commands_are_understood(monkeypatch, only_parse, tmp_path, command):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    words = shlex.split(re.sub("{{.*?}}", "64", re.sub("{%.*?%}", "", command)).split(" | ")[0])
    monkeypatch.chdir(ROOT)  # where the configs are
    monkeypatch.setattr(arguments, "config_to_pretrain", lambda name, size, channels: tiny_config("dinov2", size or 32))
    for module, save in ((superpoint, save_superpoint), (saliency, save_encoder)):
        monkeypatch.setattr(module, "model_folder", lambda *given, save=save: Path(save(tmp_path / save.__name__)))
    start = next(number for number, word in enumerate(words) if word.endswith(".py") or word.split(".")[-1] in COMMANDS)
    name = words[start].split(".")[-1]
    if name in COMMANDS:
        module, program = importlib.import_module(f"modeling_kamim.commands.{name}"), f"kamim {name}"
    else:
        program = words[start]
        spec = importlib.util.spec_from_file_location(Path(program).stem, ROOT / program)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", [program, *words[start + 1 :]])
    with pytest.raises(Parsed):
        module.main()
