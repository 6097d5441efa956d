"""A Hugging Face Hub on loopback: the part of its protocol that pushes and pulls models, kept in memory.

Repository creation, branches, preupload, LFS batch, upload and verification, commits and pull requests, model info and
file resolution, as `huggingface_hub` speaks them. Tokens: "hf_writer" may write, "hf_reader" may only read.
"""

import base64
import contextlib
import hashlib
import http.server
import io
import json
import logging
import os
import re
import threading
import traceback
import urllib.parse
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import yaml
from huggingface_hub import constants, hf_api

LFS_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".pkl", ".png")


@dataclass
class Repo:
    """Branches of a repository: by name, the contents by path."""

    private: bool = False
    branches: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"main": {}})
    messages: list[str] = field(default_factory=list)

    def sha(self, branch: str) -> str:
        files = self.branches[branch]
        return hashlib.sha1(repr(sorted((p, hashlib.sha1(c).digest()) for p, c in files.items())).encode()).hexdigest()

    def resolve(self, revision: str) -> str | None:
        """The branch that a branch's name or a commit's hash stands for."""
        return next((b for b in self.branches if revision in (b, self.sha(b))), None)


class Hub:
    """What the server holds.

    Attributes:
        repos: By name.
        collections: Models by the slug of a collection, "user/title".
        objects: Of LFS, by sha256.
        requests: Method and path of each request.
        fault: Status, code and message to answer every request with; None to close the connection; False to serve.
    """

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.collections: dict[str, list[str]] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.fault: tuple[int, str, str] | bool | None = False
        self.url = ""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or answers wait 40 ms between their headers and their content
    hub: Hub

    def log_message(self, *args) -> None:
        pass

    def _answer(self, status: int, content: object = None, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content or {}).encode()
        self.send_response(status)
        self.send_header("Content-Length", headers.pop("content_length", str(len(body))))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _error(self, status: int, code: str, message: str) -> None:
        self._answer(status, {"error": message}, X_Error_Code=code, X_Error_Message=message)

    def _handle(self) -> None:
        url = urllib.parse.urlsplit(self.path)
        path = url.path
        self.hub.requests.append(f"{self.command} {path}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.hub.fault is None:
            self.close_connection = True
            return None
        if self.hub.fault:
            return self._error(*self.hub.fault)
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token not in ("", "hf_writer", "hf_reader"):
            return self._error(401, "", "Invalid credentials in Authorization header")
        if self.command in ("POST", "PUT") and not path.startswith(("/lfs/", "/api/validate-yaml")):
            if not token:
                return self._error(401, "", "Invalid username or password.")
            if token == "hf_reader":
                return self._error(403, "", "You don't have the rights to write here")
        for method, pattern, action in self.routes:
            match = re.fullmatch(pattern, path)
            if match and self.command in method:
                arguments = {key: urllib.parse.unquote(value) for key, value in match.groupdict().items()}
                repo = self.hub.repos.get(arguments.pop("repo", None))
                repo = None if repo and repo.private and not token else repo
                if repo is None and "(?P<repo>" in pattern:
                    return self._error(404, "RepoNotFound", "Repository not found")
                if repo is not None:
                    arguments["repo"] = repo
                if arguments.get("revision") is not None and repo.resolve(arguments["revision"]) is None:
                    return self._error(404, "RevisionNotFound", "Revision not found")
                return action(self, body=body, query=urllib.parse.parse_qs(url.query), **arguments)
        return self._error(404, "", f"no such page: {self.command} {path}")

    do_GET = do_HEAD = do_POST = do_PUT = _handle  # noqa: N815

    def _create(self, body, query) -> None:
        asked = json.loads(body)
        name = f"{asked.get('organization') or 'writer'}/{asked['name']}"
        url = f"{self.hub.url}/{name}"
        if name in self.hub.repos:
            return self._answer(409, {"error": "You already created this model repo", "url": url})
        private = asked.get("private", False) or asked.get("visibility") == "private"
        self.hub.repos[name] = Repo(private)
        return self._answer(200, {"url": url, "name": name})

    def _branch(self, body, query, repo: Repo, name: str) -> None:
        if name in repo.branches:
            return self._answer(409, {"error": "Reference already exists"})
        repo.branches[name] = dict(repo.branches["main"])
        return self._answer(200)

    @staticmethod
    def _oid(content: bytes | None, path: str) -> str | None:
        """What the Hub names a file by: git's hash, or the sha256 that LFS takes."""
        if content is None:
            return None
        if path.endswith(LFS_SUFFIXES):
            return hashlib.sha256(content).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    def _preupload(self, body, query, repo: Repo, revision: str) -> None:
        files = json.loads(body)["files"]
        modes = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(LFS_SUFFIXES) else "regular",
                "shouldIgnore": False,
                "oid": self._oid(repo.branches[repo.resolve(revision)].get(file["path"]), file["path"]),
            }
            for file in files
        ]
        self._answer(200, {"files": modes})

    def _batch(self, body, query, repo: Repo) -> None:
        objects = [
            {
                **asked,
                "authenticated": True,
                "actions": {
                    "upload": {"href": f"{self.hub.url}/lfs/{asked['oid']}", "header": {}},
                    "verify": {"href": f"{self.hub.url}/lfs/verify", "header": {}},
                },
            }
            for asked in json.loads(body)["objects"]
        ]
        self._answer(200, {"transfer": "basic", "objects": objects})

    def _upload(self, body, query, oid: str) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            return self._error(400, "", "the content does not match its sha256")
        self.hub.objects[oid] = body
        return self._answer(200)

    def _verify(self, body, query) -> None:
        asked = json.loads(body)
        held = self.hub.objects.get(asked["oid"])
        return self._answer(200 if held is not None and len(held) == asked["size"] else 404)

    def _validate(self, body, query) -> None:
        front = json.loads(body)["content"].split("---")[1]
        errors = [] if isinstance(yaml.safe_load(front), dict) else [{"message": "not a mapping"}]
        self._answer(200, {"errors": errors, "warnings": []})

    def _commit(self, body, query, repo: Repo, revision: str) -> None:
        pull_request = query.get("create_pr") == ["1"]
        files = dict(repo.branches[repo.resolve(revision)])
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                repo.messages.append(value["summary"])
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        branch = "refs/pr/1" if pull_request else repo.resolve(revision)
        repo.branches[branch] = files
        name = next(n for n, r in self.hub.repos.items() if r is repo)
        oid = repo.sha(branch)
        answer = {"success": True, "commitUrl": f"{self.hub.url}/{name}/commit/{oid}", "commitOid": oid}
        if pull_request:
            answer["pullRequestUrl"] = f"{self.hub.url}/{name}/discussions/1"
        self._answer(200, answer)

    def _info(self, body, query, repo: Repo, revision: str = "main") -> None:
        name = next(n for n, r in self.hub.repos.items() if r is repo)
        branch = repo.resolve(revision)
        siblings = [{"rfilename": path} for path in sorted(repo.branches[branch])]
        self._answer(
            200, {"id": name, "modelId": name, "sha": repo.sha(branch), "private": repo.private, "siblings": siblings}
        )

    def _tree(self, body, query, repo: Repo, revision: str) -> None:
        files = repo.branches[repo.resolve(revision)]
        entries = [{"type": "file", "path": p, "size": len(c), "oid": self._oid(c, p)} for p, c in files.items()]
        self._answer(200, entries)

    def _resolve(self, body, query, repo: Repo, revision: str, path: str) -> None:
        branch = repo.resolve(revision)
        content = repo.branches[branch].get(path)
        commit = repo.sha(branch)
        if content is None:
            message = "Entry not found"
            return self._answer(
                404, {"error": message}, X_Error_Code="EntryNotFound", X_Error_Message=message, X_Repo_Commit=commit
            )
        headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X_Repo_Commit": commit}
        if path.endswith(LFS_SUFFIXES):
            headers |= {"X_Linked_Etag": f'"{hashlib.sha256(content).hexdigest()}"', "X_Linked_Size": str(len(content))}
        return self._answer(200, content, **headers)

    def _collection(self, slug: str) -> dict:
        items = [
            {"_id": str(i), "id": item, "type": "model", "position": i}
            for i, item in enumerate(self.hub.collections[slug])
        ]
        return {
            "slug": slug,
            "title": slug.split("/")[1],
            "owner": slug.split("/")[0],
            "items": items,
            "lastUpdated": "2026-01-01T00:00:00.000Z",
            "position": 0,
            "private": False,
            "theme": "blue",
            "upvotes": 0,
        }

    def _create_collection(self, body, query) -> None:
        asked = json.loads(body)
        slug = f"{asked['namespace']}/{asked['title'].lower()}-1"
        if slug in self.hub.collections:
            return self._answer(409, {"slug": slug, "error": "exists"})
        self.hub.collections[slug] = []
        return self._answer(200, self._collection(slug))

    def _get_collection(self, body, query, slug: str) -> None:
        self._answer(200, self._collection(slug))

    def _add_to_collection(self, body, query, slug: str) -> None:
        item = json.loads(body)["item"]["id"]
        if item in self.hub.collections[slug]:
            return self._answer(409, {"error": "exists"})
        self.hub.collections[slug].append(item)
        return self._answer(200, self._collection(slug))

    _REPO = r"(?P<repo>[^/]+/[^/]+)"
    routes = (
        ("POST", "/api/repos/create", _create),
        ("POST", "/api/validate-yaml", _validate),
        ("POST", "/api/collections", _create_collection),
        ("GET", "/api/collections/(?P<slug>[^/]+/[^/]+)", _get_collection),
        ("POST", "/api/collections/(?P<slug>[^/]+/[^/]+)/items", _add_to_collection),
        ("POST", f"/api/models/{_REPO}/branch/(?P<name>[^/]+)", _branch),
        ("POST", f"/api/models/{_REPO}/preupload/(?P<revision>[^/]+)", _preupload),
        ("POST", f"/api/models/{_REPO}/commit/(?P<revision>[^/]+)", _commit),
        ("POST", f"/{_REPO}\\.git/info/lfs/objects/batch", _batch),
        ("PUT", "/lfs/(?P<oid>[0-9a-f]{64})", _upload),
        ("POST", "/lfs/verify", _verify),
        ("GET", f"/api/models/{_REPO}", _info),
        ("GET", f"/api/models/{_REPO}/tree/(?P<revision>[^/]+)", _tree),
        ("GET", f"/api/models/{_REPO}/revision/(?P<revision>[^/]+)", _info),
        (("GET", "HEAD"), f"/{_REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", _resolve),
    )


