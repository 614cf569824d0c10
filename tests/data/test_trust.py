"""A local data set reads inside its own folder only, unless it is trusted."""

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from awkward_images import photograph
from huggingface_hub import HfApi
from hypothesis import given
from hypothesis import strategies as st

from modeling_kamim.commands import check as check_dataset
from modeling_kamim.commands import prepare as prepare_dataset
from modeling_kamim.commands import pretrain as run_mim
from modeling_kamim.data.loading import keep_encoded, load_images
from modeling_kamim.data.streaming.parquet import load_parquet
from modeling_kamim.data.trust import OutsideError, folders_of, is_inside, row_findings
from modeling_kamim.errors import InputError

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    yield
    datasets.enable_progress_bars()


def png(seed=1):
    buffer = io.BytesIO()
    photograph(seed).save(buffer, "png")
    return buffer.getvalue()


@pytest.fixture
def secret(tmp_path):
    """An image of the user that no data set holds."""
    (tmp_path / "private").mkdir()
    file = tmp_path / "private" / "secret.png"
    file.write_bytes(png(9))
    return file


@pytest.fixture
def folder(tmp_path):
    """A data set of two images."""
    (tmp_path / "data").mkdir()
    for seed in (1, 2):
        (tmp_path / "data" / f"{seed}.png").write_bytes(png(seed))
    return tmp_path / "data"


def write_parquet(file, paths, column="image"):
    """Rows with an image by its path alone, behind one that holds its bytes."""
    file.parent.mkdir(parents=True, exist_ok=True)
    images = [{"bytes": png(), "path": "/elsewhere/name.png"}, *({"bytes": None, "path": str(p)} for p in paths)]
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    columns = {column: pa.array(images, kind)}
    if column != "image":
        columns["image"] = pa.array([{"bytes": png(), "path": "a.png"}] * len(images), kind)
    features = datasets.Features({name: datasets.Image() for name in columns})
    table = pa.table(columns)
    pq.write_table(table.replace_schema_metadata(features.arrow_schema.metadata), file)
    return file


def paths_of(loaded):
    return [image["path"] for image in keep_encoded(loaded["train"], "image")["image"]]


def load(name, trust=False):
    return load_images(str(name), trust_data_files=trust)


@pytest.mark.parametrize(
    "form", ["{secret}", "{data}/../private/secret.png", "../private/secret.png", "file://{secret}"]
)
def test_a_row_that_names_a_file_elsewhere_is_refused_with_its_number(monkeypatch, tmp_path, secret, form):
    name = form.format(secret=secret, data=tmp_path / "data")
    file = write_parquet(tmp_path / "data" / "rows.parquet", ["missing.png", name])
    monkeypatch.chdir(file.parent)
    for data in (file, file.parent):
        with pytest.raises(OutsideError, match=r"row 2 of train.*'image'.*secret\.png.*--trust_data_files") as error:
            load(data)
        assert len(error.value.findings) == 1 and "\n" not in str(error.value)
        assert load(data, trust=True)["train"].num_rows == 3


def test_an_image_column_that_is_not_trained_on_counts(tmp_path, secret):
    write_parquet(tmp_path / "data" / "rows.parquet", [secret], column="mask")
    with pytest.raises(OutsideError, match="'mask'"):
        load_images(str(tmp_path / "data"), image_column="image")


def test_images_in_lists_and_structs_count(secret):
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    row = {"views": [{"bytes": b"1", "path": None}, {"bytes": None, "path": str(secret)}], "name": "a"}
    table = pa.table({"both": pa.array([None, row, row], pa.struct({"views": pa.list_(kind), "name": pa.string()}))})
    found = row_findings(pa.concat_tables([table, table]), ("/data",), (), "train")
    assert [line.split(" of ")[0] for line in found] == ["row 1", "row 2", "row 4", "row 5"]
    assert row_findings(table, (str(secret.parent),), (), "train") == []


def test_plain_paths_of_a_table_of_text(tmp_path, secret):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "table.csv").write_text(f"image,caption\n{tmp_path}/data/1.png,/a\n{secret},/b\n")
    with pytest.raises(OutsideError, match=r"row 1 of train.*'image'.*secret\.png") as error:
        load(tmp_path / "data")
    assert len(error.value.findings) == 1


