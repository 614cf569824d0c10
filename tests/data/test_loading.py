"""Loading from anywhere, finding columns, labels, splits, and reproducible samples."""

import logging
import random
from pathlib import Path

import cv2
import datasets
import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from hypothesis import assume, example, given
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from modeling_kamim.data import photographs as embedded
from modeling_kamim.data.bad_images import list_bad_images
from modeling_kamim.data.decoding import decode_image
from modeling_kamim.data.loading import (
    choose_splits,
    encode_labels,
    find_image_column,
    find_label_column,
    hold_out,
    keep_encoded,
    load_images,
    low_shot,
)
from modeling_kamim.data.samples import SampleDataset
from modeling_kamim.errors import InputError


def write_images(folder, names, seed=0):
    generator = np.random.default_rng(seed)
    for name in names:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(file)
    return folder


def table(num_rows=4):
    images = [Image.new("RGB", (8, 8), (index, 0, 0)) for index in range(num_rows)]
    features = Features({"image": datasets.Image(), "label": ClassLabel(names=["a", "b"])})
    return Dataset.from_dict({"image": images, "label": [index % 2 for index in range(num_rows)]}, features=features)


def reds(dataset):
    return [image.convert("RGB").getpixel((0, 0))[0] for image in dataset["image"]]


# Loading


def test_flat_folder(tmp_path):
    loaded = load_images(str(write_images(tmp_path, ["1.png", "2.jpg", "3.png"])))
    assert list(loaded) == ["train"] and len(loaded["train"]) == 3
    assert isinstance(loaded["train"].features["image"], datasets.Image)


def test_class_folders(tmp_path):
    loaded = load_images(str(write_images(tmp_path, ["cat/1.png", "cat/2.png", "dog/1.png"])))
    assert list(loaded) == ["train"]
    assert loaded["train"].features["label"].names == ["cat", "dog"]
    assert sorted(loaded["train"]["label"]) == [0, 0, 1]


def test_train_and_validation_folders(tmp_path):
    names = ["train/cat/1.png", "train/cat/2.png", "train/dog/1.png", "validation/cat/3.png", "validation/dog/2.png"]
    loaded = load_images(str(write_images(tmp_path, names)))
    assert {split: len(rows) for split, rows in loaded.items()} == {"train": 3, "validation": 2}
    assert loaded["validation"].features["label"].names == ["cat", "dog"]


def test_parquet_file_and_folder(tmp_path):
    file = tmp_path / "one" / "photos.parquet"
    file.parent.mkdir()
    table(5).to_parquet(file)
    assert reds(load_images(str(file))["train"]) == [0, 1, 2, 3, 4]
    folder = tmp_path / "many"
    folder.mkdir()
    for split, rows in {"train-00000-of-00002": 3, "train-00001-of-00002": 2, "validation-00000-of-00001": 4}.items():
        table(rows).to_parquet(folder / f"{split}.parquet")
    loaded = load_images(str(folder))
    assert {split: len(rows) for split, rows in loaded.items()} == {"train": 5, "validation": 4}
    assert loaded["train"].features["label"].names == ["a", "b"]
    assert reds(loaded["train"]) == [0, 1, 2, 0, 1]


def test_saved_by_datasets(tmp_path):
    table(3).save_to_disk(tmp_path / "one")
    DatasetDict({"train": table(4), "test": table(2)}).save_to_disk(tmp_path / "two")
    one, two = load_images(str(tmp_path / "one")), load_images(str(tmp_path / "two"))
    assert isinstance(one, DatasetDict) and list(one) == ["train"] and reds(one["train"]) == [0, 1, 2]
    assert {split: len(rows) for split, rows in two.items()} == {"train": 4, "test": 2}


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_images(tmp_path / "photos", ["1.png", "2.png"])
    assert len(load_images("~/photos")["train"]) == 2


def test_what_cannot_be_loaded_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "image.xyz").write_text("nothing to see")
    (tmp_path / "broken.parquet").write_bytes(b"not parquet")
    for name in ("nowhere", "empty", "broken.parquet", "notes"):
        with pytest.raises(InputError, match=name) as error:
            load_images(str(tmp_path / name))
        assert "Give a folder of images" in str(error.value)
    for name in ("./nowhere", "../nowhere", "someone/no-such-dataset"):
        with pytest.raises(InputError, match=name):
            load_images(name)


