"""Large files of the Hub into huggingface_hub's own cache, in a way that goes on after a kill.

The client downloads into a file of a new name each time and cannot go on with it: a broken 5 GB shard starts
anew. So large files are fetched here, into ``blobs/SHA256.incomplete``, which the next run continues, then
under their own names, with the links that the client expects. It finds them as if it had fetched them itself.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from contextlib import suppress
from pathlib import Path
from threading import Event, Lock

from huggingface_hub import constants
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import WeakFileLock
from tqdm import tqdm

from threegates.checkpoints.hub.transfer import RangeIgnoredError, RemoteFile, read_range
from threegates.errors import CheckpointError

# Files at a time: one connection seldom fills a line.
AT_ONCE = 4
# A server that ignores ranges makes every break a new beginning; then it is enough at some point.
BEGINNINGS = 3
# What a disk should still have free afterwards.
SPARE = 64 * 2**20

Tell = Callable[[int], object]


def storage_of(repo: str, cache_dir: Path | None) -> Path:
    """Folder of a repository in huggingface_hub's cache."""
    cache = cache_dir or Path(constants.HF_HUB_CACHE)
    return cache.expanduser().resolve() / repo_folder_name(repo_id=repo, repo_type="model")


def download(files: Iterable[RemoteFile], storage: Path) -> None:
    """Fetch what is missing of files that have a sha256, with progress on a terminal.

    Raises
    ------
    CheckpointError : the disk is too small, which is looked at first; the Hub refuses or breaks off again
        and again; or a file does not have the sha256 that the Hub lists.
    """
    wanted = [file for file in files if not (storage / "blobs" / file.blob).exists()]
    _check_space(wanted, storage)
    told = {"total": sum(file.size for file in wanted), "desc": f"{len(wanted)} files"}
    quiet = not wanted or not sys.stderr.isatty()
    with tqdm(**told, unit="B", unit_scale=True, unit_divisor=1024, disable=quiet) as bar:
        _at_once(wanted, storage, bar.update)


def _at_once(wanted: Sequence[RemoteFile], storage: Path, show: Tell) -> None:
    """Fetch several files at a time; where one fails, the others stop, and keep what they have."""
    alone, stop = Lock(), Event()

    def tell(count: int) -> None:
        with alone:
            show(count)
        if stop.is_set():
            raise CancelledError

    with ThreadPoolExecutor(AT_ONCE) as pool:
        tasks = [pool.submit(_fetch, file, storage, tell) for file in wanted]
        try:
            for task in as_completed(tasks):
                task.result()
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def link(file: RemoteFile, storage: Path) -> None:
    """Give a file that is there its name in the snapshot; where there are no links, the client copies."""
    blob = storage / "blobs" / file.blob
    pointer = storage / "snapshots" / file.revision / file.name
    pointer.parent.mkdir(parents=True, exist_ok=True)
    if not os.path.lexists(pointer) and not constants.HF_HUB_DISABLE_SYMLINKS:
        with suppress(OSError):
            os.symlink(os.path.relpath(blob, pointer.parent), pointer)


def _check_space(wanted: Iterable[RemoteFile], storage: Path) -> None:
    missing = sum(file.size - _held(_partial(file, storage)) for file in wanted)
    # The folder is made only later. It will lie on the disk of the nearest folder above it.
    place = next(path for path in (storage, *storage.parents) if path.exists())
    free = shutil.disk_usage(place).free
    if missing and missing + SPARE > free:
        raise CheckpointError(
            "the disk has too little space for the checkpoint",
            where=storage,
            expected=f"{_gib(missing + SPARE)} free",
            found=f"{_gib(free)}; nothing was fetched",
            remedy="set HF_HOME to a folder on a larger disk, or read the checkpoint by ranges, which needs"
            " no more than THREEGATES_RANGES_GIB",
        )


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"


def _partial(file: RemoteFile, storage: Path) -> Path:
    return storage / "blobs" / f"{file.blob}.incomplete"


def _held(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _fetch(file: RemoteFile, storage: Path, tell: Tell) -> None:
    blob, partial = storage / "blobs" / file.blob, _partial(file, storage)
    lock = storage.parent / ".locks" / storage.name / f"{file.blob}.lock"
    for folder in (blob.parent, lock.parent):
        folder.mkdir(parents=True, exist_ok=True)
    # The client's own lock: it waits for us, and we for it.
    with WeakFileLock(lock):
        if blob.exists():
            tell(file.size)
            return
        found = _complete(file, partial, tell)
        if found != file.sha256:
            partial.unlink(missing_ok=True)
            raise CheckpointError(
                f"{file.name} is not the file that the Hub lists",
                where=file,
                expected=f"sha256 {file.sha256}",
                found=f"sha256 {found}",
                remedy="it was damaged on its way and has been removed: run again; if it happens twice, the"
                " repository is damaged",
            )
        os.replace(partial, blob)


def _complete(file: RemoteFile, partial: Path, tell: Tell) -> str:
    """Fetch what the partial file lacks; sha256 of the whole."""
    for _ in range(BEGINNINGS):
        with open(partial, "ab+") as out:
            if out.tell() > file.size:
                out.truncate(0)
            out.seek(0)
            total = hashlib.file_digest(out, "sha256")
            held = out.tell()
            tell(held)
            try:
                for chunk in read_range(file, held, file.size):
                    out.write(chunk)
                    total.update(chunk)
                    tell(len(chunk))
                return total.hexdigest()
            except RangeIgnoredError as error:
                ignored = error
                tell(-out.tell())
        # Nothing of it can be continued: all of it comes anew.
        partial.unlink(missing_ok=True)
    raise ignored
