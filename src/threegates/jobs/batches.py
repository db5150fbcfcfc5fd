"""Running jobs: those measured by tensor go in batches, the base outside and its tuned checkpoints inside.

A batch is one base tensor and every missing job's tuned tensor beside it. It is one task of one worker, which
gets names of files and tensors, never tensors, and holds one base and one tuned tensor at a time. What a
record holds depends neither on the batch it came from nor on the number of workers, nor on where they run.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from threegates.checkpoints.formats.headers import TensorInfo
from threegates.checkpoints.places import Place
from threegates.checkpoints.tensors import Checkpoint
from threegates.geometry.nulls.table import nulls_named
from threegates.jobs.jobs import Job
from threegates.jobs.kept import sides_in_norm
from threegates.jobs.kinds.known import BY_TENSOR, KINDS, run_job, write_records
from threegates.jobs.memory import LEAST, Need, give_back_freed_memory, need_of, run_within
from threegates.jobs.nulls import with_nulls
from threegates.jobs.settings import memory_cap
from threegates.measures.by_tensor import ByTensor, Parts, Rows, Shared, as_tables
from threegates.measures.tensor_table import PairTable
from threegates.measures.unfit import rows_or_status
from threegates.records.store import Records
from threegates.workers import cores, fitting

# Pairs that a process keeps open: headers and names, no tensors.
_OPEN = 512
_PARTIAL = "partial"
# Lies in a folder of parts for as long as somebody waits for them.
_AWAITED = "awaited"


@dataclass(frozen=True)
class Piece:
    """One tensor of one job, and where its rows go."""

    job: Job
    tensor: str
    parts: Parts


def run_jobs(
    jobs: Sequence[Job],
    records: Records,
    workers: int | None,
    label: str | None = None,
    *,
    backend: str | None = None,
    scheduler: str | None = None,
) -> None:
    """Measure jobs and write their records, over workers of one thread each; None takes as many as pay.

    What a killed or failed run has measured is kept in parts; the next one with the same jobs goes on there.
    `backend` and `scheduler` mean what they mean to `threegates.backends.run_parallel`. The workers of a
    cluster have to share the records' folder.
    """
    whole = [(run_job, (job, records)) for job in jobs if job.kind not in BY_TENSOR]
    places = {job: parts_of(job, records) for job in jobs if job.kind in BY_TENSOR}
    cluster = {"shared": [records.folder], "files": _files(jobs)}
    try:
        _run([*whole, *_tasks(places)], workers, label, backend=backend, scheduler=scheduler, **cluster)
    finally:
        for job, parts in places.items():
            _finish(job, parts, records)
        _remove_empty(records.folder / _PARTIAL)


def measure_parts(
    places: Mapping[Job, Parts],
    workers: int | None,
    label: str | None = None,
    *,
    backend: str | None = None,
    scheduler: str | None = None,
) -> None:
    """Measure what jobs lack, each tensor into its part, where `threegates.backends.run_parallel` says.

    workers : None for as many as pay. Those of a cluster have to share the folders of the parts.
    """
    cluster = {"shared": sorted({parts.folder for parts in places.values()}), "files": _files(places)}
    _run(_tasks(places), workers, label, backend=backend, scheduler=scheduler, **cluster)
    _arrive(places)


def _run(tasks: Sequence[tuple], workers: int | None, label: str | None, **where: Any) -> None:
    """Run tasks within the cap on memory, if there is one."""
    cap = memory_cap()
    needs = [
        replace(Need("", 0) if cap is None else _need(*arguments), read=_read(*arguments))
        for _, arguments in tasks
    ]
    run_within(_call, tasks, needs, cap, workers or _fitting(needs), label, **where)


def _fitting(needs: Sequence[Need]) -> int:
    """As many workers as pay; of a task of which it is not known how much it reads, more do."""
    known = all(need.read for need in needs)
    return fitting(sum(need.read for need in needs)) if known else cores()


def _need(first: object, *_: object) -> Need:
    """What a task takes: a batch what its largest piece does. Jobs that are not by tensor are small ones."""
    if isinstance(first, Job):
        return Need(first.name, LEAST)
    assert isinstance(first, tuple)
    return max(map(_need_of_piece, first), key=lambda need: need.size)


def _read(first: object, *_: object) -> int:
    """Bytes that a task reads, its base once; 0 where only the job knows."""
    if not isinstance(first, tuple):
        return 0
    base = _base_info(first[0])
    tuned = (opened(piece.job).tuned.infos.get(piece.tensor) for piece in first)
    return sum(info.stored_bytes for info in (base, *tuned) if info is not None)


def _need_of_piece(piece: Piece) -> Need:
    """What a piece takes, as a row of the table with everything that is measured would."""
    return need_of(_as_table(piece.job), piece.tensor, drawn=_draws_masks(piece.job))


def _draws_masks(job: Job) -> bool:
    """Whether a job holds masks of nulls, which takes more than their laws do."""
    return any(null.law is None for null in nulls_named(job.arguments.get("nulls", ())))


@lru_cache(maxsize=_OPEN)
def _as_table(job: Job) -> PairTable:
    """A job's pair as one table, aligned once for all of its tensors."""
    arguments, pair = job.arguments, opened(job)
    spectra = KINDS[job.kind].spectra and arguments.get("spectra", True)
    axes, nulls = arguments.get("axes", False), nulls_named(arguments.get("nulls", ()))
    accuracy = arguments.get("accuracy", "certified")
    return PairTable(
        pair.base, pair.tuned, job.name, axes=axes, spectra=spectra, nulls=nulls, accuracy=accuracy
    )


