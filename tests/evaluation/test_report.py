"""Reports: rows, the layouts of the paper's tables, markup; and the pictures of an evaluation."""

import json
import logging
import re
import sys
from unittest.mock import ANY

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from results import KAMIM, VIT_B, result

from modeling_kamim.commands import evaluate as run_classification
from modeling_kamim.errors import InputError
from modeling_kamim.evaluation.charts import NAMED_CLASSES, confusion_figure, depth_figure
from modeling_kamim.evaluation.report.entries import Entry
from modeling_kamim.evaluation.report.paper import PAPER_TABLES
from modeling_kamim.evaluation.report.tables import Cell, Table
from modeling_kamim.evaluation.report.writing import build_report, write_report
from modeling_kamim.evaluation.results import write_results

CIFAR10 = {"num_classes": 10, "num_train_images": 50_000, "num_validation_images": 10_000}
SIMMIM = {**KAMIM, "weighting": "none"}
SWIN_T = {"model_type": "swin", "hidden_size": 768, "depth": 12, "patch_size": 4, "parameters": 27_512_730}


@pytest.fixture
def report(tmp_path):
    """Callable from results to their report."""

    def build(*results):
        for number, values in enumerate(results):
            write_results(tmp_path / f"run-{number}" / "results.json", values)
        return build_report([tmp_path])

    return build


def texts(table):
    return [[cell.text for cell in row] for row in table.rows]


def layout(report, number):
    """Header and rows of the only table in the layout of the paper's table."""
    (table,) = [table for table in report.tables if table.title.endswith(f"Table {number}")]
    return list(table.header), texts(table)


def layouts(report):
    return sorted(int(table.title[-1]) for table in report.tables[1:])


def test_rows_of_the_main_table(report):
    built = report(result(0.25, top1_interval=[0.24, 0.26], num_train_images=1000, num_validation_images=500))
    (row,) = texts(built.tables[0])
    method = "KAMIM (FAST, w_ps 8, T 0.25, online)"
    assert row[:3] == ["local:mine", method, "ILSVRC/imagenet-1k"]
    assert row[3:] == ["linear probe (paper)", "8", "mean", "25.00 [24.0, 26.0]", "100.00", "0", "1,000 / 500"]


@pytest.mark.parametrize(("size", "words"), [(192, "192"), ([192, 256], "192 x 256"), (None, "–")])
def test_the_size_of_a_rectangle_is_height_by_width(size, words):
    assert Entry(result(0.5, image_size=size)).image_size == words


def test_methods(report):
    kamims = [None, SIMMIM, {**KAMIM, "weighting": "shuffled"}]
    kamims.append({**KAMIM, "keypoint_footprint": "point", "weight_norm": "mean"})
    built = report(result(0.1, kamim=None, name=None), *(result(0.1, kamim=k, name="owner/x") for k in kamims))
    methods = {row[1] for row in texts(built.tables[0])}
    shuffled = "KAMIM-shuffled (FAST, w_ps 8, T 0.25, online)"
    points = "KAMIM (FAST, w_ps 8, T 0.25, online, points, mean weight 1)"
    assert methods == {"none", "–", "SimMIM", shuffled, points}
    assert "random weights (ViT-B)" in [row[0] for row in texts(built.tables[0])]


def test_seeds_are_summarized(report):
    rows = [{"seed": seed, "top1": top1, "top5": 0.9} for seed, top1 in ((0, 0.4), (1, 0.6))]
    (row,) = texts(report({**result(0.0), "rows": rows}).tables[0])
    assert row[6:9] == ["50.00 ± 14.14", "90.00 ± 0.00", "0, 1"]


def test_best_of_equal_data_protocol_and_layer_is_bold(report):
    built = report(
        result(0.2, name="local:a"),
        result(0.3, name="local:b"),
        result(0.9, name="local:c", layer=12),
        result(0.8, name="local:d", protocol="knn"),
        result(0.7, name="local:e", num_validation_images=10),
        result(0.6, name="local:f", data="local:other"),
    )
    assert [row[0].text for row in built.tables[0].rows if any(cell.bold for cell in row)] == ["local:b"]


def test_order_is_data_then_protocol_then_layer_then_accuracy(report):
    built = report(
        result(0.1, protocol="finetune"),
        result(0.1, layer="final"),
        result(0.1, layer="10"),
        result(0.1, layer="9", name="local:a"),
        result(0.2, layer="9", name="local:b"),
        result(0.3, data="A", protocol="knn"),
    )
    rows = texts(built.tables[0])
    assert [row[4] for row in rows] == ["8", "9", "9", "10", "final", "12"]
    assert rows[0][2] == "A" and rows[1][0] == "local:b"


