import re
import shlex
from pathlib import Path

import pytest

from modeling_kamim.api.groups import CLASSIFICATION_ARGUMENTS as CLASSIFICATION
from modeling_kamim.api.groups import COMMAND_ARGUMENTS
from modeling_kamim.api.groups import PRETRAINING_ARGUMENTS as PRETRAINING
from modeling_kamim.commands.parser import parse, read_yaml
from modeling_kamim.errors import InputError
from modeling_kamim.study.plan import Study

ROOT = Path(__file__).parents[2]
FOLDERS = ("authors", "quickstart", "pretrain", "linear_probe", "finetune", "finetune/strong", "evaluation")
ARCHITECTURES = ("vit_tiny", "vit_small", "vit_base", "swin_tiny", "swin_base")
OTHER_DATA = ("cifar10", "cifar100", "inat21", "places365")

PRETRAINING_RECIPE = {
    "learning_rate": 8e-4,
    "max_grad_norm": 1.0,
    "lr_scheduler_kwargs": {"min_lr": 1e-5, "warmup_lr_rate": 1e-6 / 8e-4},
}
PROBING_RECIPE = {
    "learning_rate": 5e-3,
    "max_grad_norm": 0.0,
    "lr_scheduler_kwargs": {"min_lr": 2.5e-6, "warmup_lr_rate": 1e-6 / 5e-3},
}
SHARED_RECIPE = {
    "weight_decay": 0.05,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "num_train_epochs": 100,
    "warmup_steps": 0.1,
    "lr_scheduler_type": "cosine_warmup_with_min_lr",
    "optim": "adamw_torch_fused",
}
OBJECTIVE = {
    "image_size": 192,
    "mask_patch_size": 32,
    "mask_ratio": 0.6,
    "keypoint_detector": "fast",
    "keypoint_footprint": "circle",
    "weight_patch_size": 8,
    "temperature": 0.25,
    "weight_norm": "none",
    "crop_min_scale": 0.67,
    "horizontal_flip": 0.5,
    "vertical_flip": 0.5,
}


def configs(*folders):
    """Parameters: the YAML files of some folders, named by their path."""
    files = [file for folder in folders for file in sorted((ROOT / "configs" / folder).glob("*.yaml"))]
    return [pytest.param(file, id=f"{file.parent.name}/{file.stem}") for file in files]


def types_of(file):
    return CLASSIFICATION if "mode" in read_yaml(file) else PRETRAINING


def parse_file(file, *argv):
    return parse_arguments(types_of(file), [str(file), *argv])


def parse_arguments(types, argv):
    """Those of the data, of the model and of the training."""
    data_args, model_args, *_, training_args = parse(types, [*argv, "--use_cpu"])
    return data_args, model_args, training_args


def values(arguments, keys):
    found = {key: getattr(arguments, key) for key in keys}
    return {key: str(v.value) if hasattr(v, "value") else v for key, v in found.items()}


def assert_recipe(training_args, recipe):
    expected = {**SHARED_RECIPE, **recipe}
    found = values(training_args, expected)
    assert found.pop("lr_scheduler_kwargs") == pytest.approx(expected.pop("lr_scheduler_kwargs"))
    assert found == expected


def header_of(file):
    """The comment that a file opens with, its continued lines joined."""
    lines = []
    for line in file.read_text().splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#"))
    return re.sub(r"\\\n\s*", "", "\n".join(lines))


# Every file


