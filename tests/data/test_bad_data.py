"""Runs on data as the world has it: what is bad is named or left out, and every good image is seen once an epoch."""

import errno
import os
import sys
from collections import Counter
from pathlib import Path

import cv2
import datasets
import pytest
import torch
from awkward_images import huge_png, photograph, write_bad_images, write_good_images, write_latin1_name
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from modeling_kamim.api import pretraining
from modeling_kamim.commands import prepare as prepare_dataset
from modeling_kamim.commands import pretrain as run_mim
from modeling_kamim.data import decoding as images
from modeling_kamim.data import samples as transforms
from modeling_kamim.data.attach_density import find_bad_images, prepare_images
from modeling_kamim.data.decoding import BadImageError, UnreadImageError, decode_image, read_image
from modeling_kamim.data.loading import keep_encoded, load_images
from modeling_kamim.data.preparation import Preparation
from modeling_kamim.data.samples import SampleDataset
from modeling_kamim.data.stored_density import DensityDetector
from modeling_kamim.errors import InputError, StoppedError, printable
from modeling_kamim.objective.keypoints import KeypointDetector

TINY = ["--model_type", "vit", "--model_size", "tiny", "--image_size", "32", "--mask_patch_size", "16", "--use_cpu"]
QUIET = ["--disable_tqdm", "true", "--precision", "fp32", "--per_device_train_batch_size", "5"]
EPOCHS = 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Good and bad images in one folder."""
    path = tmp_path_factory.mktemp("awkward") / "images"
    write_good_images(path)
    write_bad_images(path)
    return path


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    """Names of the good images, and of the bad ones."""
    path = tmp_path_factory.mktemp("names")
    return write_good_images(path / "good"), write_bad_images(path / "bad")


@pytest.fixture(scope="module")
def parquet(folder, tmp_path_factory):
    """The same images in a Parquet file."""
    rows = load_images(str(folder))["train"].cast_column("image", datasets.Image(decode=False))
    sources = [{"bytes": Path(image["path"]).read_bytes(), "path": Path(image["path"]).name} for image in rows["image"]]
    features = datasets.Features({"image": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}})
    table = datasets.Dataset.from_dict({"image": sources}, features=features)
    file = tmp_path_factory.mktemp("parquet") / "images.parquet"
    table.cast_column("image", datasets.Image(decode=False)).to_parquet(file)
    return file


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(pretraining, "draw_reconstructions", lambda *arguments: None)
    yield
    datasets.enable_progress_bars()


@pytest.fixture
def seen(monkeypatch):
    """Names of the images that samples are drawn from, in order."""
    found = []

    def decode(source, *arguments, **settings):
        found.append(Path(source["path"]).name)
        return decode_image(source, *arguments, **settings)

    monkeypatch.setattr(transforms, "decode_image", decode)
    monkeypatch.setattr(pretraining, "check_samples", lambda samples: None)  # it draws some before the training does
    return found


def pretrain(monkeypatch, output_dir, source, *arguments):
    options = [*TINY, *QUIET, "--dataset_name", str(source), "--num_train_epochs", str(EPOCHS), *arguments]
    monkeypatch.setattr(sys, "argv", ["run_mim.py", *options, "--output_dir", str(output_dir)])
    run_mim.main()
    return output_dir


def listed(output_dir):
    return (output_dir / "bad_images.txt").read_text(encoding="utf-8").splitlines()


def assert_listed(lines, bad):
    assert len(lines) == len(bad)
    for name in bad:
        assert sum(printable(name) in line for line in lines) == 1, name


@pytest.mark.parametrize(("kind", "source"), [("folder", "map"), ("parquet", "online")])
def test_skip_trains_on_every_good_image_once_an_epoch(monkeypatch, request, tmp_path, names, seen, kind, source):
    good, bad = names
    data = request.getfixturevalue(kind)
    output = pretrain(monkeypatch, tmp_path / "out", data, "--keypoint_source", source, "--bad_images", "skip")
    assert len(seen) == EPOCHS * len(good)
    for epoch in range(EPOCHS):
        assert Counter(seen[epoch * len(good) : (epoch + 1) * len(good)]) == Counter(good)
    assert_listed(listed(output), bad)


def test_a_prepared_data_set_holds_every_good_image(monkeypatch, tmp_path, folder, names, seen):
    good, bad = names
    prepared = tmp_path / "prepared"
    options = ["--image_size", "32", "--bad_images", "skip", "--rows_per_shard", "10"]
    monkeypatch.setattr(sys, "argv", ["kamim prepare", str(folder), str(prepared), *options])
    prepare_dataset.main()
    assert_listed(listed(prepared), bad)
    pretrain(monkeypatch, tmp_path / "out", prepared)
    stems = Counter(Path(name).stem for name in good)
    assert len(seen) == EPOCHS * len(good)
    for epoch in range(EPOCHS):
        assert Counter(Path(name).stem for name in seen[epoch * len(good) : (epoch + 1) * len(good)]) == stems


def test_a_prepared_data_set_holds_the_images_and_not_files_of_the_same_name_here(monkeypatch, tmp_path):
    """`datasets` takes a file in the working directory for the image where it has the same name."""
    photograph(1).save(make(tmp_path / "images") / "1.png")
    photograph(2).save(make(tmp_path / "here") / "1.png")
    expected = decode_image({"bytes": None, "path": str(tmp_path / "images" / "1.png")})
    monkeypatch.chdir(tmp_path / "here")
    options = ["kamim prepare", str(tmp_path / "images"), str(tmp_path / "out"), "--image_size", "96"]
    monkeypatch.setattr(sys, "argv", options)
    prepare_dataset.main()
    [image] = keep_encoded(load_images(str(tmp_path / "out"))["train"], "image")["image"]
    assert image["bytes"] is not None
    assert (decode_image(image) == expected).all()


def make(folder):
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.mark.parametrize("kind", ["folder", "parquet"])
def test_raise_stops_at_the_map_step_and_names_the_first(monkeypatch, request, tmp_path, names, kind):
    data = request.getfixturevalue(kind)
    with pytest.raises(BadImageError) as error:
        pretrain(monkeypatch, tmp_path / "out", data, "--num_proc", "2")
    assert any(printable(name) in str(error.value) for name in names[1])
    assert "\n" not in str(error.value) and "--bad_images skip" in str(error.value)
    assert not list((tmp_path / "out").glob("checkpoint-*"))


def test_raise_in_the_midst_of_training_loses_no_step(monkeypatch, tmp_path):
    """The image is named, a checkpoint saved; once the image is whole, the run goes on as if it had always been."""
    for seed in range(12):
        photograph(seed).save(make(tmp_path / "images") / f"{seed:02}.png")
    source, output = tmp_path / "images", tmp_path / "out"
    bad = source / "05.png"
    options = ["--keypoint_source", "online", "--save_steps", "1000", "--save_strategy", "steps", "--seed", "1"]
    options += ["--per_device_train_batch_size", "2", "--dataloader_num_workers", "1"]
    expected = load_file(pretrain(monkeypatch, tmp_path / "expected", source, *options) / "model.safetensors")
    whole = bad.read_bytes()
    bad.write_bytes(whole[:300])
    with pytest.raises(StoppedError) as error:
        pretrain(monkeypatch, output, source, *options)
    message = str(error.value)
    (checkpoint,) = output.glob("checkpoint-*")
    assert str(bad) in message and f"{checkpoint} is saved; go on with" in message
    assert "\n" not in message and "Traceback" not in message
    bad.write_bytes(whole)
    pretrain(monkeypatch, output, source, *options, "--resume_from_checkpoint", "auto")
    found = load_file(output / "model.safetensors")
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []


def test_an_image_without_a_name_is_named_by_its_row(tmp_path):
    images = [{"bytes": data, "path": None} for data in (huge_png(), read_png(tmp_path), b"broken")]
    features = datasets.Features({"image": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}})
    rows = datasets.Dataset.from_dict({"image": images}, features=features).select([2, 1])
    samples = SampleDataset(rows, lambda row, rng: {"image": decode_image(row["image"])}, seed=0)
    samples[1]
    with pytest.raises(BadImageError, match="cannot decode the image in row 2 "):
        samples[0]
    with pytest.raises(BadImageError, match="^cannot decode the image in row 2 ") as error:
        list(DataLoader(samples, num_workers=1, batch_size=2, collate_fn=list))
    assert "\n" not in str(error.value)


def read_png(folder):
    photograph(1).save(folder / "one.png")
    return (folder / "one.png").read_bytes()


def test_a_row_without_an_image_is_bad(tmp_path):
    for nothing in (None, {"bytes": None, "path": None}, {}):
        with pytest.raises(BadImageError, match="row 4 .*neither an image nor a path"):
            decode_image(nothing, "row 4")
    rows = datasets.Dataset.from_dict({"image": [{"bytes": read_png(tmp_path), "path": None}, None]})
    found = find_bad_images(rows.cast_column("image", datasets.Image(decode=False)), "image")
    assert found[0] is None and "row 1" in found[1]


def test_names_are_shown_in_one_line_and_reasons_without_them():
    with pytest.raises(BadImageError) as error:
        decode_image({"bytes": b"no", "path": "a;b\n\x1b[31m\u202e\udce9.png"})
    assert error.value.finding.startswith(r"cannot decode a;b\n\x1b[31m\u202e\udce9.png (UnidentifiedImageError")
    assert error.value.finding.isprintable() and error.value.reason.startswith("UnidentifiedImageError")
    assert str(error.value) == f"{error.value.finding}; pass --bad_images skip to leave such images out"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes")
def test_what_is_no_regular_file_is_bad_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    for path in (tmp_path / "pipe.jpg", tmp_path, Path("/dev/zero")):
        with pytest.raises(BadImageError, match="not a regular file"):
            decode_image({"bytes": None, "path": str(path)})
    with pytest.raises(BadImageError, match="null byte"):
        decode_image({"bytes": None, "path": "a\0b.png"})


def test_a_file_too_large_for_an_image_is_bad_and_not_read(tmp_path):
    with (tmp_path / "sparse.jpg").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(BadImageError, match="too large"):
        decode_image({"bytes": None, "path": str(tmp_path / "sparse.jpg")})


@pytest.mark.parametrize("fault", ["EIO", "EMFILE", "ESTALE"])
def test_a_fault_of_the_system_is_no_bad_image(monkeypatch, tmp_path, fault):
    """Or a network that fails for a second would leave thousands of good images out, and the cache would keep it so."""
    photograph(1).save(make(tmp_path / "images") / "1.png")

    def fail(path):
        raise OSError(getattr(errno, fault), "the disk says no", str(path))

    rows = keep_encoded(load_images(str(tmp_path / "images"))["train"], "image")
    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(InputError, match=r"1\.png: the disk says no") as error:
        find_bad_images(rows, "image")
    assert not isinstance(error.value, BadImageError)
    with pytest.raises(InputError):
        read_image({"path": str(tmp_path / "images" / "1.png")})


EXHAUSTED = {
    "Python": MemoryError(),
    "OpenCV": cv2.error("OpenCV(5.0.0) alloc.cpp:73: error: (-4:Insufficient memory) Failed to allocate 9 bytes"),
    "torch": RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory: you tried"),
    "a codec": OSError("out of memory when reading image file"),
    "the system": OSError(errno.ENOMEM, "Cannot allocate memory"),
    "the stack": RecursionError("maximum recursion depth exceeded"),
    "open files": OSError(errno.EMFILE, "Too many open files"),
}


@pytest.mark.parametrize("part", ["open_image", "density"])
@pytest.mark.parametrize("error", EXHAUSTED.values(), ids=EXHAUSTED)
def test_what_the_machine_lacks_is_no_fault_of_an_image(monkeypatch, tmp_path, error, part):
    """Under pressure a good image fails once: it is not left out, and the cache does not keep that it failed."""
    photograph(1).save(make(tmp_path / "images") / "1.png")
    rows = keep_encoded(load_images(str(tmp_path / "images"))["train"], "image")
    densities = DensityDetector(KeypointDetector(), 32)
    prepared = Preparation("image", 32, (densities,), skip_bad_images=True)

    def fail(*arguments):
        raise error

    with monkeypatch.context() as pressure:
        pressure.setattr(*((images, "open_image") if part == "open_image" else (DensityDetector, "density")), fail)
        for work in (
            lambda: prepare_images(rows, "image", densities, skip_bad_images=True),
            lambda: prepared(rows[:], [0]),
        ):
            with pytest.raises(InputError, match=r"1\.png.*may be good, so it is not left out; ") as raised:
                work()
            assert not isinstance(raised.value, BadImageError)
    assert len(prepare_images(rows, "image", densities, skip_bad_images=True)[0]) == 1
    assert len(prepared(rows[:], [0])[0]["image"]) == 1


def test_ctrl_c_while_an_image_is_decoded_is_ctrl_c(monkeypatch):
    def interrupt(data):
        raise KeyboardInterrupt

    monkeypatch.setattr(images, "open_image", interrupt)
    with pytest.raises(KeyboardInterrupt):
        decode_image({"bytes": b"x", "path": None})


def test_a_file_may_be_called_out_of_memory(tmp_path):
    with pytest.raises(BadImageError, match="No such file"):
        decode_image({"path": str(tmp_path / "out of memory.png"), "bytes": None})


def test_memory_that_gives_out_in_training_costs_no_step(monkeypatch, tmp_path):
    """The checkpoint before it is saved, and the message says how to go on."""
    for seed in range(4):
        photograph(seed).save(make(tmp_path / "images") / f"{seed}.png")
    drawn = []

    def decode(*arguments, **settings):
        drawn.append(arguments)
        if len(drawn) > 6:
            raise UnreadImageError("memory gave out at 1.png")
        return decode_image(*arguments, **settings)

    monkeypatch.setattr(transforms, "decode_image", decode)
    with pytest.raises(StoppedError, match=r"memory gave out at 1\.png.*checkpoint-\d is saved; go on with"):
        pretrain(monkeypatch, tmp_path / "run", tmp_path / "images", "--per_device_train_batch_size", "1")


@pytest.mark.parametrize("mode", ["raise", "skip"])
def test_a_name_that_is_no_utf8_is_told(monkeypatch, tmp_path, mode):
    write_good_images(tmp_path / "images")
    if not write_latin1_name(tmp_path / "images"):
        pytest.skip("the file system refuses such names")
    with pytest.raises(InputError, match=r"caf.*udce9.*UTF-8"):
        pretrain(monkeypatch, tmp_path / "out", tmp_path / "images", "--bad_images", mode)


@pytest.mark.parametrize("name", ["it's", "{a,b}", "caf\u00e9", "-dash", "a;b #c %20"])
def test_folders_of_any_name(tmp_path, name):
    photograph(1).save(make(tmp_path / name) / "1.png")
    assert len(load_images(str(tmp_path / name))["train"]) == 1


@pytest.mark.parametrize("name", ["with [brackets]", "*", "**", "run?", "a::b", "x" * 255])
def test_folders_that_datasets_cannot_read_are_told(tmp_path, name):
    """The pattern "run?" would load the images of run1 and run2, too."""
    for folder in (name, "run1"):
        photograph(1).save(make(tmp_path / folder) / "1.png")
    with pytest.raises(InputError, match="File name too long" if name[0] == "x" else "patterns"):
        load_images(str(tmp_path / name))


def test_a_data_set_with_a_script_is_refused(tmp_path):
    photograph(1).save(make(tmp_path / "mine") / "1.png")
    (tmp_path / "mine" / "mine.py").write_text(f"open({str(tmp_path / 'hacked')!r}, 'w')")
    with pytest.raises(InputError, match="scripts are no longer supported"):
        load_images(str(tmp_path / "mine"))
    assert not (tmp_path / "hacked").exists()
