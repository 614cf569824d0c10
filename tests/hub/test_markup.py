"""Names of classes, models and data sets, whatever they are, in pictures, cards and reports; and pictures that fail."""

import io
import json
import logging
import re
import sys
import warnings

import datasets
import matplotlib
import numpy as np
import pytest
from awkward_images import photograph
from huggingface_hub import ModelCard
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from results import result

from modeling_kamim.analysis import plots as analysis_figures
from modeling_kamim.analysis.findings import Section, cka_sentences
from modeling_kamim.analysis.findings import write_report as write_analysis
from modeling_kamim.commands import evaluate as run_classification
from modeling_kamim.commands import pretrain as run_mim
from modeling_kamim.evaluation import outcome
from modeling_kamim.evaluation.charts import comparison_figure, confusion_figure, depth_figure
from modeling_kamim.evaluation.report.writing import build_report, write_report
from modeling_kamim.evaluation.results import checkpoint_rows, write_results
from modeling_kamim.hub.cards import Run, classifier_card, complete_card
from modeling_kamim.hub.markup import latex, markdown, plot_text
from modeling_kamim.hub.publishing import published_files
from modeling_kamim.models.sizes import build_config
from modeling_kamim.privacy import public_name
from modeling_kamim.training import figures
from modeling_kamim.training.figures import save_figure

AWKWARD = (
    *("US$_vs_$AU", "$", r"\$x_{$", "$$", "_hidden", r"\frac{1}{", "a|b`c<d[e](f)*g*", "a\nb\tc\rd", "\x00\x1b[2J"),
    *("猫と犬", "🐈‍⬛", "قطة", "\u202egnp.exe", "\udce9", "x" * 300, "", " ", "<!-- results -->", "%s {0} #&~^", "---"),
)


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def draw(figure, file_format="png"):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")
        figure.savefig(io.BytesIO(), format=file_format, dpi=40)


def shown(figure):
    """All texts of a figure as they are drawn: a name must never be a formula."""
    texts = [text for text in figure.findobj(matplotlib.text.Text) if text.get_text()]
    drawn = [text._preprocess_math(text.get_text()) for text in texts]
    assert not any(is_math for _, is_math in drawn)
    return [text.replace("\n", "") for text, _ in drawn]


NAMES = st.sampled_from(AWKWARD) | st.text(max_size=40)


@settings(max_examples=15)
@given(st.lists(NAMES, min_size=2, max_size=5))
def test_names_in_the_pictures_of_an_evaluation(names):
    confusion = confusion_figure(np.eye(len(names)), names)
    depth = depth_figure({name: ([1, name], [0.2, 0.4]) for name in names}, 0.1)
    for figure in (confusion, depth):
        shown(figure)
        draw(figure)


@pytest.mark.parametrize("name", AWKWARD)
def test_names_in_every_picture_of_the_analyses(name):
    rows = [
        {"model": model, "layer": layer, "other_model": other, "other_layer": other_layer, "cka": 0.5}
        for model in (name, "b")
        for other in (name, "b")
        for layer in (1, "final")
        for other_layer in (1, "final")
    ]
    shares = [
        {"model": model, "loss_weighting": weighting, "quantile": quantile, "share": 0.1, "std": 0, "mean_weight": 2}
        for model in (name, "b")
        for weighting in ("none", "keypoint")
        for quantile in (1, 2)
    ]
    planes = [
        analysis_figures.TokenPlane(name, 1, np.eye(4, 2), [name] * 4, [0] * 4, ["before", "before", "after", "after"])
    ]
    for figure in (
        analysis_figures.cka_figure(rows),
        analysis_figures.loss_share_figure(shares),
        analysis_figures.classes_figure(planes),
        analysis_figures.before_after_figure(planes),
    ):
        shown(figure)
        draw(figure)


