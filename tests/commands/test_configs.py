import re
import shlex
import sys
from pathlib import Path

import pytest
import yaml

from modeling_kamim.api.groups import CLASSIFICATION_ARGUMENTS as CLASSIFICATION
from modeling_kamim.api.groups import COMMAND_ARGUMENTS
from modeling_kamim.api.groups import PRETRAINING_ARGUMENTS as PRETRAINING
from modeling_kamim.commands.parser import given_settings, parse, read_yaml
from modeling_kamim.commands.sweep import SweepArguments, command_lines, main
from modeling_kamim.errors import InputError

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


@pytest.mark.parametrize("file", configs(*FOLDERS, "sweeps"))
def test_header_has_a_command_that_runs_this_file(file):
    header = header_of(file)
    path = file.relative_to(ROOT).as_posix()
    commands = [shlex.split(line) for line in header.splitlines() if "configs/" in line and line.startswith("   ")]
    commands = [command for command in commands if command[0] in ("accelerate", "kamim")]
    assert any(path in command for command in commands)
    for command in commands:
        start = command.index(path)
        name = command[start - 1].removeprefix("modeling_kamim.commands.")
        if file.parent.name == "sweeps":
            assert command[:2] == ["kamim", "sweep"]
            continue
        parse(COMMAND_ARGUMENTS[name], [str(file), *command[start + 1 :], "--use_cpu"])
        assert COMMAND_ARGUMENTS[name] == types_of(file)


@pytest.mark.parametrize("file", configs("pretrain", "linear_probe", "finetune", "sweeps"))
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


# Sweeps


def expand(file, *argv):
    (sweep,) = parse((SweepArguments,), [str(file), *argv])
    return command_lines(sweep)


def write_sweep(folder, **changes):
    keys = {
        "command": "pretrain",
        "base": "configs/pretrain/kamim_vit_base__in1k__192__100ep.yaml",
        "sweep": {"temperature": [0.1, 1]},
        "output_dir": "outputs/sweep",
    }
    file = folder / "sweep.yaml"
    file.write_text(yaml.safe_dump({**keys, **changes}, sort_keys=False))
    return file


@pytest.fixture
def at_root(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize(
    ("name", "points", "steps"),
    [
        ("table2_weight_patch_size_temperature", 12, ["pretrain", "linear_probe", "finetune"]),
        ("table4_detectors", 3, ["pretrain", "linear_probe", "finetune"]),
        ("table5_layer_norm", 4, ["linear_probe"]),
    ],
)
def test_sweep_expands_to_commands_that_parse(name, points, steps, at_root):
    lines = expand(ROOT / "configs" / "sweeps" / f"{name}.yaml", "--launcher", "accelerate launch")
    assert len(lines) == len(set(lines)) == points
    output_dirs = set()
    for line in lines:
        commands = [shlex.split(command) for command in line.split(" && ")]
        assert [Path(command[4]).parent.name for command in commands] == steps
        checkpoint = None
        for accelerate, launch, flag, module, *argv in commands:
            assert (accelerate, launch, flag) == ("accelerate", "launch", "-m")
            name = module.removeprefix("modeling_kamim.commands.")
            _, model_args, training_args = parse_arguments(COMMAND_ARGUMENTS[name], argv)
            if name == "pretrain":
                checkpoint = training_args.output_dir
            elif checkpoint is not None:
                assert model_args.model_name_or_path == checkpoint
            output_dirs.add(training_args.output_dir)
    assert len(output_dirs) == points * len(steps)


def test_every_sweep_is_tested():
    assert len(configs("sweeps")) == 3


def test_table2_is_the_paper_s_grid(at_root):
    lines = expand(ROOT / "configs" / "sweeps" / "table2_weight_patch_size_temperature.yaml")
    grid = []
    for line in lines:
        _, name, *argv = shlex.split(line.split(" && ")[0])
        _, kamim_args, training_args = parse_arguments(COMMAND_ARGUMENTS[name], argv)
        grid.append((kamim_args.weight_patch_size, kamim_args.temperature))
        assert kamim_args.keypoint_source == "online"
        assert training_args.output_dir.startswith("outputs/table2/weight_patch_size-")
    assert grid == [(w, t) for w in (8, 16, 32) for t in (0.1, 0.25, 0.5, 1.0)]


def test_sweep_command_lines(tmp_path, at_root):
    base, probe = "configs/pretrain/kamim_vit_tiny__in1k__192__100ep.yaml", "configs/quickstart/linear_probe.yaml"
    file = write_sweep(tmp_path, base=base, then=[probe], output_dir="my outputs")
    point, results = "'my outputs/temperature-0.1'", "'my outputs/temperature-0.1/quickstart'"
    assert expand(file)[0] == (
        f"kamim pretrain {base} --temperature 0.1 --output_dir {point} && "
        f"kamim evaluate {probe} --model_name_or_path {point} --output_dir {results}"
    )


def test_sweep_passes_every_kind_of_value(tmp_path, at_root):
    sweep = {"keypoint_detector_args": ['{"threshold": 20}'], "lr_scheduler_kwargs": [{"min_lr": 1e-6}], "bf16": [True]}
    _, name, *argv = shlex.split(expand(write_sweep(tmp_path, sweep=sweep))[0])
    _, kamim_args, training_args = parse_arguments(COMMAND_ARGUMENTS[name], argv)
    assert kamim_args.detector().parameters == {"threshold": 20}
    assert (training_args.lr_scheduler_kwargs, training_args.bf16) == ({"min_lr": 1e-6}, True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"outputdir": "x"}, "unknown key 'outputdir' in .*; did you mean 'output_dir'"),
        ({"sweep": {"temperatur": [1]}}, "unknown argument '--temperatur'; did you mean 'temperature'"),
        ({"sweep": {"temperature": [0.1, -1]}}, "temperature is -1.0"),
        ({"sweep": {"keypoint_detector": ["fast", "fats"]}}, "invalid choice: 'fats'"),
        ({"sweep": {"temperature": 0.1}}, "give lines of 'argument: \\[value, value\\]'"),
        ({"sweep": "temperature"}, "give lines of"),
        ({"sweep": {}}, "give lines of"),
        ({"sweep": {"temperature": [1, 1]}}, "two runs of the sweep would write to outputs/sweep/temperature-1"),
        ({"command": "pretrian"}, "invalid choice: 'pretrian'"),
        ({"base": "configs/nowhere.yaml"}, "there is no config file"),
        (
            {
                "command": "evaluate",
                "base": "configs/quickstart/linear_probe.yaml",
                "then": ["configs/quickstart/linear_probe.yaml"],
            },
            "'then' is for the checkpoints of pretrain",
        ),
    ],
)
def test_sweep_refuses(tmp_path, at_root, changes, message):
    with pytest.raises(InputError, match=message):
        expand(write_sweep(tmp_path, **changes))