@pytest.mark.parametrize("file", ["README.md", ".huggingface.yaml"])
@pytest.mark.parametrize(
    "config",
    [
        "data_files: ../private/*.png",
        "data_files: {private}/secret.png",
        "data_files: http://127.0.0.1:9/images.parquet",
        "data_files: [1.png, 'zip://a.png::{private}/a.zip']",
        "data_files: [{{split: train, path: [1.png, ../private/*.png]}}]",
        "data_dir: ../private",
        "data_dir: {private}",
    ],
)
def test_a_card_that_names_files_elsewhere_is_refused_before_anything_is_read(
    monkeypatch, folder, secret, file, config
):
    text = f"configs:\n- config_name: default\n  {config.format(private=secret.parent)}\n"
    (folder / file).write_text(f"---\n{text}---\n" if file == "README.md" else text)
    with monkeypatch.context() as patched:
        patched.setattr(datasets, "load_dataset_builder", lambda **source: pytest.fail("read"))
        for read in (load_images, load_parquet):
            with pytest.raises(OutsideError, match=rf"{file} has data_(files|dir) .*--trust_data_files"):
                read(str(folder))
    if "private/" in config:
        assert any(str(secret) in path for path in paths_of(load(folder, trust=True)))


def test_a_card_that_names_files_of_its_folder_is_followed(folder):
    (folder / "README.md").write_text(
        f"---\nconfigs:\n- config_name: default\n  data_files: [1.png, {folder}/2.png]\n---\n# Mine\n"
    )
    assert paths_of(load(folder)) == [str(folder / "1.png"), str(folder / "2.png")]


@pytest.mark.parametrize("card", ["---\nconfigs: [a: b: c\n---\n", "---\n- a\n---\n", "---\nconfigs: {a: 1}\n---\n"])
def test_a_broken_card_is_one_line(folder, card):
    (folder / "README.md").write_text(card)
    with pytest.raises(InputError) as error:
        load(folder)
    assert "\n" not in str(error.value)


def test_metadata_that_name_files_elsewhere_are_refused(folder, secret):
    for name in ("../private/secret.png", str(secret), f"file://{secret}"):
        (folder / "metadata.jsonl").write_text(json.dumps({"file_name": name}) + "\n")
        with pytest.raises(InputError, match="file_name"):
            load(folder)


def test_a_saved_data_set_reads_its_own_files(tmp_path, folder, secret):
    rows = datasets.Dataset.from_dict({"image": [str(secret)]}).cast_column("image", datasets.Image(decode=False))
    for name in ("victim", "data-set"):
        rows.save_to_disk(tmp_path / name)
    assert load(tmp_path / "data-set")["train"].num_rows == 1  # `datasets` keeps bytes
    file = tmp_path / "data-set" / "state.json"
    state = json.loads(file.read_text())
    state["_data_files"] = [{"filename": "../victim/data-00000-of-00001.arrow"}]
    file.write_text(json.dumps(state))
    with pytest.raises(InputError, match="victim"):
        load(tmp_path / "data-set")


def test_rows_of_the_hub_name_no_local_file(secret):
    table = pa.table({"image": [{"bytes": None, "path": str(secret)}, {"bytes": b"1", "path": "a.png"}]})
    assert len(row_findings(table, (), ["image"], "train")) == 1


