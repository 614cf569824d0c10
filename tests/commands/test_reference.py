"""The pages of docs/ that are made from code, and the strict build of all of them."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

import modeling_kamim
from modeling_kamim.commands.main import COMMANDS

ROOT = Path(__file__).parents[2]
pytest.importorskip("sphinx")


@pytest.fixture(scope="module")
def reference():
    file = ROOT / "docs" / "_extensions" / "command_reference.py"
    spec = importlib.util.spec_from_file_location("command_reference", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_that_help_shows_is_in_the_reference(reference, name):
    text = "\n".join(reference.command_lines(name))
    assert text.startswith(f"## kamim {name}\n")
    shown = reference.parser_of(name).format_help()
    options = set(re.findall(r"^ +(--\w+)", shown, re.MULTILINE))
    assert {option for option in options if f"\n`{option}`" not in text} == set()


def test_every_public_name_is_in_the_reference():
    text = (ROOT / "docs" / "reference.md").read_text()
    documented = set(re.findall(r"modeling_kamim\.(\w+)$", text, re.MULTILINE))
    assert documented == set(modeling_kamim.__all__)


def test_every_page_can_be_reached():
    text = (ROOT / "docs" / "index.md").read_text()
    pages = {file.relative_to(ROOT / "docs").with_suffix("").as_posix() for file in (ROOT / "docs").rglob("*.md")}
    pages = {page for page in pages if not page.startswith("_")} | {"commands"}
    named = set(re.findall(r"^([\w/]+)$", text, re.MULTILINE))
    assert named == pages - {"index"}


@pytest.mark.slow
def test_the_pages_are_built_without_a_warning(tmp_path):
    pytest.importorskip("furo")
    strict = ["--nitpicky", "--fail-on-warning", "--keep-going", "--quiet"]
    command = [sys.executable, "-m", "sphinx", *strict, "-b", "html", ROOT / "docs", tmp_path]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    assert "kamim pretrain" in (tmp_path / "commands.html").read_text()
    assert (tmp_path / "searchindex.js").is_file()
    for page in tmp_path.rglob("*.html"):  # read without a network
        assert not re.search(r"<(script|link)[^>]+(src|href)=.https?://", page.read_text()), page
