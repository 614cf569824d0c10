"""From a checkpoint of every family, as transformers saves it, through pretraining to a probe."""

import json
import sys

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny_models import tiny_config
from transformers import AutoModel, ViTMAEForPreTraining

from modeling_kamim import KamimForMaskedImageModeling
from modeling_kamim.commands import evaluate, pretrain, reconstruct
from modeling_kamim.commands.export import main as export
from modeling_kamim.errors import InputError
from modeling_kamim.evaluation.report.writing import build_report, write_report
from modeling_kamim.hub.markup import markdown
from modeling_kamim.models.families import FAMILIES
from modeling_kamim.models.loading import load_pretrained_model

QUIET = ["--use_cpu", "--disable_tqdm", "true", "--logging_steps", "1"]
FEW = ["--max_train_samples", "12", "--max_eval_samples", "8", "--per_device_train_batch_size", "4"]


def command(monkeypatch, module, output_dir, *arguments):
    monkeypatch.setattr(sys, "argv", ["kamim", *map(str, arguments), *QUIET, *FEW, "--output_dir", str(output_dir)])
    module.main()
    return output_dir


@pytest.mark.parametrize("model_type", FAMILIES)
def test_from_a_checkpoint_through_pretraining_to_a_probe(model_type, monkeypatch, tmp_path, caplog):
    AutoModel.from_config(tiny_config(model_type)).save_pretrained(tmp_path / "base")
    training = ["--model_name_or_path", tmp_path / "base", "--max_steps", "3", "--save_steps", "2"]
    training += ["--probe_every", "3", "--probe_images", "16"]
    with caplog.at_level("INFO"):
        whole = command(monkeypatch, pretrain, tmp_path / "whole", *training)
    assert any(f"({model_type}) loaded; new: decoder" in record.getMessage() for record in caplog.records)
    resume = ["--resume_from_checkpoint", whole / "checkpoint-2"]
    resumed = command(monkeypatch, pretrain, tmp_path / "resumed", *training, *resume)
    expected, found = (load_file(folder / "model.safetensors") for folder in (whole, resumed))
    assert expected.keys() == found.keys()
    assert [key for key in expected if not torch.equal(expected[key], found[key])] == []

    log = json.loads((whole / "trainer_state.json").read_text())["log_history"]
    assert any("probe_top1" in entry for entry in log)
    config = json.loads((whole / "config.json").read_text())
    assert config["model_type"] == model_type
    assert config["kamim"]["base_model"] == "local:base"
    assert config["kamim"]["target"] == FAMILIES[model_type].target
    card = (whole / "README.md").read_text()
    assert "The training began with the weights of a local checkpoint (base)" in card
    assert f"A {FAMILIES[model_type].title} (" in card
    assert ("mask_ratio=0.0)" in card) == (model_type == "vit_mae")

    probe = ["--protocol", "cached", "--model_name_or_path", whole]
    results = json.loads((command(monkeypatch, evaluate, tmp_path / "probe", *probe) / "results.json").read_text())
    assert {row["protocol"] for row in results["rows"]} == {"cached", "knn"}
    assert results["provenance"]["model"]["model_type"] == model_type

    with caplog.at_level("INFO"):
        scores = command(monkeypatch, reconstruct, tmp_path / "scores", "--model_name_or_path", whole)
    assert (scores / "reconstructions.png").is_file()
    write_report(build_report([tmp_path / "probe", scores]), tmp_path / "report")
    report = (tmp_path / "report" / "report.md").read_text()
    is_mae = model_type == "vit_mae"
    settings = "FAST, w_ps 8, T 0.25, map"
    method = f"KAMIM-MAE ({settings}, pixels normalized by patch" if is_mae else f"KAMIM ({settings}"
    assert f"| {markdown(f'{method}, from local:base)')} |" in report and "Table 1" not in report
    assert any(
        ("the mean of each patch" if is_mae else "the mean color of the visible pixels") in record.getMessage()
        for record in caplog.records
    )


