"""A small Hub on 127.0.0.1, on the standard library alone, that the real `huggingface_hub` client talks to.

    with LoopbackHub(tmp_path) as hub:
        subprocess.run([sys.executable, "run_mim.py", "--push_to_hub"], env=hub.environment())
        hub.fail("POST .*/commit/", 503, times=2)    # the next two commits are refused
        hub.files("user/tiny")["config.json"]

Models, datasets and spaces: create, delete, validate, upload (regular and LFS), commit, branch, tag, list, download.
"""

import base64
import contextlib
import hashlib
import json
import os
import re
import socket
import struct
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, quote, unquote, urlsplit

import huggingface_hub
import pytest
from packaging.version import Version

LFS_SUFFIXES = (
    ".safetensors",
    ".bin",
    ".pt",
    ".pth",
    ".onnx",
    ".parquet",
    ".arrow",
    ".npy",
    ".npz",
    ".zip",
    ".gz",
    ".tar",
)
LFS_FROM_BYTES = 10 * 2**20
"""Files of these names, or from this size on, go through LFS, the others ride in the commit."""

_REPO = r"(?P<repo_id>(?:[^/]+/)?[^/]+?)"
_API = re.compile(
    rf"/api/(?P<type>model|dataset|space)s/{_REPO}(?:/(?P<verb>[a-z-]+)(?:/(?P<revision>[^/]+)(?:/(?P<path>.+))?)?)?"
)
_FILE = re.compile(rf"/(?:(?P<type>dataset|space)s/)?{_REPO}/(?:resolve|raw)/(?P<revision>[^/]+)/(?P<path>.+)")
_LFS = re.compile(rf"/(?:(?P<type>dataset|space)s/)?{_REPO}\.git/info/lfs/objects/batch")
_STORE = re.compile(r"/lfs/(?P<oid>[0-9a-f]{64})(?P<verify>/verify)?")
_SERVICES = {
    ("GET", "/api/whoami-v2"): "_whoami",
    ("POST", "/api/repos/create"): "_create",
    ("DELETE", "/api/repos/delete"): "_delete",
    ("POST", "/api/validate-yaml"): "_validate",
}


class Request(NamedTuple):
    """One request that was answered; the status is 0 where the connection was closed instead."""

    method: str
    path: str
    status: int


@dataclass(frozen=True)
class StoredFile:
    """A file of a commit: its git blob id, its content's sha256, and whether it went through LFS."""

    oid: str
    sha256: str
    size: int
    lfs: bool


@dataclass(frozen=True)
class Commit:
    """One revision, with the whole tree: path -> file."""

    oid: str
    parent: str | None
    title: str
    message: str
    date: str
    tree: dict[str, StoredFile]


@dataclass
class Repository:
    """A repository's history; every commit stays reachable by its oid."""

    repo_id: str
    repo_type: str
    private: bool
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """Path of the web page: models have no prefix."""
        return f"/{self.repo_id}" if self.repo_type == "model" else f"/{self.repo_type}s/{self.repo_id}"

    def head(self, revision: str) -> Commit:
        """The commit of a branch, a tag or an oid."""
        oid = self.branches.get(revision) or self.tags.get(revision) or revision
        if oid not in self.commits:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[oid]

    def history(self, revision: str) -> Iterator[Commit]:
        """The commit and its ancestors, newest first."""
        commit: Commit | None = self.head(revision)
        while commit is not None:
            yield commit
            commit = self.commits[commit.parent] if commit.parent else None

    def add(self, branch: str, title: str, message: str, tree: dict[str, StoredFile]) -> Commit:
        """Append a commit to a branch; its oid is unique among all Hubs, so that a cache never mistakes one."""
        date = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
        commit = Commit(uuid.uuid4().hex + "00000000", self.branches.get(branch), title, message, date, tree)
        self.commits[commit.oid] = commit
        self.branches[branch] = commit.oid
        return commit


class Refusal(Exception):
    """An answer other than success; `code` is what the client tells errors apart by."""

    def __init__(self, status: int, message: str, code: str | None = None):
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


