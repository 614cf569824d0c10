"""The probe beside pretraining: what it logs, that it sees the features, and that training does not notice it."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_models import tiny_swin, tiny_vit
from torch.utils.data import default_collate
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments, set_seed

import modeling_kamim.training.throughput
import modeling_kamim.training.trainer
from modeling_kamim import KamimForMaskedImageModeling
from modeling_kamim.errors import InputError
from modeling_kamim.evaluation.neighbors import nearest_neighbors
from modeling_kamim.evaluation.online_probe import OnlineProbe, layer_index
from modeling_kamim.evaluation.probing import LinearProbe
from modeling_kamim.evaluation.probing import probe as fit_probes
from modeling_kamim.models.backbone import Backbone
from modeling_kamim.models.families import num_prefix_tokens
from modeling_kamim.models.processor import image_processor
from modeling_kamim.objective.weighting import CellWeighting
from modeling_kamim.training.trainer import MaskedImageTrainer, PixelTrainer

VIT = tiny_vit(patch_size=16, encoder_stride=16, hidden_dropout_prob=0.1)
SWIN = tiny_swin(patch_size=8, encoder_stride=16, window_size=2, drop_path_rate=0.3)
MODELS = pytest.mark.parametrize("config", [VIT, SWIN], ids=["vit", "swin"])
RECIPE = LinearProbe(learning_rates=(1e-2,), num_epochs=5)


class Samples(torch.utils.data.Dataset):
    """Random images, masks and densities; the masks come from torch's global generator."""

    def __init__(self, num_patches, count=12):
        self.num_patches = num_patches
        self.pixels = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8)

    def __len__(self):
        return len(self.pixels)

    def __getitem__(self, index):
        mask = torch.randperm(self.num_patches) < self.num_patches // 2
        return {"pixel_values": self.pixels[index], "bool_masked_pos": mask, "keypoint_density": torch.rand(4, 4)}


class Labelled(torch.utils.data.Dataset):
    """Images of 3 classes, each of its own color; reading one draws from every global generator."""

    def __init__(self, count, noise=20):
        generator = torch.Generator().manual_seed(count)
        self.labels = torch.arange(count) % 3
        colors = torch.tensor([[200, 60, 60], [60, 200, 60], [60, 60, 200]])[self.labels][:, :, None, None]
        pixels = colors + torch.randint(-noise, noise + 1, (count, 3, 32, 32), generator=generator)
        self.pixels = pixels.clamp(0, 255).to(torch.uint8)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        random.random(), np.random.rand(), torch.rand(1)
        return {"pixel_values": self.pixels[index], "labels": int(self.labels[index])}


