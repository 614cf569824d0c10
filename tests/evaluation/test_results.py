"""results.json: provenance without secrets, JSON written whole, seeds summarized."""

import getpass
import hashlib
import json
import socket
import statistics
import subprocess
from pathlib import Path

import datasets
import huggingface_hub.constants
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, ConvNextConfig

from modeling_kamim import KamimForMaskedImageModeling, build_config
from modeling_kamim.evaluation import results as module
from modeling_kamim.evaluation.results import (
    model_figures,
    provenance,
    public_name,
    result_rows,
    source_commit,
    summarize_seeds,
    weights_sha256,
    write_results,
)

CPU = torch.device("cpu")
KAMIM = {"weighting": "keypoint", "temperature": 0.25, "keypoint_detector_args": None}


@pytest.fixture
def checkpoint(tmp_path):
    directory = tmp_path / "alice" / "kamim_vit_tiny"
    config = build_config("vit", "tiny", 32, kamim={**KAMIM, "dataset_name": str(tmp_path / "alice" / "pictures")})
    KamimForMaskedImageModeling.from_config(config).save_pretrained(directory)
    return directory


def row(seed=0, **values):
    return {"protocol": "paper", "layer": 8, "seed": seed, "top1": 0.5, "top5": 0.9, "loss": 1.0, **values}


def test_provenance_of_a_local_run(tmp_path, checkpoint):
    train = datasets.Dataset.from_dict({"label": [0, 1]})
    origin = provenance(
        str(tmp_path / "alice" / "imagenette"),
        train,
        None,
        str(checkpoint),
        AutoConfig.from_pretrained(checkpoint),
        CPU,
    )
    assert origin["dataset"] == "local:imagenette"
    assert origin["train_fingerprint"] == train._fingerprint and origin["validation_fingerprint"] is None
    assert origin["checkpoint"] == "local:kamim_vit_tiny" and origin["checkpoint_commit"] is None
    assert origin["checkpoint_sha256"] == hashlib.sha256((checkpoint / "model.safetensors").read_bytes()).hexdigest()
    assert origin["kamim"] == {**KAMIM, "dataset_name": "local:pictures"}
    assert origin["model"]["model_type"] == "vit" and origin["model"]["depth"] == 12
    assert set(origin["versions"]) == {"torch", "transformers", "datasets", "opencv", "modeling_kamim", "python"}
    assert origin["time"].endswith("+00:00") and origin["device"]


def test_provenance_tells_nothing_about_who_and_where(tmp_path, checkpoint, monkeypatch):
    secrets = {"USER": "mallory-user", "HF_TOKEN": "hf_secretsecret", "HOSTNAME": "mallory-host"}
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(socket, "gethostname", lambda: "mallory-host")
    monkeypatch.setattr(getpass, "getuser", lambda: "mallory-user")
    monkeypatch.setenv("HOME", str(tmp_path / "mallory-user"))
    monkeypatch.chdir(tmp_path)
    config = AutoConfig.from_pretrained(checkpoint)
    config.kamim = {**config.kamim, "cache": "~/mallory-user/cache", "other": f"{tmp_path}/cache"}
    names = [str(tmp_path / "alice" / "data"), "alice/data", "./alice/../alice/data", "~", "~/data", "~mallory-user"]
    (tmp_path / "alice" / "data").mkdir()
    for name in names:
        text = json.dumps(provenance(name, None, None, str(checkpoint), config, CPU))
        for secret in (*secrets.values(), str(tmp_path), tmp_path.name, "alice", "/cache"):
            assert secret not in text, (name, secret)


def test_provenance_of_random_weights_on_the_embedded_photographs():
    origin = provenance(None, None, None, None, build_config("swin", "tiny", 96), CPU)
    assert origin["dataset"] == "embedded photographs"
    assert [origin[key] for key in ("checkpoint", "checkpoint_sha256", "checkpoint_commit", "kamim")] == [None] * 4


