"""Images in memory become a data set with the same pixels."""

import datasets
import numpy as np
import pytest
from PIL import Image

from modeling_kamim.api.images import splits_of, take_images
from modeling_kamim.data.decoding import decode_image
from modeling_kamim.data.loading import DataArguments
from modeling_kamim.errors import InputError


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV"])
def test_pictures_keep_their_pixels(mode):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)).convert(mode)
    [row] = splits_of([image])["train"]["image"]
    np.testing.assert_array_equal(decode_image(row), np.asarray(image.convert("RGB")))


def test_splits_and_columns_are_kept():
    rows = datasets.Dataset.from_dict({"image": [None, None], "label": [0, 1]}).with_format("torch")
    assert splits_of(rows)["train"][1]["label"] == 1
    both = splits_of(datasets.DatasetDict({"train": rows, "test": rows}))
    assert list(both) == ["train", "test"]
    labeled = splits_of({"image": [Image.new("RGB", (4, 4))] * 2, "label": ["cat", "dog"]})["train"]
    assert labeled["label"] == ["cat", "dog"]


def test_settings_load_what_is_given(tmp_path):
    settings = DataArguments(max_train_samples=3)
    assert take_images(None, settings) == settings
    assert take_images(tmp_path, settings).dataset_name == str(tmp_path)
    taken = take_images([Image.new("RGB", (4, 4))], settings)
    assert taken.max_train_samples == 3
    assert len(taken.load()["train"]) == 1


@pytest.mark.parametrize(
    "images", [3, b"png", [], {}, {"pictures": []}, [object()], {"image": [Image.new("L", (4, 4))], "label": [1, 2]}]
)
def test_what_is_no_image_is_refused_in_one_line(images):
    with pytest.raises(InputError) as error:
        splits_of(images)
    assert "\n" not in str(error.value)