def test_layers_of_one_model_are_a_table_by_depth(report):
    layers = [
        result(top1, "cached", layer=layer) for layer, top1 in (("final", 0.2), ("8", 0.4), ("12", 0.1), ("9", 0.5))
    ]
    other = result(0.3, "cached", layer="9", name="local:other")
    built = report(*layers, other)
    assert [(row[0], row[4]) for row in texts(built.tables[0])] == [("local:mine", "8"), ("local:other", "9")]
    depth = built.tables[1]
    assert depth.header[4:] == ("8", "9", "12", "final")
    assert texts(depth) == [["local:mine", ANY, ANY, "mean", "40.00", "50.00", "10.00", "20.00"]]
    assert [cell.bold for cell in depth.rows[0][4:]] == [False, True, False, False]
    assert "depth_1.png" in built.to_markdown() and list(built.figures) == ["depth_1.png"]


def test_rows_that_look_the_same_are_told_apart(report):
    built = report(result(0.1), result(0.2, augmentation="none", learning_rate=0.1), result(0.3, low_shot=0.1))
    protocols = [row[3] for row in texts(built.tables[0])]
    assert protocols[1] == "linear probe (paper); augmentation none; learning_rate 0.1"
    assert protocols[0].endswith("; low_shot 0.1")
    assert len(set(protocols)) == 3


def test_data_of_one_name_and_several_fingerprints_are_pointed_out(report):
    assert len(report(result(0.1), result(0.2, kamim=SIMMIM)).notes) == 2
    notes = report(result(0.1), result(0.2, validation_fingerprint="g")).notes
    assert "ILSVRC/imagenet-1k" in notes[-1] and "fingerprints" in notes[-1]


def test_table_1(report):
    built = report(
        result(0.3, kamim=KAMIM),
        result(0.2, kamim=SIMMIM),
        result(0.7, kamim=SIMMIM, protocol="finetune"),
        result(0.15, kamim=SIMMIM, model=SWIN_T, layer="last stage"),
        result(0.9, kamim={**KAMIM, "temperature": 1.0}),
        result(0.9, kamim={**KAMIM, "weighting": "shuffled"}),
        result(0.9, layer=12),
        result(0.9, protocol="paper_layernorm"),
        result(0.9, protocol="knn"),
    )
    header, rows = layout(built, 1)
    paired = ["SimMIM LP", "SimMIM LP (paper)", "KAMIM LP", "KAMIM LP (paper)", "SimMIM FT", "SimMIM FT (paper)"]
    assert header == ["model", *paired, "parameters"]
    assert rows[0] == ["ViT-B", "20.00", "16.12", "30.00", "33.97", "70.00", "76.78", "85.8M"]
    assert rows[1] == ["Swin-T", "15.00", "14.37", "–", "–", "–", "–", "27.5M"]


@pytest.mark.parametrize(
    "other",
    [
        {"image_size": 224},
        {"data": "local:imagenette"},
        {"num_validation_images": 49_999},
        {"num_train_images": 12_811},
        {"model": {**VIT_B, "patch_size": 32}},
        {"kamim": {key: value for key, value in KAMIM.items() if key != "dataset_name"}},
        {"kamim": {**KAMIM, "dataset_name": "local:imagenette"}},
        {"kamim": {**KAMIM, "mask_patch_size": 16}},
        {"protocol": "cached"},
    ],
)
def test_the_papers_figures_stand_only_beside_its_own_case(report, other):
    header, _ = layout(report(result(0.3, **other)), 1)
    assert not any("paper" in column for column in header)


def test_a_local_copy_of_imagenet_is_imagenet(report):
    kamim = {**KAMIM, "dataset_name": "local:ILSVRC2012"}
    header, rows = layout(report(result(0.3, data="local:imagenet", kamim=kamim)), 1)
    assert rows == [["ViT-B", "30.00", "33.97", "85.8M"]]


def test_several_results_of_a_cell_are_all_shown(report):
    _, rows = layout(report(result(0.3), result(0.2, augmentation="none")), 1)
    assert rows[0][1] == "30.00 / 20.00"