def test_a_name_is_drawn_as_it_is():
    texts = shown(confusion_figure(np.eye(2), ["US$_vs_$AU", "plain"]))
    assert "US$_vs_$AU" in texts
    [legend] = depth_figure({"_a$b$": ([1], [0.5])}, 0.1).legends
    assert legend.get_texts()[0].get_text().strip() == r"_a\$b\$"
    images = np.zeros((1, 3, 8, 8), np.float32)
    torch_images, mask = map(_tensor, (images, np.ones((1, 2, 2), bool)))
    shown(comparison_figure(torch_images, mask, {"x$_y_$": torch_images}, [0.5] * 3, [0.5] * 3))


def _tensor(values):
    import torch

    return torch.from_numpy(values)


@given(NAMES)
def test_text_is_one_line_of_what_can_be_encoded(text):
    for escape in (markdown, latex, plot_text):
        escaped = escape(text)
        escaped.encode()
        assert len(escaped.splitlines()) <= 1
    assert not re.search(r"(?<!\\)(\\\\)*[$|`<]", markdown(text))


@settings(max_examples=15)
@given(NAMES, NAMES, NAMES)
def test_names_in_cards_and_reports(tmp_path_factory, model, data, title):
    folder = tmp_path_factory.getbasetemp() / "named"
    write_results(folder / "in" / "results.json", result(0.5, name=model, data=data, protocol=title))
    write_report(build_report([folder / "in"]), folder / "out")
    report = (folder / "out" / "report.md").read_text(encoding="utf-8").splitlines()
    table = [line for line in report if line.startswith("| ")]
    assert len({len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in table if "---" not in line}) == 1
    rows = checkpoint_rows([folder / "in"], folder / "in")
    run = Run(title, public_name(data), "a: 1")
    card = complete_card(classifier_card(run, build_config("vit", "tiny"), "finetune", public_name(model)), rows)
    card.save(folder / "README.md")
    loaded = ModelCard.load(folder / "README.md")
    assert loaded.text.count("\n## ") == 4 and len(loaded.data.eval_results or []) == 2
    [line] = [line for line in loaded.text.splitlines() if line.startswith("| ") and "50.00%" in line]
    assert len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) == 8


def test_names_in_the_report_of_the_analyses(tmp_path):
    rows = [
        {"model": a, "layer": "final", "other_model": b, "other_layer": "final", "cka": 0.5}
        for a in ("a*$|`", "<b>")
        for b in ("a*$|`", "<b>")
    ]
    section = Section(sentences=cka_sentences(rows), refused=["a\n# b: no"])
    write_analysis(tmp_path / "report.md", {"cka": section}, ["Models: <b>\n# x"])
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert r"a\*\$\|\` and &lt;b>" in text and len(re.findall("^#", text, re.MULTILINE)) == 2


# Pictures that fail


def test_a_picture_that_fails_is_one_line_and_leaves_nothing(tmp_path, caplog):
    files = [tmp_path / "a.png", tmp_path / "a.pdf"]
    assert save_figure(Figure, *files) and all(file.stat().st_size for file in files)

    def fails():
        raise ValueError("no\nfont")

    for broken in (fails, lambda: None):
        caplog.clear()
        assert not save_figure(broken, *files)
        assert not any(file.exists() for file in files)
        [record] = caplog.records
        assert record.levelno == logging.WARNING and "a.png could not be drawn" in record.getMessage()
        assert "\n" not in record.getMessage()
    assert not save_figure(Figure, tmp_path / "nowhere" / "a.png")
    with pytest.raises(KeyboardInterrupt):
        save_figure(lambda: (_ for _ in ()).throw(KeyboardInterrupt), *files)


def write_classes(folder, names):
    images = [{"bytes": _png(seed), "path": None} for seed in range(8)]
    labels = [names[seed % len(names)] for seed in range(8)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    rows = datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)
    folder.mkdir()
    rows.to_parquet(folder / "train.parquet")
    return folder