def test_sweep_needs_its_keys(tmp_path):
    file = tmp_path / "sweep.yaml"
    file.write_text("command: pretrain\n")
    with pytest.raises(InputError, match="required: --base, --sweep, --output_dir"):
        expand(file)


def test_sweep_leaves_the_machine_to_the_run(tmp_path, at_root):
    """Settings that need a GPU can be listed where there is none."""
    assert len(expand(write_sweep(tmp_path, sweep={"tf32": [True]}))) == 1


def test_sweep_prints_one_line_for_each_point(tmp_path, at_root, monkeypatch, capsys):
    file = write_sweep(tmp_path)
    monkeypatch.setattr(sys, "argv", ["sweep.py", str(file), "--output_dir", "elsewhere"])
    main()
    lines = capsys.readouterr().out.splitlines()
    assert [shlex.split(line)[-1] for line in lines] == ["elsewhere/temperature-0.1", "elsewhere/temperature-1"]


def test_the_settings_of_a_run_give_the_same_run_again(tmp_path, monkeypatch):
    file = tmp_path / "given.yaml"
    file.write_text("model_size: tiny\ntemperature: 0.5\nlr_scheduler_kwargs: {min_lr: 1.0e-6, warmup_lr_rate: 0.1}\n")
    monkeypatch.setattr(sys, "argv", ["/opt/run_mim.py"])
    argv = [str(file), "--temperature", "2", "--seed=7", "--output_dir", "/home/alice/runs", "--push_to_hub"]
    argv += ["--dataset_name", "/home/alice/pictures", "--hub_token", "hf_0123456789abcdef"]
    text = given_settings(PRETRAINING, argv)
    assert "alice" not in text and "hf_" not in text
    assert text.startswith("# python run_mim.py given.yaml --temperature 2.0 --seed 7 --dataset_name local:pictures\n")
    again = tmp_path / "settings.yaml"
    again.write_text(text)
    for first, second in zip(parse(PRETRAINING, argv), parse(PRETRAINING, [str(again)]), strict=True):
        differing = {key for key in vars(first) if getattr(first, key) != getattr(second, key)}
        assert differing <= {"dataset_name", "output_dir", "hub_token", "push_to_hub", "distributed_state", "_command"}