def test_table_2(report):
    def at(size, temperature):
        return {**KAMIM, "weight_patch_size": size, "temperature": temperature}

    built = report(
        result(0.1, kamim=at(16, 1)),
        result(0.2, kamim=at(8, 1.0)),
        result(0.3, kamim=at(8, 0.25)),
        result(0.4, kamim=at(4, 0.25)),
        result(0.5, kamim=SIMMIM),
        result(0.9, kamim={**at(16, 0.5), "keypoint_detector": "orb"}),
    )
    header, rows = layout(built, 2)
    assert header == ["w_ps", "T", "LP", "LP (paper)"]
    assert rows == [
        ["4", "0.25", "40.00", "–"],
        ["8", "0.25", "30.00", "33.97"],
        ["8", "1", "20.00", "23.93"],
        ["16", "1", "10.00", "29.51"],
        ["SimMIM", "", "50.00", "16.12"],
    ]


def test_table_3(report):
    on_cifar = {"data": "uoft-cs/cifar10", **CIFAR10}
    built = report(
        result(0.3),
        result(0.7, **on_cifar),
        result(0.6, kamim={**KAMIM, "dataset_name": "uoft-cs/cifar10"}, **on_cifar),
        result(0.5, kamim={**SIMMIM, "dataset_name": "uoft-cs/cifar10"}, protocol="finetune", **on_cifar),
    )
    header, rows = layout(built, 3)
    columns = ["ImageNet-1k LP", "CIFAR-10 LP", "CIFAR-10 FT", "CIFAR-10 (ImageNet-1k PT) LP"]
    assert header == ["method", *(name for column in columns for name in (column, f"{column} (paper)"))]
    assert rows[0] == ["SimMIM", "–", "–", "–", "–", "50.00", "94.13", "–", "–"]
    assert rows[1] == ["KAMIM", "30.00", "33.97", "60.00", "59.01", "–", "–", "70.00", "72.63"]


def test_table_4(report):
    kamims = [{**KAMIM, "keypoint_detector": name} for name in ("orb", "fast")]
    header, rows = layout(report(*(result(0.3, kamim=kamim) for kamim in (*kamims, SIMMIM))), 4)
    assert header == ["detector", "LP", "LP (paper)"]
    expected = [("none (SimMIM)", "16.12"), ("FAST", "33.97"), ("ORB", "32.36")]
    assert rows == [[name, "30.00", paper] for name, paper in expected]


def test_table_5(report):
    built = report(result(0.3), result(0.4, protocol="paper_layernorm"), result(0.2, kamim=SIMMIM))
    header, rows = layout(built, 5)
    assert header == ["", "SimMIM LP", "SimMIM LP (paper)", "KAMIM LP", "KAMIM LP (paper)"]
    assert rows == [
        ["without LayerNorm", "20.00", "16.12", "30.00", "33.97"],
        ["with LayerNorm", "–", "–", "40.00", "37.72"],
    ]


def test_layouts_need_what_they_vary(report):
    assert layouts(report(result(0.3), result(0.2, kamim=SIMMIM))) == [1]


def test_the_papers_tables_agree_where_they_overlap():
    assert PAPER_TABLES[2][("8", "0.25"), "LP"] == PAPER_TABLES[4][("FAST",), "LP"] == 33.97


def test_layers_that_the_paper_reads(report):
    shallow = {**VIT_B, "depth": 6}
    built = report(
        result(0.1, layer="8", protocol="cached"),
        result(0.2, layer="final", protocol="cached", model=SWIN_T),
        result(0.3, layer=6, model=shallow),
        result(0.4, layer="final", protocol="finetune"),
        result(0.9, layer="final"),
        result(0.9, layer=8, pooling="cls"),
    )
    shown = [cell for row in layout(built, 1)[1] for cell in row[1:-1] if cell != "–"]
    assert sorted(shown) == ["10.00", "20.00", "30.00", "40.00", "77.30"]


def test_foreign_and_broken_files_are_named_and_left_out(tmp_path, caplog):
    foreign = {
        "list": "[1]",
        "text": "accuracy 1",
        "binary": "\x00",
        "other": '{"top1": 0.5}',
        "percent": json.dumps(result(50.0)),
        "nan": json.dumps({**result(0.5), "top1": float("nan")}),
        "rows": '{"rows": [1]}',
        "mapping": '{"rows": {"a": 1}}',
    }
    for name, text in foreign.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(text)
    with caplog.at_level(logging.WARNING), pytest.raises(InputError, match="no results in"):
        build_report([tmp_path])
    for name in foreign:
        assert f"{name}/results.json" in caplog.text
    write_results(tmp_path / "good" / "results.json", {**result(0.5), "rows": [{"seed": 1}, {"top1": None}]})
    assert len(build_report([tmp_path]).rows) == 1