# The embedded photographs


@pytest.fixture(scope="module")
def photographs_dataset():
    return load_images(None)


def tiles(dataset):
    """{label: tiles as arrays}."""
    result = {}
    for row in keep_encoded(dataset, "image"):
        result.setdefault(row["label"], []).append(decode_image(row["image"]))
    return result


def pack(pixels):
    """One integer a pixel."""
    return pixels.astype(np.int32) @ np.array([1, 256, 65536], np.int32)


def find(tile, region):
    """Left sides of every place where a packed tile is in a packed region."""
    height, width = tile.shape
    rows, columns = region.shape[0] - height + 1, region.shape[1] - width + 1
    tops, lefts = np.nonzero(region[:rows, :columns] == tile[0, 0])
    for y, x in [(95, 95), (0, 95), (95, 0), (50, 50), (20, 70), (70, 20)]:
        same = region[tops + y, lefts + x] == tile[y, x]
        tops, lefts = tops[same], lefts[same]
    places = zip(tops, lefts, strict=True)
    return [left for top, left in places if np.array_equal(region[top : top + height, left : left + width], tile)]


def test_photographs_are_the_default_with_a_warning(caplog, photographs_dataset):
    with caplog.at_level(logging.WARNING):
        again = load_images(None)
    assert "--dataset_name" in caplog.text and "toy" in caplog.text
    assert again["train"]._fingerprint == photographs_dataset["train"]._fingerprint


def test_photographs_have_all_classes_in_both_splits(photographs_dataset):
    assert set(photographs_dataset) == {"train", "validation"}
    train, validation = choose_splits(photographs_dataset)
    assert len(train) > len(validation) > 100
    assert find_image_column(train) == "image" and find_label_column(train) == "label"
    assert train.features["label"].names == list(embedded.PHOTOGRAPHS)
    assert set(train["label"]) == set(validation["label"]) == set(range(len(embedded.PHOTOGRAPHS)))


def test_no_pixel_of_a_photograph_is_in_both_splits(photographs_dataset):
    train, validation = tiles(photographs_dataset["train"]), tiles(photographs_dataset["validation"])
    for label, file in enumerate(embedded.PHOTOGRAPHS.values()):
        photograph = pack(embedded._read(file))
        boundary = round(photograph.shape[1] * 0.7)
        train_region, validation_region = photograph[:, :boundary], photograph[:, boundary:]
        for tile in train[label]:
            assert tile.shape == (96, 96, 3)
            assert find(pack(tile), train_region)
        for tile in validation[label]:
            assert find(pack(tile), validation_region)
            assert not find(pack(tile), train_region)


# Splits and columns


def test_splits_are_chosen_by_their_usual_names():
    data = DatasetDict({"train": table(4), "test": table(2), "val": table(3), "extra": table(1)})
    train, validation = choose_splits(data)
    assert (len(train), len(validation)) == (4, 3)
    assert len(choose_splits(data, validation_split="extra")[1]) == 1
    assert [len(rows) for rows in choose_splits(data, "test")] == [2, 3]
    assert len(choose_splits(DatasetDict({"train": table(4), "test": table(2)}))[1]) == 2
    assert choose_splits(DatasetDict({"train": table(4), "unsupervised": table(2)}))[1] is None
    assert choose_splits(DatasetDict({"test": table(4)}), "test")[1] is None
    assert choose_splits(DatasetDict({"train": table(4), "test": table(2).select([])}))[1] is None


def test_absent_and_empty_splits_are_refused():
    data = DatasetDict({"train": table(4), "test": table(2)})
    for arguments in [("training",), ("train", "dev")]:
        with pytest.raises(InputError, match=f"{arguments[-1]}.*train, test"):
            choose_splits(data, *arguments)
    with pytest.raises(InputError, match="'train' has no images"):
        choose_splits(DatasetDict({"train": table(4).select([])}))


