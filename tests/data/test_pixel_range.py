"""Images of more than 8 bits: one range for a data set, known to all that read it, and no silent black or white."""

import io
import json
import logging
import struct
import sys
import zlib
from pathlib import Path

import cv2
import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoImageProcessor

from modeling_kamim.analysis.gallery import load_analysis_images
from modeling_kamim.commands import analyze as run_analysis
from modeling_kamim.commands import evaluate as run_classification
from modeling_kamim.commands import prepare as prepare_dataset
from modeling_kamim.commands import pretrain as run_mim
from modeling_kamim.data import augmentation
from modeling_kamim.data import decoding as images
from modeling_kamim.data import samples as transforms
from modeling_kamim.data.attach_density import choose_pixel_range, measure_pixel_range
from modeling_kamim.data.check import check_dataset
from modeling_kamim.data.decoding import BadImageError, decode_image, is_deep_image, read_deep_pixels
from modeling_kamim.data.loading import keep_encoded, load_images
from modeling_kamim.errors import InputError
from modeling_kamim.models.pixel_range import EIGHT_BITS, PixelRange
from modeling_kamim.models.processor import image_processor, pixel_range_of

GENERATOR = np.random.default_rng(0)
VALUES = GENERATOR.random((12, 17))
TWELVE_BITS = (800 + 1400 * VALUES).astype(np.uint16)
TINY = ["--model_type", "vit", "--model_size", "tiny", "--image_size", "32", "--mask_patch_size", "16", "--use_cpu"]
QUICK = ["--disable_tqdm", "true", "--precision", "fp32", "--per_device_train_batch_size", "4"]


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    yield
    datasets.enable_progress_bars()


def encode(pixels, file_format="tiff", **settings):
    """Source of a gray image of any depth, or of 16-bit colors."""
    if pixels.ndim == 3:
        return {"bytes": cv2.imencode(f".{file_format}", pixels[..., ::-1])[1].tobytes(), "path": None}
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, file_format, **settings)
    return {"bytes": buffer.getvalue(), "path": None}


def encoded(sources):
    column = {"image": datasets.Image(decode=False)}
    return datasets.Dataset.from_dict({"image": sources}, features=datasets.Features(column))