def test_from_a_checkpoint_of_squares_through_rectangles_to_a_probe(monkeypatch, tmp_path):
    AutoModel.from_config(tiny_config("dinov2")).save_pretrained(tmp_path / "base")
    training = ["--model_name_or_path", tmp_path / "base", "--image_size", "64", "96", "--max_steps", "2"]
    training += ["--save_steps", "1", "--probe_every", "2", "--probe_images", "8", "--weighting", "shuffled"]
    whole = command(monkeypatch, pretrain, tmp_path / "whole", *training)
    resume = ["--resume_from_checkpoint", whole / "checkpoint-1"]
    resumed = command(monkeypatch, pretrain, tmp_path / "resumed", *training, *resume)
    expected, found = (load_file(folder / "model.safetensors") for folder in (whole, resumed))
    assert [key for key in expected if not torch.equal(expected[key], found[key])] == []
    config = json.loads((whole / "config.json").read_text())
    assert (config["image_size"], config["kamim_image_size"]) == (32, [64, 96])  # positions are interpolated
    size = json.loads((whole / "preprocessor_config.json").read_text())["size"]
    assert size == {"height": 64, "width": 96}
    card = " ".join((whole / "README.md").read_text().split())
    assert "at 64 x 96 px" in card and "4 of the 6 blocks (32 px)" in card
    assert yaml.safe_load((whole / "settings.yaml").read_text())["image_size"] == [64, 96]

    probe = ["--protocol", "cached", "--model_name_or_path", whole]
    results = json.loads((command(monkeypatch, evaluate, tmp_path / "probe", *probe) / "results.json").read_text())
    assert results["image_size"] == [64, 96]
    scores = command(monkeypatch, reconstruct, tmp_path / "scores", "--model_name_or_path", whole)
    assert (scores / "reconstructions.png").is_file()
    with pytest.raises(InputError, match="image_size is 64, the checkpoint's is 64 x 96"):
        command(monkeypatch, evaluate, tmp_path / "no", *probe, "--image_size", "64")
    KamimForMaskedImageModeling.from_config(tiny_config("vit")).save_pretrained(tmp_path / "square")
    compared = ["--model_name_or_path", whole, "--compare_with", tmp_path / "square"]
    with pytest.raises(InputError, match="image sizes of 32, 64 x 96 px"):
        command(monkeypatch, reconstruct, tmp_path / "no", *compared)


def test_a_vit_of_rectangles_is_probed_and_finetuned_at_another_one(monkeypatch, tmp_path):
    KamimForMaskedImageModeling.from_config(tiny_config("vit", [32, 48])).save_pretrained(tmp_path / "base")
    start = ["--model_name_or_path", tmp_path / "base", "--max_steps", "1", "--augmentation", "strong"]
    probe = command(monkeypatch, evaluate, tmp_path / "probe", *start)
    assert "at 32 x 48 px" in (probe / "README.md").read_text()
    tuned = command(monkeypatch, evaluate, tmp_path / "tuned", *start, "--mode", "finetune", "--image_size", "64", "48")
    assert json.loads((tuned / "config.json").read_text())["image_size"] == [64, 48]
    assert "at 64 x 48 px" in (tuned / "README.md").read_text()


@pytest.mark.parametrize("model_type", sorted(FAMILIES.keys() - {"vit", "vit_mae", "swin"}))
def test_what_needs_a_vit_or_swin_refuses_other_families_in_a_sentence(model_type, monkeypatch, tmp_path):
    AutoModel.from_config(tiny_config(model_type)).save_pretrained(tmp_path / "base")
    for arguments in (["--protocol", "paper"], ["--mode", "finetune"]):
        with pytest.raises(InputError, match=f"'{model_type}'.*--protocol cached or knn"):
            command(monkeypatch, evaluate, tmp_path / "out", *arguments, "--model_name_or_path", tmp_path / "base")
    monkeypatch.setattr(sys, "argv", ["kamim", "--format", "timm", str(tmp_path / "base"), str(tmp_path / "timm")])
    with pytest.raises(InputError, match=f"'{model_type}'.*ViT or Swin"):
        export()


