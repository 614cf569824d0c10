"""Ids of rows: unique, of every split, and without a path of this machine."""

import datasets
import numpy as np
import pytest
from PIL import Image

from modeling_kamim.data.loading import keep_encoded, load_images
from modeling_kamim.data.row_ids import RowIds

IMAGES = datasets.Features({"image": datasets.Image(decode=False)})


def rows_of(paths, **columns):
    images = [{"bytes": b"x", "path": path} for path in paths]
    table = {"image": datasets.Features(IMAGES)["image"], **{name: None for name in columns}}
    kinds = {int: "int64", str: "string", float: "float64"}
    table |= {name: datasets.Value(kinds[type(values[0])]) for name, values in columns.items()}
    return datasets.Dataset.from_dict({"image": images, **columns}, features=datasets.Features(table))


def ids_of(rows, folder=None):
    ids = RowIds.choose("train", rows, "image", folder)
    found = ids(rows, 0, len(rows))
    assert found[1:2] == ids(rows, 1, 2) and len(set(found)) == len(found)
    return found


def test_files_of_a_folder_are_named_by_their_place_in_it(tmp_path):
    for name in ("train/cat/1.png", "train/dog/1.png", "test/cat/1.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / name)
    splits = {name: keep_encoded(rows, "image") for name, rows in load_images(str(tmp_path)).items()}
    assert ids_of(splits["train"], str(tmp_path)) == ["train/cat/1.png", "train/dog/1.png"]
    assert ids_of(splits["test"], str(tmp_path)) == ["test/cat/1.png"]
    assert ids_of(splits["train"]) == ["train/0", "train/1"]  # two files of one name, in a folder that nobody named
    assert ids_of(splits["train"].select([1, 0]), str(tmp_path)) == ["train/dog/1.png", "train/cat/1.png"]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (rows_of(["a.png", "b.png"]), ["a.png", "b.png"]),
        (rows_of(["cat/a.png", "dog/a.png"]), ["cat/a.png", "dog/a.png"]),
        (rows_of(["/home/me/a.png", "../b.png"]), ["a.png", "b.png"]),
        (rows_of(["zip://cat/a.png::/home/me/all.zip", "hf://b.png"]), ["cat/a.png", "b.png"]),
        (rows_of(["a.png", None]), ["train/0", "train/1"]),
        (rows_of(["a.png", "a.png"]), ["train/0", "train/1"]),
        (rows_of(["a.png", "b.png"], id=[7, 9]), ["7", "9"]),
        (rows_of(["a.png", "b.png"], file_name=["x/1", "/home/me/2"]), ["x/1", "2"]),
        (rows_of(["a.png", "b.png"], id=[7, 7]), ["a.png", "b.png"]),
        (rows_of(["a.png", "b.png"], id=[0.5, 0.7]), ["a.png", "b.png"]),
        (rows_of(["a.png"] * 2500, id=list(range(2500))), list(map(str, range(2500)))),
    ],
)
def test_names_and_numbers(rows, expected):
    assert ids_of(rows) == expected