def test_links_are_followed_and_named(monkeypatch, tmp_path, folder, secret, capsys):
    (folder / "link.png").symlink_to(secret)
    (folder / "more").symlink_to(secret.parent)
    assert str(folder / "link.png") in paths_of(load(folder))
    monkeypatch.setattr(sys, "argv", ["kamim check", str(folder)])
    check_dataset.main()
    out = capsys.readouterr().out
    assert "read through links out of the folder" in out and str(secret) in out
    words = ["kamim prepare", str(folder), str(tmp_path / "out"), "--push_to_hub", "--repo", "a/b"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(OutsideError, match="the link .* leads to"):
        prepare_dataset.main()
    assert not (tmp_path / "out").exists()


def test_a_link_to_the_folder_itself_is_no_way_out(monkeypatch, tmp_path, folder):
    (tmp_path / "link").symlink_to(folder)
    write_parquet(tmp_path / "data" / "rows" / "a.parquet", [folder / "1.png"])
    assert len(paths_of(load(tmp_path / "link"))) == 2
    file = write_parquet(folder / "own.parquet", [folder / "1.png", tmp_path / "link" / "2.png"])
    assert load(tmp_path / "link" / "own.parquet")["train"].num_rows == 3
    with pytest.raises(OutsideError):  # from here the link is another folder
        load(file)


def test_scripts_refuse_before_they_write(monkeypatch, tmp_path, secret, capsys):
    data = write_parquet(tmp_path / "data" / "rows.parquet", [secret]).parent
    out = tmp_path / "out"
    training = [
        "run_mim.py",
        "--dataset_name",
        str(data),
        "--output_dir",
        str(out),
        "--use_cpu",
        "--model_size",
        "tiny",
    ]
    stream = [*training, "--streaming", "--max_steps", "1", "--weighting", "none"]
    for main, words in (
        (run_mim.main, training),
        (prepare_dataset.main, ["kamim prepare", str(data), str(out)]),
    ):
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(OutsideError, match=r"secret\.png"):
            main()
        assert not out.exists()
    monkeypatch.setattr(sys, "argv", stream)
    with pytest.raises(OutsideError, match=r"row 1 of row group 0 of .*rows\.parquet.*secret\.png"):
        run_mim.main()
    monkeypatch.setattr(sys, "argv", ["kamim check", str(data), "--output", str(tmp_path / "found.txt")])
    with pytest.raises(SystemExit) as end:
        check_dataset.main()
    assert end.value.code == 1 and "row 1 of train" in capsys.readouterr().out
    assert str(secret) in (tmp_path / "found.txt").read_text()


@given(st.lists(st.sampled_from(["..", ".", "a", "link", "", "b.png"]), max_size=6), st.booleans())
def test_what_counts_as_inside_is_where_the_system_would_read(tmp_path_factory, parts, is_absolute):
    base = tmp_path_factory.getbasetemp() / "inside"
    folder = base / "data"
    if not base.exists():
        (folder / "a").mkdir(parents=True)
        (base / "far" / "a").mkdir(parents=True)
        (folder / "link").symlink_to(base / "far" / "a")
    path = os.path.join(folder if is_absolute else os.path.relpath(folder), *parts)
    real = os.path.realpath(path)
    if ".." in parts and is_inside(path, folders_of(folder)):
        assert real == str(folder) or real.startswith(f"{folder}/")
    if "link" not in parts:
        assert is_inside(path, folders_of(folder)) == (real == str(folder) or real.startswith(f"{folder}/"))


LOAD_FROM_THE_HUB = """
import sys
from modeling_kamim.data.loading import keep_encoded, load_images
from modeling_kamim.errors import InputError

for name in sys.argv[1:]:
    try:
        rows = keep_encoded(load_images(name)["train"], "image")
        print(name, "read", sum(open(image["path"], "rb").read()[:4] == b"\\x89PNG" for image in rows["image"]))
    except InputError as error:
        print(name, type(error).__name__, error)
"""


def test_data_sets_of_the_hub_read_no_file_of_this_machine(hub, tmp_path, folder, secret):
    api = HfApi(endpoint=hub.endpoint, token=hub.token)
    card = f"---\nconfigs:\n- config_name: default\n  data_files: {secret}\n---\n"
    write_parquet(tmp_path / "rows" / "rows.parquet", [secret])
    for name, files in {"user/good": folder, "user/rows": tmp_path / "rows", "user/card": folder}.items():
        api.create_repo(name, repo_type="dataset")
        api.upload_folder(repo_id=name, repo_type="dataset", folder_path=files)
    api.upload_file(path_or_fileobj=card.encode(), path_in_repo="README.md", repo_id="user/card", repo_type="dataset")
    command = [sys.executable, "-c", LOAD_FROM_THE_HUB, "user/good", "user/rows", "user/card"]
    done = subprocess.run(command, env=hub.environment(), cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    good, rows, listed = done.stdout.splitlines()
    assert good == "user/good read 2"
    assert rows.startswith("user/rows OutsideError") and str(secret) in rows
    assert re.match("user/card (Outside|Input)Error", listed)
