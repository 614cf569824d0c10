"""Losses and gradients that are not finite: the weights never take them in, and the images are named."""

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import tiny_vit
from trainers import Samples, trainer
from transformers import TrainerCallback

from modeling_kamim import KamimForMaskedImageModeling
from modeling_kamim.analysis.encoders import load_encoder
from modeling_kamim.errors import InputError, StoppedError
from modeling_kamim.evaluation.classifiers import build_classifier
from modeling_kamim.evaluation.comparison import load_pretrained_model
from modeling_kamim.evaluation.features import check_finite_features
from modeling_kamim.evaluation.metrics import best_classes
from modeling_kamim.evaluation.settings import ClassificationArguments
from modeling_kamim.hub.cards import Run, pretraining_card
from modeling_kamim.hub.export import export_checkpoint
from modeling_kamim.hub.publishing import published_files
from modeling_kamim.models.backbone import load_backbone
from modeling_kamim.models.processor import image_processor
from modeling_kamim.training.figures import curves_figure
from modeling_kamim.training.nonfinite import NonfiniteGuard


class NamedSamples(Samples):
    """Samples with their numbers; those of `broken` have a density that makes the loss NaN."""

    def __init__(self, broken=()):
        super().__init__()
        self.densities[list(broken)] = math.nan

    def __getitem__(self, index):
        return {**super().__getitem__(index), "sample_index": index}


class Weights(TrainerCallback):
    """The weights after each step."""

    def __init__(self):
        self.of_step = []

    def on_step_end(self, args, state, control, model, **kwargs):
        self.of_step.append({name: parameter.detach().clone() for name, parameter in model.named_parameters()})


def broken_trainer(tmp_path, broken=(5,), **settings):
    trained = trainer(tmp_path, max_steps=4, **settings)
    trained.train_dataset = NamedSamples(broken)
    trained.add_callback(weights := Weights())
    return trained, weights.of_step


