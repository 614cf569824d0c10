"""The check of a data set before training: what it finds, what it prints, how it exits."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import cv2
import datasets
import numpy as np
import pytest
from awkward_images import LONG_NAME, photograph, write_bad_images, write_good_images
from PIL import Image

from modeling_kamim.commands import check as script
from modeling_kamim.commands.configs import config_file
from modeling_kamim.data.check import check_dataset
from modeling_kamim.data.decoding import open_image
from modeling_kamim.data.inspection import channels_and_bits
from modeling_kamim.data.loading import keep_encoded, load_images
from modeling_kamim.data.stored_density import DensityDetector
from modeling_kamim.errors import InputError, printable
from modeling_kamim.objective.keypoints import KeypointDetector

ROOT = Path(__file__).parents[2]
PIXELS = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def loaded(folder):
    images = load_images(str(folder))
    return datasets.DatasetDict({split: keep_encoded(rows, "image") for split, rows in images.items()})


def run(monkeypatch, *arguments):
    """Exit status of the script."""
    monkeypatch.setattr(sys, "argv", ["kamim check", *map(str, arguments)])
    try:
        script.main()
    except SystemExit as end:
        return end.code
    return 0


def test_good_images_and_what_is_unusual_in_them(tmp_path):
    good = write_good_images(tmp_path / "images")
    check = check_dataset(loaded(tmp_path / "images"), "image")
    assert check.num_images == {"train": len(good)} and check.num_bad == 0 and check.bad_images() == ""
    found = {trait: {Path(name).name for name in names} for trait, names in check.unusual.items()}
    assert found == {
        "gray": {"gray.jpg", "deep.png", "gray_alpha.png"},
        "CMYK": {"cmyk.jpg"},
        "palette": {"palette.png", "animated_gif.gif"},
        "more than 8 bits": {"deep.png"},
        "transparency (dropped)": {"gray_alpha.png"},
        "animated (its first frame is used)": {f"animated_{suffix}.{suffix}" for suffix in ("gif", "png", "webp")},
        "turned by EXIF": {"rotated.jpg"},
        "tiny (a side below 32 px)": {"one_pixel.png", "strip.png"},
        "strip (one side over 8 times the other)": {"strip.png"},
        "of one color (deviation below 2 gray levels)": {"one_pixel.png"},
    }
    assert check.pixels == {
        "8-bit RGB": len(good) - 4,
        "8-bit gray": 1,
        "8-bit gray with transparency": 1,
        "8-bit 4 channels": 1,
        "16-bit gray": 1,
    }
    assert (min(check.short_sides), max(check.long_sides)) == (1, 5000)
    assert len(check.num_bytes) == len(check.short_sides) == len(good)
    assert LONG_NAME in {Path(image["path"]).name for image in loaded(tmp_path / "images")["train"]["image"]}


@pytest.mark.parametrize("num_proc", [None, 2])
def test_bad_images_by_reason(tmp_path, num_proc):
    write_good_images(tmp_path / "images")
    bad = write_bad_images(tmp_path / "images")
    check = check_dataset(loaded(tmp_path / "images"), "image", num_proc)
    lines = check.bad_images().splitlines()
    assert check.num_bad == len(bad) == len(lines)
    for name in bad:
        assert sum(printable(name) in line for line in lines) == 1
    reasons = {reason: " ".join(lines) for reason, lines in check.bad.items()}
    for part, files in {
        "empty": ["empty.jpg"],
        "UnidentifiedImage": ["text.jpg", "page.jpg"],
        "DecompressionBomb": ["bomb.png", "bomb.jpg"],
        "truncated": ["truncated.jpg", "truncated.png"],
    }.items():
        [of_this_kind] = [lines for reason, lines in reasons.items() if part in reason]
        assert all(file in of_this_kind for file in files)


def test_damage_that_pillow_passes_over_is_told(tmp_path):
    file = make(tmp_path / "images") / "1.png"
    photograph(1).save(file)
    whole = file.read_bytes()
    file.write_bytes(whole[:-14] + bytes([whole[-14] ^ 1]) + whole[-13:])  # in the checksum of the last pixels
    check = check_dataset(loaded(tmp_path / "images"), "image")
    assert check.num_bad == 0 and list(check.unusual) == ["wrong checksums though it decodes"]


def test_copies_within_and_between_splits(tmp_path):
    for name, seed in {"train/a.png": 1, "train/b.png": 1, "train/c.png": 2, "test/d.png": 2, "test/e.png": 3}.items():
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        photograph(seed).save(tmp_path / "images" / name)
    check = check_dataset(loaded(tmp_path / "images"), "image")
    assert check.num_images == {"train": 3, "test": 2}
    assert len(check.copies) == 1 and re.fullmatch(r".*b\.png \(.*a\.png\)", check.copies[0])
    assert len(check.shared) == 1 and re.fullmatch(r".*d\.png \(.*c\.png\)", check.shared[0])


def test_pictures_that_were_encoded_or_resized_again(tmp_path):
    for folder in ("train", "test"):
        make(tmp_path / "images" / folder)
    photograph(1, 160, 208).save(tmp_path / "images" / "train" / "a.png")
    photograph(2, 160, 208).save(tmp_path / "images" / "train" / "b.png")
    photograph(1, 160, 208).resize((104, 80)).save(tmp_path / "images" / "train" / "c.png")
    photograph(2, 160, 208).save(tmp_path / "images" / "test" / "d.jpg", quality=60)
    check = check_dataset(loaded(tmp_path / "images"), "image")
    assert not check.copies and not check.shared
    assert len(check.near_copies) == 1 and re.fullmatch(r".*c\.png \(.*a\.png\)", check.near_copies[0])
    assert len(check.near_shared) == 1 and re.fullmatch(r".*d\.jpg \(.*b\.png\)", check.near_shared[0])
    assert "1  look like an image of another split" in check.report()


@pytest.mark.parametrize(
    ("name", "image", "stored"),
    [
        ("bits.png", Image.new("1", (40, 40)), (1, 1)),
        ("gray.png", Image.new("L", (40, 40)), (1, 8)),
        ("palette.png", Image.new("P", (40, 40)), (3, 8)),
        ("rgba.png", Image.new("RGBA", (40, 40)), (4, 8)),
        ("deep.png", Image.new("I;16", (40, 40)), (1, 16)),
        ("deep.tif", Image.new("I;16", (40, 40)), (1, 16)),
        ("floats.tif", Image.new("F", (40, 40)), (1, 32)),
    ],
)
def test_channels_and_bits_are_those_of_the_file(tmp_path, name, image, stored):
    image.save(tmp_path / name)
    with open_image(tmp_path / name) as opened:
        assert channels_and_bits(opened) == stored


def test_colors_of_16_bits(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 2**16, (40, 40, 3), dtype=np.uint16)
    assert cv2.imwrite(str(make(tmp_path / "images") / "deep.png"), pixels)
    check = check_dataset(loaded(tmp_path / "images"), "image")
    assert check.pixels == {"16-bit RGB": 1} and "Pixels: 16-bit RGB 1." in check.report()


def test_files_that_are_not_read_are_counted(monkeypatch, tmp_path, capsys):
    for name in ("1.png", "2.png", ".hidden.png", "a::b.png", "two\nlines.png"):
        photograph(1).save(make(tmp_path / "images") / name)
    for name in ("a.heic", "notes.txt", "Makefile"):
        (tmp_path / "images" / name).write_text("no image")
    assert run(monkeypatch, tmp_path / "images") == 0
    assert "not read as images: 6 (3 .png, " in capsys.readouterr().out


def test_the_check_is_made_anew(tmp_path):
    photograph(1).save(make(tmp_path / "images") / "1.png")
    file = tmp_path / "images" / "1.png"
    assert check_dataset(loaded(tmp_path / "images"), "image").num_bad == 0
    times = file.stat()
    file.write_bytes(b"x" * times.st_size)  # a rotten disk changes no date
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert check_dataset(loaded(tmp_path / "images"), "image").num_bad == 1


def make(folder):
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def test_the_script_reports_and_exits_by_what_it_found(monkeypatch, tmp_path, capsys):
    good, output = write_good_images(tmp_path / "images"), tmp_path / "lists" / "bad.txt"
    assert run(monkeypatch, tmp_path / "images", "--output", output) == 0
    assert output.read_text() == ""
    text = capsys.readouterr().out
    assert f"{len(good)} images (train {len(good)})" in text and "All can be decoded." in text and "px" in text

    bad = write_bad_images(tmp_path / "images")
    assert run(monkeypatch, tmp_path / "images", "--output", output, "--num_proc", "2") == 1
    assert len(output.read_text(encoding="utf-8").splitlines()) == len(bad)
    text = capsys.readouterr().out
    assert f"{len(bad)} cannot be decoded:" in text and "bomb.png" in text and "\x1b" not in text


def test_parquet_is_checked_too(monkeypatch, tmp_path, capsys):
    photograph(1).save(tmp_path / "one.png")
    images = [{"bytes": data, "path": None} for data in ((tmp_path / "one.png").read_bytes(), b"broken", None)]
    features = datasets.Features({"image": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}})
    table = datasets.Dataset.from_dict({"image": images}, features=features)
    table.cast_column("image", datasets.Image(decode=False)).to_parquet(tmp_path / "images.parquet")
    assert run(monkeypatch, tmp_path / "images.parquet") == 1
    text = capsys.readouterr().out
    assert "the image in row 1" in text and "the image in row 2" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "dataset_name"),
        (("./nowhere",), "nowhere"),
        ((".", "--num_proc", "0"), "num_proc is 0"),
        ((".", "--output", "."), "output is ., a folder"),
        ((".", "--json", "."), "json is ., a folder"),
        ((".", "--model_size", "vast"), "model_size is 'vast'"),
        ((".", "--precision", "fp16", "--use_cpu", "--model_size", "tiny"), "fp16, which needs a GPU"),
        ((".", "--temperature", "0"), "temperature is 0"),
        ((".", "--outptu", "x"), "did you mean 'output'"),
    ],
)
def test_wrong_use(monkeypatch, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        run(monkeypatch, *arguments)


def test_the_process_exits_with_1_for_bad_images(tmp_path):
    (make(tmp_path / "images") / "text.jpg").write_text("no")
    environment = {**os.environ, "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "modeling_kamim", "check", str(tmp_path / "images")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "1 cannot be decoded" in done.stdout and "Checking train" in done.stderr


def test_a_model_is_tried_and_everything_is_written_as_json(monkeypatch, tmp_path, capsys):
    write_good_images(tmp_path / "images")
    assert run(monkeypatch, tmp_path / "images", "--weighting", "none") == 0
    text = capsys.readouterr().out
    assert f"kamim check {tmp_path / 'images'} --model_size base" in text and "Keypoint weights" not in text

    model = ["--model_size", "tiny", "--image_size", "32", "--config_overrides", "num_hidden_layers=1", "--use_cpu"]
    batches = ["--per_device_train_batch_size", "2", "--num_train_epochs", "3"]
    assert run(monkeypatch, tmp_path / "images", *model, *batches, "--json", tmp_path / "facts" / "check.json") == 0
    text = capsys.readouterr().out
    facts = json.loads((tmp_path / "facts" / "check.json").read_text())
    assert facts["images"]["num_images"] == {"train": 17} and facts["images"]["pixels"]["16-bit gray"] == 1
    assert facts["images"]["long_sides"]["max"] == 5000 and facts["images"]["pixel_range"]
    assert facts["weights"]["image_size"] == 32 and "Advice: " in text
    assert facts["estimate"]["epochs"] == 3 and facts["estimate"]["batch_size"] == 2
    assert f"{facts['estimate']['images_per_second']:,.1f} images/s" in text and "3 epoch(s) of 17 images" in text
    assert "A first encoder" not in text

    monkeypatch.setattr(script, "LONG", 0)
    assert run(monkeypatch, tmp_path / "images", *model, *batches) == 0
    advice = f"kamim pretrain {script.LAPTOP_CONFIG} --dataset_name {tmp_path / 'images'}"
    assert advice in capsys.readouterr().out and config_file(Path(script.LAPTOP_CONFIG)).is_file()


def test_stored_densities_are_checked_too(tmp_path):
    write_good_images(tmp_path / "images")
    images = loaded(tmp_path / "images")["train"]
    small, large = DensityDetector(KeypointDetector(), 32), DensityDetector(KeypointDetector(), 64)
    values = [None, small(PIXELS)[:-1]] + [large(PIXELS)] + [small(PIXELS)] * (len(images) - 3)
    images = images.add_column(small.column, values)
    check = check_dataset(datasets.DatasetDict(train=images), "image")
    assert check.num_bad == 2 and len(check.bad_images().splitlines()) == 2
    assert all("cannot use the keypoint density of" in line for line in check.bad_images().splitlines())
    report = " ".join(check.report().split())
    assert "All can be decoded." in report and "2 keypoint_density_fast: damaged or missing" in report
    assert f"1 keypoint_density_fast of {large.label}" in report
    assert f"{len(images) - 3} keypoint_density_fast of {small.label}" in report
