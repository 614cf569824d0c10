"""Publish on the Hub: choose the files of a directory, and push them with retries."""

import json
import logging
import shlex
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from ..errors import InputError, first_line, on_one_line
from ..files import json_values
from ..models.finite import check_finite_file
from ..privacy import holds_token, public_settings, public_text, without_tokens


@dataclass
class PushArguments:
    """What is published."""

    _argument_group_name = "publishing"

    directory: str = field(
        metadata={"help": "Output directory of a run, a checkpoint in it, or a converted checkpoint."}
    )
    repo: str = field(metadata={"help": "Repository on the Hub: user/name, or name for your own."})
    results: list[str] = field(
        default_factory=list,
        metadata={"help": "Folders with results.json of evaluations; those of these very weights go into the card."},
    )
    commit_message: str = field(default="Upload checkpoint", metadata={"help": "Title of the commit."})


@dataclass
class HubArguments:
    """How a repository is made and written."""

    _argument_group_name = "Hub"

    private: bool | None = field(
        default=None, metadata={"help": "Make a new repository private; your account's default where not given."}
    )
    revision: str | None = field(default=None, metadata={"help": "Branch, made where it does not exist; main."})
    token: str | None = field(
        default=None, metadata={"help": "Access token; that of `hf auth login`, or HF_TOKEN, where not given."}
    )
    license: str | None = field(
        default=None,
        metadata={"help": "License by its id on the Hub, for example apache-2.0; for a data set, that of its source."},
    )


logger = logging.getLogger(__name__)
PUBLISHED = (
    "README.md",
    "model.safetensors",
    "model-*-of-*.safetensors",
    "model.safetensors.index.json",
    "config.json",
    "preprocessor_config.json",
    "classifier.py",
    "settings.yaml",
    "trainer_state.json",
    "*results.json",
    "*.png",
)
_NEEDED = ("config.json", "model.safetensors.index.json", "README.md")
WAITS = (1.0, 5.0, 20.0, 60.0)  # seconds before a push is tried again
LONGEST_WAIT = 300.0
_REFUSALS = {400, 401, 403, 404, 413, 422}  # trying again does not help
Files = Mapping[str, Path | bytes]


class PublishError(RuntimeError):
    """A push that did not succeed; the message says why."""


def published_files(directory: Path, left_out: Collection[str] = ()) -> dict[str, Path | bytes]:
    """Return what is published of a checkpoint's directory: weights, config, processor, card, results, pictures.

    Optimizer states, pickles and anything else are left out. JSON comes without local paths: each becomes "local:" and
    its last part.

    Args:
        left_out: names of files that are not published, such as those that an earlier run left in the directory.

    Returns:
        From names in the repository to local files, or to contents for texts.

    Raises:
        InputError: if there are no weights, if they are not finite, or a text holds an access token.
    """
    files: dict[str, Path | bytes] = {}
    found = {file for pattern in PUBLISHED for file in directory.glob(pattern) if file.is_file()}
    for file in sorted(found):
        if file.name in left_out:
            continue
        if file.suffix == ".safetensors":
            check_finite_file(file)
        if file.suffix not in (".json", ".md", ".yaml", ".py"):
            files[file.name] = file
            continue
        try:
            files[file.name] = _public_contents(file)
        except InputError:
            raise
        except (ValueError, RecursionError) as error:
            if file.name in _NEEDED:
                raise InputError(f"{file} cannot be published, it is unreadable: {first_line(error)}") from None
            logger.warning("%s is not published, it is unreadable: %s", file, first_line(error))
    if not any(name.endswith(".safetensors") for name in files):
        raise InputError(f"{directory} holds no model.safetensors; give the output directory of a run, or a checkpoint")
    return files


def _public_contents(file: Path) -> bytes:
    text = file.read_text(encoding="utf-8")
    if holds_token(text):
        raise InputError(f"{file} holds an access token of the Hub; remove it, and revoke the token")
    if file.suffix == ".json":
        text = json.dumps(public_settings(json_values(json.loads(text))), indent=2, allow_nan=False) + "\n"
    return text.encode()


def checkpoint_files(checkpoint: Path, folder: str) -> dict[str, Path | bytes]:
    """Return everything that resuming needs of a checkpoint, in a folder of the repository; without local paths.

    Optimizer, schedule and random states are PyTorch files, which `torch.load(weights_only=True)` reads.
    """
    files = published_files(checkpoint)
    files |= {file.name: file for file in sorted(checkpoint.iterdir()) if file.is_file() and file.name not in files}
    return {f"{folder}/{name}": file for name, file in files.items()}


