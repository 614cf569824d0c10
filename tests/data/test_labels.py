"""Labels that are no classes, and folders in folders: each gets a sentence."""

import datetime

import datasets
import pyarrow as pa
import pytest
from awkward_images import photograph
from hypothesis import given
from hypothesis import strategies as st

from modeling_kamim.data.labels import check_labels
from modeling_kamim.data.loading import DataArguments, encode_labels, load_labelled_images
from modeling_kamim.errors import InputError


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def coded(values, names=("cat", "dog")):
    """Codes as a file holds them, checked by nobody."""
    features = datasets.Features({"label": datasets.ClassLabel(names=list(names))})
    table = pa.table({"label": pa.array(values, pa.int64())})
    return datasets.Dataset(table.replace_schema_metadata(features.arrow_schema.metadata))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["cat", None, "dog"], "1 of 3 images have no label in column 'label'.* row 1"),
        ([3, None], "1 of 2 images have no label"),
        ([1.0, 2.0], r"holds float64, such as 1\.0"),
        ([0.0, None], "whole numbers become floats where some are missing"),
        ([["cat"], ["dog", "cat"]], r"holds List, such as \['cat'\]"),
        ([{"name": "cat"}, {"name": "dog"}], "holds dict, such as {'name': 'cat'}"),
        ([b"cat", b"dog"], "holds binary"),
        ([datetime.date(2020, 1, 1), datetime.date(2021, 1, 1)], "holds date32"),
        ([None, None], "holds null"),
    ],
)
def test_labels_that_are_no_classes_get_a_sentence(values, message):
    with pytest.raises(InputError, match=message) as error:
        encode_labels(datasets.Dataset.from_dict({"label": values}), "label")
    assert "--label_column" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0, 7, 1], "has the label 7 in row 1, and the codes of its 2 classes are 0 to 1"),
        ([0, -3], "has the label -3 in row 1"),
        ([0, None, None], "2 of 3 images have no label"),
        ([-1, 0], r"1 of 2 images have no label in column 'label' \(None or -1\), the first in row 0"),
    ],
)
def test_codes_without_a_class_get_a_sentence(values, message):
    with pytest.raises(InputError, match=message):
        encode_labels(coded(values), "label")
    backwards = coded(values).select(range(len(values))[::-1])
    with pytest.raises(InputError, match="row|no label"):
        encode_labels(backwards, "label")


@given(st.lists(st.none() | st.integers(-3, 4), min_size=1))
def test_codes_pass_where_each_is_a_class(values):
    if all(value in range(3) for value in values):
        check_labels(coded(values, "abc"), "label")
    else:
        with pytest.raises(InputError):
            check_labels(coded(values, "abc"), "label")


def load(folder, files):
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        photograph(1).save(folder / name)
    return load_labelled_images(DataArguments(dataset_name=str(folder)), None, 0.5, seed=0)


def test_years_in_folders_of_classes_are_no_classes(tmp_path):
    classes = [f"{name}/{year}" for name in ("cat", "dog") for year in (2019, 2020)]
    files = [f"{split}/{name}/{number}.png" for split in ("train", "test") for name in classes for number in (1, 2)]
    with pytest.raises(InputError, match=r"\w+/20\d\d/.*innermost.*: 2019, 2020\. If the classes are cat, dog, move"):
        load(tmp_path / "images", files)


@pytest.mark.parametrize(
    "files",
    [
        ["cat/1.png", "dog/1.png"],
        ["train/cat/1.png", "train/dog/1.png", "validation/cat/1.png", "validation/dog/1.png"],
        ["all/images/cat/1.png", "all/images/dog/1.png"],
        ["art/cat/1.png", "photo/cat/1.png", "art/dog/1.png", "photo/dog/1.png"],
    ],
)
def test_usual_folders_of_classes_are_taken(tmp_path, caplog, files):
    assert load(tmp_path / "images", [*files, *(f.replace("1.", "2.") for f in files)]).classes.names == ["cat", "dog"]
    assert ("innermost folders: cat, dog of art/cat" in caplog.text) == files[0].startswith("art")


def test_folders_of_digits_are_classes(tmp_path):
    for files in (["0/1.png", "1/1.png"], ["train/0/1.png", "train/1/1.png"]):
        folder = tmp_path / str(len(files[0]))
        images = load(folder, [*files, *(f.replace("/1.png", "/2.png") for f in files)])
        assert images.classes.names == ["0", "1"]


def test_folders_of_different_depth_get_a_sentence(tmp_path):
    with pytest.raises(InputError, match=r"different depths \(cat/ and dog/2019/\).*equally deep"):
        load(tmp_path / "images", ["cat/1.png", "dog/2019/1.png"])
