"""Bytes of the Hub's files, by ranges: checked before they are read, taken up again where they broke off.

Requests go through huggingface_hub's own session and headers, so that proxies, certificates and tokens are
set up in one place. Its session follows redirects, and leaves the token behind where they lead elsewhere.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from random import SystemRandom
from typing import Any, TypeVar

import httpx2
from huggingface_hub import constants, get_session, get_token, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import build_hf_headers, parse_ratelimit_headers

from threegates.errors import CheckpointError

T = TypeVar("T")

# Failures in a row, without a byte between them, before one gives up; about a minute and a half of waiting.
ATTEMPTS = 6
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0
# The Hub counts requests in windows of five minutes; who is asked to wait longer had better come back.
LONGEST_ASKED = 330.0
# Statuses that pass by themselves.
PASSING = (408, 429, 500, 502, 503, 504)
TRANSIENT = (httpx2.TimeoutException, httpx2.NetworkError, httpx2.RemoteProtocolError, httpx2.ProxyError)

ACCEPT = "accept the licence on the repository's page, then run `hf auth login`"
NAME = "correct the repository's name; if it is private, run `hf auth login`"
REVISION = "correct the revision: the Hub has no such commit"
UNSERVED = "the Hub lists this file but does not serve it: try again later"
NETWORK = "check the network and the free disk space, then run again: what came whole is kept"
# What the client raises, most special first, and what a user can do about it.
REMEDIES: tuple[tuple[type[Exception], str], ...] = (
    (GatedRepoError, ACCEPT),
    (RepositoryNotFoundError, NAME),
    (RevisionNotFoundError, REVISION),
    (RemoteEntryNotFoundError, UNSERVED),
    (OfflineModeIsEnabled, "the network is switched off by HF_HUB_OFFLINE: run once without it"),
    (LocalEntryNotFoundError, "it is not whole in the cache: run once with the network on"),
)
# The same by the code that the Hub's answers carry, or by their status where they carry none.
REFUSALS = {
    "GatedRepo": ACCEPT,
    "RepoNotFound": NAME,
    "RevisionNotFound": REVISION,
    "EntryNotFound": UNSERVED,
    "401": "it is private or gated, or its name is wrong: " + ACCEPT,
    "403": ACCEPT + "; a token needs the right to read gated repositories",
    "404": UNSERVED,
}


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository at a commit, as the Hub lists it.

    size : bytes.
    blob : what its content is known by: a sha256 where it is stored with LFS, else git's sha1.
    """

    repo: str
    revision: str
    name: str
    size: int
    blob: str
    endpoint: str | None = None

    def __str__(self) -> str:
        return f"{self.repo}@{self.revision}/{self.name}"

    @property
    def sha256(self) -> str | None:
        """sha256 of the content; None of a small file that git itself holds."""
        return self.blob if len(self.blob) == 64 else None

    @property
    def url(self) -> str:
        """Where it is asked for; the answer may lead elsewhere."""
        return hf_hub_url(self.repo, self.name, revision=self.revision, endpoint=self.endpoint)


class RangeIgnoredError(CheckpointError):
    """A server sends the whole file where a part of it was asked for."""


class Interruption(Exception):
    """Something that may pass by itself; `wait` is the number of seconds that the server asked for."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


class Patience:
    """Counts failures in a row and waits between them, each time longer and never twice the same."""

    def __init__(self, where: object) -> None:
        self.where, self.failures = where, 0

    def renew(self) -> None:
        """Something came: what failed before does not count any more."""
        self.failures = 0

    def wait(self, broken: Interruption) -> None:
        """Wait until the next attempt.

        Raises
        ------
        CheckpointError : there were too many failures, or the server asks for more time than one waits.
        """
        self.failures += 1
        if self.failures >= ATTEMPTS or (broken.wait or 0) > LONGEST_ASKED:
            asked = f"; the server asks to wait {broken.wait:g} s" if broken.wait else ""
            raise CheckpointError(
                "the Hub cannot be read: it fails again and again",
                where=self.where,
                expected="an answer",
                found=f"{broken}, {self.failures} time{'s' * (self.failures > 1)} in a row{asked}",
                remedy="wait as long as it asks, then run again" if broken.wait else NETWORK,
            )
        longer = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (self.failures - 1))
        # Many processes that failed together must not come back together.
        jitter = SystemRandom().uniform(0.5, 1.0)
        time.sleep(longer * jitter if broken.wait is None else broken.wait + jitter)


def read_range(file: RemoteFile, start: int, stop: int) -> Iterator[bytes]:
    """Bytes [start, stop) of a file, in order and in the pieces in which they come.

    A connection that breaks is taken up behind the last byte that came; a server that is busy gets the time
    that it asks for. Status and range of every answer are looked at before its body.

    Raises
    ------
    RangeIgnoredError : the server would send the whole file, and not all of it was asked for.
    CheckpointError : the server refuses, has another file, or fails again and again.
    """
    at, patience = start, Patience(file)
    while at < stop:
        try:
            for chunk in _one_answer(file, at, stop):
                at += len(chunk)
                patience.renew()
                yield chunk
            broken = Interruption("the answer ended early")
        except Interruption as error:
            broken = error
        if at < stop:
            patience.wait(broken)


def git_sha1(content: bytes) -> str:
    """What git knows a file by: sha1 over its kind, its length and its content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def read_whole(file: RemoteFile) -> bytes:
    """All of a small file."""
    return b"".join(read_range(file, 0, file.size))


