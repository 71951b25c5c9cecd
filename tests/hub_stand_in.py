"""A stand-in for the hub: an HTTP server that keeps repositories in memory and speaks what huggingface_hub asks for.

Only what uploading a folder and downloading a snapshot need: making a repository, the check of a card's front matter,
preupload, git-lfs with transfer "basic", commits, and resolving files. As on the hub, a repository that is missing is
status 401 to those who are not logged in, and 404 to those who are.
"""

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import yaml

OWNER, TOKEN, READER = "someone", "hf_right", "hf_reads"  # the second may write as the first, the third may not
GATED = "someone/gated"
LICENCES = ("apache-2.0", "mit", "other")  # of those that the hub knows


class Hub:
    """What is in the hub: files by repository, uploaded objects by digest, and the paths that were asked for."""

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, bytes]] = {}
        self.objects: dict[str, bytes] = {}
        self.asked: list[str] = []

    def commit(self, repo: str) -> str:
        """Return 40 hexadecimal digits for what a repository holds."""
        held = b"".join(name.encode() + data for name, data in sorted(self.repos[repo].items()))
        return hashlib.sha1(held).hexdigest()


@contextmanager
def hub_stand_in() -> Iterator[tuple[str, Hub]]:
    """Serve an empty hub on this machine, and give its address and contents."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Answers", (_Answers,), {"hub": hub}))
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Refused(Exception):
    """An answer that is an error: its status, the hub's code for it, and what it says."""


class _Answers(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Print nothing."""

    def do_HEAD(self) -> None:
        self._answer()

    do_GET = do_POST = do_PUT = do_HEAD  # noqa: N815, the names of the methods of HTTP

    def _answer(self) -> None:
        path = self.path.partition("?")[0]
        self.hub.asked.append(f"{self.command} {path}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            for method, pattern, answer in ROUTES:
                found = re.fullmatch(pattern, path)
                if found and self.command in method:
                    self._send(200, *answer(self, body, *found.groups()))
                    return
            raise _Refused(404, "", f"the stand-in knows no {self.command} {path}")
        except _Refused as refused:
            status, code, said = refused.args
            headers = {"X-Error-Message": said} | ({"X-Error-Code": code} if code else {})
            self._send(status, json.dumps({"error": said}).encode(), headers)

    def _send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def who(self) -> str:
        """Return the token that was given. Refuses one that nobody has."""
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token not in ("", TOKEN, READER):
            raise _Refused(401, "", "Invalid credentials in Authorization header")
        return token

    def writes(self) -> None:
        if (token := self.who()) != TOKEN:
            raise _Refused(403 if token else 401, "", "You don't have the rights" if token else "Invalid username")

    def files(self, repo: str) -> dict[str, bytes]:
        token = self.who()
        if repo == GATED and token != TOKEN:
            raise _Refused(403, "GatedRepo", "Access to it is restricted")
        if repo not in self.hub.repos:
            raise _Refused(404 if token else 401, "RepoNotFound", "Repository not found")
        return self.hub.repos[repo]


def _json(value: Any) -> tuple[bytes, dict[str, str]]:
    return json.dumps(value).encode(), {"Content-Type": "application/json"}


def _create(asked: _Answers, body: bytes) -> Any:
    asked.writes()
    given = json.loads(body)
    repo = f"{given.get('organization') or OWNER}/{given['name']}"
    if not repo.startswith(f"{OWNER}/"):
        raise _Refused(403, "", "You don't have the rights to create a model under this namespace")
    asked.hub.repos.setdefault(repo, {})
    return _json({"url": f"http://{asked.headers['Host']}/{repo}", "name": repo, "id": repo})


def _yaml(asked: _Answers, body: bytes) -> Any:
    front = json.loads(body)["content"].split("---\n")[1]
    found = yaml.safe_load(front)
    wrong = [
        f'"{key}" must be a string' for key in ("license", "base_model") if not isinstance(found.get(key, ""), str)
    ]
    if found.get("license", "mit") not in LICENCES:
        wrong.append('"license" must be one of the known ones')
    if wrong:
        raise _Refused(400, "", "; ".join(wrong))
    return _json({"errors": [], "warnings": []})


def _preupload(asked: _Answers, body: bytes, repo: str, _revision: str) -> Any:
    asked.writes()
    asked.files(repo)
    names = [one["path"] for one in json.loads(body)["files"]]
    modes = {name: "lfs" if name.endswith(".safetensors") else "regular" for name in names}
    return _json({"files": [{"path": n, "uploadMode": mode, "shouldIgnore": False} for n, mode in modes.items()]})


def _batch(asked: _Answers, body: bytes, repo: str) -> Any:
    asked.writes()
    asked.files(repo)
    address = f"http://{asked.headers['Host']}/objects/"
    objects = [{**one, "actions": {"upload": {"href": address + one["oid"]}}} for one in json.loads(body)["objects"]]
    return _json({"transfer": "basic", "objects": objects})


def _put(asked: _Answers, body: bytes, oid: str) -> Any:
    assert hashlib.sha256(body).hexdigest() == oid
    asked.hub.objects[oid] = body
    return b"", {}


def _commit(asked: _Answers, body: bytes, repo: str, _revision: str) -> Any:
    asked.writes()
    files = asked.files(repo)
    for line in map(json.loads, body.decode().splitlines()):
        value = line["value"]
        if line["key"] == "file":
            assert value["encoding"] == "base64"
            files[value["path"]] = base64.b64decode(value["content"])
        elif line["key"] == "lfsFile":
            files[value["path"]] = asked.hub.objects[value["oid"]]
    commit = asked.hub.commit(repo)
    address = f"http://{asked.headers['Host']}/{repo}/commit/{commit}"
    return _json({"success": True, "commitUrl": address, "commitOid": commit})


def _info(asked: _Answers, _body: bytes, repo: str, revision: str = "main") -> Any:
    files = asked.files(repo)
    commit = asked.hub.commit(repo)
    if revision not in ("main", commit):
        raise _Refused(404, "RevisionNotFound", "Invalid rev id")
    about = {"private": False, "tags": [], "siblings": [{"rfilename": name} for name in files]}
    return _json({"id": repo, "modelId": repo, "sha": commit, **about})


def _tree(asked: _Answers, _body: bytes, repo: str, _revision: str) -> Any:
    files = asked.files(repo)
    return _json(
        [
            {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
            for name, data in files.items()
        ]
    )


def _resolve(asked: _Answers, _body: bytes, repo: str, _revision: str, name: str) -> Any:
    files = asked.files(repo)
    if name not in files:
        raise _Refused(404, "EntryNotFound", "Entry not found")
    return files[name], {
        "ETag": f'"{hashlib.sha1(files[name]).hexdigest()}"',
        "X-Repo-Commit": asked.hub.commit(repo),
        "Content-Type": "application/octet-stream",
    }


REPO = r"([^/]+/[^/]+)"
ROUTES: list[tuple[str, str, Any]] = [
    ("POST", "/api/repos/create", _create),
    ("POST", "/api/validate-yaml", _yaml),
    ("POST", f"/api/models/{REPO}/preupload/([^/]+)", _preupload),
    ("POST", rf"/{REPO}\.git/info/lfs/objects/batch", _batch),
    ("PUT", "/objects/([0-9a-f]+)", _put),
    ("POST", f"/api/models/{REPO}/commit/([^/]+)", _commit),
    ("GET", f"/api/models/{REPO}/revision/([^/]+)", _info),
    ("GET", f"/api/models/{REPO}/tree/([^/]+)", _tree),
    ("GET HEAD", f"/{REPO}/resolve/([^/]+)/(.+)", _resolve),
]