def equal(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("max_grad_norm", [1.0, 0.0])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_loss_that_is_not_finite_ends_the_run_before_the_weights_take_it_in(tmp_path, max_grad_norm, accumulation):
    settings = {"per_device_train_batch_size": 4 // accumulation, "gradient_accumulation_steps": accumulation}
    trained, weights = broken_trainer(tmp_path, max_grad_norm=max_grad_norm, **settings)
    with pytest.raises(StoppedError, match=r"the loss is .*nan.*names the images.*--nonfinite skip"):
        trained.train()
    (file,) = tmp_path.glob("nonfinite_step_*.json")
    report = json.loads(file.read_text())
    assert report["step"] == trained.state.global_step + 1 == len(weights) + 1
    named = [[sample["index"] for sample in batch] for batch in report["samples"]]
    assert len(named) == accumulation and [5 in batch for batch in named].count(True) == 1
    assert sum(map(len, named)) == 4
    assert all(torch.isfinite(parameter).all() for parameter in trained.model.parameters())


def test_the_step_is_left_out_where_that_is_asked_for(tmp_path, caplog):
    trained, weights = broken_trainer(tmp_path)
    trained.args.nonfinite = "skip"
    trained.train()
    assert trained.state.global_step == 4
    (file,) = tmp_path.glob("nonfinite_step_*.json")
    step = json.loads(file.read_text())["step"]
    same = [equal(before, after) for before, after in zip(weights, weights[1:], strict=False)]
    assert same == [number == step for number in range(2, 5)] or step == 1
    assert all(torch.isfinite(parameter).all() for parameter in trained.model.parameters())
    assert "The step is left out" in caplog.text


def test_a_gradient_that_is_not_finite_ends_the_run_too(tmp_path):
    trained, _ = broken_trainer(tmp_path, broken=())
    next(trained.model.parameters()).register_hook(lambda gradient: gradient * math.inf)
    before = [parameter.detach().clone() for parameter in trained.model.parameters()]
    with pytest.raises(StoppedError, match="gradient's norm"):
        trained.train()
    assert all(map(torch.equal, before, trained.model.parameters()))


def test_finite_numbers_end_nothing(tmp_path):
    trained, _ = broken_trainer(tmp_path, broken=())
    trained.train()
    assert not list(tmp_path.glob("nonfinite*"))


class Overflow(TrainerCallback):
    """Makes a weight infinite behind the gradient's check, as an optimizer's step can that overflows."""

    def __init__(self, step):
        self.step = step

    def on_optimizer_step(self, args, state, control, model, **kwargs):
        if state.global_step + 1 == self.step:
            next(model.parameters()).data.fill_(math.inf)


@pytest.mark.parametrize("step", [2, 4])
def test_weights_that_are_not_finite_are_never_saved(tmp_path, step):
    trained, _ = broken_trainer(tmp_path, broken=(), save_steps=2, max_grad_norm=0.0)
    trained.add_callback(Overflow(step))
    with pytest.raises(StoppedError, match=f"step {step}: the weights are NaN or infinite"):
        trained.train()
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"] * (step == 4)
    assert not (tmp_path / "model.safetensors").exists()


def test_weights_of_the_last_step_are_looked_at_without_a_checkpoint_too(tmp_path):
    trained, _ = broken_trainer(tmp_path, broken=(), save_strategy="no")
    trained.add_callback(Overflow(4))
    with pytest.raises(StoppedError, match="step 4: the weights"):
        trained.train()


def test_a_training_without_a_step_is_an_error(tmp_path):
    trained, _ = broken_trainer(tmp_path, broken=(), dataloader_drop_last=True, per_device_train_batch_size=17)
    with pytest.raises(InputError, match="16 training images, fewer than the 17"):
        trained.train()
    trained, _ = broken_trainer(tmp_path, broken=())
    trained.get_train_dataloader = lambda: torch.utils.data.DataLoader([])
    with pytest.raises(StoppedError, match="no step"):
        trained.train()
    assert not list(tmp_path.glob("**/*.safetensors"))


def test_evaluations_drop_no_image(tmp_path):
    trained, _ = broken_trainer(tmp_path, broken=(), dataloader_drop_last=True, per_device_eval_batch_size=5)
    assert len(trained.eval_dataset) % 5
    trained.evaluate()
    assert sum(len(batch["pixel_values"]) for batch in trained.get_eval_dataloader()) == len(trained.eval_dataset)


def strict(file):
    """JSON without NaN and infinity."""

    def refuse(name):
        raise AssertionError(f"{name} in {file}")

    return json.loads(file.read_text(), parse_constant=refuse)


def test_no_json_of_a_run_holds_nan(tmp_path):
    trained, _ = broken_trainer(tmp_path, eval_strategy="steps", eval_steps=1, save_steps=1)
    trained.args.nonfinite, trained.args.metric_for_best_model, trained.args.greater_is_better = "skip", "loss", False
    trained.eval_dataset = NamedSamples(range(16))
    result = trained.train()
    trained.save_metrics("train", {**result.metrics, "odd": math.inf})
    trained.save_metrics("eval", trained.evaluate())
    trained.save_state()
    files = list(tmp_path.rglob("*.json"))
    assert len(files) > 6
    texts = {file.name: strict(file) for file in files}
    assert texts["eval_results.json"]["eval_loss"] is None and texts["train_results.json"]["odd"] is None
    log = texts["trainer_state.json"]["log_history"]
    assert any("eval_loss" in entry and entry["eval_loss"] is None for entry in log)
    curves_figure(log)
    config = tiny_vit(kamim={"weighting": "none"} | dict.fromkeys(("mask_ratio", "mask_patch_size"), 1))
    assert "nan" not in str(pretraining_card(Run("a", "b", ""), config, log, 4)).lower()


# Checkpoints with NaN in them


@pytest.fixture(scope="module")
def spoilt_checkpoint(tmp_path_factory):
    directory = tmp_path_factory.mktemp("spoilt")
    model = KamimForMaskedImageModeling.from_config(tiny_vit(kamim={"mask_patch_size": 16}))
    model.base_model.layers[1].mlp.fc1.weight.data[0, 0] = math.nan
    model.save_pretrained(directory)
    image_processor(32).save_pretrained(directory)
    (directory / "README.md").write_text("---\nlibrary_name: transformers\n---\n")
    return str(directory)


USES = {
    "linear probe": lambda name: build_classifier(ClassificationArguments(model_name_or_path=name)),
    "fine-tuning": lambda name: build_classifier(ClassificationArguments(model_name_or_path=name, mode="finetune")),
    "cached probe and nearest neighbors": lambda name: load_backbone(name, "vit", "tiny", None, "mean"),
    "analysis": lambda name: load_encoder("a", name, torch.device("cpu")),
    "reconstruction": load_pretrained_model,
    "export": lambda name: export_checkpoint(name, Path(name) / "export", "timm"),
    "push": lambda name: published_files(Path(name)),
}


@pytest.mark.parametrize("use", USES)
def test_a_checkpoint_with_nan_is_refused(spoilt_checkpoint, use):
    with pytest.raises(InputError, match="weights that are NaN or infinite, in 1 tensor.*fc1|intermediate"):
        USES[use](spoilt_checkpoint)
    assert not (Path(spoilt_checkpoint) / "export").exists()


def test_features_and_scores_that_are_not_finite_are_refused():
    features = torch.ones(4, 2, 3)
    assert check_finite_features(features) is features
    features[2, 1, 0] = math.nan
    with pytest.raises(InputError, match="features of 1 of 4 images.*image 2"):
        check_finite_features(features)
    with pytest.raises(StoppedError, match="scores of the classes"):
        best_classes(torch.tensor([[1.0, math.nan]]))


def test_published_json_holds_no_nan(tmp_path):
    KamimForMaskedImageModeling.from_config(tiny_vit()).save_pretrained(tmp_path)
    (tmp_path / "trainer_state.json").write_text('{"log_history": [{"loss": NaN, "grad_norm": Infinity}]}')
    text = published_files(tmp_path)["trainer_state.json"].decode()
    assert json.loads(text) == {"log_history": [{"loss": None, "grad_norm": None}]}


@given(st.lists(st.floats(width=32), min_size=1, max_size=4), st.floats(), st.booleans())
def test_a_step_is_finite_where_all_of_its_numbers_are(losses, norm, is_scaled):
    guard = NonfiniteGuard()
    for loss in losses:
        guard.remember(None, torch.tensor(loss))
    expected = all(map(math.isfinite, losses)) and (is_scaled or math.isfinite(norm))
    assert guard.is_finite(norm, is_scaled) == expected
    guard.forget()
    assert guard.losses == []


def test_the_report_names_the_images_of_every_batch(tmp_path):
    guard = NonfiniteGuard()
    guard.remember(torch.tensor([3, 1]), torch.tensor(float("nan")))
    guard.remember(None, torch.tensor(1.0))
    file = tmp_path / "made" / "report.json"
    said = guard.report(file, 7, 0.5, math.inf, lambda index: {"index": index})
    assert "step 7" in said and str(file) in said
    expected = {"step": 7, "epoch": 0.5, "losses": ["nan", "1"], "gradient_norm": "inf"}
    assert json.loads(file.read_text()) == {**expected, "samples": [[{"index": 3}, {"index": 1}], []]}
