"""Damaged images and config files: either they are read, or the one error that names them, and nothing else."""

import contextlib
import io
import math
import re
import resource
import sys
import time
from collections import Counter
from dataclasses import fields
from pathlib import Path
from random import Random

import cv2
import numpy as np
import pytest
import torch
from awkward_images import huge_jpeg, huge_png, photograph
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import Trainer, TrainingArguments, get_scheduler

from modeling_kamim.api.groups import CLASSIFICATION_ARGUMENTS, PREPARATION_ARGUMENTS, PRETRAINING_ARGUMENTS
from modeling_kamim.commands.parser import parse, read_yaml
from modeling_kamim.data.decoding import BadImageError, decode_image
from modeling_kamim.data.loading import DataArguments
from modeling_kamim.errors import InputError
from modeling_kamim.evaluation.settings import ClassificationArguments, OnlineProbeArguments
from modeling_kamim.training.arguments import KamimArguments

pytestmark = pytest.mark.filterwarnings("ignore")  # Pillow's, of damaged files

ROOT = Path(__file__).parents[2]
FEW, MANY = 300, 20_000
MOST_SECONDS = 30.0  # of a processor, for one case
MOST_MEMORY = 2**31  # bytes by which a fuzz run may grow the process
FUZZ = {"derandomize": True, "database": None, "deadline": None, "suppress_health_check": list(HealthCheck)}
numbers = st.integers(0, 2**64 - 1)


# Images


def encoded(image, file_format, **options):
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def seed_images():
    """Valid images of every format and of many kinds."""
    image, exif = photograph(1), Image.Exif()
    exif[0x0112] = 6
    frames = {"save_all": True, "append_images": [photograph(2), photograph(3)]}
    deep = Image.fromarray(np.arange(40 * 52, dtype=np.uint16).reshape(40, 52) * 31)
    return [
        encoded(image, "jpeg"),
        encoded(image, "jpeg", progressive=True),
        encoded(image, "jpeg", exif=exif),
        encoded(image.convert("L"), "jpeg"),
        encoded(image.convert("CMYK"), "jpeg"),
        encoded(image, "png", exif=exif),
        encoded(image.quantize(16), "png", transparency=3),
        encoded(image.convert("LA"), "png"),
        encoded(deep, "png"),
        encoded(image, "png", **frames),
        encoded(image, "webp"),
        encoded(image, "webp", lossless=True),
        encoded(image, "webp", **frames),
        encoded(image, "gif"),
        encoded(image, "gif", **frames),
        encoded(image, "bmp"),
        encoded(image.quantize(16), "bmp"),
        encoded(image, "tiff"),
        encoded(image, "tiff", compression="tiff_lzw"),
        encoded(image, "tiff", compression="tiff_deflate"),
        encoded(deep, "tiff"),
        encoded(Image.fromarray(np.linspace(-1, 1, 40 * 52, dtype=np.float32).reshape(40, 52)), "tiff"),
        *(cv2.imencode(kind, np.dstack([np.asarray(deep)] * 3))[1].tobytes() for kind in (".png", ".tiff")),
    ]