def _png(seed):
    buffer = io.BytesIO()
    photograph(seed, width=40, height=40).save(buffer, "png")
    return buffer.getvalue()


def probe(monkeypatch, data, output, *options):
    words = ["--dataset_name", str(data), "--output_dir", str(output), "--model_size", "tiny", "--image_size", "32"]
    words += ["--max_steps", "1", "--use_cpu", "--validation_fraction", "0.5", "--disable_tqdm", "true", *options]
    monkeypatch.setattr(sys, "argv", ["run_classification.py", *words])
    run_classification.main()
    return json.loads((output / "results.json").read_text())


STRAY = {
    "list": b"[]",
    "cut": b'{"top1": 0.',
    "binary": b"\x89PNG\xff\xfe",
    "kind": b'{"rows": 3, "eval": "x"}',
    "empty": b"",
}


def test_awkward_classes_and_stray_files_cost_nothing(monkeypatch, tmp_path):
    data = write_classes(tmp_path / "data", ["US$_vs_$AU", "_a\n|b"])
    output = tmp_path / "out"
    for name, content in STRAY.items():
        (output / name).mkdir(parents=True)
        (output / name / "results.json").write_bytes(content)
    (output / "old_results.json").write_bytes(STRAY["cut"])
    assert probe(monkeypatch, data, output)["num_classes"] == 2
    assert (output / "confusion.png").stat().st_size
    assert "| paper |" in (output / "README.md").read_text(encoding="utf-8")
    files = published_files(output)
    assert {"results.json", "confusion.png", "README.md"} <= set(files) and "old_results.json" not in files
    write_report(build_report([output]), tmp_path / "report")


@pytest.mark.parametrize("options", [(), ("--protocol", "cached", "--probe_layers", "all")])
def test_a_failing_picture_costs_no_results(monkeypatch, tmp_path, caplog, options):
    def fails(*arguments):
        raise MemoryError

    monkeypatch.setattr(outcome, "confusion_figure", fails)
    monkeypatch.setattr(outcome, "depth_figure", fails)
    data = write_classes(tmp_path / "data", ["a", "b"])
    probe(monkeypatch, data, tmp_path / "out", *options)
    assert "confusion.png could not be drawn" in caplog.text
    assert not (tmp_path / "out" / "confusion.png").exists()
    if not options:
        assert "| paper |" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


def test_a_failing_picture_costs_no_pretraining(monkeypatch, tmp_path, caplog):
    def fails(*arguments):
        raise RuntimeError("no picture")

    monkeypatch.setattr(figures, "reconstruction_figure", fails)
    monkeypatch.setattr(figures, "curves_figure", fails)
    data, output = write_classes(tmp_path / "data", ["a"]), tmp_path / "out"
    words = ["--dataset_name", str(data), "--output_dir", str(output), "--model_size", "tiny", "--image_size", "32"]
    words += [
        "--mask_patch_size",
        "16",
        "--max_steps",
        "1",
        "--use_cpu",
        "--per_device_train_batch_size",
        "2",
        "--disable_tqdm",
        "true",
    ]
    monkeypatch.setattr(sys, "argv", ["run_mim.py", *words, "--logging_steps", "1"])
    run_mim.main()
    assert caplog.text.count("could not be drawn") == 2
    assert "step 1" in (output / "README.md").read_text(encoding="utf-8")


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from(sorted(result(0.5))), _json), _json)
def test_no_result_breaks_a_card(tmp_path_factory, values, anything):
    folder = tmp_path_factory.getbasetemp() / "fuzzed"
    (folder / "other").mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps({"rows": [{**result(0.5), **values}, result(0.5)]}))
    (folder / "other" / "results.json").write_text(json.dumps(anything))
    rows = checkpoint_rows([folder], folder)
    assert rows
    card = classifier_card(Run("a", "local:b", "c: 1"), build_config("vit", "tiny"), "finetune", None)
    assert "50.00%" in complete_card(card, rows).text
