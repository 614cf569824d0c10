"""The Hub of the tests, with the real client."""

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from huggingface_hub import HfApi, ModelCard, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from loopback_hub import ASKS_THE_ENDPOINT, LoopbackHub

TINY = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "image_size": 8}
COMMIT, UPLOAD, WEIGHTS = "POST .*/commit/", "PUT /lfs/", "GET .*/resolve/.*safetensors"


@pytest.fixture
def api(hub) -> HfApi:
    """A client with the right token, and an empty repository."""
    api = HfApi(endpoint=hub.endpoint, token=hub.token)
    api.create_repo("user/tiny")
    return api


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


@ASKS_THE_ENDPOINT
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


def test_faults_are_counted_and_let_other_requests_pass(hub, api):
    slow, failing = hub.fail("PUT /lfs/", "slow", times=2, seconds=0.01), hub.fail("PUT /lfs/", 500, skip=1)
    for content in (b"0" * 300_000, b"1" * 10):
        api.upload_file(path_or_fileobj=content, path_in_repo="model.safetensors", repo_id="user/tiny")
    assert (slow.hits, failing.hits) == (2, 1)
    statuses = [request.status for request in hub.requests if request.method == "PUT"]
    assert statuses == [200, 500, 200]
    with pytest.raises(ValueError, match="broken"):
        hub.fail("PUT /lfs/", "broken")


def test_a_process_meets_none_of_this_ones_settings(hub, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", "elsewhere")
    environment = hub.environment(token="")
    assert not {"HF_TOKEN", "HF_HUB_OFFLINE", "HF_DATASETS_CACHE", "TRANSFORMERS_OFFLINE"} & set(environment)
    assert environment["HF_HOME"] != hub.environment()["HF_HOME"]
