"""Streams: every image once in a pass, whoever reads it, and a run that goes on exactly where it was."""

import io
import json
import os
import subprocess
import sys
from collections import Counter
from itertools import islice
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from modeling_kamim.commands import pretrain as run_mim
from modeling_kamim.data.attach_density import prepare_images
from modeling_kamim.data.decoding import BadImageError
from modeling_kamim.data.samples import MaskedImageTransform
from modeling_kamim.data.stored_density import OtherDensitiesError
from modeling_kamim.data.streaming import parquet as parquet_files
from modeling_kamim.data.streaming.parquet import ParquetFiles, load_parquet
from modeling_kamim.data.streaming.reader import Position, StreamReader, take_rows
from modeling_kamim.data.streaming.stream import SampleStream, collate_stream
from modeling_kamim.data.views import RandomView
from modeling_kamim.errors import InputError
from modeling_kamim.training.arguments import KamimArguments

ROOT = Path(__file__).parents[2]
TINY_VIT = ["--model_type", "vit", "--model_size", "tiny", "--image_size", "32", "--mask_patch_size", "16"]
TINY_SWIN = ["--model_type", "swin", "--model_size", "tiny", "--image_size", "96"]
QUIET = ["--use_cpu", "--precision", "fp32", "--disable_tqdm", "true", "--logging_steps", "1"]
QUIET += ["--per_device_train_batch_size", "3"]
BINARY = datasets.Features({"image": datasets.Image(decode=False)})


def write(folder, sizes, rows_per_group):
    """Files of so many rows, whose "images" are the names of file and row."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, size in enumerate(sizes):
        images = [{"bytes": f"{number}-{row}".encode(), "path": None} for row in range(size)]
        table = pa.table({"image": images}) if images else BINARY.arrow_schema.empty_table()
        pq.write_table(table, folder / f"{number:02d}.parquet", row_group_size=rows_per_group)
    return ParquetFiles(tuple(str(file) for file in sorted(folder.iterdir())), BINARY)


def readers(files, num_readers, window_rows=4, seed=0):
    return [StreamReader(files, ("image",), seed, window_rows, i, num_readers) for i in range(num_readers)]


def names(rows):
    return [row.columns["image"]["bytes"].decode() for row in rows]


class Named:
    """A transform without an image: the row's name as two numbers, and something random; `bad` cannot be decoded."""

    image_column = "image"

    def __init__(self, bad=()):
        self.bad = bad

    def __call__(self, row, rng):
        name = row["image"]["bytes"].decode()
        if name in self.bad:
            raise BadImageError(f"cannot decode {name}; pass --bad_images skip")
        file, number = map(int, name.split("-"))
        return {"name": torch.tensor([file, number]), "draw": rng.random()}


def stream(files, num_readers=1, first=0, num_workers=1, bad=(), window_rows=4):
    mine = readers(files, num_readers, window_rows)[first : first + num_workers]
    return SampleStream(mine, Named(bad), skip_bad_images=True)


def load(samples, num_batches, num_workers=0):
    """Batches as the trainer takes them: names of rows, random numbers, bad images."""
    loader = DataLoader(samples, 3, num_workers=num_workers, collate_fn=collate_stream, generator=torch.Generator())
    for batch in islice(loader, num_batches):
        progress = batch.pop("progress")
        samples.advance(progress)
        yield batch["name"].tolist(), batch["draw"].tolist(), progress.bad_images


# Order


