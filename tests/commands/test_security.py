"""Nothing that is loaded runs code or writes outside its place."""

import ast
import io
import os
import pickle
import sys
import tarfile
import zipfile
from functools import cache
from pathlib import Path

import datasets
import pytest
import torch
from awkward_images import photograph
from loaders import LOADERS, loaders
from transformers import ViTConfig, ViTForMaskedImageModeling, ViTImageProcessor

from modeling_kamim import KamimForMaskedImageModeling
from modeling_kamim.commands import prepare as prepare_dataset
from modeling_kamim.commands.parser import read_yaml
from modeling_kamim.data.bad_images import list_bad_images
from modeling_kamim.data.decoding import BadImageError, decode_image
from modeling_kamim.data.loading import keep_encoded, load_images
from modeling_kamim.errors import InputError
from modeling_kamim.evaluation.report.writing import build_report, write_report
from modeling_kamim.evaluation.results import checkpoint_rows, write_results
from modeling_kamim.hub.conversion import load_state_dict
from modeling_kamim.hub.publishing import published_files
from modeling_kamim.models.processor import image_processor

ROOT = Path(__file__).parents[2]
SOURCES = [*ROOT.glob("*.py"), *(ROOT / "modeling_kamim").rglob("*.py")]


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    yield
    datasets.enable_progress_bars()