@dataclass
class Reply:
    """Status, body and headers of an answer."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, value: Any, status: int = 200, **headers: str) -> "Reply":
        """An answer in JSON."""
        return cls(status, json.dumps(value).encode(), {"Content-Type": "application/json", **headers})

    @classmethod
    def refused(cls, refusal: Refusal) -> "Reply":
        """The Hub's form of an error."""
        codes = {"X-Error-Code": refusal.code} if refusal.code else {}
        return cls.of({"error": refusal.message}, refusal.status, **{"X-Error-Message": refusal.message, **codes})


@dataclass
class Fault:
    """What is to go wrong, how often, and how often it did (`hits`); made by `LoopbackHub.fail`."""

    when: Callable[[str, str], bool]
    how: int | str
    times: int | None
    skip: int
    seconds: float
    after_bytes: int | None
    headers: dict[str, str]
    hits: int = 0

    def strikes(self, method: str, path: str) -> bool:
        """Whether this request is hit; counts."""
        if self.hits == self.times or not self.when(method, path):
            return False
        if self.skip:
            self.skip -= 1
            return False
        self.hits += 1
        return True


class LoopbackHub:
    """A Hub with one user and one token, running while its context is open.

    Args:
        folder: contents and the homes of client processes go here.
        token: the one that may write, and that reads private repositories.
        user: owner of the token; repositories without a namespace become this user's.
        organizations: other namespaces in which the user may write; elsewhere 403.
    """

    def __init__(
        self,
        folder: str | Path,
        token: str = "hf_loopback",
        user: str = "user",
        organizations: tuple[str, ...] = ("org",),
    ):
        self.folder = Path(folder)
        self.token, self.user, self.organizations = token, user, organizations
        self.repos: dict[tuple[str, str], Repository] = {}
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.connections: set[socket.socket] = set()
        self.lock = threading.RLock()
        self._contents = self.folder / "contents"
        self._contents.mkdir(parents=True, exist_ok=True)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "LoopbackHub":
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        with self.lock:
            connections = list(self.connections)
        for connection in connections:  # those kept alive would be served on
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    # ------------------------------------------------------------------ what tests use

    def environment(self, home: str | Path | None = None, token: str | None = None) -> dict[str, str]:
        """The environment for a client process: this one's, without its HuggingFace settings, pointed here.

        Args:
            home: folder of the caches; a new empty one by default.
            token: another than the right one; "" for none.
        """
        others = ("HF_", "HUGGING", "TRANSFORMERS_OFFLINE", "HUB_")
        kept = {key: value for key, value in os.environ.items() if not key.startswith(others)}
        kept |= {
            "HF_ENDPOINT": self.endpoint,
            "HF_TOKEN": self.token if token is None else token,
            "HF_HOME": str(home or tempfile.mkdtemp(prefix="home_", dir=self.folder)),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }
        return {key: value for key, value in kept.items() if key != "HF_TOKEN" or value}

    def connect(self, monkeypatch: Any) -> None:
        """Point this very process here, where huggingface_hub was imported long ago, offline."""
        from huggingface_hub import constants, hf_api

        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "ENDPOINT", self.endpoint)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(self.folder / "cache"))
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", self.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(hf_api.api, "endpoint", self.endpoint)
        monkeypatch.setenv("HF_TOKEN", self.token)
        if "transformers.utils.hub" in sys.modules:
            monkeypatch.setattr(sys.modules["transformers.utils.hub"], "_hf_api", None)

    def files(self, repo_id: str, repo_type: str = "model", revision: str = "main") -> dict[str, bytes]:
        """Path -> content of all files of a revision, as in the Hub itself with `.gitattributes`."""
        with self.lock:
            tree = self.repos[repo_type, repo_id].head(revision).tree
        return {path: self._read(file) for path, file in tree.items()}

    def commits(self, repo_id: str, repo_type: str = "model", revision: str = "main") -> list[Commit]:
        """Newest first; the last one is "initial commit" with `.gitattributes`."""
        with self.lock:
            return list(self.repos[repo_type, repo_id].history(revision))

    def fail(
        self,
        when: str | Callable[[str, str], bool],
        how: int | str,
        times: int | None = 1,
        *,
        skip: int = 0,
        seconds: float = 1.0,
        after_bytes: int | None = None,
        retry_after: int | None = None,
        headers: dict[str, str] | None = None,
    ) -> Fault:
        """Let requests go wrong. "slow" adds to others; of the others the first that strikes counts.

        Args:
            when: regular expression searched in "METHOD /path" (no query), or a function of both.
            how: a status; "drop": close the connection in the middle of the request's body or, without one, of the
                answer's; "lost": do what is asked, then close the connection instead of answering; "slow": wait first.
            times: how many requests; None for all.
            skip: how many matching requests to let pass before.
            seconds: what "slow" waits.
            after_bytes: where "drop" cuts; half of the body by default.
            retry_after: seconds, the header Retry-After.
            headers: others of the answer, for example X-Error-Code.
        """
        if isinstance(how, str) and how not in ("drop", "lost", "slow"):
            raise ValueError(f"how is a status, 'drop', 'lost' or 'slow', not {how!r}")
        headers = dict(headers or {}) | ({} if retry_after is None else {"Retry-After": str(retry_after)})
        matches = _matcher(when) if isinstance(when, str) else when
        fault = Fault(matches, how, times, skip, seconds, after_bytes, headers)
        with self.lock:
            self.faults.append(fault)
        return fault

    # ------------------------------------------------------------------ requests

    def strike(self, method: str, path: str) -> Fault | None:
        """The fault that this request meets; waits for the slow ones."""
        with self.lock:
            slow = [fault for fault in self.faults if fault.how == "slow" and fault.strikes(method, path)]
            hard = next((fault for fault in self.faults if fault.how != "slow" and fault.strikes(method, path)), None)
        time.sleep(sum(fault.seconds for fault in slow))
        return hard

    def answer(self, method: str, target: str, headers: Any, body: bytes) -> Reply:
        """What the Hub answers."""
        with self.lock:
            try:
                return self._route("GET" if method == "HEAD" else method, urlsplit(target), headers, body)
            except Refusal as refusal:
                return Reply.refused(refusal)

    def _route(self, method: str, url: Any, headers: Any, body: bytes) -> Reply:
        if match := _STORE.fullmatch(url.path):  # a signed address in the real one: no token
            return self._store(match["oid"], bool(match["verify"]), body)
        writes = method != "GET" and not re.search("/paths-info/|/validate-yaml$", url.path)
        allowed = self._authorize(headers.get("Authorization"), writes)
        if service := _SERVICES.get((method, url.path)):
            return getattr(self, service)(allowed, json.loads(body or b"{}"))
        if match := _LFS.fullmatch(url.path):
            self._repo(match, allowed)
            return self._batch(json.loads(body))
        if match := _FILE.fullmatch(url.path):
            return self._resolve(self._repo(match, allowed), match, headers.get("Range"))
        if match := _API.fullmatch(url.path):
            name = f"_{method}_{match['verb'] or 'info'}".replace("-", "_").lower()
            if handler := getattr(self, name, None):
                revision = unquote(match["revision"] or "main")
                repo = self._repo(match, allowed)
                return handler(repo, revision, unquote(match["path"] or ""), body, parse_qs(url.query))
        raise Refusal(404, f"{method} {url.path} is not served here")

    def _authorize(self, header: str | None, needed: bool) -> bool:
        if header and header != f"Bearer {self.token}":
            raise Refusal(401, "Invalid credentials in Authorization header")
        if needed and not header:
            raise Refusal(401, "Invalid username or password.")
        return bool(header)

    def _repo(self, match: re.Match, allowed: bool) -> Repository:
        repo = self.repos.get((match["type"] or "model", unquote(match["repo_id"])))
        if repo is None or (repo.private and not allowed):  # the two look alike, and 401 to a stranger
            raise Refusal(404 if allowed else 401, "Repository not found", "RepoNotFound")
        return repo

    # ------------------------------------------------------------------ contents

    def _read(self, file: StoredFile) -> bytes:
        return (self._contents / file.sha256).read_bytes()

    def _write(self, content: bytes) -> str:
        sha256 = hashlib.sha256(content).hexdigest()
        (self._contents / sha256).write_bytes(content)
        return sha256

    def _file(self, content: bytes) -> StoredFile:
        return StoredFile(_git_oid(content), self._write(content), len(content), lfs=False)

    def _lfs_file(self, sha256: str) -> StoredFile:
        path = self._contents / sha256
        if not path.is_file():
            raise Refusal(400, f"LFS object {sha256} was not uploaded")
        return StoredFile(_git_oid(_lfs_pointer(sha256, path.stat().st_size)), sha256, path.stat().st_size, lfs=True)

    def _batch(self, request: dict) -> Reply:
        objects = []
        for item in request["objects"]:
            href = f"{self.endpoint}/lfs/{item['oid']}"
            actions = {"upload": {"href": href}, "verify": {"href": f"{href}/verify"}}
            known = (self._contents / item["oid"]).is_file()
            objects.append({"oid": item["oid"], "size": item["size"], **({} if known else {"actions": actions})})
        return Reply.of({"transfer": "basic", "objects": objects})

    def _store(self, oid: str, verify: bool, body: bytes) -> Reply:
        if verify:
            self._lfs_file(oid)
        elif hashlib.sha256(body).hexdigest() == oid:
            self._write(body)
        else:
            raise Refusal(400, f"The content is not that of {oid}")
        return Reply()

    def _resolve(self, repo: Repository, match: re.Match, span: str | None) -> Reply:
        commit, path = repo.head(unquote(match["revision"])), unquote(match["path"])
        if path not in commit.tree:  # with the commit, the client remembers what does not exist
            refused = Reply.refused(Refusal(404, "Entry not found", "EntryNotFound"))
            return Reply(404, refused.body, refused.headers | {"X-Repo-Commit": commit.oid})
        file = commit.tree[path]
        headers = {"X-Repo-Commit": commit.oid, "ETag": f'"{file.oid}"', "Accept-Ranges": "bytes"}
        if file.lfs:
            headers |= {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(file.size)}
        content = self._read(file)
        if span is None:
            return Reply(200, content, headers)
        first, stop = _byte_range(span, file.size)
        if first >= stop:
            return Reply(416, b"", headers | {"Content-Range": f"bytes */{file.size}"})
        return Reply(206, content[first:stop], headers | {"Content-Range": f"bytes {first}-{stop - 1}/{file.size}"})

    # ------------------------------------------------------------------ services

    def _whoami(self, allowed: bool, request: dict) -> Reply:
        self._authorize(f"Bearer {self.token}" if allowed else None, needed=True)
        organizations = [{"type": "org", "name": name, "fullname": name} for name in self.organizations]
        token = {"type": "access_token", "accessToken": {"displayName": "loopback", "role": "write"}}
        return Reply.of(
            {"type": "user", "name": self.user, "fullname": self.user, "orgs": organizations, "auth": token}
        )

    def _create(self, allowed: bool, request: dict) -> Reply:
        owner, repo_type = request.get("organization") or self.user, request.get("type") or "model"
        repo_id = f"{owner}/{request['name']}"
        if owner not in (self.user, *self.organizations):
            raise Refusal(403, f'You don\'t have the rights to create a {repo_type} under the namespace "{owner}"')
        private = bool(request.get("private")) or request.get("visibility") == "private"
        repo = Repository(repo_id, repo_type, private)
        answer = {"url": self.endpoint + repo.url, "name": repo_id, "id": repo_id}
        if (repo_type, repo_id) in self.repos:
            message = f"You already created this {repo_type} repo: {repo_id}"
            return Reply.of(answer | {"error": message}, 409, **{"X-Error-Message": message})
        attributes = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES)
        repo.add("main", "initial commit", "", {".gitattributes": self._file(attributes.encode())})
        self.repos[repo_type, repo_id] = repo
        return Reply.of(answer)

    def _delete(self, allowed: bool, request: dict) -> Reply:
        repo_id = f"{request.get('organization') or self.user}/{request['name']}"
        if self.repos.pop((request.get("type") or "model", repo_id), None) is None:
            raise Refusal(404, "Repository not found", "RepoNotFound")
        return Reply()

    def _validate(self, allowed: bool, request: dict) -> Reply:
        errors, warnings = [], []
        metadata = _front_matter(request["content"])
        if not metadata:
            warnings.append("empty or missing yaml metadata in repo card")
        for key in ("base_model", "datasets"):
            for value in _listed(metadata.get(key)):
                if not re.fullmatch(r"([\w.-]+/)?[\w.-]+", value):
                    errors.append(f'"{key}" with value "{value}" is not valid. Use a model id from the Hub')
        answer = {"errors": [{"message": text} for text in errors], "warnings": [{"message": t} for t in warnings]}
        return Reply.of(answer, 400 if errors else 200)

    # ------------------------------------------------------------------ a repository's verbs: _<method>_<verb>

    def _post_preupload(self, repo: Repository, revision: str, path: str, body: bytes, query: dict) -> Reply:
        tree, answers = repo.head(revision).tree, []
        for item in json.loads(body)["files"]:
            lfs = item["size"] >= LFS_FROM_BYTES or item["path"].endswith(LFS_SUFFIXES)
            known = tree.get(item["path"])
            oid = {"oid": known.sha256 if known.lfs else known.oid} if known else {}
            mode = "lfs" if lfs else "regular"
            answers.append({"path": item["path"], "uploadMode": mode, "shouldIgnore": False, **oid})
        return Reply.of({"files": answers})

    def _post_commit(self, repo: Repository, revision: str, path: str, body: bytes, query: dict) -> Reply:
        if "create_pr" in query or revision not in repo.branches:
            raise Refusal(404, f"Commits go to a branch, not to {revision} or a pull request", "RevisionNotFound")
        tree, header = dict(repo.head(revision).tree), {}
        for line in body.splitlines():
            change = json.loads(line)
            if change["key"] == "header":
                header = change["value"]
            else:
                self._change(tree, change["key"], change["value"])
        if not repo.branches[revision].startswith(header.get("parentCommit") or ""):
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        commit = repo.add(revision, header["summary"], header.get("description", ""), tree)
        url = f"{self.endpoint}{repo.url}/commit/{commit.oid}"
        return Reply.of({"success": True, "commitUrl": url, "commitOid": commit.oid, "hookOutput": ""})

    def _change(self, tree: dict[str, StoredFile], key: str, value: dict) -> None:
        path = value["path"]
        if key == "file":
            encoded = value.get("encoding") == "base64"
            tree[path] = self._file(base64.b64decode(value["content"]) if encoded else value["content"].encode())
        elif key == "lfsFile":
            tree[path] = self._lfs_file(value["oid"])
        elif key in ("deletedFile", "deletedFolder"):
            prefix = path.rstrip("/") + "/"
            gone = [name for name in tree if name == path or (key == "deletedFolder" and name.startswith(prefix))]
            if not gone:
                raise Refusal(404, "A file with this name doesn't exist", "EntryNotFound")
            for name in gone:
                del tree[name]
        else:
            raise Refusal(400, f"Unknown operation {key}")

    def _get_info(self, repo: Repository, revision: str, path: str, body: bytes, query: dict) -> Reply:
        commit = repo.head(revision)
        card = commit.tree.get("README.md")
        metadata = _front_matter(self._read(card).decode()) if card else {}
        blobs = "blobs" in query
        return Reply.of(
            {
                "id": repo.repo_id,
                "author": repo.repo_id.partition("/")[0],
                "sha": commit.oid,
                "private": repo.private,
                "gated": False,
                "disabled": False,
                "downloads": 0,
                "likes": 0,
                "createdAt": list(repo.history(revision))[-1].date,
                "lastModified": commit.date,
                "tags": [tag for tag in _listed(metadata.get("tags")) if tag],
                "siblings": [
                    {"rfilename": name, **(_details(file) if blobs else {})} for name, file in commit.tree.items()
                ],
                **({"cardData": metadata} if metadata else {}),
                **{key: metadata[key] for key in ("pipeline_tag", "library_name") if key in metadata},
            }
        )

    _get_revision = _get_info

    def _get_tree(self, repo: Repository, revision: str, path: str, body: bytes, query: dict) -> Reply:
        tree, prefix = repo.head(revision).tree, f"{path}/" if path else ""
        if prefix and not any(name.startswith(prefix) for name in tree):
            raise Refusal(404, f"{path} does not exist on {revision}", "EntryNotFound")
        recursive = query.get("recursive", ["false"])[0].lower() in ("true", "1")
        names = [name for name in _with_folders(tree) if name.startswith(prefix)]
        return Reply.of([_entry(tree, name) for name in names if recursive or "/" not in name[len(prefix) :]])

    def _post_paths_info(self, repo: Repository, revision: str, path: str, body: bytes, query: dict) -> Reply:
        text = body.decode()
        paths = _listed(json.loads(text)["paths"]) if text.startswith("{") else parse_qs(text).get("paths", [])
        tree = repo.head(revision).tree
        names = _with_folders(tree)
        return Reply.of([_entry(tree, name.rstrip("/")) for name in paths if name.rstrip("/") in names])

    def _get_commits(self, repo: Repository, revision: str, path: str, body: bytes, query: dict) -> Reply:
        keys = {"authors": [{"user": self.user}]}
        commits = repo.history(revision)
        return Reply.of(
            [{"id": c.oid, "title": c.title, "message": c.message, "date": c.date, **keys} for c in commits]
        )

    def _get_refs(self, repo: Repository, revision: str, path: str, body: bytes, query: dict) -> Reply:
        def listed(kind: str, refs: dict[str, str]) -> list[dict]:
            return [{"name": n, "ref": f"refs/{kind}/{n}", "targetCommit": oid} for n, oid in refs.items()]

        lists = {"branches": listed("heads", repo.branches), "tags": listed("tags", repo.tags)}
        return Reply.of({**lists, "converts": [], "pullRequests": []})

    def _get_auth_check(self, repo: Repository, revision: str, path: str, body: bytes, query: dict) -> Reply:
        return Reply()

    def _post_branch(self, repo: Repository, revision: str, path: str, body: bytes, query: dict) -> Reply:
        return self._refer(repo, repo.branches, revision, json.loads(body or b"{}").get("startingPoint") or "main")

    def _post_tag(self, repo: Repository, revision: str, path: str, body: bytes, query: dict) -> Reply:
        return self._refer(repo, repo.tags, json.loads(body)["tag"], revision)

    def _refer(self, repo: Repository, refs: dict[str, str], name: str, revision: str) -> Reply:
        if name in refs:
            raise Refusal(409, f"Reference {name} already exists")
        refs[name] = repo.head(revision).oid
        return Reply()

    def _delete_branch(self, repo: Repository, revision: str, path: str, body: bytes, query: dict) -> Reply:
        return self._forget(repo.branches, revision)

    def _delete_tag(self, repo: Repository, revision: str, path: str, body: bytes, query: dict) -> Reply:
        return self._forget(repo.tags, revision)

    def _forget(self, refs: dict[str, str], name: str) -> Reply:
        if refs.pop(name, None) is None:
            raise Refusal(404, f"Invalid rev id: {name}", "RevisionNotFound")
        return Reply()

    def _put_settings(self, repo: Repository, revision: str, path: str, body: bytes, query: dict) -> Reply:
        settings = json.loads(body)
        repo.private = bool(settings.get("private")) or settings.get("visibility") == "private"
        return Reply.of(settings)