@pytest.mark.parametrize("file", configs(*FOLDERS))
def test_config_parses_and_writes_nothing(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, _, training_args = parse_file(file)
    assert training_args.output_dir == read_yaml(file)["output_dir"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("file", configs("pretrain", "linear_probe", "finetune", "finetune/strong"))
def test_batch_of_2048_is_accumulated(file):
    _, _, training_args = parse_file(file)
    assert training_args.per_device_train_batch_size == 256
    assert training_args.gradient_accumulation_steps == 8
    assert training_args.total_batch_size == 2048


@pytest.mark.parametrize("file", configs("pretrain", "linear_probe", "finetune"))
def test_file_name_tells_what_is_in_the_file(file):
    name = r"(?:(kamim|simmim)_)?(vit|swin)_(tiny|small|base)__(\w+?)__(\d+)__(\d+)ep"
    method, model_type, model_size, data, image_size, epochs = re.fullmatch(name, file.stem).groups()
    data_args, model_args, training_args = parse_file(file)
    assert (model_args.model_type, model_args.model_size) == (model_type, model_size)
    assert (model_args.image_size, training_args.num_train_epochs) == (int(image_size), int(epochs))
    assert {"in1k": "imagenet-1k"}.get(data, data) == Path(data_args.dataset_name).name
    assert Path(training_args.output_dir).name == file.stem
    if file.parent.name == "pretrain":
        assert model_args.method == method
    else:
        assert (model_args.mode, method) == (file.parent.name, None)


@pytest.mark.parametrize("file", configs(*FOLDERS, "studies"))
def test_header_has_a_command_that_runs_this_file(file):
    header = header_of(file)
    path = file.relative_to(ROOT).as_posix()
    commands = [shlex.split(line) for line in header.splitlines() if "configs/" in line and line.startswith("   ")]
    commands = [command for command in commands if command[0] in ("accelerate", "kamim")]
    assert any(path in command for command in commands)
    for command in commands:
        start = command.index(path)
        name = command[start - 1].removeprefix("modeling_kamim.commands.")
        if file.parent.name == "studies":
            assert command[:2] == ["kamim", "study"]
            continue
        parse(COMMAND_ARGUMENTS[name], [str(file), *command[start + 1 :], "--use_cpu"])
        assert COMMAND_ARGUMENTS[name] == types_of(file)


PAPER_STUDIES = [parameter for parameter in configs("studies") if "paper_table" in parameter.id]


@pytest.mark.parametrize("file", [*configs("pretrain", "linear_probe", "finetune"), *PAPER_STUDIES])
def test_header_cites_the_paper(file):
    assert re.search(r"arXiv:2407\.13873,\s+Tables?\s+\d", header_of(file))


# The paper's recipe (section 4.1)


@pytest.mark.parametrize("file", configs("pretrain"))
def test_pretraining_recipe(file):
    data_args, kamim_args, training_args = parse_file(file)
    assert_recipe(training_args, PRETRAINING_RECIPE)
    assert values(kamim_args, OBJECTIVE) == OBJECTIVE
    assert kamim_args.keypoint_source == "online"
    assert training_args.bf16
    assert data_args.max_train_samples is None


@pytest.mark.parametrize("file", configs("linear_probe", "finetune"))
def test_classification_recipe(file):
    _, class_args, training_args = parse_file(file)
    assert_recipe(training_args, PROBING_RECIPE)
    depth = {"linear_probe": 8, "finetune": 12}[class_args.mode]
    assert class_args.layer == (depth if class_args.model_type == "vit" else None)
    assert class_args.augmentation == "paper"
    assert not class_args.layer_norm
    assert class_args.model_name_or_path is None
    assert class_args.label_column == {"cifar100": "fine_label", "cifar10": "label"}.get(file.stem.split("__")[1])


def test_script_defaults_carry_the_recipe():
    _, kamim_args, training_args = parse_arguments(PRETRAINING, [])
    assert_recipe(training_args, PRETRAINING_RECIPE)
    assert values(kamim_args, OBJECTIVE) == OBJECTIVE
    assert (kamim_args.model_type, kamim_args.model_size, kamim_args.method) == ("vit", "base", "kamim")
    _, class_args, training_args = parse_arguments(CLASSIFICATION, [])
    assert_recipe(training_args, PROBING_RECIPE)
    assert (class_args.augmentation, class_args.layer_norm) == ("paper", False)


def test_every_architecture_and_data_set_is_there():
    names = [f"{architecture}__in1k__192__100ep" for architecture in ARCHITECTURES]
    names += [f"vit_base__{data}__192__100ep" for data in OTHER_DATA]
    for folder, prefixes in {"pretrain": ("kamim_", "simmim_"), "linear_probe": ("",), "finetune": ("",)}.items():
        found = {file.stem for file in (ROOT / "configs" / folder).glob("*.yaml")}
        assert found == {prefix + name for prefix in prefixes for name in names}


@pytest.mark.parametrize("file", [file for file in configs("pretrain") if "/kamim" in file.id])
def test_simmim_is_kamim_without_weights(file):
    twin = file.with_name(file.name.replace("kamim", "simmim"))
    kamim, simmim = read_yaml(file), read_yaml(twin)
    assert list(kamim) == list(simmim)
    differing = {key: (kamim[key], simmim[key]) for key in kamim if kamim[key] != simmim[key]}
    assert differing == {
        "weighting": ("keypoint", "none"),
        "output_dir": (f"outputs/{file.stem}", f"outputs/{twin.stem}"),
    }


# YAML and the command line


@pytest.mark.parametrize("value", ["0.25", "1.0"])
def test_command_line_wins_over_yaml(tmp_path, value):
    """Also where its value is the dataclass's default, which a merge by "differs from the default" would lose."""
    file = tmp_path / "config.yaml"
    file.write_text("temperature: 0.5\nlearning_rate: 1.0e-3\n")
    _, kamim_args, training_args = parse_arguments(
        PRETRAINING, [str(file), "--temperature", value, "--learning_rate", "8e-4"]
    )
    assert kamim_args.temperature == float(value)
    assert training_args.learning_rate == 8e-4


@pytest.mark.parametrize(
    ("key", "nearest"),
    [("temprature", "temperature"), ("learning_rat", "learning_rate"), ("datasetname", "dataset_name")],
)
def test_unknown_key_suggests_the_nearest(tmp_path, key, nearest):
    file = tmp_path / "config.yaml"
    file.write_text(f"{key}: 1\n")
    with pytest.raises(InputError, match=f"unknown key '{key}' in .*config.yaml; did you mean '{nearest}'"):
        parse(PRETRAINING, [str(file)])
    with pytest.raises(InputError, match=f"unknown argument '--{key}'; did you mean '{nearest}'"):
        parse(PRETRAINING, [f"--{key}", "1"])


# Studies


def study_of(name):
    file = ROOT / "configs" / "studies" / f"{name}.yaml"
    return Study.read(name, read_yaml(file))


@pytest.fixture
def at_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_table1_has_every_model_with_both_methods(at_root):
    seen = set()
    for replicate in study_of("paper_table1").replicates():
        _, kamim_args, *_, training_args = parse_arguments(PRETRAINING, replicate.pretraining.words)
        seen.add((kamim_args.method, kamim_args.model_type, kamim_args.model_size))
        assert (kamim_args.image_size, training_args.num_train_epochs) == (192, 100)
        assert replicate.evaluations.keys() == {"linear_probe", "finetune"}
    assert len(seen) == 10


def test_table2_is_the_paper_s_grid(at_root):
    study = study_of("paper_table2")
    grid = []
    for replicate in study.replicates():
        _, kamim_args, *_ = parse_arguments(PRETRAINING, replicate.pretraining.words)
        assert kamim_args.keypoint_source == "online"
        if kamim_args.method == "kamim":
            grid.append((kamim_args.weight_patch_size, kamim_args.temperature))
    assert grid == [(w, t) for w in (8, 16, 32) for t in (0.1, 0.25, 0.5, 1.0)]
    assert len(study.pairs) == 12


def test_table5_probes_the_checkpoints_of_table1(at_root):
    replicates = study_of("paper_table5").replicates()
    assert all(replicate.pretraining is None for replicate in replicates)
    table1 = {str(replicate.pretraining.output_dir) for replicate in study_of("paper_table1").replicates()}
    for replicate in replicates:
        norms = {}
        for name, run in replicate.evaluations.items():
            _, class_args, training_args = parse_arguments(COMMAND_ARGUMENTS["evaluate"], run.words)
            assert class_args.model_name_or_path in table1 and training_args.global_batch_size == 2048
            norms[name] = class_args.pooled_norm
        assert norms == {"without": "none", "with": "layernorm"}
