"""The Hub of the tests, with the real client: what it serves, and what the client makes of each fault."""

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import httpx2
import pytest
import torch
from huggingface_hub import HfApi, ModelCard, constants, file_download, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import _http
from loopback_hub import LoopbackHub
from transformers import Trainer, TrainingArguments, ViTConfig, ViTModel

TINY = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "image_size": 8}
COMMIT, UPLOAD, WEIGHTS = "POST .*/commit/", "PUT /lfs/", "GET .*/resolve/.*safetensors"


@pytest.fixture
def api(hub) -> HfApi:
    """A client with the right token, and an empty repository."""
    api = HfApi(endpoint=hub.endpoint, token=hub.token)
    api.create_repo("user/tiny")
    return api


@pytest.fixture
def waits(monkeypatch) -> list[float]:
    """The seconds that the client meant to wait between its tries."""
    waits: list[float] = []
    for module in (_http, file_download):
        monkeypatch.setattr(module, "time", SimpleNamespace(sleep=waits.append, time=lambda: 0.0))
    return waits


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder as it is published: text, weights, a file too large for a commit, another folder."""
    folder = tmp_path / "folder"
    (folder / "logs").mkdir(parents=True)
    (folder / "README.md").write_text(
        "---\nlicense: apache-2.0\ntags:\n- mim\npipeline_tag: feature-extraction\n---\n# Tiny\n"
    )
    (folder / "empty.txt").touch()
    (folder / "logs" / "log é.txt").write_text("step 1\n")
    (folder / "model.safetensors").write_bytes(os.urandom(400_000))
    (folder / "large.dat").write_bytes(os.urandom(11 * 2**20))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def run(hub: LoopbackHub, code: str, **environment: str) -> str:
    """Standard output of a fresh process."""
    command = [sys.executable, "-c", textwrap.dedent(code)]
    process = subprocess.run(command, env=hub.environment() | environment, capture_output=True, text=True, timeout=120)
    assert process.returncode == 0, process.stderr
    return process.stdout


def tries(hub: LoopbackHub, pattern: str) -> int:
    return sum(bool(re.search(pattern, f"{request.method} {request.path}")) for request in hub.requests)


# ---------------------------------------------------------------------- what it serves


def test_a_folder_goes_up_and_comes_down_again(hub, api, folder, tmp_path):
    assert api.whoami()["name"] == "user"
    assert api.create_repo("tiny", exist_ok=True) == f"{hub.endpoint}/user/tiny"
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_repo("tiny")
    pushed = api.upload_folder(repo_id="user/tiny", folder_path=folder, commit_message="All of it")

    expected = contents(folder)
    received = hub.files("user/tiny")
    assert received.pop(".gitattributes")
    assert received == expected
    assert sorted(api.list_repo_files("user/tiny")) == sorted([*expected, ".gitattributes"])
    assert [commit.title for commit in hub.commits("user/tiny")] == ["All of it", "initial commit"]
    assert [commit.commit_id for commit in api.list_repo_commits("user/tiny")][0] == pushed.oid
    assert tries(hub, UPLOAD) == 2
    info = api.model_info("user/tiny", files_metadata=True)
    assert (info.sha, info.tags, info.pipeline_tag, info.private) == (pushed.oid, ["mim"], "feature-extraction", False)
    assert {file.rfilename for file in info.siblings if file.lfs} == {"model.safetensors", "large.dat"}
    snapshot = snapshot_download("user/tiny", local_dir=tmp_path / "down")
    downloaded = contents(Path(snapshot))
    assert [path for path in expected if downloaded[path] != expected[path]] == []


def test_many_files_go_up_in_one_commit_and_unchanged_ones_in_none(hub, api, tmp_path):
    for number in range(300):
        (tmp_path / f"{number}.txt").write_text(str(number))
    api.upload_folder(repo_id="user/tiny", folder_path=tmp_path, allow_patterns="*.txt")
    again = api.upload_folder(repo_id="user/tiny", folder_path=tmp_path, allow_patterns="*.txt")
    assert len(hub.files("user/tiny")) == 301
    assert len(hub.commits("user/tiny")) == 2
    assert again.oid == hub.commits("user/tiny")[0].oid


def test_old_revisions_branches_tags_and_deletions(hub, api):
    first = api.upload_file(path_or_fileobj=b"1", path_in_repo="a/x.txt", repo_id="user/tiny")
    api.create_branch("user/tiny", branch="exp/1", exist_ok=True)
    api.create_tag("user/tiny", tag="v1")
    api.upload_file(path_or_fileobj=b"2", path_in_repo="a/x.txt", repo_id="user/tiny")
    for revision, content in [(first.oid, "1"), ("exp/1", "1"), ("v1", "1"), ("main", "2")]:
        assert Path(hf_hub_download("user/tiny", "a/x.txt", revision=revision)).read_text() == content
    refs = api.list_repo_refs("user/tiny")
    assert {ref.name for ref in [*refs.branches, *refs.tags]} == {"main", "exp/1", "v1"}
    api.delete_folder("a", repo_id="user/tiny")
    assert list(hub.files("user/tiny")) == [".gitattributes"]
    assert hub.files("user/tiny", revision="v1")["a/x.txt"] == b"1"
    with pytest.raises(RemoteEntryNotFoundError):
        api.delete_file("none.txt", repo_id="user/tiny")
    with pytest.raises(RemoteEntryNotFoundError):
        hf_hub_download("user/tiny", "a/x.txt")
    with pytest.raises(RevisionNotFoundError):
        hf_hub_download("user/tiny", "a/x.txt", revision="v2")
    api.delete_repo("user/tiny")
    assert not hub.repos


def test_a_commit_upon_a_changed_branch_is_refused(hub, api):
    parent = api.model_info("user/tiny").sha
    api.upload_file(path_or_fileobj=b"1", path_in_repo="x.txt", repo_id="user/tiny", parent_commit=parent)
    with pytest.raises(HfHubHTTPError, match="412"):
        api.upload_file(path_or_fileobj=b"2", path_in_repo="x.txt", repo_id="user/tiny", parent_commit=parent)


def test_metadata_is_validated(hub):
    ModelCard("---\nlicense: mit\nbase_model: google/vit-base\n---\n").validate()
    with pytest.raises(ValueError, match="base_model"):
        ModelCard("---\nlicense: mit\nbase_model: /home/me/checkpoint\n---\n").validate()


def test_a_wrong_token_no_token_and_someone_elses_namespace(hub, api):
    for token in ("hf_wrong", False):
        stranger = HfApi(endpoint=hub.endpoint, token=token)
        with pytest.raises(HfHubHTTPError) as refused:
            stranger.create_repo("user/other")
        assert refused.value.response.status_code == 401
    with pytest.raises(HfHubHTTPError, match="403"):
        api.create_repo("someone/other")
    assert api.create_repo("org/other").repo_id == "org/other"


def test_a_private_repository_hides_from_strangers(hub, api):
    api.create_repo("secret", private=True)
    api.upload_file(path_or_fileobj=b"1", path_in_repo="x.txt", repo_id="user/secret")
    assert api.model_info("user/secret").private
    assert Path(hf_hub_download("user/secret", "x.txt", token=hub.token)).read_text() == "1"
    with pytest.raises(RepositoryNotFoundError, match="401"):
        HfApi(endpoint=hub.endpoint, token=False).model_info("user/secret")
    with pytest.raises(RepositoryNotFoundError, match="401"):
        hf_hub_download("user/secret", "x.txt", token=False, force_download=False, cache_dir=hub.folder / "other")
    with pytest.raises(RepositoryNotFoundError, match="404"):
        api.model_info("user/none")


# ---------------------------------------------------------------------- the libraries above the client

MODELING = """
import torch
from transformers import PreTrainedModel
from .configuration_scale import ScaleConfig