def _one_answer(file: RemoteFile, start: int, stop: int) -> Iterator[bytes]:
    headers = build_hf_headers(library_name="threegates")
    # A body that was compressed on its way would not be the bytes that were asked for.
    headers |= {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    try:
        with get_session().stream("GET", file.url, headers=headers, timeout=timeout) as answer:
            left = _check_answer(file, answer, start, stop)
            for chunk in answer.iter_raw():
                if len(chunk) > left:
                    raise _other_bytes(file, f"at most {left} more bytes", f"at least {len(chunk)}")
                left -= len(chunk)
                yield chunk
    except TRANSIENT as error:
        raise Interruption(f"the connection broke ({type(error).__name__})") from None
    except (httpx2.HTTPError, httpx2.InvalidURL, OfflineModeIsEnabled) as error:
        raise hub_error(file.repo, file, error) from None


def _check_answer(file: RemoteFile, answer: httpx2.Response, start: int, stop: int) -> int:
    """Number of bytes that the answer's body holds, if it is what was asked for."""
    status, headers = answer.status_code, answer.headers
    if status not in (200, 206):
        raise _refused(file, status, headers)
    if headers.get("Content-Encoding", "identity") != "identity":
        raise _other_bytes(file, "the bytes as they are", f"Content-Encoding {headers['Content-Encoding']}")
    if status == 206:
        return _check_range(file, headers.get("Content-Range", ""), start, stop)
    length = headers.get("Content-Length", str(file.size))
    if (start, stop) == (0, file.size) and length == str(file.size):
        return file.size
    raise RangeIgnoredError(
        "the server sends the whole file where a part of it was asked for",
        where=file,
        expected=f"status 206 and {stop - start} bytes from {start}",
        found=f"status {status} and {length} bytes",
        remedy="a proxy between here and the Hub may drop the header Range: go round it, or download the"
        " whole checkpoint",
    )


def _check_range(file: RemoteFile, told: str, start: int, stop: int) -> int:
    match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", told.strip())
    asked = f"bytes {start}-{stop - 1}/{file.size}"
    if match is None:
        raise _other_bytes(file, asked, told or "no Content-Range")
    first, last, size = int(match[1]), int(match[2]), match[3]
    # A server may send less than was asked for; the rest is asked for again.
    if first != start or not first <= last < stop or size not in ("*", str(file.size)):
        raise _other_bytes(file, asked, told)
    return last + 1 - first


def _other_bytes(file: RemoteFile, expected: str, found: str) -> CheckpointError:
    return CheckpointError(
        "the server does not send the bytes that were asked for",
        where=file,
        expected=expected,
        found=found,
        remedy="run again; if it stays, a proxy between here and the Hub changes what it passes on",
    )


def _refused(file: RemoteFile, status: int, headers: httpx2.Headers) -> Exception:
    """What an answer without the bytes means: an interruption, or an error."""
    if status in PASSING:
        return Interruption(f"status {status}", _asked_wait(headers))
    code = headers.get("X-Error-Code", "")
    if status == 416:
        return _other_bytes(file, f"a file of {file.size} bytes", "status 416, outside the file")
    return CheckpointError(
        f"the Hub refuses a file of {file.repo}",
        where=file,
        found=scrubbed(f"status {status}" + (f", {code}" if code else "")),
        remedy=REFUSALS.get(code) or REFUSALS.get(str(status), "try again later"),
    )


def _asked_wait(headers: Any) -> float | None:
    """Seconds that an answer asks to wait: Retry-After as a number or a date, or the Hub's rate limit."""
    text = headers.get("Retry-After", "").strip()
    if text.isdigit():
        return float(text)
    if text:
        try:
            then = parsedate_to_datetime(text)
        except ValueError:
            return None
        then = then if then.tzinfo else then.replace(tzinfo=UTC)
        return max(0.0, (then - datetime.now(UTC)).total_seconds())
    limit = parse_ratelimit_headers(headers)
    return float(limit.reset_in_seconds) if limit is not None and limit.remaining == 0 else None


def ask(where: object, repo: str, question: Callable[[], T]) -> T:
    """The answer to a question to the Hub's API, asked again while it is busy.

    Raises
    ------
    CheckpointError : the Hub refuses, or cannot be reached.
    """
    patience = Patience(where)
    while True:
        try:
            return question()
        except Exception as error:
            # The client lets its HTTP library's errors through, and that library changes between versions.
            broken = _passing(repo, where, error)
        patience.wait(broken)


def _passing(repo: str, where: object, error: Exception) -> Interruption:
    if isinstance(error, HfHubHTTPError) and error.response is not None:
        status = error.response.status_code
        if status in PASSING:
            return Interruption(f"status {status}", _asked_wait(error.response.headers))
    if isinstance(error, TRANSIENT):
        return Interruption(f"the connection broke ({type(error).__name__})")
    raise hub_error(repo, where, error) from None


def hub_error(repo: str, where: object, error: Exception) -> CheckpointError:
    """What the client raised, as an error that says what to do, without tokens and signed addresses."""
    known = (remedy for kind, remedy in REMEDIES if isinstance(error, kind))
    message = scrubbed(" ".join(str(error).split()))[:400]
    return CheckpointError(
        f"the Hub repository {repo} cannot be downloaded",
        where=where,
        found=f"{type(error).__name__}: {message}",
        remedy=next(known, NETWORK),
    )


def scrubbed(text: str) -> str:
    """A message without what opens doors: tokens, passwords in addresses, signatures of addresses."""
    token = get_token()
    text = text.replace(token, "…") if token else text
    text = re.sub(r"\bhf_\w{4,}", "hf_…", text)
    text = re.sub(r"(\w+://)[^/\s@]+@", r"\1…@", text)
    return re.sub(r"(\w+://[^\s?'\"]+)\?[^\s'\"]+", r"\1?…", text)
