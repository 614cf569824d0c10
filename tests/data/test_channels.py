"""Images of any number of channels and any depth: what is read, measured and shown to the keypoint detectors."""

import io

import cv2
import datasets
import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from modeling_kamim.data.arrays import encode_npy, encoded_array, read_npy, read_tiff
from modeling_kamim.data.attach_density import choose_pixel_range, find_bad_images, measure_pixel_range
from modeling_kamim.data.augmentation import ClassificationTransform
from modeling_kamim.data.check import check_dataset
from modeling_kamim.data.decoding import BadImageError, OtherChannelsError, decode_image, is_deep_image
from modeling_kamim.data.loading import find_image_column, keep_encoded, load_images
from modeling_kamim.data.normalization import fit_processor
from modeling_kamim.data.samples import channels_first
from modeling_kamim.data.stored_density import DensityDetector
from modeling_kamim.data.views import View
from modeling_kamim.errors import InputError
from modeling_kamim.models.pixel_range import PixelRange
from modeling_kamim.models.processor import image_processor, pixel_range_of
from modeling_kamim.objective.keypoints import KeypointDetector, keypoint_image

SCALES = np.array([1.0, 1e-3, 5e4, 255.0, 7.0, 0.2], np.float32)
DTYPES = ("uint8", "uint16", "int16", "int32", "float16", "float32", "float64")


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def random_pixels(shape, dtype="uint8", seed=0, top=255):
    return (top * np.random.default_rng(seed).random(shape)).astype(dtype)


def npy(pixels):
    return {"bytes": encode_npy(pixels), "path": None}


def file(pixels, file_format, **settings):
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, file_format, **settings)
    return {"bytes": out.getvalue(), "path": None}


def tiff(pixels, **settings):
    out = io.BytesIO()
    tifffile.imwrite(out, pixels, **{"photometric": "minisblack", **settings})
    return {"bytes": out.getvalue(), "path": None}


def rows(sources):
    column = {"image": datasets.Image(decode=False)}
    return datasets.Dataset.from_dict({"image": sources}, features=datasets.Features(column))


def bands(seed, height=24, width=30):
    """6 channels of very different units."""
    return random_pixels((6, height, width), "float32", seed, 1.0) * SCALES[:, None, None]


# Files


@given(
    st.sampled_from(DTYPES),
    st.sampled_from(["first", "last"]),
    st.integers(1, 9),
    st.integers(10, 20),
    st.integers(10, 20),
    st.sampled_from("<>"),
)
def test_arrays_of_any_layout_and_type(dtype, layout, channels, height, width, order):
    pixels = random_pixels((height, width, channels), dtype, seed=height)
    stored = np.moveaxis(pixels, 2, 0) if layout == "first" else pixels
    read = read_npy(encode_npy(stored.astype(pixels.dtype.newbyteorder(order))), channels)
    assert read.dtype == dtype and np.array_equal(read, pixels)


def test_the_axis_of_the_channels_is_that_of_the_model_or_the_shorter():
    tall = random_pixels((200, 8, 8))  # 200 channels of small tiles
    assert read_npy(encode_npy(tall), 200).shape == (8, 8, 200)
    assert read_npy(encode_npy(tall), 6).shape == (200, 8, 8)
    assert read_npy(encode_npy(random_pixels((12, 9))), 6).shape == (12, 9, 1)
    with pytest.raises(ValueError, match="cannot be told"):
        read_npy(encode_npy(random_pixels((6, 9, 6))), 6)


@pytest.mark.parametrize(
    "pixels", [np.zeros((2, 3, 4, 5)), np.zeros(9), np.zeros((4, 5), complex), np.zeros((0, 4)), np.zeros((3, 4), "U2")]
)
def test_other_arrays_are_bad_images(pixels):
    with pytest.raises(BadImageError, match="2 or 3 axes"):
        decode_image(npy(pixels))