IMAGE, TEXT, NUMBER = datasets.Image(), Value("string"), Value("int64")


def empty(**features):
    return Dataset.from_dict({name: [] for name in features}, features=Features(features))


@pytest.mark.parametrize(
    "features, expected",
    [
        ({"scan": IMAGE, "image": TEXT}, "scan"),  # by type
        ({"mask": IMAGE, "img": IMAGE}, "img"),  # by name among several
        ({"image": TEXT, "caption": TEXT}, "image"),  # by name where no column is typed
        ({"label": NUMBER, "jpg": Value("binary")}, "jpg"),
    ],
)
def test_image_column_is_found(features, expected):
    assert find_image_column(empty(**features)) == expected
    assert find_image_column(empty(**features), next(iter(features))) == next(iter(features))


@pytest.mark.parametrize("features", [{"left": IMAGE, "right": IMAGE}, {"file": TEXT, "caption": TEXT}])
def test_unclear_image_columns_are_listed(features):
    with pytest.raises(InputError, match="--image_column") as error:
        find_image_column(empty(**features))
    assert all(name in str(error.value) for name in features)


CLASSES = ClassLabel(names=["a", "b"])


@pytest.mark.parametrize(
    "features, expected",
    [
        ({"image": IMAGE, "species": CLASSES, "label": TEXT}, "species"),
        ({"image": IMAGE, "fine_label": CLASSES, "coarse_label": CLASSES}, "fine_label"),
        ({"image": IMAGE, "label": NUMBER, "id": NUMBER}, "label"),
        ({"image": IMAGE, "category": TEXT}, "category"),
    ],
)
def test_label_column_is_found(features, expected):
    assert find_label_column(empty(**features)) == expected
    assert find_label_column(empty(**features), next(iter(features))) == next(iter(features))


@pytest.mark.parametrize("features", [{"image": IMAGE, "one": CLASSES, "two": CLASSES}, {"image": IMAGE, "id": NUMBER}])
def test_unclear_label_columns_are_listed(features):
    with pytest.raises(InputError, match="--label_column") as error:
        find_label_column(empty(**features))
    assert all(name in str(error.value) for name in features)


def test_images_alone_have_no_labels():
    with pytest.raises(InputError, match="no labels .columns: image.* folder of its own"):
        find_label_column(empty(image=IMAGE))


def test_absent_columns_are_refused():
    for find_column, option in [(find_image_column, "--image_column"), (find_label_column, "--label_column")]:
        with pytest.raises(InputError, match=f"'photo'.*{option}.*image.*label"):
            find_column(table(), "photo")


def test_keep_encoded_hands_out_bytes(tmp_path):
    row = keep_encoded(table(), "image")[1]["image"]
    assert isinstance(row["bytes"], bytes) and decode_image(row)[0, 0].tolist() == [1, 0, 0]
    loaded = keep_encoded(load_images(str(write_images(tmp_path, ["1.png"])))["train"], "image")
    assert Path(loaded[0]["image"]["path"]).name == "1.png"


def test_columns_that_hold_no_images_are_refused():
    with pytest.raises(InputError, match="'label'.*--image_column"):
        keep_encoded(table(), "label")
    numbers = Dataset.from_dict({"image": [1, 2]})
    with pytest.raises(InputError, match="'image' holds int64"):
        keep_encoded(numbers, "image")


# Labels


def labels(values):
    return Dataset.from_dict({"row": list(range(len(values))), "label": values})


def meaning(dataset):
    """{row: name of its class}."""
    return {row["row"]: dataset.features["label"].int2str(row["label"]) for row in dataset}


@pytest.mark.parametrize("values", [["owl", "cat", "owl", "dog"], [7, 3, 7, 10]])
def test_strings_and_integers_become_classes(values):
    encoded = encode_labels(labels(values), "label")
    assert isinstance(encoded.features["label"], ClassLabel) and encoded.features["label"].num_classes == 3
    assert meaning(encoded) == {row: str(value) for row, value in enumerate(values)}
    assert set(encoded["label"]) == {0, 1, 2}
    assert encode_labels(encoded, "label") is encoded