def reconstruction(masked_psnr, name="local:mine", **values):
    names = ("masked_ssim", "baseline_psnr", "baseline_ssim", "paper_psnr_pooled", "paper_psnr", "paper_ssim")
    scores = {key: {"mean": 0.5, "standard_error": 0.01} for key in names}
    origin = result(0.0, name=name)["provenance"]
    scores["masked_psnr"] = {"mean": masked_psnr, "standard_error": 0.2}
    return {"mode": "reconstruction", "mask_ratio": 0.4, "num_images": 30, **scores, "provenance": origin, **values}


def test_reconstructions_have_a_table_of_their_own(report):
    alone = {"mean": 0.5, "standard_error": None}  # of a single image
    rows = [reconstruction(14.0, "local:worse"), reconstruction(16.5, "local:better", masked_ssim=alone)]
    built = report(result(0.5), {"rows": rows})
    first, second = texts(built.tables[-1])
    assert [table.title for table in built.tables if table.title == "Reconstructions"] == [built.tables[-1].title]
    assert [first[0], second[0]] == ["local:better", "local:worse"]
    assert first[3:7] == ["40%", "16.50 ± 0.20", "0.500", "0.50 ± 0.01"] and first[-1] == "30"
    assert "16.50 ± 0.20" in built.to_markdown() and r"16.50 $\pm$ 0.20" in built.to_latex()
    assert any("fill" in note for note in built.notes)


def test_a_report_of_reconstructions_alone(report):
    (table,) = report({"rows": [reconstruction(14.0)]}).tables
    assert table.title == "Reconstructions"


def test_incomplete_reconstructions_are_left_out_by_name(tmp_path, caplog):
    rows = [reconstruction(14.0), reconstruction(14.0, masked_ssim={"mean": None}), reconstruction(None)]
    write_results(tmp_path / "a" / "results.json", {"rows": [*rows, {"mode": "reconstruction", "psnr": 12.0}]})
    assert len(build_report([tmp_path]).tables[0].rows) == 1
    assert "a/results.json: 3 of 4 results are left out" in caplog.text


def test_a_file_is_read_once(tmp_path):
    write_results(tmp_path / "a" / "results.json", result(0.5))
    folders = [tmp_path, tmp_path / "a", tmp_path / "a" / "results.json"]
    assert build_report(folders).rows[0]["num_seeds"] == 1


def test_a_missing_folder_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="there is no folder"):
        build_report([tmp_path / "missing"])


def test_command_line(tmp_path, monkeypatch):
    write_results(tmp_path / "runs" / "results.json", result(0.5))
    arguments = ["--report", str(tmp_path / "runs"), "--output_dir", str(tmp_path / "report")]
    monkeypatch.setattr(sys, "argv", ["run_classification.py", *arguments])
    run_classification.main()
    assert "50.00" in (tmp_path / "report" / "report.md").read_text()
    assert "50.00" in (tmp_path / "report" / "report.tex").read_text()


def test_markdown():
    table = Table("T_1", ["a", "b"], [[Cell("x|y*z"), Cell("1.0", bold=True)]], num_labels=1)
    assert table.to_markdown() == "## T\\_1\n\n| a | b |\n| --- | ---: |\n| x\\|y\\*z | **1.0** |\n"


def test_latex():
    table = Table("50%", ["a_b", "c"], [[Cell("[x] & {y} ~ \\ ^ #$"), Cell("1 ± 2", bold=True)]], num_labels=1)
    lines = table.to_latex().splitlines()
    assert r"\caption{50\%}" in lines and r"\begin{tabular}{lr}" in lines
    assert r"a\_b & c \\" in lines
    expected = r"{[}x] \& \{y\} \textasciitilde{} \textbackslash{} \textasciicircum{} \#\$ & \textbf{1 $\pm$ 2} \\"
    assert expected in lines


_words = st.text("ab\\|*_`~[](){}<>&%$#^\n±–é", max_size=9)


