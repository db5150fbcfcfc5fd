"""A small stand-in for the Hugging Face Hub on the loopback interface, with faults to switch on.

Serves local folders as ORG/REPO with the routes that huggingface_hub uses to list and download a model. Pass
`hub.url` as `endpoint=`, or set HF_ENDPOINT to it before huggingface_hub is imported.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

ROUTES = {
    "info": re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)(?:/revision/(?P<revision>[^/]+))?"),
    "tree": re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)/tree/(?P<revision>[^/]+)"),
    "file": re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)"),
}


@dataclass
class Fault:
    """What goes wrong with one file.

    kind : flip-bit (bit 0 of byte `at` of the file), not-found, drop (closes before byte `at`), ignore-range
        (the whole file with status 200), gated (the whole repository; `file` is ignored).
    times : how many GET requests it still hits; None for all.
    """

    kind: str
    file: str = ""
    at: int = 0
    times: int | None = None

    def hits(self, kind: str, file: str) -> bool:
        """Whether it strikes now; each strike counts."""
        if self.kind != kind or self.file not in ("", file) or self.times == 0:
            return False
        if self.times is not None:
            self.times -= 1
        return True


@dataclass
class LoopbackHub:
    """Use as a context manager; `requests` logs method and path of what was asked."""

    repos: Mapping[str, Path]
    faults: list[Fault] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)

    def __enter__(self) -> LoopbackHub:
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def files(self, repo: str) -> dict[str, Path]:
        """Files of a repository by name."""
        folder = self.repos[repo]
        return {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}

    def commit(self, repo: str) -> str:
        """The commit: forty digits that follow from the files' contents."""
        total = hashlib.sha1(repo.encode())
        for name, path in self.files(repo).items():
            total.update(f"{name} {_sha256(path)}\n".encode())
        return total.hexdigest()

    def struck(self, kind: str, file: str = "") -> Fault | None:
        """The fault that hits this request, if there is one."""
        return next((fault for fault in self.faults if fault.hits(kind, file)), None)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _tree_entry(name: str, path: Path) -> dict[str, Any]:
    size, digest = path.stat().st_size, _sha256(path)
    entry: dict[str, Any] = {"type": "file", "path": name, "size": size, "oid": digest[:40]}
    if name.endswith(".safetensors"):
        entry["lfs"] = {"oid": digest, "size": size, "pointerSize": 134}
    return entry


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: LoopbackHub

    def log_message(self, *_: object) -> None:
        """Keep test output clean."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = self.path.split("?")[0]
        self.hub.requests.append((self.command, path))
        for kind, route in ROUTES.items():
            match = route.fullmatch(path)
            if match is None:
                continue
            parts = match.groupdict()
            refusal = self._refusal(parts["repo"], parts.get("revision"))
            if refusal is not None:
                return self._refuse(*refusal)
            return getattr(self, f"_{kind}")(**parts)
        self._refuse(404, "RepoNotFound")

    def _refusal(self, repo: str, revision: str | None) -> tuple[int, str] | None:
        if repo not in self.hub.repos:
            return 404, "RepoNotFound"
        if self.hub.struck("gated"):
            return 403, "GatedRepo"
        known = revision in (None, "main", self.hub.commit(repo))
        return None if known else (404, "RevisionNotFound")

    def _refuse(self, status: int, code: str) -> None:
        self._send(status, b"{}", {"X-Error-Code": code, "Content-Type": "application/json"})

    def _info(self, repo: str, revision: str | None) -> None:
        names = [{"rfilename": name} for name in self.hub.files(repo)]
        self._send_json({"id": repo, "modelId": repo, "sha": self.hub.commit(repo), "siblings": names})

    def _tree(self, repo: str, revision: str) -> None:
        self._send_json([_tree_entry(name, path) for name, path in self.hub.files(repo).items()])

    def _file(self, repo: str, revision: str, file: str) -> None:
        path = self.hub.files(repo).get(file)
        if path is None or self.hub.struck("not-found", file):
            return self._refuse(404, "EntryNotFound")
        content, etag = path.read_bytes(), _sha256(path)
        headers = {
            "ETag": f'"{etag}"',
            "X-Repo-Commit": self.hub.commit(repo),
            "Accept-Ranges": "bytes",
            "Content-Type": "application/octet-stream",
        }
        if file.endswith(".safetensors"):
            headers |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(content))}
        if self.command == "HEAD":
            return self._send(200, content, headers)
        self._send_range(file, content, headers)

    def _send_range(self, file: str, content: bytes, headers: dict[str, str]) -> None:
        flip = self.hub.struck("flip-bit", file)
        if flip:
            content = content[: flip.at] + bytes([content[flip.at] ^ 1]) + content[flip.at + 1 :]
        status, first, last = 200, 0, len(content) - 1
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked and not self.hub.struck("ignore-range", file):
            status, first, last = 206, int(asked[1]), min(last, int(asked[2] or last))
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        drop = self.hub.struck("drop", file)
        cut = max(first, min(drop.at, last + 1)) if drop else None
        self._send(status, content[first : last + 1], headers, None if cut is None else cut - first)

    def _send_json(self, content: Any) -> None:
        self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: dict[str, str], cut: int | None = None) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:cut])
        if cut is not None:
            self.close_connection = True