@pytest.mark.parametrize("values, others", [(["owl", "cat", "dog"], ["dog", "owl"]), ([7, 3, 10], [10, 7])])
def test_validation_gets_the_classes_of_training(values, others):
    train = encode_labels(labels(values), "label")
    validation = encode_labels(labels(others), "label", train.features["label"])
    assert validation.features["label"] == train.features["label"]
    assert meaning(validation) == {row: str(value) for row, value in enumerate(others)}
    assert dict(zip(validation["row"], validation["label"], strict=True)) == {
        row: train["label"][values.index(value)] for row, value in enumerate(others)
    }


def test_validation_with_other_class_names_is_mapped_by_name():
    train = labels([0, 1, 2]).cast_column("label", ClassLabel(names=["cat", "dog", "owl"]))
    validation = labels([0, 1, 1]).cast_column("label", ClassLabel(names=["dog", "owl"]))
    encoded = encode_labels(validation, "label", train.features["label"])
    assert encoded["label"][:] == [1, 2, 2]
    assert encode_labels(train, "label", train.features["label"]) is train


@pytest.mark.parametrize("values, other", [(["cat", "dog"], ["cat", "fox"]), ([1, 2], [2, 5])])
def test_labels_that_training_lacks_are_named(values, other):
    train = encode_labels(labels(values), "label")
    with pytest.raises(InputError, match=f"training lacks: {other[1]}"):
        encode_labels(labels(other), "label", train.features["label"])


def test_hold_out_is_stratified_and_reproducible():
    data = encode_labels(labels(["a"] * 60 + ["b"] * 30 + ["c"] * 10), "label")
    train, validation = hold_out(data, "label", 0.1, seed=3)
    assert np.bincount(validation["label"]).tolist() == [6, 3, 1]
    assert sorted(train["row"][:] + validation["row"][:]) == list(range(100))
    assert hold_out(data, "label", 0.1, seed=3)[1]["row"][:] == validation["row"][:]
    assert hold_out(data, "label", 0.1, seed=4)[1]["row"][:] != validation["row"][:]


def test_hold_out_of_tiny_classes_is_random():
    data = encode_labels(labels(["a"] * 9 + ["b"]), "label")
    train, validation = hold_out(data, "label", 0.3, seed=0)
    assert len(validation) == 3 and sorted(train["row"][:] + validation["row"][:]) == list(range(10))


@example(values=[0, 1, 2] * 3 + [0, 1], fraction=0.75)
@given(st.lists(st.integers(0, 4), min_size=2, max_size=40), st.floats(0.05, 0.95))
def test_hold_out_works_for_any_classes(values, fraction):
    assume(len(values) * (1 - fraction) >= 1)
    data = labels(values).cast_column("label", ClassLabel(num_classes=6))  # some classes without images
    train, validation = hold_out(data, "label", fraction, seed=0)
    assert len(train) >= 1 and abs(len(validation) - fraction * len(values)) <= 1
    assert sorted(train["row"][:] + validation["row"][:]) == list(range(len(values)))


def test_bad_images_are_reported(tmp_path, caplog):
    output = tmp_path / "run"
    list_bad_images([], output, should_save=True)
    list_bad_images(["cannot decode a"], output, should_save=False)
    assert not output.exists()
    with caplog.at_level(logging.WARNING):
        list_bad_images(["cannot decode a", "cannot decode b"], output, should_save=True)
    assert (output / "bad_images.txt").read_text().splitlines() == ["cannot decode a", "cannot decode b"]
    assert "2 image(s)" in caplog.text and "bad_images.txt" in caplog.text


# Samples


def draw(row, rng):
    return {"row": row["row"], "drawn": torch.tensor([rng.random() for _ in range(3)], dtype=torch.float64)}


def opencv_threads(row, rng):
    return {"threads": cv2.getNumThreads()}


def sample_dataset(seed=0, transform=draw):
    return SampleDataset(labels(list(range(12))), transform, seed)


def drawn(samples):
    """{row: random numbers}, from samples or batches."""
    samples = list(samples)
    rows = torch.cat([torch.as_tensor(sample["row"]).reshape(-1) for sample in samples]).tolist()
    values = torch.cat([sample["drawn"].reshape(-1, 3) for sample in samples])
    return dict(zip(rows, map(tuple, values.tolist()), strict=True))


