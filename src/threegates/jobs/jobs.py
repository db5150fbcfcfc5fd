"""The units of measuring: what a kind of job is, what one job measures, and the digest of what decides it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from threegates.checkpoints.places import Place, place_of
from threegates.checkpoints.tensors import Checkpoint
from threegates.checkpoints.views import naming_digest
from threegates.definitions import Reach
from threegates.digest import code_digest, digest_versions, value_digest
from threegates.jobs.nulls import FOUNDING, laws, samplers
from threegates.jobs.reach import measuring, record_digest
from threegates.jobs.sources import Source, StudyPair
from threegates.measures.by_tensor import ByTensor
from threegates.records.store import Records

#: What the place of a run's checkpoint begins with, before its number along the run.
STEP = "step:"
_CPU = "cpu"


@dataclass(frozen=True)
class Job:
    """One unit of measuring.

    `kind` is the kind's name, `tables` are those that it writes. `facts` become columns when its tables are
    read; `inputs` go into the records' provenance. `stale` says that its records are released ones, which
    other code or other versions made.
    """

    kind: str
    name: str
    digest: str
    tables: tuple[str, ...]
    arguments: dict
    facts: dict = field(default_factory=dict)
    inputs: dict = field(default_factory=dict)
    stale: bool = False

    def __hash__(self) -> int:
        return hash(self.digest)

    def label(self, rows: Iterable[dict]) -> list[dict]:
        """Rows that call the pair by its name, where it was measured under another."""
        return [row | {"pair": self.name} if row.get("pair") == self.measured_as else row for row in rows]

    @property
    def measured_as(self) -> str:
        """The name that its pair is measured under, which is in the seeds of what is drawn."""
        return self.arguments.get("name", self.name)

    def is_done(self, records: Records) -> bool:
        """Whether all of its records are there."""
        return all(records.exists(table, self.name, self.digest) for table in self.tables)


@dataclass(frozen=True)
class Cut:
    """What one job of a kind looks at: checkpoints by their place in it, and the parameters of its measuring.

    `facts` become columns when its tables are read.
    """

    name: str
    sources: Mapping[str, Source]
    options: dict
    facts: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Kind:
    """A kind of job; it has either `measure` or `by_tensor`.

    Parameters
    ----------
    name : part of every digest and of folders' names.
    tables : that each of its jobs writes, with their columns and types. A record that was measured with more
        nulls than the founding ones has columns of those too, and one with fewer lacks some.
    root : the definition that decides its numbers, with all that this reaches by name.
    cut : from pairs and the options ``seed`` and, beside nulls, ``nulls``, what each job looks at.
    measure : a job's tables, from the texts of its checkpoints by place, ``places``, and its parameters.
    by_tensor : the class that measures a pair tensor by tensor, from its checkpoints by place and parameters.
    nulls : whether it has nulls, whose names are among its parameters.
    laws : whether it computes their laws, and draws masks only of those that have none.
    spectra : whether one that is measured by tensor decomposes matrices, which takes most of its memory.
    """

    name: str
    tables: Mapping[str, Mapping[str, str]]
    root: str
    cut: Callable[[Sequence[StudyPair], dict], Iterator[Cut]]
    measure: Callable[..., dict[str, pd.DataFrame]] | None = None
    by_tensor: Callable[..., ByTensor] | None = None
    nulls: bool = False
    laws: bool = False
    spectra: bool = False

    @property
    def reach(self) -> Reach:
        """The code that decides its numbers, beside the founding nulls where it has any."""
        return self.reach_of(self.asked())

    def reach_of(self, parameters: Mapping[str, Any]) -> Reach:
        """The code that decides the numbers of a job: what measures its kind, its nulls' samplers and laws.

        What measures reaches no null by name, so that the others may change, and new ones come, without it.
        """
        names = parameters.get("nulls", ())
        return measuring(self.root, *samplers(names), *(laws(names) if self.laws else ()))

    def asked(self, nulls: Sequence[str] = FOUNDING) -> dict[str, list[str]]:
        """The option that names nulls, where the kind has it."""
        return {"nulls": list(nulls)} if self.nulls else {}

    def jobs(self, pairs: Sequence[StudyPair], options: dict) -> Iterator[Job]:
        """Every job of this kind on these pairs; raises what `cut` does."""
        own = {key: value for key, value in options.items() if key != "nulls" or self.nulls}
        return (self._job(_by_content(cut)) for cut in self.cut(pairs, own))

    def _job(self, cut: Cut) -> Job:
        checkpoints = {place: source.checkpoint for place, source in cut.sources.items()}
        inputs: dict[str, object] = {
            "checkpoints": _digests(checkpoints),
            "revisions": {place: one.revision for place, one in checkpoints.items() if one.revision},
            "parameters": cut.options,
        }
        places = {place: place_of(one) for place, one in checkpoints.items()}
        inputs |= _narrowed(places) | _renamed(checkpoints) | _as_floats(places)
        digest = record_digest(self.name, inputs, *_decides(self.reach_of(cut.options), code_digest))
        arguments = {"places": {place: where.text() for place, where in places.items()}, **cut.options}
        return Job(self.name, cut.name, digest, tuple(self.tables), arguments, cut.facts, inputs)


def _by_content(cut: Cut) -> Cut:
    """A pair that no manifest names, measured under a name of what its checkpoints hold.

    Names are in the seeds of what is drawn, and what a folder is called must move no number.
    """
    sources = cut.sources.values()
    if "name" not in cut.options or any(source.entry is not None for source in sources):
        return cut
    digests = _digests({place: source.checkpoint for place, source in cut.sources.items()})
    return replace(cut, options=cut.options | {"name": f"pair-{value_digest(digests)[:16]}"})


def _digests(checkpoints: Mapping[str, Checkpoint]) -> dict[str, str]:
    """Digests of checkpoints by place, whose files are read side by side where they were not before."""
    with ThreadPoolExecutor(max(1, len(checkpoints))) as pool:
        found = pool.map(lambda one: one.digest(), checkpoints.values())
        return dict(zip(checkpoints, found, strict=True))


def opened_at(text: str) -> Checkpoint:
    """The checkpoint at a place, as a job's arguments have it."""
    return Place.parse(text).open()


def folder_at(text: str) -> Path:
    """Folder of a checkpoint of the lab, whose log, frame or tokenizer lies beside the tensors."""
    return Path(Place.parse(text).folder)


def _narrowed(places: Mapping[str, Place]) -> dict[str, object]:
    """Which tensors are looked at, and the device they are on; both sides of a pair have the same choice."""
    ((layers, matrices, device),) = {(one.layers, one.matrices, one.device) for one in places.values()}
    named = {"layers": layers, "matrices": matrices, "device": device}
    return {key: value for key, value in named.items() if value not in (None, _CPU)}


def _renamed(checkpoints: Mapping[str, Checkpoint]) -> dict[str, object]:
    """What decides the names of tensors that are not looked at under those they are stored under."""
    found = {place: digest for place, one in checkpoints.items() if (digest := naming_digest(one))}
    return {"names": found} if found else {}


def _as_floats(places: Mapping[str, Place]) -> dict[str, object]:
    """The sides whose codes are read as floats."""
    found = [place for place, one in places.items() if one.dequantised]
    return {"dequantised": found} if found else {}


@cache
def _decides(reach: Reach, digest: Callable[..., str]) -> tuple[str, dict[str, str]]:
    """Code and versions that decide a kind of job; a process does not change them."""
    return digest(*reach.roots, outside=reach.outside, inside=reach.inside), digest_versions()
