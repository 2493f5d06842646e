"""A small Hub on the loopback: the endpoints that huggingface_hub 1.x asks for when it uploads and downloads.

It stores bytes, makes commits, checks tokens, and can be told to fail. Run by a thread of the test; the programs under
test are other processes that reach it through HF_ENDPOINT.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

LFS_SUFFIXES = (".safetensors", ".parquet", ".mp4")


@dataclass
class Commit:
    """A state of a repository: path -> (bytes, whether stored as LFS)."""

    sha: str
    files: dict[str, tuple[bytes, bool]]


@dataclass
class Repository:
    """A repository and its history."""

    kind: str
    name: str
    private: bool
    commits: list[Commit] = field(default_factory=list)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.commit("main", {})

    def commit(self, branch: str, files: dict[str, tuple[bytes, bool]]) -> str:
        """Make a commit of these files, as the new head of a branch."""
        digest = hashlib.sha1(f"{self.kind}/{self.name} {len(self.commits)}".encode())
        for path, (content, _) in sorted(files.items()):
            digest.update(path.encode() + content)
        self.commits.append(Commit(digest.hexdigest(), dict(files)))
        self.branches[branch] = digest.hexdigest()
        return digest.hexdigest()

    def at(self, revision: str) -> Commit | None:
        """The commit of a branch, tag or hash."""
        sha = self.branches.get(revision) or self.tags.get(revision) or revision
        return next((commit for commit in self.commits if commit.sha == sha), None)


class Hub:
    """The server's state, and its switches.

    Attributes:
        tokens: Token -> user. A user may write under its own name and read its private repositories.
        repositories: (kind, name) -> repository; kinds are "models" and "datasets".
        drops: How many of the next LFS uploads are cut off half-way.
        fails: Status that every request to the API gets, 0 for none.
        fails_commits: Status that every commit gets, 0 for none.
        uploaded: How often each LFS object arrived in full.
        log: "METHOD path" of every request.
    """

    def __init__(self, tokens: dict[str, str]):
        self.tokens = tokens
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.drops, self.fails, self.fails_commits = 0, 0, 0
        self.uploaded: Counter[str] = Counter()
        self.log: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Hub:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def files(self, kind: str, name: str, revision: str = "main") -> dict[str, bytes]:
        """What a repository holds."""
        commit = self.repositories[kind, name].at(revision)
        return {path: content for path, (content, _) in commit.files.items()}

    def head(self, kind: str, name: str) -> str:
        """The commit of the main branch."""
        return self.repositories[kind, name].branches["main"]


class _Refused(Exception):
    def __init__(self, status: int, code: str = "", message: str = ""):
        self.status, self.code, self.message = status, code, message


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def _serve(self) -> None:
        self.hub.log.append(f"{self.command} {self.path}")
        url = urlsplit(self.path)
        self.query, self.body = parse_qs(url.query), None
        if self.command == "PUT":  # an LFS object, whose reading may be cut off
            self._put_object(url.path)
            return
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            if url.path == "/control":  # a test's other process sets a switch
                vars(self.hub).update(json.loads(self.body))
                self._send(200, {})
                return
            if self.hub.fails:
                raise _Refused(self.hub.fails, message="told to fail")
            for method, pattern, name in _ROUTES:
                match = re.fullmatch(pattern, url.path)
                if match and self.command in method:
                    getattr(self, name)(*(part and unquote(part) for part in match.groups()))
                    return
            raise _Refused(404, "EntryNotFound", "no such endpoint")
        except _Refused as refused:
            headers = {"X-Error-Code": refused.code, "X-Error-Message": refused.message}
            self._send(refused.status, {"error": refused.message}, {k: v for k, v in headers.items() if v})

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = _serve

    # What is sent back.

    def _send(self, status: int, content: bytes | dict | list, headers: dict[str, str] | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    # Who asks, and for what.

    def _user(self) -> str | None:
        given = self.headers.get("Authorization", "")
        if not given:
            return None
        user = self.hub.tokens.get(given.removeprefix("Bearer "))
        if user is None:
            raise _Refused(401, message="Invalid credentials in Authorization header")
        return user

    def _find(self, kind: str, name: str, writes: bool = False) -> Repository:
        user, repository = self._user(), self.hub.repositories.get((kind, name))
        owns = user is not None and name.split("/")[0] == user
        if repository is None or (repository.private and not owns):
            raise _Refused(404 if user else 401, "RepoNotFound", "Repository not found")
        if writes and not owns:
            raise _Refused(403, message=f"You don't have the rights to write to {name}")
        return repository

    def _commit_of(self, repository: Repository, revision: str) -> Commit:
        commit = repository.at(revision)
        if commit is None:
            raise _Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    # Making and describing repositories.

    def create(self) -> None:
        wanted, user = json.loads(self.body), self._user()
        if user is None:
            raise _Refused(401, message="Invalid username or password.")
        name, kind = f"{wanted.get('organization') or user}/{wanted['name']}", f"{wanted.get('type') or 'model'}s"
        if name.split("/")[0] != user:
            raise _Refused(403, message=f"You don't have the rights to create a repository under {name}")
        there = (kind, name) in self.hub.repositories
        if not there:
            self.hub.repositories[kind, name] = Repository(kind, name, wanted.get("visibility") == "private")
        prefix = "" if kind == "models" else f"{kind}/"
        self._send(409 if there else 200, {"url": f"{self.hub.url}/{prefix}{name}"})

    def validate_yaml(self) -> None:
        self._send(200, {"errors": [], "warnings": []})

    def info(self, kind: str, name: str, revision: str = "main") -> None:
        repository = self._find(kind, name)
        commit = self._commit_of(repository, revision)
        siblings = [{"rfilename": path} for path in commit.files]
        said = {"id": name, "sha": commit.sha, "private": repository.private, "siblings": siblings, "tags": []}
        self._send(200, said | {"downloads": 0, "likes": 0})

    def refs(self, kind: str, name: str) -> None:
        repository = self._find(kind, name)

        def told(refs: dict[str, str], where: str) -> list[dict]:
            return [{"name": n, "ref": f"refs/{where}/{n}", "targetCommit": sha} for n, sha in refs.items()]

        said = {"branches": told(repository.branches, "heads"), "tags": told(repository.tags, "tags"), "converts": []}
        self._send(200, said)

    def branch(self, kind: str, name: str, branch: str) -> None:
        repository = self._find(kind, name, writes=True)
        if branch in repository.branches:
            raise _Refused(409, message="Reference already exists")
        repository.branches[branch] = repository.branches["main"]
        self._send(200, {})

    def tag(self, kind: str, name: str, which: str) -> None:
        repository = self._find(kind, name, writes=True)
        if self.command == "DELETE":
            if repository.tags.pop(which, None) is None:
                raise _Refused(404, "RevisionNotFound", "no such tag")
        else:
            repository.tags[json.loads(self.body)["tag"]] = self._commit_of(repository, which).sha
        self._send(200, {})

    def tree(self, kind: str, name: str, revision: str) -> None:
        files = self._commit_of(self._find(kind, name), revision).files
        self._send(200, [_entry(path, *stored) for path, stored in files.items()])

    # Uploading: which way each file goes, the LFS objects, the commit.

    def preupload(self, kind: str, name: str, revision: str) -> None:
        there = self._commit_of(self._find(kind, name, writes=True), revision).files
        answers = []
        for file in json.loads(self.body)["files"]:
            path = file["path"]
            mode = "lfs" if path.endswith(LFS_SUFFIXES) else "regular"
            oid = _oid(*there[path]) if path in there else None
            answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self._send(200, {"files": answers})

    def batch(self, kind: str | None, name: str) -> None:
        self._find(kind or "models", name, writes=True)
        told = []
        for wanted in json.loads(self.body)["objects"]:
            answer = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.hub.objects:
                answer["actions"] = {"upload": {"href": f"{self.hub.url}/objects/{wanted['oid']}", "header": {}}}
            told.append(answer)
        self._send(200, {"transfer": "basic", "objects": told})

    def _put_object(self, path: str) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        if self.hub.drops:
            self.hub.drops -= 1
            self.rfile.read(length // 2)
            self.close_connection = True
            self.connection.close()
            return
        content, oid = self._read_body(length), path.rsplit("/", 1)[-1]
        if hashlib.sha256(content).hexdigest() != oid:
            self._send(400, {"error": "not the object that was announced"})
            return
        self.hub.objects[oid] = content
        self.hub.uploaded[oid] += 1
        self._send(200, b"")

    def _read_body(self, length: int) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(length)
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def commit(self, kind: str, name: str, branch: str) -> None:
        repository = self._find(kind, name, writes=True)
        if self.hub.fails_commits:
            raise _Refused(self.hub.fails_commits, message="told to fail")
        files = dict(self._commit_of(repository, branch).files)
        for line in self.body.splitlines():
            item = json.loads(line)
            value, key = item["value"], item["key"]
            if key == "file":
                files[value["path"]] = (base64.b64decode(value["content"]), False)
            elif key == "lfsFile":
                if value["oid"] not in self.hub.objects:
                    raise _Refused(400, message="an LFS object of the commit was not uploaded")
                files[value["path"]] = (self.hub.objects[value["oid"]], True)
            elif key == "deletedFile":
                files.pop(value["path"], None)
        sha = repository.commit(branch, files)
        self._send(200, {"commitUrl": f"{self.hub.url}/{name}/commit/{sha}", "commitOid": sha, "success": True})

    # Downloading.

    def resolve(self, kind: str | None, name: str, revision: str, path: str) -> None:
        commit = self._commit_of(self._find(kind or "models", name), revision)
        if path not in commit.files:
            raise _Refused(404, "EntryNotFound", "Entry not found")
        content, is_lfs = commit.files[path]
        etag = f'"{_oid(content, is_lfs)}"'
        self._send(200, content, {"X-Repo-Commit": commit.sha, "ETag": etag, "X-Linked-Size": str(len(content))})


def _oid(content: bytes, is_lfs: bool) -> str:
    """The object id that Git gives a file: of its bytes, or of LFS's own hash."""
    if is_lfs:
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _entry(path: str, content: bytes, is_lfs: bool) -> dict:
    entry = {"type": "file", "path": path, "size": len(content), "oid": _oid(content, False)}
    if is_lfs:
        entry["lfs"] = {"oid": _oid(content, True), "size": len(content), "pointerSize": 134}
    return entry


_API, _REPO = r"/api/(models|datasets)", r"([\w.-]+/[\w.-]+)"
_ROUTES = [
    (("POST",), "/api/repos/create", "create"),
    (("POST",), "/api/validate-yaml", "validate_yaml"),
    (("GET",), f"{_API}/{_REPO}/refs", "refs"),
    (("GET",), f"{_API}/{_REPO}/tree/([^/]+)", "tree"),
    (("GET",), f"{_API}/{_REPO}/revision/([^/]+)", "info"),
    (("GET",), f"{_API}/{_REPO}", "info"),
    (("POST",), f"{_API}/{_REPO}/branch/([^/]+)", "branch"),
    (("POST", "DELETE"), f"{_API}/{_REPO}/tag/([^/]+)", "tag"),
    (("POST",), f"{_API}/{_REPO}/preupload/([^/]+)", "preupload"),
    (("POST",), f"{_API}/{_REPO}/commit/([^/]+)", "commit"),
    (("POST",), rf"/(?:(datasets)/)?{_REPO}\.git/info/lfs/objects/batch", "batch"),
    (("GET", "HEAD"), f"/(?:(datasets)/)?{_REPO}/resolve/([^/]+)/(.+)", "resolve"),
]