@example(sizes=[7, 0, 5], rows_per_group=2, num_readers=3, window_rows=4)
@example(sizes=[12], rows_per_group=2, num_readers=5, window_rows=100)
@given(
    sizes=st.lists(st.integers(0, 12), min_size=1, max_size=6),
    rows_per_group=st.integers(1, 5),
    num_readers=st.integers(1, 7),
    window_rows=st.integers(1, 20),
)
def test_every_row_is_served_once_a_pass(tmp_path_factory, sizes, rows_per_group, num_readers, window_rows):
    groups = sum(-(-size // rows_per_group) for size in sizes)
    assume(max(groups, len(sizes)) >= num_readers and sum(sizes) > 0)
    files = write(tmp_path_factory.mktemp("files"), sizes, rows_per_group)
    expected = [f"{number}-{row}" for number, size in enumerate(sizes) for row in range(size)]
    for epoch in (0, 1):
        served = [names(reader.rows(Position(epoch))) for reader in readers(files, num_readers, window_rows)]
        assert sorted(sum(served, [])) == sorted(expected)


def test_rows_have_the_numbers_of_their_files(tmp_path):
    files = write(tmp_path, [7, 5], 2)
    for row in readers(files, 1)[0].rows(Position()):
        assert row.columns["image"]["bytes"].decode() == f"{row.file}-{row.number}"


def test_each_pass_has_its_own_order_and_the_seed_decides(tmp_path):
    files = write(tmp_path, [20, 20], 5)

    def order(epoch, seed=0):
        return names(readers(files, 1, 10, seed)[0].rows(Position(epoch)))

    orders = [order(0), order(1), order(2), order(0, seed=1), sorted(order(0))]
    assert len({tuple(rows) for rows in orders}) == len(orders)
    assert order(1) == orders[1]


def test_readers_get_other_files_in_each_pass(tmp_path):
    files = write(tmp_path, [2] * 8, 2)
    shares = {tuple(sorted(names(readers(files, 2)[0].rows(Position(epoch))))) for epoch in range(6)}
    assert len(shares) > 3


def test_a_large_buffer_mixes_the_rows_of_several_files(tmp_path):
    files = write(tmp_path, [6, 6, 6], 3)
    first = names(islice(readers(files, 1, window_rows=18)[0].rows(Position()), 6))
    assert len({name.split("-")[0] for name in first}) > 1


def test_what_is_drawn_for_a_sample_depends_on_seed_pass_and_row_alone(tmp_path):
    files = write(tmp_path, [4, 5, 6], 2)

    def drawn(num_readers, window_rows):
        """Of the first 2 passes: (pass, name) -> random number."""
        found = {}
        for reader in range(num_readers):
            for sample, progress in stream(files, num_readers, reader, window_rows=window_rows):
                if progress.position.epoch == 2:
                    break
                found[progress.position.epoch, *sample["name"].tolist()] = sample["draw"]
        return found

    expected = drawn(1, 4)
    assert len(expected) == len(set(expected.values())) == 2 * 15
    assert drawn(3, 100) == expected


# Resuming


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_stream_goes_on_where_it_was(tmp_path, num_workers):
    """The second of two processes, with a reader or two, over several passes."""
    files = write(tmp_path / "files", [5, 4, 6, 3], 2)
    count = max(1, num_workers)
    arguments = {"num_readers": 2 * count, "first": count, "num_workers": count, "bad": ("0-1", "2-4")}
    samples, expected = stream(files, **arguments), []
    for number, batch in enumerate(load(samples, 20, num_workers)):
        expected.append(batch)
        (tmp_path / str(number)).mkdir()
        samples.save(tmp_path / str(number), process_index=1)
    assert samples.epoch > 2
    assert {line.split(" of ")[0] for _, _, bad in expected for line in bad} == {"row 1", "row 4"}
    for number in (0, 1, 6, 13) if num_workers else range(19):
        resumed = stream(files, **arguments)
        resumed.restore(tmp_path / str(number), process_index=1)
        assert list(load(resumed, 19 - number, num_workers)) == expected[number + 1 :]


@given(stop=st.integers(0, 40), window_rows=st.integers(1, 12))
def test_a_reader_goes_on_behind_any_row(tmp_path_factory, stop, window_rows):
    files = write(tmp_path_factory.mktemp("files"), [9, 0, 11, 21], 3)
    reader = readers(files, 1, window_rows)[0]
    rows = list(reader.rows(Position(3)))
    assert names(reader.rows(rows[stop].after)) == names(rows[stop + 1 :])


def test_resuming_reads_one_window_again_and_no_other(tmp_path, monkeypatch):
    files = write(tmp_path, [10] * 10, 5)
    reader = readers(files, 1, window_rows=10)[0]
    *_, row = islice(reader.rows(Position()), 75)
    opened, read = [], []
    open_file, read_group = parquet_files._OpenFile.__init__, parquet_files._OpenFile.read
    monkeypatch.setattr(parquet_files._OpenFile, "__init__", lambda *args: opened.append(args) or open_file(*args))
    monkeypatch.setattr(parquet_files._OpenFile, "read", lambda *args: read.append(args) or read_group(*args))
    assert len(names(reader.rows(row.after))) == 25
    assert len(opened) == 3 and len(read) == 6  # of 10 files and 20 row groups: the window it was in, and two more


def test_a_place_in_another_stream_is_refused_or_the_next_pass_begins(tmp_path):
    files, others = write(tmp_path / "a", [4, 4, 4, 4], 2), write(tmp_path / "b", [4, 4, 4], 2)
    samples = stream(files, 2, num_workers=2)
    list(load(samples, 8, num_workers=2))
    assert samples.epoch == 1
    samples.save(tmp_path, 0)
    with pytest.raises(InputError, match="readers: 2 then, 1 now.*--force_resume true"):
        stream(files).restore(tmp_path, 0)
    with pytest.raises(InputError, match="files: .* then, .* now"):
        stream(others, 2, num_workers=2).restore(tmp_path, 0)
    with pytest.raises(InputError, match="stream_state_1.json is missing"):
        stream(files, 4, 2, num_workers=2).restore(tmp_path, 1)
    forced = stream(files)
    forced.restore(tmp_path, 0, force=True)
    assert forced.positions == [Position(2)]


# Settings


def parquet(folder, images, sizes=(5, 4), split="train", **columns):
    """Files of encoded images, and of further columns."""
    folder.mkdir(parents=True, exist_ok=True)
    encoded = [encode(image) for image in images]
    features = datasets.Features({"image": datasets.Image(), **{name: datasets.Value("binary") for name in columns}})
    start = 0
    for number, size in enumerate(sizes):
        chosen = [encoded[row % len(encoded)] for row in range(start, start + size)]
        rows = {"image": [{"bytes": data, "path": f"{start + row}.png"} for row, data in enumerate(chosen)]}
        rows |= {
            name: [values[row % len(values)] for row in range(start, start + size)] for name, values in columns.items()
        }
        datasets.Dataset.from_dict(rows, features=features).to_parquet(
            folder / f"{split}-{number:05d}-of-{len(sizes):05d}.parquet", batch_size=2
        )
        start += size
    return folder


def encode(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def photos(tmp_path_factory, photographs):
    """9 training images in two files, and 4 of validation."""
    folder = parquet(tmp_path_factory.mktemp("data") / "photos", photographs)
    return parquet(folder, photographs, (4,), "validation")


def pretrain(monkeypatch, output_dir, data, *arguments):
    argv = ["run_mim.py", "--streaming", "--dataset_name", str(data), "--max_steps", "2", "--shuffle_buffer", "4"]
    monkeypatch.setattr(sys, "argv", [*argv, *TINY_VIT, *QUIET, "--output_dir", str(output_dir), *arguments])
    run_mim.main()
    return output_dir


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max_steps", "-1"], "max_steps is -1; --streaming needs --max_steps.*divided by 3"),
        (["--max_train_samples", "5"], "max_train_samples is 5"),
        (["--probe_every", "5"], "probe_every is 5"),
        (["--save_strategy", "epoch"], 'save_strategy is "epoch".*"steps"'),
        (["--shuffle_buffer", "0"], "shuffle_buffer is 0"),
        (["--train_split", "all"], "no split 'all'.*train, validation"),
        (["--dataset_name", "./nowhere"], "cannot stream data set './nowhere': there is no such file"),
        (["--image_column", "picture"], "no column 'picture'"),
    ],
)
def test_settings_without_a_meaning_are_refused(monkeypatch, tmp_path, photos, arguments, message):
    with pytest.raises(InputError, match=message):
        pretrain(monkeypatch, tmp_path / "out", photos, *arguments)


def test_images_that_are_no_parquet_files_are_refused(tmp_path):
    for number in range(2):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{number}.png")
    with pytest.raises(InputError, match=r"holds .*0\.png\. Write it as Parquet with kamim prepare"):
        load_parquet(str(tmp_path))


def test_a_folder_that_datasets_takes_for_a_pattern_is_refused(tmp_path):
    (tmp_path / "a[b]").mkdir()
    with pytest.raises(InputError, match="cannot stream data set .*for patterns; rename"):
        load_parquet(str(tmp_path / "a[b]"))


def test_a_data_set_must_be_named(tmp_path):
    with pytest.raises(InputError, match="--streaming needs --dataset_name"):
        load_parquet(None)


def test_more_readers_than_row_groups_are_refused(tmp_path):
    files = write(tmp_path, [5, 3], 2)
    assert len(list(readers(files, 5)[4].rows(Position()))) <= 2
    with pytest.raises(InputError, match=r"6 readers .* share 2 Parquet file\(s\) of 5 row group\(s\)"):
        list(readers(files, 6)[5].rows(Position()))


def test_a_damaged_file_is_named(tmp_path):
    files = write(tmp_path, [5, 3], 2)
    damaged = Path(files.files[1])
    damaged.write_bytes(damaged.read_bytes()[:-9])
    with pytest.raises(InputError, match=r"cannot read .*01\.parquet"):
        list(readers(files, 1)[0].rows(Position()))


def test_a_single_file_is_a_data_set(photos):
    splits = load_parquet(str(photos / "train-00001-of-00002.parquet"))
    assert {split: len(files) for split, files in splits.items()} == {"train": 1}
    taken = take_rows(splits["train"], 3, ("image",), seed=0)
    assert len(taken) == 3 and taken.features["image"] == datasets.Image(decode=False)
    assert len(take_rows(splits["train"], 100, ("image",), seed=0)) == 4


# Whole runs


def log_of(output_dir):
    log = json.loads((output_dir / "trainer_state.json").read_text())["log_history"]
    return [entry for entry in log if "loss" in entry]


@pytest.mark.parametrize(
    ("model", "num_workers"),
    [
        pytest.param(TINY_VIT, 0, id="vit-0"),
        pytest.param(TINY_VIT, 2, id="vit-2", marks=pytest.mark.slow),
        pytest.param(TINY_SWIN, 2, id="swin-2", marks=pytest.mark.slow),
    ],
)
def test_a_resumed_run_ends_with_the_weights_of_one_that_was_not(monkeypatch, tmp_path, photos, model, num_workers):
    """The checkpoint of step 4 is inside the second pass. A Swin draws its depth at random too."""
    sizes = [*model, "--max_steps", "6", "--save_steps", "4", "--max_eval_samples", "3"]
    sizes += ["--dataloader_num_workers", str(num_workers)]
    whole = pretrain(monkeypatch, tmp_path / "whole", photos, *sizes)
    checkpoint = whole / "checkpoint-4"
    resume = ["--resume_from_checkpoint", str(checkpoint)]
    resumed = pretrain(monkeypatch, tmp_path / "resumed", photos, *sizes, *resume)

    expected, found = load_file(whole / "model.safetensors"), load_file(resumed / "model.safetensors")
    assert [key for key in expected if not torch.equal(expected[key], found[key])] == []
    assert not torch.equal(load_file(checkpoint / "model.safetensors")["decoder.0.weight"], found["decoder.0.weight"])
    keys = ("loss", "masked_l1", "epoch", "data_epoch", "step")
    logs = [[[entry[key] for key in keys] for entry in log_of(run)] for run in (whole, resumed)]
    assert logs[0] == logs[1]
    assert logs[0][-1][2:] == [1.0, 1, 6]
    results = json.loads((resumed / "eval_results.json").read_text())
    assert round(results["eval_runtime"] * results["eval_samples_per_second"]) == 3  # of 4
    config = json.loads((resumed / "config.json").read_text())
    assert config["kamim"]["keypoint_source"] == "online"


def test_prepared_densities_are_used(monkeypatch, tmp_path, photographs):
    prepared = parquet(tmp_path / "prepared", photographs, **stored(photographs, SMALL))
    output = pretrain(monkeypatch, tmp_path / "out", prepared, "--max_steps", "1")
    assert json.loads((output / "config.json").read_text())["kamim"]["keypoint_source"] == "map"


def stored(images, densities):
    return {densities.column: [densities(image) for image in images]}


SMALL, LARGE = (KamimArguments(image_size=size, mask_patch_size=16).densities() for size in (32, 64))


def prepared_files(folder, photographs, *densities):
    """A data set with a file of three rows for each of the densities; of None, a file without rows."""
    for number, those in enumerate(densities):
        columns = stored(photographs, those or SMALL)
        part = parquet(folder / "parts", photographs, (3 if those else 0,), **columns)
        (part / "train-00000-of-00001.parquet").replace(folder / f"train-{number}.parquet")
    (folder / "parts").rmdir()
    return folder


@pytest.mark.parametrize("densities", [(LARGE, SMALL, SMALL), (SMALL, SMALL, LARGE), (SMALL, None, LARGE)])
def test_a_shard_prepared_for_another_size_is_found(tmp_path, photographs, densities):
    files = load_parquet(str(prepared_files(tmp_path, photographs, *densities)))["train"]
    with pytest.raises(OtherDensitiesError) as error:
        files.check_densities(SMALL)
    message = str(error.value)
    assert f"train-{densities.index(LARGE)}.parquet is of {LARGE.label}, and this run needs {SMALL.label}" in message


def test_densities_that_do_not_serve_are_told_and_keypoints_detected(monkeypatch, tmp_path, photographs, caplog):
    folder = prepared_files(tmp_path, photographs, SMALL, LARGE)
    output = pretrain(monkeypatch, tmp_path / "out", folder, "--max_steps", "1")
    assert json.loads((output / "config.json").read_text())["kamim"]["keypoint_source"] == "online"
    [warning] = [record for record in caplog.records if "no stored keypoint densities serve" in record.getMessage()]
    assert warning.levelname == "WARNING" and "train-1.parquet" in warning.getMessage()
    assert "--keypoint_source online" in warning.getMessage()


def test_shards_of_the_same_densities_serve_whatever_else_is_in_them(tmp_path, photographs):
    prepared_files(tmp_path, photographs, SMALL, None, SMALL)
    damage(tmp_path / "train-2.parquet", 0, None)
    load_parquet(str(tmp_path))["train"].check_densities(SMALL)
    for row in (1, 2):
        damage(tmp_path / "train-2.parquet", row, b"foreign")
    with pytest.raises(OtherDensitiesError, match="train-2.parquet is damaged or missing"):
        load_parquet(str(tmp_path))["train"].check_densities(SMALL)


def damage(file, row, density):
    rows = pq.read_table(file).to_pylist()
    rows[row][SMALL.column] = density
    pq.write_table(pa.Table.from_pylist(rows, schema=pq.read_schema(file)), file)


@pytest.mark.parametrize("density", [None, b"P5", b"foreign" * 999, LARGE(np.zeros((9, 9, 3), np.uint8))])
def test_a_damaged_density_is_named_or_left_out_by_a_stream(tmp_path, photographs, density):
    files = load_parquet(str(prepared_files(tmp_path, photographs, SMALL, SMALL)))["train"]
    damage(tmp_path / "train-1.parquet", 1, density)
    transform = MaskedImageTransform("image", 32, 16, 16, 0.6, 8, RandomView(), densities=SMALL)
    readers = [StreamReader(files, transform.columns, seed=0, window_rows=4)]
    with pytest.raises(BadImageError, match=r"row 1 of .*train-1\.parquet: cannot use the keypoint density of 1\.png"):
        list(islice(SampleStream(readers, transform), 6))
    steps = [progress for _, progress in islice(SampleStream(readers, transform, skip_bad_images=True), 10)]
    listed = [line for progress in steps for line in progress.bad_images]
    assert len(listed) == 2 and len(set(listed)) == 1  # in each of two passes of 5 images
    assert listed[0].startswith(f"row 1 of {tmp_path / 'train-1.parquet'}: cannot use the keypoint density of 1.png (")


def test_a_damaged_density_among_the_drawn_rows_is_named(tmp_path, photographs):
    folder = prepared_files(tmp_path, photographs, SMALL, SMALL)
    damage(folder / "train-1.parquet", 1, None)
    rows = take_rows(load_parquet(str(folder))["train"], 6, ("image", SMALL.column), seed=0)
    with pytest.raises(BadImageError, match=r"^row 1 of .*train-1\.parquet: cannot use the keypoint density of 1\.png"):
        prepare_images(rows, "image", SMALL)


def test_bad_images_are_named_or_left_out_and_listed(monkeypatch, tmp_path, photographs):
    folder = parquet(tmp_path / "data", photographs, sizes=(3, 3))
    file = folder / "train-00001-of-00002.parquet"
    rows = pq.read_table(file).to_pylist()
    rows[1]["image"]["bytes"] = rows[1]["image"]["bytes"][:200]
    pq.write_table(pa.Table.from_pylist(rows, schema=pq.read_schema(file)), file)
    with pytest.raises(BadImageError, match=r"row 1 of .*train-00001-of-00002\.parquet: cannot decode 4\.png"):
        pretrain(monkeypatch, tmp_path / "raise", folder, "--max_steps", "4")

    (tmp_path / "skip").mkdir()
    (tmp_path / "skip" / "bad_images.txt").write_text("of an earlier run\n")
    output = pretrain(monkeypatch, tmp_path / "skip", folder, "--max_steps", "4", "--bad_images", "skip")
    lines = (output / "bad_images.txt").read_text().splitlines()
    assert len(lines) == 1 and lines[0].startswith(f"row 1 of {file}: cannot decode 4.png")
    assert [entry["data_epoch"] for entry in log_of(output)] == [0, 1, 1, 2]  # 5 images a pass, 3 a step


def test_a_stream_of_bad_images_alone_ends(tmp_path):
    files = write(tmp_path, [2, 2], 2)
    samples = stream(files, bad=("0-0", "0-1", "1-0", "1-1"))
    with pytest.raises(InputError, match="no image that can be decoded; the first: row"):
        next(iter(samples))


# Several processes, and the Hub


@pytest.mark.slow
def test_two_processes_read_each_image_once_a_pass(tmp_path, photographs):
    """The samples of 2 passes over 12 images, by 2 processes with 2 workers each, as the trainer got them."""
    folder = parquet(tmp_path / "data", photographs, sizes=(3, 3, 3, 3))
    script = tmp_path / "record.py"
    script.write_text(RECORD)
    command = [str(Path(sys.executable).parent / "torchrun"), "--standalone", "--nproc_per_node", "2", str(script)]
    command += ["--streaming", "--dataset_name", str(folder), "--max_steps", "4", *TINY_VIT, *QUIET]
    command += ["--dataloader_num_workers", "2", "--output_dir", str(tmp_path / "out"), "--save_steps", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}

    def launch(name, *more):
        environment["RECORD"] = str(tmp_path / name)
        finished = subprocess.run([*command, *more], cwd=ROOT, env=environment, capture_output=True, text=True)
        assert finished.returncode == 0, finished.stderr[-5000:]
        return [json.loads((tmp_path / f"{name}_{rank}.json").read_text()) for rank in (0, 1)]

    recorded = launch("whole")
    assert [len(steps) for steps in recorded] == [4, 4]
    served = Counter(sample for steps in recorded for step in steps for sample in step)
    assert len(served) == 12 and set(served.values()) == {2}
    weights = load_file(tmp_path / "out" / "model.safetensors")
    checkpoint = str(tmp_path / "out" / "checkpoint-2")
    resumed = launch("resumed", "--resume_from_checkpoint", checkpoint)
    assert resumed == [steps[2:] for steps in recorded]
    again = load_file(tmp_path / "out" / "model.safetensors")
    assert [key for key in weights if not torch.equal(weights[key], again[key])] == []


RECORD = """
import json, os
from modeling_kamim.commands import pretrain
from modeling_kamim.training.sources import StreamSource
from modeling_kamim.training.stream_trainer import StreamTrainer

class Recorder(StreamTrainer):
    recorded = []

    def _prepare_inputs(self, inputs):
        if "sample_index" in inputs:
            self.recorded.append(inputs["sample_index"].tolist())
        return super()._prepare_inputs(inputs)

    def train(self, *args, **kwargs):
        assert self.args.world_size == 2
        result = super().train(*args, **kwargs)
        with open(os.environ["RECORD"] + f"_{self.args.process_index}.json", "w") as file:
            json.dump(self.recorded, file)
        return result

StreamSource.trainer_class = Recorder
pretrain.main()
"""


@pytest.mark.slow
def test_a_data_set_of_the_hub_is_streamed_by_its_id(hub, tmp_path, photos):
    environment = hub.environment() | {"OMP_NUM_THREADS": "1"}
    push = (
        f"import datasets; datasets.load_dataset({str(photos)!r}).push_to_hub('user/photos', num_shards={{'train': 2}})"
    )
    subprocess.run([sys.executable, "-c", push], env=environment, check=True, capture_output=True)
    command = [sys.executable, "run_mim.py", "--streaming", "--dataset_name", "user/photos", *TINY_VIT, *QUIET]
    command += ["--max_steps", "6", "--save_steps", "3", "--dataloader_num_workers", "2", "--shuffle_buffer", "4"]

    def launch(output_dir, *more):
        argv = [*command, "--output_dir", str(output_dir), *more]
        finished = subprocess.run(argv, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert finished.returncode == 0, finished.stderr[-5000:]
        return load_file(output_dir / "model.safetensors")

    whole = launch(tmp_path / "whole")
    resumed = launch(tmp_path / "resumed", "--resume_from_checkpoint", str(tmp_path / "whole" / "checkpoint-3"))
    assert [key for key in whole if not torch.equal(whole[key], resumed[key])] == []
    assert (tmp_path / "whole" / "eval_results.json").is_file()
    assert list(Path(environment["HF_HOME"]).rglob("*.parquet")) == []
