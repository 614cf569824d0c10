"""Splits of a folder, found in one walk, against what `datasets` finds by itself."""

import random

import pytest
from datasets import data_files, load_dataset_builder
from datasets.data_files import get_data_patterns
from PIL import Image

from modeling_kamim.data.folder_patterns import one_walk

FOLDERS = [
    "train",
    "training",
    "val",
    "my_val",
    "test-2",
    "dev data",
    "cat",
    "retrain",
    "evaluation",
    "a.b",
    "[x]",
    ".git",
]
FILES = ["1.png", "train_1.png", "x-test.png", "val.png", "validation 2.png", "README.md", "metadata.csv", "eval.png"]


@pytest.fixture
def looked(monkeypatch):
    """Patterns for which the folder was really looked through."""
    patterns, resolve = [], data_files.resolve_pattern

    def look(pattern, *args, **kwargs):
        patterns.append(pattern)
        return resolve(pattern, *args, **kwargs)

    monkeypatch.setattr(data_files, "resolve_pattern", look)
    return patterns


def found(base):
    try:
        return get_data_patterns(base)
    except (FileNotFoundError, data_files.EmptyDatasetError) as error:
        return type(error)


@pytest.mark.parametrize("seed", range(25))
def test_the_splits_are_those_of_datasets(tmp_path, looked, seed):
    rng = random.Random(seed)
    for _ in range(rng.randint(0, 6)):
        folder = tmp_path / "data" / "/".join(rng.sample(FOLDERS, rng.randint(0, 2)))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / rng.choice(FILES)).touch()
    base = str(tmp_path / "data")
    expected, by_itself = found(base), len(looked)
    looked.clear()
    with one_walk(tmp_path / "data"):
        assert found(base) == expected
    assert len(looked) <= by_itself


def test_a_folder_of_classes_is_looked_through_a_few_times(tmp_path, looked):
    for number in range(6):
        file = tmp_path / "data" / f"class_{number % 2}" / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(file)
    expected = load_dataset_builder(str(tmp_path / "data"))
    assert len(looked) > 60
    looked.clear()
    with one_walk(tmp_path / "data"):
        builder = load_dataset_builder(str(tmp_path / "data"))
    assert len(looked) < 10
    assert builder.config.data_files == expected.config.data_files and builder.cache_dir == expected.cache_dir


def test_outside_of_it_datasets_is_as_it_was(tmp_path):
    before = data_files.resolve_pattern
    with pytest.raises(ZeroDivisionError), one_walk(tmp_path):
        _ = 1 / 0
    assert data_files.resolve_pattern is before
