"""Every kind of job by its name, and what is done with jobs of whichever kind."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import pandas as pd

from threegates.checkpoints.places import Place
from threegates.errors import NotFiniteError
from threegates.jobs.jobs import Job, Kind
from threegates.jobs.kinds.curvature import CURVATURE
from threegates.jobs.kinds.drift import DRIFT
from threegates.jobs.kinds.fisher import FISHER
from threegates.jobs.kinds.group import GROUP
from threegates.jobs.kinds.lens import LENS
from threegates.jobs.kinds.overlap import OVERLAP
from threegates.jobs.kinds.pair import PAIR
from threegates.jobs.kinds.rotation import FRAME, ROTATION
from threegates.jobs.kinds.run import RUN
from threegates.jobs.kinds.steepness import STEEPNESS
from threegates.jobs.kinds.table import TABLE
from threegates.jobs.nulls import FOUNDING, asked_for, with_nulls
from threegates.jobs.sources import StudyPair
from threegates.measures.by_tensor import ByTensor
from threegates.records.provenance import record_provenance
from threegates.records.store import Records

_EVERY = (PAIR, GROUP, RUN, DRIFT, OVERLAP, LENS, CURVATURE, STEEPNESS, ROTATION, FRAME, FISHER, TABLE)
#: Kinds of job by name.
KINDS: dict[str, Kind] = {kind.name: kind for kind in _EVERY}
#: What measures the kinds that are measured tensor by tensor, as `threegates.jobs.batches` does.
BY_TENSOR: dict[str, Callable[..., ByTensor]] = {
    kind.name: kind.by_tensor for kind in _EVERY if kind.by_tensor is not None
}


def tables_of(kinds: Iterable[str]) -> dict[str, Mapping[str, str]]:
    """Tables that jobs of these kinds write, with their columns and types."""
    return {table: columns for kind in kinds for table, columns in KINDS[kind].tables.items()}


def jobs_of(
    kinds: Iterable[str], pairs: Sequence[StudyPair], seed: int, nulls: Sequence[str] = FOUNDING
) -> list[Job]:
    """Every job of these kinds on these pairs, beside the nulls of these names.

    Raises
    ------
    GeometryError : there is no null of such a name.
    PairError : a kind follows runs, and a run has fewer than two steps; or it compares frames, and no run
        starts from a base with a frame beside one from the base that this was made of.
    """
    options = {"seed": seed, "nulls": asked_for(nulls)}
    return [job for kind in kinds for job in KINDS[kind].jobs(pairs, options)]


def run_job(job: Job, records: Records) -> None:
    """Measure a job that is not measured by tensor, and write its records.

    A tensor of which a run has values that are not finite is left out of all of the job's runs, as it is out
    of a pair that is measured tensor by tensor.
    """
    measure = KINDS[job.kind].measure
    assert measure is not None
    arguments = with_nulls(job.arguments)
    without: list[str] = []
    while True:
        try:
            tables = measure(**arguments | {"places": _without(arguments["places"], without)})
            break
        except NotFiniteError as error:
            if error.tensor in (None, *without):
                raise
            without.append(str(error.tensor))
    write_records(job, records, tables)


def _without(places: Mapping[str, str], names: Sequence[str]) -> dict[str, str]:
    """The places of a job's checkpoints, each without these tensors."""
    if not names:
        return dict(places)
    return {place: replace(Place.parse(text), without=tuple(names)).text() for place, text in places.items()}


def write_records(job: Job, records: Records, tables: Mapping[str, pd.DataFrame]) -> None:
    """Write what a job has measured."""
    provenance = job_provenance(job)
    for table in job.tables:
        records.write(table, job.name, job.digest, _labelled(job, tables[table]), provenance)


def _labelled(job: Job, frame: pd.DataFrame) -> pd.DataFrame:
    """A table that calls the pair by its name, where it was measured under another."""
    if job.measured_as == job.name or "pair" not in frame:
        return frame
    return frame.assign(pair=frame["pair"].replace({job.measured_as: job.name}).astype(frame["pair"].dtype))


def job_provenance(job: Job, **details: object) -> dict:
    """What every table of a job states: code, versions, and the job's inputs.

    The inputs are `checkpoints` and `revisions`, digests and commits by place; `parameters`; and, where they
    decided something, `layers`, `matrices`, `device` and `names`.
    """
    return record_provenance(KINDS[job.kind].reach_of(job.arguments), inputs=job.inputs, **details)