def epoch_of(dataset, epoch):
    dataset.draw_for_epoch(epoch)
    return drawn([dataset[index] for index in range(len(dataset))])


def test_samples_depend_on_seed_epoch_and_index_only():
    dataset = sample_dataset()
    first = epoch_of(dataset, 0)
    assert len(set(first.values())) == len(dataset) == 12
    assert drawn([dataset[index] for index in reversed(range(12))]) == first
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    assert epoch_of(sample_dataset(), 0) == first
    for other in (epoch_of(dataset, 1), epoch_of(sample_dataset(seed=1), 0)):
        assert not set(other.values()) & set(first.values())
    assert epoch_of(dataset, 0) == first


def test_a_batch_of_samples_is_its_samples():
    dataset = sample_dataset()
    order = [7, 0, 11, 7, 3]
    assert [sample["row"] for sample in dataset.__getitems__(order)] == order
    assert drawn(dataset.__getitems__(order)) == drawn([dataset[index] for index in order])
    assert drawn(dataset) == epoch_of(dataset, 0)  # iteration ends


@given(st.lists(st.tuples(st.integers(0, 2**32), st.integers(0, 500), st.integers(0, 11)), unique=True))
def test_no_two_samples_share_their_randomness(places):
    values = set()
    for seed, epoch, index in places:
        dataset = sample_dataset(seed)
        dataset.draw_for_epoch(epoch)
        values.add(tuple(dataset[index]["drawn"].tolist()))
    assert len(values) == len(places)


LOADERS = {
    "in_process": {},
    "forked": {"num_workers": 2, "multiprocessing_context": "fork"},
    "spawned": {"num_workers": 2, "multiprocessing_context": "spawn"},
}
WORKERS = pytest.mark.parametrize("loader", ["forked", "spawned"])


@pytest.mark.parametrize("loader", LOADERS)
def test_samples_do_not_depend_on_the_loader(loader):
    expected = epoch_of(sample_dataset(), 3)
    dataset = sample_dataset()
    dataset.draw_for_epoch(3)
    assert drawn(DataLoader(dataset, batch_size=5, shuffle=True, **LOADERS[loader])) == expected


@WORKERS
def test_epoch_reaches_workers_that_already_run(loader):
    dataset = sample_dataset()
    batches = DataLoader(dataset, batch_size=4, persistent_workers=True, **LOADERS[loader])
    for epoch in (0, 1, 7):
        dataset.draw_for_epoch(epoch)
        assert drawn(batches) == epoch_of(sample_dataset(), epoch)


@pytest.fixture
def two_opencv_threads():
    before = cv2.getNumThreads()
    cv2.setNumThreads(2)
    yield
    cv2.setNumThreads(before)


@WORKERS
def test_opencv_uses_one_thread_in_a_worker(loader, two_opencv_threads):
    batches = DataLoader(sample_dataset(transform=opencv_threads), batch_size=4, **LOADERS[loader] | {"num_workers": 1})
    assert torch.cat([batch["threads"] for batch in batches]).tolist() == [1] * 12


def test_opencv_threads_of_the_main_process_are_left_alone(two_opencv_threads):
    assert sample_dataset(transform=opencv_threads)[0]["threads"] == 2


@given(st.lists(st.integers(1, 30), min_size=1, max_size=6), st.floats(0.01, 1), st.integers(0, 99))
def test_low_shot_takes_as_many_of_every_class_as_there_are(counts, fraction, seed):
    labels = np.repeat(np.arange(len(counts)), counts)
    rows = Dataset.from_dict({"label": labels, "row": np.arange(len(labels))})
    few = low_shot(rows, "label", fraction, seed)
    per_class = max(1, round(fraction * len(labels) / len(counts)))
    assert np.bincount(few["label"]).tolist() == [min(per_class, count) for count in counts]
    assert few["row"] == low_shot(rows, "label", fraction, seed)["row"]
    assert len(set(few["row"])) == len(few)