class Attack:
    """Makes a file when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return open, (str(self.mark), "w")


def tiny_config():
    return ViTConfig(hidden_size=12, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12, image_size=32)


@pytest.fixture
def checkpoint(tmp_path):
    """A pretrained model."""
    ViTForMaskedImageModeling(tiny_config()).save_pretrained(tmp_path / "model")
    ViTImageProcessor().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture(params=["weights", "attack"])
def pickled(request, checkpoint, tmp_path):
    """A checkpoint whose weights are only in pytorch_model.bin."""
    weights = ViTForMaskedImageModeling(tiny_config()).state_dict()
    torch.save(weights if request.param == "weights" else Attack(tmp_path / "hacked"), checkpoint / "pytorch_model.bin")
    (checkpoint / "model.safetensors").unlink()
    return checkpoint


def calls(name):
    """(file, call) of every call of a function of that name in the sources."""
    for file, node in all_calls():
        function = ast.unparse(node.func)
        if function.split(".")[-1] == name:
            yield file, function, {word.arg: ast.unparse(word.value) for word in node.keywords}


@cache
def all_calls():
    trees = [(file.name, ast.walk(ast.parse(file.read_text(encoding="utf-8")))) for file in SOURCES]
    return [(file, node) for file, nodes in trees for node in nodes if is_call_by_name(node)]


def is_call_by_name(node):
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute)


def test_sources_unpickle_nothing_and_trust_no_remote_code():
    for file, function, words in calls("load"):
        assert function not in ("pickle.load", "yaml.load", "joblib.load"), file
        if function == "torch.load":
            assert words["weights_only"] == "True", file
        if function in ("np.load", "numpy.load"):
            assert words.get("allow_pickle", "False") == "False", file
    for name in ("loads", "eval", "exec", "system", "unsafe_load", "full_load", "extractall"):
        allowed = ("json.loads", "model.eval", "encoder.eval")
        assert [c for c in calls(name) if c[1] not in allowed and not c[1].endswith(".eval")] == [], name
    for name in ("from_pretrained", "load_dataset", "run", "Popen"):
        for file, _, words in calls(name):
            assert words.get("trust_remote_code", "False") == "False" and "shell" not in words, file
    loading = {name: [words for _, function, words in calls("from_pretrained") if function == name] for name in LOADING}
    assert loading["model_class.from_pretrained"]
    assert all(words.get(None) or "use_safetensors" in words for found in loading.values() for words in found)


LOADING = ("AutoModel.from_pretrained", "encoder_class.from_pretrained", "model_class.from_pretrained")


@pytest.mark.parametrize("name", LOADERS)
def test_pickled_weights_are_refused_with_a_way_on(pickled, tmp_path, name):
    with pytest.raises(InputError, match=r"model\.safetensors.*safetensors alone.*pickle.*save_pretrained"):
        loaders(tmp_path)[name](pickled)
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize("name", LOADERS)
def test_safetensors_are_loaded_and_a_pickle_beside_them_is_not(checkpoint, tmp_path, name):
    torch.save(Attack(tmp_path / "hacked"), checkpoint / "pytorch_model.bin")
    loaders(tmp_path)[name](checkpoint)
    assert not (tmp_path / "hacked").exists()


def test_a_pickle_is_read_only_where_it_is_asked_for(pickled):
    with pytest.raises(OSError, match="safetensors"):
        KamimForMaskedImageModeling.from_pretrained(pickled)


@pytest.mark.parametrize("name", LOADERS)
def test_code_of_a_repository_is_not_run_and_not_asked_about(monkeypatch, checkpoint, tmp_path, name):
    code = f"open({str(tmp_path / 'hacked')!r}, 'w')\nclass Config: pass\nclass Model: pass\n"
    (checkpoint / "mine.py").write_text(code)
    (checkpoint / "config.json").write_text(
        '{"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config", "AutoModel": "mine.Model"}}'
    )

    def ask(question):
        raise AssertionError(f"asked: {question}")

    monkeypatch.setattr("builtins.input", ask)
    monkeypatch.setattr(sys, "argv", ["run_classification.py"])
    with pytest.raises((InputError, ValueError)):
        loaders(tmp_path)[name](checkpoint)
    assert not (tmp_path / "hacked").exists()


def test_code_of_an_image_processor_is_not_run(monkeypatch, checkpoint, tmp_path):
    (checkpoint / "mine.py").write_text(f"open({str(tmp_path / 'hacked')!r}, 'w')\nclass Processor: pass\n")
    (checkpoint / "preprocessor_config.json").write_text(
        '{"image_processor_type": "Mine", "auto_map": {"AutoImageProcessor": "mine.Processor"}}'
    )
    monkeypatch.setattr("builtins.input", lambda question: pytest.fail("asked"))
    assert image_processor(32, str(checkpoint)).image_mean
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize("how", [torch.save, lambda value, file: file.write_bytes(pickle.dumps(value))])
def test_converting_a_checkpoint_runs_nothing_of_it(tmp_path, how):
    how({"model": {"weight": torch.ones(1), "attack": Attack(tmp_path / "hacked")}}, tmp_path / "file.pth")
    with pytest.raises(InputError):
        load_state_dict(tmp_path / "file.pth", "mae")
    assert not (tmp_path / "hacked").exists()


def test_yaml_makes_no_objects(tmp_path):
    (tmp_path / "config.yaml").write_text(f"a: !!python/object/apply:builtins.open ['{tmp_path / 'hacked'}', w]\n")
    with pytest.raises(InputError, match="not valid YAML"):
        read_yaml(tmp_path / "config.yaml")
    assert not (tmp_path / "hacked").exists()


def test_eps_is_not_handed_to_ghostscript(monkeypatch, tmp_path):
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *arguments: (tmp_path / "hacked").touch())
    photograph(1).save(tmp_path / "image.eps")
    with pytest.raises(BadImageError, match="UnidentifiedImageError"):
        decode_image({"bytes": None, "path": str(tmp_path / "image.eps")})
    assert not (tmp_path / "hacked").exists()


# Paths


HOSTILE_NAMES = [
    "../../outside.png",
    "/etc/outside.png",
    "..",
    "a/../../outside.png",
    "x\ny\x1b[2J.png",
    "~/outside.png",
    "",
]


def everything_below(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def png():
    buffer = io.BytesIO()
    photograph(1).save(buffer, "png")
    return buffer.getvalue()


@pytest.fixture
def hostile_parquet(tmp_path):
    """Images whose paths lead elsewhere, and a broken one after each."""
    images = [{"bytes": data, "path": name} for name in HOSTILE_NAMES for data in (png(), b"broken")]
    features = datasets.Features({"image": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}})
    file = tmp_path / "data" / "images.parquet"
    file.parent.mkdir()
    table = datasets.Dataset.from_dict({"image": images}, features=features)
    table.cast_column("image", datasets.Image(decode=False)).to_parquet(file)
    return file


def test_paths_in_parquet_lead_nowhere(monkeypatch, tmp_path, hostile_parquet):
    here = tmp_path / "a" / "b"
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    options = ["--image_size", "24", "--bad_images", "skip"]
    monkeypatch.setattr(sys, "argv", ["kamim prepare", str(hostile_parquet), "out", *options])
    prepare_dataset.main()
    assert everything_below(tmp_path / "a") - {
        path for path in everything_below(tmp_path / "a") if path[:6] == "b/out/"
    } == {
        "b",
        "b/out",
    }
    rows = keep_encoded(load_images(str(here / "out"))["train"], "image")
    paths = [image["path"] for image in rows["image"]]
    assert len(paths) == len(HOSTILE_NAMES) and not any("/" in (path or "") for path in paths)
    lines = (here / "out" / "bad_images.txt").read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(HOSTILE_NAMES) and all(line.isprintable() for line in lines)


def test_lists_of_bad_images_take_any_name(tmp_path):
    names = ["a\nb", "\udce9", "\x1b[2J", "\u2028", "\r"]
    findings = []
    for name in names:
        with pytest.raises(BadImageError) as error:
            decode_image({"bytes": b"no", "path": name})
        findings.append(error.value.finding)
    list_bad_images(findings, tmp_path / "out", should_save=True)
    lines = (tmp_path / "out" / "bad_images.txt").read_text(encoding="utf-8").splitlines()
    assert lines == findings and all(map(str.isprintable, lines))


@pytest.mark.parametrize("kind", ["zip", "tar", "link"])
def test_archives_write_nothing_outside_the_cache(tmp_path, kind):
    source = tmp_path / "a" / "b" / "images"
    source.mkdir(parents=True)
    photograph(2).save(source / "1.png")
    if kind == "zip":
        with zipfile.ZipFile(source / "more.zip", "w") as archive:
            for name in ("good.png", "../../../../outside.png", str(tmp_path / "outside.png")):
                archive.writestr(name, png())
    else:
        with tarfile.open(source / "more.tar", "w") as archive:
            for name in ("good.png", "../../../../outside.png", str(tmp_path / "outside.png")):
                entry = tarfile.TarInfo(name)
                entry.size = len(png())
                if kind == "link":
                    entry.type, entry.linkname, entry.size = tarfile.SYMTYPE, str(tmp_path), 0
                archive.addfile(entry, None if kind == "link" else io.BytesIO(png()))
    before = everything_below(tmp_path)
    try:
        images = keep_encoded(load_images(str(source))["train"], "image")
        assert all(decode_image(image).size for image in images["image"])
    except InputError:
        pass
    outside = {path for path in everything_below(tmp_path) - before if not path.startswith("cache")}
    assert outside == set()


def test_names_in_results_make_no_files(tmp_path):
    row = {
        "mode": "linear_probe",
        "protocol": "../../outside",
        "top1": 0.5,
        "top5": 0.9,
        "layer": 1,
        "seed": 0,
        "num_classes": 10,
        "chance": 0.1,
        "num_validation_images": 10,
        "provenance": {"checkpoint": "../../outside", "dataset": "/etc/outside\n\x1b[2J", "model": {}, "kamim": None},
    }
    write_results(tmp_path / "a" / "run" / "results.json", row)
    output = tmp_path / "a" / "b" / "report"
    write_report(build_report([tmp_path / "a" / "run"]), output)
    assert {path for path in everything_below(tmp_path) if path.startswith("a")} <= {
        *("a", "a/run", "a/run/results.json", "a/b", "a/b/report", "a/b/report/report.md", "a/b/report/report.tex"),
    }
    assert checkpoint_rows([tmp_path / "a" / "run"], tmp_path / "a") is not None


def test_what_is_published_lies_in_the_directory_and_has_plain_names(checkpoint):
    (checkpoint / "sub").mkdir()
    (checkpoint / "sub" / "results.json").write_text("{}")
    for name in ("optimizer.pt", "pytorch_model.bin", "rng_state.pth", "a\nb.png.exe"):
        (checkpoint / name).write_bytes(b"")
    names = published_files(checkpoint)
    assert not any(os.sep in name or ".." in name or name.endswith((".pt", ".bin", ".pth", ".exe")) for name in names)