class ScaleModel(PreTrainedModel):
    config_class = ScaleConfig
    def __init__(self, config):
        super().__init__(config)
        self.scale = torch.nn.Parameter(torch.ones(2))
        self.post_init()
    def forward(self, x):
        return self.scale * x
"""
CONFIGURATION = """
from transformers import PreTrainedConfig

class ScaleConfig(PreTrainedConfig):
    model_type = "scale"
"""
CONFIG = """{"model_type": "scale", "auto_map":
 {"AutoConfig": "configuration_scale.ScaleConfig", "AutoModel": "modeling_scale.ScaleModel"}}"""


def test_models_are_loaded_by_name_in_a_fresh_process(hub, api, tmp_path):
    from safetensors.torch import save_file

    model = ViTModel(ViTConfig(**TINY, patch_size=4)).eval()
    model.push_to_hub("user/tiny", token=hub.token)
    files = {"config.json": CONFIG, "configuration_scale.py": CONFIGURATION, "modeling_scale.py": MODELING}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    save_file({"scale": torch.tensor([2.0, 3.0])}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    api.create_repo("scale")
    api.upload_folder(repo_id="user/scale", folder_path=tmp_path, allow_patterns=["*.py", "*.json", "*.safetensors"])

    printed = run(
        hub,
        """
        import torch
        from transformers import AutoModel
        model = AutoModel.from_pretrained("user/tiny").eval()
        print(type(model).__name__, float(model(torch.ones(1, 3, 8, 8)).last_hidden_state.abs().sum()))
        print(AutoModel.from_pretrained("user/scale", trust_remote_code=True)(torch.ones(2)).tolist())
        """,
    )
    with torch.no_grad():
        expected = float(model(torch.ones(1, 3, 8, 8)).last_hidden_state.abs().sum())
    name, features, scaled = printed.split(maxsplit=2)
    assert name == "ViTModel"
    assert float(features) == pytest.approx(expected, rel=1e-5)
    assert scaled.strip() == "[2.0, 3.0]"


def test_a_data_set_is_pushed_and_loaded_by_name_whole_and_streamed(hub):
    printed = run(
        hub,
        """
        from datasets import Dataset, load_dataset
        Dataset.from_dict({"x": [1, 2, 3]}).push_to_hub("user/numbers")
        print(load_dataset("user/numbers", split="train")["x"][:])
        print([row["x"] for row in load_dataset("user/numbers", split="train", streaming=True)])
        """,
    )
    assert printed.splitlines() == ["[1, 2, 3]", "[1, 2, 3]"]
    assert "data/train-00000-of-00001.parquet" in hub.files("user/numbers", "dataset")


def trainer(hub: LoopbackHub, output_dir: Path) -> Trainer:
    model = ViTModel(ViTConfig(**TINY, patch_size=4))
    model.forward = lambda pixel_values: {"loss": model.embeddings(pixel_values).square().mean()}
    arguments = TrainingArguments(
        output_dir=str(output_dir), max_steps=2, save_steps=1, push_to_hub=True, hub_model_id="user/trained",
        hub_token=hub.token, hub_strategy="every_save", hub_always_push=True, use_cpu=True, report_to=[],
        per_device_train_batch_size=1, disable_tqdm=True, logging_steps=1,
    )  # fmt: skip
    return Trainer(model, arguments, train_dataset=[{"pixel_values": torch.ones(3, 8, 8)}] * 2)


def test_the_trainer_pushes_every_save(hub, tmp_path):
    trainer(hub, tmp_path / "run").train()
    titles = [commit.title for commit in hub.commits("user/trained")]
    assert titles == ["Training in progress, step 2", "Training in progress, step 1", "initial commit"]
    assert {"config.json", "model.safetensors", "training_args.bin"} <= set(hub.files("user/trained"))


def test_the_trainer_says_nothing_when_a_push_in_the_background_fails(hub, tmp_path):
    fault = hub.fail(COMMIT, 500, times=None)
    trainer(hub, tmp_path / "run").train()
    assert fault.hits == 2
    assert (tmp_path / "run" / "checkpoint-2" / "model.safetensors").is_file()
    assert [commit.title for commit in hub.commits("user/trained")] == ["initial commit"]


# ---------------------------------------------------------------------- faults, as the client sees them
# An upload that fails for good is a RuntimeError; the reason is its __cause__.


def upload(api: HfApi, content: bytes = b"0" * 300_000) -> None:
    api.upload_file(path_or_fileobj=content, path_in_repo="model.safetensors", repo_id="user/tiny")


def cause(error: BaseException) -> BaseException:
    return error.__cause__ if isinstance(error, RuntimeError) else error


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_an_upload_is_repeated_by_the_client(hub, api, waits, status):
    fault = hub.fail(UPLOAD, status, times=2)
    upload(api)
    assert (fault.hits, waits) == (2, [1, 2])
    assert len(hub.files("user/tiny")["model.safetensors"]) == 300_000


@pytest.mark.parametrize("where", [UPLOAD, "POST .*/preupload/", "POST .*/objects/batch", "POST .*/verify"])
def test_the_client_gives_up_after_five_repetitions(hub, api, waits, where):
    fault = hub.fail(where, 503, times=None)
    with pytest.raises((HfHubHTTPError, RuntimeError)) as failed:
        upload(api)
    assert cause(failed.value).response.status_code == 503
    assert (fault.hits, waits) == (6, [1, 2, 4, 8, 8])


def test_retry_after_is_waited_for_and_a_second_more(hub, api, waits):
    hub.fail(UPLOAD, 429, times=1, retry_after=7)
    hub.fail(UPLOAD, 503, times=1, retry_after=3)
    upload(api)
    assert waits == [8, 4]


@pytest.mark.parametrize("status", [429, 500, 502, 503])
@pytest.mark.parametrize("where", [COMMIT, "POST .*/repos/create", "POST .*/validate-yaml", "GET /api/models/"])
def test_commits_creation_validation_and_information_are_not_repeated(hub, api, waits, where, status):
    fault = hub.fail(where, status, times=1, retry_after=1)
    with pytest.raises(HfHubHTTPError, match=str(status)) as refused:
        api.create_repo("tiny", exist_ok=True)
        api.upload_file(path_or_fileobj=b"---\nlicense: mit\n---\n", path_in_repo="README.md", repo_id="user/tiny")
        api.model_info("user/tiny")
    assert (fault.hits, waits) == (1, [])
    assert refused.value.response.headers["Retry-After"] == "1"


@pytest.mark.parametrize("status", [401, 403])
def test_refusals_are_not_repeated(hub, api, waits, status):
    for where in (UPLOAD, COMMIT):
        fault = hub.fail(where, status)
        with pytest.raises((HfHubHTTPError, RuntimeError)) as failed:
            upload(api)
        assert cause(failed.value).response.status_code == status
        assert (fault.hits, waits) == (1, [])


@pytest.mark.parametrize("after_bytes", [None, 0, 100_000])
def test_an_upload_cut_off_is_repeated_from_its_start(hub, api, waits, after_bytes):
    content = os.urandom(5 * 2**20)
    fault = hub.fail(UPLOAD, "drop", times=2, after_bytes=after_bytes)
    upload(api, content)
    assert (fault.hits, waits) == (2, [1, 2])
    assert hub.files("user/tiny")["model.safetensors"] == content


def test_an_upload_cut_off_for_ever_is_a_transport_error(hub, api, waits):
    fault = hub.fail(UPLOAD, "drop", times=None)
    with pytest.raises(RuntimeError, match="Error while uploading 'model.safetensors'") as failed:
        upload(api, os.urandom(5 * 2**20))
    assert isinstance(cause(failed.value), httpx2.TransportError)
    assert (fault.hits, waits) == (6, [1, 2, 4, 8, 8])
    assert "model.safetensors" not in hub.files("user/tiny")


def test_a_commit_cut_off_is_not_repeated_and_one_whose_answer_is_lost_was_made(hub, api, waits):
    for how, commits in [("drop", 1), ("lost", 2)]:
        hub.fail(COMMIT, how)
        with pytest.raises(httpx2.TransportError):
            upload(api)
        assert len(hub.commits("user/tiny")) == commits
    upload(api)  # unchanged: nothing to commit
    assert (len(hub.commits("user/tiny")), waits) == (2, [])


def test_with_xet_the_commits_of_upload_folder_are_repeated_even_those_that_were_made(
    hub, api, waits, tmp_path, monkeypatch
):
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    (tmp_path / "config.json").write_text("{}")
    failing, lost = hub.fail(COMMIT, 503, times=2), hub.fail(COMMIT, "lost")
    api.upload_folder(repo_id="user/tiny", folder_path=tmp_path, allow_patterns="*.json", commit_message="Push")
    assert (failing.hits, lost.hits, waits) == (2, 1, [1, 2, 4])
    assert [commit.title for commit in hub.commits("user/tiny")] == ["Push", "Push", "initial commit"]


def test_a_download_cut_off_is_resumed(hub, api, waits):
    content = os.urandom(400_000)
    upload(api, content)
    fault = hub.fail(WEIGHTS, "drop", times=2)
    assert Path(hf_hub_download("user/tiny", "model.safetensors")).read_bytes() == content
    assert (fault.hits, waits) == (2, [1, 1])


def test_a_download_refused_by_the_server_is_not_repeated(hub, api, waits):
    upload(api)
    fault = hub.fail(WEIGHTS, 500)
    with pytest.raises(HfHubHTTPError, match="500"):
        hf_hub_download("user/tiny", "model.safetensors")
    assert (fault.hits, waits) == (1, [])
    hub.fail(WEIGHTS, 429, retry_after=2)
    hf_hub_download("user/tiny", "model.safetensors")
    assert waits == [3]


def test_the_look_up_before_a_download_is_repeated(hub, api, waits):
    upload(api)
    fault = hub.fail("HEAD", 503, times=3)
    hf_hub_download("user/tiny", "model.safetensors")
    assert (fault.hits, waits) == (3, [1, 2])  # the first repetition is at once
    fault = hub.fail("HEAD", 503, times=None)
    with pytest.raises(LocalEntryNotFoundError):
        hf_hub_download("user/tiny", "model.safetensors", cache_dir=hub.folder / "other")
    assert fault.hits == 7


def test_a_look_up_cut_off_is_not_repeated(hub, api, waits):
    upload(api)
    fault = hub.fail("HEAD", "drop", times=None)
    with pytest.raises(httpx2.TransportError):
        hf_hub_download("user/tiny", "model.safetensors")
    assert (fault.hits, waits) == (1, [])


def test_slow_adds_to_other_faults_and_skip_lets_requests_pass(hub, api, waits):
    slow, failing = hub.fail(UPLOAD, "slow", times=2, seconds=0.01), hub.fail(UPLOAD, 500, skip=1)
    upload(api)
    assert (slow.hits, failing.hits, waits) == (1, 0, [])
    upload(api, b"1" * 10)
    assert (slow.hits, failing.hits, waits) == (2, 1, [1])
    statuses = [request.status for request in hub.requests if request.method == "PUT"]
    assert statuses == [200, 500, 200]
    with pytest.raises(ValueError, match="broken"):
        hub.fail(UPLOAD, "broken")


def test_nobody_answers_once_it_is_closed(tmp_path, waits, monkeypatch):
    with LoopbackHub(tmp_path) as hub:
        hub.connect(monkeypatch)
        api = HfApi(endpoint=hub.endpoint, token=hub.token)
        api.create_repo("tiny")
    with pytest.raises(httpx2.TransportError):
        api.whoami()
    assert waits == []


def test_a_process_meets_none_of_this_ones_settings(hub, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", "elsewhere")
    environment = hub.environment(token="")
    assert not {"HF_TOKEN", "HF_HUB_OFFLINE", "HF_DATASETS_CACHE", "TRANSFORMERS_OFFLINE"} & set(environment)
    assert environment["HF_HOME"] != hub.environment()["HF_HOME"]