def test_files_that_declare_more_than_they_hold_are_bad_images():
    whole = encode_npy(random_pixels((6, 20, 30), "uint16"))
    for data in (whole[:-1], whole[:40], whole + b"\0", whole.replace(b"20, 30", b"99999999, 99999999")):
        with pytest.raises(BadImageError):
            decode_image({"bytes": data, "path": None}, num_channels=6)
    objects = io.BytesIO()
    np.save(objects, np.array([[{}]], object), allow_pickle=True)
    with pytest.raises(BadImageError, match="object"):
        decode_image({"bytes": objects.getvalue(), "path": None})
    data = tiff(random_pixels((20, 30, 6), "uint16"), planarconfig="contig")["bytes"]
    for end in (10, len(data) // 2):
        with pytest.raises(BadImageError):
            decode_image({"bytes": data[:end], "path": None}, num_channels=6)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_tiff_files_of_samples_planes_and_pages(dtype, compression):
    pixels = random_pixels((20, 30, 6), dtype)
    planes = np.moveaxis(pixels, 2, 0)
    for source in (
        tiff(pixels, planarconfig="contig", compression=compression),
        tiff(planes, planarconfig="separate", compression=compression),
        tiff(planes, compression=compression),
        tiff(planes, compression=compression, byteorder=">"),
    ):
        assert np.array_equal(read_tiff(source["bytes"]), pixels)
        expected = pixels if dtype == "uint8" else PixelRange.of(pixels).to_8_bits(pixels)
        assert np.array_equal(decode_image(source, num_channels=6), expected)
        assert is_deep_image(source) == (dtype != "uint8")


def test_a_tiff_of_more_axes_is_a_bad_image():
    with pytest.raises(BadImageError, match="axes"):
        decode_image(tiff(random_pixels((4, 20, 30, 3)), photometric="rgb"), num_channels=4)


# Channels


def test_an_array_of_rgb_is_the_image_itself(photographs):
    detector, densities = KeypointDetector(), DensityDetector(KeypointDetector(), 64)
    for pixels in photographs:
        jpeg = file(pixels, "jpeg")
        image = decode_image(jpeg)
        for same in (image, np.moveaxis(image, 2, 0)):
            array = decode_image(npy(same))
            assert array.dtype == np.uint8 and np.array_equal(array, image)
            assert np.array_equal(detector(keypoint_image(array)), detector(image))
            assert densities(array) == densities(image)


@pytest.mark.parametrize("file_format", ["png", "jpeg", "tiff", "npy"])
def test_gray_and_rgb_become_each_other(file_format):
    gray, color = random_pixels((20, 30)), random_pixels((20, 30, 3), seed=1)
    make = npy if file_format == "npy" else lambda pixels: file(pixels, file_format)
    stored = gray if file_format == "npy" else np.array(Image.open(io.BytesIO(make(gray)["bytes"])))
    shown = decode_image(make(gray), num_channels=1)
    assert np.array_equal(shown, stored[..., None])
    assert np.array_equal(decode_image(make(gray)), shown.repeat(3, axis=2))
    stored = decode_image(make(color)).astype(float)
    luma = stored @ [0.299, 0.587, 0.114]
    assert np.abs(decode_image(make(color), num_channels=1)[..., 0] - luma).max() <= 0.51 + 0.01


def test_other_channels_are_told_by_name_and_number():
    with pytest.raises(OtherChannelsError, match=r"^row 5 has 6 channels, the model takes 3: give --num_channels 6"):
        decode_image(npy(random_pixels((6, 20, 30))), "row 5")
    for source in (file(random_pixels((20, 30, 3)), "jpeg"), file(random_pixels((20, 30, 4)), "png")):
        with pytest.raises(OtherChannelsError, match="has 3 channels, the model takes 4"):
            decode_image(source, num_channels=4)
    mixed = rows([npy(random_pixels((6, 20, 30))), npy(random_pixels((4, 20, 30)))])
    assert [error is None for error in find_bad_images(mixed, "image", num_channels=6)] == [True, False]
    with pytest.raises(InputError, match=r"has 6 channels, the model takes 3: give --num_channels 6$"):
        choose_pixel_range(mixed, "image")


@pytest.mark.parametrize("channels", [1, 2, 3, 6, 20])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_views_are_those_of_each_channel(channels, dtype):
    pixels = random_pixels((40, 52, channels), dtype)
    view = View(3, 5, 30, 40, 40, 52, horizontal_flip=True, vertical_flip=channels > 2)
    shown = channels_first(view.of_image(pixels, 16)).numpy()
    assert shown.shape == (channels, 16, 16) and shown.dtype == dtype
    for channel in range(channels):
        plane = cv2.resize(pixels[3:33, 5:45, channel].copy(), (16, 16), interpolation=cv2.INTER_LINEAR)
        expected = plane[:: -1 if channels > 2 else 1, ::-1]
        # the same up to the rounding of the kernels that OpenCV chooses by the number of channels
        assert np.abs(shown[channel].astype(float) - expected).max() <= (1 if dtype == "uint8" else 1e-3)


# Depth


def test_deep_pixels_are_not_rounded():
    pixels = np.linspace(800, 2200, 600).reshape(20, 30).astype(np.uint16)
    decoded = decode_image(file(pixels, "png"), pixel_range=PixelRange(800, 2200), num_channels=1)
    assert decoded.dtype == np.float32 and len(np.unique(decoded)) == len(np.unique(pixels)) > 256
    assert np.allclose(decoded[..., 0], (pixels - 800.0) / 1400 * 255, atol=1e-3)
    assert np.array_equal(decode_image(file(pixels, "png"), pixel_range=PixelRange(800, 2200)), decoded.repeat(3, 2))


def test_each_channel_that_is_no_color_has_a_range_of_its_own():
    sources = [npy(bands(seed)) for seed in range(20)]
    measured = measure_pixel_range(rows(sources), "image", None, 6)
    assert np.allclose(measured.high, SCALES, rtol=0.01) and np.allclose(np.array(measured.low) / SCALES, 0, atol=0.01)
    decoded = decode_image(sources[0], pixel_range=measured, num_channels=6)
    expected = (np.moveaxis(bands(0), 0, 2) - measured.low) / np.subtract(measured.high, measured.low) * 255
    assert np.allclose(decoded, expected.clip(0, 255), atol=1e-2)
    assert measured.overlap(measured) == 1 and measured.overlap(PixelRange(0.0, 1e-9)) < 1e-3


def test_the_processor_gets_what_is_measured_and_keeps_what_it_has(tmp_path):
    data = rows([npy(bands(seed)) for seed in range(10)])
    processor = image_processor(32, num_channels=6)
    measured = fit_processor(processor, data, "image", 6)
    pixels = np.stack([decode_image(row["image"], "", measured, 6) for row in data]).astype(float) / 255
    assert np.allclose(processor.image_mean, pixels.mean((0, 1, 2)), rtol=1e-3)
    assert np.allclose(processor.image_std, pixels.std((0, 1, 2)), rtol=1e-3)
    processor.save_pretrained(tmp_path)
    for channels in (6, None):
        saved = image_processor(32, str(tmp_path), channels)
        assert pixel_range_of(saved) == measured and list(saved.image_mean) == list(processor.image_mean)
        other = rows([npy(3 * bands(seed)) for seed in range(10)])
        assert fit_processor(saved, other, "image", 6) == measured
        assert list(saved.image_mean) == list(processor.image_mean)
    assert list(image_processor(32, str(tmp_path)).image_mean) == list(processor.image_mean)
    assert image_processor(32, str(tmp_path), 4).image_mean is None  # of other channels: measured anew
    given = image_processor(32, str(tmp_path), 6, [0.1] * 6, [0.2] * 6)
    assert list(given.image_mean) == [0.1] * 6 and list(given.image_std) == [0.2] * 6


def test_a_constant_channel_is_not_divided_by_zero():
    processor = image_processor(32, num_channels=2)
    pixels = np.stack([np.full((20, 30), 51, np.uint8), random_pixels((20, 30))])
    fit_processor(processor, rows([npy(pixels)]), "image", 2)
    assert processor.image_std[0] == 1 and processor.image_mean[0] == pytest.approx(0.2)


# Keypoints


def test_keypoints_are_found_in_a_channel_or_in_the_mean():
    pixels = random_pixels((20, 30, 5))
    assert np.array_equal(keypoint_image(pixels, 3), pixels[..., 3:4].repeat(3, 2))
    assert np.array_equal(keypoint_image(pixels), np.rint(pixels.mean(2, keepdims=True)).repeat(3, 2))
    assert keypoint_image(pixels[..., :3]).tolist() == pixels[..., :3].tolist()
    deep = random_pixels((20, 30, 5), "float32")
    assert np.array_equal(keypoint_image(deep, 0), np.rint(deep[..., :1]).repeat(3, 2))
    gray = keypoint_image(pixels, 1)
    assert np.array_equal(KeypointDetector()(gray), KeypointDetector()(gray))
    found = cv2.FastFeatureDetector_create().detect(np.ascontiguousarray(pixels[..., 1]), None)
    assert [point.pt for point in KeypointDetector().detect(gray)] == [point.pt for point in found]


def test_only_settings_that_differ_are_in_the_label_of_a_density():
    usual = DensityDetector(KeypointDetector(), 64)
    assert "channel" not in usual.label
    settings = [{"channel": channel, "num_channels": number} for channel in (None, 0) for number in (1, 3)]
    labels = {DensityDetector(KeypointDetector(), 64, **setting).label for setting in settings}
    assert len(labels) == 4 and usual.label in labels


# Data sets


def write_folder(folder, channels=6, number=8, suffix=".npy"):
    for seed in range(number):
        path = folder / ("train" if seed < 6 else "validation") / ("cat" if seed % 2 else "dog") / f"{seed}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, random_pixels((channels, 24, 30), "uint16", seed, 4000))
    return folder


def test_folders_of_arrays_have_splits_classes_and_other_images(tmp_path):
    folder = write_folder(tmp_path / "arrays", channels=3)
    Image.fromarray(random_pixels((24, 30, 3))).save(folder / "train" / "cat" / "photograph.png")
    for _ in range(2):  # `datasets` changes the module of a builder when it has run
        loaded = load_images(str(folder))
        assert {split: len(part) for split, part in loaded.items()} == {"train": 7, "validation": 2}
        assert loaded["train"].features["label"].names == ["cat", "dog"]
        sources = keep_encoded(loaded["train"], "image")["image"]
        assert sorted(map(is_deep_image, sources)) == [False] + 6 * [True]
    assert all(decode_image(source, pixel_range=PixelRange(0, 4000)).shape == (24, 30, 3) for source in sources)


def test_metadata_files_come_along(tmp_path):
    np.save(tmp_path / "a.npy", random_pixels((6, 24, 30)))
    (tmp_path / "metadata.csv").write_text("file_name,place\na.npy,field\n")
    loaded = load_images(str(tmp_path))["train"]
    assert loaded["place"] == ["field"] and find_image_column(loaded) == "image"


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("kind", ["array", "lists"])
def test_columns_of_arrays_keep_type_and_numbers(tmp_path, dtype, kind):
    pixels = [random_pixels((6, 24, 30), dtype, seed) for seed in range(3)]
    lists = datasets.List(datasets.List(datasets.List(datasets.Value(dtype))))
    feature = datasets.Array3D((6, 24, 30), dtype) if kind == "array" else lists
    features = datasets.Features({"image": feature, "label": datasets.ClassLabel(names=["a", "b"])})
    data = datasets.Dataset.from_dict({"image": pixels, "label": [0, 1, 0]}, features=features)
    data.to_parquet(tmp_path / "train.parquet")
    loaded = load_images(str(tmp_path / "train.parquet"))["train"]
    encoded = keep_encoded(loaded, find_image_column(loaded))
    assert encoded["label"] == [0, 1, 0] and encoded.features["image"] == datasets.Image(decode=False)
    for row, expected in zip(encoded, pixels, strict=True):
        stored = np.load(io.BytesIO(row["image"]["bytes"]))
        assert stored.dtype == dtype and np.array_equal(stored, expected)


def test_missing_and_ragged_arrays_are_bad_images():
    assert encoded_array(None, "uint8") == {"bytes": None, "path": None}
    for source in (encoded_array(None, "uint8"), encoded_array([[[1.0], [2.0, 3.0]]], "float32")):
        with pytest.raises(BadImageError):
            decode_image(source)


def test_augmentations_of_colors_are_refused_elsewhere():
    for augmentation in ("paper", "strong"):
        with pytest.raises(InputError, match="takes 6 channel.*--augmentation none or crop_flip"):
            ClassificationTransform("image", "label", 32, augmentation, num_channels=6)


def test_the_check_takes_the_channels_of_the_first_image(tmp_path):
    loaded = load_images(str(write_folder(tmp_path / "arrays")))
    np.save(tmp_path / "other.npy", random_pixels((4, 24, 30)))
    splits = datasets.DatasetDict({name: keep_encoded(part, "image") for name, part in loaded.items()})
    other = rows([{"bytes": (tmp_path / "other.npy").read_bytes(), "path": "other.npy"}])
    splits["other"] = other
    check = check_dataset(splits, "image")
    assert check.num_bad == 1 and "other.npy has 4 channels" in check.bad_images()
    assert len(check.unusual["more than 8 bits"]) == 8 and len(check.pixel_range.low) == 6