def _tasks(places: Mapping[Job, Parts]) -> list[tuple]:
    for parts in places.values():
        parts.drop_others()
    found = batches(places)
    for parts in {piece.parts for batch in found for piece in batch}:
        parts.folder.mkdir(parents=True, exist_ok=True)
        (parts.folder / _AWAITED).touch()
    return [(measure_batch, (batch,)) for batch in found]


def _files(jobs: Iterable[Job]) -> list[Path]:
    """The files of the checkpoints that lie in folders."""
    places = [Place.parse(text) for job in jobs for text in job.arguments["places"].values()]
    folders = {folder for place in places for folder in (place.folder, place.adapter, place.start) if folder}
    return sorted(file for folder in folders for file in _weights(Path(folder)))


def _weights(place: Path) -> Iterable[Path]:
    """The weight files of a folder; of a file itself, that file."""
    return [place] if place.is_file() else place.glob("*.safetensors")


def _arrive(places: Mapping[Job, Parts]) -> None:
    """Look into the folders of parts, because a shared one tells of other machines' new files only then."""
    for parts in places.values():
        if parts.folder.is_dir():
            os.listdir(parts.folder)


def parts_of(job: Job, records: Records) -> Parts:
    """Where a job's parts lie until its records are written."""
    return Parts(records.folder / _PARTIAL / job.kind / job.name, job.digest)


def batches(places: Mapping[Job, Parts]) -> list[tuple[Piece, ...]]:
    """What is still to be measured, by base tensor, the largest first.

    Base tensors of equal bytes, type and shape are one, whichever checkpoints they lie in.
    """
    pieces = [
        Piece(job, tensor, parts)
        for job, parts in places.items()
        for tensor in opened(job).names
        if not parts.has(tensor)
    ]
    several = _shapes_of_several_bases(pieces)
    found: dict[tuple[str, str], list[Piece]] = defaultdict(list)
    for piece in pieces:
        info = _base_info(piece)
        alike = info is not None and (info.dtype, info.shape) in several
        key = ("content", _content(piece)) if alike else (_base_digest(piece), piece.tensor)
        found[key].append(piece)
    return sorted((tuple(batch) for batch in found.values()), key=_cost, reverse=True)


def measure_batch(batch: Sequence[Piece]) -> None:
    """Measure one base tensor's pieces, each kept as soon as it is there."""
    shared = Shared()
    for piece in batch:
        if not piece.parts.has(piece.tensor):
            rows = rows_or_status(opened(piece.job), piece.tensor, shared)
            labelled = {table: piece.job.label(of_table) for table, of_table in rows.items()}
            keep(piece.parts, piece.tensor, labelled)