@pytest.mark.parametrize("arguments", [["--protocol", "paper"], ["--mode", "finetune"]], ids=["probe", "finetune"])
def test_a_mae_is_finetuned_as_the_vit_that_it_is(arguments, monkeypatch, tmp_path):
    base = ViTMAEForPreTraining(tiny_config("vit_mae"))
    base.save_pretrained(tmp_path / "base")
    arguments = [*arguments, "--model_name_or_path", tmp_path / "base", "--max_steps", "2", "--learning_rate", "1e-5"]
    trained = command(monkeypatch, evaluate, tmp_path / "out", *arguments)
    saved, encoder = load_file(trained / "model.safetensors"), base.vit.state_dict()
    name = "embeddings.patch_embeddings.projection.weight"
    torch.testing.assert_close(saved[f"encoder.{name}"], encoder[name], atol=1e-3, rtol=0)


def test_the_objective_of_a_mae_is_transformers_own(monkeypatch, tmp_path):
    overrides = "hidden_size=32,num_hidden_layers=2,num_attention_heads=2,intermediate_size=64,decoder_hidden_size=16,"
    overrides += "decoder_num_hidden_layers=1,decoder_num_attention_heads=2,decoder_intermediate_size=32"
    model = ["--model_type", "vit_mae", "--image_size", "32", "--patch_size", "8", "--config_overrides", overrides]
    output_dir = command(monkeypatch, pretrain, tmp_path / "mae", *model, "--max_steps", "2", "--weighting", "none")
    stock = ViTMAEForPreTraining.from_pretrained(output_dir).eval()
    assert stock.config.norm_pix_loss and stock.config.mask_ratio == 0.75
    assert stock.decoder.decoder_pos_embed.any()
    ours = load_pretrained_model(str(output_dir)).eval()
    pixels, mask = torch.randn(2, 3, 32, 32), torch.arange(16).expand(2, -1) >= 4
    with torch.no_grad():
        expected = stock(pixels, noise=mask.float() + torch.arange(16) / 100).loss
        assert ours(pixels, mask).loss.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("target", ["pixels", "normalized_pixels"])
@pytest.mark.parametrize("loss", ["l1", "mse"])
def test_targets_and_losses_of_a_vit(target, loss, monkeypatch, tmp_path):
    model = ["--model_size", "tiny", "--image_size", "32", "--patch_size", "8"]
    arguments = [*model, "--max_steps", "1", "--target", target, "--loss", loss, "--weighting", "none"]
    output_dir = command(monkeypatch, pretrain, tmp_path, *arguments)
    kamim = json.loads((output_dir / "config.json").read_text())["kamim"]
    assert (kamim["target"], kamim["loss"]) == (target, loss)
    log = json.loads((output_dir / "trainer_state.json").read_text())["log_history"][0]
    assert (log["loss"] == pytest.approx(log["masked_l1"], rel=1e-5)) == (loss == "l1")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model_type", "swin"], "model_type is 'swin', that of .* is 'vit'"),
        (["--patch_size", "16"], "patch_size is 16, that of .* is 8"),
        (["--config_overrides", "hidden_size=8"], "config_overrides is 'hidden_size=8', and model_name_or_path"),
        (["--model_size", "tiny"], "model_size is 'tiny'.*leave out one"),
        (["--image_size", "36"], "image_size is 36; it must be a multiple of 8"),
        (["--mask_patch_size", "4"], "the vit patch size is 8 and mask_patch_size is 4"),
    ],
)
def test_what_contradicts_the_checkpoint(arguments, message, monkeypatch, tmp_path):
    AutoModel.from_config(tiny_config("vit")).save_pretrained(tmp_path / "base")
    with pytest.raises(InputError, match=message):
        command(monkeypatch, pretrain, tmp_path / "out", "--model_name_or_path", tmp_path / "base", *arguments)


def test_a_config_without_weights_is_a_random_model(monkeypatch, tmp_path):
    tiny_config("deit").save_pretrained(tmp_path / "base")
    arguments = ["--config_name", tmp_path / "base", "--max_steps", "1"]
    output_dir = command(monkeypatch, pretrain, tmp_path / "out", *arguments)
    config = json.loads((output_dir / "config.json").read_text())
    assert config["model_type"] == "deit" and config["kamim"]["base_model"] is None