@given(st.lists(st.lists(_words, min_size=3, max_size=3), min_size=1, max_size=4), _words)
def test_markup_keeps_the_shape_of_any_table(words, title):
    table = Table(title, words[0], [[Cell(word, bold=True) for word in row] for row in words], num_labels=2)
    heading, _, *rows = table.to_markdown().removesuffix("\n").split("\n")
    assert len(rows) == len(words) + 2
    for row in rows:
        assert len(re.findall(r"(?<!\\)(?:\\\\)*\|", row)) == 4
    latex = table.to_latex()
    plain = re.sub(r"\\[\\{}&%$#_]", "", latex)
    assert plain.count("{") == plain.count("}")
    body = plain.split(r"\midrule")[1].split(r"\bottomrule")[0]
    assert body.count("&") == 2 * len(words)
    assert not re.search(r"[%#_^~]", body)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | _words,
    lambda children: st.lists(children, max_size=3) | st.dictionaries(_words, children, max_size=3),
    max_leaves=5,
)


@given(
    st.dictionaries(st.sampled_from(sorted(result(0.5))), _json), st.dictionaries(st.sampled_from(sorted(KAMIM)), _json)
)
def test_no_result_breaks_the_report(tmp_path, values, kamim):
    folder = tmp_path / "fuzzed"
    folder.mkdir(exist_ok=True)
    origin = {key: values.get("provenance") for key in ("dataset", "checkpoint", "model", "versions", "time")}
    results = [{**result(0.5), **values}, result(0.5, kamim=kamim), {**result(0.5), "provenance": origin}]
    (folder / "results.json").write_text(json.dumps({"rows": results}))
    write_report(build_report([folder]), tmp_path)


def drawn(figure):
    """The renderer behind a figure that is laid out."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return canvas.get_renderer()


def overlap(artists, renderer):
    boxes = [artist.get_window_extent(renderer) for artist in artists]
    return any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


@pytest.mark.parametrize("num_classes", [2, 3, 10, NAMED_CLASSES])
def test_class_names_of_a_confusion_figure_do_not_overlap(num_classes):
    names = [f"{'long name of a class ' * (number % 3)}{number}" for number in range(num_classes)]
    figure = confusion_figure(np.eye(num_classes, dtype=int).tolist(), names)
    renderer = drawn(figure)
    axis, bar = figure.axes
    for labels in (axis.get_xticklabels(), axis.get_yticklabels()):
        assert len(labels) == num_classes and not overlap(labels, renderer)
    corners = figure.get_tightbbox(renderer)
    assert corners.x0 >= 0 and corners.y0 >= 0
    assert corners.x1 <= figure.get_figwidth() and corners.y1 <= figure.get_figheight()
    assert not overlap([axis, bar], renderer)


@pytest.mark.parametrize("num_classes", [NAMED_CLASSES + 1, 1000])
def test_many_classes_have_numbers(num_classes):
    confusion = np.eye(num_classes, dtype=int)
    figure = confusion_figure(confusion, [f"class {number}" for number in range(num_classes)])
    renderer = drawn(figure)
    labels = figure.axes[0].get_xticklabels()
    assert 2 < len(labels) < 15 and not overlap(labels, renderer)
    assert not any("class" in label.get_text() for label in labels)


def test_confusion_is_normalized_by_row_and_empty_rows_are_masked():
    figure = confusion_figure([[3, 1], [0, 0]], ["a", "b"])
    shown = figure.axes[0].images[0].get_array()
    assert shown[0].tolist() == [0.75, 0.25] and shown.mask[1].all()


def test_depth_figure_has_a_line_for_each_series_and_chance():
    series = {
        "deep": (["2", "10", "final"], [0.1, 0.2, 0.3]),
        "shallow": (["1", "2", "final"], [0.3, 0.2, 0.1]),
        "a name that is much too long for a single line of the legend": (["1", "last stage"], [0.5, 0.6]),
    }
    figure = depth_figure(series, 0.1)
    renderer = drawn(figure)
    (axis,) = figure.axes
    assert [label.get_text() for label in axis.get_xticklabels()] == ["1", "2", "10", "final", "last stage"]
    *lines, chance = axis.get_lines()
    assert [line.get_xdata().tolist() for line in map(_arrays, lines)] == [[1, 2, 3], [0, 1, 3], [0, 4]]
    assert len({(line.get_color(), line.get_marker()) for line in lines}) == 3
    assert chance.get_linestyle() == "--" and set(chance.get_ydata()) == {0.1}
    assert not overlap(axis.get_xticklabels(), renderer)
    assert not overlap([axis, figure.legends[0]], renderer)


def _arrays(line):
    line.set_xdata(np.asarray(line.get_xdata()))
    return line
