"""Settings that make no sense are refused in one line before any work; those that are published can be run again."""

import dataclasses
import json
import math
import sys
import time
from random import Random

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny_models import tiny_vit

from modeling_kamim.analysis.options import AnalysisArguments
from modeling_kamim.api.groups import CLASSIFICATION_ARGUMENTS, PREPARATION_ARGUMENTS, PRETRAINING_ARGUMENTS
from modeling_kamim.commands import pretrain as run_mim
from modeling_kamim.commands.parser import given_settings, parse, read_yaml
from modeling_kamim.errors import InputError
from modeling_kamim.limits import RANGES
from modeling_kamim.models.processor import image_processor
from modeling_kamim.models.sizes import build_config, check_image_size, least_memory
from modeling_kamim.objective.masking import block_mask
from modeling_kamim.objective.weighting import CellWeighting

SCRIPTS = {"pretraining": PRETRAINING_ARGUMENTS, "classification": CLASSIFICATION_ARGUMENTS}
TRAINING = (
    "--per_device_train_batch_size 0",
    "--per_device_train_batch_size -2",
    "--per_device_eval_batch_size 0",
    "--gradient_accumulation_steps 0",
    "--gradient_accumulation_steps -2",
    "--global_batch_size 0",
    "--num_train_epochs 0",
    "--num_train_epochs nan",
    "--max_steps -2",
    "--learning_rate nan",
    "--learning_rate inf",
    "--learning_rate -1",
    "--learning_rate 1e30",
    "--weight_decay nan",
    "--weight_decay -0.1",
    "--adam_beta1 1",
    "--adam_beta2 -0.1",
    "--adam_epsilon 0",
    "--max_grad_norm -1",
    "--max_grad_norm nan",
    "--label_smoothing_factor 1",
    "--label_smoothing_factor -0.1",
    "--dataloader_num_workers -1",
    "--dataloader_prefetch_factor 0",
    "--seed -1",
    "--seed 4294967296",
    "--data_seed -1",
    "--logging_steps 0",
    "--logging_steps nan",
    "--save_steps 0",
    "--save_steps -1",
    "--eval_steps -1",
    "--warmup_steps -1",
    "--warmup_steps nan",
    "--max_train_samples 0",
    "--num_proc 0",
)
OBJECTIVE = (
    "--temperature 0",
    "--temperature -1",
    "--temperature inf",
    "--temperature nan",
    "--mask_ratio 0",
    "--mask_ratio nan",
    "--image_size 0",
    "--horizontal_flip nan",
    "--crop_min_scale nan",
)
EVALUATION = (
    "--seeds 1 -1",
    "--layer 0",
    "--low_shot nan",
    "--validation_fraction 1",
    "--layer_decay nan",
    "--drop_path 1",
    "--ema_decay nan",
)


def refusal(kinds, *argv):
    with pytest.raises(InputError) as error:
        parse(kinds, ["--use_cpu", "--output_dir", "/nowhere", *argv])
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("kinds", "setting"),
    [
        *((kinds, setting) for kinds in SCRIPTS for setting in TRAINING),
        *(("pretraining", setting) for setting in OBJECTIVE),
        *(("classification", setting) for setting in EVALUATION),
    ],
)
def test_a_number_out_of_range_is_refused_with_its_range(kinds, setting):
    name, *values = setting.split()
    message = refusal(SCRIPTS[kinds], f"{name}={values[0]}" if len(values) == 1 else name, *values[1:] and values)
    name = name.removeprefix("--")
    assert message.startswith(f"{name} is ") and RANGES[name].words in message


@pytest.mark.parametrize("name", ["num_images", "batch_size", "dpi", "seed"])
def test_the_analyses_share_the_table(name):
    with pytest.raises(InputError, match=f"{name} is -1; it must be"):
        parse((AnalysisArguments,), ["--models", "a=b", f"--{name}=-1"])