class _Handler(BaseHTTPRequestHandler):
    """HTTP/1.1 in and out, and the faults that are of the connection rather than of the Hub."""

    hub: LoopbackHub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # headers and body in one packet

    def setup(self) -> None:
        super().setup()
        with self.hub.lock:
            self.hub.connections.add(self.connection)

    def finish(self) -> None:
        with self.hub.lock:
            self.hub.connections.discard(self.connection)
        with contextlib.suppress(OSError, ValueError):
            super().finish()

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # the client went away
            super().handle()

    def log_message(self, *arguments: Any) -> None:
        """Nothing on stderr: tests read the list of requests."""

    def _serve(self) -> None:
        path = urlsplit(self.path).path
        fault = self.hub.strike(self.command, path)
        length = int(self.headers.get("Content-Length") or 0)
        chunked = "chunked" in (self.headers.get("Transfer-Encoding") or "")
        if fault and fault.how == "drop" and (length or chunked or self.command == "HEAD"):
            cut = length // 2 if fault.after_bytes is None else fault.after_bytes
            self.rfile.read1() if chunked else self.rfile.read(min(cut, length))
            self._drop(path)
            return
        body = self._chunks() if chunked else self.rfile.read(length)
        if fault and isinstance(fault.how, int):
            message = f"{HTTPStatus(fault.how).phrase} (injected)"
            reply = Reply.of({"error": message}, fault.how, **{"X-Error-Message": message, **fault.headers})
        else:
            reply = self.hub.answer(self.command, self.path, self.headers, body)
        if fault and fault.how == "lost":
            self._drop(path)
            return
        self._send(path, reply, fault if fault and fault.how == "drop" else None)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = _serve

    def _chunks(self) -> bytes:
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _drop(self, path: str) -> None:
        """Reset the connection."""
        self._log(path, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True

    def _send(self, path: str, reply: Reply, cut: Fault | None) -> None:
        """The whole answer, or a part of the promised length."""
        self._log(path, 0 if cut else reply.status)
        self.send_response(reply.status)
        for name, value in {"Content-Length": str(len(reply.body)), **reply.headers}.items():
            self.send_header(name, quote(value, safe=" -_.,:;/'\"=*()[]<>@+!?&#%"))
        self.end_headers()
        stop = len(reply.body)
        if cut:
            self.close_connection = True
            stop = stop // 2 if cut.after_bytes is None else cut.after_bytes
        if self.command != "HEAD":
            self.wfile.write(reply.body[:stop])

    def _log(self, path: str, status: int) -> None:
        with self.hub.lock:
            self.hub.requests.append(Request(self.command, path, status))


def _matcher(pattern: str) -> Callable[[str, str], bool]:
    return lambda method, path: bool(re.search(pattern, f"{method} {path}"))


def _git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _lfs_pointer(sha256: str, size: int) -> bytes:
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def _byte_range(span: str, size: int) -> tuple[int, int]:
    """First and last + 1 of "bytes=first-last", "bytes=first-" or "bytes=-count"."""
    first, _, last = span.removeprefix("bytes=").partition("-")
    if not first:
        return max(size - int(last), 0), size
    return int(first), min(int(last) + 1, size) if last else size


def _with_folders(tree: dict[str, StoredFile]) -> list[str]:
    """Paths of all files and of the folders that hold them, sorted."""
    folders = {str(parent) for name in tree for parent in Path(name).parents}
    return sorted(set(tree) | folders - {"."})


def _details(file: StoredFile) -> dict[str, Any]:
    pointer = {"sha256": file.sha256, "size": file.size, "pointerSize": len(_lfs_pointer(file.sha256, file.size))}
    return {"blobId": file.oid, "size": file.size, **({"lfs": pointer} if file.lfs else {})}


def _entry(tree: dict[str, StoredFile], name: str) -> dict[str, Any]:
    if name not in tree:
        return {"type": "directory", "path": name, "oid": _git_oid(name.encode()), "size": 0}
    file = tree[name]
    pointer = {"oid": file.sha256, "size": file.size, "pointerSize": len(_lfs_pointer(file.sha256, file.size))}
    lfs = {"lfs": pointer} if file.lfs else {}
    return {"type": "file", "path": name, "oid": file.oid, "size": file.size, **lfs}


def _listed(value: Any) -> list:
    return value if isinstance(value, list) else [] if value is None else [value]


def _front_matter(text: str) -> dict[str, Any]:
    """The top-level strings, and lists of strings, of a card's metadata; deeper levels are left out."""
    match = re.match(r"---\r?\n(.*?)\r?\n---", text, re.DOTALL)
    metadata: dict[str, Any] = {}
    key = ""
    for line in (match[1] if match else "").splitlines():
        if found := re.fullmatch(r"([\w-]+):\s*(.*)", line):
            key, value = found[1], found[2].strip("'\" ")
            metadata[key] = value or []
        elif (found := re.fullmatch(r"\s{0,2}- (.*)", line)) and isinstance(metadata.get(key), list):
            metadata[key].append(found[1].strip("'\" "))
    return metadata


ASKS_THE_ENDPOINT = pytest.mark.skipif(
    Version(huggingface_hub.__version__) < Version("2.2"),
    reason="huggingface_hub before 2.2 has huggingface.co check metadata, whatever HF_ENDPOINT says",
)
