"""Publishing: what is published, pushes that meet faults, and trainings that go on whatever the Hub does."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from loopback_hub import ASKS_THE_ENDPOINT
from PIL import Image
from tiny_models import tiny_vit
from trainers import is_whole, trainer
from transformers import AutoModel, Trainer

from modeling_kamim import KamimForMaskedImageModeling
from modeling_kamim.commands import evaluate as run_classification
from modeling_kamim.commands import prepare as prepare_dataset
from modeling_kamim.commands import pretrain as run_mim
from modeling_kamim.commands import push as push_checkpoint
from modeling_kamim.errors import InputError, StoppedError
from modeling_kamim.hub.publishing import Publisher, PublishError, published_files
from modeling_kamim.training.run_directory import RUN_FILE

ROOT = Path(__file__).parents[2]
TOKEN = "hf_" + "averyprivatetoken"
TINY = ["--model_type", "vit", "--model_size", "tiny", "--image_size", "32", "--mask_patch_size", "16"]
QUICK = ["--max_steps", "2", "--per_device_train_batch_size", "8", "--use_cpu", "--disable_tqdm", "true"]


@pytest.fixture
def checkpoint(tmp_path):
    directory = tmp_path / "alice" / "mim"
    kamim = {"weighting": "keypoint", "dataset_name": "/home/alice/secret/pictures"}
    config = tiny_vit(patch_size=16, encoder_stride=16, kamim=kamim)
    KamimForMaskedImageModeling.from_config(config).save_pretrained(directory)
    (directory / "README.md").write_text("---\nlibrary_name: transformers\n---\n\n# mim\n")
    state = {"best_model_checkpoint": "outputs/alice/checkpoint-3", "log_history": [{"loss": 1.0, "step": 1}]}
    (directory / "trainer_state.json").write_text(json.dumps(state))
    for name in ("optimizer.pt", "training_args.bin", "bad_images.txt", "pytorch_model.bin", ".env"):
        (directory / name).write_text("/home/alice")
    return directory


def quick(hub_or_repo="user/mim", **kwargs):
    return Publisher(hub_or_repo, waits=(0.0, 0.0, 0.0), **kwargs)


def test_what_is_published_holds_no_path_and_no_pickle(checkpoint):
    files = published_files(checkpoint)
    assert set(files) == {"README.md", "config.json", "model.safetensors", "trainer_state.json"}
    texts = b"".join(content for content in files.values() if isinstance(content, bytes)).decode()
    assert "alice" not in texts and "local:pictures" in texts and "local:checkpoint-3" in texts


@pytest.mark.parametrize("name", ["README.md", "config.json"])
def test_a_token_in_a_text_is_refused(checkpoint, monkeypatch, name):
    file = checkpoint / name
    file.write_text(file.read_text().replace("transformers", TOKEN).replace("secret", TOKEN))
    with pytest.raises(InputError, match=f"{name} holds an access token"):
        published_files(checkpoint)
    monkeypatch.setenv("HF_TOKEN", "odd-token-of-a-mirror")
    file.write_text('{"a": "odd-token-of-a-mirror"}')
    with pytest.raises(InputError, match="access token"):
        published_files(checkpoint)


def test_without_weights_nothing_is_published(tmp_path):
    with pytest.raises(InputError, match="model.safetensors"):
        published_files(tmp_path)


FAULTS = {
    "create": ("POST .*/repos/create", 500),
    "commit": ("POST .*/commit/", 503),
    "too many": ("POST .*/commit/", 429),
    "commit cut off": ("POST .*/commit/", "drop"),
    "upload cut off": ("PUT /lfs/", "drop"),
    "answer lost": ("POST .*/commit/", "lost"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_passing_faults_are_overcome(hub, checkpoint, fault):
    fault = hub.fail(*FAULTS[fault], times=1)
    address = quick().push(published_files(checkpoint), "Upload")
    assert fault.hits == 1 and address.startswith(hub.endpoint)
    stored = hub.files("user/mim")
    assert stored["model.safetensors"] == (checkpoint / "model.safetensors").read_bytes()
    assert {"README.md", "config.json", "trainer_state.json"} <= set(stored)
    assert [commit.title for commit in hub.commits("user/mim")] == ["Upload", "initial commit"]


def test_the_hub_says_when_to_come_back(hub, checkpoint, monkeypatch):
    waits = []
    monkeypatch.setattr("modeling_kamim.hub.publishing.time.sleep", waits.append)
    hub.fail("POST .*/commit/", 429, times=1, retry_after=7)
    hub.fail("POST .*/commit/", 429, times=1, retry_after=100_000)
    quick().push(published_files(checkpoint), "Upload")
    assert [wait for wait in waits if wait] == [7.0, 300.0]  # all of this process's sleeps are caught


@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_is_not_tried_again(hub, checkpoint, status, caplog):
    fault = hub.fail("POST .*/commit/", status, times=None)
    with pytest.raises(PublishError, match="refuses the token for user/mim"):
        quick(token=hub.token).push(published_files(checkpoint), "Upload")
    assert fault.hits == 1 and hub.token not in caplog.text


def test_it_gives_up_in_the_end(hub, checkpoint):
    fault = hub.fail("POST .*/commit/", 500, times=None)
    with pytest.raises(PublishError, match="500"):
        quick().push(published_files(checkpoint), "Upload")
    assert fault.hits == 4


def test_private_repository_and_branch(hub, checkpoint):
    publisher = Publisher("mim", private=True, revision="trial")
    publisher.push(published_files(checkpoint), "Upload")
    assert publisher.repo_id == "user/mim" and hub.repos["model", "user/mim"].private
    assert "config.json" in hub.files("user/mim", revision="trial")
    assert "config.json" not in hub.files("user/mim")
    assert publisher.command(Path("outputs/mim")) == (
        "kamim push outputs/mim --repo user/mim --private true --revision trial"
    )
    with pytest.raises(InputError, match="a b"):
        Publisher("a b")


def test_a_push_in_the_background_outlives_its_files(hub, checkpoint):
    weights = (checkpoint / "model.safetensors").read_bytes()
    hub.fail("POST .*/preupload/", "slow", seconds=0.5)
    publisher = quick()
    publisher.push_in_background(published_files(checkpoint), "Step 1")
    publisher.push_in_background({"never.txt": b""}, "skipped while the first is under way")
    shutil.rmtree(checkpoint)
    publisher.wait()
    assert hub.files("user/mim")["model.safetensors"] == weights
    assert len(hub.commits("user/mim")) == 2
    assert not list(checkpoint.parent.glob(".publishing-*"))


@pytest.mark.parametrize(
    ("when", "how"),
    [
        ("POST .*/repos/create", 500),
        ("POST .*/commit/", 500),
        ("POST .*/commit/", 429),
        (".", 401),
        ("POST .*/commit/", "drop"),
        (".", "drop"),
    ],
)
def test_no_fault_of_the_hub_costs_a_run_or_a_checkpoint(hub, tmp_path, monkeypatch, caplog, when, how):
    monkeypatch.setattr("modeling_kamim.hub.publishing.WAITS", ())
    hub.fail(when, how, times=None)
    trained = trainer(tmp_path / "mim", push_to_hub=True, hub_model_id="user/mim", hub_token=TOKEN)
    trained.train()
    trained.save_model()
    assert trained.push_to_hub() is None
    assert trained.state.global_step == 3
    assert {path.name for path in (tmp_path / "mim").glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-3"}
    assert is_whole(tmp_path / "mim" / "checkpoint-2") and is_whole(tmp_path / "mim" / "checkpoint-3")
    assert f"kamim push {tmp_path / 'mim'} --repo user/mim" in caplog.text
    assert TOKEN not in caplog.text
    assert not [file for file in tmp_path.rglob("*") if file.is_file() and TOKEN.encode() in file.read_bytes()]


def test_checkpoints_are_published_while_training_works(hub, tmp_path):
    trained = trainer(tmp_path / "mim", push_to_hub=True, hub_model_id="user/mim", hub_token=hub.token, max_steps=1)
    trained.train()
    trained.publisher.wait()
    assert [commit.title for commit in hub.commits("user/mim")] == ["Training in progress, step 1", "initial commit"]
    assert not [name for name in hub.files("user/mim") if name.endswith((".pt", ".pth", ".bin"))]


def test_a_whole_checkpoint_is_published_where_it_is_asked_for(hub, tmp_path):
    arguments = {"hub_strategy": "checkpoint", "hub_token": hub.token, "max_steps": 1}
    trained = trainer(tmp_path / "mim", push_to_hub=True, hub_model_id="user/mim", **arguments)
    trained.train()
    trained.publisher.wait()
    folder = tmp_path / "downloaded"
    for name, content in hub.files("user/mim").items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    assert is_whole(folder / "last-checkpoint")
    resumed = trainer(tmp_path / "again", max_steps=2)
    resumed.train(resume_from_checkpoint=str(folder / "last-checkpoint"))
    assert resumed.state.global_step == 2


@pytest.mark.parametrize("part", ["weights", "optimizer"])
def test_a_full_disk_costs_one_checkpoint_and_not_the_run(tmp_path, monkeypatch, caplog, part):
    full = [False, True, False]

    def write(original):
        def save(*args, **kwargs):
            if full[min(trained.state.global_step, 3) - 1]:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return original(*args, **kwargs)

        return save

    trained = trainer(tmp_path)
    if part == "weights":
        monkeypatch.setattr(type(trained.model), "save_pretrained", write(type(trained.model).save_pretrained))
    else:
        monkeypatch.setattr(torch, "save", write(torch.save))
    trained.train()
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-1", "checkpoint-3", RUN_FILE}
    assert is_whole(tmp_path / "checkpoint-1") and is_whole(tmp_path / "checkpoint-3")
    assert "Checkpoint of step 2 NOT saved" in caplog.text and "No space left" in caplog.text


def test_a_final_model_that_cannot_be_written_leaves_the_earlier_one(tmp_path, monkeypatch):
    trained = trainer(tmp_path, max_steps=1)
    trained.train()
    trained.save_model()
    before = (tmp_path / "model.safetensors").read_bytes()

    def half(self, folder, *args, **kwargs):
        (Path(folder) / "model.safetensors").write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(type(trained.model), "save_pretrained", half)
    with pytest.raises(StoppedError, match="cannot be written.*No space left.*checkpoint-1 is saved; go on with"):
        trained.save_model()
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_the_best_checkpoint_is_named_where_it_is(tmp_path):
    arguments = {
        "eval_strategy": "steps",
        "eval_steps": 1,
        "load_best_model_at_end": True,
        "label_names": ["bool_masked_pos"],
    }
    trained = trainer(tmp_path, **arguments)
    trained.train()
    best = Path(trained.state.best_model_checkpoint)
    assert best.parent == tmp_path and best.is_dir()
    state = json.loads((tmp_path / "checkpoint-3" / "trainer_state.json").read_text())
    assert Path(state["best_model_checkpoint"]).parent == tmp_path


def script(monkeypatch, module, *arguments):
    monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
    module.main()


LOAD = """
import sys
sys.modules["modeling_kamim"] = None  # as where it is not installed
import torch
from transformers import AutoImageProcessor, AutoModel, pipeline