class Publisher:
    """Pushes files to a repository of the Hub; what fails for a passing reason is tried again.

    Args:
        repo_id: "user/name", or "name" for the user of the token.
        token: with permission to write; the stored one, or HF_TOKEN, where None.
        private: of a repository that is made now; the account's default where None.
        revision: branch to push to, made where it does not exist; "main" where None.
        repo_type: "model" or "dataset".
        waits: seconds before each new try; where the Hub says when to come back, that counts.

    Raises:
        InputError: if `repo_id` cannot be one.
    """

    def __init__(
        self,
        repo_id: str,
        token: str | None = None,
        private: bool | None = None,
        revision: str | None = None,
        repo_type: str = "model",
        waits: Sequence[float] | None = None,
    ):
        try:
            validate_repo_id(repo_id)
        except HFValidationError as error:
            raise InputError(f"{repo_id!r} cannot be the name of a repository: {error}") from None
        self.repo_id, self.private, self.revision, self.repo_type = repo_id, private, revision, repo_type
        self._where: dict[str, Any] = {"repo_type": repo_type, "revision": revision}
        self.waits = WAITS if waits is None else tuple(waits)
        self.api = HfApi(token=token, library_name="modeling-kamim")
        self._is_ready = False
        self._thread: threading.Thread | None = None

    def prepare(self) -> None:
        """Make the repository and the branch, unless they are there; completes `repo_id` by the user's name.

        Raises:
            PublishError: if the Hub does not let it, or cannot be reached.
        """
        if not self._is_ready:
            self._persist(self._prepare)
            self._is_ready = True

    def push(self, files: Files, message: str) -> str:
        """Push files in one commit, after what is being pushed in the background.

        Returns:
            Address of the commit.

        Raises:
            PublishError: if it failed for good.
        """
        self.wait()
        return self._push(files, message)

    def push_folder(self, folder: Path, patterns: Sequence[str], message: str) -> str:
        """Push the files of a folder that match a pattern; what an earlier try has pushed is not sent again.

        Returns:
            Address of the commit.

        Raises:
            PublishError: if it failed for good.
        """
        self.prepare()
        upload = partial(self.api.upload_folder, repo_id=self.repo_id, folder_path=folder, **self._where)
        return self._persist(lambda: upload(allow_patterns=list(patterns), commit_message=message).commit_url)

    def push_in_background(self, files: Files, message: str) -> None:
        """Push while the caller goes on; skipped while an earlier push is under way. A failure is only logged.

        The files may be deleted at once (not overwritten): what is pushed are links to them.

        Raises:
            OSError: if the links cannot be made.
        """
        if self._thread is not None and self._thread.is_alive():
            return
        stage = tempfile.TemporaryDirectory(prefix=".publishing-", dir=_common_folder(files))
        staged = {name: _link(file, Path(stage.name)) for name, file in files.items()}

        def work() -> None:
            with stage:
                try:
                    logger.info("%s: %s", message, self._push(staged, message))
                except PublishError as error:
                    logger.warning("%s was not published, the training goes on: %s", message, error)

        self._thread = threading.Thread(target=work, daemon=True, name="publishing")
        self._thread.start()

    def wait(self) -> None:
        """Wait for the push in the background, if there is one."""
        if self._thread is not None:
            self._thread.join()

    def command(self, directory: Path) -> str:
        """Return the command that publishes a directory later."""
        options = ["--private", "true"] if self.private else []
        options += ["--revision", self.revision] if self.revision else []
        return shlex.join(["kamim", "push", str(directory), "--repo", self.repo_id, *options])

    def _push(self, files: Files, message: str) -> str:
        self.prepare()
        commit = partial(self.api.create_commit, self.repo_id, commit_message=message, **self._where)

        def push() -> str:
            operations = [CommitOperationAdd(name, file) for name, file in files.items()]  # new ones for each try
            return commit(operations).commit_url

        return self._persist(push)

    def _prepare(self) -> None:
        where: dict[str, Any] = {"repo_type": self.repo_type, "exist_ok": True}
        self.repo_id = self.api.create_repo(self.repo_id, private=self.private, **where).repo_id
        if self.revision not in (None, "main"):
            self.api.create_branch(self.repo_id, branch=self.revision, **where)

    def _persist(self, action: Callable[[], Any]) -> Any:
        for wait in (*self.waits, None):
            try:
                return action()
            except Exception as error:  # of the HTTP library, of the Hub, of the network: none may end a training
                if wait is None or _is_final(error):
                    raise PublishError(self._reason(error)) from error
                wait = max(wait, _asked_wait(error))
                logger.warning("The Hub: %s; trying again in %.0f s", self._reason(error), wait)
                time.sleep(wait)

    def _reason(self, error: Exception) -> str:
        text = without_tokens(on_one_line(error))
        if _status(error) in (401, 403):
            return f"the Hub refuses the token for {self.repo_id} (`hf auth login`, or HF_TOKEN): {text}"
        return text if _response(error) is not None else f"{text} ({public_text(self.api.endpoint)})"


def _response(error: BaseException) -> Any:
    """Return the Hub's answer; that to an upload is in the cause of huggingface_hub's RuntimeError."""
    answers = (getattr(cause, "response", None) for cause in (error, error.__cause__))
    return next((answer for answer in answers if answer is not None), None)


def _status(error: Exception) -> int | None:
    return getattr(_response(error), "status_code", None)


def _is_final(error: Exception) -> bool:
    return _status(error) in _REFUSALS or isinstance(error, HFValidationError | FileNotFoundError)


def _asked_wait(error: Exception) -> float:
    asked = getattr(_response(error), "headers", {}).get("Retry-After", "")
    return min(float(asked), LONGEST_WAIT) if asked.isdigit() else 0.0


def _common_folder(files: Files) -> Path | None:
    """Return a folder on the file system of the files, so that they can be linked there."""
    parents = {file.parent.parent for file in files.values() if isinstance(file, Path)}
    return min(parents, key=lambda parent: len(parent.parts), default=None)


def _link(file: Path | bytes, folder: Path) -> Path | bytes:
    if isinstance(file, bytes):
        return file
    link = folder / uuid4().hex
    try:
        link.hardlink_to(file.resolve())
    except OSError:  # of a file system without links
        shutil.copyfile(file, link)
    return link