def test_the_preparation_shares_the_table():
    for setting in ("--quality=0", "--crop_min_scale=nan", "--rows_per_shard=0", "--num_proc=-1"):
        with pytest.raises(InputError, match="it must be"):
            parse(PREPARATION_ARGUMENTS, ["--dataset_name", "a", "--output_dir", "b", setting])


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--optim", "adamw_bnb_8bit"], ["adamw_bnb_8bit", "not installed", "pip install"]),
        (["--optim_args", "a"], ["optim_args 'a'"]),
        (["--report_to", "clearml"], ["'clearml'", "pip install clearml"]),
        (["--report_to", "paper"], ["'paper'", "allowed: none, all"]),
        (["--metric_for_best_model", "beauty"], ["'beauty'", "allowed: loss, masked_l1"]),
        (["--dataloader_prefetch_factor", "2"], ["--dataloader_num_workers"]),
        (["--dataloader_persistent_workers", "true"], ["--dataloader_num_workers 1 or more"]),
        (["--max_steps", "5", "--warmup_steps", "6"], ["warmup_steps is 6.0", "5 step(s)"]),
        (["--mask_ratio", "0.99", "--image_size", "64"], ["mask_ratio is 0.99", "all of the 4 block(s)"]),
        (["--image_size", "32", "--mask_patch_size", "32"], ["all of the 1 block(s)"]),
        (["--image_size", "100000"], ["image_size is 100000", "GB"]),
        (["--model_type", "swin", "--model_size", "tiny", "--image_size", "100000"], ["image_size is 100000", "GB"]),
        (["--keypoint_detector_args", '{"threshold": NaN}'], ["NaN"]),
        (["--lr_scheduler_type", "warmup_stable_decay"], ["num_decay_steps"]),
        (["--lr_scheduler_type", "constant", "--lr_scheduler_kwargs", '{"a": 1}'], ["takes none"]),
        (["--lr_scheduler_type", "linear", "--lr_scheduler_kwargs", '{"a": 1}'], ["'a'"]),
        *(
            (["--lr_scheduler_kwargs", given], ["lr_scheduler_kwargs", "cosine_warmup_with_min_lr"])
            for given in (
                "{}",
                '{"foo": 1}',
                '{"min_lr": "x"}',
                '{"min_lr": NaN}',
                '{"min_lr": -1}',
                '{"min_lr": 1e9}',
                "x",
                "[1]",
                "3",
            )
        ),
    ],
)
def test_what_cannot_be_made_is_refused(argv, words):
    message = refusal(PRETRAINING_ARGUMENTS, *argv)
    assert all(word in message for word in words), message


def test_memory_refuses_no_size_that_is_trained():
    for config in (
        build_config("vit", "base", 192),
        build_config("swin", "base", 384),
        build_config("vit", "base", 1024),
    ):
        assert least_memory(config) < 4e9
        check_image_size(config)


@given(st.integers(1, 12), st.floats(0, 1, exclude_min=True, exclude_max=True))
def test_an_accepted_mask_ratio_leaves_a_visible_token(side, ratio):
    argv = ["--use_cpu", "--image_size", str(16 * side), "--mask_patch_size", "16", f"--mask_ratio={ratio!r}"]
    try:
        parse(PRETRAINING_ARGUMENTS, argv)
    except InputError:
        assert math.ceil(ratio * side**2) >= side**2
    else:
        mask = block_mask(16 * side, 16, 16, ratio, Random(0))
        assert mask.any() and not mask.all()


@pytest.mark.parametrize("temperature", [math.inf, math.nan, -1.0, 0.0])
def test_a_weighting_refuses_it_too(temperature):
    with pytest.raises(InputError, match="temperature is"):
        CellWeighting(temperature=temperature)


@pytest.mark.parametrize(
    "wrong",
    [
        {"image_std": [0.2, 0.0, 0.2]},
        {"image_std": [math.nan] * 3},
        {"image_mean": [math.inf] * 3},
        {"image_std": [0.5, 0.5]},
    ],
)
def test_a_processor_that_cannot_normalize_is_refused(tmp_path, wrong):
    image_processor(32).save_pretrained(tmp_path)
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | wrong))
    tiny_vit().save_pretrained(tmp_path)
    with pytest.raises(InputError, match=next(iter(wrong))):
        image_processor(32, str(tmp_path))


# Published settings

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(lambda text: "\0" not in text)
VALUES = {
    "pretraining": {
        "learning_rate": st.floats(1e-6, 1),
        "temperature": st.floats(1e-3, 10),
        "seed": st.integers(0, 2**32 - 1),
        "image_column": TEXT,
        "train_split": TEXT,
        "streaming": st.booleans(),
        "max_steps": st.integers(1, 1000),
        "keypoint_detector_args": st.builds(
            lambda threshold, indent: json.dumps({"threshold": threshold}, indent=indent),
            st.integers(1, 90),
            st.sampled_from([None, 2]),
        ),
        "lr_scheduler_kwargs": st.builds(
            lambda low, indent: json.dumps({"min_lr": low}, indent=indent),
            st.floats(0, 1e-5),
            st.sampled_from([None, 1]),
        ),
        "eval_strategy": st.sampled_from(["no", "steps", "epoch"]),
        "dataset_name": st.sampled_from(["user/name", "/home/alice/caltech", "./caltech", "~/caltech"]),
    },
    "classification": {
        "mode": st.sampled_from(["linear_probe", "finetune"]),
        "seeds": st.lists(st.integers(0, 9), min_size=1, max_size=3),
        "weight_decay": st.floats(0, 1),
        "label_column": TEXT,
        "layer_norm": st.booleans(),
        "low_shot": st.floats(0.01, 1),
        "model_name_or_path": st.sampled_from(["user/name", "/home/alice/mim", "outputs/mim/"]),
        "compare_with": st.lists(
            st.sampled_from(["user/name", "/home/alice/mim", "user/other"]), min_size=1, max_size=2
        ),
    },
}


def words(settings):
    for name, value in settings.items():
        yield from [f"--{name}={value}"] if not isinstance(value, list) else [f"--{name}", *map(str, value)]