@contextlib.contextmanager
def serve():
    """Run a Hub for as long as the context lasts; gives the :class:`Hub`."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        hub.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()  # it ends within 10 ms
        try:
            yield hub
        finally:
            server.shutdown()


@contextlib.contextmanager
def client(url: str, home: Path, token: str):
    """Let `huggingface_hub` in this process use the Hub at `url`; it reads these settings only when it is imported."""
    settings = {
        "ENDPOINT": url,
        "HUGGINGFACE_CO_URL_TEMPLATE": url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_HUB_OFFLINE": False,  # whatever a fixture of the module sets
        "HF_HUB_DISABLE_XET": True,  # a storage of the Hub's own; LFS is the protocol that is open
    }
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.multiple(constants, **settings))
        stack.enter_context(mock.patch.object(hf_api.api, "endpoint", url))
        stack.enter_context(mock.patch.dict(os.environ, HF_TOKEN=token))
        yield


@dataclass
class Done:
    """What code that ran in this process wrote to standard error: messages, logs, and the traceback of an error."""

    stderr: str


def run(code: str, namespace: dict, check: bool = True) -> Done:
    """Run code in this process; with `check`, its errors are raised."""
    stderr, logger = io.StringIO(), logging.getLogger("segnext_timm")
    with (
        contextlib.redirect_stderr(stderr),
        mock.patch.object(logger, "handlers", [logging.StreamHandler(stderr)]),
        mock.patch.object(logger, "level", logging.WARNING),
    ):
        try:
            exec(code, namespace)
        except Exception:
            if check:
                raise
            traceback.print_exc()
    return Done(stderr.getvalue())
