"""A server on this machine that speaks the part of the hub's protocol that its client uses.

Models are folders, `{root}/{owner}/{model}/{file}`, at the commit COMMIT; those of another commit
lie in `{model}@{commit}`. Weight files are answered as the hub does large ones: with a redirect to
another host, named by their SHA-256. Small files are named by git's SHA-1.
"""

from __future__ import annotations

import hashlib
import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "c0ffee" * 6 + "c0ff"
OTHER_COMMIT = "decade" * 6 + "deca"
LARGE = (".safetensors", ".bin")
TOKEN = "hf_good"


@dataclass
class Trouble:
    """What goes wrong with requests for files that end in `file`, `times` times, then no more.

    `status` and `code` refuse; `cut` ends the answer's body early; `spoil` changes its bytes;
    `stall` keeps the client waiting (seconds); `claim` is another length than there is.
    """

    file: str = ""
    method: str = "GET"
    times: int = 10**6
    status: int = 0
    code: str = ""
    cut: int = 0
    spoil: bool = False
    stall: float = 0.0
    claim: int = 0


@dataclass
class Hub:
    """What the server has, the requests so far, and what goes wrong."""

    root: Path
    address: str = ""
    revisions: dict[str, str] = field(default_factory=lambda: {"main": COMMIT, "v1": COMMIT})
    private: bool = False
    requests: list[str] = field(default_factory=list)
    ranges: list[str] = field(default_factory=list)
    troubles: list[Trouble] = field(default_factory=list)

    def trouble(self, method: str, path: str) -> Trouble:
        """What goes wrong with this request."""
        for trouble in self.troubles:
            if trouble.times and path.endswith(trouble.file) and trouble.method in (method, "ANY"):
                trouble.times -= 1
                return trouble
        return Trouble(times=0)

    def folder(self, name: str, revision: str) -> Path:
        """Where the files of a model at a revision lie; no folder if there is no such revision."""
        commit = self.revisions.get(revision, revision)
        if commit not in (COMMIT, *self.revisions.values()):
            return self.root / "none"
        return self.root / (name if commit == COMMIT else f"{name}@{commit}")


def digest(path: Path) -> str:
    """The digest by which the hub names a file."""
    body = path.read_bytes()
    if path.suffix in LARGE:
        return hashlib.sha256(body).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(body) + body, usedforsecurity=False).hexdigest()


def entry(path: Path) -> dict[str, Any]:
    """A file in the list of a model's files."""
    size, name = path.stat().st_size, digest(path)
    found = {"type": "file", "path": path.name, "size": size, "oid": name[:40]}
    if path.suffix in LARGE:
        found["lfs"] = {"oid": name, "size": size, "pointerSize": 134}
    return found


class Handler(BaseHTTPRequestHandler):
    """`/{owner}/{model}/resolve/{revision}/{file}`, by HEAD and GET, and the API:
    `/api/models/{owner}/{model}/revision/{revision}` and `…/tree/{revision}`."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        path = self.path.split("?")[0]
        self.hub.requests.append(f"{self.command} {path}")
        trouble = self.hub.trouble(self.command, path)
        threading.Event().wait(trouble.stall)  # a test may have replaced time.sleep
        if trouble.status:
            return self.refuse(trouble.status, trouble.code)
        kind, *parts = path.strip("/").split("/")
        if kind not in ("api", "large"):
            kind, parts = "", [kind, *parts]
        parts = parts[kind == "api" :]  # api/models/…
        if len(parts) < 4 or not (self.hub.root / parts[0] / parts[1]).is_dir():
            return self.refuse(404, "RepoNotFound")
        name, what, revision, file = "/".join(parts[:2]), parts[2], parts[3], "/".join(parts[4:])
        if (
            self.hub.private
            and kind != "large"
            and self.headers.get("Authorization") != f"Bearer {TOKEN}"
        ):
            return self.refuse(401, "GatedRepo")
        folder = self.hub.folder(name, revision)
        if not folder.is_dir():
            return self.refuse(404, "RevisionNotFound")
        if kind == "api":
            found = {"revision": self.model, "tree": self.tree}[what](folder, name, revision)
            return self.send(json.dumps(found).encode(), revision, Trouble())
        if not (folder / file).is_file():
            return self.refuse(404, "EntryNotFound")
        if kind != "large" and (folder / file).suffix in LARGE:
            return self.redirect(folder / file, path, revision)
        return self.send((folder / file).read_bytes(), revision, trouble, digest(folder / file))

    def commit(self, revision: str) -> str:
        return self.hub.revisions.get(revision, revision)

    def model(self, folder: Path, name: str, revision: str) -> dict[str, Any]:
        return {"id": name, "sha": self.commit(revision), "siblings": []}

    def tree(self, folder: Path, name: str, revision: str) -> list[dict[str, Any]]:
        files = [path for path in sorted(folder.iterdir()) if path.is_file()]
        return [entry(path) for path in files]

    def redirect(self, file: Path, path: str, revision: str) -> None:
        self.send_response(302)
        port = self.server.server_address[1]
        self.send_header("Location", f"http://localhost:{port}/large{path}")
        self.send_header("X-Repo-Commit", self.commit(revision))
        self.send_header("X-Linked-Etag", f'"{digest(file)}"')
        self.send_header("X-Linked-Size", str(file.stat().st_size))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def send(self, body: bytes, revision: str, trouble: Trouble, etag: str = "") -> None:
        if trouble.spoil:
            body = bytes(byte ^ 1 for byte in body)
        begin = 0
        if wanted := self.headers.get("Range"):
            self.hub.ranges.append(wanted)
            begin = int(wanted.removeprefix("bytes=").rstrip("-"))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {begin}-{len(body) - 1}/{len(body)}")
        else:
            self.send_response(200)
        self.send_header("X-Repo-Commit", self.commit(revision))
        self.send_header("ETag", f'"{etag}"')
        self.send_header("Content-Length", str(trouble.claim or len(body) - begin))
        self.end_headers()
        if self.command == "GET":
            end = begin + trouble.cut if trouble.cut else len(body)
            self.wfile.write(body[begin:end])
            self.close_connection = bool(trouble.cut or trouble.claim)

    def refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *arguments: Any) -> None:
        """Silent."""


class Server(ThreadingHTTPServer):
    """Ignores clients that did not wait."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


@contextmanager
def serve(root: Path) -> Iterator[Hub]:
    """Serve the models under `root`."""
    hub = Hub(root)
    handler = type("OwnHandler", (Handler,), {"hub": hub})
    server = Server(("127.0.0.1", 0), handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
