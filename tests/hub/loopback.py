"""A small stand-in for the Hugging Face Hub on the loopback interface, with faults to switch on.

Serves local folders as ORG/REPO with the routes that huggingface_hub uses to list and download a model, and
has a second server under another host's name, to which files may be redirected. Pass `hub.url` as
`endpoint=`, or set HF_ENDPOINT to it before huggingface_hub is imported.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath

# By name: a test that watches what the client waits must not see what the server does.
from time import sleep
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import torch
from huggingface_hub import close_session, constants
from safetensors.torch import load_file, save_file

if TYPE_CHECKING:
    import pytest

ROUTES = {
    "refs": re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)/refs"),
    "info": re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)(?:/revision/(?P<revision>[^/]+))?"),
    "tree": re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)/tree/(?P<revision>[^/]+)"),
    "file": re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)"),
}
ELSEWHERE = "/elsewhere"
PIECE = 1 << 16


@dataclass
class Fault:
    """What goes wrong with one file.

    kind : flip-bit (bit 0 of byte `at` of the file), not-found, drop (closes before byte `at`), hang-up
        (closes after `at` bytes of each answer), ignore-range (the whole file with status 200), other-range
        (another range than was asked for), redirect (to the server under another name), slow (`seconds`
        before every piece of `at` bytes), busy (429), broken (503), unauthorised (401), denied (403 without
        a code); and gated (the whole repository; `file` is ignored).
    file : its name, or info, tree or refs for what the API tells; empty for all files.
    times : how many GET requests it still hits; None for all.
    wait : Retry-After of busy and broken.
    """

    kind: str
    file: str = ""
    at: int = 0
    times: int | None = None
    wait: str = ""
    seconds: float = 0.0

    def hits(self, kind: str, file: str) -> bool:
        """Whether it strikes now; each strike counts."""
        if self.kind != kind or self.file not in ("", file) or self.times == 0:
            return False
        if self.times is not None:
            self.times -= 1
        return True


# Statuses that a file may be answered with instead of its bytes.
REFUSALS = {
    "not-found": (404, "EntryNotFound"),
    "unauthorised": (401, ""),
    "denied": (403, ""),
    "busy": (429, ""),
    "broken": (503, ""),
}


@dataclass
class LoopbackHub:
    """Use as a context manager.

    repos : a folder for each ORG/REPO, or several, one a commit, the newest last.
    requests : method and path of what was asked. served : bytes of bodies sent, by file.
    tokens : the Authorization header of each request, under the server's name.
    lfs : whether safetensors files are stored with LFS, as all but the smallest are.
    branches, tags : folders by name, for each ORG/REPO that has others than main.
    """

    repos: Mapping[str, Path | Sequence[Path]]
    faults: list[Fault] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)
    served: Counter[str] = field(default_factory=Counter)
    tokens: list[tuple[str, str | None]] = field(default_factory=list)
    lfs: bool = True
    branches: dict[str, dict[str, Path]] = field(default_factory=dict)
    tags: dict[str, dict[str, Path]] = field(default_factory=dict)

    def stand_in(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Be the Hub that the clients ask, as HF_ENDPOINT would have it in a process that starts.

        Only this process finds it so, not workers beside it.
        """
        monkeypatch.setattr(constants, "ENDPOINT", self.url)
        template = self.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)

    def __enter__(self) -> LoopbackHub:
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self._servers = [ThreadingHTTPServer(("127.0.0.1", 0), Handler) for _ in range(2)]
        here, elsewhere = (server.server_address[1] for server in self._servers)
        self.url, self.elsewhere = f"http://127.0.0.1:{here}", f"http://localhost:{elsewhere}"
        self._threads = [
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
            for server in self._servers
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        # The client keeps connections; the next server may have the same port.
        close_session()
        for server, thread in zip(self._servers, self._threads, strict=True):
            server.shutdown()
            server.server_close()
            thread.join()

    def commits(self, repo: str) -> dict[str, Path]:
        """Folders of a repository by commit, those of main last, and its newest last of all."""
        held = self.repos[repo]
        others = [*self.branches.get(repo, {}).values(), *self.tags.get(repo, {}).values()]
        folders = [*others, *([held] if isinstance(held, Path) else held)]
        found: dict[str, Path] = {}
        for commit, folder in ((_commit(repo, folder), folder) for folder in folders):
            # One that main has as well belongs to main.
            found.pop(commit, None)
            found[commit] = folder
        return found

    def refs(self, repo: str) -> dict[str, dict[str, str]]:
        """Commits by name, of branches and of tags."""
        kinds = {"branches": self.branches, "tags": self.tags}
        named = {
            kind: {name: _commit(repo, folder) for name, folder in held.get(repo, {}).items()}
            for kind, held in kinds.items()
        }
        return {**named, "branches": {"main": self.commit(repo), **named["branches"]}}

    def resolved(self, repo: str, revision: str | None) -> str | None:
        """The commit that a branch, a tag, a commit or none stands for; None if it stands for nothing."""
        named = self.refs(repo)
        known = {**{one: one for one in self.commits(repo)}, **named["tags"], **named["branches"]}
        return known.get(revision or "main")

    def files(self, repo: str, revision: str | None = None) -> dict[str, Path]:
        """Files of a repository at a revision by name; of the newest commit without."""
        return _files(self.commits(repo)[self.resolved(repo, revision) or self.commit(repo)])

    def commit(self, repo: str) -> str:
        """The newest commit: forty digits that follow from the files' contents."""
        return list(self.commits(repo))[-1]

    def is_large(self, file: str) -> bool:
        """Whether a file is stored with LFS."""
        return self.lfs and file.endswith(".safetensors")

    def struck(self, kind: str, file: str = "") -> Fault | None:
        """The fault that hits this request, if there is one."""
        return next((fault for fault in self.faults if fault.hits(kind, file)), None)

    def asked(self, name: str = "", method: str = "GET") -> int:
        """How many requests were made for paths that end so."""
        return sum(one == method and path.endswith(name) for one, path in self.requests)


def shard(folder: Path, target: Path, tensors_each: int) -> Path:
    """A checkpoint of one file as several with an index, as a lab's checkpoint would be uploaded in parts."""
    target.mkdir(parents=True)
    for path in folder.iterdir():
        if path.name != "model.safetensors":
            (target / path.name).write_bytes(path.read_bytes())
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    parts = [names[i : i + tensors_each] for i in range(0, len(names), tensors_each)]
    weight_map: dict[str, str] = {}
    for number, part in enumerate(parts, 1):
        file = f"model-{number:05d}-of-{len(parts):05d}.safetensors"
        save_file({name: tensors[name] for name in part}, target / file, {"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": sum(map(_bytes, tensors.values()))}, "weight_map": weight_map}
    (target / "model.safetensors.index.json").write_text(json.dumps(index))
    return target


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.nbytes


def _files(folder: Path) -> dict[str, Path]:
    return {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}


def _commit(repo: str, folder: Path) -> str:
    total = hashlib.sha1(repo.encode())
    for name, path in _files(folder).items():
        total.update(f"{name} {_sha256(path)}\n".encode())
    return total.hexdigest()


def _sha256(path: Path) -> str:
    stat = path.stat()
    return _digests(path, stat.st_mtime_ns, stat.st_size, stat.st_ino)[0]


def _git_sha1(path: Path) -> str:
    stat = path.stat()
    return _digests(path, stat.st_mtime_ns, stat.st_size, stat.st_ino)[1]


@lru_cache(maxsize=4096)
def _digests(path: Path, mtime: int, size: int, inode: int) -> tuple[str, str]:
    with open(path, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0)
        sha1 = hashlib.sha1(b"blob %d\0" % size)
        while chunk := file.read(1 << 20):
            sha1.update(chunk)
    return sha256, sha1.hexdigest()


def _tree_entry(name: str, path: Path, is_large: bool) -> dict[str, Any]:
    size, digest = path.stat().st_size, _sha256(path)
    if not is_large:
        return {"type": "file", "path": name, "size": size, "oid": _git_sha1(path)}
    lfs = {"oid": digest, "size": size, "pointerSize": 134}
    return {"type": "file", "path": name, "size": size, "oid": digest[:40], "lfs": lfs}


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
        self.hub.tokens.append((self.headers.get("Host", ""), self.headers.get("Authorization")))
        self._moved = path.startswith(ELSEWHERE)
        path = path.removeprefix(ELSEWHERE)
        for kind, route in ROUTES.items():
            match = route.fullmatch(path)
            if match is None:
                continue
            # The clients quote what a path's part may not hold, a branch's slashes too.
            parts = {name: part and unquote(part) for name, part in match.groupdict().items()}
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
        return None if self.hub.resolved(repo, revision) else (404, "RevisionNotFound")

    def _refuse(self, status: int, code: str, wait: str = "") -> None:
        headers = {"X-Error-Code": code, "Retry-After": wait, "Content-Type": "application/json"}
        self._send(status, [b"{}"], 2, {name: value for name, value in headers.items() if value})

    def _refs(self, repo: str) -> None:
        if self._struck_down("refs"):
            return
        kinds = {"branches": "heads", "tags": "tags"}
        told = {
            kind: [
                {"name": name, "ref": f"refs/{kinds[kind]}/{name}", "targetCommit": commit}
                for name, commit in named.items()
            ]
            for kind, named in self.hub.refs(repo).items()
        }
        self._send_json({**told, "converts": []})

    def _info(self, repo: str, revision: str | None) -> None:
        if self._struck_down("info"):
            return
        commit = self.hub.resolved(repo, revision)
        names = [{"rfilename": name} for name in self.hub.files(repo, commit)]
        self._send_json({"id": repo, "modelId": repo, "sha": commit, "siblings": names})

    def _tree(self, repo: str, revision: str) -> None:
        if self._struck_down("tree"):
            return
        files = self.hub.files(repo, revision)
        folders = {above.as_posix() for name in files for above in PurePosixPath(name).parents} - {"."}
        told = [{"type": "directory", "path": name, "size": 0, "oid": "0" * 40} for name in sorted(folders)]
        self._send_json(
            told + [_tree_entry(name, path, self.hub.is_large(name)) for name, path in files.items()]
        )

    def _struck_down(self, file: str) -> bool:
        """Whether a fault took the place of the answer; faults of any file spare the API."""
        for kind, (status, code) in REFUSALS.items():
            named = next((f for f in self.hub.faults if f.kind == kind and f.file == file), None)
            if named is not None and named.hits(kind, file):
                self._refuse(status, code, named.wait)
                return True
        return False

    def _file(self, repo: str, revision: str, file: str) -> None:
        path = self.hub.files(repo, revision).get(file)
        if path is None:
            return self._refuse(404, "EntryNotFound")
        for kind, (status, code) in REFUSALS.items():
            # Faults that count strike answers with a body.
            fault = self.hub.struck(kind, file) if self.command == "GET" or kind == "not-found" else None
            if fault is not None:
                return self._refuse(status, code, fault.wait)
        headers = self._file_headers(repo, revision, file, path)
        if not self._moved and self.hub.struck("redirect", file):
            headers["Location"] = f"{self.hub.elsewhere}{ELSEWHERE}{self.path}?X-Amz-Signature=signed"
            return self._send(302, [], 0, headers)
        if self.command == "HEAD":
            return self._send(200, [], path.stat().st_size, headers)
        self._send_range(file, path, headers)

    def _file_headers(self, repo: str, revision: str, file: str, path: Path) -> dict[str, str]:
        etag = _sha256(path) if self.hub.is_large(file) else _git_sha1(path)
        commit = str(self.hub.resolved(repo, revision))
        headers = {
            "ETag": f'"{etag}"',
            "X-Repo-Commit": commit,
            "Accept-Ranges": "bytes",
            "Content-Type": "application/octet-stream",
        }
        if self.hub.is_large(file):
            headers |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(path.stat().st_size)}
        return headers

    def _send_range(self, file: str, path: Path, headers: dict[str, str]) -> None:
        size = path.stat().st_size
        status, first, last = 200, 0, size - 1
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked and not self.hub.struck("ignore-range", file):
            status, first, last = 206, int(asked[1]), min(last, int(asked[2] or last))
            shift = 1 if self.hub.struck("other-range", file) else 0
            headers["Content-Range"] = f"bytes {first + shift}-{last + shift}/{size}"
        drop = self.hub.struck("drop", file)
        cut = max(first, min(drop.at, last + 1)) - first if drop else None
        short = self.hub.struck("hang-up", file)
        cut = short.at if short else cut
        body = self._pieces(file, path, first, last + 1)
        self._send(status, body, last + 1 - first, headers, cut, file)

    def _pieces(self, file: str, path: Path, first: int, end: int) -> Iterator[bytes]:
        flip, slow = self.hub.struck("flip-bit", file), self.hub.struck("slow", file)
        with open(path, "rb") as content:
            content.seek(first)
            while first < end:
                piece = content.read(min(end - first, slow.at if slow else PIECE))
                if flip and first <= flip.at < first + len(piece):
                    place = flip.at - first
                    piece = piece[:place] + bytes([piece[place] ^ 1]) + piece[place + 1 :]
                if slow:
                    sleep(slow.seconds)
                first += len(piece)
                yield piece

    def _send_json(self, content: Any) -> None:
        body = json.dumps(content).encode()
        self._send(200, [body], len(body), {"Content-Type": "application/json"})

    def _send(
        self,
        status: int,
        body: Iterator[bytes] | list[bytes],
        length: int,
        headers: dict[str, str],
        cut: int | None = None,
        file: str = "",
    ) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(length)}.items():
            self.send_header(name, value)
        self.end_headers()
        left = length if cut is None else cut
        try:
            for piece in body if self.command == "GET" else ():
                # Counted first: who has all of it may look at the count before this thread goes on.
                sent = len(piece[:left])
                self.hub.served[file] += sent
                try:
                    self.wfile.write(piece[:left])
                except OSError:
                    self.hub.served[file] -= sent
                    raise
                left -= sent
                if not left:
                    break
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        if cut is not None:
            self.close_connection = True
