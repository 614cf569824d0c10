"""`kamim study` on the files that come with the package, and on real runs."""

import sys
from pathlib import Path

import pytest
import yaml

from modeling_kamim.commands.parser import read_yaml
from modeling_kamim.commands.study import main
from modeling_kamim.errors import InputError
from modeling_kamim.study.plan import Study
from modeling_kamim.study.records import Record
from modeling_kamim.study.summary import arms_of
from modeling_kamim.study.writeup import compared_pairs, difference_lines, table_lines

ROOT = Path(__file__).parents[2]
MINE = {
    "pretrain": {"model_size": "tiny", "image_size": 32, "patch_size": 8, "max_steps": 2, "use_cpu": True},
    "arms": {"random": {"max_steps": 0}, "kamim": {"keypoint_image_size": 96}},
    "protocols": {"linear": {"protocol": "cached", "use_cpu": True}},
    "compare": ["kamim - random"],
}


@pytest.fixture
def study(monkeypatch, tmp_path):
    def run(*words, **changes):
        monkeypatch.chdir(tmp_path)
        Path("mine.yaml").write_text(yaml.safe_dump({**MINE, **changes}, sort_keys=False))
        monkeypatch.setattr(sys, "argv", ["kamim study", "mine.yaml", *words])
        main()

    return run


def test_the_plan_is_printed_and_nothing_runs(study, capsys, tmp_path):
    study("--plan", "--arms", "kamim")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ["pretrain", "evaluate"]
    assert [file.name for file in tmp_path.iterdir()] == ["mine.yaml"]


def test_a_wrong_setting_of_any_arm_is_met_before_the_first_run(study, tmp_path):
    with pytest.raises(InputError, match="kamim/seed-0: kamim pretrain: temperature is -1.0"):
        study(arms={"random": {"max_steps": 0}, "kamim": {"temperature": -1}})
    with pytest.raises(InputError, match="random/seed-0/linear: kamim evaluate: unknown argument '--protocoll'"):
        study(protocols={"linear": {"protocoll": "cached"}})
    assert [file.name for file in tmp_path.iterdir()] == ["mine.yaml"]


def test_a_study_that_prepares_needs_a_data_set(study):
    with pytest.raises(InputError, match="give --dataset_name"):
        study(prepare={"image_size": 32})


@pytest.mark.slow
def test_a_study_runs_and_reports(study, capsys, tmp_path):
    study()
    text = capsys.readouterr().out
    assert "| kamim − random | " in text and "| random | 1 | 0 |" in text
    assert (tmp_path / "outputs/studies/mine/results/scores.png").is_file()
    study("--report")
    assert capsys.readouterr().out == text


@pytest.mark.parametrize("name", ["imagenette_64px_laptop", "where_to_look", "hf_run_mim_laptop"])
def test_the_documented_results_are_those_of_the_records(name):
    study = Study.read(name, read_yaml(ROOT / "configs" / "studies" / f"{name}.yaml"))
    arms = arms_of(Record(ROOT / "docs" / "study" / name, replicate) for replicate in study.replicates())
    compared = compared_pairs(study, arms)
    documented = (ROOT / "docs" / "results.md").read_text().splitlines()
    assert len(arms) > 3 and compared
    for line in (*table_lines(arms), *difference_lines(compared)):
        assert line in documented