model = AutoModel.from_pretrained("user/kamim").eval()
with torch.no_grad():
    torch.save(model(torch.linspace(-1, 1, 3 * 32 * 32).view(1, 3, 32, 32)).last_hidden_state, sys.argv[1])
assert AutoImageProcessor.from_pretrained("user/kamim").size["height"] == 32
from PIL import Image
extract = pipeline("image-feature-extraction", model="user/kamim")
assert len(extract(Image.new("RGB", (50, 40)))[0]) == 5
"""


OLD_PACKAGES = ("transformers==4.57.1", "tokenizers==0.22.1", "huggingface_hub==0.36.0")


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["vit", "swin"])
def test_transformers_4_57_loads_the_same_features(hub, tmp_path, monkeypatch, install_beside, model_type):
    output_dir = tmp_path / "mim"
    size = "32" if model_type == "vit" else "96"
    model = ["--model_type", model_type, "--model_size", "tiny", "--image_size", size]
    model += ["--mask_patch_size", "16" if model_type == "vit" else "32"]
    push = ["--push_to_hub", "--hub_model_id", "user/kamim", "--hub_token", hub.token]
    script(monkeypatch, run_mim, *model, *QUICK, "--max_train_samples", "16", *push, "--output_dir", output_dir)
    version = "import transformers; assert transformers.__version__ == '4.57.1', transformers.__version__\n"
    program = version + LOAD.replace("3 * 32 * 32", f"3 * {size}**2").replace("32, 32)", f"{size}, {size})")
    program = program.replace("== 32", f"== {size}").split("from PIL")[0]
    environment = hub.environment() | {"PYTHONPATH": str(install_beside(*OLD_PACKAGES))}
    subprocess.run([sys.executable, "-c", program, tmp_path / "features.pt"], env=environment, cwd=tmp_path, check=True)
    current = AutoModel.from_pretrained(output_dir).eval()
    with torch.no_grad():
        expected = current(torch.linspace(-1, 1, 3 * int(size) ** 2).view(1, 3, int(size), int(size)))
    torch.testing.assert_close(torch.load(tmp_path / "features.pt"), expected.last_hidden_state, atol=1e-5, rtol=1e-5)


def test_a_run_is_published_and_loads_anywhere(hub, tmp_path, monkeypatch):
    """Two steps with --push_to_hub; then, in a fresh process without this package, the same features by name."""
    output_dir = tmp_path / "alice_mim"
    push = ["--push_to_hub", "--hub_model_id", "user/kamim", "--hub_token", hub.token, "--hub_license", "apache-2.0"]
    script(monkeypatch, run_mim, *TINY, *QUICK, "--max_eval_samples", "8", *push, "--output_dir", output_dir)
    files = hub.files("user/kamim")
    expected = "README.md config.json model.safetensors preprocessor_config.json settings.yaml trainer_state.json "
    expected += "eval_results.json training_curves.png reconstructions.png"
    assert set(expected.split()) <= set(files)
    for name, content in files.items():
        assert b"alice" not in content and hub.token.encode() not in content, name
    card = ModelCard(files["README.md"].decode())
    assert card.data.license == "apache-2.0" and card.data.pipeline_tag == "image-feature-extraction"
    assert card.data.eval_results[0].metric_type == "masked_l1"
    assert 'AutoModel.from_pretrained("user/kamim")' in card.text and "path/to" not in card.text
    assert "kamim pretrain --model_type vit" in card.text and "max_steps: 2" in files["settings.yaml"].decode()

    subprocess.run(
        [sys.executable, "-c", LOAD, tmp_path / "features.pt"], env=hub.environment(), cwd=tmp_path, check=True
    )
    model = AutoModel.from_pretrained(output_dir).eval()
    with torch.no_grad():
        expected = model(torch.linspace(-1, 1, 3 * 32 * 32).view(1, 3, 32, 32)).last_hidden_state
    torch.testing.assert_close(torch.load(tmp_path / "features.pt"), expected)

    probe = tmp_path / "probe"
    cached = ["--protocol", "cached", "--max_train_samples", "60", "--max_eval_samples", "40", "--use_cpu"]
    script(monkeypatch, run_classification, *cached, "--model_name_or_path", output_dir, "--output_dir", probe)
    script(monkeypatch, run_classification, *cached, *TINY[:6], "--output_dir", tmp_path / "other_weights")
    script(monkeypatch, push_checkpoint, output_dir, "--repo", "user/kamim", "--results", tmp_path)
    card = ModelCard(hub.files("user/kamim")["README.md"].decode())
    names = [result.metric_name for result in card.data.eval_results]
    assert sum("top-1 (cached" in name for name in names) == 1 and sum("top-1 (knn" in name for name in names) == 1
    assert card.data.license == "apache-2.0" and "| cached | " in card.text


CLASSIFY = """
import sys
if sys.argv[2] == "remote":
    sys.modules["modeling_kamim"] = None