def build_trainer(config, output_dir, **kwargs):
    torch.manual_seed(0)
    model = KamimForMaskedImageModeling.from_config(config)
    arguments = {"max_steps": 3, "logging_steps": 1, "save_strategy": "no", **kwargs}
    args = TrainingArguments(
        str(output_dir),
        use_cpu=True,
        remove_unused_columns=False,
        disable_tqdm=True,
        report_to=[],
        per_device_train_batch_size=4,
        per_device_eval_batch_size=8,
        **arguments,
    )
    return MaskedImageTrainer(
        model=model,
        args=args,
        train_dataset=Samples((32 // config.patch_size) ** 2),
        data_collator=default_collate,
        processing_class=image_processor(32),
        weighting=CellWeighting(),
        num_cells=4,
    )


def build_probe(trainer, probe_steps=2, **kwargs):
    return OnlineProbe(trainer, Labelled(30), Labelled(11), 3, probe_steps, recipe=RECIPE, **kwargs)


def history(trainer, key):
    return [(entry["step"], entry[key]) for entry in trainer.state.log_history if key in entry]


def steps(trainer, key):
    return [step for step, _ in history(trainer, key)]


def trained(trainer):
    """What a run leaves behind: weights, and the next numbers of the generators."""
    set_seed(1)
    trainer.train()
    return trainer.model.state_dict(), (random.random(), np.random.rand(), torch.rand(1).item())


class Draw(TrainerCallback):
    """What the probe must not do."""

    def on_step_end(self, args, state, control, **kwargs):
        torch.rand(1)


@MODELS
def test_training_ends_in_the_same_bits_with_and_without_the_probe(tmp_path, config):
    plain, probed, disturbed = (build_trainer(config, tmp_path) for _ in range(3))
    probed.add_callback(build_probe(probed, probe_steps=1))
    disturbed.add_callback(Draw())
    (expected, expected_draws), (found, draws), (other, _) = trained(plain), trained(probed), trained(disturbed)
    assert steps(probed, "probe_top1") == [0, 1, 2, 3]
    assert [key for key in expected if not torch.equal(expected[key], found[key])] == []
    assert draws == expected_draws
    for key in ("loss", "grad_norm", "masked_l1", "learning_rate", "clipped_steps"):
        assert history(probed, key) == history(plain, key)
    assert not torch.equal(expected["decoder.0.weight"], other["decoder.0.weight"])  # a single draw would have shown


@pytest.mark.parametrize(
    ("settings", "expected"),
    [({}, [0, 2, 3]), ({"max_steps": 4, "logging_strategy": "epoch"}, [0, 2, 4])],
    ids=["last step apart", "last step due"],
)
def test_scores_are_logged_every_few_steps_and_at_the_end(tmp_path, settings, expected):
    trainer = build_trainer(VIT, tmp_path, **settings)
    trainer.add_callback(build_probe(trainer))
    trainer.train()
    assert steps(trainer, "probe_top1") == steps(trainer, "knn_top1") == expected
    assert steps(trainer, "loss") == ([3, 4] if settings else [1, 2, 3])  # an epoch has 3 steps
    assert all(0 <= value <= 1 for key in ("probe_top1", "knn_top1") for _, value in history(trainer, key))


def test_a_run_that_another_callback_stops_is_scored_once_at_its_end(tmp_path):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 2

    trainer = build_trainer(VIT, tmp_path, max_steps=20)
    trainer.add_callback(build_probe(trainer, probe_steps=5))
    trainer.add_callback(Stop())
    trainer.train()
    assert steps(trainer, "probe_top1") == [0, 2]
    trainer.train()
    assert steps(trainer, "probe_top1") == [0, 2]  # of the second run, which begins a new log


def test_steps_are_those_of_the_optimizer(tmp_path):
    trainer = build_trainer(VIT, tmp_path, gradient_accumulation_steps=3)
    trainer.add_callback(build_probe(trainer))
    trainer.train()
    assert steps(trainer, "probe_top1") == [0, 2, 3]


def test_scores_are_in_the_state_of_the_checkpoint_of_their_step(tmp_path):
    trainer = build_trainer(VIT, tmp_path, max_steps=2, save_strategy="steps", save_steps=2)
    trainer.add_callback(build_probe(trainer))
    trainer.train()
    state = (tmp_path / "checkpoint-2" / "trainer_state.json").read_text()
    assert '"probe_top1"' in state and '"knn_top1"' in state


def test_other_callbacks_get_the_scores(tmp_path):
    seen = []

    class Tracker(TrainerCallback):
        def on_log(self, args, state, control, logs, **kwargs):
            seen.append(set(logs))

    trainer = build_trainer(VIT, tmp_path, max_steps=2)
    trainer.add_callback(Tracker())
    trainer.add_callback(build_probe(trainer))
    trainer.train()
    assert {"probe_top1", "knn_top1", "epoch"} in seen


@MODELS
def test_separable_classes_are_told_apart_at_once(tmp_path, config):
    trainer = build_trainer(config, tmp_path, max_steps=2)
    trainer.add_callback(build_probe(trainer))
    trainer.train()
    assert history(trainer, "probe_top1") == [(0, 1.0), (2, 1.0)]
    assert history(trainer, "knn_top1") == [(0, 1.0), (2, 1.0)]


def test_unlearnable_labels_are_not_told_apart(tmp_path):
    trainer = build_trainer(VIT, tmp_path)
    validation = Labelled(300)
    validation.labels = validation.labels[torch.randperm(300)]
    scores = OnlineProbe(trainer, Labelled(60), validation, 3, 1, recipe=RECIPE).score()
    assert scores == {"probe_top1": pytest.approx(1 / 3, abs=0.1), "knn_top1": pytest.approx(1 / 3, abs=0.1)}


@MODELS
def test_the_scores_are_those_of_the_current_weights_in_evaluation_mode(tmp_path, config):
    """By hand, with images that are hard enough for a score between chance and 1."""
    trainer = build_trainer(config, tmp_path)
    train, validation = Labelled(60, noise=400), Labelled(200, noise=400)
    probe = OnlineProbe(trainer, train, validation, 3, 1, recipe=RECIPE)
    before = probe.score()
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    trainer.model.train()
    after = probe.score()
    assert before != after

    trainer.model.eval()
    features = []
    for dataset in (train, validation):
        pixels = PixelTrainer._prepare_inputs(trainer, {"pixel_values": dataset.pixels})["pixel_values"]
        with torch.no_grad():
            tokens = trainer.model.base_model(pixels).last_hidden_state
        features.append(tokens[:, num_prefix_tokens(trainer.model.config) :].mean(dim=1))
    votes = nearest_neighbors(features[0], train.labels, features[1], 3, 20, 0.07)
    logits = fit_probes(RECIPE, features[0][:, None], train.labels, features[1][:, None], 3).logits[0]
    for name, scores in (("knn_top1", votes), ("probe_top1", logits)):
        expected = (scores.argmax(dim=1) == validation.labels).float().mean().item()
        assert 0.4 < expected < 0.95
        assert after[name] == pytest.approx(expected, abs=0.011)  # batches of another size: other round-off


def interrupt(probe):
    probe.on_train_begin(probe.trainer.args, TrainerState(), TrainerControl())


@MODELS
def test_modes_generators_and_gradients_are_left_as_they_were(tmp_path, config):
    trainer = build_trainer(config, tmp_path)
    trainer.model.train()
    frozen = trainer.model.base_model.embeddings
    frozen.eval()
    modes = {name: module.training for name, module in trainer.model.named_modules()}
    weights = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    probe = build_probe(trainer)

    random.seed(3), np.random.seed(3), torch.manual_seed(3)
    expected = random.random(), np.random.rand(), torch.rand(1).item()
    random.seed(3), np.random.seed(3), torch.manual_seed(3)
    interrupt(probe)
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == expected
    assert {name: module.training for name, module in trainer.model.named_modules()} == modes
    assert any(modes.values()) and not all(modes.values())
    assert all(torch.equal(tensor, weights[name]) for name, tensor in trainer.model.state_dict().items())
    assert all(parameter.grad is None for parameter in trainer.model.parameters())


def test_modes_and_generators_are_put_back_after_an_error(tmp_path, monkeypatch):
    trainer = build_trainer(VIT, tmp_path)
    trainer.model.train()
    probe = build_probe(trainer)
    monkeypatch.setattr(trainer.accelerator, "autocast", lambda: 1 / 0)
    state = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError):
        interrupt(probe)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in trainer.model.modules())


