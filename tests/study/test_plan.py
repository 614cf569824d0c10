"""A study file becomes runs."""

import json

import pytest

from modeling_kamim.api.groups import CLASSIFICATION_ARGUMENTS, PRETRAINING_ARGUMENTS
from modeling_kamim.commands.parser import parse
from modeling_kamim.errors import InputError
from modeling_kamim.study.plan import Study

KEYS = {
    "pretrain": {"model_size": "tiny", "image_size": 64, "max_steps": 10},
    "arms": {
        "random": {"max_steps": 0},
        "kamim": {"seeds": [0, 1]},
        "simmim": {"weighting": "none", "seeds": [0, 1, 2]},
    },
    "protocols": {"linear": {"protocol": "cached"}, "tuned": {"mode": "finetune", "arms": ["kamim"]}},
    "compare": ["kamim - simmim"],
}


def study(**changes):
    return Study.read("mine", {**KEYS, **changes})


def test_the_first_seeds_of_all_arms_come_first():
    names = [replicate.name for replicate in study().replicates()]
    assert names[:3] == ["random/seed-0", "kamim/seed-0", "simmim/seed-0"]
    assert names[3:] == ["kamim/seed-1", "simmim/seed-1", "simmim/seed-2"]
    arms = list(study().arms)
    assert [r.name for r in study().replicates([arms[1], arms[0], arms[1]])][:2] == [
        f"{arms[1]}/seed-0",
        f"{arms[0]}/seed-0",
    ]
    assert [r.name for r in study().replicates(["simmim"])] == [f"simmim/seed-{seed}" for seed in range(3)]


def test_an_arm_s_settings_win_and_reach_the_command():
    kamim, simmim = study().replicates(["kamim", "simmim"])[:2]
    data, kamim_args, _, _, training_args = parse(PRETRAINING_ARGUMENTS, [*simmim.pretraining.words, "--use_cpu"])
    assert (kamim_args.method, training_args.max_steps, training_args.seed) == ("simmim", 10, 0)
    assert training_args.output_dir == "outputs/studies/mine/simmim/seed-0" and data.dataset_name is None
    assert kamim.pretraining.settings["seed"] == 0 and kamim.evaluations.keys() == {"linear", "tuned"}
    assert simmim.evaluations.keys() == {"linear"}
    _, class_args, probing_args = parse(CLASSIFICATION_ARGUMENTS, [*kamim.evaluations["tuned"].words, "--use_cpu"])
    assert (class_args.mode, class_args.model_name_or_path) == ("finetune", "outputs/studies/mine/kamim/seed-0")
    assert probing_args.output_dir == "outputs/studies/mine/kamim/seed-0/tuned"


def test_every_kind_of_value_is_passed_on():
    settings = {
        "keypoint_detector_args": {"threshold": 20},
        "image_size": [64, 96],
        "bf16": True,
        "learning_rate": 1e-4,
    }
    run = study(pretrain=settings).replicates()[0].pretraining
    _, kamim_args, _, _, training_args = parse(PRETRAINING_ARGUMENTS, [*run.words, "--use_cpu"])
    assert kamim_args.detector().parameters == {"threshold": 20} and kamim_args.image_size == [64, 96]
    assert training_args.bf16 and training_args.learning_rate == 1e-4


def test_a_config_comes_first_and_its_values_lose():
    run = (
        study(pretrain={"config": "pretrain/simmim_vit_tiny__in1k__192__100ep.yaml"})
        .replicates(["kamim"])[0]
        .pretraining
    )
    _, kamim_args, _, _, training_args = parse(PRETRAINING_ARGUMENTS, [*run.words, "--use_cpu"])
    assert (kamim_args.method, training_args.seed) == ("simmim", 0)
    assert training_args.output_dir == "outputs/studies/mine/kamim/seed-0"


def test_a_data_set_is_prepared_once_for_all_runs():
    prepared = study(prepare={"image_size": 64}, dataset_name="path/to/images")
    assert prepared.preparation.words[:2] == ["--dataset_name", "path/to/images"]
    for replicate in prepared.replicates():
        for run in (replicate.pretraining, *replicate.evaluations.values()):
            assert run.settings["dataset_name"] == "outputs/studies/mine/prepared"


def test_a_checkpoint_is_scored_without_a_pretraining():
    (replicate,) = study(
        arms={"theirs": {"checkpoint": "user/vit"}}, protocols={"linear": {"protocol": "cached"}}, compare=[]
    ).replicates()
    assert replicate.pretraining is None
    assert replicate.evaluations["linear"].settings["model_name_or_path"] == "user/vit"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arm": {}}, "unknown key 'arm' in study mine; did you mean 'arms'"),
        ({"arms": {}}, "arms of study mine is {}"),
        ({"arms": ["kamim"]}, "give 'name: {setting: value}' lines"),
        ({"protocols": {"linear": 3}}, "protocols of study mine"),
        ({"arms": {"kamim": {"seeds": 3}, "simmim": {}}}, "seeds of arm kamim are 3; give a list"),
        ({"arms": {"kamim": {"seeds": []}, "simmim": {}}}, "seeds of arm kamim"),
        ({"compare": ["kamim simmim"]}, "give different lines 'arm - other arm'"),
        ({"compare": ["kamim - simmin"]}, "compare names 'simmin', .*; did you mean 'simmim'"),
        ({"protocols": {"linear": {"arms": ["kamin"]}}}, "protocol linear names 'kamin'"),
    ],
)
def test_a_study_is_refused_with_a_way_out(changes, message):
    with pytest.raises(InputError, match=message):
        study(**changes)


def test_an_unknown_arm_is_refused():
    with pytest.raises(InputError, match="no arm 'kamin'; did you mean 'kamim'"):
        study().replicates(["kamin"])


def test_words_survive_a_shell(tmp_path):
    run = study(output_dir=str(tmp_path / "my outputs")).replicates()[0].pretraining
    assert run.words[-1] == str(tmp_path / "my outputs/random/seed-0") and json.dumps(run.words)


def test_a_trial_is_short_and_in_a_folder_of_its_own():
    whole = study(protocols={"linear": {"protocol": "cached"}, "tuned": {"mode": "finetune"}}, results_dir="docs/mine")
    trial = whole.shortened(3)
    assert (trial.output_dir, trial.results_dir) == (whole.output_dir / "trial", whole.output_dir / "trial" / "results")
    random, kamim = trial.replicates(["random", "kamim"])[:2]
    assert (random.pretraining.settings["max_steps"], kamim.pretraining.settings["max_steps"]) == (0, 3)
    assert "max_steps" not in kamim.evaluations["linear"].settings
    assert kamim.evaluations["tuned"].settings["max_steps"] == 3
    assert whole.replicates(["kamim"])[0].pretraining.settings["max_steps"] == 10
