"""Uploading to the Hub and downloading from it: what every upload here has in common, and errors that say what to do.

Tokens are huggingface_hub's business (`hf auth login`, or the environment variable HF_TOKEN). Nothing here reads,
prints or stores one, and no message repeats what a server said.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
from huggingface_hub import HfApi, get_token, hf_hub_download, is_offline_mode, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id
from lerobot.datasets.dataset_metadata import CODEBASE_VERSION, LeRobotDatasetMetadata
from lerobot.datasets.utils import DEFAULT_TASKS_PATH, EPISODES_DIR, INFO_PATH, STATS_PATH
from lerobot.utils.constants import HF_LEROBOT_HUB_CACHE

from world_modality_core.io.dataset_files import named_files
from world_modality_core.io.errors import ConfigError
from world_modality_core.io.first_look import missing

AGAIN = "give the same command again: files that arrived are not sent a second time"
LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"
CARD_FILE = "README.md"
HUB_PREFIX = "hf://"
# Of a dataset's metadata: LeRobot's, and what this project adds.
_META_FILES = (
    INFO_PATH, STATS_PATH, DEFAULT_TASKS_PATH, f"{EPISODES_DIR}/*/*.parquet", "meta/wm_record.json",
    "meta/world_modality.json", "meta/world_modality_source.json", "meta/world_stats.safetensors",
    "meta/world_pca.safetensors", "meta/world_codebook.safetensors",
)  # fmt: skip
_ON_HUB = re.compile(r"hf://datasets/(?P<repo_id>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^/@]+))?/(?P<file>[^@]+)")


class HubError(ConfigError):
    """The Hub could not be used; the message names the repository and the remedy."""


@contextmanager
def hub_errors(
    repo_id: str, revision: str | None = None, *, uploads: bool = False, again: str = AGAIN
) -> Iterator[None]:
    """Turn what huggingface_hub (or LeRobot, around it) raises into one line with a remedy.

    Args:
        repo_id: What is read or written.
        revision: Its branch, tag or commit, if one was asked for.
        uploads: Whether it is written.
        again: How an upload that broke is gone on with.

    Raises:
        HubError: in place of an error of the Hub or of the network; any other error passes.
    """
    try:
        yield
    except Exception as error:
        line = explain(error, repo_id, revision, again if uploads else "")
        if line is None:
            raise
        # Without the chain: a server's own words may repeat what was sent to it.
        raise HubError(line) from None


def explain(error: BaseException, repo_id: str, revision: str | None, again: str) -> str | None:
    """The line that stands for an error of the Hub or of the network; None if it is another kind of error.

    Args:
        error: What was raised.
        repo_id: What is read or written.
        revision: Its branch, tag or commit, if one was asked for.
        again: How an upload that broke is gone on with; empty for a download.
    """
    what = f"repo_id={repo_id!r}"
    while True:
        line = _explain_one(error, what, revision, again)
        if line is not None and not again and Path(repo_id).parts[1:] and Path(repo_id).parent.is_dir():
            line += f". Was a folder meant? {missing(repo_id)}"
        # An upload's threads, and LeRobot, wrap the error that says why.
        if line is not None or (error.__cause__ or error.__context__) is None:
            return line
        error = error.__cause__ or error.__context__


def _explain_one(error: BaseException, what: str, revision: str | None, again: str) -> str | None:
    uploads, then = bool(again), f"; then {again}" if again else ""
    if isinstance(error, HFValidationError):
        return f"{what} can't be the name of a repository: expected USER/NAME of letters, digits, '-', '_' and '.'"
    if isinstance(error, OfflineModeIsEnabled):
        needed = "uploading needs the Hub" if uploads else "it was not downloaded before"
        return f"{what}: HF_HUB_OFFLINE forbids to ask the Hub, and {needed}; unset it"
    if isinstance(error, LocalTokenNotFoundError):
        return f"{what}: no token was found; {LOG_IN}"
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        if isinstance(error, RevisionNotFoundError):
            return f"{what} has no revision {revision or CODEBASE_VERSION!r}: name a branch, tag or commit that it has"
        if isinstance(error, EntryNotFoundError):
            return f"{what} (revision {revision or 'main'}) has no file {_file_of(error)}: name another repository"
        if isinstance(error, GatedRepoError):
            return f"{what} is gated: ask for access on its page, then {LOG_IN}"
        if status == 401 and uploads:
            whose = "the Hub does not accept the token that was found" if get_token() else "no token was found"
            return f"{what}: {whose} (401); {LOG_IN}, with a token that may write"
        if isinstance(error, RepositoryNotFoundError) or status == 401:
            whose = "the token that was found may not read it" if get_token() else "no token was found"
            return f"{what} does not exist, or is private and {whose} ({status}): check the name, or {LOG_IN}"
        if status == 403:
            return (
                f"{what}: the token that was found may not {'write there' if uploads else 'read it'} (403); {LOG_IN}, "
                f"with a token that may{' write' if uploads else ''}, and check the user's name"
            )
        if status == 429:
            return f"{what}: the Hub asks to slow down (429); wait some minutes{then}"
        return f"{what}: the Hub answered with error {status}; try later{then}"
    if isinstance(error, httpx.TransportError):
        remedy = then or ", or set HF_HUB_OFFLINE=1 to use what was downloaded before"
        return f"{what}: the connection to the Hub failed ({type(error).__name__}); check the network{remedy}"
    if isinstance(error, LocalEntryNotFoundError) and error.__cause__ is None:
        return f"{what} (revision {revision or 'main'}) is not among what was downloaded before; unset HF_HUB_OFFLINE"
    return None


def _file_of(error: HfHubHTTPError) -> str:
    return repr(error.response.url.path.rsplit("/", 1)[-1])


def check_upload(repo_id: str, asked_by: str = "") -> None:
    """Refuse an upload that can't work, without asking the Hub: before the work that makes what is uploaded.

    Args:
        repo_id: Where to.
        asked_by: What the message begins with: the option that asks for the upload.

    Raises:
        HubError: if uploads are forbidden, there is no token, or the name can't be one.
    """
    try:
        with hub_errors(repo_id, uploads=True):
            validate_repo_id(repo_id)
            if is_offline_mode():
                raise OfflineModeIsEnabled
            if get_token() is None:
                raise LocalTokenNotFoundError
        if "/" not in repo_id:
            raise HubError(f"repo_id={repo_id!r} does not say whose: expected USER/NAME")
    except HubError as error:
        raise HubError(f"{asked_by}{error}") from None


def push_folder(
    repo_id: str,
    folder: Path,
    *,
    repo_type: str,
    card: str,
    files: Iterable[str],
    replaced: Mapping[str, str] | None = None,
    delete: list[str] | None = None,
    private: bool = False,
    branch: str | None = None,
    tag: str | None = None,
) -> str:
    """Upload a folder and its card to a repository, which is made if it isn't there.

    Nothing is written into the folder. Sending the same again is harmless: files that are there are not sent, and a
    commit that would change nothing is not made.

    Args:
        repo_id: USER/NAME.
        folder: What to upload.
        repo_type: "model" or "dataset".
        card: Text of README.md.
        files: Of the folder's files, those to upload (`own_files`).
        replaced: Name -> text of files that are uploaded with another text than they have here.
        delete: Patterns of files to delete there where they are not among those uploaded.
        private: Make a new repository private; an existing one must be.
        branch: Branch to upload to, made if it isn't there; the main one if not given.
        tag: Tag to move to the new commit.

    Returns:
        The repository's address.

    Raises:
        HubError: naming the remedy.
    """
    check_upload(repo_id)
    api = HfApi()
    with hub_errors(repo_id, branch, uploads=True), TemporaryDirectory() as staged:
        address = api.create_repo(repo_id, repo_type=repo_type, private=private or None, exist_ok=True)
        if private and not api.repo_info(repo_id, repo_type=repo_type).private:
            raise HubError(
                f"repo_id={repo_id!r} exists and is public, and private=true was asked for: make it private in its "
                "settings on the Hub, or name another repository"
            )
        if branch:
            api.create_branch(repo_id, branch=branch, repo_type=repo_type, exist_ok=True)
        texts = {**(replaced or {}), CARD_FILE: card}
        _stage(folder, Path(staged), files, texts)
        api.upload_folder(
            repo_id=repo_id, repo_type=repo_type, folder_path=staged, revision=branch, delete_patterns=delete,
            commit_message=f"Upload {folder.name}",
        )  # fmt: skip
        if tag:
            _move_tag(api, repo_id, repo_type, tag, branch)
    return str(address)


def own_files(folder: Path, names: Iterable[str]) -> list[str]:
    """Of some names, those of files that lie in a folder, each the file itself: what may be uploaded from there.

    Args:
        folder: The folder.
        names: Names of files in it, or patterns of them.

    Returns:
        The files' names, sorted.

    Raises:
        HubError: if one is a link, or lies in a linked folder.
    """
    found = {path for name in names for path in folder.glob(name)}
    for path in sorted(found):
        for part in (path, *path.parents):
            if part == folder:
                break
            if part.is_symlink():
                raise HubError(
                    f"{part} is a link, and what links lead to is not uploaded: put the file there itself, or remove it"
                )
    return sorted(path.relative_to(folder).as_posix() for path in found if path.is_file())


def _stage(folder: Path, staged: Path, files: Iterable[str], texts: Mapping[str, str]) -> None:
    """Links to the files, and files of the texts: a folder that is exactly what is uploaded."""
    for name in files:
        if name not in texts:
            (staged / name).parent.mkdir(parents=True, exist_ok=True)
            os.symlink((folder / name).absolute(), staged / name)
    for name, text in texts.items():
        (staged / name).parent.mkdir(parents=True, exist_ok=True)
        (staged / name).write_text(text, encoding="utf-8")


def _move_tag(api: HfApi, repo_id: str, repo_type: str, tag: str, branch: str | None) -> None:
    refs = api.list_repo_refs(repo_id, repo_type=repo_type)
    head = next((ref.target_commit for ref in refs.branches if ref.name == (branch or "main")), None)
    tags = {ref.name: ref.target_commit for ref in refs.tags}
    if tags.get(tag) == head and head:
        return
    if tag in tags:
        api.delete_tag(repo_id, tag=tag, repo_type=repo_type)
    api.create_tag(repo_id, tag=tag, revision=branch, repo_type=repo_type)


def push_dataset(
    repo_id: str, root: Path, card: str, *, private: bool = False, branch: str | None = None
) -> str:  # fmt: skip
    """Upload a LeRobotDataset as it lies in a folder, with the version tag that LeRobot looks for.

    Args, returns and raises: as `push_folder`.
    """
    return push_folder(
        repo_id, root, repo_type="dataset", card=card, files=dataset_files(root),
        delete=["data/*", "meta/episodes/*", "meta/world_*", "videos/*"], private=private, branch=branch,
        tag=CODEBASE_VERSION,
    )  # fmt: skip


def dataset_files(root: Path) -> list[str]:
    """Names of the files that a LeRobotDataset, a companion or a labelled dataset is made of.

    Raises:
        HubError: if one is a link.
        ConfigError: if the metadata names files elsewhere.
    """
    named = own_files(root, _META_FILES)
    return named + own_files(root, map(escape, named_files(LeRobotDatasetMetadata(root.name, root=root))))


def downloaded_dataset(repo_id: str, revision: str | None = None) -> Path:
    """The folder of a dataset that was downloaded before.

    LeRobot asks the Hub for a dataset's versions even where all of it is here; this asks nobody.

    Raises:
        HubError: if that revision was not downloaded.
    """
    with hub_errors(repo_id, revision or CODEBASE_VERSION):
        return Path(
            snapshot_download(
                repo_id, repo_type="dataset", revision=revision or CODEBASE_VERSION, cache_dir=HF_LEROBOT_HUB_CACHE,
                allow_patterns="meta/*", local_files_only=True,
            )
        )  # fmt: skip


def local_file(name: str | Path) -> Path:
    """A file here, or a downloaded copy of one on the Hub: `hf://datasets/USER/NAME[@REVISION]/PATH`.

    Raises:
        HubError: if it can't be downloaded.
    """
    if not str(name).startswith(HUB_PREFIX):
        return Path(name)
    named = _ON_HUB.fullmatch(str(name))
    if named is None:
        raise HubError(f"{str(name)!r}: expected hf://datasets/USER/NAME[@REVISION]/PATH, or a file")
    with hub_errors(named["repo_id"], named["revision"]):
        return Path(hf_hub_download(named["repo_id"], named["file"], repo_type="dataset", revision=named["revision"]))