def keep(parts: Parts, tensor: str, rows: Rows) -> None:
    """Keep a tensor's rows, whole or not at all, if somebody still waits for them.

    A worker of a cluster may outlive the process that gave it the tensor: what that one's successor has
    merged and removed is not made anew. Processes of two machines may have one number, hence the name.
    """
    path, text = parts.path(tensor), json.dumps(rows)
    temporary = path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}.partial")
    if not (parts.folder / _AWAITED).exists():
        return
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except FileNotFoundError:
        # The folder went away meanwhile.
        pass
    finally:
        temporary.unlink(missing_ok=True)


@lru_cache(maxsize=_OPEN)
def opened(job: Job) -> ByTensor:
    """The pair that a job measures by tensor."""
    arguments = {name: value for name, value in with_nulls(job.arguments).items() if name != "places"}
    digests = job.inputs["checkpoints"]
    sides = {place: _open(path, digests[place]) for place, path in job.arguments["places"].items()}
    return BY_TENSOR[job.kind](**sides_in_norm(sides), **arguments)


@lru_cache(maxsize=_OPEN)
def _open(place: str, digest: str) -> Checkpoint:
    """A checkpoint, opened once in a process for as long as its content stays the same."""
    return Place.parse(place).open()


def _call(work: Callable[..., None], arguments: tuple) -> None:
    work(*arguments)
    give_back_freed_memory()


def _finish(job: Job, parts: Parts, records: Records) -> None:
    """Write a job's records if all of its parts are there; then the parts have served."""
    _arrive({job: parts})
    pair = opened(job)
    if all(parts.has(tensor) for tensor in pair.names):
        tables = as_tables(pair, [parts.read(tensor) for tensor in pair.names])
        write_records(job, records, tables)
    if job.is_done(records):
        parts.remove()


def _remove_empty(folder: Path) -> None:
    """Remove a folder of parts, and the folders in it, as far as nothing is left in them."""
    for path in sorted([*folder.rglob("*/"), folder], reverse=True):
        with suppress(OSError):
            path.rmdir()


def _cost(batch: Sequence[Piece]) -> tuple[int, str]:
    """Work of a batch, roughly: products of its matrices with thin ones, once for each tuned tensor."""
    info = _base_info(batch[0])
    return (math.prod(info.shape) if info else 0) * len(batch), batch[0].tensor


def _base_info(piece: Piece) -> TensorInfo | None:
    return _base(piece).infos.get(piece.tensor)


def _base(piece: Piece) -> Checkpoint:
    return _open(piece.job.arguments["places"]["base"], _base_digest(piece))


def _base_digest(piece: Piece) -> str:
    return piece.job.inputs["checkpoints"]["base"]


def _shapes_of_several_bases(pieces: Sequence[Piece]) -> set[tuple[str, tuple[int, ...]]]:
    """Types and shapes that tensors of more than one base have: only those can be of equal content."""
    bases: dict[tuple[str, tuple[int, ...]], set[str]] = defaultdict(set)
    for piece in pieces:
        info = _base_info(piece)
        if info is not None:
            bases[info.dtype, info.shape].add(_base_digest(piece))
    return {key for key, found in bases.items() if len(found) > 1}


def _content(piece: Piece) -> str:
    return _content_of(piece.job.arguments["places"]["base"], _base_digest(piece), piece.tensor)


@lru_cache(maxsize=1 << 16)
def _content_of(place: str, digest: str, tensor: str) -> str:
    """sha256 over type, shape and bytes of a base's tensor.

    Over the network nothing is read only to be compared: there, tensors are one if their checkpoints are.
    """
    if Place.parse(place).repo:
        return f"{digest} {tensor}"
    checkpoint = _open(place, digest)
    info = checkpoint.info(tensor)
    total = hashlib.sha256(f"{info.dtype} {list(info.shape)} ".encode())
    for chunk in _bytes_of(checkpoint.stored(tensor)):
        total.update(chunk)
    return total.hexdigest()


def _bytes_of(stored: Tensor, at_once: int = 1 << 24) -> Iterator[memoryview]:
    content = stored.cpu().contiguous().flatten().view(torch.uint8).numpy().data
    for start in range(0, len(content), at_once):
        yield content[start : start + at_once]