def test_commit_of_a_hub_checkpoint_comes_from_the_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    repository, commit = tmp_path / "models--owner--name", "0123456789abcdef0123456789abcdef01234567"
    for file, text in {"refs/main": commit, f"snapshots/{commit}/config.json": "{}"}.items():
        (repository / file).parent.mkdir(parents=True)
        (repository / file).write_text(text)
    origin = provenance("uoft-cs/cifar10", None, None, "owner/name", build_config("vit", "tiny"), CPU)
    assert (origin["checkpoint"], origin["checkpoint_commit"]) == ("owner/name", commit)
    assert origin["dataset"] == "uoft-cs/cifar10"
    absent = provenance(None, None, None, "owner/other", build_config("vit", "tiny"), CPU)
    assert absent["checkpoint_commit"] is None and absent["checkpoint_sha256"] is None


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("uoft-cs/cifar10", "uoft-cs/cifar10"),
        ("mnist", "mnist"),
        ("/data/imagenet/", "local:imagenet"),
        ("../imagenet", "local:imagenet"),
        ("a/b/c", "local:c"),
        ("C:\\data\\imagenet", "local:imagenet"),
        ("/home/alice", "local:home"),
        ("/home/alice/pictures", "local:pictures"),
        ("/data/train.parquet", "local:train.parquet"),
        ("/", "local:"),
    ],
)
def test_public_name(name, expected):
    assert public_name(name) == expected


def test_a_folder_with_the_look_of_a_hub_id_is_local(tmp_path, monkeypatch):
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert public_name("owner/name") == "local:name"
    assert public_name(".") == f"local:{tmp_path.name}"


@given(st.text("ab./\\~:- é", max_size=20))
def test_public_names_are_no_paths_and_stay_as_they_are(name):
    public = public_name(name)
    assert public_name(public) == public
    assert public.startswith("local:") or public == name
    assert "\\" not in public and "/" not in public.removeprefix(public.split("/")[0] + "/")


def test_checksum_of_a_checkpoint_in_parts(tmp_path):
    assert weights_sha256(tmp_path) is None
    for part, content in (("model-00002-of-00002", b"two"), ("model-00001-of-00002", b"one")):
        (tmp_path / f"{part}.safetensors").write_bytes(content)
    assert weights_sha256(tmp_path) == hashlib.sha256(b"onetwo").hexdigest()


@pytest.mark.parametrize(
    ("model_type", "size", "expected"),
    # the parameters of the paper's Table 1, in millions
    [
        ("vit", "tiny", (192, 12, 16, 5.5)),
        ("vit", "small", (384, 12, 16, 21.6)),
        ("vit", "base", (768, 12, 16, 85.76)),
        ("swin", "tiny", (768, 12, 4, 27.5)),
        ("swin", "base", (1024, 24, 4, 86.7)),
    ],
)
def test_size_figures(model_type, size, expected):
    figures = model_figures(build_config(model_type, size))
    assert tuple(figures[key] for key in ("hidden_size", "depth", "patch_size")) == expected[:3]
    assert figures["parameters"] / 1e6 == pytest.approx(expected[3], abs=0.05)


def test_size_figures_of_other_architectures(monkeypatch):
    figures = model_figures(ConvNextConfig())
    assert figures["depth"] == 18 and figures["parameters"] > 1e7

    def fail(config):
        raise KeyError("architecture")

    monkeypatch.setattr(module.AutoModel, "from_config", fail)
    assert model_figures(ConvNextConfig())["parameters"] is None


def test_source_commit_is_of_the_checkout_that_tracks_the_file(tmp_path):
    file = tmp_path / "package" / "__init__.py"
    file.parent.mkdir()
    file.write_text("")
    assert source_commit(file) is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e"]
    subprocess.run([*git, "init", "-q"], check=True)
    assert source_commit(file) is None  # like an installed copy inside somebody's checkout
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-qm", "first"], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout
    assert commit.startswith(source_commit(file))
    file.write_text("changed")
    assert source_commit(file).endswith("-dirty")


