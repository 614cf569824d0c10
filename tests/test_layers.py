"""Imports point one way: a room knows those below it alone."""

import ast
import configparser
from pathlib import Path

import pytest

import modeling_kamim

ROOT = Path(modeling_kamim.__file__).parent
# The lowest first; rooms of one line do not know each other
LAYERS = [("errors",), ("files", "limits", "privacy"), ("objective",), ("models",), ("hub",), ("data",), ("training",)]
LAYERS += [("evaluation",), ("analysis",), ("api",), ("study", "demo"), ("commands",), ("__main__",)]
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
MODULES = sorted(file for file in ROOT.rglob("*.py") if file != ROOT / "__init__.py")


def imported(file):
    """The rooms that a module imports, at its head or in a function; the version of the package is no room."""
    package = ("modeling_kamim", *file.relative_to(ROOT).parts[:-1])
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            path = [*package[: len(package) - node.level + 1], *(node.module or "").split(".")]
            names = [[*filter(None, path), alias.name] for alias in node.names]
            yield from (name[1] for name in names if name[1] != "__version__")


@pytest.mark.parametrize("file", MODULES, ids=[str(file.relative_to(ROOT)) for file in MODULES])
def test_imports_point_down(file):
    room = file.relative_to(ROOT).parts[0].removesuffix(".py")
    upwards = {other for other in imported(file) if other != room and LEVEL[other] >= LEVEL[room]}
    assert not upwards, f"{file.relative_to(ROOT)} may not import {upwards}"


def test_no_absolute_imports_of_the_package():
    assert not [
        file for file in MODULES if "from modeling_kamim" in file.read_text().replace('"from modeling_kamim', "")
    ]


def test_the_root_is_small_and_every_module_is_in_a_known_room():
    rooms = {
        path.name.removesuffix(".py")
        for path in ROOT.iterdir()
        if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert rooms - {"__init__"} <= LEVEL.keys()
    assert len(list(ROOT.glob("*.py"))) <= 6


def test_no_two_modules_have_one_name():
    names = [file.stem for file in MODULES if file.parent.name != "commands" and file.stem != "__init__"]
    assert {name for name in names if names.count(name) > 1} <= {"loading"}  # of checkpoints, of images


def test_every_room_is_installed():
    config = configparser.ConfigParser()
    config.read(ROOT.parent / "setup.cfg")
    installed = set(config["options"]["packages"].split())
    folders = {file.relative_to(ROOT.parent).parent for file in MODULES}
    assert installed == {"modeling_kamim.configs", *(".".join(folder.parts) for folder in folders)}