def test_the_time_of_the_probe_is_left_out_of_the_speed(tmp_path, monkeypatch):
    clock = SimpleNamespace(now=0.0)
    for module in (modeling_kamim.training.trainer, modeling_kamim.training.throughput):
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: clock.now))

    class Step(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            clock.now += 1

    def score(probe):
        clock.now += 100
        return {"probe_top1": 0.0}

    monkeypatch.setattr(OnlineProbe, "score", score)
    trainer = build_trainer(VIT, tmp_path, max_steps=2, logging_steps=2)
    trainer.add_callback(build_probe(trainer))
    trainer.add_callback(Step())
    trainer.train()
    assert steps(trainer, "probe_top1") == [0, 2]
    assert history(trainer, "images_per_second") == [(2, 8 / 2)]


@pytest.mark.parametrize(
    ("depth", "layer", "index"), [(2, None, -1), (12, None, 7), (8, None, -1), (12, 3, 2), (12, 12, -1), (2, 1, 0)]
)
def test_layers_of_a_vit(depth, layer, index):
    model = KamimForMaskedImageModeling.from_config(
        tiny_vit(patch_size=16, encoder_stride=16, num_hidden_layers=depth)
    ).eval()
    assert layer_index(model, layer) == index
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        found = Backbone(model.base_model)(pixels)[:, index]
        outputs = model.base_model(pixels, output_hidden_states=True)
    block = layer or min(8, depth)
    expected = outputs.last_hidden_state if block == depth else outputs.hidden_states[block]
    torch.testing.assert_close(found, expected[:, 1:].mean(dim=1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"layer": 3}, "blocks 1 to 2"), ({"layer": 0}, "layer is 0"), ({"probe_steps": 0}, "probe_steps is 0")],
)
def test_bad_settings_of_a_vit(tmp_path, settings, message):
    with pytest.raises(InputError, match=message):
        build_probe(build_trainer(VIT, tmp_path), **settings)


def test_swin_has_no_layers_to_choose(tmp_path):
    with pytest.raises(InputError, match="last stage"):
        build_probe(build_trainer(SWIN, tmp_path), layer=1)


def test_a_probe_needs_images(tmp_path):
    trainer = build_trainer(VIT, tmp_path)
    with pytest.raises(InputError, match="no images"):
        OnlineProbe(trainer, Labelled(30), Labelled(0), 3, 2)


def test_persistent_workers_do_not_mix_up_data_sets(tmp_path):
    """The Trainer keeps one loader for all evaluation data sets then."""
    trainer = build_trainer(VIT, tmp_path, dataloader_num_workers=1, dataloader_persistent_workers=True)
    trainer.eval_dataset = trainer.train_dataset
    probe = build_probe(trainer)
    train, validation = (probe._features(Backbone(trainer.model.base_model), loader) for loader in probe._loaders)
    assert (len(train), len(validation)) == (30, 11)