def scene(seed, height=40, width=52):
    """12-bit gray, 800 to 2,200, with corners."""
    coarse = np.random.default_rng(seed).integers(0, 2, (height // 4, width // 4)).repeat(4, 0).repeat(4, 1)
    return (900 + 1200 * coarse + np.random.default_rng(seed).integers(-99, 99, coarse.shape)).astype(np.uint16)


def write_deep_folder(folder, low=0, factor=1, number=6):
    """12-bit PNGs of two classes."""
    for seed in range(number):
        file = folder / ("cat" if seed % 2 else "dog") / f"{seed}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(low + factor * scene(seed)).save(file)
    return folder


# One image


DEEP = {
    "16 bits": TWELVE_BITS,
    "32 bits": (VALUES * 2**31 * 0.9).astype(np.int32),
    "negative": (-5e8 + VALUES * 1e6).astype(np.int32),
    "floats up to 1": VALUES.astype(np.float32),
    "floats up to 255": (255 * VALUES).astype(np.float32),
    "small floats": (1e-3 * VALUES).astype(np.float32),
}


@pytest.mark.parametrize("pixels", DEEP.values(), ids=DEEP)
def test_an_image_alone_uses_its_own_range(pixels):
    decoded = decode_image(encode(pixels))
    assert decoded.dtype == np.uint8 and decoded.shape == (12, 17, 3) and decoded.flags["C_CONTIGUOUS"]
    assert np.abs(decoded[..., 0] - 255 * VALUES).max() <= 3
    assert (decoded == decoded[..., :1]).all()


@pytest.mark.parametrize("value", [1.0001, 40.0, -7.0])
def test_one_value_outside_changes_nothing_else(value):
    pixels = GENERATOR.random((64, 64)).astype(np.float32)
    changed = pixels.copy()
    changed[5, 6] = value
    before, after = (decode_image(encode(floats)).astype(int) for floats in (pixels, changed))
    assert (np.abs(before - after).max(-1) > 2).sum() <= 1


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_pixels_that_are_not_finite_are_an_error_by_number(value):
    pixels = VALUES.astype(np.float32)
    pixels[0, :3] = value
    with pytest.raises(BadImageError, match="row 5 .*3 of its 204 pixels are not finite") as error:
        decode_image(encode(pixels), "row 5")
    assert "3 of its 204 pixels are not finite" in error.value.reason


def test_integers_that_fit_in_8_bits_keep_their_values():
    pixels = GENERATOR.integers(20, 90, (12, 17))
    for deep in (pixels.astype(np.uint16), pixels.astype(np.int32)):
        assert (decode_image(encode(deep)) == pixels[..., None]).all()


def test_unsigned_32_bits_do_not_wrap_around():
    pixels = np.linspace(0, 2**32 - 1, 12 * 17).astype(np.uint32).reshape(12, 17)
    data = bytearray(encode(pixels.view(np.int32))["bytes"])
    format_tag = data.index(struct.pack("<HHIH", 339, 3, 1, 2))  # signed
    data[format_tag + 8] = 1
    decoded = decode_image({"bytes": bytes(data), "path": None})[..., 0]
    assert (np.diff(decoded.astype(int).ravel()) >= 0).all() and decoded[-1, -1] == 255 and decoded[0, 0] == 0


@given(st.integers(0, 60000), st.integers(1, 5000), st.integers(0, 2**32 - 1))
def test_a_range_is_linear_and_cut_off(low, width, seed):
    pixels = np.random.default_rng(seed).integers(0, 2**16, (6, 7), dtype=np.uint16)
    decoded = decode_image(encode(pixels, "png"), pixel_range=PixelRange(low, low + width))[..., 0]
    expected = ((pixels.astype(float) - low) / width * 255).clip(0, 255)
    assert np.abs(decoded - expected).max() <= 0.51


def test_8_bit_images_take_no_range():
    pixels = GENERATOR.integers(0, 256, (12, 17, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    source = {"bytes": buffer.getvalue(), "path": None}
    assert (decode_image(source, pixel_range=PixelRange(800, 2200)) == pixels).all()
    assert not is_deep_image(source) and read_deep_pixels(source) is None


@pytest.mark.parametrize("file_format", ["png", "tiff"])
@pytest.mark.parametrize("channels", [3, 4])
def test_colors_of_16_bits_keep_their_low_byte(file_format, channels):
    pixels = GENERATOR.integers(800, 2200, (12, 17, channels), dtype=np.uint16)
    stored = np.dstack([pixels[..., :3][..., ::-1], pixels[..., 3:]])
    source = {"bytes": cv2.imencode(f".{file_format}", stored)[1].tobytes(), "path": None}
    decoded = decode_image(source, pixel_range=PixelRange(800, 2200))
    assert is_deep_image(source) and np.abs(decoded - (pixels[..., :3] - 800.0) / 1400 * 255).max() <= 0.51


def test_a_png_may_go_on_behind_its_end():
    data = encode(GENERATOR.integers(800, 2200, (12, 17, 3), dtype=np.uint16), "png")["bytes"]
    expected = decode_image({"bytes": data, "path": None})
    assert (decode_image({"bytes": data + b"\xff" * 9, "path": None}) == expected).all() and np.ptp(expected) > 200


def with_exif(png, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = b"eXIf" + exif.tobytes()[6:]
    chunk = struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))
    return png[:33] + chunk + png[33:]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("channels", [1, 3])
def test_deep_images_are_turned_upright(orientation, channels):
    pixels = GENERATOR.integers(256, 2**16, (12, 17, channels), dtype=np.uint16).squeeze()
    png = with_exif(encode(pixels, "png")["bytes"], orientation)
    shallow = Image.fromarray((pixels >> 8).astype(np.uint8))
    buffer = io.BytesIO()
    shallow.save(buffer, "png")
    expected = decode_image({"bytes": with_exif(buffer.getvalue(), orientation), "path": None})
    decoded = decode_image({"bytes": png, "path": None}, pixel_range=PixelRange(0, 65535))
    assert decoded.shape == expected.shape and np.abs(decoded.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("channels", [1, 3])
def test_a_truncated_deep_image_is_bad(channels):
    data = encode(GENERATOR.integers(0, 2**16, (60, 50, channels), dtype=np.uint16).squeeze(), "png")["bytes"]
    with pytest.raises(BadImageError):
        decode_image({"bytes": data[: len(data) // 2], "path": None})


def test_a_saved_range_is_two_numbers(tmp_path):
    image_processor(32).save_pretrained(tmp_path)
    file = tmp_path / "preprocessor_config.json"
    for value in ("wide", [1], [5, 1], [0, float("nan")], [None, 1]):
        file.write_text(json.dumps({**json.loads(file.read_text()), "pixel_range": value}))
        with pytest.raises(InputError, match="range"):
            image_processor(32, str(tmp_path))


# A data set


def test_the_range_is_that_of_the_data_and_of_no_seed():
    rows = encoded([encode(scene(seed), "png") for seed in range(20)])
    measured = measure_pixel_range(rows, "image")
    assert measured.low == pytest.approx(800, abs=15) and measured.high == pytest.approx(2200, abs=15)
    assert measure_pixel_range(encoded(rows["image"]), "image") == measured


def test_hot_pixels_bad_images_and_8_bit_ones_do_not_move_it():
    deep = [scene(seed) for seed in range(20)]
    for pixels in deep[:10]:
        pixels[0, 0] = 65535
    plain = encode(np.full((30, 30), 255, np.uint8), "png")
    broken = encode(scene(0), "png")["bytes"][:300]
    sources = [*(encode(pixels, "png") for pixels in deep), plain, {"bytes": broken, "path": None}]
    measured = measure_pixel_range(encoded(sources), "image")
    assert measured.high == pytest.approx(2200, abs=15)


def test_a_data_set_of_8_bits_in_16_keeps_its_values():
    dark = [encode(GENERATOR.integers(0, 50, (12, 17)).astype(np.uint16)) for _ in range(3)]
    assert measure_pixel_range(encoded(dark), "image") == EIGHT_BITS
    assert measure_pixel_range(encoded([*dark, encode(scene(0))]), "image").high > 2000


def test_nothing_is_measured_where_nothing_is_deep(tmp_path):
    rows = encoded([encode(np.full((12, 17), 255, np.uint8), "png"), {"bytes": b"", "path": None}])
    assert measure_pixel_range(rows, "image") is None
    assert not list(tmp_path.rglob("cache-*.arrow"))


def test_it_is_measured_once(tmp_path, monkeypatch):
    rows = keep_encoded(load_images(str(write_deep_folder(tmp_path / "images")))["train"], "image")
    measured = measure_pixel_range(rows, "image")

    def fail(*arguments):
        raise AssertionError("measured again")

    monkeypatch.setattr(images, "deep_pixels", fail)
    assert measure_pixel_range(rows, "image") == measured


def test_other_data_under_a_checkpoint_are_told(caplog):
    caplog.set_level(logging.INFO)
    rows = encoded([encode(scene(seed), "png") for seed in range(4)])
    assert choose_pixel_range(rows, "image", PixelRange(750, 2300)) == PixelRange(750, 2300)
    assert "750 to 2,300 becomes 0 to 255" in caplog.text and "WARNING" not in caplog.text
    choose_pixel_range(rows, "image", PixelRange(0, 60000))
    assert "darker, brighter or flatter" in caplog.text


# From pretraining to analysis


@pytest.fixture
def used(monkeypatch):
    """The ranges by which the samples of each script are scaled."""
    found = {"pretraining": set(), "probing": set()}
    for name, module in {"pretraining": transforms, "probing": augmentation}.items():

        def decode(source, label="", pixel_range=None, num_channels=3, least_size=None, ranges=found[name]):
            ranges.add(pixel_range)
            return decode_image(source, label, pixel_range, num_channels, least_size)

        monkeypatch.setattr(module, "decode_image", decode)
    return found


def run(monkeypatch, module, *arguments):
    monkeypatch.setattr(sys, "argv", ["script.py", *map(str, arguments)])
    module.main()


def pretrain(monkeypatch, source, output, *arguments):
    settings = [*TINY, *QUICK, "--dataset_name", source, "--max_steps", "2", "--output_dir", output]
    run(monkeypatch, run_mim, *settings, *arguments)
    return pixel_range_of(AutoImageProcessor.from_pretrained(output))


def test_one_range_from_pretraining_to_analysis(monkeypatch, tmp_path, used, caplog):
    """12-bit PNGs: keypoints are found, and whatever reads the checkpoint scales as it was trained."""
    caplog.set_level(logging.INFO)
    saved = pretrain(monkeypatch, write_deep_folder(tmp_path / "images"), tmp_path / "run", "--keypoint_source", "map")
    assert saved.low == pytest.approx(800, abs=20) and saved.high == pytest.approx(2200, abs=20)
    assert used["pretraining"] == {saved} and str(saved) in caplog.text and "no keypoints" not in caplog.text
    first = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"][0]
    assert first["loss"] > 1.5 * first["masked_l1"]  # the weights are not all 1

    other = write_deep_folder(tmp_path / "other", factor=2)  # brighter, to be seen as such
    settings = ["--model_name_or_path", tmp_path / "run", "--dataset_name", other, "--use_cpu", "--output_dir"]
    for mode in (["--mode", "linear_probe"], ["--mode", "finetune"], ["--protocol", "cached"]):
        output = tmp_path / "-".join(mode)
        run(monkeypatch, run_classification, *QUICK, *mode, "--num_train_epochs", "1", *settings, output)
        assert used["probing"] == {saved}
        if "--mode" in mode:
            assert pixel_range_of(AutoImageProcessor.from_pretrained(output)) == saved
    used["pretraining"].clear()
    run(monkeypatch, run_classification, "--mode", "reconstruction", *settings, tmp_path / "reconstruction")
    assert used["pretraining"] == {saved}

    analyzed = []

    def load(args, *settings):
        analyzed.append(load_analysis_images(args, *settings)[0])
        return analyzed[-1], []

    monkeypatch.setattr(run_analysis, "load_analysis_images", load)
    arguments = ["--models", f"kamim={tmp_path / 'run'}", "--analyses", "fourier", "--num_images", "4"]
    run(monkeypatch, run_analysis, *arguments, "--dataset_name", other, "--output_dir", tmp_path / "analysis")
    assert analyzed[0].pixel_range == saved and len(np.unique(analyzed[0][0])) > 10


def test_a_stream_and_crops_are_scaled_alike(monkeypatch, tmp_path, used):
    write_deep_folder(tmp_path / "images", number=12)
    rows = keep_encoded(load_images(str(tmp_path / "images"))["train"], "image")
    sources = [{"bytes": Path(image["path"]).read_bytes(), "path": "a.png"} for image in rows["image"]]
    (tmp_path / "files").mkdir()
    encoded(sources).to_parquet(tmp_path / "files" / "train.parquet")
    streamed = pretrain(monkeypatch, tmp_path / "files", tmp_path / "streamed", "--streaming", "true")
    mapped = pretrain(monkeypatch, tmp_path / "files", tmp_path / "mapped", "--keypoint_source", "online")
    assert streamed.overlap(mapped) > 0.95 and used["pretraining"] == {streamed, mapped}
    resumed = ["--streaming", "true", "--resume_from_checkpoint", "auto", "--max_steps", "3"]
    assert pretrain(monkeypatch, tmp_path / "files", tmp_path / "streamed", *resumed) == streamed


def test_a_prepared_data_set_keeps_depth_and_units(monkeypatch, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    source = write_deep_folder(tmp_path / "images")
    plain = np.random.default_rng(0).integers(0, 256, (40, 52, 3), dtype=np.uint8)
    Image.fromarray(plain).save(source / "cat" / "plain.jpg")
    for size in (16, 64):  # images that shrink, and that do not
        output = tmp_path / f"prepared{size}"
        run(monkeypatch, prepare_dataset, source, output, "--image_size", size)
        stored = json.loads((output / "preparation.json").read_text())["pixel_range"]
        assert (
            stored["low"] == pytest.approx(800, abs=20) and "scaled to 0 to 255" in (output / "README.md").read_text()
        )
        for image in keep_encoded(load_images(str(output))["train"], "image")["image"]:
            number = Path(image["path"]).stem
            if number == "plain":
                assert not is_deep_image(image)
                continue
            pixels = np.array(Image.open(io.BytesIO(image["bytes"])))
            expected = scene(int(number))
            if size == 16:
                expected = cv2.resize(expected, pixels.shape[::-1], interpolation=cv2.INTER_AREA)
            assert pixels.dtype == np.uint16 and (pixels == expected).all()
        table = pq.read_table(next((output / "data").glob("*.parquet")))
        assert "keypoint_density_fast" in table.column_names
    assert "no keypoints" not in caplog.text


def test_the_check_tells_depth_range_and_keypoints(tmp_path):
    folder = write_deep_folder(tmp_path / "images")
    Image.fromarray(np.full((40, 40), 90, np.uint8)).save(folder / "cat" / "plain.png")
    check = check_dataset(datasets.DatasetDict(train=keep_encoded(load_images(str(folder))["train"], "image")), "image")
    assert check.pixel_range.high == pytest.approx(2200, abs=20) and check.num_without_keypoints == 1
    assert len(check.unusual["more than 8 bits"]) == 6
    assert f"scales the 6 of more than 8 bits: {check.pixel_range} becomes 0 to 255" in check.report()
    assert "14% of 7 images have no keypoints" in check.report()