else:
    from modeling_kamim import KamimViTForImageClassification
import torch
from transformers import AutoModelForImageClassification

model = AutoModelForImageClassification.from_pretrained("user/probe", trust_remote_code=sys.argv[2] == "remote").eval()
with torch.no_grad():
    torch.save(model(torch.linspace(-1, 1, 3 * 32 * 32).view(1, 3, 32, 32)).logits, sys.argv[1])
"""


def test_a_classifier_is_published_with_its_results(hub, tmp_path, monkeypatch):
    push = ["--push_to_hub", "--hub_model_id", "user/probe", "--hub_token", hub.token]
    few = ["--max_train_samples", "60", "--max_eval_samples", "40"]
    script(monkeypatch, run_classification, *TINY[:6], *QUICK, *few, *push, "--output_dir", tmp_path / "probe")
    files = hub.files("user/probe")
    assert {"classifier.py", "results.json", "confusion.png", "README.md"} <= set(files)
    card = ModelCard(files["README.md"].decode())
    top1 = json.loads(files["results.json"])["top1"]
    assert card.data.eval_results[0].metric_value == round(top1, 4)
    assert "trust_remote_code=True" in card.text and f"{top1:.2%}" in card.text
    logits = []
    for way in ("remote", "installed"):
        command = [sys.executable, "-c", CLASSIFY, tmp_path / way, way]
        subprocess.run(command, env=hub.environment(), cwd=ROOT, check=True)
        logits.append(torch.load(tmp_path / way))
    torch.testing.assert_close(*logits)


@ASKS_THE_ENDPOINT
def test_a_card_that_the_hub_does_not_take_fails_before_training(hub, tmp_path, monkeypatch):
    hub.fail("POST .*/validate-yaml", 400, times=None)
    monkeypatch.setattr(Trainer, "train", lambda *args, **kwargs: pytest.fail("trained"))
    push = ["--push_to_hub", "--hub_model_id", "user/kamim", "--hub_license", "no-such-license"]
    with pytest.raises(InputError, match="metadata"):
        script(monkeypatch, run_mim, *TINY, *QUICK, *push, "--output_dir", tmp_path)


def test_a_failed_push_is_told_with_the_command_that_repeats_it(hub, checkpoint, monkeypatch):
    hub.fail("POST .*/commit/", 401, times=None)
    with pytest.raises(InputError, match=r"refuses the token.*kamim push .*mim --repo user/mim"):
        script(monkeypatch, push_checkpoint, checkpoint, "--repo", "user/mim")


def test_a_prepared_data_set_is_published_without_its_bad_images(hub, tmp_path, monkeypatch, photographs):
    source = tmp_path / "alice_pictures"
    source.mkdir()
    for number, photograph in enumerate(photographs):
        Image.fromarray(photograph).save(source / f"{number}.png")
    (source / "broken.png").write_bytes(b"broken")
    fault = hub.fail("POST .*/commit/", 500, times=1)
    arguments = [
        "--image_size",
        "32",
        "--bad_images",
        "skip",
        "--push_to_hub",
        "--repo",
        "prepared",
        "--license",
        "mit",
    ]
    script(monkeypatch, prepare_dataset, source, tmp_path / "out", *arguments, "--token", hub.token)
    assert fault.hits == 1
    files = hub.files("user/prepared", repo_type="dataset")
    expected = {"README.md", "preparation.json", "data/train-00000-of-00001.parquet"}
    assert set(files) - {".gitattributes"} == expected
    card = files["README.md"].decode()
    assert 'load_dataset("user/prepared")' in card and "license: mit" in card
    assert not [name for name, content in files.items() if b"alice" in content or hub.token.encode() in content]