def test_without_git_there_is_no_source_commit(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert source_commit(Path(module.__file__)) is None


def test_results_are_sorted_json_with_null_for_nan(tmp_path):
    file = tmp_path / "new" / "results.json"
    write_results(file, {"top1": np.float32(0.5), "loss": float("nan"), "per_class": np.array([1.0, np.nan])})
    assert file.read_text() == '{\n  "loss": null,\n  "per_class": [1.0, null],\n  "top1": 0.5\n}\n'
    write_results(file, {"confusion": torch.eye(2, dtype=torch.int64)})
    assert file.read_text() == '{\n  "confusion": [\n    [1, 0],\n    [0, 1]\n  ]\n}\n'
    assert [path.name for path in file.parent.iterdir()] == ["results.json"]


def test_what_cannot_be_written_leaves_the_old_file(tmp_path, monkeypatch):
    file = tmp_path / "results.json"
    write_results(file, {"top1": 0.5})
    with pytest.raises(TypeError):
        write_results(file, {"top1": object()})

    def fail(source, target):
        raise OSError("disk full")

    monkeypatch.setattr(module.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_results(file, {"top1": 0.6})
    assert json.loads(file.read_text()) == {"top1": 0.5}
    assert list(tmp_path.iterdir()) == [file]


_words = st.text('ab"\\\n[é\0', max_size=5)
_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | _words,
    lambda children: st.lists(children) | st.dictionaries(_words, children),
    max_leaves=20,
)


@given(st.dictionaries(_words, _values))
def test_results_are_read_as_they_were_written(tmp_path, results):
    write_results(tmp_path / "results.json", results)
    assert json.loads((tmp_path / "results.json").read_text()) == results


def test_rows_share_the_fields_of_their_result():
    results = {"image_size": 96, "rows": [row(layer=1), row(layer=2, image_size=64)]}
    assert [(r["layer"], r["image_size"]) for r in result_rows(results)] == [(1, 96), (2, 64)]
    assert result_rows(row()) == [row()]


def test_seeds_become_mean_and_deviation():
    rows = [row(seed, top1=top1, top1_interval=[0, 1], wall_time=seed) for seed, top1 in enumerate((0.2, 0.4, 0.9))]
    (summary,) = summarize_seeds(rows)
    assert summary["top1"] == pytest.approx(0.5)
    assert summary["top1_std"] == pytest.approx(np.std([0.2, 0.4, 0.9], ddof=1))
    assert (summary["num_seeds"], summary["seeds"], summary["seed"]) == (3, [0, 1, 2], None)
    assert "top1_interval" not in summary and summary["protocol"] == "paper"


def test_a_single_seed_keeps_its_interval_and_has_no_deviation():
    (summary,) = summarize_seeds([row(7, top1_interval=[0.4, 0.6], loss=None)])
    assert summary["top1_interval"] == [0.4, 0.6] and summary["top1_std"] is None and summary["loss"] is None
    assert (summary["num_seeds"], summary["seed"]) == (1, 7)


@pytest.mark.parametrize("setting", [{"layer": 9}, {"protocol": "knn"}, {"low_shot": 0.1}, {"learning_rate": 1.0}])
def test_other_settings_are_not_averaged(setting):
    assert len(summarize_seeds([row(0), row(1, **setting)])) == 2


def test_provenance_decides_but_for_time_and_device():
    origin = {"checkpoint_sha256": "a", "time": "2026-01-01T00:00:00+00:00", "device": "one"}
    later = {**origin, "time": "2026-01-02T00:00:00+00:00", "device": "two"}
    assert len(summarize_seeds([row(0, provenance=origin), row(1, provenance=later)])) == 1
    other = {**later, "checkpoint_sha256": "b"}
    assert len(summarize_seeds([row(0, provenance=origin), row(1, provenance=other)])) == 2


def test_a_repeated_seed_is_no_second_sample():
    old, new = {"time": "2026-01-01"}, {"time": "2026-01-02"}
    for order in (1, -1):
        rows = [row(0, top1=0.1, provenance=old), row(0, top1=0.3, provenance=new)][::order]
        (summary,) = summarize_seeds([*rows, row(1, top1=0.5, provenance=old)])
        assert summary["num_seeds"] == 2 and summary["top1"] == pytest.approx(0.4)


@given(st.lists(st.tuples(st.integers(1, 3), st.floats(0, 1)), min_size=1, max_size=12), st.randoms())
def test_summary_does_not_depend_on_the_order(measured, random):
    rows = [row(seed, layer=layer, top1=top1) for seed, (layer, top1) in enumerate(measured)]
    summaries = {summary["layer"]: summary for summary in summarize_seeds(rows)}
    assert list(summaries) == list(dict.fromkeys(layer for layer, _ in measured))
    random.shuffle(rows)
    for summary in summarize_seeds(rows):
        values = [top1 for layer, top1 in measured if layer == summary["layer"]]
        expected = summaries[summary["layer"]]
        assert summary["top1"] == pytest.approx(statistics.fmean(values)) == pytest.approx(expected["top1"])
        assert (summary["top1_std"] is None) == (len(values) == 1)
        assert sorted(summary["seeds"]) == sorted(expected["seeds"])