@pytest.mark.parametrize("kinds", SCRIPTS)
def test_published_settings_can_be_run_again(tmp_path, monkeypatch, kinds):
    monkeypatch.setattr(sys, "argv", ["script.py"])
    file = tmp_path / "settings.yaml"

    @given(st.fixed_dictionaries({}, optional=VALUES[kinds]))
    def check(settings):
        argv = ["--use_cpu", *words(settings)]
        text = given_settings(SCRIPTS[kinds], argv)
        assert "alice" not in text and text.splitlines()[0].startswith("# python script.py")
        file.write_text(text, encoding="utf-8")
        local = {name for name, value in settings.items() if "/home/alice" in str(value) or str(value)[:1] in "./~"}
        local |= {name for name in ("model_name_or_path",) if settings.get(name) == "outputs/mim/"}
        local &= {"dataset_name", "model_name_or_path", "compare_with"}
        assert not local & set(yaml.safe_load(text)) and all(f"\n# {name}: " in text for name in local)
        again, first = (
            {field.name: getattr(group, field.name) for group in groups for field in dataclasses.fields(group)}
            for groups in (parse(SCRIPTS[kinds], [str(file)]), parse(SCRIPTS[kinds], argv))
        )
        assert {k: v for k, v in again.items() if k not in local} == {k: v for k, v in first.items() if k not in local}

    check()


def laughs(depth):
    text = "&l0 [x, x]"
    for number in range(1, depth):
        text = f"&l{number} [{text}, *l{number - 1}]"
    return text


BOMBS = {
    "nested merges": "a0: &a0 {k: 1}\n"
    + "".join(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}\n" for n in range(1, 60)),
    "one wide merge": f"a: &a {{{', '.join(f'k{n}: 1' for n in range(2000))}}}\nb: {{<<: [{'*a, ' * 4000}]}}\n",
    "many merges": f"a: &a {{{', '.join(f'k{n}: 1' for n in range(900))}}}\n" + "b: {<<: *a}\n" * 2000,
    "pairs of aliases": f"image_column: !!pairs [a: {laughs(40)}]\n",
    "a huge file": "temperature: 1\n" * 100_000,
    "digits": f"image_size: {'9' * 45_000}\n",
    "hexadecimal digits": f"image_size: 0x{'f' * 45_000}\n",
    "sixtieths": f"image_size: 1{':1' * 22_000}\n",
    "brackets": f"image_size: {'[' * 45_000}\n",
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_yaml_bombs_end_within_a_second(tmp_path, bomb):
    file = tmp_path / "bomb.yaml"
    file.write_text(BOMBS[bomb])
    start = time.process_time()
    with pytest.raises(InputError, match=r"bomb\.yaml") as error:
        parse(PRETRAINING_ARGUMENTS, [str(file)])
    assert time.process_time() - start < 3  # one second on an idle machine
    assert "\n" not in str(error.value)


def test_ordinary_merges_are_read(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(
        "sweep: &s {min_lr: 1.0e-6}\nlr_scheduler_kwargs: {<<: *s}\n".replace("sweep: &s", "adam_beta1: 0.9 #")
    )
    with pytest.raises(InputError, match="not valid YAML"):
        parse(PRETRAINING_ARGUMENTS, [str(file)])
    file.write_text("lr_scheduler_kwargs: {<<: {min_lr: 1.0e-6}}\n")
    *_, args = parse(PRETRAINING_ARGUMENTS, [str(file), "--use_cpu"])
    assert args.lr_scheduler_kwargs == {"min_lr": 1e-6}


def test_a_file_of_many_arms_is_read(tmp_path):
    keys = ", ".join(f"k{n}: {n}" for n in range(20))
    file = tmp_path / "study.yaml"
    file.write_text(f"a0: &a {{{keys}}}\n" + "".join(f"a{n}: {{<<: *a, seed: {n}}}\n" for n in range(1, 150)))
    assert read_yaml(file)["a149"] == {**{f"k{n}": n for n in range(20)}, "seed": 149}


# Before any work

SMALL = ["--model_type", "vit", "--model_size", "tiny", "--image_size", "32", "--mask_patch_size", "16", "--use_cpu"]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (
            ["--max_train_samples", "5", "--per_device_train_batch_size", "8", "--dataloader_drop_last", "true"],
            "5 training",
        ),
        (["--max_train_samples", "16", "--num_train_epochs", "1", "--warmup_steps", "9"], "more than the 1 step"),
        (["--eval_strategy", "steps"], "no validation split"),
        (["--eval_on_start", "true"], "no validation split"),
    ],
)
def test_what_the_data_do_not_allow_is_refused_before_anything_is_written(
    tmp_path, monkeypatch, photographs, argv, words
):
    (tmp_path / "flat").mkdir()
    for number in range(20):
        Image.fromarray(photographs[number % 6]).save(tmp_path / "flat" / f"{number}.jpg")
    output_dir = tmp_path / "run"
    script = ["run_mim.py", *SMALL, "--dataset_name", str(tmp_path / "flat"), *argv, "--output_dir", str(output_dir)]
    monkeypatch.setattr(sys, "argv", script)
    with pytest.raises(InputError, match=words):
        run_mim.main()
    assert not output_dir.exists()