SEEDS = seed_images()
_EXTREMES = (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\xff\xff", b"\xff\xff")


def flip(data, random):
    reach = random.choice([32, 128, len(data)])  # headers more often than pixels
    for _ in range(random.randint(1, 12)):
        data[random.randrange(min(reach, len(data)))] ^= 1 << random.randrange(8)


def overwrite(data, random):
    place = random.randrange(random.choice([min(64, len(data)), len(data)]))
    value = random.choice([random.choice(_EXTREMES), random.randbytes(random.randint(1, 16))])
    data[place : place + len(value)] = value


def truncate(data, random):
    del data[random.randrange(len(data)) :]


def cut_out(data, random):
    start = random.randrange(len(data))
    del data[start : start + random.randint(1, 64)]


def splice(data, random):
    other = random.choice(SEEDS)
    place, start = random.randrange(len(data)), random.randrange(len(other))
    data[place:place] = other[start : start + random.randint(1, 256)]


def cross(data, random):
    other = random.choice(SEEDS)
    data[random.randrange(len(data)) :] = other[random.randrange(len(other)) :]


MUTATIONS = (flip, flip, overwrite, overwrite, truncate, cut_out, splice, cross)


def mutated(number, data=None):
    random = Random(number)
    data = bytearray(random.choice(SEEDS) if data is None else data)
    for _ in range(random.randint(1, 4)):
        if data:
            random.choice(MUTATIONS)(data, random)
    return bytes(data)


def check_decoding(data, tally):
    start = time.process_time()
    try:
        pixels = decode_image({"bytes": data, "path": "a name"})
    except BadImageError as error:
        tally["refused"] += 1
        assert str(error).startswith("cannot decode a name (") and str(error).isprintable()
    else:
        tally["decoded"] += 1
        assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3
        assert 0 < pixels.shape[0] * pixels.shape[1] <= 2 * Image.MAX_IMAGE_PIXELS
    tally["slowest_ms"] = max(tally["slowest_ms"], int(1000 * (time.process_time() - start)))


def fuzz_images(cases, record_property):
    tally = Counter()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    @settings(max_examples=cases, **FUZZ)
    @given(numbers)
    def decode_mutated(number):
        check_decoding(mutated(number), tally)

    decode_mutated()
    tally["grown_mb"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) // 1024
    report(record_property, "images", tally)
    assert tally["decoded"] and tally["refused"]
    assert tally["slowest_ms"] < 1000 * MOST_SECONDS and tally["grown_mb"] * 2**20 < MOST_MEMORY


def report(record_property, name, tally):
    for key, value in tally.items():
        record_property(f"{name}_{key}", value)
    sys.__stderr__.write(f"\nfuzzed {name}: {', '.join(f'{value} {key}' for key, value in tally.items())}\n")


def test_damaged_images_are_decoded_or_refused(record_property):
    fuzz_images(FEW, record_property)


@pytest.mark.slow
def test_many_damaged_images_are_decoded_or_refused(record_property):
    fuzz_images(MANY, record_property)


@settings(max_examples=FEW // 3)
@given(st.binary(max_size=200), st.sampled_from([b"", *(seed[:40] for seed in SEEDS), huge_png()[:40]]))
@example(b"", huge_png())
@example(b"", huge_jpeg())
def test_anything_after_a_header_is_refused_or_decoded(tail, head):
    check_decoding(head + tail, Counter())


# Config files

CONFIGS = [file.read_bytes() for file in sorted((ROOT / "configs").rglob("*.yaml"))]
_HOSTILE = (
    "!!python/object/apply:os.system ['touch hacked']",
    "!!python/name:os.system",
    "&a [*a]",
    "&a {a: *a}",
    "{1: 2}",
    "{1: {2: 3}}",
    "[[[1]]]",
    "!!int ''",
    "!!float x",
    "!!bool maybe",
    "!!timestamp x",
    "!!binary \u00e9",
    "2026-99-99",
    "2026-01-01",
    "0x",
    "0b",
    "1_",
    "1:99",
    "!!set {a, b}",
    ".nan",
    "-.inf",
    "1e999",
    "9" * 5000,
    "-1",
    "~",
    "null",
    "[]",
    "{}",
    "''",
    "--bad_images",
    "'%s%(x)s'",
    '"\\0"',
    '"\\ud800"',
    "a: b",
    "- - - -",
    "? [a, b]",
    "[" * 400,
    "{a: " * 400,
    "\t",
    "\ufeff",
    "\x85",
    "*unknown",
    "%TAG ! x",
    "---",
    "...",
    "<<: [1]",
    "{<<: 3}",
    "@",
    "`",
    "|\n  text",
    "'{\"nfeatures\": 1e99}'",
    "'[[[[]]]]'",
    '\'{"threshold": "x"}\'',
    "'" + "[" * 5000 + "'",
)


def keys_of(*types):
    return [field.name for kind in types for field in fields(kind)]


def config_text(random, keys):
    """Lines of known keys with values that are usual, extreme or hostile."""
    words = [*_HOSTILE, "0", "1", "0.5", "true", "vit", "fast", "keypoint", "16", "192", str(random.getrandbits(70))]
    lines = [f"{random.choice(keys)}: {random.choice(words)}" for _ in range(random.randint(1, 5))]
    if random.random() < 0.2:
        lines.insert(random.randrange(len(lines) + 1), random.choice(_HOSTILE))
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def read_or_refuse(file, data, kinds, tally):
    file.write_bytes(data)
    start = time.process_time()
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            parse(kinds, [str(file)])
    except InputError as error:
        tally["refused"] += 1
        assert str(error)
    else:
        tally["accepted"] += 1
    tally["slowest_ms"] = max(tally["slowest_ms"], int(1000 * (time.process_time() - start)))


SCRIPTS = [(DataArguments, KamimArguments, OnlineProbeArguments), PREPARATION_ARGUMENTS, (ClassificationArguments,)]


def fuzz_configs(cases, folder, record_property):
    tally = Counter()

    @settings(max_examples=cases, **FUZZ)
    @given(numbers)
    def read_mutated(number):
        random = Random(number)
        kinds = random.choice(SCRIPTS)
        data = (
            mutated(number, random.choice(CONFIGS)) if random.random() < 0.3 else config_text(random, keys_of(*kinds))
        )
        read_or_refuse(folder / "config.yaml", data, kinds, tally)

    read_mutated()
    report(record_property, "configs", tally)
    assert tally["accepted"] and tally["refused"]
    assert tally["slowest_ms"] < 1000 * MOST_SECONDS
    assert [file.name for file in folder.iterdir()] == ["config.yaml"]


def test_damaged_configs_are_read_or_refused(tmp_path, monkeypatch, record_property):
    monkeypatch.chdir(tmp_path)
    fuzz_configs(FEW, tmp_path, record_property)


@pytest.mark.slow
def test_many_damaged_configs_are_read_or_refused(tmp_path, monkeypatch, record_property):
    monkeypatch.chdir(tmp_path)
    fuzz_configs(MANY, tmp_path, record_property)


@settings(max_examples=FEW)
@given(st.one_of(st.text(), st.binary().map(lambda data: data.decode("latin-1"))))
def test_any_text_is_read_or_refused(text):
    file = Path("/dev/shm" if Path("/dev/shm").is_dir() else "/tmp") / "kamim_fuzz.yaml"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        with contextlib.suppress(InputError):
            assert isinstance(read_yaml(file), dict)
    finally:
        file.unlink()


@pytest.mark.parametrize("value", _HOSTILE)
def test_hostile_values_of_a_known_key(tmp_path, monkeypatch, value):
    monkeypatch.chdir(tmp_path)
    for key in ("temperature", "image_size", "image_column", "keypoint_detector_args", "dataset_name"):
        file = tmp_path / "config.yaml"
        read_or_refuse(file, f"{key}: {value}\n".encode("utf-8", "surrogatepass"), SCRIPTS[0], Counter())
    assert [file.name for file in tmp_path.iterdir()] == ["config.yaml"]


@pytest.mark.parametrize("key", ["learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "optim", "warmup_steps"])
@pytest.mark.parametrize("value", ["x", ".nan", "-1", "[]", "{1: 2}", "'{'", "'{\"a\": 1}'", "&a [*a]"])
def test_values_that_transformers_refuses(tmp_path, key, value):
    read_or_refuse(
        tmp_path / "config.yaml", f"use_cpu: true\n{key}: {value}\n".encode(), PRETRAINING_ARGUMENTS, Counter()
    )


@pytest.mark.parametrize("key", ["image_column", "keypoint_detector_args", "lr_scheduler_kwargs"])
def test_aliases_do_not_blow_up(tmp_path, key):
    """A billion laughs: lists of ten aliases of lists take no memory, unless someone writes them out."""
    laughs = "&a0 [x, x]"
    for depth in range(1, 40):
        laughs = f"&a{depth} [{laughs}, *a{depth - 1}]"
    file = tmp_path / "config.yaml"
    for value in (laughs, f"{{a: {laughs}}}"):
        file.write_text(f"{key}: {value}\n", encoding="utf-8")
        with pytest.raises(InputError, match=key):
            parse(PRETRAINING_ARGUMENTS, [str(file)])


# Numbers on the command line: what is accepted is sane

EXTREMES = [
    "nan",
    "inf",
    "-inf",
    "-1",
    "0",
    "-0.0",
    "1e-320",
    "1e-9",
    "0.5",
    "0.999999",
    "1",
    "2",
    "1e9",
    "1e30",
    "1e308",
]
EXTREMES += [str(2**31), str(2**32), str(2**63), str(10**40)]


def numbers_of(kinds):
    return sorted(
        {
            field.name
            for kind in kinds
            for field in fields(kind)
            if re.search(r"\b(int|float)\b", str(field.type)) and field.name != "local_rank"
        }
    )


def is_sane(group):
    for field in fields(group):
        value = getattr(group, field.name)
        assert not isinstance(value, float) or math.isfinite(value), field.name
    if not isinstance(group, TrainingArguments):
        return
    assert min(group.per_device_train_batch_size, group.gradient_accumulation_steps, group.total_batch_size) >= 1
    assert group.max_steps >= 1 or group.num_train_epochs > 0
    weight = torch.nn.Parameter(torch.ones(2, 2))
    make, settings = Trainer.get_optimizer_cls_and_kwargs(group)
    optimizer = make([weight], **{**settings, "weight_decay": group.weight_decay})
    steps = group.max_steps if group.max_steps > 0 else 100
    schedule = get_scheduler(
        group.lr_scheduler_type, optimizer, group.get_warmup_steps(steps), steps, group.lr_scheduler_kwargs
    )
    for _ in range(3):
        weight.grad = torch.ones(2, 2)
        optimizer.step()
        schedule.step()
        assert 0 <= schedule.get_last_lr()[0] <= 100 and torch.isfinite(weight).all()


@pytest.mark.parametrize("kinds", [PRETRAINING_ARGUMENTS, CLASSIFICATION_ARGUMENTS])
def test_numeric_extremes_are_refused_or_sane(kinds):
    names = numbers_of(kinds)
    assert len(names) > 30

    @given(st.lists(st.tuples(st.sampled_from(names), st.sampled_from(EXTREMES)), min_size=1, max_size=2))
    def check(settings):
        argv = ["--use_cpu", "--output_dir", "/nowhere", *(f"--{name}={value}" for name, value in settings)]
        try:
            groups = parse(kinds, argv)
        except InputError as error:
            assert str(error)
        else:
            for group in groups:
                is_sane(group)

    for name in names:
        for value in EXTREMES:
            check.hypothesis.inner_test([(name, value)])
    check()
